"""From video files to verified shard sets. Start reading at `stmae_data.build`. Works without torch."""

__all__ = ["__version__"]

__version__ = "0.1.0"
