"""How far something that takes seconds has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int | None], None]
"""Called with how much is done, and how much there is (``None``: not known)."""


@contextmanager
def show_progress(label: str, unit: str) -> Iterator[Progress]:
    """A bar with rate and time left on a terminal, a line at the end elsewhere; nothing where nothing is done.

    Lines that are printed meanwhile appear above the bar.

    Args:
      label: what is being done. unit: of what is counted, such as ``texts``; ``bytes`` are shown as MB.
    """
    if sys.stderr.isatty():
        from rich import progress as columns
        from rich.console import Console

        by_size = unit == "bytes"
        with columns.Progress(
            columns.TextColumn("{task.description}"),
            columns.BarColumn(),
            columns.DownloadColumn() if by_size else columns.MofNCompleteColumn(),
            columns.TransferSpeedColumn() if by_size else columns.TextColumn("{task.fields[rate]:,.0f} " + unit + "/s"),
            columns.TimeRemainingColumn(),
            console=Console(stderr=True),
        ) as bar:
            task = bar.add_task(label, total=None, rate=0.0, visible=False)
            start = time.monotonic()

            def update(done: int, total: int | None) -> None:
                rate = done / max(time.monotonic() - start, 1e-9)
                bar.update(task, completed=done, total=total, rate=rate, visible=True)

            yield update
        return
    start, last = time.monotonic(), 0

    def remember(done: int, total: int | None) -> None:
        nonlocal last
        last = done

    yield remember
    if last:
        seconds = time.monotonic() - start
        count, shown = (last / 1e6, "MB") if unit == "bytes" else (last, unit)
        rate = count / max(seconds, 1e-9)
        print(f"{label}: {count:,.0f} {shown} in {seconds:.1f} s, {rate:,.0f} {shown}/s", file=sys.stderr)
