"""The leak guard: every training split against every test split, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stmae_data.records import SetRef
from stmae_train.errors import StudyError
from stmae_train.study.cells import PlannedArm
from stmae_train.study.doors import DataFacts, Doors, LeakCounts
from stmae_train.study.studyfile import ScaleSpec, StudyFile

__all__ = ["Leak", "arms_to_run", "find_leaks"]


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


def find_leaks(
    study: StudyFile,
    workspace: Path,
    arms: Sequence[PlannedArm],
    tests: Mapping[str, DataFacts],
    trains: Mapping[str, tuple[DataFacts, ...]],
    doors: Doors,
) -> tuple[Leak, ...]:
    """Count what every arm, and every task's own training split, shares with the test splits.

    Raises:
        StudyError: something leaks and the study says `leaks.action = "fail"`.
    """
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
        # A level that the guard leaves out could not be compared: unknown is not none.
        levels = {level: counted[train, test].get(level) for level in study.leaks.check}
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


def arms_to_run(
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
