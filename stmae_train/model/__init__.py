"""Masked autoencoders of one family: an encoder of visible tokens, a light decoder, weights by published names."""

from stmae_train.model.autoencoder import MaskedAutoencoder, Reconstruction
from stmae_train.model.blocks import Attention, Block
from stmae_train.model.counts import outline, parameter_counts
from stmae_train.model.encoder import Decoder, Encoder
from stmae_train.model.initial import initialise
from stmae_train.model.names import (
    deflate_kernel,
    from_upstream,
    inflate_kernel,
    load_upstream,
    published_names,
    upstream_names,
    upstream_state,
)

__all__ = [
    "Attention",
    "Block",
    "Decoder",
    "Encoder",
    "MaskedAutoencoder",
    "Reconstruction",
    "deflate_kernel",
    "from_upstream",
    "inflate_kernel",
    "initialise",
    "load_upstream",
    "outline",
    "parameter_counts",
    "published_names",
    "upstream_names",
    "upstream_state",
]
