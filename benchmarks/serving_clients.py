"""Runs clients of a served model in a separate process without TensorFlow; started by ``benchmarks/serving.py``.

    python benchmarks/serving_clients.py REQUESTS.json

REQUESTS.json has for each model the method of :class:`tfllmrec.client.client.Client` that sends its requests, and the
arguments of the calls. Each line of JSON on stdin, an :class:`Order`, is answered by a line on stdout, a :class:`Done`.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfllmrec.client.client import Client


@dataclass(frozen=True)
class Order:
    """An order to run clients, each of which sends its next request as soon as it has an answer.

    Attributes:
      address: The address of the server.
      model: The name of the model.
      clients: The number of clients.
      seconds: The time after which no client sends another request; each sends at least one.
    """

    address: str
    model: str
    clients: int
    seconds: float


@dataclass(frozen=True)
class Done:
    """The figures of an order.

    Attributes:
      milliseconds: The time of each call.
      seconds: The time until the last call ended.
      cpu_seconds: The CPU time of this process.
    """

    milliseconds: list[float]
    seconds: float
    cpu_seconds: float


def ask(order: Order, method: str, calls: list[dict[str, Any]]) -> Done:
    """Carries out an order; an error of the server is raised."""

    def one(number: int, until: float) -> list[float]:
        taken, call = [], getattr(client, method)
        for arguments in itertools.islice(itertools.cycle(calls), number * len(calls) // order.clients, None):
            begun = time.perf_counter()
            call(**arguments)
            ended = time.perf_counter()
            taken.append(1000 * (ended - begun))
            if ended >= until:
                break
        return taken

    with (
        Client(order.address, order.model, deadline_s=60, retries=0, connections=order.clients) as client,
        ThreadPoolExecutor(order.clients) as pool,
    ):
        getattr(client, method)(**calls[0])  # connects
        begun, cpu = time.perf_counter(), time.process_time()
        taken = pool.map(one, range(order.clients), itertools.repeat(begun + order.seconds))
        return Done(list(itertools.chain(*taken)), time.perf_counter() - begun, time.process_time() - cpu)


def main() -> None:
    requests = json.loads(Path(sys.argv[1]).read_text())
    for line in sys.stdin:
        order = Order(**json.loads(line))
        print(json.dumps(asdict(ask(order, **requests[order.model]))), flush=True)


if __name__ == "__main__":
    main()
