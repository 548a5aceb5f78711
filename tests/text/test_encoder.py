import shutil

import numpy as np
import pytest

from tfllmrec.config import TextConfig
from tfllmrec.errors import ConfigError, ModelError

tf = pytest.importorskip("tensorflow")
hub = pytest.importorskip("tensorflow_hub")
pytestmark = pytest.mark.tf

from tfllmrec.text.bert import BertConfig, BertEncoder  # noqa: E402
from tfllmrec.text.bundled import save_encoder  # noqa: E402
from tfllmrec.text.encoder import TextEncoder  # noqa: E402
from tfllmrec.text.preprocessor import INPUTS, pieces_of  # noqa: E402
from tfllmrec.text.tuning import tuning_of  # noqa: E402


@pytest.fixture(scope="module")
def encoder(thin_hub):
    preprocessor, encoder = thin_hub
    return TextEncoder(encoder, preprocessor, max_tokens=10, batch_size=4)


def one_by_one(thin_hub, texts):
    """Each text alone through the two public Keras layers: no batch, no padding, no sorting."""
    preprocess, encode = (hub.KerasLayer(str(path)) for path in thin_hub)
    return np.concatenate([encode(preprocess(tf.constant([text])))["pooled_output"].numpy() for text in texts])


def test_the_order_of_lengths_changes_nothing(encoder, thin_hub):
    rng = np.random.default_rng(0)
    words = ["red", "blue", "car", "toys", "the"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 5))) for _ in range(9)]
    vectors = encoder.encode(texts)
    assert vectors.dtype == np.float32 and vectors.shape == (9, encoder.dim) == (9, 16)
    np.testing.assert_allclose(vectors, one_by_one(thin_hub, texts), atol=1e-5)


def test_several_windows_come_back_in_order(encoder, monkeypatch):
    texts = [f"red {letter} toy" for letter in "abcdefghijk"]
    whole = encoder.encode(texts)
    monkeypatch.setattr("tfllmrec.text.encoder._WINDOW", 3)
    np.testing.assert_allclose(encoder.encode(texts), whole, atol=1e-6)


def test_max_tokens_cuts(encoder, thin_hub):
    preprocessor, folder = thin_hub
    short = TextEncoder(folder, preprocessor, max_tokens=4)
    same, longer = short.encode(["red toy", "red toy blue car"])
    np.testing.assert_allclose(same, longer, atol=1e-6)  # [CLS] red toy [SEP] is all there is room for
    assert np.abs(encoder.encode(["red toy blue car"])[0] - same).max() > 1e-3


def test_a_text_without_tokens_is_zero(encoder):
    vectors = encoder.encode(["", "red", " \t\n"])
    assert not vectors[[0, 2]].any() and np.linalg.norm(vectors[1]) == pytest.approx(1, abs=1e-6)
    assert encoder.encode([]).shape == (0, 16)


