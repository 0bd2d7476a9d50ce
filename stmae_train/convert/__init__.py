"""Weights of other codebases: recognised by their keys, read as ours, written back, inspected."""

from stmae_train.convert.files import open_file
from stmae_train.convert.inflate import INFLATIONS, deflate, encoder_of, inflate
from stmae_train.convert.inspection import inspect_weights
from stmae_train.convert.layouts import LINEAGES, plain_names, recognise, to_upstream
from stmae_train.convert.read import is_ours, read_weights
from stmae_train.convert.start import Start, start_model
from stmae_train.convert.write import FORMATS, write_weights

__all__ = [
    "FORMATS",
    "INFLATIONS",
    "LINEAGES",
    "Start",
    "deflate",
    "encoder_of",
    "inflate",
    "inspect_weights",
    "is_ours",
    "open_file",
    "plain_names",
    "read_weights",
    "recognise",
    "start_model",
    "to_upstream",
    "write_weights",
]
