"""Loads and unloads versions of models while folders change and requests run.

A version is loaded before the version that it replaces is unloaded, so that one of them always answers. If a version
cannot be loaded, nothing changes. A request holds its version, which is unloaded only after the last request that holds
it has ended. All of this runs on one event loop, except reading the disk and loading, which run in threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tfllmrec.client.status import Code, RequestError, invalid
from tfllmrec.server.canary import CANARY, STABLE
from tfllmrec.server.models_config import ModelSource
from tfllmrec.serving.layout import version_folders


class Loaded(Protocol):
    """A loaded version.

    Attributes:
      alive: Whether it can still answer; if not, the version is loaded again.
    """

    @property
    def alive(self) -> bool: ...

    def close(self) -> None:
        """Releases all resources; called once, in a thread."""


Servable = TypeVar("Servable", bound=Loaded)

logger = logging.getLogger(__name__)

#: A folder is loaded when nothing in it has changed for this time, because it may still be being copied before.
SETTLED_S = 2.0
#: Loading a version that failed is tried again when its folder has changed; otherwise after ``RETRY_S``, and at most
#: ``RETRIES`` times.
RETRY_S, RETRIES = 60.0, 5
#: Largest number of unloaded versions without a folder that a model's status lists.
ENDED_SHOWN = 10


class State(IntEnum):
    """The state of a version, with the numbers of TF Serving's ``ModelVersionStatus``."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(eq=False)
class Version(Generic[Servable]):
    """One version of a model.

    Attributes:
      model: The name of the model.
      number: The number of the version.
      folder: The folder of the version.
      state: The state of the version.
      code: The status code of the failed load; OK if loading did not fail.
      error: The message of the failed load; ``""`` if loading did not fail.
      servable: The loaded version while the state is AVAILABLE or UNLOADING, otherwise ``None``.
      in_flight: The number of requests that hold the version.
      failures: The number of failed loads of the same content.
      tried_at: The monotonic time of the last load.
      tried_content: The content of the folder at the last load.
    """

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


#: The names, sizes and times of change of the files in a folder; they differ if the folder has changed.
Content = tuple[tuple[str, int, int], ...]


@dataclass
class _Model(Generic[Servable]):
    """A model that is served.

    Attributes:
      source: The folder of the model, and the versions to serve.
      labels: The version of each label.
      versions: The versions by number.
      successor: The same model in another base folder, from which no version could be loaded so far.
      seen: The content of each version's folder, and the monotonic time when it was first seen.
      said: The last warning about each folder.
    """

    source: ModelSource
    labels: dict[str, int] = field(default_factory=dict)
    versions: dict[int, Version[Servable]] = field(default_factory=dict)
    successor: _Model[Servable] | None = None
    seen: dict[Path, tuple[Content, float]] = field(default_factory=dict)
    said: dict[Path, str] = field(default_factory=dict)

    def available(self) -> list[int]:
        return sorted(number for number, version in self.versions.items() if version.state is State.AVAILABLE)


