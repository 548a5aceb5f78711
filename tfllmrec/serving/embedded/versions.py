"""Which versions of which models are loaded, while folders change and requests run.

A version is loaded before the one it replaces is let go, so there is always one that answers; one that cannot be loaded
changes nothing. A request holds its version: it is unloaded when the last one that holds it is done. All of this runs
on one event loop, only reading the disk and loading run in a thread.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Generic, TypeVar

from tfllmrec.serving.embedded.models_config import ModelSource, version_folders
from tfllmrec.serving.embedded.status import Code, RequestError, invalid

Servable = TypeVar("Servable")

logger = logging.getLogger(__name__)

#: Nothing in a folder may have changed for so long before it is loaded: it may still be on its way.
SETTLED_S = 2.0
#: A version that failed is tried again when its folder changes, and so often and so many times when it does not.
RETRY_S, RETRIES = 60.0, 5
#: How many versions that are gone a model's status still lists.
ENDED_SHOWN = 10


class State(IntEnum):
    """As in TF Serving's ``ModelVersionStatus``."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(eq=False)
class Version(Generic[Servable]):
    """One version of a model; ``servable`` is there while it is AVAILABLE or UNLOADING."""

    model: str
    number: int
    folder: Path
    state: State = State.START
    code: Code = Code.OK
    error: str = ""
    servable: Servable | None = None
    in_flight: int = 0
    failures: int = 0
    tried_at: float = 0.0
    tried_content: Content | None = None

    def __str__(self) -> str:
        return f"{self.model}/{self.number}"


#: What tells a folder from itself at another time: names, sizes, times of change.
Content = tuple[tuple[str, int, int], ...]


@dataclass
class _Model(Generic[Servable]):
    """``successor``: the same model from another base, of which nothing could be loaded so far."""

    source: ModelSource
    labels: dict[str, int] = field(default_factory=dict)
    versions: dict[int, Version[Servable]] = field(default_factory=dict)
    successor: _Model[Servable] | None = None

    def available(self) -> list[int]:
        return sorted(number for number, version in self.versions.items() if version.state is State.AVAILABLE)


