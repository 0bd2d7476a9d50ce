"""Locked SQL over books that are larger than the memory: an answer, no file to read, none left."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType

import duckdb
import pytest

from stmae_data.catalog import locked_select
from stmae_data.errors import SelectionError

ROWS = 80_000
MEMORY = "150MB"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, small_sets: ModuleType) -> Path:
    """A workspace whose one ledger tells 160 MB of descriptions."""
    workspace = tmp_path_factory.mktemp("large")
    folder = small_sets.make(workspace, "w", [small_sets.clip("train", 0)])
    ledger = folder / "meta" / "ledger" / "train-000000.parquet"
    wide = ledger.with_suffix(".wide")
    with duckdb.connect() as connection:
        connection.execute(
            f"""COPY (SELECT * REPLACE (md5(i::VARCHAR) AS row_id, repeat(sha256(i::VARCHAR), 32) AS description)
                FROM '{ledger}', range({ROWS}) r(i)) TO '{wide}' (FORMAT parquet, ROW_GROUP_SIZE 4096)"""
        )
    wide.replace(ledger)
    return workspace


@pytest.fixture(autouse=True)
def _rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder and a folder for temporary files that tests can look into."""
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def test_books_larger_than_the_memory_are_read_and_leave_nothing(large: Path, tmp_path: Path) -> None:
    answer = locked_select(large, "SELECT count(*), sum(length(description)) FROM written", memory_limit=MEMORY)
    assert answer.rows == [(ROWS, ROWS * 64 * 32)]
    assert not list((tmp_path / "here").iterdir()) and not list((tmp_path / "temporary").iterdir())


def test_the_room_of_the_books_is_no_way_out(tmp_path: Path, small_sets: ModuleType) -> None:
    """The text can learn where the books were laid; nothing is there to read, and nothing else can be."""
    workspace = tmp_path / "small"
    small_sets.make(workspace, "w", [small_sets.clip("train", 0)])
    inside = "(SELECT path FROM duckdb_databases() WHERE database_name = 'books')"
    for text in (
        f"SELECT content FROM read_blob({inside})",
        f"SELECT * FROM glob(regexp_replace({inside}, '[^/]*$', '*'))",
        f"SELECT content FROM read_text(regexp_replace({inside}, '[^/]*$', '*'))",
        f"SELECT content FROM read_blob('{tmp_path}/temporary/*/*')",
    ):
        try:
            assert locked_select(workspace, text).rows == []
        except SelectionError as error:
            assert "cannot be run" in str(error)
    path = str(locked_select(workspace, f"SELECT {inside}").rows[0][0])
    assert path.startswith(str(tmp_path / "temporary"))
    for text in (f"COPY clip TO '{path}'", f"ATTACH '{path}' AS other", "DETACH books", "SET temp_directory = '/tmp'"):
        with pytest.raises(SelectionError, match="exactly one SELECT"):
            locked_select(workspace, text)
    assert not list((tmp_path / "temporary").iterdir())


def test_without_room_for_the_books_one_sentence_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(SelectionError, match=r"cannot be laid out for SQL in .*gone: .*TMPDIR"):
        locked_select(tmp_path, "SELECT 1")
