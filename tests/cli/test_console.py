"""The command line's shared part."""

from __future__ import annotations

import json
import math
from datetime import date
from typing import Any

import pytest
import typer

from stmae_cli import console, data, train
from stmae_cli.console import expand_lists, fill_optional


def short_helps(command: Any, path: str) -> dict[str, str]:
    """What lists of commands say of each, cut as on a screen of 80 columns."""
    found = {path: command.get_short_help_str(60)}
    for name, each in getattr(command, "commands", {}).items():
        found |= short_helps(each, f"{path} {name}")
    return found


@pytest.mark.parametrize(("app", "name"), [(data.app, "stmae-data"), (train.app, "stmae-train")])
def test_a_list_of_commands_says_whole_sentences(app: typer.Typer, name: str) -> None:
    found = short_helps(typer.main.get_command(app), name)
    del found[name]
    assert len(found) > 10 and not {path: text for path, text in found.items() if not text or text.endswith("...")}


def test_a_title_stays_on_one_line_and_long_lists_end_with_whole_items(capsys: pytest.CaptureFixture[str]) -> None:
    ids = ", ".join(f"clip_{number:06d}" for number in range(30))
    console.table("a set of a long name, version 1", ["what", "n"], [["x", 1], [ids, ""], ["y" * 300, ""]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip() == "a set of a long name, version 1"
    told = "".join("".join(lines).split())
    assert "clip_000013,…16more" in told and told.count("clip_") == 14 and "y" * 198 + "…" in told


def test_numbers_that_json_has_not_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json([{"a": float("nan"), "b": [float("-inf"), 1.5], "c": (2, {date(2020, 1, 1): math.inf})}])
    assert json.loads(capsys.readouterr().out) == [{"a": None, "b": [None, 1.5], "c": [2, {"2020-01-01": None}]}]


@pytest.mark.parametrize(
    ("line", "expanded"),
    [
        ("build k400 --from a b --workers 2", "build k400 --from a --from b --workers 2"),
        ("build --from a k400", "build --from a k400"),
        ("build --workers 2 --from a k400", "build --workers 2 --from a k400"),
        ("leaks a b --against x y", "leaks a b --against x --against y"),
        ("dedup --against x y -w z", "dedup --against x --against y -w z"),
        ("show -- -x --from a b", "show -- -x --from a b"),
        ("dedup --against a -lz2Q4Il-l3 --json", "dedup --against a --against -lz2Q4Il-l3 --json"),
        ("dedup --against -lz2Q4Il-l3 --Yz2Q4Il-3", "dedup --against -lz2Q4Il-l3 --against --Yz2Q4Il-3"),
        (
            "dedup --against -lz2Q4Il-l3_000123_000125 -9z2Q4Il-l3_000123000ms_000125500ms",
            "dedup --against -lz2Q4Il-l3_000123_000125 --against -9z2Q4Il-l3_000123000ms_000125500ms",
        ),
        ("dedup --against x --workspace -wmy-folder", "dedup --against x --workspace -wmy-folder"),
        ("dedup --against x -wmy-folder1 y", "dedup --against x -wmy-folder1 y"),
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
