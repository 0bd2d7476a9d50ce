"""Tables of paths and addresses: columns, copies of what was fetched, and nothing outside the folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stmae_data import files
from stmae_data.errors import Reason, SourceError
from stmae_data.manifest import Manifest, load_manifest
from stmae_data.sources import rows_for, source_path
from stmae_data.sources.listed import fetched_name

TOML = 'name = "listed"\nrelease = "1"\nkind = "table"\n{extra}\n[splits.train]\n{train}\n[splits.val]\n'
URL = "https://user:secret@example.org/videos/a.MP4?token=secret"


def manifest(folder: Path, *, extra: str = "", train: str = "") -> Manifest:
    (folder / "listed.toml").write_text(TOML.format(extra=extra, train=train))
    return load_manifest(folder / "listed.toml")


def video(path: Path, data: bytes = b"video") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def table(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


RECORDS = [
    {"path": "a.mp4", "label": "walking", "split": "train", "title": "One #Tag", "tags": "x, Y", "view_count": 3},
    {"path": "sub/b.mp4", "label": "running", "split": "validate", "title": "", "tags": "", "view_count": None},
]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str, trap: Callable[..., None]) -> None:
    root = tmp_path / "raw"
    video(root / "a.mp4")
    video(root / "sub" / "b.mp4")
    path = tmp_path / f"list.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(RECORDS))
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, RECORDS)))
    elif suffix == "parquet":
        kinds = {**dict.fromkeys(RECORDS[0], "VARCHAR"), "view_count": "BIGINT"}
        files.commit_table(path, RECORDS, kinds, point="test")
    else:
        mark = "," if suffix == "csv" else "\t"
        lines = [mark.join(RECORDS[0])]
        lines += [mark.join(f'"{"" if value is None else value}"' for value in each.values()) for each in RECORDS]
        path.write_text("\n".join(lines))
    first, second = rows_for(manifest(tmp_path), roots=[root], annotations=[path]).rows
    assert (first.split, first.annotations[0].label_raw, first.annotations[0].label_index) == ("train", "walking", 0)
    assert first.web["view_count"] == 3
    assert [(tag["tag"], tag["origin"]) for tag in first.web["tags"]] == [("x", "tag"), ("y", "tag"), ("tag", "title")]
    assert (second.split, second.annotations[0].label_raw, second.clip_id) == ("val", "running", None)
    assert source_path(second.source_uri) == root / "sub" / "b.mp4"
    trap(
        "Web tables and lists",
        "the same rows, any metadata columns kept",
        "csv, tsv, json, jsonl, parquet of the same rows",
    )


def test_text_file_has_a_path_or_an_address_in_each_line(tmp_path: Path, trap: Callable[..., None]) -> None:
    root = tmp_path / "raw"
    video(root / "a.mp4")
    video(root / "copies" / fetched_name(URL), b"fetched")
    path = table(
        tmp_path / "list.txt", f"# ours\na.mp4\n\n{URL}\nhttps://example.org/b?x=1\nhttps://example.org/b?x=2\n"
    )
    rows = rows_for(manifest(tmp_path), roots=[root, path]).rows
    assert [row.problem and row.problem[0] for row in rows] == [None, None, Reason.NET_ERROR, Reason.NET_ERROR]
    copy = next(row for row in rows if "url" in row.web and row.problem is None)
    assert source_path(copy.source_uri).read_bytes() == b"fetched"
    assert copy.web["url"] == "https://example.org/videos/a.MP4"
    missing = [row for row in rows if row.problem]
    assert {row.source_uri for row in missing} == {"https://example.org/b"}
    assert len({row.source_member for row in missing}) == 2, "the query is not kept, yet the rows are two"
    assert "secret" not in str(rows)
    trap("Web tables and lists", "stands nowhere in our books", "a secret in an address")


def test_copy_has_a_plain_name() -> None:
    assert fetched_name(URL).endswith(".mp4")
    for url in (
        "https://example.org/a.b/..%2f",
        "https://example.org/x.mp4%00.sh",
        "https://example.org/a." + "x" * 300,
    ):
        assert len(fetched_name(url)) == 32


@pytest.mark.parametrize(
    "text", ["../secret.mp4", "{outside}/secret.mp4", "link/secret.mp4", "sub/../../secret.mp4", "..", "."]
)
def test_path_out_of_the_folders_is_refused(tmp_path: Path, text: str, trap: Callable[..., None]) -> None:
    """A list may come from anybody: it must not make us read what lies elsewhere."""
    root = tmp_path / "raw"
    video(root / "sub" / "a.mp4")
    video(tmp_path / "secret.mp4")
    (root / "link").symlink_to(tmp_path)
    path = table(tmp_path / "list.csv", "path\n" + text.format(outside=tmp_path) + "\n")
    (row,) = rows_for(manifest(tmp_path), roots=[root], annotations=[path]).rows
    assert row.problem is not None
    assert row.problem[0] in (Reason.REFUSED_URL, Reason.SPECIAL_FILE)
    trap(
        "Web tables and lists",
        f"failed: {Reason.REFUSED_URL} or {Reason.SPECIAL_FILE}, never read",
        "a path out of the folder",
    )


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "/etc/passwd", "ftp://example.org/a", "concat:a|b", "http://[::1/"]
)
def test_address_that_is_none_is_refused(tmp_path: Path, url: str, trap: Callable[..., None]) -> None:
    path = table(tmp_path / "list.csv", f"url\n{url}\n")
    (row,) = rows_for(manifest(tmp_path), roots=[tmp_path], annotations=[path]).rows
    assert row.problem == (Reason.REFUSED_URL, "not an http(s) address")
    assert "passwd" not in str(row)
    trap("Web tables and lists", f"failed: {Reason.REFUSED_URL}", "an address that is none")


def test_links_and_missing_files_are_rows_that_say_so(tmp_path: Path, trap: Callable[..., None]) -> None:
    root = tmp_path / "raw"
    real = video(root / "a.mp4")
    (root / "b.mp4").symlink_to(real)
    video(root / "c.mp4", b"")
    path = table(tmp_path / "list.csv", "path\na.mp4\nb.mp4\nc.mp4\nd.mp4\na.mp4\na.mp4/x\n")
    listing = rows_for(manifest(tmp_path), roots=[root], annotations=[path])
    assert [(source_path(row.source_uri).name, row.problem and row.problem[0]) for row in listing.rows] == [
        ("a.mp4", None),
        ("x", Reason.GONE),
        ("b.mp4", Reason.SYMLINK),
        ("c.mp4", Reason.EMPTY),
        ("d.mp4", Reason.GONE),
    ]
    assert listing.skipped["repeated"] == 1
    assert [(line["annotated"], line["present"], line["missing"]) for line in listing.reconciliation] == [(5, 1, 4)]
    trap(
        "Web tables and lists",
        f"failed: {Reason.SYMLINK}, {Reason.EMPTY}, {Reason.GONE}",
        "links, empty and missing files",
    )
    trap("Web tables and lists", "one row; the other counted as repeated", "one file twice in a table")


def test_hash_and_span_name_the_clip(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")
    path = table(tmp_path / "list.csv", f"path,start,end,sha256\na.mp4,1.5,4,{'AB' * 32}\na.mp4,,,\na.mp4,5,6,short\n")
    rows = rows_for(manifest(tmp_path), annotations=[path]).rows
    assert [(row.clip_id, row.start_ms, row.end_ms, row.is_cut) for row in rows] == [
        (None, None, None, False),
        (f"web_{'ab' * 16}_1500_4000", 1500, 4000, True),
        (None, 5000, 6000, True),
    ]
    assert rows[1].source_sha256 == "ab" * 32


def test_manifest_table_is_read_from_its_own_folder(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")
    table(tmp_path / "list.csv", "path\na.mp4\n")
    (row,) = rows_for(manifest(tmp_path, train='annotations = ["list.csv"]')).rows
    assert (row.split, row.problem) == ("train", None)


def test_classes_and_splits_choose(tmp_path: Path) -> None:
    for name in "abc":
        video(tmp_path / f"{name}.mp4")
    path = table(tmp_path / "list.csv", "path,label,split\na.mp4,x,train\nb.mp4,y,train\nc.mp4,x,val\n")
    found = rows_for(manifest(tmp_path), annotations=[path], classes=["x"])
    assert [source_path(row.source_uri).name for row in found.rows] == ["a.mp4", "c.mp4"]
    found = rows_for(manifest(tmp_path), annotations=[path], splits=["val"])
    assert [(row.split, row.annotations[0].label_index) for row in found.rows] == [("val", 0)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "label\nx\n", r"Row 1 of .*a\.csv names no video: wanted a column path or url; found label"),
        ("a.csv", "path,start,end\na,5,2\n", "Row 1 of .* runs from '5' to '2'"),
        ("a.csv", "path,start\na,5\n", "runs from '5' to None"),
        ("a.csv", "path,split\na,dev\n", r"belongs to split 'dev', which listed does not have \(train, val\)"),
        ("a.json", '{"path": "a"}', "is not a list of rows"),
        ("a.jsonl", '{"path"', "cannot be read"),
        ("a.jsonl", "3\n", "is not a list of rows"),
        ("a.parquet", "x", "cannot be read"),
    ],
)
def test_damaged_tables_are_told_in_one_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        rows_for(manifest(tmp_path), annotations=[table(tmp_path / name, text)])
    assert "\n" not in str(caught.value)


def test_without_a_table_the_next_step_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="listed has no table; name one with --annotations"):
        rows_for(manifest(tmp_path), roots=[tmp_path])
    with pytest.raises(SourceError, match="There is no"):
        rows_for(manifest(tmp_path), roots=[tmp_path / "none"])


def half_fetched(folder: Path) -> None:
    """A folder as a fetch leaves it that is killed in its second film."""
    video(folder / "files" / fetched_name("http://example.org/a.mp4"))
    name = fetched_name("http://example.org/b.mp4")[:32]
    video(folder / ".partial" / f"{name}.part", b"the first half")
    table(folder / ".partial" / f"{name}.json", '{"validator": "1", "total": 28}')
    table(folder / "LOCK", "1\n")
    table(folder / "fetch.json", '{"schema_version": 1, "allow_private": false}')
    log(folder / "fetched.jsonl", "a", "gone")


def log(path: Path, *names: str) -> None:
    """What a fetch writes into its log for films that came whole, and half a line behind them."""
    ends = [{"url_key": fetched_name(f"http://example.org/{name}.mp4")[:32], "status": "fetched"} for name in names]
    table(path, "\n".join(map(json.dumps, ends)) + '\n{"url_key": "torn')


def booked(path: Path, *names: str) -> None:
    """The table of a fetch in which these films came whole."""
    urls = [f"http://example.org/{name}.mp4" for name in names]
    ends = [
        {
            "row_number": 1,
            "url": url,
            "url_key": fetched_name(url)[:32],
            "status": "fetched",
            "file": f"files/{fetched_name(url)}",
        }
        for url in urls
    ]
    files.commit_table(path, ends, {**dict.fromkeys(ends[0], "VARCHAR"), "row_number": "BIGINT"}, point="test")


def test_fetch_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    web = load_manifest("web")
    half_fetched(tmp_path / "raw")
    message = r"has not ended: fetched\.parquet is not written yet\. Run the same stmae-data fetch command again"
    with pytest.raises(SourceError, match=message):
        rows_for(web, roots=[tmp_path / "raw"])
    (tmp_path / "raw" / "fetched.jsonl").unlink()  # killed before anything was decided
    with pytest.raises(SourceError, match=message):
        rows_for(web, roots=[tmp_path / "raw"])


def test_job_that_has_not_ended_is_refused_though_another_has(tmp_path: Path) -> None:
    booked(tmp_path / "fetched-1-of-2.parquet", "a")
    log(tmp_path / "fetched-2-of-2.jsonl", "b")
    with pytest.raises(SourceError, match=r"has not ended: fetched-2-of-2\.parquet is not written yet"):
        rows_for(load_manifest("web"), roots=[tmp_path])


def test_files_of_a_log_that_no_table_lists_are_told(tmp_path: Path) -> None:
    booked(tmp_path / "fetched.parquet", "a")
    log(tmp_path / "fetched.jsonl", "a", "b", "c")
    notes = " ".join(rows_for(load_manifest("web"), roots=[tmp_path]).notes)
    assert f"2 files fetched into {tmp_path.name} stand in no table there and are left out" in notes
    log(tmp_path / "fetched.jsonl", "a")
    assert "stand in no table" not in " ".join(rows_for(load_manifest("web"), roots=[tmp_path]).notes)


def test_half_a_copy_is_never_the_copy(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    half_fetched(root)
    rows = table(tmp_path / "rows.csv", "url\nhttp://example.org/b.mp4\n")
    (row,) = rows_for(manifest(tmp_path), roots=[root], annotations=[rows]).rows
    assert row.problem == (Reason.NET_ERROR, "not fetched yet")
    video(root / "files" / fetched_name("http://example.org/b.mp4"))
    found = rows_for(manifest(tmp_path), roots=[root], annotations=[rows])
    assert source_path(found.rows[0].source_uri).parent.name == "files"
    assert found.skipped["unfinished"] == 2


def test_fetched_file_below_another_root_is_one_row(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    name = fetched_name("http://example.org/a.mp4")
    video(root / "files" / name)
    booked(root / "fetched.parquet", "a")
    for roots in ([root, root], [root / "files", root], [root, root / "files" / name]):
        found = rows_for(load_manifest("web"), roots=roots)
        assert [row.web.get("url") for row in found.rows] == ["http://example.org/a.mp4"]
