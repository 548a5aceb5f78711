"""Attacks the embedded server with excessive requests and shows its memory and the response times of another client.

    python benchmarks/attacks.py saved_models/movielens
    python benchmarks/attacks.py saved_models/movielens --only score explain

starts ``tfllmrec serve`` on the model in a separate process, reachable from this machine only, and prints a line for
each attack: the answer, the seconds until it arrived, how far the server's memory rose above its level at rest, and the
response times of another client, which requests recommendations during the attack. An attack is given up after
``--seconds``. If the server's memory rises more than ``--megabytes`` above its level at rest, it is killed, the line
says so, and a new server is started. The exit code is 1 if a server was killed or ended, or the other client failed.
Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
import urllib3
from served_process import served

from tfllmrec.client.client import Client
from tfllmrec.client.messages import MESSAGES, tensor_proto
from tfllmrec.errors import TfllmrecError
from tfllmrec.serving.layout import version_folders

SECONDS, MEGABYTES = 30.0, 3000.0
LOOK_S, PAUSE_S = 0.1, 0.05
SETTLES_S = 2.0  # wait after an attack, until the server has freed its memory
STRING, FLOAT, INT = 7, 1, 3
SHOWN = 90


class Attacked(Protocol):
    """The interface of a server that an attack needs; :class:`served_process.Served` implements it."""

    @property
    def addresses(self) -> dict[str, str]: ...

    def megabytes(self) -> float: ...


@dataclass(frozen=True)
class Target:
    """The server and model that an attack is sent to; addresses are ``HOST:PORT``."""

    rest: str
    grpc: str
    model: str
    seconds: float

    def post(self, body: bytes, **headers: str) -> str:
        """Sends a ``:predict`` request over REST and describes the response."""
        return self._post(f"models/{self.model}:predict", body, headers)

    def events(self, body: bytes, **headers: str) -> str:
        """Sends events over REST and describes the response."""
        return self._post("events", body, headers)

    def _post(self, path: str, body: bytes, headers: dict[str, str]) -> str:
        url = f"http://{self.rest}/v1/{path}"
        answer = urllib3.request("POST", url, body=body, headers=headers, timeout=self.seconds, retries=False)
        return _said(answer.status, answer.data)

    def predict(self, signature: str, compressed: bool = False, **inputs: Any) -> str:
        """Sends a Predict request over gRPC and describes the response."""
        request = MESSAGES["PredictRequest"]()
        request.model_spec.name, request.model_spec.signature_name = self.model, signature
        for name, tensor in inputs.items():
            request.inputs[name].CopyFrom(tensor)
        return self.send(request.SerializeToString(), compressed)

    def send(self, message: bytes, compressed: bool = False) -> str:
        """Sends these bytes as a Predict request over gRPC and describes the response."""
        compression = grpc.Compression.Gzip if compressed else None
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(self.grpc, options) as channel:
            call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            try:
                return f"OK, {len(call(message, timeout=self.seconds, compression=compression)):,} bytes"
            except grpc.RpcError as error:
                return _short(f"{error.code().name}: {error.details()}")

    def connect(self, count: int, sent: Sequence[bytes]) -> str:
        """Opens many connections that send these parts and then nothing more, and describes the responses."""
        return asyncio.run(self._connect(count, sent))

    async def _connect(self, count: int, sent: Sequence[bytes]) -> str:
        async def one() -> str:
            try:
                async with asyncio.timeout(self.seconds):
                    reader, writer = await asyncio.open_connection(*self.rest.split(":"))
                    try:
                        for part in sent:
                            writer.write(part)
                            await writer.drain()
                        return (await reader.readline()).decode(errors="replace").strip() or "closed"
                    finally:
                        writer.close()
            except TimeoutError:
                return "silence"
            except OSError as error:
                return type(error).__name__

        answers = Counter(await asyncio.gather(*(one() for _ in range(count))))
        return ", ".join(f"{count} x {answer}" for answer, count in answers.most_common(3))


Attack = Callable[[Target], str]


@dataclass
class Outcome:
    """The outcome of one attack.

    Attributes:
      name: The name of the attack.
      answer: A description of the server's response.
      seconds: The time until the response arrived.
      peak_mb: The largest rise of the server's memory above its level at rest.
      waits: The response times of the other client, in seconds.
      failures: The errors of the other client.
      killed: Whether the server was killed because its memory exceeded the bound.
      ended: Whether the server ended by itself.
    """

    name: str
    answer: str = ""
    seconds: float = 0.0
    peak_mb: float = 0.0
    waits: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    killed: bool = False
    ended: bool = False

    @property
    def passed(self) -> bool:
        return bool(self.waits) and not (self.failures or self.killed or self.ended)

    def row(self) -> str:
        answer = "**killed: its memory passed the bound**" if self.killed else self.answer.replace("|", "/")
        answer = "**the server ended**" if self.ended and not self.killed else answer
        waits = (
            f"{len(self.waits)}, {statistics.median(self.waits):.2f}, {max(self.waits):.2f}" if self.waits else "none"
        )
        failures = f"; {len(self.failures)} failed: {_short(self.failures[0])}" if self.failures else ""
        return f"| {self.name} | {answer} | {self.seconds:.1f} | {self.peak_mb:,.0f} | {waits}{failures} |"


HEADER = """| attack | answer | seconds | peak MB over rest | another client: answers, median s, longest s |
|---|---|---:|---:|---|"""


def tensor(dtype: int, sizes: Sequence[int], **values: Any) -> Any:
    """Returns a ``TensorProto`` of any shape, whatever the number of values; a single value stands for all elements."""
    made = MESSAGES["TensorProto"](dtype=dtype, **values)
    for size in sizes:
        made.tensor_shape.dim.add(size=size)
    return made


def _history(rows: int, columns: int = 1) -> dict[str, Any]:
    return {
        "history": tensor(STRING, [rows, columns], string_val=[b"x"]),
        "ratings": tensor(FLOAT, [rows, 0]),
    }


def _recommend(rows: int) -> dict[str, Any]:
    exclude = tensor(STRING, [rows, 0])
    return {**_history(rows), "exclude": exclude, "k": tensor(INT, [rows], int_val=[10])}


def _body(signature: str, **inputs: Any) -> bytes:
    return json.dumps({"signature_name": signature, "inputs": inputs}).encode()


def _search_tokens(target: Target) -> str:
    names = ("input_word_ids", "input_mask", "input_type_ids")
    tokens = {name: tensor(INT, [8000, 512], int_val=[1]) for name in names}
    rest = {name: value for name, value in _recommend(8000).items() if name != "ratings"}
    return target.predict("search_tokens", **tokens, **rest)


def _mutated(target: Target) -> str:
    """Sends messages with a few bytes changed at random, with a fixed seed."""
    request = MESSAGES["PredictRequest"]()
    request.model_spec.name, request.model_spec.signature_name = target.model, "recommend"
    for name, value in _recommend(2).items():
        request.inputs[name].CopyFrom(value)
    message, draw = request.SerializeToString(deterministic=True), random.Random(42)
    ends, answers = time.monotonic() + target.seconds / 2, Counter[str]()
    for _ in range(300):
        changed = bytearray(message)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        answers[target.send(bytes(changed)).split(":")[0].split(",")[0]] += 1
        if time.monotonic() > ends:
            break
    return ", ".join(f"{count} x {code}" for code, count in answers.most_common(5))


def _start(target: Target, *headers: str) -> bytes:
    return "\r\n".join([f"POST /v1/models/{target.model}:predict HTTP/1.1", "host: 127.0.0.1", *headers]).encode()


def _bodies(target: Target) -> str:
    """Opens 400 connections that send all but the last byte of a large body."""
    size, part = int(7.9 * 2**20), b" " * 65_536
    whole, rest = divmod(size - 1, len(part))
    start = _start(target, f"content-length: {size}", "", "")
    return target.connect(400, [start, *[part] * whole, part[:rest]])


def _gzip_bomb(target: Target) -> str:
    return target.post(gzip.compress(bytes(200 << 20), 1), **{"content-encoding": "gzip"})


def _row_of(items: int) -> dict[str, Any]:
    return {**_history(1), "items": tensor(STRING, [1, items], string_val=[b"x"])}


ATTACKS: dict[str, Attack] = {
    "score: 5,000,000 rows without elements": lambda t: t.predict(
        "score", history=tensor(STRING, [5_000_000, 0]), ratings=tensor(FLOAT, [5_000_000, 0])
    ),
    "score: 120 KB over REST": lambda t: t.post(
        _body("score", ratings=[[]] * 5000, **dict.fromkeys(("history", "event_fields", "context"), [[""]] * 5000))
    ),
    "search_tokens: one value for [8000, 512]": _search_tokens,
    "encode: 100,000 texts of a letter": lambda t: t.predict("encode", text=tensor_proto("text", ["a"] * 100_000)),
    "encode: one text for 9,000": lambda t: t.predict("encode", text=tensor(STRING, [9000], string_val=[b"a " * 500])),
    "explain: 1,000,000 items": lambda t: t.predict("explain", **_row_of(1_000_000)),
    "explain: 7,000 items": lambda t: t.predict("explain", **_row_of(7000)),
    "rank: 1,000,000 items": lambda t: t.predict("rank", **_row_of(1_000_000)),
    "recommend: 100,000 rows": lambda t: t.predict("recommend", **_recommend(100_000)),
    "recommend: 5,000 rows": lambda t: t.predict("recommend", **_recommend(5000)),
    "recommend_full: a category 100,000 times": lambda t: t.predict(
        "recommend_full", **_recommend(1), categories=tensor(STRING, [1, 100_000], string_val=[b"x"])
    ),
    "recommend_full: 1,000,000 entries": lambda t: t.predict(
        "recommend_full", **_recommend(1), context=tensor(STRING, [1, 1_000_000], string_val=[b"a=b"])
    ),
    "recommend_full: 2,000 lines for each of 1,000 events": lambda t: t.predict(
        "recommend_full",
        history=tensor(STRING, [1, 1000], string_val=[b"x"]),
        event_fields=tensor(STRING, [1, 1000], string_val=[b"a=b\n" * 2000]),
    ),
    # The events are of an item that the MovieLens models know; a model that reads texts of events encodes them.
    "recommend_full: 1,900,000 events": lambda t: t.predict(
        "recommend_full", **_recommend(1) | {"history": tensor(STRING, [1, 1_900_000], string_val=[b"1"])}
    ),
    "bodies: 400 x 7.9 MB": _bodies,
    "bodies: gzip of 200 MB": _gzip_bomb,
    "events: 4,000,000 lines": lambda t: t.events(
        gzip.compress(b"{\n" * 4_000_000), **{"content-type": "application/x-ndjson", "content-encoding": "gzip"}
    ),
    "bodies: gzip of 100 MB over gRPC": lambda t: t.send(bytes(100 << 20), compressed=True),
    "JSON: 2,600,000 lists": lambda t: t.post(
        b'{"signature_name": "score", "inputs": {"history": [' + b"[]," * 2_600_000 + b"[]]}}"
    ),
    "JSON: nested 1,000,000 deep": lambda t: t.post(b"[" * 1_000_000),
    "JSON: 1e400": lambda t: t.post(b'{"inputs": {"k": [1e400]}}'),
    "headers: slow, 200 connections": lambda t: t.connect(200, [_start(t, "x-a: ")]),
    "headers: 10 MB": lambda t: t.connect(1, [_start(t, ""), *[b"x-a: " + b"b" * 65_000 + b"\r\n"] * 160]),
    "connections: 500 idle": lambda t: t.connect(500, []),
    "messages: 300 mutated": _mutated,
}


def attack(
    server: Attacked,
    model: str,
    name: str,
    run: Attack,
    seconds: float,
    bound_mb: float,
    rest_mb: float,
    kill: Callable[[], None],
) -> Outcome:
    """Runs one attack on a server that is ready, while another client sends requests.

    Args:
      server: The server.
      model: The name of the model.
      name: The name of the attack.
      run: The attack.
      seconds: The time after which the attack is given up.
      bound_mb: The bound for the rise of the memory above ``rest_mb``; if it is exceeded, ``kill`` is called.
      rest_mb: The server's memory at rest.
      kill: Kills the server.
    """
    rest, rpc = (urlsplit(server.addresses[protocol]).netloc for protocol in ("REST", "gRPC"))
    outcome, stop = Outcome(name), threading.Event()
    other = threading.Thread(target=_ask, args=(server.addresses["REST"], model, seconds, outcome, stop), daemon=True)
    other.start()

    def answer() -> None:
        begun = time.perf_counter()
        try:
            outcome.answer = run(Target(rest, rpc, model, seconds))
        except (OSError, urllib3.exceptions.HTTPError) as error:
            outcome.answer = _short(f"{type(error).__name__}: {error}")
        outcome.seconds = time.perf_counter() - begun

    attacker = threading.Thread(target=answer, daemon=True)
    attacker.start()
    ends = time.monotonic() + seconds + SETTLES_S
    while attacker.is_alive() and time.monotonic() < ends:
        attacker.join(LOOK_S)
        megabytes = server.megabytes()
        outcome.peak_mb = max(outcome.peak_mb, megabytes - rest_mb)
        outcome.ended = not megabytes
        outcome.killed = outcome.peak_mb > bound_mb
        if outcome.ended or outcome.killed:
            break
    if attacker.is_alive() and not outcome.answer:
        outcome.answer, outcome.seconds = "no answer", time.monotonic() - ends + seconds + SETTLES_S
    stop.set()
    if outcome.killed:
        kill()
    other.join(seconds)
    return outcome


def _ask(address: str, model: str, seconds: float, outcome: Outcome, stop: threading.Event) -> None:
    """Sends the requests of the other client: at least one, then more until ``stop`` is set."""
    with Client(address, model, deadline_s=seconds, retries=0) as client:
        while True:
            begun = time.perf_counter()
            try:
                client.recommend([])
                outcome.waits.append(time.perf_counter() - begun)
            except TfllmrecError as error:
                outcome.failures.append(str(error))
            if stop.wait(PAUSE_S):
                return


def _said(status: int, content: bytes) -> str:
    if status == 200:
        return f"200, {len(content):,} bytes"
    with suppress(ValueError, KeyError, TypeError):
        return _short(f"{status}: {json.loads(content)['error']}")
    return str(status)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="What `tfllmrec export` wrote: saved_models/NAME.")
    parser.add_argument("--only", nargs="+", default=[""], help="Beginnings of the names of attacks.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="After which an attack is given up.")
    parser.add_argument("--megabytes", type=float, default=MEGABYTES, help="Above rest; then the server is killed.")
    options = parser.parse_args()
    if not options.model.is_dir() or not version_folders(options.model):
        parser.error(f"{options.model}: expected a folder with a numbered version, as 'tfllmrec export' writes it")
    left = [name for name in ATTACKS if name.startswith(tuple(options.only))]
    if not left:
        parser.error(f"--only {' '.join(options.only)}: expected the beginning of one of: {', '.join(ATTACKS)}")
    passed, model = True, options.model.resolve().name
    print(HEADER, flush=True)
    while left:
        with TemporaryDirectory() as log, served(options.model, [model], "--log", log) as server:
            with Client(server.addresses["REST"], model, deadline_s=options.seconds) as client:
                client.recommend([])
            time.sleep(SETTLES_S)
            rest_mb = server.megabytes()
            while left and server.process.poll() is None:
                name = left.pop(0)
                outcome = attack(
                    server,
                    model,
                    name,
                    ATTACKS[name],
                    options.seconds,
                    options.megabytes,
                    rest_mb,
                    partial(os.killpg, server.process.pid, signal.SIGKILL),
                )
                passed &= outcome.passed
                print(outcome.row(), flush=True)
                if outcome.killed:
                    server.process.wait()
                time.sleep(SETTLES_S)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
