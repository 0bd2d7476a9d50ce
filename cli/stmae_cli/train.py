"""`stmae-train`: from shard sets to checkpoints, scores and studies. Each command parses, calls one function, prints."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stmae_cli import console, scale
from stmae_cli.console import JsonFlag, WorkspaceOption
from stmae_cli.study import study_app
from stmae_cli.weights import add_weights_commands

if TYPE_CHECKING:
    from stmae_train.config import Recipe

__all__ = ["app", "main"]

app = console.make_app(
    "Pre-train masked autoencoders on any shard set, transfer them, and study what the data does to them with honest statistics."
)
app.add_typer(study_app, name="study")
add_weights_commands(app)

HERE = Path()

RecipeOption = Annotated[str, typer.Option(help="A recipe by name (stmae-train recipes) or a TOML file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change a value of the recipe, as in optim.base_lr=1e-3.")
]
WorkersOption = Annotated[int, typer.Option(help="Decoding processes; they change speed alone.")]
PrefetchOption = Annotated[
    int, typer.Option(help="Videos that each decoding process may have ready ahead; bounds its memory.")
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


def _recipe(name: str, changes: list[str] | None) -> "Recipe":
    from stmae_train.config import override, read_recipe
    from stmae_train.recipes import recipe

    found = read_recipe(Path(name)) if name.endswith(".toml") else recipe(name)
    return override(found, changes or [])


def _run_dir(workspace: Path, out: str | None, *parts: object) -> Path:
    name = out or "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", str(part)).strip("-.") for part in parts)
    return workspace / "runs" / (name if out else name[:200])


def _init(workspace: Path, init: str) -> str:
    run = workspace / "runs" / init
    return str(run) if init != "random" and run.is_dir() else init


@console.command(app, "recipes")
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe as TOML.")] = None,
    is_json: JsonFlag = False,
) -> None:
    """List the recipes with their sources, or print one as TOML.

    Example: stmae-train recipes mae-st-l16 > mine.toml
    """
    from stmae_train.config import to_toml
    from stmae_train.recipes import names, recipe

    if name is not None:
        from stmae_cli.weights import cost_lines

        sys.stdout.write("".join(f"# {line}\n" for line in cost_lines(recipe(name).model)) + to_toml(recipe(name)))
        return
    found = [recipe(each) for each in names()]
    if is_json:
        console.print_json([{"name": each.name, "source": each.source} for each in found])
        return
    console.table("Recipes", ["name", "source"], [[each.name, each.source] for each in found])


@console.command(app, "pretrain")
def pretrain(
    shards: Annotated[
        list[str],
        typer.Option(
            help="Sets: SET[:SPLIT][/SELECTION][@WEIGHT]; several are mixed by weight. Or tars of other tools, as in 'x-{000000..000003}.tar'."
        ),
    ],
    recipe: RecipeOption,
    changes: SetOption = None,
    clips: Annotated[
        int | None, typer.Option(help="Clips to see, repeats included; the recipe's number unless given.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the videos, instead of clips.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer updates, instead of clips.")] = None,
    seed: SeedOption = 0,
    workers: WorkersOption = 0,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    accept_new_data: Annotated[
        bool, typer.Option("--accept-new-data", help="Resume although a set has changed.")
    ] = False,
    skip_damaged: Annotated[int, typer.Option(help="Leave out at most this many damaged samples.")] = 0,
    prefetch: PrefetchOption = 4,
    device: DeviceOption = None,
    init: Annotated[
        str | None, typer.Option(help="Weights to start from, of any known layout; from scratch unless given.")
    ] = None,
    fsdp: scale.FsdpOption = False,
    track: scale.TrackOption = None,
    pictures_every: scale.PicturesOption = None,
    slurm: scale.SlurmFlag = False,
    nodes: scale.NodesOption = 1,
    gpus: scale.GpusOption = 8,
    time: scale.TimeOption = "24:00:00",
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Pre-train a masked autoencoder.

    Example: stmae-train pretrain --shards k400 --recipe mae-st-l16
    """
    from stmae_train.pretrain import PretrainRequest, clips_of
    from stmae_train.pretrain import pretrain as run

    wanted = _recipe(recipe, changes)
    run_dir = _run_dir(workspace, out, wanted.name, *shards, f"s{seed}")
    if slurm:
        scale.print_script(wanted, run_dir.name, nodes=nodes, gpus=gpus, time=time)
        return
    if epochs is not None or steps is not None:
        if clips is not None:
            raise typer.BadParameter("the length is given once: --clips, --epochs or --steps")
        clips = clips_of(workspace, shards, wanted, epochs=epochs, steps=steps)
    request = PretrainRequest(
        workspace=workspace,
        shards=tuple(shards),
        recipe=wanted,
        run_dir=run_dir,
        seed=seed,
        clips=clips,
        workers=workers,
        checkpoint_every=checkpoint_every,
        resume=resume,
        accept_new_data=accept_new_data,
        skip_damaged=skip_damaged,
        prefetch=prefetch,
        device=device,
        init=None if init is None else _init(workspace, init),
        sharding="fsdp" if fsdp else "ddp",
        track=track,
        pictures_every=pictures_every,
    )
    with console.journal(workspace, "stmae-train pretrain", {"shards": shards, "recipe": wanted.name}):
        result = run(request, watch=lambda record: console.say(str(record)))
    if not console.is_main_process():
        return
    if is_json:
        console.print_json(
            {
                "run": str(result.run_dir),
                "clips": result.clips_seen,
                "steps": result.steps,
                "loss": result.loss,
                "seconds": result.seconds,
            }
        )
    console.done(
        f"Saw {result.clips_seen:,} clips in {result.steps:,} steps; weights:", result.weights, is_json=is_json
    )


