"""What all tests share: the folder of real data (skipped by name where it is missing), a small workspace, one torch thread."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real videos and tables beside the checkout; tests that need them skip by name where they are missing."""
    shared = ROOT.parent / "shared"
    if not (shared / "real").is_dir():
        pytest.skip("../shared/real is not here, so tests on real files are skipped")
    return shared


def known_traps() -> dict[str, list[str]]:
    """The traps of every official layout, in the order in which they are shown."""
    return tomllib.loads((ROOT / "tests" / "data" / "traps.toml").read_text())


@pytest.fixture
def trap(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Note what became of traps of an official layout, once it has been asserted: `trap(layout, outcome, trap, ...)`."""

    def note(layout: str, outcome: str, *traps: str) -> None:
        known = known_traps()[layout]
        for each in traps:
            assert each in known, f"tests/data/traps.toml does not list {each!r} of {layout}"
            # As text in the report of the test: this way it also arrives from the workers of xdist.
            request.node.user_properties.append(("trap", f"{layout}\t{each}\t{outcome}"))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tables at the end of a run: layout, trap, what becomes of it; reference file, how far ours are from it."""

    def told_as(name: str) -> set[tuple[str, ...]]:
        reports = terminalreporter.stats.get("passed", ())
        return {
            tuple(str(value).split("\t")) for report in reports for key, value in report.user_properties if key == name
        }

    told = told_as("trap")
    order = [(layout, each) for layout, traps in known_traps().items() for each in traps]
    rows = [row for pair in order for row in sorted(told) if row[:2] == pair]
    if rows:
        wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
        terminalreporter.section(f"traps of the official layouts: {len({row[:2] for row in rows})} of {len(order)}")
        for layout, each, outcome in rows:
            terminalreporter.line(f"{layout:{wide[0]}} | {each:{wide[1]}} | {outcome}")
    if distances := sorted(told_as("reference")):
        wide = [max(len(row[0]) for row in distances)]
        terminalreporter.section("largest differences from the reference tensors")
        for name, distance in distances:
            terminalreporter.line(f"{name:{wide[0]}} | {distance}")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty workspace."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a real S3 server on loopback; tests that need it skip by name where it is not installed."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def write_video(
    path: Path, *, number: int, num_frames: int = 20, width_px: int = 64, height_px: int = 64, fps: int = 30
) -> None:
    """A small real H.264 file: textured blobs that move in a direction of their own; `number` names the picture."""
    import av
    import numpy as np

    generator = np.random.default_rng(number)
    texture = generator.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8).astype(np.float32)
    for axis in (0, 1):
        texture = (texture + np.roll(texture, 1, axis) + np.roll(texture, 2, axis) + np.roll(texture, 3, axis)) / 4
    step = generator.integers(-3, 4, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "20", "preset": "veryfast"}
        for index in range(num_frames):
            picture = np.roll(texture, tuple(int(each) * index for each in step), (0, 1)).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="session")
def video_writer() -> Callable[..., None]:
    """`write_video`, for fixtures in other files."""
    return write_video


@pytest.fixture(scope="session")
def kinetics_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree in official Kinetics naming: 3 classes, 8 train and 4 val clips, csv tables, and a manifest TOML beside them."""
    root = tmp_path_factory.mktemp("kinetics")
    classes = ["air drumming", "baking cookies", "zumba"]
    for split, count, start in (("train", 8, 0), ("val", 4, 100)):
        lines = ["label,youtube_id,time_start,time_end,split,is_cc"]
        for number in range(count):
            label = classes[number % 3]
            clip = f"{'-' if number == 0 else 'v'}id{split[:2]}{number:06d}"[:11].ljust(11, "x")
            begin = 10 * number
            write_video(root / split / label / f"{clip}_{begin:06d}_{begin + 10:06d}.mp4", number=start + number)
            lines.append(f'"{label}",{clip},{begin},{begin + 10},{split},0')
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (root / "tiny.toml").write_text(
        'name = "tiny"\nrelease = "test"\nkind = "kinetics"\nfrom = ["."]\nshort_side_px = 64\nclips_per_shard = 3\n'
        'evaluation_splits = ["val"]\n'
        '[splits.train]\nannotations = ["train.csv"]\n[splits.val]\nannotations = ["val.csv"]\n'
    )
    return root
