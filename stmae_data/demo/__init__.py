"""The small world: rendered videos in official layouts, with planted leaks, duplicates and broken files."""

from stmae_data.demo.scene import MOTIONS
from stmae_data.demo.world import WorldSummary, render_world

__all__ = ["MOTIONS", "WorldSummary", "render_world"]
