"""How far the encoding of many texts has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]
"""Called with how many texts are done, and how many there are."""


@contextmanager
def show_progress(label: str = "Encoding text") -> Iterator[Progress]:
    """A progress bar with texts per second on a terminal, a line at the end elsewhere; nothing where nothing is done.

    Yields the callback for :meth:`TextEncoder.encode` and for ``encode_items``.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        rate = TextColumn("{task.fields[rate]:,.0f} texts/s")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=None, rate=0.0, visible=False)
            start = time.monotonic()

            def update(done: int, total: int) -> None:
                rate = done / max(time.monotonic() - start, 1e-9)
                bar.update(task, completed=done, total=total, rate=rate, visible=True)

            yield update
        return
    start, last = time.monotonic(), 0

    def remember(done: int, total: int) -> None:
        nonlocal last
        last = done

    yield remember
    if last:
        seconds = time.monotonic() - start
        print(f"{label}: {last:,} texts in {seconds:.1f} s, {last / max(seconds, 1e-9):,.0f} texts/s", file=sys.stderr)
