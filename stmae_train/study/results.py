"""What the finished cells of one scale say: scores with intervals, pairs with verdicts, curves, costs, pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from stmae_train.errors import StudyError
from stmae_train.runlog import runs_status
from stmae_train.study.plan import Cell, PlannedArm, StudyPlan
from stmae_train.study.statistics import Comparison, Interval, compare, holm, interval, seed_scatter, verdict

__all__ = ["ArmCost", "ArmResult", "LossCurve", "Pair", "Picture", "StudyResults", "collect", "finished_scale"]


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm on one task at one length."""

    arm: str
    task: str
    clips: int
    """Clips seen in pre-training; 0 without training."""
    is_last: bool
    """Whether this is the arm's longest run: the one in the tables."""
    seeds_done: int
    seeds_planned: int
    tainted: int
    """Distinct evaluation clips in its pre-training data; 0 is clean."""
    score: Interval | None
    """None while incomplete, when tainted (unless the study asks for tainted numbers) and when not run."""
    hides_score: bool = False
    """Whether it is tainted and the study does not ask for tainted numbers."""
    unavailable: str | None = None

    @property
    def status(self) -> str:
        """`measured`, `tainted`, `incomplete` or `not run`."""
        if self.unavailable is not None:
            return "not run"
        if self.hides_score:
            return "tainted"
        return "incomplete" if self.seeds_done < self.seeds_planned else "measured"


@dataclass(frozen=True, slots=True)
class Pair:
    """An arm against a baseline on one task, at the longest runs of both."""

    arm: str
    baseline: str
    task: str
    comparison: Comparison
    p_holm: float
    verdict: str


@dataclass(frozen=True, slots=True)
class LossCurve:
    """The logged losses of one pre-training: clips seen [N] and loss [N]."""

    arm: str
    clips: int
    seed: int
    clips_seen: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ArmCost:
    """What an arm's finished cells of this scale cost in all."""

    arm: str
    pretrain_seconds: float
    task_seconds: float
    stall_seconds: float
    gpu_seconds: float
    bytes_read: int
    clips_seen: int
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Picture:
    """A reconstruction of a test clip, in a run's `pictures/test/`."""

    arm: str
    seed: int
    clips: int
    path: Path


@dataclass(frozen=True, slots=True)
class StudyResults:
    """Everything a report shows about the cells of one scale."""

    plan: StudyPlan
    scale: str
    arms: tuple[ArmResult, ...]
    pairs: tuple[Pair, ...]
    losses: tuple[LossCurve, ...]
    costs: tuple[ArmCost, ...]
    pictures: tuple[Picture, ...]
    videos: Mapping[str, int]
    """Arm to the distinct videos that its runs read, where a run says so."""
    best: Mapping[str, str]
    """Task to the arm that is told apart from the next best; absent where none is."""
    cells_done: int
    cells: int

    @property
    def is_complete(self) -> bool:
        """Whether every planned cell of the scale is done."""
        return self.cells_done == self.cells

    def last(self, arm: str, task: str) -> ArmResult | None:
        """The arm's longest run on a task; None where the arm is not measured by it."""
        found = [each for each in self.arms if (each.arm, each.task) == (arm, task) and each.is_last]
        return found[0] if found else None

    def pair(self, arm: str, baseline: str, task: str) -> Pair | None:
        """The comparison of two arms on a task, where there is one."""
        found = [each for each in self.pairs if (each.arm, each.baseline, each.task) == (arm, baseline, task)]
        return found[0] if found else None


def finished_scale(plan: StudyPlan) -> str:
    """The scale to report when none is named: the last one that is complete, else the last one that has begun.

    Raises:
        StudyError: nothing is done yet.
    """
    begun = None
    for scale in reversed(plan.scales):
        states = [runs_status(cell.folder) == "done" for cell in plan.cells if cell.scale == scale.name]
        if states and all(states):
            return scale.name
        if any(states) and begun is None:
            begun = scale.name
    if begun is None:
        raise StudyError(f"Study {plan.file.name} has no finished cell yet. Run it: stmae-train study run")
    return begun