def test_what_has_no_utf8_form_and_what_nobody_sees_are_encoded(encoder):
    texts = ["red \ud83d car", "red ? car", "red\0", "red", "red \x01\x7f", "👍🏽 口红 🇩🇪", "red " * 25_000]
    vectors = encoder.encode(texts)
    np.testing.assert_allclose(vectors[[0, 2, 4]], vectors[[1, 3, 3]], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_empty_batch_of_texts_is_encoded(thin_hub, pooling):
    preprocessor, folder = thin_hub
    none = TextEncoder(folder, preprocessor, max_tokens=10, pooling=pooling).text_to_vector(tf.zeros([0], tf.string))
    assert none.shape == (0, 16)


def test_vectors_that_are_not_finite_name_the_encoder_and_a_text(thin_hub, monkeypatch):
    preprocessor, folder = thin_hub
    broken = TextEncoder(folder, preprocessor, max_tokens=10, batch_size=2)

    def vectors(batch):  # the row of the shortest text, [CLS] red [SEP], is broken
        short = tf.reduce_sum(batch["input_mask"], axis=1) == 3
        return tf.where(short[:, tf.newaxis], np.nan, tf.ones((tf.shape(short)[0], 16)))

    monkeypatch.setattr(broken.text_to_vector, "vectors", vectors)
    with pytest.raises(ModelError, match=rf"{folder} does not work: expected finite numbers, .* of the text 'red'\."):
        broken.encode(["red toy", "red", "blue toy"])


def test_progress_counts_texts(encoder):
    calls = []
    # Room for 4 texts of 10 tokens, or 13 of 3.
    encoder.encode(["red " * 20] * 5 + ["red"] * 5, lambda done, total: calls.append((done, total)))
    assert calls == [(4, 10), (8, 10), (10, 10)]


def test_lives_on_in_an_exported_graph(encoder, tmp_path):
    class Search(tf.Module):
        def __init__(self):
            super().__init__()
            self.text_to_vector = encoder.text_to_vector
            self.catalogue = tf.Variable(encoder.encode(["red car", "blue toys"]))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def search(self, text):
            return {"scores": tf.matmul(self.text_to_vector(text), self.catalogue, transpose_b=True)}

    model = Search()
    tf.saved_model.save(model, str(tmp_path / "model"), {"search": model.search})
    moved = shutil.move(tmp_path / "model", tmp_path / "moved")  # nothing may point back to where it was made
    search = tf.saved_model.load(str(moved)).signatures["search"]
    texts = ["blue toys", "", "the red car"]
    scores = search(text=tf.constant(texts))["scores"].numpy()
    np.testing.assert_allclose(scores, encoder.encode(texts) @ model.catalogue.numpy().T, atol=1e-5)
    assert scores[0].argmax() == 1 and not scores[1].any()
    assert search(text=tf.constant([], tf.string))["scores"].shape == (0, 2)


def test_fingerprint_survives_saving_and_tells_everything_else_apart(tiny, thin_hub, encoder, tmp_path):
    preprocessor, folder = thin_hub

    def fingerprint(state=None, **settings):
        settings = {"max_tokens": 10} | settings
        if state is None:
            return TextEncoder(folder, preprocessor, **settings).fingerprint
        save_encoder(BertEncoder(BertConfig(**tiny.thin), state), tmp_path / "again")
        made = TextEncoder(tmp_path / "again", preprocessor, **settings).fingerprint
        shutil.rmtree(tmp_path / "again")
        return made

    assert fingerprint(tiny.state(), batch_size=9) == encoder.fingerprint
    changed = tiny.state()
    changed["encoder.layer.0.output.dense.bias"][0] += 1e-3
    others = [{"max_tokens": 11}, {"precision": "x"}, {"pooling": "cls"}, {"pooling": "pooled"}]
    assert len({encoder.fingerprint, fingerprint(changed), *(fingerprint(**settings) for settings in others)}) == 6


class Preprocessor(tf.Module):
    """As TF Hub has them without bert_pack_inputs: a fixed width of 20."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, texts):
        ids = tf.strings.unicode_decode(texts, "UTF-8").to_tensor(0, shape=[None, 20]) % 40
        mask = tf.cast(ids > 0, tf.int32)
        return dict(zip(INPUTS, (ids, mask, tf.zeros_like(ids)), strict=True))


class Plain(tf.Module):
    """A hub encoder that answers in another form."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    @tf.function(input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}])
    def __call__(self, inputs):
        sequence = tf.one_hot(inputs["input_word_ids"], 40)
        return {
            "sequence": {"sequence_output": sequence, "pooled_output": 5.0 * sequence[:, 1, :39]},
            "default": {"default": 3.0 * sequence[:, 0]},
            "tensor": 3.0 * sequence[:, 0],
        }[self.answer]


@pytest.fixture(scope="module")
def plain_preprocessor(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("plain") / "preprocessor")
    tf.saved_model.save(Preprocessor(), folder)
    return folder


@pytest.mark.parametrize(
    ("answer", "pooling", "expected"),
    [
        ("sequence", "mean", np.array([1, 2, 1]) / np.sqrt(1 + 4 + 1)),
        ("sequence", "cls", [1, 0, 0]),
        ("sequence", "pooled", [0, 1, 0]),
        ("default", "mean", [1, 0, 0]),
        ("default", "cls", [1, 0, 0]),
        ("tensor", "mean", [1, 0, 0]),
    ],
)
def test_takes_the_forms_in_which_hub_encoders_answer(answer, pooling, expected, plain_preprocessor, tmp_path):
    tf.saved_model.save(Plain(answer), str(tmp_path / "encoder"))
    encoder = TextEncoder(str(tmp_path / "encoder"), plain_preprocessor, max_tokens=8, pooling=pooling)
    vector = encoder.encode(["abbc"])[0]
    assert len(vector) == (39 if pooling == "pooled" else 40)
    np.testing.assert_allclose(vector[[ord(letter) % 40 for letter in "abc"]], expected, atol=1e-6)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    # Its tuning starts there, and reads the same of it.
    tuning = tuning_of(encoder.text_to_vector.encoder, "adapter", pooling=pooling)
    encoder.tune(tuning)
    tokens = encoder.text_to_vector.tokens(tf.constant(["abbc"]))
    np.testing.assert_allclose([encoder.encode(["abbc"])[0], tuning.vectors(tokens)[0]], [vector, vector], atol=1e-6)


def test_an_encoder_that_pools_nothing_is_said(plain_preprocessor, tmp_path):
    tf.saved_model.save(Plain("default"), str(tmp_path / "encoder"))
    with pytest.raises(ModelError, match=r"to 'pooled_output' \(text.pooling\) of a known width"):
        TextEncoder(str(tmp_path / "encoder"), plain_preprocessor, max_tokens=8, pooling="pooled")


def test_says_what_cannot_be_loaded(thin_hub, tmp_path, monkeypatch):
    preprocessor, folder = thin_hub
    with pytest.raises(ModelError, match=r"nowhere"):
        TextEncoder(tmp_path / "nowhere", preprocessor)
    with pytest.raises(ModelError, match="no saved_model"):
        TextEncoder(tmp_path, preprocessor)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "saved_model.pb").write_bytes(b"no protobuf")
    with pytest.raises(ModelError, match=r"cannot be loaded: .*Download or copy it again\."):
        TextEncoder(damaged, preprocessor)
    monkeypatch.setenv("TFLLMREC_CACHE", str(tmp_path))
    made = shutil.move(damaged, tmp_path / "hub" / "minilm-float32-2")
    with pytest.raises(ModelError, match=r"cannot be loaded: .*Delete this folder: it is made again"):
        TextEncoder(made, preprocessor)


