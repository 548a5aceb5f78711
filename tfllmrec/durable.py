"""Files that survive kills, power cuts, full disks and concurrent processes: writing, locking and reading them."""

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

# A file with such a name that was not written to for a day is abandoned.
_PART = re.compile(r"\..+\.[0-9a-f]{32}\.part")
_ABANDONED_S = 86_400
# A folder with such a name belongs to the process that holds its lock.
_WRITING = re.compile(r"\.writing-[0-9a-f]{32}")
# A folder with such a name gave way to a new one, whose writer holds the lock of the parent folder.
_OLD = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.old\.tmp")
#: A file in a folder that a process writes to; it names the process and the time when it started to.
LOCK = ".lock"
_RETRY_S = 0.05

# The error numbers of disks that are full, and of those that are read-only or broken.
_OF_FULL_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_DISKS = (*_OF_FULL_DISKS, errno.EROFS, errno.EIO)
# TensorFlow and safetensors pass on the system's error message without the number; also for "permission denied".
_WORDS = re.compile("|".join(map(re.escape, map(os.strerror, (*_OF_DISKS, errno.EACCES)))), re.IGNORECASE)
_BLOCK_BYTES = 1 << 20


# --- Errors of disks --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path, advice: str | None = None) -> Iterator[None]:
    """Turns any disk error in the block into a :class:`WriteError` with the path, the free space and a remedy.

    This includes errors of TensorFlow, numpy and safetensors. Blocks may be nested: the innermost one names the path,
    and each adds its advice. If no block has advice, the error has that of :func:`usual_advice`.

    Args:
      path: The file or folder that is written in the block.
      advice: A sentence on what to do, whatever the reason is.

    Raises:
      WriteError: The disk is full, read-only or broken, or ``path`` may not be written.
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


_MAKE_ROOM = "Make room, or name another folder."
_OTHER_FOLDER = "Name another folder, or make this one writable."
_SHORTER = "Choose a shorter name."
_USUAL_ADVICE = (_MAKE_ROOM, _OTHER_FOLDER, _SHORTER)


def usual_advice(reason: str) -> str:
    """Returns advice on a reason of :func:`writing` if nothing is known about the files."""
    if reason == os.strerror(errno.ENAMETOOLONG):
        return _SHORTER
    full = {os.strerror(number).lower() for number in _OF_FULL_DISKS}
    return _MAKE_ROOM if reason.lower() in full else _OTHER_FOLDER


def add_advice(error: WriteError, advice: str) -> None:
    """Adds a line of advice to an error, and removes the usual advice."""
    if advice not in error.args:
        error.args = (*(line for line in error.args if line not in _USUAL_ADVICE), advice)


def disk_failure(error: BaseException) -> str | None:
    """Returns why a disk could not be written, in the system's words; ``None`` if the error is of another kind."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            if cause.errno in _OF_DISKS:
                return os.strerror(cause.errno)
        # numpy's error for a full disk has neither the number nor the system's message.
        elif isinstance(cause, OSError):
            if re.fullmatch(r"\d+ requested and \d+ written", str(cause)):
                return os.strerror(errno.ENOSPC)
        elif found := _WORDS.search(str(cause)):
            return found.group()
        cause = cause.__cause__
    return None


def _refusal(error: Exception, path: Path) -> str | None:
    """Returns why ``path`` cannot be opened; ``None`` for errors on other paths.

    Errors on a file in it, on a folder above it, or on the hidden name beside it under which it is written, count too.
    """
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError) or error.filename is None:
        return None
    named, path = Path(os.fsdecode(error.filename)).absolute(), path.absolute()
    if named.is_relative_to(path) or path.is_relative_to(named):
        return error.strerror
    beside = named.relative_to(path.parent).parts[0] if named.is_relative_to(path.parent) else ""
    return error.strerror if _PART.fullmatch(beside) or _WRITING.fullmatch(beside) else None


