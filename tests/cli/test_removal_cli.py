"""`remove` and `fingerprint` as a user meets them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stmae_cli import data
from stmae_data import files

RUNNER = CliRunner()


def run(*arguments: object) -> Any:
    return RUNNER.invoke(data.app, [str(each) for each in arguments])


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A workspace with the set `web`: four clips of ann and bob."""
    path = Path(__file__).parent.parent / "data" / "small_sets.py"
    spec = importlib.util.spec_from_file_location("small_sets_of_cli", path)
    assert spec is not None and spec.loader is not None
    small_sets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small_sets)
    clips = [small_sets.clip("train", n, uploader_id=("ann", "bob")[n % 2], platform_id=f"p{n}") for n in range(4)]
    small_sets.make(tmp_path, "web", clips)
    return tmp_path


def test_a_takedown_is_shown_then_done_then_remembered(shelf: Path) -> None:
    asked = ("remove", "--uploader", "ann", "--reason", "asked", "-w", shelf)
    ended = run(*asked, "--dry-run", "--json")
    assert ended.exit_code == 0 and len(json.loads(ended.stdout)["removed"]) == 2, ended.output
    ended = run(*asked)
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.rstrip().endswith("Removed: 2 clips; web version 2.")
    again = json.loads(run(*asked, "--json").stdout)
    assert (again["removed"], again["removed_before"], again["sets"]) == ([], 2, [])
    (tombstone, _) = files.read_table(shelf / "sets" / "web" / "meta" / "removed.parquet")
    assert tombstone["detail"] == "asked" and tombstone["removed_at"].endswith("+00:00")
    journal = (shelf / "journal.jsonl").read_text()
    assert "stmae-data remove" in journal and "ann" not in journal


def test_pages_that_show_them_are_named(shelf: Path) -> None:
    (row,) = files.read_table(
        sorted((shelf / "sets" / "web" / "meta" / "ledger").glob("*")), "SELECT clip_id FROM book LIMIT 1"
    )
    (shelf / "review.html").write_text(f"<code>{row['clip_id']}</code>")
    ended = run("remove", "--ids", row["clip_id"], "--reason", "asked", "--dry-run", "-w", shelf)
    assert f"Pages still show pictures of them; make them again or delete them: {shelf / 'review.html'}" in ended.stderr
    assert "yours to delete" not in ended.stderr


def test_lists_take_several_values(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["stmae-data", "remove", "web", "--ids", "p0", "p1", "--reason", "asked", "-w", str(shelf), "--json"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as ended:
        data.main()
    assert ended.value.code == 0
    assert len(json.loads(capsys.readouterr().out)["removed"]) == 2


def test_ids_that_begin_with_a_dash_are_ids(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["stmae-data", "remove", "--ids", "p0", "-lz2Q4Il-l3", "--reason", "asked", "-w", str(shelf), "--json"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as ended:
        data.main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["not_found"] == ["id -lz2Q4Il-l3"]
    ended = run("show", "-lz2Q4Il-l3_000123_000125", "-w", shelf)
    assert ended.exit_code == 2 and "No such option: -l" in ended.stderr
    assert "Put -- before an id that begins with -" in " ".join(ended.stderr.split())
    assert "Put --" not in run("show", "x", "--nosuch", "-w", shelf).stderr


def test_what_is_current_is_not_hashed_again(shelf: Path) -> None:
    ended = run("fingerprint", "web", "-w", shelf, "--json")
    shown = json.loads(ended.stdout)
    assert (shown["made"], shown["kept"]) == (0, 4)
    assert ended.stderr.rstrip().endswith(str(shelf / "sets" / "web" / "meta" / "fingerprints"))


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["remove", "--reason", "x"], 2, "Nothing is named"),
        (["remove", "--ids", "p0"], 2, "needs a reason"),
        (["remove", "--ids", "nobody", "--reason", "x"], 1, "knows any of it (id nobody)"),
        (["remove", "nothing", "--ids", "p0", "--reason", "x"], 1, "There is no set 'nothing'"),
        (["remove", "--hashes", "abc", "--reason", "x"], 2, "is neither a sha256"),
        (["fingerprint", "nothing"], 1, "There is no set 'nothing'"),
    ],
)
def test_a_mistake_ends_in_one_sentence(shelf: Path, arguments: list[str], code: int, sentence: str) -> None:
    ended = run(*arguments, "-w", shelf)
    assert ended.exit_code == code, ended.output
    assert sentence in ended.stderr and len(ended.stderr.strip().splitlines()) == 1


def test_a_second_takedown_is_told_to_wait(shelf: Path) -> None:
    with files.lock(shelf / "remove.lock", what="x"):
        ended = run("remove", "--ids", "p0", "--reason", "x", "-w", shelf)
    assert ended.exit_code == 75 and "is being written by process" in ended.stderr
