"""Publishing: cards that Croissant and the Hub understand, lists that other tools read, and a push that goes in the right order."""

from __future__ import annotations

import base64
import csv
import dataclasses
import http.server
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stmae_data import files
from stmae_data.errors import Busy, SetError, StmaeDataError, UsageError
from stmae_data.manifest import load_manifest, shipped
from stmae_data.publish import Authors, Upload, export, push, write_card
from stmae_data.publish.export import guarded
from stmae_data.publish.hub import Hub
from stmae_data.publish.push import check_rights
from stmae_data.records import SetRef
from stmae_data.select import make_selection
from stmae_data.shards import open_set
from stmae_data.sources.tables import read_table_clips

OPEN = {"license": "CC0-1.0", "license_origin": "release notes", "is_redistributable": True}
CLOSED = {**OPEN, "license": "for research alone", "is_redistributable": False}
AUTHORS = Authors(organizations=("A Lab",), url="https://example.org/tiny", published="2026-01-02")
HOSTILE = '=cmd|"/c calc"!A0 <script>alert(1)</script> [x](javascript:1) | `\u202e'


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, small_sets: ModuleType) -> Path:
    """A workspace with the sets `tiny` (may be passed on, YouTube pieces), `closed` and `web` (unlabelled files)."""
    workspace = tmp_path_factory.mktemp("shelf")
    make = small_sets.clip
    tiny = [
        make(split, n, youtube=(f"{sign}ab_cd{n:05d}", n, n + 10), label=label, title=HOSTILE, **OPEN)
        for split, count, sign in (("train", 7, "-"), ("val", 3, "x"))
        for n, label in zip(range(count), [HOSTILE, "running", "jumping"] * 3, strict=False)
    ]
    small_sets.make(workspace, "tiny", tiny)
    small_sets.make(workspace, "closed", [make("train", 50, **OPEN), make("train", 51, **CLOSED)])
    small_sets.make(
        workspace, "web", [make("train", n, label=None, source_uri=f"file:///data/{n}.mp4") for n in range(60, 66)]
    )
    return workspace


@pytest.fixture
def tiny(shelf: Path, tmp_path: Path) -> Path:
    """A workspace of its own with `tiny` and its cards."""
    import shutil

    shutil.copytree(shelf, tmp_path / "shelf")
    write_card(tmp_path / "shelf", "tiny", AUTHORS)
    return tmp_path / "shelf"


# Cards


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it leaves files to the garbage collector
def test_croissant_is_valid_and_its_media_can_be_read(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROISSANT_CACHE", str(tmp_path))
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(jsonld=tiny / "sets" / "tiny" / "croissant.json")
    assert not dataset.metadata.ctx.issues.errors
    assert str(dataset.metadata.ctx.conforms_to) == "CroissantVersion.V_1_1"
    found = {row["media/clip_id"].decode(): row["media/content"] for row in dataset.records("media")}
    ledger = files.read_table(open_set(tiny, "tiny").ledgers(), "SELECT clip_id, stored_bytes FROM book")
    assert {name: len(data) for name, data in found.items()} == {r["clip_id"]: r["stored_bytes"] for r in ledger}
    assert {row["splits/url"] for row in dataset.records("splits")} == {"cr:TrainingSplit", "cr:ValidationSplit"}


def test_croissant_says_what_is_on_record_and_nothing_else(tiny: Path, shelf: Path) -> None:
    said = json.loads((tiny / "sets" / "tiny" / "croissant.json").read_text())
    found = open_set(tiny, "tiny")
    tars = {each["@id"]: each for each in said["distribution"] if each["@type"] == "cr:FileObject"}
    assert {name: (each["sha256"], each["contentSize"]) for name, each in tars.items()} == {
        f"{shard.name}.tar": (shard.sha256, f"{shard.bytes} B") for shard in found.shards
    }
    assert said["license"] == ["https://spdx.org/licenses/CC0-1.0.html"]
    assert said["prov:wasDerivedFrom"][0]["@id"] == "urn:sha256:" + "ab" * 32
    assert said["prov:wasGeneratedBy"][0]["prov:wasAssociatedWith"][0]["prov:label"] == "stmae 0.1.0"
    assert "10 clips were planned and 10 written" in said["rai:dataCollection"]
    card = write_card(shelf, "web")
    bare = json.loads(card.croissant.read_text())
    assert not {"license", "creator", "url", "datePublished", "citeAs", "rai:dataBiases"} & bare.keys()
    assert set(card.unsaid) == {"license", "creator", "url", "datePublished", "citeAs"}
    assert "labels" not in {each["@id"] for each in bare["recordSet"]}


def test_the_card_has_the_front_matter_of_the_hub(tiny: Path, shelf: Path) -> None:
    yaml = pytest.importorskip("yaml")
    _, front, body = (tiny / "sets" / "tiny" / "README.md").read_text().split("---\n", 2)
    said = yaml.safe_load(front)
    assert said["license"] == "cc0-1.0" and said["size_categories"] == ["n<1K"]
    assert said["task_categories"] == ["video-classification"]
    assert said["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": "train", "path": "train-*.tar"}, {"split": "val", "path": "val-*.tar"}],
        }
    ]
    assert open_set(tiny, "tiny").digest in body
    assert "<script" not in body and "\\[x\\](javascript" in body and "\u202e" not in body
    unlabelled = yaml.safe_load(write_card(shelf, "web").readme.read_text().split("---\n", 2)[1])
    assert unlabelled["license"] == "unknown" and "task_categories" not in unlabelled


