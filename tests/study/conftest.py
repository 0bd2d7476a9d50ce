"""A study without training: doors that answer from a table and write run folders as the trainers do."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stmae_data.records import SetRef
from stmae_train import recipes
from stmae_train.runlog import commit, write_scores
from stmae_train.study import study_run
from stmae_train.study.doors import DataFacts, Doors, PictureJob, PretrainJob, TaskJob

STUDY = """
[study]
name     = "tiny"
question = "Does more data help?"
baseline = ["scratch", "k400"]
seeds    = [0, 1, 2]

[scale.demo]
recipe = "demo"
clips  = ["1k", "4k"]

[data.k400]
shards = "k400"
[data.k700]
shards = "k700"
[data.web]
from  = "web"
where = "signals['motion'] > 0.2"

[[arm]]
init = "random"
[[arm]]
data = ["k400", "k700", "web"]

[[task]]
name  = "probe"
kind  = "attentive"
train = { shards = "k400" }
test  = { shards = "k400", split = "val" }
[[task]]
name  = "finetune"
kind  = "finetune"
train = { shards = "k400" }
test  = { shards = "k400", split = "val" }
only  = { clips = "last" }
"""

CLIPS = {"k400:train": 480, "k400:val": 400, "k700:train": 2000, "web:train": 2500, "web:train/selected": 1200}
ACCURACY = {"scratch": 0.70, "k400": 0.80, "k700": 0.90, "web": 0.70}


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with commit(path) as stream:
        stream.write(data)


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value).encode())


def png(color: tuple[int, int, int], *, side_px: int = 24) -> bytes:
    """A smallest real picture."""
    rows = b"".join(
        b"\0" + b"".join(bytes((color[0], (color[1] + 8 * x) % 256, (color[2] + 8 * y) % 256)) for x in range(side_px))
        for y in range(side_px)
    )

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@dataclass
class FakeWorld:
    """What the doors answer and what they were asked."""

    workspace: Path
    accuracy: Mapping[str, float] = field(default_factory=lambda: dict(ACCURACY))
    leaks: Mapping[str, Mapping[str, Mapping[str, int]]] = field(
        default_factory=lambda: {
            "k700:train": {
                "id": {"train": 20, "eval": 20},
                "video": {"train": 30, "eval": 25},
                "content": {"train": 40, "eval": 37},
            }
        }
    )
    calls: list[str] = field(default_factory=list)
    fail_after: int | None = None
    pictures: list[PictureJob] = field(default_factory=list)
    tables: dict[tuple[float, int, int], bytes] = field(default_factory=dict)

    def doors(self) -> Doors:
        return Doors(
            recipe=recipes.recipe,
            facts=self.facts,
            count_leaks=self.count_leaks,
            make_selection=self.make_selection,
            pretrain=self.pretrain,
            run_task=self.run_task,
            draw_pictures=self.draw_pictures,
        )

    def facts(self, workspace: Path, ref: SetRef) -> DataFacts:
        name = f"{ref.set_name}:{ref.split}" + (f"/{ref.selection}" if ref.selection else "")
        return DataFacts(
            name,
            f"digest-{ref.set_name}",
            f"sel-{ref.selection}" if ref.selection else None,
            CLIPS[name.partition("/")[0] + "/selected" * bool(ref.selection)],
        )

    def count_leaks(
        self, workspace: Path, train: SetRef, evaluation: SetRef, levels: tuple[str, ...]
    ) -> Mapping[str, Mapping[str, int]]:
        empty = {level: {"train": 0, "eval": 0} for level in levels}
        return {**empty, **self.leaks.get(f"{train.set_name}:{train.split}", {})}

    def make_selection(self, workspace: Path, name: str, options: Mapping[str, Any]) -> str:
        self.calls.append(f"select {name}")
        return f"{options['source']}:train/{name}"

    def _tick(self) -> None:
        if (
            self.fail_after is not None
            and len([each for each in self.calls if not each.startswith("select")]) > self.fail_after
        ):
            raise KeyboardInterrupt

    def pretrain(self, job: PretrainJob) -> Path:
        self.calls.append(f"pretrain {job.shards[0]} {job.clips} seed {job.seed}")
        self._tick()
        write_json(job.run_dir / "arm.json", job.shards[0])
        steps = 24
        lines = []
        for step in range(1, steps + 1):
            clips = job.clips * step // steps
            loss = 0.35 + 0.6 * np.exp(-clips / 1500) + 0.01 * np.sin(step + job.seed)
            record = {
                "step": step,
                "steps": steps,
                "clips": clips,
                "loss": round(float(loss), 5),
                "lr": 1e-3 * np.sin(np.pi * step / steps),
                "wait_share": 0.03,
                "clips_per_second": 812.0,
            }
            lines.append(json.dumps(record))
        write(job.run_dir / "log.jsonl", ("\n".join(lines) + "\n").encode())
        write(job.run_dir / "weights.safetensors", b"weights")
        write_json(
            job.run_dir / "cost.json", {"seconds": job.clips / 1000, "bytes_read": 10_000_000, "stall_seconds": 0.5}
        )
        write_json(job.run_dir / "run.json", {"status": "done"})
        return job.run_dir / "weights.safetensors"

    def draw_pictures(self, job: PictureJob) -> None:
        self.pictures.append(job)
        for clip in range(job.count):
            for ratio in job.ratios:
                write(job.out / f"clip_{clip:04d}-{round(100 * ratio)}.png", png((40, 90, 60 * clip)))
        write_json(job.out / "captions.json", {})

    def run_task(self, job: TaskJob) -> Mapping[str, Any]:
        arm, clips = "scratch", 0
        if job.init != "random":
            folder = Path(job.init).parent
            reference = json.loads((folder / "arm.json").read_text())
            arm = reference.partition(":")[0]
            clips = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["clips"]
        self.calls.append(f"{job.kind} {arm} {clips} seed {job.seed}")
        self._tick()
        base = self.accuracy["scratch"]
        share = min(1.0, clips / 4000)
        accuracy = base + (self.accuracy[arm] - base) * share
        # One draw per video for all arms: paired videos agree except where accuracy differs.
        luck = np.random.default_rng(job.seed).random(CLIPS[job.eval_shards])
        rows = [
            {
                "clip_id": f"clip_{number:04d}",
                "label": 1,
                "top5": [1, 2, 3, 4, 5],
                "p_label": 0.5,
                "seed": job.seed,
                "correct": bool(each < accuracy),
            }
            for number, each in enumerate(luck)
        ]
        # Equal rows give equal bytes, and writing Parquet is most of a fake cell's time.
        key = (accuracy, job.seed, len(rows))
        if key not in self.tables:
            write_scores(job.run_dir / "scores.parquet", rows)
            self.tables[key] = (job.run_dir / "scores.parquet").read_bytes()
        write(job.run_dir / "scores.parquet", self.tables[key])
        metrics = {"top1": float(np.mean([row["correct"] for row in rows])), "num_clips": len(rows)}
        write_json(job.run_dir / "metrics.json", metrics)
        write_json(job.run_dir / "cost.json", {"seconds": 2.0})
        write_json(job.run_dir / "run.json", {"status": "done"})
        return metrics


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Hundreds of small files: what a power cut would leave is tested where the writer is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def world(workspace: Path) -> FakeWorld:
    """Doors over four data sets of known quality."""
    return FakeWorld(workspace)


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """A small study: scratch and three data arms, two lengths, a probe and fine-tuning, three seeds."""
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="session")
def finished_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which that study ran to its end; copied, never changed."""
    folder = tmp_path_factory.mktemp("finished")
    file = folder / "tiny.toml"
    file.write_text(STUDY)
    study_run(file, folder / "workspace", doors=FakeWorld(folder / "workspace").doors())
    return folder / "workspace"


@pytest.fixture
def finished(finished_template: Path, world: FakeWorld) -> FakeWorld:
    """A study that ran to its end, in a workspace of this test's own."""
    shutil.copytree(finished_template, world.workspace, dirs_exist_ok=True)
    return world


@pytest.fixture
def study_text() -> str:
    """The text of that study."""
    return STUDY


@pytest.fixture
def make_world(workspace: Path) -> Callable[..., FakeWorld]:
    """Worlds with other accuracies or leaks."""
    return lambda **options: FakeWorld(workspace, **options)
