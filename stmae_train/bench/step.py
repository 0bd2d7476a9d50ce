"""Time of one pre-training step: ours and transformers' VideoMAE, the same weights, clips, masks, loss and optimizer.

Variants run in turn within every round, so that what else the machine does meets all of them; a figure is the median over the rounds. Before
anything is timed the predictions of all variants are compared: a step that computes something else is no peer.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stmae_train.bench.machine import machine, peak_memory, versions
from stmae_train.checkpoint import Weights
from stmae_train.config import ModelConfig
from stmae_train.convert import write_weights
from stmae_train.errors import ModelError
from stmae_train.masks import draw_masks
from stmae_train.model import MaskedAutoencoder
from stmae_train.recipes import lineage_options, recipe
from stmae_train.runlog import autocast, forward_flops

__all__ = ["DTYPES", "SIZES", "StepBench", "bench_step"]

# PERFORMANCE.md, "What the benchmarks must show": pixels of the clip and clips in a batch.
SIZES = {"112": (112, 8), "224": (224, 2), "tiny": (32, 2)}
DTYPES = ("fp32", "bf16")
PEERS = {"transformers eager": "eager", "transformers SDPA": "sdpa"}
CLOSE = 1e-4  # largest difference of predictions in fp32
WARMUP_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class StepBench:
    """What to time.

    Attributes:
        sizes: keys of `SIZES`.
        dtypes: of `DTYPES`; bf16 is autocast.
        rounds: timed rounds after two that are not counted.
        threads: of the CPU.
        device: `cpu`, `cuda`.
    """

    sizes: tuple[str, ...] = ("112", "224")
    dtypes: tuple[str, ...] = DTYPES
    rounds: int = 7
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for what, given, known in (("size", self.sizes, tuple(SIZES)), ("dtype", self.dtypes, DTYPES)):
            unknown = [each for each in given if each not in known]
            if unknown or not given:
                raise ModelError(
                    f"There is no {what} '{', '.join(unknown) or 'at all'}' to time; choose of {', '.join(known)}."
                )
        if self.rounds < 1 or self.threads < 1:
            raise ModelError(
                f"{self.rounds} rounds on {self.threads} threads cannot be timed; ask for at least one of each."
            )


@dataclass(frozen=True, slots=True)
class _Variant:
    """One way to do the step: `loss` runs the forward pass, `predict` gives what is compared."""

    name: str
    model: nn.Module
    loss: Callable[[], Tensor]
    predict: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer


def bench_step(wanted: StepBench, *, watch: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
    """Time every size and dtype; milliseconds per step.

    Args:
        wanted: what to time.
        watch: told (cell, rounds done, rounds).

    Raises:
        ModelError: a peer predicts something else than we do.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(wanted.threads)
    try:
        cells = [
            cell for size in wanted.sizes for dtype in wanted.dtypes for cell in _cells(wanted, size, dtype, watch)
        ]
    finally:
        torch.set_num_threads(before)
    return {
        "machine": machine(threads=wanted.threads, device=wanted.device),
        "versions": versions("torch", "transformers"),
        "settings": _settings(wanted),
        "cells": cells,
    }


def _cells(
    wanted: StepBench, size: str, dtype: str, watch: Callable[[str, int, int], None] | None
) -> list[dict[str, Any]]:
    """Two cells: against the peers, and of visible tokens against all tokens in the encoder."""
    device = torch.device(wanted.device)
    config, batch = _config(size)
    clips = torch.randn(
        (batch, 3, config.num_frames, config.crop_px, config.crop_px), generator=torch.Generator().manual_seed(1)
    ).to(device)
    mask = draw_masks(config, seed=1, sample_numbers=range(batch))
    ours = MaskedAutoencoder(config, seed=1)
    variants = [_ours("ours", ours, clips, mask)]
    variants.append(_ours("dense", MaskedAutoencoder(replace(config, dense_encoder=True), seed=1), clips, mask))
    peers = [_peer(name, kind, ours, clips, mask) for name, kind in PEERS.items()]
    variants += [peer for peer in peers if peer is not None]
    largest = _compare(variants, dtype=dtype, device=device)
    label = f"{config.crop_px} px, {batch} clips"
    times = _timed(
        variants,
        wanted,
        dtype=dtype,
        device=device,
        tell=lambda n: watch and watch(f"{label}, {dtype}", n, wanted.rounds),
    )
    memory = {each.name: _peak_mb(each, dtype=dtype, device=device) for each in variants}
    medians = {name: round(1000 * statistics.median(each), 3) for name, each in times.items()}
    spread = {name: [round(1000 * min(each), 3), round(1000 * max(each), 3)] for name, each in times.items()}
    common = {"size": label, "dtype": dtype, "unit": "ms per step", "ours": medians["ours"]}
    against = {name: medians.get(name) for name in PEERS}
    found = [value for value in against.values() if value is not None]
    dense = forward_flops(replace(config, dense_encoder=True)).total / forward_flops(config).total
    return [
        {
            **common,
            "what": "pre-training step against transformers' VideoMAE",
            "peers": against,
            "absent": [name for name, value in against.items() if value is None],
            "ratio_to_best_peer": round(min(found) / medians["ours"], 4) if found else None,
            "largest_difference": largest,
            "range": {name: spread[name] for name in spread if name != "dense"},
            "peak_memory_mb": {name: memory[name] for name in memory if name != "dense"},
        },
        {
            **common,
            "what": "pre-training step, encoder of visible tokens against all tokens",
            "peers": {"dense encoder": medians["dense"]},
            "absent": [],
            "ratio_to_best_peer": round(medians["dense"] / medians["ours"], 4),
            "ratio_of_operations": round(dense, 4),
            "range": {name: spread[name] for name in ("ours", "dense")},
            "peak_memory_mb": {name: memory[name] for name in ("ours", "dense")},
        },
    ]


