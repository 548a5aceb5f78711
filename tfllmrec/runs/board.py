"""What a run shows in TensorBoard beside its curves: lists in words, comparisons, images, item vectors, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.cluster.vq import kmeans2

from tfllmrec.board.lists import SHOWN, RecommendationsInWords
from tfllmrec.board.projector import sampled, write_projector
from tfllmrec.board.ranking_curves import write_pr_curves
from tfllmrec.board.scoreboard import write_figures
from tfllmrec.board.settings import as_markdown, write_settings, write_texts
from tfllmrec.client.answers import to_frame
from tfllmrec.columns import CATEGORIES, ITEM
from tfllmrec.config import dump_config
from tfllmrec.data.cleaning.names import category_names
from tfllmrec.data.queries import Queries
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.evaluation.protocol import Result
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.models.answers import recommended, titles_of
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.hybrid import Hybrid
from tfllmrec.models.ranking import Reranked
from tfllmrec.progress import show_progress
from tfllmrec.runs.run import Run
from tfllmrec.training.fingerprint import settings_of
from tfllmrec.training.ranking import offered

#: Users whose recommendations are shown after each epoch.
USERS = 5
#: The most test queries that are looked at for images and curves.
QUERIES = 2_000
#: Groups of items with like vectors, for the colours of the Projector.
CLUSTERS = 20
#: Sections of the config that HParams compares.
COMPARED = ("text", "model", "item_weights", "training", "ranking")


def lists_after_each_epoch(run: Run) -> RecommendationsInWords:
    """The callback for the lists of :data:`USERS` validation users, spread evenly over the lengths of histories."""
    queries = run.split.validation
    by_length = np.argsort(queries.history.lengths, kind="stable")
    asked = queries.take(by_length[evenly_spread(len(queries), USERS)])
    ids, titles = run.dataset.items[ITEM].to_numpy(), titles_of(run.dataset)
    return RecommendationsInWords(
        lambda model: to_frame(recommended(model, asked, SHOWN, titles)),
        [[titles[ids[item]] for item in history] for history in asked.history],
        run.folder / "logs" / "validation",
    )


def write_board(
    run: Run,
    data: TrainingData,
    hybrid: Hybrid,
    reranked: Reranked | None,
    baselines: Mapping[str, Recommender],
    results: Mapping[str, Result],
    chosen: Sequence[str],
) -> None:
    """Writes into ``logs/`` what is known at the end of a fit.

    Args:
      hybrid, reranked, baselines: as they were measured. results: of them, on the test queries.
      chosen: a line for each choice.
    """
    logs, split, epochs = run.folder / "logs", run.split, run.config.training.epochs
    assert epochs is not None
    last, parts = max(epochs - 1, 1), len(baselines) + 2
    with show_progress("Writing what TensorBoard shows", "parts") as progress:
        for done, (name, baseline) in enumerate(baselines.items()):
            progress(done, parts)
            write_figures(logs / "baselines" / name, data.measure(baseline).metrics, steps=(0, last))
        for name, result in results.items():
            write_figures(logs / "test" / name, result.metrics, steps=(last,))
        write_settings(logs, settings_of(**{name: getattr(run.config, name) for name in COMPARED}), run.folder.name)
        write_texts(logs / "test" / "hybrid", {"config": as_markdown(chosen, dump_config(run.config))})
        if not run.config.board.details:
            return
        progress(parts - 2, parts)
        strata = split.strata(run.config.evaluation.head_share)
        if reranked is not None:
            asked = split.test.take(evenly_spread(len(split.test), QUERIES))
            write_pr_curves(logs / "test" / "hybrid", *_clicks(reranked, asked, strata))
        progress(parts - 1, parts)
        kept = sampled(strata)
        vectors = {"item vectors": hybrid.item_vectors().numpy()[kept]}
        if np.any(data.text):
            vectors["text vectors"] = data.unit_text[kept]
        write_projector(logs / "items", vectors, _beside(run, strata, kept, vectors["item vectors"]))
        progress(parts, parts)


def _clicks(
    reranked: Reranked, queries: Queries, strata: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The probability of each candidate, whether it came next, and its strata."""
    batches = [
        (batch.items[batch.there], batch.probability[batch.there], batch.chosen[batch.there])
        for batch in offered(reranked, queries)
    ]
    items, probability, came_next = (np.concatenate(part) for part in zip(*batches, strict=True))
    return probability, came_next, {name: mask[items] for name, mask in strata.items()}


def _beside(run: Run, strata: Mapping[str, np.ndarray], kept: np.ndarray, vectors: np.ndarray) -> pd.DataFrame:
    """What the Projector shows beside the items ``kept``: title, category, stratum, training events, cluster."""
    items, titles = run.dataset.items, titles_of(run.dataset)
    table = pd.DataFrame({"title": [titles[item] for item in items[ITEM].iloc[kept]]})
    if CATEGORIES in items:
        table["category"] = [next(iter(category_names(cell)[::-1]), "") for cell in items[CATEGORIES].iloc[kept]]
    stratum = np.full(run.dataset.n_items, "", object)
    for name, mask in strata.items():
        stratum[mask] = name
    clusters = kmeans2(vectors, min(CLUSTERS, len(kept)), minit="++", seed=run.config.seed)[1]
    return table.assign(stratum=stratum[kept], events=run.split.train_counts[kept], cluster=clusters)
