"""Cells: what a study runs, one by one, and the ids that make a finished one reusable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stmae_train.config import FinetuneConfig, ProbeConfig, Recipe, to_toml
from stmae_train.study.doors import DataFacts
from stmae_train.study.studyfile import ArmSpec, ScaleSpec, TaskSpec

__all__ = ["CELL_FORMAT", "Cell", "PlannedArm", "expand_cells"]

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


def expand_cells(
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
