"""`stmae-data` as a user meets it: one sentence and an exit code for every mistake, JSON in the promised shapes."""

from __future__ import annotations

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
def built(tmp_path_factory: pytest.TempPathFactory, kinetics_tree: Path) -> Path:
    workspace = tmp_path_factory.mktemp("cli")
    ended = run("build", kinetics_tree / "tiny.toml", "-w", workspace)
    assert ended.exit_code == 0, ended.output
    return workspace


def test_the_closing_line_names_what_was_made(built: Path, kinetics_tree: Path) -> None:
    ended = run("build", kinetics_tree / "tiny.toml", "-w", built)
    assert ended.stdout.rstrip().splitlines()[-1].endswith(str(built / "sets" / "tiny"))


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["build", "k4000"], 1, "k400"),
        (["build", "web", "--from", "nowhere"], 1, "nowhere"),
        (["build", "web", "--from", ".", "--encode", "best"], 2, "There is no encoding 'best'"),
        (["stats", "nothing"], 1, "There is no set 'nothing'"),
        (["verify", "nothing"], 1, "nothing"),
        (["report", "nothing"], 1, "There is no set 'nothing'"),
        (["show", "nothing"], 1, "nothing"),
        (["sql", "DROP TABLE clip"], 1, "SELECT"),
        (["sql", "SELECT * FROM read_csv('secret.csv')"], 1, "secret.csv"),
        (["leaks", "tiny", "--against", "missing.csv"], 1, "missing.csv"),
        (["select", "x", "--from", "nothing"], 1, "There is no set 'nothing'"),
        (["select", "x", "--from", "a b"], 2, "is not a set reference"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    built: Path, arguments: list[str], code: int, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run(*arguments, "-w", built)
    assert ended.exit_code == code, ended.output
    assert sentence in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1 and "Traceback" not in ended.output


@pytest.mark.parametrize("arguments", [["build"], ["build", "k400", "--nonsense"], ["nonsense"], ["verify"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_truncated_shard_is_told_and_verify_names_it(built: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    tar = copy / "sets" / "tiny" / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1024])
    ended = run("verify", "tiny", "-w", copy, "--json")
    assert ended.exit_code == 4
    shown = json.loads(ended.stdout)
    assert not shown["ok"] and "train-000000.tar" in {Path(damage["file"]).name for damage in shown["damages"]}


def test_json_and_words_tell_the_same(built: Path) -> None:
    shown = json.loads(run("stats", "tiny", "-w", built, "--json").stdout)
    assert (shown["planned"], shown["written"]) == (12, 12)
    rows = json.loads(run("sql", "SELECT count(*) AS n FROM clip", "-w", built, "--json").stdout)
    assert rows == [{"n": 12}]
    verified = json.loads(run("verify", "tiny", "-w", built, "--json").stdout)
    assert verified.keys() == {"ok", "damages", "bytes", "seconds"} and verified["ok"] is True


def test_the_journal_has_a_line_for_each_command_that_changed_something(built: Path) -> None:
    lines = [json.loads(line) for line in (built / "journal.jsonl").read_text().splitlines()]
    assert lines[0]["command"] == "stmae-data build" and lines[0]["exit"] == 0
