"""Measures transfer from another domain: without training on the target, and with a few known events in the target.

    python benchmarks/transfer.py zero_shot runs/movielens-100k-from-1m runs/quality/movielens-100k
    python benchmarks/transfer.py known_events runs/beauty runs/quality/toys --known 1 2 5

``zero_shot`` compares the results of a run of ``tfllmrec transfer`` with those of a run that was fitted on the target.
``known_events`` takes two complete runs with shared users, whose data, text vectors and settings of item-item weights
are used; nothing is trained by gradient descent. A fifth of the users with events in both domains are test users and
another fifth are validation users (``split.kind=cold_domain``); the first few events of these users in the target
domain are known. Writes a section of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cross_domain import SHARE
from sections import made_by, replace_section
from seeds import MARKS, differences

from tfllmrec.config import ExperimentConfig, SplitConfig
from tfllmrec.data import Queries, make_split
from tfllmrec.data.domains import domain_bits, items_of_domain, join_datasets, overlaps
from tfllmrec.data.queries import Ragged
from tfllmrec.evaluation.protocol import Result, evaluate, paired_difference, selection_value
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.report import markdown_table
from tfllmrec.models.baselines import fit_baseline
from tfllmrec.models.domain_weights import with_maps
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.item_weights import PrunedWeights, score_history, solve_item_weights
from tfllmrec.progress import to_stderr
from tfllmrec.runs.run import Run
from tfllmrec.text.centring import centred_unit
from tfllmrec.training.item_weight_search import DOMAIN_FACTORS
from tfllmrec.training.transfer import histories_among

#: Weights of the map's scores to try, relative to those of the item-item weights. Both are in standard deviations of
#: the scores of the target's items.
STRENGTHS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
BOTH, ALONE = "item-item weights and domain_map", "item-item weights of the target alone"
SERVED = "item-item weights with a map, as they are served"


class InDomain:
    """The item-item weights of the target domain, solved from its events alone, over joined data."""

    def __init__(self, data: TrainingData, run: Run, domain: str) -> None:
        rows = np.flatnonzero(items_of_domain(data.split.dataset.items, domain))
        self.rows, self.n_items, self.settings = rows, data.n_items, run.config.item_weights
        unit = centred_unit(data.text[rows], widths=data.text_widths)
        self.weights = solve_item_weights(self._inside(data.histories), len(rows), self.settings, unit)

    def _inside(self, histories: Ragged) -> Ragged:
        return histories_among(histories, self.rows, self.n_items)

    def score(self, queries: Queries) -> np.ndarray:
        """Returns the scores, which are 0 for items of other domains, as these are not candidates."""
        assert self.settings.decay is not None
        scores = np.zeros((len(queries), self.n_items), np.float32)
        scores[:, self.rows] = score_history(self._inside(queries.choices), self.weights, self.settings.decay)
        return scores


class Mapped:
    """The item-item weights of the target with a map from the other domains, as ``item_weights.map`` serves them.

    Args:
      data: The joined data.
      alone: The item-item weights of the target.
      factor: The factor of the map, as in ``item_weights.domains``.
    """

    def __init__(self, data: TrainingData, alone: InDomain, factor: float) -> None:
        assert data.domains is not None
        self.settings, self.bits = alone.settings, domain_bits(data.domains)
        shape = (data.n_items, alone.weights.neighbours.shape[1])
        # Rows of the other domains have no weights; their neighbours can be any distinct items.
        neighbours, weights = np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)), np.zeros(shape, np.float32)
        neighbours[alone.rows], weights[alone.rows] = alone.rows[alone.weights.neighbours], alone.weights.weights
        both = with_maps(PrunedWeights(neighbours, weights), data.maps_between_domains, data.domains)
        between = self.bits[:, np.newaxis] & self.bits[both.neighbours] == 0
        self.weights = PrunedWeights(both.neighbours, np.where(between, np.float32(factor), 1) * both.weights)

    def score(self, queries: Queries) -> np.ndarray:
        assert self.settings.decay is not None
        return score_history(queries.choices, self.weights, self.settings.decay, domains=self.bits)


class Sum:
    """The sum of two recommenders, whose scores of the target's items are scaled to standard deviation 1."""

    def __init__(self, first: Recommender, second: Recommender, strength: float, rows: np.ndarray) -> None:
        self.first, self.second, self.strength, self.rows = first, second, strength, rows

    def score(self, queries: Queries) -> np.ndarray:
        return self._scaled(self.first, queries) + self.strength * self._scaled(self.second, queries)

    def _scaled(self, recommender: Recommender, queries: Queries) -> np.ndarray:
        scores = recommender.score(queries)
        spread = scores[:, self.rows].std(axis=1, keepdims=True)
        return np.divide(scores, spread, out=np.zeros_like(scores), where=spread > 0)


