"""The study files that ship: each expands at every scale."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import pytest

from stmae_data.records import SetRef
from stmae_train.study.doors import DataFacts
from stmae_train.study.plan import make_plan
from stmae_train.study.studyfile import parse_study

STUDIES = sorted(
    path.name for path in importlib.resources.files("stmae_manifests.studies").iterdir() if path.name.endswith(".toml")
)


def any_set(workspace: Path, ref: SetRef) -> DataFacts:
    return DataFacts(str(ref), f"digest of {ref.set_name}", ref.selection, 400)


def test_the_small_world_has_its_study() -> None:
    assert "demo.toml" in STUDIES


@pytest.mark.parametrize("name", STUDIES)
def test_every_shipped_study_expands_at_every_scale(name: str, make_world: Any) -> None:
    study = parse_study(importlib.resources.files("stmae_manifests.studies").joinpath(name).read_text(), where=name)
    world = make_world(leaks={})
    world.facts = any_set
    for scale in study.scales:
        plan = make_plan(study, world.workspace, scale=scale.name, doors=world.doors())
        assert {cell.seed for cell in plan.cells} == set(scale.seeds)
        assert all(0 < plan.detectable(scale.name, task.name) < 1 for task in study.tasks if scale.name in task.scales)


def test_the_demo_study_compares_what_it_promises(make_world: Any) -> None:
    study = parse_study(importlib.resources.files("stmae_manifests.studies").joinpath("demo.toml").read_text())
    assert [arm.name for arm in study.arms if "study" in arm.scales] == [
        "scratch",
        "demo-k400",
        "demo-k700",
        "demo-k700-clean",
        "demo-web",
        "demo-web-clean",
    ]
    assert study.scale("study").seeds == (0, 1, 2) and 60_000 <= sum(study.scale("study").clips) <= 80_000
    assert len(study.scale("demo").seeds) == 2 and study.scale("demo").clips[-1] < study.scale("study").clips[-1]
    assert {task.kind for task in study.tasks} == {"attentive", "finetune"}
    assert {task.test for task in study.tasks} == {"demo-k400:val"}
    clean = study.data_named("demo-web-clean")
    assert clean.select["hashtags_of"] == "demo-k400" and "signals" in clean.select["where"]


def test_the_demo_scale_leaves_the_tainted_arm_untrained(make_world: Any) -> None:
    study = parse_study(importlib.resources.files("stmae_manifests.studies").joinpath("demo.toml").read_text())
    world = make_world(leaks={"demo-k700:train": {"id": {"train": 1, "eval": 1}}})
    world.facts = any_set
    small = make_plan(study, world.workspace, scale="demo", doors=world.doors())
    whole = make_plan(study, world.workspace, scale="study", doors=world.doors())
    assert "demo-k700" not in {cell.arm for cell in small.cells}
    assert "demo-k700" in {cell.arm for cell in whole.cells}
