"""Everything a study calls outside of its room, in one value, so that a test can hand in its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae_data.records import SetRef
from stmae_train.config import Recipe
from stmae_train.errors import StudyError

LeakCounts = Mapping[str, Mapping[str, int] | None]

__all__ = ["DataFacts", "Doors", "LeakCounts", "PictureJob", "PretrainJob", "TaskJob", "standard_doors"]


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What identifies the data behind one reference."""

    reference: str
    set_digest: str
    selection_digest: str | None
    num_clips: int

    @property
    def digests(self) -> tuple[str, str]:
        """Set and selection digest; the second is empty for a whole split."""
        return self.set_digest, self.selection_digest or ""


@dataclass(frozen=True, slots=True)
class PretrainJob:
    """One pre-training: the words of `stmae_train.pretrain.PretrainRequest`."""

    workspace: Path
    shards: tuple[str, ...]
    recipe: Recipe
    run_dir: Path
    seed: int
    clips: int
    workers: int
    checkpoint_every: int | None
    resume: bool
    watch: Callable[[Any], None] | None = None
    """Called with every logged record."""


@dataclass(frozen=True, slots=True)
class TaskJob:
    """One probe or fine-tuning; `kind` is finetune, linear, attentive or knn."""

    workspace: Path
    init: str
    train_shards: tuple[str, ...]
    eval_shards: str
    kind: str
    recipe: Recipe
    run_dir: Path
    seed: int
    workers: int
    watch: Callable[[Any], None] | None = None


@dataclass(frozen=True, slots=True)
class PictureJob:
    """Reconstructions of a few fixed test clips, for the report."""

    workspace: Path
    weights: Path
    shards: str
    out: Path
    ratios: tuple[float, ...]
    count: int = 1


@dataclass(frozen=True, slots=True)
class Doors:
    """The functions a study needs from other rooms.

    Attributes:
        recipe: name to recipe.
        facts: reference to digests and counts; raises when there is no such sealed set or selection.
        count_leaks: (workspace, train, evaluation, levels) to {level: {"train": n, "eval": n}}, distinct clips, None for a
            level that cannot be compared; a key `any` counts the clips that any of the levels names.
        make_selection: (workspace, name, options) to the reference of the immutable selection.
        pretrain: trains and returns the path of the final weights.
        run_task: probes or fine-tunes and returns the metrics.
        draw_pictures: writes PNGs and, last, `captions.json` into a folder.
    """

    recipe: Callable[[str], Recipe]
    facts: Callable[[Path, SetRef], DataFacts]
    count_leaks: Callable[[Path, SetRef, SetRef, tuple[str, ...]], LeakCounts]
    make_selection: Callable[[Path, str, Mapping[str, Any]], str]
    pretrain: Callable[[PretrainJob], Path]
    run_task: Callable[[TaskJob], Mapping[str, Any]]
    draw_pictures: Callable[[PictureJob], None]


def standard_doors() -> Doors:
    """The rooms themselves, imported when first called: planning needs no torch."""
    return Doors(
        recipe=_recipe,
        facts=_facts,
        count_leaks=_count_leaks,
        make_selection=_make_selection,
        pretrain=_pretrain,
        run_task=_run_task,
        draw_pictures=_draw_pictures,
    )


def _recipe(name: str) -> Recipe:
    from stmae_train import recipes
    from stmae_train.config import read_recipe

    return read_recipe(Path(name)) if name.endswith(".toml") else recipes.recipe(name)


