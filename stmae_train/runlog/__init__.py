"""The run folder: who writes it, what it read, what happened, what it cost (FORMATS.md, "A run on disk")."""

from stmae_train.runlog.common import commit_in_common, sweep_common
from stmae_train.runlog.costs import Flops, forward_flops, train_flops
from stmae_train.runlog.folder import RunFolder, commit, last_loss, read_records, runs_status
from stmae_train.runlog.meter import Meter, StepRecord, StopSignals, Stopwatch, peak_memory_bytes
from stmae_train.runlog.pages import (
    SCORE_COLUMNS,
    cost_facts,
    data_entry,
    foreign_entry,
    write_card,
    write_scores,
    write_vectors,
)
from stmae_train.runlog.scaling import LossScale
from stmae_train.runlog.track import TRACKERS, Track
from stmae_train.runlog.updates import Guard, Update, autocast, backward, peak_flops, update_weights

__all__ = [
    "SCORE_COLUMNS",
    "TRACKERS",
    "Flops",
    "Guard",
    "LossScale",
    "Meter",
    "RunFolder",
    "StepRecord",
    "StopSignals",
    "Stopwatch",
    "Track",
    "Update",
    "autocast",
    "backward",
    "commit",
    "commit_in_common",
    "cost_facts",
    "data_entry",
    "foreign_entry",
    "forward_flops",
    "last_loss",
    "peak_flops",
    "peak_memory_bytes",
    "read_records",
    "runs_status",
    "sweep_common",
    "train_flops",
    "update_weights",
    "write_card",
    "write_scores",
    "write_vectors",
]
