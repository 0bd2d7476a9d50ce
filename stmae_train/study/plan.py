"""From a study file to cells: {arm x length x seed} to pre-train, each x {task} to measure, with the leaks found before."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stmae_data.records import SetRef
from stmae_train.config import FinetuneConfig, ProbeConfig, Recipe, override_values, to_toml
from stmae_train.errors import StudyError
from stmae_train.study.doors import DataFacts, Doors, LeakCounts, standard_doors
from stmae_train.study.statistics import minimum_detectable_effect
from stmae_train.study.studyfile import ArmSpec, ScaleSpec, StudyFile, TaskSpec, read_study

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

# Part of every cell's id: raise it when a cell's meaning changes without its recipe or code version saying so.
CELL_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to run: a pre-training (`task` is empty) or one task on one trained encoder."""

    id: str
    arm: str
    scale: str
    clips: int
    """Clips seen in pre-training; 0 for an arm without training."""
    seed: int
    task: str
    needs: str
    """Id of the pre-training that this task reads; empty when it needs none."""
    folder: Path

    @property
    def is_pretraining(self) -> bool:
        """Whether this cell trains an encoder rather than measures one."""
        return not self.task


@dataclass(frozen=True, slots=True)
class PlannedArm:
    """An arm with its data resolved."""

    spec: ArmSpec
    data: tuple[DataFacts, ...]
    shards: tuple[str, ...]
    """References as the trainer reads them, weights included."""

    @property
    def name(self) -> str:
        """The arm's name."""
        return self.spec.name

    @property
    def num_clips(self) -> int:
        """Distinct clips it can draw from."""
        return sum(each.num_clips for each in self.data)


