"""A film that many spans are cut from is hashed once; a file that changed, or has no name, is always read."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from stmae_data.build import BuildRequest, build
from stmae_data.build.plan import load_plan
from stmae_data.build.work import build_shard
from stmae_data.encode import Encoding
from stmae_data.manifest import load_manifest
from stmae_data.media import hash_once, hashing, open_source, source_of_bytes


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes of what was read to the end, by this process."""
    done: list[str] = []
    whole = hashing.hash_descriptor

    def counted(descriptor: int) -> str:
        done.append(whole(descriptor))
        return done[-1]

    monkeypatch.setattr(hashing, "hash_descriptor", counted)
    monkeypatch.setattr(hashing, "_known", hashing.OrderedDict())
    return done


def hash_of(path: Path) -> str:
    with open_source(path) as descriptor:
        return hash_once(descriptor)


def test_a_file_is_hashed_again_when_it_changed(tmp_path: Path, read: list[str]) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"one")
    for number, data in enumerate((b"one", b"one", b"two", b"two")):
        if data != path.read_bytes():
            path.write_bytes(data)
            os.utime(path, ns=(number, number))  # its size is the same, and its times must not be so by chance
        assert hash_of(path) == hashlib.sha256(data).hexdigest()
    assert len(read) == 2
    path.with_name("copy.mp4").write_bytes(b"two")
    assert hash_of(path.with_name("copy.mp4")) == hash_of(path) and len(read) == 3


def test_bytes_in_memory_are_always_read(read: list[str]) -> None:
    for data in (b"one", b"two", b"two"):
        with source_of_bytes(data) as descriptor:
            assert hash_once(descriptor) == hashlib.sha256(data).hexdigest()
    assert len(read) == 3


def test_what_was_asked_for_longest_ago_is_forgotten(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_MOST_KNOWN", 2)
    for name in "abc":
        (tmp_path / name).write_text(name)
    for name in "abacab":
        hash_of(tmp_path / name)
    assert read == [hashlib.sha256(name.encode()).hexdigest() for name in "abcb"]


def test_the_film_of_many_spans_is_hashed_once(tmp_path: Path, read: list[str], video_writer: Any) -> None:
    video_writer(tmp_path / "raw" / "film.mp4", number=1, num_frames=60, width_px=96)
    (tmp_path / "spans.toml").write_text('name = "spans"\nrelease = "1"\nkind = "table"\n[splits.train]\n')
    (tmp_path / "spans.csv").write_text("path,start,end\nfilm.mp4,0,1\nfilm.mp4,0.5,1.5\nfilm.mp4,1,2\n")
    manifest = load_manifest(tmp_path / "spans.toml")
    request = BuildRequest(
        tmp_path, manifest, (tmp_path / "raw",), (tmp_path / "spans.csv",), encoding=Encoding("fast", 64)
    )
    assert build(request).counts["written"] == 3
    assert len(read) == 1  # of the plan

    read.clear()
    hashing._known.clear()
    folder = tmp_path / "sets" / "spans"
    plan = load_plan(folder)
    assert plan is not None
    shutil.rmtree(folder / "meta" / "ledger")
    task = {"folder": str(folder), "name": "train-000000", "plan": "plan.parquet", **plan.task_settings()}
    assert build_shard(task, lambda _: None)["written"] == 3
    assert len(read) == 1
