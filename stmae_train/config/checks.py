"""Checks that the config values share."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from stmae_train.errors import ConfigError

__all__ = ["check_choices", "check_positive", "check_rising", "check_share", "field_types"]


def field_types(kind: type) -> dict[str, Any]:
    """Field name to resolved type of a config class, in the order written."""
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def check_choices(config: Any) -> None:
    """Refuse a text field that is not one of its choices."""
    for name, kind in field_types(type(config)).items():
        if get_origin(kind) is Literal and getattr(config, name) not in get_args(kind):
            choices = ", ".join(str(choice) for choice in get_args(kind))
            found = getattr(config, name)
            raise ConfigError(f"{type(config).__name__}.{name} is {found!r}, wanted one of {choices}; set one of them.")


def check_positive(config: Any, *names: str) -> None:
    """Refuse a number that is not above 0."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(
                f"{type(config).__name__}.{name} is {getattr(config, name)}, wanted a number above 0; raise it."
            )


def check_share(config: Any, *names: str) -> None:
    """Refuse a number outside [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(
                f"{type(config).__name__}.{name} is {getattr(config, name)}, wanted a share in [0, 1); change it."
            )


def check_rising(config: Any, *names: str) -> None:
    """Refuse a pair that is not [low, high] with 0 < low <= high."""
    for name in names:
        low, high = getattr(config, name)
        if not 0 < low <= high:
            raise ConfigError(
                f"{type(config).__name__}.{name} is {[low, high]}, wanted [low, high] with 0 < low <= high; change it."
            )
