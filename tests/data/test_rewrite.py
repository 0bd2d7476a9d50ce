"""Rewriting: only touched shards change, every kill ends with the same bytes, a new set leaves the old one alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from stmae_data import files
from stmae_data.errors import Busy, Reason, SetError
from stmae_data.records import SetRef
from stmae_data.rewrite import Verdict, finish_rewrite, rewrite
from stmae_data.shards import open_set, sample_index
from stmae_data.verify import verify

SCRIPT = """
import sys
from pathlib import Path
from stmae_data.errors import Reason
from stmae_data.rewrite import Verdict, rewrite
workspace, to, *rows = sys.argv[1:]
verdicts = [Verdict(row, Reason.DUPLICATE, "d" * 32, "other", "test") for row in rows]
rewrite(Path(workspace), "tiny", verdicts, run_id="r1", to=to or None)
"""


@pytest.fixture
def tiny(workspace: Path, small_sets: ModuleType) -> Path:
    clips = [small_sets.clip("train", number) for number in range(10)] + [small_sets.clip("val", n) for n in range(3)]
    folder: Path = small_sets.make(workspace, "tiny", clips)
    return folder


def written(folder: Path) -> list[dict[str, object]]:
    books = sorted((folder / "meta" / "ledger").glob("*.parquet"))
    return files.read_table(books, "SELECT * FROM book WHERE outcome = 'written' ORDER BY shard, ordinal")


def verdicts(rows: list[dict[str, object]]) -> list[Verdict]:
    return [Verdict(str(row["row_id"]), Reason.DUPLICATE, "d" * 32, "other", "test") for row in rows]


def run(workspace: Path, rows: list[dict[str, object]], *, to: str = "", fault: str | None = None) -> int:
    environment = {**os.environ, **({"STMAE_FAULT": fault} if fault else {})}
    arguments = [sys.executable, "-c", SCRIPT, str(workspace), to, *(str(row["row_id"]) for row in rows)]
    return subprocess.run(arguments, env=environment, capture_output=True, check=False).returncode


def test_only_touched_shards_change_and_the_set_stays_sound(workspace: Path, tiny: Path) -> None:
    before, rows = open_set(workspace, "tiny"), written(tiny)
    going = [row for row in rows if row["shard"] == "train-000001"][1:3]
    report = rewrite(workspace, "tiny", verdicts(going), run_id="r1")
    after = open_set(workspace, "tiny")
    assert (report.version, after.version, report.num_removed, report.num_shards_rewritten) == (2, 2, 2, 1)
    assert after.digest == report.digest != before.digest
    changed = {a.name for a, b in zip(before.shards, after.shards, strict=True) if a.sha256 != b.sha256}
    assert changed == {"train-000001"}
    assert after.seal["counts"] == {
        "planned": 13,
        "written": 11,
        "dropped": 2,
        "failed": 0,
        "reasons": {"duplicate": 2},
    }
    assert verify(workspace, "tiny").ok
    gone = {row["clip_id"] for row in going}
    assert gone.isdisjoint(sample_index(workspace, SetRef("tiny")).clip_ids)
    prints = files.read_table(tiny / "meta" / "fingerprints" / "train-000001.parquet")
    assert {row["clip_id"] for row in prints} == {r["clip_id"] for r in rows if r["shard"] == "train-000001"} - gone
    removed = files.read_table(tiny / "meta" / "removed.parquet")
    assert {row["clip_id"] for row in removed} == gone
    assert {(row["set_version_before"], row["set_version_after"]) for row in removed} == {(1, 2)}


def test_rows_say_why_they_went_and_lose_their_place(workspace: Path, tiny: Path) -> None:
    row = written(tiny)[0]
    rewrite(workspace, "tiny", verdicts([row]), run_id="r1")
    query = "SELECT * FROM book WHERE row_id = ?"
    now = files.read_table(tiny / "meta" / "ledger" / f"{row['shard']}.parquet", query, [row["row_id"]])[0]
    assert (now["outcome"], now["reason"], now["decision_id"]) == ("dropped", "duplicate", "d" * 32)
    assert now["duplicate_of"] == "other" and now["media_offset"] is None and now["source_sha256"]


def test_removed_bytes_occur_nowhere_in_the_set(workspace: Path, tiny: Path) -> None:
    row = written(tiny)[0]
    descriptor = os.open(tiny / f"{row['shard']}.tar", os.O_RDONLY)
    media = os.pread(descriptor, int(str(row["media_bytes"])), int(str(row["media_offset"])))
    os.close(descriptor)
    rewrite(workspace, "tiny", verdicts([row]), run_id="r1")
    assert all(media not in path.read_bytes() for path in tiny.rglob("*") if path.is_file())


def test_the_same_verdicts_twice_change_nothing_more(workspace: Path, tiny: Path, small_sets: ModuleType) -> None:
    rows = written(tiny)[:2]
    rewrite(workspace, "tiny", verdicts(rows), run_id="r1")
    once = small_sets.snapshot(tiny)
    assert rewrite(workspace, "tiny", verdicts(rows), run_id="r1").num_removed == 0
    assert small_sets.snapshot(tiny) == once


def test_a_new_set_leaves_its_source_untouched_and_links_what_did_not_change(
    workspace: Path, tiny: Path, small_sets: ModuleType
) -> None:
    before, rows = small_sets.snapshot(tiny), written(tiny)
    going = [row for row in rows if row["shard"] == "train-000000"][:1]
    report = rewrite(workspace, "tiny", verdicts(going), run_id="r1", to="clean")
    assert small_sets.snapshot(tiny) == before
    made = open_set(workspace, "clean")
    assert (made.version, made.digest) == (1, report.digest)
    assert made.seal["parents"] == [{"name": "tiny", "version": 1, "digest": open_set(workspace, "tiny").digest}]
    assert (made.folder / "val-000000.tar").stat().st_ino == (tiny / "val-000000.tar").stat().st_ino
    assert (made.folder / "train-000000.tar").stat().st_ino != (tiny / "train-000000.tar").stat().st_ino
    assert verify(workspace, "clean").ok
    again = small_sets.snapshot(made.folder)
    assert rewrite(workspace, "tiny", verdicts(going), run_id="r1", to="clean").digest == made.digest
    assert small_sets.snapshot(made.folder) == again


def test_a_name_that_is_taken_is_refused(workspace: Path, tiny: Path, small_sets: ModuleType) -> None:
    small_sets.make(workspace, "other", [small_sets.clip("train", 50)])
    with pytest.raises(SetError, match="There is a set other already"):
        rewrite(workspace, "tiny", [], run_id="r1", to="other")
    with pytest.raises(SetError, match="cannot be written over its source"):
        rewrite(workspace, "tiny", [], run_id="r1", to="tiny")


def test_verdicts_on_another_state_of_the_set_are_refused(workspace: Path, tiny: Path) -> None:
    with pytest.raises(SetError, match="has changed since it was compared"):
        rewrite(workspace, "tiny", verdicts(written(tiny)[:1]), run_id="r1", expected_digest="0" * 64)
    assert open_set(workspace, "tiny").version == 1


def test_the_second_writer_is_told_to_wait(workspace: Path, tiny: Path) -> None:
    with files.lock(tiny / "meta" / "LOCK", what="Set tiny"), pytest.raises(Busy, match="is being written by process"):
        rewrite(workspace, "tiny", verdicts(written(tiny)[:1]), run_id="r1")


ALL_STEPS = [
    f"{point}.{step}:{number}"
    for point, number in (("intent", 1), ("shard", 2), ("fingerprints", 2), ("ledger", 1), ("removed", 1), ("seal", 1))
    for step in ("write", "rename", "done")
]
BATTERY = pytest.mark.battery


@pytest.mark.parametrize(
    ("to", "steps"),
    [
        ("", ["intent.done:1", "shard.done:2", "ledger.rename:1", "seal.done:1"]),
        ("clean", ["carry.done:3", "shard.done:1", "ledger.done:1"]),
        pytest.param("", [*ALL_STEPS, "intent_done.remove:1"], marks=BATTERY),
        pytest.param("clean", [*ALL_STEPS, "carry.link:2", "intent_done.remove:1"], marks=BATTERY),
    ],
)
def test_killed_anywhere_a_rerun_ends_with_the_same_bytes(
    workspace: Path, tiny: Path, small_sets: ModuleType, tmp_path: Path, to: str, steps: list[str]
) -> None:
    rows = written(tiny)
    going = [rows[0], rows[5], rows[6]]  # two shards
    clean = tmp_path / "clean"
    shutil.copytree(workspace, clean)
    assert run(clean, going, to=to) == 0
    wanted = small_sets.snapshot(clean / "sets" / (to or "tiny"))
    for step in steps:
        killed = tmp_path / step.replace(":", "-")
        shutil.copytree(workspace, killed)
        assert run(killed, going, to=to, fault=step) == -9, step
        rewrite(killed, "tiny", verdicts(going), run_id="r1", to=to or None)
        assert small_sets.snapshot(killed / "sets" / (to or "tiny")) == wanted, step
        shutil.rmtree(killed)


def test_a_full_disk_leaves_a_set_that_a_rerun_finishes(workspace: Path, tiny: Path, small_sets: ModuleType) -> None:
    rows = written(tiny)[:1]
    assert run(workspace, rows, fault="shard.write:1:ENOSPC") == 1
    assert (tiny / "meta" / "rewrite.json").exists() and not list(tiny.rglob(".tmp-*"))
    assert finish_rewrite(workspace, "tiny") and not finish_rewrite(workspace, "tiny")
    assert open_set(workspace, "tiny").version == 2
