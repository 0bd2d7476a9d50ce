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


def test_a_set_on_a_store_is_trained_and_tested_on_by_a_machine_that_has_its_books_alone(
    workspace: Path, kinetics_tree: Path, tmp_path: Path
) -> None:
    builder, trainer = tmp_path / "builder", tmp_path / "trainer"
    url = "memory://train-cli/sets"
    ended = RUNNER.invoke(data_app, ["build", str(kinetics_tree / "tiny.toml"), "-w", str(builder), "--store", url])
    assert ended.exit_code == 0, ended.output
    ended = RUNNER.invoke(data_app, ["fetch", f"{url}/tiny", "-w", str(trainer), "--json"])
    assert json.loads(ended.stdout)["store"] == f"{url}/tiny"
    ended = RUNNER.invoke(data_app, ["select", "half", "--from", "tiny", "--share", "0.5", "-w", str(trainer)])
    assert ended.exit_code == 0, ended.output
    own = ["--recipe", "demo", "-w", trainer, "--device", "cpu", "--workers", 1, "--prefetch", 1]
    own += ["--store-cache-gb", 0.001]
    ended = run("pretrain", "--shards", "tiny", "--steps", 2, "--out", "short", *own)
    assert ended.exit_code == 0, ended.output
    here, there = (
        [json.loads(line)["loss"] for line in (each / "runs/short/log.jsonl").read_text().splitlines()]
        for each in (workspace, trainer)
    )
    assert here == there and not list(trainer.rglob("*.tar"))
    tested = ["--shards", "tiny/half", "--eval-shards", "tiny:val", *own]
    short = ["--set", "finetune.epochs=1", "--set", "finetune.warmup_epochs=0", "--set", "finetune.views=[1, 1]"]
    short += ["--set", "probe.epochs=1", "--set", "probe.views=[1, 1]"]
    ended = run("probe", "--init", "short", "--kind", "linear", *tested, *short)
    assert ended.exit_code == 0, ended.output
    tuned = ["finetune", "--init", "short", "--out", "tuned", "--checkpoint-every", 1, "--skip-damaged", 1]
    ended = run(*tuned, *tested, *short)
    assert ended.exit_code == 0, ended.output
    assert list((trainer / "runs/tuned/checkpoints").iterdir())
    again = ["--resume", "--force", "--set", "finetune.base_lr=0.1"]
    assert run(*tuned, *tested, *short, *again[:2]).exit_code == 0  # it is done
    ended = run(*tuned, *tested, *short, *again)
    assert ended.exit_code == 1 and "not of a run that is done" in " ".join(ended.output.split())
    ended = run("evaluate", "tuned", "--eval-shards", "tiny:val", *own[2:])
    assert ended.exit_code == 0, ended.output
    assert sum(path.stat().st_size for path in (trainer / "cache/ranges").glob("??/*")) <= 1_000_000
    assert run("pretrain", "--shards", "tiny", "--recipe", "demo", "--store-cache-gb", 0).exit_code == 2