@dataclass(frozen=True, slots=True)
class Leak:
    """Evaluation clips that an arm's pre-training data (or a task's own training data) contains."""

    arm: str
    """Empty for a task's own training split."""
    train: str
    test: str
    levels: LeakCounts
    """Level to {"train": n, "eval": n}, distinct clips; None where a level cannot be compared."""
    num_evaluation_clips: int
    """Distinct evaluation clips that any checked level names; 0 where only a level could not be compared."""

    @property
    def not_comparable(self) -> tuple[str, ...]:
        """Levels about which nothing is known."""
        return tuple(level for level, counts in self.levels.items() if counts is None)


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
    leaks = _find_leaks(study, workspace, arms, tests, trains, doors)
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
        for cell in _expand(
            each, _trained_arms(study, each, arms, leaks, tests), tasks, tests, trains, recipes, version, folder
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
        references = (doors.make_selection(workspace, f"{study.name}-{data.name}", options),)
    refs = [SetRef.parse(reference) for reference in references]
    return PlannedArm(spec, tuple(doors.facts(workspace, ref) for ref in refs), tuple(references))


def _find_leaks(
    study: StudyFile,
    workspace: Path,
    arms: Sequence[PlannedArm],
    tests: Mapping[str, DataFacts],
    trains: Mapping[str, tuple[DataFacts, ...]],
    doors: Doors,
) -> tuple[Leak, ...]:
    pairs = {
        (arm.name, each.reference, test.reference): None for arm in arms for each in arm.data for test in tests.values()
    }
    pairs |= {("", each.reference, tests[task].reference): None for task, facts in trains.items() for each in facts}
    counted: dict[tuple[str, str], LeakCounts] = {}
    leaks = []
    for arm, train, test in pairs:
        if (train, test) not in counted:
            counted[train, test] = doors.count_leaks(
                workspace, SetRef.parse(train), SetRef.parse(test), study.leaks.check
            )
        levels = {level: counts for level, counts in counted[train, test].items() if level != "any"}
        # Levels overlap (an id is also a video); without a joint count the largest is a lower bound.
        clips = max((counts["eval"] for counts in counted[train, test].values() if counts), default=0)
        leak = Leak(arm, train, test, levels, clips)
        if clips or leak.not_comparable:
            leaks.append(leak)
    found = [leak for leak in leaks if leak.num_evaluation_clips]
    if found and study.leaks.action == "fail":
        worst = found[0]
        raise StudyError(
            f"{worst.train} contains {worst.num_evaluation_clips} clips of {worst.test}, and leaks.action is 'fail'. "
            f"Remove them: stmae-data dedup {worst.train.partition(':')[0]} --against {worst.test} --to NEW"
        )
    return tuple(leaks)


def _task_recipe(base: Recipe, task: TaskSpec, doors: Doors) -> Recipe:
    """The scale's model with the task's own probe and fine-tuning settings."""
    recipe = base
    if task.recipe is not None:
        other = doors.recipe(task.recipe)
        recipe = replace(base, probe=other.probe, finetune=other.finetune)
    return override_values(recipe, task.override)


def _trained_arms(
    study: StudyFile,
    scale: ScaleSpec,
    arms: Sequence[PlannedArm],
    leaks: Sequence[Leak],
    tests: Mapping[str, DataFacts],
) -> list[PlannedArm]:
    """The arms to run at this scale: those it lists, without those whose every score would be n/a† if it skips them."""
    mine = {tests[task.name].reference for task in study.tasks if scale.name in task.scales}
    skipped = set()
    if scale.skips_tainted and study.leaks.action != "report":
        for arm in arms:
            if mine and mine <= {leak.test for leak in leaks if leak.arm == arm.name and leak.num_evaluation_clips}:
                skipped.add(arm.name)
    return [
        arm
        for arm in arms
        if scale.name in arm.spec.scales and arm.spec.unavailable is None and arm.name not in skipped
    ]


def _expand(
    scale: ScaleSpec,
    arms: Sequence[PlannedArm],
    tasks: Sequence[TaskSpec],
    tests: Mapping[str, DataFacts],
    trains: Mapping[str, tuple[DataFacts, ...]],
    recipes: Mapping[tuple[str, str], Recipe],
    version: str,
    folder: Path,
) -> list[Cell]:
    """Cells in running order: seed by seed, so that an interrupted study still has whole rows of pairs."""
    cells = []
    for seed in scale.seeds:
        for arm in arms:
            lengths = scale.clips if arm.data else (0,)
            for clips in lengths:
                trained = None
                if arm.data:
                    recipe = recipes[scale.name, ""]
                    facts: dict[str, Any] = {
                        "what": "pretrain",
                        "recipe": _pretraining_text(recipe, clips),
                        "data": [(*each.digests, ref) for each, ref in zip(arm.data, arm.shards, strict=True)],
                    }
                    trained = _cell(facts, arm, scale, clips, seed, "", "", version, folder)
                    cells.append(trained)
                for task in tasks:
                    is_last = clips == lengths[-1]
                    if scale.name not in task.scales or (task.only_last_length and not is_last):
                        continue
                    facts = {
                        "what": task.kind,
                        "recipe": _task_text(recipes[scale.name, task.name], task.kind, with_model=trained is None),
                        "init": trained.id if trained else arm.spec.init,
                        "train": [(each.digests, each.reference) for each in trains[task.name]],
                        "test": (tests[task.name].digests, tests[task.name].reference),
                    }
                    needs = trained.id if trained else ""
                    cells.append(_cell(facts, arm, scale, clips, seed, task.name, needs, version, folder))
    return cells


def _cell(
    facts: Mapping[str, Any],
    arm: PlannedArm,
    scale: ScaleSpec,
    clips: int,
    seed: int,
    task: str,
    needs: str,
    version: str,
    folder: Path,
) -> Cell:
    text = json.dumps({**facts, "clips": clips, "seed": seed, "code": version, "format": CELL_FORMAT}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Cell(digest, arm.name, scale.name, clips, seed, task, needs, folder / digest)


def _pretraining_text(recipe: Recipe, clips: int) -> str:
    """What of a recipe decides a pre-training: probes and fine-tuning do not, nor does its name."""
    optim = replace(recipe.optim, total_clips=clips)
    plain = replace(recipe, name="", source="", optim=optim, probe=ProbeConfig(), finetune=FinetuneConfig())
    return to_toml(plain)


def _task_text(recipe: Recipe, kind: str, *, with_model: bool) -> str:
    """What of a recipe decides a task: its own section and how clips are drawn; the model where none was trained."""
    parts = recipe.finetune if kind == "finetune" else recipe.probe
    values = {"task": asdict(parts), "data": asdict(recipe.data)}
    if with_model:
        values["model"] = asdict(recipe.model)
    return json.dumps(values, sort_keys=True)


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
