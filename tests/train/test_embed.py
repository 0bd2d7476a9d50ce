"""Embeddings: one unit vector per clip, the same every time, readable in SQL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stmae_data.catalog import sql
from stmae_data.files import read_table
from stmae_data.records import SetRef
from stmae_data.select import make_selection
from stmae_data.shards import open_set
from stmae_train.config import Recipe
from stmae_train.embed import EmbedRequest, embed, table_name
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


def test_vectors_of_another_split_have_a_table_of_their_own() -> None:
    assert table_name("runs/mae-s0", "web") == table_name("mae-s0.safetensors", "web:train") == "mae-s0"
    assert table_name("mae-s0", "web:val") == "mae-s0-val"
    assert table_name("mae-s0", "web:train/clean@0.5") == "mae-s0-clean"


def test_the_vectors_that_were_written_choose_clips_that_differ(small_world: Path, small_recipe: Recipe) -> None:
    embed(EmbedRequest(small_world, "random", "tiny", small_recipe, "chosen", device="cpu"))
    few = make_selection(small_world, "few", source=SetRef("tiny"), samples=4, is_diverse=True, embedding="chosen")
    more = make_selection(small_world, "more", source=SetRef("tiny"), samples=9, is_diverse=True, embedding="chosen")
    listed = [[row["clip_id"] for row in read_table(made.path)] for made in (few, more)]
    assert (few.num_clips, more.num_clips) == (4, 9) and set(listed[0]) < set(listed[1])


def test_a_name_that_is_no_file_is_refused(small_world: Path, small_recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="cannot be a table's"):
        embed(EmbedRequest(small_world, "random", "tiny", small_recipe, "../x", device="cpu"))
