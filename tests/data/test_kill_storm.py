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
from stmae_data.build import BuildRequest, build
from stmae_data.manifest import load_manifest
from stmae_data.verify import verify


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


@pytest.mark.parametrize("kills", [20, pytest.param(500, marks=pytest.mark.battery)])
def test_random_kills_lose_repeat_and_leave_nothing(
    kills: int, workspace: Path, kinetics_tree: Path, tmp_path: Path
) -> None:
    """SIGKILL 0 to 0.6 s after the plan stands; a build that was quicker is begun anew, so that every kill hits a build."""
    seed = 2026
    print(f"seed {seed}")
    generator = random.Random(seed)
    manifest = kinetics_tree / "tiny.toml"
    build(BuildRequest(tmp_path / "calm", load_manifest(str(manifest))))
    calm = contents(tmp_path / "calm" / "sets" / "tiny")
    folder = workspace / "sets" / "tiny"
    command = [sys.executable, "-m", "stmae_cli.data", "build", str(manifest), "-w", str(workspace), "--workers", "2"]
    done, builds = 0, 0
    while done < kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        builds += 1
        while process.poll() is None and not (folder / "meta" / "plan.parquet").exists():
            time.sleep(0.002)
        time.sleep(generator.uniform(0.0, 0.6))
        was_running = process.poll() is None
        process.kill()
        process.wait()
        if was_running:
            done += 1
            for path in (folder / "meta" / "ledger").glob("train-*.parquet"):
                # Whatever stands under its final name is whole, and the same as in the calm build.
                assert hashlib.sha256(path.read_bytes()).hexdigest() == calm[str(path.relative_to(folder))]
        else:
            assert process.returncode == 0 and contents(folder) == calm
            shutil.rmtree(workspace / "sets")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert contents(folder) == calm
    assert verify(workspace, "tiny").ok
    assert not [path for path in folder.rglob("*") if path.name.startswith(files.TEMP_PREFIX)]
    print(f"{done} kills in {builds} builds")
