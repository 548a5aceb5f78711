"""Lists of the hybrid, of its ranking model and of the exported model, on the test queries; a section of RESULTS.md.

    python benchmarks/ranking.py runs/quality/beauty runs/quality/toys

Runs of a data set with different seeds become one section, with their means. A run without a ranking model
(``ranking.epochs=0``) gets one for this measurement, by the defaults, learnt from its validation queries as ``fit``
does it; the run itself is left as it is.

The hybrid and its ranking model are measured twice: with the item-item weights of the training events, and with those
of the training and validation events (``hybrid_refit``), as the model is exported.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from sections import ORDERED, made_by, replace_section
from seeds import MARKS, ONE_SEED, SEEDS, check_seeds, differences

from tfllmrec.config import RankingConfig
from tfllmrec.evaluation.protocol import Result, averaged
from tfllmrec.evaluation.report import MODEL, REFIT
from tfllmrec.models.hybrid import Hybrid
from tfllmrec.models.ranking import RankingModel, Reranked
from tfllmrec.progress import to_stderr
from tfllmrec.runs.run import Run
from tfllmrec.runs.scoreboard import measure_one
from tfllmrec.training.fit import refit_weights
from tfllmrec.training.ranking.fit import fit_ranking, settle_epochs
from tfllmrec.training.ranking.measure import measure_ranking, ranking_lines
from tfllmrec.training.ranking.record import RankingRecord

OFFERED = (100, 200)
CALLS, UNMEASURED = 50, 5


def milliseconds(run: Run, hybrid: Hybrid, model: RankingModel, offered: int) -> tuple[float, float]:
    """Returns the median milliseconds to rank one user's ``offered`` candidates, and to score the whole catalogue.

    The ranking model and the hybrid, which scores the catalogue, take turns.
    """
    queries = run.split.test.take(np.arange(min(CALLS, len(run.split.test))))
    reranked = Reranked(hybrid, model, offered)
    taken: list[tuple[float, float]] = []
    for row in [*[0] * UNMEASURED, *range(len(queries))]:
        one = queries.take(np.array([row]))
        begun = time.perf_counter()
        scores = hybrid.score(one)
        between = time.perf_counter()
        items = reranked.best(scores, one)
        ranks = time.perf_counter()
        reranked.rank(one, items)
        taken.append((time.perf_counter() - ranks, between - begun))
    ours, whole = 1000 * np.median(np.array(taken[UNMEASURED:]), axis=0)
    return float(ours), float(whole)


class Measured(NamedTuple):
    """A run: its seed, the results by the names of their rows, and lines of figures.

    Where the ranking model is left out, both results of a pair are those of the hybrid's own order.
    """

    seed: int
    results: dict[str, Result]
    lines: list[str]


def title_of(run: Run) -> str:
    """Returns the title of a run's section; runs that differ in the seed share it."""
    title, encoder = f"{run.dataset.name}: what the ranking model brings", run.config.text.encoder
    return title if encoder == "minilm" or "/" in encoder else f"{title}, text.encoder={encoder}"


def measured(run: Run) -> Measured:
    """Measures the ranking model of a run, which is trained here if the run has none."""
    hybrid, split, config = run.load_model(), run.split, run.config
    model, record = run.load_ranking(hybrid), run.ranking_record
    learnt = []
    if record is None:
        config.ranking = RankingConfig()
        if said := settle_epochs(config.ranking, split):
            to_stderr(said)
        fitted = fit_ranking(run.training_data, config.ranking, hybrid, labels=run.label_match(run.labels()))
        model, record = fitted.model, RankingRecord(**fitted.figures)
        learnt = [f"learnt in {record.seconds:.0f} s from {record.lists:,} validation queries"]
    results: dict[str, Result] = {}
    lines = [record.line()] if model is None else []
    for name in (MODEL, REFIT) if run.may_refit else (MODEL,):
        if name == REFIT:
            hybrid.set_item_weights(refit_weights(hybrid, run.training_data))
        results[name] = results[name + ORDERED] = measure_one(hybrid, split.test, split, config)
        if model is not None:
            reranked = Reranked(hybrid, model, config.ranking.candidates)
            result = measure_one(reranked, split.test, split, config) if model.reorders else None
            results[name + ORDERED] = result or results[name]
            figures = measure_ranking(reranked, split, result, results[name], config.seed)
            lines += [f"{name}: {line}" for line in ranking_lines(figures, results[name].metrics)]
    lines += learnt
    if model is None:
        return Measured(config.seed, results, lines)
    for offered in sorted({min(offered, hybrid.n_items) for offered in OFFERED}):
        ours, whole = milliseconds(run, hybrid, model, offered)
        lines.append(
            f"{offered} candidates of one person: {ours:.1f} ms, {ours / whole:.1f} times what the scores of the whole "
            "catalogue by the hybrid take (medians, in turn, one process)"
        )
    return Measured(config.seed, results, lines)


def section(runs: Sequence[Measured], command: str) -> str:
    """The text of a section."""
    results = {name: averaged([each.results[name] for each in runs]) for name in runs[0].results}
    name = "Seed {}: " if len(runs) > 1 else ""
    return "\n".join(
        [
            made_by(command, [each.seed for each in runs]),
            "",
            f"Test queries. In brackets the difference to the hybrid. {MARKS} {SEEDS if len(runs) > 1 else ONE_SEED}",
            "",
            *differences(results, len(runs)),
            "",
            *(f"- {name.format(each.seed)}{line}" for each in runs for line in each.lines),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="A complete run.")
    options = parser.parse_args()
    groups: dict[str, list[Run]] = {}
    for path in options.runs:
        run = Run.open(path)
        groups.setdefault(title_of(run), []).append(run)
    for title, runs in groups.items():
        check_seeds(runs)
        found = []
        for run in runs:
            found.append(measured(run))
            tf.keras.backend.clear_session()
        body = section(found, shlex.join(["python", *sys.argv]))
        replace_section(title, body)
        print(body)


if __name__ == "__main__":
    main()