def measured(data: TrainingData, target: Run, domain: str) -> tuple[dict[str, Result], str]:
    """Returns the results of each row on the test queries, and a line on what was chosen on validation queries."""
    alone = InDomain(data, target, domain)
    names = ("domain_map", "emcdr", "ials", "popularity")
    mapped, emcdr, cmf, popularity = (fit_baseline(data, name).model for name in names)
    tried = {s: selection_value(data.measure(Sum(alone, mapped, s, alone.rows))) for s in STRENGTHS}
    strength = max(tried, key=lambda s: tried[s])
    served = {factor: Mapped(data, alone, factor) for factor in (*DOMAIN_FACTORS, 1.0)}
    factor = max(served, key=lambda factor: selection_value(data.measure(served[factor])))
    rows: dict[str, Recommender] = {
        BOTH: Sum(alone, mapped, strength, alone.rows),
        ALONE: alone,
        SERVED: served[factor],
        "domain_map": mapped,
        "EMCDR": emcdr,
        "CMF (ials over both domains)": cmf,
        "popularity in the target domain": popularity,
    }
    results = {
        name: evaluate(
            model, data.split.test, train_counts=data.split.train_counts, strata=data.strata, ks=[10], bootstrap=0
        )
        for name, model in rows.items()
    }
    return results, f"strength of domain_map {strength:g}, factor of the served map {factor:g}"


def known_events(source: Run, target: Run, known: Sequence[int], seed: int, command: str) -> tuple[str, str]:
    """Returns the title and body of the section on users with a few known events."""
    names = [str(run.metrics["data"]["name"]) for run in (source, target)]
    datasets = dict(zip(names, (source.dataset, target.dataset), strict=True))
    joined, text = join_datasets(datasets), np.vstack([source.text, target.text])
    lines = [
        made_by(command, seed),
        "",
        f"{overlaps(datasets)[0]}. {SHARE:.0%} of the shared users are test users, {SHARE:.0%} validation users. Their "
        f"events in {names[0]} and their first events in {names[1]} are known, their other events in {names[1]} are "
        f"the targets, and only items of {names[1]} are candidates. The item-item weights have the settings of the run "
        f"of {names[1]}. {MARKS}",
    ]
    for count in known:
        to_stderr(f"from {names[0]} to {names[1]}, {count} known events")
        config = SplitConfig(
            kind="cold_domain", domain=names[1], validation_share=SHARE, test_share=SHARE, known_events=count
        )
        split = make_split(joined, config, seed)
        data = TrainingData.of(split, text, ExperimentConfig(seed=seed), target.text_widths)
        results, chosen = measured(data, target, names[1])
        lines += ["", f"**Known events in {names[1]}: {count}** ({chosen}, on validation)", ""]
        lines += differences(results, 1)
        for row in (BOTH, SERVED):
            found = [f"{label} {_interval(results[row], results[ALONE], label)}" for label in ("ndcg@10", "recall@10")]
            lines += ["", f"Gain of {row} over {ALONE}: {'; '.join(found)}."]
    return f"transfer: {names[1]} with few events, for users known from {names[0]}", "\n".join(lines)


def zero_shot(run: Run, alone: Run, command: str) -> tuple[str, str]:
    """Returns the title and body of the section on a transferred run and one fitted on the target."""
    record = run.transferred
    assert record is not None
    results = {"fitted on the target": alone.results["hybrid"], run.config.transfer.method: run.results["hybrid"]}
    if "popularity" in run.results:
        results["popularity"] = run.results["popularity"]
    ours, theirs = run.results["hybrid"].metrics, alone.results["hybrid"].metrics
    source, overlap = record.sources[0].name, record.overlaps[0]
    far = "; ".join(
        f"{name} alignment A-distance {each['a_distance']:.2f}, MMD {each['mmd']:.2f}"
        for name, each in record.alignment.items()
        if each is not None
    )
    lines = [
        made_by(command, run.config.seed),
        "",
        f"{overlap['items']:,} of {run.dataset.n_items:,} items are in {source} (terms "
        f"{', '.join(run.config.model.terms)}). {run.record['chosen'][0]}. {far}. {MARKS}",
        "",
        *differences(results, 1),
        "",
        *markdown_table(
            ["", "share of the model that was fitted on the target"],
            [[label, f"{ours[label] / theirs[label]:.0%}"] for label in ("ndcg@10", "recall@10")],  # type: ignore[operator]
        ),
    ]
    return f"transfer: {run.dataset.name} from {source}, without training", "\n".join(lines)


def _interval(a: Result, b: Result, label: str) -> str:
    found, low, high = paired_difference(a, b, label)
    return f"{found:+.4f} [{low:+.4f}, {high:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    few = commands.add_parser("known_events", help="A few events in the target domain are known.")
    few.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="Source and target: complete runs.")
    few.add_argument("--known", type=int, nargs="+", default=[1, 2, 5], help="Known events of a user in the target.")
    few.add_argument("--seed", type=int, default=42, help="Of the test users.")
    none = commands.add_parser("zero_shot", help="Nothing is trained on the target.")
    none.add_argument(
        "runs", type=Path, nargs=2, metavar="RUN", help="A transferred run, and one fitted on the target."
    )
    options = parser.parse_args()
    first, second = map(Run.open, options.runs)
    command = shlex.join(["python", *sys.argv])
    if options.what == "zero_shot":
        title, body = zero_shot(first, second, command)
    else:
        title, body = known_events(first, second, options.known, options.seed, command)
    replace_section(title, body)
    print(f"{title}\n\n{body}\n")


if __name__ == "__main__":
    main()
