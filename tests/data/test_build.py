"""A build ends the same however it went: workers, kills, reruns; and every planned row has one outcome."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from stmae_data import files
from stmae_data.build import BuildReport, BuildRequest, build
from stmae_data.encode import Encoding
from stmae_data.engines import run_tasks
from stmae_data.errors import Busy, ManifestError, SetError, SourceError
from stmae_data.manifest import load_manifest
from stmae_data.report import render_report
from stmae_data.shards import open_set
from stmae_data.verify import verify


def build_tiny(workspace: Path, tree: Path, **options: object) -> BuildReport:
    return build(BuildRequest(workspace, load_manifest(str(tree / "tiny.toml")), **options))  # type: ignore[arg-type]


def fingerprint_of(folder: Path) -> dict[str, str]:
    """sha256 of every file of a set that must repeat: all but the lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("LOCK", "LOCK.jobs")
    }


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, kinetics_tree: Path) -> tuple[Path, BuildReport]:
    workspace = tmp_path_factory.mktemp("clean")
    return workspace, build_tiny(workspace, kinetics_tree, workers=1)


def test_a_build_conserves_every_row_and_verifies(clean: tuple[Path, BuildReport]) -> None:
    workspace, report = clean
    counts = report.counts
    assert (counts["planned"], counts["written"], counts["dropped"], counts["failed"]) == (12, 12, 0, 0)
    assert verify(workspace, "tiny").as_json()["damages"] == []
    found = open_set(workspace, "tiny")
    assert [shard.name for shard in found.of_split("val")] == ["val-000000", "val-000001"]
    assert len(found.of_split("train")) == 3
    assert report.as_json().keys() == {
        "set", "version", "digest", "planned", "written", "dropped", "failed", "reasons", "shards", "seconds",
    }  # fmt: skip


def test_samples_carry_clip_ids_and_labels(clean: tuple[Path, BuildReport]) -> None:
    workspace, _ = clean
    rows = files.read_table(open_set(workspace, "tiny").ledgers(), "SELECT * FROM book ORDER BY clip_id")
    first = rows[0]
    assert first["clip_id"] == "-idtr000000_000000_000010"
    assert (first["annotations"][0]["label_raw"], first["annotations"][0]["label_index"]) == ("air drumming", 0)
    assert first["encode_mode"] == "layered" and first["stored_num_frames"] == 20
    assert all(row["outcome"] == "written" and row["reason"] is None for row in rows)


