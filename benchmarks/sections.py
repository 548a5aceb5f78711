"""Reads and writes RESULTS.md, which has one section per benchmark, replaced when the benchmark is run again."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tfllmrec.durable import write_text
from tfllmrec.evaluation.report import MODEL, REFIT, markdown_table
from tfllmrec.runs.run import Run

RESULTS = Path(__file__).with_name("RESULTS.md")
MEASURED = ("ndcg@10", "recall@10", "recall@10/tail")
#: The end of the names of rows whose lists are in the order of the ranking model.
ORDERED = ", in the order of its ranking model"
OPENING = """# Results

The commands of this folder write this file: a section each, and this overview, whose figures are read from the
sections. [CONTRIBUTING.md](../CONTRIBUTING.md#measuring) lists the commands.

**What is measured.** Quality: ndcg@10 and recall@10 on test queries. The whole catalogue is ranked, known items are
masked, ties count at their expected rank. Settings of the hybrid and of every baseline are chosen on the same
validation queries; the test queries are used once. Head is the 20 % of items with the most training events, tail is
every other item, cold items have no training event. Speed and serving: the contenders take turns in one run,
because machines differ and are seldom idle.

**How to reproduce.** Each section begins with its command, seeds, date and machine. `python benchmarks/quality.py SET
--seeds 1 2 42` fits a data set with no other setting than its files and writes its section. Sections from before
2026-11-29 are of fits in which the item-item weights had no rank that was searched. `hybrid_refit` is the model that is
exported, which has also learned from the validation events; sections from before 2026-11-30 may lack it.

**What the marks mean.** ± is half the 95 % bootstrap interval over users. `*` marks a difference whose paired 95 %
interval excludes zero with three seeds and 500 targets, `(*)` one with fewer. `(.. to ..)` is the lowest and the
highest figure of a seed. Bold is the best of its column. *Italic* rows are published figures of others: "id-only"
models do not read text, and other differences are named. A column with fewer than 20 targets is not shown.
"""


def replace_section(title: str, body: str) -> None:
    """Writes a section to RESULTS.md, replaces an older one with this title, and updates the overview."""
    old = RESULTS.read_text() if RESULTS.exists() else ""
    parts = {part.splitlines()[0]: part.strip() for part in re.split(r"^## ", old, flags=re.MULTILINE)[1:]}
    parts[title] = f"{title}\n\n{body.strip()}"
    write_text(RESULTS, "\n".join([opening(parts), *(f"## {part}\n" for _, part in sorted(parts.items()))]))


def opening(parts: Mapping[str, str]) -> str:
    """Returns the text above all sections, with a table that has one row for each section of quality.py.

    Args:
      parts: The text of each section by its title.
    """
    rows = [
        _overview_row(title, part) for title, part in sorted(parts.items()) if "`python benchmarks/quality.py " in part
    ]
    if not rows:
        return OPENING
    header = ["data set", "seeds", *MEASURED, "best baseline, ndcg@10", "best published, ndcg@10"]
    return "\n".join([OPENING, *markdown_table(header, rows), ""])


def _overview_row(title: str, part: str) -> list[str]:
    seeds = re.search(r"\(seeds? ([\d, ]+?), \d{4}-", part)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("|")]
    labels, figures = rows[0], {row[0]: row[1:] for row in rows[2:]}

    def best(names: Iterable[str]) -> str:
        ndcg = {name: float(figures[name][0].strip("*").split()[0]) for name in names}
        name = max(ndcg, key=ndcg.__getitem__, default="")
        return f"{name} {ndcg[name]:.4f}" if name else "-"

    hybrid = dict(zip(labels[1:], figures[MODEL], strict=True))
    published = [name for name in figures if name.startswith("*")]
    link = f"[{title}](#{title.lower().replace(' ', '-')})"
    return [
        link,
        seeds.group(1) if seeds else "-",
        *(hybrid.get(label, "-").replace("*", "") for label in MEASURED),
        best(
            name
            for name in figures
            if name not in ("targets", *published) and name.removesuffix(ORDERED) not in (MODEL, REFIT)
        ),
        best(published),
    ]


def sections_of_runs(doc: str, kind: str, section: Callable[[Run, str], str]) -> None:
    """Runs the command line of a benchmark of complete runs: writes and prints a section of RESULTS.md for each.

    Args:
      doc: The docstring of the benchmark's module.
      kind: The section's title, before the name of the data set.
      section: Returns the body of the section for a run and the command.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="Complete runs.")
    for path in parser.parse_args().runs:
        run = Run.open(path)
        body = section(run, shlex.join(["python", *sys.argv]))
        replace_section(f"{kind}: {run.split.dataset.name}", body)
        print(body)


def made_by(command: str, seeds: int | Sequence[int] | None = None, date: str | None = None) -> str:
    """Returns a line on how figures were made: the command, seeds, date (by default today) and machine."""
    # Remove folders that exist only on this machine.
    command = re.sub(r"(?<![^\s=])/\S*/(?=[^/\s]+/[^/\s]+)", "", command)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {_processor()}"
    numbers = [seeds] if isinstance(seeds, int) else list(seeds or ())
    drawn = f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}, " if numbers else ""
    return f"`{command}` ({drawn}{date or datetime.date.today().isoformat()}, {machine})"


def _processor() -> str:
    """Returns the processor's name if the system provides it."""
    try:
        return re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[0]
    except (OSError, IndexError):
        return platform.processor()