def test_a_module_in_the_wrong_place_is_refused_at_once(thin_hub):
    preprocessor, encoder = thin_hub
    with pytest.raises(ModelError, match=r"preprocessor does not work as a BERT encoder: expected .*'sequence_output'"):
        TextEncoder(preprocessor, preprocessor)
    for first in (encoder, preprocessor):
        with pytest.raises(ModelError, match=r"encoder does not work as a BERT preprocessor: expected .* string \[B\]"):
            TextEncoder(first, encoder)


def test_an_encoder_with_a_vocabulary_of_its_own_size_is_refused(tiny, thin_hub, tmp_path):
    state = tiny.state()
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][:3]
    save_encoder(BertEncoder(BertConfig(**tiny.thin | {"vocab_size": 3}), state), tmp_path / "small")
    with pytest.raises(ModelError, match="small does not work as a BERT encoder"):
        TextEncoder(tmp_path / "small", thin_hub[0])


def test_more_tokens_than_the_encoder_has_positions_are_refused_at_once(tiny, thin_hub):
    preprocessor, encoder = thin_hub
    positions = tiny.thin["max_position_embeddings"]
    assert TextEncoder(encoder, preprocessor, positions).max_tokens == positions
    with pytest.raises(ModelError, match=rf"does not take text\.max_tokens = {positions + 1} tokens.*Set fewer"):
        TextEncoder(encoder, preprocessor, positions + 1)


