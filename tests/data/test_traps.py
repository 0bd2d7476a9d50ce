"""The table of traps is whole: every trap of the official layouts is met by a test."""

from __future__ import annotations

import tomllib
from pathlib import Path

HERE = Path(__file__).parent


def test_every_trap_of_the_official_layouts_has_its_test() -> None:
    known = tomllib.loads((HERE / "traps.toml").read_text())
    told = "\n".join(path.read_text() for path in sorted(HERE.glob("test_*.py")))
    lost = [f"{layout}: {each}" for layout, traps in known.items() for each in traps if f'"{each}"' not in told]
    assert not lost
