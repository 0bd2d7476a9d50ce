"""TOML tables whose every key and value is checked, with the nearest valid key in the message."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from stmae_train.errors import StudyError

__all__ = ["Table", "checked_name", "choose", "flatten", "listed"]

# Names end in paths, tables and TOML keys, so nothing a shell or a spreadsheet would read as more than text.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Table:
    """One TOML table under its path, which refuses keys it does not know."""

    values: Mapping[str, Any]
    where: str
    path: str
    known: Collection[str]

    def __post_init__(self) -> None:
        for key in self.values:
            if key not in self.known:
                nearest = max(self.known, key=lambda each: difflib.SequenceMatcher(None, key, each).ratio())
                dotted = [f"{self.path}.{each}" if self.path else each for each in (key, nearest)]
                raise StudyError(f"{self.where}: there is no key '{dotted[0]}'; the nearest is '{dotted[1]}'.")

    def _wrong(self, key: str, value: object, wanted: str) -> StudyError:
        dotted = f"{self.path}.{key}" if self.path else key
        return StudyError(f"{self.where}: {dotted} is {value!r}, wanted {wanted}; change it.")

    def value(self, key: str) -> Any:
        if key not in self.values:
            dotted = f"{self.path}.{key}" if self.path else key
            raise StudyError(f"{self.where} has no {dotted}; add it.")
        return self.values[key]

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default) if default is not None else self.value(key)
        if not isinstance(value, str):
            raise self._wrong(key, value, "text")
        return value

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        value = listed(self.values.get(key, default) if default is not None else self.value(key))
        if not value or not all(isinstance(each, str) for each in value):
            raise self._wrong(key, self.values.get(key), "text or a list of texts")
        return tuple(value)

    def numbers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = listed(self.values.get(key, default))
        if not value or not all(type(each) is int and each >= 0 for each in value) or len(set(value)) < len(value):
            raise self._wrong(key, self.values.get(key), "a list of different whole numbers")
        return tuple(value)

    def share(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, float) or not 0 < value < 1:
            raise self._wrong(key, value, "a number between 0 and 1")
        return value

    def name_of(self, key: str, default: str | None = None) -> str:
        return checked_name(self.text(key, default), self.where, f"{self.path}.{key}")

    def mapping(self, key: str, *, required: bool = False) -> Mapping[str, Any]:
        value = self.value(key) if required else self.values.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, value, "a table")
        return value

    def keys_of(self, key: str) -> list[str]:
        return list(self.mapping(key))

    def table(self, key: str, known: Collection[str], name: str | None = None) -> Table:
        value: Any = self.mapping(key)
        path = key
        if name is not None:
            value, path = value[name], f"{key}.{name}"
        if not isinstance(value, dict):
            raise self._wrong(path, value, "a table")
        return Table(value, self.where, path, known)

    def tables(self, key: str, known: Collection[str]) -> list[Table]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self._wrong(key, value, f"tables under [[{key}]]")
        return [Table(each, self.where, key, known) for each in value]


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def checked_name(name: str, where: str, key: str) -> str:
    if not _NAME.fullmatch(name):
        raise StudyError(
            f"{where}: {key} is {name!r}, wanted letters, digits, '.', '_' and '-', at most 64; rename it."
        )
    return name


def choose(value: str, choices: Collection[str], *, where: str, key: str) -> str:
    if value not in choices:
        raise StudyError(f"{where}: {key} is {value!r}, wanted one of {', '.join(choices)}; change it.")
    return value


def flatten(table: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys: {"probe": {"epochs": 2}} is {"probe.epochs": 2}."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        dotted = f"{path}.{key}" if path else key
        flat |= flatten(value, dotted) if isinstance(value, dict) else {dotted: value}
    return flat
