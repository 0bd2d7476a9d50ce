"""Checkpoints: whole or not there, damaged ones passed over by name, no pickle."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from stmae_data.files import json_text, sha256_file
from stmae_train.checkpoint import (
    load_autoencoder,
    load_model,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
    save_tensors,
    save_weights,
    weights_path,
)
from stmae_train.config import Recipe, override
from stmae_train.distributed import load_optimizer_tensors, optimizer_tensors
from stmae_train.errors import CheckpointError, TrainingStopped
from stmae_train.model import MaskedAutoencoder
from stmae_train.optim import adamw, parameter_groups, set_learning_rate

FILES = ["weights.safetensors", "optimizer.safetensors", "state.json", "COMMIT.json"]


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        tensors = {"a": torch.full((3, 2), float(step)), "b": torch.arange(5)}
        save_checkpoint(
            folder, step=step, weights=tensors, optimizer={"a:exp_avg": tensors["a"]}, state={"clips": 8 * step}
        )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(bytes(data))


def test_a_checkpoint_comes_back_as_it_was_and_the_newest_three_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 12)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["step-000000003", "step-000000004", "step-000000012"]
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 12 and found.state["clips"] == 96
    assert torch.equal(found.weights["a"], torch.full((3, 2), 12.0)) and found.weights["b"].dtype == torch.int64
    assert torch.equal(found.optimizer["a:exp_avg"], found.weights["a"])


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut", "flipped", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_every_damage_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 2)
    damage(tmp_path / "step-000000002" / name)
    with caplog.at_level(logging.WARNING):
        found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    assert "step-000000002" in caplog.text


def damaged_copies(data: bytes, *, bits: tuple[int, ...] | None) -> Iterator[bytes]:
    """Every prefix, and every byte with one bit flipped: with bits of its own, or with one that walks along."""
    for length in range(len(data)):
        yield data[:length]
    for place in range(len(data)):
        for bit in bits if bits is not None else (place % 8,):
            yield data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def find_every_damage(folder: Path, bits: tuple[int, ...] | None) -> int:
    save(folder, 1)
    save_checkpoint(
        folder,
        step=2,
        weights={"a": torch.ones(2)},
        optimizer={"a:step": torch.ones(())},
        mean={"a": torch.zeros(2)},
        state={"clips": 16},
    )
    found = newest_checkpoint(folder)
    assert found is not None and found.step == 2 and found.mean is not None
    count = 0
    for name in [*FILES, "weights-ema.safetensors"]:
        path = folder / "step-000000002" / name
        whole = path.read_bytes()
        for data in damaged_copies(whole, bits=bits):
            path.write_bytes(data)
            found = newest_checkpoint(folder)
            assert found is not None and found.step == 1, (name, data)
            count += 1
        path.unlink()
        found = newest_checkpoint(folder)
        assert found is not None and found.step == 1, name
        path.write_bytes(whole)
    return count


def test_every_truncation_and_a_flip_in_every_byte_is_detected(tmp_path: Path) -> None:
    assert find_every_damage(tmp_path, None) > 1500


@pytest.mark.battery
def test_every_flip_of_every_bit_is_detected(tmp_path: Path) -> None:
    assert find_every_damage(tmp_path, tuple(range(8))) > 7000


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
def test_a_pickle_in_a_checkpoint_is_never_opened_even_when_its_checksum_is_right(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 2)
    folder = tmp_path / "step-000000002"
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    commit = json.loads((folder / "COMMIT.json").read_bytes())
    commit["sha256"][name] = sha256_file(folder / name)
    (folder / "COMMIT.json").write_text(json_text(commit))
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1 and not (tmp_path / "exploded").exists()
    assert "not a whole safetensors file" in caplog.text


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("which", ["weights", "optimizer", "mean"])
def test_a_checkpoint_never_holds_what_is_not_finite(tmp_path: Path, which: str) -> None:
    save(tmp_path, 1)
    given = {"weights": {"a": torch.ones(2)}, "optimizer": {"a:step": torch.ones(())}, "mean": {"a": torch.ones(2)}}
    given[which] = {name: each * float("nan") for name, each in given[which].items()}
    with pytest.raises(TrainingStopped, match=r"stopped at step 2: 1 of its .* not finite, first a.*resume from"):
        save_checkpoint(tmp_path, step=2, state={}, **given)
    assert [each.name for each in tmp_path.iterdir()] == ["step-000000001"]


def test_no_usable_checkpoint_is_an_error_never_a_fresh_start(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for step in (1, 2):
        flip(tmp_path / f"step-{step:09d}" / "weights.safetensors")
    with pytest.raises(CheckpointError, match="no usable checkpoint: step-000000002, step-000000001 damaged"):
        newest_checkpoint(tmp_path)


def test_a_damaged_checkpoint_of_the_same_step_is_written_anew(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    flip(tmp_path / "step-000000002" / "weights.safetensors")
    save(tmp_path, 2)
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 2


def test_what_stands_past_a_checkpoint_or_was_never_committed_pushes_out_none_that_is_whole(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    cut(tmp_path / "step-000000002" / "weights.safetensors")
    for step in (3, 5):  # as a kill leaves it while it is written
        save(tmp_path, step)
        (tmp_path / f"step-{step:09d}" / "COMMIT.json").unlink()
    save(tmp_path, 4)
    names = [f"step-{step:09d}" for step in (1, 2, 4, 5)]
    assert sorted(each.name for each in tmp_path.iterdir()) == names
    cut(tmp_path / "step-000000004" / "weights.safetensors")
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1


def test_equal_tensors_and_metadata_give_equal_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2)}
    for number in range(4):
        save_tensors(tmp_path / str(number), tensors, {f"key {each}": "value" for each in range(12)})
    assert len({(tmp_path / str(number)).read_bytes() for number in range(4)}) == 1


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file.*only weights written by stmae-train"):
        load_weights(path)


def test_weights_say_what_they_are_and_rebuild_their_model(tmp_path: Path, small_recipe: Recipe) -> None:
    model = MaskedAutoencoder(small_recipe.model, seed=3)
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, recipe=small_recipe, facts={"data": {"tiny:train": "abc"}, "clips": 80})
    weights = load_weights(path)
    assert weights.recipe == small_recipe and weights.metadata["lineage"] == "mae_st"
    assert json.loads(weights.metadata["data"]) == {"tiny:train": "abc"}
    assert json.loads(weights.metadata["preprocessing"])["crop_px"] == 16
    again = load_autoencoder(weights, where="weights")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_weights_of_another_size_are_refused_in_one_sentence(tmp_path: Path, small_recipe: Recipe) -> None:
    wide = MaskedAutoencoder(override(small_recipe, ["model.width=64"]).model)
    with pytest.raises(
        CheckpointError, match=r"holds another model \(encoder\.\S+ is \[.*\], wanted \[.*\], and \d+ more\)"
    ):
        load_model(MaskedAutoencoder(small_recipe.model), wide.state_dict(), where="weights.safetensors")


def test_weights_without_a_recipe_are_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "weights.safetensors", {"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match="does not say which model it holds"):
        load_weights(tmp_path / "weights.safetensors")


def test_weights_are_found_by_file_folder_and_name(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "first" / "weights.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    for init in (str(path), str(path.parent), "first"):
        assert weights_path(init, workspace=tmp_path) == path
    with pytest.raises(CheckpointError, match="no weights at 'second'"):
        weights_path("second", workspace=tmp_path)


def test_optimizer_states_survive_by_name(small_recipe: Recipe) -> None:
    def build() -> tuple[MaskedAutoencoder, torch.optim.AdamW]:
        model = MaskedAutoencoder(small_recipe.model)
        return model, adamw(parameter_groups(model, weight_decay=0.05))

    def step(model: MaskedAutoencoder, optimizer: torch.optim.AdamW, seed: int) -> None:
        noise = torch.rand(2, 8, generator=torch.Generator().manual_seed(seed))
        clips = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        model(clips, noise=noise).loss.backward()
        set_learning_rate(optimizer, 1e-3)
        optimizer.step()
        optimizer.zero_grad()

    first, first_optimizer = build()
    step(first, first_optimizer, 0)
    second, second_optimizer = build()
    second.load_state_dict(first.state_dict())
    load_optimizer_tensors(second_optimizer, optimizer_tensors(first_optimizer))
    step(first, first_optimizer, 1)
    step(second, second_optimizer, 1)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    with pytest.raises(CheckpointError, match="'absent', which this model does not train"):
        load_optimizer_tensors(second_optimizer, {"absent:exp_avg": torch.ones(1)})
