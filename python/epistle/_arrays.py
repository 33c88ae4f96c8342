"""Arrays of others to arrays of NumPy, and epistle.Array to those of NumPy and Torch."""

from __future__ import annotations

import typing


def is_torch(array: typing.Any) -> bool:
    return type(array).__module__.split(".")[0] == "torch"


def numbers_of(array: typing.Any) -> typing.Any:
    """As NumPy has them, of a tensor of Torch (parameters too) or of what NumPy takes itself."""
    import numpy

    if is_torch(array):
        array = array.detach().cpu()
        # NumPy has no bf16.
        return array.double().numpy() if array.is_floating_point() else array.numpy()
    return numpy.asarray(array)


def to_numpy(array: typing.Any) -> typing.Any:
    import numpy

    if array.device != "host":
        raise TypeError("the array lies on a GPU; take it with cupy.from_dlpack or torch.from_dlpack")
    if array.dtype not in ("bfloat16", "float8_e4m3fn"):
        return numpy.asarray(array)
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError(
            f"NumPy has no {array.dtype}; install the package ml_dtypes, or take the same memory as unsigned integers: "
            "numpy.asarray(array.bits())"
        ) from None
    return numpy.asarray(array.bits()).view(getattr(ml_dtypes, array.dtype))


def to_torch(array: typing.Any) -> typing.Any:
    import torch
    from torch.utils.dlpack import from_dlpack

    # By the capsule: Torch then asks for no stream, and there is none to order against, as arrays are filled on the
    # caller's.
    if array.dtype == "float8_e4m3fn":  # not every Torch reads it from DLPack
        return from_dlpack(array.bits().__dlpack__()).view(torch.float8_e4m3fn)
    return from_dlpack(array.__dlpack__())
