"""Seconds of finding near hashes and shared ids at scale, brute force beside them in the same run; prints one JSON line.

Run it: `python tests/bench/bench_dedup.py [--hashes 1000000] [--threads 2]`. Hashes are random bits with near pairs planted at 0..40
bits; brute force (numpy, bytes looked up) runs on a part of them and is scaled to all pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import time
from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from stmae_data.dedup.clips import comparing
from stmae_data.dedup.hashes import HotBucket, join_hashes
from stmae_data.dedup.levels import create_pairs, find_pairs_between
from stmae_data.dedup.policy import Policy
from stmae_data.fingerprint import fingerprint_clip

GATE = Policy().gate_bits


def planted(count: int, *, seed: int = 0) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """`count` hashes; the last fiftieth repeat earlier ones with 0..40 bits turned. Returns hashes [N, 4], pairs [M, 2], bits [M]."""
    draw = np.random.default_rng(seed)
    hashes = draw.integers(0, 2**64, (count, 4), dtype=np.uint64)
    copies = count // 50
    pairs = np.stack([draw.integers(0, count // 2, copies), np.arange(count - copies, count)], axis=1)
    bits = draw.integers(0, 41, copies)
    order = draw.random((copies, 256)).argsort(axis=1)
    turned = np.packbits(order < bits[:, None], axis=1).view(np.uint64)
    hashes[pairs[:, 1]] = hashes[pairs[:, 0]] ^ turned
    return hashes, pairs, bits


def timed_join(hashes: NDArray[np.uint64], threads: int) -> tuple[float, float, set[tuple[int, int]], list[HotBucket]]:
    """Wall seconds, processor seconds, pairs found and crowded buckets of one self-join."""
    with comparing(threads=threads, memory_limit="8GB") as connection:
        columns = {f"h{word}": np.ascontiguousarray(hashes[:, word]) for word in range(4)}
        connection.register("given", {"id": np.arange(len(hashes), dtype=np.int32), **columns})
        connection.execute(
            "CREATE TABLE hash AS SELECT *, true AS is_left, true AS is_right, 1 AS num_clips FROM given"
        )
        wall, processor = time.perf_counter(), time.process_time()
        hot = join_hashes(connection, max_bits=GATE, cap=Policy().bucket_cap, is_self=True)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        found = {(a, b) for a, b in connection.execute("SELECT a, b FROM hit").fetchall()}
    return wall, processor, found, hot


def brute_force_seconds(hashes: NDArray[np.uint64]) -> float:
    """All pairs by numpy, measured on 200 x 50,000 and scaled."""
    rows, columns = hashes[:200], hashes[:50_000]
    start = time.perf_counter()
    for row in rows:
        np.flatnonzero(np.bitwise_count(columns ^ row).sum(axis=1) <= GATE)
    return (time.perf_counter() - start) * (len(hashes) / 200) * (len(hashes) / 50_000) / 2


def recalls(found: set[tuple[int, int]], pairs: NDArray[np.int64], bits: NDArray[np.int64]) -> dict[str, float]:
    told = {}
    for low, high in ((0, 10), (11, 20), (21, 31)):
        chosen = pairs[(bits >= low) & (bits <= high)]
        told[f"{low}-{high}"] = round(float(np.mean([(int(a), int(b)) in found for a, b in chosen])), 4)
    return told


def timed_tables(threads: int, train: int, evaluation: int) -> tuple[float, int]:
    """Seconds of the levels id, video and overlap between `train` and `evaluation` rows with intervals, and the pairs found."""
    with comparing(threads=threads) as connection:
        for pool, count, start in ((0, train, 0), (1, evaluation, train)):
            connection.execute(
                f"""INSERT INTO clip (number, pool, row_id, platform, platform_id, start_ms, end_ms)
                    SELECT {start} + i, {pool}, i::VARCHAR, 'youtube', substr(md5((i * {1 if pool == 0 else 27})::VARCHAR), 1, 11),
                           1000 * (i % 200), 1000 * (i % 200) + 10000 FROM range({count}) AS t(i)"""
            )
        create_pairs(connection)
        wall = time.perf_counter()
        find_pairs_between(connection, ("id", "video", "overlap"), left=[0], right=[1])
        wall = time.perf_counter() - wall
        return wall, connection.execute("SELECT count(*) FROM pair").fetchall()[0][0]


def milliseconds(work: Callable[[], Any], repeats: int = 30) -> float:
    work()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) * 1000 / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    cells: list[dict[str, Any]] = []
    for count in sorted({options.hashes // 4, options.hashes}):
        hashes, pairs, bits = planted(count)
        wall, processor, found, hot = timed_join(hashes, options.threads)
        brute = brute_force_seconds(hashes)
        cells.append(
            {
                "what": "self-join within 31 bits, seconds",
                "size": str(count),
                "dtype": "256 bit",
                "ours": round(wall, 2),
                "processor_seconds": round(processor, 2),
                "recall": recalls(found, pairs, bits),
                "hot_buckets": len(hot),
                "peers": {"numpy brute force (scaled)": round(brute), "faiss": None, "why": "absent"},
                "ratio_to_best_peer": round(brute / wall, 1),
            }
        )
    growth = math.log(cells[-1]["processor_seconds"] / cells[0]["processor_seconds"]) / math.log(4)
    hashes, _, _ = planted(options.hashes // 4)
    crowd = min(100_000, len(hashes) // 2)
    hashes[:crowd, 0] = np.uint64(0x1234_5678_9ABC_DEF0)  # as many frames share four of sixteen bands
    wall, processor, found, hot = timed_join(hashes, options.threads)
    cells.append(
        {
            "what": "the same with crowded buckets, seconds",
            "size": f"{len(hashes)}, {crowd} in one bucket",
            "dtype": "256 bit",
            "ours": round(wall, 2),
            "processor_seconds": round(processor, 2),
            "hot_buckets": [bucket.num_hashes for bucket in hot],
        }
    )
    wall, count = timed_tables(options.threads, 545_000, 20_000)
    cells.append(
        {"what": "id, video, overlap, seconds", "size": "545000 x 20000", "ours": round(wall, 3), "pairs": count}
    )
    frames = np.random.default_rng(0).integers(0, 256, (16, 64, 64), dtype=np.uint8)
    times = np.arange(16, dtype=np.int64) * 125
    cells.append(
        {
            "what": "fingerprint of a clip, ms",
            "size": "16 frames",
            "ours": round(milliseconds(lambda: fingerprint_clip(frames, times)), 3),
        }
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    machine = {
        "cpus": os.cpu_count(),
        "threads": options.threads,
        "platform": platform.platform(),
        "load": os.getloadavg()[0],
    }
    versions = {"python": platform.python_version(), "numpy": np.__version__, "duckdb": duckdb.__version__}
    print(
        json.dumps(
            {
                "machine": machine,
                "versions": versions,
                "peak_mib": memory,
                "growth_exponent": round(growth, 2),
                "cells": cells,
            }
        )
    )


if __name__ == "__main__":
    main()
