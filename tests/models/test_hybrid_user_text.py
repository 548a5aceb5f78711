"""Planted data in which users write what they choose next, and what they like."""

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.config import ItemWeightSettings, ModelConfig
from tfllmrec.data.batches import Sequences, hold_out, training_batches
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import RATING_KEY, Field, Schema
from tfllmrec.errors import ModelError
from tfllmrec.models.hybrid import Catalogue, Hybrid
from tfllmrec.models.servable import SCORE_BATCH
from tfllmrec.text.user_texts import UserTexts

pytestmark = pytest.mark.tf
N, WIDTH, LENGTH = 12, 16, 6
COMMENT, QUERY, ABOUT = (f"{owner}.{owner}_text" for owner in ("event", "request", "user"))
UNREAD = Schema(tuple(Field(key.partition(".")[2], key.partition(".")[0], "text") for key in (COMMENT, QUERY, ABOUT)))
SCHEMA = UNREAD.reading_text(WIDTH)
CONFIG = ModelConfig(embedding_dim=16, blocks=1, heads=2, dropout=0.1, history_length=LENGTH, terms=["meaning"])
ITEM_TEXTS = np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))[0][:N].astype(np.float32)


class Encoder:
    """``item 3``: the vector of that item's text, and all else at random; counts what it is asked."""

    dim, fingerprint = WIDTH, "planted"

    def __init__(self):
        self.asked = []

    def encode(self, texts, progress=None):
        self.asked += texts
        found = [self._vector(text) for text in texts]
        return np.array(found, np.float32).reshape(len(texts), WIDTH)

    def _vector(self, text):
        if text == "?!":  # no token
            return np.zeros(WIDTH)
        number = text.removeprefix("item ")
        own = np.random.default_rng(list(text.encode())).normal(0, 0.05, WIDTH)
        return own + (ITEM_TEXTS[int(number.split()[0])] if number != text else 0.3)


def said(item, rng):
    """A wording of ``item``."""
    return f"item {item} {rng.integers(30)}"


def sequences(shuffled=False, n_users=200, seed=0):
    """Users go anywhere, and their comments say where next; the first comment of a history is lost."""
    rng = np.random.default_rng(seed)
    items = [rng.permutation(N)[: rng.integers(3, 7)] for _ in range(n_users)]
    comments = [[said(item, rng) for item in [*row[1:], rng.integers(N)]] for row in items]
    ragged = Ragged.from_rows(items, np.int64)
    flat = np.array([text for row in comments for text in row], object)
    if shuffled:
        rng.shuffle(flat)
    marks = Ragged(np.full(len(flat), np.nan, np.float32), ragged.offsets)
    fields = {RATING_KEY: marks, COMMENT: Ragged(flat, ragged.offsets)}
    return Sequences(ragged, hold_out(ragged, 0.2, 0), N, fields)


ONLY_EVENTS = Schema((SCHEMA[COMMENT],))


def made(schema, counts=None):
    counts = np.ones(N, np.int64) if counts is None else counts
    ids = np.arange(N).astype(str).astype(object)
    weights = ItemWeightSettings(neighbours=4)
    return Hybrid(Catalogue(ids, ITEM_TEXTS), counts, CONFIG, weights, seed=3, schema=schema)


