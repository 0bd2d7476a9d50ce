"""What the small world planted, held against what the tools found; and how long every stage took."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stmae_data import catalog
from stmae_data.records import LEVELS
from stmae_train.errors import StudyError

__all__ = ["Evidence", "LevelCheck", "gather_evidence", "stage_seconds"]


@dataclass(frozen=True, slots=True)
class LevelCheck:
    """Leaks planted at one level, how many of them were found, and how many finds of that level nobody planted."""

    level: str
    kinds: tuple[str, ...]
    """How the planted copies were made, such as mirrored."""
    planted: int
    found: int
    false: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """The truth file of the small world against the decisions and ledgers of the workspace."""

    leaks: tuple[LevelCheck, ...]
    broken_planted: int
    broken_rejected: int
    reasons: Mapping[str, int]
    """Rejected broken files by reason."""


def gather_evidence(workspace: Path, truth: Path) -> Evidence:
    """Hold `truth.json` against what dedup decided and what the build rejected.

    A planted leak is found when some set holds a decision that its training clip leaves because of its evaluation clip.
    A leak decision about any other pair is false. A broken file is rejected when no row of it was written and each has a reason.

    Raises:
        StudyError: the truth file is missing or not what `stmae-data demo` writes.
        SetError: a set of the workspace is damaged.
    """
    try:
        facts = json.loads(truth.read_bytes())
        planted = [
            (str(each["level"]), str(each["kind"]), each["train_clip"], each["eval_clip"]) for each in facts["leaks"]
        ]
        broken = [(str(each["set"]), str(each["file"])) for each in facts["broken"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{truth} is not a truth file ({error!r}); make the small world again: stmae-data demo"
        ) from error
    decided = catalog.locked_select(
        workspace, "SELECT DISTINCT clip_id, other_clip_id, level FROM decision WHERE reason = 'leak'"
    ).rows
    rejected = _rejected(workspace, broken)
    return Evidence(
        leaks=tuple(_checks(planted, decided)),
        broken_planted=len(broken),
        broken_rejected=len(rejected),
        reasons=dict(sorted(Counter(rejected).items())),
    )


def _checks(
    planted: Sequence[tuple[str, str, str, str]], decided: Sequence[tuple[str, str, str]]
) -> Iterator[LevelCheck]:
    """One check per level of `LEVELS` where something was planted or invented."""
    found = {(train, evaluation) for train, evaluation, _ in decided}
    real = {(train, evaluation) for _, _, train, evaluation in planted}
    false: dict[tuple[str, str], str] = {}
    for train, evaluation, level in sorted(decided, key=lambda each: LEVELS.index(each[2])):
        if (train, evaluation) not in real:
            # A pair that is decided at several levels is one false find, of its strictest level.
            false.setdefault((train, evaluation), level)
    invented = Counter(false.values())
    for level in LEVELS:
        mine = [(kind, (train, evaluation)) for each, kind, train, evaluation in planted if each == level]
        if mine or invented[level]:
            yield LevelCheck(
                level=level,
                kinds=tuple(dict.fromkeys(kind for kind, _ in mine)),
                planted=len(mine),
                found=sum(pair in found for _, pair in mine),
                false=invented[level],
            )


def _rejected(workspace: Path, broken: Sequence[tuple[str, str]]) -> list[str]:
    """The reason of every planted broken file of which no row was written."""
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for name in sorted({name for name, _ in broken}):
        rows[name] = catalog.locked_select(
            workspace, "SELECT source_uri, outcome, reason FROM clip WHERE source_uri IS NOT NULL", sets=[name]
        ).rows
    reasons = []
    for name, file in broken:
        # Ledgers hold absolute URIs with every unusual byte percent-encoded; the truth names files below the world's folder.
        ending = "/" + quote(file)
        mine = [(outcome, reason) for uri, outcome, reason in rows[name] if uri.endswith(ending)]
        if mine and all(outcome != "written" and reason for outcome, reason in mine):
            reasons.append(mine[0][1])
    return reasons


def stage_seconds(workspace: Path) -> dict[str, float]:
    """Seconds per command from `journal.jsonl`, in the order first run.

    A command line that ran again and found its work done costs next to nothing, so of equal command lines the slowest one
    that ended well counts.
    """
    slowest: dict[tuple[str, tuple[str, ...]], float] = {}
    path = workspace / "journal.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record: Mapping[str, Any] = json.loads(line)
        except ValueError:
            continue  # a line torn by a kill
        if record.get("exit") != 0:
            continue
        key = (str(record["command"]), tuple(str(each) for each in record.get("argv", ())))
        slowest[key] = max(slowest.get(key, 0.0), float(record["seconds"]))
    totals: dict[str, float] = {}
    for (command, _), seconds in slowest.items():
        totals[command] = totals.get(command, 0.0) + seconds
    return totals
