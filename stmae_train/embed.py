"""Embeddings of a frozen encoder: one vector per clip, for semantic near-duplicates and diverse choices in SQL.

The data side stays free of torch: it reads the table that is written here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stmae_train.config import Recipe
from stmae_train.convert import Start
from stmae_train.distributed import start_world
from stmae_train.errors import ConfigError
from stmae_train.evaluate import collect, frame_rule, warn_of_stills
from stmae_train.loader import DEFAULT_RANGE_BYTES, ReadOptions, SweepLoader, open_sources
from stmae_train.runlog import autocast, write_vectors

__all__ = ["EmbedRequest", "Embedded", "embed", "table_name"]


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What to embed with what.

    Attributes:
        workspace: folder of the sets.
        init: a weights file, a run folder or run name, or `random`.
        shards: a set reference, SET[:SPLIT][/SELECTION].
        recipe: clips and precision; the model too where `init` is random, else that of the weights.
        name: of the table; letters, digits, `.`, `_` and `-`.
        views: clips per video, evenly spaced; their vectors are averaged.
        seed: of the initial weights where `init` is random.
        workers, device, prefetch, store_cache_bytes: as in pre-training.
        changed: dotted names of what the user changed in the recipe; of model and clips these alone hold beside those of the weights: crop and
            frames (positions are interpolated), and how clips are drawn.
    """

    workspace: Path
    init: str
    shards: str
    recipe: Recipe
    name: str
    views: int = 1
    seed: int = 0
    workers: int = 0
    device: str | None = None
    prefetch: int = 4
    store_cache_bytes: int = DEFAULT_RANGE_BYTES
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Embedded:
    """The table that was written: `num_clips` unit vectors of `width` numbers."""

    path: Path
    num_clips: int
    width: int


def embed(request: EmbedRequest) -> Embedded:
    """Write `sets/<set>/meta/embeddings/<name>.parquet`: clip_id, model, vector (unit length, float32).

    A vector is the mean over the encoder's tokens and over the views, divided by its length, so that a scalar product is a cosine.

    Raises:
        ConfigError: a name that could be no file's. CheckpointError, SetError: what cannot be used, in one sentence.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", request.name) is None:
        raise ConfigError(f"The name {request.name!r} cannot be a table's; wanted letters, digits, '.', '_' and '-'.")
    start = Start.of(
        request.init, workspace=request.workspace, recipe=request.recipe, seed=request.seed, changed=request.changed
    )
    recipe, device = start.recipe, start_world(request.device).device
    encoder = start.autoencoder().to(device).eval().requires_grad_(False)
    sources = open_sources(request.workspace, [request.shards])
    warn_of_stills(recipe.model, sources)
    if sources[0].is_foreign:
        raise ConfigError(
            f"{request.shards} is no set, so there is no place for its vectors; build a set from it first: stmae-data build."
        )

    @torch.no_grad()
    def mean_token(clips: Tensor) -> Tensor:
        with autocast(device, recipe.probe.precision):
            tokens: Tensor = encoder.encode(clips).float()
        return tokens.mean(dim=1)

    sweep = SweepLoader(
        request.workspace,
        sources,
        rule=frame_rule(recipe.data),
        views=request.views,
        options=ReadOptions(request.workers, prefetch=request.prefetch, store_cache_bytes=request.store_cache_bytes),
    )
    found = collect(mean_token, sweep, recipe.model, crops=1, device=device).mean(dim=1)  # [N, D]
    vectors = F.normalize(found, dim=-1).numpy()
    clip_ids = np.concatenate([source.index.clip_ids[source.rows] for source in sources])
    (source,) = sources
    path = source.ledgers[0].parent.parent / "embeddings" / f"{request.name}.parquet"
    write_vectors(path, request.name, dict(zip(map(str, clip_ids), vectors.tolist(), strict=True)))
    return Embedded(path, len(vectors), vectors.shape[1])


def table_name(init: str, shards: str) -> str:
    """The weights' name, and that of a split or selection: its vectors are not to take the place of the training split's.

    >>> table_name("runs/mae-s0/weights.safetensors", "web:val/clean")
    'weights-val-clean'
    """
    parts = re.fullmatch(r"[^:/@]+(?::([^:/@]+))?(?:/([^:/@]+))?(?:@.*)?", shards)
    more = [part for part in parts.groups() if part and part != "train"] if parts else []
    return "-".join([Path(init).name.removesuffix(".safetensors"), *more])
