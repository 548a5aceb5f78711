"""The file of results: one section a benchmark, replaced when it is run again."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path

from tfllmrec.durable import write_text

RESULTS = Path(__file__).with_name("RESULTS.md")
OPENING = """# Results

Written by the commands of this folder. Quality (`python benchmarks/quality.py`): every figure is a run's own
`metrics.json`; whole catalogue, known items masked, ties at their expected value; ± is half the 95 % bootstrap interval
over people. Settings of the model and of every baseline are chosen on validation; test is looked at once. Speed
(`python benchmarks/speed.py`) and serving (`python benchmarks/serving.py`): contenders take turns in one run, because
machines differ and are seldom quiet.
"""


def replace_section(title: str, body: str) -> None:
    """Writes the section ``title`` into RESULTS.md, in the place of an older one; all others are kept."""
    old = RESULTS.read_text() if RESULTS.exists() else ""
    parts = {part.splitlines()[0]: part.strip() for part in re.split(r"^## ", old, flags=re.MULTILINE)[1:]}
    parts[title] = f"{title}\n\n{body.strip()}"
    write_text(RESULTS, "\n".join([OPENING, *(f"## {part}\n" for _, part in sorted(parts.items()))]))


def made_by(command: str, seed: int | None = None, date: str | None = None) -> str:
    """A line on how figures came about: command, seed, date (today), machine."""
    # Where things lie on this machine says nothing to others.
    command = re.sub(r"(?<![^\s=])/\S*/(?=[^/\s]+/[^/\s]+)", "", command)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {_processor()}"
    drawn = "" if seed is None else f"seed {seed}, "
    return f"`{command}` ({drawn}{date or datetime.date.today().isoformat()}, {machine})"


def _processor() -> str:
    """The processor's name, where the system tells."""
    try:
        return re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[0]
    except (OSError, IndexError):
        return platform.processor()
