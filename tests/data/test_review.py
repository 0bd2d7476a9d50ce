"""What a person is shown of a comparison: every clip that goes and the one it goes for, frames that face each other, tables too."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from stmae_data.dedup import dedup


def copies(small_sets: ModuleType, count: int) -> list[dict[str, Any]]:
    """Rows of one file, best first."""
    clips = [
        small_sets.clip("train", number, source="same", stream="same", side=240 - number) for number in range(count)
    ]
    return [each | {"clip_id": f"web_{at:032x}", "row_id": f"{at:032x}"} for at, each in enumerate(clips)]


def test_a_clip_that_goes_for_another_than_the_best_is_reported(
    workspace: Path, small_sets: ModuleType, tmp_path: Path
) -> None:
    clips = copies(small_sets, 3)
    best, second, third = (clip["clip_id"] for clip in clips)
    small_sets.make(workspace, "three", clips)
    policy = tmp_path / "policy.toml"
    policy.write_text(f'not_duplicates = [["{best}", "{second}"], ["{best}", "{third}"]]\n')
    report = dedup(workspace, ["three"], levels=["bytes", "stream"], policy=policy, dry_run=True)
    assert report.num_going == 1
    assert [(pair.a, pair.b, pair.level, pair.keep) for pair in report.pairs] == [
        (third, second, "bytes", second),
        (third, second, "stream", second),
    ]
    usual = dedup(workspace, ["three"], levels=["bytes"], dry_run=True)
    assert [(pair.a, pair.keep) for pair in usual.pairs] == [(second, best), (third, best)]
