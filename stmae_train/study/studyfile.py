"""The study file: TOML read into frozen values, with every key checked.

[study]       name question baseline seeds equal alpha discordance seed_sd
[scale.NAME]  recipe clips schedule seeds tainted override
[data.NAME]   shards | from, with where hashtags_of per_class samples share hours minus like seed
[[arm]]       data | init, with name scale available reason
[[task]]      name kind train test recipe override only
[leaks]       check action
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from stmae_data.errors import UsageError
from stmae_data.records import LEVELS, SetRef
from stmae_train.errors import StudyError
from stmae_train.study.keys import Table, checked_name, choose, flatten, listed

_Named = TypeVar("_Named", "ScaleSpec", "DataSpec", "TaskSpec")

__all__ = [
    "ArmSpec",
    "DataSpec",
    "LeakSpec",
    "ScaleSpec",
    "StudyFile",
    "TaskSpec",
    "parse_clips",
    "parse_study",
    "read_study",
]

KINDS = ("finetune", "linear", "attentive", "knn", "detect")
ACTIONS = ("mark", "fail", "report")


@dataclass(frozen=True, slots=True)
class ScaleSpec:
    """Everything but the data: recipe, lengths in clips seen, schedule, seeds."""

    name: str
    recipe: str
    clips: tuple[int, ...]
    seeds: tuple[int, ...]
    schedule: str = "cosine"
    skips_tainted: bool = False
    """Leave arms untrained whose scores would be n/a† on every task anyway."""
    override: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataSpec:
    """Training data of an arm: set references, or a selection that the plan makes from one."""

    name: str
    shards: tuple[str, ...] = ()
    source: str | None = None
    select: Mapping[str, Any] = field(default_factory=dict)
    """Options of `stmae_data.select.make_selection`, by the words of `stmae-data select`."""


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """One row of the tables: pre-training on some data, or an init without training (`random`, a path)."""

    name: str
    data: str | None
    init: str | None
    scales: tuple[str, ...]
    unavailable: str | None = None
    """Why this row cannot be run; it stays in the tables as "not run"."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What every arm is measured by."""

    name: str
    kind: str
    train: tuple[str, ...]
    test: str
    recipe: str | None = None
    override: Mapping[str, Any] = field(default_factory=dict)
    scales: tuple[str, ...] = ()
    only_last_length: bool = False


@dataclass(frozen=True, slots=True)
class LeakSpec:
    """Which levels of sameness count as a leak, and what happens to an arm that has one."""

    check: tuple[str, ...] = ("id", "video", "overlap", "content")
    action: str = "mark"


@dataclass(frozen=True, slots=True)
class StudyFile:
    """A study as its author wrote it."""

    name: str
    question: str
    baselines: tuple[str, ...]
    alpha: float
    discordance: float
    seed_sd: float
    scales: tuple[ScaleSpec, ...]
    data: tuple[DataSpec, ...]
    arms: tuple[ArmSpec, ...]
    tasks: tuple[TaskSpec, ...]
    leaks: LeakSpec
    text: str = field(repr=False)

    def scale(self, name: str) -> ScaleSpec:
        """The scale of that name.

        Raises:
            StudyError: the file has no such scale.
        """
        return _named(self.scales, name, what="scale", study=self.name)

    def data_named(self, name: str) -> DataSpec:
        """The data of that name."""
        return _named(self.data, name, what="data", study=self.name)

    def task(self, name: str) -> TaskSpec:
        """The task of that name."""
        return _named(self.tasks, name, what="task", study=self.name)


