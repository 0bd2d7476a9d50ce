"""Pictures of the small world: textured shapes that move on a dim, still background, junk, and what copies do to a picture.

Space is a torus and every motion is a cycle with a random phase, so that at any instant every class has the same distribution of
pictures: a single frame says nothing about the class, only time does. Backgrounds keep still and have structure, so that no two
scenes look alike to the frame hashes; textures are smooth, so that H.264 at crf 23 keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["JUNK", "MOTIONS", "Scene", "draw", "letterbox", "mirror"]

Frames = NDArray[np.uint8]
Floats = NDArray[np.float64]

MOTIONS = (
    "drifting right",
    "drifting left",
    "drifting up",
    "drifting down",
    "spinning clockwise",
    "spinning counterclockwise",
    "swelling up",
    "shrinking away",
)
"""Class labels."""

JUNK = ("slides", "still", "noise")
"""What an uncurated folder holds beside motions: pictures that jump every half second, that never change, that flicker."""

_DIRECTIONS = {
    "drifting right": 0.0,
    "drifting down": 0.5,
    "drifting left": 1.0,
    "drifting up": 1.5,
}  # times pi, y grows downwards
_TEXTURE_PX = 64
_SPEED = (20.0, 48.0)  # px per second at 64 px
_TURN = (1.5, 3.2)  # radians per second
_CYCLE_SECONDS = (1.2, 2.4)  # of swelling and shrinking
_RADIUS_PX = (17.0, 26.0)
_SIZES = (0.55, 1.45)  # times the radius
_NUM_SHAPES = (1, 1)


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene and the piece of its time that a file shows; the same seed is the same scene at any piece and frame rate."""

    kind: str
    """One of MOTIONS or JUNK."""
    seed: tuple[int, ...]
    start_seconds: float = 0.0
    num_frames: int = 66
    fps: int = 30
    width_px: int = 64
    height_px: int = 64


def draw(scene: Scene) -> Frames:
    """Frames [T, H, W, 3] of luma and chroma, all at full size (limited-range BT.601, as files hold them)."""
    generator = np.random.default_rng(scene.seed)
    times = scene.start_seconds + np.arange(scene.num_frames) / scene.fps
    if scene.kind in MOTIONS:
        return _moving(scene, times, generator)
    if scene.kind == "still":
        still = _moving(scene, np.zeros(1), generator)
        return np.repeat(still, len(times), axis=0)
    if scene.kind == "slides":
        pages = (times / 0.5).astype(int)
        pictures = [_page(scene, np.random.default_rng((*scene.seed, int(page)))) for page in range(pages[-1] + 1)]
        return np.stack([pictures[page] for page in pages])
    frames = np.repeat(_yuv(_background(scene, generator))[None], len(times), axis=0)
    frames[..., 0] += generator.normal(0.0, generator.uniform(15, 40), frames.shape[:3])
    return _bytes(frames)


def letterbox(frames: Frames, *, bar_px: int) -> Frames:
    """Black bars of `bar_px` above and below."""
    black = np.empty((len(frames), bar_px, *frames.shape[2:]), np.uint8)
    black[:] = _YUV_OFFSET
    return np.concatenate([black, frames, black], axis=1)


def mirror(frames: Frames) -> Frames:
    """Left and right exchanged."""
    return frames[:, :, ::-1]


# Limited-range BT.601: rows are luma, blue and red difference, columns red, green, blue.
_YUV = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
_YUV_OFFSET = np.array([16.0, 128.0, 128.0])


def _yuv(colour: Floats, cover: Floats | float = 1.0) -> Floats:
    """Luma and chroma of RGB in 0..255; both sides multiplied with `cover`."""
    return np.asarray(colour @ _YUV.T + _YUV_OFFSET * cover)


def _bytes(values: Floats) -> Frames:
    return np.asarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _smooth(generator: np.random.Generator, height: int, width: int, channels: int, cycles: float) -> Floats:
    """Smooth noise [H, W, C] of zero mean and unit deviation that wraps around, with about `cycles` waves across."""
    most = int(np.ceil(2.5 * cycles))
    rows, row_waves = _waves(height, most)
    columns, column_waves = _waves(width, most)
    weight = np.exp(-0.5 * (row_waves[:, None] ** 2 + column_waves**2) / cycles**2)
    weight[0, 0] = 0.0
    amounts = generator.standard_normal((channels, len(row_waves), len(column_waves))) * weight
    field = np.moveaxis(rows @ amounts @ columns.T, 0, -1)
    return np.asarray(field / (field.std(axis=(0, 1)) + 1e-9))


def _waves(length: int, most: int) -> tuple[Floats, Floats]:
    """Cosines and sines [length, 2 * most + 1] of 0 to `most` whole waves, and how many waves each column has."""
    number = np.arange(1, most + 1)
    angle = 2 * np.pi * np.outer(np.arange(length), number) / length
    return np.concatenate([np.ones((length, 1)), np.cos(angle), np.sin(angle)], axis=1), np.concatenate(
        [[0], number, number]
    )


def _background(scene: Scene, generator: np.random.Generator) -> Floats:
    size = scene.height_px, scene.width_px
    grey = _smooth(generator, *size, 1, generator.uniform(2.0, 4.0))
    colour = _smooth(generator, *size, 3, generator.uniform(2.0, 4.0))
    field = (0.8 * grey + 0.4 * colour) * 3.0 + 30.0 * generator.uniform(0.7, 1.2)
    return np.asarray(np.clip(field, 0, 120))


