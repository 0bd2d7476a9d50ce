"""Several processes: the same clips, the same losses, and one run folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore

from stmae_data.files import read_table
from stmae_train.checkpoint import load_weights
from stmae_train.config import Recipe, override, to_toml
from stmae_train.distributed import World, start_world
from stmae_train.errors import RunInterrupted
from stmae_train.evaluate import EvaluateRequest, evaluate
from stmae_train.finetune import FinetuneRequest, finetune
from stmae_train.pretrain import PretrainRequest, pretrain
from stmae_train.runlog import StepRecord

# Runs, one after the other, in every one of the processes: [run folder, sharding, step to stop after or 0].
RUN = """
import json, os, sys, torch
from pathlib import Path
from stmae_train.config import read_recipe
from stmae_train.errors import RunInterrupted
from stmae_train.pretrain import PretrainRequest, pretrain
torch.set_num_threads(1)
workspace, recipe, runs, ports = json.loads(sys.argv[1])
for (folder, sharding, stop), port in zip(runs, ports):
    os.environ["MASTER_PORT"] = str(port)
    def watch(record):
        if record.step == stop:
            os.kill(os.getpid(), 15)
    try:
        pretrain(PretrainRequest(Path(workspace), ("tiny",), read_recipe(Path(recipe)), Path(folder), resume=True, log_every=1,
                                 checkpoint_every=2, device="cpu", pictures=0, sharding=sharding), watch=watch)
    except RunInterrupted:
        assert stop
"""


# Rank 1 waits for its data more than there is time, so whatever the clock says, it is the slow one.
WAITING = """
import os
from stmae_train.runlog import Stopwatch
if os.environ["RANK"] == "1":
    Stopwatch.waited = property(lambda self: 10 * self.seconds, lambda self, value: None)
"""


# The same of fine-tuning.
TUNE = (
    RUN.replace(
        "stmae_train.pretrain import PretrainRequest, pretrain", "stmae_train.finetune import FinetuneRequest, finetune"
    )
    .replace("pretrain(PretrainRequest(Path(workspace)", 'finetune(FinetuneRequest(Path(workspace), "random"')
    .replace('("tiny",)', '("tiny",), "tiny:val"')
    .replace(", pictures=0", "")
)


# Testing what was fine-tuned, each process its share of the videos.
TEST = """
import json, os, sys, torch
from pathlib import Path
from stmae_train.evaluate import EvaluateRequest, evaluate
torch.set_num_threads(1)
workspace, weights, runs, ports = json.loads(sys.argv[1])
for (folder, _, _), port in zip(runs, ports):
    os.environ["MASTER_PORT"] = str(port)
    evaluate(EvaluateRequest(Path(workspace), weights, "tiny:val", Path(folder), device="cpu", resume=True))
"""


def meeting_points(count: int) -> list[TCPStore]:
    """A store for every run, on a port that the system chose; nobody else can have it for as long as the store is held."""
    return [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in range(count)]


def run_in_two(
    workspace: Path, recipe: Path, runs: list[tuple[Path, str, int]], *, script: str = RUN, limit_seconds: float = 300
) -> None:
    """The runs in two gloo processes, as torchrun starts them: the store is the launcher's."""
    stores = meeting_points(len(runs))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"GLOO_SOCKET_IFNAME": "lo"}
    given = json.dumps([workspace, recipe, runs, [store.port for store in stores]], default=str)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, given],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=limit_seconds)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def stopped_alone(request: PretrainRequest, step: int) -> None:
    def watch(record: StepRecord) -> None:
        if record.step == step:
            os.kill(os.getpid(), 15)

    with pytest.raises(RunInterrupted):
        pretrain(request, watch=watch)


def test_alone_a_process_is_its_own_world() -> None:
    world = start_world("cpu")
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert world.any(3) == 3 and torch.equal(world.mean(torch.tensor(2.0)), torch.tensor(2.0))
    model = torch.nn.Linear(2, 2)
    assert world.wrap(model) is model
    assert not World(1, 2, torch.device("cpu")).is_main


