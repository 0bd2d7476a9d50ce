"""Doctor: is this machine fit for the work? One line for each thing looked at, and for each bad one what to do next.

Everything is tried rather than asked about: a clip is encoded, probed and decoded, a child is cut off, stopped and starved of memory, a file is
written, locked and linked in the workspace. Nothing stays behind. Torch is never imported, its metadata alone is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from stmae_data import files, limits
from stmae_data.encode import Encoding, encode_clip, ffmpeg_executable, ffmpeg_version
from stmae_data.errors import ClipRejected, StmaeDataError
from stmae_data.limits import Limits
from stmae_data.media import probe

__all__ = ["Check", "Examination", "State", "examine"]

_PYTHON: Final = (3, 11)
_LEAST_FILES: Final = 1024
_LEAST_FREE_BYTES: Final = 1 << 30
_GOOD_FREE_BYTES: Final = 20 << 30
_STARVED_BYTES: Final = 64 << 20


class State(StrEnum):
    """`ok`; `weak`, works with less; `missing`, needed and not there; `absent`, an extra that is not installed."""

    OK = "ok"
    WEAK = "weak"
    MISSING = "missing"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: what was found, and the next step where it is not as it should be."""

    name: str
    state: State
    found: str
    next_step: str = ""


@dataclass(frozen=True, slots=True)
class Examination:
    """All checks, in the order of looking."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing needed is missing."""
        return not any(check.state is State.MISSING for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}


def examine(workspace: Path) -> Examination:
    """Look at everything the work needs.

    Args:
        workspace: where sets are to stand; need not exist yet.
    """
    looks: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _packages,
        _torch,
        _coding,
        _confinement,
        _descriptors,
        lambda: _workspace(workspace),
        _extras,
    )
    return Examination(tuple(check for look in looks for check in look()))


# Software


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    wanted = ".".join(map(str, _PYTHON))
    if sys.version_info[:2] < _PYTHON:
        yield Check("python", State.MISSING, found, f"install Python {wanted} or later, make a new environment with it")
    elif sys.platform != "linux":
        yield Check("python", State.WEAK, found, "limits of child processes are those of Linux; run it there")
    else:
        yield Check("python", State.OK, found)


def _packages() -> Iterator[Check]:
    """Every dependency that stmae itself declares."""
    requirements = _requirements()
    bad = [
        (name, found, wanted) for name, wanted, extra in requirements if not extra and (found := _lack(name, wanted))
    ]
    for name, found, wanted in bad:
        yield Check(name, State.MISSING, found, f"pip install '{name}{wanted}'")
    number = sum(not extra for _, _, extra in requirements)
    state = State.OK if requirements else State.MISSING
    step = "" if requirements else "install stmae with pip, also from a checkout: pip install -e ."
    yield Check("packages", state, f"{number - len(bad)} of {number} there", step)


def _requirements() -> list[tuple[str, str, str]]:
    """(name, version clause, extra or "") of what the installed stmae declares; empty where it is not installed."""
    try:
        lines = metadata.requires("stmae") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        what, _, marker = line.partition(";")
        name, clause = re.fullmatch(r"\s*([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*\(?([^)]*)\)?\s*", what).groups()  # type: ignore[union-attr]
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        found.append((name, clause.strip(), extra[1] if extra else ""))
    return found


def _lack(name: str, clause: str) -> str:
    """What is wrong with an installed package, "" when nothing is; only lower bounds are compared."""
    version = _version(name)
    if version is None:
        return "not installed"
    least = re.search(r">=\s*([0-9.]+)", clause)
    return f"{version}, wanted {clause}" if least and _numbers(version) < _numbers(least[1]) else ""


