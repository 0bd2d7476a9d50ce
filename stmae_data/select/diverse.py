"""Clips that are unlike one another, by the vectors that `stmae-train embed` wrote.

Farthest point first (Gonzalez, "Clustering to Minimize the Maximum Intercluster Distance", 1985; "k-center greedy"): the first clip is
given, each next one is the clip whose nearest among those taken is farthest, by the cosine of their vectors. Every number of clips is
then the beginning of every larger one. Where it stops at a cosine, no two clips taken are as alike as that, and each clip left is as
alike as that to one taken: near-duplicates by meaning are gone, without chains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stmae_data import files
from stmae_data.errors import SelectionError, SetError
from stmae_data.shards import ShardSet

__all__ = ["METHOD", "Embedding", "farthest_first", "find_embedding", "read_vectors"]

METHOD: Final = "farthest point first by cosine, in steps of 2^-20"
"""What selections say they were made by."""

_STEP: Final = 2.0**20
"""Vectors are rounded to whole numbers of this scale: products and their sums stay below 2^53, so they are exact in float64 and the
choice does not depend on machine, BLAS or threads."""

_CHUNK_ROWS: Final = 4096


@dataclass(frozen=True, slots=True)
class Embedding:
    """A table of vectors of one set: `sets/<set>/meta/embeddings/<name>.parquet`."""

    name: str
    path: Path
    sha256: str


def find_embedding(found: ShardSet, name: str | None) -> Embedding:
    """The table of this name, or the only one there is.

    Raises:
        SelectionError: there is none, or several and no name.
    """
    known = {path.stem: path for path in sorted((found.folder / "meta" / "embeddings").glob("[!.]*.parquet"))}
    if not known:
        raise SelectionError(
            f"Set {found.name} has no embeddings to tell clips apart by; write them: stmae-train embed {found.name} --init RUN."
        )
    if name is None and len(known) > 1:
        raise SelectionError(f"Set {found.name} has the embeddings {', '.join(known)}; name one: --embedding NAME.")
    chosen = name if name is not None else next(iter(known))
    if chosen not in known:
        raise SelectionError(f"Set {found.name} has no embeddings {chosen!r}; it has {', '.join(known)}.")
    return Embedding(chosen, known[chosen], files.sha256_file(known[chosen]))


def read_vectors(embedding: Embedding, clip_ids: Sequence[str]) -> NDArray[np.float64]:
    """Vectors [N, D] of these clips, in their order, divided by their length and rounded to whole numbers of 2^-20.

    Raises:
        SelectionError: a clip has no vector, or one of another width, without direction or not finite; SetError: the table is damaged.
    """
    import duckdb

    place = {clip_id: number for number, clip_id in enumerate(clip_ids)}
    found: NDArray[np.float64] | None = None
    is_there = np.zeros(len(clip_ids), np.bool_)
    connection = files.connect()
    try:
        cursor = connection.execute("SELECT clip_id, vector FROM read_parquet(?)", [str(embedding.path)])
        while rows := cursor.fetchmany(_CHUNK_ROWS):
            mine = [(place[clip_id], vector) for clip_id, vector in rows if clip_id in place]
            if not mine:
                continue
            numbers, vectors = [number for number, _ in mine], _units([vector for _, vector in mine], embedding)
            if found is None:
                found = np.zeros((len(clip_ids), vectors.shape[1]))
            if vectors.shape[1] != found.shape[1]:
                raise SelectionError(f"The vectors of {embedding.path} differ in width; write them again.")
            found[numbers] = vectors
            is_there[numbers] = True
    except duckdb.Error as error:
        raise SetError(f"{embedding.path} cannot be read ({str(error).splitlines()[0]}); write it again.") from error
    finally:
        connection.close()
    missing = int((~is_there).sum())
    if found is None or missing:
        raise SelectionError(
            f"{missing} of {len(clip_ids)} clips have no vector in the embeddings {embedding.name}, {clip_ids[int(np.argmin(is_there))]} first; "
            "write them for the whole set: stmae-train embed."
        )
    return found


def _units(vectors: Sequence[Any], embedding: Embedding) -> NDArray[np.float64]:
    try:
        given = np.array(vectors, dtype=np.float64)  # [n, D]
    except (TypeError, ValueError) as error:
        raise SelectionError(f"The vectors of {embedding.path} differ in width; write them again.") from error
    lengths = np.linalg.norm(given, axis=1, keepdims=True) if given.ndim == 2 else np.zeros(1)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise SelectionError(f"A vector of {embedding.path} has no direction; write them again.")
    return np.asarray(np.rint(given / lengths * _STEP))


def farthest_first(vectors: NDArray[np.float64], *, max_cosine: float | None = None) -> Iterator[int]:
    """Rows of `vectors` [N, D], whole numbers as `read_vectors` makes them: row 0, then always the one least like those before it.

    Of equal ones the first row comes first. Ends where every row left is at least `max_cosine` to one before it. Each step is one
    product of all rows with one: K rows of N cost K * N * D multiplications.
    """
    if not len(vectors):
        return
    nearest = np.full(len(vectors), -np.inf)  # [N], to those taken
    row = 0
    while True:
        yield row
        np.maximum(nearest, vectors @ vectors[row], out=nearest)
        nearest[row] = np.inf
        row = int(np.argmin(nearest))
        if np.isinf(nearest[row]) or (max_cosine is not None and nearest[row] >= max_cosine * _STEP**2):
            return
