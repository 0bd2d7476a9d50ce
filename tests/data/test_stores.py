"""Sets on object stores: the same objects as a local build has files, whatever is killed, from whichever machine goes on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stmae_data.build import BuildReport, BuildRequest, build
from stmae_data.errors import Busy, StorageError, UsageError
from stmae_data.manifest import load_manifest
from stmae_data.stores import Store
from stmae_data.verify import verify


def build_tiny(workspace: Path, tree: Path, **options: Any) -> BuildReport:
    return build(BuildRequest(workspace, load_manifest(str(tree / "tiny.toml")), **options))


def local_objects(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


def objects(url: str) -> dict[str, str]:
    store = Store.open(url)
    return {name: hashlib.sha256(store.read(name)).hexdigest() for name in store.names()}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, kinetics_tree: Path) -> dict[str, str]:
    workspace = tmp_path_factory.mktemp("clean")
    build_tiny(workspace, kinetics_tree)
    return local_objects(workspace / "sets" / "tiny")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place on a store in memory, and on a real S3 server on loopback."""
    name = f"bucket-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    if request.param == "memory":
        return f"memory://{name}/sets"
    return s3_bucket(request.getfixturevalue("s3_server"), name, monkeypatch)


def s3_bucket(endpoint: str, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    import s3fs

    settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    for key, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}/sets"


def test_the_objects_are_the_files_of_a_local_build(
    url: str, clean: dict[str, str], workspace: Path, kinetics_tree: Path
) -> None:
    first = build_tiny(workspace, kinetics_tree, store=url, workers=2)
    assert objects(f"{url}/tiny") == clean
    folder = workspace / "sets" / "tiny"
    assert not list(folder.glob("*.tar")) and (folder / "meta" / "set.json").is_file()
    # The workspace remembers where the set stands; a rerun changes nothing and brings no tar back.
    again = build_tiny(workspace, kinetics_tree)
    assert (again.version, again.digest) == (first.version, first.digest)
    assert objects(f"{url}/tiny") == clean and not list(folder.glob("*.tar"))


def test_verify_reads_a_set_where_it_stands(url: str, workspace: Path, kinetics_tree: Path) -> None:
    build_tiny(workspace, kinetics_tree, store=url)
    found = verify(workspace, "tiny")
    assert found.ok and found.bytes > 0 and not list((workspace / "sets" / "tiny").glob("*.tar"))
    store = Store.open(f"{url}/tiny")
    tar = bytearray(store.read("train-000001.tar"))
    tar[700] ^= 1
    store.filesystem.pipe_file(f"{store.root}/train-000001.tar", bytes(tar))
    assert {each.file for each in verify(workspace, "tiny").damages} == {"train-000001.tar"}
    store.filesystem.rm_file(f"{store.root}/train-000001.tar")
    assert [str(each.code) for each in verify(workspace, "tiny", quick=True).damages] == ["shard_missing"]
    with pytest.raises(UsageError, match="leave out --deep"):
        verify(workspace, "tiny", deep=True)


def test_another_machine_goes_on_from_the_store_alone(
    url: str, clean: dict[str, str], workspace: Path, kinetics_tree: Path, tmp_path: Path
) -> None:
    build_tiny(workspace, kinetics_tree, store=url, splits=("val",))
    there = objects(f"{url}/tiny")
    other = tmp_path / "other"
    grown = build_tiny(other, kinetics_tree, store=url)
    assert grown.version == 2 and grown.counts["written"] == 12
    now = objects(f"{url}/tiny")
    assert all(now[name] == there[name] for name in there if name.endswith(".tar"))
    # The first machine's books are old now; they are fetched anew before anything is decided.
    assert build_tiny(workspace, kinetics_tree, store=url).digest == grown.digest
    assert objects(f"{url}/tiny") == now


def test_a_lock_on_the_store_is_honoured_and_names_its_owner(url: str, workspace: Path, kinetics_tree: Path) -> None:
    store = Store.open(f"{url}/tiny")
    with (
        store.lock("meta/LOCK", what="Set tiny"),
        pytest.raises(Busy, match=rf"process {os.getpid()} on .*remove {url}/tiny/meta/LOCK"),
    ):
        build_tiny(workspace, kinetics_tree, store=url)
    assert store.names() == {}
    assert build_tiny(workspace, kinetics_tree, store=url).version == 1


POINTS = ["store_put:1", "store_put:4", "store_sent:3", "store_tar_gone.remove:1", "seal.done:1"]


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_the_same_objects_come_to_stand(
    point: str,
    s3_server: str,
    clean: dict[str, str],
    workspace: Path,
    kinetics_tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = s3_bucket(s3_server, f"killed-{POINTS.index(point)}", monkeypatch)
    command = [sys.executable, "-m", "stmae_cli.data", "build", str(kinetics_tree / "tiny.toml")]
    command += ["-w", str(workspace), "--workers", "1", "--store", url]
    killed = subprocess.run(command, env={**os.environ, "STMAE_FAULT": point}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = Store.open(f"{url}/tiny")
    assert all(clean[name] == digest for name, digest in objects(f"{url}/tiny").items() if name.endswith(".tar"))
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 75 and "meta/LOCK" in refused.stderr and "Traceback" not in refused.stderr
    store.filesystem.rm_file(f"{store.root}/meta/LOCK")
    # Half of the points go on from the same workspace, half from another machine that knows nothing.
    if POINTS.index(point) % 2:
        command[command.index("-w") + 1] = str(tmp_path / "other")
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == 1
    assert objects(f"{url}/tiny") == clean


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sets", "no address of a store"),
        ("s3://me:secret@bucket/sets", "without credentials"),
        ("nonsense://bucket/sets", "cannot be reached"),
        ("file:///srv/sets", "is a folder of this machine"),
    ],
)
def test_what_is_no_store_is_refused(url: str, said: str, workspace: Path, kinetics_tree: Path) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        build_tiny(workspace, kinetics_tree, store=url)
    assert "secret" not in str(caught.value)


def test_a_store_without_credentials_or_bucket_ends_in_one_sentence(
    s3_server: str, workspace: Path, kinetics_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_bucket(s3_server, "some-bucket", monkeypatch)
    with pytest.raises(StorageError, match="Cannot write s3://no-such-bucket/sets/tiny: "):
        build_tiny(workspace, kinetics_tree, store="s3://no-such-bucket/sets")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    __import__("s3fs").S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="Unable to locate credentials"):
        build_tiny(workspace, kinetics_tree, store="s3://some-bucket/sets")


def test_a_store_that_does_not_answer_ends_in_one_sentence(
    workspace: Path, kinetics_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("connection reset")

    store = Store.open("memory://silent/sets/tiny")
    monkeypatch.setattr(type(store.filesystem), "pipe_file", refuse)
    with pytest.raises(StorageError, match="Cannot write memory://silent/sets/tiny: connection reset"):
        build_tiny(workspace, kinetics_tree, store="memory://silent/sets")