def collect(plan: StudyPlan, *, scale: str | None = None) -> StudyResults:
    """Read the finished cells of one scale and compare its arms.

    Args:
        plan: the planned study; cells that are not done make their arms incomplete.
        scale: which scale; `finished_scale` unless named.

    Raises:
        StudyError: no cell is done, or cells of one task scored different clips.
    """
    scale = plan.file.scale(scale).name if scale is not None else finished_scale(plan)
    cells = [cell for cell in plan.cells if cell.scale == scale]
    done = [cell for cell in cells if runs_status(cell.folder) == "done"]
    scores = _Scores(plan, scale, done)
    arms: list[ArmResult] = []
    pairs: list[Pair] = []
    for task in plan.file.tasks:
        if scale not in task.scales:
            continue
        arms += [
            result
            for arm in plan.arms
            if scale in arm.spec.scales
            for result in _arm_results(plan, scale, arm, task.name, cells, scores)
        ]
        pairs += _pairs(plan, scale, task.name, arms, scores)
    trained = [cell for cell in done if cell.is_pretraining]
    return StudyResults(
        plan=plan,
        scale=scale,
        arms=tuple(arms),
        pairs=tuple(pairs),
        losses=tuple(curve for cell in trained if (curve := _loss_curve(cell)) is not None),
        costs=tuple(_cost(arm.name, done) for arm in plan.arms if scale in arm.spec.scales),
        pictures=tuple(
            Picture(cell.arm, cell.seed, cell.clips, path)
            for cell in trained
            for path in sorted((cell.folder / "pictures" / "test").glob("*.png"))
        ),
        videos=_videos(trained),
        best={task.name: best for task in plan.file.tasks if (best := _best(plan, scale, task.name, arms, scores))},
        cells_done=len(done),
        cells=len(cells),
    )


class _Scores:
    """Per-clip outcomes of the finished task cells, with one clip order per task."""

    def __init__(self, plan: StudyPlan, scale: str, done: Sequence[Cell]) -> None:
        self._seeds = plan.file.scale(scale).seeds
        self._cells = {(cell.arm, cell.task, cell.clips, cell.seed): cell for cell in done if not cell.is_pretraining}
        self._clip_ids: dict[str, list[str]] = {}
        self._rows: dict[str, NDArray[np.bool_]] = {}

    def seeds_done(self, arm: str, task: str, clips: int) -> int:
        return sum((arm, task, clips, seed) in self._cells for seed in self._seeds)

    def matrix(self, arm: str, task: str, clips: int) -> NDArray[np.bool_]:
        """Right or wrong [S, V] of an arm whose seeds are all done."""
        return np.stack([self._read(self._cells[arm, task, clips, seed]) for seed in self._seeds])

    def _read(self, cell: Cell) -> NDArray[np.bool_]:
        if cell.id not in self._rows:
            path = cell.folder / "scores.parquet"
            try:
                connection = duckdb.connect(":memory:")
                rows = connection.execute(
                    "SELECT clip_id, correct FROM read_parquet(?) ORDER BY clip_id", [str(path)]
                ).fetchall()
                connection.close()
            except duckdb.Error as error:
                raise StudyError(
                    f"{path} cannot be read as scores ({str(error).splitlines()[0]}); remove its folder and run the study again."
                ) from error
            clip_ids = [row[0] for row in rows]
            known = self._clip_ids.setdefault(cell.task, clip_ids)
            if known != clip_ids or not clip_ids or len(set(clip_ids)) < len(clip_ids):
                raise StudyError(
                    f"{path} scores {len(clip_ids)} clips, others of task {cell.task} score {len(known)} and they are not "
                    "the same, so nothing is paired; remove its folder and run the study again."
                )
            self._rows[cell.id] = np.array([bool(row[1]) for row in rows])
        return self._rows[cell.id]


def _arm_results(
    plan: StudyPlan, scale: str, arm: PlannedArm, task: str, cells: Sequence[Cell], scores: _Scores
) -> list[ArmResult]:
    seeds = len(plan.file.scale(scale).seeds)
    if arm.spec.unavailable is not None:
        return [ArmResult(arm.name, task, 0, True, 0, seeds, 0, None, unavailable=arm.spec.unavailable)]
    lengths = sorted({cell.clips for cell in cells if (cell.arm, cell.task) == (arm.name, task)})
    tainted = plan.tainted(arm.name, task)
    is_shown = not tainted or plan.file.leaks.action == "report"
    if not lengths and not is_shown:
        return [ArmResult(arm.name, task, plan.file.scale(scale).clips[-1], True, 0, seeds, tainted, None, True)]
    found = []
    for clips in lengths:
        num_done = scores.seeds_done(arm.name, task, clips)
        score = None
        if is_shown and num_done == seeds:
            score = interval(
                scores.matrix(arm.name, task, clips),
                alpha=plan.file.alpha,
                generator=_generator(plan, scale, arm.name, task, clips),
            )
        found.append(
            ArmResult(arm.name, task, clips, clips == lengths[-1], num_done, seeds, tainted, score, not is_shown)
        )
    return found


