"""The CUDA stream of a call, as an integer."""

from __future__ import annotations

import sys
import typing


def resolve(given: typing.Any, tensor: typing.Any, ordinal: int) -> int:
    if given is None:
        return current(tensor, ordinal)
    if isinstance(given, int):
        return given
    for name in ("cuda_stream", "ptr"):  # Torch, CuPy
        if hasattr(given, name):
            return int(getattr(given, name))
    raise TypeError(f"stream is {given!r}; it is an integer, or a stream of Torch or CuPy")


def current(tensor: typing.Any, ordinal: int) -> int:
    """That of the library which the tensor belongs to. Where there is no tensor: Torch's, where it is in use."""
    library = type(tensor).__module__.partition(".")[0]
    cupy = sys.modules.get("cupy")
    if library == "cupy" and cupy is not None:
        return int(cupy.cuda.get_current_stream().ptr)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch._C._cuda_getCurrentRawStream(ordinal))
    return 0
