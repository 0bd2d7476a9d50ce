"""The figures of a study, one colour per arm through all of them."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from stmae_train.report import ForestRow, Line, color_of, forest_chart, line_chart, short_count
from stmae_train.study.results import ArmResult, LossCurve, StudyResults

__all__ = ["arm_colors", "draw_figures"]


def draw_figures(results: StudyResults) -> dict[str, Markup]:
    """Figure name to SVG: accuracy-by-clips-<task>, delta-forest-<task>, loss."""
    colors = arm_colors(results)
    figures: dict[str, Markup] = {}
    for task in results.plan.file.tasks:
        rows = [
            ForestRow(
                each.arm,
                100 * each.comparison.delta,
                100 * each.comparison.low,
                100 * each.comparison.high,
                each.verdict,
                colors[each.arm],
                group=f"against {each.baseline}",
            )
            for each in results.pairs
            if each.task == task.name
        ]
        if rows:
            figures[f"delta-forest-{task.name}"] = forest_chart(
                rows,
                title=f"Differences on {task.name} with their intervals",
                x_label="difference, percentage points",
                x_text=lambda value: f"{value:+g}" if value else "0",
                width=560,
            )
        shown = [each for each in results.arms if each.task == task.name and each.score is not None]
        if len({each.clips for each in shown if each.clips}) > 1:
            figures[f"accuracy-by-clips-{task.name}"] = line_chart(
                [
                    _accuracy_line(arm, [each for each in shown if each.arm == arm], colors[arm])
                    for arm in dict.fromkeys(each.arm for each in shown)
                ],
                title=f"Accuracy on {task.name} against clips seen",
                x_label="clips seen in pre-training",
                y_label="top-1 accuracy, %",
                x_text=short_count,
                y_text=lambda value: f"{value:g}",
                y_range=_readable_range([100 * each.score.mean for each in shown if each.score is not None]),
            )
    if results.losses:
        figures["loss"] = _loss_chart(results, colors)
    return figures


def _readable_range(means: list[float]) -> tuple[float, float]:
    """Per cent around the means: a few seeds can give an interval so wide that nothing else could be read."""
    margin = max(3.0, 0.6 * (max(means) - min(means)))
    return max(0.0, min(means) - margin), min(100.0, max(means) + margin)


def _accuracy_line(arm: str, results: list[ArmResult], color: str) -> Line:
    scores = [
        (each.clips, each.score) for each in sorted(results, key=lambda each: each.clips) if each.score is not None
    ]
    return Line(
        arm,
        color,
        tuple((float(clips), 100 * score.mean) for clips, score in scores),
        tuple((100 * score.low, 100 * score.high) for clips, score in scores if clips),
        is_level=scores[0][0] == 0,
    )


def _loss_chart(results: StudyResults, colors: Mapping[str, str]) -> Markup:
    """The longest runs of every arm: each seed thin, their mean over it."""
    lines: list[Line] = []
    means: list[Line] = []
    kept: list[float] = []
    for arm in dict.fromkeys(curve.arm for curve in results.losses):
        curves = [curve for curve in results.losses if curve.arm == arm]
        curves = [curve for curve in curves if curve.clips == max(each.clips for each in curves)]
        lines += [Line("", colors[arm], _points(curve), is_faint=True) for curve in curves]
        common = min(curves, key=lambda curve: len(curve.losses))
        steps = range(len(common.losses))
        mean = [sum(curve.losses[step] for curve in curves) / len(curves) for step in steps]
        means.append(Line(arm, colors[arm], tuple((float(common.clips_seen[step]), mean[step]) for step in steps)))
        # The first steps fall so far that the rest would be a flat line.
        kept += mean[len(mean) // 20 :]
    return line_chart(
        [*lines, *means],
        title="Reconstruction loss against clips seen",
        x_label="clips seen in pre-training",
        y_label="reconstruction loss",
        x_text=short_count,
        y_text=lambda value: f"{value:.4g}",
        y_range=(min(kept), max(kept)),
    )


def _points(curve: LossCurve) -> tuple[tuple[float, float], ...]:
    return tuple((float(clips), loss) for clips, loss in zip(curve.clips_seen, curve.losses, strict=True))


def arm_colors(results: StudyResults) -> dict[str, str]:
    """One colour per arm through the whole report; grey for arms without training data."""
    trained = [arm.name for arm in results.plan.arms if arm.data]
    return {
        arm.name: color_of(trained.index(arm.name)) if arm.data else color_of(0, is_neutral=True)
        for arm in results.plan.arms
    }