class Models(Generic[Servable]):
    """The models that are served.

    Args:
      load: a version's folder to what answers; runs in a thread; any exception means that it cannot be loaded.
      settled_s: see ``SETTLED_S``.
      on_load: told (version, seconds) after each try; the version's state says how it went.
    """

    def __init__(
        self,
        load: Callable[[Path], Servable],
        settled_s: float = SETTLED_S,
        on_load: Callable[[Version[Servable], float], None] = lambda version, seconds: None,
    ) -> None:
        self._load = load
        self._settled_s = settled_s
        self._on_load = on_load
        self._models: dict[str, _Model[Servable]] = {}
        self._seen: dict[Path, tuple[Content, float]] = {}
        self._said: dict[Path, str] = {}
        self._polling = asyncio.Lock()
        self._loading: threading.Thread | None = None
        self._waiting: asyncio.Future[Servable | RequestError] | None = None
        self._stopped = False

    def names(self) -> list[str]:
        return sorted(self._models)

    def available(self, name: str) -> list[int]:
        """The versions of a model that answer, ascending."""
        return self._models[name].available()

    # --- For requests ---------------------------------------------------------------------------------------------

    @contextmanager
    def hold(self, name: str, number: int | None = None, label: str | None = None) -> Iterator[Version[Servable]]:
        """The version that a request means (the newest, where it names none); it stays loaded inside the block.

        Raises:
          RequestError: NOT_FOUND, INVALID_ARGUMENT for a label that is not there; both in TF Serving's words.
        """
        version = self._find(name, self.labelled(name, label) if label else number)
        version.in_flight += 1
        try:
            yield version
        finally:
            version.in_flight -= 1
            self._release(version)

    def labelled(self, name: str, label: str) -> int:
        """The number behind a label."""
        model = self._models.get(name)
        if model is None or label not in model.labels:
            raise invalid(f"Unrecognized servable version label: {label}")
        return model.labels[label]

    def _find(self, name: str, number: int | None) -> Version[Servable]:
        model = self._models.get(name)
        available = model.available() if model else []
        if number == 0 and 0 not in available:
            number = None  # ovmsclient, like OpenVINO's server, means the newest one
        chosen = (available[-1] if available else None) if number is None else number
        if model is None or chosen not in available:
            asked = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            there = f"available versions: {', '.join(map(str, available)) or 'none'}"
            if model is None:
                there = f"models: {', '.join(self.names()) or 'none'}"
            raise RequestError(Code.NOT_FOUND, f"Servable not found for request: {asked} ({there})")
        return model.versions[chosen]

    def status(self, name: str, number: int | None = None) -> list[Version[Servable]]:
        """What is known of a model's versions, or of one, newest first.

        Raises:
          RequestError: NOT_FOUND in TF Serving's words.
        """
        model = self._models.get(name)
        if number == 0 and model is not None and 0 not in model.versions:
            number = None
        if number is None:
            if model is None or not model.versions:
                raise RequestError(Code.NOT_FOUND, f"Could not find any versions of model {name}")
            return [version for _, version in sorted(model.versions.items(), reverse=True)]
        if model is None or number not in model.versions:
            raise RequestError(Code.NOT_FOUND, f"Could not find version {number} of model {name}")
        return [model.versions[number]]

    def undecided(self) -> bool:
        """Whether a model has neither a version that answers nor one that failed: it may still be on its way."""
        return any(
            not any(version.servable is not None or version.error for version in model.versions.values())
            for model in self._models.values()
        )

    # --- Following the disk ---------------------------------------------------------------------------------------

    async def follow(self, sources: Sequence[ModelSource]) -> None:
        """Serves these models from now on, loading and letting go what that takes; returns when it is done.

        Called again with the same sources it looks for new versions. A label moves when its version is available.

        Raises:
          RequestError: UNAVAILABLE after :meth:`stop_loading`, where something would have to be loaded.
        """
        async with self._polling:
            wanted = {source.name: source for source in sources}
            for name in self._models.keys() - wanted.keys():
                # Requests that run keep theirs; nobody finds the model any more.
                for version in self._models.pop(name).versions.values():
                    self._retire(version)
            for name, source in wanted.items():
                model = self._models.setdefault(name, _Model(source))
                if model.source.base == source.base:
                    model.source, model.successor = source, None
                    await self._update(model)
                else:
                    # The same numbers in another folder are other versions. What failed is remembered between calls.
                    known = new = model.successor
                    if new is None or new.source.base != source.base:
                        new = model.successor = _Model(source)
                    new.source = source
                    await self._update(new)
                    if not new.available() and model.available():
                        if new is not known:
                            logger.error("%s: nothing in %s can be loaded; the old versions stay", name, source.base)
                        continue
                    self._models[name] = new
                    for version in model.versions.values():
                        self._retire(version)
                    model = new
                self._relabel(model)

    def unmoved_labels(self, sources: Iterable[ModelSource]) -> list[str]:
        """What is to be said of labels whose version is not available, in TF Serving's words."""
        return [
            f"Request to assign label to version {number} of model {source.name}, which is not currently available for "
            f"inference (label {label!r} stays where it was)"
            for source in sources
            for label, number in source.labels.items()
            if source.name not in self._models or number not in self._models[source.name].available()
        ]

    @property
    def loading(self) -> bool:
        """Whether a thread loads, waited for or not.

        Then only ``os._exit`` ends the process: the interpreter cannot take itself down while TensorFlow works in a
        thread, and would be aborted.
        """
        return self._loading is not None and self._loading.is_alive()

    def stop_loading(self) -> None:
        """From now on nobody waits for a load, and none begins. One that runs is left alone: it cannot be stopped."""
        self._stopped = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(_stopping())

    async def close(self) -> None:
        """Lets everything go; requests that still run keep theirs."""
        await self.follow([])

    async def _update(self, model: _Model[Servable]) -> None:
        source = model.source
        try:
            folders = await asyncio.to_thread(version_folders, source.base)
        except OSError as error:
            self._say(source.base, f"{source.name}: {source.base} cannot be read: {error}; nothing is unloaded")
            return
        self._said.pop(source.base, None)
        self._forget(model, folders)
        if source.policy == "specific":
            candidates = [number for number in source.versions if number in folders]
        else:
            candidates = sorted(folders, reverse=True)
        limit = source.latest if source.policy == "latest" else len(candidates)
        kept: set[int] = set()
        for number in candidates:
            if len(kept) == limit:
                break
            if await self._ensure(model, number, folders[number]):
                kept.add(number)
        # With nothing to put in its place, what answers goes on answering, whatever happened to its folder.
        if kept:
            for number in model.available():
                if number not in kept:
                    self._retire(model.versions[number])

    async def _ensure(self, model: _Model[Servable], number: int, folder: Path) -> bool:
        """Whether the version is available, after loading it if need be."""
        version = model.versions.get(number)
        if version is not None and version.state is State.AVAILABLE:
            return True
        content = await asyncio.to_thread(content_of, folder)
        if not self._whole(folder, content):
            return False
        now = time.monotonic()
        if version is not None and version.tried_content == content and version.code is not Code.OK:
            if version.failures > RETRIES or now - version.tried_at < RETRY_S:
                return False
            failures = version.failures
        else:
            failures = 0
        if self._stopped:
            raise _stopping()
        version = model.versions[number] = Version(model.source.name, number, folder, State.LOADING)
        version.failures, version.tried_at, version.tried_content = failures, now, content
        loaded = await self._loaded(folder)
        if isinstance(loaded, RequestError):
            version.state, version.error, version.code = State.END, loaded.message, loaded.code
            version.failures += 1
            others = ", ".join(map(str, model.available()))
            logger.error(
                "%s cannot be loaded: %s; %s",
                version,
                version.error,
                f"version {others} goes on answering" if others else "no other version is there",
            )
        else:
            version.state, version.servable = State.AVAILABLE, loaded
            logger.info("%s loaded in %.1f s", version, time.monotonic() - now)
        self._on_load(version, time.monotonic() - now)
        return version.state is State.AVAILABLE

    async def _loaded(self, folder: Path) -> Servable | RequestError:
        """As :meth:`_tried`, in a thread that nobody waits for when loop or process end, unlike those of a pool."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[Servable | RequestError] = loop.create_future()

        def finish(loaded: Servable | RequestError) -> None:
            if not waiting.done():  # nobody waits any more
                waiting.set_result(loaded)

        def load() -> None:
            try:
                loaded = self._tried(folder)
            except BaseException as error:  # such as an error whose text cannot be had: whoever waits is to be told
                loaded = RequestError(Code.UNKNOWN, type(error).__name__)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(finish, loaded)

        thread = threading.Thread(target=load, name="load", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            return RequestError(Code.RESOURCE_EXHAUSTED, str(error))
        self._loading, self._waiting = thread, waiting
        try:
            return await waiting
        finally:
            self._waiting = None  # it holds what was loaded

    def _tried(self, folder: Path) -> Servable | RequestError:
        """What answers, or why nothing does; blocks."""
        try:
            return self._load(folder)
        except Exception as error:  # whatever a damaged model makes TensorFlow raise, the server goes on
            code = error.code if isinstance(error, RequestError) else Code.UNKNOWN
            failure = RequestError(code, str(error) or type(error).__name__)
        # Of what was loaded before it failed: here, where the error is gone, whose frames held it.
        _give_back_memory()
        return failure

    def _whole(self, folder: Path, content: Content) -> bool:
        """Whether a folder has a SavedModel and has not changed for a while, by the disk's clock or by ours."""
        first = self._seen.get(folder)
        if first is None or first[0] != content:
            first = self._seen[folder] = content, time.monotonic()
        if not any(name == "saved_model.pb" and size for name, size, _ in content):
            self._say(folder, f"{folder} has no saved_model.pb yet: left alone")
            return False
        newest = max(changed for _, _, changed in content) / 1e9
        if time.monotonic() - first[1] < self._settled_s and not newest < time.time() - self._settled_s:
            return False
        self._said.pop(folder, None)
        return True

    def _retire(self, version: Version[Servable]) -> None:
        if version.state is State.AVAILABLE:
            version.state = State.UNLOADING
            self._release(version)

    def _release(self, version: Version[Servable]) -> None:
        if version.state is State.UNLOADING and not version.in_flight:
            version.state, version.servable = State.END, None
            _give_back_memory()
            logger.info("%s unloaded", version)

    def _relabel(self, model: _Model[Servable]) -> None:
        available = model.available()
        model.labels = {
            label: number if number in available else model.labels.get(label, number)
            for label, number in model.source.labels.items()
        }

    def _forget(self, model: _Model[Servable], folders: dict[int, Path]) -> None:
        """What need not be remembered of versions that are gone."""
        ended = sorted(number for number, version in model.versions.items() if version.state is State.END)
        for number in [number for number in ended if number not in folders][:-ENDED_SHOWN]:
            del model.versions[number]
        self._seen = {
            folder: seen
            for folder, seen in self._seen.items()
            if folder.parent != model.source.base or folder in folders.values()
        }

    def _say(self, path: Path, what: str) -> None:
        """Logs what stays as it is from poll to poll, once."""
        if self._said.get(path) != what:
            self._said[path] = what
            logger.warning("%s", what)


def _stopping() -> RequestError:
    return RequestError(Code.UNAVAILABLE, "the server is stopping: nothing is loaded any more")


def _give_back_memory() -> None:
    """To the system, what nothing refers to any more."""
    # Functions of TensorFlow refer to each other in circles and hold the weights until these are found. What lets one
    # circle go may be in another: two rounds find all of a model.
    for _ in range(3):
        if not gc.collect():
            break
    with suppress(AttributeError):  # the C library is not glibc, and needs no telling
        ctypes.CDLL(None).malloc_trim(0)


def content_of(folder: Path) -> Content:
    """Every file and folder below, itself included: name, size, and time of the last change of content or name.

    Times of change are the disk's (``st_ctime_ns``): copying tools set the others to whatever they like. What vanishes
    meanwhile is not listed.
    """
    found = []
    below = (Path(parent, name) for parent, folders, files in os.walk(folder) for name in folders + files)
    for path in (folder, *below):
        try:
            stat = path.stat()
        except OSError:
            continue
        found.append((path.relative_to(folder).as_posix(), stat.st_size, stat.st_ctime_ns))
    return tuple(sorted(found))
