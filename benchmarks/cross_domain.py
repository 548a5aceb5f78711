"""Compares recommenders for users without events in the target domain: maps, popularity, text, CMF and EMCDR.

    python benchmarks/cross_domain.py runs/quality/beauty runs/quality/toys --seeds 42 1 2

Both arguments are complete runs, whose data and text vectors are used; nothing is trained by gradient descent. Each of
the two domains is the target once. For each seed, a fifth of the users with events in both domains are test users and
another fifth are validation users (``split.kind=cold_domain``). Writes a section of benchmarks/RESULTS.md for each
target; with ``--rows``, prints only these rows and writes nothing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from sections import made_by, replace_section
from seeds import MARKS, differences, pooled

from tfllmrec.config import ExperimentConfig, ItemWeightSettings, SplitConfig
from tfllmrec.data import Queries, make_split
from tfllmrec.data.domains import join_datasets, overlaps
from tfllmrec.evaluation.protocol import Result, evaluate
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.models.baselines import fit_baseline
from tfllmrec.models.domain_map import users_of_several
from tfllmrec.models.domain_weights import with_maps
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.item_weights import PrunedWeights, score_history
from tfllmrec.progress import to_stderr
from tfllmrec.runs.run import Run

#: The labels of the table's rows by the name of the baseline; all others are compared with the first one.
ROWS = {
    "domain_map": "domain_map",
    "map": "map, as it is served",
    "emcdr": "emcdr",
    "ials": "CMF (ials over both domains)",
    "text": "text similarity",
    "popularity": "popularity in the target domain",
    "popularity_of_both": "popularity among users of both domains",
}
SHARE = 0.2


class PopularityOfBoth:
    """A trivial baseline: recommends to every user the items with the most events by users of several domains."""

    def __init__(self, data: TrainingData) -> None:
        events = data.histories.take(users_of_several(data)).values
        self.counts = np.bincount(events, minlength=data.n_items).astype(np.float32)

    def score(self, queries: Queries) -> np.ndarray:
        return np.tile(self.counts, (len(queries), 1))


class ServedMap:
    """The behaviour term with ``item_weights.map`` alone, for users without events in the target domain."""

    def __init__(self, data: TrainingData) -> None:
        assert data.domains is not None
        kept = min(ItemWeightSettings().neighbours, data.n_items)
        nothing = np.tile(np.arange(kept, dtype=np.int32), (data.n_items, 1))
        none_within = PrunedWeights(nothing, np.zeros_like(nothing, np.float32))
        self.weights = with_maps(none_within, data.maps_between_domains, data.domains)

    def score(self, queries: Queries) -> np.ndarray:
        return score_history(queries.choices, self.weights)


OWN_ROWS: dict[str, Callable[[TrainingData], Recommender]] = {"map": ServedMap, "popularity_of_both": PopularityOfBoth}


def measured(data: TrainingData, rows: Sequence[str]) -> dict[str, Result]:
    """Returns the results of ``rows`` on the test queries."""
    split, results = data.split, {}
    for name in rows:
        if name in OWN_ROWS:
            model: Recommender = OWN_ROWS[name](data)
        else:
            fitted = fit_baseline(data, name)
            to_stderr(f"{name}: {fitted.options}, selection value on validation {fitted.figures['selection']:.4f}")
            model = fitted.model
        results[ROWS[name]] = evaluate(
            model, split.test, train_counts=split.train_counts, strata=data.strata, ks=[10], bootstrap=0
        )
    return results


def section(source: Run, target: Run, seeds: Sequence[int], rows: Sequence[str], command: str) -> tuple[str, str]:
    """Returns the title and the body of the section for one target domain."""
    names = [str(run.metrics["data"]["name"]) for run in (source, target)]
    datasets = dict(zip(names, (source.dataset, target.dataset), strict=True))
    joined, text = join_datasets(datasets), np.vstack([source.text, target.text])
    of_seeds, users = [], []
    for seed in seeds:
        to_stderr(f"from {names[0]} to {names[1]}, seed {seed}")
        config = SplitConfig(kind="cold_domain", domain=names[1], validation_share=SHARE, test_share=SHARE)
        split = make_split(joined, config, seed)
        of_seeds.append(measured(TrainingData.of(split, text, ExperimentConfig(seed=seed)), rows))
        users.append(split.test.user_ids)
    results = {row: pooled([results[row] for results in of_seeds], users) for row in of_seeds[0]}
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
    ]
    found = {name: results[row].metrics["recall@10"] for name, row in ROWS.items() if row in results}
    if "domain_map" in found:
        lines += [
            "",
            *(
                f"recall@10 of domain_map is {found['domain_map'] / found[name]:.1f} times that of {ROWS[name]}."
                for name in ("popularity", "popularity_of_both")
                if name in found
            ),
        ]
    return f"cross-domain: {names[1]} for users known from {names[0]}", "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="Two complete runs.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42], help="One draw of test users for each.")
    parser.add_argument("--rows", choices=ROWS, nargs="+", help="Print these rows alone, the first one beside each.")
    options = parser.parse_args()
    first, second = map(Run.open, options.runs)
    for source, target in ((first, second), (second, first)):
        title, body = section(
            source, target, options.seeds, options.rows or list(ROWS), shlex.join(["python", *sys.argv])
        )
        if options.rows is None:
            replace_section(title, body)
        print(f"{title}\n\n{body}\n")


if __name__ == "__main__":
    main()
