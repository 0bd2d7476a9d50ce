"""Sets on object stores: the same objects as a local build has files, whatever is killed, from whichever machine goes on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stmae_data.build import BuildReport, BuildRequest, build, reasons_of
from stmae_data.build.remote import Outpost, fetch_set
from stmae_data.errors import Busy, SetError, StorageError, UsageError
from stmae_data.manifest import load_manifest
from stmae_data.records import Job
from stmae_data.shards import ShardSet, open_set, store_url
from stmae_data.stores import Store
from stmae_data.verify import verify


def build_tiny(workspace: Path, tree: Path, **options: Any) -> BuildReport:
    return build(BuildRequest(workspace, load_manifest(str(tree / "tiny.toml")), **options))


def open_tiny(workspace: Path) -> ShardSet:
    return open_set(workspace, "tiny", books_only=True)


def local_objects(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("LOCK", "LOCK.jobs")
    }


def objects(url: str) -> dict[str, str]:
    store = Store.open(url)
    return {name: hashlib.sha256(store.read(name)).hexdigest() for name in store.names()}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, kinetics_tree: Path) -> dict[str, str]:
    workspace = tmp_path_factory.mktemp("clean")
    build_tiny(workspace, kinetics_tree)
    return local_objects(workspace / "sets" / "tiny")


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


def test_a_plan_that_another_machine_extended_and_did_not_finish_is_gone_on_with(
    workspace: Path, kinetics_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, local, other = "memory://taken-over/sets", tmp_path / "local", tmp_path / "other"
    for splits in (("val",), ()):
        build_tiny(local, kinetics_tree, splits=splits)
    build_tiny(workspace, kinetics_tree, store=url, splits=("val",))
    send = Outpost.send_shard

    def send_one(self: Outpost, name: str) -> None:
        send(self, name)
        raise StorageError("the line is dead")

    with monkeypatch.context() as patch:
        patch.setattr(Outpost, "send_shard", send_one)
        with pytest.raises(StorageError, match="the line is dead"):
            build_tiny(other, kinetics_tree, store=url)
    assert "train-000001.tar" not in objects(f"{url}/tiny")
    # The seal is the one this machine has sent; the plan is not. What it would have planned itself has other shards.
    report = build_tiny(workspace, kinetics_tree, splits=("train",), limit=2)
    assert (report.version, report.counts["planned"]) == (2, 12)
    assert objects(f"{url}/tiny") == local_objects(local / "sets" / "tiny")
    assert verify(workspace, "tiny").ok


def test_books_that_came_half_are_fetched_again(
    workspace: Path, kinetics_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, get, count = "memory://half/sets", Store.get, 0
    build_tiny(tmp_path / "other", kinetics_tree, store=url, splits=("val",))
    there = objects(f"{url}/tiny")

    def get_some(self: Store, name: str, path: Path) -> None:
        nonlocal count
        count += 1
        if count > len(there) - 3:
            raise StorageError("the line is dead")
        get(self, name, path)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "get", get_some)
        with pytest.raises(StorageError, match="the line is dead"):
            build_tiny(workspace, kinetics_tree, store=url, splits=("val",))
    assert (workspace / "sets" / "tiny" / "meta" / "plan.parquet").exists(), "the plan came, the seal did not"
    assert build_tiny(workspace, kinetics_tree, store=url, splits=("val",)).version == 1
    assert objects(f"{url}/tiny") == there


def test_a_store_that_lost_everything_is_filled_again(
    clean: dict[str, str], workspace: Path, kinetics_tree: Path
) -> None:
    build_tiny(workspace, kinetics_tree, store="memory://emptied/sets")
    store = Store.open("memory://emptied/sets/tiny")
    store.filesystem.rm(store.root, recursive=True)
    build_tiny(workspace, kinetics_tree)
    assert objects(store.url) == clean


def test_a_set_that_stands_here_is_not_replaced_by_one_on_a_store(
    workspace: Path, kinetics_tree: Path, tmp_path: Path
) -> None:
    url = "memory://namesake/sets"
    build_tiny(tmp_path / "other", kinetics_tree, store=url, splits=("val",))
    build_tiny(workspace, kinetics_tree)
    before = local_objects(workspace / "sets" / "tiny")
    with pytest.raises(UsageError, match=f"A set tiny stands in this workspace already, and another on {url}/tiny"):
        build_tiny(workspace, kinetics_tree, store=url)
    assert local_objects(workspace / "sets" / "tiny") == before


class Web:
    """A folder of a good file, one that was cut short and one that is no video, and the set `web` made of it."""

    def __init__(self, folder: Path, tree: Path) -> None:
        self.raw, self.toml = folder / "raw", folder / "web.toml"
        self.videos = [path.read_bytes() for path in sorted((tree / "train").rglob("*.mp4"))]
        self.raw.mkdir()
        self.put("good", self.videos[0])
        self.put("late", self.videos[1][:1500])
        self.put("text", b"no video here")
        self.toml.write_text(
            'name = "web"\nrelease = "1"\nkind = "folder"\nshort_side_px = 64\nfrom = ["raw"]\n[splits.train]\n'
        )

    def put(self, name: str, data: bytes) -> None:
        (self.raw / f"{name}.mp4").write_bytes(data)

    def build(self, workspace: Path, *, retry: str | None = None, store: str | None = None) -> BuildReport:
        reasons = frozenset() if retry is None else reasons_of(retry.split())
        return build(BuildRequest(workspace, load_manifest(str(self.toml)), retry=reasons, store=store))


@pytest.fixture
def cut(tmp_path: Path, kinetics_tree: Path) -> Web:
    return Web(tmp_path, kinetics_tree)


def test_a_retry_on_a_store_ends_as_one_here(cut: Web, workspace: Path, tmp_path: Path) -> None:
    url, local = "memory://retried/sets", tmp_path / "local"
    for place, store in ((local, None), (workspace, url)):
        cut.build(place, store=store)
    before = objects(f"{url}/web")
    cut.build(workspace, retry="truncated not_media")
    assert objects(f"{url}/web") == before == local_objects(local / "sets" / "web"), (
        "nothing recovered, nothing changed"
    )
    cut.put("late", cut.videos[1])
    for place in (local, workspace):
        assert cut.build(place, retry="truncated not_media").counts["written"] == 2
    assert objects(f"{url}/web") == local_objects(local / "sets" / "web")
    assert verify(workspace, "web").ok


@pytest.mark.parametrize(
    ("point", "is_recovering"),
    [
        ("settle_retry", False),
        ("end_retry", True),
        pytest.param("settle_retry", True, marks=pytest.mark.battery),
        pytest.param("end_retry", False, marks=pytest.mark.battery),
    ],
)
def test_a_retry_one_machine_began_is_finished_by_the_next(
    cut: Web, workspace: Path, tmp_path: Path, point: str, *, is_recovering: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the first one comes back: what it has here of its own retry is old, and must not be taken for the shards planned since."""
    url, other = f"memory://begun-{point}-{is_recovering}/sets", tmp_path / "other"
    cut.build(workspace, store=url)
    if is_recovering:
        cut.put("late", cut.videos[1])

    def die(*_: Any) -> None:
        raise StorageError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(f"stmae_data.build.{point}", die)
        with pytest.raises(StorageError, match="the power is gone"):
            cut.build(workspace, retry="truncated not_media")
    cut.put("new", cut.videos[2])
    report = cut.build(other, store=url)
    assert report.counts["written"] == (3 if is_recovering else 2)
    there = objects(f"{url}/web")
    assert "meta/retry.parquet" not in there
    again = cut.build(workspace)
    assert (again.digest, again.version) == (report.digest, report.version)
    assert objects(f"{url}/web") == there and verify(workspace, "web").ok
    cut.put("newer", cut.videos[3])
    assert cut.build(workspace).counts["written"] == report.counts["written"] + 1 and verify(workspace, "web").ok


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


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory, kinetics_tree: Path) -> Path:
    """A workspace of a set on a store, `tiny`, and of the same set built here, `here`; a clip of `val` stands in `train` too."""
    workspace = tmp_path_factory.mktemp("standing")
    tree = tmp_path_factory.mktemp("leaky")
    shutil.copytree(kinetics_tree, tree, dirs_exist_ok=True)
    leaked = next((tree / "val").rglob("*.mp4"))
    (tree / "train" / "zumba" / "leakedclip0_000000_000010.mp4").write_bytes(leaked.read_bytes())
    with (tree / "train.csv").open("a") as table:
        table.write("zumba,leakedclip0,0,10,train,0\n")
    build_tiny(workspace, tree, store="memory://standing/sets")
    build_tiny(workspace, tree, name="here")
    return workspace


