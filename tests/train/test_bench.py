"""bench step: the promised shape, equal predictions before any time, peers that are not there are named."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from stmae_cli.train import app
from stmae_train.bench import StepBench, bench_step, step
from stmae_train.bench.machine import peak_memory
from stmae_train.errors import ModelError

torch.set_num_threads(1)
CELL = {"what", "size", "dtype", "ours", "peers", "ratio_to_best_peer"}


def test_the_command_gives_the_shape_of_formats() -> None:
    ended = CliRunner().invoke(app, ["bench", "step", "--size", "tiny", "--dtype", "fp32", "--rounds", "2", "--json"])
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert found.keys() >= {"machine", "versions", "cells"} and all(cell.keys() >= CELL for cell in found["cells"])
    against, dense = found["cells"]
    assert set(against["peers"]) == {"transformers eager", "transformers SDPA"} and dense["ours"] == against["ours"]
    assert dense["peers"]["dense encoder"] > 0 and dense["ratio_of_operations"] > 1
    assert dense["peak_memory_mb"]["dense"] > dense["peak_memory_mb"]["ours"] > 0
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed, so there is no peer to compare with: pip install -e '.[interop]'")
    assert not against["absent"] and against["largest_difference"] <= 1e-4
    assert against["ratio_to_best_peer"] == pytest.approx(min(against["peers"].values()) / against["ours"], abs=1e-3)


def test_a_peer_that_is_not_there_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_peer", lambda *_: None)
    found = bench_step(StepBench(("tiny",), ("bf16",), rounds=1))["cells"][0]
    assert found["peers"] == {"transformers eager": None, "transformers SDPA": None}
    assert found["absent"] == list(found["peers"]) and found["ratio_to_best_peer"] is None


def test_a_peer_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(name: str, kind: str, ours: Any, clips: torch.Tensor, mask: torch.Tensor) -> Any:
        return step._ours(name, step.MaskedAutoencoder(ours.config, seed=2), clips, mask)

    monkeypatch.setattr(step, "_peer", other)
    with pytest.raises(ModelError, match="predicts other values than we do"):
        bench_step(StepBench(("tiny",), ("fp32",), rounds=1))


@pytest.mark.parametrize("wrong", [{"sizes": ("huge",)}, {"dtypes": ("fp8",)}, {"rounds": 0}])
def test_what_cannot_be_timed_is_said(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"to time|cannot be timed"):
        StepBench(**wrong)


def test_peak_memory_is_what_stood_at_once() -> None:
    """Forty million bytes twice, one after the other, are forty; held together they are eighty."""
    with peak_memory(torch.device("cpu")) as after_another:
        for _ in range(2):
            torch.ones(10_000_000)
    with peak_memory(torch.device("cpu")) as together:
        held = [torch.ones(10_000_000) for _ in range(2)]
    del held
    if after_another.num_bytes is None:
        pytest.skip("this kernel does not let a process reset its high-water mark")
    assert 38e6 <= after_another.num_bytes <= 50e6 < 78e6 <= (together.num_bytes or 0) <= 90e6