def test_an_empty_shard_is_not_shown_to_the_hub(workspace: Path, small_sets: ModuleType) -> None:
    from stmae_data.errors import Reason
    from stmae_data.rewrite import Verdict, rewrite

    yaml = pytest.importorskip("yaml")
    small_sets.make(workspace, "tiny", [small_sets.clip("train", n) for n in range(3)], shard_size=1)
    row = files.read_table(open_set(workspace, "tiny").ledgers()[:1])[0]
    rewrite(workspace, "tiny", [Verdict(row["row_id"], Reason.FILTERED, "d" * 32)], run_id="r")
    said = yaml.safe_load(write_card(workspace, "tiny").readme.read_text().split("---\n", 2)[1])
    assert said["configs"][0]["data_files"][0]["path"] == ["train-000001.tar", "train-000002.tar"]


def test_cards_are_the_same_bytes_each_time(tiny: Path) -> None:
    paths = [tiny / "sets" / "tiny" / name for name in ("README.md", "croissant.json")]
    before = [path.read_bytes() for path in paths]
    write_card(tiny, "tiny", AUTHORS)
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize(
    ("authors", "sentence"),
    [(Authors(url="ftp://x"), "no address of a page"), (Authors(published="soon"), "no date; wanted YYYY-MM-DD")],
)
def test_what_the_publisher_says_is_checked(shelf: Path, authors: Authors, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        write_card(shelf, "web", authors)


# Readers of others


def test_the_first_five_samples_have_equal_fields_as_the_hub_asks(shelf: Path) -> None:
    import tarfile

    tars = sorted((shelf / "sets" / "web").glob("*.tar"))
    samples: dict[str, set[str]] = {}
    with tarfile.open(tars[0]) as stream:
        for member in stream:
            key, _, field = member.name.partition(".")  # as the Hub's reader splits names: at the first dot
            samples.setdefault(key, set()).add(field)
    first = list(islice(samples.values(), 5))
    assert first and all(fields == first[0] == {"json", "mp4"} for fields in first)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it leaves files to the garbage collector
def test_a_set_opens_in_plain_webdataset(shelf: Path) -> None:
    import webdataset

    folder = shelf / "sets" / "tiny"
    clips = webdataset.WebDataset(str(folder / "train-{000000..000001}.tar"), shardshuffle=False)
    ledger = files.read_table(open_set(shelf, "tiny").ledgers("train"), "SELECT clip_id FROM book")
    found = list(clips)
    assert {sample["__key__"] for sample in found} == {row["clip_id"] for row in ledger}
    assert all(json.loads(sample["json"])["clip_id"] == sample["__key__"] and sample["mp4"] for sample in found)


# Lists


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=1+1", "'=1+1"),
        (" \t@SUM(A1)", "' \t@SUM(A1)"),
        ("\rx", "'\rx"),
        ("\0x", "'\0x"),
        ("＝1", "'＝1"),
        ("-x", "'-x"),
        (-1.5, -1.5),
        (None, None),
        (True, "true"),
        ("a=b", "a=b"),
    ],
)
def test_no_cell_is_run_by_a_spreadsheet(cell: Any, shown: Any) -> None:
    assert guarded(cell) == shown


