"""Studies: what data does to a model, planned, run, compared and told without flattery.

studyfile   TOML -> checked values          statistics  intervals, tests, verdicts
plan        values -> cells with ids        results     finished cells -> scores, pairs, curves
run         cells -> run folders            report      one page, tables, JSON
"""

from stmae_train.study.doors import Doors, standard_doors
from stmae_train.study.plan import Cell, StudyPlan, parse_only, study_plan
from stmae_train.study.report import StudyReport, study_json, study_report, summary_json
from stmae_train.study.run import CellEvent, RunSummary, cell_hours, cell_state, study_run, study_status, write_plan
from stmae_train.study.studyfile import StudyFile, read_study

__all__ = [
    "Cell",
    "CellEvent",
    "Doors",
    "RunSummary",
    "StudyFile",
    "StudyPlan",
    "StudyReport",
    "cell_hours",
    "cell_state",
    "parse_only",
    "read_study",
    "standard_doors",
    "study_json",
    "study_plan",
    "study_report",
    "study_run",
    "study_status",
    "summary_json",
    "write_plan",
]
