"""Runs a version of a model in its own process, with which the server communicates through pipes.

All memory of a version is returned to the system when its process ends. In a single process, each change of a version
would leave several megabytes of fragmented memory. If a version crashes, or the system kills it for lack of memory, the
server and the other versions go on.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
import weakref
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfllmrec.client.status import Code, RequestError
from tfllmrec.server.batching import Joining
from tfllmrec.server.lists import Items
from tfllmrec.server.tensors import Signature, Tensors

if TYPE_CHECKING:
    from tfllmrec.server.servable import Servable

#: The time that is waited for a killed process to end.
ENDS_WITHIN_S = 5.0
#: When the memory of a process has grown by this much, it returns unused memory to the system.
GAIN_BYTES = 64 << 20

#: Held while processes are started and exit codes are read, which ``multiprocessing`` supports in one thread at a time.
_processes = threading.Lock()
_running: weakref.WeakSet[ModelProcess] = weakref.WeakSet()


class ModelProcess:
    """Loads a version in a new process, and calls it there.

    Attributes:
      signatures: The signatures by name.
      joining: For each signature, the object that joins its requests.
      calls: For each signature, the function that calls it.
      definitions: The serialized SignatureDefs.
      metadata: The same SignatureDefs as JSON.
      items: The strata of the items.
      process: The process of the version.

    Args:
      folder: The folder of the version, with ``saved_model.pb``.
      calls: The number of concurrent calls; further calls wait.

    Raises:
      RequestError: The folder cannot be loaded, or its process has ended.
    """

    def __init__(self, folder: Path, calls: int) -> None:
        context = _context()
        pipes = [context.Pipe() for _ in range(calls)]
        theirs = [pipe for _, pipe in pipes]
        self.process = context.Process(
            target=_run, args=(folder, theirs), name=f"{folder.parent.name}/{folder.name}", daemon=True
        )
        self._ended = False
        _start(self.process)
        _running.add(self)
        for pipe in theirs:  # the process has its own copies; if these stayed open, its end would not be noticed
            pipe.close()
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._idle.put(pipes[0][0])
        try:
            described = self._ask()
        except RequestError:
            self.close()
            raise
        for ours, _ in pipes[1:]:
            self._idle.put(ours)
        self.signatures: dict[str, Signature] = described["signatures"]
        self.joining: dict[str, Joining] = described["joining"]
        self.definitions: dict[str, bytes] = described["definitions"]
        self.metadata: dict[str, Any] = described["metadata"]
        self.items: Items = described["items"]
        self.calls = {name: partial(self.call, name) for name in self.signatures}

    @property
    def alive(self) -> bool:
        return not self._has_ended()

    def call(self, signature: str, inputs: Tensors) -> Tensors:
        """Runs a signature on checked inputs; blocks.

        Raises:
          RequestError: The error of the model, or UNAVAILABLE if the process has ended.
        """
        answer: Tensors = self._ask(signature, inputs)
        return answer

    def close(self) -> None:
        """Kills the process, even during a call; a second call has no effect."""
        self.process.kill()
        self._has_ended(ENDS_WITHIN_S)
        with _processes:
            self.process.join(0)

    def _has_ended(self, within_s: float = 0.0) -> bool:
        # The result is stored, because the sentinel looks as if the process still ran just after another thread has
        # read the exit code.
        self._ended = self._ended or bool(wait([self.process.sentinel], within_s))
        return self._ended

    def _ask(self, *question: object) -> Any:
        """Sends a question and returns the answer.

        Without a question: returns the first message of the process, which describes the version.
        """
        pipe = self._idle.get()
        try:
            if question:
                pipe.send(question)
            answer = pipe.recv()
        except (EOFError, OSError):
            raise RequestError(Code.UNAVAILABLE, f"the process of {self.process.name} has ended{self._how()}") from None
        except BaseException:
            self.process.kill()  # later answers would no longer match their questions
            raise
        finally:
            self._idle.put(pipe)
        if isinstance(answer, _Failure):
            raise RequestError(answer.code, answer.message)
        return answer

    def _how(self) -> str:
        self._has_ended(ENDS_WITHIN_S)
        with _processes:
            code = self.process.exitcode
        if code is None or code >= 0:
            return "" if code is None else f" with exit code {code}"
        with suppress(ValueError):
            name = signal.Signals(-code).name
            return f" by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
        return f" by signal {-code}"


class _Failure:
    """The code and message of a :class:`RequestError`, which cannot be pickled; sent instead of an answer."""

    def __init__(self, error: RequestError) -> None:
        self.code, self.message = error.code, error.message


@atexit.register
def _kill_running() -> None:
    """Kills all processes at exit, before ``multiprocessing`` waits for them without a time limit."""
    for one in list(_running):
        one.process.kill()


def _context() -> Any:
    """Returns a context that forks processes from one that has only imported TensorFlow.

    So they start within milliseconds and share the memory of the libraries. On macOS, which does not support this,
    processes are spawned.
    """
    if sys.platform == "darwin":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tfllmrec.server.servable"])
    return context


def _start(process: Any) -> None:
    """Starts a process that imports nothing from the working directory and that Ctrl-C does not reach."""
    with _processes:
        before = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the process inherits the mask
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            if before is None:
                del os.environ["PYTHONSAFEPATH"]
            else:
                os.environ["PYTHONSAFEPATH"] = before


def _run(folder: Path, pipes: list[Connection]) -> None:
    """Runs in the new process: loads and describes the version, and answers until the server has ended."""
    # Ctrl-C and a stop of the service send signals to all processes; only the server reacts to them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    from tfllmrec.server.servable import Servable

    try:
        servable = Servable(folder)
    except Exception as error:  # TensorFlow raises nearly anything for a damaged model
        pipes[0].send(_Failure(_as_request_error(error)))
        return
    pipes[0].send(
        {
            "signatures": servable.signatures,
            "joining": servable.joining,
            "definitions": {name: one.SerializeToString() for name, one in servable.definitions.items()},
            "metadata": servable.metadata,
            "items": servable.items,
        }
    )
    memory = _Memory()
    threads = [threading.Thread(target=_answer, args=(servable, pipe, memory), daemon=True) for pipe in pipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)  # skips the shutdown of TensorFlow, which takes seconds


def _end_with_the_server() -> None:
    server = multiprocessing.parent_process()
    assert server is not None
    server.join()
    os._exit(1)


def _answer(servable: Servable, pipe: Connection, memory: _Memory) -> None:
    """Answers the calls of one pipe until it is closed."""
    try:
        while True:
            signature, inputs = pipe.recv()
            answer: Tensors | _Failure
            try:
                answer = servable.call(signature, inputs)
            except Exception as error:
                answer = _Failure(_as_request_error(error))
            pipe.send(answer)
            inputs = answer = {}  # so that they are not kept until the next call
            memory.give_back()
    except (EOFError, OSError):
        return
    except BaseException:  # such as no memory for the message; without an exit, the server would wait forever
        os._exit(1)


class _Memory:
    """Returns unused memory to the system after the memory of the process has grown by :data:`GAIN_BYTES`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._least = resident_bytes()

    def give_back(self) -> None:
        if resident_bytes() < self._least + GAIN_BYTES or not self._lock.acquire(blocking=False):
            return
        try:
            give_back_memory()
            self._least = resident_bytes()
        finally:
            self._lock.release()


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    return RequestError(Code.UNKNOWN, str(error) or type(error).__name__)


def resident_bytes() -> int:
    """Returns the resident memory of this process; 0 on systems without ``/proc``, which only Linux has."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return 0


def give_back_memory() -> None:
    """Returns unused memory to the system."""
    with suppress(AttributeError):  # the C library is not glibc, and has no such function
        ctypes.CDLL(None).malloc_trim(0)
