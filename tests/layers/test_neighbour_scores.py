import numpy as np
import pytest
import tensorflow as tf
from item_pairs import pruned_to

from tfllmrec.data.queries import Ragged
from tfllmrec.layers.neighbour_scores import FAINT, NeighbourScores
from tfllmrec.models.item_weights import score_history

pytestmark = pytest.mark.tf
N = 12
RNG = np.random.default_rng(0)
WEIGHTS = pruned_to(RNG.normal(size=(N, N)).astype(np.float32), 5)
HISTORIES = Ragged.from_rows([RNG.integers(0, N, n) for n in (0, 1, 4, 4, 30)], np.int64)


def layer(decay, neighbours=5):
    made = NeighbourScores(N, neighbours, decay)
    made.set_weights_of_items(WEIGHTS.neighbours, WEIGHTS.weights)
    return made


def padded(length=30):
    return tf.constant(HISTORIES.padded(length, N).astype(np.int32))


@pytest.mark.parametrize("decay", [1.0, 0.9, 0.3])
def test_is_score_history_on_pruned_weights(decay):
    # What is left out is below FAINT an event, and weights are below 4: 0.004 / (1 - decay) at most.
    left_out = 0 if decay == 1 else 4 * FAINT / (1 - decay)
    scores = layer(decay)(padded()).numpy()
    np.testing.assert_allclose(scores, score_history(HISTORIES, WEIGHTS, decay), atol=1e-5 + left_out)
    short = Ragged.from_rows([row[-6:] for row in HISTORIES], np.int64)  # within reach of each of these decays
    scores = layer(decay)(tf.constant(short.padded(6, N).astype(np.int32))).numpy()
    np.testing.assert_allclose(scores, score_history(short, WEIGHTS, decay), atol=1e-5)


def test_events_beyond_reach_are_left_out():
    made = layer(0.3)
    assert 0.3**made.reach < FAINT <= 0.3 ** (made.reach - 1)
    reachable = Ragged.from_rows([row[-made.reach :] for row in HISTORIES], np.int64)
    np.testing.assert_allclose(made(padded()), score_history(reachable, WEIGHTS, 0.3), atol=1e-6)


def test_padding_and_the_batch_change_nothing():
    made = layer(0.8)
    whole = made(padded(40)).numpy()
    for row in range(len(HISTORIES)):
        alone = tf.constant(HISTORIES[row][None].astype(np.int32))
        np.testing.assert_allclose(made(alone)[0], whole[row], atol=1e-6)
    assert not whole[0].any()


@pytest.mark.parametrize("decay", [1.0, 0.8, 0.3])
def test_by_event_sums_to_the_score(decay):
    made = layer(decay)
    items = tf.constant(np.tile(np.arange(N, dtype=np.int32), (len(HISTORIES), 1)))
    by_event = made.by_event(padded(), items).numpy()
    assert by_event.shape == (len(HISTORIES), 30, N)
    np.testing.assert_allclose(by_event.sum(axis=1), made(padded()), atol=1e-5)
    assert not by_event[2, 4:].any()
    table = np.zeros((N, N))
    np.put_along_axis(table, WEIGHTS.neighbours.astype(np.int64), WEIGHTS.weights, axis=1)
    history = HISTORIES[2]
    np.testing.assert_allclose(by_event[2, 1], decay**2 * table[history[1]], atol=1e-6)


def test_by_event_takes_memory_for_one_item_at_a_time(monkeypatch):
    made, sizes, where = layer(0.8), [], tf.where
    monkeypatch.setattr(tf, "where", lambda *given: sizes.append(tf.size(made_ := where(*given))) or made_)
    history, items = padded()[-1:], tf.zeros((1, 200), tf.int32)
    assert made.by_event(history, items).shape == (1, 30, 200)
    assert max(map(int, sizes)) <= max(30 * 5, 200)  # a history of 30 with 5 neighbours each
    for empty in (tf.zeros((1, 0), tf.int32), tf.zeros((2, 0), tf.int32)):
        rows = tf.repeat(history, len(empty), axis=0)
        assert tf.function(made.by_event)(rows, empty).shape == (len(empty), 30, 0)


def test_a_small_catalogue_has_fewer_neighbours():
    weights = pruned_to(RNG.normal(size=(N, N)).astype(np.float32), 512)
    made = NeighbourScores(N, neighbours=512, decay=0.8)
    made.set_weights_of_items(weights.neighbours, weights.weights)
    np.testing.assert_allclose(
        made(padded(4)), score_history(Ragged.from_rows([h[-4:] for h in HISTORIES], np.int64), weights, 0.8), atol=1e-5
    )


def test_scores_of_some_items_are_those_among_all():
    made, items = layer(0.8), tf.constant([7, 0, 11, 3])
    np.testing.assert_allclose(made.of_items(padded(), items), tf.gather(made(padded()), items, axis=1), atol=1e-6)


def test_the_server_measures_work_by_the_same_longest_history():
    from tfllmrec.layers.neighbour_scores import LONGEST
    from tfllmrec.server.work import LONGEST_HISTORY

    assert LONGEST_HISTORY == LONGEST


def test_events_do_not_decay_for_items_of_other_domains():
    bits = np.array([1, 2, 3, 1] * 3)
    made = NeighbourScores(N, 5, 0.3, between=True)
    made.set_weights_of_items(WEIGHTS.neighbours, WEIGHTS.weights)
    made.set_domains(bits)
    expected = score_history(HISTORIES, WEIGHTS, 0.3, domains=bits)
    np.testing.assert_allclose(made(padded()), expected, atol=1e-5)
    assert np.abs(expected - score_history(HISTORIES, WEIGHTS, 0.3)).max() > 0.1
    items = tf.constant(np.tile(np.arange(N, dtype=np.int32), (len(HISTORIES), 1)))
    np.testing.assert_allclose(made.by_event(padded(), items).numpy().sum(axis=1), expected, atol=1e-5)
    again = NeighbourScores.from_config(made.get_config())
    again.set_weights(made.get_weights())
    np.testing.assert_array_equal(again(padded()), made(padded()))
