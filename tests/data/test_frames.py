"""Every way of reading gives the frames that decoding everything gives, or an error that names the frame."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stmae_data import frames
from stmae_data.encode import Encoding, encode_clip, ffmpeg_executable
from stmae_data.encode.graph import _X264
from stmae_data.errors import SetError
from stmae_data.frames import Planes, count_frames, read_clips, thumbnail
from stmae_data.media import open_source, open_video, probe

LAYERED = _X264["layered"]["x264-params"]
Make = Callable[..., bytes]


def ffmpeg(*arguments: str) -> None:
    subprocess.run([ffmpeg_executable(), "-nostdin", "-v", "error", "-y", *arguments], check=True)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Noisy moving clips of a given number of frames, 64x48, x264 with the given parameters."""
    folder, kept = tmp_path_factory.mktemp("frames"), {}

    def one(num_frames: int, parameters: str = LAYERED, *, extension: str = "mp4") -> bytes:
        key = (num_frames, parameters, extension)
        if key not in kept:
            path = folder / f"clip.{extension}"
            source = "testsrc2=size=64x48:rate=30,noise=alls=12:allf=t:all_seed=3,format=yuv420p"
            codec = ("-c:v", "libx264", "-threads", "1", "-preset", "medium", "-x264-params", parameters)
            ffmpeg("-f", "lavfi", "-i", source, "-frames:v", str(num_frames), *codec, str(path))
            kept[key] = path.read_bytes()
        return kept[key]

    return one


def all_planes(media: bytes) -> list[tuple[NDArray[np.uint8], ...]]:
    """Every frame by plain decoding."""
    with open_video(media) as container:
        return [
            tuple(
                np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width].copy()  # type: ignore[call-overload]
                for plane in frame.planes
            )
            for frame in container.decode(container.streams.video[0])
        ]


def differences(planes: Planes, reference: list[tuple[NDArray[np.uint8], ...]]) -> int:
    return sum(
        not all(
            np.array_equal(a[row], b) for a, b in zip((planes.y, planes.u, planes.v), reference[index], strict=True)
        )
        for index, row in planes.position.items()
    )


