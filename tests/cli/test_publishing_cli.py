"""`card`, `export` and `push` as a user meets them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stmae_cli.data import app

RUNNER = CliRunner()


def run(*arguments: object) -> Any:
    return RUNNER.invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two tiny sets: `open`, which may be passed on, and `closed`, which may not."""
    path = Path(__file__).parent.parent / "data" / "small_sets.py"
    spec = importlib.util.spec_from_file_location("small_sets_of_cli", path)
    assert spec is not None and spec.loader is not None
    small_sets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small_sets)
    workspace = tmp_path_factory.mktemp("publishing")
    for name, is_open in (("open", True), ("closed", False)):
        rights = {"license": "CC0-1.0" if is_open else "for research alone", "is_redistributable": is_open}
        clips = [small_sets.clip("train", n, youtube=(f"abcdefg{n:04d}", n, n + 10), **rights) for n in range(3)]
        small_sets.make(workspace, name, clips)
    return workspace


def test_a_set_is_described_listed_and_ready_to_go(shelf: Path) -> None:
    ended = run("card", "open", "--organization", "A Lab", "-w", shelf, "--json")
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["unsaid"] == ["url", "datePublished", "citeAs"]
    assert (shelf / "sets" / "open" / "croissant.json").is_file()
    ended = run("export", "open", "--format", "kinetics", "-w", shelf)
    assert ended.stdout.strip().endswith(str(shelf / "exports" / "open-train-kinetics.csv"))
    ended = run("push", "open", "lab/open", "--dry-run", "-w", shelf, "--json")
    shown = json.loads(ended.stdout)
    assert shown["dry_run"] is True and shown["sent"][0] == "train-000000.tar" and shown["sent"][-1] == "meta/set.json"
    commands = [json.loads(line)["command"] for line in (shelf / "journal.jsonl").read_text().splitlines()]
    assert commands == ["stmae-data card", "stmae-data export", "stmae-data push"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["push", "closed", "lab/x"], 1, "Set closed may not be passed on"),
        (["push", "closed", "x"], 2, "wanted OWNER/NAME"),
        (["push", "nothing", "lab/x"], 1, "There is no set 'nothing'"),
        (["card", "nothing"], 1, "There is no set 'nothing'"),
        (["card", "closed", "--published", "today"], 2, "wanted YYYY-MM-DD"),
        (["export", "closed", "--format", "xml"], 2, "There is no export format 'xml'"),
        (["export", "closed", "--format", "csv", "--unpack"], 2, "goes with the format videomae"),
    ],
)
def test_a_mistake_ends_in_one_sentence(shelf: Path, arguments: list[str], code: int, sentence: str) -> None:
    ended = run(*arguments, "-w", shelf)
    assert ended.exit_code == code, ended.output
    assert sentence in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1 and "Traceback" not in ended.output
