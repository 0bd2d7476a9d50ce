"""Kill storm: a build killed at random again and again ends like one that nobody touched."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stmae_data import files
from stmae_data.verify import verify


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("LOCK", "LOCK.jobs")
    }


def unfinished(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(f"{files.TEMP_PREFIX}*.tar")}


def committed(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "meta" / "ledger").glob("[!.]*.parquet")
    }


@pytest.mark.parametrize("kills", [12, pytest.param(500, marks=pytest.mark.battery)])
def test_random_kills_lose_repeat_and_leave_nothing(
    kills: int, workspace: Path, kinetics_tree: Path, tmp_path: Path
) -> None:
    """SIGKILL at a random moment of the work: after this process has begun a tar, at most as late as the calm build took from there.

    Every fifth hits the start instead. A build that was quicker is begun anew, so that every kill hits a build.
    """
    seed = 2026
    print(f"seed {seed}")
    generator = random.Random(seed)
    manifest = kinetics_tree / "tiny.toml"
    command = [sys.executable, "-m", "stmae_cli.data", "build", str(manifest), "--workers", "2", "-w"]

    said = tmp_path / "stderr"

    def begun(place: Path, seconds: float | None = None) -> tuple[subprocess.Popen[bytes], float]:
        """A build at work, or `seconds` old, or at its end; and when it began its work."""
        folder = place / "sets" / "tiny"
        before = unfinished(folder)
        with said.open("wb") as errors:
            process = subprocess.Popen([*command, str(place)], stdout=subprocess.DEVNULL, stderr=errors)
        started = time.monotonic()
        while process.poll() is None and not unfinished(folder) - before:
            if seconds is not None and time.monotonic() - started > seconds:
                break
            time.sleep(0.002)
        return process, time.monotonic()

    started = time.monotonic()
    process, at_work = begun(tmp_path / "calm")
    assert process.wait() == 0
    start_seconds, work_seconds = at_work - started, time.monotonic() - at_work
    calm = contents(tmp_path / "calm" / "sets" / "tiny")
    folder = workspace / "sets" / "tiny"
    done = builds = torn = moved_on = 0
    while done < kills or not torn:  # a storm that never hits a tar tests nothing
        stood = committed(folder)
        process, _ = begun(workspace, generator.uniform(0, start_seconds) if done % 5 == 4 else None)
        if done % 5 != 4:
            time.sleep(generator.uniform(0, work_seconds))
        was_running = process.poll() is None
        process.kill()
        process.wait()
        if was_running:
            done += 1
            torn += bool(unfinished(folder))
            now = committed(folder)
            moved_on += now.keys() > stood.keys()
            # Whatever stands under its final name is whole, and the same as in the calm build.
            assert now.items() <= calm.items() and stood.items() <= now.items()
        else:
            assert process.returncode == 0, said.read_text()
            assert contents(folder) == calm
            shutil.rmtree(workspace / "sets")
            builds += 1
    assert subprocess.run([*command, str(workspace)], capture_output=True, check=False).returncode == 0
    assert contents(folder) == calm
    assert verify(workspace, "tiny").ok
    assert not [path for path in folder.rglob("*") if path.name.startswith(files.TEMP_PREFIX)]
    print(f"{done} kills over {builds + 1} builds: {torn} left a tar half-written, {moved_on} came after new shards")
