"""What all tests share: the folder of real data (skipped by name where it is missing), a small workspace, one torch thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real videos and tables beside the checkout; tests that need them skip by name where they are missing."""
    shared = ROOT.parent / "shared"
    if not (shared / "real").is_dir():
        pytest.skip("../shared/real is not here, so tests on real files are skipped")
    return shared


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty workspace."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder
