"""Reads what the recorders of SGLang and vLLM write: expert loads in files of Torch's, without Torch."""

from __future__ import annotations

import io
import pathlib
import pickle
import typing
import zipfile

from epistle import _arrays

if typing.TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]

# Loads of logical experts, the newest axes last: [samples..., layers, experts].
_LOGICAL = ("logical_count", "expert_load", "expert_loads", "loads", "tokens_per_expert", "weight")
# Of slots; the file says which expert each holds.
_PHYSICAL = ("global_physical_count", "physical_count", "expert_load_window", "expert_load_pass")
_MAPS = ("physical_to_logical_map", "last_physical_to_logical_map", "phy2log")
_IDS = ("topk_ids_of_layer",)

_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
    "BFloat16Storage": "<u2",  # which NumPy has not: widened when it is read
}


class RecordingError(ValueError):
    """A file that holds no expert loads, or none that can be read."""


class _Storage:
    def __init__(self, name: str) -> None:
        self.name = name


class _Unpickler(pickle.Unpickler):
    """Knows tensors and plain containers; runs nothing that a file names."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{prefix}/data.pkl")))
        self._archive = archive
        self._prefix = prefix

    def find_class(self, module: str, name: str) -> typing.Any:
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _DTYPES:
            return _Storage(name)
        raise RecordingError(f"it holds a {module}.{name}, expected tensors, numbers, texts, lists and dicts")

    def persistent_load(self, pid: typing.Any) -> typing.Any:
        import numpy as np

        kind, storage, key = pid[:3]
        if kind != "storage" or not isinstance(storage, _Storage):
            raise RecordingError("it holds something that is no tensor's storage")
        values = np.frombuffer(self._archive.read(f"{self._prefix}/data/{key}"), dtype=_DTYPES[storage.name])
        if storage.name == "BFloat16Storage":
            return (values.astype("<u4") << 16).view("<f4")
        return values


def _rebuild_tensor(
    storage: typing.Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> typing.Any:
    import numpy as np

    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if any(n < 0 for n in size) or any(s < 0 for s in stride) or offset < 0 or (0 not in size and last >= storage.size):
        raise RecordingError("a tensor reaches beyond its storage")
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape=size, strides=[s * storage.itemsize for s in stride]
    ).copy()


def _load(path: pathlib.Path) -> typing.Any:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise RecordingError("it is no file of torch.save")
            return _Unpickler(archive, names[0].removesuffix("/data.pkl")).load()
    except zipfile.BadZipFile:
        raise RecordingError(
            "it is no file of torch.save, or of a Torch before 1.6; save it anew with a later one"
        ) from None
    except pickle.UnpicklingError as error:
        raise RecordingError(f"it is damaged: {error}") from None


def _sum_to_layers(loads: typing.Any) -> Numbers:
    import numpy as np

    array = _arrays.numbers_of(loads).astype(np.float64)
    if array.ndim == 1:
        array = array[np.newaxis]
    if array.ndim < 2:
        raise RecordingError("the loads are one number, expected [layers, experts]")
    return typing.cast("Numbers", array.sum(axis=tuple(range(array.ndim - 2))))


def _to_logical(physical: Numbers, slots: typing.Any) -> Numbers:
    import numpy as np

    mapping = _arrays.numbers_of(slots).astype(np.int64)
    if mapping.ndim == 1:
        mapping = np.broadcast_to(mapping, physical.shape)
    if mapping.shape != physical.shape:
        raise RecordingError(
            f"the loads of slots are {physical.shape}, the map of slots {mapping.shape}; expected the same"
        )
    logical = np.zeros((physical.shape[0], int(mapping.max()) + 1))
    for layer, experts in enumerate(mapping):
        held = experts >= 0
        np.add.at(logical[layer], experts[held], physical[layer][held])
    return logical


def _count_ids(ids: typing.Any, num_experts: int) -> Numbers:
    """Of [layers, tokens, top_k]."""
    import numpy as np

    array = _arrays.numbers_of(ids).astype(np.int64)
    if array.ndim != 3:
        raise RecordingError(f"the expert ids have {array.ndim} axes, expected [layers, tokens, top_k]")
    return np.stack([np.bincount(layer[layer >= 0], minlength=num_experts) for layer in array]).astype(np.float64)


def _find(document: dict[str, typing.Any], names: tuple[str, ...]) -> typing.Any:
    return next((document[name] for name in names if document.get(name) is not None), None)


def _loads_of(document: typing.Any, slots: typing.Any, num_experts: int) -> Numbers:
    if not isinstance(document, dict):
        if isinstance(document, (list, tuple)) and document and isinstance(document[0], dict):
            return _sum_records(document, slots, num_experts)
        return _sum_to_layers(document)
    slots = slots if _find(document, _MAPS) is None else _find(document, _MAPS)
    if (logical := _find(document, _LOGICAL)) is not None:
        return _sum_to_layers(logical)
    if (records := document.get("records")) is not None:
        return _sum_records(records, slots, num_experts)
    if (physical := _find(document, _PHYSICAL)) is not None:
        counts = _sum_to_layers(physical)
        return counts if slots is None else _to_logical(counts, slots)
    if (ids := _find(document, _IDS)) is not None:
        return _count_ids(ids, max(num_experts, int(_arrays.numbers_of(ids).max()) + 1))
    if (ids := document.get("routed_experts")) is not None:  # [tokens, layers, top_k]
        ids = _arrays.numbers_of(ids)
        return _count_ids(ids.swapaxes(0, 1) if ids.ndim == 3 else ids, max(num_experts, int(ids.max()) + 1))
    raise RecordingError(
        f"it holds {', '.join(map(str, sorted(document, key=str))) or 'nothing'}; expected one of "
        f"{', '.join((*_LOGICAL, *_PHYSICAL, *_IDS, 'routed_experts', 'records'))}"
    )


def _sum_records(records: typing.Any, slots: typing.Any, num_experts: int) -> Numbers:
    import numpy as np

    parts = [_loads_of(record, slots, num_experts) for record in records]
    if not parts:
        raise RecordingError("it holds no records")
    most = max(part.shape[1] for part in parts)
    total = np.zeros((parts[0].shape[0], most))
    for part in parts:
        if part.shape[0] != total.shape[0]:
            raise RecordingError(f"a record has {part.shape[0]} layers, expected {total.shape[0]} as the first")
        total[:, : part.shape[1]] += part
    return total


def read_recording(path: str | pathlib.Path, num_experts: int = 0) -> Numbers:
    """Loads [layers, experts] of a ``.pt`` file, samples added up.

    Known are the dumps of SGLang's recorder in its modes stat, stat_approx, per_pass and per_token, the load windows of
    vLLM's balancer (with their map of slots), recorded expert ids, and a plain tensor [(samples,) layers, experts].
    ``num_experts`` matters only to ids that do not name the last expert. Raises RecordingError.
    """
    return _loads_of(_load(pathlib.Path(path)), None, num_experts)
