"""Planted data in which users stay within a hidden group of items that a field of the items tells, and texts do not."""

import functools

import hidden_groups
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hidden_groups import GROUP, GROUPS, IDS, N_COLD, N, fit, histories

from tfllmrec.config import ItemWeightSettings, ModelConfig
from tfllmrec.data.schema import RATING_KEY, Field, Schema, missing
from tfllmrec.errors import ModelError
from tfllmrec.models.hybrid import Catalogue, Hybrid

pytestmark = pytest.mark.tf
BRAND = Field("brand", "item", "category", vocabulary=("a", "b", "c", "d"))
IMAGE = Field("image", "item", "vector", width=6)
PRICE = Field("price", "item", "number", edges=(1.0, 5.0, 9.0), median=4.0, spread=2.0)
SCHEMA = Schema((BRAND, IMAGE, PRICE, Field("isbn", "item", "id")))
CONFIG = ModelConfig(
    embedding_dim=16, blocks=1, heads=2, dropout=0.1, history_length=6, terms=["meaning"], item_fields="all"
)
RNG = np.random.default_rng(0)
TEXT = RNG.normal(size=(N, 8)).astype(np.float32)
#: Images of a group are alike, and all of them point in one direction.
LOOKS = (10 + RNG.normal(size=(GROUPS, 6))[GROUP] + 0.1 * RNG.normal(size=(N, 6))).astype(np.float32)
NO_IMAGE, NO_BRAND = N - 1, N - 2
LOOKS[NO_IMAGE] = np.nan


def fields(n=N, image=LOOKS):
    brand = (2 + np.arange(n) % GROUPS).astype(np.int32)
    brand[NO_BRAND] = 0
    return {"item.brand": brand, "item.image": image, "item.price": np.full(n, np.nan, np.float32)}


@functools.cache
def fitted(*told, item_fields="all"):
    return fit(untrained(told, CONFIG.model_copy(update={"item_fields": item_fields})))


def untrained(told, config=CONFIG, **kwargs):
    counts = np.bincount(histories().values, minlength=N)
    catalogue = Catalogue(IDS, TEXT, fields={key: fields()[key] for key in told})
    return Hybrid(catalogue, counts, config, ItemWeightSettings(neighbours=4), seed=3, schema=SCHEMA, **kwargs)


@pytest.fixture(scope="module")
def trained():
    return fitted("item.brand", "item.image")


def cold_hits(model):
    """Of the items with all fields."""
    return hidden_groups.cold_hits(model, N - 2)


@pytest.mark.parametrize("told", ["item.brand", "item.image"])
def test_a_cold_item_is_found_by_its_field(told):
    assert cold_hits(fitted(told)) > 0.9


def test_the_effect_vanishes_without_the_fields(trained):
    assert cold_hits(trained) > 0.9
    unread = fitted("item.brand", "item.image", item_fields="none")
    assert not unread.items.fields and cold_hits(unread) < 0.6
    trained.items.reads.assign(0.0)
    assert cold_hits(trained) < 0.6
    trained.items.reads.assign(1.0)


def test_similar_items_are_those_of_the_group(trained):
    def share(model):
        told = model.similar(IDS[N - N_COLD : N - 2], k=3)
        return (GROUP[told["item_id"].astype(int)] == GROUP[N - N_COLD + told["query"].astype(int)]).mean()

    assert share(trained) > 0.8 and share(fitted("item.brand", "item.image", item_fields="none")) < 0.6


def test_an_item_without_a_field_has_the_vector_that_ignores_it(trained):
    without = untrained(["item.brand"])
    source, goal = trained.items, without.items
    source.fields[1].encoder.missing.assign(tf.ones(16))  # a vector that would be seen
    goal.maps["text"].assign(source.maps["text"])
    goal.fields[0].encoder.set_weights(source.fields[0].encoder.get_weights())
    goal.strengths.assign(source.strengths[:1])
    goal.keys.assign(source.keys[:2])
    none = tf.zeros(N)
    np.testing.assert_allclose(trained.item_vectors(none)[NO_IMAGE], without.item_vectors(none)[NO_IMAGE], atol=1e-6)
    other = NO_IMAGE - GROUPS
    assert np.abs(trained.item_vectors(none)[other] - without.item_vectors(none)[other]).max() > 0.01


