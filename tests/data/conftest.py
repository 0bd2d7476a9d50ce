"""What tests share: a maker of tiny sealed sets without any video, and a misbehaving HTTP server."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _beside(name: str) -> ModuleType:
    """A module that stands beside this file; tests are no package, so it is loaded by its path."""
    known = f"stmae_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[known] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[known])
    return sys.modules[known]


@pytest.fixture(scope="session")
def small_sets() -> ModuleType:
    """The module `small_sets.py`."""
    return _beside("small_sets")


@pytest.fixture(scope="session")
def web() -> ModuleType:
    """The module `loopback.py`: answers for the server."""
    return _beside("loopback")


@pytest.fixture
def server(web: ModuleType) -> Iterator[Any]:
    """A misbehaving server on the loopback."""
    with web.loopback() as running:
        yield running
