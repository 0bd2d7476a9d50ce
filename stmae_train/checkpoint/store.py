"""Checkpoints that resume exactly, and weights files: safetensors and JSON, committed last, never a pickle.

checkpoints/step-000000123/weights.safetensors     model, by our names
                           optimizer.safetensors   `<parameter>:<state>` for every optimizer state
                           weights-ema.safetensors the running mean of the weights, where one is kept
                           state.json              step, counters, what the run was
                           COMMIT.json             sha256 of the others; without it the folder does not count
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from stmae_data import files
from stmae_train.config import ModelConfig, Recipe, from_toml, to_toml
from stmae_train.distributed import load_model_tensors
from stmae_train.errors import CheckpointError, TrainingStopped
from stmae_train.model import MaskedAutoencoder

__all__ = [
    "Checkpoint",
    "Weights",
    "drop_checkpoints_after",
    "load_autoencoder",
    "load_model",
    "load_weights",
    "newest_checkpoint",
    "save_checkpoint",
    "save_tensors",
    "save_weights",
    "weights_path",
]

LOGGER = logging.getLogger("stmae.train")
SCHEMA_VERSION = 1
KEPT = 3
_PARTS = ("weights.safetensors", "optimizer.safetensors", "state.json")
_MEAN = "weights-ema.safetensors"
_NAME = re.compile(r"step-(\d{9})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read and found whole."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    mean: dict[str, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights file: tensors by our names, the recipe they were trained with, and the rest of the metadata as text."""

    tensors: dict[str, Tensor]
    recipe: Recipe
    metadata: dict[str, str]

    @property
    def model(self) -> ModelConfig:
        """The model's config."""
        return self.recipe.model


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    mean: Mapping[str, Tensor] | None = None,
    keep: int = KEPT,
) -> Path:
    """Write one checkpoint under `folder` and keep, of those up to its step, the newest `keep` that were committed.

    A crash at any instant leaves the earlier checkpoints whole and this one either whole or uncounted.

    Raises:
        TrainingStopped: a tensor is not finite; nothing is written.
        StorageError: no room; the earlier checkpoints stay.
    """
    for what, tensors in (("weights", weights), ("optimizer states", optimizer), ("mean weights", mean or {})):
        bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
        if bad:
            raise TrainingStopped(
                f"Training stopped at step {step}: {len(bad)} of its {what} are not finite, first {bad[0]}, so no checkpoint was written. "
                f"Lower base_lr, set grad_clip or precision=fp32, then resume from the one before with --resume --force."
            )
    target = folder / f"step-{step:09d}"
    if (target / "COMMIT.json").is_file():
        files.remove_file(target / "COMMIT.json", point="checkpoint")  # a damaged one of the same step is written anew
    if target.is_dir():
        files.sweep_temp(target)
    save_tensors(target / "weights.safetensors", weights)
    save_tensors(target / "optimizer.safetensors", optimizer)
    if mean is not None:
        save_tensors(target / _MEAN, mean)
    files.commit_json(
        target / "state.json", {"schema_version": SCHEMA_VERSION, "step": step, **state}, point="checkpoint"
    )
    sums = {name: files.sha256_file(target / name) for name in (*_PARTS, *([] if mean is None else [_MEAN]))}
    files.commit_json(
        target / "COMMIT.json", {"schema_version": SCHEMA_VERSION, "step": step, "sha256": sums}, point="commit"
    )
    # A folder past this step is no newer state of this run, and one without a commit no state at all: neither may push out one that is.
    upto = [each for each in _folders(folder) if each <= target]
    kept = [each for each in upto if (each / "COMMIT.json").is_file()][:keep]
    _drop(each for each in upto if each not in kept)
    return target


def drop_checkpoints_after(folder: Path, step: int) -> None:
    """Drop what stands past the step that a run goes on from: it was found damaged or unfinished, and must not count among the newest."""
    _drop(each for each in _folders(folder) if int(each.name.removeprefix("step-")) > step)


