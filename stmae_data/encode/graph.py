"""The command line of one pass: source -> clip, frames for hashing, and the time of every frame; composed with ffmpeg-python."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ffmpeg
import imageio_ffmpeg

from stmae_data.errors import UsageError
from stmae_data.media import FORMATS, POLICY, Header
from stmae_data.records import ClipSpan

__all__ = [
    "HASHES_PER_SECOND",
    "HASH_SIDE_PX",
    "STORED_FPS",
    "UNINDEXED",
    "Encoding",
    "Graph",
    "arguments",
    "descriptor_path",
    "ffmpeg_executable",
    "ffmpeg_version",
    "graph_of",
    "seeks",
    "steady_asm",
]

HASH_SIDE_PX = 64
HASHES_PER_SECOND = 8
STORED_FPS = 30

_LAYERS = "keyint=64:min-keyint=64:scenecut=0:bframes=3:b-adapt=0:b-pyramid=strict:open-gop=0"
_X264: dict[str, dict[str, str]] = {
    "layered": {"x264-params": f"{_LAYERS}:cabac=0"},
    "lean": {"x264-params": _LAYERS},
    "fast": {"x264-params": f"{_LAYERS}:cabac=0", "tune": "fastdecode"},
}
_KEPT = ("copy", "remux")
_PICTURES = "image"
_PROBE_LEVELS = ("full", "header")
# In eighths of a second: a frame that rounding put up to 1 ms before its eighth still belongs to it.
_BIN_SLACK = 0.008
# These have no index: a seek ends at any packet, and what decodes first is the next key frame, which may lie behind the span.
UNINDEXED = ("mpegts", "mpeg")
# Before the span; x264 puts key frames at most 250 frames apart unless told otherwise, which is 10.4 s of a film.
_MARGIN_SECONDS = 12.0
# Nothing is gained by a seek to less, and one to before the first key frame of an AVI or FLV ends at wrong pictures.
_FIRST_SEEK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Encoding:
    """How clips are stored: `layered` (the default), `lean` (fewer bytes), `fast` (faster decoding), `copy`, `remux`; or `image` for
    sets of pictures, whose short side may be 0: then they keep their size. At `probe_level` header, which only `copy` can be, nothing
    is decoded: no measured facts, no hashes, no signals."""

    mode: str = "layered"
    short_side_px: int = 256
    probe_level: str = "full"

    def __post_init__(self) -> None:
        modes = (*_X264, *_KEPT, _PICTURES)
        if self.mode not in modes:
            raise UsageError(f"There is no encoding {self.mode!r}; there are {', '.join(modes)}.")
        if self.probe_level not in _PROBE_LEVELS:
            raise UsageError(f"There is no probe level {self.probe_level!r}; there are {', '.join(_PROBE_LEVELS)}.")
        if not self.decodes and self.mode != "copy":
            raise UsageError(f"Encoding {self.mode!r} decodes every clip; probe level 'header' goes with copy alone.")
        if self.is_of_pictures and self.short_side_px >= 0:
            return
        if self.short_side_px < 2 or self.short_side_px % 2:
            raise UsageError(f"A short side of {self.short_side_px} px cannot be stored; wanted an even number.")

    @property
    def decodes(self) -> bool:
        """Whether clips are decoded, and so measured and hashed."""
        return self.probe_level == "full"

    @property
    def keeps_source(self) -> bool:
        """Whether the source's own packets are stored."""
        return self.mode in _KEPT

    @property
    def is_of_pictures(self) -> bool:
        """Whether pictures are stored, not videos."""
        return self.mode == _PICTURES

    @property
    def layout(self) -> str:
        """What readers may rely on: `layered-4` (frames 0, 4, 8, … need no others), `original` or `image`."""
        if self.is_of_pictures:
            return "image"
        return "original" if self.keeps_source else "layered-4"


@functools.cache
def ffmpeg_executable() -> str:
    """The pinned ffmpeg of imageio-ffmpeg."""
    return str(imageio_ffmpeg.get_ffmpeg_exe())


@functools.cache
def ffmpeg_version() -> str:
    """Version of the pinned ffmpeg."""
    return str(imageio_ffmpeg.get_ffmpeg_version())