def read_study(path: Path) -> StudyFile:
    """Read and check a study file.

    Raises:
        StudyError: it cannot be read, is not TOML, or says something a study cannot be.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read as a study ({error}); give the path of a TOML file.") from error
    return parse_study(text, where=path.name)


def parse_study(text: str, *, where: str = "study") -> StudyFile:
    """Read and check the text of a study file; `where` names it in messages."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{where} is not TOML: {error}; correct that line.") from error
    root = Table(table, where, "", ("study", "scale", "data", "arm", "task", "leaks"))
    head = root.table("study", ["name", "question", "baseline", "seeds", "equal", "alpha", "discordance", "seed_sd"])
    name = head.name_of("name")
    if head.text("equal", "clips") != "clips":
        raise StudyError(
            f"{where}: study.equal is {head.text('equal')!r}; arms are compared at equal 'clips' seen only."
        )
    seeds = head.numbers("seeds", (0, 1, 2))
    scales = tuple(_scale(root, key, seeds) for key in root.keys_of("scale"))
    data = tuple(_data(root, key) for key in root.keys_of("data"))
    scale_names, data_names = [scale.name for scale in scales], [each.name for each in data]
    arms = tuple(arm for entry in root.tables("arm", ARM_KEYS) for arm in _arms(entry, scale_names, data_names))
    tasks = tuple(_task(entry, scale_names) for entry in root.tables("task", TASK_KEYS))
    for what, values in (("scale", scales), ("arm", arms), ("task", tasks)):
        if not values:
            raise StudyError(f"{where} has no {what}; add one, as in the shipped study demo.toml.")
    arm_names = [arm.name for arm in arms]
    for what, names in (("arm", arm_names), ("task", [task.name for task in tasks])):
        for twice in sorted({each for each in names if names.count(each) > 1}):
            raise StudyError(f"{where}: two {what}s are called '{twice}'; give one of them another name.")
    baselines = head.texts("baseline", (arm_names[0],))
    for baseline in baselines:
        choose(baseline, arm_names, where=where, key="study.baseline")
    leaks = root.table("leaks", ("check", "action"))
    check = leaks.texts("check", LeakSpec().check)
    for level in check:
        choose(level, LEVELS, where=where, key="leaks.check")
    action = choose(leaks.text("action", "mark"), ACTIONS, where=where, key="leaks.action")
    return StudyFile(
        name=name,
        question=head.text("question", ""),
        baselines=baselines,
        alpha=head.share("alpha", 0.05),
        discordance=head.share("discordance", 0.125),
        seed_sd=head.share("seed_sd", 0.002),
        scales=scales,
        data=data,
        arms=arms,
        tasks=tasks,
        leaks=LeakSpec(check, action),
        text=text,
    )


SELECT_KEYS = ("where", "hashtags_of", "per_class", "samples", "share", "hours", "minus", "like", "seed")
ARM_KEYS = ("name", "data", "init", "scale", "available", "reason")
TASK_KEYS = ("name", "kind", "train", "test", "recipe", "override", "only")


def parse_clips(value: object, *, where: str, key: str) -> int:
    """A number of clips: 60000, "60k", "12.8M"."""
    count = 0.0
    if isinstance(value, int) and not isinstance(value, bool):
        count = value
    elif isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)([kM]?)", value)):
        # round: 12.8 * 1e6 is not a whole number of clips in binary.
        count = round(float(match[1]) * {"": 1, "k": 1_000, "M": 1_000_000}[match[2]], 6)
    if count < 1 or count != int(count):
        raise StudyError(f'{where}: {key} is {value!r}, wanted a number of clips such as 60000, "60k" or "12.8M".')
    return int(count)


def _scale(root: Table, name: str, seeds: tuple[int, ...]) -> ScaleSpec:
    table = root.table("scale", ("recipe", "clips", "schedule", "seeds", "tainted", "override"), name)
    value = table.value("clips")
    clips = [parse_clips(each, where=table.where, key=f"{table.path}.clips") for each in listed(value)]
    schedule = table.text("schedule", "cosine")
    if schedule != "cosine":
        raise StudyError(
            f"{table.where}: {table.path}.schedule is {schedule!r}; every length is a run of its own here, "
            'write schedule = "cosine".'
        )
    tainted = choose(table.text("tainted", "train"), ("train", "skip"), where=table.where, key=f"{table.path}.tainted")
    return ScaleSpec(
        name=checked_name(name, table.where, f"scale.{name}"),
        recipe=table.text("recipe"),
        clips=tuple(sorted(set(clips))),
        seeds=table.numbers("seeds", seeds),
        skips_tainted=tainted == "skip",
        override=flatten(table.mapping("override")),
    )


