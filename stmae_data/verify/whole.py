"""What only the whole set shows: the seal, the plan, outcomes, pointers, keys across shards, leftovers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.errors import Reason
from stmae_data.records import SCHEMA_VERSION
from stmae_data.shards import ShardInfo, set_digest
from stmae_data.verify.damage import DamageCode, Findings

__all__ = ["Seal", "check_leftovers", "check_plan", "check_rows", "check_seal_counts", "read_seal"]

_SEAL = "meta/set.json"
_PLAN = "meta/plan.parquet"


@dataclass(frozen=True, slots=True)
class Seal:
    """`set.json` as far as it can be trusted: the shard lines, each with its split, and the document."""

    document: Mapping[str, Any]
    lines: tuple[dict[str, Any], ...]


def read_seal(folder: Path, name: str | None, findings: Findings) -> Seal | None:
    """Read and check `set.json` by itself; None when nothing can be compared with it."""
    path = folder / "meta" / "set.json"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        findings.add(DamageCode.SEAL_MISSING, _SEAL, "the set is not sealed: run the same stmae-data build again")
        return None
    except OSError as error:
        findings.add(DamageCode.UNREADABLE, _SEAL, f"cannot be read: {error.strerror or error}")
        return None
    try:
        document = json.loads(data)
        lines = tuple(
            {**line, "split": split}
            for split, content in sorted(document["splits"].items())
            for line in content["shards"]
        )
        digest = set_digest(_info(line) for line in lines)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        findings.add(
            DamageCode.SEAL_UNREADABLE, _SEAL, f"is not the seal of a set ({type(error).__name__}: {error!s:.120})"
        )
        return None
    for problem in _seal_problems(document, data, name):
        findings.add(DamageCode.SEAL_FIELDS, _SEAL, problem)
    if digest != document.get("digest"):
        findings.add(
            DamageCode.DIGEST_MISMATCH,
            _SEAL,
            f"digest of its shard lines is {digest}, it says {document.get('digest')!r:.80}",
        )
    return Seal(document, lines)


def _info(line: Mapping[str, Any]) -> ShardInfo:
    """A shard line, refused when a value is not of its kind."""
    info = ShardInfo(
        line["name"],
        line["split"],
        line["sha256"],
        line["bytes"],
        line["samples"],
        line["seconds"],
        line["ledger_sha256"],
    )
    sound = (
        isinstance(info.name, str)
        and re.fullmatch(r"[a-z]+-\d{6}", info.name) is not None
        and info.name.rpartition("-")[0] == info.split
        and all(re.fullmatch(r"[0-9a-f]{64}", each) for each in (info.sha256, info.ledger_sha256))
        and all(type(each) is int and each >= 0 for each in (info.bytes, info.samples))
        and isinstance(info.seconds, int | float)
        and math.isfinite(info.seconds)
    )
    if not sound:
        raise ValueError(f"the line of shard {info.name!r:.80} is not one")
    return info


def _seal_problems(document: Mapping[str, Any], data: bytes, name: str | None) -> list[str]:
    problems = []
    # Written by one function in one form: any other byte was changed afterwards.
    canonical = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if canonical.encode(errors="replace") != data:
        problems.append("is not in the form it was written in: it was changed afterwards")
    if document.get("schema_version") != SCHEMA_VERSION:
        problems.append(f"schema_version is {document.get('schema_version')!r:.40}, wanted {SCHEMA_VERSION}")
    if name is not None and document.get("name") != name:
        problems.append(f"name is {document.get('name')!r:.80}, its folder is {name}")
    if type(document.get("version")) is not int or document["version"] < 1:
        problems.append(f"version is {document.get('version')!r:.40}, wanted a whole number from 1")
    for field in ("created_from", "recipe", "counts", "parents", "versions"):
        if not isinstance(document.get(field), list if field == "parents" else dict):
            problems.append(f"{field} is missing or of another kind")
    if "seal_sha256" in document:
        rest = {key: value for key, value in document.items() if key != "seal_sha256"}
        own = files.sha256_text(json.dumps(rest, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        if own != document["seal_sha256"]:
            problems.append("does not match its own seal_sha256: it was changed afterwards")
    for split, content in document["splits"].items():
        for field, digits in (("samples", 0), ("seconds", 2)):
            total = sum(line[field] for line in content["shards"])
            if not isinstance(content.get(field), int | float) or round(abs(content[field] - total), digits) > 0.01:
                problems.append(f"split {split} says {content.get(field)!r:.40} {field}, its shards add up to {total}")
    return problems


def check_leftovers(folder: Path, seal: Seal | None, findings: Findings) -> None:
    """Temp files, an unfinished rewrite, tars and ledgers that no seal knows."""
    for path in sorted(folder.rglob(f"{files.TEMP_PREFIX}*")):
        findings.add(
            DamageCode.TEMP_FILE, str(path.relative_to(folder)), "left by a killed writer; run the last command again"
        )
    if (folder / "meta" / "rewrite.json").exists():
        findings.add(
            DamageCode.REWRITE_UNFINISHED,
            "meta/rewrite.json",
            "a rewrite was interrupted; run the same command again to finish it",
        )
    if (folder / "meta" / "retry.parquet").exists():
        findings.add(
            DamageCode.REWRITE_UNFINISHED,
            "meta/retry.parquet",
            "a retry was interrupted; run the same stmae-data build again to finish it",
        )
    if seal is None:
        return
    known = {line["name"] for line in seal.lines}
    for path in sorted(folder.glob("*.tar")):
        if path.stem not in known and not path.name.startswith(files.TEMP_PREFIX):
            findings.add(
                DamageCode.SHARD_UNLISTED, path.name, "set.json does not list it; build again to seal or remove it"
            )
    for path in sorted((folder / "meta" / "ledger").glob("*.parquet")):
        if path.stem not in known and not path.name.startswith(files.TEMP_PREFIX):
            findings.add(
                DamageCode.LEDGER_UNLISTED,
                f"meta/ledger/{path.name}",
                "set.json does not list its shard; build again to seal it",
            )


def check_rows(connection: Any, findings: Findings) -> None:
    """Outcomes, keys across shards and duplicate pointers, over the table `book` of all readable ledgers."""
    _check_outcomes(connection, findings)
    repeated = connection.execute(
        """SELECT clip_id, list(DISTINCT file ORDER BY file) FROM book WHERE outcome = 'written' AND clip_id IS NOT NULL
           GROUP BY clip_id HAVING count(DISTINCT file) > 1 ORDER BY ALL"""
    ).fetchall()
    for clip_id, names in repeated:
        findings.add(DamageCode.KEY_REPEATED, f"{names[0]}.tar", f"key {clip_id!r:.120} stands in {', '.join(names)}")
    _check_pointers(connection, findings)


def _check_outcomes(connection: Any, findings: Findings) -> None:
    rows = connection.execute(
        "SELECT file, outcome, reason, clip_id IS NULL, count(*), min(row_id) FROM book GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    known = {str(reason): reason.outcome for reason in Reason}
    for name, outcome, reason, is_unnamed, count, row_id in rows:
        wanted = "written" if reason is None else known.get(reason)
        if outcome != wanted or (outcome == "written" and is_unnamed):
            found = f"outcome {outcome!r:.40}, reason {reason!r:.40}"
            findings.add(
                DamageCode.OUTCOME_UNSOUND,
                f"meta/ledger/{name}.parquet",
                f"{count} rows have {found}, row {row_id!r:.40} first; wanted one outcome and a reason of the list that goes with it",
            )
    strays = connection.execute(
        """SELECT file, min(row_id), count(*) FROM book WHERE shard IS DISTINCT FROM file
           OR split IS DISTINCT FROM regexp_extract(file, '^[a-z]+') GROUP BY file ORDER BY file"""
    ).fetchall()
    for name, row_id, count in strays:
        findings.add(
            DamageCode.PLACE_WRONG,
            f"meta/ledger/{name}.parquet",
            f"{count} rows name another shard or split, {row_id!r:.40} first",
        )


def _check_pointers(connection: Any, findings: Findings) -> None:
    """A duplicate must lead, over other duplicates if need be, to a clip that was not itself dropped as one.

    A decision may point into another set; then the decision's evidence stands for the pointer.
    """
    rows = connection.execute(
        """SELECT file, row_id, clip_id, duplicate_of, decision_id IS NOT NULL FROM book
           WHERE reason = 'duplicate' OR duplicate_of IS NOT NULL ORDER BY ALL"""
    ).fetchall()
    ends = {
        row[0]
        for row in connection.execute(
            """SELECT DISTINCT clip_id FROM book WHERE clip_id IN (SELECT duplicate_of FROM book)
               AND reason IS DISTINCT FROM 'duplicate'"""
        ).fetchall()
    }
    onward = {clip_id: target for _, _, clip_id, target, _ in rows if clip_id is not None and clip_id != target}
    for name, row_id, _, target, is_decided in rows:
        seen: set[str] = set()
        place = target
        while place is not None and place not in ends and place in onward and place not in seen:
            seen.add(place)
            place = onward[place]
        if place not in ends and not (is_decided and place is not None and place not in seen):
            findings.add(
                DamageCode.DUPLICATE_POINTER,
                f"meta/ledger/{name}.parquet",
                f"row {row_id!r:.40} is a duplicate of {target!r:.120}, which leads to no clip of this set",
            )


def check_seal_counts(connection: Any, seal: Seal, is_complete: bool, findings: Findings) -> None:
    """`set.json`'s numbers against the ledgers; nothing is compared when a ledger could not be read."""
    if not is_complete:
        return
    outcomes = dict(connection.execute("SELECT outcome, count(*) FROM book GROUP BY ALL").fetchall())
    reasons = dict(
        connection.execute("SELECT reason, count(*) FROM book WHERE reason IS NOT NULL GROUP BY ALL").fetchall()
    )
    counts = seal.document.get("counts")
    counts = counts if isinstance(counts, dict) else {}
    found = {kind: outcomes.get(kind, 0) for kind in ("written", "dropped", "failed")}
    found["planned"] = sum(outcomes.values())
    for kind, number in found.items():
        if counts.get(kind) != number:
            findings.add(
                DamageCode.COUNTS_DISAGREE, _SEAL, f"says {counts.get(kind)!r:.40} {kind}, the ledgers hold {number}"
            )
    told = counts.get("reasons")
    if not isinstance(told, dict) or {key: value for key, value in told.items() if value} != reasons:
        findings.add(DamageCode.COUNTS_DISAGREE, _SEAL, f"says reasons {told!r:.120}, the ledgers hold {reasons}")
    totals = connection.execute(
        """SELECT file, count(*) FILTER (outcome = 'written'),
                  coalesce(sum(stored_seconds) FILTER (outcome = 'written'), 0) FROM book GROUP BY file"""
    ).fetchall()
    per_shard = {name: (samples, float(seconds)) for name, samples, seconds in totals}
    for line in seal.lines:
        samples, seconds = per_shard.get(line["name"], (0, 0.0))
        if samples != line["samples"] or abs(seconds - line["seconds"]) > 0.01:
            findings.add(
                DamageCode.COUNTS_DISAGREE,
                f"meta/ledger/{line['name']}.parquet",
                f"holds {samples} written clips of {seconds:.3f} s, set.json says {line['samples']} of {line['seconds']} s",
            )


