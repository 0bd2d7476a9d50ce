"""The study as one HTML page: what the template shows, gathered."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from stmae_train.report import human_count, human_seconds, picture_uri, render_page, short_count
from stmae_train.study.cells import PlannedArm
from stmae_train.study.doors import LeakCounts
from stmae_train.study.evidence import Evidence
from stmae_train.study.figures import arm_colors, draw_figures
from stmae_train.study.results import ArmResult, Picture, StudyResults
from stmae_train.study.tables import pair_table, score_text, taint_notes, transfer_table
from stmae_train.study.template import TEMPLATE

__all__ = ["render_study", "versions"]

MAX_PICTURES = 24
_PACKAGES = ("stmae", "torch", "numpy", "scipy", "duckdb", "av")


def versions() -> dict[str, str]:
    """Python and the packages that decide a result."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def render_study(
    results: StudyResults,
    *,
    evidence: Evidence | None,
    seconds: Mapping[str, float],
    figures: Mapping[str, Markup] | None = None,
) -> str:
    """The whole page as HTML text."""
    figures = draw_figures(results) if figures is None else figures
    study = results.plan.file
    tasks = [task for task in study.tasks if results.scale in task.scales]
    longest = max(seconds.values(), default=1.0) or 1.0
    values = {
        "study": study,
        "scale": study.scale(results.scale),
        "results": results,
        "baseline": study.baselines[0],
        "confidence": f"{100 * (1 - study.alpha):g} %",
        "warnings": _warnings(results),
        "tiles": _tiles(results),
        "tasks": [
            {"name": task.name, "detail": f"{task.kind} on {results.plan.tests[task.name].reference}"} for task in tasks
        ],
        "rows": _rows(results, [task.name for task in tasks]),
        "notes": _notes(results),
        "forests": [(task.name, figures[key]) for task in tasks if (key := f"delta-forest-{task.name}") in figures],
        "pair_table": pair_table(results),
        "curves": [(task.name, figures[key]) for task in tasks if (key := f"accuracy-by-clips-{task.name}") in figures],
        "losses": figures.get("loss"),
        "pictures": _pictures(results),
        "levels": study.leaks.check,
        "leak_rows": _leak_rows(results),
        "leak_notes": _leak_notes(results),
        "evidence": evidence,
        "stages": [(name, value, round(100 * value / longest, 1)) for name, value in seconds.items()],
        "costs": [each for each in results.costs if each.pretrain_seconds + each.task_seconds > 0],
        "methods": _methods(results),
        "data": list({each.reference: each for arm in results.plan.arms for each in arm.data}.values())
        + list({each.reference: each for each in results.plan.tests.values()}.values()),
        "versions": versions(),
    }
    return render_page(TEMPLATE, values, title=f"{study.name} · study")


def _warnings(results: StudyResults) -> list[str]:
    """What a reader must know before the first number."""
    plan = results.plan
    notes = []
    if len(plan.file.scale(results.scale).seeds) == 1:
        notes.append(
            "Single seed: intervals and verdicts speak of these trainings alone, not of others with the same data."
        )
    for leak in plan.leaks:
        if "content" in leak.not_comparable:
            notes.append(
                f"{leak.train} could not be compared with {leak.test} by content, so copies under other names would not be seen. "
                f"Make fingerprints: stmae-data fingerprint {leak.train.partition(':')[0]}"
            )
        if not leak.arm and leak.num_evaluation_clips:
            notes.append(
                f"The task's own training split {leak.train} shares {leak.num_evaluation_clips} clips with {leak.test}: "
                "every score on it is too high."
            )
    if plan.file.leaks.action == "report":
        notes.append("The study file asks for tainted numbers; they are marked † and are not evidence.")
    return notes


def _tiles(results: StudyResults) -> list[tuple[str, str, str]]:
    plan = results.plan
    scale = plan.file.scale(results.scale)
    trained = sum(each.pretrain_seconds + each.task_seconds for each in results.costs)
    told = sum(each.verdict != "not told apart" for each in results.pairs)
    tasks = [task.name for task in plan.file.tasks if results.scale in task.scales]
    tests = {plan.tests[task].reference: plan.tests[task].num_clips for task in tasks}
    floor = min((plan.detectable(results.scale, task) for task in tasks), default=0.0)
    return [
        (str(len({each.arm for each in results.arms})), "arms", f"{len(scale.seeds)} seeds each"),
        (human_count(scale.clips[-1]), "clips seen per arm", f"recipe {scale.recipe}"),
        (f"{results.cells_done} / {results.cells}", "cells done", f"{human_seconds(trained)} of training and testing"),
        (" + ".join(human_count(count) for count in tests.values()), "test clips", ", ".join(tests)),
        (f"{told} / {len(results.pairs)}", "pairs told apart", f"planned to show {100 * floor:.1f} points or more"),
    ]


def _rows(results: StudyResults, tasks: list[str]) -> list[dict[str, Any]]:
    """The influence table's lines, ready to be drawn."""
    colors = arm_colors(results)
    texts = {row[0]: row for row in transfer_table(results).rows}
    rows = []
    for arm in results.plan.arms:
        if arm.name not in texts:
            continue
        name, _, videos, clips, seen, repeats = texts[arm.name][:6]
        described = arm.spec.unavailable or (_described(arm) if arm.data else "no pre-training, random encoder")
        if arm.spec.init not in (None, "random"):
            described = f"starts from {arm.spec.init}"
        rows.append(
            {
                "name": name,
                "data": described,
                "color": colors[arm.name],
                "videos": human_count(float(videos)) if videos.isdigit() else videos,
                "clips": human_count(arm.num_clips) if arm.data else clips,
                "seen": human_count(float(seen)) if seen.isdigit() else seen,
                "repeats": repeats,
                "cells": [_cell(results, results.last(arm.name, task)) for task in tasks],
            }
        )
    return rows


