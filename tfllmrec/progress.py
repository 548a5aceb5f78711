"""Reports the progress of work that takes seconds, and measures its memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tfllmrec.wording import visible

if TYPE_CHECKING:
    from rich.progress import Progress as Display

Progress = Callable[[int, int | None], None]
"""Called with the amount that is done, and the total amount (``None`` if unknown)."""

Tell = Callable[[str], None]
"""Called with a line on what was done or chosen."""


def to_stderr(line: str) -> None:
    """Prints a line to standard error; standard output is reserved for results."""
    print(visible(line), file=sys.stderr, flush=True)


def peak_memory_mb() -> float:
    """Returns the largest amount of memory that this process has had so far, in MB of a million bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


_display: Display | None = None
"""The current display on the terminal; a bar that starts inside another one shares it."""


@contextmanager
def show_progress(label: str, unit: str) -> Iterator[Progress]:
    """Shows a bar with rate and time left on a terminal; elsewhere, prints a line at the end.

    Nothing appears if nothing is done. Lines that are printed meanwhile appear above the bar, and a bar inside another
    one below it until it is done.

    Args:
      label: A description of the work.
      unit: The unit of the counts, such as ``texts``; ``bytes`` are shown in kB, MB and so on.
    """
    start, last, label = time.monotonic(), 0, visible(label)
    if sys.stderr.isatty():
        inside = _display is not None
        with _shared_display() as display:
            task = display.add_task(label, total=None, count="", rate="", visible=False)

            def update(done: int, total: int | None) -> None:
                count = f"{_count(done, unit)}/{'?' if total is None else _count(total, unit)}"
                rate = _rate(done, unit, time.monotonic() - start)
                display.update(task, completed=done, total=total, count=count, rate=rate, visible=True)

            try:
                yield update
            finally:
                if inside:
                    display.remove_task(task)
        return

    def remember(done: int, total: int | None) -> None:
        nonlocal last
        last = done

    yield remember
    if last:
        seconds = time.monotonic() - start
        count = _count(last, unit) + ("" if unit == "bytes" else f" {unit}")
        print(f"{label}: {count} in {seconds:.1f} s, {_rate(last, unit, seconds)}", file=sys.stderr)


@contextmanager
def _shared_display() -> Iterator[Display]:
    global _display
    if _display is not None:
        yield _display
        return
    from rich import progress as columns
    from rich.console import Console

    with columns.Progress(
        columns.TextColumn("{task.description}", markup=False),
        columns.BarColumn(),
        columns.TextColumn("{task.fields[count]}"),
        columns.TextColumn("{task.fields[rate]}"),
        columns.TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as _display:
        try:
            yield _display
        finally:
            _display = None


def _count(done: float, unit: str) -> str:
    """Formats a number as ``1,200``; for bytes, as ``7.5 kB``."""
    if unit != "bytes":
        return f"{done:,.0f}"
    from rich.filesize import decimal

    return decimal(int(done))


def _rate(done: int, unit: str, seconds: float) -> str:
    """Formats a rate as ``120 texts/s``; for less than one per second, as ``40 s each``."""
    rate = done / max(seconds, 1e-9)
    if unit == "bytes":
        return f"{_count(rate, unit)}/s"
    return f"{rate:,.0f} {unit}/s" if rate >= 1 or not done else f"{1 / rate:,.0f} s each"