def test_a_url_without_a_network_says_so(thin_hub, monkeypatch, tmp_path):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ModelError, match="Without a network"):
        TextEncoder("http://127.0.0.1:9/bert/1", thin_hub[0])  # the discard port: nobody listens


def test_items_and_queries_have_prefixes_of_their_own(thin_hub):
    plain = TextEncoder(thin_hub[1], thin_hub[0], max_tokens=10)
    encoder = TextEncoder(thin_hub[1], thin_hub[0], max_tokens=10, item_prefix="red ", query_prefix="blue ")
    asking, texts = encoder.for_queries, ["car toy", "", " \u00a0"]
    red, blue = plain.encode(["red car toy", "blue car toy"])
    np.testing.assert_allclose(encoder.encode(texts)[0], red, atol=1e-6)
    np.testing.assert_allclose(asking.encode(texts)[0], blue, atol=1e-6)
    assert np.abs(red - blue).max() > 1e-3
    assert not encoder.encode(texts)[1:].any() and not asking.encode(texts)[1:].any()  # a prefix alone is no text
    assert len({each.fingerprint for each in (plain, encoder, asking)}) == 3
    assert plain.for_queries is plain
    own, without = (pieces_of(each.text_to_vector.preprocessor, ["car toy", ""]) for each in (encoder, plain))
    assert [row.tolist() for row in own] == [row.tolist() for row in without] and len(own[0]) == 2


def test_pieces_with_and_without_words(thin_hub):
    """As the preprocessors of TF Hub have them: WordPiece in words, SentencePiece without."""

    class WithoutWords(tf.Module):
        def tokenize(self, texts):
            return tf.ragged.constant([[5, 7], [], [9]])[: tf.size(texts)]

    class Plain(tf.Module):
        def __call__(self, texts):
            return {"input_word_ids": tf.constant([[2, 5, 7, 3], [2, 3, 0, 0]]),
                    "input_mask": tf.constant([[1, 1, 1, 1], [1, 1, 0, 0]])}  # fmt: skip

    for preprocessor, expected in ((WithoutWords(), [[5, 7], [], [9]]), (Plain(), [[5, 7], []])):
        found = pieces_of(preprocessor, [""] * len(expected))
        assert [row.tolist() for row in found] == expected and found[0].dtype == np.int32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder": "auto"}, r"expected the name of an encoder \(minilm, e5, use\).*found auto"),
        ({"encoder": "use", "preprocessor": "there"}, r"text.preprocessor: expected none, because .*'use' has its own"),
    ],
)
def test_what_does_not_go_with_a_bundled_encoder(given, message):
    with pytest.raises(ConfigError, match=message):
        TextEncoder.from_config(TextConfig(**given))


def test_config_names_what_is_missing(thin_hub):
    preprocessor, folder = thin_hub
    made = TextEncoder.from_config(TextConfig(encoder=str(folder), preprocessor=str(preprocessor), max_tokens=9))
    assert made.max_tokens == 9 and made.dim == 16
    with pytest.raises(ConfigError, match=r"needs text\.preprocessor"):
        TextEncoder.from_config(TextConfig(encoder=str(folder)))


@pytest.mark.slow
def test_minilm_by_name_in_both_precisions(minilm_weights):
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "Red shoes for women, size 7"]
    exact = TextEncoder.from_config(TextConfig())
    vectors = exact.encode(texts)
    assert vectors.shape == (3, 384) and vectors[0] @ vectors[1] == pytest.approx(0.7553, abs=5e-5)
    assert vectors[0] @ vectors[2] < 0.3
    fast = TextEncoder.from_config(TextConfig(precision="bfloat16"))
    assert fast.fingerprint != exact.fingerprint
    assert (vectors * fast.encode(texts)).sum(axis=1).min() > 0.999