class Models(Generic[Servable]):
    """The models that are served.

    Args:
      load: Loads a version's folder, and returns the object that answers its requests; runs in a thread. If it raises
        an exception, the version cannot be loaded.
      settled_s: See ``SETTLED_S``.
      stable_first: Whether a request that names no version gets the version with the label ``stable``, if there is
        one, instead of the newest. If the stable version cannot be loaded, such a request gets the newest.
      on_load: Called with the version and the duration in seconds after each attempt to load; the version's state tells
        whether it succeeded.
    """

    def __init__(
        self,
        load: Callable[[Path], Servable],
        settled_s: float = SETTLED_S,
        on_load: Callable[[Version[Servable], float], None] = lambda version, seconds: None,
        stable_first: bool = False,
    ) -> None:
        self._load = load
        self._stable_first = stable_first
        self._settled_s = settled_s
        self._on_load = on_load
        self._models: dict[str, _Model[Servable]] = {}
        self._polling = asyncio.Lock()
        self._waiting: asyncio.Future[Servable | RequestError] | None = None
        self._stopped = False

    def names(self) -> list[str]:
        return sorted(self._models)

    def available(self, name: str) -> list[int]:
        """Returns the available versions of a model in ascending order."""
        return self._models[name].available()

    def serving(self) -> list[tuple[str, int, list[str]]]:
        """Returns the model, the number and the labels of each available version."""
        return [
            (name, number, sorted(label for label, labelled in model.labels.items() if labelled == number))
            for name, model in sorted(self._models.items())
            for number in model.available()
        ]

    # --- For requests ---------------------------------------------------------------------------------------------

    @contextmanager
    def hold(self, name: str, number: int | None = None, label: str | None = None) -> Iterator[Version[Servable]]:
        """Yields the version that a request names, by default the newest; it stays loaded inside the block.

        Args:
          name: The name of the model.
          number: The number of the version; ``None`` for none.
          label: A label instead of a number; ``None`` for none.

        Raises:
          RequestError: NOT_FOUND; INVALID_ARGUMENT for an unknown label; UNAVAILABLE while the version, or the first
            one of the model, is being loaded. The first two have TF Serving's messages.
        """
        version = self._find(name, self.labelled(name, label) if label else number)
        version.in_flight += 1
        try:
            yield version
        finally:
            version.in_flight -= 1
            self._release(version)

    def labelled(self, name: str, label: str) -> int:
        """Returns the number of the version with a label.

        Raises:
          RequestError: INVALID_ARGUMENT if the model does not have the label.
        """
        model = self._models.get(name)
        if model is None or label not in model.labels:
            raise invalid(f"Unrecognized servable version label: {label}")
        return model.labels[label]

    def canary_beside(self, version: Version[Servable]) -> int | None:
        """Returns the number of the canary if it is available and ``version`` is the stable version, else ``None``."""
        model = self._models.get(version.model)
        if model is None or model.labels.get(STABLE) != version.number:
            return None
        canary = model.labels.get(CANARY)
        return canary if canary != version.number and canary in model.available() else None

    def _find(self, name: str, number: int | None) -> Version[Servable]:
        model = self._models.get(name)
        available = model.available() if model else []
        if number == 0 and 0 not in available:
            number = None  # for ovmsclient and OpenVINO's server, 0 means no version
        chosen = (available[-1] if available else None) if number is None else number
        if number is None and self._stable_first and model is not None and STABLE in model.labels:
            stable = model.versions.get(model.labels[STABLE])
            if stable is not None and stable.state in (State.LOADING, State.AVAILABLE):
                chosen = stable.number  # also while it is loaded again, or the canary would get all users
        if model is not None:
            for version in model.versions.values():
                if version.state is State.LOADING and (version.number == chosen or not available):
                    raise RequestError(Code.UNAVAILABLE, f"{version} is being loaded; try again later")
        if model is None or chosen not in available:
            asked = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            there = f"available versions: {', '.join(map(str, available)) or 'none'}"
            if model is None:
                there = f"models: {', '.join(self.names()) or 'none'}"
            raise RequestError(Code.NOT_FOUND, f"Servable not found for request: {asked} ({there})")
        return model.versions[chosen]

    def status(self, name: str, number: int | None = None) -> list[Version[Servable]]:
        """Returns all versions of a model, newest first, or one of them.

        Raises:
          RequestError: NOT_FOUND with TF Serving's message.
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
        """Returns whether any model has neither a loaded nor a failed version, because it may become complete later."""
        return any(
            not any(version.servable is not None or version.error for version in model.versions.values())
            for model in self._models.values()
        )

    # --- Following the disk ---------------------------------------------------------------------------------------

    async def follow(self, sources: Sequence[ModelSource]) -> None:
        """Serves the models of ``sources`` from now on: loads and unloads versions, and returns when this is done.

        A call with the same sources looks for new versions. A label moves when its version is available.

        Raises:
          RequestError: UNAVAILABLE after :meth:`stop_loading`, if a version would have to be loaded.
        """
        async with self._polling:
            wanted = {source.name: source for source in sources}
            for name in self._models.keys() - wanted.keys():
                # Running requests keep their version; new requests do not find the model.
                for version in self._models.pop(name).versions.values():
                    self._retire(version)
            for name, source in wanted.items():
                model = self._models.setdefault(name, _Model(source))
                if model.source.base == source.base:
                    model.source, model.successor = source, None
                    await self._update(model)
                else:
                    # Versions with the same numbers in another folder are different versions. The successor is kept
                    # between calls, so that failures are remembered.
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
        """Returns TF Serving's message for each label whose version is not available."""
        return [
            f"Request to assign label to version {number} of model {source.name}, which is not currently available for "
            f"inference (label {label!r} stays where it was)"
            for source in sources
            for available in [self._models[source.name].available() if source.name in self._models else []]
            for label, number in source.labels.items()
            if number not in available
        ]

    def stop_loading(self) -> None:
        """Starts no more loads, and waits for none; a version whose load is still running is unloaded afterwards."""
        self._stopped = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(_stopping())

    async def close(self) -> None:
        """Unloads all versions; running requests keep theirs until they end."""
        await self.follow([])

    async def _update(self, model: _Model[Servable]) -> None:
        source = model.source
        try:
            folders = await asyncio.to_thread(version_folders, source.base)
        except OSError as error:
            _say(model, source.base, f"{source.name}: {source.base} cannot be read: {error}; nothing is unloaded")
            return
        _forget(model, folders)
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
        # A label, and the version that it names, stay until the label's new version is available.
        available = set(model.available())
        unmoved = {old for label, old in model.labels.items() if source.labels.get(label, old) not in available}
        held = unmoved & available
        for number in held & folders.keys():
            await self._ensure(model, number, folders[number])
        for version in list(model.versions.values()):
            if version.servable is not None and not version.servable.alive:
                self._retire(version)
        # Without a replacement, a version stays available, even if its folder was changed or deleted.
        if kept:
            for number in model.available():
                if number not in kept | held:
                    self._retire(model.versions[number])

    async def _ensure(self, model: _Model[Servable], number: int, folder: Path) -> bool:
        """Loads the version if necessary, and returns whether it is available."""
        version = model.versions.get(number)
        if version is not None and version.state is State.AVAILABLE:
            assert version.servable is not None
            if version.servable.alive:
                return True
        content = await asyncio.to_thread(content_of, folder)
        if not self._whole(model, folder, content):
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
        if version is not None and version.state is State.AVAILABLE:
            # Retired just before the new load, so that requests get the error that the version has ended until then,
            # and not that the version does not exist.
            logger.error("%s has ended: it is loaded again", version)
            self._retire(version)
        version = model.versions[number] = Version(model.source.name, number, folder, State.LOADING)
        version.failures, version.tried_at, version.tried_content = failures, now, content
        logger.info("%s is being loaded", version)
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
        """Loads a folder in a daemon thread, so that a stop of the server does not wait for it."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[Servable | RequestError] = loop.create_future()

        def finish(loaded: Servable | RequestError) -> None:
            if not waiting.done():
                waiting.set_result(loaded)
            elif not isinstance(loaded, RequestError):  # the load was abandoned
                _close(loaded)

        def load() -> None:
            try:
                loaded: Servable | RequestError = self._load(folder)
            except RequestError as error:
                loaded = error
            except BaseException as error:  # a damaged model may raise anything, and the server must go on
                loaded = RequestError(Code.UNKNOWN, type(error).__name__)
                with suppress(Exception):  # the text of some errors cannot be read
                    loaded.message = str(error) or loaded.message
            try:
                loop.call_soon_threadsafe(finish, loaded)
            except RuntimeError:  # the loop is closed
                if not isinstance(loaded, RequestError):
                    loaded.close()

        thread = threading.Thread(target=load, name="load", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            return RequestError(Code.RESOURCE_EXHAUSTED, str(error))
        self._waiting = waiting
        try:
            return await waiting
        finally:
            self._waiting = None  # so that it does not keep the loaded version

    def _whole(self, model: _Model[Servable], folder: Path, content: Content) -> bool:
        """Returns whether a folder has a SavedModel, and has not changed for ``settled_s``.

        The time is measured by the clock of the disk or of this process; either suffices.
        """
        first = model.seen.get(folder)
        if first is None or first[0] != content:
            first = model.seen[folder] = content, time.monotonic()
        if not any(name == "saved_model.pb" and size for name, size, _ in content):
            _say(model, folder, f"{folder} has no saved_model.pb yet: it is not loaded")
            return False
        newest = max(changed for _, _, changed in content) / 1e9
        if time.monotonic() - first[1] < self._settled_s and not newest < time.time() - self._settled_s:
            return False
        model.said.pop(folder, None)
        return True

    def _retire(self, version: Version[Servable]) -> None:
        if version.state is State.AVAILABLE:
            version.state = State.UNLOADING
            self._release(version)

    def _release(self, version: Version[Servable]) -> None:
        if version.state is State.UNLOADING and not version.in_flight:
            assert version.servable is not None
            _close(version.servable)
            version.state, version.servable = State.END, None
            logger.info("%s unloaded", version)

    def _relabel(self, model: _Model[Servable]) -> None:
        available = model.available()
        model.labels = {
            label: number if number in available else model.labels.get(label, number)
            for label, number in model.source.labels.items()
        }


def _forget(model: _Model[Servable], folders: dict[int, Path]) -> None:
    """Drops old versions without a folder, except for the last :data:`ENDED_SHOWN`, and data about missing folders."""
    ended = sorted(number for number, version in model.versions.items() if version.state is State.END)
    for number in [number for number in ended if number not in folders][:-ENDED_SHOWN]:
        del model.versions[number]
    kept = set(folders.values())
    for remembered in (model.seen, model.said):
        for folder in remembered.keys() - kept:
            del remembered[folder]


def _say(model: _Model[Servable], path: Path, what: str) -> None:
    """Logs a warning once, and not again at each poll while it stays the same."""
    if model.said.get(path) != what:
        model.said[path] = what
        logger.warning("%s", what)


def _close(servable: Loaded) -> None:
    try:
        threading.Thread(target=servable.close, name="unload").start()
    except RuntimeError:  # the system has no thread left
        servable.close()


def _stopping() -> RequestError:
    return RequestError(Code.UNAVAILABLE, "the server is stopping: nothing is loaded any more")


def content_of(folder: Path) -> Content:
    """Returns the name, the size and the time of the last change of a folder and of every file and folder in it.

    The time is ``st_ctime_ns``, which the disk sets, because copying tools may set the other times to any value. Files
    that are deleted in the meantime are not listed.
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
