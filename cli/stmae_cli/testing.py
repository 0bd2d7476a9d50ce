"""`stmae-train evaluate`, `embed` and `picture`: what trained weights make of a set."""

from pathlib import Path
from typing import Annotated

import typer

from stmae_cli import console
from stmae_cli.console import JsonFlag, WorkspaceOption
from stmae_cli.options import (
    HERE,
    STORE_CACHE_GB,
    DeviceOption,
    EvalOption,
    InitOption,
    OutOption,
    PrefetchOption,
    RecipeOption,
    SetOption,
    StoreCacheOption,
    WorkersOption,
    changed_names,
    gigabytes,
    read_recipe,
    run_folder,
    show_metrics,
    weights_of,
)

__all__ = ["add_testing_commands"]


def add_testing_commands(app: typer.Typer) -> None:
    """Register the commands."""
    console.command(app, "embed")(embed)
    console.command(app, "evaluate")(evaluate)
    console.command(app, "picture")(picture)


def embed(
    shards: Annotated[str, typer.Argument(metavar="SET", help="SET[:SPLIT][/SELECTION] to embed.")],
    init: InitOption,
    recipe: RecipeOption,
    name: Annotated[str | None, typer.Option(help="Name of the table; of run and split unless given.")] = None,
    views: Annotated[int, typer.Option(help="Clips per video, evenly spaced; their vectors are averaged.")] = 1,
    changes: SetOption = None,
    workers: WorkersOption = 0,
    prefetch: PrefetchOption = 4,
    store_cache_gb: StoreCacheOption = STORE_CACHE_GB,
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
        init=weights_of(workspace, init),
        shards=shards,
        recipe=read_recipe(recipe, changes),
        name=name or table_name(init, shards),
        views=views,
        workers=workers,
        prefetch=prefetch,
        store_cache_bytes=gigabytes(store_cache_gb),
        device=device,
        changed=changed_names(changes),
    )
    with console.journal(workspace, "stmae-train embed", {"shards": shards, "init": init}):
        made = run(request)
    if is_json:
        console.print_json({"table": str(made.path), "clips": made.num_clips, "width": made.width})
    console.done(f"{made.num_clips} vectors of {made.width} numbers:", made.path, is_json=is_json)


def evaluate(
    weights: Annotated[str, typer.Argument(metavar="RUN", help="A fine-tuning run, or its weights file.")],
    eval_shards: EvalOption,
    views: Annotated[
        str | None, typer.Option(help="Temporal x spatial views, as in 7x3; the recipe's unless given.")
    ] = None,
    workers: WorkersOption = 0,
    prefetch: PrefetchOption = 4,
    store_cache_gb: StoreCacheOption = STORE_CACHE_GB,
    device: DeviceOption = None,
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
        weights=weights_of(workspace, weights),
        eval_shards=eval_shards,
        run_dir=run_folder(workspace, out, "evaluate", Path(weights).name, eval_shards, views or "views"),
        views=(shape[0], shape[1]) if shape else None,
        workers=workers,
        prefetch=prefetch,
        store_cache_bytes=gigabytes(store_cache_gb),
        device=device,
        resume=True,
    )
    with console.journal(workspace, "stmae-train evaluate", {"weights": weights, "eval_shards": eval_shards}):
        metrics = run(request)
    show_metrics(metrics, request.run_dir, is_json=is_json)


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

    found = Path(weights_of(workspace, weights))
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
