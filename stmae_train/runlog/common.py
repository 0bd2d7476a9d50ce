"""Files in a folder that any number of runs write at any time, with nobody who holds it."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from stmae_data import files

__all__ = ["commit_in_common", "sweep_common"]


@contextlib.contextmanager
def commit_in_common(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` whole or not at all; `sweep_common` leaves it alone until then.

    Raises:
        StorageError: the disk is full, read-only or broken.
    """
    with contextlib.ExitStack() as stack:
        with files.storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context((path.parent / "LOCK").open("ab"))
            fcntl.flock(held, fcntl.LOCK_SH)  # together with all who write there
        yield stack.enter_context(files.committing(path, point="run"))


def sweep_common(folder: Path, *, suffix: str) -> None:
    """Remove what killed writers of files with that suffix left in a folder, unless somebody is writing there: then a later call does."""
    if not (left := list(folder.glob(f"{files.TEMP_PREFIX}*{suffix}"))):
        return
    with contextlib.suppress(OSError), (folder / "LOCK").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # alone: whoever writes holds it too
        for path in left:
            path.unlink(missing_ok=True)
