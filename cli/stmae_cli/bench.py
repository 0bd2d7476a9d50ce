"""`stmae-train bench`: how fast a step, the loader and decoding are, beside what people use today."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stmae_cli import console
from stmae_cli.console import JsonFlag, WorkspaceOption

__all__ = ["bench_app"]

HERE = Path()

bench_app = console.make_app("Benchmarks: one JSON document each.")

RoundsOption = Annotated[int, typer.Option(help="Timed rounds; all variants run in turn within each.")]


@bench_app.callback()
def bench() -> None:
    """Time parts of training against the libraries people use."""


@console.command(bench_app, "step")
def bench_step(
    size: Annotated[list[str] | None, typer.Option(help="112, 224 or tiny; 112 and 224 unless given.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="fp32 or bf16; both unless given.")] = None,
    rounds: RoundsOption = 7,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    is_json: JsonFlag = False,
) -> None:
    """Time a pre-training step beside those of others.

    Ours, transformers' VideoMAE in both its ways to attend, and ours with an encoder of all tokens.

    Example: stmae-train bench step --size 112 --dtype fp32 --json
    """
    from stmae_train.bench import StepBench
    from stmae_train.bench import bench_step as run

    wanted = StepBench(tuple(size or ("112", "224")), tuple(dtype or ("fp32", "bf16")), rounds, threads, device)
    with console.progress() as progress:
        found = run(wanted, watch=progress)
    if is_json:
        console.print_json(found)
        return
    _show("Milliseconds per step", found)


@console.command(bench_app, "decode")
def bench_decode(
    videos: Annotated[
        list[Path], typer.Argument(metavar="VIDEO...", help="Source files, six or more for a figure to trust.")
    ],
    rounds: RoundsOption = 7,
    per_video: Annotated[
        list[int] | None, typer.Option(help="Clips drawn from an opened video; 1 and 4 unless given.")
    ] = None,
    short_side: Annotated[int, typer.Option(help="Pixels of the stored clips' short side.")] = 256,
    encode: Annotated[str, typer.Option(help="layered, lean or fast.")] = "layered",
    checks: Annotated[
        bool, typer.Option("--checks/--no-checks", help="Compare frames with a full decode, and pixels with float64.")
    ] = True,
    is_json: JsonFlag = False,
) -> None:
    """Time reading of stored clips beside other readers.

    Against torchcodec, OpenCV, decord and PyAV on plain files; it is checked that the frames are right.

    Example: stmae-train bench decode videos/*.mp4 --json
    """
    import tempfile

    from stmae_train.bench import DecodeBench
    from stmae_train.bench import bench_decode as run

    wanted = DecodeBench(tuple(videos), rounds, tuple(per_video or (1, 4)), short_side, encode, checks)
    with tempfile.TemporaryDirectory(prefix="stmae-bench-") as folder, console.progress() as progress:
        found = run(wanted, Path(folder), watch=progress)
    if is_json:
        console.print_json(found)
        return
    _show("Milliseconds per clip of 16 frames", found)


@console.command(bench_app, "loader")
def bench_loader(
    shards: Annotated[list[str], typer.Option(help="Sets: SET[:SPLIT][/SELECTION][@WEIGHT], or tars of other tools.")],
    workers: Annotated[int, typer.Option(help="Decoding processes.")] = 1,
    batch: Annotated[int, typer.Option(help="Videos per step.")] = 16,
    repeats: Annotated[list[int] | None, typer.Option(help="Clips per video; 1 and 4 unless given.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of a round.")] = 4,
    rounds: RoundsOption = 7,
    prefetch: Annotated[int, typer.Option(help="Videos that each decoding process may have ready ahead.")] = 4,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Time shards to batches beside bare decoding.

    With all workers, against the same clips on one core.

    Example: stmae-train bench loader --shards k400 --workers 8 --json
    """
    from stmae_train.bench import LoaderBench
    from stmae_train.bench import bench_loader as run

    wanted = LoaderBench(workspace, tuple(shards), workers, batch, tuple(repeats or (1, 4)), steps, rounds, prefetch)
    with console.progress() as progress:
        found = run(wanted, watch=progress)
    if is_json:
        console.print_json(found)
        return
    _show("Clips per second", found)


def _show(title: str, found: dict[str, Any]) -> None:
    rows = [
        [
            cell["what"],
            cell["size"],
            cell["dtype"],
            f"{cell['ours']} {cell['unit']}",
            ", ".join(f"{name} {'absent' if value is None else value}" for name, value in cell["peers"].items()),
            cell["ratio_to_best_peer"],
        ]
        for cell in found["cells"]
    ]
    console.table(title, ["what", "clips", "dtype", "ours", "peers", "ratio to the best"], rows)