def _room(path: Path) -> str:
    """Returns `` (1.5 MB of 2.0 GB are free there)``, or nothing if the free space is unknown."""
    from rich.filesize import decimal

    try:
        usage = shutil.disk_usage(next(p for p in (path.absolute(), *path.absolute().parents) if p.exists()))
    except OSError:
        return ""
    return f" ({decimal(usage.free)} of {decimal(usage.total)} are free there)"


# --- Files ------------------------------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Renames a complete file to ``path``, replacing an existing file."""
    sync(temporary)
    temporary.replace(path)


def reserve(path: Path) -> None:
    """Allocates all blocks of a sparse file on the disk.

    A process that writes to a mapped file on a full disk is killed (SIGBUS); this raises an error instead.

    Raises:
      OSError: The disk is full.
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
    """Yields a new file to write to, which replaces ``path`` if the block succeeds and is deleted if it fails.

    Several processes may write the same ``path`` at once: each has its own file. Files that killed writers left in the
    folder are deleted once they are a day old. A missing folder is created.

        with replacing(path) as fresh:
            fresh.write_bytes(content)

    Raises:
      WriteError: The disk is full, read-only or broken; ``path`` is unchanged.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(".*.part"):
            with contextlib.suppress(OSError):  # another writer may remove it first
                if _PART.fullmatch(left.name) and time.time() - left.stat().st_mtime > _ABANDONED_S:
                    left.unlink()
        named = path.absolute()  # "." has no name
        fresh = named.with_name(f".{named.name}.{uuid.uuid4().hex}.part")
        try:
            yield fresh
            publish(fresh, path)
            sync(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Writes ``path`` completely or not at all; creates its folder if it is missing.

    Raises:
      WriteError: The disk is full, read-only or broken; ``path`` is unchanged.
    """
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def read_json(path: Path, kind: type[T], remedy: str) -> T:
    """Reads a JSON file that tfllmrec wrote.

    Args:
      path: The file.
      kind: The type of its content, for pydantic: a dataclass, a model, ``dict[str, Any]``.
      remedy: What the error message advises.

    Raises:
      ModelError: The file is missing, is not JSON, is nested too deeply, lacks a key or has a value of another type.
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
    """Opens an ``.npz`` file that tfllmrec wrote, for a block that reads and checks its arrays.

    Args:
      path: The file.
      remedy: What the error message advises.

    Raises:
      ModelError: The file is missing or damaged, or the block raises an error about its content.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as stored:
            yield stored
    except Exception as error:  # zipfile and numpy raise nearly anything on a damaged file
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or str(error).partition(". ")[0]  # numpy adds how to load pickled objects, which is unsafe
        raise ModelError(f"{path} cannot be read ({reason}): {remedy}.") from error


# --- Folders ----------------------------------------------------------------------------------------------------------


def absolute(path: Path) -> Path:
    """Returns the absolute path, so that ``.`` and ``..`` get a name; symbolic links are not followed."""
    return Path(os.path.abspath(path))  # noqa: PTH100 (Path.resolve follows links)


@contextlib.contextmanager
def locked(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Locks a folder against other processes that write to it; creates the folder if it is missing.

    The lock is on the file ``.lock`` in the folder, which names the process. The system releases the lock when the
    process ends for any reason, and the next process takes over the file that a killed one left. At the end of the
    block, the file is removed, and so is the folder if the block created it and left it empty.

    The lock works between processes of one machine, and between machines on network file systems that pass locks on
    (NFS from version 4). On a file system without locks, a warning says that a second process is not prevented. Windows
    has no such locks, and tfllmrec does not run there.

    Args:
      folder: The folder.
      wait_s: How long to wait for another holder, in seconds.

    Raises:
      ConfigError: Another process, or another block of this one, holds the folder and has not released it in time.
      WriteError: The folder cannot be written to.
    """
    with contextlib.ExitStack() as at_the_end:
        if not folder.exists():
            at_the_end.callback(_remove_if_empty, folder)
        with writing(folder):
            at_the_end.enter_context(_take(folder / LOCK, time.monotonic() + wait_s))
        yield


def _take(path: Path, until: float) -> contextlib.ExitStack:
    """Creates and locks a file that names this process; closing the returned stack removes it and releases the lock.

    Tries again until the time ``until`` of the monotonic clock.
    """
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
                if time.monotonic() < until:
                    time.sleep(_RETRY_S)
                    continue
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
                raise ConfigError(
                    f"{path.parent} is in use by {holder}: wait until it has ended, or name another folder."
                ) from None
            except OSError as error:
                no_locks = "%s is on a file system without locks (%s): run no second process that writes to it."
                _log.warning(no_locks, path.parent, error.strerror)
            if not _is_named(descriptor, path):
                continue  # its holder removed it between the opening and the locking here
            held.callback(_remove, path, descriptor)  # runs before the lock is released, so the file is still ours
            os.ftruncate(descriptor, 0)
            since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode(), 0)
            return held.pop_all()


