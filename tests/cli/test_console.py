"""The command line's shared part."""

from __future__ import annotations

import pytest

from stmae_cli.console import expand_lists, fill_optional


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


@pytest.mark.parametrize(
    ("line", "expanded"),
    [
        ("build web --retry-failed", ["build", "web", "--retry-failed", ""]),
        ("build --retry-failed web", ["build", "--retry-failed", "", "web"]),
        ("build web --retry-failed --json", ["build", "web", "--retry-failed", "", "--json"]),
        (
            "build web --retry-failed oom empty",
            ["build", "web", "--retry-failed", "oom", "--retry-failed", "empty"],
        ),
    ],
)
def test_an_option_that_may_stand_alone_takes_the_values_it_knows(line: str, expanded: list[str]) -> None:
    filled = fill_optional(line.split(), options={"--retry-failed": {"oom", "empty"}})
    assert expand_lists(filled, options=("--retry-failed",), needs_position=("build",)) == expanded
