"""Several processes build one set: jobs with a share each, or Ray; the bytes are those of one build."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from stmae_data import files
from stmae_data.build import BuildReport, BuildRequest, Job, build
from stmae_data.build.jobs import job_lock
from stmae_data.errors import Busy, StmaeDataError, UsageError
from stmae_data.manifest import load_manifest


def run(workspace: Path, toml: Path, **options: object) -> BuildReport:
    return build(BuildRequest(workspace, load_manifest(str(toml)), **options))  # type: ignore[arg-type]


def snapshot(workspace: Path) -> dict[str, str]:
    return {
        str(path.relative_to(workspace)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((workspace / "sets").rglob("*"))
        if path.is_file() and path.name not in ("LOCK", "LOCK.jobs")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, kinetics_tree: Path) -> Path:
    workspace = tmp_path_factory.mktemp("whole")
    run(workspace, kinetics_tree / "tiny.toml")
    return workspace


def test_jobs_share_a_set_and_the_last_one_seals(whole: Path, workspace: Path, kinetics_tree: Path) -> None:
    toml = kinetics_tree / "tiny.toml"
    first = run(workspace, toml, job=Job(2, 2))
    seal = workspace / "sets" / "tiny" / "meta" / "set.json"
    assert (first.digest, first.num_shards_left, seal.exists()) == ("", 2, False)
    assert first.counts["planned"] == first.counts["written"] > 0
    last = run(workspace, toml, job=Job(1, 2))
    assert (last.version, last.num_shards_left) == (1, 0) and last.counts["planned"] == 12
    assert snapshot(workspace) == snapshot(whole)
    assert run(workspace, toml, job=Job(2, 2)).digest == last.digest


@pytest.mark.battery
def test_jobs_at_once_end_with_the_bytes_of_one_build(whole: Path, workspace: Path, kinetics_tree: Path) -> None:
    places = [str(kinetics_tree / "tiny.toml"), "-w", str(workspace), "--workers", "1"]
    command = [sys.executable, "-m", "stmae_cli.data", "build", *places, "--job"]
    started = [subprocess.Popen([*command, f"{number}/3"], stdout=subprocess.DEVNULL) for number in (1, 2, 3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert snapshot(workspace) == snapshot(whole)


def test_a_plain_rerun_takes_over_from_jobs(whole: Path, workspace: Path, kinetics_tree: Path) -> None:
    run(workspace, kinetics_tree / "tiny.toml", job=Job(1, 5))
    run(workspace, kinetics_tree / "tiny.toml")
    assert snapshot(workspace) == snapshot(whole)


def test_only_shares_that_do_not_overlap_run_at_once(workspace: Path, kinetics_tree: Path) -> None:
    toml = kinetics_tree / "tiny.toml"
    lock = workspace / "sets" / "tiny" / "meta" / "LOCK"
    with job_lock(lock, Job(1, 2), what="x"):
        with pytest.raises(Busy, match=rf"Job 1/2 of Set tiny is being built by process {os.getpid()}; wait"):
            run(workspace, toml, job=Job(1, 2))
        with pytest.raises(Busy, match=r"Job 2/3 of Set tiny is being built by a job whose share overlaps it"):
            run(workspace, toml, job=Job(2, 3))
        with pytest.raises(Busy, match=rf"Set tiny is being written by process {os.getpid()}; wait"):
            run(workspace, toml)
        with job_lock(lock, Job(2, 2), what="x"), job_lock(lock.with_name("OTHER"), Job(1, 2), what="y"):
            pass
    with (
        files.lock(lock, what="x"),
        pytest.raises(Busy, match=rf"Set tiny is being written by process {os.getpid()}"),
    ):
        run(workspace, toml, job=Job(2, 2))


def test_shares_are_disjoint_and_make_up_the_whole() -> None:
    names = [str(number) for number in range(17)]
    for count in (1, 2, 3, 5, 16, 17, 40):
        shares = [Job(number, count).share(names) for number in range(1, count + 1)]
        assert [name for share in shares for name in share] == names
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for text in ("0/2", "3/2", "2", "a/b", "1/1000000"):
        with pytest.raises(UsageError, match=f"'{text}' is not a job; wanted k/n"):
            Job.parse(text)
    assert str(Job.parse("2/4")) == "2/4"


def test_a_retry_is_no_job(workspace: Path, kinetics_tree: Path) -> None:
    from stmae_data.build import reasons_of

    with pytest.raises(UsageError, match="A retry is done by one command"):
        run(workspace, kinetics_tree / "tiny.toml", job=Job(1, 2), retry=reasons_of([]))


def test_an_engine_that_is_not_there_is_told_before_work(
    workspace: Path, kinetics_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="There is no engine 'spark'; there are local, ray"):
        run(workspace, kinetics_tree / "tiny.toml", engine="spark")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StmaeDataError, match=r"needs the package ray, .* pip install 'stmae\[ray\]'"):
        run(workspace, kinetics_tree / "tiny.toml", engine="ray")
    assert not (workspace / "sets").exists()


NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'stmae[ray]'"
)


def ray_command(workspace: Path, kinetics_tree: Path) -> list[str]:
    places = [str(kinetics_tree / "tiny.toml"), "-w", str(workspace)]
    return [sys.executable, "-m", "stmae_cli.data", "build", *places, "--engine", "ray", "--workers", "2"]


@NEEDS_RAY
def test_ray_gives_the_same_bytes(whole: Path, workspace: Path, kinetics_tree: Path) -> None:
    ended = subprocess.run(ray_command(workspace, kinetics_tree), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert snapshot(workspace) == snapshot(whole)


@NEEDS_RAY
@pytest.mark.battery
def test_an_error_of_a_task_on_ray_is_that_of_a_local_one(workspace: Path, kinetics_tree: Path) -> None:
    environment = {**os.environ, "STMAE_FAULT": "shard.fsync:1:ENOSPC"}
    command = ray_command(workspace, kinetics_tree)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 74, ended.stderr
    assert "No space left on device" in ended.stderr and "Traceback" not in ended.stderr


def ray_workers() -> list[int]:
    """Processes of Ray that run one of our tasks just now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::_run_one"):
                found.append(int(path.parent.name))
    return found


@NEEDS_RAY
@pytest.mark.battery
def test_two_nodes_and_a_worker_killed_in_the_middle_end_with_the_same_bytes(
    whole: Path, workspace: Path, kinetics_tree: Path, tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        complaints, killed = tmp_path / "complaints.txt", 0
        with complaints.open("wb") as stream:
            build = subprocess.Popen(ray_command(workspace, kinetics_tree), env=environment, stderr=stream)
        while build.poll() is None:
            if not killed and (workers := ray_workers()):
                os.kill(workers[0], signal.SIGKILL)
                killed += 1
            time.sleep(0.002)
        assert build.returncode == 0, complaints.read_text()
    finally:
        cluster.shutdown()
        del cluster
        with warnings.catch_warnings():
            # Ray leaves files to the garbage collector, and no later test is to be blamed for them.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    assert killed == 1, "the build ended before a worker was seen"
    assert snapshot(workspace) == snapshot(whole)