def check_plan(connection: Any, folder: Path, seal: Seal, is_complete: bool, findings: Findings) -> None:
    """Every planned row has exactly one outcome, and no ledger row is unplanned."""
    import duckdb

    path = folder / "meta" / "plan.parquet"
    if not path.is_file():
        findings.add(DamageCode.PLAN_MISSING, _PLAN, "is missing, so nothing says what was to be in the set")
        return
    created = seal.document.get("created_from")
    wanted = created.get("plan_sha256") if isinstance(created, dict) else None
    own = files.sha256_file(path)
    if wanted is not None and own != wanted:
        findings.add(DamageCode.PLAN_SHA256, _PLAN, f"sha256 is {own}, set.json says {wanted!r:.80}")
        return
    try:
        connection.execute("CREATE TABLE plan AS SELECT row_id, shard FROM read_parquet(?)", [str(path)])
    except duckdb.Error as error:
        findings.add(
            DamageCode.PLAN_UNREADABLE, _PLAN, f"cannot be read as a table ({str(error).splitlines()[0]:.120})"
        )
        return
    if not is_complete:
        return
    rows = connection.execute(
        """SELECT coalesce(p.row_id, b.row_id), coalesce(p.n, 0), coalesce(b.n, 0)
           FROM (SELECT row_id, count(*) AS n FROM plan GROUP BY 1) p
           FULL JOIN (SELECT row_id, count(*) AS n FROM book GROUP BY 1) b USING (row_id)
           WHERE coalesce(p.n, 0) != 1 OR coalesce(b.n, 0) != 1 ORDER BY ALL"""
    ).fetchall()
    for row_id, planned, told in rows:
        findings.add(
            DamageCode.PLAN_UNMET,
            _PLAN,
            f"row {row_id!r:.40} is planned {planned} times and has {told} outcomes; wanted one each",
        )
