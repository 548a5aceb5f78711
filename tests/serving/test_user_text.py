"""Texts that users write, in an export: what is served is what the Keras model says."""

import json

import numpy as np
import pandas as pd
import pytest

from tfllmrec.config import DataConfig, ModelConfig, SplitConfig
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.errors import ModelError

pytestmark = [pytest.mark.tf, pytest.mark.slow]
N, LENGTH = 8, 3
TEXTS = ["event.note", "request.wish", "user.about"]
WORDS = ["red", "blue", "car", "toy", "cafe"]


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)

    def some_words():
        return " ".join(rng.choice(WORDS, rng.integers(1, 5))) if rng.random() < 0.8 else ""

    rows = [
        (f"u{user}", f"i{item}", 1_600_000_000 + step, some_words(), some_words())
        for user in range(12)
        for step, item in enumerate(rng.permutation(N)[:6])
    ]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "note", "wish"])
    items = pd.DataFrame(
        {"item_id": [f"i{i}" for i in range(N)], "title": [f"{WORDS[i % 5]} {WORDS[i // 5]}" for i in range(N)]}
    )
    users = pd.DataFrame({"user_id": [f"u{user}" for user in range(12)], "about": [some_words() for _ in range(12)]})
    text = {"kind": "text"}
    config = DataConfig(fields={"note": text, "wish": text | {"owner": "request"}, "about": text})
    return make_split(dataset_from_frames(events, items, users, config=config), SplitConfig(), 42)


@pytest.fixture(scope="module")
def encoder(tiny_hub):
    from tfllmrec.text.encoder import TextEncoder

    preprocessor, encoder = tiny_hub
    return TextEncoder(encoder, preprocessor, max_tokens=12)


@pytest.fixture(scope="module")
def model(split, encoder):
    """Untrained, but with weights that let every text speak."""
    from tfllmrec.data.batches import Sequences
    from tfllmrec.models.hybrid import Catalogue, Hybrid
    from tfllmrec.text.template import ItemTemplate
    from tfllmrec.text.user_texts import UserTexts

    rng = np.random.default_rng(1)
    items = split.dataset.items
    text = encoder.encode(ItemTemplate.from_items(items).texts(items))
    schema = split.schema.reading_text(encoder.dim)
    config = ModelConfig(embedding_dim=8, blocks=1, heads=2, history_length=LENGTH)
    made = Hybrid(Catalogue.of(items, text, schema), split.train_counts, config, schema=schema)
    made.centre_texts(Sequences.from_split(split, 0.2, 1), UserTexts(encoder.for_queries))
    for layer in (made.event_fusion, made.query_fusion):
        for variable in layer.trainable_variables:
            variable.assign(variable + 0.3 * rng.normal(size=variable.shape))
    made.query_fusion.alone.assign(2.0)
    return made


@pytest.fixture(scope="module")
def version(model, split, encoder, cache, tmp_path_factory):
    from tfllmrec.serving.export import export

    return export(model, split, tmp_path_factory.mktemp("texts") / "shop", encoder=encoder)


@pytest.fixture(scope="module")
def served(version):
    from tfllmrec.serving.saved_model import SavedModel

    return SavedModel.open(version)


def test_texts_of_all_owners_are_read(model):
    assert model.reads_texts == ["event.note", "event.wish", *TEXTS[1:]]


def test_scores_are_those_of_the_model(model, served, split):
    scores = model.score(split.test)
    assert split.test.history.lengths.max() > LENGTH
    np.testing.assert_allclose(served.score(split.test), scores, rtol=1e-4, atol=1e-4)
    for key in TEXTS:
        kept = {name: values for name, values in split.test.fields.items() if name != key}
        without = type(split.test)(
            split.test.user_ids, split.test.history, split.test.exclude, split.test.targets, kept
        )
        moved = model.score(without)
        assert np.abs(moved - scores).max() > 1e-3, key
        np.testing.assert_allclose(served.score(without), moved, rtol=1e-4, atol=1e-4)


def test_a_sentence_in_the_context_and_notes_of_events(model, served):
    asked = {
        "histories": [["i1", "i2"], []],
        "context": [{"wish": "a red car"}, {"about": "blue = toy"}],
        "event_fields": [[{"note": "cafe"}, None], None],
        "k": N,
    }
    one, own = served.recommend(**asked), model.recommend(**asked)
    assert one["item_id"].tolist() == own["item_id"].tolist()
    np.testing.assert_allclose(one["score"], own["score"], rtol=1e-4, atol=1e-4)
    silent = served.recommend(histories=asked["histories"], k=N)
    assert np.abs(silent["score"].to_numpy() - one["score"].to_numpy()).max() > 1e-3


