import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.config import TextConfig
from tfllmrec.errors import ConfigError
from tfllmrec.text.encoder import TextEncoder
from tfllmrec.text.side_by_side import SideBySide, encoder_of
from tfllmrec.text.store import VectorStore, encode_items

pytestmark = pytest.mark.tf
TEXTS = ["alpha beta", "", "gamma", "alpha beta", "delta alpha"]


@pytest.fixture(scope="module")
def parts(tiny_hub, thin_hub):
    """Two encoders; the second has a prefix for items."""
    return [
        TextEncoder(*reversed(hub), max_tokens=12, item_prefix=prefix)
        for hub, prefix in ((tiny_hub, ""), (thin_hub, "beta "))
    ]


def test_vectors_stand_side_by_side_and_scores_are_mean_cosines(parts):
    both = SideBySide(parts)
    first, second = (part.encode(TEXTS) for part in parts)
    got = both.encode(TEXTS)
    assert both.dim == sum(both.widths) == got.shape[1]
    np.testing.assert_allclose(got @ got.T, (first @ first.T + second @ second.T) / 2, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), [1, 0, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(both.text_to_vector(tf.constant(TEXTS)).numpy(), got, atol=1e-5)


def test_queries_have_the_prefixes_of_each(parts):
    both = SideBySide(parts)
    expected = np.hstack([part.for_queries.encode(TEXTS) for part in parts]) / np.sqrt(2)
    np.testing.assert_allclose(both.for_queries.encode(TEXTS), expected, atol=1e-6)
    assert both.for_queries.fingerprint != both.fingerprint


def test_order_and_members_are_in_the_fingerprint(parts):
    assert len({SideBySide(members).fingerprint for members in (parts, parts[::-1], parts[:1])}) == 3


@pytest.mark.parametrize("mapped", [True, False])
def test_the_store_has_each_encoder_by_itself(parts, tmp_path, mapped):
    store = VectorStore(tmp_path / "store")
    encode_items(TEXTS[:3], parts[1], store)
    encoded = []
    counting = [_Counting(part, encoded) for part in parts]
    out = tmp_path / "vectors.npy" if mapped else None
    got = encode_items(TEXTS, SideBySide(counting), store, out=out)
    np.testing.assert_allclose(got, SideBySide(parts).encode(TEXTS), atol=1e-6)
    assert [set(texts) for texts in encoded] == [set(TEXTS), {"delta alpha"}]  # the second knew the others


class _Counting:
    """An encoder that notes what it is asked for."""

    def __init__(self, encoder, asked):
        self.encoder, self.asked = encoder, asked
        self.dim, self.fingerprint = encoder.dim, encoder.fingerprint

    def encode(self, texts, progress=None):
        self.asked.append(texts)
        return self.encoder.encode(texts, progress)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"preprocessor": "/a/preprocessor"}, "text.preprocessor"),
        ({"encoder": "/a/c++/bert"}, "text.preprocessor"),  # a path, not three encoders
    ],
)
def test_settings_that_contradict_each_other(settings, said, cache, monkeypatch):
    from tfllmrec.text import encoder

    monkeypatch.setattr(encoder, "hub_handles", lambda *names: pytest.fail("nothing is loaded"))
    with pytest.raises(ConfigError, match=said):
        encoder_of(TextConfig(**{"encoder": "use+minilm"} | settings))