def test_csv_holds_one_guarded_row_a_clip(shelf: Path, tmp_path: Path) -> None:
    made = export(shelf, SetRef.parse("tiny"), format="csv", out=tmp_path / "all.csv")
    with made.path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == made.num_rows == 7
    texts = [cell for row in rows for cell in row.values()]
    assert not [cell for cell in texts if cell.lstrip().startswith(("=", "+", "-", "@"))]
    assert {row["label"] for row in rows} == {f"'{HOSTILE}", "running", "jumping"}
    assert rows[0]["is_redistributable"] == "true" and rows[0]["end_seconds"] == "10.0"


def test_parquet_holds_the_columns_of_the_ledger_and_names_its_set(shelf: Path, tmp_path: Path) -> None:
    make_selection(shelf, "few", source=SetRef.parse("tiny"), samples=3)
    made = export(shelf, SetRef.parse("tiny/few"), format="parquet", out=tmp_path / "few.parquet")
    rows = files.read_table(made.path)
    chosen = files.read_table(shelf / "selections" / "few.parquet")
    assert {row["clip_id"] for row in rows} == {row["clip_id"] for row in chosen} and len(rows) == 3
    assert files.read_table_metadata(made.path)["digest"] == open_set(shelf, "tiny").digest


def test_the_kinetics_table_is_read_back_as_the_same_clips(shelf: Path) -> None:
    made = export(shelf, SetRef.parse("tiny:val"), format="kinetics")
    assert made.path == shelf / "exports" / "tiny-val-kinetics.csv"
    lines = made.path.read_text().splitlines()
    assert lines[0] == "label,youtube_id,time_start,time_end,split" and lines[1].endswith(",validate")
    ledger = files.read_table(open_set(shelf, "tiny").ledgers("val"), "SELECT platform_id, start_ms, end_ms FROM book")
    found = {(clip.platform_id, clip.start_ms, clip.end_ms) for clip in read_table_clips(made.path)}
    assert found == {(row["platform_id"], row["start_ms"], row["end_ms"]) for row in ledger}
    train = export(shelf, SetRef.parse("tiny"), format="kinetics").path.read_text()
    assert "\n'" not in train.replace(f"'{HOSTILE[:4]}", "") and ",-ab_cd00000,0,10,train" in train


def test_lists_for_videomae_name_unpacked_clips(shelf: Path, tmp_path: Path) -> None:
    made = export(shelf, SetRef.parse("tiny"), format="videomae", out=tmp_path / "l.txt", is_unpacked=True)
    rows = [line.split(" ") for line in made.path.read_text().splitlines()]
    ledger = files.read_table(open_set(shelf, "tiny").ledgers("train"), "SELECT clip_id, stored_sha256 FROM book")
    assert {Path(path).stem: files.sha256_file(Path(path)) for path, _ in rows} == {
        row["clip_id"]: row["stored_sha256"] for row in ledger
    }
    assert {label for _, label in rows} == {"-1"} and made.num_files == 7
    first = Path(rows[0][0])
    before = first.stat().st_mtime_ns
    export(shelf, SetRef.parse("tiny"), format="videomae", out=tmp_path / "l.txt", is_unpacked=True)
    assert first.stat().st_mtime_ns == before


def test_lists_for_videomae_name_the_sources_where_these_are_the_clips(shelf: Path) -> None:
    rows = export(shelf, SetRef.parse("web"), format="videomae").path.read_text().splitlines()
    assert sorted(rows) == [f"/data/{n}.mp4 -1" for n in range(60, 66)]
    with pytest.raises(SetError, match=r"7 of 7 clips of tiny:train are not files of this machine.*--unpack"):
        export(shelf, SetRef.parse("tiny"), format="videomae")