def test_training_starts_from_text_and_id():
    np.testing.assert_array_equal(untrained(fields()).item_vectors(), untrained([]).item_vectors())


def test_fields_that_the_catalogue_lacks_or_that_have_no_encoder_are_not_read(trained):
    assert [field.key for field in trained.schema.of("item")] == ["item.brand", "item.image"]
    assert trained.reads == (RATING_KEY,)
    with pytest.raises(ModelError, match=r"a value of item\.brand for each of 48 item ids, found 3"):
        Catalogue(IDS, TEXT, fields={"item.brand": np.zeros(3, np.int32)})


@pytest.mark.parametrize(
    ("item_fields", "told"),
    [("none", []), ("vectors", ["item.image"]), ("all", ["item.brand", "item.image", "item.price"])],
)
def test_a_catalogue_encodes_what_the_model_reads(monkeypatch, item_fields, told):
    looks = [", ".join(map(str, look)) for look in LOOKS]
    items = pd.DataFrame({"item_id": IDS, "brand": "b", "image": looks, "price": "2", "isbn": IDS}).astype("str")
    every = Catalogue.of(items, TEXT, SCHEMA).fields
    assert list(every) == ["item.brand", "item.image", "item.price"]
    encode, encoded = Field.encode, []
    monkeypatch.setattr(Field, "encode", lambda field, cells: encoded.append(field.key) or encode(field, cells))
    config = CONFIG.model_copy(update={"item_fields": item_fields})
    fields = Catalogue.of(items, TEXT, SCHEMA, config=config).fields
    assert list(fields) == encoded == told
    for key in told:
        np.testing.assert_array_equal(fields[key], every[key])
    encoded.clear()
    blank = Catalogue.of(items, TEXT, SCHEMA, config=config, blank=True).fields
    assert list(blank) == told and not encoded
    assert all(missing(values).all() and values.shape == every[key].shape for key, values in blank.items())


def test_a_loaded_model_has_the_same_fields(trained, tmp_path):
    trained.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.item_vectors(), trained.item_vectors(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(loaded.items.fields[0].values, trained.items.fields[0].values)


def test_a_saved_model_of_an_earlier_version_reads_no_fields_of_items():
    config = untrained([]).get_config()
    del config["config"]["item_fields"]
    config["schema"] = SCHEMA.as_dict()  # it kept them, and did not read them
    assert not Hybrid.from_config(config).items.fields


def test_sampled_negatives_give_the_same_vectors(trained):
    some = tf.constant([5, 40, 2])
    of_some = trained.item_vectors(items=some, content=trained.items.content(some))
    np.testing.assert_allclose(of_some, tf.gather(trained.item_vectors(), some), atol=1e-6)


def test_new_items_bring_their_fields(trained):
    """Two with the text of an old item, each with the image of another group; and one without fields."""
    ids = np.array([*IDS, "new 1", "new 2", "bare"], object)
    text = np.vstack([TEXT, TEXT[[0, 0, 0]]])
    nothing = np.full((1, 6), np.nan, np.float32)
    told = fields(N + 3, np.vstack([LOOKS, LOOKS[[1, 2]], nothing]))
    told["item.brand"][N:] = [3, 4, 0]
    grown = trained.extend(Catalogue(ids, text, fields=told), TEXT, histories(), lambda line: None)
    vectors = grown.item_vectors().numpy()
    np.testing.assert_allclose(vectors[:N], trained.item_vectors(), atol=1e-6)
    nearest = np.argsort(-vectors[[N, N + 1]] @ vectors[: N - 2].T, axis=1)[:, :5]
    assert (GROUP[nearest] == [[1], [2]]).mean() > 0.7
    by_text = tf.math.l2_normalize(grown.items.content().text[N + 2])
    np.testing.assert_allclose(vectors[N + 2], by_text, atol=1e-6)
    with pytest.raises(ModelError, match=r"reads the item fields item\.brand, item\.image, but the"):
        trained.extend(Catalogue(ids, text), TEXT, histories(), lambda line: None)
