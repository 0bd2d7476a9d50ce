"""The road, end to end, by the commands a user types: render, build, dedup, study, report; on a very small world."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = {"stmae-data": "stmae_cli.data", "stmae-train": "stmae_cli.train"}

STUDY = """
[study]
name     = "mini"
question = "Does the road hold?"
baseline = "scratch"
seeds    = [0, 1]

[scale.mini]
recipe = "demo"
clips  = ["64", "256"]
[scale.mini.override]
probe = { epochs = 2, train_views = 1, views = [1, 1] }

[data.demo-k400]
shards = "demo-k400"
[data.demo-k700]
shards = "demo-k700"
[data.clean]
shards = "demo-k700-clean"
[data.tagged]
from        = "demo-web"
where       = "signals['motion'] > 0"
hashtags_of = "demo-k400"

[[arm]]
init = "random"
[[arm]]
data = ["demo-k400", "demo-k700", "clean", "tagged"]

[[task]]
name  = "probe"
kind  = "attentive"
train = { shards = "demo-k400" }
test  = { shards = "demo-k400", split = "val" }
"""


def run(line: str, *, code: int = 0) -> str:
    """Run one command line as a user would; returns stdout."""
    program, *arguments = line.split()
    ended = subprocess.run([sys.executable, "-m", PROGRAMS[program], *arguments], capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr[-3000:]
    assert "Traceback" not in ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world, built and cleaned."""
    world = tmp_path_factory.mktemp("road") / "world"
    run(f"stmae-data demo {world} --scale 0.02")
    for name in ("demo-k400", "demo-k700", "demo-web"):
        run(f"stmae-data build {world}/{name}.toml -w {world}")
    run(f"stmae-data dedup demo-k700 --against demo-k400:val --to demo-k700-clean -w {world}")
    return world


def test_every_planted_leak_is_found_and_none_is_invented(world: Path) -> None:
    truth = json.loads((world / "truth.json").read_text())
    shown = json.loads(run(f"stmae-data leaks demo-k700 demo-web --against demo-k400:val -w {world} --json", code=3))
    by_train = {pair["train"].partition(":")[0]: pair for pair in shown["pairs"]}
    for level in ("bytes", "id", "video", "overlap", "content"):
        planted = {leak["train_clip"] for leak in truth["leaks"] if level in leak["levels"]}
        assert by_train["demo-k700"][level]["train"] == len(planted), level
    assert by_train["demo-web"]["content"] == {"train": 0, "eval": 0}
    decided = json.loads(
        run_sql(world, "SELECT DISTINCT clip_id FROM clip WHERE set_name = 'demo-k700-clean' AND reason = 'leak'")
    )
    assert {row["clip_id"] for row in decided} == {leak["train_clip"] for leak in truth["leaks"]}
    run(f"stmae-data leaks demo-k700-clean --against demo-k400:val -w {world}")


def run_sql(world: Path, query: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "stmae_cli.data", "sql", query, "-w", str(world), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout


def test_every_broken_file_is_rejected_with_its_reason(world: Path) -> None:
    from urllib.parse import unquote

    truth = json.loads((world / "truth.json").read_text())
    rows = json.loads(run_sql(world, "SELECT source_uri, outcome, reason FROM clip WHERE set_name = 'demo-web'"))
    found = {unquote(row["source_uri"]).rsplit("/", 1)[1]: row for row in rows}
    for broken in truth["broken"]:
        row = found[Path(broken["file"]).name]
        assert row["reason"] == broken["reason"], broken
    rejected = {name for name, row in found.items() if row["outcome"] == "failed"}
    assert rejected <= {Path(broken["file"]).name for broken in truth["broken"]}


def test_every_set_of_the_world_verifies_and_conserves(world: Path) -> None:
    for name in ("demo-k400", "demo-k700", "demo-web", "demo-k700-clean"):
        assert json.loads(run(f"stmae-data verify {name} --deep -w {world} --json"))["ok"]
        shown = json.loads(run(f"stmae-data stats {name} -w {world} --json"))
        assert shown["planned"] == shown["written"] + shown["dropped"] + shown["failed"]


@pytest.fixture(scope="module")
def studied(world: Path) -> Path:
    """A very short study of the world, reported."""
    file = world / "mini.toml"
    file.write_text(STUDY)
    run(f"stmae-train study run {file} -w {world}")
    run(
        f"stmae-train study report {file} -w {world} --truth {world}/truth.json --html {world}/report.html "
        f"--json-to {world}/study.json --summary {world}/summary.json"
    )
    run(f"stmae-data report demo-web -w {world}")
    return world


def test_the_study_hides_the_tainted_arm_and_gives_the_promised_shapes(studied: Path) -> None:
    study = json.loads((studied / "study.json").read_text())
    assert study.keys() == {"cells", "arms", "pairs"}
    arms = {arm["name"]: arm for arm in study["arms"]}
    assert arms["demo-k700"]["score"] is None and arms["demo-k700"]["tainted"] > 0
    assert (
        arms["clean"]["tainted"] == 0
        and 0 <= arms["clean"]["low"] <= arms["clean"]["score"] <= arms["clean"]["high"] <= 1
    )
    assert {pair["verdict"] for pair in study["pairs"]} <= {"better", "worse", "not told apart"}
    summary = json.loads((studied / "summary.json").read_text())
    truth = json.loads((studied / "truth.json").read_text())
    assert summary["leaks"]["planted"] == summary["leaks"]["found"] == len(truth["leaks"])
    assert summary["leaks"]["false"] == 0
    assert summary["broken"]["planted"] == summary["broken"]["rejected"] == len(truth["broken"])


def test_a_second_study_run_reuses_everything(studied: Path) -> None:
    shown = json.loads(run(f"stmae-train study run {studied}/mini.toml -w {studied} --json"))
    assert shown["done"] == 0 and shown["reused"] == shown["cells"]


def test_the_pages_open_in_a_browser_and_hold_what_they_promise(studied: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed, so pages are not opened in a browser")
    for page, words in (
        (studied / "report.html", ["n/a†", "demo-k400", "scratch"]),
        (studied / "sets" / "demo-web" / "report.html", ["demo-web", "truncated"]),
    ):
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                   "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / page.stem}", "--dump-dom", page.as_uri()]  # fmt: skip
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr[-2000:]
        for word in words:
            assert word in ended.stdout, f"{page.name} does not show {word}"
        assert "<script" not in ended.stdout
