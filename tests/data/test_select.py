"""Selections: nested for every seed, immutable, made by SQL, hashtags, labels, hours; and refused in one sentence."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stmae_data import files
from stmae_data.dedup import leaks
from stmae_data.errors import Busy, Reason, SelectionError, SetError, UsageError
from stmae_data.records import SetRef
from stmae_data.report import render_sample
from stmae_data.report.sample import precision_of
from stmae_data.rewrite import Verdict, rewrite
from stmae_data.select import NamedClip, Selection, class_named, make_selection, named_sample, selected_clips
from stmae_data.select.profile import apportion
from stmae_data.shards import sample_index

LABELS = ("air drumming", "baking cookies", "zumba")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, small_sets: ModuleType) -> Path:
    """`named`: 30 labelled clips; `web`: 12 without labels, some with hashtags or titles of those classes."""
    workspace = tmp_path_factory.mktemp("select")
    frames = small_sets.pictures(1, count=8)
    named = [small_sets.clip("train", n, label=LABELS[min(n // 12, 2)], frames=frames) for n in range(30)]
    named += [small_sets.clip("val", 1, frames=frames)]
    small_sets.make(workspace, "named", named, shard_size=16)
    said: dict[int, dict[str, Any]] = {
        0: {"tags": [{"tag": "AirDrumming", "origin": "tag"}]},
        1: {"tags": [{"tag": "baking_cookies", "origin": "tag"}], "title": "zumba"},
        2: {"title": "My first ZUMBA lesson!"},
        3: {"title": "drumming air"},
        4: {"tags": [{"tag": "cookies", "origin": "tag"}]},
        5: {"title": "we were baking cookies all day"},
    }
    web = [small_sets.clip("train", 100 + n, label=None, frames=frames, **said.get(n, {})) for n in range(12)]
    small_sets.make(workspace, "web", web, shard_size=16)
    return workspace


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    """A workspace of its own that shares the read-only sets."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "sets").symlink_to(made / "sets")
    return folder


def chosen(selection: Selection) -> list[str]:
    return [row["clip_id"] for row in files.read_table(selection.path, "SELECT * FROM book ORDER BY ordinal")]


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_smaller_shares_lie_inside_larger_ones(workspace: Path, seed: int) -> None:
    parts = [
        chosen(make_selection(workspace, f"s{share}", source=SetRef("named"), share=share, seed=seed))
        for share in (0.1, 0.2, 1.0)
    ]
    assert [len(part) for part in parts] == [3, 6, 30]
    assert parts[1][:3] == parts[0] and parts[2][:6] == parts[1]
    assert sorted(parts[2]) == sorted(selected_clips(workspace, SetRef("named")))


def test_seeds_differ_and_samples_and_hours_nest_too(workspace: Path) -> None:
    one = chosen(make_selection(workspace, "one", source=SetRef("named"), samples=10, seed=1))
    two = chosen(make_selection(workspace, "two", source=SetRef("named"), samples=10, seed=2))
    hours = make_selection(workspace, "hours", source=SetRef("named"), hours=12 / 3600, seed=1)
    assert one != two and chosen(hours)[:10] == one and hours.seconds == 12.0


def test_the_same_choice_is_reused_and_another_under_its_name_is_refused(workspace: Path) -> None:
    first = make_selection(workspace, "same", source=SetRef("named"), samples=5)
    written = first.path.read_bytes()
    assert make_selection(workspace, "same", source=SetRef("named"), samples=5) == first
    twin = make_selection(workspace, "twin", source=SetRef("named"), samples=5)
    assert twin.digest == first.digest and first.path.read_bytes() == written
    with pytest.raises(SelectionError, match="There is a selection same already"):
        make_selection(workspace, "same", source=SetRef("named"), samples=6)


