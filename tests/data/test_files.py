"""The committing writer: whole or not at all, whatever kills it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stmae_data import files
from stmae_data.errors import Busy, SetError, StorageError


def run_with_fault(code: str, fault: str) -> int:
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, "STMAE_FAULT": fault}).returncode


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_killed_commit_leaves_the_old_file_and_no_torn_one(tmp_path: Path, step: str) -> None:
    target = tmp_path / "book.json"
    files.commit_bytes(target, b"old", point="p")
    code = f"from stmae_data import files; from pathlib import Path; files.commit_bytes(Path({str(target)!r}), b'new', point='p')"
    assert run_with_fault(code, f"p.{step}:1") == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    files.sweep_temp(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["book.json"]


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_full_or_broken_disk_is_a_storage_error_and_leaves_nothing(
    tmp_path: Path, step: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STMAE_FAULT", f"q.{step}:1:{error}")
    monkeypatch.setattr(files, "_passed", {})
    with pytest.raises(StorageError, match=r"Cannot write .*book.json.*run the same command again") as raised:
        files.commit_bytes(tmp_path / "book.json", b"new", point="q")
    assert raised.value.exit_code == 74
    assert not list(tmp_path.iterdir())


def test_tables_keep_nested_values_nulls_and_large_integers(tmp_path: Path) -> None:
    columns = {
        "n": "UBIGINT",
        "tags": "STRUCT(tag VARCHAR, origin VARCHAR)[]",
        "signals": "MAP(VARCHAR, DOUBLE)",
        "text": "VARCHAR",
    }
    row = {"n": 2**64 - 1, "tags": [{"tag": "ü", "origin": "title"}], "signals": {"motion": 0.5}, "text": "a'b\"\x00c"}
    files.commit_table(tmp_path / "t.parquet", [row, {"n": 0}], columns, point="t", metadata={"tar_sha256": "x"})
    assert files.read_table(tmp_path / "t.parquet") == [row, {"n": 0, "tags": None, "signals": None, "text": None}]
    assert files.read_table_metadata(tmp_path / "t.parquet") == {"schema_version": "1", "tar_sha256": "x"}


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [{"n": number, "text": f"row {number}"} for number in range(5000)]
    for name in ("a", "b"):
        files.commit_table(tmp_path / name, rows, {"n": "BIGINT", "text": "VARCHAR"}, point="t")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_damaged_table_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(SetError, match=r"bad.parquet cannot be read as a table"):
        files.read_table(tmp_path / "bad.parquet")


def test_a_held_lock_names_its_holder_and_is_free_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "LOCK"
    code = (
        "import sys; from stmae_data import files; from pathlib import Path\n"
        f"with files.lock(Path({str(path)!r}), what='Set x'):\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None and holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(Busy, match=rf"Set x is being written by process {holder.pid}") as raised,
        files.lock(path, what="Set x"),
    ):
        pass
    assert raised.value.exit_code == 75
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with files.lock(path, what="Set x"):
        pass


def test_links_share_bytes_and_copies_replace_them_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    files.link_or_copy(tmp_path / "a", tmp_path / "b", point="link")
    assert (tmp_path / "b").stat().st_ino == (tmp_path / "a").stat().st_ino


def test_a_name_that_a_dead_process_of_this_number_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """As in containers, where process ids come again at every start."""
    with contextlib.suppress(RuntimeError), files.committing(tmp_path / "a", point="x") as stream:
        left = Path(stream.name)
        raise RuntimeError("stop")
    left.write_bytes(b"half")
    files.commit_bytes(tmp_path / "a", b"whole", point="x")
    assert (tmp_path / "a").read_bytes() == b"whole" and left.read_bytes() == b"half"
