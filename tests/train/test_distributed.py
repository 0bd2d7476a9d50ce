"""Several processes: the same clips, the same losses, and one run folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stmae_train.checkpoint import load_weights
from stmae_train.config import Recipe, to_toml
from stmae_train.distributed import World, start_world
from stmae_train.errors import RunInterrupted
from stmae_train.pretrain import PretrainRequest, pretrain
from stmae_train.runlog import StepRecord

RUN = """
import sys, torch
from pathlib import Path
from stmae_train.config import read_recipe
from stmae_train.pretrain import PretrainRequest, pretrain
torch.set_num_threads(1)
pretrain(PretrainRequest(Path(sys.argv[1]), ("tiny",), read_recipe(Path(sys.argv[2])), Path(sys.argv[3]), resume=True,
                         log_every=1, device="cpu", pictures=0))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_in_two(arguments: list[str]) -> None:
    """The script in two gloo processes, as torchrun starts them."""
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()


def test_alone_a_process_is_its_own_world() -> None:
    world = start_world("cpu")
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert world.any(3) == 3 and torch.equal(world.mean(torch.tensor(2.0)), torch.tensor(2.0))
    model = torch.nn.Linear(2, 2)
    assert world.wrap(model) is model
    assert not World(1, 2, torch.device("cpu")).is_main


@pytest.mark.slow
def test_two_processes_take_over_from_one_and_train_the_same_model(
    small_world: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    request = PretrainRequest(
        small_world, ("tiny",), small_recipe, tmp_path / "one", log_every=1, device="cpu", pictures=0
    )
    straight = pretrain(request)

    def watch(record: StepRecord) -> None:
        if record.step == 4:
            os.kill(os.getpid(), 15)

    shared = replace(request, run_dir=tmp_path / "two")
    with pytest.raises(RunInterrupted):
        pretrain(shared, watch=watch)
    (tmp_path / "recipe.toml").write_text(to_toml(small_recipe))
    run_in_two([str(small_world), str(tmp_path / "recipe.toml"), str(shared.run_dir)])

    ours, theirs = (
        [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (straight.run_dir, shared.run_dir)
    )
    assert theirs == pytest.approx(ours, rel=1e-4)
    one, two = (load_weights(folder / "weights.safetensors").tensors for folder in (straight.run_dir, shared.run_dir))
    # Adam turns rounding of tiny gradients into steps of a few per cent of the rate (1e-3).
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)
