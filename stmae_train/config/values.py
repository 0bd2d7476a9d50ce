"""The config values: one frozen dataclass per part of a run, checked when made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stmae_train.config.checks import check_choices, check_positive, check_rising, check_share
from stmae_train.errors import ConfigError

__all__ = ["DataConfig", "FinetuneConfig", "ModelConfig", "OptimConfig", "ProbeConfig", "Recipe", "lr_factor"]

Lineage = Literal["mae_st", "pyslowfast", "videomae", "mae"]
Positions = Literal["separable", "joint", "sincos-1d", "sincos-2d", "sincos-3d"]
LrRule = Literal["absolute", "per-256-videos", "per-256-clips"]
Precision = Literal["fp32", "bf16", "fp16"]  # fp16 scales its losses, so that small gradients survive


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A masked autoencoder: its shape, its mask, its target, and the habits of the codebase it follows.

    `lineage` names the published codebase whose initialisation and weight names apply; every other
    difference between the codebases is an option of its own here (SPEC-models A1.9).
    """

    lineage: Lineage = "mae_st"
    size: str = "b16"
    # First weights: the lineage's own; "truncated" normal 0.02 for linears and kernels (mae_st's trunc_init); or "pytorch", what PyTorch
    # gives new layers and zero positions, as mae_st's classifier from scratch has them (SPEC-models A1.8, A1.13).
    init: Literal["lineage", "truncated", "pytorch"] = "lineage"
    # Encoder and decoder: pre-norm ViT blocks; heads must divide width.
    width: int = 768
    depth: int = 12
    heads: int = 12
    decoder_width: int = 512
    decoder_depth: int = 4
    decoder_heads: int = 16
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    last_norm_eps: float = 0.0  # of the decoder's last norm and a classifier's fresh one; 0 = layer_norm_eps
    qkv: Literal["separate", "fused"] = "separate"
    qkv_bias: Literal["all", "qv", "none"] = "all"  # "qv": keys have no bias (VideoMAE)
    decoder_qkv: Literal["separate", "fused"] = "separate"
    # Input: `num_frames` frames of `crop_px` x `crop_px`, cut into tubelets.
    num_frames: int = 16
    crop_px: int = 224
    tubelet_frames: int = 2
    patch_px: int = 16
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    resize: Literal["bilinear", "bicubic"] = "bilinear"  # antialiased, as in PIL
    test_crop: float = 1.0  # share of the short side that test crops span; 224 of 256 is 0.875
    # Tokens.
    class_token: bool = True
    decoder_class: Literal["own", "encoder"] = "own"  # the decoder's class token: its own, or the encoder's output
    positions: Positions = "separable"
    decoder_positions: Positions = "separable"
    # "projected": norm, linear to the decoder width, decoder positions. "plain": the decoder's blocks go straight on
    # from the encoder's last block (MaskFeat's head, golden sf_dense_encoder); widths must then be equal.
    decoder_input: Literal["projected", "plain"] = "projected"
    decoder_embed_bias: bool = True
    encoder_norm: bool = (
        True  # False: a projected decoder reads the last block itself (transformers' VideoMAE with mean pooling)
    )
    # "cross": hidden tokens look at visible ones alone, not at each other; share: of the hidden tokens that are decoded.
    decoder_attention: Literal["self", "cross"] = "self"
    decoded_share: float = 1.0
    dense_encoder: bool = False  # the encoder runs on all tokens, hidden ones replaced by the mask token
    # Mask: share of tokens hidden. "block" are cubes (MaskFeat), "image-block" rectangles (BEiT) and "grid" all but one place of
    # every 2 x 2, both the same in every time slice.
    mask: Literal["random", "tube", "frame", "per-frame", "block", "image-block", "grid"] = "random"
    mask_ratio: float = 0.9
    # Target: "per-color" normalises every colour of a patch on its own (VideoMAE), "normalized" all together (MAE).
    # "pca" are coefficients in a basis of patches, "tokens" words of a discrete tokenizer (SPEC-models A1.12).
    target: Literal["pixels", "normalized-pixels", "normalized-per-color", "hog", "pca", "tokens"] = "normalized-pixels"
    target_range: Literal["input", "unit"] = "input"  # "unit": mean and std are undone first, back to [0, 1]
    # "center": the middle frame alone; "double": clips bring twice the frames, the model sees every other one.
    target_frames: Literal["linspace", "first", "all", "center", "double"] = "linspace"
    num_target_frames: int = 8  # per clip; used by "linspace" alone
    target_values: int = 0  # components of "pca", words of "tokens"
    target_file: str = ""  # safetensors of the basis or tokenizer; a basis is fitted at the start where none is given
    loss: Literal["mse", "l1", "smooth-l1", "cross-entropy"] = "mse"

    def __post_init__(self) -> None:
        check_choices(self)
        sizes = ("width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads", "mlp_ratio")
        check_positive(self, *sizes, "layer_norm_eps", "num_frames", "crop_px", "tubelet_frames", "patch_px")
        check_share(self, "mask_ratio")
        if not 0 < self.test_crop <= 1:
            raise ConfigError(f"ModelConfig.test_crop is {self.test_crop}, wanted a share in (0, 1]; change it.")
        for width, heads in (("width", "heads"), ("decoder_width", "decoder_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ConfigError(
                    f"ModelConfig.{heads} is {getattr(self, heads)}, wanted a divisor of {width} "
                    f"{getattr(self, width)}; change one of them."
                )
        if self.num_frames % self.tubelet_frames or self.crop_px % self.patch_px:
            raise ConfigError(
                f"A clip of {self.num_frames} frames x {self.crop_px} px does not divide into tubelets of "
                f"{self.tubelet_frames} frames x {self.patch_px} px; change the clip or the tubelet."
            )
        if self.decoder_input == "plain" and self.width != self.decoder_width:
            raise ConfigError(
                f"ModelConfig.decoder_input 'plain' needs equal widths, found width {self.width} and decoder_width "
                f"{self.decoder_width}; set decoder_width={self.width} or decoder_input='projected'."
            )
        if self.target_frames == "linspace" and not 0 < self.num_target_frames <= self.num_frames:
            raise ConfigError(
                f"ModelConfig.num_target_frames is {self.num_target_frames}, wanted 1 to num_frames "
                f"{self.num_frames}; change it."
            )
        if self.target_frames == "linspace" and self.tubelet_frames * self.num_target_frames < self.num_frames:
            raise ConfigError(
                f"{self.num_target_frames} target frames over {self.num_frames // self.tubelet_frames} tubelets leave "
                f"less than one frame per token; raise num_target_frames."
            )
        if self.target_frames == "linspace" and self.tubelet_frames * self.num_target_frames % self.num_frames:
            tubelets = self.num_frames // self.tubelet_frames
            raise ConfigError(
                f"ModelConfig.num_target_frames is {self.num_target_frames}, which {tubelets} tubelets cannot share evenly; "
                f"wanted a multiple of {tubelets}."
            )
        self._check_mask()
        self._check_target()
        self._check_decoder()

    def _check_mask(self) -> None:
        _, h, w = self.grid_shape
        if self.mask == "grid" and (self.mask_ratio != 0.75 or h % 2 or w % 2):
            raise ConfigError(
                f"ModelConfig.mask 'grid' keeps one place of every 2 x 2, found mask_ratio {self.mask_ratio} over {h} x {w} places; set "
                f"mask_ratio=0.75, and a crop of an even number of patches."
            )
        share = int(self.mask_ratio * h * w) if self.mask == "tube" else self.mask_ratio
        if not share:
            raise ConfigError(
                f"ModelConfig.mask_ratio is {self.mask_ratio}, which hides none of the tokens of a '{self.mask}' mask over {h} x {w} places, "
                f"so there is nothing to predict; raise it."
            )

    def _check_target(self) -> None:
        is_words, is_taught = self.target == "tokens", self.target in ("pca", "tokens")
        if is_words != (self.loss == "cross-entropy"):
            raise ConfigError(
                f"ModelConfig.target '{self.target}' cannot have the loss '{self.loss}'; words take cross-entropy, and nothing else does."
            )
        if is_taught != (self.target_values > 0):
            raise ConfigError(
                f"ModelConfig.target_values is {self.target_values} for the target '{self.target}', wanted the number of components or words, "
                f"and 0 for other targets; set it."
            )
        if (is_words and self.frames_per_token != 1) or (
            self.target == "hog" and self.target_frames in ("center", "double")
        ):
            raise ConfigError(
                f"ModelConfig.target '{self.target}' cannot be of the frames '{self.target_frames}'; set target_frames=first."
            )

    def _check_decoder(self) -> None:
        if not 0 < self.decoded_share <= 1:
            raise ConfigError(
                f"ModelConfig.decoded_share is {self.decoded_share}, wanted a share in (0, 1]; change it."
            )
        is_plain = self.decoder_input == "plain" or self.dense_encoder
        if is_plain and (self.decoder_attention == "cross" or self.decoded_share < 1):
            raise ConfigError(
                "A cross-attention or half-decoded decoder needs an encoder of visible tokens and a projection; set dense_encoder=false and "
                "decoder_input=projected."
            )

    @property
    def end_eps(self) -> float:
        """Eps of the decoder's last norm and a classifier's fresh one."""
        return self.last_norm_eps or self.layer_norm_eps

    @property
    def input_stride(self) -> int:
        """Frames a clip brings per frame the encoder sees."""
        return 2 if self.target_frames == "double" else 1

    @property
    def clip_frames(self) -> int:
        """Frames a training clip brings: those of the encoder, or twice as many for the target."""
        return self.num_frames * self.input_stride

    @property
    def frames_per_token(self) -> int:
        """Frames that a token predicts, of a target of frames."""
        counts = {"all": self.tubelet_frames, "double": 2 * self.tubelet_frames, "first": 1, "center": 1}
        return counts.get(self.target_frames) or self.num_target_frames * self.tubelet_frames // self.num_frames

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Token counts (t, h, w)."""
        side = self.crop_px // self.patch_px
        return self.num_frames // self.tubelet_frames, side, side


@dataclass(frozen=True, slots=True)
class DataConfig:
    """How clips are drawn from videos, for training and for evaluation."""

    num_frames: int = 16
    frame_stride: int = 4
    fps: float = 30.0
    crop_px: int = 224
    crop_area: tuple[float, float] = (0.5, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    # Brightness, contrast, saturation, hue, as torchvision's ColorJitter takes them; pre-training alone, 0 leaves one out.
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    repeats: int = 4  # clips drawn from one opened video
    # "segments": one frame out of each of `num_frames` equal parts of the video, whatever stride and fps say (SSv2).
    sampling: Literal["aligned", "published", "segments"] = "aligned"
    eval_views: tuple[int, int] = (5, 3)  # temporal x spatial

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(self, "num_frames", "frame_stride", "fps", "crop_px", "repeats")
        check_rising(self, "crop_area", "crop_aspect")
        if min(self.color_jitter) < 0 or self.color_jitter[3] > 0.5:
            raise ConfigError(
                f"DataConfig.color_jitter is {list(self.color_jitter)}, wanted [brightness, contrast, saturation, hue] from 0, hue up to 0.5; "
                f"change it."
            )
        if min(self.eval_views) < 1:
            raise ConfigError(
                f"DataConfig.eval_views is {list(self.eval_views)}, wanted [temporal, spatial] from 1; raise them."
            )


@dataclass(frozen=True, slots=True)
class OptimConfig:
    """AdamW, its schedule and the length of pre-training, counted in clips."""

    # Over all processes and micro-batches; clips per step = batch_videos x repeats. Learning rates follow this number,
    # so neither more processes nor more micro-batches change them.
    batch_videos: int = 512
    accumulate: int = 1  # micro-batches per step
    total_clips: int = 192_000_000
    base_lr: float = 1.6e-3
    lr_rule: LrRule = "absolute"
    min_lr: float = 0.0  # under the same rule as base_lr
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup_share: float = 0.15  # of total_clips
    decay_share: float = 0.2  # of total_clips; used by "wsd" alone
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    # Which tensors decay: all but 1-D ones, or tokens and positions spared too (VideoMAE).
    decay_rule: Literal["not-1d", "not-1d-nor-tokens"] = "not-1d"
    grad_clip: float = 0.0  # L2 norm; 0 = off
    precision: Precision = "bf16"
    ema_decay: float = 0.0  # of the running mean of the weights, per step; 0 = off
    recompute_activations: bool = False  # blocks run twice and keep nothing between: less memory, the same gradients
    compile_blocks: bool = False  # torch.compile of every block

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(self, "batch_videos", "accumulate", "total_clips", "base_lr", "eps")
        check_share(self, "warmup_share", "decay_share", "ema_decay")

    def peak_lr(self, *, repeats: int) -> float:
        """The learning rate after warm-up for this batch."""
        return self.base_lr * lr_factor(self.lr_rule, batch_videos=self.batch_videos, repeats=repeats)

    def end_lr(self, *, repeats: int) -> float:
        """The learning rate the schedule ends with for this batch."""
        return self.min_lr * lr_factor(self.lr_rule, batch_videos=self.batch_videos, repeats=repeats)


def lr_factor(rule: str, *, batch_videos: int, repeats: int) -> float:
    """What a base learning rate is multiplied with under an lr rule."""
    if rule == "absolute":
        return 1.0
    return batch_videos * (repeats if rule == "per-256-clips" else 1) / 256


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """Probes on frozen features: attentive, linear and k-NN.

    One frozen pass feeds a head per (lr, weight decay) pair; the pair is chosen on `select_share` of the training
    clips, never on the evaluation set (STUDY.md, "Probe grid").
    """

    batch_videos: int = 256
    epochs: int = 20
    lr_grid: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    weight_decay_grid: tuple[float, ...] = (0.01, 0.1, 0.4)
    warmup_share: float = 0.0
    select_share: float = 0.1
    attentive_blocks: int = 1
    attentive_heads: int = 12
    linear_optimizer: Literal["lars", "sgd", "adamw"] = "adamw"
    feature: Literal["mean", "class"] = (
        "mean"  # of linear and k-NN probes: patch tokens averaged, or the class token; after the final norm
    )
    knn_neighbors: int = 20
    knn_temperature: float = 0.07
    train_views: int = 1  # views drawn from every training video
    flip: bool = False
    views: tuple[int, int] = (2, 1)  # evaluation, temporal x spatial
    precision: Precision = "bf16"

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(self, "batch_videos", "epochs", "attentive_blocks", "attentive_heads")
        check_positive(self, "knn_neighbors", "knn_temperature", "train_views")
        check_share(self, "warmup_share", "select_share")
        if not self.lr_grid or not self.weight_decay_grid:
            raise ConfigError("ProbeConfig.lr_grid or weight_decay_grid is empty; give at least one value for each.")


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """Fine-tuning from pre-trained weights, or training from scratch (SPEC-models B2, B4)."""

    task: Literal["classification", "detection"] = (
        "classification"  # the numbers of a `detector.Detector` are for loops of your own
    )
    frames: Literal["as-pretrained", "segments"] = "as-pretrained"  # "segments": as data.sampling has it
    batch_videos: int = 256  # over all processes and micro-batches, as in pre-training
    accumulate: int = 1
    epochs: int = 50  # passes over the videos; every pass draws `repeats` clips of each
    repeats: int = 2
    warmup_epochs: float = 5.0
    base_lr: float = 2.4e-3
    lr_rule: LrRule = "per-256-clips"
    optimizer: Literal["adamw", "sgd"] = "adamw"  # SGD's momentum is the first of betas
    min_lr: float = 1e-6  # times the layer's scale
    min_lr_rule: LrRule = "absolute"  # mae and mae_st; VideoMAE scales the end of its schedule by the batch too
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    layer_decay: float = 0.75
    grad_clip: float = 5.0  # L2 norm; 0 = off
    drop_path: float = 0.2
    head_dropout: float = 0.3
    head_init_std: float = 2e-5
    head_bias: Literal["zero", "uniform", "scaled"] = (
        "zero"  # "uniform" as PyTorch draws it (mae_st), "scaled" head_init_std (PySlowFast)
    )
    pooling: Literal["mean-norm", "mean-fresh-norm", "norm-mean", "norm-first"] = "mean-norm"
    smoothing: float = 0.1
    mixup: float = 0.8  # Beta parameter; 0 = off
    cutmix: float = 1.0  # Beta parameter; 0 = off
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5
    randaug_ops: int = 2
    randaug_magnitude: int = 7  # 0 = off
    randaug_std: float = 0.5
    erasing_prob: float = 0.25
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    views: tuple[int, int] = (7, 3)  # evaluation, temporal x spatial
    precision: Precision = "bf16"
    ema_decay: float = 0.0  # with it the test set is scored with the mean weights, as image MAE does
    recompute_activations: bool = False
    compile_blocks: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(self, "batch_videos", "accumulate", "epochs", "repeats", "base_lr", "layer_decay")
        check_share(self, "drop_path", "head_dropout", "smoothing", "ema_decay")
        check_rising(self, "crop_area", "crop_aspect")

    def peak_lr(self) -> float:
        """The learning rate after warm-up for this batch, before layer decay."""
        return self.base_lr * lr_factor(self.lr_rule, batch_videos=self.batch_videos, repeats=self.repeats)

    def end_lr(self) -> float:
        """The learning rate the schedule ends with for this batch, before layer decay."""
        return self.min_lr * lr_factor(self.min_lr_rule, batch_videos=self.batch_videos, repeats=self.repeats)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole config and where its numbers come from."""

    name: str
    source: str
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self) -> None:
        for name, wanted in (("num_frames", self.model.clip_frames), ("crop_px", self.model.crop_px)):
            found = getattr(self.data, name)
            if wanted != found:
                raise ConfigError(
                    f"Recipe '{self.name}' feeds data.{name} {found} to a model with {name} {wanted}; "
                    f"set data.{name}={wanted} or model.{name}={found // self.model.input_stride}."
                )