def test_two_of_one_name_at_once_leave_one_that_agrees_with_itself(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process chooses otherwise while this one looks, and again while it writes."""
    lock, errors = files.lock, []

    def overtaken(path: Path, *, what: str) -> Any:
        monkeypatch.undo()
        make_selection(workspace, "x", source=SetRef("named"), samples=5)
        return lock(path, what=what)

    monkeypatch.setattr(files, "lock", overtaken)
    with pytest.raises(SelectionError, match="There is a selection x already, with parameters"):
        make_selection(workspace, "x", source=SetRef("named"), samples=9)
    commit_json = files.commit_json

    def during(path: Path, value: Any, *, point: str) -> None:
        monkeypatch.undo()
        with pytest.raises(Busy, match="Selection y is being written by process") as caught:
            make_selection(workspace, "y", source=SetRef("named"), samples=9)
        errors.append(caught.value.exit_code)
        commit_json(path, value, point=point)

    monkeypatch.setattr(files, "commit_json", during)
    make_selection(workspace, "y", source=SetRef("named"), samples=5)
    assert errors == [75]
    for name in ("x", "y"):
        assert len(selected_clips(workspace, SetRef("named", selection=name))) == 5


def test_a_selection_whose_files_disagree_is_refused(workspace: Path) -> None:
    made = make_selection(workspace, "x", source=SetRef("named"), samples=5)
    other = make_selection(workspace, "other", source=SetRef("named"), samples=9)
    made.path.write_bytes(other.path.read_bytes())
    with pytest.raises(
        SelectionError, match=r"x.parquet holds 9 clips of digest .*, x.json says 5 of .*remove both files"
    ):
        selected_clips(workspace, SetRef("named", selection="x"))
    with pytest.raises(SelectionError, match="remove both files"):
        leaks(workspace, ["named/x"], ["named:val"])


def test_the_description_says_where_it_came_from(workspace: Path) -> None:
    made = make_selection(workspace, "told", source=SetRef("named"), where="signals['motion'] < 1", seed=3)
    said = files.read_json(made.path.with_suffix(".json"))
    assert {"name", "digest", "sql", "parameters", "seed", "parents", "num_clips", "seconds", "run_id"} <= set(said)
    assert said["sql"] == "signals['motion'] < 1" and said["num_clips"] == 10 and said["parents"][0]["name"] == "named"
    assert sorted(sample_index(workspace, SetRef("named", selection="told")).clip_ids) == sorted(chosen(made))


def test_sql_may_end_in_a_comment_but_may_not_reach_outside(workspace: Path, tmp_path: Path) -> None:
    assert make_selection(workspace, "comment", source=SetRef("named"), where="true -- all").num_clips == 30
    outside = tmp_path / "outside.csv"
    outside.write_text("clip_id\nx\n")
    for number, text in enumerate(
        [
            f"clip_id IN (SELECT clip_id FROM read_csv('{outside}'))",
            f"true) OR (SELECT count(*) FROM read_text('{outside}')) > (0",
            "true); COPY clip TO 'x.csv'; SELECT (1",
            "no_such_column > 1",
            "))(",
        ]
    ):
        with pytest.raises(SelectionError):
            make_selection(workspace, f"bad{number}", source=SetRef("named"), where=text)
        assert not (workspace / "selections" / f"bad{number}.json").exists()
    union = "false) UNION ALL SELECT clip_id FROM clip WHERE (split = 'val'"
    with pytest.raises(SelectionError, match="would be empty"):
        make_selection(workspace, "union", source=SetRef("named"), where=union)


def test_hashtags_and_titles_name_classes(workspace: Path) -> None:
    made = make_selection(workspace, "tagged", source=SetRef("web"), hashtags_of="named")
    assert made.num_clips == 4
    one_each = make_selection(workspace, "one-each", source=SetRef("web"), hashtags_of="named", per_class=1)
    assert one_each.num_clips == 3
    name = class_named(LABELS)
    assert name(["ＺＵＭＢＡ"], "") == ("zumba", "#ＺＵＭＢＡ")
    assert name([], "Air-drumming: how to") == ("air drumming", "Air-drumming: how to")
    known = class_named(LABELS, {"dance_fitness": "Zumba", "baking_cookies": "air drumming", "juggling": "balls"})
    assert known(["DanceFitness"], "") == ("zumba", "#DanceFitness")
    assert known([], "my dance fitness hour") == ("zumba", "my dance fitness hour")
    assert known(["bakingcookies"], "") == ("baking cookies", "#bakingcookies") and known(["juggling"], "") is None
    assert name([], "chair drumming") is None and name(["zumbas"], "air") is None
    with pytest.raises(SelectionError, match="has no class names"):
        make_selection(workspace, "unnamed", source=SetRef("named"), hashtags_of="web")


def test_synonyms_of_the_manifest_count(tmp_path: Path, small_sets: ModuleType) -> None:
    clip, frames = small_sets.clip, small_sets.pictures(1, count=8)
    folder = small_sets.make(tmp_path, "named", [clip("train", 1, label="zumba", frames=frames)])
    tagged = [{"tag": "dancefitness", "origin": "tag"}]
    small_sets.make(tmp_path, "web", [clip("train", 2, label=None, frames=frames, tags=tagged)])
    with pytest.raises(SelectionError, match="would be empty"):
        make_selection(tmp_path, "before", source=SetRef("web"), hashtags_of="named")
    seal = files.read_json(folder / "meta" / "set.json")
    seal["sources"] = [{"name": "named", "synonyms": {"dance_fitness": "zumba"}}]
    files.commit_json(folder / "meta" / "set.json", seal, point="test")
    assert make_selection(tmp_path, "after", source=SetRef("web"), hashtags_of="named").num_clips == 1


def test_a_sample_page_says_what_named_each_clip_and_how_often_it_was_right(workspace: Path) -> None:
    make_selection(workspace, "paged", source=SetRef("web"), hashtags_of="named")
    clips = named_sample(workspace, "paged", count=3)
    assert len(clips) == 3 and precision_of(clips) is None
    text = render_sample(workspace, "paged", count=3).read_text()
    assert all(clip.clip_id in text and clip.label in text for clip in clips) and "None carries a label" in text
    right = (NamedClip("a", "zumba", "#zumba", "zumba"),) * 9 + (NamedClip("b", "zumba", "#zumba", "yoga"),)
    told = precision_of(right)
    assert told is not None and (told.right, told.known, told.share) == (9, 10, 0.9)
    assert told.low == pytest.approx(0.5958, abs=1e-4) and told.high == pytest.approx(0.9821, abs=1e-4)
    make_selection(workspace, "plain", source=SetRef("web"), samples=2)
    with pytest.raises(SelectionError, match="was not made by hashtags"):
        render_sample(workspace, "plain")


def test_per_class_balances_and_like_follows_another_profile(workspace: Path) -> None:
    balanced = make_selection(workspace, "balanced", source=SetRef("named"), per_class=4)
    index = sample_index(workspace, SetRef("named", selection="balanced"))
    assert balanced.num_clips == 12 and sorted(index.labels) == sorted([*LABELS] * 4)
    make_selection(workspace, "model", source=SetRef("named"), where="annotations[1].label_raw != 'zumba'")
    alike = make_selection(workspace, "alike", source=SetRef("named"), like=SetRef("named", selection="balanced"))
    assert alike.num_clips == 18  # six of each: zumba has no more
    few = make_selection(
        workspace, "few", source=SetRef("named"), like=SetRef("named", selection="balanced"), samples=9
    )
    assert few.num_clips == 9 and set(chosen(few)) <= set(chosen(alike))


def test_like_gives_exactly_as_many_as_are_asked_for_and_nests(workspace: Path) -> None:
    model = SetRef("named")
    parts = [
        chosen(make_selection(workspace, f"like{count}", source=SetRef("named"), like=model, samples=count))
        for count in range(1, 31)
    ]
    assert [len(part) for part in parts] == list(range(1, 31))
    assert all(set(small) < set(large) for small, large in itertools.pairwise(parts))
    few = sample_index(workspace, SetRef("named", selection="like10")).labels
    assert sorted(Counter(few).values()) == [2, 4, 4]  # of 12, 12 and 6
    with pytest.raises(SelectionError, match="no clip has a class of the model"):
        make_selection(workspace, "unlike", source=SetRef("web"), like=model, samples=3)


def test_proportions_hold_until_a_kind_runs_out() -> None:
    assert apportion({"a": 2, "b": 1, "c": 5}, {"a": 10, "b": 3}, None) == {"a": 6, "b": 3}
    assert apportion({"a": 2, "b": 1}, {"a": 10, "b": 3}, 6) == {"a": 4, "b": 2}
    assert sum(apportion({"a": 2, "b": 1}, {"a": 10, "b": 3}, 100).values()) < 13
    assert apportion({"a": 1}, {"b": 1}, 5) == {}


def test_minus_leaves_out(workspace: Path) -> None:
    part = make_selection(workspace, "part", source=SetRef("named"), samples=12)
    rest = make_selection(workspace, "rest", source=SetRef("named"), minus=SetRef("named", selection="part"))
    assert rest.num_clips == 18 and not set(chosen(part)) & set(chosen(rest))


def test_what_cannot_be_is_refused(workspace: Path) -> None:
    source = SetRef("named")
    for arguments, error, message in [
        ({"samples": 31}, SelectionError, "wants 31 clips, 30 meet it"),
        ({"hours": 1}, SelectionError, "wants 1 hours"),
        ({"where": "false"}, SelectionError, "would be empty"),
        ({"share": 0}, UsageError, "is no share"),
        ({"samples": 0}, UsageError, "takes nothing"),
        ({"samples": 1, "hours": 1}, UsageError, "both say how much"),
        ({"minus": SetRef("named", selection="none")}, SelectionError, "There is no selection 'none'"),
        ({"minus": SetRef("none")}, SetError, "There is no set 'none'"),
    ]:
        with pytest.raises(error, match=message):
            make_selection(workspace, "x", source=source, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot name a selection"):
        make_selection(workspace, "../x", source=source)
    assert not list((workspace / "selections").glob("x*")) if (workspace / "selections").exists() else True


def test_a_selection_over_a_set_that_has_changed_is_refused(tmp_path: Path, small_sets: ModuleType) -> None:
    small_sets.make(tmp_path, "named", [small_sets.clip("train", number) for number in range(4)])
    first = make_selection(tmp_path, "old", source=SetRef("named"))
    row = files.read_table(tmp_path / "sets/named/meta/ledger/train-000000.parquet")[0]["row_id"]
    rewrite(tmp_path, "named", [Verdict(row, Reason.FILTERED, "d")], run_id="r")
    with pytest.raises(SelectionError, match="selections do not change"):
        make_selection(tmp_path, "old", source=SetRef("named"))
    with pytest.raises(SelectionError, match="was made from another state"):
        make_selection(tmp_path, "new", source=SetRef("named", selection="old"))
    assert first.path.exists()
