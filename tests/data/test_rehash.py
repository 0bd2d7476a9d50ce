"""Fingerprints of a set that stands: what lacks is made from the stored clips, what is current is kept, nothing else changes."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from stmae_data import files
from stmae_data.build import BuildRequest, build
from stmae_data.errors import Busy, ClipRejected, SetError
from stmae_data.fingerprint import ALGORITHM
from stmae_data.manifest import load_manifest
from stmae_data.rehash import fingerprint_set
from stmae_data.shards import open_set
from stmae_data.verify import verify


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, video_writer: Callable[..., None]) -> Path:
    """A set `films` of five clips in two shards, one of them from a fast camera: 18 frames, 9 as stored."""
    root = tmp_path_factory.mktemp("films")
    for number in range(4):
        video_writer(root / "raw" / "train" / f"{number}.mp4", number=number, num_frames=30, width_px=96)
    video_writer(root / "raw" / "train" / "fast.mp4", number=9, num_frames=18, width_px=96, fps=60)
    (root / "films.toml").write_text(
        'name = "films"\nrelease = "1"\nkind = "folder"\nshort_side_px = 64\nclips_per_shard = 3\n[splits.train]\n'
    )
    build(BuildRequest(workspace=root, manifest=load_manifest(root / "films.toml"), roots=(root / "raw",)))
    return root


@pytest.fixture
def workspace(built: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(built / "sets", tmp_path / "sets")
    return tmp_path


def prints(workspace: Path) -> dict[tuple[str, str], np.ndarray[Any, Any]]:
    """The first hash of every clip and view, as bits."""
    tables = sorted((workspace / "sets" / "films" / "meta" / "fingerprints").glob("*.parquet"))
    query = "SELECT clip_id, view::VARCHAR AS view, hash0, hash1, hash2, hash3 FROM book WHERE time_ms = 0"
    return {
        (row["clip_id"], row["view"]): np.unpackbits(
            np.array([row[f"hash{word}"] for word in range(4)], ">u8").view(np.uint8)
        )
        for row in files.read_table(tables, query)
    }


def tables(workspace: Path) -> list[Path]:
    return sorted((workspace / "sets" / "films" / "meta" / "fingerprints").glob("*.parquet"))


def age(path: Path, where: str) -> None:
    """Let rows of a table be of an older algorithm."""
    connection = files.connect()
    try:
        connection.execute("CREATE TABLE t AS SELECT * FROM read_parquet(?)", [str(path)])
        connection.execute(f"UPDATE t SET algorithm = 'older/0' WHERE {where}")
        files.copy_table(connection, "SELECT * FROM t ORDER BY rowid", path, point="test")
    finally:
        connection.close()


def test_missing_fingerprints_are_made_from_the_stored_clips(workspace: Path, small_sets: ModuleType) -> None:
    before, was = prints(workspace), small_sets.snapshot(workspace / "sets" / "films")
    for path in tables(workspace):
        path.unlink()
    seen: list[tuple[str, int, int]] = []
    report = fingerprint_set(workspace, "films", progress=lambda *told: seen.append(told))
    assert (report.num_made, report.num_kept, report.num_shards) == (5, 0, 2)
    assert seen[-1] == ("fingerprint", 5, 5)
    after = prints(workspace)
    assert {clip for clip, _ in after} == {clip for clip, _ in before} and len({clip for clip, _ in after}) == 5
    full = [int((before[key] != after[key]).sum()) for key in before if key[1] == "full"]
    assert len(full) == 5 and max(full) <= 24, full  # a stored picture against its source: far below any threshold
    now = small_sets.snapshot(workspace / "sets" / "films")
    assert {name for name in was if was[name] != now[name]} <= {
        str(p.relative_to(workspace / "sets" / "films")) for p in tables(workspace)
    }
    assert open_set(workspace, "films").version == 1 and verify(workspace, "films").ok


def test_only_what_is_old_is_made_again(workspace: Path, small_sets: ModuleType) -> None:
    assert fingerprint_set(workspace, "films").num_made == 0
    first, second = tables(workspace)
    was = files.sha256_file(second)
    (clip, *others) = sorted({row["clip_id"] for row in files.read_table(first)})
    kept = {other: rows_of(first, other) for other in others}
    age(first, f"clip_id = '{clip}'")
    planned = fingerprint_set(workspace, "films", dry_run=True)
    assert (planned.num_made, planned.num_kept, planned.num_shards) == (1, 4, 1)
    report = fingerprint_set(workspace, "films")
    assert (report.num_made, report.num_kept) == (1, 4)
    assert {row["algorithm"] for row in files.read_table(first)} == {ALGORITHM}
    assert {other: rows_of(first, other) for other in others} == kept
    assert files.sha256_file(second) == was


def rows_of(path: Path, clip: str) -> list[dict[str, Any]]:
    return files.read_table(path, "SELECT * FROM book WHERE clip_id = ? ORDER BY view, time_ms", [clip])


def test_killed_while_writing_the_same_command_finishes(
    workspace: Path, small_sets: ModuleType, tmp_path: Path
) -> None:
    for path in tables(workspace):
        path.unlink()
    clean = tmp_path / "clean"
    shutil.copytree(workspace / "sets", clean / "sets")
    fingerprint_set(clean, "films", workers=2)
    wanted = small_sets.snapshot(clean / "sets")
    code = "import sys; from pathlib import Path; from stmae_data.rehash import fingerprint_shard; fingerprint_shard({'folder': sys.argv[1], 'name': 'train-000000'}, print)"
    environment = {**os.environ, "STMAE_FAULT": "fingerprints.rename:1"}
    folder = workspace / "sets" / "films"
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, check=False)
    assert ended.returncode == -9 and list(folder.rglob(".tmp-*"))
    fingerprint_set(workspace, "films")
    assert small_sets.snapshot(workspace / "sets") == wanted


def test_stored_pictures_are_hashed_as_at_build() -> None:
    from PIL import Image

    from stmae_data.fingerprint import fingerprint_clip
    from stmae_data.rehash import _hash_frames

    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).resize((96, 80)).save(buffer, "JPEG", quality=95)
    frames, times = _hash_frames(buffer.getvalue(), {"media_kind": "image", "clip_id": "x"})
    assert frames.shape == (1, 64, 64) and times.tolist() == [0]
    assert len(fingerprint_clip(frames, times)) >= 2
    with pytest.raises(ClipRejected):
        _hash_frames(b"no picture", {"media_kind": "image", "clip_id": "x"})


def test_a_stored_clip_that_was_changed_is_told(workspace: Path) -> None:
    path = tables(workspace)[0]
    path.unlink()
    tar = workspace / "sets" / "films" / f"{path.stem}.tar"
    data = bytearray(tar.read_bytes())
    (row,) = files.read_table(
        open_set(workspace, "films").ledgers()[:1],
        "SELECT * FROM book WHERE outcome = 'written' ORDER BY ordinal LIMIT 1",
    )
    data[row["media_offset"] + 100] ^= 255
    tar.write_bytes(data)
    with pytest.raises(SetError, match=f"{row['clip_id']} in {tar.name} is not what its ledger says; verify the set"):
        fingerprint_set(workspace, "films")


def test_the_second_writer_is_told_to_wait_and_no_set_is_told(workspace: Path) -> None:
    lock = workspace / "sets" / "films" / "meta" / "LOCK"
    with files.lock(lock, what="x"), pytest.raises(Busy, match="Set films is being written by process"):
        fingerprint_set(workspace, "films")
    with pytest.raises(SetError, match="There is no set 'nothing'"):
        fingerprint_set(workspace, "nothing")
