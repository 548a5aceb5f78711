"""Words through a tiny BERT: left out and by gradients, in a model whose meaning term leans on one word."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.config import ModelConfig
from tfllmrec.data.queries import Queries
from tfllmrec.errors import ModelError
from tfllmrec.models.hybrid import Catalogue, Hybrid
from tfllmrec.models.words import MOST_WORDS, TextOfItem, _word_table
from tfllmrec.text.encoder import TextEncoder
from tfllmrec.text.side_by_side import SideBySide
from tfllmrec.text.store import VectorStore

pytestmark = pytest.mark.tf
TEXTS = ["red a", "blue b", "red c", "blue d", "red", "blue"]


@pytest.fixture(scope="module")
def encoder(tiny_hub):
    preprocessor, folder = map(str, tiny_hub)
    return TextEncoder(folder, preprocessor, max_tokens=12)


@pytest.fixture(scope="module")
def model(encoder):
    """Meaning alone, without position or encoder blocks to speak of: like texts attract each other."""
    config = ModelConfig(embedding_dim=16, blocks=0, dropout=0.0, history_length=4, id_dropout=1.0, terms=["meaning"])
    ids = np.arange(len(TEXTS)).astype(str).astype(object)
    return Hybrid(Catalogue(ids, encoder.encode(TEXTS)), np.full(len(TEXTS), 5), config, seed=1)


def of_item(model, encoder, item=0, text=None, history=(4,)):
    query = Queries.from_histories([list(history)])
    return TextOfItem(model, query, item, TEXTS[item] if text is None else text, encoder, encoder.encode(TEXTS))


def meaning(model, item, history=(4,)):
    return model.explain(Queries.from_histories([list(history)]), np.array([[item]]))["meaning"][0, 0]


def test_a_left_out_word_takes_away_what_it_added(model, encoder):
    """``red a`` without ``a`` is ``red``, which is another item; and encoded texts are kept."""
    words = of_item(model, encoder).left_out()
    assert [words.text[start:end] for start, end in words.spans] == ["red", "a"]
    assert words.added[1] == pytest.approx(meaning(model, 0) - meaning(model, 4), abs=1e-4)


def test_vectors_of_shortened_texts_are_kept(model, encoder, tmp_path, monkeypatch):
    text, store = of_item(model, encoder), VectorStore(tmp_path)
    first = text.left_out(store).added
    monkeypatch.setattr(TextEncoder, "encode", None)
    np.testing.assert_array_equal(text.left_out(store).added, first)


def test_gradients_add_up_to_what_the_words_are_worth(model, encoder):
    """Together they are the term less that of a text of nothing but special tokens; and the encoder is as before."""
    text = of_item(model, encoder)
    before = encoder.encode(TEXTS)
    words = text.by_gradients()
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)
    tower = encoder.text_to_vector
    tokens = tower.tokens(tf.constant([TEXTS[0]]))
    (table,) = [v for v in tower.encoder.trainable_variables if "word_embedding" in v.name]
    used = tokens["input_word_ids"][0, 1:-1]
    kept = tf.gather(table, used)
    table.scatter_update(tf.IndexedSlices(tf.zeros_like(kept), used))
    nothing = tower.vectors(tokens) - before.mean(axis=0, keepdims=True)
    table.scatter_update(tf.IndexedSlices(kept, used))
    without = float(text._meaning(tf.linalg.l2_normalize(nothing, 1))[0])
    assert words.added.sum() == pytest.approx(
        meaning(model, 0) - without, abs=0.02 * float(np.abs(words.added).max()) + 1e-3
    )
    assert np.abs(words.added).max() > 1e-3


def test_a_word_that_is_there_twice_shares_what_it_adds(model, encoder):
    words = of_item(model, encoder, text="red a red").by_gradients()
    assert words.added[0] == words.added[2] != words.added[1]


def test_words_are_bounded_and_texts_may_be_empty(model, encoder):
    assert of_item(model, encoder, text="").left_out().added.shape == (0,)
    assert of_item(model, encoder, text="").by_gradients().added.shape == (0,)
    assert len(of_item(model, encoder, text="red " * 200).by_gradients().added) == MOST_WORDS


def test_the_word_embedding_is_preferred_to_a_larger_table():
    words, places, inner = (
        tf.Variable(tf.zeros([rows, 2]), name=name)
        for name, rows in [("bert/word_embedding", 9), ("bert/position_embedding", 40), ("bert/inner", 50)]
    )
    assert _word_table(SimpleNamespace(trainable_variables=[words, places, inner]), 8) is words
    assert _word_table(SimpleNamespace(trainable_variables=[places, inner]), 8) is places
    assert _word_table(SimpleNamespace(trainable_variables=[inner]), 8) is inner


def test_encoders_that_have_no_gradients_say_what_to_do(model, encoder):
    both = SideBySide([encoder, encoder])
    with pytest.raises(ModelError, match=r"need one text encoder, found 2\. Use leave-one-out"):
        of_item(model, both).by_gradients()

    class Frozen(tf.Module):
        trainable_variables = ()

    tower = encoder.text_to_vector
    kept = tower.encoder
    try:
        tower.encoder = Frozen()
        with pytest.raises(ModelError, match="trainable word embedding, found Frozen without one"):
            of_item(model, encoder).by_gradients()
    finally:
        tower.encoder = kept
