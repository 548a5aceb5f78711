"""Writing so that a kill or a power cut leaves the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

# A file of that name that nothing was written to for a day belongs to nobody any more.
_PART = re.compile(r"\..+\.[0-9a-f]{32}\.part")
_ABANDONED_S = 86_400


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Gives a file that is whole its name, in the place of what had it."""
    sync(temporary)
    temporary.replace(path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` when the block ends well, and goes when it does not.

    For what is written by several processes at once: each has a name of its own. What killed writers left in that
    folder is removed once it is a day old. The folder is made where it is missing.

        with replacing(path) as fresh:
            fresh.write_bytes(content)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".*.part"):
        with contextlib.suppress(OSError):  # another writer may remove it first
            if _PART.fullmatch(left.name) and time.time() - left.stat().st_mtime > _ABANDONED_S:
                left.unlink()
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield fresh
        publish(fresh, path)
        sync(path.parent)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes ``path`` by way of ``path.tmp``; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    publish(temporary, path)
