"""Runs that may leave out damaged clips: nothing else of the run minds them, and all that was left out is counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from stmae_data.errors import SetError
from stmae_data.frames import Planes
from stmae_train.config import Recipe, override
from stmae_train.errors import DataMismatch
from stmae_train.loader import ClipSource
from stmae_train.pretrain import PretrainRequest, pretrain

Damage = Callable[..., None]


@pytest.fixture
def damage(monkeypatch: pytest.MonkeyPatch) -> Damage:
    """Let some rows of every set be damaged."""
    honest = ClipSource.planes

    def install(*rows: int) -> None:
        def planes(self: ClipSource, row: int, clips: Sequence[Sequence[int]]) -> Planes:
            if row in rows:
                raise SetError("Frame 4 did not arrive.")
            return honest(self, row, clips)

        monkeypatch.setattr(ClipSource, "planes", planes)

    return install


@pytest.fixture
def request_(small_world: Path, small_recipe: Recipe, tmp_path: Path) -> PretrainRequest:
    """A run of 6 steps, which is every clip once."""
    return PretrainRequest(
        small_world,
        ("tiny",),
        small_recipe,
        tmp_path / "run",
        clips=48,
        checkpoint_every=1,
        log_every=1,
        device="cpu",
        skip_damaged=2,
        pictures=0,
        cache_bytes=0,
    )


def facts(folder: Path) -> tuple[str, list[str], int]:
    """How the run ended, what it says it left out, and the number of its card."""
    (line,) = (each for each in (folder / "CARD.md").read_text().splitlines() if "Skipped clips" in each)
    status = json.loads((folder / "run.json").read_text())["status"]
    return status, sorted(json.loads((folder / "skipped.json").read_text())), int(line.rpartition(":")[2])


def test_pictures_of_a_run_leave_out_what_the_run_may_leave_out(
    request_: PretrainRequest, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    damage(1)
    pretrain(replace(request_, pictures=3, pictures_every=4))
    for folder in ("pictures", "pictures/step-000000004"):
        names = [path.name for path in sorted((request_.run_dir / folder).glob("*.png"))]
        assert names == [f"tinytrain{number:04d}-75.png" for number in (0, 2)]
    assert facts(request_.run_dir) == ("done", ["tinytrain0001"], 1)
    assert "No pictures of damaged clips: tinytrain0001." in caplog.text


def test_pictures_of_a_run_that_may_leave_out_nothing_name_the_clip(request_: PretrainRequest, damage: Damage) -> None:
    honest = replace(request_, clips=8, skip_damaged=0, seed=3)
    pretrain(honest)
    damage(1)
    shown = replace(honest, run_dir=request_.run_dir.with_name("shown"), pictures=3)
    with pytest.raises(DataMismatch, match=r"Clip tinytrain0001 of tiny:train cannot be decoded .*--skip-damaged 1"):
        pretrain(shown)
    assert (shown.run_dir / "weights.safetensors").is_file()  # training itself had not met it


def test_a_basis_is_fitted_to_the_clips_that_are_whole(request_: PretrainRequest, damage: Damage) -> None:
    damage(1)
    recipe = override(request_.recipe, ["model.target=pca", "model.target_values=6"])
    pretrain(replace(request_, recipe=recipe))
    assert facts(request_.run_dir) == ("done", ["tinytrain0001"], 1)