@dataclass(frozen=True, slots=True)
class Graph:
    """Everything ffmpeg's arguments depend on but the descriptors.

    A span counts from `zero_seconds` on ffmpeg's clock; what is read begins at `seek_seconds` of that clock, None is the film's beginning.
    """

    encoding: Encoding
    span: ClipSpan | None
    frame_order_fps: float | None
    stream_index: int
    stored_size_px: tuple[int, int]
    first_frame_seconds: float
    has_alpha: bool
    is_interlaced: bool
    start_delay_seconds: float
    seek_seconds: float | None = None
    zero_seconds: float = 0.0

    @property
    def begin_seconds(self) -> float:
        """Where the span begins on ffmpeg's clock."""
        return round(self.zero_seconds + (self.span.start_ms / 1000 if self.span is not None else 0.0), 6)

    @property
    def lead_seconds(self) -> float:
        """How much is decoded before the span."""
        return round(self.begin_seconds - (self.seek_seconds or 0.0), 6) if self.span is not None else 0.0

    @property
    def drops_lead(self) -> bool:
        """Whether the graph drops what lies before the span; a seek to its very start does so by itself."""
        return self.span is not None and (self.seek_seconds is None or self.lead_seconds > 0)


def seeks(header: Header, span: ClipSpan | None, *, zero_seconds: float = 0.0) -> tuple[float | None, ...]:
    """Where to begin reading for a span, in the order to be tried: each surer and slower than the one before; None is the beginning."""
    if span is None:
        return (None,)
    begin = round(zero_seconds + span.start_ms / 1000, 6)
    tried = (begin - _MARGIN_SECONDS,) if header.container in UNINDEXED else (begin, begin - _MARGIN_SECONDS)
    return (*(each for each in tried if each >= _FIRST_SEEK_SECONDS), None)


def graph_of(
    header: Header,
    encoding: Encoding,
    span: ClipSpan | None,
    frame_order_fps: float | None,
    *,
    seek_seconds: float | None = None,
    zero_seconds: float = 0.0,
) -> Graph:
    """The graph for one source; `frame_order_fps` puts frames at this rate in the order they come, whatever their time stamps."""
    return Graph(
        encoding,
        span,
        frame_order_fps,
        header.stream_index,
        _stored_size(header, encoding.short_side_px),
        header.first_frame_seconds if span is None and frame_order_fps is None else 0.0,
        header.has_alpha,
        header.is_interlaced,
        header.start_delay_seconds,
        seek_seconds,
        zero_seconds,
    )


@functools.lru_cache(maxsize=256)  # composing costs 5 ms, and most clips of a set are alike
def arguments(graph: Graph, descriptor: int, outputs: tuple[int, int, int, int]) -> tuple[str, ...]:
    """The command line: source -> (clip, hash frames with times, times of all frames)."""
    media, frames, frame_times, times = outputs
    source = ffmpeg.input("fd:", **_input_options(descriptor, graph))
    picture = source[str(graph.stream_index)]
    if graph.frame_order_fps is not None:
        picture = picture.filter("settb", "1/90000").filter("setpts", f"N/({graph.frame_order_fps:.6f}*TB)")
    if graph.span is not None:
        if graph.drops_lead and graph.frame_order_fps is None:
            # An AVI counts in frames, to which `trim` would round the start.
            picture = picture.filter("settb", "1/90000")
        # ffmpeg's own -t counts from the first frame it lets pass, which may lie a little behind the start.
        picture = picture.filter("trim", end=f"{graph.lead_seconds + graph.span.seconds:.6f}")
    if graph.has_alpha:  # shown over black: colours times alpha, then alpha forgotten
        picture = picture.filter("format", "gbrap").filter("premultiply", inplace=1).filter("format", "gbrp")
    targets = []
    if not graph.encoding.keeps_source:
        branches = ffmpeg.filter_multi_output(picture, "split", 3)
        targets.append(_clip_output(_drop_lead(branches[2], graph), graph, target=descriptor_path(media)))
    else:
        branches = ffmpeg.filter_multi_output(picture, "split", 2)
        if graph.encoding.mode == "remux":
            whole = source[str(graph.stream_index)]
            targets.append(ffmpeg.output(whole, descriptor_path(media), **{"c": "copy", "f": "mp4", **_CLEAN}))
    thinned = _thin(_drop_lead(branches[0], graph), graph.first_frame_seconds)
    targets.append(
        ffmpeg.output(
            thinned, descriptor_path(frames), **{"c:v": "rawvideo", "f": "rawvideo", **_times_to(frame_times)}
        )
    )
    targets.append(ffmpeg.output(branches[1], "-", **{"c:v": "wrapped_avframe", "f": "null", **_times_to(times)}))
    together = ffmpeg.merge_outputs(*targets).global_args(
        "-nostdin", "-hide_banner", "-nostats", "-v", "error", "-filter_complex_threads", "1", "-max_error_rate", "1"
    )
    return (ffmpeg_executable(), *(str(each) for each in ffmpeg.get_args(together, overwrite_output=True)))


