"""What the commands of `stmae-train` have in common: options, and how their words become recipes, run folders and weights."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stmae_cli import console

if TYPE_CHECKING:
    from stmae_train.config import Recipe

__all__ = [
    "HERE",
    "STORE_CACHE_GB",
    "AcceptOption",
    "CheckpointOption",
    "DeviceOption",
    "EvalOption",
    "ForceOption",
    "InitOption",
    "OutOption",
    "PrefetchOption",
    "RecipeOption",
    "ResumeOption",
    "SeedOption",
    "SetOption",
    "SkipOption",
    "StoreCacheOption",
    "TrainShards",
    "WorkersOption",
    "gigabytes",
    "read_recipe",
    "run_folder",
    "show_metrics",
    "weights_of",
]

HERE = Path()
STORE_CACHE_GB = 20.0

RecipeOption = Annotated[str, typer.Option(help="A recipe by name (stmae-train recipes) or a TOML file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change a value of the recipe, as in optim.base_lr=1e-3.")
]
WorkersOption = Annotated[
    int, typer.Option(help="Decoding processes, each confined (no network, bounded memory); they change speed alone.")
]
PrefetchOption = Annotated[
    int, typer.Option(help="Videos that each decoding process may have ready ahead; bounds its memory.")
]
StoreCacheOption = Annotated[
    float, typer.Option(help="Of sets that stand on a store: gigabytes of clips that are kept on this disk.")
]
SkipOption = Annotated[
    int, typer.Option(help="Leave out at most this many damaged samples, over all processes and starts.")
]
CheckpointOption = Annotated[int | None, typer.Option(help="Steps between checkpoints.")]
AcceptOption = Annotated[bool, typer.Option("--accept-new-data", help="Resume although a set has changed.")]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force", help="Resume with another base_lr, min_lr, weight_decay, grad_clip or precision; recorded."
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of initial weights, order, crops and masks.")]
InitOption = Annotated[
    str, typer.Option(help="Weights file of any known layout, run, or `random` for the untrained encoder.")
]
EvalOption = Annotated[str, typer.Option(help="SET:SPLIT to test on.")]
TrainShards = Annotated[list[str], typer.Option(help="Labelled sets: SET[:SPLIT][/SELECTION][@WEIGHT].")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU where there is one unless given.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run that stands there.")]
OutOption = Annotated[str | None, typer.Option("--out", help="Name of the run, under runs/ of the workspace.")]


def gigabytes(number: float) -> int:
    """Bytes of so many gigabytes.

    Raises:
        BadParameter: none at all.
    """
    if not 0 < number < 1e9:
        raise typer.BadParameter(f"--store-cache-gb is {number}, wanted more than 0")
    return max(1, round(number * 1e9))


def read_recipe(name: str, changes: list[str] | None) -> "Recipe":
    """A recipe by name or file, with the changes of `--set`."""
    from stmae_train import config
    from stmae_train.recipes import recipe

    found = config.read_recipe(Path(name)) if name.endswith(".toml") else recipe(name)
    return config.override(found, changes or [])


def run_folder(workspace: Path, out: str | None, *parts: object) -> Path:
    """Where a run stands: under the name that was given, or one made of what it is about."""
    name = out or "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", str(part)).strip("-.") for part in parts)
    return workspace / "runs" / (name if out else name[:200])


def weights_of(workspace: Path, init: str) -> str:
    """The folder of a run of the workspace, or the words themselves: a file, or `random`."""
    run = workspace / "runs" / init
    return str(run) if init != "random" and run.is_dir() else init


def show_metrics(metrics: dict[str, Any], run_dir: Path, *, is_json: bool) -> None:
    """The scores of a run, and its folder; said by one process."""
    if not console.is_main_process():
        return
    if is_json:
        console.print_json(metrics)
    console.facts(
        "Scores", {key: value for key, value in metrics.items() if not isinstance(value, list | dict)}, is_json=is_json
    )
    console.done("Run:", run_dir, is_json=is_json)
