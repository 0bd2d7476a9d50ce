"""Study files and the cells they expand to."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stmae_train.errors import ConfigError, StudyError
from stmae_train.study.plan import make_plan, parse_only, plan_csv, study_plan
from stmae_train.study.studyfile import parse_study, read_study


def test_the_file_reads_back_as_it_was_written(study_text: str) -> None:
    study = parse_study(study_text)
    assert study.name == "tiny"
    assert study.baselines == ("scratch", "k400")
    assert study.scales[0].clips == (1000, 4000)
    assert [arm.name for arm in study.arms] == ["scratch", "k400", "k700", "web"]
    assert study.task("probe").train == ("k400:train",)
    assert study.task("probe").test == "k400:val"
    assert study.leaks.check == ("id", "video", "overlap", "content")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("question =", "qestion =", "there is no key 'study.qestion'; the nearest is 'study.question'"),
        ('recipe = "demo"', 'recipes = "demo"', "'scale.demo.recipes'; the nearest is 'scale.demo.recipe'"),
        ("where =", "were =", "'data.web.were'; the nearest is 'data.web.where'"),
        ('kind  = "attentive"', 'kind = "atentive"', "task.kind is 'atentive', wanted one of finetune, linear"),
        (
            'test  = { shards = "k400", split = "val" }',
            'test = { shard = "k400" }',
            "'task.test.shard'; the nearest is",
        ),
        (
            'baseline = ["scratch", "k400"]',
            'baseline = "k401"',
            "study.baseline is 'k401', wanted one of scratch, k400",
        ),
        ('data = ["k400", "k700", "web"]', 'data = ["k401"]', "arm.data is 'k401', wanted one of k400, k700, web"),
        ('clips  = ["1k", "4k"]', 'clips = "many"', "scale.demo.clips is 'many', wanted a number of clips"),
        ("seeds    = [0, 1, 2]", "seeds = [0, 0]", "study.seeds is .0, 0., wanted a list of different whole numbers"),
        ('recipe = "demo"', 'recipe = "demo"\nschedule = "wsd"', "every length is a run of its own"),
        ('shards = "k700"', 'shards = "k700"\nwhere = "true"', "data.k700.where selects; write from"),
        ('shards = "k700"', 'from = "k700"', "data.k700 selects nothing"),
        ('init = "random"', 'init = "random"\ndata = "web"', "arm has data and init"),
        ('name     = "tiny"', 'name = "../up"', "study.name is '../up', wanted letters"),
        ('shards = "k700"', "shards = 7", "data.k700.shards is 7, wanted text"),
        ('name     = "tiny"', 'name = "tiny"\nequal = "epochs"', "compared at equal 'clips'"),
        ("[study]", "[study", "is not TOML"),
        ('from  = "web"', 'from = "web"\nsamples = "many"', "data.web.samples is 'many', wanted a whole number"),
        ('name  = "finetune"', 'name = "probe"', "two tasks are called 'probe'"),
    ],
)
def test_what_a_study_cannot_be_is_said_in_one_sentence(study_text: str, old: str, new: str, message: str) -> None:
    assert old in study_text
    with pytest.raises(StudyError, match=message):
        parse_study(study_text.replace(old, new, 1))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"gone\.toml cannot be read"):
        read_study(tmp_path / "gone.toml")


def test_cells_are_arms_by_lengths_by_seeds_by_tasks(study_file: Path, world: Any) -> None:
    plan = study_plan(study_file, world.workspace, doors=world.doors())
    trained = [cell for cell in plan.cells if cell.is_pretraining]
    assert len(trained) == 3 * 2 * 3  # three data arms, two lengths, three seeds
    probes = [cell for cell in plan.cells if cell.task == "probe"]
    assert len(probes) == len(trained) + 3  # and scratch, which has no length
    finetunes = [cell for cell in plan.cells if cell.task == "finetune"]
    assert len(finetunes) == 4 * 3  # the last length alone
    assert len({cell.id for cell in plan.cells}) == len(plan.cells)
    # One pre-training serves both tasks.
    last = next(cell for cell in finetunes if cell.arm == "k400")
    assert {cell.task for cell in plan.cells if cell.needs == last.needs} == {"probe", "finetune"}
    assert plan.cells[0].seed == 0 and plan.cells[-1].seed == 2


def ids(world: Any, text: str) -> dict[tuple[Any, ...], str]:
    plan = make_plan(parse_study(text), world.workspace, doors=world.doors())
    return {(cell.arm, cell.clips, cell.seed, cell.task): cell.id for cell in plan.cells}


def test_ids_follow_what_decides_a_result_and_nothing_else(study_text: str, world: Any) -> None:
    before = ids(world, study_text)
    assert ids(world, study_text.replace("Does more", "Would more")) == before
    probe = ids(
        world, study_text.replace('kind  = "attentive"', 'kind = "attentive"\noverride = { probe = { epochs = 2 } }')
    )
    changed = {key for key in before if probe[key] != before[key]}
    assert changed == {key for key in before if key[3] == "probe"}
    model = ids(world, study_text.replace('recipe = "demo"', 'recipe = "demo"\noverride = { mask_ratio = 0.9 }'))
    assert not {key for key in before if model[key] == before[key] and key[0] != "scratch"}
    # The probe of a random encoder reads the model's shape and so its mask ratio too; fewer seeds change no id.
    fewer = ids(world, study_text.replace("[0, 1, 2]", "[0, 2]"))
    assert all(before[key] == value for key, value in fewer.items())


def test_a_set_that_changed_gives_its_arms_new_ids(study_text: str, world: Any) -> None:
    before = ids(world, study_text)
    facts = world.facts

    def newer(workspace: Path, ref: Any) -> Any:
        import dataclasses

        found = facts(workspace, ref)
        return dataclasses.replace(found, set_digest="new") if ref.set_name == "web" else found

    world.facts = newer
    after = ids(world, study_text)
    assert {key[0] for key in before if before[key] != after[key]} == {"web"}
    # The selection has another name too: selections never change.
    assert len({call for call in world.calls if call.startswith("select")}) == 2


def test_an_unknown_recipe_key_is_refused_while_planning(study_text: str, world: Any) -> None:
    text = study_text.replace('recipe = "demo"', 'recipe = "demo"\noverride = { mask_ration = 0.9 }')
    with pytest.raises(ConfigError, match="mask_ratio"):
        make_plan(parse_study(text), world.workspace, doors=world.doors())


def test_leaks_are_counted_per_arm_and_test_set(study_file: Path, world: Any) -> None:
    plan = study_plan(study_file, world.workspace, doors=world.doors())
    assert plan.tainted("k700", "probe") == 37
    assert plan.tainted("k700", "finetune") == 37
    assert plan.tainted("k400", "probe") == plan.tainted("scratch", "probe") == 0


def test_a_joint_count_of_leaked_clips_is_used_where_the_guard_gives_one(
    study_file: Path, make_world: Callable[..., Any]
) -> None:
    counts = {"id": {"train": 3, "eval": 3}, "content": {"train": 4, "eval": 4}, "any": {"train": 7, "eval": 6}}
    world = make_world(leaks={"k700:train": counts})
    plan = study_plan(study_file, world.workspace, doors=world.doors())
    assert plan.tainted("k700", "probe") == 6
    assert "any" not in plan.leaks[0].levels


def test_leak_action_fail_stops_the_plan(study_text: str, world: Any) -> None:
    text = study_text + '\n[leaks]\naction = "fail"\n'
    with pytest.raises(StudyError, match="k700:train contains 37 clips of k400:val"):
        make_plan(parse_study(text), world.workspace, doors=world.doors())


def test_selections_are_made_by_plan_under_the_study_s_name(study_file: Path, world: Any) -> None:
    plan = study_plan(study_file, world.workspace, doors=world.doors())
    (call,) = world.calls
    assert re.fullmatch(r"select tiny-web-[0-9a-f]{8}", call)
    assert plan.arm("web").shards == (f"web:train/{call.removeprefix('select ')}",)
    assert plan.arm("web").num_clips == 1200


def test_only_keeps_matching_cells_and_what_they_need(study_file: Path, world: Any) -> None:
    only = parse_only(["arm=web,seed=0", "task=finetune"])
    plan = study_plan(study_file, world.workspace, only=only, doors=world.doors())
    assert [(cell.task, cell.clips) for cell in plan.cells] == [("", 4000), ("finetune", 4000)]
    with pytest.raises(StudyError, match="is not one of arm="):
        parse_only(["colour=red"])


def test_the_plan_table_has_the_columns_of_the_format(study_file: Path, world: Any) -> None:
    plan = study_plan(study_file, world.workspace, doors=world.doors())
    lines = plan_csv(plan, {}, {}).splitlines()
    assert lines[0] == "id,arm,scale,clips,seed,task,needs,est_gpu_h,state"
    assert len(lines) == len(plan.cells) + 1


def test_an_arm_that_cannot_be_run_stays_without_cells(study_text: str, world: Any) -> None:
    text = study_text + '\n[[arm]]\nname = "ig"\ninit = "none"\navailable = false\nreason = "nobody may ship it"\n'
    plan = make_plan(parse_study(text), world.workspace, doors=world.doors())
    assert not [cell for cell in plan.cells if cell.arm == "ig"]
    assert plan.arm("ig").spec.unavailable == "nobody may ship it"


def test_a_scale_chooses_its_seeds_lengths_and_arms(study_text: str, world: Any) -> None:
    text = study_text + '\n[scale.big]\nrecipe = "demo"\nclips = ["4k", "8k"]\nseeds = [0]\n'
    study = parse_study(text)
    small = make_plan(study, world.workspace, scale="demo", doors=world.doors())
    big = make_plan(study, world.workspace, scale="big", doors=world.doors())
    assert {cell.clips for cell in big.cells} == {0, 4000, 8000} and {cell.seed for cell in big.cells} == {0}
    # The same recipe, data, length and seed is the same cell, whatever the scale is called.
    assert {cell.id for cell in small.cells} & {cell.id for cell in big.cells}
    with pytest.raises(StudyError, match="has no scale 'huge'; wanted one of demo, big"):
        make_plan(study, world.workspace, scale="huge", doors=world.doors())