def test_two_processes_meet_where_nobody_else_can_and_end_with_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for store in meeting_points(3):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", store.port))
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(real(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(subprocess.TimeoutExpired):
        run_in_two(tmp_path, tmp_path, [], script="import time; time.sleep(1000)", limit_seconds=0.01)
    assert [process.returncode for process in started] == [-9, -9]


@pytest.mark.slow
def test_two_processes_shared_or_sharded_train_the_model_of_one_and_take_over_from_each_other(
    small_world: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    """DDP and FSDP2, gathering gradients over two micro-batches, clipped, with a running mean of the weights."""
    changes = ["optim.accumulate=2", "optim.grad_clip=0.5", "optim.ema_decay=0.9"]
    recipe = override(small_recipe, changes)
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    request = PretrainRequest(
        small_world, ("tiny",), recipe, tmp_path / "one", log_every=1, checkpoint_every=2, device="cpu", pictures=0
    )
    straight = pretrain(request)
    for name in ("one-then-ddp", "one-then-fsdp"):
        stopped_alone(replace(request, run_dir=tmp_path / name), 4)
    runs = [("ddp", "ddp", 0), ("fsdp", "fsdp", 0), ("one-then-ddp", "ddp", 0), ("one-then-fsdp", "fsdp", 0)]
    runs += [("fsdp-then-one", "fsdp", 6), ("fsdp-then-fsdp", "fsdp", 5), ("fsdp-then-fsdp", "fsdp", 0)]
    runs += [("ddp", "ddp", 0)]  # done already, which both processes have to know
    planned = [(tmp_path / name, how, stop) for name, how, stop in runs]
    run_in_two(small_world, tmp_path / "recipe.toml", planned, script=WAITING + RUN)
    state = json.loads((tmp_path / "fsdp-then-one/checkpoints/step-000000006/state.json").read_text())
    assert state["world_size"] == 2
    pretrain(replace(request, run_dir=tmp_path / "fsdp-then-one", resume=True))

    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), rel=1e-6)
    one = straight.run_dir
    for name in dict.fromkeys(name for name, *_ in runs):
        folder = tmp_path / name
        assert losses(folder) == pytest.approx(losses(one), rel=1e-4), name
        for file in ("weights.safetensors", "weights-ema.safetensors"):
            ours, theirs = (load_weights(each / file).tensors for each in (one, folder))
            # Adam turns rounding of tiny gradients into steps of a few per cent of the rate (1e-3).
            assert list(ours) == list(theirs)
            assert all(torch.allclose(each, theirs[key], atol=1e-3) for key, each in ours.items()), name
    # At equal world size a resumed run is the uninterrupted one to the bit, sharded or not.
    last = "checkpoints/step-000000010/optimizer.safetensors"
    for file in ("weights.safetensors", "weights-ema.safetensors", last):
        assert (tmp_path / "fsdp-then-fsdp" / file).read_bytes() == (tmp_path / "fsdp" / file).read_bytes()
    execution = json.loads((tmp_path / "fsdp" / "run.json").read_text())["execution"]
    assert (execution["processes"], execution["sharding"]) == (2, "fsdp")
    cost = json.loads((tmp_path / "ddp" / "cost.json").read_text())
    assert cost["clips"] == 80 and cost["cpu_seconds"] > 0
    # The process that does not write the run is the slow one, and is seen.
    records = [json.loads(line) for line in (tmp_path / "ddp" / "log.jsonl").read_text().splitlines()]
    assert {each["wait_rank"] for each in records} == {1} and min(each["wait_share"] for each in records) > 1
    assert cost["stall_seconds"] > cost["seconds"]


def metrics_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


@pytest.mark.slow
def test_shared_or_sharded_the_classifier_is_that_of_one_process_and_a_stopped_run_goes_on(
    small_world: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    changes = ["finetune.batch_videos=8", "finetune.repeats=2", "finetune.accumulate=2", "finetune.epochs=2"]
    changes += ["finetune.warmup_epochs=0.5", "finetune.layer_decay=0.75", "finetune.grad_clip=0.5"]
    # What is mixed, dropped or perturbed by chance is drawn by each process for itself.
    changes += ["finetune.mixup=0", "finetune.cutmix=0", "finetune.drop_path=0", "finetune.head_dropout=0"]
    recipe = override(small_recipe, [*changes, "finetune.ema_decay=0.9"])
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    runs = small_world / "runs"
    one, ddp, fsdp, again, elsewhere = (
        runs / f"tuned-{name}" for name in ("one", "ddp", "fsdp", "fsdp-again", "fsdp-then-one")
    )
    request = FinetuneRequest(
        small_world, "random", ("tiny",), "tiny:val", recipe, one, log_every=1, checkpoint_every=2, device="cpu"
    )
    straight = finetune(request)
    # The last of them is done when it is asked for again, and both processes have to know.
    planned = [(ddp, "ddp", 0), (fsdp, "fsdp", 0), (again, "fsdp", 3), (elsewhere, "fsdp", 3), (ddp, "ddp", 0)]
    run_in_two(small_world, tmp_path / "recipe.toml", planned, script=TUNE)
    tested = [runs / "tested-by-two", runs / "tested-by-one"]
    run_in_two(small_world, ddp, 2 * [(tested[0], "", 0)], script=TEST)
    evaluate(EvaluateRequest(small_world, str(ddp), "tiny:val", tested[1], device="cpu"))
    by_two, by_one, at_the_end = (read_table(folder / "scores.parquet") for folder in (*tested, ddp))
    assert by_two == by_one and [row["clip_id"] for row in at_the_end] == [row["clip_id"] for row in by_one]
    finetune(replace(request, run_dir=elsewhere, resume=True))
    command = ["-m", "stmae_cli.train", "finetune", "--init", "random", "--shards", "tiny", "--eval-shards", "tiny:val"]
    command += ["--recipe", str(tmp_path / "recipe.toml"), "--checkpoint-every", "2", "--out", again.name, "--resume"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*launch, *command, "--fsdp", "--device", "cpu", "-w", str(small_world)],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()

    assert losses(fsdp) == pytest.approx(losses(ddp), rel=1e-6)
    for folder in (ddp, fsdp, elsewhere):
        assert losses(folder) == pytest.approx(losses(one), rel=1e-4), folder
    for folder in (ddp, fsdp, again, elsewhere):
        assert metrics_of(folder)["cross_entropy"] == pytest.approx(straight["cross_entropy"], rel=1e-3), folder
        for file in ("weights.safetensors", "weights-ema.safetensors"):
            ours, theirs = (load_file(each / file) for each in (one, folder))
            # Adam turns rounding of tiny gradients into steps of a few per cent of the rate (1e-3).
            assert sorted(ours) == sorted(theirs)
            assert all(torch.allclose(each, theirs[name], atol=1e-3) for name, each in ours.items()), folder
    # At equal world size a resumed run is the uninterrupted one to the bit.
    for file in ("weights.safetensors", "weights-ema.safetensors"):
        assert (again / file).read_bytes() == (fsdp / file).read_bytes()
    assert metrics_of(again) == metrics_of(fsdp)
    execution = json.loads((again / "run.json").read_text())["execution"]
    assert (execution["processes"], execution["sharding"]) == (2, "fsdp")


# Rank 1 of the first start is killed in the middle of a step; the launcher starts both anew.
ELASTIC = """
import os, sys, torch
from pathlib import Path
from stmae_train.config import read_recipe
from stmae_train.loader import Batch
from stmae_train.pretrain import PretrainRequest, pretrain
torch.set_num_threads(1)
workspace, recipe, folder = map(Path, sys.argv[1:])
honest = Batch.clips
def clips(self, *arguments, **options):
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1" and int(self.numbers[0]) // 8 == 5:
        os.kill(os.getpid(), 9)
    return honest(self, *arguments, **options)
Batch.clips = clips
pretrain(PretrainRequest(workspace, ("tiny",), read_recipe(recipe), folder, resume=True, log_every=1, checkpoint_every=2,
                         device="cpu", pictures=0))
"""


@pytest.mark.battery
def test_torchrun_restarts_a_killed_process_and_the_run_ends_to_the_bit_as_if_nothing_had_happened(
    small_world: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(to_toml(small_recipe))
    (tmp_path / "train.py").write_text(ELASTIC)
    run_in_two(small_world, tmp_path / "recipe.toml", [(tmp_path / "straight", "ddp", 0)])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--max-restarts=1"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--monitor-interval=0.1"]
    launch += [str(tmp_path / "train.py")]
    ended = subprocess.run(
        [*launch, str(small_world), str(tmp_path / "recipe.toml"), str(tmp_path / "killed")],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    last = "checkpoints/step-000000010/optimizer.safetensors"
    for file in ("weights.safetensors", last):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()
