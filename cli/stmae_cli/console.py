"""What both command lines share: errors to exit codes, progress on stderr, tables, `--json`, and the workspace's journal."""

import contextlib
import datetime
import functools
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

__all__ = [
    "JsonFlag",
    "Progress",
    "WorkspaceOption",
    "command",
    "done",
    "expand_lists",
    "facts",
    "fill_optional",
    "is_main_process",
    "journal",
    "make_app",
    "print_json",
    "say",
    "table",
]

Function = TypeVar("Function", bound=Callable[..., Any])

WorkspaceOption = Annotated[
    Path,
    typer.Option(
        "--workspace", "-w", help="Folder that holds raw/, sets/, selections/ and runs/.", envvar="STMAE_WORKSPACE"
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="The same facts as JSON on stdout.")]


def make_app(text: str, *, order: Sequence[str] = ()) -> typer.Typer:
    """A Typer app without what makes `--help` slow; `--help` lists the commands of `order` first, in this order."""

    class Group(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            names = super().list_commands(ctx)
            return [*(name for name in order if name in names), *(name for name in names if name not in order)]

        def invoke(self, ctx: Any) -> Any:
            try:
                return super().invoke(ctx)
            except Exception as error:
                # Known by its name: it comes from whichever click this typer runs on.
                option = getattr(error, "option_name", "") if type(error).__name__ == "NoSuchOption" else "--"
                if re.fullmatch("--[a-z-]*", option) is None and isinstance(
                    text := getattr(error, "message", None), str
                ):
                    hint = "Put -- before an id that begins with -, or name it as --ids=ID or in a file"
                    error.message = f"{text}. {hint}"  # type: ignore[attr-defined]
                raise

    return typer.Typer(
        cls=Group,
        help=text,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def command(app: typer.Typer, name: str) -> Callable[[Function], Function]:
    """Register a command whose errors end in one sentence on stderr and their exit code, never in a traceback."""

    def register(function: Function) -> Function:
        @functools.wraps(function)
        def guarded(*arguments: Any, **options: Any) -> Any:
            signal.signal(signal.SIGTERM, _terminate)
            try:
                return function(*arguments, **options)
            except KeyboardInterrupt:
                _fail("Interrupted; everything committed stays, run the same command again to go on.", 130)
            except BrokenPipeError:
                sys.stderr.close()
                raise typer.Exit(1) from None
            except Exception as error:
                code = getattr(error, "exit_code", None)
                if not isinstance(code, int) or not type(error).__module__.startswith("stmae_"):
                    raise
                _fail(str(error), code)

        app.command(name)(guarded)
        return function

    return register


# Not what options look like: `--workspace` has eleven characters too, and -w may be joined to its folder.
_DASHED_ID = re.compile(r"(?!--[a-z][a-z-]+$|-w)-[A-Za-z0-9_-]{10}(_\d{6}_\d{6}|_\d{9}ms_\d{9}ms)?")


def expand_lists(arguments: Sequence[str], *, options: Sequence[str], needs_position: Sequence[str]) -> list[str]:
    """Let list options take several values at once: `--from A B` becomes `--from A --from B`.

    Args:
        arguments: what follows the program's name.
        options: names of list options.
        needs_position: commands with a required argument; before it is met, a list option takes one value, so that
            `build --from A k400` still reads k400 as the manifest.

    A YouTube or clip id may begin with `-`: a word of that shape after a list option is a value of it.
    """
    expanded: list[str] = []
    current: str | None = None
    num_values = num_positions = 0
    for number, argument in enumerate(arguments):
        if argument == "--":
            return [*expanded, *arguments[number:]]
        is_value = current is not None and _DASHED_ID.fullmatch(argument) is not None
        if argument.startswith("-") and not is_value:
            current, num_values = (argument if argument in options else None), 0
        elif current is None:
            follows_option = number > 0 and arguments[number - 1].startswith("-")  # then it is that option's value
            num_positions += 0 if follows_option else 1  # the command's own name is the first
        elif num_values == 0:
            num_values = 1
        elif num_positions > 1 or arguments[0] not in needs_position:
            expanded.append(current)
        else:
            current, num_positions = None, num_positions + 1
        expanded.append(argument)
    return expanded


def fill_optional(arguments: Sequence[str], *, options: Mapping[str, Collection[str]]) -> list[str]:
    """Give list options that may stand alone an empty value, which every parser understands: `--retry-failed --json` becomes
    `--retry-failed "" --json`. `options` maps each of them to the words that are values of it."""
    filled: list[str] = []
    for argument, follower in pairwise([*arguments, ""]):
        filled.append(argument)
        if argument in options and follower not in options[argument]:
            filled.append("")
    return filled


class _Terminated(KeyboardInterrupt):
    """SIGTERM: unwinds like Ctrl-C, ends with 143."""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second signal ends at once
    raise _Terminated


def _fail(text: str, code: int) -> None:
    if isinstance(sys.exc_info()[1], _Terminated):
        code = 143
    print(_clean(text), file=sys.stderr)
    raise typer.Exit(code) from None


def _clean(text: str) -> str:
    """Control characters and bidi overrides shown as escapes; names of files may hold anything."""
    return "".join(
        each
        if each.isprintable() or each in "\n\t"
        else each.encode("unicode_escape", "backslashreplace").decode("ascii")
        for each in text
    )


def say(text: str) -> None:
    """A line for a person, on stderr."""
    print(_clean(text), file=sys.stderr, flush=True)


def done(text: str, path: Path | None, *, is_json: bool) -> None:
    """The closing line: what was made and where; on stdout unless that belongs to JSON."""
    line = f"{text} {path}" if path is not None else text
    print(_clean(line), file=sys.stderr if is_json else sys.stdout, flush=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout; a number that JSON has not (NaN, infinity) is null there."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except (TypeError, ValueError):
        text = json.dumps(_sayable(value), ensure_ascii=False, allow_nan=False, default=str)
    print(text, flush=True)


def _sayable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _sayable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_MOST_CHARACTERS = 200


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, is_json: bool = False) -> None:
    """A table on stdout (stderr beside JSON); cells are data, never markup."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(header_style="", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")  # a path is broken, never cut
    for row in rows:
        shown.add_row(*(Text(_cut(_clean("" if cell is None else str(cell)))) for cell in row))
    target = sys.stderr if is_json else sys.stdout
    width = None if target.isatty() else 160
    printer = Console(file=target, width=width, highlight=False)
    printer.print(Text(title, style="bold"))  # not the table's own title, which is broken at the width of the table
    printer.print(shown)


def _cut(text: str) -> str:
    """At most 200 characters, cut where one of several items ends, and told."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    items, kept = text.split(", "), 0
    while len(", ".join(items[: kept + 1])) <= _MOST_CHARACTERS - 15:
        kept += 1
    return f"{', '.join(items[:kept])}, … {len(items) - kept} more" if kept else f"{text[: _MOST_CHARACTERS - 2]} …"


def facts(title: str, value: Mapping[str, Any], *, is_json: bool = False) -> None:
    """Nested facts as one table of two columns; the same facts that `--json` prints."""
    table(title, ["what", "value"], list(_flat(value, 0)), is_json=is_json)


def _flat(value: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        label = "  " * depth + str(name)
        if isinstance(inner, Mapping) and inner:
            yield label, ""
            yield from _flat(inner, depth + 1)
        elif isinstance(inner, list | tuple) and inner and isinstance(inner[0], Mapping):
            for number, each in enumerate(inner, start=1):
                yield f"{label} {number}", ""
                yield from _flat(each, depth + 1)
        elif inner not in (None, [], {}, ()):
            yield label, ", ".join(map(str, inner)) if isinstance(inner, list | tuple) else inner


class Progress:
    """Told (stage, done, total); a bar on a terminal, a plain line at every tenth elsewhere, always on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""
        self._tenth = -1

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.close()
            self._stage, self._tenth = stage, -1
        if sys.stderr.isatty():
            from tqdm import tqdm

            if self._bar is None:
                self._bar = tqdm(total=total, initial=0, desc=stage, unit="", leave=True, file=sys.stderr)
            self._bar.total = total
            self._bar.update(done - self._bar.n)
        elif total and done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            say(f"{stage} {done}/{total}")

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """A Progress that is closed at the end."""
    shown = Progress()
    try:
        yield shown
    finally:
        shown.close()


def is_main_process() -> bool:
    """Whether this process speaks for the command: the only one, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def journal(workspace: Path, name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Record a command that changes a workspace as one line of its `journal.jsonl`, whatever its end."""
    from stmae_data import files

    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    code = 0
    try:
        yield
    except BaseException as error:
        code = int(getattr(error, "exit_code", 1))
        raise
    finally:
        if workspace.is_dir() and is_main_process():
            files.append_line(
                workspace / "journal.jsonl",
                {
                    "command": name,
                    "argv": [
                        f"{key}={value}" for key, value in arguments.items() if value not in (None, (), [], False)
                    ],
                    "started": started.isoformat(timespec="seconds"),
                    "seconds": round(time.monotonic() - clock, 3),
                    "exit": code,
                },
            )
