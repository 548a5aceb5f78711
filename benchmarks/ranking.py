"""What the ranking model brings: the hybrid's best items in its order, on the test queries; a section of RESULTS.md.

    python benchmarks/ranking.py runs/quality/beauty runs/quality/toys

A run that was made without one (``ranking.epochs=0``) gets one for this measurement, by the defaults, learnt from its
validation queries as ``fit`` does it; the run itself is left as it is.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from sections import made_by, replace_section

from tfllmrec.config import RankingConfig
from tfllmrec.models.hybrid import Hybrid
from tfllmrec.models.ranking import RankingModel, Reranked
from tfllmrec.progress import to_stderr
from tfllmrec.runs.run import Run
from tfllmrec.runs.scoreboard import measure_one
from tfllmrec.training.ranking import fit_ranking, measure_ranking, ranking_lines, settle_epochs

OFFERED = (100, 200)
CALLS, UNMEASURED = 50, 5


def milliseconds(run: Run, hybrid: Hybrid, model: RankingModel, offered: int) -> tuple[float, float]:
    """Of one person's ``offered`` candidates, and of the hybrid's scores of the whole catalogue: medians, in turn."""
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


def measured(path: Path, made: str) -> tuple[str, str]:
    """The title and the text of a section."""
    run = Run.open(path)
    hybrid, split, config = run.load_model(), run.split, run.config
    model, settings = run.load_ranking(hybrid), config.ranking
    begun = time.perf_counter()
    if model is None:
        settings = RankingConfig()
        if said := settle_epochs(settings, split):
            to_stderr(said)
        model = fit_ranking(run.training_data, settings, hybrid).model
    seconds = time.perf_counter() - begun
    reranked = Reranked(hybrid, model, settings.candidates)
    plain = measure_one(hybrid, split.test, split, config)
    figures = measure_ranking(reranked, split, measure_one(reranked, split.test, split, config), plain, config.seed)
    lines = [made, "", *(f"- {line}" for line in ranking_lines(figures, plain.metrics))]
    changes = (
        f"{label} {mean:+.4f} [{low:+.4f}, {high:+.4f}]" for label, (mean, low, high) in figures["difference"].items()
    )
    lines.append(f"- against the hybrid's order, with the paired 95 % interval: {', '.join(changes)}")
    if not config.ranking.epochs:
        lines.append(f"- learnt in {seconds:.0f} s from {len(split.validation):,} validation queries")
    for offered in sorted({min(offered, hybrid.n_items) for offered in OFFERED}):
        ours, whole = milliseconds(run, hybrid, model, offered)
        lines.append(
            f"- {offered} candidates of one person: {ours:.1f} ms, {ours / whole:.1f} times what the scores of "
            "the whole catalogue by the hybrid take (medians, in turn, one process)"
        )
    return f"{run.dataset.name}: what the ranking model brings", "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="A complete run.")
    options = parser.parse_args()
    for path in options.runs:
        title, body = measured(path, made_by(shlex.join(["python", *sys.argv]), Run.open(path).config.seed))
        replace_section(title, body)
        print(body)
        tf.keras.backend.clear_session()


if __name__ == "__main__":
    main()