def _drop(paths: Iterable[Path]) -> None:
    for path in paths:
        # Uncommit first: a crash between the two leaves a folder that does not count, never one that lies.
        if (path / "COMMIT.json").is_file():
            files.remove_file(path / "COMMIT.json", point="prune")
        shutil.rmtree(path)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are passed over with a warning that names them.

    Returns:
        None where no checkpoint was ever committed.

    Raises:
        CheckpointError: there are checkpoints and every one is damaged.
    """
    damaged = []
    for path in _folders(folder):
        if not (path / "COMMIT.json").is_file():
            LOGGER.warning("%s was never committed and does not count; looking for an earlier checkpoint.", path.name)
            continue
        try:
            return _read(path)
        except CheckpointError as error:
            damaged.append(path.name)
            LOGGER.warning("%s Falling back to the one before.", error)
    if damaged:
        raise CheckpointError(
            f"{folder} holds no usable checkpoint: {', '.join(damaged)} damaged. Restore one from a copy, or start a new run with "
            f"another --out; nothing restarts from scratch on its own."
        )
    return None


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    if not folder.is_dir():
        return []
    return sorted((each for each in folder.iterdir() if _NAME.fullmatch(each.name) and each.is_dir()), reverse=True)


def _read(path: Path) -> Checkpoint:
    sums = _sums(path)
    for name, wanted in sums.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path.name}/{name} is missing.")
        try:
            found = files.sha256_file(path / name)
        except OSError as error:
            raise CheckpointError(f"{path.name}/{name} cannot be read ({error}).") from error
        if found != wanted:
            raise CheckpointError(f"{path.name}/{name} is damaged: its sha256 is not the one in COMMIT.json.")
    weights, optimizer = (_read_tensors(path / name)[0] for name in _PARTS[:2])
    mean = _read_tensors(path / _MEAN)[0] if _MEAN in sums else None
    state = files.read_json(path / "state.json")
    return Checkpoint(int(state["step"]), weights, optimizer, state, mean)


def _sums(path: Path) -> dict[str, str]:
    """Checksums by file name; the commit itself must read as it was written, to the byte.

    Raises:
        CheckpointError: it does not.
    """
    try:
        data = (path / "COMMIT.json").read_bytes()
        commit = json.loads(data)
        sums = {str(name): str(value) for name, value in commit["sha256"].items()}
        step = int(path.name.removeprefix("step-"))
        again = files.json_text({"schema_version": SCHEMA_VERSION, "step": step, "sha256": sums}).encode()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path.name}/COMMIT.json is damaged ({type(error).__name__}).") from error
    if again != data or set(sums) - {_MEAN} != set(_PARTS):
        raise CheckpointError(f"{path.name}/COMMIT.json is damaged: it is not what a commit of this step says.")
    return sums


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; equal tensors and metadata give equal bytes."""
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(plain, {"format": "pt", **(metadata or {})})
    # The library writes metadata in the order of a hash map, which differs from process to process: sort the header.
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with files.committing(path, point="tensors") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.write(memoryview(data)[8 + length :])


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); only weights written by stmae-train can be read."
        ) from error


def load_model(model: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Put saved weights into a model, all of them.

    Raises:
        CheckpointError: a name or a shape differs; the message names the first and counts the rest.
    """
    state = model.state_dict()
    wrong = [f"{name} is missing" for name in state if name not in tensors]
    wrong += [f"{name} is unknown here" for name in tensors if name not in state]
    wrong += [
        f"{name} is {list(tensors[name].shape)}, wanted {list(state[name].shape)}"
        for name in state
        if name in tensors and tensors[name].shape != state[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{where} holds another model ({wrong[0]}{f', and {len(wrong) - 1} more' if len(wrong) > 1 else ''}); use the recipe it was "
            f"trained with, or start a new run with another --out."
        )
    load_model_tensors(model, tensors)


def save_weights(
    path: Path, model: nn.Module | Mapping[str, Tensor], *, recipe: Recipe, facts: Mapping[str, Any]
) -> None:
    """Write final weights with all a reader needs: recipe, lineage, preprocessing, target, and `facts` such as data digests."""
    shape, data = recipe.model, recipe.data
    preprocessing = {
        "mean": shape.mean,
        "std": shape.std,
        "crop_px": shape.crop_px,
        "num_frames": data.num_frames,
        "frame_stride": data.frame_stride,
        "fps": data.fps,
        "sampling": data.sampling,
        "colour": "RGB from limited-range BT.601",
    }
    target = {"kind": shape.target, "frames": shape.target_frames, "range": shape.target_range, "loss": shape.loss}
    plain = {
        "schema_version": SCHEMA_VERSION,
        "lineage": shape.lineage,
        "preprocessing": preprocessing,
        "target": target,
    }
    metadata = {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in (plain | dict(facts)).items()
    }
    tensors = model.state_dict() if isinstance(model, nn.Module) else model
    save_tensors(path, tensors, {"recipe": to_toml(recipe), **metadata})


def load_weights(path: Path) -> Weights:
    """Read a weights file of ours.

    Raises:
        CheckpointError: it is missing, damaged, not safetensors, or does not say what model it holds.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist; give a weights.safetensors file or the folder of a finished run."
        )
    tensors, metadata = _read_tensors(path)
    if "recipe" not in metadata:
        raise CheckpointError(
            f"{path} does not say which model it holds (no recipe in its metadata); only weights written by stmae-train can be read."
        )
    return Weights(tensors, from_toml(metadata["recipe"], where=str(path)), metadata)


def weights_path(init: str, *, workspace: Path | None = None) -> Path:
    """Where the weights that `init` names stand: a file, a run folder, or the name of a run of the workspace.

    Raises:
        CheckpointError: nothing stands there.
    """
    # A folder may be a run, or one that transformers wrote.
    within = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")
    candidates = [Path(init), *(Path(init) / name for name in within)]
    if workspace is not None:
        candidates.append(workspace / "runs" / init / "weights.safetensors")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"There are no weights at {init!r}; give a weights.safetensors file, the folder of a finished run, or a run of the workspace."
    )


def load_autoencoder(weights: Weights, *, where: str) -> MaskedAutoencoder:
    """The whole masked autoencoder of a weights file.

    Raises:
        CheckpointError: the file holds something else, such as an encoder alone.
    """
    model = MaskedAutoencoder(weights.model)
    load_model(model, weights.tensors, where=where)
    return model
