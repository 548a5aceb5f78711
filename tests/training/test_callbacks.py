import json

import numpy as np
import pytest
import tensorflow as tf
from small_disks import LARGEST_FILE, small_files

from tfllmrec.board.scoreboard import Scoreboard
from tfllmrec.errors import ModelError, WriteError
from tfllmrec.evaluation.protocol import Result
from tfllmrec.training.callbacks import EpochCheckpoint, FitState, claim, read_weights, write_weights

pytestmark = pytest.mark.tf


def result(value, alarms=()):
    metrics = {"ndcg@10": value, "recall@10": 2 * value, "recall@10/tail": value / 2, "recall@10/cold": None}
    return Result(metrics, {}, {}, {"ndcg@10": np.array([value])}, list(alarms))


def model(units=1):
    made = tf.keras.Sequential([tf.keras.layers.Dense(units, kernel_initializer="ones")])
    made.build((None, 2))
    made.compile(optimizer=tf.keras.optimizers.Adam(0.1), loss="mse", run_eagerly=True)
    return made


def fit(made, callbacks, epochs, initial_epoch=0):
    data = tf.ones((4, 2)), tf.zeros((4, 1))
    return made.fit(*data, epochs=epochs, initial_epoch=initial_epoch, callbacks=callbacks, verbose=0).history


def planted(values):
    """A scoreboard whose figures are given."""
    values = iter(values)
    return Scoreboard(lambda _: result(next(values)))


def test_keeps_the_last_and_the_best_and_stops_by_patience(tmp_path):
    made, checkpoint = model(), EpochCheckpoint(tmp_path, patience=2)
    kept, weights = [], []
    watch = tf.keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: (
            kept.append(sorted(path.name for path in tmp_path.glob("epoch-*"))),
            weights.append(made.get_weights()),
        )
    )
    history = fit(made, [planted([0.1, 0.4, 0.3, 0.2, 0.9]), checkpoint, watch], epochs=9)
    assert len(history["loss"]) == 4
    assert kept == [["epoch-0"], ["epoch-1"], ["epoch-1", "epoch-2"], ["epoch-1", "epoch-3"]]
    assert checkpoint.state == FitState(4, 1, 0.4, True, [0.1, 0.4, 0.3, 0.2])
    assert FitState.load(tmp_path) == checkpoint.state
    checkpoint.restore_best(made)
    for a, b in zip(made.get_weights(), weights[1], strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(weights[1][0], weights[3][0])


def test_a_kill_between_epochs_loses_nothing(tmp_path):
    undisturbed = model()
    fit(undisturbed, [planted([0.1, 0.2, 0.3]), EpochCheckpoint(tmp_path / "a", 5)], epochs=3)
    fit(model(), [planted([0.1, 0.2]), EpochCheckpoint(tmp_path / "b", 5)], epochs=2)
    resumed, checkpoint = model(), EpochCheckpoint(tmp_path / "b", 5)
    checkpoint.restore_last(resumed)
    assert resumed.optimizer.iterations.numpy() == 2
    fit(resumed, [planted([0.3]), checkpoint], epochs=3, initial_epoch=checkpoint.state.epochs_done)
    for a, b in zip(resumed.get_weights(), undisturbed.get_weights(), strict=True):
        assert np.array_equal(a, b)
    assert (tmp_path / "a" / "state.json").read_text() == (tmp_path / "b" / "state.json").read_text()


def test_a_kill_while_an_epoch_is_written_goes_back_one(tmp_path, monkeypatch):
    checkpoint = EpochCheckpoint(tmp_path, 5)

    def killed(self, folder):
        raise KeyboardInterrupt

    fit(model(), [planted([0.1]), checkpoint], epochs=1)
    after_one = FitState.load(tmp_path)
    monkeypatch.setattr(FitState, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), [planted([0.2]), checkpoint], epochs=2, initial_epoch=1)
    monkeypatch.undo()
    assert (tmp_path / "epoch-1").exists()  # written, and nothing points to it
    again = EpochCheckpoint(tmp_path, 5)
    assert again.state == after_one
    again.restore_last(model())


