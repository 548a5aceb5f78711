"""Writes a run's scoreboard into benchmarks/RESULTS.md: figures, command, seed, date, versions, machine.

    python benchmarks/record.py runs/beauty --command "tfllmrec fit configs/beauty.yaml --out runs/beauty"

The section of a data set is replaced, all others are kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
from pathlib import Path

from tfllmrec.evaluation.protocol import Result
from tfllmrec.evaluation.report import as_markdown

RESULTS = Path(__file__).with_name("RESULTS.md")
OPENING = """# Results

Written by `python benchmarks/record.py`; every figure is a run's own `metrics.json`. Whole catalogue, known items
masked, ties at their expected value; ± is half the 95 % bootstrap interval over people. Settings of the model and of
every baseline are chosen on validation; test is looked at once.
"""


def section(run: Path, command: str) -> str:
    """One data set: how it was made, and the table."""
    record = json.loads((run / "metrics.json").read_text())
    how = json.loads((run / "run.json").read_text())
    data, split = record["data"], record["split"]
    results = {
        name: Result(figures, record["intervals"][name], {}, {}, []) for name, figures in record["results"].items()
    }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {processor()}"
    took = f"{how['seconds']:.0f} s, peak memory {how['peak_memory_mb'] / 1000:.1f} GB"
    versions = ", ".join(f"{name} {version}" for name, version in how["versions"].items())
    return (
        f"## {data['name']}\n\n"
        f"`{command}` (seed {how['seed']}, {took}, {datetime.date.today().isoformat()}, {machine})\n\n"
        f"{data['users']:,} users, {data['items']:,} items, {data['events']:,} events; {split['kind']} split, "
        f"{split['queries']:,} test queries, of whose targets {split['targets/tail']:,} are tail and "
        f"{split['targets/cold']:,} cold items.\n\n"
        f"{as_markdown(results)}\n"
        f"Chosen from the data: {'; '.join(how['chosen'])}.\n\n"
        f"Versions: {versions}.\n"
    )


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        return re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[0]
    except (OSError, IndexError):
        return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--command", required=True, help="The command that made the run.")
    options = parser.parse_args()
    old = RESULTS.read_text() if RESULTS.exists() else ""
    sections = {part.splitlines()[0]: part for part in re.split(r"^## ", old, flags=re.MULTILINE)[1:]}
    new = section(options.run, options.command).removeprefix("## ")
    sections[new.splitlines()[0]] = new
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text("\n".join([OPENING, *(f"## {part.strip()}\n" for _, part in sorted(sections.items()))]))
    temporary.replace(RESULTS)


if __name__ == "__main__":
    main()
