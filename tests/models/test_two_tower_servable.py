"""Any two-tower model keeps the protocol that export and ranking ask for."""

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import RATING_KEY, Field, Schema
from tfllmrec.errors import ModelError
from tfllmrec.layers.item_index import ItemIndex
from tfllmrec.models.two_tower_servable import USER_FIELD, TwoTowerServable, with_user_ids

pytestmark = pytest.mark.tf
N, D = 12, 4
RNG = np.random.default_rng(1)
VECTORS = RNG.normal(size=(N, D)).astype(np.float32)
VECTORS[5] = 0
COUNTS = np.arange(N) % 5
DEVICES = RNG.normal(size=(4, D)).astype(np.float32)
SCHEMA = Schema(
    (
        Field("kind", "event", "category", ("view", "buy")),
        Field("rating", "event", "number"),
        Field("device", "request", "category", ("phone", "tv")),
        Field("look", "user", "vector", width=2),
        Field("note", "user", "text"),
    )
)


class Tower(tf.Module):
    """The mean of the vectors of the history, bought items twice, and a vector of the device."""

    def __init__(self):
        super().__init__()
        self.items, self.devices = tf.Variable(VECTORS), tf.Variable(DEVICES)
        self.names = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["u1"], [2]), 0)

    def __call__(self, inputs):
        there = inputs["history"] < N
        weights = tf.cast(there, tf.float32) * tf.where(inputs["event.kind"] == 3, 2.0, 1.0)
        vectors = tf.gather(self.items, tf.where(there, inputs["history"], 0))
        return tf.einsum("bl,bld->bd", weights, vectors) + tf.gather(self.devices, inputs["request.device"])


def expected(history, kinds, device):
    return sum((VECTORS[i] * (2 if k == 3 else 1) for i, k in zip(history, kinds, strict=True)), DEVICES[device])


HISTORIES = [[1, 2, 5], [], [7], []]
KINDS = [[2, 3, 0], [], [3], []]
DEVICE = [2, 3, 0, 0]


def queries():
    return Queries.from_histories(
        HISTORIES,
        user_ids=["u1", "u2", "u3", "u4"],
        fields={
            "event.kind": Ragged.from_rows(KINDS, np.int32),
            "event.device": Ragged.from_rows([[0] * len(h) for h in HISTORIES], np.int32),
            "request.device": np.array(DEVICE, np.int32),
            "user.look": np.full((4, 2), np.nan, np.float32),
            "user.note": np.full(4, "", object),
        },
    )


def query():
    inputs = queries().inputs(N, MODEL.reads)
    return {key: tf.constant(v, MODEL.query_spec[key].dtype) for key, v in inputs.items()}


MODEL = TwoTowerServable(Tower(), VECTORS, COUNTS, SCHEMA)
EXPECTED = np.array(
    [VECTORS @ expected(h, k, d) for h, k, d in zip(HISTORIES[:3], KINDS[:3], DEVICE[:3], strict=True)]
    + [np.log1p(COUNTS)]
)


def test_scores_are_inner_products_and_popularity_where_nothing_is_known():
    assert MODEL.reads == (
        "event.kind", RATING_KEY, "event.device", "request.device", "user.look", "user.note",
    )  # fmt: skip
    np.testing.assert_allclose(MODEL.score(queries()), EXPECTED, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(MODEL.score_items(MODEL.item_vectors(), query()), EXPECTED, rtol=1e-5, atol=1e-5)
    assert MODEL.nothing_known(query()).numpy().tolist() == [False, False, False, True]


def test_an_index_of_the_folded_model_gives_the_same_lists():
    folded = MODEL.fold()
    index = ItemIndex(folded.vectors, prior=folded.prior)
    request = folded.requests(MODEL.item_vectors(), query())
    found, scores = index.top_k(k=tf.constant([N]), **request)
    np.testing.assert_allclose(scores, np.take_along_axis(EXPECTED, found.numpy(), axis=1), rtol=1e-5, atol=1e-5)
    mean, variance = folded.moments(index, request["query"], request["pairs"])
    np.testing.assert_allclose(mean[:3], EXPECTED[:3].mean(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance[:3], EXPECTED[:3].var(axis=1), rtol=1e-4, atol=1e-5)


def test_terms_and_explanations_are_the_score():
    items = tf.constant([[0, 5, 11]] * 4)
    terms = MODEL.terms_of_items(MODEL.item_vectors(), query(), items)
    np.testing.assert_allclose(terms[:3, :, 0], EXPECTED[:3, [0, 5, 11]], rtol=1e-5, atol=1e-5)
    out = MODEL.explain_items(MODEL.item_vectors(), query(), tf.constant([[3, N]] * 4))
    np.testing.assert_allclose(out["score"][:3, 0], EXPECTED[:3, 3], rtol=1e-5, atol=1e-5)
    assert not out["score"][:, 1].numpy().any() and (out["because"].numpy() == -1).all()


def test_terms_after_an_earlier_event():
    terms = MODEL.terms_after(
        MODEL.item_vectors(), query(), tf.constant([0, 0, 2]), tf.constant([0, 1, 0]), tf.constant([[3], [4], [6]])
    )
    wanted = [expected([1], [2], 2) @ VECTORS[3], expected([1, 2], [2, 3], 2) @ VECTORS[4], EXPECTED[2, 6]]
    np.testing.assert_allclose(terms[:, 0, 0], wanted, rtol=1e-5, atol=1e-5)


def test_resources_are_variables_and_tables():
    found = {type(resource).__name__ for resource in MODEL.resources}
    assert "StaticHashTable" in found and len(MODEL.resources) == 5


def test_one_tensor_alone():
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["u1", "u3"], [1, 2]), 0)

    class ByUser(tf.Module):
        def __call__(self, user_ids):
            return tf.gather(DEVICES, table.lookup(user_ids))

    model = TwoTowerServable(ByUser(), VECTORS, COUNTS, SCHEMA, USER_FIELD.key)
    assert model.reads == ("user.user_id",) and with_user_ids(queries()).fields["user.user_id"][0] == "u1"
    np.testing.assert_allclose(model.score(queries())[[0, 1]], [VECTORS @ DEVICES[1], VECTORS @ DEVICES[0]], rtol=1e-5)

    class ByHistory(tf.Module):
        def __call__(self, history):
            return tf.one_hot(history[:, 0] % D, D)

    model = TwoTowerServable(ByHistory(), VECTORS, COUNTS, SCHEMA, "history")
    np.testing.assert_allclose(model.score(queries())[2], VECTORS[:, 3], rtol=1e-5)


@pytest.mark.parametrize(
    ("vectors", "takes", "said"),
    [
        (VECTORS[1:], None, r"expected finite numbers \[12, D\], a row for each item .* found shape \[11, 4\]"),
        (np.full((N, D), np.nan), None, "expected finite numbers"),
        (VECTORS[:, :3], None, r"vectors of shape \[1, 4\] for one query; expected \[1, 3\]"),
        (VECTORS, ["request.devise"], "takes request.devise: expected history or fields of the data: event.kind"),
    ],
)
def test_parts_that_do_not_fit_are_named(vectors, takes, said):
    with pytest.raises(ModelError, match=said):
        TwoTowerServable(Tower(), vectors, COUNTS, SCHEMA, takes)


def test_it_is_not_extended():
    with pytest.raises(ModelError, match="export it again with a data set that has the new items"):
        MODEL.extend(None, None, None, print)
