"""From sets to batches: order, decoding, the decoded cache, crops. Start at `batches`."""

from stmae_data.shards import DEFAULT_RANGE_BYTES
from stmae_train.loader.advice import Advisor, advice
from stmae_train.loader.batch import Batch, CropRule, weights_of
from stmae_train.loader.batches import SweepLoader, TrainLoader, dividing_sizes
from stmae_train.loader.cache import DEFAULT_CACHE_BYTES
from stmae_train.loader.order import Mix, permute
from stmae_train.loader.reader import ReadOptions
from stmae_train.loader.source import ClipSource, check_labels, open_sources
from stmae_train.loader.workers import Spent

__all__ = [
    "DEFAULT_CACHE_BYTES",
    "DEFAULT_RANGE_BYTES",
    "Advisor",
    "Batch",
    "ClipSource",
    "CropRule",
    "Mix",
    "ReadOptions",
    "Spent",
    "SweepLoader",
    "TrainLoader",
    "advice",
    "check_labels",
    "dividing_sizes",
    "open_sources",
    "permute",
    "weights_of",
]
