"""Fits a data set without and with the texts that its users write.

    python benchmarks/user_text.py amazon-2018-magazine --seeds 1 2 42

amazon-2018-magazine has reviews, which are texts of events; movielens-small has tags with times, which become texts of
the events before them (:attr:`tfllmrec.data.Dataset.with_tags_written`). Each variant is fitted for each seed into
runs/user_text/SET, without baselines; an interrupted fit is resumed. Writes a section of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from sections import replace_section
from variants import fitted_variants, section

from tfllmrec.runs.run import Run

#: The ``data`` section of each set, with paths below the folder of all data, and a description of its texts.
SETS: dict[str, tuple[dict[str, Any], str]] = {
    "amazon-2018-magazine": (
        {
            "events": "amazon-2018-magazine/Magazine_Subscriptions_5.json.gz",
            "items": "amazon-2018-magazine/meta_Magazine_Subscriptions.json.gz",
            "fields": {"event.image": {"use": False}},  # URLs
        },
        "the title and the text of each review",
    ),
    "movielens-small": ({"source": "movielens-small"}, "the tags that a user wrote between two ratings"),
}
#: The beginning of the fit's line that says whether the texts are read.
CHOSEN = "texts of users"
#: The settings of each variant by name.
VARIANTS = {"without texts of users": ["model.user_text=false"], "with them": ["model.user_text=true"]}


def data_of(name: str, folder: Path) -> dict[str, Any]:
    """Returns the ``data`` section of a set whose files are below ``folder``."""
    told = {key: value if key == "fields" else str(folder / value) for key, value in SETS[name][0].items()}
    return {"name": name} | told


def about(name: str, run: Run) -> str:
    """Describes what the runs of a set have in common."""
    data, split = run.metrics["data"], run.metrics["split"]
    return (
        f"{data['users']:,} users, {data['items']:,} items, {data['events']:,} events; {split['kind']} split, "
        f"{split['queries']:,} test queries. The texts are {SETS[name][1]}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of all data sets.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="Each variant is fitted for each.")
    parser.add_argument("--out", type=Path, help="Folder of the runs; by default runs/user_text/SET.")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="A setting.")
    options = parser.parse_args()
    out = options.out or Path("runs/user_text") / options.set
    data = data_of(options.set, options.data)
    runs = fitted_variants(VARIANTS, data, options.seeds, options.overrides, out)
    told = about(options.set, next(iter(runs.values()))[0])
    body = section(runs, told, CHOSEN, shlex.join(["python", *sys.argv]))
    replace_section(f"user text: {options.set}", body)
    print(body)


if __name__ == "__main__":
    main()
