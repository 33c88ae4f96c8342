"""The interface of DeepEP on Epistle: ``import epistle.deep_ep as deep_ep``, or ``install()`` before whoever imports
``deep_ep``, or ``python -m epistle.as_deep_ep script.py``."""

import importlib
import os
import pathlib
import sys

import torch

from epistle import __version__ as __version__
from epistle.deep_ep._buffer import Buffer
from epistle.deep_ep._config import Config
from epistle.deep_ep._elastic import ElasticBuffer, get_logical_domain_size, get_physical_domain_size
from epistle.deep_ep._ep_handle import EPHandle
from epistle.deep_ep._events import EventHandle, EventOverlap
from epistle.deep_ep._hybrid import HybridEPBuffer

topk_idx_t = torch.int64

__all__ = [
    "Buffer",
    "Config",
    "EPHandle",
    "ElasticBuffer",
    "EventHandle",
    "EventOverlap",
    "HybridEPBuffer",
    "get_logical_domain_size",
    "get_physical_domain_size",
    "install",
    "topk_idx_t",
]

_MODULES = ("", ".utils", ".utils.envs", ".utils.gate", ".utils.math", ".utils.refs", ".utils.testing")
# Holds a package of the name deep_ep, which calls install().
_FOLDER = str(pathlib.Path(__file__).parent / "_module")


def install(for_children: bool = False) -> None:
    """From now on ``import deep_ep`` gives this package, in this process; ``for_children``: also in those that it
    starts, which find it on PYTHONPATH."""
    for name in _MODULES:
        sys.modules["deep_ep" + name] = importlib.import_module(__name__ + name)
    if not for_children:
        return
    # Ahead of a checkout of DeepEP in the working folder.
    for paths in (sys.path, found := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if _FOLDER not in paths:
            paths.insert(0, _FOLDER)
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in found if path)
