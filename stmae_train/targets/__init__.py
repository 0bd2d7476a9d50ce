"""Targets: what a hidden token should become, and how far a prediction is from it."""

from stmae_train.targets.teachers import PcaTarget, Teacher, TokenTarget, fit_pca, read_teacher
from stmae_train.targets.vectors import (
    HOG_BINS,
    HOG_CELL_PX,
    hog,
    normalise_all_colours,
    normalise_per_colour,
    pixel_vectors,
    reconstruction_loss,
    target_frame_index,
    target_size,
    target_vectors,
)

__all__ = [
    "HOG_BINS",
    "HOG_CELL_PX",
    "PcaTarget",
    "Teacher",
    "TokenTarget",
    "fit_pca",
    "hog",
    "normalise_all_colours",
    "normalise_per_colour",
    "pixel_vectors",
    "read_teacher",
    "reconstruction_loss",
    "target_frame_index",
    "target_size",
    "target_vectors",
]