def _is_named(descriptor: int, path: Path) -> bool:
    """Returns whether an open file is the one that ``path`` names now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path, descriptor: int) -> None:
    """Removes an open file, unless ``path`` now names another one, because its folder was deleted and created again."""
    with contextlib.suppress(OSError):
        if _is_named(descriptor, path):
            path.unlink()


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # the folder is not empty
        folder.rmdir()


@contextlib.contextmanager
def writing_folder(parent: Path) -> Iterator[Path]:
    """Yields an empty folder in ``parent``, which is deleted at the end of the block unless the block renamed it.

    Folders that killed writers left in ``parent`` are deleted first: a writer holds a lock on its folder, and the
    system releases the lock when the process ends for any reason. A folder that gave way to a new one
    (:func:`publish_folder`) gets its name back if its writer was killed before the new one had it. On a file system
    without locks, such folders stay. A missing ``parent`` is created.

        with writing_folder(models) as fresh:
            (fresh / "model").write_bytes(content)
            fresh.rename(models / "1")
    """
    parent.mkdir(parents=True, exist_ok=True)
    # Otherwise, another writer could take this folder for abandoned before it is locked.
    with _flocked(parent, wait=True) as alone:
        for left in list(parent.iterdir()):
            if _WRITING.fullmatch(left.name):
                with _flocked(left) as abandoned:
                    if abandoned:
                        shutil.rmtree(left, ignore_errors=True)
            elif alone and (old := _OLD.fullmatch(left.name)):
                if (folder := parent / old["name"]).exists():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.rename(folder)
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
    """Syncs a complete folder with all its content to the disk, and then renames it.

    Args:
      complete: The folder, on the same disk.
      folder: Its new name.
      replace: Whether to replace an existing folder of that name. It is first moved to a hidden name that ends in
        ``.old.tmp``, and moved back if the new folder cannot be renamed; after a kill in between, by the next
        :func:`writing_folder` beside it.

    Raises:
      OSError: The disk fails; or the name is taken, and ``replace`` is not set.
    """
    for path in (*complete.rglob("*"), complete):
        sync(path)
    old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.old.tmp")
    with _flocked(folder.parent, wait=True) if replace else contextlib.nullcontext():
        if replace and folder.exists():
            folder.rename(old)  # a rename cannot replace a folder that is not empty
        try:
            complete.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_folder(folder: Path, write: Callable[[Path], None], *, replace: bool = False) -> None:
    """Writes ``folder`` completely or not at all; creates its parent folder if it is missing.

    Args:
      folder: The name of the folder.
      write: Creates and fills the folder whose name it is given.
      replace: Whether to replace an existing folder of that name. By default, the existing one stays and the new one is
        dropped, so that two processes that write the same content at once both succeed. If the content may differ,
        check the name first.

    Raises:
      ConfigError: ``folder`` has no name of its own, such as ``.``.
      WriteError: The disk is full, read-only or broken; an existing folder is unchanged.
    """
    if folder.name in ("", ".."):  # a process inside of a replaced folder would be nowhere
        raise ConfigError(f"Expected a folder with a name, such as {folder / 'data'}, found {str(folder)!r}.")
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
    """Holds a folder's lock; yields ``False`` if another process has it, the folder is gone, or there are no locks."""
    held = False
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        yield held
