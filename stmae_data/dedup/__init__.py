"""Duplicates and leaks: compare at every level, decide with evidence, then let `rewrite` apply it.

The order of things: pools of clips (`clips`) -> pairs (`levels`, `content`) -> decisions (`compare`, `decide`) -> books, then rewrite.
Evaluation always wins; within training the better copy stays; between training sets nothing goes, each set stands alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stmae_data import files
from stmae_data.catalog import locked_select
from stmae_data.dedup.clips import EVALUATION_SPLITS, Pool, is_table, pool_of, sealed_sets
from stmae_data.dedup.compare import Found, compare, count_pairs
from stmae_data.dedup.decide import Choice, Edge, has_news, verdicts, write_books
from stmae_data.dedup.policy import AGAINST_LEVELS, WITHIN_LEVELS, Policy, check_levels, load_policy
from stmae_data.dedup.reports import DedupReport, FoundPair, LeakCounts, LeakReport
from stmae_data.errors import SetError, UsageError
from stmae_data.fingerprint import ALGORITHM
from stmae_data.records import LEVELS, SetRef, set_folder
from stmae_data.rewrite import RewriteReport, finish_rewrite, refuse_on_store, rewrite
from stmae_data.shards import open_set

__all__ = [
    "DedupReport",
    "FoundPair",
    "LeakCounts",
    "LeakReport",
    "Policy",
    "count_leaks",
    "dedup",
    "leaks",
    "load_policy",
]

Progress = Callable[[str, int, int], None]


def dedup(
    workspace: Path,
    sets: Sequence[str] = (),
    *,
    against: Sequence[str] = (),
    levels: Sequence[str] | None = None,
    policy: Path | None = None,
    to: str | None = None,
    dry_run: bool = False,
    is_within: bool = True,
    show: Callable[[DedupReport], None] | None = None,
    progress: Progress | None = None,
) -> DedupReport:
    """Find leaks and duplicates, write decisions with evidence, apply them.

    Args:
        workspace: where the sets stand.
        sets: sets (SET, all splits that are not for evaluation) or SET:SPLIT; every sealed set unless given.
        against: evaluation sets (SET for all its evaluation splits, or SET:SPLIT); those of every sealed set unless given.
        levels: levels of sameness; all between training and evaluation, and bytes, stream, id, content within training, unless given.
        policy: TOML file with thresholds.
        to: name of a new set; the source then stays as it is. One set only.
        dry_run: find and report, write nothing.
        is_within: look within training too.
        show: told what was found, before anything is written; while it runs every clip still stands.
        progress: told (stage, done, total).

    Raises:
        UsageError: unknown level or policy key, or `to` with several sets; SetError: a set is missing, damaged or has changed, or one
        named in `against` has no evaluation split; SourceError: a table cannot be read or has no rows;
        Busy: somebody else writes a set; StorageError: the disk.
    """
    rules = load_policy(policy)
    wanted = tuple(levels) if levels is not None else None
    between = check_levels(wanted, AGAINST_LEVELS)
    within = (
        tuple(level for level in check_levels(wanted, WITHIN_LEVELS) if level in WITHIN_LEVELS) if is_within else ()
    )
    names = list(dict.fromkeys(sets)) or sealed_sets(workspace)
    if not names:
        raise SetError(f"There is no sealed set in {workspace}; build one: stmae-data build.")
    set_names = list(dict.fromkeys(SetRef.parse(name).set_name for name in names))
    if to is not None and len(set_names) != 1:
        raise UsageError(f"--to writes one new set, but {len(set_names)} are named; name one set.")
    for name in set_names:
        _settle(workspace, name, is_dry_run=dry_run)
    training = [pool for name in names for pool in _training_pools(workspace, name)]
    evaluation = _others(
        _evaluation_pools(workspace, against or sealed_sets(workspace), is_named=bool(against)),
        training,
        is_named=bool(against),
    )
    filtered = _filtered(workspace, training, rules) if is_within else {}
    found = compare(training, evaluation, rules, between=between, within=within, filtered=filtered, progress=progress)
    runs = {name: _run_id(name, training, evaluation, between, within, rules) for name in set_names}
    going = {name: found.choices_of(name) for name in set_names}
    report = DedupReport(
        pairs=found.reported(),
        num_groups=len({choice.other for choice in found.choices}),
        num_going=len({choice.number for choice in found.choices}) + len(found.filtered),
        not_comparable={found.clips[number].clip_id: why for number, why in found.not_comparable.items()},
        is_applied=False,
        policy=rules.version,
        across=found.across,
        logs=found.logs,
        near_misses=found.missed(),
        filtered=Counter((found.pools[found.clips[number].pool].label, name) for number, name in found.filtered),
    )
    if show is not None:
        show(report)
    if dry_run:
        return report
    changing = [name for name in set_names if going[name] or found.filtered_of(name) or to is not None]
    refuse_on_store(workspace, changing)
    written = tuple(_apply(workspace, name, found, going[name], runs[name], rules, to, progress) for name in changing)
    for name in set_names:
        if name not in changing:
            _note(workspace, name, found, runs[name], rules)
    return replace(report, is_applied=bool(written), sets=written)


def leaks(
    workspace: Path,
    train: Sequence[str],
    against: Sequence[str],
    *,
    levels: Sequence[str] | None = None,
    policy: Path | None = None,
    fix: bool = False,
    progress: Progress | None = None,
) -> LeakReport:
    """Count what training data shares with evaluation data: distinct rows of both sides, at every level.

    Args:
        workspace: where sets and selections stand.
        train: SET[:SPLIT][/SELECTION], or paths of annotation tables (csv, json, parquet).
        against: the same for evaluation; a bare SET means all its evaluation splits.
        levels: levels to look at; all unless given. What a side cannot be compared at is null.
        policy: TOML file with thresholds.
        fix: write decisions and take the leaking clips out of the training sets.
        progress: told (stage, done, total).

    Raises:
        UsageError, SetError, SourceError: an unknown level, set or table, an evaluation set without an evaluation split or without clips, a table without rows.
    """
    rules = load_policy(policy)
    wanted = check_levels(tuple(levels) if levels is not None else None, AGAINST_LEVELS)
    training = [pool_of(workspace, text) for text in train]
    evaluation = _evaluation_pools(workspace, against, is_named=True)
    counted = count_pairs(training, evaluation, rules, levels=wanted, progress=progress)
    for pair in counted:
        if not pair.num_evaluation:
            raise SetError(
                f"{pair.evaluation} holds no clip, so nothing can be compared; name another split or selection."
            )
    if not fix or not any(count and count[0] for pair in counted for count in pair.levels.values()):
        return LeakReport(tuple(counted))
    for pool in training:
        if pool.reference is None or pool.selection is not None:
            raise UsageError(f"{pool.label} is no set that clips could be taken out of; name sets to fix.")
    fixed = dedup(
        workspace,
        [f"{pool.set_name}:{pool.reference.split}" for pool in training if pool.reference],
        against=against,
        levels=wanted,
        policy=policy,
        is_within=False,
        progress=progress,
    )
    return LeakReport(tuple(counted), fixed)


def count_leaks(
    workspace: Path, train: SetRef, evaluation: SetRef, levels: Sequence[str] = LEVELS
) -> dict[str, dict[str, int]]:
    """Distinct clips shared at each level: {level: {"train": n, "eval": n}}; levels that cannot be compared are left out."""
    wanted = check_levels(tuple(levels), AGAINST_LEVELS)
    counted = count_pairs([pool_of(workspace, train)], [pool_of(workspace, evaluation)], Policy(), levels=wanted)
    return {
        level: {"train": count[0], "eval": count[1]} for level, count in counted[0].levels.items() if count is not None
    }


def _filtered(workspace: Path, training: Sequence[Pool], rules: Policy) -> dict[int, dict[str, str]]:
    """Rows of each training pool that meet a filter of the policy, with the name of the first they meet."""
    found: dict[int, dict[str, str]] = {}
    for number, pool in enumerate(training):
        for name, condition in rules.filters:
            # On lines of its own, so that a comment at its end closes nothing of ours.
            query = f"SELECT row_id FROM written WHERE (\n{condition}\n)"
            for row in locked_select(workspace, query, sets=[pool.set_name]).rows:
                found.setdefault(number, {}).setdefault(row[0], name)
    return found


def _settle(workspace: Path, name: str, *, is_dry_run: bool) -> None:
    """Finish what a killed rewrite left, before anything is compared."""
    if is_dry_run and (set_folder(workspace, name) / "meta" / "rewrite.json").exists():
        raise SetError(f"A rewrite of {name} was interrupted; finish it first: stmae-data dedup {name}")
    finish_rewrite(workspace, name)


def _training_pools(workspace: Path, text: str) -> list[Pool]:
    reference = SetRef.parse(text)
    if reference.selection is not None:
        raise UsageError(f"{text} is a selection, which owns no clips; name its set, {reference.set_name}.")
    if ":" in text:
        return [pool_of(workspace, reference)]
    splits = [
        split
        for split in open_set(workspace, reference.set_name, books_only=True).splits
        if split not in EVALUATION_SPLITS
    ]
    return [pool_of(workspace, SetRef(reference.set_name, split)) for split in splits]


def _evaluation_pools(workspace: Path, texts: Sequence[str], *, is_named: bool) -> list[Pool]:
    """Evaluation pools, each content once: a set made with --to repeats those of its source.

    Raises:
        SetError: a set is named that has no evaluation split: nothing would be compared, and nothing found.
    """
    pools: dict[str, Pool] = {}
    for text in texts:
        if ":" in text or "/" in text or is_table(text):
            found = [pool_of(workspace, text, default_split="val")]
        else:
            splits = open_set(workspace, text, books_only=True).splits
            found = [pool_of(workspace, SetRef(text, split)) for split in splits if split in EVALUATION_SPLITS]
            if not found and is_named:
                raise SetError(
                    f"Set {text} has no evaluation split (it has {', '.join(splits) or 'none'}); name the split to compare with as {text}:SPLIT."
                )
        for pool in found:
            pools.setdefault(pool.digest, pool)
    return list(pools.values())


def _others(evaluation: Sequence[Pool], training: Sequence[Pool], *, is_named: bool) -> list[Pool]:
    """Evaluation pools that are not cleaned themselves: compared with itself a split would lose every clip.

    Raises:
        UsageError: the same clips are named on both sides.
    """
    ours = {pool.digest: pool.label for pool in training}
    both = [(ours[pool.digest], pool.label) for pool in evaluation if pool.digest in ours]
    if both and is_named:
        raise UsageError(
            f"{both[0][0]} and {both[0][1]} hold the same clips, every one would go; name another set to keep clean."
        )
    return [pool for pool in evaluation if pool.digest not in ours]


def _run_id(
    name: str,
    training: Sequence[Pool],
    evaluation: Sequence[Pool],
    between: Sequence[str],
    within: Sequence[str],
    rules: Policy,
) -> str:
    """Named by what is compared and how, never by time: a rerun after a kill is the same run.

    Only splits count, not whole sets, so that rewriting one set does not rename the run of the next.
    """
    facts = {
        "name": name,
        "training": sorted((pool.label, pool.digest) for pool in training if pool.set_name == name),
        "evaluation": sorted(pool.digest for pool in evaluation),
        "levels": [list(between), list(within)],
        "policy": rules.version,
        "algorithm": ALGORITHM,
    }
    return "dedup-" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _apply(
    workspace: Path,
    name: str,
    found: Found,
    choices: Sequence[Choice],
    run_id: str,
    rules: Policy,
    to: str | None,
    progress: Progress | None,
) -> RewriteReport:
    """Decisions of one set, then its rewrite."""
    source = set_folder(workspace, name)

    def prepare(folder: Path) -> None:
        _write_books(folder, source, name, found, choices, run_id, rules)

    known = [pool.found.digest for pool in found.pools if pool.set_name == name and pool.found is not None]
    return rewrite(
        workspace,
        name,
        verdicts(choices, found.filtered_of(name), run_id=run_id, pools=found.pools, clips=found.clips),
        run_id=run_id,
        to=to,
        expected_digest=known[0] if known else None,
        prepare=prepare,
        progress=progress,
    )


def _note(workspace: Path, name: str, found: Found, run_id: str, rules: Policy) -> None:
    """Where nothing goes, near misses and clips that cannot be compared are written all the same, once."""
    folder = set_folder(workspace, name)
    if has_news(folder, *_notes(found, name), found.clips, rules):
        with files.lock(folder / "meta" / "LOCK", what=f"Set {name}"):
            _write_books(folder, folder, name, found, [], run_id, rules)


def _notes(found: Found, name: str) -> tuple[list[Edge], dict[int, str]]:
    """Near misses and clips that cannot be compared of the training splits of one set."""
    pools = {number for number, pool in enumerate(found.pools[: found.num_training]) if pool.set_name == name}
    return (
        [edge for edge in found.near_misses if found.clips[edge.a].pool in pools],
        {number: why for number, why in found.not_comparable.items() if found.clips[number].pool in pools},
    )


def _write_books(
    folder: Path, source: Path, name: str, found: Found, choices: Sequence[Choice], run_id: str, rules: Policy
) -> None:
    near_misses, not_comparable = _notes(found, name)
    write_books(
        folder,
        source=source,
        run_id=run_id,
        policy=rules,
        pools=found.pools,
        clips=found.clips,
        choices=choices,
        filtered=found.filtered_of(name),
        near_misses=near_misses,
        not_comparable=not_comparable,
    )
