"""One run folder, held by one process at a time."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import logging
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Self

from stmae_data import files
from stmae_data.errors import Busy
from stmae_train.config import Recipe, from_toml, to_toml
from stmae_train.errors import ConfigError, RunBusy, RunInterrupted
from stmae_train.runlog.meter import StepRecord

__all__ = ["RunFolder", "commit", "last_loss", "read_records", "runs_status"]

LOGGER = logging.getLogger("stmae.train")
SCHEMA_VERSION = 1
# What a run may go on with otherwise than it was started, when it is asked to: no clip, crop, mask or shape hangs on it.
CHANGEABLE = ("base_lr", "min_lr", "weight_decay", "grad_clip", "precision")
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "av", "safetensors", "duckdb")


def commit(path: Path) -> AbstractContextManager[IO[bytes]]:
    """A binary file that appears at `path` whole or not at all."""
    return files.committing(path, point="run")


def runs_status(folder: Path) -> str | None:
    """`running`, `done`, `failed`, `interrupted`, or None where no run stands."""
    path = folder / "run.json"
    return str(files.read_json(path)["status"]) if path.is_file() else None


class RunFolder:
    """A run folder open for writing. Use as a context manager: leaving it writes how the run ended.

    Attributes:
        path: the folder.
        facts: what `run.json` says.
        was_done: the run had already ended well when it was opened.
    """

    def __init__(self, path: Path, lock: contextlib.ExitStack, facts: dict[str, Any], *, was_done: bool) -> None:
        self.path, self.facts, self.was_done = path, facts, was_done
        self._lock = lock

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        command: str,
        recipe: Recipe,
        seed: int,
        settings: Mapping[str, Any],
        resume: bool = False,
        force: bool = False,
    ) -> Self:
        """Create the folder or take up what stands there.

        Args:
            path: the folder.
            command: what runs, such as `pretrain`.
            recipe: resolved; saved as config.toml before step 0.
            seed: of the run.
            settings: what else decides the result, such as the set references.
            resume: go on with what stands there; without it a folder with a run is refused.
            force: let what is `CHANGEABLE` in the recipe differ from what the run was started with; `run.json` records it.

        Raises:
            RunBusy: another process writes it.
            ConfigError: it holds a run and `resume` was not asked for, or that run had another config that may not change.
        """
        stack = contextlib.ExitStack()
        try:
            stack.enter_context(files.lock(path / "LOCK", what=f"Run {path.name}"))
        except Busy as error:
            raise RunBusy(str(error)) from error
        try:
            files.sweep_temp(path)
            known = files.read_json(path / "run.json") if (path / "run.json").is_file() else None
            if known is not None and not resume:
                raise ConfigError(
                    f"{path} already holds a run ({known['command']}, {known['status']}); go on with --resume or choose another --out."
                )
            decided = json.loads(json.dumps({"seed": seed, "settings": dict(settings)}, default=str))
            changed = []
            if known is not None:
                changed = _check_same(path, known, command=command, recipe=recipe, decided=decided, force=force)
            was_done = known is not None and known["status"] == "done"
            facts = known or {"schema_version": SCHEMA_VERSION, "started": _now(), "leaks": None, "digests": {}}
            if not was_done:
                facts |= {
                    "command": command,
                    "argv": sys.argv,
                    "status": "running",
                    "ended": None,
                    "versions": _versions(),
                }
                facts |= {"seeds": [seed], **decided}
            if changed and not was_done:
                LOGGER.warning("%s goes on with other settings: %s.", path, "; ".join(changed))
                facts["changes"] = [*facts.get("changes", []), {"at": _now(), "settings": changed}]
            run = cls(path, stack, facts, was_done=was_done)
            if not was_done:
                files.commit_bytes(path / "config.toml", to_toml(recipe).encode(), point="run")
                run.save()
        except BaseException:
            stack.close()
            raise
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if not self.was_done or error is not None:
                is_stop = isinstance(error, (RunInterrupted, KeyboardInterrupt))
                self.facts["status"] = "done" if error is None else "interrupted" if is_stop else "failed"
                self.facts["ended"] = _now()
                self.facts["error"] = None if error is None else str(error)
                self.save()
        finally:
            self._lock.close()

    def save(self) -> None:
        """Write `run.json`."""
        self.write_json("run.json", self.facts)

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file of the run."""
        files.commit_json(self.path / name, value, point="run")

    def read_json(self, name: str) -> Any:
        """Read one JSON file of the run."""
        return files.read_json(self.path / name)

    def write_text(self, name: str, text: str) -> None:
        """Write one text file of the run."""
        files.commit_bytes(self.path / name, text.encode(), point="run")

    def write_data(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write `data.json`: what every set reference held when it was read."""
        self.write_json("data.json", {"schema_version": SCHEMA_VERSION, "sets": list(entries)})
        self.facts["digests"] = {entry["reference"]: entry["digest"] for entry in entries}
        self.save()

    def log(self, record: StepRecord) -> None:
        """Append a record to `log.jsonl`."""
        files.append_line(self.path / "log.jsonl", record.values())

    def records(self) -> Iterator[dict[str, Any]]:
        """Records of `log.jsonl`; a torn last line is left out."""
        return read_records(self.path)

    @property
    def changes(self) -> list[tuple[str, str]]:
        """What its card says about settings that were changed on the way."""
        return [
            (f"Changed after step {change['after_step']:,}", "; ".join(change["settings"]))
            for change in self.facts.get("changes", [])
        ]

    def forget_after(self, step: int) -> None:
        """Drop log records past `step`: a resumed run writes them again. A change of settings counts from there."""
        for change in self.facts.get("changes", []):
            change.setdefault("after_step", step)
            self.save()
        kept = [json.dumps(record, sort_keys=True) for record in self.records() if record["step"] <= step]
        self.write_text("log.jsonl", "".join(line + "\n" for line in kept))


def _check_same(
    path: Path, known: Mapping[str, Any], *, command: str, recipe: Recipe, decided: Mapping[str, Any], force: bool
) -> list[str]:
    """What differs from what the run was started with: nothing, or under `force` what is `CHANGEABLE`; all else is refused."""
    differences = [] if known["command"] == command else [f"command ({known['command']}, now {command})"]
    for key, value in decided.items():
        if known.get(key) != value:
            differences.append(f"{key} ({known.get(key)}, now {value})")
    stored = path / "config.toml"
    before = (
        to_toml(from_toml(stored.read_text(encoding="utf-8"), where=str(stored))).splitlines()
        if stored.is_file()
        else []
    )
    now = to_toml(recipe).splitlines()
    differences += [f"{new} (was {old})" for old, new in zip(before, now, strict=False) if old != new]
    fixed = [each for each in differences if each.partition(" = ")[0] not in CHANGEABLE]
    is_done = known["status"] == "done"
    if fixed or (differences and (is_done or not force)):
        forced = "" if fixed or is_done else ", add --force,"
        if force:
            forced = f" (--force changes {', '.join(CHANGEABLE)} alone, and not of a run that is done)"
        raise ConfigError(
            f"{path} was started with other settings: {'; '.join((fixed or differences)[:3])}; resume it with the same ones{forced} or choose "
            f"another --out."
        )
    return differences


def _versions() -> dict[str, str]:
    from stmae_train import __version__

    found = {"stmae": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Records of the `log.jsonl` of a run, oldest first; a torn last line is left out."""
    path = folder / "log.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def last_loss(folder: Path) -> float | None:
    """The loss of the last record of a run: one that was stopped after its last step has it nowhere else."""
    last = list(read_records(folder))[-1:]
    return last[0]["loss"] if last else None