def _pairs(plan: StudyPlan, scale: str, task: str, arms: Sequence[ArmResult], scores: _Scores) -> list[Pair]:
    """Every shown arm against every shown baseline; Holm over all of a task's pairs."""
    shown = {each.arm: each for each in arms if each.task == task and each.is_last and each.score is not None}
    matrices = {name: scores.matrix(name, task, each.clips) for name, each in shown.items()}
    scatter = seed_scatter(list(matrices.values()))
    compared: list[tuple[str, str, Comparison]] = []
    for position, baseline in enumerate(plan.file.baselines):
        for arm in shown:
            # Two baselines are compared with each other once.
            if baseline not in shown or arm == baseline or arm in plan.file.baselines[:position]:
                continue
            found = compare(
                matrices[arm],
                matrices[baseline],
                alpha=plan.file.alpha,
                scatter=scatter,
                generator=_generator(plan, scale, arm, baseline, task),
            )
            compared.append((arm, baseline, found))
    adjusted = holm([found.p for _, _, found in compared])
    return [
        Pair(arm, baseline, task, found, p, verdict(found.delta, p, alpha=plan.file.alpha))
        for (arm, baseline, found), p in zip(compared, adjusted, strict=True)
    ]


def _best(plan: StudyPlan, scale: str, task: str, arms: Sequence[ArmResult], scores: _Scores) -> str | None:
    """The arm with the highest score, if it is told apart from the second; Bonferroni for having picked it."""
    shown = [(each.score.mean, each) for each in arms if each.task == task and each.is_last and each.score is not None]
    if len(shown) < 2:
        return None
    first, second = (each for _, each in sorted(shown, key=lambda pair: pair[0], reverse=True)[:2])
    matrices = {each.arm: scores.matrix(each.arm, task, each.clips) for _, each in shown}
    found = compare(
        matrices[first.arm],
        matrices[second.arm],
        alpha=plan.file.alpha,
        scatter=seed_scatter(list(matrices.values())),
        generator=_generator(plan, scale, "best", task),
    )
    return first.arm if found.delta > 0 and found.p * (len(shown) - 1) < plan.file.alpha else None


def _videos(trained: Sequence[Cell]) -> dict[str, int]:
    videos: dict[str, int] = {}
    for cell in trained:
        path = cell.folder / "data.json"
        if cell.arm not in videos and path.is_file():
            entries = json.loads(path.read_bytes()).get("sets", [])
            videos[cell.arm] = sum(int(each["unique_videos"]) for each in entries if each.get("role") == "train")
    return videos


def _generator(plan: StudyPlan, *key: object) -> np.random.Generator:
    """Bootstrap draws that depend on what is drawn for, never on the order of the report."""
    digest = hashlib.sha256(repr((plan.file.name, *key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _loss_curve(cell: Cell) -> LossCurve | None:
    points = [
        (int(record["clips"]), float(record["loss"]))
        for record in _records(cell.folder)
        if record.get("loss") is not None
    ]
    if not points:
        return None
    return LossCurve(
        cell.arm, cell.clips, cell.seed, tuple(clips for clips, _ in points), tuple(loss for _, loss in points)
    )


def _records(folder: Path) -> list[Mapping[str, Any]]:
    """Records of log.jsonl; a torn last line is left out."""
    path = folder / "log.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _cost(arm: str, done: Sequence[Cell]) -> ArmCost:
    pretrain = task = stall = gpu = 0.0
    bytes_read = clips = memory = 0
    for cell in done:
        path = cell.folder / "cost.json"
        if cell.arm != arm or not path.is_file():
            continue
        cost = json.loads(path.read_bytes())
        seconds = float(cost.get("seconds") or 0)
        if cell.is_pretraining:
            pretrain, clips = pretrain + seconds, clips + cell.clips
        else:
            task += seconds
        stall += float(cost.get("stall_seconds") or 0)
        gpu += float(cost.get("gpu_seconds") or 0)
        bytes_read += int(cost.get("bytes_read") or 0)
        memory = max(memory, int(cost.get("memory_bytes") or 0))
    return ArmCost(arm, pretrain, task, stall, gpu, bytes_read, clips, memory)