@console.command(app, "probe")
def probe(
    init: InitOption,
    shards: TrainShards,
    eval_shards: EvalOption,
    recipe: RecipeOption,
    kind: Annotated[str, typer.Option(help="attentive, linear or knn.")] = "attentive",
    changes: SetOption = None,
    seed: SeedOption = 0,
    workers: WorkersOption = 0,
    resume: ResumeOption = False,
    device: DeviceOption = None,
    out: OutOption = None,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Train a probe on the frozen encoder and test it once.

    Example: stmae-train probe --init demo-demo-k400-s0 --shards demo-k400 --eval-shards demo-k400:val --recipe demo
    """
    from stmae_train.probe import ProbeRequest
    from stmae_train.probe import probe as run

    request = ProbeRequest(
        workspace=workspace,
        init=_init(workspace, init),
        train_shards=tuple(shards),
        eval_shards=eval_shards,
        kind=kind,
        recipe=_recipe(recipe, changes),
        run_dir=_run_dir(workspace, out, "probe", kind, Path(init).name, f"s{seed}"),
        seed=seed,
        workers=workers,
        resume=resume,
        device=device,
    )
    with console.journal(workspace, "stmae-train probe", {"init": init, "kind": kind}):
        metrics = run(request, watch=lambda record: console.say(str(record)))
    _show_metrics(metrics, request.run_dir, is_json=is_json)


@console.command(app, "finetune")
def finetune(
    init: InitOption,
    shards: TrainShards,
    eval_shards: EvalOption,
    recipe: RecipeOption,
    changes: SetOption = None,
    seed: SeedOption = 0,
    workers: WorkersOption = 0,
    resume: ResumeOption = False,
    device: DeviceOption = None,
    fsdp: scale.FsdpOption = False,
    track: scale.TrackOption = None,
    out: OutOption = None,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Fine-tune an encoder with labels; test on merged views.

    Example: stmae-train finetune --init demo-demo-k400-s0 --shards demo-k400 --eval-shards demo-k400:val --recipe demo
    """
    from stmae_train.finetune import FinetuneRequest
    from stmae_train.finetune import finetune as run

    request = FinetuneRequest(
        workspace=workspace,
        init=_init(workspace, init),
        train_shards=tuple(shards),
        eval_shards=eval_shards,
        recipe=_recipe(recipe, changes),
        run_dir=_run_dir(workspace, out, "finetune", Path(init).name, f"s{seed}"),
        seed=seed,
        workers=workers,
        resume=resume,
        device=device,
        sharding="fsdp" if fsdp else "ddp",
        track=track,
    )
    with console.journal(workspace, "stmae-train finetune", {"init": init}):
        metrics = run(request, watch=lambda record: console.say(str(record)))
    _show_metrics(metrics, request.run_dir, is_json=is_json)


def _show_metrics(metrics: dict[str, Any], run_dir: Path, *, is_json: bool) -> None:
    if not console.is_main_process():
        return
    if is_json:
        console.print_json(metrics)
    console.facts(
        "Scores", {key: value for key, value in metrics.items() if not isinstance(value, list | dict)}, is_json=is_json
    )
    console.done("Run:", run_dir, is_json=is_json)


@console.command(app, "embed")
def embed(
    shards: Annotated[str, typer.Argument(metavar="SET", help="SET[:SPLIT][/SELECTION] to embed.")],
    init: InitOption,
    recipe: RecipeOption,
    name: Annotated[str | None, typer.Option(help="Name of the table; of run and split unless given.")] = None,
    views: Annotated[int, typer.Option(help="Clips per video, evenly spaced; their vectors are averaged.")] = 1,
    changes: SetOption = None,
    workers: WorkersOption = 0,
    device: DeviceOption = None,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Write one vector per clip.

    `stmae-data select --diverse` chooses by them; SQL reads them as the table `embedding`.

    Example: stmae-train embed web --init mae-st-l16-k400-s0 --recipe mae-st-l16
    """
    from stmae_train.embed import EmbedRequest, table_name
    from stmae_train.embed import embed as run

    request = EmbedRequest(
        workspace=workspace,
        init=_init(workspace, init),
        shards=shards,
        recipe=_recipe(recipe, changes),
        name=name or table_name(init, shards),
        views=views,
        workers=workers,
        device=device,
    )
    with console.journal(workspace, "stmae-train embed", {"shards": shards, "init": init}):
        made = run(request)
    if is_json:
        console.print_json({"table": str(made.path), "clips": made.num_clips, "width": made.width})
    console.done(f"{made.num_clips} vectors of {made.width} numbers:", made.path, is_json=is_json)


@console.command(app, "evaluate")
def evaluate(
    weights: Annotated[str, typer.Argument(metavar="RUN", help="A fine-tuning run, or its weights file.")],
    eval_shards: EvalOption,
    views: Annotated[
        str | None, typer.Option(help="Temporal x spatial views, as in 7x3; the recipe's unless given.")
    ] = None,
    workers: WorkersOption = 0,
    out: OutOption = None,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Test a fine-tuned classifier on merged views.

    Example: stmae-train evaluate finetune-demo-k400 --eval-shards demo-k400:val --views 5x3
    """
    from stmae_train.evaluate import EvaluateRequest
    from stmae_train.evaluate import evaluate as run

    shape = tuple(int(part) for part in views.split("x")) if views else None
    if shape is not None and len(shape) != 2:
        raise typer.BadParameter(f"{views!r} is not temporal x spatial views, as in 7x3")
    request = EvaluateRequest(
        workspace=workspace,
        weights=_init(workspace, weights),
        eval_shards=eval_shards,
        run_dir=_run_dir(workspace, out, "evaluate", Path(weights).name, eval_shards, views or "views"),
        views=(shape[0], shape[1]) if shape else None,
        workers=workers,
        resume=True,
    )
    with console.journal(workspace, "stmae-train evaluate", {"weights": weights, "eval_shards": eval_shards}):
        metrics = run(request)
    _show_metrics(metrics, request.run_dir, is_json=is_json)


@console.command(app, "picture")
def picture(
    weights: Annotated[str, typer.Argument(metavar="RUN", help="A pre-training run, or its weights file.")],
    shards: Annotated[str, typer.Option(help="SET[:SPLIT] the clips come from.")],
    clip: Annotated[list[str] | None, typer.Option(help="These clips; the first of the set unless given.")] = None,
    count: Annotated[int, typer.Option(help="How many clips.")] = 8,
    ratio: Annotated[list[float] | None, typer.Option(help="Shares to hide; 0.9 and 0.95 unless given.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the masks.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the PNG files; pictures/ beside the weights unless given.")
    ] = None,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Write strips of clips: original, masked, reconstructed.

    Example: stmae-train picture demo-demo-k400-s0 --shards demo-k400:val --ratio 0.5
    """
    from stmae_train.pictures import PictureRequest
    from stmae_train.pictures import picture as run

    found = Path(_init(workspace, weights))
    folder = out or (found if found.is_dir() else found.parent) / "pictures"
    request = PictureRequest(
        workspace=workspace,
        weights=str(found),
        shards=shards,
        out=folder,
        clip_ids=tuple(clip or ()),
        count=count,
        ratios=tuple(ratio or (0.9, 0.95)),
        seed=seed,
    )
    with console.journal(workspace, "stmae-train picture", {"weights": weights, "shards": shards}):
        written = run(request)
    if is_json:
        console.print_json({"pictures": [str(path) for path in written]})
    console.done(f"{len(written)} pictures in", folder, is_json=is_json)


@console.command(app, "report")
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, under runs/ of the workspace, or its folder.")],
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Write one HTML page about a run.

    Self-contained: curves, cost, what it read, pictures.

    Example: stmae-train report demo-demo-k400-s0
    """
    from stmae_train.report import run_report

    path = run_report(Path(_init(workspace, run)))
    if is_json:
        console.print_json({"run": run, "report": str(path)})
    console.done("Report:", path, is_json=is_json)


def main() -> None:
    """Entry point of `stmae-train`."""
    lists = ("--shards", "--set", "--only", "--clip", "--ratio", "--size", "--dtype", "--per-video", "--repeats")
    app(console.expand_lists(sys.argv[1:], options=lists, needs_position=("study",)))


if __name__ == "__main__":
    main()
