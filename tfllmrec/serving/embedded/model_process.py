"""A version of a model in a process of its own, which the server asks through pipes.

All memory of a version goes back to the system when its process ends. Within one process it would not: versions that
come and go leave it in pieces, several megabytes a swap. A version that crashes, or that the system kills for lack of
memory, takes neither the server nor other versions along.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfllmrec.serving.embedded.batching import Joining
from tfllmrec.serving.embedded.status import Code, RequestError
from tfllmrec.serving.embedded.tensors import Signature, Tensors

if TYPE_CHECKING:
    from tfllmrec.serving.embedded.servable import Servable

#: How long a process may take to end when it is told to.
ENDS_WITHIN_S = 5.0
#: An answer of more bytes leaves memory behind that is given back to the system.
LARGE_BYTES = 1 << 20


class ModelProcess:
    """Loads a version in a new process, and asks it.

    Attributes:
      signatures: by name; joining: how requests to each are joined; calls: the function that answers each.
      definitions: the SignatureDefs, serialized; metadata: the same as TF Serving prints them.
      process: where the version is.

    Args:
      folder: the version's, with ``saved_model.pb``.
      calls: how many calls may run at the same time; more wait.

    Raises:
      RequestError: the folder cannot be loaded, or its process has ended.
    """

    def __init__(self, folder: Path, calls: int) -> None:
        context = _context()
        pipes = [context.Pipe() for _ in range(calls)]
        self._pipes = [ours for ours, _ in pipes]
        theirs = [pipe for _, pipe in pipes]
        self.process = context.Process(
            target=_run, args=(folder, theirs), name=f"{folder.parent.name}/{folder.name}", daemon=True
        )
        self.process.start()
        for pipe in theirs:  # the process has its own copies; with these open, its end would not be seen
            pipe.close()
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._idle.put(self._pipes[0])
        try:
            described = self._ask()
        except RequestError:
            self.close()
            raise
        for pipe in self._pipes[1:]:
            self._idle.put(pipe)
        self.signatures: dict[str, Signature] = described["signatures"]
        self.joining: dict[str, Joining] = described["joining"]
        self.definitions: dict[str, bytes] = described["definitions"]
        self.metadata: dict[str, Any] = described["metadata"]
        self.calls = {name: partial(self.call, name) for name in self.signatures}

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def call(self, signature: str, inputs: Tensors) -> Tensors:
        """Runs a signature on checked inputs; blocks.

        Raises:
          RequestError: the model's own, or UNAVAILABLE where the process has ended.
        """
        answer: Tensors = self._ask(signature, inputs)
        return answer

    def close(self) -> None:
        """Ends the process, in the middle of a call if need be; a second time it does nothing."""
        for pipe in self._pipes:
            pipe.close()
        self.process.terminate()
        self.process.join(ENDS_WITHIN_S)
        self.process.kill()

    def _ask(self, *question: object) -> Any:
        """The answer to a question; to none, the process' first word."""
        pipe = self._idle.get()
        try:
            if question:
                pipe.send(question)
            answer = pipe.recv()
        except (EOFError, OSError):
            raise RequestError(Code.UNAVAILABLE, f"the process of {self.process.name} has ended{self._how()}") from None
        finally:
            self._idle.put(pipe)
        if isinstance(answer, _Failure):
            raise RequestError(answer.code, answer.message)
        return answer

    def _how(self) -> str:
        self.process.join(1.0)
        code = self.process.exitcode
        if code is None or code >= 0:
            return "" if code is None else f" with exit code {code}"
        with suppress(ValueError):
            name = signal.Signals(-code).name
            return f" by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
        return f" by signal {-code}"


class _Failure:
    """What is sent in the place of an answer: an error, without what it holds."""

    def __init__(self, error: RequestError) -> None:
        self.code, self.message = error.code, error.message


def _context() -> Any:
    """Starts processes from one that has imported TensorFlow and done nothing else.

    They start within milliseconds and share the memory of the libraries. macOS does not allow this.
    """
    if sys.platform == "darwin":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tfllmrec.serving.embedded.servable"])
    return context


def _run(folder: Path, pipes: list[Connection]) -> None:
    """The process: loads the folder, describes it, and answers until the server has closed the pipes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the server decides what it means
    from tfllmrec.serving.embedded.servable import Servable

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
        }
    )
    threads = [threading.Thread(target=_answer, args=(servable, pipe), daemon=True) for pipe in pipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)  # or TensorFlow would be taken down in order, which takes seconds


def _answer(servable: Servable, pipe: Connection) -> None:
    """Answers the calls of one pipe until it is closed."""
    with suppress(EOFError, OSError):
        while True:
            signature, inputs = pipe.recv()
            size = sum(tensor.nbytes for tensor in inputs.values())
            answer: Tensors | _Failure
            try:
                answer = outputs = servable.call(signature, inputs)
                size += sum(tensor.nbytes for tensor in outputs.values())
            except Exception as error:
                answer = _Failure(_as_request_error(error))
            pipe.send(answer)
            inputs = answer = outputs = {}  # or they would be kept until the next call
            if size > LARGE_BYTES:
                give_back_memory()


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    return RequestError(Code.UNKNOWN, str(error) or type(error).__name__)


def give_back_memory() -> None:
    """To the system, memory that nothing uses any more."""
    with suppress(AttributeError):  # the C library is not glibc, and keeps nothing back
        ctypes.CDLL(None).malloc_trim(0)
