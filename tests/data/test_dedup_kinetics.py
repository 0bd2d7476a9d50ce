"""The overlap of the real Kinetics tables (DEDUP §1), exactly, whatever the order of their rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from stmae_data import files
from stmae_data.dedup import leaks

# table A, table B, distinct rows of A with the same id, with the same id and overlapping windows, DEDUP §1
KNOWN = [
    ("k400_val_2017", "k600_val_2018", 13569, 13567),
    ("k400_val_2017", "k600_test_2018", 450, 450),
    ("k400_test_2017", "k600_test_2018", 27641, 27633),
    ("k600_test_2018", "k600_val_2018", 28, 12),
]


@pytest.mark.parametrize(("a", "b", "video", "overlap"), KNOWN)
def test_official_tables_share_what_is_known(
    workspace: Path, shared_dir: Path, a: str, b: str, video: int, overlap: int
) -> None:
    tables = [str(shared_dir / "real" / "kinetics" / f"{name}.parquet") for name in (a, b)]
    report = leaks(workspace, tables[:1], tables[1:])
    (pair,) = report.as_json()["pairs"]
    assert (pair["video"]["train"], pair["overlap"]["train"]) == (video, overlap)
    assert pair["content"] is None and pair["bytes"] is None
    size = {"k600_val_2018": 30_000, "k600_test_2018": 72_924}[b]
    evaluation = f"{b}.parquet: {pair['video']['eval']} of its {size} clips (level video)."
    assert report.closing_line() == f"{a}.parquet has {video} clips duplicated in {evaluation}"


def test_a_list_of_bare_ids_compares_at_the_level_of_videos_alone(workspace: Path, shared_dir: Path) -> None:
    folder = shared_dir / "real" / "kinetics"
    train, evaluation = folder / "k400_train_minikinetics200_ids.parquet", folder / "k600_val_2018.parquet"
    (pair,) = leaks(workspace, [str(train)], [str(evaluation)]).as_json()["pairs"]
    assert pair["video"]["train"] == 316 and pair["id"] is None and pair["overlap"] is None


def test_the_order_of_rows_changes_nothing(workspace: Path, shared_dir: Path, tmp_path: Path) -> None:
    folder = shared_dir / "real" / "kinetics"
    train, evaluation = folder / "k600_test_2018.parquet", folder / "k600_val_2018.parquet"
    shuffled = tmp_path / train.name
    connection = files.connect()
    query = f"SELECT * FROM read_parquet('{train}') ORDER BY hash(youtube_id || '7')"
    files.copy_table(connection, query, shuffled, point="test")
    connection.close()
    assert leaks(workspace, [str(shuffled)], [str(evaluation)]) == leaks(workspace, [str(train)], [str(evaluation)])
