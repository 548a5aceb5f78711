"""A run folder to a numbered SavedModel that stock TF Serving loads."""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfllmrec.columns import ITEM, TITLE
from tfllmrec.durable import sync
from tfllmrec.errors import ModelError
from tfllmrec.serving.signatures import ServingModel
from tfllmrec.training.run import Run

MANIFEST = "tfllmrec.json"
ITEMS = "items.parquet"
EXTRA = "assets.extra"


def export(run_folder: Path | str, target: Path | str) -> Path:
    """Writes the next version of a model.

    The version appears under its number only when it is whole: a server that watches ``target`` never sees half of one.

    Args:
      run_folder: a complete run.
      target: such as ``saved_models/movielens``; the new version is ``target/1``, ``target/2``, ...

    Returns:
      The version's folder. Beside the SavedModel it holds ``assets.extra/tfllmrec.json`` (config, data hash, metrics,
      versions, what reads the queries) and ``assets.extra/items.parquet`` (ids and titles, in the order of the
      ``score`` signature).

    Raises:
      ModelError: the run is not complete, its small tower for queries is not of its text encoder, or the target cannot
        be written.
    """
    run, target = Run.open(run_folder), Path(target)
    model = run.load_model()
    text_to_vector = None
    if np.any(run.text):
        # Items keep the vectors of the run's encoder; queries are put among them by it, or by a small tower like it.
        text_to_vector = run.query_encoder(run.text_encoder()).text_to_vector
    serving = ServingModel(model, run.dataset.items[ITEM].to_numpy(object), np.asarray(run.text), text_to_vector)

    temporary = target / f".writing-{uuid.uuid4().hex}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        tf.saved_model.save(serving, str(temporary), signatures=serving.signatures())
        extra = temporary / EXTRA
        extra.mkdir()
        items = run.dataset.items
        items[[column for column in (ITEM, TITLE) if column in items]].to_parquet(extra / ITEMS, index=False)
        (extra / MANIFEST).write_text(json.dumps(_manifest(run, target), indent=1))
        for path in temporary.rglob("*"):
            if path.is_file():
                sync(path)
        return _publish(temporary, target)
    except OSError as error:
        raise ModelError(f"The model cannot be written to {target}: {error}. Nothing was changed there.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def versions(target: Path) -> list[int]:
    """The version numbers in a model's folder, ascending; none where there is no folder."""
    if not target.is_dir():
        return []
    return sorted(int(path.name) for path in target.iterdir() if path.is_dir() and path.name.isdigit())


def _publish(temporary: Path, target: Path) -> Path:
    """Renames to the next free number; another exporter may take one at the same moment."""
    number = max(versions(target), default=0)
    while True:
        number += 1
        final = target / str(number)
        if not final.exists():
            try:
                return temporary.rename(final)
            except OSError:
                if not final.exists():
                    raise


def _manifest(run: Run, target: Path) -> dict:
    record = run.record
    return {
        "name": target.name,
        "run": str(run.folder.resolve()),
        "config": run.config.model_dump(mode="json"),
        "items": run.dataset.n_items,
        "data_sha256": record["data_sha256"],
        "seed": record["seed"],
        "versions": record["versions"],
        "metrics": run.metrics,
        "query_encoder": {"name": "same"} if (tower := run.query_encoder_record) is None else asdict(tower),
    }
