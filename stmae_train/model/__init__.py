"""Masked autoencoders of one family: an encoder of visible tokens, a light decoder, weights by published names."""

from stmae_train.model.autoencoder import MaskedAutoencoder, Reconstruction
from stmae_train.model.blocks import Attention, Block
from stmae_train.model.encoder import Decoder, Encoder
from stmae_train.model.initial import initialise
from stmae_train.model.names import deflate_kernel, inflate_kernel, load_upstream, upstream_names, upstream_state

__all__ = [
    "Attention",
    "Block",
    "Decoder",
    "Encoder",
    "MaskedAutoencoder",
    "Reconstruction",
    "deflate_kernel",
    "inflate_kernel",
    "initialise",
    "load_upstream",
    "upstream_names",
    "upstream_state",
]
