"""Which copies are found: every edit below applied to real clips by ffmpeg, then compared by content; prints one JSON line.

Recall per edit, the false pairs among all others, the error of the time offset, and beside it the vPDQ rule (ThreatExchange: frames of
one per second, quality 50, 31 bits, 80 % of either clip) over the same hashes. Run it: `python tests/bench/bench_neardup.py [VIDEO…]`.

False pairs are counted among clips that show different things: the parts of real films that share no pixel, and rendered scenes of the
small world, each compared with every other and with every original and edited copy of another film. The real families of near
duplicates are judged by their truth.csv, level by level.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import duckdb
import numpy as np
from PIL import Image

from stmae_data.dedup.clips import comparing
from stmae_data.dedup.content import find_content_pairs, load_frames
from stmae_data.dedup.levels import create_pairs
from stmae_data.dedup.policy import Policy
from stmae_data.demo.scene import MOTIONS, Scene, draw
from stmae_data.encode import Encoding, encode_clip, ffmpeg_executable, ffmpeg_version
from stmae_data.fingerprint import Fingerprints, commit_fingerprints, fingerprint_clip
from stmae_data.media import open_source, probe

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"
SOURCES = (
    "neardup/chair-orig-22-sd-bar.mp4",
    "neardup/cockatoo.mp4",
    "neardup/dj_video1.mp4",
    "neardup/dj_video4.mp4",
    "neardup/dj_video5.mp4",
    "neardup/nasa_13013.mp4",
    "neardup/pool_full.mp4",
    "neardup/carphone_pristine.mp4",
    "videos/decord_flipping_a_pancake.mkv",
    "videos/mma_test.avi",
    "videos/paddle_example.avi",
)
MORE_FILMS = ("neardup/doorknob-hd-no-bar.mp4",)
"""Used for negatives beside the sources."""
SECONDS = 8
PARTS = 5
"""For negatives a film is cut into 5 x 5 parts."""

Key = tuple[str, str]


def bars(share: float, *, side: bool) -> str:
    """Black bars that take `share` of the new picture, half on each side."""
    whole = f"{1 / (1 - share):.4f}"
    return f"pad=ceil(iw*{whole}/2)*2:ih:-1:-1" if side else f"pad=iw:ceil(ih*{whole}/2)*2:-1:-1"


def logo(share: float) -> str:
    """A box of `share` of the area in a corner."""
    edge = share**0.5
    return f"drawbox=x=iw*0.04:y=ih*0.04:w=iw*{edge:.3f}:h=ih*{edge:.3f}:color=0xC03020:t=fill"


# name: (seconds cut from the start, filter, encoder arguments)
X264 = ("-c:v", "libx264", "-preset", "veryfast")
EDITS: dict[str, tuple[float, str, tuple[str, ...]]] = {
    "trim 0.37": (0.37, "null", (*X264, "-crf", "23")),
    "trim 0.5": (0.5, "null", (*X264, "-crf", "23")),
    "trim 1.3": (1.3, "null", (*X264, "-crf", "23")),
    "h264 crf 23": (0, "null", (*X264, "-crf", "23")),
    "h264 crf 35": (0, "null", (*X264, "-crf", "35")),
    "h264 crf 45": (0, "null", (*X264, "-crf", "45")),
    "vp9": (0, "null", ("-c:v", "libvpx-vp9", "-crf", "36", "-b:v", "0", "-cpu-used", "8", "-deadline", "realtime")),
    "mpeg4": (0, "null", ("-c:v", "mpeg4", "-q:v", "6")),
    "25 fps": (0, "fps=25", (*X264, "-crf", "26")),
    "30 fps": (0, "fps=30", (*X264, "-crf", "26")),
    "240p": (0, "scale=-2:240", (*X264, "-crf", "26")),
    "grey": (0, "hue=s=0", (*X264, "-crf", "26")),
    **{f"bars {share}": (0, bars(share, side=share > 0.12), (*X264, "-crf", "26")) for share in (0.05, 0.1, 0.15, 0.25)},
    **{f"logo {share}": (0, logo(share), (*X264, "-crf", "26")) for share in (0.05, 0.15, 0.3)},
    "mirrored": (0, "hflip", (*X264, "-crf", "26")),
    "speed 0.9": (0, "setpts=PTS/0.9", (*X264, "-crf", "26")),
    "speed 1.1": (0, "setpts=PTS/1.1", (*X264, "-crf", "26")),
    **{f"crop {share}": (0, f"crop=iw*{1 - share}:ih*{1 - share}", (*X264, "-crf", "26")) for share in (0.05, 0.1, 0.2)},
    "text": (0, "drawbox=x=iw*0.1:y=ih*0.82:w=iw*0.8:h=ih*0.1:color=white:t=fill", (*X264, "-crf", "26")),
    "mirrored, bars 0.15": (0, f"hflip,{bars(0.15, side=False)}", (*X264, "-crf", "26")),
    "trim 0.37, bars 0.1, 240p": (0.37, f"{bars(0.1, side=False)},scale=-2:240", (*X264, "-crf", "30")),
}  # fmt: skip


def ffmpeg(*arguments: str) -> None:
    subprocess.run([ffmpeg_executable(), "-v", "error", "-y", "-threads", "1", *arguments], check=True)


def prints_of(path: Path) -> Fingerprints:
    with open_source(path) as descriptor:
        clip = encode_clip(descriptor, probe(descriptor), encoding=Encoding(mode="fast", short_side_px=64))
    return fingerprint_clip(clip.hash_frames, clip.hash_times_ms)


def make(source: Path, other: Path, folder: Path, edit: str) -> Fingerprints:
    """The fingerprints of one edited copy of `source`."""
    target = folder / f"{source.stem}-{edit.replace(' ', '_')}.mkv"
    if edit == "joined":
        join = "[0:v]scale=320:240,fps=25,setsar=1[a];[1:v]scale=320:240,fps=25,setsar=1[b];[a][b]concat=n=2"
        inputs = ("-t", "4", "-i", str(other), "-t", str(SECONDS), "-i", str(source))
        ffmpeg(*inputs, "-filter_complex", join, "-an", *X264, "-crf", "26", str(target))
    else:
        start, filters, encoder = EDITS[edit]
        even = f"{filters},scale=trunc(iw/2)*2:trunc(ih/2)*2,format=yuv420p"
        ffmpeg("-t", str(SECONDS), "-i", str(source), "-ss", str(start), "-an", "-vf", even, *encoder, str(target))
    return prints_of(target)


def parts_of(path: Path) -> list[Fingerprints]:
    """Fingerprints of PARTS x PARTS clips that share no pixel, from the first seconds of a film."""
    frames, times, due = [], [], 0.0
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            seconds = float(frame.time or 0.0)
            if seconds >= SECONDS:
                break
            if seconds + 1e-6 >= due:
                due += 0.125
                frames.append(frame.to_ndarray(format="gray"))
                times.append(round(seconds * 1000))
    film = np.stack(frames)  # [N, H, W]
    height, width = film.shape[1] // PARTS, film.shape[2] // PARTS
    found = []
    for row, column in itertools.product(range(PARTS), repeat=2):
        part = film[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        small = [np.asarray(Image.fromarray(each).resize((64, 64), Image.Resampling.BOX)) for each in part]
        found.append(fingerprint_clip(np.stack(small), np.array(times)))
    return found


def scene_of(number: int) -> Fingerprints:
    """Fingerprints of two seconds of one rendered scene."""
    scene = Scene(MOTIONS[number % len(MOTIONS)], (20, number), num_frames=17, fps=8)
    return fingerprint_clip(draw(scene)[..., 0], np.arange(scene.num_frames, dtype=np.int64) * 125)


def make_negatives(films: list[Path], count: int) -> dict[Key, Fingerprints]:
    """Clips of which no two show the same, under (film, which): parts of the films, at most half, and rendered scenes."""
    found = {(path.stem, f"part {n}"): prints for path in films for n, prints in enumerate(parts_of(path))}
    found = dict(list(found.items())[: count // 2])
    return found | {("rendered", f"scene {n}"): scene_of(n) for n in range(count - len(found))}


def is_comparable(prints: Fingerprints) -> bool:
    """Whether the clip has frames enough that one could take for another's."""
    return int(((prints.view == 0) & (prints.quality >= Policy().min_quality)).sum()) >= 4