def test_a_folder_is_claimed_by_its_settings(tmp_path):
    path = tmp_path / "run" / "settings.json"
    for _ in range(2):
        claim(path, {"seed": 1, "targets": ["a"]})
    with pytest.raises(ModelError, match="run belongs to a run with other seed, width: name another folder, or delete"):
        claim(path, {"seed": 2, "targets": ["a"], "width": 3})
    path.write_text("{")
    with pytest.raises(ModelError, match=r"settings\.json is damaged .*: delete .*run and start again"):
        claim(path, {"seed": 1})


def test_nothing_there_restores_nothing(tmp_path):
    made, checkpoint = model(), EpochCheckpoint(tmp_path, 5)
    before = made.get_weights()
    checkpoint.restore_last(made)
    checkpoint.restore_best(made)
    assert all(np.array_equal(a, b) for a, b in zip(made.get_weights(), before, strict=True))


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"epoch": 3}'])
def test_a_damaged_state_is_named(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(ModelError, match=r"state\.json is damaged .*delete .* and fit again"):
        EpochCheckpoint(tmp_path, 5)


@pytest.mark.parametrize("damage", ["other model", "gone", "cut short"])
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path, damage):
    fit(model(), [planted([0.1]), EpochCheckpoint(tmp_path, 5)], epochs=1)
    assert json.loads((tmp_path / "state.json").read_text())["epochs_done"] == 1
    for path in (tmp_path / "epoch-0").iterdir():
        if damage == "gone":
            path.unlink()
        elif damage == "cut short":
            path.write_bytes(path.read_bytes()[:20])
    other = model(units=3 if damage == "other model" else 1)
    for restore in (EpochCheckpoint(tmp_path, 5).restore_last, EpochCheckpoint(tmp_path, 5).restore_best):
        with pytest.raises(ModelError, match=r"epoch-0/weights cannot be read; it is damaged, or .*another folder"):
            restore(other)


# --- Full disks and damaged files -------------------------------------------------------------------------------------


def test_a_checkpoint_that_finds_the_disk_full_leaves_the_one_before(tmp_path):
    checkpoint = EpochCheckpoint(tmp_path / "checkpoints", 5)
    made = model()
    fit(made, [planted([0.1]), checkpoint], epochs=1)
    made.ballast = tf.Variable(tf.zeros([LARGEST_FILE // 4]), trainable=False)
    with small_files(), pytest.raises(WriteError, match=r"epoch-1 cannot be written: File too large"):
        fit(made, [planted([0.2]), checkpoint], epochs=2, initial_epoch=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["epoch-0", "state.json"]
    again = EpochCheckpoint(tmp_path / "checkpoints", 5)
    assert again.state.epochs_done == 1
    again.restore_last(model())


def test_weights_that_were_cut_short_anywhere_are_named(tmp_path):
    """Also by a few bytes, and with bytes that were changed."""
    made = model()
    write_weights(tmp_path / "model" / "weights", model=made)
    read_weights(tmp_path / "model" / "weights", "fit again", model=model())
    for path in sorted((tmp_path / "model").iterdir()):
        content = path.read_bytes()
        flipped = bytes(255 - byte for byte in content)
        for damaged in (b"", content[:1], content[: len(content) // 2], content[:-1], flipped, b"{}" * len(content)):
            path.write_bytes(damaged)
            with pytest.raises(ModelError, match=r"weights cannot be read; it is damaged.*: fit again\."):
                read_weights(tmp_path / "model" / "weights", "fit again", model=model())
        path.write_bytes(content)
    read_weights(tmp_path / "model" / "weights", "fit again", model=model())


@pytest.mark.parametrize("text", ["[1]", "[" * 100_000, "null"])
def test_damaged_settings_are_named(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ModelError, match=r"settings\.json is damaged .*: delete .* and start again"):
        claim(tmp_path / "settings.json", {"seed": 1})


def test_a_variable_that_may_be_missing_keeps_its_value(tmp_path):
    def module(**values):
        made = tf.Module()
        for name, value in values.items():
            setattr(made, name, tf.Variable(value, name=name))
        return made

    prefix = tmp_path / "model" / "weights"
    write_weights(prefix, model=module(old=1.0))
    grown = module(old=0.0, ids=7.0)
    read_weights(prefix, "fit again", model=grown, optional=[grown.ids])
    assert (float(grown.old), float(grown.ids)) == (1.0, 7.0)
    with pytest.raises(ModelError, match=r"it lacks ids:0.*fit again"):
        read_weights(prefix, "fit again", model=grown)