def _data(root: Table, name: str) -> DataSpec:
    table = root.table("data", ("shards", "from", *SELECT_KEYS), name)
    checked_name(name, table.where, table.path)
    select = {key: _select_value(table, key) for key in SELECT_KEYS if key in table.values}
    if ("shards" in table.values) == ("from" in table.values):
        raise StudyError(f"{table.where}: {table.path} needs either shards (as it is) or from (a selection of it).")
    if "shards" in table.values:
        if select:
            raise StudyError(f"{table.where}: {table.path}.{next(iter(select))} selects; write from instead of shards.")
        return DataSpec(name, shards=table.texts("shards"))
    if not set(select) - {"seed"}:
        raise StudyError(f"{table.where}: {table.path} selects nothing; add one of {', '.join(SELECT_KEYS)}.")
    return DataSpec(name, source=table.text("from"), select=select)


def _select_value(table: Table, key: str) -> str | int | float:
    """An option of a selection, as its type."""
    value = table.value(key)
    kinds = {"per_class": (int,), "samples": (int,), "seed": (int,), "share": (int, float), "hours": (int, float)}
    if type(value) not in kinds.get(key, (str,)):
        wanted = {int: "a whole number", float: "a number", str: "text"}[kinds.get(key, (str,))[-1]]
        raise StudyError(f"{table.where}: {table.path}.{key} is {value!r}, wanted {wanted}; change it.")
    found: str | int | float = value
    return found


def _arms(table: Table, scale_names: list[str], data_names: list[str]) -> list[ArmSpec]:
    scales = table.texts("scale", tuple(scale_names))
    for scale in scales:
        choose(scale, scale_names, where=table.where, key=f"{table.path}.scale")
    reason = None
    if table.values.get("available", True) is False:
        reason = table.text("reason")
    if "init" in table.values:
        if "data" in table.values:
            raise StudyError(
                f"{table.where}: {table.path} has data and init; an init is not trained, so drop one of them."
            )
        init = table.text("init")
        name = table.name_of("name", "scratch" if init == "random" else None)
        return [ArmSpec(name, None, init, scales, reason)]
    data = table.texts("data")
    if "name" in table.values:
        if len(data) != 1:
            raise StudyError(f"{table.where}: {table.path}.name names one arm, but data lists {len(data)}; drop name.")
        return [
            ArmSpec(
                table.name_of("name"),
                choose(data[0], data_names, where=table.where, key="arm.data"),
                None,
                scales,
                reason,
            )
        ]
    return [
        ArmSpec(each, choose(each, data_names, where=table.where, key="arm.data"), None, scales, reason)
        for each in data
    ]


def _task(table: Table, scale_names: list[str]) -> TaskSpec:
    only = Table(table.mapping("only"), table.where, f"{table.path}.only", ("scale", "clips"))
    scales = only.texts("scale", tuple(scale_names))
    for scale in scales:
        choose(scale, scale_names, where=table.where, key=f"{only.path}.scale")
    clips = choose(only.text("clips", "all"), ("all", "last"), where=table.where, key=f"{only.path}.clips")
    return TaskSpec(
        name=table.name_of("name"),
        kind=choose(table.text("kind"), KINDS, where=table.where, key=f"{table.path}.kind"),
        train=_reference(table, "train", "train"),
        test=_reference(table, "test", "val")[0],
        recipe=table.text("recipe") if "recipe" in table.values else None,
        override=flatten(table.mapping("override")),
        scales=scales,
        only_last_length=clips == "last",
    )


def _reference(table: Table, key: str, split: str) -> tuple[str, ...]:
    """{shards, split} as set references with their split."""
    part = Table(table.mapping(key, required=True), table.where, f"{table.path}.{key}", ("shards", "split"))
    wanted = part.text("split", split)
    try:
        refs = [SetRef.parse(text, default_split=wanted) for text in part.texts("shards")]
    except UsageError as error:
        raise StudyError(f"{table.where}: {part.path}.shards: {error}") from error
    return tuple(f"{ref.set_name}:{ref.split}" + (f"/{ref.selection}" if ref.selection else "") for ref in refs)


def _named(values: Collection[_Named], name: str, *, what: str, study: str) -> _Named:
    for value in values:
        if value.name == name:
            return value
    names = ", ".join(value.name for value in values)
    raise StudyError(f"Study {study} has no {what} '{name}'; wanted one of {names}.")
