"""From shard sets to checkpoints, scores and studies. Start reading at `stmae_train.pretrain`."""

__all__ = ["__version__"]

__version__ = "0.1.0"
