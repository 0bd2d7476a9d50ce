"""The catalogue: locked SQL, a rebuildable cache, numbers, the story of a clip, differences."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stmae_data import files
from stmae_data.catalog import (
    TABLES,
    Answer,
    diff,
    list_sets,
    locked_select,
    rebuild_catalog,
    show_clip,
    sql,
    stats,
)
from stmae_data.errors import SelectionError, SetError


def _helper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_sets", Path(__file__).with_name("verify_sets.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sets = _helper()


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with `alpha` and `beta`, which shares nothing with it."""
    workspace = tmp_path_factory.mktemp("catalog")
    sets.make_set(workspace, "alpha", clips=6)
    sets.make_set(workspace, "beta", clips=5, seed=1, splits=("train",))
    return workspace


def _first_written(workspace: Path, name: str = "alpha") -> str:
    answer = locked_select(workspace, "SELECT clip_id FROM written ORDER BY clip_id LIMIT 1", sets=[name])
    return str(answer.rows[0][0])


def test_every_ledger_row_of_every_set_is_a_row_of_clip(two_sets: Path) -> None:
    answer = sql(two_sets, "SELECT set_name, outcome, count(*) AS n FROM clip GROUP BY ALL ORDER BY ALL")
    assert answer.columns == ["set_name", "outcome", "n"]
    assert answer.rows == [
        ("alpha", "dropped", 2),
        ("alpha", "failed", 2),
        ("alpha", "written", 12),
        ("beta", "dropped", 1),
        ("beta", "failed", 1),
        ("beta", "written", 5),
    ]
    assert answer.records()[0] == {"set_name": "alpha", "outcome": "dropped", "n": 2}


def test_only_the_named_sets_are_seen_and_values_go_through_parameters(two_sets: Path) -> None:
    answer = locked_select(
        two_sets, "SELECT DISTINCT set_name FROM clip WHERE reason IS DISTINCT FROM ?", sets=["beta"], parameters=["x"]
    )
    assert answer.rows == [("beta",)]
    hostile = locked_select(two_sets, "SELECT count(*) FROM clip WHERE title = ?", parameters=["' OR 1=1 --"])
    assert hostile.rows == [(0,)]


@pytest.mark.parametrize("table", TABLES)
def test_each_table_can_be_read(two_sets: Path, table: str) -> None:
    assert "set_name" in sql(two_sets, f"SELECT * FROM {table}").columns


def test_views_unfold_annotations_tags_and_signals(two_sets: Path) -> None:
    labels = sql(two_sets, "SELECT DISTINCT label_raw FROM annotation WHERE shard_split = 'train' ORDER BY 1")
    assert [row[0] for row in labels.rows] == sorted(sets.LABELS)
    assert sql(two_sets, "SELECT DISTINCT tag, origin FROM tag").rows == [("motion", "tag")]
    assert sql(two_sets, "SELECT name, max(value) FROM signal GROUP BY 1 ORDER BY 1").rows == [
        ("black_share", 0.0),
        ("motion", 0.5),
    ]


OUTSIDE = [
    "SELECT * FROM read_csv('{file}')",
    "SELECT * FROM read_csv_auto('{file}')",
    "SELECT * FROM read_text('{file}')",
    "SELECT * FROM read_blob('{file}')",
    "SELECT * FROM read_json('{file}')",
    "SELECT * FROM read_parquet('{file}')",
    "SELECT * FROM parquet_metadata('{file}')",
    "SELECT * FROM sniff_csv('{file}')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM '{file}'",
    'SELECT * FROM "{file}"',
    "FROM '{file}'",
    "SELECT * FROM query('SELECT * FROM read_text(''{file}'')')",
    "SELECT * FROM query_table('{file}')",
    "SELECT * FROM 'http://127.0.0.1:9/x.csv'",
    "SELECT * FROM read_text('http://127.0.0.1:9/x')",
    "SELECT * FROM sqlite_scan('{file}', 'x')",
    "SELECT * FROM connection",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM clip WHERE (num_frames > 1) or (select count(*) from read_csv('{file}')) > 0",
    "SELECT clip_id FROM clip WHERE (n>1) or (select count(*) from read_csv('{file}'))",
    "SELECT (SELECT content FROM read_text('{file}'))",
    "WITH stolen AS (SELECT * FROM read_text('{file}')) SELECT * FROM stolen",
    "WITH gone AS (INSERT INTO shard_set VALUES ('x', 1, 'y', true) RETURNING *) SELECT * FROM gone",
    "SELECT * FROM enable_logging()",
]


