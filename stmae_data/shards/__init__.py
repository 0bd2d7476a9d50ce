"""Shards: a tar, its ledger, and the `set.json` that seals a set. Write them, read them by offset, know what they hold.

The tar is written with the standard library. `webdataset.TarWriter` is a thin layer over the same module, and importing it imports
torch (seconds and hundreds of MB for every worker); that sets open in plain `webdataset` is held by a test.
"""

from stmae_data.shards.foreign import ForeignRef, ForeignSet, foreign_set, is_foreign
from stmae_data.shards.index import SampleIndex, sample_index
from stmae_data.shards.ranges import DEFAULT_RANGE_BYTES, Pin, RangeCache, StoreReader
from stmae_data.shards.seal import (
    OWN_KEYS,
    ShardInfo,
    ShardSet,
    commit_ledger,
    count_outcomes,
    fingerprint_path,
    ledger_path,
    on_a_store,
    open_set,
    seal_set,
    set_digest,
    shard_info,
    shard_name,
    shards_on_store,
    store_url,
)
from stmae_data.shards.selected import selected_ids, selection_digest
from stmae_data.shards.tar import Placement, Sample, TarMember, commit_shard, iterate_tar, read_range, sample_json

__all__ = [
    "DEFAULT_RANGE_BYTES",
    "OWN_KEYS",
    "ForeignRef",
    "ForeignSet",
    "Pin",
    "Placement",
    "RangeCache",
    "Sample",
    "SampleIndex",
    "ShardInfo",
    "ShardSet",
    "StoreReader",
    "TarMember",
    "commit_ledger",
    "commit_shard",
    "count_outcomes",
    "fingerprint_path",
    "foreign_set",
    "is_foreign",
    "iterate_tar",
    "ledger_path",
    "on_a_store",
    "open_set",
    "read_range",
    "sample_index",
    "sample_json",
    "seal_set",
    "selected_ids",
    "selection_digest",
    "set_digest",
    "shard_info",
    "shard_name",
    "shards_on_store",
    "store_url",
]