@pytest.mark.parametrize(
    ("reference", "format", "error", "sentence"),
    [
        ("web", "kinetics", SetError, "6 of 6 clips of web:train are no timed pieces"),
        ("web", "xml", UsageError, "There is no export format 'xml'; there are csv"),
        ("none", "csv", SetError, "There is no set 'none'"),
        ("tiny:test", "csv", SetError, "has no split 'test'"),
    ],
)
def test_what_cannot_be_listed_is_told(
    shelf: Path, reference: str, format: str, error: type[StmaeDataError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        export(shelf, SetRef.parse(reference), format=format)


# Push


@dataclasses.dataclass
class Place:
    """A client that keeps what it is given and remembers the order."""

    there: dict[str, str] = dataclasses.field(default_factory=dict)
    steps: list[str] = dataclasses.field(default_factory=list)
    breaks_at: str | None = None

    def prepare(self, repository: str, *, is_private: bool) -> None:
        self.steps.append(f"prepare {repository} {is_private}")

    def known(self, repository: str) -> Mapping[str, str]:
        return dict(self.there)

    def withdraw(self, repository: str, names: Sequence[str]) -> None:
        for name in names:
            del self.there[name]
            self.steps.append(f"- {name}")

    def commit(self, repository: str, uploads: Sequence[Upload], *, message: str) -> None:
        for upload in uploads:
            if upload.name == self.breaks_at:
                raise StmaeDataError("the line broke")
        for upload in uploads:
            assert files.sha256_file(upload.path) == upload.sha256
            self.there[upload.name] = upload.sha256
            self.steps.append(upload.name)


def test_shards_go_first_then_ledgers_and_the_seal_last(tiny: Path) -> None:
    place = Place()
    made = push(tiny, "tiny", "lab/tiny", client=place)
    sent = place.steps[1:]
    kinds = ["tar" if name.endswith(".tar") else name.split("/")[-2] if "/" in name else "card" for name in sent]
    assert [kind for n, kind in enumerate(kinds) if kinds[n - 1 : n] != [kind]][:2] == ["tar", "ledger"]
    assert sent[-1] == "meta/set.json" and set(sent) == set(made.sent)
    assert {"README.md", "croissant.json", "meta/plan.parquet"} < set(sent)
    assert "meta/LOCK" not in sent and place.steps[0] == "prepare lab/tiny True"


def test_a_broken_push_is_taken_up_and_a_new_version_hides_the_old_seal_first(tiny: Path) -> None:
    from stmae_data.errors import Reason
    from stmae_data.rewrite import Verdict, rewrite

    place = Place(breaks_at="meta/set.json")
    with pytest.raises(StmaeDataError, match="the line broke"):
        push(tiny, "tiny", "lab/tiny", client=place)
    place.breaks_at, place.steps = None, []
    again = push(tiny, "tiny", "lab/tiny", client=place)
    assert again.sent == ("meta/set.json",) and len(again.kept) == len(place.there) - 1
    row = files.read_table(open_set(tiny, "tiny").ledgers("train")[:1])[0]
    rewrite(tiny, "tiny", [Verdict(row["row_id"], Reason.REMOVED, "d" * 32)], run_id="remove-1")
    with pytest.raises(SetError, match=r"has no README.md of its version 2.*stmae-data card tiny"):
        push(tiny, "tiny", "lab/tiny", client=place)
    write_card(tiny, "tiny", AUTHORS)
    place.there["report.html"], place.there["notes.md"], place.steps = "", "", []
    push(tiny, "tiny", "lab/tiny", client=place)
    assert place.steps[1:4] == ["- meta/set.json", "- report.html", f"{row['shard']}.tar"]
    assert place.steps[-1] == "meta/set.json" and "notes.md" in place.there


def test_a_dry_run_sends_nothing(tiny: Path, small_sets: ModuleType) -> None:
    before = small_sets.snapshot(tiny / "sets" / "tiny")
    place = Place()
    made = push(tiny, "tiny", "lab/tiny", client=place, is_dry_run=True)
    assert made.sent[-1] == "meta/set.json" and made.bytes_sent > 0 and not place.steps
    assert small_sets.snapshot(tiny / "sets" / "tiny") == before


def test_what_may_not_be_passed_on_is_refused(shelf: Path, tiny: Path) -> None:
    place = Place()
    for name, sentence in (
        ("closed", "1 of its clips with licence 'for research alone' are not marked as redistributable"),
        ("web", "6 of its clips with no licence on record"),
    ):
        with pytest.raises(SetError, match=f"Set {name} may not be passed on: {sentence}"):
            push(shelf, name, "lab/x", client=place)
    path = tiny / "sets" / "tiny" / "meta" / "set.json"
    seal = json.loads(path.read_text())
    path.write_text(json.dumps({**seal, "sources": [{"name": "k400", "license": None, "is_redistributable": False}]}))
    with pytest.raises(SetError, match="its manifest k400 with no licence on record"):
        push(tiny, "tiny", "lab/x", client=place)
    assert not place.steps


@pytest.mark.parametrize("name", [name for name in shipped() if not load_manifest(name).is_redistributable])
def test_no_set_of_a_shipped_manifest_is_passed_on_against_its_licence(shelf: Path, name: str) -> None:
    manifest = load_manifest(name)
    found = open_set(shelf, "tiny")
    source = {"name": name, "license": manifest.license, "is_redistributable": manifest.is_redistributable}
    with pytest.raises(SetError, match=f"may not be passed on: its manifest {name} with"):
        check_rights(dataclasses.replace(found, seal={**found.seal, "sources": [source]}))


def test_official_data_is_among_what_is_never_passed_on() -> None:
    closed = {name for name in shipped() if not load_manifest(name).is_redistributable}
    assert closed >= {"k400", "k600", "k700", "k700-2020", "ssv2", "ava", "in1k"}


def test_a_damaged_set_is_refused(tiny: Path) -> None:
    tar = tiny / "sets" / "tiny" / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    place = Place()
    with pytest.raises(SetError, match=r"is not pushed: verify found \d+ damages, shard_sha256 in train-000000.tar"):
        push(tiny, "tiny", "lab/tiny", client=place)
    assert not place.steps


def test_nobody_writes_a_set_while_it_is_pushed(tiny: Path) -> None:
    lock = tiny / "sets" / "tiny" / "meta" / "LOCK"
    with files.lock(lock, what="Set tiny"), pytest.raises(Busy, match="is being written by process"):
        push(tiny, "tiny", "lab/tiny", client=Place())
    with pytest.raises(UsageError, match="names no repository; wanted OWNER/NAME"):
        push(tiny, "tiny", "../tiny", client=Place())


@pytest.fixture
def hub() -> Iterator[Any]:
    """A loopback server that speaks as much of the Hub as a push needs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, value: Any, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            server: Any = self.server
            if "/tree/" in self.path:
                self._answer([{"type": "file", "path": p, "size": len(d), "oid": "0"} for p, d in server.held.items()])
            else:
                self._answer({"error": "not here"}, 404)

        def do_POST(self) -> None:
            server: Any = self.server
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if server.is_closed:
                self._answer({"error": "no"}, 403)
            elif self.path == "/api/repos/create":
                self._answer({"url": f"http://127.0.0.1:{server.server_port}/datasets/lab/tiny"})
            elif "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                self._answer(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
                )
            elif "/commit/" in self.path:
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        server.held[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                    elif entry["key"] == "deletedFile":
                        del server.held[entry["value"]["path"]]
                self._answer(
                    {
                        "commitUrl": f"http://127.0.0.1:{server.server_port}/datasets/lab/tiny/commit/0",
                        "commitOid": "0" * 40,
                    }
                )
            else:
                self._answer({})

    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.held, server.is_closed = {}, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_hubs_own_client_brings_the_set_there(tiny: Path, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    secret = "hf_" + "s3cret" * 6
    monkeypatch.setenv("HF_TOKEN", secret)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    client = Hub(f"http://127.0.0.1:{hub.server_port}")
    made = push(tiny, "tiny", "lab/tiny", client=client)
    folder = tiny / "sets" / "tiny"
    assert hub.held == {name: (folder / name).read_bytes() for name in made.sent}
    assert list(hub.held)[-1] == "meta/set.json"
    hub.is_closed = True
    with pytest.raises(StmaeDataError, match=r"The Hub did not take lab/tiny \(status 403\)") as refusal:
        push(tiny, "tiny", "lab/tiny", client=client)
    assert secret not in str(refusal.value) and "http" not in str(refusal.value)