def _described(arm: PlannedArm) -> str:
    """What an arm reads; the name of a selection is long and stands with its digest at the end of the page."""
    return ", ".join(f"selected from {text.partition('/')[0]}" if "/" in text else text for text in arm.shards)


def _cell(results: StudyResults, result: ArmResult | None) -> dict[str, Any]:
    if result is None or result.score is None:
        text = score_text(results, result)
        return {"word": text, "kind": "none" if text == "n/a†" else "muted"}
    score = result.score
    pair = results.pair(result.arm, results.plan.file.baselines[0], result.task)
    return {
        "word": "",
        "score": f"{100 * score.mean:.1f}",
        "spread": "" if score.seed_sd is None else f" ± {100 * score.seed_sd:.1f}",
        "tainted": bool(result.tainted),
        "best": results.best.get(result.task) == result.arm,
        "delta": "" if pair is None else f"{100 * pair.comparison.delta:+.1f}",
        "range": "" if pair is None else f"[{100 * pair.comparison.low:.1f}, {100 * pair.comparison.high:.1f}]",
        "verdict": "" if pair is None else pair.verdict,
    }


def _notes(results: StudyResults) -> list[str]:
    notes = list(taint_notes(results))
    if any(each.tainted for each in results.arms) and results.plan.file.leaks.action != "report":
        notes.append(
            "A tainted arm is shown as n/a†, and compared with nothing: its score would measure memory, not learning."
        )
    if any(
        each.verdict == "not told apart" and each.comparison.low * each.comparison.high > 0 for each in results.pairs
    ):
        notes.append(
            "Intervals stand for one pair alone, verdicts for all pairs of a task together (Holm): an interval may leave zero out "
            "and its pair still be not told apart."
        )
    if results.best:
        notes.append("Green scores are the best of their column and told apart from the second best.")
    return notes


def _pictures(results: StudyResults) -> list[tuple[str, str]]:
    """Pictures of the longest runs, one seed per arm first."""
    longest = max((each.clips for each in results.pictures), default=0)
    chosen = [each for each in results.pictures if each.clips == longest]
    chosen = sorted(chosen, key=lambda each: each.seed)
    first: dict[str, int] = {}
    for each in chosen:
        first.setdefault(each.arm, each.seed)
    kept = [each for each in chosen if first[each.arm] == each.seed][:MAX_PICTURES]
    order = {arm.name: number for number, arm in enumerate(results.plan.arms)}
    kept.sort(key=lambda each: (order[each.arm], each.path.name))
    return [(_caption(each), picture_uri(each.path)) for each in kept]


def _caption(picture: Picture) -> str:
    """`demo-k400 · 90 % hidden · <clip>`: pictures are named <clip>-<hidden per cent>.png."""
    clip, _, hidden = picture.path.stem.rpartition("-")
    return (
        f"{picture.arm} · {hidden} % hidden · {clip}"
        if hidden.isdigit() and clip
        else f"{picture.arm} · {picture.path.stem}"
    )


def _leak_rows(results: StudyResults) -> list[dict[str, Any]]:
    return [
        {
            "arm": leak.arm or "(task's own training split)",
            "train": leak.train,
            "test": leak.test,
            "counts": [_leak_count(leak.levels, level) for level in results.plan.file.leaks.check],
            "total": leak.num_evaluation_clips,
        }
        for leak in results.plan.leaks
        if leak.num_evaluation_clips
    ]


def _leak_notes(results: StudyResults) -> list[str]:
    """What the guard could not see, apart from content."""
    notes: dict[str, None] = {}
    for leak in results.plan.leaks:
        levels = [level for level in leak.not_comparable if level != "content"]
        if levels:
            notes[
                f"{leak.train} and {leak.test} could not be compared at {', '.join(levels)}: one of them knows no such ids."
            ] = None
    return list(notes)


def _leak_count(levels: LeakCounts, level: str) -> str:
    """Leaked evaluation clips at a level; "?" where nothing is known."""
    counts = levels.get(level, {})
    return "?" if counts is None else str(counts.get("eval", 0))


def _methods(results: StudyResults) -> list[tuple[str, str]]:
    plan = results.plan
    scale = plan.file.scale(results.scale)
    several = len(scale.seeds) > 1
    test = (
        "hierarchical bootstrap over seeds, then test clips, paired by both; widened for few seeds (Student's tails, the "
        "seeds' scatter pooled over arms)"
        if several
        else "exact McNemar test on the paired test clips of one seed; intervals by bootstrap over test clips"
    )
    return [
        (
            "Control",
            f"equal clips seen: {', '.join(short_count(clips) for clips in scale.clips)}; recipe {scale.recipe}, everything but the data fixed",
        ),
        (
            "Common random numbers",
            "for one seed, all arms share initial weights, masks, crops and the order of the task",
        ),
        ("Schedule", "cosine: every length is a run of its own; no trunk is shared between lengths"),
        ("Differences", test),
        (
            "Verdicts",
            f"Holm over all pairs of a task at alpha {plan.file.alpha:g}; the words are better, worse, not told apart",
        ),
        ("Leak guard", f"levels {', '.join(plan.file.leaks.check)}; action {plan.file.leaks.action}"),
        ("Seeds", ", ".join(str(seed) for seed in scale.seeds)),
        ("Cells", f"id = hash of recipe, data digests, length, seed and code version {plan.code_version}"),
    ]
