"""Configs: frozen values that say everything about a run, read from and written to TOML."""

from stmae_train.config.text import from_toml, override, override_values, read_changes, read_recipe, to_toml
from stmae_train.config.values import (
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    ProbeConfig,
    Recipe,
    lr_factor,
)

__all__ = [
    "DataConfig",
    "FinetuneConfig",
    "ModelConfig",
    "OptimConfig",
    "ProbeConfig",
    "Recipe",
    "from_toml",
    "lr_factor",
    "override",
    "override_values",
    "read_changes",
    "read_recipe",
    "to_toml",
]
