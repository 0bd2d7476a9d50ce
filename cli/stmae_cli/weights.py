"""`stmae-train convert` and `inspect`: weights of other codebases in, ours out, what a file holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stmae_cli import console
from stmae_cli.bench import bench_app
from stmae_cli.console import JsonFlag, WorkspaceOption

if TYPE_CHECKING:
    from stmae_train.checkpoint import Weights
    from stmae_train.config import ModelConfig

__all__ = ["add_weights_commands", "cost_lines"]

HERE = Path()

FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="IN", help="A weights file of any known layout (.safetensors, .pth, .bin), its folder, or a run."
    ),
]
StateOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="State what the file does not say, as in model.heads=6; a clash is an error."),
]


def add_weights_commands(app: typer.Typer) -> None:
    """Register the commands."""
    console.command(app, "convert")(convert)
    console.command(app, "inspect")(inspect)
    app.add_typer(bench_app, name="bench")


def cost_lines(model: "ModelConfig") -> list[str]:
    """What a model comes to: parameters, and operations of a clip beside those of an encoder that sees every token."""
    from dataclasses import replace

    from stmae_train.model import parameter_counts
    from stmae_train.runlog import forward_flops

    counts = parameter_counts(model)
    lines = [
        f"{counts['total'] / 1e6:.2f} M parameters: encoder {counts['encoder'] / 1e6:.2f} M, decoder {counts['decoder'] / 1e6:.2f} M"
    ]
    flops = forward_flops(model)
    lines.append(f"{flops.total / 1e9:.1f} GFLOPs forward per clip (a product and a sum count two)")
    if not model.dense_encoder and model.decoder_attention == "self" and model.decoded_share == 1:
        sparse, dense = (
            forward_flops(each, counts="published").multiply_adds / 1e9
            for each in (model, replace(model, dense_encoder=True))
        )
        lines.append(
            f"as papers count (multiply-adds, all tokens embedded): {sparse:.1f} G, {dense:.1f} G with an encoder of all tokens, "
            f"{dense / sparse:.1f}x"
        )
    return lines


def _path(name: str, workspace: Path) -> Path:
    from stmae_train.checkpoint import weights_path

    return weights_path(name, workspace=workspace)


def _read(path: Path, changes: list[str] | None) -> "Weights":
    from stmae_train.config import read_changes
    from stmae_train.convert import read_weights

    return read_weights(path, asked=read_changes(changes or []))


def convert(
    file: FileArgument,
    form: Annotated[
        str, typer.Option("--to", help="stmae, safetensors (the codebase's own names), transformers or timm.")
    ] = "stmae",
    out: Annotated[Path | None, typer.Option(help="File, or folder for transformers; beside IN unless given.")] = None,
    changes: StateOption = None,
    inflate: Annotated[
        str | None,
        typer.Option(help="Image weights to video: divide (I3D's rule) or repeat (PySlowFast's image_init)."),
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of an inflated model.")] = 16,
    encoder_only: Annotated[bool, typer.Option("--encoder-only", help="Leave decoder and head behind.")] = False,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Read weights of any known layout and write them in another.

    Example: stmae-train convert mae_vit_base.pth --to stmae --inflate divide --out mae-b16-inflated.safetensors
    """
    import json

    from stmae_train.convert import encoder_of, write_weights
    from stmae_train.convert import inflate as inflated

    path = _path(file, workspace)
    weights = _read(path, changes)
    if inflate is not None:
        weights = inflated(weights, rule=inflate, num_frames=frames)
    if encoder_only:
        weights = encoder_of(weights)
    written = write_weights(weights, out or _beside(path, form), form=form, source=path)
    notes = json.loads(weights.metadata.get("notes", "[]"))
    for note in notes:
        console.say(f"Note: {note}")
    if is_json:
        facts = {"in": str(path), "out": str(written), "to": form, "layout": weights.metadata.get("layout", "stmae")}
        console.print_json({**facts, "kind": weights.metadata.get("kind"), "notes": notes})
    console.done(f"Read {weights.metadata.get('layout', 'stmae')} weights; wrote {form}:", written, is_json=is_json)


def _beside(path: Path, form: str) -> Path:
    stem = path.parent.name if path.name in ("weights.safetensors", "model.safetensors") else path.stem
    name = f"{stem}-{form}"
    return path.parent / (name if form == "transformers" else f"{name}.safetensors")


def inspect(
    file: FileArgument,
    changes: StateOption = None,
    workspace: WorkspaceOption = HERE,
    is_json: JsonFlag = False,
) -> None:
    """Show what a weights file holds.

    Lineage, shape, target, pixels, parameters, cost, what it was trained on.

    Example: stmae-train inspect runs/demo-demo-k400-s0/weights.safetensors
    """
    from stmae_train.convert import inspect_weights

    found: dict[str, Any] = inspect_weights(_path(file, workspace), changes=tuple(changes or ()))
    if is_json:
        console.print_json(found)
        return
    shown = {**found, "trained_on": found["trained_on"] or "the file does not say"}
    shown["notes"] = {str(number): note for number, note in enumerate(found["notes"], start=1)}
    console.facts(f"Weights of {found['file']}", shown)
