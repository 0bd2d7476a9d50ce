"""What was taken down in a workspace comes into none of its sets again, under whatever name, address or bytes it is known by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stmae_data import files
from stmae_data.build import BuildRequest, build
from stmae_data.build.removed import Tombstones, read_tombstones
from stmae_data.errors import Reason, SelectionError
from stmae_data.manifest import load_manifest
from stmae_data.records import set_folder
from stmae_data.remove import read_wanted, remove
from stmae_data.remove.book import note_takedown
from stmae_data.remove.match import Hit
from stmae_data.shards import open_set
from stmae_data.verify import verify

MANIFEST = 'name = "web"\nrelease = "1"\nkind = "folder"\nshort_side_px = 64\n[splits.train]\n'
CLIP = "web_" + "7" * 32


def noted(workspace: Path, sets: tuple[str, ...] = (), **named: Any) -> Tombstones:
    """The tombstones of set `web` after a takedown that found one piece of a film."""
    hit = Hit("web", "row", CLIP, True, False, False, None, "a" * 64, "b" * 64, 0, 4000, "id")
    note_takedown(workspace, read_wanted(**named), [hit], reason="asked", sets=sets, removed_at=None)
    return read_tombstones(set_folder(workspace, "web"))


@pytest.mark.parametrize(
    ("named", "clip_id", "told"),
    [
        ({"ids": ["abcdefghijk"]}, "abcdefghijk_000010_000020", {"platform": "youtube", "platform_id": "abcdefghijk"}),
        ({"ids": ["film"]}, "film_2", {"parent_clip_id": "film"}),
        ({"ids": ["web_" + "5" * 32]}, "web_" + "5" * 32 + "_0_4000", {}),
        ({"ids": ["x"]}, CLIP, {}),
        ({"uploaders": ["ann"]}, "new", {"uploader_id": "ann"}),
        ({"uploaders": ["ann"]}, None, {"channel_id": "ann"}),
        ({"urls": ["https://youtu.be/abcdefghijk"]}, "new", {"platform": "youtube", "platform_id": "abcdefghijk"}),
        ({"urls": ["http://V.example:80/3.mp4/"]}, None, {"url": "https://user@v.example/3.mp4?x=1"}),
        ({"urls": ["file:///films/3.mp4"]}, None, {"source_uri": "file:///films/3.mp4"}),
    ],
)
def test_rows_are_known_by_all_their_names(
    tmp_path: Path, named: dict[str, list[str]], clip_id: str | None, told: dict[str, Any]
) -> None:
    problem = noted(tmp_path, **named).problem_of_id("new row", clip_id, told)
    assert problem == (Reason.REMOVED, "it was taken down in this workspace (asked)")
    assert noted(tmp_path / "other", ids=["other"]).problem_of_id("new row", "new", told) is None


def test_bytes_are_known_and_other_pieces_of_the_film_stay(tmp_path: Path) -> None:
    found = noted(tmp_path, hashes=["C" * 64])
    assert found.problem_of_bytes("b" * 64, is_cut=True, start_ms=0, end_ms=4000) is not None
    assert found.problem_of_bytes("b" * 64, is_cut=True, start_ms=4000, end_ms=8000) is None
    assert found.problem_of_bytes("b" * 64, is_cut=False, start_ms=None, end_ms=None) is None
    assert found.problem_of_bytes("c" * 64, is_cut=True, start_ms=4000, end_ms=8000) is not None
    assert found.problem_of_clip("c" * 64, "e" * 64) is not None and found.problem_of_clip(None, "a" * 64) is not None
    assert found.problem_of_clip(None, "e" * 64) is None


def test_an_address_whose_query_tells_films_apart_bars_what_it_found_alone(tmp_path: Path) -> None:
    found = noted(tmp_path, urls=["https://films.example/watch?film=90"])
    assert found.problem_of_id("new", "other", {"url": "https://films.example/watch"}) is None
    assert found.problem_of_id("new", CLIP, {"url": "https://films.example/watch"}) is not None
    assert found.problem_of_id("new", "other", {"url": "https://[broken/watch"}) is None


def test_a_takedown_of_named_sets_bars_them_alone_and_the_book_is_written_once(tmp_path: Path) -> None:
    assert noted(tmp_path, ("web",), ids=["x"]).problem_of_id("r", "x", {}) is not None
    assert read_tombstones(set_folder(tmp_path, "other")).problem_of_id("r", "x", {}) is None
    before = (tmp_path / "removed.parquet").stat().st_ino
    noted(tmp_path, ("web",), ids=["x"])
    assert (tmp_path / "removed.parquet").stat().st_ino == before
    noted(tmp_path, ids=["x"])
    assert read_tombstones(set_folder(tmp_path, "other")).problem_of_id("r", "x", {}) is not None


def test_later_builds_of_any_set_honour_a_takedown(tmp_path: Path, kinetics_tree: Path) -> None:
    videos = [path.read_bytes() for path in sorted((kinetics_tree / "train").rglob("*.mp4"))]
    raw = tmp_path / "raw"
    raw.mkdir()

    def offer(number: int, uploader: str) -> None:
        (raw / f"{number}.mp4").write_bytes(videos[number])
        (raw / f"{number}.info.json").write_text(json.dumps({"id": str(number), "uploader_id": uploader}))

    def reasons(name: str) -> dict[str, str | None]:
        toml = tmp_path / "web.toml"
        toml.write_text(MANIFEST)
        build(BuildRequest(tmp_path, load_manifest(str(toml)), roots=(raw,), name=name))
        assert verify(tmp_path, name).as_json()["damages"] == []
        table = files.read_table(open_set(tmp_path, name).ledgers())
        return {Path(row["source_uri"]).stem: row["reason"] for row in table}

    offer(0, "ann")
    offer(1, "bob")
    assert reasons("first") == {"0": None, "1": None}
    with pytest.raises(SelectionError, match="knows any of it"):
        remove(tmp_path, read_wanted(uploaders=["nobody"]), reason="asked")
    assert not (tmp_path / "removed.parquet").exists()
    remove(tmp_path, read_wanted(uploaders=["ann"]), reason="asked", dry_run=True)
    assert not (tmp_path / "removed.parquet").exists()
    remove(tmp_path, read_wanted(uploaders=["ann"]), reason="asked")
    (raw / "0.info.json").unlink()  # known by its bytes alone, in a set that never had it
    offer(2, "ann")  # known by its uploader alone
    assert reasons("first") == {"0": "removed", "1": None, "2": "removed"}
    assert reasons("second") == {"0": "removed", "1": None, "2": "removed"}