def _input_options(descriptor: int, graph: Graph) -> dict[str, Any]:
    options: dict[str, Any] = {
        "protocol_whitelist": "fd",
        "format_whitelist": FORMATS,
        "probesize": POLICY.probe_bytes,
        "analyzeduration": POLICY.probe_bytes,
        "max_streams": POLICY.max_streams,
        "max_pixels": POLICY.max_area_px,
        "threads": 1,
        "fd": descriptor,
    }
    if graph.span is not None:
        options |= {"t": f"{graph.lead_seconds + graph.span.seconds + 1:.6f}"}
        if graph.seek_seconds is not None:  # before -i: exact when decoding, and nothing before the key frame is read
            options |= {"ss": f"{graph.seek_seconds + graph.start_delay_seconds:.6f}"}
    elif graph.frame_order_fps is None:
        options |= {"t": POLICY.max_seconds + 1}
    return options


_CLEAN: dict[str, Any] = {
    "map_metadata": -1,
    "map_chapters": -1,
    "fflags": "+bitexact",
    "movflags": "+faststart",
}


def _drop_lead(picture: Any, graph: Graph) -> Any:
    """The span alone, from zero on; the branch of all times keeps the lead, which shows that a seek went far enough."""
    if not graph.drops_lead:
        return picture
    lead = f"{graph.lead_seconds:.6f}"
    return picture.filter("trim", start=lead).filter("setpts", f"PTS-round({lead}/TB)")


def _clip_output(picture: Any, graph: Graph, *, target: str) -> Any:
    width, height = graph.stored_size_px
    if graph.first_frame_seconds:
        # A constant: STARTPTS would begin anew when the picture changes its size on the way.
        picture = picture.filter("setpts", f"PTS-{graph.first_frame_seconds:.6f}/TB")
    if graph.is_interlaced:
        picture = picture.filter("bwdif", mode="send_frame", deint="interlaced")
    picture = picture.filter("fps", STORED_FPS, start_time=0)
    picture = picture.filter(
        "scale",
        width,
        height,
        flags="bicubic+accurate_rnd+bitexact",
        out_color_matrix="bt601",
        out_range="tv",
    )
    # The matrix by the name the encoder is told: another name of the same matrix would cost one more conversion.
    picture = picture.filter("setparams", colorspace="smpte170m").filter("setsar", 1).filter("format", "yuv420p")
    options = {
        "c:v": "libx264",
        "preset": "medium",
        "crf": 23,
        "threads": 1,
        "colorspace": "smpte170m",
        "color_range": "tv",
        "fps_mode": "cfr",
        "flags:v": "+bitexact",
        "f": "mp4",
        **_CLEAN,
        **_X264[graph.encoding.mode],
    }
    options["x264-params"] = f"{options['x264-params']}{steady_asm()}"
    return ffmpeg.output(picture, target, **options)


@functools.cache
def steady_asm() -> str:
    """What to add to x264's parameters so that equal pictures give equal bytes: `:asm=avx2` where the processor has AVX-512, else nothing.

    x264's AVX-512 code (its macroblock tree) reads memory that nobody wrote: measured on 37 clips with `MALLOC_PERTURB_`, 16 came out in
    several versions, with AVX2 none. The levels SSSE3 to AVX2 gave the same bytes, so sets do not depend on the processor; the level
    is therefore no setting of a set.
    """
    try:
        known = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""  # no Linux
    return ":asm=avx2" if "avx512" in known else ""


def _thin(picture: Any, first_frame_seconds: float) -> Any:
    """The first frame of every eighth of a second since the first frame, as 64x64 luma."""
    this, last = (
        f"floor(({name}-{first_frame_seconds:.6f})*{HASHES_PER_SECOND}+{_BIN_SLACK})"
        for name in ("t", "prev_selected_t")
    )
    picture = picture.filter("select", f"isnan(prev_selected_t)+gt({this},{last})")
    picture = picture.filter("scale", HASH_SIDE_PX, HASH_SIDE_PX, flags="area+accurate_rnd+bitexact", out_range="pc")
    return picture.filter("format", "gray")


def _times_to(descriptor: int) -> dict[str, Any]:
    """Frames pass as they come, and each one's time of presentation is written down."""
    return {
        "fps_mode": "passthrough",
        "enc_time_base": "filter",  # the default would round times to the nominal frame rate
        "stats_enc_pre": descriptor_path(descriptor),
        "stats_enc_pre_fmt": "{pts} {tb}",
    }


def _stored_size(header: Header, short_side_px: int) -> tuple[int, int]:
    """Width and height of the stored picture: never upscaled, both even, shape kept."""
    width, height = header.upright_size_px
    short = min(short_side_px, min(width, height) // 2 * 2)
    long = max(short, 2 * round(max(width, height) * short / min(width, height) / 2))
    return (long, short) if width >= height else (short, long)


def descriptor_path(descriptor: int) -> str:
    """A name under which a child finds a descriptor it inherited."""
    return f"/proc/self/fd/{descriptor}"
