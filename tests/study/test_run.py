"""Running cells: reuse, resume, claims."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from stmae_train.errors import RunBusy, StudyError
from stmae_train.study.doors import PretrainJob
from stmae_train.study.plan import study_plan
from stmae_train.study.run import CellEvent, cell_hours, cell_state, study_run, study_status


def work(world: Any) -> list[str]:
    return [call for call in world.calls if not call.startswith("select")]


def test_every_cell_runs_once_and_a_rerun_reuses_all(study_file: Path, world: Any) -> None:
    first = study_run(study_file, world.workspace, doors=world.doors())
    assert first.is_complete and first.done == first.cells == 18 + 21 + 12
    world.calls.clear()
    second = study_run(study_file, world.workspace, doors=world.doors())
    assert (second.done, second.reused) == (0, first.cells)
    assert not work(world)


def test_a_pretraining_runs_before_what_reads_it(study_file: Path, world: Any) -> None:
    study_run(study_file, world.workspace, doors=world.doors())
    calls = work(world)
    trained = next(call for call in calls if call.startswith("pretrain web") and call.endswith("4000 seed 1"))
    assert calls.index(trained) < calls.index("finetune web 4000 seed 1")
    assert calls[0] == "attentive scratch 0 seed 0"


def test_a_killed_study_goes_on_where_it_stopped(study_file: Path, world: Any) -> None:
    world.fail_after = 10
    with pytest.raises(KeyboardInterrupt):
        study_run(study_file, world.workspace, doors=world.doors())
    done = len(work(world)) - 1
    world.fail_after = None
    world.calls.clear()
    summary = study_run(study_file, world.workspace, doors=world.doors())
    assert summary.is_complete and summary.reused == done
    assert len(work(world)) == summary.cells - done


def test_cells_of_another_process_are_left_alone_and_named_busy(study_file: Path, world: Any) -> None:
    plain = world.doors()

    def pretrain(job: PretrainJob) -> Path:
        if job.shards[0].startswith("web"):
            raise RunBusy("somebody trains it")
        return plain.pretrain(job)

    events: list[CellEvent] = []
    import dataclasses

    summary = study_run(
        study_file, world.workspace, doors=dataclasses.replace(plain, pretrain=pretrain), on_event=events.append
    )
    assert (summary.busy, summary.waiting) == (6, 9)  # 2 lengths x 3 seeds; probes of both lengths, fine-tuning of one
    assert not summary.is_complete
    assert {event.cell.arm for event in events if event.what in ("busy", "waiting")} == {"web"}


def test_a_trainer_that_leaves_no_finished_run_is_an_error(study_file: Path, world: Any) -> None:
    import dataclasses

    doors = dataclasses.replace(world.doors(), pretrain=lambda job: job.run_dir)
    with pytest.raises(StudyError, match="ended without being done"):
        study_run(study_file, world.workspace, doors=doors)


def test_a_dry_run_writes_and_runs_nothing(study_file: Path, world: Any) -> None:
    summary = study_run(study_file, world.workspace, dry_run=True, doors=world.doors())
    assert summary.waiting == summary.cells
    assert not work(world)
    assert not (world.workspace / "runs").exists()


def test_the_folder_says_what_was_planned_and_which_cell_is_which(study_file: Path, world: Any) -> None:
    summary = study_run(study_file, world.workspace, doors=world.doors())
    assert (summary.folder / "study.toml").read_text() == study_file.read_text()
    lock = json.loads((summary.folder / "study.lock.json").read_text())
    assert lock["arms"]["web"][0]["selection_digest"] == "sel-" + lock["arms"]["web"][0]["reference"].partition("/")[2]
    assert lock["leaks"][0]["evaluation_clips"] == 37
    plan = study_plan(study_file, world.workspace, doors=world.doors())
    cell = next(each for each in plan.cells if each.arm == "k400")
    facts = json.loads((cell.folder / "cell.json").read_text())
    assert (facts["arm"], facts["clips"], facts["seed"]) == ("k400", 1000, 0)


def test_status_tells_planned_running_stopped_and_done(study_file: Path, world: Any) -> None:
    cells = [
        cell for cell, state in study_status(study_file, world.workspace, doors=world.doors()) if state == "planned"
    ]
    assert len(cells) == 51
    for cell, status in zip(cells, ("done", "running", "failed"), strict=False):
        cell.folder.mkdir(parents=True)
        (cell.folder / "run.json").write_text(json.dumps({"status": status}))
    (cells[1].folder / "LOCK").touch()
    assert [cell_state(cell) for cell in cells[:4]] == ["done", "stopped", "stopped", "planned"]
    with (cells[1].folder / "LOCK").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cell_state(cells[1]) == "running"


def test_hours_of_unfinished_cells_are_estimated_from_finished_ones(study_file: Path, world: Any) -> None:
    study_run(study_file, world.workspace, only={"seed": {"0"}, "clips": {"1000"}}, doors=world.doors())
    plan = study_plan(study_file, world.workspace, doors=world.doors())
    hours = cell_hours(plan)
    long = next(cell for cell in plan.cells if cell.is_pretraining and cell.clips == 4000)
    assert hours[long.id] == pytest.approx(4 / 3600)


def test_events_read_as_lines(study_file: Path, world: Any) -> None:
    events: list[CellEvent] = []
    study_run(study_file, world.workspace, only={"arm": {"scratch"}}, doors=world.doors(), on_event=events.append)
    assert str(events[0]) == "cell   1/6 | scratch | probe | 0 clips | seed 0 | started"
    assert [event.what for event in events[:2]] == ["started", "done"]


def test_the_longest_run_of_the_first_seed_is_shown_in_pictures_once(study_file: Path, world: Any) -> None:
    study_run(study_file, world.workspace, doors=world.doors())
    assert len(world.pictures) == 3
    assert {job.shards for job in world.pictures} == {"k400:val"}
    assert all(0.9 in job.ratios and job.out.parts[-2:] == ("pictures", "test") for job in world.pictures)
    study_run(study_file, world.workspace, doors=world.doors())
    assert len(world.pictures) == 3
    (world.pictures[0].out / "captions.json").unlink()  # killed while drawing
    study_run(study_file, world.workspace, doors=world.doors())
    assert len(world.pictures) == 4
