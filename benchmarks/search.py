"""Compares the settings that are chosen from the data with those of a search, on validation queries.

    python benchmarks/search.py movielens-100k --trials 16

runs ``tfllmrec tune`` on one of the sets of quality.py and writes a section of benchmarks/RESULTS.md. The first trial
has the settings that ``fit`` chooses by itself. An interrupted search is resumed; for a complete one, only the section
is written.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from quality import SETS, files_of
from sections import made_by, replace_section

from tfllmrec.config import parse_config
from tfllmrec.runs.search import Search, resume, tune

MEASURED = ("ndcg@10", "recall@10", "recall@10/tail")


def section(search: Search, made: str) -> str:
    """Returns the text of the section: the rank of the first trial, and a table of all trials that were not pruned."""
    ranking = search.ranking
    settings = list(ranking[0].settings)
    place = [trial.number for trial in ranking].index(1) + 1
    pruned = sum(trial.state == "pruned" for trial in search.trials)
    rows = []
    for trial in ranking:
        measured = " | ".join(f"{trial.metrics[name] or 0:.4f}" for name in MEASURED)
        values = " | ".join(f"{trial.settings[name]:.3g}" for name in settings)
        name = "**1, from the data**" if trial.number == 1 else str(trial.number)
        rows.append(f"| {name} | {trial.selection or 0:.4f} | {measured} | {values} |")
    columns = ["trial", "selection value", *MEASURED, *(name.split(".")[1] for name in settings)]
    return "\n".join(
        [
            made,
            "",
            f"Validation queries. {len(search.trials)} trials, {pruned} of them given up early for falling behind. "
            f"What is chosen from the data comes in at place {place}. Most of what makes a trial good: "
            + ", ".join(f"{name.split('.')[1]} {share:.0%}" for name, share in list(search.importance.items())[:3])
            + ".",
            "",
            "| " + " | ".join(columns) + " |",
            "|---" + "|---:" * (len(columns) - 1) + "|",
            *rows,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of all data sets.")
    parser.add_argument("--out", type=Path, help="Folder of the search; by default runs/search/SET.")
    parser.add_argument("--trials", type=int, default=16)
    options = parser.parse_args()
    out = options.out or Path("runs/search") / options.set
    if (out / "search.json").is_file():
        search = resume(out, options.trials)
    else:
        search = tune(parse_config({"data": files_of(options.set, options.data)}), out, trials=options.trials)
    body = section(search, made_by(shlex.join(["python", *sys.argv]), 42))
    replace_section(f"{options.set}: settings from the data and a search", body)
    print(body)


if __name__ == "__main__":
    main()
