"""Pre-training: it learns, it repeats, it resumes bit for bit, and it ends in one sentence when it cannot go on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stmae_data.files import json_text, lock
from stmae_train.checkpoint import load_weights, newest_checkpoint
from stmae_train.config import Recipe, override, to_toml
from stmae_train.errors import ConfigError, DataMismatch, RunBusy, RunInterrupted, TrainingStopped
from stmae_train.loader import Batch
from stmae_train.pretrain import PretrainRequest, RunResult, clips_of, pretrain
from stmae_train.runlog import StepRecord


@pytest.fixture
def request_(small_world: Path, small_recipe: Recipe, tmp_path: Path) -> PretrainRequest:
    """A run of 10 steps with a checkpoint and a record at each."""
    return PretrainRequest(
        small_world, ("tiny",), small_recipe, tmp_path / "run", checkpoint_every=1, log_every=1, device="cpu"
    )


@pytest.fixture(scope="module")
def straight(small_world: Path, small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The same run, uninterrupted."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return pretrain(
        PretrainRequest(small_world, ("tiny",), small_recipe, folder, checkpoint_every=1, log_every=1, device="cpu")
    )


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "log.jsonl").read_text().splitlines()]


def same_end(ours: RunResult, theirs: RunResult) -> None:
    """Weights, optimizer and losses are equal to the bit."""
    assert ours.weights.read_bytes() == theirs.weights.read_bytes()
    name = f"checkpoints/step-{ours.steps:09d}/optimizer.safetensors"
    assert (ours.run_dir / name).read_bytes() == (theirs.run_dir / name).read_bytes()
    assert losses(ours.run_dir) == losses(theirs.run_dir)


def stop_at(step: int) -> Callable[[StepRecord], None]:
    def watch(record: StepRecord) -> None:
        if record.step == step:
            raise RuntimeError("pulled the plug")

    return watch


def test_a_run_learns_and_leaves_a_whole_run_folder(straight: RunResult) -> None:
    found = losses(straight.run_dir)
    assert len(found) == 10 and found[-1] < found[0] and straight.clips_seen == 80
    names = {path.name for path in straight.run_dir.iterdir()}
    assert names >= {
        "run.json",
        "config.toml",
        "data.json",
        "log.jsonl",
        "cost.json",
        "CARD.md",
        "weights.safetensors",
        "checkpoints",
    }
    run = json.loads((straight.run_dir / "run.json").read_text())
    assert run["status"] == "done" and run["command"] == "pretrain" and run["versions"]["torch"]
    (entry,) = json.loads((straight.run_dir / "data.json").read_text())["sets"]
    assert (entry["clips"], entry["unique_videos"], entry["clips_drawn"]) == (24, 12, 80)
    assert run["digests"] == {"tiny:train": entry["digest"]}
    assert len(list((straight.run_dir / "pictures").glob("*-75.png"))) == 8
    cost = json.loads((straight.run_dir / "cost.json").read_text())
    assert cost["clips"] == 80 and cost["cpu_seconds"] > 0 and cost["flops"] > 0
    record = json.loads((straight.run_dir / "log.jsonl").read_text().splitlines()[0])
    assert set(record) >= {
        "step",
        "clips",
        "loss",
        "lr",
        "grad_norm",
        "clips_per_second",
        "wait_share",
        "mfu",
        "memory_bytes",
    }


def test_the_shown_line_is_the_logged_record() -> None:
    record = StepRecord(1200, 96000, 9600, 0.51324, 1.2e-4, 0.4, 812.3, 0.031, 0.4, 44238602240, 11520.0)
    wanted = (
        "step 001200/096000 | loss 0.5132 | lr 1.2e-04 | clips/s 812 | wait 3% | mfu 40% | mem 41.2 GiB | eta 3h12m"
    )
    assert str(record) == wanted
    assert record.values()["clips_per_second"] == 812.3


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    request_: PretrainRequest, straight: RunResult
) -> None:
    same_end(pretrain(request_), straight)
    other = pretrain(replace(request_, seed=1, run_dir=request_.run_dir.with_name("other")))
    assert other.weights.read_bytes() != straight.weights.read_bytes()


@pytest.mark.parametrize("step", [1, 2, 5, 9, 10])
def test_a_run_stopped_anywhere_ends_with_the_same_bytes(
    request_: PretrainRequest, straight: RunResult, step: int
) -> None:
    with pytest.raises(RuntimeError, match="plug"):
        pretrain(request_, watch=stop_at(step))
    assert json.loads((request_.run_dir / "run.json").read_text())["status"] == "failed"
    same_end(pretrain(replace(request_, resume=True)), straight)


def test_a_run_killed_while_it_commits_ends_with_the_same_bytes(
    request_: PretrainRequest, straight: RunResult, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(to_toml(request_.recipe))
    code = (
        "import sys, torch; from pathlib import Path; from stmae_train.config import read_recipe\n"
        "from stmae_train.pretrain import PretrainRequest, pretrain\n"
        "torch.set_num_threads(1)\n"
        "pretrain(PretrainRequest(Path(sys.argv[1]), ('tiny',), read_recipe(Path(sys.argv[2])), Path(sys.argv[3]),\n"
        "         checkpoint_every=1, log_every=1, device='cpu'))"
    )
    arguments = [sys.executable, "-c", code, str(request_.workspace), str(recipe), str(request_.run_dir)]
    killed = subprocess.run(
        arguments, env={**os.environ, "STMAE_FAULT": "commit.rename:4"}, check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    found = newest_checkpoint(request_.run_dir / "checkpoints")
    assert found is not None and found.step == 3
    same_end(pretrain(replace(request_, resume=True)), straight)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_a_checkpoint_and_its_code(
    request_: PretrainRequest, straight: RunResult, number: signal.Signals, code: int
) -> None:
    def watch(record: StepRecord) -> None:
        if record.step == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(RunInterrupted, match="go on with --resume") as caught:
        pretrain(replace(request_, checkpoint_every=100), watch=watch)
    assert caught.value.exit_code == code
    found = newest_checkpoint(request_.run_dir / "checkpoints")
    assert found is not None and found.step == 4
    assert json.loads((request_.run_dir / "run.json").read_text())["status"] == "interrupted"
    same_end(pretrain(replace(request_, resume=True)), straight)


def test_a_finished_run_is_not_done_again(request_: PretrainRequest) -> None:
    first = pretrain(request_)
    before = {
        path: path.stat().st_mtime_ns for path in request_.run_dir.rglob("*") if path.is_file() and path.name != "LOCK"
    }
    again = pretrain(replace(request_, resume=True))
    assert again.clips_seen == first.clips_seen and again.loss == first.loss
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_damaged_checkpoints_that_a_run_falls_back_over_do_not_push_out_the_one_it_resumed_from(
    request_: PretrainRequest,
) -> None:
    request = replace(request_, pictures=0)
    with pytest.raises(RuntimeError):
        pretrain(request, watch=stop_at(7))
    for step in (5, 6):
        path = request.run_dir / f"checkpoints/step-{step:09d}/weights.safetensors"
        path.write_bytes(path.read_bytes()[:-7])
    pretrain(replace(request, resume=True, checkpoint_every=100))
    names = sorted(each.name for each in (request.run_dir / "checkpoints").iterdir())
    assert names == ["step-000000004", "step-000000010"]


def test_a_folder_with_a_run_is_refused_without_resume(request_: PretrainRequest) -> None:
    pretrain(request_)
    with pytest.raises(ConfigError, match=r"already holds a run \(pretrain, done\); go on with --resume"):
        pretrain(request_)


def test_another_model_size_is_refused_in_one_sentence(request_: PretrainRequest) -> None:
    with pytest.raises(RuntimeError):
        pretrain(request_, watch=stop_at(2))
    wider = override(request_.recipe, ["model.width=64"])
    with pytest.raises(ConfigError, match=r"started with other settings: width = 64 \(was width = 32\)"):
        pretrain(replace(request_, recipe=wider, resume=True))


def test_changed_data_is_refused_unless_accepted(request_: PretrainRequest) -> None:
    with pytest.raises(RuntimeError):
        pretrain(request_, watch=stop_at(3))
    for state in request_.run_dir.glob("checkpoints/*/state.json"):
        state.write_text(state.read_text().replace(json.loads(state.read_text())["digests"]["tiny:train"], "f" * 64))
        commit = state.with_name("COMMIT.json")
        sums = json.loads(commit.read_text())
        sums["sha256"]["state.json"] = hashlib.sha256(state.read_bytes()).hexdigest()
        commit.write_text(json_text(sums))
    with pytest.raises(DataMismatch, match=r"digest ffffffffffff, now .*--accept-new-data"):
        pretrain(replace(request_, resume=True))
    assert pretrain(replace(request_, resume=True, accept_new_data=True)).steps == 10


def test_a_second_trainer_on_one_folder_is_turned_away(request_: PretrainRequest) -> None:
    with (
        lock(request_.run_dir / "LOCK", what="Run run"),
        pytest.raises(RunBusy, match=f"process {os.getpid()}") as caught,
    ):
        pretrain(request_)
    assert caught.value.exit_code == 75


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int], clips_per_step: int = 8) -> None:
    """Make the pixels of some steps not a number."""
    honest = Batch.clips

    def clips(self: Batch, *args: object, **options: object) -> Tensor:
        pixels = honest(self, *args, **options)
        return pixels * float("nan") if int(self.numbers[0]) // clips_per_step + 1 in steps else pixels

    monkeypatch.setattr(Batch, "clips", clips)


def test_a_bad_step_is_skipped_by_name_and_touches_nothing(
    request_: PretrainRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poison(monkeypatch, {4})
    run = pretrain(request_)
    assert "Step 4 skipped" in caplog.text and "tinytrain" in caplog.text
    assert all(torch.isfinite(tensor).all() for tensor in load_weights(run.weights).tensors.values())
    assert losses(run.run_dir)[3] is None


def test_a_skipped_step_leaves_weights_and_optimizer_alone(
    request_: PretrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {4})
    with pytest.raises(RuntimeError):
        pretrain(request_, watch=stop_at(5))
    before, after = (request_.run_dir / f"checkpoints/step-{step:09d}" for step in (3, 4))
    for name in ("weights.safetensors", "optimizer.safetensors"):
        assert (before / name).read_bytes() == (after / name).read_bytes()
    assert json.loads((after / "state.json").read_text())["skipped_steps"] == [4]


def test_three_bad_steps_in_a_row_stop_the_run(request_: PretrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {4, 5, 6, 7})
    with pytest.raises(TrainingStopped, match=r"stopped at step 6: 3 updates .* the last 3 in a row"):
        pretrain(request_)
    found = newest_checkpoint(request_.run_dir / "checkpoints")
    assert found is not None and found.step == 5


def test_a_run_that_was_stopped_goes_on_with_another_rate_and_says_so(
    request_: PretrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(request_, pictures=0)
    with monkeypatch.context() as patch, pytest.raises(TrainingStopped, match="then go on with --resume --force"):
        poison(patch, {4, 5, 6})
        pretrain(request)
    slower = override(request.recipe, ["optim.base_lr=1e-4", "optim.precision=fp32"])
    lower = replace(request, recipe=slower, resume=True)
    with pytest.raises(
        ConfigError, match=r"base_lr = 0\.0001 \(was base_lr = 0\.001\).* same ones, add --force, or choose"
    ):
        pretrain(lower)
    wider = replace(lower, recipe=override(slower, ["model.width=64"]), force=True)
    with pytest.raises(
        ConfigError, match=r"settings: width = 64 \(was width = 32\); .*\(--force changes base_lr, .* alone, and not"
    ):
        pretrain(wider)
    assert pretrain(replace(lower, force=True)).steps == 10
    (change,) = json.loads((request.run_dir / "run.json").read_text())["changes"]
    assert change["after_step"] == 5 and "base_lr = 0.0001 (was base_lr = 0.001)" in change["settings"]
    assert "Changed after step 5: base_lr = 0.0001" in (request.run_dir / "CARD.md").read_text()
    rates = [json.loads(line)["lr"] for line in (request.run_dir / "log.jsonl").read_text().splitlines()]
    assert len(rates) == 10 and rates[5] < 0.2 * rates[4]


def test_bf16_and_accumulation_train_too(request_: PretrainRequest) -> None:
    recipe = override(request_.recipe, ["optim.precision=bf16", "optim.accumulate=2"])
    found = pretrain(replace(request_, recipe=recipe))
    assert losses(found.run_dir)[-1] < losses(found.run_dir)[0]


def test_accumulation_changes_the_result_by_rounding_alone(request_: PretrainRequest, straight: RunResult) -> None:
    split = pretrain(replace(request_, recipe=override(request_.recipe, ["optim.accumulate=2"])))
    assert losses(split.run_dir) == pytest.approx(losses(straight.run_dir), rel=1e-4)


def test_a_length_in_steps_is_that_many_steps_whatever_the_accumulation(request_: PretrainRequest) -> None:
    recipe = override(request_.recipe, ["optim.accumulate=2"])
    clips = clips_of(request_.workspace, request_.shards, recipe, steps=3)
    found = pretrain(replace(request_, recipe=recipe, clips=clips, pictures=0))
    assert (found.steps, found.clips_seen) == (3, 24)


def test_masks_other_than_random_train_too(request_: PretrainRequest) -> None:
    found = pretrain(replace(request_, recipe=override(request_.recipe, ["model.mask=tube", "model.mask_ratio=0.5"])))
    assert losses(found.run_dir)[-1] < losses(found.run_dir)[0]
