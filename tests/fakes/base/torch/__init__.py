"""As much of torch as the probe of packages calls, on the standard library: tensors over bytes, ranks that meet in
files.

FAKE_GPUS says how many GPUs there are (2). Nothing here computes faster than Python does: shapes must be small.
"""

import array
import ctypes
import os
import pickle
import time

__version__ = "2.11.0"


class _DType:
    def __init__(self, code, size):
        self.code, self.size = code, size


# bf16 as its bits: sums are made by whoever knows that.
bfloat16, int32, int64, float32 = _DType("H", 2), _DType("i", 4), _DType("q", 8), _DType("f", 4)


def _count(shape):
    count = 1
    for length in shape:
        count *= length
    return count


class Tensor:
    def __init__(self, values, dtype, shape):
        self.values, self.dtype, self.shape = array.array(dtype.code, values), dtype, tuple(shape)

    def reshape(self, *shape):
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        return Tensor(self.values, self.dtype, shape if shape != (-1,) else (len(self.values),))

    def to(self, target):
        return Tensor(self.values, target, self.shape) if isinstance(target, _DType) else self

    def contiguous(self):
        return self

    cpu = contiguous

    def zero_(self):
        self.values[:] = array.array(self.dtype.code, [0] * len(self.values))
        return self

    def numel(self):
        return len(self.values)

    def element_size(self):
        return self.dtype.size

    def data_ptr(self):
        return self.values.buffer_info()[0]

    def tolist(self):
        return list(self.values)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        row = _count(self.shape[1:])
        if isinstance(key, slice):
            begin, end, _ = key.indices(self.shape[0])
            return Tensor(self.values[begin * row : end * row], self.dtype, (end - begin, *self.shape[1:]))
        return Tensor(self.values[key * row : (key + 1) * row], self.dtype, self.shape[1:])


def frombuffer(raw, dtype):
    values = array.array(dtype.code, bytes(raw))
    return Tensor(values, dtype, (len(values),))


def empty(shape, dtype, device=None):
    return Tensor([0] * _count(shape), dtype, shape)


zeros = empty


def cat(parts):
    rows = sum(part.shape[0] for part in parts)
    values = array.array(parts[0].dtype.code)
    for part in parts:
        values.extend(part.values)
    return Tensor(values, parts[0].dtype, (rows, *parts[0].shape[1:]))


class version:
    cuda = "13.0"


class cuda:
    device_count = staticmethod(lambda: int(os.environ.get("FAKE_GPUS", "2")))
    set_device = staticmethod(lambda device: None)
    synchronize = staticmethod(lambda: None)
    mem_get_info = staticmethod(lambda: (1 << 30, 1 << 31))
    current_device = staticmethod(lambda: distributed.rank)

    class nccl:
        version = staticmethod(lambda: (2, 30, 7))

    class current_stream:
        cuda_stream = 7

    class Event:
        def __init__(self, enable_timing=False):
            self.at = 0.0

        def record(self):
            self.at = time.perf_counter()

        def elapsed_time(self, other):
            return (other.at - self.at) * 1e3 + 1e-6


class distributed:
    """Ranks of one job exchange what they have as numbered files in a folder."""

    rank = size = 0
    folder = None
    step = 0

    class group:
        WORLD = "the group of all ranks"

    @classmethod
    def init_process_group(cls, backend, init_method, rank, world_size):
        cls.folder = init_method.removeprefix("file://") + ".d"
        os.makedirs(cls.folder, exist_ok=True)
        cls.rank, cls.size = rank, world_size

    @classmethod
    def exchange(cls, own):
        cls.step += 1
        name = os.path.join(cls.folder, f"{cls.step}.")
        with open(f"{name}{cls.rank}.part", "wb") as file:
            pickle.dump(own, file)
        os.rename(f"{name}{cls.rank}.part", f"{name}{cls.rank}")
        found = []
        for rank in range(cls.size):
            while not os.path.exists(f"{name}{rank}"):
                time.sleep(0.0005)
            with open(f"{name}{rank}", "rb") as file:
                found.append(pickle.load(file))
        return found

    @classmethod
    def barrier(cls):
        cls.exchange(None)

    @classmethod
    def destroy_process_group(cls):
        cls.barrier()


def crash():
    """A signal, as a bug in a package's compiled part would end it."""
    ctypes.string_at(0)


def scaled(row, factor):
    """Elements of bf16, as bits, times a number; rounded to zero, as nobody here looks closer."""
    wide = array.array("I", [bits << 16 for bits in row])
    floats = array.array("f", wide.tobytes())
    back = array.array("I", array.array("f", [value * factor for value in floats]).tobytes())
    return [bits >> 16 for bits in back]
