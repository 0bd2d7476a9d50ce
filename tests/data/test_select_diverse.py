"""Diverse selections: exact, nested, seeded, recorded; and refused in one sentence where there is nothing to tell clips apart by."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stmae_data import files
from stmae_data.dedup import dedup
from stmae_data.errors import Reason, SelectionError, UsageError
from stmae_data.records import SetRef, plan_key
from stmae_data.rewrite import Verdict, rewrite
from stmae_data.select import make_selection, named_sample, selected_clips
from stmae_data.select.diverse import farthest_first
from stmae_data.shards import open_set

_COLUMNS = {"clip_id": "VARCHAR", "model": "VARCHAR", "vector": "FLOAT[]"}
TIGHT = 0.999


def write(folder: Path, name: str, vectors: dict[str, Any]) -> Path:
    path = folder / "meta" / "embeddings" / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    rows = [{"clip_id": clip, "model": name, "vector": list(vector)} for clip, vector in vectors.items()]
    files.commit_table(path, rows, _COLUMNS, point="vectors", order_by="clip_id")
    return path


@pytest.fixture
def world(workspace: Path, small_sets: ModuleType) -> dict[str, NDArray[np.float64]]:
    """Set `many` of 40 clips, five around each of 8 directions that are at right angles; returns the vectors by clip id."""
    frames = small_sets.pictures(1, count=8)
    clips = [small_sets.clip("train", number, frames=frames) for number in range(40)]
    folder = small_sets.make(workspace, "many", clips, shard_size=40)
    noise = np.random.default_rng(0).normal(0, 0.001, (40, 16))
    vectors = {clip["clip_id"]: np.eye(16)[n % 8] * 3 + noise[n] for n, clip in enumerate(clips)}
    write(folder, "frozen", vectors)
    return vectors


def chosen(workspace: Path, name: str, **options: Any) -> list[str]:
    made = make_selection(workspace, name, source=SetRef("many"), is_diverse=True, **options)
    return [row["clip_id"] for row in files.read_table(made.path, "SELECT * FROM book ORDER BY ordinal")]


def test_each_clip_is_the_one_least_like_those_before() -> None:
    vectors = np.rint(np.random.default_rng(3).normal(size=(30, 5)) * 100)
    vectors[7] = vectors[4]
    order = list(farthest_first(vectors))
    assert sorted(order) == list(range(30)) and order[0] == 0 and order.index(4) < order.index(7)
    for place in range(1, 30):
        nearest = (vectors @ vectors[order[:place]].T).max(axis=1)
        left = [row for row in range(30) if row not in order[:place]]
        assert order[place] == min(left, key=lambda row: (nearest[row], row))


def test_every_direction_comes_before_any_comes_twice(workspace: Path, world: dict[str, NDArray[np.float64]]) -> None:
    directions = {clip: int(np.argmax(vector)) for clip, vector in world.items()}
    for seed in (0, 1):
        few = chosen(workspace, f"eight{seed}", samples=8, seed=seed)
        assert {directions[clip] for clip in few} == set(range(8))
        assert chosen(workspace, f"share{seed}", share=0.5, seed=seed)[:8] == few
        assert chosen(workspace, f"hours{seed}", hours=12 / 3600, seed=seed)[:8] == few
        assert len(chosen(workspace, f"all{seed}", share=1.0, seed=seed)) == 40
    assert chosen(workspace, "other", samples=8, seed=1) != chosen(workspace, "one", samples=8, seed=0)


def test_a_choice_without_diverse_is_another_choice(workspace: Path, world: dict[str, NDArray[np.float64]]) -> None:
    chosen(workspace, "few", samples=8)
    with pytest.raises(
        SelectionError, match=r"There is a selection few already, with diverse = {'embedding.*, wanted None"
    ):
        make_selection(workspace, "few", source=SetRef("many"), samples=8)
    assert make_selection(workspace, "few", source=SetRef("many"), samples=8, is_diverse=True).num_clips == 8
    make_selection(workspace, "plain", source=SetRef("many"), samples=8)
    with pytest.raises(SelectionError, match=r"with diverse = None, wanted {"):
        chosen(workspace, "plain", samples=8)


def test_the_sample_of_a_diverse_selection_is_a_fair_one(workspace: Path, small_sets: ModuleType) -> None:
    frames = small_sets.pictures(1, count=8)
    clips = [small_sets.clip("train", number, frames=frames, title="running") for number in range(12)]
    folder = small_sets.make(workspace, "titled", clips, shard_size=12)
    write(folder, "frozen", {clip["clip_id"]: np.eye(12)[n] + 0.1 * n for n, clip in enumerate(clips)})
    options: dict[str, Any] = {"source": SetRef("titled"), "hashtags_of": "titled", "seed": 3}
    made = make_selection(workspace, "few", is_diverse=True, samples=8, **options)
    taken = [row["clip_id"] for row in files.read_table(made.path, "SELECT * FROM book ORDER BY ordinal")]
    fair = sorted(taken, key=lambda clip_id: plan_key(3, clip_id))
    assert fair != taken and [clip.clip_id for clip in named_sample(workspace, "few", count=5)] == fair[:5]


def test_a_cosine_to_stop_at_leaves_no_two_alike(workspace: Path, world: dict[str, NDArray[np.float64]]) -> None:
    kept = chosen(workspace, "apart", max_cosine=TIGHT)
    units = {clip: vector / np.linalg.norm(vector) for clip, vector in world.items()}
    assert len(kept) == 8
    assert all(units[a] @ units[b] < TIGHT for a, b in itertools.combinations(kept, 2))
    assert all(max(units[clip] @ units[each] for each in kept) >= TIGHT for clip in set(world) - set(kept))
    with pytest.raises(SelectionError, match="wants 9 clips, 8 meet it"):
        chosen(workspace, "nine", samples=9, max_cosine=TIGHT)


def test_the_description_says_how_and_by_which_vectors(workspace: Path, world: dict[str, NDArray[np.float64]]) -> None:
    made = make_selection(workspace, "told", source=SetRef("many"), samples=5, is_diverse=True)
    table = workspace / "sets/many/meta/embeddings/frozen.parquet"
    said = files.read_json(made.path.with_suffix(".json"))["diverse"]
    assert said["embedding"] == "frozen" and said["table_sha256"] == files.sha256_file(table)
    assert said["method"].startswith("farthest point first") and said["max_cosine"] is None
    assert make_selection(workspace, "told", source=SetRef("many"), samples=5, is_diverse=True) == made
    write(table.parent.parent.parent, "frozen", {clip: -vector[::-1] for clip, vector in world.items()})
    with pytest.raises(SelectionError, match="There is a selection told already, with diverse"):
        make_selection(workspace, "told", source=SetRef("many"), samples=5, is_diverse=True)


def test_what_cannot_be_told_apart_is_refused(workspace: Path, world: dict[str, NDArray[np.float64]]) -> None:
    folder = workspace / "sets" / "many"
    some = dict(itertools.islice(world.items(), 30))
    write(folder, "partial", some)
    write(folder, "mixed", {**world, next(iter(world)): np.ones(3)})
    write(folder, "empty", {**world, next(iter(world)): np.zeros(16)})
    for options, error, message in [
        (
            {"samples": 3},
            SelectionError,
            "has the embeddings empty, frozen, mixed, partial; name one: --embedding NAME",
        ),
        ({"samples": 3, "embedding": "other"}, SelectionError, "has no embeddings 'other'; it has empty, frozen"),
        ({"samples": 3, "embedding": "partial"}, SelectionError, "10 of 40 clips have no vector"),
        ({"samples": 3, "embedding": "mixed"}, SelectionError, "differ in width"),
        ({"samples": 3, "embedding": "empty"}, SelectionError, "has no direction"),
        ({"samples": 41, "embedding": "frozen"}, SelectionError, "wants 41 clips, 40 meet it"),
        ({"embedding": "frozen"}, UsageError, "wants to know when to stop"),
        ({"max_cosine": 2.0}, UsageError, "is no cosine to stop at"),
        ({"samples": 3, "like": SetRef("many")}, UsageError, "name one of them"),
        ({"samples": 3, "is_diverse": False, "max_cosine": 0.5}, UsageError, "wants --diverse"),
    ]:
        with pytest.raises(error, match=message):
            make_selection(workspace, "x", source=SetRef("many"), **{"is_diverse": True, **options})  # type: ignore[arg-type]
    assert not (workspace / "selections" / "x.json").exists()


def test_a_set_without_vectors_says_how_to_get_them(workspace: Path, small_sets: ModuleType) -> None:
    small_sets.make(workspace, "bare", [small_sets.clip("train", 0)])
    with pytest.raises(SelectionError, match=r"Set bare has no embeddings .* stmae-train embed bare --init RUN"):
        make_selection(workspace, "x", source=SetRef("bare"), samples=1, is_diverse=True)


def test_vectors_serve_the_filters_of_dedup_too(
    workspace: Path, world: dict[str, NDArray[np.float64]], tmp_path: Path
) -> None:
    policy = tmp_path / "alike.toml"
    policy.write_text(
        '[filters]\nalike = "clip_id IN (SELECT b.clip_id FROM embedding AS a JOIN embedding AS b ON a.model = b.model '
        f'AND a.clip_id < b.clip_id WHERE list_cosine_similarity(a.vector, b.vector) >= {TIGHT})"\n'
    )
    report = dedup(workspace, ["many"], levels=["bytes"], policy=policy, dry_run=True)
    assert dict(report.filtered) == {("many:train", "alike"): 32}


def test_a_new_set_keeps_the_vectors_of_the_clips_it_keeps(
    workspace: Path, world: dict[str, NDArray[np.float64]]
) -> None:
    row = files.read_table(open_set(workspace, "many").ledgers(), "SELECT row_id, clip_id FROM book LIMIT 1")[0]
    before = (workspace / "sets/many/meta/embeddings/frozen.parquet").read_bytes()
    rewrite(workspace, "many", [Verdict(row["row_id"], Reason.FILTERED, "d")], run_id="r", to="fewer")
    kept = files.read_table(workspace / "sets/fewer/meta/embeddings/frozen.parquet")
    assert {each["clip_id"] for each in kept} == set(world) - {row["clip_id"]}
    assert (workspace / "sets/many/meta/embeddings/frozen.parquet").read_bytes() == before
    made = make_selection(workspace, "new", source=SetRef("fewer"), samples=8, is_diverse=True)
    assert len(selected_clips(workspace, SetRef("fewer", selection="new"))) == made.num_clips == 8
