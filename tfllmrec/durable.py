"""Files that survive kills, power cuts, full disks and a second process: how they are written, locked and read back."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tfllmrec.errors import ConfigError, ModelError, TfllmrecError, WriteError

if TYPE_CHECKING:
    import numpy as np

_log = logging.getLogger(__name__)

T = TypeVar("T")

# A file of that name that nothing was written to for a day belongs to nobody any more.
_PART = re.compile(r"\..+\.[0-9a-f]{32}\.part")
_ABANDONED_S = 86_400
# A folder of that name belongs to whoever holds its lock.
_WRITING = re.compile(r"\.writing-[0-9a-f]{32}")
#: In a folder that a process writes to: which process, and since when.
LOCK = ".lock"

# What an operating system answers when a disk takes no more, and when it is not writable or does not work.
_OF_FULL_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_DISKS = (*_OF_FULL_DISKS, errno.EROFS, errno.EIO)
# TensorFlow and safetensors pass on its words without the number; "permission denied" as well.
_WORDS = re.compile("|".join(map(re.escape, map(os.strerror, (*_OF_DISKS, errno.EACCES)))), re.IGNORECASE)
_BLOCK_BYTES = 1 << 20


# --- Errors of disks --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path, advice: str | None = None) -> Iterator[None]:
    """Turns any error of a disk in the block into one :class:`WriteError`, which names the path, the room and a remedy.

    Errors of TensorFlow, numpy and safetensors count too. Blocks may be nested: the innermost one names the path, and
    each adds its advice. If no block has any, the error has that of :func:`usual_advice`.

    Args:
      path: the file or folder that is written in the block.
      advice: a sentence on what to do, whatever the reason is.

    Raises:
      WriteError: the disk is full, read-only or broken, or ``path`` may not be written.
    """
    try:
        yield
    except WriteError as error:
        if advice is not None:
            add_advice(error, advice)
        raise
    except TfllmrecError:
        raise
    except Exception as error:
        reason = disk_failure(error) or _refusal(error, path)
        if reason is None:
            raise
        raise WriteError(f"{path} cannot be written: {reason}{_room(path)}.", advice or usual_advice(reason)) from error


_USUAL_ADVICE = ("Make room, or name another folder.", "Name another folder, or make this one writable.")


def usual_advice(reason: str) -> str:
    """A sentence on what to do about a reason of :func:`disk_failure` if nothing is known about the files."""
    full = {os.strerror(number).lower() for number in _OF_FULL_DISKS}
    return _USUAL_ADVICE[0 if reason.lower() in full else 1]


def add_advice(error: WriteError, advice: str) -> None:
    """Adds a line to an error, in place of the usual advice."""
    if advice not in error.args:
        error.args = (*(line for line in error.args if line not in _USUAL_ADVICE), advice)


def disk_failure(error: BaseException) -> str | None:
    """Why a disk could not be written, in the words of the operating system; ``None``: the error is of another kind."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            if cause.errno in _OF_DISKS:
                return os.strerror(cause.errno)
        # numpy's error for a full disk has neither the number nor the words.
        elif isinstance(cause, OSError):
            if re.fullmatch(r"\d+ requested and \d+ written", str(cause)):
                return os.strerror(errno.ENOSPC)
        elif found := _WORDS.search(str(cause)):
            return found.group()
        cause = cause.__cause__
    return None


def _refusal(error: Exception, path: Path) -> str | None:
    """Why ``path``, a file in it or a folder above it cannot be made or opened; ``None``: it is about another one."""
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError) or error.filename is None:
        return None
    named, path = Path(os.fsdecode(error.filename)).absolute(), path.absolute()
    return error.strerror if named.is_relative_to(path) or path.is_relative_to(named) else None


def _room(path: Path) -> str:
    """`` (1.5 MB of 2.0 GB are free there)``, or nothing where that cannot be found out."""
    from rich.filesize import decimal

    try:
        usage = shutil.disk_usage(next(p for p in (path.absolute(), *path.absolute().parents) if p.exists()))
    except OSError:
        return ""
    return f" ({decimal(usage.free)} of {decimal(usage.total)} are free there)"


# --- Files ------------------------------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Gives a complete file its name, in place of the file that had it."""
    sync(temporary)
    temporary.replace(path)