AWAY = r"Set tiny stands on memory://standing/sets/tiny and .* copy all of memory://standing/sets/tiny to sets/tiny of another"
REFUSED = {
    "dedup": ["dedup", "tiny"],
    "dedup, two sets": ["dedup", "here", "tiny"],
    "dedup --to": ["dedup", "tiny", "--to", "clean"],
    "leaks --fix": ["leaks", "tiny:train", "--against", "here:val", "--fix"],
    "remove": ["remove", "--ids", "leakedclip0", "--reason", "asked"],
    "fingerprint": ["fingerprint", "tiny"],
    "export --unpack": ["export", "tiny", "--format", "videomae", "--unpack"],
    "push --dry-run": ["push", "tiny", "me/tiny", "--dry-run"],
}
ANSWERED = {
    "dedup --dry-run": (["dedup", "tiny", "--dry-run"], 3),
    "leaks": (["leaks", "tiny", "--against", "here:val"], 3),
    "remove --dry-run": (["remove", "--ids", "leakedclip0", "--reason", "asked", "--dry-run"], 0),
    "remove from the set that stands here": (["remove", "here", "--ids", "no", "--reason", "asked", "--dry-run"], 1),
    "verify": (["verify", "tiny"], 0),
    "stats": (["stats", "tiny"], 0),
    "show": (["show", "leakedclip0_000000_000010"], 0),
    "diff": (["diff", "tiny", "here"], 0),
    "sql": (["sql", "SELECT count(*) FROM written WHERE set_name = 'tiny'"], 0),
    "select": (["select", "some", "--from", "tiny", "--samples", "2"], 0),
    "report": (["report", "tiny"], 0),
    "card": (["card", "tiny"], 0),
    "export csv": (["export", "tiny", "--format", "csv"], 0),
    "export kinetics": (["export", "tiny", "--format", "kinetics"], 0),
    "catalog rebuild": (["catalog", "rebuild"], 0),
}