def test_what_a_dead_worker_half_wrote_is_gone_when_the_set_is_sealed(
    workspace: Path, kinetics_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_and_leave(
        target: str, tasks: Sequence[Mapping[str, Any]], **given: Any
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        (Path(tasks[0]["folder"]) / ".tmp-9-ab-train-000000.tar").write_bytes(b"half")
        yield from run_tasks(target, tasks, **given)

    monkeypatch.setattr("stmae_data.build.run_tasks", run_and_leave)
    build_tiny(workspace, kinetics_tree)
    assert not list((workspace / "sets" / "tiny").rglob(".tmp-*")) and verify(workspace, "tiny").ok


def test_both_sides_of_the_annotations_stand_in_the_report(
    workspace: Path, kinetics_tree: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(kinetics_tree, tree)
    gone, broken = sorted((tree / "train").rglob("*.mp4"))[:2]
    gone.unlink()
    broken.write_bytes(b"no video at all")
    report = build_tiny(workspace, tree)
    assert report.counts["reasons"] == {"not_media": 1}
    books = files.read_table(workspace / "sets" / "tiny" / "meta" / "reconciliation.parquet")
    train = [row for row in books if row["split"] == "train"]
    assert [sum(row[key] for row in train) for key in ("annotated", "present", "missing", "failed")] == [8, 7, 1, 1]
    page = render_report(workspace, "tiny").read_text()
    cells = re.search(r"<th scope=\"row\">train</th>((?:<td>[^<]*</td>)+)", page[page.index("Annotated and found") :])
    assert cells is not None and re.findall(r"<td>([^<]*)</td>", cells[1]) == ["8", "7", "1", "0", "0", "1"]
    assert "Classes that lost most" in page


def test_classes_built_one_after_another_are_all_counted(workspace: Path, kinetics_tree: Path) -> None:
    for label in ("zumba", "air drumming"):
        build_tiny(workspace, kinetics_tree, classes=(label,))
    books = files.read_table(workspace / "sets" / "tiny" / "meta" / "reconciliation.parquet")
    lines = [(row["split"], row["label"], row["annotated"], row["missing"]) for row in books]
    assert sorted(lines) == [
        ("train", "air drumming", 3, 0),
        ("train", "zumba", 2, 0),
        ("val", "air drumming", 2, 0),
        ("val", "zumba", 1, 0),
    ]


def test_two_workers_give_the_same_bytes(clean: tuple[Path, BuildReport], workspace: Path, kinetics_tree: Path) -> None:
    build_tiny(workspace, kinetics_tree, workers=2)
    assert fingerprint_of(workspace / "sets" / "tiny") == fingerprint_of(clean[0] / "sets" / "tiny")


def test_a_rerun_writes_nothing(clean: tuple[Path, BuildReport], kinetics_tree: Path) -> None:
    workspace, report = clean
    before = {
        path: path.stat().st_mtime_ns
        for path in (workspace / "sets").rglob("*")
        if path.is_file() and path.name not in ("LOCK", "LOCK.jobs")
    }
    again = build_tiny(workspace, kinetics_tree)
    assert (again.digest, again.version, again.counts) == (report.digest, 1, report.counts)
    assert before == {path: path.stat().st_mtime_ns for path in before}


BOOKS = ("plan-settings", "plan", "shard", "fingerprints", "ledger", "seal")
QUICK = {"plan.done", "shard.rename", "ledger.rename", "ledger.done", "seal.rename"}
POINTS = [
    pytest.param(f"{book}.{step}", marks=() if f"{book}.{step}" in QUICK else pytest.mark.battery)
    for book in BOOKS
    for step in ("write", "fsync", "rename", "done")
]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_a_rerun_ends_with_the_same_bytes(
    clean: tuple[Path, BuildReport], workspace: Path, kinetics_tree: Path, point: str
) -> None:
    command = [
        sys.executable,
        "-m",
        "stmae_cli.data",
        "build",
        str(kinetics_tree / "tiny.toml"),
        "-w",
        str(workspace),
        "--workers",
        "1",
    ]
    # A worker killed at one point three times ends the build; the coordinator killed there just dies. Both are stops.
    killed = subprocess.run(command, env={**os.environ, "STMAE_FAULT": f"{point}:1"}, capture_output=True)
    assert killed.returncode in (-signal.SIGKILL, 1), killed.stderr
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert fingerprint_of(workspace / "sets" / "tiny") == fingerprint_of(clean[0] / "sets" / "tiny")


def test_a_full_disk_ends_with_74_and_no_half_file(
    workspace: Path, kinetics_tree: Path, clean: tuple[Path, BuildReport]
) -> None:
    command = [sys.executable, "-m", "stmae_cli.data", "build", str(kinetics_tree / "tiny.toml"), "-w", str(workspace)]
    ended = subprocess.run(
        command, env={**os.environ, "STMAE_FAULT": "shard.fsync:1:ENOSPC"}, capture_output=True, text=True
    )
    assert ended.returncode == 74
    assert "No space left on device" in ended.stderr and "Traceback" not in ended.stderr
    assert not list(workspace.rglob("*.tar"))
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert fingerprint_of(workspace / "sets" / "tiny") == fingerprint_of(clean[0] / "sets" / "tiny")


def test_a_second_build_of_one_set_is_told_who_holds_it(workspace: Path, kinetics_tree: Path) -> None:
    told = rf"Set tiny is being written by process {os.getpid()}"
    with files.lock(workspace / "sets" / "tiny" / "meta" / "LOCK", what="x"), pytest.raises(Busy, match=told):
        build_tiny(workspace, kinetics_tree)


def test_new_files_are_appended_behind_untouched_shards(workspace: Path, kinetics_tree: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(kinetics_tree, tree)
    moved = sorted((tree / "train").rglob("*.mp4"))[:3]
    for path in moved:
        path.rename(tmp_path / path.name)
    first = build_tiny(workspace, tree)
    before = fingerprint_of(workspace / "sets" / "tiny")
    for path in moved:
        (tmp_path / path.name).rename(path)
    second = build_tiny(workspace, tree)
    assert (first.counts["planned"], second.counts["planned"], second.version) == (9, 12, 2)
    after = fingerprint_of(workspace / "sets" / "tiny")
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"meta/plan.json", "meta/plan.parquet", "meta/set.json", "meta/reconciliation.parquet"}
    assert verify(workspace, "tiny").ok


def test_other_settings_for_a_standing_set_are_refused(clean: tuple[Path, BuildReport], kinetics_tree: Path) -> None:
    with pytest.raises(SetError, match=r"was planned with encoding 'layered', this build wants 'fast'.*--name"):
        build_tiny(clean[0], kinetics_tree, encoding=Encoding(mode="fast", short_side_px=64))


def test_every_bad_file_has_a_row_and_bytes_twice_are_a_duplicate(
    workspace: Path, kinetics_tree: Path, tmp_path: Path, trap: Callable[..., None]
) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    good = next((kinetics_tree / "train").rglob("*.mp4"))
    (folder / "a.mp4").write_bytes(good.read_bytes())
    (folder / "b.mp4").write_bytes(good.read_bytes())
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video here\n")
    (folder / "link.mp4").symlink_to(good)
    os.mkfifo(folder / "pipe.mp4")
    (folder / "cut.mp4").write_bytes(good.read_bytes()[:1500])
    report = build(BuildRequest(workspace, load_manifest("web"), roots=(folder,)))
    rows = files.read_table(open_set(workspace, "web").ledgers())
    found = {Path(row["source_uri"]).name: row["reason"] for row in rows}
    assert found == {
        "a.mp4": None,
        "b.mp4": "duplicate",
        "empty.mp4": "empty",
        "text.mp4": "not_media",
        "link.mp4": "symlink",
        "pipe.mp4": "special_file",
        "cut.mp4": "truncated",
    }
    assert (
        report.counts["planned"] == 7 == report.counts["written"] + report.counts["dropped"] + report.counts["failed"]
    )
    assert report.exit_code(is_strict=False) == 3
    twin = next(row for row in rows if row["reason"] == "duplicate")
    assert twin["duplicate_of"] == next(row for row in rows if row["outcome"] == "written")["clip_id"]
    assert verify(workspace, "web").ok
    trap("Web tables and lists", f"one written, the other dropped: {found['b.mp4']}", "same bytes under two names")
    trap("Web tables and lists", f"failed: {found['text.mp4']}", "no video behind the name")


def test_what_cannot_be_built_is_told_in_one_sentence(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="k400"):
        load_manifest("k4000")
    with pytest.raises(SourceError, match="nowhere"):
        build(BuildRequest(workspace, load_manifest("web"), roots=(tmp_path / "nowhere",)))
    (tmp_path / "hollow").mkdir()
    with pytest.raises(SourceError, match="no video was found"):
        build(BuildRequest(workspace, load_manifest("web"), roots=(tmp_path / "hollow",)))
    assert not (workspace / "sets").exists()


def test_the_command_prints_the_promised_json(workspace: Path, kinetics_tree: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "stmae_cli.data",
        "build",
        str(kinetics_tree / "tiny.toml"),
        "-w",
        str(workspace),
        "--json",
    ]
    ended = subprocess.run([*command, "--limit", "3"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    shown = json.loads(ended.stdout)
    assert shown["set"] == "tiny" and shown["written"] == shown["planned"] and shown["reasons"] == {}


def test_a_duration_far_from_its_annotation_is_flagged_or_dropped_as_the_manifest_asks(
    clean: tuple[Path, BuildReport], workspace: Path, kinetics_tree: Path, trap: Callable[..., None]
) -> None:
    rows = files.read_table(open_set(clean[0], "tiny").ledgers())
    assert {tuple(row["flags"]) for row in rows} == {("duration_mismatch",)}
    toml = kinetics_tree / "strict.toml"
    text = (kinetics_tree / "tiny.toml").read_text().replace('"tiny"', '"strict"')
    toml.write_text(text.replace("[splits.train]", "max_duration_error_seconds = 2.0\n[splits.train]"))
    report = build(BuildRequest(workspace, load_manifest(str(toml)), splits=("val",)))
    assert report.counts["reasons"] == {"duration_mismatch": 4} and report.counts["dropped"] == 4
    row = files.read_table(open_set(workspace, "strict").ledgers())[0]
    assert (row["reason_detail"], row["stored_sha256"]) == ("0.67 s measured, 10.00 s annotated", None)
    assert (row["num_frames"], row["duration_seconds"] < 1) == (20, True)
    assert verify(workspace, "strict").ok
    trap(
        "Kinetics folders",
        "flagged duration_mismatch; dropped where the manifest asks",
        "shorter than annotated (K700 test)",
    )
