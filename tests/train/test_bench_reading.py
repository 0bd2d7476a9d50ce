"""bench decode and bench loader: the promised shape, right frames, peers that are not there are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from stmae_cli.train import app
from stmae_data.frames import measure
from stmae_train.bench import DecodeBench, LoaderBench, bench_decode, bench_loader, readers
from stmae_train.bench.checks import exactness_cell, pixels_cell
from stmae_train.bench.decode import _stored_pair
from stmae_train.bench.machine import interleaved
from stmae_train.bench.readers import Stored
from stmae_train.errors import ModelError
from stmae_train.views import random_boxes

torch.set_num_threads(1)
CELL = {"what", "size", "dtype", "ours", "peers", "ratio_to_best_peer", "absent"}


def write_source(path: Path, *, num_frames: int) -> Path:
    import av

    # Waves that meet themselves at the borders, so that moving the picture around makes no edge; weak colours, as pictures have.
    rows, columns = np.mgrid[0:96, 0:128]
    waves = [
        np.sin(2 * np.pi * (rows / 96 * down + columns / 128 * right)) for down, right in ((1, 2), (2, -1), (1, 1))
    ]
    still = torch.from_numpy(np.stack([128 + 40 * waves[0] + 10 * wave for wave in waves])).byte()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "20", "preset": "veryfast"}
        for index in range(num_frames):
            picture = still.roll((index, 2 * index), (1, 2)).permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("videos") / "source.mp4", num_frames=90)


@pytest.fixture(scope="module")
def pair(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, Stored]:
    return _stored_pair(source, tmp_path_factory.mktemp("stored") / "0", DecodeBench((source,), short_side_px=96))


def test_decode_gives_the_shape_of_formats(source: Path) -> None:
    asked = ["bench", "decode", str(source), "--rounds", "1", "--short-side", "96", "--no-checks", "--json"]
    ended = CliRunner().invoke(app, asked)
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert found.keys() >= {"machine", "versions", "cells"} and all(cell.keys() >= CELL for cell in found["cells"])
    assert [cell["size"] for cell in found["cells"]] == ["K = 1"] * 4 + ["K = 4"] * 4
    for cell in found["cells"]:
        best = min(value for value in cell["peers"].values() if value is not None)
        assert cell["ratio_to_best_peer"] == pytest.approx(best / cell["ours"], rel=2e-3)
        assert cell["absent"] == sorted(name for name, value in cell["peers"].items() if value is None)
    assert {cell["what"].partition(":")[0] for cell in found["cells"]} == {
        "decode rgb",
        "decode yuv",
        "decode same file",
        "decode floor",
    }


def test_frames_and_pixels_are_checked(pair: tuple[Stored, Stored]) -> None:
    cell = exactness_cell(pair[0], lengths=(16, 63, 66))
    assert cell["ours"] == 0 and cell["compared"] > 500
    pixels = pixels_cell([pair[0]], crop_px=48)
    assert pixels["ours"] < pixels["gate"] and abs(pixels["bias"]) < 0.05


def test_a_reader_that_gives_a_neighbour_is_found(pair: tuple[Stored, Stored], monkeypatch: pytest.MonkeyPatch) -> None:
    from stmae_train.bench import checks

    honest = checks._all_frames
    monkeypatch.setattr(checks, "_all_frames", lambda media: [*honest(media)[1:], honest(media)[-1]])
    assert exactness_cell(pair[0], lengths=(17,))["ours"] > 0


def test_all_readers_end_in_the_same_crops(pair: tuple[Stored, Stored]) -> None:
    ours, plain = pair
    clips = [range(0, 61, 4), range(8, 69, 4)]
    size = {"heights": np.full(2, ours.height), "widths": np.full(2, ours.width)}
    boxes = random_boxes(0, [0, 1], **size, area=(0.5, 1.0), aspect=(3 / 4, 4 / 3), flip=False)
    wanted = torch.stack(readers.ours_rgb(ours, clips, boxes, size=32, layout="layered-4")).float()
    assert wanted.shape == (2, 16, 3, 32, 32)
    present, absent = readers.present_peers()
    assert "PyAV" in present and present.keys() | absent.keys() == set(readers.PEERS)
    for name, read in present.items():
        for stored in (ours, plain):
            found = torch.stack(read(stored, clips, boxes, 32)).float()
            assert (found - wanted).abs().mean() < 4, name  # other encodings and colour roundings, the same pictures
    planes = readers.read_clips(ours.media, clips, layout="layered-4")
    top, left, height, width = (int(each[0]) for each in (boxes.top, boxes.left, boxes.height, boxes.width))
    exact = planes.to_rgb(planes.rows(clips[0]))[:, top : top + height, left : left + width].astype(float)
    by_pyav = readers._colour_by_pyav(planes, planes.rows(clips[0]), boxes, 0).astype(float)
    assert np.abs(by_pyav - exact).mean() < 3


def test_a_peer_that_is_not_there_is_absent(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        readers, "PEERS", {"nobody": ("stmae_no_such_reader", readers._pyav), "PyAV": ("av", readers._pyav)}
    )
    monkeypatch.setattr("stmae_train.bench.decode.PEERS", readers.PEERS)
    wanted = DecodeBench((source,), rounds=1, clips_per_video=(1,), short_side_px=96, checks=False)
    found = bench_decode(wanted, tmp_path)
    assert found["cells"][0]["peers"]["nobody"] is None and found["cells"][0]["absent"] == ["nobody"]
    assert "No module named" in found["settings"]["absent"]["nobody"]


def test_the_floor_decodes_a_quarter_of_the_frames(pair: tuple[Stored, Stored]) -> None:
    assert measure(pair[0].media)[0] == 90
    assert readers.aligned_frames_only(pair[0], [range(0, 61, 4)]) == 16


def test_loader_gives_the_shape_of_formats(small_world: Path) -> None:
    asked = ["bench", "loader", "--shards", "tiny", "--batch", "4", "--steps", "2", "--rounds", "2", "--repeats", "2"]
    ended = CliRunner().invoke(app, [*asked, "-w", str(small_world), "--json"])
    assert ended.exit_code == 0, ended.output
    found: dict[str, Any] = json.loads(ended.stdout)
    (cell,) = found["cells"]
    assert cell.keys() >= CELL and cell["size"] == "K = 2" and cell["ratio_to_best_peer"] > 0
    assert cell["peers"].keys() == {"bare decoding, one core"} and found["settings"]["workers"] == 1


def test_variants_run_in_turn() -> None:
    calls: list[str] = []

    def variant(name: str, seconds: float) -> Any:
        return lambda number: calls.append(f"{name}{number}") or seconds

    found = interleaved({"a": variant("a", 1.0), "b": variant("b", 2.0)}, rounds=2)
    assert found == {"a": [1.0, 1.0], "b": [2.0, 2.0]} and calls == ["a0", "b0", "a0", "b0", "a1", "b1"]


def test_what_cannot_be_timed_is_said(tmp_path: Path, small_world: Path) -> None:
    with pytest.raises(ModelError, match="0 videos, 7 rounds"):
        DecodeBench(())
    with pytest.raises(ModelError, match="at least one of each"):
        LoaderBench(small_world, ("tiny",), workers=0)
    short = write_source(tmp_path / "short.mp4", num_frames=30)
    with pytest.raises(ModelError, match="has 30 frames at 30 a second, wanted 61"):
        bench_decode(DecodeBench((short,), short_side_px=96), tmp_path / "stored")
    with pytest.raises(ModelError, match="is a set of pictures"):
        _refused(tmp_path)


def _refused(folder: Path) -> None:
    import io
    import tarfile

    from PIL import Image

    with io.BytesIO() as out:
        Image.new("RGB", (8, 8)).save(out, "PNG")
        data = out.getvalue()
    with tarfile.open(folder / "p.tar", "w") as written:
        info = tarfile.TarInfo("a.png")
        info.size = len(data)
        written.addfile(info, io.BytesIO(data))
    bench_loader(LoaderBench(folder, (str(folder / "p.tar"),), rounds=1))
