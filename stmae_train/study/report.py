"""The report of a study: one HTML page, every table as CSV and Markdown, the figures as SVG, the same facts as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae_train.runlog import commit, runs_status
from stmae_train.study.doors import Doors, standard_doors
from stmae_train.study.evidence import Evidence, gather_evidence, stage_seconds
from stmae_train.study.figures import draw_figures
from stmae_train.study.page import render_study, versions
from stmae_train.study.plan import study_plan
from stmae_train.study.results import StudyResults, collect, finished_scale
from stmae_train.study.run import draw_pictures
from stmae_train.study.tables import study_tables

__all__ = ["StudyReport", "study_json", "study_report", "summary_json"]


@dataclass(frozen=True, slots=True)
class StudyReport:
    """What `study report` wrote; `json` and `summary` are None where they were not asked for."""

    html: Path
    tables: Path
    figures: Path
    json: Path | None
    summary: Path | None
    results: StudyResults


def study_report(
    file: Path,
    workspace: Path,
    *,
    scale: str | None = None,
    truth: Path | None = None,
    html: Path | None = None,
    json_path: Path | None = None,
    summary: Path | None = None,
    doors: Doors | None = None,
) -> StudyReport:
    """Compare the arms of one scale and write the report.

    Args:
        file: the study file.
        workspace: its workspace; the report stands in runs/<study>/report there.
        scale: which scale; the last complete one unless named.
        truth: `truth.json` of the small world, to hold dedup and the build against.
        html: where the page goes instead of report/index.html.
        json_path: also write the `study` facts here.
        summary: also write the small world's summary here.
        doors: the rooms it calls; the real ones unless given.

    Raises:
        StudyError: nothing is done yet, or scores do not fit each other.
    """
    doors = doors or standard_doors()
    plan = study_plan(file, workspace, scale=scale, doors=doors)
    scale = scale or finished_scale(plan)
    for cell in plan.cells:
        if cell.scale == scale and runs_status(cell.folder) == "done":
            draw_pictures(plan, cell, doors)
    results = collect(plan, scale=scale)
    evidence = gather_evidence(workspace, truth) if truth is not None else None
    seconds = stage_seconds(workspace)
    folder = plan.folder / "report"
    figures = draw_figures(results)
    tables = study_tables(results)
    _write(folder / "tables" / "tables.md", "\n".join(table.to_markdown() for table in tables))
    for table in tables:
        _write(folder / "tables" / f"{table.name}.csv", table.to_csv())
        _write(folder / "tables" / f"{table.name}.md", table.to_markdown())
    for name, figure in figures.items():
        _write(folder / "figures" / f"{name}.svg", str(figure) + "\n")
    page = html or folder / "index.html"
    _write(page, render_study(results, evidence=evidence, seconds=seconds, figures=figures))
    if json_path is not None:
        _write(json_path, _json_text(study_json(results)))
    if summary is not None:
        _write(summary, _json_text(summary_json(results, evidence=evidence, seconds=seconds)))
    return StudyReport(page, folder / "tables", folder / "figures", json_path, summary, results)


def study_json(results: StudyResults) -> dict[str, Any]:
    """The `study` facts of FORMATS.md; scores and differences are shares, null where nothing may be said."""
    return {
        "cells": results.cells,
        "arms": [
            {
                "name": each.arm,
                "task": each.task,
                "score": each.score.mean if each.score else None,
                "low": each.score.low if each.score else None,
                "high": each.score.high if each.score else None,
                "seeds": each.seeds_done,
                "tainted": each.tainted,
            }
            for each in results.arms
            if each.is_last
        ],
        "pairs": [
            {
                "arm": each.arm,
                "baseline": each.baseline,
                "task": each.task,
                "delta": each.comparison.delta,
                "low": each.comparison.low,
                "high": each.comparison.high,
                "verdict": each.verdict,
            }
            for each in results.pairs
        ],
    }


def summary_json(results: StudyResults, *, evidence: Evidence | None, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The `demo/summary.json` facts of FORMATS.md; without a truth file nothing was planted."""
    leaks = {"planted": 0, "found": 0, "false": 0}
    broken = {"planted": 0, "rejected": 0}
    if evidence is not None:
        leaks = {
            "planted": sum(each.planted for each in evidence.leaks),
            "found": sum(each.found for each in evidence.leaks),
            "false": sum(each.false for each in evidence.leaks),
        }
        broken = {"planted": evidence.broken_planted, "rejected": evidence.broken_rejected}
    return {
        "schema_version": 1,
        "arms": study_json(results)["arms"],
        "leaks": leaks,
        "broken": broken,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "versions": versions(),
    }


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    with commit(path) as stream:
        stream.write(text.encode())
