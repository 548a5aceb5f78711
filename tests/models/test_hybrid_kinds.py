"""Kinds of events in the hybrid: how much they count, and what the user rejected."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.config import ItemWeightSettings, ModelConfig
from tfllmrec.data.batches import Sequences, training_batches
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import RATING_KEY, Field, Schema
from tfllmrec.errors import ModelError
from tfllmrec.models.hybrid import Catalogue, Hybrid
from tfllmrec.models.item_weights import PrunedWeights, event_weights, score_history

pytestmark = pytest.mark.tf
N = 8
VIEW, DISLIKE, PURCHASE, SHOWN = 2, 3, 4, 5  # codes
KIND = Field(
    "kind", "event", "category", vocabulary=("view", "dislike", "purchase", "impression"),
    weights={"view": 0.5, "dislike": -0.75, "purchase": 1.0, "impression": 0.0},
)  # fmt: skip
DWELL = Field("watch_time", "event", "number", median=9.0, medians={"": 10.0, "view": 20.0})
DEVICE = Field("device", "request", "category", vocabulary=("phone", "tv"))
WEIGHTS = np.array([0.5, 0.25, 0.5, -0.75, 1.0, 0.0], np.float32)  # by code; missing as view
NEIGHBOURS = PrunedWeights(np.stack([np.arange(N), (np.arange(N) + 1) % N], 1), np.tile([0.1, 0.4], (N, 1)))


def hybrid(terms, fields=True, plain=False, context=None, kinds=True):
    """``plain``: kinds are read, but all count the same."""
    text = np.random.default_rng(1).normal(size=(N, 8)).astype(np.float32)
    settings = ItemWeightSettings(neighbours=2, decay=0.5, context=context, kinds=kinds)
    config = ModelConfig(embedding_dim=16, blocks=1, heads=2, dropout=0.1, history_length=6, terms=terms, fields=fields)
    kind = Field(KIND.name, KIND.owner, KIND.kind, KIND.vocabulary) if plain else KIND
    ids = np.arange(N).astype(str).astype(object)
    return Hybrid(Catalogue(ids, text), np.ones(N, int), config, settings, seed=3, schema=Schema((kind, DEVICE)))


def queries(histories, kinds):
    codes = Ragged.from_rows(kinds, np.int32)
    weights = Ragged(WEIGHTS[codes.values], codes.offsets)
    made = Queries.from_histories(histories, fields={"event.kind": codes})
    return replace(made, weights=weights)


ASKED = queries([[0, 3], [0, 3], [0, 3], [5, 5, 2, 5], [4, 6]],
                [[VIEW, VIEW], [VIEW, DISLIKE], [VIEW, PURCHASE], [VIEW, PURCHASE, VIEW, DISLIKE], [0, 1]])  # fmt: skip


def test_behaviour_counts_each_event_by_its_kind_as_the_oracle_does():
    model = hybrid(["meaning", "behaviour"])
    model.set_item_weights(NEIGHBOURS)
    expected = score_history(ASKED.history, NEIGHBOURS, 0.5, ASKED.weights)
    np.testing.assert_allclose(model.score_terms(ASKED)[1], expected, atol=1e-6)
    # Item 4 is what comes after 3, which is the newest event: 0.4 times its weight.
    np.testing.assert_allclose(expected[:3, 4], [0.4 * 0.5, 0.4 * -0.75, 0.4 * 1.0], rtol=1e-6)
    # Item 6 comes after 5, whose newest use is a dislike; the second is two steps further back, the third three.
    third = np.log2(1 + 1 / 3) * 0.5**3 * 0.5
    assert expected[3, 6] == pytest.approx(0.4 * (-0.75 + np.log2(1.5) * 0.5**2 * 1.0 + third))
    told = model.explain(ASKED, np.full((5, 1), 4))
    assert told["behaviour"][1, 0] < 0 < told["behaviour"][0, 0] < told["behaviour"][2, 0]
    for pairs in model.behaviour_pairs({k: tf.constant(v) for k, v in model.query_inputs(ASKED).items()}):
        assert pairs.shape[0] == 5


def test_without_other_fields_kinds_count_as_well():
    model = hybrid(["meaning", "behaviour"], fields=False)
    model.set_item_weights(NEIGHBOURS)
    assert model.reads == (RATING_KEY, "event.kind") and model.event_fusion is None
    expected = score_history(ASKED.history, NEIGHBOURS, 0.5, ASKED.weights)
    np.testing.assert_allclose(model.score_terms(ASKED)[1], expected, atol=1e-6)


def test_factors_change_the_weights_of_kinds_in_histories_and_nothing_else():
    factors = {"VIEW": 0.0, "dislike": 2.0}  # in any spelling
    model = hybrid(["meaning", "behaviour"], kinds=factors)
    model.set_item_weights(NEIGHBOURS)
    weights = event_weights(ASKED, model.item_weights, KIND)
    assert weights[0].tolist() == [0, 0] and weights[1].tolist() == [0, -1.5] and weights[2].tolist() == [0, 1]
    assert weights[4].tolist() == [0, 0.25]  # a missing kind is a view, and an unknown one keeps its weight
    np.testing.assert_allclose(
        model.score_terms(ASKED)[1], score_history(ASKED.history, NEIGHBOURS, 0.5, weights), atol=1e-6
    )
    assert ASKED.choices[0].tolist() == ASKED.had[0].tolist() == [0, 3]
    again = Hybrid.from_config(model.get_config())
    assert again.item_weights.kinds == factors


@pytest.mark.parametrize("fields", [True, False])
@pytest.mark.parametrize("with_kinds", [True, False])
def test_behaviour_weighs_dwell_times_as_the_data_does(fields, with_kinds):
    schema = Schema((*[KIND] * with_kinds, DWELL))
    times = Ragged(np.resize(np.array([5, 30, np.nan, -1, 0, 2], np.float32), len(ASKED.history.values)),
                   ASKED.history.offsets)  # fmt: skip
    of_events = {**ASKED.fields, DWELL.key: times}
    weights = Ragged(schema.event_weights({key: of.values for key, of in of_events.items()}), times.offsets)
    asked, config = replace(ASKED, fields=of_events, weights=weights), hybrid(["meaning", "behaviour"], fields).config
    catalogue = Catalogue(np.arange(N).astype(str).astype(object), np.ones((N, 8), np.float32))
    for kinds in (True, False):
        settings = ItemWeightSettings(neighbours=2, decay=0.5, kinds=kinds)
        model = Hybrid(catalogue, np.ones(N, int), config, settings, schema=schema)
        assert (DWELL.key in model.reads) == (kinds or fields)
        model.set_item_weights(NEIGHBOURS)
        expected = score_history(asked.history, NEIGHBOURS, 0.5, weights if kinds else None)
        np.testing.assert_allclose(model.score_terms(asked)[1], expected, atol=1e-6)
    assert event_weights(asked, ItemWeightSettings()) is weights


def test_events_that_do_not_count_are_no_steps():
    shown = queries([[0, 3, 5, 6], [0, 3]], [[VIEW, VIEW, SHOWN, SHOWN], [VIEW, VIEW]])
    model = hybrid(["meaning", "behaviour"])
    model.set_item_weights(NEIGHBOURS)
    found = model.score_terms(shown)[1]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose(found, score_history(shown.history, NEIGHBOURS, 0.5, shown.weights), atol=1e-6)
    told = model.explain(shown, np.array([[4, 1], [4, 1]]))
    np.testing.assert_allclose(told["behaviour"][0], told["behaviour"][1], atol=1e-6)
    assert told["because"].tolist() == [[1, 0], [1, 0]]  # places in the whole history


@pytest.mark.parametrize("off", [{"kinds": False}, {"plain": True}])
def test_switched_off_all_kinds_count_the_same(off):
    model = hybrid(["meaning", "behaviour"], **off)
    model.set_item_weights(NEIGHBOURS)
    sparse = model.score_terms(ASKED)[1]
    np.testing.assert_allclose(sparse[1], sparse[0], atol=1e-6)
    np.testing.assert_allclose(sparse, score_history(ASKED.history, NEIGHBOURS, 0.5), atol=1e-6)


def test_events_that_share_the_context_of_the_request_count_more_as_the_oracle_says():
    codes = Ragged(np.array([2, 3, 2, 2, 0, 3, 1, 2, 3, 2, 2, 3], np.int32)[: len(ASKED.history.values)],
                   ASKED.history.offsets)  # fmt: skip
    fields = {**ASKED.fields, "event.device": codes, "request.device": np.array([2, 2, 3, 0, 1], np.int32)}
    asked = replace(ASKED, fields=fields)
    model = hybrid(["meaning", "behaviour"], context={"device": 0.7})
    model.set_item_weights(NEIGHBOURS)
    weights = event_weights(asked, ItemWeightSettings(context={"device": 0.7}))
    more = np.float32(np.exp(0.7))
    assert weights[0].tolist() == pytest.approx([0.5 * more, 0.5])  # phone and tv, asked on a phone
    assert weights[3].tolist() == ASKED.weights[3].tolist()  # of a request without a device
    assert weights[4].tolist() == ASKED.weights[4].tolist()  # an unknown device equals none
    np.testing.assert_allclose(
        model.score_terms(asked)[1], score_history(asked.history, NEIGHBOURS, 0.5, weights), atol=1e-6
    )
    with pytest.raises(ModelError, match="context: expected request fields that the model reads; found shop"):
        hybrid(["meaning", "behaviour"], context={"shop": 1.0})
    with pytest.raises(ModelError, match="found device"):
        hybrid(["meaning", "behaviour"], fields=False, context={"device": 1.0})


def test_gates_learn_among_the_items_that_lists_may_have():
    model = hybrid(["meaning", "behaviour"], fields=False)

    def loss(kind):
        query = {
            key: tf.constant(values) for key, values in model.query_inputs(queries([[0, 3]], [[VIEW, kind]])).items()
        }
        return float(model._gate_loss(query, tf.constant([[N, 5]]), tf.constant([[False, True]]), None))

    # The item-item weights are not set, so the kinds only decide which items are left out of the softmax.
    assert loss(DISLIKE) == pytest.approx(loss(VIEW))
    assert loss(SHOWN) > loss(VIEW) + 0.01


def trained(weighted):
    """After item i every user dislikes i + 4 and then buys i + 1."""
    rows, kinds = [], []
    for start in np.random.default_rng(0).integers(0, N, 200):
        items = [item % N for step in range(4) for item in (start + step, start + step + 5)][:-1]
        rows.append(items)
        kinds.append(np.resize([PURCHASE, DISLIKE], len(items)))
    items, codes = Ragged.from_rows(rows, np.int64), Ragged.from_rows(kinds, np.int32)
    fields = {RATING_KEY: Ragged(np.full(len(items.values), np.nan, np.float32), items.offsets), "event.kind": codes}
    fields["event.device"] = Ragged(np.full(len(items.values), 2, np.int32), items.offsets)
    held_out = Ragged(np.zeros(len(items.values), bool), items.offsets)
    weights = Ragged(WEIGHTS[codes.values], items.offsets) if weighted else None
    model = hybrid(["meaning"])
    model.compile(optimizer=tf.keras.optimizers.Adam(0.01))
    batches = training_batches(
        Sequences(items, held_out, N, fields, ["device"], weights), 16, 8, 1, 8, keys=model.reads
    )
    model.fit(batches, epochs=8, steps_per_epoch=len(batches) // 8, verbose=0)
    scores = model.score(queries([[item] for item in range(N)], [[PURCHASE]] * N))
    return np.mean([scores[item, (item + 1) % N] > scores[item, (item + 5) % N] for item in range(N)])


@pytest.mark.slow
@pytest.mark.long
def test_what_users_reject_is_not_learned_as_their_next_choice():
    # The dislike of i + 5 is what comes next. Without weights it is learned; with them nothing is learned of it.
    assert trained(weighted=False) == 0.0
    assert trained(weighted=True) > 0.6