def fitted(known):
    model = made(ONLY_EVENTS, np.bincount(known.items.values, minlength=N))
    model.centre_texts(known, UserTexts(Encoder()))
    model.compile(optimizer=tf.keras.optimizers.Adam(0.01))
    batches = training_batches(known, 16, LENGTH, seed=1, epochs=12, keys=model.reads, texts=model.texts)
    model.fit(batches, epochs=12, steps_per_epoch=len(batches) // 12, verbose=0)
    return model


@pytest.fixture(scope="module")
def trained():
    return fitted(sequences())


def asked(n=120):
    """Histories whose last comment, in a wording that training may not have, says what is next."""
    rng = np.random.default_rng(9)
    rows = [rng.permutation(N)[:4] for _ in range(n)]
    histories, targets = [row[:3] for row in rows], [int(row[3]) for row in rows]
    comments = [["", "", f"item {target} {rng.integers(1000)}"] for target in targets]
    queries = Queries.from_histories(histories, fields={COMMENT: Ragged.from_rows(comments, object)})
    return queries, np.array(targets)


def hits(model):
    queries, targets = asked()
    scores = model.score(queries)
    for row, history in enumerate(queries.history):
        scores[row, history] = -np.inf
    return (scores.argmax(1) == targets).mean()


def test_what_a_comment_says_is_what_comes_next(trained):
    assert hits(trained) > 0.9 and trained.ignored == []


def test_without_the_texts_nothing_is_known_of_the_next_item(trained):
    trained.reads_text.assign(0.0)
    try:
        assert trained.reads_texts == [] and hits(trained) < 0.25
        assert trained.ignored == [COMMENT]
    finally:
        trained.reads_text.assign(1.0)


def test_shuffled_texts_teach_nothing():
    assert hits(fitted(sequences(shuffled=True))) < 0.3


def test_the_text_of_an_event_is_known_from_that_event_on(trained):
    history = tf.constant([[0, 1, 2, 3]])
    ratings = tf.fill((1, 4), np.nan)

    def vectors(*texts):
        values = trained.texts(np.array([texts], object))
        query = {"history": history, RATING_KEY: ratings, COMMENT: tf.constant(values)}
        return trained.query_vectors(trained.item_vectors(), query)[0].numpy()[0]

    one, other = vectors("item 1", "item 2", "item 3", "item 5"), vectors("item 1", "item 2", "item 7", "item 8")
    np.testing.assert_allclose(one[:2], other[:2], atol=1e-6)
    assert (np.abs(one[2:] - other[2:]).max(axis=1) > 1e-2).all()


def test_a_batch_has_the_text_of_each_event_of_the_history_and_not_of_its_target():
    known = sequences(n_users=4)
    texts = UserTexts(Encoder())
    plain, read = (
        next(iter(training_batches(known, 4, LENGTH, seed=1, epochs=1, keys=[RATING_KEY, COMMENT], texts=each)))
        for each in (None, texts)
    )
    history, strings = plain["history"].numpy(), plain[COMMENT].numpy()
    for row, own in enumerate(history):
        user = next(u for u, items in enumerate(known.items) if np.array_equal(items[:-1], own[own < N]))
        there = [text.decode() for text in strings[row] if text]
        assert there == known.fields[COMMENT][user][:-1].tolist()
    np.testing.assert_array_equal(read[COMMENT], texts(np.char.decode(strings.astype(bytes)).astype(object)))
    assert np.isnan(read[COMMENT].numpy()[history == N]).all()


def test_a_million_events_are_codes_and_no_vectors(monkeypatch):
    known, constants, plain = sequences(n_users=5000), [], tf.constant

    def constant(value, *args, **kwargs):
        constants.append(np.asarray(value).nbytes)
        return plain(value, *args, **kwargs)

    encoder = Encoder()
    with monkeypatch.context() as patch:
        patch.setattr(tf, "constant", constant)
        training_batches(known, 16, LENGTH, seed=1, epochs=1, keys=[COMMENT], texts=UserTexts(encoder))
    different = set(known.values_of(COMMENT))
    assert sorted(encoder.asked) == sorted(different) and len(different) == 12 * 30
    events, table = len(known.items.values), 4 * WIDTH * (len(different) + 1)
    assert table in constants and sum(constants) < table + 24 * events < 4 * WIDTH * events


def nobody(**fields):
    keys = {"query": QUERY, "about": ABOUT}
    return Queries.from_histories([[]], fields={keys[name]: np.array([text], object) for name, text in fields.items()})


@pytest.mark.parametrize("field", ["query", "about"])
def test_a_sentence_that_reads_like_an_item_points_to_it_before_any_training(field):
    model = made(SCHEMA)
    model.texts = UserTexts(Encoder())
    model.query_fusion.alone.assign(1.0)
    for item in range(N):
        assert model.score(nobody(**{field: f"item {item} again"}))[0].argmax() == item
    np.testing.assert_array_equal(model.score(nobody(**{field: ""})), model.score(nobody()))
    np.testing.assert_array_equal(model.score(nobody(**{field: "?!"})), model.score(nobody()))


def test_the_mean_of_the_texts_of_training_is_a_weight(trained, tmp_path):
    known = sequences()
    texts = sorted(set(known.values_of(COMMENT)))
    mean = trained.event_fusion.texts.encoders[0].mean
    np.testing.assert_allclose(mean, Encoder().encode(texts).mean(axis=0), atol=1e-6)
    trained.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.event_fusion.texts.encoders[0].mean, mean)
    queries, _ = asked(5)
    with pytest.raises(ModelError, match=r"has no encoder: set model\.texts"):
        loaded.score(queries)
    silent = Queries.from_histories([[0, 1]])
    np.testing.assert_allclose(loaded.score(silent), trained.score(silent), atol=1e-5)
    loaded.texts = UserTexts(Encoder())
    np.testing.assert_allclose(loaded.score(queries), trained.score(queries), atol=1e-5)