def _texture(generator: np.random.Generator) -> NDArray[np.uint8]:
    """A shape of smooth colours as premultiplied luma, chroma and cover [S, S, 4]; it spans [-1, 1] in its own coordinates."""
    size = _TEXTURE_PX
    waves = generator.uniform(0.5, 1.5)
    shade = 0.5 * _smooth(generator, size, size, 1, waves) + 0.35 * _smooth(generator, size, size, 3, waves)
    colour = np.clip(generator.uniform(90, 190, 3) + 60 * shade, 30, 225)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    lobes, phase, depth = generator.integers(2, 6), generator.uniform(0, 2 * np.pi), generator.uniform(0, 0.25)
    edge = 0.72 * (1 + depth * np.cos(lobes * np.arctan2(y, x) + phase))
    cover = np.clip((1 - np.hypot(x, y) / edge) * 8, 0, 1)[..., None]
    return _bytes(np.concatenate([_yuv(colour * cover, cover), 255 * cover], axis=-1))


def _moving(scene: Scene, times: Floats, generator: np.random.Generator) -> Frames:
    frames = np.repeat(_bytes(_yuv(_background(scene, generator)))[None], len(times), axis=0)
    pace = generator.uniform(*_SPEED), generator.uniform(*_TURN), generator.uniform(*_CYCLE_SECONDS)
    slant = generator.uniform(-0.2, 0.2)
    for _ in range(generator.integers(_NUM_SHAPES[0], _NUM_SHAPES[1] + 1)):
        _paint(frames, _texture(generator), *_path(scene, times, pace, slant, generator))
    return frames


def _path(
    scene: Scene, times: Floats, pace: tuple[float, float, float], slant: float, generator: np.random.Generator
) -> tuple[Floats, Floats, Floats, Floats]:
    """Centre x, y in px, angle in radians and radius in px of one shape, each [T]."""
    speed, turn, cycle_seconds = pace
    still = np.zeros_like(times)
    x, y = still + generator.uniform(0, scene.width_px), still + generator.uniform(0, scene.height_px)
    angle = still + generator.uniform(0, 2 * np.pi)
    base = generator.uniform(*_RADIUS_PX)
    phase = still + generator.uniform()
    if scene.kind in _DIRECTIONS:
        direction = _DIRECTIONS[scene.kind] * np.pi + slant
        x, y = x + speed * np.cos(direction) * times, y + speed * np.sin(direction) * times
    elif scene.kind.startswith("spinning"):
        angle = angle + turn * times * (1 if scene.kind == "spinning clockwise" else -1)
    elif scene.kind == "swelling up":
        phase = phase + times / cycle_seconds
    elif scene.kind == "shrinking away":
        phase = phase - times / cycle_seconds
    radius = base * _SIZES[0] * (_SIZES[1] / _SIZES[0]) ** (phase % 1.0)
    return x, y, angle, radius


def _paint(frames: Frames, texture: NDArray[np.uint8], x: Floats, y: Floats, angle: Floats, radius: Floats) -> None:
    """Lay a texture over all frames [T, H, W, 3] at once; what leaves on one side comes back on the other."""
    height, width = frames.shape[1:3]
    reach = min(int(np.ceil(radius.max() * 0.95)), min(height, width) // 2 - 1)  # no texture lies further out than 0.9
    steps = np.arange(-reach, reach + 1)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    across = (steps[None] - (x - left)[:, None]).astype(np.float32)  # [T, S], px from the centre
    down = (steps[None] - (y - top)[:, None]).astype(np.float32)
    half = _TEXTURE_PX / 2
    cosine = (np.cos(angle) / radius * half).astype(np.float32)[:, None]
    sine = (np.sin(angle) / radius * half).astype(np.float32)[:, None]
    column = (cosine * across + half)[:, None, :] + (sine * down)[:, :, None]  # [T, S, S]
    row = (half - sine * across)[:, None, :] + (cosine * down)[:, :, None]
    edge = _TEXTURE_PX - 1  # fully transparent there
    place = np.clip(row, 0, edge).astype(np.int32) * _TEXTURE_PX + np.clip(column, 0, edge).astype(np.int32)
    painted = texture.view(np.uint32).ravel()[place].view(np.uint8).reshape(*place.shape, 4)
    rows = ((top[:, None] + steps) % height)[:, :, None]
    columns = ((left[:, None] + steps) % width)[:, None, :]
    number = np.arange(len(frames))[:, None, None]
    behind = frames[number, rows, columns].astype(np.uint16)
    through = (255 - painted[..., 3:]).astype(np.uint16)
    frames[number, rows, columns] = (painted[..., :3] + behind * through // 255).astype(np.uint8)


def _page(scene: Scene, generator: np.random.Generator) -> Frames:
    """A slide: flat paper with bars of text."""
    paper, ink = generator.uniform(150, 250, 3), generator.uniform(0, 90, 3)
    page = np.empty((scene.height_px, scene.width_px, 3))
    page[:] = paper
    for top in range(int(generator.integers(4, 10)), scene.height_px - 6, int(generator.integers(6, 11))):
        start = int(generator.integers(3, 12))
        page[top : top + 3, start : start + int(generator.integers(12, scene.width_px - start))] = ink
    return _bytes(_yuv(page))
