"""A run folder to a numbered SavedModel that stock TF Serving loads."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

from tfllmrec.columns import CATEGORIES, ITEM, TITLE
from tfllmrec.data.cleaning.names import category_names
from tfllmrec.data.cleaning.titles import display_titles
from tfllmrec.durable import publish_folder, writing, writing_folder
from tfllmrec.errors import ModelError
from tfllmrec.layers.item_index import Form
from tfllmrec.layers.item_scann import scann_operations
from tfllmrec.models.interests import Interests, fit_interests
from tfllmrec.progress import Tell, show_progress, to_stderr
from tfllmrec.runs.run import Run
from tfllmrec.serving.layout import EXTRA, ITEMS, LARGEST_VERSION, MANIFEST, WARM_UP, version_folders
from tfllmrec.serving.new_items import Counts, grown_model, read_new_items
from tfllmrec.serving.signatures import ServingModel
from tfllmrec.serving.warm_up import write_warm_up
from tfllmrec.text.template import ItemTemplate

#: Items whose ids and titles become warm-up requests.
SAMPLE = 64


def export(
    run_folder: Path | str,
    target: Path | str,
    new_items: Path | str | None = None,
    *,
    index: Form = "auto",
    tell: Tell = to_stderr,
) -> Path:
    """Writes the next version of a model.

    The version appears under its number only when it is whole: a server that watches ``target`` never sees half of one.
    What an export that was killed left there is removed.

    Args:
      run_folder: a complete run.
      target: such as ``saved_models/movielens``; the new version is ``target/1``, ``target/2``, ...
      new_items: a file of items that came after training, added by their text alone, and of new texts for items of the
        run (:mod:`tfllmrec.serving.new_items`). Each version starts from the run: it has none of what an earlier
        version was given.
      index: how lists are found, see :func:`tfllmrec.layers.item_index.build_index`. Stock TF Serving cannot load
        *scann*.
      tell: called with a line for each step.

    Returns:
      The version's folder. Beside the SavedModel it holds in ``assets.extra`` the manifest ``tfllmrec.json`` (config,
      data hash, the run's metrics unless there are new items, versions, what reads the queries, how many items are
      new, what its indexes are), ``items.parquet`` (ids, titles to show, lists of categories, in the order of the
      ``score`` signature: new items last), and warm-up requests.

    Raises:
      DataError: the new items cannot be read or used.
      ModelError: the run is not complete, or without text where there are new items; its small tower for queries is not
        of its text encoder; its ranking model is damaged; or scann is asked for and missing.
      WriteError: the target cannot be written.
    """
    if index == "scann":
        scann_operations()  # missing, it is better said before everything is read
    run, target = Run.open(run_folder), Path(target)
    items, text, counts, text_to_vector = run.split.items, np.asarray(run.text), None, None
    encoder = run.text_encoder(tell) if np.any(text) else None
    if new_items is None:
        model = run.load_model()
    else:
        grown = read_new_items(run, new_items, encoder, tell)
        model, items, text, counts = grown_model(run, grown, tell), grown.items, grown.text, grown.counts
    if encoder is not None:
        # Items keep the vectors of the run's encoder; queries are put among them by it, or by a small tower like it.
        text_to_vector = run.query_encoder(encoder, tell).text_to_vector
    serving = ServingModel(
        model,
        items[ITEM].to_numpy(object),
        text,
        text_to_vector,
        run.split.train_queries(),
        items[CATEGORIES].tolist() if CATEGORIES in items else None,
        labels_of_run(run, items, tell),
        run.load_ranking(model),
        index,
    )

    ours = not target.exists()
    try:
        with (
            writing(target, "Nothing was changed there. Once it can be written, export again; or name another folder."),
            writing_folder(target) as temporary,
        ):
            signatures = serving.signatures()
            tf.saved_model.save(serving, str(temporary), signatures=signatures)
            extra = temporary / EXTRA
            extra.mkdir()
            told = pd.DataFrame({ITEM: items[ITEM], TITLE: display_titles(items)})
            if CATEGORIES in items:
                told[CATEGORIES] = items[CATEGORIES].map(category_names)
            told.to_parquet(extra / ITEMS, index=False)
            (extra / MANIFEST).write_text(json.dumps(_manifest(run, target, items, counts, serving), indent=1))
            ids, titles = (told[name].head(SAMPLE).tolist() for name in (ITEM, TITLE))
            write_warm_up(extra / WARM_UP, target.name, signatures, ids, titles)
            return _publish(temporary, target)
    except BaseException:
        if ours:
            with contextlib.suppress(OSError):  # it was never made, or another exporter put a version there
                target.rmdir()
        raise


def labels_of_run(run: Run, items: pd.DataFrame, tell: Tell) -> Interests | None:
    """Labels of interests for ``items``, from the columns that the run's template reads and from their categories.

    Args:
      run: a complete run.
      items: ``run.split.items``, which may be followed by new items.
      tell: called with a line on how many labels there are.

    Returns:
      The labels; ``None`` where no word of the columns makes one.
    """
    template = run.config.text.template
    read = [] if template is None else ItemTemplate(template).columns
    columns = list(dict.fromkeys([*read, *([CATEGORIES] if CATEGORIES in items else [])]))
    with show_progress("Choosing labels of interests", "phrases") as progress:
        labels = fit_interests(
            items, columns, run.split.train_queries(), ordered=run.dataset.ordered, progress=progress
        )
    if labels is not None:
        without = int((labels.columns[:, 0] == len(labels.labels)).sum())
        tell(f"interests: {len(labels.labels):,} labels; {without:,} of {len(items):,} items have none")
    return labels


def _publish(temporary: Path, target: Path) -> Path:
    """Publishes under the next free number; another exporter may take one at the same moment."""
    number = max(version_folders(target), default=0)
    while True:
        number += 1
        if number > LARGEST_VERSION:
            raise ModelError(
                f"{target / str(LARGEST_VERSION)} is the largest version that servers load, so there is no next one: "
                "expected a smaller number. Rename that folder."
            )
        final = target / str(number)
        if not final.exists():
            try:
                publish_folder(temporary, final)
                return final
            except OSError:
                if not final.exists():
                    raise


def _manifest(run: Run, target: Path, items: pd.DataFrame, counts: Counts | None, serving: ServingModel) -> dict:
    record = run.record
    return {
        "name": target.name,
        "run": str(run.folder.resolve()),
        "config": run.config.model_dump(mode="json"),
        "items": len(items),
        "new_items": None if counts is None else counts.as_dict(),
        "data_sha256": record["data_sha256"],
        "seed": record["seed"],
        "versions": record["versions"],
        # What has items more than the run is not what the run measured.
        "metrics": run.metrics if counts is None else None,
        "query_encoder": {"name": "same"} if (tower := run.query_encoder_record) is None else asdict(tower),
        "indexes": {"recommend": serving.best.about, "search": serving.alike.about},
        "ranking": None if (ranking := run.ranking_record) is None else asdict(ranking),
    }
