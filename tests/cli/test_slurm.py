"""The batch script: it says what was asked for, survives any path, runs the command as typed, and queues itself again when stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stmae_cli.scale import sbatch_script, without_slurm
from stmae_cli.train import main

NASTY = "k400 $(touch gone) `id` 'single' \"double\" \\ ; rm -rf x & #"
STUBS = {
    "srun": 'shift; exec "$@"',
    "torchrun": f'exec {sys.executable} -c \'import json, sys; json.dump(sys.argv[1:], open("seen.json", "w"))\' "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo node-a; echo node-b; else echo "$*" > requeued; fi',
}


def script_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["stmae-train", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, errors = capsys.readouterr()
    assert ended.value.code == 0, errors
    return out


def run_script(script: str, folder: Path, **stubs: str) -> subprocess.CompletedProcess[str]:
    """Under bash, with small programs in place of Slurm's and torch's."""
    programs = folder / "bin"
    programs.mkdir()
    for name, text in {**STUBS, **stubs}.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    (folder / "job.sh").write_text(script)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "node-[a-b]",
    }
    return subprocess.run(
        ["bash", folder / "job.sh"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_script_runs_the_command_as_typed_on_every_node_and_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "a b'c"
    folder.mkdir()
    monkeypatch.chdir(folder)
    typed = ["pretrain", "--shards", NASTY, "k700", "--recipe", "mae-st-l16", "--out", "big run", "--fsdp"]
    script = script_of(monkeypatch, capsys, *typed, "--slurm", "--nodes", "4", "--gpus=8", "--time", "2-00:00:00")
    for line in (
        "--job-name=big-run",
        "--nodes=4",
        "--gpus-per-node=8",
        "--time=2-00:00:00",
        "--requeue",
        "--signal=B:TERM@300",
    ):
        assert f"#SBATCH {line}\n" in script
    assert f'#SBATCH --output="{folder}/big-run-%j.log"\n' in script
    ended = run_script(script, folder)
    assert ended.returncode == 0, ended.stderr
    seen = json.loads((folder / "seen.json").read_text())
    assert seen[seen.index("--no-python") + 1 :] == ["stmae-train", *typed, "--resume"]
    assert "--nnodes=4" in seen and "--nproc-per-node=8" in seen and "--max-restarts=3" in seen
    assert "--rdzv-endpoint=node-a:20077" in seen
    assert not (folder / "requeued").exists() and not (folder / "gone").exists()


def test_a_failure_is_the_jobs_and_a_stop_queues_it_again(tmp_path: Path) -> None:
    folder = tmp_path / "failed"
    folder.mkdir()
    given = {"name": "run", "folder": str(folder), "log": "x.log", "nodes": 1, "gpus": 1, "time": "1:00:00"}
    script = sbatch_script(["stmae-train", "pretrain", "--resume"], **given)
    assert script.count("--resume") == 2  # one of them in the comment
    assert run_script(script, folder, srun="exit 3").returncode == 3 and not (folder / "requeued").exists()
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    script = sbatch_script(["stmae-train", "pretrain"], **{**given, "folder": str(stopped)})
    # Slurm's signal goes to the batch shell, the parent of what stands for srun, which waits for it to be passed on.
    waits = "trap 'exit 143' TERM; kill -TERM $PPID; while :; do sleep 0.01; done"
    ended = run_script(script, stopped, srun=waits)
    assert ended.returncode == 0 and (stopped / "requeued").read_text() == "requeue 77\n"


def test_flags_of_the_script_are_not_part_of_the_command() -> None:
    typed = ["pretrain", "--slurm", "--nodes", "2", "--seed", "3", "--gpus=4", "--time", "1:00", "--out", "x"]
    assert without_slurm(typed) == ["pretrain", "--seed", "3", "--out", "x"]


@pytest.mark.parametrize(
    ("extra", "code", "sentence"),
    [
        (["--nodes", "3"], 1, "512 videos in 1 micro-batches cannot be shared by 3 nodes x 8 GPUs"),
        (["--time", "soon\nrm"], 2, "no time limit of Slurm"),
        (["--nodes", "0"], 2, "--nodes"),
    ],
)
def test_what_cannot_run_is_refused_before_it_waits_in_a_queue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], extra: list[str], code: int, sentence: str
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["stmae-train", "pretrain", "--shards", "k400", "--recipe", "mae-st-l16", "--slurm", *extra]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code and sentence in capsys.readouterr().err
