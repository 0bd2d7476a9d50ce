"""Views: which frames and which part of the picture a draw takes, what is done to them, and the pixels that come out."""

from stmae_train.views.augment import mix_clips, perturb_clips, step_seed
from stmae_train.views.colour import Jitter, jitter_clips, random_jitter
from stmae_train.views.draws import (
    LAYER_STEP,
    START_STREAM,
    Boxes,
    FrameRule,
    center_boxes,
    clip_frames,
    eval_frames,
    philox,
    random_boxes,
    uniforms,
)
from stmae_train.views.pixels import render, render_pictures

__all__ = [
    "LAYER_STEP",
    "START_STREAM",
    "Boxes",
    "FrameRule",
    "Jitter",
    "center_boxes",
    "clip_frames",
    "eval_frames",
    "jitter_clips",
    "mix_clips",
    "perturb_clips",
    "philox",
    "random_boxes",
    "random_jitter",
    "render",
    "render_pictures",
    "step_seed",
    "uniforms",
]
