"""What the tests of duplicates, leaks, selection and rewriting share: a maker of tiny sealed sets without any video."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def small_sets() -> ModuleType:
    """The module `small_sets.py` beside this file; tests are no package, so it is loaded by its path."""
    name = "stmae_small_sets"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("small_sets.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
