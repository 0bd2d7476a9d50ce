"""How many clips of each kind follow another set's profile."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping
from typing import TypeVar

__all__ = ["apportion"]

Kind = TypeVar("Kind", bound=Hashable)


def apportion(wanted: Mapping[Kind, int], there: Mapping[Kind, int], total: int | None) -> dict[Kind, int]:
    """Clips of each kind in the proportions `wanted`, at most `there` of each; kinds that are not there at all are left out.

    Args:
        wanted: clips of each kind in the model, above 0.
        there: clips of each kind to choose from.
        total: how many in all, apportioned by Webster's method, so that no kind loses by a larger total; fewer where a kind runs
            out. None for as many as keep the proportions.
    """
    counts = {kind: count for kind, count in wanted.items() if there.get(kind)}
    if total is None:
        # In units of the model: how many times over its counts are there, limited by the scarcest kind.
        times = min((there[kind] / count for kind, count in counts.items()), default=0.0)
        return {kind: int(times * count + 1e-9) for kind, count in counts.items()}
    given = dict.fromkeys(counts, 0)
    turns = [(-float(count), str(kind), kind) for kind, count in counts.items()]
    heapq.heapify(turns)
    for _ in range(total if turns else 0):
        _, name, kind = turns[0]
        if given[kind] == there[kind]:
            break
        given[kind] += 1
        heapq.heapreplace(turns, (-counts[kind] / (2 * given[kind] + 1), name, kind))
    return given