def _facts(workspace: Path, ref: SetRef) -> DataFacts:
    import json

    from stmae_data import catalog

    seal = catalog.find_books(workspace, [ref.set_name])[0].seal
    if seal is None:
        raise StudyError(
            f"Set '{ref.set_name}' is not sealed, so nothing can be proven about it. Finish it: stmae-data build {ref.set_name}"
        )
    if ref.split not in seal["splits"]:
        raise StudyError(
            f"Set '{ref.set_name}' has no split '{ref.split}', found {', '.join(sorted(seal['splits']))}; correct the study."
        )
    num_clips, selection_digest = int(seal["splits"][ref.split]["samples"]), None
    if ref.selection is not None:
        path = workspace / "selections" / f"{ref.selection}.json"
        try:
            selection = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StudyError(
                f"Selection '{ref.selection}' cannot be read ({error}). Make it: stmae-data select {ref.selection} "
                f"--from {ref.set_name}:{ref.split}"
            ) from error
        num_clips, selection_digest = int(selection["num_clips"]), str(selection["digest"])
    reference = f"{ref.set_name}:{ref.split}" + (f"/{ref.selection}" if ref.selection else "")
    return DataFacts(reference, str(seal["digest"]), selection_digest, num_clips)


def _count_leaks(workspace: Path, train: SetRef, evaluation: SetRef, levels: tuple[str, ...]) -> LeakCounts:
    from stmae_data import dedup

    counts: dict[str, Mapping[str, int] | None] = {**dedup.count_leaks(workspace, train, evaluation, levels)}
    if sum(1 for each in counts.values() if each and each["eval"]) > 1:
        counts["any"] = _joint_count(workspace, train, evaluation, levels)
    return counts


def _joint_count(workspace: Path, train: SetRef, evaluation: SetRef, levels: tuple[str, ...]) -> Mapping[str, int]:
    """Distinct clips that any of the levels names: levels overlap, so their counts do not add up."""
    from stmae_data.dedup.clips import pool_of
    from stmae_data.dedup.compare import compare
    from stmae_data.dedup.policy import Policy

    found = compare([pool_of(workspace, train)], [pool_of(workspace, evaluation)], Policy(), between=levels, within=())
    return {"train": len({edge.a for edge in found.between}), "eval": len({edge.b for edge in found.between})}


def _make_selection(workspace: Path, name: str, options: Mapping[str, Any]) -> str:
    from stmae_data import select

    values = dict(options)
    source = SetRef.parse(values.pop("source"))
    values |= {key: SetRef.parse(values[key]) for key in ("minus", "like") if key in values}
    select.make_selection(workspace, name, source=source, **values)
    return f"{source.set_name}:{source.split}/{name}"


def _pretrain(job: PretrainJob) -> Path:
    from stmae_train.pretrain import PretrainRequest, pretrain

    return pretrain(
        PretrainRequest(
            workspace=job.workspace,
            shards=job.shards,
            recipe=job.recipe,
            run_dir=job.run_dir,
            seed=job.seed,
            clips=job.clips,
            workers=job.workers,
            checkpoint_every=job.checkpoint_every,
            resume=job.resume,
        ),
        watch=job.watch,
    ).weights


def _run_task(job: TaskJob) -> Mapping[str, Any]:
    if job.kind == "finetune":
        from stmae_train.finetune import FinetuneRequest, finetune

        return finetune(
            FinetuneRequest(
                workspace=job.workspace,
                init=job.init,
                train_shards=job.train_shards,
                eval_shards=job.eval_shards,
                recipe=job.recipe,
                run_dir=job.run_dir,
                seed=job.seed,
                workers=job.workers,
                resume=True,
            ),
            watch=job.watch,
        )
    from stmae_train.probe import ProbeRequest, probe

    return probe(
        ProbeRequest(
            workspace=job.workspace,
            init=job.init,
            train_shards=job.train_shards,
            eval_shards=job.eval_shards,
            kind=job.kind,
            recipe=job.recipe,
            run_dir=job.run_dir,
            seed=job.seed,
            workers=job.workers,
            resume=True,
        ),
        watch=job.watch,
    )


def _draw_pictures(job: PictureJob) -> None:
    from stmae_train.pictures import PictureRequest, picture

    picture(
        PictureRequest(
            workspace=job.workspace,
            weights=str(job.weights),
            shards=job.shards,
            out=job.out,
            count=job.count,
            ratios=job.ratios,
        )
    )
