"""Code shared by all recipes: arguments, small planted data if no folder is given, a fit, and the scoreboard."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import tfllmrec
from tfllmrec.cli.output import print_metrics
from tfllmrec.config import load_config
from tfllmrec.runs.run import Run

# isort: split
import numpy as np
import pandas as pd

DAY_S = 86_400
START_S = 1_700_006_400  # a midnight (UTC)

#: Settings for planted data, which is too small for choosing them automatically; real data needs none of these.
SMALL = [
    "model={embedding_dim: 32, blocks: 1, heads: 2}",
    "training={epochs: 12, batch_size: 32, learning_rate: 0.01}",
    "item_weights={decay: 0.6, l2: 10, next_item: 1, co_occurrence: 0.1, text: 10, popularity: 0, context: {}}",
    "ranking.epochs=0",
    "interests.learned=false",
    "evaluation.bootstrap=200",
]

Tables = dict[str, pd.DataFrame]


def fitted(
    name: str, doc: str | None, plant: Callable[[np.random.Generator], Tables], argv: Sequence[str] | None
) -> Run:
    """Fits the config ``NAME.yaml`` and prints its figures.

    Args:
      name: The name of the recipe.
      doc: The description of the recipe.
      plant: Makes small tables by name (events, items, users), for calls without ``--data``.
      argv: The command line; by default that of the process.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="folder with the files that the config names; by default planted data"
    )
    parser.add_argument("--out", type=Path, help="run folder; by default a temporary one")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="another setting; may be repeated")
    args = parser.parse_args(argv)
    if args.data is None or args.out is None:
        scratch = Path(tempfile.mkdtemp(prefix=f"recipe-{name}-"))
        print(f"temporary files: {scratch}", file=sys.stderr)
    if args.data is None:
        for table, rows in plant(np.random.default_rng(0)).items():
            rows.to_csv(scratch / f"{table}.csv", index=False)
    settings = [*(SMALL if args.data is None else []), *args.set]
    config = load_config(Path(__file__).with_name(f"{name}.yaml"), settings).config
    run = tfllmrec.fit_experiment(config, args.out or scratch / "run", base=args.data or scratch)
    print_metrics(run.metrics)
    return run
