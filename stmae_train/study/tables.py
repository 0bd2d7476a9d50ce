"""The tables of a study as plain cells: the same facts for CSV, Markdown and HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from stmae_train.report import short_count
from stmae_train.study.results import ArmResult, StudyResults

__all__ = [
    "StudyTable",
    "cost_table",
    "leak_table",
    "length_table",
    "pair_table",
    "score_text",
    "study_tables",
    "taint_notes",
    "transfer_table",
]


@dataclass(frozen=True, slots=True)
class StudyTable:
    """A named table of texts with its footnotes."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_csv(self) -> str:
        """Comma-separated, one header line; footnotes stay out."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return out.getvalue()

    def to_markdown(self) -> str:
        """A Markdown table with its footnotes below."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        lines = [f"## {self.name}", "", line(self.columns), "|---" * len(self.columns) + "|"]
        lines += [line(row) for row in self.rows]
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(lines) + "\n"


def study_tables(results: StudyResults) -> list[StudyTable]:
    """Every table that has a row."""
    tables = [
        transfer_table(results),
        length_table(results),
        pair_table(results),
        cost_table(results),
        leak_table(results),
    ]
    return [table for table in tables if table.rows]


def score_text(results: StudyResults, result: ArmResult | None) -> str:
    """`84.1 ± 0.2 (+0.9 [0.4, 1.4])` in per cent and points, `n/a†`, or the status in words."""
    if result is None:
        return "–"
    if result.status == "not run":
        return "not run"
    if result.status == "incomplete":
        return f"incomplete ({result.seeds_done} of {result.seeds_planned} seeds)"
    if result.score is None:
        return "n/a†"
    text = f"{100 * result.score.mean:.1f}"
    if result.score.seed_sd is not None:
        text += f" ± {100 * result.score.seed_sd:.1f}"
    if result.tainted:
        text += "†"
    pair = results.pair(result.arm, results.plan.file.baselines[0], result.task)
    if pair is not None and result.is_last:
        found = pair.comparison
        text += f" ({100 * found.delta:+.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}])"
    return text


def taint_notes(results: StudyResults) -> tuple[str, ...]:
    """One footnote per tainted arm and test split, with the count of leaked clips."""
    notes: dict[str, None] = {}
    for each in results.arms:
        if each.tainted and each.is_last:
            test = results.plan.tests[each.task]
            notes[
                f"† {each.arm}: its pre-training data contains {each.tainted} of the {test.num_clips} clips of {test.reference}."
            ] = None
    return tuple(notes)


def transfer_table(results: StudyResults) -> StudyTable:
    """The influence table: a row per arm, a column per task."""
    tasks = [task.name for task in results.plan.file.tasks if results.scale in task.scales]
    rows = []
    for arm in results.plan.arms:
        if results.scale not in arm.spec.scales:
            continue
        found = [results.last(arm.name, task) for task in tasks]
        clips = max((each.clips for each in found if each), default=0)
        rows.append(
            (
                arm.name,
                ", ".join(arm.shards) or "–",
                str(results.videos.get(arm.name, "")) or "–",
                str(arm.num_clips) if arm.data else "–",
                str(clips) if clips else "–",
                f"{clips / arm.num_clips:.1f}" if arm.data and clips else "–",
                *(score_text(results, each) for each in found),
            )
        )
    baseline = results.plan.file.baselines[0]
    notes = (
        f"Top-1 accuracy in % ± standard deviation over seeds; in brackets the difference to {baseline} in points with its "
        f"{100 * (1 - results.plan.file.alpha):.0f} % interval.",
        *taint_notes(results),
    )
    columns = ("arm", "data", "videos", "clips", "clips seen", "repeats", *tasks)
    return StudyTable("transfer", columns, tuple(rows), notes)


def length_table(results: StudyResults) -> StudyTable:
    """Accuracy against clips seen: a row per arm and task, a column per length."""
    lengths = results.plan.file.scale(results.scale).clips
    rows = []
    for task in results.plan.file.tasks:
        for arm in results.plan.arms:
            by_length = {each.clips: each for each in results.arms if (each.arm, each.task) == (arm.name, task.name)}
            if not by_length or not arm.data:
                continue
            cells = []
            for clips in lengths:
                found = by_length.get(clips)
                text = score_text(results, found)
                cells.append(text.partition(" (")[0] if found and found.status == "measured" else text)
            rows.append((arm.name, task.name, *cells))
    return StudyTable(
        "lengths",
        ("arm", "task", *(f"{short_count(clips)} clips" for clips in lengths)),
        tuple(rows) if len(lengths) > 1 else (),
        ("Every length is a run of its own with a whole learning-rate schedule.",),
    )


def pair_table(results: StudyResults) -> StudyTable:
    """Every arm against every baseline, with p after Holm and the verdict."""
    rows = [
        (
            each.arm,
            each.baseline,
            each.task,
            f"{100 * each.comparison.delta:.2f}",
            f"{100 * each.comparison.low:.2f}",
            f"{100 * each.comparison.high:.2f}",
            f"{each.p_holm:.4f}",
            f"{each.comparison.seeds_won}/{each.comparison.num_seeds}",
            each.verdict,
            f"{100 * each.comparison.detectable:.2f}",
        )
        for each in results.pairs
    ]
    columns = (
        "arm",
        "baseline",
        "task",
        "difference",
        "low",
        "high",
        "p (Holm)",
        "seeds won",
        "verdict",
        "detectable difference",
    )
    return StudyTable("pairs", columns, tuple(rows), ("Differences in percentage points.",))


def cost_table(results: StudyResults) -> StudyTable:
    """What every arm cost in this scale, all seeds and lengths together."""
    rows = [
        (
            each.arm,
            str(each.clips_seen),
            f"{each.pretrain_seconds / 3600:.3f}",
            f"{each.task_seconds / 3600:.3f}",
            f"{each.gpu_seconds / 3600:.3f}",
            f"{100 * each.stall_seconds / max(each.pretrain_seconds + each.task_seconds, 1e-9):.1f}",
            f"{each.bytes_read / 1e9:.3f}",
            f"{each.clips_seen / each.pretrain_seconds:.0f}" if each.pretrain_seconds else "–",
        )
        for each in results.costs
        if each.pretrain_seconds + each.task_seconds > 0
    ]
    columns = (
        "arm",
        "clips seen",
        "pre-training h",
        "tasks h",
        "GPU h",
        "waiting for data %",
        "GB read",
        "clips per second",
    )
    return StudyTable("cost", columns, tuple(rows))


def leak_table(results: StudyResults) -> StudyTable:
    """Every pair of training data and test split that shares clips, level by level."""
    rows = []
    for leak in results.plan.leaks:
        for level, counts in leak.levels.items():
            if counts is None or counts["eval"] or counts["train"]:
                who = leak.arm or "(task's own training split)"
                numbers = ("not comparable",) * 2 if counts is None else (str(counts["train"]), str(counts["eval"]))
                rows.append((who, leak.train, leak.test, level, *numbers))
    return StudyTable("leaks", ("arm", "train", "test", "level", "training clips", "evaluation clips"), tuple(rows))
