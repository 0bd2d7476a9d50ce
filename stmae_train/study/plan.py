"""From a study file to cells: {arm x length x seed} to pre-train, each x {task} to measure, with the leaks found before."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stmae_data.records import SetRef
from stmae_train.config import Recipe, override_values
from stmae_train.errors import StudyError
from stmae_train.study.cells import Cell, PlannedArm, expand_cells
from stmae_train.study.doors import DataFacts, Doors, standard_doors
from stmae_train.study.leaks import Leak, arms_to_run, find_leaks
from stmae_train.study.statistics import minimum_detectable_effect
from stmae_train.study.studyfile import ArmSpec, DataSpec, ScaleSpec, StudyFile, TaskSpec, read_study

__all__ = [
    "Cell",
    "Leak",
    "PlannedArm",
    "StudyPlan",
    "make_plan",
    "parse_only",
    "plan_csv",
    "study_folder",
    "study_plan",
]


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """Everything decided before anything runs."""

    file: StudyFile
    workspace: Path
    scales: tuple[ScaleSpec, ...]
    arms: tuple[PlannedArm, ...]
    cells: tuple[Cell, ...]
    leaks: tuple[Leak, ...]
    tests: Mapping[str, DataFacts]
    """Task name to its test split."""
    recipes: Mapping[tuple[str, str], Recipe]
    """(scale, task name or "") to the resolved recipe."""
    code_version: str

    @property
    def name(self) -> str:
        """The study's name."""
        return self.file.name

    @property
    def folder(self) -> Path:
        """<workspace>/runs/<study>."""
        return study_folder(self.workspace, self.file.name)

    def arm(self, name: str) -> PlannedArm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def cell(self, cell_id: str) -> Cell:
        """The cell of that id."""
        return next(cell for cell in self.cells if cell.id == cell_id)

    def tainted(self, arm: str, task: str) -> int:
        """Leaked evaluation clips of an arm on a task's test split; 0 means clean."""
        test = self.tests[task].reference
        return max(
            (leak.num_evaluation_clips for leak in self.leaks if leak.arm == arm and leak.test == test), default=0
        )

    def detectable(self, scale: str, task: str) -> float:
        """The difference this study would show with 80 % power, as a share."""
        seeds = self.file.scale(scale).seeds
        return minimum_detectable_effect(
            self.tests[task].num_clips,
            len(seeds),
            num_arms=len(self.arms),
            discordance=self.file.discordance,
            seed_sd=self.file.seed_sd,
            alpha=self.file.alpha,
        )

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values: cells, leaks, and the difference that each scale and task can detect."""
        keys = ("id", "arm", "scale", "clips", "seed", "task", "needs")
        return {
            "study": self.name,
            "cells": [{key: getattr(cell, key) for key in keys} for cell in self.cells],
            "leaks": [
                {
                    "arm": leak.arm,
                    "train": leak.train,
                    "test": leak.test,
                    **leak.levels,
                    "leaked": leak.num_evaluation_clips,
                }
                for leak in self.leaks
            ],
            "detectable": {
                scale.name: {
                    task.name: self.detectable(scale.name, task.name)
                    for task in self.file.tasks
                    if scale.name in task.scales
                }
                for scale in self.scales
            },
        }


def study_folder(workspace: Path, name: str) -> Path:
    """Where a study's cells and reports stand."""
    return workspace / "runs" / name


def study_plan(
    file: Path,
    workspace: Path,
    *,
    scale: str | None = None,
    only: Mapping[str, Collection[str]] | None = None,
    doors: Doors | None = None,
) -> StudyPlan:
    """Read a study file and plan it; selections that it describes are made (or reused) in the workspace.

    Args:
        file: path of the TOML file.
        workspace: the workspace whose sets it names.
        scale: one scale; None plans every scale of the file.
        only: {"arm": {"web"}, "seed": {"0"}} keeps the cells that match, with what they need; keys arm seed task clips scale.
        doors: the rooms it calls; the real ones unless given.

    Raises:
        StudyError: the file is wrong, a set is missing, or `leaks.action = "fail"` and something leaks.
    """
    return make_plan(read_study(file), workspace, scale=scale, only=only, doors=doors or standard_doors())


