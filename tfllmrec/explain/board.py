"""Writes a complete run's data for TensorBoard beside its curves: comparisons, images, item vectors, settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.cluster.vq import kmeans2

from tfllmrec.board.pictures import write_pictures
from tfllmrec.board.projector import sampled, write_projector
from tfllmrec.board.ranking_curves import write_pr_curves
from tfllmrec.board.scoreboard import write_figures
from tfllmrec.board.server import LOGS, WRITTEN
from tfllmrec.board.settings import as_markdown, write_settings, write_texts
from tfllmrec.columns import CATEGORIES, DOMAIN, ITEM
from tfllmrec.config import dump_config, settings_of
from tfllmrec.data.cleaning.names import category_names
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.durable import locked, write_text, writing
from tfllmrec.errors import ConfigError
from tfllmrec.evaluation import figures
from tfllmrec.evaluation.metrics import recommendable
from tfllmrec.evaluation.report import list_length
from tfllmrec.explain.calibration import candidates_of, predictions_of
from tfllmrec.explain.card import card_of
from tfllmrec.explain.epochs import epochs_of
from tfllmrec.explain.interest_labels import label_confusion
from tfllmrec.explain.lists import exposure_of, queries_with_one_target
from tfllmrec.models.ranking import Reranked
from tfllmrec.progress import Tell, show_progress, to_stderr
from tfllmrec.runs.run import Run
from tfllmrec.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tfllmrec.models.hybrid import Hybrid

#: TensorBoard runs below the run's logs: a folder for each baseline on the validation queries, a folder for each
#: recommender on the test queries, images and texts, and item vectors.
BASELINES, TEST, DETAILS, ITEMS = "baselines", "test", "details", "items"
#: The maximum number of test queries for which lists are computed.
QUERIES = 2_000
#: The number of clusters of similar item vectors, which the Projector can show as colours.
CLUSTERS = 20
#: Sections of the config that HParams shows.
COMPARED = ("text", "model", "item_weights", "training", "ranking")


def write_board(run: Run, tell: Tell = to_stderr) -> None:
    """Writes the final results of a fit into the run's ``logs/``, replacing those of an earlier call.

    These are the figures of the baselines and of the test, HParams, and the config with all values chosen from the
    data. With ``board.details``, they also include the model card, images, precision and recall of the ranking model,
    and vectors for the Projector. Card and images are left out if the packages that they need are missing.

    Args:
      run: A complete run.
      tell: Called with a line for each part that is left out.

    Raises:
      ConfigError: Another process writes to the run.
      ModelError: The run is damaged.
      WriteError: The disk is full, read-only or broken.
    """
    logs, results = run.folder / LOGS, run.results
    with locked(run.folder), writing(logs):
        (logs / WRITTEN).unlink(missing_ok=True)
        for earlier in (*logs.glob("events.out.*"), *(logs / name for name in (BASELINES, TEST, DETAILS, ITEMS))):
            if earlier.is_dir():
                shutil.rmtree(earlier)
            else:
                earlier.unlink(missing_ok=True)
        last = max(len(epochs_of(run, events=False).selection) - 1, 1)
        texts = {"config": as_markdown(run.record["chosen"], dump_config(run.config))}
        if run.config.board.details:
            texts |= _write_details(run, last, tell)
        write_texts(logs / DETAILS, texts, last)
        for name, validated in run.metrics.get("validation", {}).items():
            write_figures(logs / BASELINES / name, validated, steps=(0, last))
        for name, result in results.items():
            write_figures(logs / TEST / name, result.metrics, steps=(last,))
        write_settings(
            logs, settings_of(**{name: getattr(run.config, name) for name in COMPARED}), list_length(results)
        )
        write_text(logs / WRITTEN, json.dumps({"version": __version__}))


def _write_details(run: Run, step: int, tell: Tell) -> dict[str, str]:
    """Writes images, curves of the ranking model, and item vectors; gives the texts that belong to them."""
    details, texts, hybrid = run.folder / LOGS / DETAILS, {}, run.load_model(refit=True)
    order = run.load_ranking(hybrid)
    reranked = None if order is None else Reranked(hybrid, order, run.config.ranking.candidates)
    candidates = None if reranked is None else candidates_of(run, reranked)
    try:
        texts["card"] = card_of(run, for_machines=False)
    except ConfigError as error:  # a package is not installed
        tell(f"TensorBoard: no model card: {error}")
    try:
        drawings = _pictures(run, hybrid, tell)
        if reranked is not None and candidates is not None:
            for what, (predicted, observed) in predictions_of(run, reranked, candidates).items():
                drawings[f"calibration of the {what}"] = partial(figures.calibration, predicted, observed, what)
        with show_progress("Drawing TensorBoard's images", "images") as progress:
            for done, (name, draw) in enumerate(drawings.items(), start=1):
                if (figure := draw()) is not None:
                    write_pictures(details, {name: figure}, step)
                progress(done, len(drawings))
    except ConfigError as error:
        tell(f"TensorBoard: no images: {error}")
    strata = run.split.strata(run.config.evaluation.head_share)
    if candidates is not None and len(candidates.items):
        of_strata = {name: mask[candidates.items] for name, mask in strata.items()}
        write_pr_curves(details, candidates.probability, candidates.label, of_strata, step)
    kept = sampled(strata)
    vectors = {"item vectors": hybrid.item_vectors().numpy()[kept]}
    if np.any(run.text):
        vectors["text vectors"] = run.training_data.unit_text[kept]
    write_projector(run.folder / LOGS / ITEMS, vectors, _beside(run, strata, kept, vectors["item vectors"]))
    return texts


def _pictures(run: Run, hybrid: Hybrid, tell: Tell) -> dict[str, Callable[[], Figure | None]]:
    """Returns a function for each image, by its name; the function returns ``None`` if there is nothing to show."""
    split, results = run.split, run.results
    k, counts = list_length(results), split.train_counts

    def recall() -> Figure | None:
        single = queries_with_one_target(split.test)
        events = counts[split.test.targets.values[split.test.targets.offsets[:-1][single]]]
        if len(figures.groups_by_popularity(events)) < 2:
            return None
        of = {name: result.per_query[f"recall@{k}"][single] for name, result in results.items()}
        return figures.recall_by_popularity(events, of, f"recall@{k}")

    def exposure() -> Figure | None:
        asked = split.test.take(evenly_spread(len(split.test), QUERIES))
        shown = exposure_of(hybrid, asked, run.dataset.n_items, k, run.config.evaluation.batch_size)
        if not shown.any():
            return None
        candidates = recommendable(split.test, run.dataset.n_items)
        return figures.lorenz_curve({"recommended": shown[candidates], "training events": counts[candidates]})

    def confusion() -> Figure | None:
        found = label_confusion(run, hybrid, tell)
        return None if found is None else figures.confusion_matrix(*found)

    drawings: dict[str, Callable[[], Figure | None]] = {"recall by popularity": recall, "exposure": exposure}
    if hybrid.gates.trainable:
        gate = np.asarray(hybrid.gates.gate(hybrid.train_counts))
        drawings["gate by popularity"] = partial(figures.gate_by_popularity, counts, gate)
    return drawings | {"labels of interests": confusion}


def _beside(run: Run, strata: Mapping[str, np.ndarray], kept: np.ndarray, vectors: np.ndarray) -> pd.DataFrame:
    """Returns the Projector's metadata of the items ``kept``: title, category, domain, stratum, events, cluster."""
    items, titles = run.dataset.items, run.dataset.titles
    table = pd.DataFrame({"title": [titles[item] for item in items[ITEM].iloc[kept]]})
    if CATEGORIES in items:
        table["category"] = [next(iter(category_names(cell)[::-1]), "") for cell in items[CATEGORIES].iloc[kept]]
    if DOMAIN in items:
        table["domain"] = items[DOMAIN].to_numpy()[kept]
    stratum = np.full(run.dataset.n_items, "", object)
    for name, mask in strata.items():
        stratum[mask] = name
    distinct = len(np.unique(vectors, axis=0))  # of more clusters, some would be empty
    clusters = kmeans2(vectors, min(CLUSTERS, distinct), minit="++", seed=run.config.seed)[1]
    return table.assign(stratum=stratum[kept], events=run.split.train_counts[kept], cluster=clusters)
