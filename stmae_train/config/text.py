"""Recipes as text: TOML in, TOML out, dotted overrides."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from stmae_train.config.checks import field_types
from stmae_train.config.values import Recipe
from stmae_train.errors import ConfigError

__all__ = ["from_toml", "override", "override_values", "read_changes", "read_recipe", "to_toml"]


def to_toml(recipe: Recipe) -> str:
    """The whole recipe as TOML; `from_toml` gives back an equal value."""
    plain: dict[str, Any] = {name: getattr(recipe, name) for name in field_types(Recipe)}
    kinds = field_types(Recipe)
    lines = [f"{name} = {_text(value)}" for name, value in plain.items() if not is_dataclass(value)]
    for name, value in plain.items():
        if is_dataclass(value):
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {_text(getattr(value, key))}" for key in field_types(kinds[name])]
    return "\n".join(lines) + "\n"


def from_toml(text: str, *, where: str = "recipe") -> Recipe:
    """Read a recipe; keys that are not given keep their defaults.

    Args:
        text: TOML with `name`, `source` and the tables model, data, optim, probe, finetune.
        where: the name of the text in messages, such as a path.

    Raises:
        ConfigError: not TOML, an unknown key, a value of the wrong type or an impossible combination.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not TOML: {error}; correct that line.") from error
    for name in ("name", "source"):
        if name not in table:
            raise ConfigError(f"{where} has no '{name}'; add {name} = \"...\" at its top.")
    values: dict[str, Any] = {}
    kinds = field_types(Recipe)
    for name, value in table.items():
        if name not in kinds:
            raise ConfigError(_unknown(name, list(kinds), where=where, kinds=kinds))
        if is_dataclass(kinds[name]):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: '{name}' is {value!r}, wanted a table; write [{name}] above its keys.")
            values[name] = kinds[name](**_checked(kinds[name], value, section=name, where=where))
        else:
            values[name] = _as(kinds[name], value, key=name, where=where)
    return Recipe(**values)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        ConfigError: the file is missing or is not a recipe.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a recipe: {error}; give the path of a TOML file.") from error
    return from_toml(text, where=str(path))


def override(recipe: Recipe, changes: Iterable[str]) -> Recipe:
    """Change single values: `override(recipe, ["data.repeats=4", "model.mask=tube"])`.

    A key without its section is enough where one of model, data and optim has it, or else one of probe and finetune
    (`mask_ratio=0.75`). All changes are made at
    once, so values that must agree can be changed together.

    Raises:
        ConfigError: a change without `=`, an unknown key (the nearest valid one is named), a wrong type.
    """
    return override_values(recipe, read_changes(changes))


def read_changes(changes: Iterable[str]) -> dict[str, Any]:
    """Changes `key=value` as values by their dotted keys, not yet checked against a type.

    Raises:
        ConfigError: a change without `=`, or an unknown key.
    """
    values: dict[str, Any] = {}
    for change in changes:
        key, separator, text = change.partition("=")
        if not separator:
            raise ConfigError(f"'{change}' is not a change of the form key=value; write for example data.repeats=4.")
        section, name = _locate(key.strip())
        values[f"{section}.{name}" if section else name] = _parse(text.strip())
    return values


def override_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Like `override`, with values that are already read, such as the table of a study file."""
    sections: dict[str, dict[str, Any]] = {}
    plain: dict[str, Any] = {}
    kinds = field_types(Recipe)
    for key, value in values.items():
        section, name = _locate(key)
        if section:
            sections.setdefault(section, {})[name] = value
        else:
            plain[name] = _as(kinds[name], value, key=name, where="override")
    for section, changes in sections.items():
        checked = _checked(kinds[section], changes, section=section, where="override")
        plain[section] = replace(getattr(recipe, section), **checked)
    return replace(recipe, **plain)


def _locate(key: str) -> tuple[str, str]:
    """Section and field name of a dotted or short key; the section of a top-level key is empty."""
    kinds = field_types(Recipe)
    sections = {name: field_types(kinds[name]) for name in kinds if is_dataclass(kinds[name])}
    every = {f"{section}.{name}": kind for section, names in sections.items() for name, kind in names.items()}
    if key in every:
        section, _, name = key.partition(".")
        return section, name
    if key in kinds and key not in sections:
        return "", key
    homes = [section for section, names in sections.items() if key in names]
    # A study overrides pre-training, so `repeats` alone means data.repeats, not finetune.repeats.
    homes = [home for home in homes if home not in ("probe", "finetune")] or homes
    if len(homes) == 1:
        return homes[0], key
    if homes:
        raise ConfigError(
            f"'{key}' is in several sections; write one of {', '.join(f'{home}.{key}' for home in homes)}."
        )
    # A wrong section with a right name, or a right section with a misspelt name: the last part decides.
    name = key.rpartition(".")[2]
    same = [dotted for dotted in every if dotted.endswith(f".{name}")]
    raise ConfigError(_unknown(key, same or list(every), where="override", kinds=every))


def _checked(kind: type, table: Mapping[str, Any], *, section: str, where: str) -> dict[str, Any]:
    """The table with every value as its field's type."""
    kinds = field_types(kind)
    for name in table:
        if name not in kinds:
            raise ConfigError(_unknown(f"{section}.{name}", list(kinds), where=where, kinds=kinds, section=section))
    return {name: _as(kinds[name], value, key=f"{section}.{name}", where=where) for name, value in table.items()}


def _unknown(key: str, names: list[str], *, where: str, kinds: Mapping[str, Any], section: str = "") -> str:
    """The sentence about an unknown key: the nearest valid one and its type."""
    asked = key.removeprefix(f"{section}.") if section else key
    nearest = max(names, key=lambda name: difflib.SequenceMatcher(None, asked, name).ratio())
    dotted = f"{section}.{nearest}" if section else nearest
    return f"{where}: there is no key '{key}'; the nearest is '{dotted}' ({_kind_text(kinds[nearest])})."


def _kind_text(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        count = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"a list of {count}{inner[0].__name__}"
    if is_dataclass(kind):
        return "a table"
    return {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}[kind.__name__]


def _as(kind: Any, value: Any, *, key: str, where: str) -> Any:
    """The value as its field's type: whole numbers become numbers, lists become tuples, nothing else changes."""
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        inner = get_args(kind)
        if inner[-1] is Ellipsis:
            return tuple(_as(inner[0], item, key=key, where=where) for item in value)
        if len(value) == len(inner):
            return tuple(_as(each, item, key=key, where=where) for each, item in zip(inner, value, strict=True))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    # A bool is an int in Python, but true frames are a mistake.
    if kind in (str, bool, int) and type(value) is kind:
        return value
    raise ConfigError(f"{where}: {key} is {value!r}, wanted {_kind_text(kind)}; change it.")


def _parse(text: str) -> Any:
    """A TOML value, or the text itself where it is none (`model.mask=tube`)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _text(value: Any) -> str:
    """A value in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON strings are TOML strings, but TOML also forbids a bare DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return repr(value)