def _version(name: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _torch() -> Iterator[Check]:
    """torch and torchvision come in pairs; torchvision's metadata names its torch."""
    torch, vision = _version("torch"), _version("torchvision")
    if torch is None or vision is None:
        return  # told among the packages
    pairs = [re.match(r"torch\s*\(?==\s*([0-9.]+)", line) for line in metadata.requires("torchvision") or []]
    wanted = next((match[1] for match in pairs if match), None)
    found = f"torch {torch}, torchvision {vision}"
    if wanted is not None and _numbers(torch) != _numbers(wanted):
        step = f"torchvision {vision} is made for torch {wanted}: pip install torch=={wanted}"
        yield Check("torch", State.MISSING, found, step)
    else:
        yield Check("torch", State.OK, found)


# The road of a clip


def _coding() -> Iterator[Check]:
    try:
        program, version = ffmpeg_executable(), ffmpeg_version()
    except (RuntimeError, OSError) as error:
        step = "pip install --force-reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to an ffmpeg with libx264"
        yield Check("ffmpeg", State.MISSING, _first_line(error), step)
        return
    yield Check("ffmpeg", State.OK, version)
    try:
        descriptor = os.memfd_create("doctor", os.MFD_CLOEXEC)
    except (AttributeError, OSError) as error:
        yield Check("memfd", State.MISSING, _first_line(error), "clips pass in memory files: use Linux 3.17 or later")
        return
    try:
        yield Check("memfd", State.OK, "memory files can be made")
        ended = limits.run(_film(program, descriptor), limits=Limits(), pass_fds=(descriptor,))
        if ended.kind != "ok":
            said = _first_line(ended.errors) or f"{ended.kind}, exit {ended.returncode}"
            step = "this ffmpeg cannot encode H.264: pip install imageio-ffmpeg, and unset IMAGEIO_FFMPEG_EXE"
            yield Check("libx264", State.MISSING, said, step)
            return
        yield Check("libx264", State.OK, "a clip was encoded")
        yield _decoding(descriptor)
    finally:
        os.close(descriptor)


def _film(program: str, descriptor: int) -> list[str]:
    """One second of a test picture, as H.264 in mp4, into a descriptor."""
    source = ["-f", "lavfi", "-i", "testsrc=size=64x64:rate=30:duration=1"]
    target = [
        "-c:v",
        "libx264",
        "-threads",
        "1",
        "-pix_fmt",
        "yuv420p",
        "-f",
        "mp4",
        "-y",
        f"/proc/self/fd/{descriptor}",
    ]
    return [program, "-nostdin", "-hide_banner", "-v", "error", *source, *target]


def _decoding(descriptor: int) -> Check:
    """PyAV and ffmpeg both read what was encoded, by descriptor and under limits."""
    version = _version("av") or "unknown version"
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        clip = encode_clip(descriptor, probe(descriptor), encoding=Encoding(mode="copy"))
    except ClipRejected as rejected:
        step = "pip install --force-reinstall av imageio-ffmpeg"
        return Check("decoding", State.MISSING, f"PyAV {version}: {rejected}", step)
    return Check("decoding", State.OK, f"PyAV {version}, {clip.source.num_frames} frames read under limits")


# Limits of the kernel


def _confinement() -> Iterator[Check]:
    if limits.has_network_sandbox():
        yield _cut_off()
    else:
        step = "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, or run the container with them)"
        yield Check("no network for decoders", State.WEAK, "user and network namespaces are refused", step)
    started = time.monotonic()
    ended = limits.call(time.sleep, 30, limits=Limits(cpu_seconds=0.2))
    seconds = time.monotonic() - started
    is_stopped = ended.kind == "timeout" and seconds < 25
    step = "a stuck decoder would hang the build: run outside of what keeps children from being killed"
    found = f"a sleeping child was stopped after {seconds:.1f} s" if is_stopped else f"it ended with {ended.kind}"
    yield Check("deadline", State.OK if is_stopped else State.MISSING, found, "" if is_stopped else step)
    ended = limits.call(_swallow, limits=Limits(address_space_bytes=_STARVED_BYTES))
    is_bounded = ended.kind == "oom"
    found = f"a child was refused more than {_STARVED_BYTES >> 20} MiB" if is_bounded else f"it ended with {ended.kind}"
    step = "RLIMIT_AS has no effect here: bound memory from outside (systemd-run -p MemoryMax=…, or the container)"
    yield Check("memory limit", State.OK if is_bounded else State.WEAK, found, "" if is_bounded else step)


def _cut_off() -> Check:
    """A child tries to reach a listener of ours."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = limits.call(_knock, server.getsockname()[1], limits=Limits())
    if ended.kind == "ok" and ended.value is False:
        return Check("no network for decoders", State.OK, "a child could not reach the loopback")
    step = "children are not cut off from the network here; run the build where it has none to lose"
    return Check("no network for decoders", State.WEAK, f"a child ended with {ended.kind}, {ended.value}", step)


def _knock(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


def _swallow() -> int:
    return len(bytearray(4 * _STARVED_BYTES))


def _descriptors() -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= _LEAST_FILES:
        yield Check("open files", State.OK, f"{soft} allowed")
    else:
        step = f"ulimit -n {min(hard, 4 * _LEAST_FILES) if hard > 0 else 4 * _LEAST_FILES}"
        yield Check("open files", State.WEAK, f"{soft} allowed, wanted {_LEAST_FILES}", step)


# The workspace


def _workspace(workspace: Path) -> Iterator[Check]:
    folder = workspace.absolute()
    while not folder.exists():
        folder = folder.parent
    told = f"{folder}" if folder == workspace.absolute() else f"{folder} (the workspace does not exist yet)"
    try:
        with tempfile.TemporaryDirectory(prefix=files.TEMP_PREFIX, dir=folder) as place:
            yield Check("workspace", State.OK, f"{told} can be written")
            yield from _file_system(Path(place))
    except OSError as error:
        step = "make it writable, or name another with --workspace"
        yield Check("workspace", State.MISSING, f"{told}: {error.strerror or error}", step)
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free"
    if free < _LEAST_FREE_BYTES:
        yield Check("disk space", State.MISSING, found, "make room: a shard of the default size takes 0.5 GB")
    elif free < _GOOD_FREE_BYTES:
        yield Check(
            "disk space", State.WEAK, found, "enough for small sets; 240,000 clips of 10 s at 256 px take 70 to 240 GB"
        )
    else:
        yield Check("disk space", State.OK, found)


def _file_system(place: Path) -> Iterator[Check]:
    """Whole files, locks that hold, links that save space."""
    try:
        files.commit_bytes(place / "probe", b"1", point="doctor")
    except StmaeDataError as error:
        yield Check("rename and fsync", State.MISSING, str(error), "use a file system on a local disk")
        return
    first, second = ((place / "probe").open("r+b") for _ in range(2))
    with first, second:
        fcntl.flock(first, fcntl.LOCK_EX)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield Check("locks", State.OK, "flock keeps a second writer out")
        else:
            step = "two commands could write one set: use a file system with locks (NFS: mount with local_lock=none)"
            yield Check("locks", State.MISSING, "flock let two in", step)
    try:
        (place / "link").hardlink_to(place / "probe")
    except OSError as error:
        step = "dedup --to copies shards instead of linking them"
        yield Check("hard links", State.WEAK, error.strerror or str(error), step)
    else:
        yield Check("hard links", State.OK, "there")


def _extras() -> Iterator[Check]:
    """Extras that stmae declares, each with its packages."""
    extras: dict[str, list[tuple[str, str]]] = {}
    for name, wanted, extra in _requirements():
        if extra and extra != "test":
            extras.setdefault(extra, []).append((name, wanted))
    for extra, needed in sorted(extras.items()):
        lacking = [f"{name} {found}" for name, wanted in needed if (found := _lack(name, wanted))]
        if lacking:
            yield Check(f"extra {extra}", State.ABSENT, ", ".join(lacking), f"pip install 'stmae[{extra}]'")
        else:
            yield Check(f"extra {extra}", State.OK, ", ".join(f"{name} {_version(name)}" for name, _ in needed))


def _first_line(said: object) -> str:
    return next((line.strip()[:160] for line in str(said).splitlines() if line.strip()), "")
