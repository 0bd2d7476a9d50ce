"""What is logged, shown in TensorBoard too: the same records, under the run folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from stmae_train.errors import ConfigError
from stmae_train.runlog.meter import StepRecord

__all__ = ["TRACKERS", "Track"]

TRACKERS = ("tensorboard",)
_SCALARS = ("loss", "lr", "grad_norm", "clips_per_second", "wait_share", "mfu", "memory_bytes")


class Track:
    """One run in a tracker. Use as a context manager.

    Args:
        kind: of `TRACKERS`; None tracks nothing.
        folder: the run; events go to `<folder>/<kind>`.
        after: records of later steps than this one, left by an interrupted run, are not shown.

    Raises:
        ConfigError: an unknown tracker, or its package is not installed.
    """

    def __init__(self, kind: str | None, folder: Path, *, after: int) -> None:
        self._writer: Any = None if kind is None else _open(kind)(log_dir=str(folder / kind), purge_step=after + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, record: StepRecord) -> None:
        """Show a record; what it does not know is left out."""
        if self._writer is None:
            return
        for name, value in self.scalars(record).items():
            self._writer.add_scalar(f"train/{name}", value, global_step=record.step)

    @staticmethod
    def scalars(record: StepRecord) -> Mapping[str, float]:
        """The numbers of a record that are shown."""
        values = record.values()
        return {name: values[name] for name in _SCALARS if values[name] is not None}

    def told_too(self, watch: Callable[[StepRecord], None] | None) -> Callable[[StepRecord], None]:
        """A watcher of records that tells the tracker and then another watcher."""

        def both(record: StepRecord) -> None:
            self.add(record)
            if watch is not None:
                watch(record)

        return both

    def add_pictures(self, paths: Sequence[Path], *, step: int) -> None:
        """Show PNG files under their names."""
        if self._writer is None:
            return
        for path in paths:
            with Image.open(path) as opened:
                pixels = np.asarray(opened.convert("RGB"))
            self._writer.add_image(f"pictures/{path.stem}", pixels, global_step=step, dataformats="HWC")


def _open(kind: str) -> Any:
    if kind not in TRACKERS:
        raise ConfigError(f"There is no tracker {kind!r}; choose one of {', '.join(TRACKERS)}.")
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"--track tensorboard needs the package tensorboard, which cannot be imported here ({error}); install it: pip install 'stmae[track]'."
        ) from error
