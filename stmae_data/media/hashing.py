"""sha256 of sources: whole, and once for a file that many spans are cut from."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict

__all__ = ["hash_descriptor", "hash_once"]

_PIECE = 1 << 20
_MOST_KNOWN = 4096  # spans are laid out by hash, so those of all films come mixed; half a kilobyte each

_known: OrderedDict[tuple[int, ...], str] = OrderedDict()
_lock = threading.Lock()


def hash_descriptor(descriptor: int) -> str:
    """sha256 of the whole file behind a descriptor; its offset is left alone."""
    digest, offset = hashlib.sha256(), 0
    while piece := os.pread(descriptor, _PIECE, offset):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


def hash_once(descriptor: int) -> str:
    """`hash_descriptor`, read once by this process while a file stays what it is by device, inode, size and times of change.

    What has no name (a member of an archive, in memory) is always read: its inode may have been another's a moment ago.
    """
    identity = _identity(descriptor)
    with _lock:
        if identity in _known:
            _known.move_to_end(identity)
            return _known[identity]
    sha256 = hash_descriptor(descriptor)
    if identity and identity == _identity(descriptor):
        with _lock:
            _known[identity] = sha256
            while len(_known) > _MOST_KNOWN:
                _known.popitem(last=False)
    return sha256


def _identity(descriptor: int) -> tuple[int, ...]:
    """Empty where there is none."""
    found = os.fstat(descriptor)
    if not found.st_nlink:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
