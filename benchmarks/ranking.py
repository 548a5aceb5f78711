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
from tfllmrec.runs.scoreboard import measure_one, measure_with_ranking
from tfllmrec.training.ranking import RankingRecord, fit_ranking, ranking_lines, settle_epochs

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
    model, record = run.load_ranking(hybrid), run.ranking_record
    learnt = []
    if record is None:
        config.ranking = RankingConfig()
        if said := settle_epochs(config.ranking, split):
            to_stderr(said)
        fitted = fit_ranking(run.training_data, config.ranking, hybrid)
        model, record = fitted.model, RankingRecord(**fitted.figures)
        learnt = [f"- learnt in {record.seconds:.0f} s from {record.lists:,} validation queries"]
    title = f"{run.dataset.name}: what the ranking model brings"
    if (encoder := config.text.encoder) != "minilm" and "/" not in encoder:
        title += f", text.encoder={encoder}"
    if model is None:
        return title, "\n".join([made, "", f"- {record.line()}", *learnt])
    plain = measure_one(hybrid, split.test, split, config)
    figures = measure_with_ranking(hybrid, model, split, config, plain, to_stderr)
    lines = [made, "", *(f"- {line}" for line in ranking_lines(figures, plain.metrics))]
    changes = ", ".join(
        f"{label} {mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        for label, (mean, low, high) in figures.get("difference", {}).items()
    )
    if changes:
        lines.append(f"- against the hybrid's order, with the paired 95 % interval: {changes}")
    lines += learnt
    for offered in sorted({min(offered, hybrid.n_items) for offered in OFFERED}):
        ours, whole = milliseconds(run, hybrid, model, offered)
        lines.append(
            f"- {offered} candidates of one person: {ours:.1f} ms, {ours / whole:.1f} times what the scores of "
            "the whole catalogue by the hybrid take (medians, in turn, one process)"
        )
    return title, "\n".join(lines)


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