def make_plan(
    study: StudyFile,
    workspace: Path,
    *,
    scale: str | None = None,
    only: Mapping[str, Collection[str]] | None = None,
    doors: Doors,
) -> StudyPlan:
    """`study_plan` for a study that is read already."""
    scales = study.scales if scale is None else (study.scale(scale),)
    wanted = {each.name for each in scales}
    specs = [arm for arm in study.arms if wanted & set(arm.scales)]
    tasks = [task for task in study.tasks if wanted & set(task.scales)]
    arms = tuple(_resolve_arm(study, workspace, spec, doors) for spec in specs)
    tests = {task.name: doors.facts(workspace, SetRef.parse(task.test)) for task in tasks}
    trains = {task.name: tuple(doors.facts(workspace, SetRef.parse(each)) for each in task.train) for task in tasks}
    leaks = find_leaks(study, workspace, arms, tests, trains, doors)
    recipes: dict[tuple[str, str], Recipe] = {}
    for each in scales:
        recipes[each.name, ""] = override_values(doors.recipe(each.recipe), each.override)
        for task in tasks:
            recipes[each.name, task.name] = _task_recipe(recipes[each.name, ""], task, doors)
    version = importlib.metadata.version("stmae")
    folder = study_folder(workspace, study.name) / "cells"
    # Two scales may share a cell (same recipe, data, length and seed): it stands twice here and is run once.
    cells = [
        cell
        for each in scales
        for cell in expand_cells(
            each, arms_to_run(study, each, arms, leaks, tests), tasks, tests, trains, recipes, version, folder
        )
    ]
    plan = StudyPlan(study, workspace, scales, arms, tuple(cells), leaks, tests, recipes, version)
    return replace(plan, cells=_kept(plan.cells, only)) if only else plan


def _resolve_arm(study: StudyFile, workspace: Path, spec: ArmSpec, doors: Doors) -> PlannedArm:
    if spec.data is None or spec.unavailable is not None:
        return PlannedArm(spec, (), ())
    data = study.data_named(spec.data)
    references = data.shards
    if data.source is not None:
        options = {"source": data.source, **data.select}
        name = _selection_name(study, workspace, data, doors)
        references = (doors.make_selection(workspace, name, options),)
    refs = [SetRef.parse(reference) for reference in references]
    return PlannedArm(spec, tuple(doors.facts(workspace, ref) for ref in refs), tuple(references))


def _selection_name(study: StudyFile, workspace: Path, data: DataSpec, doors: Doors) -> str:
    """A name of its own for every choice from every version of the sets: a selection never changes."""
    others = [str(data.select[key]) for key in ("hashtags_of", "minus", "like") if key in data.select]
    digests = [doors.facts(workspace, SetRef.parse(text)).digests for text in (str(data.source), *others)]
    text = json.dumps([data.source, dict(data.select), digests], sort_keys=True)
    return f"{study.name}-{data.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _task_recipe(base: Recipe, task: TaskSpec, doors: Doors) -> Recipe:
    """The scale's model with the task's own probe and fine-tuning settings."""
    recipe = base
    if task.recipe is not None:
        other = doors.recipe(task.recipe)
        recipe = replace(base, probe=other.probe, finetune=other.finetune)
    return override_values(recipe, task.override)


def parse_only(texts: Sequence[str]) -> dict[str, set[str]]:
    """`["arm=web,seed=0", "seed=1"]` as {"arm": {"web"}, "seed": {"0", "1"}}.

    Raises:
        StudyError: not key=value, or a key that cells do not have.
    """
    kept: dict[str, set[str]] = {}
    for text in texts:
        for part in text.split(","):
            key, separator, value = part.partition("=")
            if not separator or key not in ("arm", "seed", "task", "clips", "scale"):
                raise StudyError(
                    f"--only {part!r} is not one of arm=, seed=, task=, clips=, scale=; write --only arm=web,seed=0."
                )
            kept.setdefault(key, set()).add(value)
    return kept


def _kept(cells: Sequence[Cell], only: Mapping[str, Collection[str]]) -> tuple[Cell, ...]:
    def matches(cell: Cell) -> bool:
        return all(
            str(getattr(cell, key)) in values or (key == "task" and cell.is_pretraining) for key, values in only.items()
        )

    kept = [cell for cell in cells if matches(cell)]
    needed = {cell.needs for cell in kept}
    if "task" in only:
        # Only the pre-trainings that the named tasks read.
        kept = [cell for cell in kept if not cell.is_pretraining]
        needed = {cell.needs for cell in kept}
    chosen = {cell.id for cell in kept} | needed
    return tuple(cell for cell in cells if cell.id in chosen)


def plan_csv(plan: StudyPlan, states: Mapping[str, str], hours: Mapping[str, float]) -> str:
    """The plan as CSV: id arm scale clips seed task needs est_gpu_h state."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "arm", "scale", "clips", "seed", "task", "needs", "est_gpu_h", "state"])
    for cell in plan.cells:
        estimate = f"{hours[cell.id]:.4f}" if cell.id in hours else ""
        state = states.get(cell.id, "planned")
        writer.writerow([cell.id, cell.arm, cell.scale, cell.clips, cell.seed, cell.task, cell.needs, estimate, state])
    return out.getvalue()