def count_false(
    negatives: dict[Key, Fingerprints],
    copies: dict[Key, Fingerprints],
    whole: dict[str, Fingerprints],
    films: dict[Key, set[str]],
) -> dict[str, Any]:
    """Compare the negatives with each other and with what was made of other films; `films` are those that a copy shows."""
    known = {key: prints for key, prints in negatives.items() if is_comparable(prints)}
    made = {**copies, **{(stem, "original"): prints for stem, prints in whole.items()}}
    within = compare(known)
    between = [(*a, *b) for a, b, _ in compare(known, made) if a[0] not in films[b]]
    return {
        "clips": len(negatives),
        "not_comparable": len(negatives) - len(known),
        "pairs_within": len(known) * (len(known) - 1) // 2,
        "pairs_between": sum(a[0] not in films[b] for a in known for b in made),
        "false_within": [[*a, *b] for a, b, _ in within],
        "false_between": [list(each) for each in between],
    }


def judge_families(folder: Path, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Within one training split: pairs found of those in truth.csv, by level of difficulty, and those that are not in it."""
    with (folder / "truth.csv").open() as stream:
        truth = {frozenset((row["file_a"], row["file_b"])): row for row in csv.DictReader(stream)}
    paths = sorted(folder.glob("*.mp4"))
    prints = dict(zip([path.name for path in paths], pool.map(prints_of, paths), strict=True))
    found = {
        frozenset((a[0], b[0])): (a[0], offset) for a, b, offset in compare({(n, ""): p for n, p in prints.items()})
    }
    levels: dict[str, dict[str, int]] = {}
    errors = [0.0]
    for pair, row in truth.items():
        cell = levels.setdefault(row["level"], {"found": 0, "of": 0, "vpdq_rule": 0})
        cell["of"] += 1
        cell["vpdq_rule"] += vpdq_rule(prints[row["file_a"]], prints[row["file_b"]])
        if pair in found:
            cell["found"] += 1
            wanted = float(row["a_start"]) - float(row["b_start"])
            first, offset = found[pair]
            errors.append(abs(offset / 1000 - (wanted if first == row["file_a"] else -wanted)))
    strangers = [pair for pair in itertools.combinations(sorted(prints), 2) if frozenset(pair) not in truth]
    return {
        "levels": levels,
        "negative_pairs": len(strangers),
        "false": [list(pair) for pair in strangers if frozenset(pair) in found],
        "vpdq_rule_false": [list(pair) for pair in strangers if vpdq_rule(*(prints[name] for name in pair))],
        "largest_offset_error_seconds": round(max(errors), 3),
        "not_comparable": [name for name, each in prints.items() if not is_comparable(each)],
    }


def vpdq_rule(a: Fingerprints, b: Fingerprints) -> bool:
    """One frame a second of the whole picture, 31 bits, 80 % of either clip."""

    def sampled(prints: Fingerprints) -> Any:
        chosen = (prints.view == 0) & (prints.quality >= 50)
        seconds = prints.time_ms[chosen] // 1000
        return prints.hashes[chosen][np.unique(seconds, return_index=True)[1]]

    ours, theirs = sampled(a), sampled(b)
    if not len(ours) or not len(theirs):
        return False
    near = np.bitwise_count(ours[:, None] ^ theirs[None]).sum(axis=-1) <= 31
    return bool(max(near.any(axis=1).mean(), near.any(axis=0).mean()) >= 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--edit", action="append", choices=[*EDITS, "joined"], help="only these")
    parser.add_argument("--negatives", type=int, default=600, help="clips that are like no other")
    options = parser.parse_args()
    sources = options.videos or [REAL / name for name in SOURCES]
    if not all(source.is_file() for source in sources):
        sys.exit("The videos are not here; name some on the command line.")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        jobs = {
            (source.stem, edit): pool.submit(make, source, sources[number - 1], folder, edit)
            for number, source in enumerate(sources)
            for edit in options.edit or (*EDITS, "joined")
        }
        originals = {source.stem: pool.submit(prints_of, source) for source in sources}
        copies = {key: job.result() for key, job in jobs.items()}
        whole = {stem: job.result() for stem, job in originals.items()}
        families = None if options.videos or options.edit else judge_families(REAL / "neardup", pool)
    start = time.perf_counter()
    evaluation = {(stem, "original"): prints for stem, prints in whole.items()}
    found = {(*copy, original[0]): offset for copy, original, offset in compare(copies, evaluation)}
    seconds = time.perf_counter() - start
    edits: dict[str, dict[str, Any]] = {}
    for stem, edit in copies:
        cell = edits.setdefault(edit, {"found": 0, "of": 0, "vpdq_rule": 0})
        cell["of"] += 1
        cell["found"] += (stem, edit, stem) in found
        cell["vpdq_rule"] += vpdq_rule(copies[stem, edit], whole[stem])
    errors = {
        f"{stem}: {edit}": abs(offset / 1000 - (4 if edit == "joined" else -EDITS[edit][0]))
        for (stem, edit, other), offset in found.items()
        if stem == other and "speed" not in edit
    }
    # A joined copy rightly holds the other clip as well.
    before = {source.stem: sources[number - 1].stem for number, source in enumerate(sources)}
    false = [key for key in found if key[0] != key[2] and not (key[1] == "joined" and before[key[0]] == key[2])]
    films = {(stem, edit): {stem, before[stem]} if edit == "joined" else {stem} for stem, edit in copies}
    films |= {(stem, "original"): {stem} for stem in whole}
    more = [] if options.videos else [REAL / name for name in MORE_FILMS]
    negatives = count_false(make_negatives([*sources, *more], options.negatives), copies, whole, films)
    num_false = len(false) + len(negatives["false_within"]) + len(negatives["false_between"])
    missed = [f"{stem}: {edit}" for stem, edit in copies if (stem, edit, stem) not in found]
    print(
        json.dumps(
            {
                "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
                "versions": {
                    "python": platform.python_version(),
                    "duckdb": duckdb.__version__,
                    "ffmpeg": ffmpeg_version(),
                },
                "policy": Policy().version,
                "families": families,
                "edits": edits,
                "false": [list(key) for key in false],
                "negatives": negatives,
                "negative_pairs": len(copies) * (len(whole) - 1)
                + negatives["pairs_within"]
                + negatives["pairs_between"],
                "precision": round((len(found) - len(false)) / (len(found) - len(false) + num_false), 5),
                "missed": missed,
                "largest_offset_error_seconds": round(max(errors.values(), default=0.0), 3),
                "offsets_beyond_0.15": {name: round(error, 3) for name, error in errors.items() if error > 0.15},
                "seconds": round(seconds, 2),
            }
        )
    )


def compare(left: dict[Key, Fingerprints], right: dict[Key, Fingerprints] | None = None) -> list[tuple[Key, Key, int]]:
    """Pairs at level content with their offset in milliseconds: `left` as training against `right` as evaluation, or within `left`."""
    named = [*left, *(right or {})]
    with tempfile.TemporaryDirectory() as name, comparing() as connection:
        for number in range(len(named)):
            pool = int(number >= len(left))
            connection.execute("INSERT INTO clip (number, pool, clip_id) VALUES (?, ?, ?)", [number, pool, str(number)])
        table = Path(name) / "prints.parquet"
        prints = [*left.values(), *(right or {}).values()]
        commit_fingerprints(table, [(str(number), each) for number, each in enumerate(prints)])
        load_frames(connection, {0: [table], 1: [table]})
        create_pairs(connection)
        find_content_pairs(connection, Policy(), left=[0], right=[1] if right is not None else None)
        rows = connection.execute("SELECT a, b, offset_ms FROM pair ORDER BY a, b").fetchall()
    return [(named[a], named[b], offset) for a, b, offset in rows]


if __name__ == "__main__":
    main()
