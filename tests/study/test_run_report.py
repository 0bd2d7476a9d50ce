"""The page of one run, and the charts it is made of."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from stmae_train.errors import StmaeTrainError
from stmae_train.report import (
    ForestRow,
    Line,
    forest_chart,
    human_bytes,
    human_seconds,
    line_chart,
    run_report,
    short_count,
)
from stmae_train.report.charts import nice_ticks


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished pre-training as the trainer leaves it."""
    folder = tmp_path / "first"
    (folder / "pictures").mkdir(parents=True)
    facts: dict[str, Any] = {
        "run.json": {
            "command": "pretrain",
            "status": "done",
            "seeds": [3],
            "started": "2030-01-01",
            "ended": "2030-01-02",
            "argv": ["stmae-train", "<b>"],
            "versions": {"torch": "2"},
            "leaks": None,
        },
        "cost.json": {
            "seconds": 125.0,
            "stall_seconds": 2.5,
            "clips": 64000,
            "bytes_read": 3 << 20,
            "memory_bytes": 1 << 30,
        },
        "data.json": {
            "sets": [
                {
                    "reference": "k400:train",
                    "role": "train",
                    "clips": 480,
                    "unique_videos": 470,
                    "repeats_per_video": 8.25,
                    "digest": "ab" * 32,
                }
            ]
        },
    }
    for name, value in facts.items():
        (folder / name).write_text(json.dumps(value))
    records = [{"step": step, "clips": 640 * step, "loss": 1 / step, "lr": 1e-3} for step in range(1, 20)]
    (folder / "log.jsonl").write_text("\n".join(json.dumps(each) for each in records) + '\n{"step"')
    (folder / "config.toml").write_text('name = "demo"\n')
    (folder / "pictures" / "90.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    return folder


def test_the_page_of_a_run_shows_what_it_read_how_it_went_and_what_it_cost(run_dir: Path) -> None:
    text = run_report(run_dir).read_text()
    for word in (
        "64,000",
        "2 min 05 s",
        "3 MiB",
        "1 GiB",
        "k400:train",
        "abababababab",
        "loss",
        "data:image/png;base64,",
    ):
        assert word in text
    assert "<b>" not in text.partition("<footer>")[2]
    assert "<script" not in text and not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_the_page_goes_where_it_is_asked_to_go(run_dir: Path, tmp_path: Path) -> None:
    assert run_report(run_dir, html=tmp_path / "page.html") == tmp_path / "page.html"
    assert not (run_dir / "report.html").exists()


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "running", "command": "pretrain"}')
    assert "This run is not done" in run_report(tmp_path).read_text()


def test_a_folder_without_a_run_and_a_picture_that_is_none_are_said(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(StmaeTrainError, match=r"no run\.json"):
        run_report(tmp_path)
    (run_dir / "pictures" / "90.png").write_bytes(b"<svg onload=alert(1)>")
    with pytest.raises(StmaeTrainError, match=r"90\.png is not a PNG"):
        run_report(run_dir)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 60_000, [0, 20_000, 40_000, 60_000]),
        (0.1, 0.92, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3, 9, [-5, -2.5, 0, 2.5, 5, 7.5, 10]),
        (0, 4000, [0, 1000, 2000, 3000, 4000]),
    ],
)
def test_ticks_are_round_and_cover_the_data(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_ticks_of_a_single_value_stand_around_it() -> None:
    ticks = nice_ticks(3.0, 3.0)
    assert ticks[0] < 3.0 < ticks[-1]


def test_charts_escape_names_and_keep_their_marks_inside() -> None:
    chart = line_chart(
        [
            Line("<k>", "#123456", ((0.0, 1.0), (10.0, 4.0)), ((0.5, 1.5), (3.0, 5.0))),
            Line("level", "#654321", ((0.0, 2.0),), is_level=True),
        ],
        title="a < b",
        x_label="x",
        y_label="y",
        x_text=str,
        y_text=str,
    )
    root = ET.fromstring(str(chart))
    assert root.attrib["aria-label"] == "a < b"
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "<k>" in texts and "level" in texts
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 < float(circle.attrib["cx"]) < 720 and 0 < float(circle.attrib["cy"]) < 340


def test_names_at_line_ends_do_not_cover_each_other() -> None:
    lines = [Line(f"arm-{number}", "#123456", ((0.0, 1.0), (1.0, 2.0 + number / 1000))) for number in range(6)]
    chart = line_chart(lines, title="t", x_label="x", y_label="y", x_text=str, y_text=str)
    root = ET.fromstring(str(chart))
    heights = sorted(
        float(each.attrib["y"])
        for each in root.iter("{http://www.w3.org/2000/svg}text")
        if (each.text or "").startswith("arm-")
    )
    assert all(below - above >= 15.9 for above, below in itertools.pairwise(heights))


def test_a_forest_says_its_words_and_fills_only_what_is_told_apart() -> None:
    rows = [
        ForestRow("a", 2.0, 1.0, 3.0, "better", "#111111"),
        ForestRow("b", 0.1, -1.0, 1.2, "not told apart", "#222222"),
    ]
    root = ET.fromstring(str(forest_chart(rows, title="t", x_label="points", x_text=str)))
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "better" in texts and "not told apart" in texts
    fills = [each.attrib["style"] for each in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert fills[0].startswith("fill:#111111") and not fills[1].startswith("fill:#222222")


def test_numbers_read_as_a_person_writes_them() -> None:
    assert [short_count(value) for value in (0, 950, 60_000, 12_800_000)] == ["0", "950", "60k", "12.8M"]
    assert [human_seconds(value) for value in (0.42, 59, 61, 7260)] == ["0.4 s", "59 s", "1 min 01 s", "2 h 01 min"]
    assert [human_bytes(value) for value in (12, 2048, 3 << 30)] == ["12 B", "2 KiB", "3 GiB"]