@pytest.mark.parametrize("text", OUTSIDE)
def test_a_select_cannot_reach_outside_the_books(two_sets: Path, tmp_path: Path, text: str) -> None:
    canary = tmp_path / "canary.csv"
    canary.write_text("secret\nplanted-canary\n")
    with pytest.raises(SelectionError) as caught:
        sql(two_sets, text.format(file=canary, folder=tmp_path))
    assert "planted-canary" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_that_exists_cannot_be_read_either(two_sets: Path) -> None:
    plan = two_sets / "sets" / "alpha" / "meta" / "plan.parquet"
    for text in (f"SELECT * FROM '{plan}'", f"SELECT * FROM read_parquet('{plan}')"):
        with pytest.raises(SelectionError, match="cannot be run"):
            sql(two_sets, text)


NOT_ONE_SELECT = [
    "",
    "   ",
    "-- nothing",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE clip",
    "COPY (SELECT 1) TO '{file}'",
    "COPY clip TO '{file}'",
    "EXPORT DATABASE '{file}'",
    "ATTACH '{file}' AS other",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 4",
    "SET enable_external_access = true",
    "RESET enable_external_access",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "CREATE TABLE x AS SELECT 1",
    "CREATE MACRO f() AS 1",
    "INSERT INTO clip SELECT * FROM clip",
    "DELETE FROM clip",
    "DROP TABLE clip",
    "UPDATE clip SET outcome = 'written'",
    "VACUUM",
    "CHECKPOINT",
    "USE memory",
    "PREPARE p AS SELECT 1",
    "EXPLAIN ANALYZE SELECT 1",
    "BEGIN",
    "' OR 1=1",
]


@pytest.mark.parametrize("text", NOT_ONE_SELECT)
def test_anything_but_one_select_is_refused(two_sets: Path, tmp_path: Path, text: str) -> None:
    target = tmp_path / "made"
    with pytest.raises(SelectionError, match=r"exactly one SELECT|cannot be read|cannot be run") as caught:
        sql(two_sets, text.format(file=target))
    assert not target.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range + b.range = -1",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r",
    ],
)
def test_a_select_that_takes_too_long_is_stopped(two_sets: Path, text: str) -> None:
    with pytest.raises(SelectionError, match=r"stopped after 0.2 seconds"):
        locked_select(two_sets, text, timeout_seconds=0.2)


def test_a_select_that_takes_too_much_memory_ends_in_one_sentence(two_sets: Path) -> None:
    with pytest.raises(SelectionError, match="cannot be run"):
        locked_select(two_sets, "SELECT list(range) FROM range(50000000)", memory_limit="64MB", timeout_seconds=60)


def test_rows_beyond_the_cap_are_left_out_and_said_so(two_sets: Path) -> None:
    answer = sql(two_sets, "SELECT * FROM range(50000)", max_rows=3)
    assert answer == Answer(["range"], [(0,), (1,), (2,)], is_cut=True)
    assert not sql(two_sets, "SELECT * FROM range(3)", max_rows=3).is_cut


def test_a_select_leaves_no_file_behind(two_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(two_sets.rglob("*"))
    sql(two_sets, "SELECT * FROM clip a, clip b ORDER BY a.clip_id, b.clip_id")
    assert sorted(two_sets.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                "SELECT",
                "*",
                "FROM",
                "clip",
                "(",
                ")",
                "'",
                '"',
                ";",
                "--",
                "/*",
                "read_text",
                "'x'",
                "\x00",
                "\ud800",
                "?",
            ]
        ),
        max_size=12,
    ).map(" ".join)
)
def test_any_text_ends_in_an_answer_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    try:
        answer = locked_select(tmp_path_factory.getbasetemp(), text, sets=[])
    except SelectionError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(answer, Answer)


def test_an_unknown_set_is_named_with_those_there_are(two_sets: Path) -> None:
    with pytest.raises(SetError, match=r"no set 'gamma'.*alpha, beta"):
        locked_select(two_sets, "SELECT 1", sets=["gamma"])


