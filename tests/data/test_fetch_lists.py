"""Lists of addresses: every row ends in one status, reruns go on, a build reads what came and what did not, nothing secret is kept."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stmae_data import files
from stmae_data.build import BuildRequest, build
from stmae_data.errors import Busy, Reason, SourceError, UsageError
from stmae_data.fetch import Client, FetchReport, FetchRequest, Policy, fetch
from stmae_data.fetch.lists import by_host, read_lists
from stmae_data.manifest import load_manifest
from stmae_data.records import Job
from stmae_data.sources import rows_for
from stmae_data.sources.listed import fetched_name

QUICK = Policy(allow_private=True, deadline_seconds=20.0, read_timeout_seconds=5.0, backoff_seconds=0.001)


def bring(workspace: Path, source: Path, policy: Policy = QUICK, **options: Any) -> FetchReport:
    return fetch(FetchRequest(workspace, str(source), **options), client=Client(policy))


def book(workspace: Path, name: str) -> list[dict[str, Any]]:
    return files.read_table(workspace / "raw" / name / "fetched.parquet", "SELECT * FROM book ORDER BY row_number")


def everything_written(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_every_row_ends_in_one_status(server: Any, web: Any, workspace: Path, trap: Callable[..., None]) -> None:
    server.serve("/page", b"<html>sorry</html>")
    server.serve("/out", headers={"X-Robots-Tag": "noai"})
    server.serve("/busy", b"", status=429, headers={"Retry-After": "999"})
    server.serve("/short", web.MP4, length=len(web.MP4) + 1)
    server.redirect("/away", "file:///etc/passwd")
    lines = [
        server.serve("/a.mp4"),
        server.url("/none.mp4"),
        server.url("/page"),
        server.url("/out"),
        server.url("/busy"),
        server.url("/short"),
        server.url("/away"),
        "file:///etc/passwd",
        "/etc/passwd",
        "http://user:secret@127.0.0.1/a.mp4",
        server.url("/a.mp4"),
    ]
    source = workspace / "list.txt"
    source.write_text("# ours\n" + "\n".join(lines) + "\n\n")
    report = bring(workspace, source)
    assert [(row["status"], row["reason"]) for row in book(workspace, "list")] == [
        ("fetched", None),
        ("failed", "net_4xx"),
        ("failed", "not_media"),
        ("dropped", "opted_out"),
        ("failed", "rate_limited"),
        ("failed", "net_error"),
        ("failed", "refused_url"),
        ("failed", "refused_url"),
        ("failed", "refused_url"),
        ("failed", "refused_url"),
        ("fetched", None),
    ]
    assert report.counts == {"planned": 11, "fetched": 2, "failed": 8, "dropped": 1, "pending": 0}
    assert sum(report.reasons.values()) == 9 and report.exit_code(is_strict=False) == 3
    first = book(workspace, "list")[0]
    assert (workspace / "raw" / "list" / first["file"]).read_bytes() == web.MP4
    assert first["sha256"] == hashlib.sha256(web.MP4).hexdigest() and first["final_ip"] == "127.0.0.1"
    assert server.count("/a.mp4") == 1, "one address is fetched once, however often it stands in the list"
    assert not list((workspace / "raw" / "list" / ".partial").iterdir())
    ends = [row["reason"] for row in book(workspace, "list")]
    for line, quirk in (
        (2, "an error page instead of a video"),
        (3, "an opt-out in a header"),
        (4, "too many requests"),
        (5, "a length that lies"),
        (6, "a redirect to a file"),
    ):
        trap("Web tables and lists", f"{book(workspace, 'list')[line]['status']}: {ends[line]}", quirk)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_columns_of_any_table_travel_with_the_row(suffix: str, server: Any, workspace: Path) -> None:
    records = [
        {
            "Video URL": server.serve("/a.mp4") + "?token=secret1",
            "title": "One #Tag",
            "view count": 3,
            "status": "mine",
            "thumbnail": "https://user:secret2@example.org/t.jpg?signature=secret3",
            "label": "walking",
        },
        {"Video URL": server.url("/none"), "title": "Two", "view count": 5, "status": None, "thumbnail": None},
    ]
    path = workspace / f"table.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(records))
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    elif suffix == "parquet":
        kinds = {**dict.fromkeys(records[0], "VARCHAR"), "view count": "BIGINT"}
        files.commit_table(path, records, kinds, point="test")
    else:
        mark = "," if suffix == "csv" else "\t"
        rows = [mark.join(f'"{row.get(name) or ""}"' for name in records[0]) for row in records]
        path.write_text("\n".join([mark.join(records[0]), *rows]))
    bring(workspace, path)
    first, second = book(workspace, "table")
    assert (first["status"], second["status"]) == ("fetched", "failed")
    assert (first["title"], first["listed_status"], first["label"]) == ("One #Tag", "mine", "walking")
    assert first["thumbnail"] == "https://example.org/t.jpg" and int(second["view_count"]) == 5
    listing = rows_for(load_manifest("web"), roots=[workspace / "raw" / "table"])
    rows_of = {row.annotations[0].row_number: row for row in listing.rows}
    assert rows_of[1].problem is None and rows_of[1].annotations[0].label_raw == "walking"
    assert [tag["tag"] for tag in rows_of[1].web["tags"]] == ["tag"] and rows_of[1].web["view_count"] == 3
    assert rows_of[2].problem == (Reason.NET_4XX, "status 404")
    for secret in (b"secret1", b"secret2", b"secret3"):
        assert secret not in everything_written(workspace / "raw")


def test_expected_hash_is_checked_row_by_row(server: Any, web: Any, workspace: Path) -> None:
    url = server.serve("/a.mp4")
    good, bad = hashlib.sha256(web.MP4).hexdigest(), "0" * 64
    source = workspace / "list.csv"
    source.write_text(f"url,sha256\n{url},{good}\n{url},{bad}\n{url},\n")
    bring(workspace, source)
    assert [row["reason"] for row in book(workspace, "list")] == [None, "hash_mismatch", None]
    alone = workspace / "alone.csv"
    alone.write_text(f"url,sha256\n{url},{bad}\n")
    bring(workspace, alone)
    assert [row["reason"] for row in book(workspace, "alone")] == ["hash_mismatch"]
    assert not list((workspace / "raw" / "alone").rglob("*.mp4")), "bytes nobody asked for are not kept"


def test_rerun_keeps_what_is_decided_and_tries_what_may_pass(server: Any, web: Any, workspace: Path) -> None:
    server.serve("/a.mp4")
    server.in_turn(
        "/b.mp4", web.plain(500, b""), web.plain(500, b""), web.plain(500, b""), web.plain(500, b""), web.plain()
    )
    server.in_turn("/c.mp4", web.plain(404, b""), web.plain())
    source = workspace / "list.txt"
    source.write_text("\n".join(server.url(f"/{name}.mp4") for name in "abc"))
    assert bring(workspace, source).counts["fetched"] == 1
    assert [row["reason"] for row in book(workspace, "list")] == [None, "net_error", "net_4xx"]
    again = bring(workspace, source)
    assert (again.counts["fetched"], again.num_new) == (2, 1)
    assert (server.count("/a.mp4"), server.count("/c.mp4")) == (1, 1)
    last = bring(workspace, source, retry_failed=("net_4xx",))
    assert (last.counts["fetched"], last.num_new, last.exit_code(is_strict=True)) == (3, 1, 0)
    next((workspace / "raw" / "list" / "files").glob(fetched_name(server.url("/a.mp4")))).unlink()
    assert bring(workspace, source).num_new == 1, "a file that is gone is fetched again"


def test_killed_run_is_gone_on_with_from_its_log(server: Any, workspace: Path) -> None:
    source = workspace / "list.txt"
    source.write_text("\n".join(server.serve(f"/{number}.mp4") for number in range(4)))
    bring(workspace, source)
    folder = workspace / "raw" / "list"
    rows = book(workspace, "list")
    (folder / "fetched.parquet").unlink()
    with (folder / "fetched.jsonl").open("w") as log:
        for row in rows[:3]:
            log.write(json.dumps(row, default=str) + "\n")
        log.write('{"url_key": "torn')
    assert bring(workspace, source).num_new == 1
    assert len(server.seen) == 5 and not (folder / "fetched.jsonl").exists()


def test_limit_and_jobs_take_shares_that_fit_together(server: Any, workspace: Path) -> None:
    source = workspace / "list.txt"
    source.write_text("\n".join(server.serve(f"/{number}.mp4") for number in range(9)))
    some = bring(workspace, source, limit=3)
    assert some.counts["planned"] == 3
    few = {row["url_key"] for row in book(workspace, "list")}
    bring(workspace, source, limit=5)
    assert few < {row["url_key"] for row in book(workspace, "list")}
    for number in (1, 2):
        bring(workspace, source, job=Job(number, 2))
    assert len(server.seen) == 9, "no address was fetched twice by any of them"
    folder = workspace / "raw" / "list"
    assert sorted(path.name for path in folder.glob("fetched*")) == [
        "fetched-1-of-2.parquet",
        "fetched-2-of-2.parquet",
        "fetched.parquet",
    ]
    listing = rows_for(load_manifest("web"), roots=[folder])
    assert len(listing.rows) == 9 and not any(row.problem for row in listing.rows)
    whole = bring(workspace, source)
    assert (whole.counts["fetched"], whole.num_new, len(server.seen)) == (9, 0, 9)
    assert sorted(path.name for path in folder.glob("fetched*")) == ["fetched.parquet"]


def test_shorter_list_forgets_nothing(server: Any, workspace: Path) -> None:
    source = workspace / "list.txt"
    urls = [server.serve(f"/{number}.mp4") for number in range(4)]
    source.write_text("\n".join(urls))
    bring(workspace, source)
    source.write_text(urls[0])
    assert bring(workspace, source).counts["planned"] == 1
    source.write_text("\n".join(urls))
    assert bring(workspace, source).num_new == 0 and len(server.seen) == 4


def test_interrupted_run_leaves_its_table(server: Any, workspace: Path) -> None:
    source = workspace / "list.txt"
    source.write_text("\n".join(server.serve(f"/{number}.mp4") for number in range(6)))

    def progress(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(FetchRequest(workspace, str(source), workers=1), client=Client(QUICK), progress=progress)
    statuses = [row["status"] for row in book(workspace, "list")]
    assert statuses.count("fetched") == 2 and statuses.count("pending") == 4
    listing = rows_for(load_manifest("web"), roots=[workspace / "raw" / "list"])
    assert sum(row.problem == (Reason.NET_ERROR, "not fetched yet") for row in listing.rows) == 4
    assert bring(workspace, source).counts["fetched"] == 6


def test_a_build_tells_what_could_not_be_fetched(
    server: Any, workspace: Path, kinetics_tree: Path, tmp_path: Path
) -> None:
    clip = next((kinetics_tree / "train" / "zumba").iterdir()).read_bytes()
    server.serve("/good.mp4", clip)
    server.serve("/later.mp4", b"", status=503)
    source = workspace / "list.csv"
    lines = [
        f"{server.url('/' + name)},{title}" for name, title in (("good.mp4", "#dance"), ("later.mp4", ""), ("no", ""))
    ]
    source.write_text("url,title\n" + "\n".join(lines) + "\n")
    bring(workspace, source)
    toml = tmp_path / "small.toml"
    toml.write_text('name = "small"\nrelease = "1"\nkind = "folder"\nshort_side_px = 64\n[splits.train]\n')
    request = BuildRequest(workspace, load_manifest(toml), roots=(workspace / "raw" / "list",))
    counts = build(request).counts
    assert (counts["planned"], counts["written"], counts["failed"]) == (3, 1, 2)
    assert counts["reasons"] == {"net_error": 1, "net_4xx": 1}
    ledger = files.read_table(workspace / "sets" / "small" / "meta" / "ledger" / "train-000000.parquet")
    written = next(row for row in ledger if row["outcome"] == "written")
    assert written["source_sha256"] == hashlib.sha256(clip).hexdigest()
    assert written["clip_id"] == f"web_{written['source_sha256'][:32]}"
    assert (written["url"], written["resolved_url"], written["final_ip"]) == (
        server.url("/good.mp4"),
        server.url("/good.mp4"),
        "127.0.0.1",
    )
    assert written["fetched_at"] is not None and written["tags"] == [{"tag": "dance", "origin": "title"}]
    failed = {row["reason"]: row for row in ledger if row["outcome"] == "failed"}
    assert failed["net_4xx"]["url"] == server.url("/no")
    # Fetched later, the row is the same row: its id does not depend on whether the file was there.
    before = failed["net_error"]["row_id"]
    server.serve("/later.mp4", clip + bytes(8))
    bring(workspace, source)
    listing = rows_for(load_manifest(toml), roots=[workspace / "raw" / "list"])
    from stmae_data.records import make_row_id

    ids = {make_row_id(row.split, row.source_uri, row.source_member, row.start_ms, row.end_ms) for row in listing.rows}
    assert before in ids and sum(row.problem is not None for row in listing.rows) == 1
    assert "allow-private" in " ".join(listing.notes)


def test_folder_beside_a_fetched_one_is_read_too(server: Any, workspace: Path, tmp_path: Path) -> None:
    source = workspace / "list.txt"
    source.write_text(server.serve("/a.mp4"))
    bring(workspace, source)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "b.mp4").write_bytes(b"b" * 100)
    listing = rows_for(load_manifest("web"), roots=[workspace / "raw" / "list", tmp_path / "plain"])
    assert len(listing.rows) == 2


def test_dry_run_counts_and_writes_nothing(server: Any, workspace: Path) -> None:
    source = workspace / "list.txt"
    source.write_text(server.serve("/a.mp4"))
    report = bring(workspace, source, is_dry_run=True)
    assert (report.counts["planned"], report.counts["pending"]) == (1, 1)
    assert not (workspace / "raw").exists() and server.seen == []


def test_two_fetches_of_one_name_do_not_meet(server: Any, workspace: Path) -> None:
    source = workspace / "list.txt"
    source.write_text(server.serve("/a.mp4"))
    with (
        files.lock(workspace / "raw" / "list" / "LOCK", what="It"),
        pytest.raises(Busy, match="The fetch of list is being written by process"),
    ):
        bring(workspace, source)


def test_unforeseen_fault_is_a_row_and_a_non_zero_exit(
    server: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("http://x/?token=secret")

    monkeypatch.setattr("stmae_data.fetch.work.download", broken)
    source = workspace / "list.txt"
    source.write_text(server.serve("/a.mp4"))
    report = bring(workspace, source)
    assert report.reasons == {"internal_error": 1} and report.exit_code(is_strict=False) == 1
    assert b"secret" not in everything_written(workspace / "raw")


def test_full_disk_stops_the_run(server: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stmae_data.errors import StorageError

    source = workspace / "list.txt"
    source.write_text("\n".join(server.serve(f"/{number}.mp4") for number in range(3)))
    monkeypatch.setenv("STMAE_FAULT", "fetch.rename:1:ENOSPC")
    monkeypatch.setattr(files, "_passed", {})
    with pytest.raises(StorageError, match="make room there"):
        bring(workspace, source, workers=1)
    monkeypatch.delenv("STMAE_FAULT")
    assert bring(workspace, source).counts["fetched"] == 3


def test_hosts_take_turns() -> None:
    urls = ["http://a/1", "http://a/2", "http://b/1", "http://a/3", "http://[", "http://b/2"]
    assert by_host(urls) == ["http://a/1", "http://b/1", "http://[", "http://a/2", "http://b/2", "http://a/3"]


def test_threads_end_when_the_reader_goes() -> None:
    from stmae_data.fetch.pool import run_threads

    stop = threading.Event()
    running = run_threads(lambda number: number, iter(range(1000)), workers=2, stop=stop)
    assert next(running)[0] in (0, 1)
    running.close()
    assert stop.is_set()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.csv", None, "There is no list"),
        ("a.csv", "label\nx\n", "names no addresses: found the columns label, wanted url or youtube_id"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.txt", "# nothing\n", "There is nothing to fetch"),
    ],
)
def test_lists_that_are_none_are_told_in_one_sentence(
    name: str, text: str | None, message: str, workspace: Path
) -> None:
    if text is not None:
        (workspace / name).write_text(text)
    with pytest.raises(SourceError, match=message) as caught:
        bring(workspace, workspace / name)
    assert "\n" not in str(caught.value)


def test_words_that_mean_nothing_for_a_list_are_refused(workspace: Path) -> None:
    (workspace / "a.txt").write_text("http://example.org/a\n")
    with pytest.raises(UsageError, match="--base-url chooses among the parts"):
        bring(workspace, workspace / "a.txt", base_url="http://x/")
    with pytest.raises(UsageError, match="nothing to retry under 'net_404'"):
        bring(workspace, workspace / "a.txt", retry_failed=("net_404",))
    assert Job.parse("2/4") == Job(2, 4)
    for text in ("0/2", "3/2", "1", "a/b", "1/0"):
        with pytest.raises(UsageError, match="is not a job"):
            Job.parse(text)


def test_youtube_pages_and_ids_are_known_as_such(workspace: Path, trap: Callable[..., None]) -> None:
    lines = [
        "https://www.youtube.com/watch?v=abcdefghij1&t=3",
        "https://youtu.be/abcdefghij2?si=x",
        "https://m.youtube.com/shorts/abcdefghij3",
        "abcdefghij4",
        "https://example.org/watch?v=abcdefghij5",
        "https://www.youtube.com/playlist?list=abcdefghij6",
    ]
    (workspace / "a.txt").write_text("\n".join(lines))
    wanted = read_lists([workspace / "a.txt"])
    assert [each.video_id for each in wanted] == [*(f"abcdefghij{number}" for number in (1, 2, 3, 4)), None, None]
    assert wanted[0].shown == "https://youtu.be/abcdefghij1" and wanted[0].file == "files/abcdefghij1.mp4"
    trap("Web tables and lists", "one id, one name", "YouTube pages and bare ids")
