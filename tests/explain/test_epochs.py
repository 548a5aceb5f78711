import json

import pytest

from tfllmrec.errors import ModelError
from tfllmrec.explain.epochs import Epochs, epochs_of


def test_values_of_the_checkpoints(plain_run):
    epochs = epochs_of(plain_run)
    assert (epochs.selection, epochs.best, epochs.strata) == ([0.2, 0.6, 0.3], 1, {})
    (plain_run.folder / "checkpoints" / "state.json").write_text("[")
    with pytest.raises(ModelError, match=r"state\.json is damaged"):
        epochs_of(plain_run)


def test_a_run_without_training_has_none(plain_run):
    path = plain_run.folder / "checkpoints" / "state.json"
    path.write_text(json.dumps({"epochs_done": 0, "best_epoch": -1, "values": []}))
    assert epochs_of(plain_run) == Epochs()
    path.unlink()
    assert epochs_of(plain_run) == Epochs()
