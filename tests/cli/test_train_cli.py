"""`stmae-train` as a user meets it: one sentence and an exit code for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stmae_cli.data import app as data_app
from stmae_cli.train import app

RUNNER = CliRunner()


def run(*arguments: object) -> Any:
    return RUNNER.invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, kinetics_tree: Path) -> Path:
    """A workspace with one tiny set and one short run on it."""
    workspace = tmp_path_factory.mktemp("train-cli")
    ended = RUNNER.invoke(data_app, ["build", str(kinetics_tree / "tiny.toml"), "-w", str(workspace)])
    assert ended.exit_code == 0, ended.output
    ended = run(
        "pretrain",
        "--shards",
        "tiny",
        "--recipe",
        "demo",
        "--steps",
        2,
        "--out",
        "short",
        "-w",
        workspace,
        "--device",
        "cpu",
    )
    assert ended.exit_code == 0, ended.output
    return workspace


def test_a_run_leaves_weights_a_log_and_what_it_read(workspace: Path) -> None:
    folder = workspace / "runs" / "short"
    assert (folder / "weights.safetensors").is_file()
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 2 and records[-1]["clips"] == 64
    assert json.loads((folder / "run.json").read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["pretrain", "--shards", "nothing", "--recipe", "demo"], 1, "There is no set 'nothing'"),
        (["pretrain", "--shards", "tiny", "--recipe", "dema"], 1, "the nearest is 'demo'"),
        (["pretrain", "--shards", "tiny", "--recipe", "demo", "--set", "optim.base_lrr=1"], 1, "base_lr"),
        (["pretrain", "--shards", "tiny:test", "--recipe", "demo"], 1, "has no split 'test'"),
        (["pretrain", "--shards", "tiny", "--recipe", "demo", "--steps", "2", "--clips", "9"], 2, "given once"),
        (["pretrain", "--shards", "tiny", "--recipe", "demo", "--steps", "2", "--out", "short"], 1, "short"),
        (
            [
                "pretrain",
                "--shards",
                "tiny",
                "--recipe",
                "demo",
                "--set",
                "model.width=48",
                "--steps",
                "2",
                "--out",
                "short",
                "--resume",
            ],
            1,
            "width",
        ),
        (["probe", "--init", "none", "--shards", "tiny", "--eval-shards", "tiny:val", "--recipe", "demo"], 1, "none"),
        (["picture", "short", "--shards", "tiny", "--clip", "nobody"], 1, "Clip nobody is not in tiny"),
        (["evaluate", "short", "--eval-shards", "tiny:val"], 1, "classifier"),
        (["report", "nothing"], 1, "nothing"),
        (["study", "run", "missing.toml"], 1, "missing.toml"),
        (["study", "plan", "demo"], 1, "demo-k400"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    workspace: Path, arguments: list[str], code: int, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run(*arguments, "-w", workspace)
    assert ended.exit_code == code, (ended.output, ended.exception)
    assert sentence in ended.stderr
    assert "Traceback" not in ended.output


def test_recipes_are_listed_and_printed_as_toml(workspace: Path) -> None:
    assert "mae-st-l16" in run("recipes").stdout
    assert "mask_ratio = 0.9" in run("recipes", "mae-st-l16").stdout


def test_pictures_and_a_page_of_a_run_are_made(workspace: Path) -> None:
    ended = run("picture", "short", "--shards", "tiny:val", "--count", 2, "--ratio", 0.5, "-w", workspace, "--json")
    assert len(json.loads(ended.stdout)["pictures"]) == 2
    ended = run("report", "short", "-w", workspace, "--json")
    assert Path(json.loads(ended.stdout)["report"]).is_file()