@pytest.mark.slow
def test_texts_that_do_not_help_are_not_encoded(model, split, encoder, tmp_path):
    from tfllmrec.serving.export import export
    from tfllmrec.serving.saved_model import SavedModel

    model.reads_text.assign(0.0)
    try:
        scores, version = model.score(split.test), export(model, split, tmp_path / "shop")  # needs no encoder
    finally:
        model.reads_text.assign(1.0)
    np.testing.assert_allclose(SavedModel.open(version).score(split.test), scores, rtol=1e-4, atol=1e-4)
    assert np.abs(model.score(split.test) - scores).max() > 1e-3


def test_an_export_without_the_encoder_is_refused(model, split, encoder, tmp_path):
    from tfllmrec.serving.export import export

    with pytest.raises(ModelError, match=r"reads the texts event\.note, .*Export it with encoder="):
        export(model, split, tmp_path / "shop")

    class NoGraph:
        encode, dim, fingerprint, widths = encoder.encode, encoder.dim, encoder.fingerprint, encoder.widths

        @property
        def for_queries(self):
            return object()

    with pytest.raises(ModelError, match=r"a NoGraph has no graph \(text_to_vector\), so it cannot be exported"):
        export(model, split, tmp_path / "shop", encoder=NoGraph())
    assert not (tmp_path / "shop").exists()


def test_the_manifest_says_which_texts_are_encoded(version):
    manifest = json.loads((version / "assets.extra" / "tfllmrec.json").read_text())
    assert manifest["texts"] == {"fields": ["event.note", "event.wish", *TEXTS[1:]], "newest": LENGTH, "width": 16}


def test_different_texts_are_encoded_once_and_few_at_a_time():
    import tensorflow as tf

    from tfllmrec.layers import given_texts

    asked = []

    def encode(texts):
        tf.py_function(lambda texts: asked.append([text.decode() for text in texts.numpy()]), [texts], [])
        return (
            tf.stack([tf.strings.to_number(texts), tf.cast(tf.strings.length(texts), tf.float32)], axis=1)
            * tf.cast(tf.strings.length(texts) < 4, tf.float32)[:, tf.newaxis]
        )

    many = [str(number) for number in range(100)]
    texts = {"a": tf.constant([[*many, ""], [*many, "1000"]]), "b": tf.constant(["7", ""])}
    found = tf.function(lambda texts: given_texts.vectors_of_texts(texts, encode, 2), autograph=False)(texts)
    assert asked == [many[: given_texts.AT_ONCE], [*many[given_texts.AT_ONCE :], "1000"]]
    expected = [[number, len(str(number))] for number in range(100)] + [[np.nan] * 2]
    np.testing.assert_array_equal(found["a"], [expected, expected])  # the last one has no token
    np.testing.assert_array_equal(found["b"], [[7, 1], [np.nan] * 2])
    asked.clear()
    none = {"a": tf.fill((2, 0), ""), "b": tf.constant([""])}
    found = given_texts.vectors_of_texts(none, encode, 2)
    assert found["a"].shape == (2, 0, 2) and np.isnan(found["b"]).all() and not asked


@pytest.mark.parametrize("reads", [1.0, 0.0])
def test_only_the_texts_of_the_newest_events_become_vectors(model, split, encoder, reads):
    import tensorflow as tf

    from tfllmrec.serving.signatures import ServingModel

    model.reads_text.assign(reads)
    try:
        serving = ServingModel(
            model, split.dataset.items["item_id"].to_numpy(object), model.text_vectors,
            encoder.for_queries.text_to_vector, split.train_queries(), schema=split.schema,
        )  # fmt: skip
        history, ratings = tf.fill((1, 50), "i1"), tf.zeros((1, 0))
        full, *_ = serving._query(history, ratings, tf.fill((1, 50), "note=red"), tf.constant([["about=car"]]))
        short, *_ = serving._query(history, ratings)
    finally:
        model.reads_text.assign(1.0)
    width = encoder.dim
    assert full["history"].shape == (1, 51)
    assert full["event.note"].shape == (1, LENGTH if reads else 1, width) and full["user.about"].shape == (1, width)
    assert np.isfinite(full["event.note"]).all() == np.isfinite(full["user.about"]).all() == bool(reads)
    assert short["event.note"].shape == (1, 1, width) and np.isnan(short["event.note"]).all()
    assert serving.width_of_texts == (width if reads else 0)
