"""A version of a model in a process of its own, which the server asks through pipes.

All memory of a version goes back to the system when its process ends. Within one process it would not: versions that
come and go leave it in pieces, several megabytes a swap. A version that crashes, or that the system kills for lack of
memory, takes neither the server nor other versions along.
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

#: How long a killed process may take to end.
ENDS_WITHIN_S = 5.0
#: Memory that a process gains before it gives back what it does not use.
GAIN_BYTES = 64 << 20

#: The module ``multiprocessing`` starts processes and reads their exit codes in one thread at a time.
_processes = threading.Lock()
_running: weakref.WeakSet[ModelProcess] = weakref.WeakSet()


class ModelProcess:
    """Loads a version in a new process, and asks it.

    Attributes:
      signatures: the signatures, by name.
      joining: how requests to each signature are joined.
      calls: for each signature, the function that answers it.
      definitions: the SignatureDefs, serialized.
      metadata: the same SignatureDefs as JSON.
      items: the strata of the items.
      process: the operating system's process that has the version.

    Args:
      folder: the version's, with ``saved_model.pb``.
      calls: how many calls may run at the same time; more wait.

    Raises:
      RequestError: the folder cannot be loaded, or its process has ended.
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
        for pipe in theirs:  # the process has its own copies; with these open, its end would not be seen
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
          RequestError: the model's own, or UNAVAILABLE where the process has ended.
        """
        answer: Tensors = self._ask(signature, inputs)
        return answer

    def close(self) -> None:
        """Ends the process, in the middle of a call if need be; a second time it does nothing."""
        self.process.kill()
        self._has_ended(ENDS_WITHIN_S)
        with _processes:
            self.process.join(0)

    def _has_ended(self, within_s: float = 0.0) -> bool:
        # Remembered: just after another thread has read the exit code, the sentinel looks as if the process still ran.
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
            self.process.kill()  # question and answer no longer belong together
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
    """Code and message of a :class:`RequestError`, which cannot be pickled itself; sent instead of an answer."""

    def __init__(self, error: RequestError) -> None:
        self.code, self.message = error.code, error.message


@atexit.register
def _kill_running() -> None:
    """Before ``multiprocessing`` waits at the end of the program, which it does without a limit."""
    for one in list(_running):
        one.process.kill()


def _context() -> Any:
    """Starts processes from one that has imported TensorFlow and done nothing else.

    They start within milliseconds and share the memory of the libraries. macOS does not allow this.
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
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited, from the first moment on
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            if before is None:
                del os.environ["PYTHONSAFEPATH"]
            else:
                os.environ["PYTHONSAFEPATH"] = before


def _run(folder: Path, pipes: list[Connection]) -> None:
    """The process: loads the folder, describes it, and answers until the server has ended."""
    # Ctrl-C and a stop of the whole service reach all processes; the server decides what they mean.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    from tfllmrec.server.servable import Servable

    try:
        servable = Servable(folder)
    except Exception as error:  # whatever a damaged model makes TensorFlow raise
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
    os._exit(0)  # or TensorFlow would be taken down in order, which takes seconds


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
            inputs = answer = {}  # or they would be kept until the next call
            memory.give_back()
    except (EOFError, OSError):
        return
    except BaseException:  # no memory for a message, say: the server would wait for ever
        os._exit(1)


class _Memory:
    """Gives memory back to the system after calls that took much."""

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
    """Memory of this process; 0 where the system does not say (``/proc`` is Linux's)."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return 0


def give_back_memory() -> None:
    """To the system, memory that nothing uses any more."""
    with suppress(AttributeError):  # the C library is not glibc, and keeps nothing back
        ctypes.CDLL(None).malloc_trim(0)
