"""Helpers that users and tests of DeepEP import."""

from epistle.deep_ep._events import EventHandle, EventOverlap
from epistle.deep_ep.utils import envs, gate, math, refs, testing

__all__ = ["EventHandle", "EventOverlap", "envs", "gate", "math", "refs", "testing"]