def _config(size: str) -> tuple[ModelConfig, int]:
    """VideoMAE's shape at the size: encoder 384 x 12, decoder 192 x 4, tube masks of 90 %; transformers' eps of the last norm."""
    crop_px, batch = SIZES[size]
    shape = {"width": 384, "depth": 12, "heads": 6, "decoder_width": 192, "decoder_depth": 4, "decoder_heads": 3}
    clip: dict[str, Any] = {"crop_px": crop_px, "size": "s16", "last_norm_eps": 1e-5}
    if size == "tiny":
        shape |= {"width": 64, "depth": 2, "heads": 2, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
        clip |= {"num_frames": 4, "patch_px": 8, "mask_ratio": 0.75}
    return ModelConfig(**(lineage_options("videomae") | shape | clip)), batch


def _ours(name: str, model: MaskedAutoencoder, clips: Tensor, mask: Tensor) -> _Variant:
    model.to(clips.device).train()
    return _Variant(
        name, model, lambda: model(clips, mask=mask).loss, lambda: model(clips, mask=mask).prediction, _optimizer(model)
    )


def _peer(name: str, kind: str, ours: MaskedAutoencoder, clips: Tensor, mask: Tensor) -> _Variant | None:
    """transformers' model with our weights and one way to attend; None where transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    transformers: Any = importlib.import_module("transformers")
    base = recipe("videomae-s16")
    data = replace(base.data, num_frames=ours.config.num_frames, crop_px=ours.config.crop_px)
    weights = Weights(
        {key: each.cpu() for key, each in ours.state_dict().items()},
        replace(base, model=ours.config, data=data),
        {"kind": "pretrain"},
    )
    with tempfile.TemporaryDirectory(prefix="stmae-bench-") as folder:
        write_weights(weights, Path(folder), form="transformers")
        transformers.utils.logging.disable_progress_bar()
        model = transformers.VideoMAEForPreTraining.from_pretrained(folder, attn_implementation=kind)
    model.to(clips.device).train()
    frames_first = clips.transpose(1, 2).contiguous()  # [B, T, C, H, W]
    hidden = mask.to(clips.device)
    return _Variant(
        name,
        model,
        lambda: model(frames_first, bool_masked_pos=hidden).loss,
        lambda: model(frames_first, bool_masked_pos=hidden).logits,
        _optimizer(model),
    )


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The same for all, with a rate of zero: every step of every variant computes on the weights they share."""
    trained = [each for each in model.parameters() if each.requires_grad]
    return torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.95), weight_decay=0.05, fused=True)


@torch.no_grad()
def _compare(variants: Sequence[_Variant], *, dtype: str, device: torch.device) -> float:
    """The largest difference between our predictions and a peer's, over all values.

    Raises:
        ModelError: more than rounding.
    """
    wanted, largest = variants[0].predict(), 0.0
    for variant in variants[2:]:
        difference = float((variant.predict() - wanted).abs().max())
        if not difference <= CLOSE:
            raise ModelError(
                f"{variant.name} predicts other values than we do with the same weights (up to {difference:.1e} apart, wanted at most {CLOSE:g}), "
                f"so its time means nothing; check the version of transformers."
            )
        largest = max(largest, difference)
    with autocast(device, dtype):
        rough = [variant.predict().float() for variant in variants if variant.name != "dense"]
    if not all(bool(torch.isfinite(each).all()) for each in rough):
        raise ModelError(f"A prediction in {dtype} is not finite; time another dtype.")
    return largest


def _timed(
    variants: Sequence[_Variant],
    wanted: StepBench,
    *,
    dtype: str,
    device: torch.device,
    tell: Callable[[int], object],
) -> dict[str, list[float]]:
    """Seconds of every round, by variant."""
    times: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for number in range(wanted.rounds + WARMUP_ROUNDS):
        for variant in variants:
            _wait(device)
            start = time.perf_counter()
            _step(variant, dtype=dtype, device=device)
            if number >= WARMUP_ROUNDS:
                times[variant.name].append(time.perf_counter() - start)
        tell(max(0, number + 1 - WARMUP_ROUNDS))
    return times


def _step(variant: _Variant, *, dtype: str, device: torch.device) -> None:
    with autocast(device, dtype):
        loss = variant.loss()
    loss.backward()  # type: ignore[no-untyped-call]
    variant.optimizer.step()
    variant.optimizer.zero_grad(set_to_none=True)
    _wait(device)


def _peak_mb(variant: _Variant, *, dtype: str, device: torch.device) -> float | None:
    """Most memory of one more step in MB (10^6 bytes), above the weights and the optimizer's state that stand before it: what the device
    says, on a CPU the kernel's high-water mark of this process. None where the kernel does not tell."""
    with peak_memory(device) as peak:
        _step(variant, dtype=dtype, device=device)
    return None if peak.num_bytes is None else round(peak.num_bytes / 1e6, 1)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _settings(wanted: StepBench) -> dict[str, Any]:
    return {
        "rounds": wanted.rounds,
        "warmup_rounds": WARMUP_ROUNDS,
        "figure": "median over the rounds; variants in turn within a round",
        "step": "forward, backward, fused AdamW; same weights, clips and masks",
        "ratio": "best peer / ours; above 1 ours is faster",
        "peak_memory_mb": "of one step, above the weights and the optimizer's state, in 10^6 bytes",
    }
