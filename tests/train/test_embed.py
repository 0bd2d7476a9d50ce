"""Embeddings: one unit vector per clip, the same every time, readable in SQL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stmae_data.catalog import sql
from stmae_data.files import read_table
from stmae_data.shards import open_set
from stmae_train.config import Recipe
from stmae_train.embed import EmbedRequest, embed
from stmae_train.errors import ConfigError


def test_every_clip_has_one_unit_vector_that_sql_can_compare(small_world: Path, small_recipe: Recipe) -> None:
    request = EmbedRequest(small_world, "random", "tiny", small_recipe, "frozen", views=2, device="cpu")
    made = embed(request)
    rows = read_table(made.path)
    ledgers = open_set(small_world, "tiny").ledgers("train")
    clips = read_table(ledgers, "SELECT clip_id FROM book WHERE outcome = 'written' ORDER BY clip_id")
    assert [row["clip_id"] for row in rows] == [row["clip_id"] for row in clips]
    assert (made.num_clips, made.width) == (24, small_recipe.model.width)
    vectors = np.array([row["vector"] for row in rows])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    nearest = sql(
        small_world,
        """SELECT a.clip_id, arg_max(b.clip_id, list_cosine_similarity(a.vector, b.vector)) FROM embedding AS a
           JOIN embedding AS b ON a.model = b.model GROUP BY ALL""",
    )
    assert len(nearest.rows) == 24 and all(ours == theirs for ours, theirs in nearest.rows)
    before = made.path.read_bytes()
    assert embed(request).path.read_bytes() == before


def test_a_name_that_is_no_file_is_refused(small_world: Path, small_recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="cannot be a table's"):
        embed(EmbedRequest(small_world, "random", "tiny", small_recipe, "../x", device="cpu"))
