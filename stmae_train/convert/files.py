"""Opening a file of weights, whoever wrote it: safetensors here, PyTorch's own format in a confined child that has no network."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from safetensors import SafetensorError
from torch import Tensor

from stmae_data.limits import Limits, call
from stmae_train.convert.child import unpack
from stmae_train.errors import CheckpointError

__all__ = ["Opened", "open_file"]

PICKLE_MAGIC = (b"PK\x03\x04", b"\x80")  # torch.save since 1.6, and before
REFUSED = re.compile(r"(?:GLOBAL|Unsupported (?:global|class)[: ]+(?:GLOBAL )?)\s*([\w.]+)")


@dataclass(frozen=True, slots=True)
class Opened:
    """A file of weights as it stands: tensors by the names it uses, its metadata, and what stands beside them."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    args: dict[str, Any] = field(default_factory=dict)  # of the published training script
    settings: dict[str, Any] = field(default_factory=dict)  # config.json beside the file (transformers, timm)
    preprocessing: dict[str, Any] = field(default_factory=dict)  # preprocessor_config.json beside it (transformers)


def open_file(path: Path) -> Opened:
    """Read a weights file.

    Args:
        path: safetensors, or a file of `torch.save`; told apart by their first bytes, not by their name.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist; give a .safetensors or .pth file, or the folder of a finished run."
        )
    with path.open("rb") as stream:
        start = stream.read(9)
    # A safetensors file starts with a length, which may look like a pickle's first byte; its header is JSON.
    if start.startswith(PICKLE_MAGIC) and start[8:9] != b"{":
        return _from_torch(path)
    tensors, metadata = _from_safetensors(path)
    return Opened(tensors, metadata, **_beside(path))


def _from_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is neither a whole safetensors file ({error}) nor a file of torch.save; fetch it again."
        ) from error


def _from_torch(path: Path) -> Opened:
    """A pickle may run what it names, so it is opened where nothing can be reached, and only tensors come back."""
    size = path.stat().st_size
    limits = Limits(
        cpu_seconds=60 + size / 20e6, address_space_bytes=(2 << 30) + 4 * size, file_bytes=2 * size + (64 << 20)
    )
    with tempfile.TemporaryDirectory(prefix="stmae-convert-") as folder:
        target = Path(folder) / "weights.safetensors"
        ended = call(unpack, str(path.resolve()), str(target), limits=limits)
        if ended.kind != "ok":
            raise CheckpointError(f"{path} cannot be read as weights: {_reason(ended.kind, ended.errors)}.")
        tensors, _ = _from_safetensors(target)
    return Opened(tensors, {}, args=ended.value["args"], **_beside(path))


def _reason(kind: str, errors: str) -> str:
    """Why a child gave up, in half a sentence."""
    if kind != "error":
        return f"its reader ended with '{kind}'; the file is damaged or too large for this machine"
    refused = REFUSED.search(errors)
    if "Weights only load failed" in errors or refused:
        what = f"an object of {refused.group(1)}" if refused else "objects beside tensors"
        return f"it holds {what}, which reading could run; save its weights alone with torch.save(model.state_dict()) where you trust it"
    return errors.partition(": ")[2].splitlines()[0].rstrip(".") if ": " in errors else "it is damaged"


def _beside(path: Path) -> dict[str, dict[str, Any]]:
    """The settings that stand beside a file, as transformers and timm write them; empty where there are none."""
    return {"settings": _json(path, "config.json"), "preprocessing": _json(path, "preprocessor_config.json")}


def _json(path: Path, name: str) -> dict[str, Any]:
    beside = path.parent / name
    if not beside.is_file():
        return {}
    try:
        found = json.loads(beside.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{beside} is not readable JSON ({error}); restore it, or move the weights away from it."
        ) from error
    return found if isinstance(found, dict) else {}