def command_line(workspace: Path, *words: str) -> tuple[int, str]:
    from typer.testing import CliRunner

    from stmae_cli.data import app

    done = CliRunner().invoke(app, [*words, "-w", str(workspace)])
    return done.exit_code, " ".join(done.output.split())


@pytest.mark.parametrize("words", REFUSED.values(), ids=REFUSED.keys())
def test_what_needs_tars_refuses_a_set_on_a_store_before_it_changes_anything(standing: Path, words: list[str]) -> None:
    before = {name: local_objects(standing / "sets" / name) for name in ("tiny", "here")}
    there = objects("memory://standing/sets/tiny")
    code, said = command_line(standing, *words)
    assert code == 1 and re.search(AWAY, said), said
    assert before == {name: local_objects(standing / "sets" / name) for name in ("tiny", "here")}
    assert objects("memory://standing/sets/tiny") == there and not (standing / "sets" / "clean").exists()


@pytest.mark.parametrize(("words", "wanted"), ANSWERED.values(), ids=ANSWERED.keys())
def test_what_needs_books_alone_answers_for_a_set_on_a_store(standing: Path, words: list[str], wanted: int) -> None:
    code, said = command_line(standing, *words)
    assert code == wanted, said
    if words[0] == "report":
        page = (standing / "sets" / "tiny" / "report.html").read_text()
        assert "The clips stand on <code>memory://standing/sets/tiny</code>" in page and "cannot be read" not in page


