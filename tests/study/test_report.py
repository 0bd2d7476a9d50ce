"""What a study says: figures from scores, words from figures, one page that loads nothing."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stmae_data import files
from stmae_data.catalog.books import DECISION_COLUMNS
from stmae_data.records import LEDGER_COLUMNS
from stmae_train.errors import StudyError
from stmae_train.runlog import write_scores
from stmae_train.study import study_json, study_plan, study_report, study_run, summary_json
from stmae_train.study.evidence import gather_evidence, stage_seconds
from stmae_train.study.results import StudyResults, collect
from stmae_train.study.tables import StudyTable, study_tables, transfer_table

VERDICTS = {"better", "worse", "not told apart"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains about tags that do not close."""

    void = ("meta", "img", "br", "circle", "line", "path", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def short(text: str) -> str:
    """The study with one length alone."""
    return text.replace('["1k", "4k"]', '"4k"')


def results_of(study_file: Path, world: Any) -> StudyResults:
    return collect(study_plan(study_file, world.workspace, doors=world.doors()))


def test_known_accuracies_give_the_expected_words(study_file: Path, finished: Any) -> None:
    results = results_of(study_file, finished)
    k400 = results.pair("k400", "scratch", "probe")
    web = results.pair("web", "scratch", "probe")
    assert k400 is not None and web is not None
    assert k400.verdict == "better" and k400.comparison.delta == pytest.approx(0.1, abs=0.03)
    assert k400.comparison.low < 0.1 < k400.comparison.high
    assert web.verdict == "not told apart" and web.comparison.delta == 0
    assert {pair.verdict for pair in results.pairs} <= VERDICTS
    assert results.best == {"probe": "k400", "finetune": "k400"}


def test_a_tainted_arm_has_no_number_anywhere(study_file: Path, finished: Any, tmp_path: Path) -> None:
    report = study_report(study_file, finished.workspace, doors=finished.doors(), json_path=tmp_path / "study.json")
    facts = json.loads((tmp_path / "study.json").read_text())
    k700 = [arm for arm in facts["arms"] if arm["name"] == "k700"]
    assert [(arm["score"], arm["low"], arm["high"], arm["tainted"], arm["seeds"]) for arm in k700] == [
        (None, None, None, 37, 3)
    ] * 2
    assert not [pair for pair in facts["pairs"] if "k700" in (pair["arm"], pair["baseline"])]
    page = Page(report.html.read_text()).text
    assert "† k700: its pre-training data contains 37 of the 400 clips of k400:val." in page
    row = next(row for row in transfer_table(report.results).rows if row[0] == "k700")
    assert row[-2:] == ("n/a†", "n/a†")


def test_the_tainted_number_is_shown_and_marked_when_asked_for(study_text: str, tmp_path: Path, world: Any) -> None:
    file = tmp_path / "asked.toml"
    file.write_text(short(study_text) + '\n[leaks]\naction = "report"\n')
    study_run(file, world.workspace, doors=world.doors())
    row = next(row for row in transfer_table(results_of(file, world)).rows if row[0] == "k700")
    assert re.match(r"\d\d\.\d ± \d\.\d† \(\+\d+\.\d \[\d+\.\d, \d+\.\d\]\)", row[-1])


def test_a_scale_may_leave_tainted_arms_untrained(study_text: str, tmp_path: Path, world: Any) -> None:
    file = tmp_path / "skip.toml"
    file.write_text(short(study_text).replace('recipe = "demo"', 'recipe = "demo"\ntainted = "skip"'))
    study_run(file, world.workspace, doors=world.doors())
    assert not [call for call in world.calls if "k700" in call]
    results = results_of(file, world)
    assert results.is_complete
    found = results.last("k700", "probe")
    assert found is not None and (found.status, found.tainted) == ("tainted", 37)


def test_the_cells_of_the_table_read_as_the_papers_write_them(study_file: Path, finished: Any) -> None:
    rows = {row[0]: row for row in transfer_table(results_of(study_file, finished)).rows}
    assert re.fullmatch(r"\d\d\.\d ± \d\.\d \(\+\d+\.\d \[\d+\.\d, \d+\.\d\]\)", rows["k400"][-1])
    assert re.fullmatch(r"\d\d\.\d ± \d\.\d", rows["scratch"][-1])
    assert rows["k400"][1:6] == ("k400", "–", "480", "4000", "8.3")


def test_study_json_has_exactly_the_shape_of_the_format(study_file: Path, finished: Any) -> None:
    facts = study_json(results_of(study_file, finished))
    assert set(facts) == {"cells", "arms", "pairs"}
    assert facts["cells"] == 51
    assert all(set(arm) == {"name", "task", "score", "low", "high", "seeds", "tainted"} for arm in facts["arms"])
    assert all(
        set(pair) == {"arm", "baseline", "task", "delta", "low", "high", "verdict"} and pair["verdict"] in VERDICTS
        for pair in facts["pairs"]
    )
    assert len(facts["arms"]) == 8 and len(facts["pairs"]) == 6
    assert all(0 <= arm["low"] <= arm["score"] <= arm["high"] <= 1 for arm in facts["arms"] if arm["score"] is not None)


def test_summary_json_has_exactly_the_shape_of_the_format(study_file: Path, finished: Any) -> None:
    results = results_of(study_file, finished)
    facts = summary_json(results, evidence=None, seconds={"stmae-data build": 2.5})
    assert set(facts) == {"schema_version", "arms", "leaks", "broken", "seconds", "versions"}
    assert facts["leaks"] == {"planted": 0, "found": 0, "false": 0}
    assert facts["broken"] == {"planted": 0, "rejected": 0}
    assert facts["seconds"] == {"stmae-data build": 2.5}
    assert facts["arms"] == study_json(results)["arms"]


def test_a_second_report_says_the_same(study_file: Path, finished: Any) -> None:
    first = study_report(study_file, finished.workspace, doors=finished.doors()).html.read_bytes()
    assert study_report(study_file, finished.workspace, doors=finished.doors()).html.read_bytes() == first


def test_the_page_is_whole_and_loads_nothing(study_file: Path, finished: Any) -> None:
    text = study_report(study_file, finished.workspace, doors=finished.doors()).html.read_text()
    page = Page(text)
    policy = next(attrs for tag, attrs in page.tags if tag == "meta" and attrs.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "script" not in {tag for tag, _ in page.tags}
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")], tag
        assert (attrs.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
        assert not attrs.get("href")
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    for heading in (
        "Influence of the data",
        "Accuracy against clips seen",
        "Loss while pre-training",
        "Reconstructions",
        "Leak guard",
    ):
        assert heading in page.text


def test_words_from_outside_are_escaped(study_text: str, tmp_path: Path, world: Any) -> None:
    file = tmp_path / "rude.toml"
    file.write_text(short(study_text).replace("Does more data help?", "<script>alert(1)</script> & {{ 7 * 7 }}"))
    study_run(file, world.workspace, doors=world.doors())
    text = study_report(file, world.workspace, doors=world.doors()).html.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; {{ 7 * 7 }}" in text


def test_figures_are_documents_of_their_own(study_file: Path, finished: Any) -> None:
    report = study_report(study_file, finished.workspace, doors=finished.doors())
    names = sorted(path.name for path in report.figures.iterdir())
    assert names == ["accuracy-by-clips-probe.svg", "delta-forest-finetune.svg", "delta-forest-probe.svg", "loss.svg"]
    for path in report.figures.iterdir():
        root = ET.fromstring(path.read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        width, height = (float(each) for each in root.attrib["viewBox"].split()[2:])
        for line in root.iter("{http://www.w3.org/2000/svg}line"):
            assert 0 <= float(line.attrib["y1"]) <= height and -1 <= float(line.attrib["x2"]) <= width


def test_every_table_stands_as_csv_and_markdown(study_file: Path, finished: Any) -> None:
    report = study_report(study_file, finished.workspace, doors=finished.doors())
    for table in study_tables(report.results):
        lines = (report.tables / f"{table.name}.csv").read_text().splitlines()
        assert len(lines) == len(table.rows) + 1
        assert f"## {table.name}" in (report.tables / "tables.md").read_text()
    assert {path.stem for path in report.tables.glob("*.csv")} == {"transfer", "lengths", "pairs", "cost", "leaks"}


def test_markdown_cells_cannot_end_their_cell() -> None:
    assert "| a\\|b |" in StudyTable("t", ("x",), (("a|b",),)).to_markdown()


def test_missing_seeds_are_a_status_and_never_a_number(study_file: Path, finished: Any) -> None:
    plan = study_plan(study_file, finished.workspace, doors=finished.doors())
    cell = next(
        each for each in plan.cells if (each.arm, each.task, each.clips, each.seed) == ("web", "probe", 4000, 2)
    )
    shutil.rmtree(cell.folder)
    results = results_of(study_file, finished)
    found = results.last("web", "probe")
    assert found is not None and (found.status, found.score, found.seeds_done) == ("incomplete", None, 2)
    assert results.pair("web", "scratch", "probe") is None
    report = study_report(study_file, finished.workspace, doors=finished.doors())
    text = Page(report.html.read_text()).text
    assert "incomplete (2 of 3 seeds)" in text and "50 of 51 cells are done" in text


def test_nothing_done_is_said(study_file: Path, world: Any) -> None:
    with pytest.raises(StudyError, match="no finished cell yet"):
        study_report(study_file, world.workspace, doors=world.doors())


def test_scores_of_different_clips_are_refused(study_file: Path, finished: Any) -> None:
    plan = study_plan(study_file, finished.workspace, doors=finished.doors())
    cell = next(each for each in plan.cells if each.task == "probe" and each.seed == 1)
    row = {"clip_id": "other", "label": 0, "top5": [0], "p_label": 1.0, "seed": 1, "correct": True}
    write_scores(cell.folder / "scores.parquet", [row])
    with pytest.raises(StudyError, match="nothing is paired"):
        results_of(study_file, finished)
    (cell.folder / "scores.parquet").write_bytes(b"torn")
    with pytest.raises(StudyError, match="cannot be read as scores"):
        results_of(study_file, finished)


def test_one_seed_says_single_seed(study_text: str, tmp_path: Path, world: Any) -> None:
    file = tmp_path / "one.toml"
    file.write_text(short(study_text).replace("[0, 1, 2]", "[4]"))
    study_run(file, world.workspace, doors=world.doors())
    report = study_report(file, world.workspace, doors=world.doors())
    assert {pair.comparison.test for pair in report.results.pairs} == {"mcnemar"}
    assert "Single seed" in Page(report.html.read_text()).text


def test_a_leaking_task_warns_at_the_top(study_file: Path, make_world: Callable[..., Any]) -> None:
    world = make_world(leaks={"k400:train": {"id": {"train": 4, "eval": 3}}})
    study_run(study_file, world.workspace, doors=world.doors())
    report = study_report(study_file, world.workspace, doors=world.doors())
    assert "own training split k400:train shares 3 clips with k400:val" in Page(report.html.read_text()).text


def test_stage_seconds_count_the_slowest_finished_run_of_each_command(workspace: Path) -> None:
    lines = [
        {"command": "stmae-data build", "argv": ["build", "a"], "seconds": 20.0, "exit": 0},
        {"command": "stmae-data build", "argv": ["build", "b"], "seconds": 5.0, "exit": 0},
        {"command": "stmae-data build", "argv": ["build", "a"], "seconds": 0.1, "exit": 0},
        {"command": "stmae-data dedup", "argv": [], "seconds": 90.0, "exit": 1},
    ]
    (workspace / "journal.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"command": "torn')
    assert stage_seconds(workspace) == {"stmae-data build": 25.0}
    assert stage_seconds(workspace / "nowhere") == {}


def make_evidence(
    workspace: Path, decided: list[tuple[str, str, str]], outcomes: dict[str, tuple[str, str | None]]
) -> Path:
    """Sets with decisions and ledgers, and a truth file of three leaks and two broken files."""
    meta = workspace / "sets" / "demo-k700" / "meta"
    rows = [
        {"clip_id": train, "other_clip_id": other, "level": level, "reason": "leak", "verb": "drop"}
        for train, other, level in decided
    ]
    files.commit_table(meta / "decisions" / "run.parquet", rows, DECISION_COLUMNS, point="test")
    files.commit_table(meta / "ledger" / "train-000000.parquet", [], LEDGER_COLUMNS, point="test")
    files.commit_table(meta / "plan.parquet", [], {"row_id": "VARCHAR"}, point="test")
    web = workspace / "sets" / "demo-web" / "meta"
    ledger = [
        {"row_id": str(number), "source_uri": f"file:///somewhere/{uri}", "outcome": outcome, "reason": reason}
        for number, (uri, (outcome, reason)) in enumerate(outcomes.items())
    ]
    files.commit_table(web / "ledger" / "train-000000.parquet", ledger, LEDGER_COLUMNS, point="test")
    files.commit_table(web / "plan.parquet", [], {"row_id": "VARCHAR"}, point="test")
    leaks = [("id", "same_id", "t1", "e1"), ("content", "mirrored", "t2", "e2"), ("content", "trimmed", "t3", "e3")]
    truth = {
        "leaks": [
            {"level": level, "kind": kind, "train_clip": train, "eval_clip": other}
            for level, kind, train, other in leaks
        ],
        "broken": [{"set": "demo-web", "file": f"raw/demo-web/{name}"} for name in ("odd name ü.mp4", "half.mp4")],
    }
    path = workspace / "truth.json"
    path.write_text(json.dumps(truth))
    return path


def test_what_was_planted_is_held_against_what_was_found(workspace: Path) -> None:
    decided = [("t1", "e1", "id"), ("t1", "e1", "video"), ("t2", "e2", "content"), ("t9", "e9", "content")]
    outcomes = {
        "raw/demo-web/odd%20name%20%C3%BC.mp4": ("failed", "not_media"),
        "raw/demo-web/half.mp4": ("written", None),
    }
    found = gather_evidence(workspace, make_evidence(workspace, decided, outcomes))
    assert [(each.level, each.planted, each.found, each.false) for each in found.leaks] == [
        ("id", 1, 1, 0),
        ("content", 2, 1, 1),
    ]
    assert (found.broken_planted, found.broken_rejected, dict(found.reasons)) == (2, 1, {"not_media": 1})


def test_a_wrong_truth_file_is_said(workspace: Path) -> None:
    path = workspace / "truth.json"
    path.write_text("[]")
    with pytest.raises(StudyError, match="is not a truth file"):
        gather_evidence(workspace, path)


def test_seeds_are_read_in_the_order_of_the_study(study_file: Path, finished: Any) -> None:
    results = results_of(study_file, finished)
    found = results.last("scratch", "probe")
    assert found is not None and found.score is not None
    expected = [np.random.default_rng(seed).random(400) < 0.7 for seed in (0, 1, 2)]
    assert found.score.mean == pytest.approx(np.mean(expected))


def test_a_level_that_cannot_be_compared_is_said_and_is_no_taint(
    study_file: Path, make_world: Callable[..., Any]
) -> None:
    world = make_world(leaks={"web:train": {"content": None}})
    study_run(study_file, world.workspace, doors=world.doors())
    report = study_report(study_file, world.workspace, doors=world.doors())
    found = report.results.last("web", "probe")
    assert found is not None and found.status == "measured"
    text = Page(report.html.read_text()).text
    assert re.search(r"web:train/tiny-web-\w{8} could not be compared with k400:val by content", text)
    assert "not comparable" in (report.tables / "leaks.csv").read_text()