def test_texts_that_nobody_met_are_encoded_when_they_come(trained):
    texts = UserTexts(encoder := Encoder())
    codes = texts.codes(np.array([["a b", ""], ["c d", "a b"]], object))
    assert codes.tolist() == [[1, 0], [2, 1]] and encoder.asked == ["a b", "c d"]
    vectors = texts(np.array([["c d", "new"], ["", "?!"]], object))
    assert vectors.shape == (2, 2, WIDTH) and encoder.asked[2:] == ["new", "?!"]
    np.testing.assert_array_equal(vectors[0], Encoder().encode(["c d", "new"]))
    assert np.isnan(vectors[1]).all() and len(texts.table) == 3


def test_only_the_newest_texts_of_a_long_history_are_encoded():
    model = made(ONLY_EVENTS)
    model.texts = UserTexts(encoder := Encoder())
    comments = [[f"text {place}" for place in range(10)], ["other"]]
    fields = {COMMENT: Ragged.from_rows(comments, object)}
    inputs = model.query_inputs(Queries.from_histories([list(range(10)), [3]], fields=fields))
    assert encoder.asked == [*(f"text {place}" for place in range(10 - LENGTH, 10)), "other"]
    assert inputs["history"].shape == (2, 10)
    assert np.isfinite(inputs[COMMENT][..., 0]).tolist() == [[True] * LENGTH, [True] + [False] * (LENGTH - 1)]
    longer = model.query_inputs(Queries.from_histories([list(range(10)), [3]], fields=fields), LENGTH + 1)
    assert longer["history"].shape == longer[COMMENT].shape[:2] == (2, LENGTH + 1)


def test_texts_that_are_not_read_take_no_memory():
    model = made(SCHEMA)
    model.texts = UserTexts(encoder := Encoder())
    fields = {COMMENT: Ragged.from_rows([["a"] * 4] * 3, object), ABOUT: np.array(["a"] * 3, object)}
    queries = Queries.from_histories([[1, 2, 3, 4]] * 3, fields=fields)
    silent = model.score(Queries.from_histories([[1, 2, 3, 4]] * 3))
    model.reads_text.assign(0.0)
    inputs = model.query_inputs(queries)
    assert inputs[COMMENT].shape == (3, 1, WIDTH) and inputs[ABOUT].shape == (3, WIDTH)
    assert np.isnan(inputs[COMMENT]).all() and not encoder.asked
    np.testing.assert_allclose(model.score(queries), silent, atol=1e-6)
    model.explain(queries, np.array([[0, 1]] * 3))


def test_scores_do_not_depend_on_how_many_histories_are_scored_at_once(trained, monkeypatch):
    queries, _ = asked(20)
    at_once = trained.score(queries)
    assert trained.rows_at_once == SCORE_BATCH
    monkeypatch.setattr("tfllmrec.models.hybrid.TEXT_VALUES", LENGTH * WIDTH * 2)
    assert trained.rows_at_once == 2
    np.testing.assert_allclose(trained.score(queries), at_once, atol=1e-5)


def test_errors_say_what_to_do(trained):
    with pytest.raises(ModelError, match=r"texts of the width of the items' text vectors, 16, for event\.event_text"):
        made(UNREAD.reading_text(5))
    batch = next(iter(training_batches(sequences(n_users=4), 4, LENGTH, seed=1, epochs=1)))
    with pytest.raises(ModelError, match=r"found strings: pass texts=model\.texts to training_batches"):
        trained.compute_loss(batch)


def test_a_schema_that_reads_no_text_makes_the_model_of_before():
    plain, none = made(UNREAD), made(None)
    assert list(plain.reads) == list(none.reads) == [RATING_KEY] and plain.reads_texts == []
    silent = Queries.from_histories([[0, 1]], fields={COMMENT: Ragged.from_rows([["a", "b"]], object)})
    np.testing.assert_array_equal(plain.score(silent), none.score(silent))
