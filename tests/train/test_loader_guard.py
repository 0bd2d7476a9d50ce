"""Workers are guarded children: what a decoder does to itself names the clip and touches nothing else."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stmae_data import frames
from stmae_data.errors import SetError
from stmae_data.limits import Limits, has_network_sandbox
from stmae_train.errors import DataMismatch
from stmae_train.loader import CropRule, ReadOptions, SweepLoader, TrainLoader, open_sources, workers
from stmae_train.views import FrameRule

VICTIM = "tinytrain0005"


def loader(workspace: Path, **options: int) -> TrainLoader:
    return TrainLoader(
        workspace,
        open_sources(workspace, ["tiny"]),
        rule=FrameRule(4, 4),
        crop=CropRule((0.5, 1.0), (3 / 4, 4 / 3), True),
        seed=7,
        batch_videos=8,
        repeats=1,
        options=ReadOptions(**{"cache_bytes": 0, "workers": 2, **options}),
    )


@pytest.fixture
def strike(small_world: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Let the decoder do something when it meets the victim's bytes."""
    honest = frames.read_clips
    (source,) = open_sources(small_world, ["tiny"])
    victim = source.media(source.index.clip_ids.tolist().index(VICTIM))

    def install(act: Callable[[], Any]) -> None:
        def read_clips(media: bytes, *arguments: Any, **options: Any) -> Any:
            if media == victim:
                act()
            return honest(media, *arguments, **options)

        monkeypatch.setattr(frames, "read_clips", read_clips)

    return install


Strike = Callable[[Callable[[], Any]], None]


def said_by(strike: Strike, workspace: Path, tell: Callable[[], str]) -> str:
    """What a worker finds out about itself."""

    def act() -> None:
        raise SetError(tell())

    strike(act)
    reading = loader(workspace, skip_damaged=1)
    list(reading.batches(0, 3))
    return reading.reader.skipped[VICTIM]


def test_a_real_crash_of_the_decoder_names_the_clip_and_how_it_ended(small_world: Path, strike: Strike) -> None:
    whole = {name for batch in loader(small_world).batches(0, 3) for name in batch.clip_ids}
    strike(lambda: (faulthandler.disable(), ctypes.string_at(0)))
    with pytest.raises(DataMismatch, match=rf"Clip {VICTIM} of tiny:train .* decoded it twice: killed by SIGSEGV\)"):
        list(loader(small_world).batches(0, 3))
    reading = loader(small_world, skip_damaged=1)
    batches = list(reading.batches(0, 3))
    assert {name for batch in batches for name in batch.clip_ids} == whole - {VICTIM}
    assert [name for batch in batches for name in batch.skipped] == [VICTIM]
    assert reading.reader.skipped == {VICTIM: "it ended the process that decoded it twice: killed by SIGSEGV"}


def test_a_decoder_that_dies_before_it_was_given_all_its_jobs_again_is_replaced_too(
    small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_decode", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    send = workers._Worker._send

    def send_and_wait(self: workers._Worker, job: workers.Job) -> None:
        send(self, job)
        self.process.join()  # dead before the next job is sent

    monkeypatch.setattr(workers._Worker, "_send", send_and_wait)
    sources = open_sources(small_world, ["tiny"])
    jobs = [workers.Job(0, row, np.zeros((1, 4), dtype=np.int64)) for row in range(3)]
    answers = list(workers.decode_in_order(sources, jobs, workers=1))
    assert [answer.clip_id for answer in answers if isinstance(answer, workers.Damaged)] == [
        sources[0].clip_id(row) for row in range(3)
    ]


def test_a_decoder_that_never_ends_is_ended(small_world: Path, strike: Strike, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits, "for_seconds", staticmethod(lambda seconds: replace(Limits(), cpu_seconds=0.01)))

    def turn() -> None:
        while True:
            pass

    strike(turn)
    reading = loader(small_world, skip_damaged=1)
    list(reading.batches(0, 3))
    assert reading.reader.skipped[VICTIM].endswith("took too much processor time")


def test_a_decoder_that_wants_too_much_memory_does_not_get_it(small_world: Path, strike: Strike) -> None:
    strike(lambda: bytearray(Limits().address_space_bytes + (1 << 30)))
    with pytest.raises(DataMismatch, match=rf"Clip {VICTIM} .*takes more memory than a decoder may have"):
        list(loader(small_world).batches(0, 3))


def test_a_worker_has_no_network_no_new_privileges_and_leaves_no_core(small_world: Path, strike: Strike) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        def tell() -> str:
            privileges = [line for line in Path("/proc/self/status").read_text().splitlines() if "NoNewPrivs" in line]
            try:
                socket.create_connection(address, timeout=5).close()
                reached = "reached"
            except OSError:
                reached = "cut off"
            return f"{privileges[0].split()[1]} {resource.getrlimit(resource.RLIMIT_CORE)[1]} {reached}"

        expected = "cut off" if has_network_sandbox() else "reached"
        assert said_by(strike, small_world, tell) == f"1 0 {expected}"


def test_bytes_that_are_not_of_our_encoder_are_never_decoded_in_the_trainer(
    small_world: Path, strike: Strike, monkeypatch: pytest.MonkeyPatch
) -> None:
    def process(**changes: object) -> int:
        strike(lambda: (_ for _ in ()).throw(SetError(str(os.getpid()))))
        sources = open_sources(small_world, ["tiny"])
        sources[0].index = replace(sources[0].index, **changes)
        reading = SweepLoader(
            small_world, sources, rule=FrameRule(4, 4), views=1, options=ReadOptions(cache_bytes=0, skip_damaged=1)
        )
        list(reading.batches())
        return int(reading.reader.skipped[VICTIM])

    assert process() == os.getpid()
    assert process(layout="original") != os.getpid()


ORPHANS = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from test_loader_guard import loader
batches = loader(Path(sys.argv[2])).batches(0, 1000)
next(batches)
print(*Path(f"/proc/self/task/{__import__('os').getpid()}/children").read_text().split(), flush=True)
sys.stdin.read()
"""


def test_workers_die_with_the_trainer(small_world: Path) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", ORPHANS, __file__, str(small_world)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert trainer.stdout is not None and trainer.stdin is not None
    workers = [int(pid) for pid in trainer.stdout.readline().split()]
    assert len(workers) == 2
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    trainer.stdin.close()
    trainer.stdout.close()

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except FileNotFoundError:
            return False

    for _ in range(6000):  # the kernel kills them at once; it may take a while to be seen
        if not any(runs(pid) for pid in workers):
            return
        time.sleep(0.01)
    pytest.fail(f"workers {workers} outlived their trainer")


def test_confinement_costs_no_pixel(small_world: Path) -> None:
    ours, theirs = (list(loader(small_world, workers=workers).batches(0, 3)) for workers in (0, 2))
    assert all(torch.equal(a.planes, b.planes) for a, b in zip(ours, theirs, strict=True))