def test_cards_go_to_the_store_with_the_next_build(workspace: Path, kinetics_tree: Path) -> None:
    url = "memory://carded/sets"
    first = build_tiny(workspace, kinetics_tree, store=url, splits=("val",))
    assert command_line(workspace, "card", "tiny")[0] == 0
    again = build_tiny(workspace, kinetics_tree, splits=("val",))
    assert (again.version, again.digest) == (first.version, first.digest)
    assert first.digest in Store.open(f"{url}/tiny").read("README.md").decode()
    assert "croissant.json" in objects(f"{url}/tiny")


def test_a_job_of_a_set_on_a_store_is_refused(standing: Path, kinetics_tree: Path) -> None:
    with pytest.raises(UsageError, match="A set on a store is built by one command"):
        build_tiny(standing, kinetics_tree, job=Job(1, 2))


def test_a_copy_of_a_store_is_a_set_like_any_other(standing: Path, tmp_path: Path) -> None:
    """The next step that the refusal names."""
    store = Store.open("memory://standing/sets/tiny")
    folder = tmp_path / "sets" / "tiny"
    for name in store.names():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        store.get(name, folder / name)
    assert command_line(tmp_path, "dedup", "tiny")[0] == 0
    assert verify(tmp_path, "tiny").ok


def test_a_machine_that_knows_nothing_fetches_the_books_and_goes_along_with_the_set(
    url: str, workspace: Path, kinetics_tree: Path, tmp_path: Path
) -> None:
    build_tiny(workspace, kinetics_tree, store=url, splits=("val",))
    other = tmp_path / "other"
    first = fetch_set(f"{url}/tiny", other)
    assert first.version == 1 and store_url(first.folder) == f"{url}/tiny" and not list(other.rglob("*.tar"))
    assert local_objects(other / "sets/tiny/meta/ledger") == local_objects(workspace / "sets/tiny/meta/ledger")
    grown = build_tiny(workspace, kinetics_tree, store=url)
    again = fetch_set(f"{url}/tiny/", other)
    assert (again.version, again.digest) == (grown.version, grown.digest) == (2, open_tiny(workspace).digest)
    with pytest.raises(SetError, match="No sealed set stands at"):
        fetch_set(f"{url}/tinier", other)
    build_tiny(tmp_path / "third", kinetics_tree)
    with pytest.raises(UsageError, match=r"stands in .* already"):
        fetch_set(f"{url}/tiny", tmp_path / "third")
    # Whatever a store lists, nothing is written beside the set's folder.
    store = Store.open(f"{url}/tiny")
    if url.startswith("memory"):
        store.filesystem.store[f"{store.root}/meta/../../../out.parquet"] = store.filesystem.store[
            f"{store.root}/meta/set.json"
        ]
        with pytest.raises(SetError, match="lead out of a set's folder"):
            fetch_set(f"{url}/tiny", other)


def test_books_that_do_not_fit_together_are_refused(workspace: Path, kinetics_tree: Path, tmp_path: Path) -> None:
    url = "memory://half-written/sets"
    build_tiny(workspace, kinetics_tree, store=url)
    store = Store.open(f"{url}/tiny")
    ledgers = [name for name in store.names() if name.startswith("meta/ledger/")]
    right = store.read(ledgers[0])
    store.filesystem.pipe_file(f"{store.root}/{ledgers[0]}", store.read(ledgers[1]))
    for _ in range(2):
        with pytest.raises(SetError, match="do not fit together"):
            fetch_set(f"{url}/tiny", tmp_path / "other")
        with pytest.raises(SetError, match=r"no meta/set\.json"):
            open_tiny(tmp_path / "other")
    store.filesystem.pipe_file(f"{store.root}/{ledgers[0]}", right)
    assert fetch_set(f"{url}/tiny", tmp_path / "other").digest == open_tiny(workspace).digest
