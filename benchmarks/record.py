"""Writes a run's scoreboard into benchmarks/RESULTS.md: figures, command, seed, date, versions, machine.

    python benchmarks/record.py runs/beauty --command "tfllmrec fit configs/beauty.yaml --out runs/beauty"

The section of a data set is replaced, all others are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sections import where_and_when, write_section

from tfllmrec.evaluation.protocol import Result
from tfllmrec.evaluation.report import as_markdown


def section(run: Path, command: str) -> tuple[str, str]:
    """One data set: its name; how it was made, and the table."""
    record = json.loads((run / "metrics.json").read_text())
    how = json.loads((run / "run.json").read_text())
    data, split = record["data"], record["split"]
    results = {
        name: Result(figures, record["intervals"][name], {}, {}, []) for name, figures in record["results"].items()
    }
    took = f"{how['seconds']:.0f} s, peak memory {how['peak_memory_mb'] / 1000:.1f} GB"
    versions = ", ".join(f"{name} {version}" for name, version in how["versions"].items())
    return data["name"], (
        f"`{command}` (seed {how['seed']}, {took}, {where_and_when()})\n\n"
        f"{data['users']:,} users, {data['items']:,} items, {data['events']:,} events; {split['kind']} split, "
        f"{split['queries']:,} test queries, of whose targets {split['targets/tail']:,} are tail and "
        f"{split['targets/cold']:,} cold items.\n\n"
        f"{as_markdown(results)}\n"
        f"Chosen from the data: {'; '.join(how['chosen'])}.\n\n"
        f"Versions: {versions}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--command", required=True, help="The command that made the run.")
    options = parser.parse_args()
    write_section(*section(options.run, options.command))


if __name__ == "__main__":
    main()
