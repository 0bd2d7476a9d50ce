"""What can go wrong in training.

StmaeTrainError              exit 1, one sentence: what, where, found and wanted, next step
├── ConfigError              unknown key, wrong type, impossible combination
├── ModelError               weights that do not fit a model, shapes that do not fit a grid
├── CheckpointError          no usable checkpoint, damaged checkpoint
├── DataMismatch             a set, selection or digest that is not what the run was started with
├── TrainingStopped          the loss or gradient stayed non-finite
├── StudyError               a study file that cannot be planned or run
├── RunBusy                  exit 75: another process writes this run folder
└── RunInterrupted           exit 128 + signal
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataMismatch",
    "ModelError",
    "RunBusy",
    "RunInterrupted",
    "StmaeTrainError",
    "StudyError",
    "TrainingStopped",
]


class StmaeTrainError(Exception):
    """A user or data error in training, told in one sentence."""

    exit_code = 1


class ConfigError(StmaeTrainError):
    """A recipe or config that does not say what it must."""


class ModelError(StmaeTrainError):
    """Weights or shapes that do not fit."""


class CheckpointError(StmaeTrainError):
    """No checkpoint, or a damaged one."""


class DataMismatch(StmaeTrainError):
    """The data is not what this run was started with."""


class TrainingStopped(StmaeTrainError):
    """Training stopped itself; nothing that was saved is lost."""


class StudyError(StmaeTrainError):
    """A study file that cannot be planned or run."""


class RunBusy(StmaeTrainError):
    """Another process writes this run folder."""

    exit_code = 75


class RunInterrupted(StmaeTrainError):
    """A signal asked us to stop; a checkpoint was written first."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"Stopped by signal {signal_number} after a checkpoint; go on with --resume.")
        self.exit_code = 128 + signal_number