LENGTHS = [1, 2, 3, 4, 5, 16, 17, 61, 62, 63, 64, 65, 66, 67, 68, 127, 128, 129, 130]
ENCODINGS = {
    "layered-4": LAYERED,
    "original": "keyint=250",
    "original, deep pyramid": "bframes=8:b-adapt=2:b-pyramid=normal:keyint=50",
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_stride_and_start_equals_decoding_everything(name: str, make: Make) -> None:
    wrong = read = 0
    for length in LENGTHS if name == "layered-4" else LENGTHS[5::3]:
        media = make(length, ENCODINGS[name])
        reference = all_planes(media)
        assert len(reference) == length == count_frames(media)
        for stride in (1, 2, 3, 4, 8):
            for start in (0, 1, 2, 4, 5, 60, 62, 63, 64, 68, 124):
                wanted = range(start, length, stride)[:16]
                if wanted:
                    planes = read_clips(media, [wanted], layout=name[:9] if name == "layered-4" else "original")
                    assert list(planes.position) == list(wanted)
                    wrong += differences(planes, reference)
                    read += len(wanted)
    assert wrong == 0 < read


def test_several_clips_share_one_decode(make: Make) -> None:
    media = make(130)
    clips = [range(0, 61, 4), range(64, 125, 4), range(32, 93, 4), [128] * 3]
    planes = read_clips(media, clips, layout="layered-4")
    assert sorted(planes.position) == sorted({index for clip in clips for index in clip})
    assert differences(planes, all_planes(media)) == 0
    assert planes.rows([128, 0, 128]) == [planes.position[128], 0, planes.position[128]]


def test_aligned_reading_needs_the_contract(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    aligned, general = frames._read_aligned, frames._read_general
    monkeypatch.setattr(frames, "_read_aligned", lambda *rest: (used.append("aligned"), aligned(*rest))[1])
    monkeypatch.setattr(frames, "_read_general", lambda *rest: (used.append("general"), general(*rest))[1])
    media = make(68)
    read_clips(media, [[0, 4]], layout="layered-4")
    read_clips(media, [[0, 4]], layout="original")
    read_clips(media, [[1, 5]], layout="layered-4")
    assert used == ["aligned", "general", "general"]


@pytest.mark.parametrize("layout", ["layered-4", "original"])
def test_a_frame_that_is_not_there_is_named(layout: str, make: Make) -> None:
    with pytest.raises(SetError, match=r"Frame 64 of the stored video did not arrive \(1 of 2 are missing\)"):
        read_clips(make(61), [[0, 64]], layout=layout)
    with pytest.raises(SetError, match="at least one"):
        read_clips(make(61), [[]], layout=layout)
    with pytest.raises(SetError, match="indices of 0 and more"):
        read_clips(make(61), [[-1]], layout=layout)


def test_a_cut_file_gives_its_frames_or_an_error_never_a_neighbour(make: Make, tmp_path: Path) -> None:
    (tmp_path / "slow.mp4").write_bytes(make(130))
    ffmpeg("-i", str(tmp_path / "slow.mp4"), "-c", "copy", "-movflags", "+faststart", str(tmp_path / "fast.mp4"))
    media = (tmp_path / "fast.mp4").read_bytes()
    reference, cut = all_planes(media), media[: len(media) * 6 // 10]
    missing = 0
    for layout in ("layered-4", "original"):
        for index in range(0, 130, 4):
            try:
                planes = read_clips(cut, [[index]], layout=layout)
            except SetError as error:
                missing += 1
                assert f"Frame {index} " in str(error) or "does not decode" in str(error)
            else:
                assert differences(planes, reference) == 0
    assert 0 < missing < 66


def test_what_is_no_video_is_an_error(make: Make) -> None:
    for read in (
        lambda data: read_clips(data, [[0]], layout="original"),
        count_frames,
        lambda data: thumbnail(data, width_px=32),
    ):
        with pytest.raises(SetError, match="verify the set"):
            read(b"nothing")


@pytest.mark.parametrize("codec", ["libvpx-vp9", "mpeg4", "libx265"])
def test_other_codecs_are_decoded_whole(codec: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=30:duration=1", "-c:v", codec, "-threads", "1", str(path))
    media = path.read_bytes()
    planes = read_clips(media, [range(1, 29, 3)], layout="original")
    assert differences(planes, all_planes(media)) == 0
    assert count_frames(media) == 30


def test_what_encode_stores_reads_aligned(tmp_path: Path) -> None:
    path = tmp_path / "source.mp4"
    ffmpeg("-f", "lavfi", "-i", "mandelbrot=size=96x64:rate=24", "-t", "3", "-threads", "1", str(path))
    for mode in ("layered", "lean", "fast"):
        with open_source(path) as descriptor:
            clip = encode_clip(descriptor, probe(descriptor), encoding=Encoding(mode))
        aligned = read_clips(clip.media, [range(0, clip.stored.stored_num_frames, 4)], layout="layered-4")
        assert differences(aligned, all_planes(clip.media)) == 0


def test_colour_is_exact() -> None:
    # BT.601: white, black, grey, and the primaries of a limited-range picture.
    colours = {
        (235, 128, 128): (255, 255, 255),
        (16, 128, 128): (0, 0, 0),
        (126, 128, 128): (128, 128, 128),
        (81, 90, 240): (255, 0, 0),
        (145, 54, 34): (0, 255, 0),
        (41, 240, 110): (0, 0, 255),
    }
    for (y, u, v), rgb in colours.items():
        planes = Planes(
            np.full((1, 4, 6), y, np.uint8), np.full((1, 2, 3), u, np.uint8), np.full((1, 2, 3), v, np.uint8), {0: 0}
        )
        assert planes.to_rgb().shape == (1, 4, 6, 3)
        assert np.abs(planes.to_rgb().astype(int) - rgb).max() <= 1
        floats = planes.to_rgb([0], dtype=np.float32)
        assert floats.dtype == np.float32 and np.abs(floats - rgb).max() <= 1.3


def test_chroma_is_sited_left_and_between_lines() -> None:
    half = np.array([[[128, 168], [128, 128]]], np.uint8)  # [1, 2, 2]
    planes = Planes(np.full((1, 4, 4), 126, np.uint8), np.full((1, 2, 2), 128, np.uint8), half, {0: 0})
    red = planes.to_rgb(dtype=np.float32)[0, :, :, 0]
    assert red[0, 0] < red[0, 2] == red[0, 3]
    assert red[0, 1] == pytest.approx((red[0, 0] + red[0, 2]) / 2)
    rise = red[:, 2] - red[3, 2]
    assert rise.tolist() == pytest.approx([rise[0], 0.75 * rise[0], 0.25 * rise[0], 0.0], abs=1e-3)


def test_thumbnails_are_jpegs_of_the_wanted_width(make: Make) -> None:
    for media in (make(68), thumbnail(make(68), width_px=48)):
        with Image.open(io.BytesIO(thumbnail(media, width_px=32))) as picture:
            assert (picture.format, picture.size) == ("JPEG", (32, 24))
    assert thumbnail(make(68), width_px=32) == thumbnail(make(68), width_px=32)
