"""Tables and pages of a run: what it read, how every test clip scored, the card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_train.config import Recipe

__all__ = ["SCORE_COLUMNS", "cost_facts", "data_entry", "foreign_entry", "write_card", "write_scores", "write_vectors"]

SCORE_COLUMNS = {
    "clip_id": "VARCHAR",
    "label": "INTEGER",
    "top5": "INTEGER[]",
    "p_label": "DOUBLE",
    "seed": "BIGINT",
    "correct": "BOOLEAN",
}


def write_scores(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `scores.parquet`: one row per test clip, in clip order."""
    files.commit_table(path, rows, SCORE_COLUMNS, point="scores", order_by="clip_id")


def write_vectors(path: Path, model: str, vectors: Mapping[str, Sequence[float]]) -> None:
    """Write one vector per clip id: clip_id, model, vector."""
    rows = [{"clip_id": clip_id, "model": model, "vector": vector} for clip_id, vector in vectors.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"clip_id": "VARCHAR", "model": "VARCHAR", "vector": "FLOAT[]"}
    files.commit_table(path, rows, columns, point="vectors", order_by="clip_id")


def data_entry(
    *,
    reference: str,
    role: str,
    digest: str,
    set_digest: str,
    version: int,
    layout: str,
    clip_ids: Sequence[str],
    ledgers: Sequence[Path],
    clips_drawn: int | None = None,
) -> dict[str, Any]:
    """One line of `data.json`.

    Args:
        reference: SET[:SPLIT][/SELECTION][@WEIGHT].
        role: `train` or `eval`.
        digest: of the selection where one is named, else of the set.
        set_digest, version, layout: of the set.
        clip_ids: the samples in use.
        ledgers: of the split; they know which video a clip is from.
        clips_drawn: clips that training draws from this set, for repeats per video.
    """
    rows = files.read_table(
        list(ledgers),
        "SELECT clip_id, coalesce(platform_id, clip_id) AS video, platform, license FROM book WHERE outcome = 'written'",
    )
    wanted = set(clip_ids)
    rows = [row for row in rows if row["clip_id"] in wanted]
    videos = len({row["video"] for row in rows})
    name, _, weight = reference.partition("@")
    _, _, selection = name.partition("/")
    return {
        "reference": reference,
        "role": role,
        "digest": digest,
        "set_digest": set_digest,
        "selection_digest": digest if selection else None,
        "weight": float(weight or 1),
        "version": version,
        "layout": layout,
        "clips": len(clip_ids),
        "unique_videos": videos,
        "sources": dict(sorted(Counter(str(row["platform"]) for row in rows).items())),
        "licenses": dict(sorted(Counter(str(row["license"] or "unknown") for row in rows).items())),
        "clips_drawn": clips_drawn,
        "repeats_per_video": None if clips_drawn is None else round(clips_drawn / max(videos, 1), 3),
    }


def foreign_entry(
    *,
    reference: str,
    role: str,
    digest: str,
    layout: str,
    clips: int,
    shards: Sequence[str],
    left_out: Mapping[str, str],
    clips_drawn: int | None = None,
) -> dict[str, Any]:
    """The line of `data.json` of tars of other tools: what can be said of them, and that it is not proven.

    Args:
        reference, role, digest, clips_drawn: as in `data_entry`; the digest is of the headers of the tars.
        layout: `original` or `image`.
        clips: samples in use.
        shards: paths of the tars.
        left_out: samples that cannot be read, and why.
    """
    _, _, weight = reference.rpartition(".tar")[2].partition("@")
    return {
        "reference": reference,
        "role": role,
        "digest": digest,
        "set_digest": None,
        "selection_digest": None,
        "weight": float(weight or 1),
        "version": None,
        "layout": layout,
        "is_foreign": True,
        "shards": list(shards),
        "left_out": dict(left_out),
        "clips": clips,
        "unique_videos": clips,
        "sources": {"foreign tars": clips},
        "licenses": {"unknown": clips},
        "clips_drawn": clips_drawn,
        "repeats_per_video": None if clips_drawn is None else round(clips_drawn / max(clips, 1), 3),
    }


def cost_facts(cost: Mapping[str, Any], execution: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run cost and how it was trained, as lines of a card: `cost.json` and the `execution` of `run.json`."""
    ways = [f"{execution['processes']} x {execution['precision']}"]
    ways += [str(execution["sharding"])] if execution["sharding"] else []
    ways += ["compiled blocks"] if execution["compiled"] else []
    ways += ["recomputed activations"] if execution["recompute_activations"] else []
    ways += [f"running mean of the weights at {execution['ema_decay']:g}"] if execution["ema_decay"] else []
    spent = f"{cost['seconds']:,.0f} s; processor {cost['cpu_seconds']:,.0f} s, GPU {cost['gpu_seconds']:,.0f} s"
    spent += f"; {cost['bytes_read']:,} bytes read, {cost['memory_bytes'] / 2**30:.2f} GiB at the peak of a process"
    return [("Cost", spent), ("Trained", ", ".join(ways))]


def write_card(
    path: Path, *, title: str, recipe: Recipe, entries: Sequence[Mapping[str, Any]], facts: Sequence[tuple[str, str]]
) -> None:
    """Write `CARD.md`: what data, how it was drawn, what came out, how to load it."""
    data = recipe.data
    sampling = {
        "aligned": f"starts on multiples of 4, stride {data.frame_stride} at {data.fps:g} fps",
        "published": "real-valued starts, spacing as the published code draws it",
        "segments": f"one frame out of each of {data.num_frames} equal parts of the video",
    }[data.sampling]
    lines = [f"# {title}", "", f"Recipe `{recipe.name}`: {recipe.source}", "", "## Data", ""]
    lines += ["| reference | role | clips | videos | digest | sources | licences |", "|---|---|---|---|---|---|---|"]
    for entry in entries:
        sources, licenses = (
            ", ".join(f"{name} {count}" for name, count in entry[key].items()) for key in ("sources", "licenses")
        )
        lines.append(
            f"| {entry['reference']} | {entry['role']} | {entry['clips']} | {entry['unique_videos']} | {entry['digest'][:12]} "
            f"| {sources} | {licenses} |"
        )
    lines += ["", "Videos are not part of this folder; their licences are those of their sources.", "", "## How", ""]
    lines += [f"- Clips: {data.num_frames} frames of {data.crop_px} px; {sampling}."]
    lines += [f"- {name}: {value}" for name, value in facts]
    files.commit_bytes(path, ("\n".join(lines) + "\n").encode(), point="card")
