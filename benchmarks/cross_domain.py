"""Recommends in one domain to users who are known from another one only, beside popularity, text, CMF and EMCDR.

    python benchmarks/cross_domain.py runs/quality/beauty runs/quality/toys --seeds 42 1 2

Both arguments are complete runs, whose data and text vectors are used; nothing is trained by gradient. Each of the two
is the target once. For each seed a fifth of the users of both domains is the test and another fifth the validation
(``split.kind=cold_domain``). Writes a section of benchmarks/RESULTS.md for each target.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sections import made_by, replace_section
from seeds import MARKS, differences, pooled

from tfllmrec.config import ExperimentConfig, SplitConfig
from tfllmrec.data import make_split
from tfllmrec.data.domains import join_datasets, overlaps
from tfllmrec.evaluation.protocol import Result, evaluate
from tfllmrec.models.baselines import fit_baseline
from tfllmrec.models.fitting import TrainingData
from tfllmrec.progress import to_stderr
from tfllmrec.runs.run import Run

#: Rows of the table by the name of the baseline; the first one is what the others are compared with.
ROWS = {
    "domain_map": "domain_map",
    "emcdr": "emcdr",
    "ials": "CMF (ials over both domains)",
    "text": "text similarity",
    "popularity": "popularity in the target domain",
}
SHARE = 0.2


def measured(data: TrainingData) -> dict[str, Result]:
    """The results of all rows on the test queries."""
    split, results = data.split, {}
    for name, row in ROWS.items():
        fitted = fit_baseline(data, name)
        to_stderr(f"{name}: {fitted.options}, selection value on validation {fitted.figures['selection']:.4f}")
        results[row] = evaluate(
            fitted.model, split.test, train_counts=split.train_counts, strata=data.strata, ks=[10], bootstrap=0
        )
    return results


def section(source: Run, target: Run, seeds: Sequence[int], command: str) -> tuple[str, str]:
    """Title and body."""
    names = [str(run.metrics["data"]["name"]) for run in (source, target)]
    datasets = dict(zip(names, (source.dataset, target.dataset), strict=True))
    joined, text = join_datasets(datasets), np.vstack([source.text, target.text])
    of_seeds, users = [], []
    for seed in seeds:
        to_stderr(f"from {names[0]} to {names[1]}, seed {seed}")
        config = SplitConfig(kind="cold_domain", domain=names[1], validation_share=SHARE, test_share=SHARE)
        split = make_split(joined, config, seed)
        of_seeds.append(measured(TrainingData.of(split, text, ExperimentConfig(seed=seed))))
        users.append(split.test.user_ids)
    results = {row: pooled([results[row] for results in of_seeds], users) for row in ROWS.values()}
    ratio = results[ROWS["domain_map"]].metrics["recall@10"] / results[ROWS["popularity"]].metrics["recall@10"]
    lines = [
        made_by(command, seeds),
        "",
        f"{overlaps(datasets)[0]}. {SHARE:.0%} of the shared users are the test of each seed, {SHARE:.0%} the "
        f"validation; their events in {names[0]} are known, all their events in {names[1]} are targets, and only items "
        f"of {names[1]} are candidates. Users that several seeds draw are resampled together. The form of "
        "domain_map was chosen on the validation users of seed 42 and of earlier draws, some of whom are test users of "
        f"another seed here. {MARKS}",
        "",
        *differences(results, len(seeds)),
        "",
        f"recall@10 of domain_map is {ratio:.1f} times that of popularity.",
    ]
    return f"cross-domain: {names[1]} for users known from {names[0]}", "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="Two complete runs.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="One draw of test users for each.")
    options = parser.parse_args()
    first, second = map(Run.open, options.runs)
    for source, target in ((first, second), (second, first)):
        title, body = section(source, target, options.seeds, shlex.join(["python", *sys.argv]))
        replace_section(title, body)
        print(body)


if __name__ == "__main__":
    main()
