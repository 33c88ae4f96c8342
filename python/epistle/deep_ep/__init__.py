"""The interface of DeepEP on Epistle: ``import epistle.deep_ep as deep_ep``, or ``install()`` before whoever imports
``deep_ep``, or ``python -m epistle.as_deep_ep script.py``."""

import importlib
import sys

import torch

from epistle import __version__ as __version__
from epistle.deep_ep._buffer import Buffer
from epistle.deep_ep._config import Config
from epistle.deep_ep._elastic import (
    ElasticBuffer,
    EPHandle,
    get_logical_domain_size,
    get_physical_domain_size,
)
from epistle.deep_ep._events import EventHandle, EventOverlap

topk_idx_t = torch.int64

__all__ = [
    "Buffer",
    "Config",
    "EPHandle",
    "ElasticBuffer",
    "EventHandle",
    "EventOverlap",
    "get_logical_domain_size",
    "get_physical_domain_size",
    "install",
    "topk_idx_t",
]

_MODULES = ("", ".utils", ".utils.envs", ".utils.math", ".utils.testing")


def install() -> None:
    """From now on ``import deep_ep`` gives this package, in this process."""
    for name in _MODULES:
        sys.modules["deep_ep" + name] = importlib.import_module(__name__ + name)
