"""Classes on top of an engine's abstract ones, whose signatures change from week to week: what an engine asks for by
name is looked up, not counted."""

from __future__ import annotations

import importlib
import inspect
import typing

if typing.TYPE_CHECKING:
    from collections.abc import Callable


def base_class(given: type | None, module: str, name: str, tried_with: str) -> type:
    if given is not None:
        return given
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"{module}.{name} is not there ({error}); this adapter was written for {tried_with}. "
            "Give the class as base="
        ) from error
    return typing.cast("type", found)


def complete(mixin: type, base: type, name: str, tried_with: str) -> type:
    """The mixin on top of the base. A method that the base has come to ask for is named here, not in the middle of a
    step."""
    made = type(name, (mixin, base), {"__doc__": mixin.__doc__})
    missing = sorted(getattr(made, "__abstractmethods__", ()))
    if missing:
        raise NotImplementedError(
            f"{base.__module__}.{base.__name__} asks for {', '.join(missing)}, which this adapter does not have; "
            f"it was written for {tried_with}"
        )
    return made


def accepted(function: Callable[..., typing.Any], options: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """Those of the options that the function takes."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(options)
    return {name: value for name, value in options.items() if name in parameters}


def construct(made: typing.Any, base: type, options: dict[str, typing.Any]) -> None:
    """Calls the base's constructor with what it takes of the options."""
    initialise = typing.cast("typing.Any", base).__init__
    if initialise is not object.__init__:
        initialise(made, **accepted(initialise, options))
