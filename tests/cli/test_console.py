"""The command line's shared part."""

from __future__ import annotations

import pytest

from stmae_cli.console import expand_lists


@pytest.mark.parametrize(
    ("line", "expanded"),
    [
        ("build k400 --from a b --workers 2", "build k400 --from a --from b --workers 2"),
        ("build --from a k400", "build --from a k400"),
        ("build --workers 2 --from a k400", "build --workers 2 --from a k400"),
        ("leaks a b --against x y", "leaks a b --against x --against y"),
        ("dedup --against x y -w z", "dedup --against x --against y -w z"),
        ("show -- -x --from a b", "show -- -x --from a b"),
    ],
)
def test_list_options_take_several_values(line: str, expanded: str) -> None:
    found = expand_lists(line.split(), options=("--from", "--against"), needs_position=("build", "leaks"))
    assert found == expanded.split()
