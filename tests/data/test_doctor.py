"""Doctor: what is there is found, what is missing is told with its next step."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stmae_cli.data import app
from stmae_data import doctor
from stmae_data.doctor import Check, State, examine

RUNNER = CliRunner()


def by_name(checks: tuple[Check, ...]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_is_fit_and_nothing_stays_behind(tmp_path: Path) -> None:
    found = examine(tmp_path)
    assert found.ok, [check for check in found.checks if check.state is State.MISSING]
    checks = by_name(found.checks)
    for name in ("python", "packages", "ffmpeg", "libx264", "memfd", "decoding", "deadline", "locks", "disk space"):
        assert name in checks
    assert checks["decoding"].found.endswith("30 frames read under limits")
    assert all(check.next_step for check in found.checks if check.state is not State.OK)
    assert all(not check.next_step for check in found.checks if check.state is State.OK)
    assert not list(tmp_path.iterdir())


def test_the_data_side_looks_at_torch_without_importing_it(tmp_path: Path) -> None:
    code = f"import sys; from pathlib import Path; from stmae_data.doctor import examine; examine(Path({str(tmp_path)!r})); print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


def test_a_workspace_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    ended = RUNNER.invoke(app, ["doctor", "-w", "/proc/nowhere", "--json"])
    assert ended.exit_code == 1
    shown = json.loads(ended.stdout)
    broken = {check["name"]: check for check in shown["checks"] if check["state"] == "missing"}
    assert shown["ok"] is False and "name another with --workspace" in broken["workspace"]["next_step"]
    assert RUNNER.invoke(app, ["doctor", "-w", str(tmp_path)]).exit_code == 0


def test_an_ffmpeg_without_libx264_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho \"Unknown encoder 'libx264'\" >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(doctor, "ffmpeg_executable", lambda: str(program))
    check = by_name(tuple(doctor._coding()))["libx264"]
    assert check.state is State.MISSING and check.found == "Unknown encoder 'libx264'"
    assert "cannot encode H.264" in check.next_step


def test_a_missing_ffmpeg_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise RuntimeError("No ffmpeg exe could be found.\nInstall it")

    monkeypatch.setattr(doctor, "ffmpeg_executable", fail)
    assert list(doctor._coding()) == [Check("ffmpeg", State.MISSING, "No ffmpeg exe could be found.", doctor_step())]


def doctor_step() -> str:
    return "pip install --force-reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to an ffmpeg with libx264"


def test_a_pair_of_torch_and_torchvision_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.10.0+cpu", "torchvision": "0.26.0"}
    monkeypatch.setattr(metadata, "version", lambda name: versions[name])
    monkeypatch.setattr(metadata, "requires", lambda _: ["numpy", "torch (==2.11.0)", "pillow>=5"])
    (check,) = doctor._torch()
    assert check.state is State.MISSING
    assert check.next_step == "torchvision 0.26.0 is made for torch 2.11.0: pip install torch==2.11.0"
    versions["torch"] = "2.11.0+cu130"
    assert next(doctor._torch()).state is State.OK


def test_packages_and_extras_are_those_that_stmae_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["numpy>=2", "nowhere-1>=3", "typer>=999", 'ghost>=1; extra == "cloud"', 'pytest; extra == "test"']
    monkeypatch.setattr(metadata, "requires", lambda _: declared)
    checks = by_name(tuple(doctor._packages()))
    assert checks["nowhere-1"].next_step == "pip install 'nowhere-1>=3'"
    assert checks["typer"].found.endswith("wanted >=999") and checks["packages"].found == "1 of 3 there"
    (extra,) = doctor._extras()
    assert extra == Check("extra cloud", State.ABSENT, "ghost not installed", "pip install 'stmae[cloud]'")


def test_few_open_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (256, 1_000_000))
    (check,) = doctor._descriptors()
    assert check == Check("open files", State.WEAK, "256 allowed, wanted 1024", "ulimit -n 4096")


def test_a_refused_sandbox_is_a_weakness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.limits, "has_network_sandbox", lambda: False)
    check = by_name(tuple(doctor._confinement()))["no network for decoders"]
    assert check.state is State.WEAK and "user namespaces" in check.next_step