def test_a_damaged_ledger_is_one_sentence(workspace: Path) -> None:
    folder = sets.make_set(workspace, "alpha")
    (folder / "meta" / "ledger" / "train-000000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(SetError, match=r"book of set alpha cannot be read.*verify alpha"):
        sql(workspace, "SELECT 1")


def test_a_seal_cannot_point_outside_its_set(workspace: Path) -> None:
    folder = sets.make_set(workspace, "alpha")
    seal = json.loads((folder / "meta" / "set.json").read_text())
    seal["splits"]["train"]["shards"][0]["name"] = "../../../../etc/passwd"
    (folder / "meta" / "set.json").write_text(json.dumps(seal))
    with pytest.raises(SetError, match="names a shard"):
        sql(workspace, "SELECT 1")


def test_an_unsealed_set_shows_its_committed_ledgers(workspace: Path) -> None:
    sets.make_set(workspace, "alpha", is_sealed=False)
    assert sql(workspace, "SELECT is_sealed, version FROM shard_set").rows == [(False, None)]
    assert sql(workspace, "SELECT count(*) FROM clip").rows == [(14,)]
    assert stats(workspace, "alpha").digest is None


def test_an_empty_workspace_answers_nothing(workspace: Path) -> None:
    assert sql(workspace, "SELECT * FROM clip").rows == []
    assert list_sets(workspace) == []


def test_the_catalogue_is_rebuilt_with_equal_rows_after_loss_and_damage(workspace: Path) -> None:
    folder = sets.make_set(workspace, "alpha")
    sets.decide(folder, "dedup-1", [{"clip_id": "a", "verb": "drop", "level": "content"}])
    summary = rebuild_catalog(workspace)
    assert (summary.sets, summary.clips, summary.written, summary.decisions) == (1, 14, 10, 1)
    first = _catalogue_rows(summary.path)
    summary.path.unlink()
    assert _catalogue_rows(rebuild_catalog(workspace).path) == first
    summary.path.write_bytes(b"damaged")
    Path(f"{summary.path}.wal").write_bytes(b"damaged too")
    assert _catalogue_rows(rebuild_catalog(workspace).path) == first
    assert [path.name for path in workspace.iterdir() if path.name.startswith(files.TEMP_PREFIX)] == []


def _catalogue_rows(path: Path) -> list[tuple[object, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return [
            row
            for table in TABLES
            for row in connection.execute(f"SELECT '{table}', * FROM {table} ORDER BY ALL").fetchall()
        ]


def test_a_full_disk_leaves_the_old_catalogue(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stmae_data.errors import StorageError

    sets.make_set(workspace, "alpha")
    path = rebuild_catalog(workspace).path
    before = path.read_bytes()
    files._passed.clear()
    monkeypatch.setenv("STMAE_FAULT", "catalog.rename:1:ENOSPC")
    with pytest.raises(StorageError):
        rebuild_catalog(workspace)
    assert path.read_bytes() == before
    assert sorted(each.name for each in workspace.iterdir()) == ["catalog.duckdb", "catalog.lock", "sets"]


def test_stats_count_every_planned_row_once(two_sets: Path) -> None:
    found = stats(two_sets, "alpha")
    assert (found.planned, found.written, found.dropped, found.failed) == (16, 12, 2, 2)
    assert found.reasons == {"duplicate": 2, "empty": 2}
    assert all(split.is_conserved for split in found.splits)
    train = found.splits[0]
    assert (train.split, train.classes, train.shards, train.flags) == ("train", 3, 1, {"vfr": 1})
    assert train.durations_seconds == {"min": 2.0, "p5": 2.025, "median": 2.25, "p95": 2.475, "max": 2.5}
    assert train.hours == pytest.approx(sum(2 + n / 10 for n in range(6)) / 3600, abs=1e-6)
    assert train.stored_bytes == sum(700 + n for n in range(6))
    assert json.loads(json.dumps(found.as_json()))["set"] == "alpha"
    columns, rows = found.as_table()
    assert columns == ["", "train", "val"]
    assert ["  duplicate", 1, 1] in rows


def test_sets_are_listed_with_their_numbers(two_sets: Path) -> None:
    listed = list_sets(two_sets)
    assert [(each.name, each.written, each.splits, each.is_sealed) for each in listed] == [
        ("alpha", 12, {"train": 6, "val": 6}, True),
        ("beta", 5, {"train": 5}, True),
    ]


def test_the_story_of_a_clip_goes_from_source_to_runs(workspace: Path) -> None:
    folder = sets.make_set(workspace, "alpha", clips=4, splits=("train",))
    sets.make_set(workspace, "beta", clips=4, splits=("train",))
    clip_id = _first_written(workspace)
    digest = json.loads((folder / "meta" / "set.json").read_text())["digest"]
    sets.decide(folder, "dedup-1", [{"clip_id": "x", "verb": "drop", "other_clip_id": clip_id, "level": "content"}])
    sets.group(folder, [{"group_id": "g", "kind": "content", "clip_id": each} for each in (clip_id, "x")])
    files.commit_table(
        workspace / "selections" / "some.parquet", [{"clip_id": clip_id}], {"clip_id": "VARCHAR"}, point="selection"
    )
    files.commit_json(workspace / "selections" / "some.json", {"digest": "s1"}, point="selection")
    for run, (reference, set_digest, selection_digest) in {
        "reads": ("alpha@0.5", digest, None),
        "selects": ("alpha:train/some", digest, "s1"),
        "selects-others": ("alpha:train/others", digest, "s2"),
        "other-split": ("alpha:val", digest, None),
        "older": ("alpha:train", "before", None),
        "foreign": ("../{000..003}.tar", None, None),
    }.items():
        entry = {"reference": reference, "role": "train", "set_digest": set_digest, "version": 1}
        entry |= {"digest": selection_digest or set_digest, "selection_digest": selection_digest}
        files.commit_json(workspace / "runs" / run / "data.json", {"schema_version": 1, "sets": [entry]}, point="run")
    story = show_clip(workspace, clip_id)
    assert {row["set_name"] for row in story.rows} == {"alpha", "beta"}
    assert story.rows[0]["place"].startswith(story.rows[0]["shard"] + ".tar:")
    assert story.decisions[0]["level"] == "content"
    assert len(story.groups) == 2
    assert story.selections == ("some",)
    assert [(run["run"], run["is_same_data"]) for run in story.runs] == [
        ("older", False),
        ("reads", True),
        ("selects", True),
    ]
    json.dumps(story.as_json())
    columns, table = story.as_table()
    assert {len(row) for row in table} == {len(columns)}
    assert {"source", "label", "measured", "outcome", "stored", "decision", "group", "selection", "run"} == {
        row[0] for row in table
    }


def test_an_unknown_clip_gets_the_nearest_name(two_sets: Path) -> None:
    clip_id = _first_written(two_sets)
    with pytest.raises(SelectionError, match=f"Did you mean {clip_id}"):
        show_clip(two_sets, clip_id[:-1])


def test_a_diff_counts_what_left_what_came_and_why(workspace: Path) -> None:
    sets.make_set(workspace, "big", clips=6, splits=("train",), failed=0, duplicates=0)
    sets.make_set(workspace, "small", clips=4, splits=("train",), failed=0, duplicates=0)
    sets.make_set(workspace, "other", clips=4, splits=("train",), media_bytes=900)
    found = diff(workspace, "big", "small")
    assert (found.only_a, found.only_b, found.both, found.changed) == (2, 0, 4, 0)
    assert found.left_because == {"not planned": 2}
    assert len(found.examples["only_a"]) == 2
    assert not found.is_same
    assert diff(workspace, "big", "big:train").is_same
    assert diff(workspace, "small", "other").changed == 4
    assert found.classes == (3, 3)
    assert found.hours[0] > found.hours[1]
    json.dumps(found.as_json())
    assert sum(a - b for a, b in found.by_class.values()) == 2 and found.num_classes_apart == len(found.by_class)
    assert list(found.by_source.values()) == [(6, 4)] and found.num_sources_apart == 1
    columns, table = found.as_table()
    assert columns == ["what", "big", "small"]
    assert ["    there: not planned", 2, ""] in table and ["clips", 6, 4] in table
    few = diff(workspace, "big", "small", limit=1)
    assert len(few.by_class) == 1 and few.num_classes_apart == found.num_classes_apart
    with pytest.raises(SetError, match="no split 'val'"):
        diff(workspace, "big", "small:val")
