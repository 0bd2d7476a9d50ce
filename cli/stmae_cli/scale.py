"""Training on several machines: options, and a batch script for Slurm that goes on by itself after a time limit or a lost node."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stmae_train.config import Recipe

__all__ = [
    "FsdpOption",
    "GpusOption",
    "NodesOption",
    "PicturesOption",
    "SlurmFlag",
    "TimeOption",
    "TrackOption",
    "print_script",
    "sbatch_script",
    "without_slurm",
]

FsdpOption = Annotated[
    bool, typer.Option("--fsdp", help="Under torchrun: every process keeps a part of each parameter (FSDP2), not all.")
]
TrackOption = Annotated[str | None, typer.Option(help="tensorboard: the records of the log, and pictures, for it too.")]
PicturesOption = Annotated[
    int | None, typer.Option(min=1, help="Steps between pictures of fixed clips, beside those of the end.")
]
SlurmFlag = Annotated[
    bool,
    typer.Option("--slurm", help="Print a batch script for Slurm that does this and resumes by itself; train nothing."),
]
NodesOption = Annotated[int, typer.Option(min=1, help="With --slurm: machines.")]
GpusOption = Annotated[int, typer.Option(min=1, help="With --slurm: GPUs on each machine.")]
TimeOption = Annotated[str, typer.Option(help="With --slurm: the limit after which the job queues itself again.")]

# Flags of this page and whether a value follows them; they are left out of the command that the script runs.
_OWN = {"--slurm": False, "--nodes": True, "--gpus": True, "--time": True}

_SCRIPT = """#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --time={time}
#SBATCH --output={log}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
# A checkpoint is written when the time is nearly up, then the job queues itself again; --resume goes on with what stands there.
set -euo pipefail
cd {folder}
# A restart must not meet addresses of processes that are gone.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_node=${{hosts%%$'\\n'*}}
port=$((20000 + SLURM_JOB_ID % 20000))
is_stopped=0
trap 'is_stopped=1; kill -TERM "$step" 2>/dev/null || true' TERM
# shellcheck disable=SC2016  # what was typed is passed on as it is
srun --kill-on-bad-exit=1 torchrun \\
  --nnodes={nodes} --nproc-per-node={gpus} --max-restarts=3 \\
  --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$head_node:$port" \\
  --no-python {command} &
step=$!
code=0
wait "$step" || code=$?
if [ "$is_stopped" = 1 ]; then
  wait "$step" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
"""


def without_slurm(arguments: Sequence[str]) -> list[str]:
    """The arguments as typed, without those that asked for the script."""
    kept: list[str] = []
    skips = False
    for argument in arguments:
        name, is_joined, _ = argument.partition("=")
        if skips:
            skips = False
        elif name in _OWN:
            skips = _OWN[name] and not is_joined
        else:
            kept.append(argument)
    return kept


def print_script(recipe: "Recipe", name: str, *, nodes: int, gpus: int, time: str) -> None:
    """Print the script around the command line that this process was started with.

    Raises:
        ConfigError: the batch cannot be shared by so many processes.
    """
    from stmae_train.errors import ConfigError

    videos, parts = recipe.optim.batch_videos, recipe.optim.accumulate
    if videos % (nodes * gpus * parts):
        raise ConfigError(
            f"A batch of {videos} videos in {parts} micro-batches cannot be shared by {nodes} nodes x {gpus} GPUs; change --nodes, --gpus, "
            f"optim.batch_videos or optim.accumulate."
        )
    folder = str(Path.cwd())
    if not folder.isprintable():
        raise ConfigError(
            f"Slurm cannot name a log in {folder!r}; start from a folder without control characters in its path."
        )
    command = ["stmae-train", *without_slurm(sys.argv[1:])]
    log = f"{folder.replace('%', '%%')}/{_plain(name)}-%j.log"  # Slurm fills in what stands after a per cent sign
    sys.stdout.write(sbatch_script(command, name=name, folder=folder, log=log, nodes=nodes, gpus=gpus, time=time))


def _plain_time(time: str) -> str:
    """A limit as Slurm writes it: minutes, or [days-]hours:minutes[:seconds].

    Raises:
        BadParameter: something else, which would stand in the script as it is.
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
        raise typer.BadParameter(f"{time!r} is no time limit of Slurm, such as 24:00:00 or 2-00:00:00")
    return time


def _plain(name: str) -> str:
    return "".join(each if each.isalnum() or each in "._-" else "-" for each in name)


def sbatch_script(command: Sequence[str], *, name: str, folder: str, log: str, nodes: int, gpus: int, time: str) -> str:
    """The script as text; whatever comes from the user is quoted for a shell.

    Args:
        command: the program and its arguments; `--resume` is added where it is missing.
        name: of the run, letters that a shell and Slurm both leave alone.
        folder: where relative paths of the command start.
        log: file that Slurm appends to.
        nodes, gpus: machines, and GPUs on each.
        time: limit as Slurm writes it, such as 24:00:00.
    """
    words = [*command] if "--resume" in command else [*command, "--resume"]
    # A directive is no shell text: Slurm takes double quotes, and nothing in them means anything but a quote and a backslash.
    quoted = log.replace("\\", "\\\\").replace('"', '\\"')
    return _SCRIPT.format(
        name=_plain(name),
        nodes=nodes,
        gpus=gpus,
        time=_plain_time(time),
        log=f'"{quoted}"',
        folder=shlex.quote(folder),
        command=shlex.join(words),
    )
