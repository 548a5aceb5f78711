"""Writing so that a kill or a power cut leaves the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

# A file of that name that nothing was written to for a day belongs to nobody any more.
_PART = re.compile(r"\..+\.[0-9a-f]{32}\.part")
_ABANDONED_S = 86_400
# A folder of that name belongs to whoever holds its lock.
_WRITING = re.compile(r"\.writing-[0-9a-f]{32}")


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


@contextlib.contextmanager
def writing_folder(parent: Path) -> Iterator[Path]:
    """An empty folder in ``parent`` to write to, which goes when the block ends unless it was renamed before.

    What killed writers left in ``parent`` is removed first: a writer holds a lock on its folder, and the system lets go
    of it with the process, however that ended. Where the file system has no locks, such folders stay. ``parent`` is
    made where it is missing.

        with writing_folder(models) as fresh:
            (fresh / "model").write_bytes(content)
            fresh.rename(models / "1")
    """
    parent.mkdir(parents=True, exist_ok=True)
    # Or another writer could take this one's folder for abandoned, before it is locked.
    with _locked(parent, wait=True):
        for left in parent.iterdir():
            if _WRITING.fullmatch(left.name):
                with _locked(left) as abandoned:
                    if abandoned:
                        shutil.rmtree(left, ignore_errors=True)
        fresh = parent / f".writing-{uuid.uuid4().hex}"
        fresh.mkdir()
        lock = contextlib.ExitStack()
        lock.enter_context(_locked(fresh))
    with lock:
        try:
            yield fresh
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Holds a folder's lock; ``False`` where another has it, the folder is gone, or there are no locks."""
    held = False
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        yield held