def reserve(path: Path) -> None:
    """Makes the disk set aside all blocks of a sparse file.

    A process that writes to a mapped file on a full disk is killed (SIGBUS); this raises an error instead.

    Raises:
      OSError: there is no room.
    """
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # macOS lacks the function, some file systems the operation
            if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            for start in range(0, size, _BLOCK_BYTES):
                content = file.read(_BLOCK_BYTES)
                file.seek(start)
                file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file to write to, which replaces ``path`` if the block succeeds and is deleted if it fails.

    Several processes may write the same ``path`` at once: each has a file of its own. Files that killed writers left in
    the folder are deleted once they are a day old. A missing folder is made.

        with replacing(path) as fresh:
            fresh.write_bytes(content)

    Raises:
      WriteError: the disk is full, read-only or broken; ``path`` is as it was.
    """
    with writing(path):
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
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Writes ``path`` whole or not at all; its folder is made where it is missing.

    Raises:
      WriteError: the disk is full, read-only or broken; ``path`` is as it was.
    """
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def read_json(path: Path, kind: type[T], remedy: str) -> T:
    """Reads a JSON file that tfllmrec wrote.

    Args:
      path: the file.
      kind: what it must hold, as pydantic checks it: a dataclass, a model, ``dict[str, Any]``.
      remedy: what to do where it is damaged.

    Raises:
      ModelError: the file is missing, no JSON, nested too deeply, lacks a key or has a value of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        reason = f"{where}: {problem['msg']}" if where else problem["msg"]
        raise ModelError(f"{path} is damaged ({reason}): {remedy}.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error}): {remedy}.") from error


@contextlib.contextmanager
def reading_npz(path: Path, remedy: str) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of an ``.npz`` file that tfllmrec wrote, for a block that reads and checks them.

    Args:
      path: the file.
      remedy: what to do where it is damaged.

    Raises:
      ModelError: the file is missing or damaged, or the block raises an error about its content.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as stored:
            yield stored
    except Exception as error:  # zipfile and numpy raise nearly anything on a damaged file
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or str(error).partition(". ")[0]  # numpy adds how to load pickled objects; nobody should
        raise ModelError(f"{path} cannot be read ({reason}): {remedy}.") from error


# --- Folders ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder, which is made where it is missing, against other processes that write to it.

    The lock is on the file ``.lock`` in the folder, which names the process. The system releases it when the process
    ends, however that happens; the next process takes over the file that a killed one left. At its end the block
    removes the file, and the folder if the block made it and left it empty.

    Processes of one machine see the lock, and those of other machines on network file systems that pass locks on (NFS
    from version 4). On a file system without locks a warning says that nothing keeps a second process out. Windows has
    no such locks, and tfllmrec does not run there.

    Raises:
      ConfigError: another process, or another block of this one, holds the folder.
      WriteError: the folder cannot be written to.
    """
    with contextlib.ExitStack() as at_the_end:
        if not folder.exists():
            at_the_end.callback(_remove_if_empty, folder)
        with writing(folder):
            at_the_end.enter_context(_take(folder / LOCK))
        yield


def _take(path: Path) -> contextlib.ExitStack:
    """Makes and locks a file that names this process; the stack removes it and releases the lock."""
    while True:
        with contextlib.ExitStack() as held:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            except FileNotFoundError:  # the folder is new, or its last holder removed it a moment ago
                path.parent.mkdir(parents=True, exist_ok=True)
                continue
            held.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
                raise ConfigError(
                    f"{path.parent} is in use by {holder}: wait until it has ended, or name another folder."
                ) from None
            except OSError as error:
                no_locks = "%s is on a file system without locks (%s): run no second process that writes to it."
                _log.warning(no_locks, path.parent, error.strerror)
            if not _is_named(descriptor, path):
                continue  # its holder removed it after it was opened here, and before it was locked
            held.callback(_remove, path, descriptor)  # before the lock is released, or it could be another process's
            os.ftruncate(descriptor, 0)
            since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode(), 0)
            return held.pop_all()


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that ``path`` names now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path, descriptor: int) -> None:
    """Removes an open file, unless ``path`` names another one now, as after its folder was deleted and made again."""
    with contextlib.suppress(OSError):
        if _is_named(descriptor, path):
            path.unlink()


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # something is in it
        folder.rmdir()


@contextlib.contextmanager
def writing_folder(parent: Path) -> Iterator[Path]:
    """An empty folder in ``parent`` to write to, which is deleted at the end of the block unless the block renamed it.

    Folders that killed writers left in ``parent`` are deleted first: a writer holds a lock on its folder, and the
    system releases the lock when the process ends, however that happens. On a file system without locks such folders
    stay. A missing ``parent`` is made.

        with writing_folder(models) as fresh:
            (fresh / "model").write_bytes(content)
            fresh.rename(models / "1")
    """
    parent.mkdir(parents=True, exist_ok=True)
    # Or another writer could take this one's folder for abandoned, before it is locked.
    with _flocked(parent, wait=True):
        for left in parent.iterdir():
            if _WRITING.fullmatch(left.name):
                with _flocked(left) as abandoned:
                    if abandoned:
                        shutil.rmtree(left, ignore_errors=True)
        fresh = parent / f".writing-{uuid.uuid4().hex}"
        fresh.mkdir()
        lock = contextlib.ExitStack()
        lock.enter_context(_flocked(fresh))
    with lock:
        try:
            yield fresh
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def publish_folder(complete: Path, folder: Path, *, replace: bool = False) -> None:
    """Puts all of a complete folder on the disk, and then gives the folder its name.

    Args:
      complete: the folder, on the same disk.
      folder: its new name.
      replace: whether a folder of that name gives way. It is moved aside first, to a hidden name with ``.old.tmp`` at
        its end, and moved back if the new folder cannot be renamed.

    Raises:
      OSError: the disk fails; or the name is taken, and ``replace`` is not set.
    """
    for path in (*complete.rglob("*"), complete):
        sync(path)
    old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.old.tmp")
    if replace and folder.exists():
        folder.rename(old)  # a folder that holds files cannot be renamed over
    try:
        complete.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_folder(folder: Path, write: Callable[[Path], None], *, replace: bool = False) -> None:
    """Writes ``folder`` whole or not at all; the folder above it is made where it is missing.

    Args:
      folder: its name.
      write: makes and fills the folder whose name it is given.
      replace: whether a folder of that name gives way. By default it stays, and the new one is dropped: two processes
        that write the same content at once both succeed. A caller whose content may differ checks the name first.

    Raises:
      WriteError: the disk is full, read-only or broken; a folder that was there before is as it was.
    """
    with writing(folder), writing_folder(folder.parent) as scratch:
        # Not in the scratch folder itself, which is locked: ``write`` may call this function for the same name.
        fresh = scratch / "new" / folder.name
        fresh.parent.mkdir()
        write(fresh)
        try:
            publish_folder(fresh, folder, replace=replace)
        except OSError:
            if replace or not folder.is_dir():
                raise


@contextlib.contextmanager
def _flocked(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Holds a folder's lock; ``False`` where another has it, the folder is gone, or there are no locks."""
    held = False
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        yield held
