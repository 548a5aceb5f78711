"""benchmarks/RESULTS.md: a heading for each data set or measurement, each written by the command that it names."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
OPENING = """# Results

Data sets are written by `python benchmarks/record.py`; every figure is a run's own `metrics.json`. Whole catalogue,
known items masked, ties at their expected value; ± is half the 95 % bootstrap interval over people. Settings of the
model and of every baseline are chosen on validation; test is looked at once. What else was measured names its command.
"""


def write_section(title: str, text: str) -> None:
    """Replaces the section of that title, or adds it; all others are kept."""
    old = RESULTS.read_text() if RESULTS.exists() else ""
    sections = {part.splitlines()[0]: part for part in re.split(r"^## ", old, flags=re.MULTILINE)[1:]}
    sections[title] = f"{title}\n\n{text}"
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text("\n".join([OPENING, *(f"## {part.strip()}\n" for _, part in sorted(sections.items()))]))
    temporary.replace(RESULTS)


def where_and_when() -> str:
    """Date, machine and processor, for the line under a heading."""
    return f"{datetime.date.today().isoformat()}, {platform.machine()}, {os.cpu_count()} cores, {_processor()}"


def _processor() -> str:
    """The processor's name, where the system tells."""
    try:
        return re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[0]
    except (OSError, IndexError):
        return platform.processor()
