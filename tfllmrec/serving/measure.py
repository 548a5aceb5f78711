"""Computes the scoreboard of a run or of an exported SavedModel, with the same metrics for both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfllmrec.data.queries import Queries
from tfllmrec.errors import DataError
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.report import MODEL, REFIT
from tfllmrec.progress import to_stderr
from tfllmrec.runs.run import Run
from tfllmrec.runs.scoreboard import fit_all_baselines, measured_again
from tfllmrec.serving.saved_model import SavedModel


def measure(path: Path | str, refit_baselines: bool = False) -> dict[str, Any]:
    """Measures the model at ``path`` on the test queries of the data it was trained on.

    The model's own figures are computed now, by the run's weights or by the SavedModel's ``score`` signature. The
    row of a SavedModel is ``hybrid_refit`` if its item-item weights were solved again with the validation events. Other
    rows are taken from the run; baselines are fitted again with ``refit_baselines``.

    Items that were added to a version after training are left out, because no user has events with them.

    Args:
      path: A run, a version, or the folder of the versions of a model (its stable version is measured, or else its
        newest).
      refit_baselines: Whether to fit and measure the baselines again.

    Returns:
      The object that ``metrics.json`` contains.

    Raises:
      ModelError: ``path`` is neither a complete run nor an exported model.
      DataError: The data of the run has changed or no longer exists, or its split or seed is not that of the export.
    """
    path = Path(path)
    recommenders: dict[str, Recommender]
    if (path / "config.yaml").is_file():
        run = Run.open(path)
        recommenders = {MODEL: run.load_model()}
        if run.is_refit:
            recommenders[REFIT] = run.load_model(refit=True)
    else:
        saved = SavedModel.open(path)
        run = saved.run
        recommenders = {REFIT if run.is_refit else MODEL: _OfTheRun(saved, run.dataset.n_items)}
        added = len(saved.item_ids) - run.dataset.n_items
        to_stderr(f"measuring {saved.folder}" + (f", without the {added:,} items added to it" if added else ""))
        made_with, now = saved.manifest["config"], run.config.model_dump(mode="json")
        if (
            saved.manifest["data_sha256"] != run.dataset.fingerprint
            or made_with["split"] != now["split"]
            or made_with["seed"] != now["seed"]
            or made_with["evaluation"]["head_share"] != now["evaluation"]["head_share"]
        ):
            raise DataError(
                f"The data or the split in {run.folder} is not that which {path} was trained on, so its test "
                "queries may have been training events: export the run again."
            )
    if run.dataset.fingerprint != run.record["data_sha256"]:
        raise DataError(f"The data in {run.folder}/data has changed since the run: fit again.")
    if refit_baselines:
        recommenders |= fit_all_baselines(run.training_data, run.config.evaluation, to_stderr)
    return measured_again(run, recommenders)


@dataclass(frozen=True)
class _OfTheRun:
    """A ``Recommender`` with the scores of the run's items only, which are the first items of a version."""

    saved: SavedModel
    n_items: int

    def score(self, queries: Queries) -> np.ndarray:
        return self.saved.score(queries)[:, : self.n_items]
