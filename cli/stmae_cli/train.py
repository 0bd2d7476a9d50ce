"""`stmae-train`: from shard sets to checkpoints, scores and studies. Each command parses, calls one function, prints."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from stmae_cli import console, scale
from stmae_cli.console import JsonFlag, WorkspaceOption
from stmae_cli.options import (
    HERE,
    STORE_CACHE_GB,
    AcceptOption,
    CheckpointOption,
    DeviceOption,
    EvalOption,
    ForceOption,
    InitOption,
    OutOption,
    PrefetchOption,
    RecipeOption,
    ResumeOption,
    SeedOption,
    SetOption,
    SkipOption,
    StoreCacheOption,
    TrainShards,
    WorkersOption,
    gigabytes,
    read_recipe,
    run_folder,
    show_metrics,
    weights_of,
)
from stmae_cli.study import study_app
from stmae_cli.testing import add_testing_commands
from stmae_cli.weights import add_weights_commands

__all__ = ["app", "main"]

app = console.make_app(
    "Pre-train masked autoencoders on any shard set, transfer them, and study what the data does to them with honest statistics."
)
app.add_typer(study_app, name="study")


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
    checkpoint_every: CheckpointOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    accept_new_data: AcceptOption = False,
    force: ForceOption = False,
    skip_damaged: SkipOption = 0,
    prefetch: PrefetchOption = 4,
    store_cache_gb: StoreCacheOption = STORE_CACHE_GB,
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

    wanted = read_recipe(recipe, changes)
    run_dir = run_folder(workspace, out, wanted.name, *shards, f"s{seed}")
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
        force=force,
        skip_damaged=skip_damaged,
        prefetch=prefetch,
        store_cache_bytes=gigabytes(store_cache_gb),
        device=device,
        init=None if init is None else weights_of(workspace, init),
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
    prefetch: PrefetchOption = 4,
    store_cache_gb: StoreCacheOption = STORE_CACHE_GB,
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
        init=weights_of(workspace, init),
        train_shards=tuple(shards),
        eval_shards=eval_shards,
        kind=kind,
        recipe=read_recipe(recipe, changes),
        run_dir=run_folder(workspace, out, "probe", kind, Path(init).name, f"s{seed}"),
        seed=seed,
        workers=workers,
        prefetch=prefetch,
        store_cache_bytes=gigabytes(store_cache_gb),
        resume=resume,
        device=device,
    )
    with console.journal(workspace, "stmae-train probe", {"init": init, "kind": kind}):
        metrics = run(request, watch=lambda record: console.say(str(record)))
    show_metrics(metrics, request.run_dir, is_json=is_json)


@console.command(app, "finetune")
def finetune(
    init: InitOption,
    shards: TrainShards,
    eval_shards: EvalOption,
    recipe: RecipeOption,
    changes: SetOption = None,
    seed: SeedOption = 0,
    workers: WorkersOption = 0,
    checkpoint_every: CheckpointOption = None,
    resume: ResumeOption = False,
    accept_new_data: AcceptOption = False,
    force: ForceOption = False,
    skip_damaged: SkipOption = 0,
    prefetch: PrefetchOption = 4,
    store_cache_gb: StoreCacheOption = STORE_CACHE_GB,
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
        init=weights_of(workspace, init),
        train_shards=tuple(shards),
        eval_shards=eval_shards,
        recipe=read_recipe(recipe, changes),
        run_dir=run_folder(workspace, out, "finetune", Path(init).name, f"s{seed}"),
        seed=seed,
        workers=workers,
        checkpoint_every=checkpoint_every,
        resume=resume,
        accept_new_data=accept_new_data,
        force=force,
        skip_damaged=skip_damaged,
        prefetch=prefetch,
        store_cache_bytes=gigabytes(store_cache_gb),
        device=device,
        sharding="fsdp" if fsdp else "ddp",
        track=track,
    )
    with console.journal(workspace, "stmae-train finetune", {"init": init}):
        metrics = run(request, watch=lambda record: console.say(str(record)))
    show_metrics(metrics, request.run_dir, is_json=is_json)


add_testing_commands(app)


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

    path = run_report(Path(weights_of(workspace, run)))
    if is_json:
        console.print_json({"run": run, "report": str(path)})
    console.done("Report:", path, is_json=is_json)


add_weights_commands(app)


def main() -> None:
    """Entry point of `stmae-train`."""
    lists = ("--shards", "--set", "--only", "--clip", "--ratio", "--size", "--dtype", "--per-video", "--repeats")
    app(console.expand_lists(sys.argv[1:], options=lists, needs_position=("study",)))


if __name__ == "__main__":
    main()
