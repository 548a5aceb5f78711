from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.errors import ModelError
from tfllmrec.text.encoder import TextEncoder
from tfllmrec.text.static_tower import static_tower

pytestmark = pytest.mark.tf
TEXTS = ["red car", "red red toy"]


@pytest.fixture(scope="module")
def teacher(tiny_hub):
    preprocessor, encoder = tiny_hub
    return TextEncoder(encoder, preprocessor, max_tokens=10)


@pytest.fixture(scope="module")
def tower(teacher):
    return static_tower(teacher, TEXTS, tokens=100, width=16)


def test_a_token_alone_has_the_vector_that_the_encoder_gives_it(tower, teacher):
    """With as many components as the encoder's vectors have, nothing is lost."""
    words = ["red", "car", "toy"]
    np.testing.assert_allclose(tower(tf.constant(words)).numpy(), teacher.encode(words), atol=1e-4)


def test_a_text_is_the_weighted_mean_of_its_tokens(tower, teacher):
    red, car = teacher.encode(["red", "car"])
    # Of the five tokens of the texts three are "red" and one is "car".
    weights = 1e-3 / (1e-3 + np.array([3, 1]) / 5)
    mean = weights @ np.array([red, car]) / weights.sum()
    expected = mean / np.linalg.norm(mean)
    got = tower(tf.constant(["red car", "car red", "", "  "])).numpy()
    np.testing.assert_allclose(got, [expected, expected, np.zeros(16), np.zeros(16)], atol=1e-4)


def test_fewer_components_and_tokens(teacher):
    small = static_tower(teacher, TEXTS, tokens=0, width=3)
    assert small.encoder.token_vectors.shape == (3, 3)  # red, car, toy
    assert small.encoder.projection.shape == (3, 16)
    assert small(tf.constant(["red"])).numpy().any()
    assert not small(tf.constant(["blue"])).numpy().any()  # the texts do not have it


def test_tokens_give_what_strings_do(tower):
    texts = tf.constant(["red car", "blue toys"])
    np.testing.assert_allclose(tower.vectors(tower.tokens(texts)), tower(texts), atol=1e-6)


def test_a_vocabulary_may_be_smaller_than_other_matrices(teacher, tower, monkeypatch):
    larger = tf.Variable(tf.zeros([200, 16]), name="position_embedding")
    variables = SimpleNamespace(variables=[*teacher.text_to_vector.encoder.variables, larger])
    monkeypatch.setattr(teacher.text_to_vector, "encoder", variables)
    same = static_tower(teacher, TEXTS, tokens=100, width=16)
    assert same.encoder.token_vectors.shape == tower.encoder.token_vectors.shape


def test_an_encoder_that_shows_nothing(teacher, monkeypatch):
    monkeypatch.setattr(teacher.text_to_vector, "encoder", lambda inputs: None)
    with pytest.raises(ModelError, match="expected an encoder whose variables include a table of token embeddings"):
        static_tower(teacher, TEXTS, 10, 4)
