import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tfllmrec.errors import ModelError

tf = pytest.importorskip("tensorflow")
hub = pytest.importorskip("tensorflow_hub")
pytestmark = pytest.mark.tf

from tfllmrec.text.bert import BertConfig, BertEncoder  # noqa: E402
from tfllmrec.text.bundled import save_encoder  # noqa: E402
from tfllmrec.text.e5 import QuantizedRows  # noqa: E402
from tfllmrec.text.preprocessor import INPUTS  # noqa: E402
from tfllmrec.text.pretrain import (  # noqa: E402
    MaskedLanguageModel,
    Vocabulary,
    mask_tokens,
    masked_batch,
    save_encoder_again,
    word_embedding,
)
from tfllmrec.text.sentencepiece import SentencePiecePreprocessor, unigram_model  # noqa: E402

PAD, UNK, FIRST, LAST, MASK = range(5)
VOCABULARY = Vocabulary(size=45, mask=MASK, pad=PAD, special=(PAD, FIRST, LAST, MASK, UNK))
SEED = tf.constant([3, 4], tf.int64)


def ragged(rows):
    return tf.ragged.constant(rows, tf.int32, row_splits_dtype=tf.int64)


def framed(n_texts, n_tokens, generator=None):
    """Texts of ``n_tokens`` usual tokens each, between ``[CLS]`` and ``[SEP]``."""
    usual = (generator or np.random.default_rng(0)).integers(5, VOCABULARY.size, (n_texts, n_tokens))
    return ragged([[FIRST, *row, LAST] for row in usual.tolist()])


@pytest.fixture
def encoder(tiny):
    """A random encoder of our own as ``hub.load`` would give it, of 45 tokens."""
    state = tiny.state()
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][: VOCABULARY.size]
    return BertEncoder(BertConfig(**tiny.thin | {"vocab_size": VOCABULARY.size}), state)


@pytest.fixture
def quantized(tiny):
    """(encoder, its word table): the same with a word table in 4 bits, 32 wide."""
    rng = np.random.default_rng(7)
    numbers, scales = rng.integers(0, 256, (VOCABULARY.size, 16)), rng.uniform(0.1, 0.2, (VOCABULARY.size, 1))
    words = QuantizedRows(numbers.astype(np.uint8), scales.astype(np.float16))
    config = BertConfig(**tiny.thin | {"vocab_size": VOCABULARY.size, "hidden_size": 32})
    return BertEncoder(config, tiny.state(width=32), words=words), words(tf.range(VOCABULARY.size)).numpy()


def test_masks_are_as_many_as_published_and_labels_are_what_stood_there():
    ids = framed(400, 30)
    hidden, positions, labels = tf.function(mask_tokens)(ids, VOCABULARY, SEED)
    assert set(positions.row_lengths().numpy()) == {math.ceil(0.15 * 30)}
    before, after = (t.to_tensor().numpy() for t in (ids, hidden))
    chosen = np.zeros_like(before, bool)
    np.put_along_axis(chosen, positions.to_tensor().numpy(), True, axis=1)
    assert (before[~chosen] == after[~chosen]).all()
    np.testing.assert_array_equal(
        np.take_along_axis(before, positions.to_tensor().numpy(), axis=1), labels.to_tensor().numpy()
    )
    assert not np.isin(before[chosen], VOCABULARY.special).any()
    n = chosen.sum()
    assert n == 400 * 5
    # One in 40 random tokens is the one that stood there. Four standard errors.
    masked, same = (after[chosen] == MASK).mean(), (after[chosen] == before[chosen]).mean()
    for share, expected in ((masked, 0.8), (same, 0.1 + 0.1 / 40)):
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / n)
    other = after[chosen & (after != MASK) & (after != before)]
    assert not np.isin(other, VOCABULARY.special).any() and len(set(other)) > 36
    # Each place is chosen as often as any other, and not the same ones in each text.
    by_place = chosen.mean(axis=0)[1:-1]
    assert np.abs(by_place - 5 / 30).max() < 4.5 * math.sqrt(5 / 30 * 25 / 30 / 400)
    assert len({tuple(row) for row in chosen}) > 390


def test_special_tokens_are_never_hidden_and_a_short_text_has_one_mask():
    ids = ragged([[FIRST, UNK, 7, LAST], [FIRST, LAST], [FIRST, UNK, UNK, LAST], [FIRST, 9, MASK, 8, LAST]])
    for seed in range(20):
        hidden, positions, labels = mask_tokens(ids, VOCABULARY, tf.constant([0, seed], tf.int64))
        chosen = positions.to_list()
        assert chosen[:3] == [[2], [], []] and chosen[3] in ([1], [3])
        assert labels.to_list()[0] == [7] and labels.to_list()[3] == [9 if chosen[3] == [1] else 8]
        assert hidden.to_list()[1:3] == ids.to_list()[1:3]


def test_masks_are_a_function_of_the_seed():
    ids = framed(5, 20)
    same = [mask_tokens(ids, VOCABULARY, SEED) for _ in range(2)]
    graph = tf.function(lambda rows: mask_tokens(rows, VOCABULARY, SEED))(ids)
    other = mask_tokens(ids, VOCABULARY, SEED + 1)
    for a, b, c in zip(*same, graph, strict=True):
        assert a.to_list() == b.to_list() == c.to_list()
    assert same[0][1].to_list() != other[1].to_list()


def test_batch_has_padded_inputs_and_counts_places_through_it():
    ids = ragged([[FIRST, 7, LAST], [FIRST, 8, 9, 10, LAST]])
    inputs, labels = masked_batch(ids, VOCABULARY, SEED)
    hidden, positions, expected = mask_tokens(ids, VOCABULARY, SEED)
    np.testing.assert_array_equal(inputs["input_word_ids"], hidden.to_tensor(PAD))
    np.testing.assert_array_equal(inputs["input_mask"], [[1, 1, 1, 0, 0], [1] * 5])
    assert not inputs["input_type_ids"].numpy().any()
    (first,), (second,) = positions.to_list()
    np.testing.assert_array_equal(inputs["masked"], [first, 5 + second])
    np.testing.assert_array_equal(labels, expected.values)
    assert {inputs[name].dtype for name in INPUTS} == {labels.dtype} == {tf.int32}


@pytest.fixture
def preprocessor(tmp_path):
    """A folder with the vocabulary of a preprocessor."""

    def write(*tokens):
        (tmp_path / "assets").mkdir()
        (tmp_path / "assets" / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
        return tmp_path

    return write


def test_vocabulary_is_read_from_its_asset(preprocessor):
    folder = preprocessor("[PAD]", "a", "[UNK]", "\x85", "[CLS]", "[SEP]", "[MASK]", "b")
    assert Vocabulary.of(object(), folder) == Vocabulary(8, mask=6, pad=0, special=(0, 4, 5, 6, 2))


def test_vocabulary_of_what_has_no_asset_is_asked_for(tmp_path):
    said = {"vocab_size": 30, "padding_id": 0, "start_of_sequence_id": 2, "end_of_segment_id": 3, "mask_id": 4}
    module = SimpleNamespace(tokenize=SimpleNamespace(get_special_tokens_dict=lambda: said))
    assert Vocabulary.of(module, tmp_path) == Vocabulary(30, mask=4, pad=0, special=(0, 2, 3, 4))
    del said["mask_id"]
    with pytest.raises(ModelError, match=r"none of \[MASK\] in tokenize"):
        Vocabulary.of(module, tmp_path)


def test_vocabulary_of_a_sentencepiece_model_is_in_its_graph(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", "▁a", "<pad>", "<mask>", "b"]

    def vocabulary(*left_out):
        kept = [piece for piece in pieces if piece not in left_out]
        model = unigram_model(kept, [-1.0] * len(kept), ("<s>", "</s>", "<pad>", "<unk>"), b"")
        folder = tmp_path / str(len(kept))
        tf.saved_model.save(SentencePiecePreprocessor(model, (1, 2, 4), 8), str(folder))
        return Vocabulary.of(hub.load(str(folder)), folder)

    assert vocabulary() == Vocabulary(7, mask=5, pad=4, special=(4, 1, 2, 5, 0))
    with pytest.raises(ModelError, match=r"none of \[MASK\] in the SentencePiece model of"):
        vocabulary("<mask>")


def test_only_tokens_of_the_texts_take_the_place_of_others():
    vocabulary = replace(VOCABULARY, occurring=(9, MASK, 7))
    assert vocabulary.usual == [7, 9] and VOCABULARY.usual == list(range(5, 45))
    ids = framed(300, 20)
    hidden, _, _ = mask_tokens(ids, vocabulary, SEED)
    changed = hidden.values.numpy()[hidden.values.numpy() != ids.values.numpy()]
    assert set(changed) == {MASK, 7, 9}


def test_a_vocabulary_that_cannot_be_had_is_an_error(tmp_path, preprocessor):
    tf.saved_model.save(tf.Module(), str(tmp_path / "empty"))
    with pytest.raises(ModelError, match=r"does not tell its vocabulary.*vocab\.txt"):
        Vocabulary.of(object(), tmp_path / "empty")
    with pytest.raises(ModelError, match=r"none of \[SEP\], \[MASK\] in .*vocab\.txt"):
        Vocabulary.of(object(), preprocessor("[PAD]", "[UNK]", "[CLS]"))


def test_word_embedding_is_the_one_matrix_of_that_size(encoder):
    assert word_embedding(encoder, VOCABULARY.size) is encoder.word_embedding
    with pytest.raises(ModelError, match=r"\[46, D\].*got none among 21"):
        word_embedding(encoder, 46)
    with pytest.raises(ModelError, match=r"got \['bert/.*'bert/.*\] among 21"):
        word_embedding(encoder, 16)  # as wide as the encoder: all its square matrices
    with pytest.raises(ModelError, match="none among 0"):
        word_embedding(object(), VOCABULARY.size)


def test_logits_are_those_of_the_published_head_tied_to_the_embedding(encoder):
    model = MaskedLanguageModel(encoder, VOCABULARY)
    inputs, _ = masked_batch(framed(3, 8), VOCABULARY, SEED)
    rng = np.random.default_rng(1)
    for variable in (*model.dense.variables, *model.norm.variables, model.bias):
        variable.assign(rng.normal(size=variable.shape))
    hidden = encoder(inputs)["sequence_output"].numpy().reshape(-1, 16)[inputs["masked"].numpy()].astype(np.float64)
    kernel, bias, gamma, beta = (v.numpy() for v in (*model.dense.variables, *model.norm.variables))
    x = hidden @ kernel + bias
    x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) * gamma + beta
    expected = x @ encoder.word_embedding.numpy().T + model.bias.numpy()
    np.testing.assert_allclose(model(inputs), expected, atol=1e-4)
    # The row of a token that is not in the batch changes its logit alone.
    absent = next(i for i in range(5, VOCABULARY.size) if i not in inputs["input_word_ids"].numpy())
    before = model(inputs).numpy()
    encoder.word_embedding.assign(tf.tensor_scatter_nd_add(encoder.word_embedding, [[absent]], tf.ones([1, 16])))
    changed = np.abs(model(inputs) - before).max(axis=0) > 1e-4
    assert changed[absent] and changed.sum() == 1


def test_logits_with_a_table_in_4_bits_are_those_of_the_tokens_in_the_texts(quantized):
    encoder, table = quantized
    inputs, labels = masked_batch(framed(3, 8), VOCABULARY, SEED)
    others = sorted({6, 11, 44} - set(labels.numpy().tolist()))
    occurring = np.unique([*labels.numpy(), *others])
    counts = np.zeros(VOCABULARY.size, int)
    counts[occurring[0]] = 9
    model = MaskedLanguageModel(encoder, replace(VOCABULARY, occurring=tuple(occurring.tolist())), counts=counts)
    assert model.bias.numpy() == pytest.approx(
        np.log([10 / (9 + len(occurring))] + [1 / (9 + len(occurring))] * (len(occurring) - 1))
    )
    logits = model(inputs).numpy()
    assert logits.shape == (len(labels), len(occurring))
    tokens = tf.reshape(encoder(inputs)["sequence_output"], [-1, 32])
    guesses = model.norm(model.dense(tf.gather(tokens, inputs["masked"]))).numpy()
    np.testing.assert_allclose(logits, guesses @ table[occurring].T + model.bias, atol=1e-5)
    # The loss is that of the labels among these tokens.
    places = np.searchsorted(occurring, labels)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), places]
    model.compile(optimizer=tf.keras.optimizers.SGD(0.1))
    assert float(model.test_step((inputs, labels))["loss"]) == pytest.approx(losses.mean(), rel=1e-5)
    model.train_step((inputs, labels))
    np.testing.assert_array_equal(encoder.word_embedding(tf.range(VOCABULARY.size)), table)
    assert not any("word_embedding" in variable.name for variable in model.trainable_variables)
    assert float(model.test_step((inputs, labels))["loss"]) < losses.mean()


def test_the_head_computes_in_float32_whatever_the_policy_of_the_script(encoder):
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = MaskedLanguageModel(encoder, VOCABULARY)
        model.compile(optimizer=tf.keras.optimizers.Adam(0.1))
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert {layer.compute_dtype for layer in (model, model.dense, model.norm)} == {"float32"}
    assert isinstance(model.optimizer, tf.keras.optimizers.Adam)  # it does not scale the loss


def test_head_begins_with_the_shares_of_the_tokens(encoder):
    counts = np.zeros(VOCABULARY.size, int)
    counts[[7, 9]] = 5, 10
    bias = MaskedLanguageModel(encoder, VOCABULARY, counts=counts).bias.numpy()
    assert bias[[6, 7, 9]] == pytest.approx(np.log([1 / (15 + 45), 6 / (15 + 45), 11 / (15 + 45)]))
    assert np.ptp(MaskedLanguageModel(encoder, VOCABULARY).bias) == 0


def test_head_fits_an_embedding_that_is_narrower_than_the_encoder():
    embedding, wider = tf.Variable(tf.ones([VOCABULARY.size, 4])), tf.Variable(tf.ones([4, 6]))

    def call(inputs):
        return {"sequence_output": tf.gather(embedding, inputs["input_word_ids"]) @ wider}

    module = SimpleNamespace(trainable_variables=[embedding, wider])
    callable_module = type("Module", (), {"__call__": staticmethod(call), **vars(module)})()
    inputs, _ = masked_batch(framed(2, 8), VOCABULARY, SEED)
    assert MaskedLanguageModel(callable_module, VOCABULARY)(inputs).shape == (2 * 2, VOCABULARY.size)


def test_an_encoder_without_tokens_is_an_error(encoder):
    module = type("Pooled", (), {"__call__": lambda self, inputs: {"default": tf.ones([1, 4])}})()
    module.trainable_variables = encoder.trainable_variables
    with pytest.raises(ModelError, match="sequence_output"):
        MaskedLanguageModel(module, VOCABULARY)


def test_measures_are_means_over_hidden_tokens_and_all_variables_learn(encoder):
    model = MaskedLanguageModel(encoder, VOCABULARY)
    model.compile(optimizer=tf.keras.optimizers.SGD(0.1))
    # Two batches of unlike size: a mean of their means would be another number.
    batches = [masked_batch(framed(n, n, np.random.default_rng(n)), VOCABULARY, SEED) for n in (2, 12)]
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(batches),
        output_signature=(
            {name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}
            | {"masked": tf.TensorSpec([None], tf.int64)},
            tf.TensorSpec([None], tf.int32),
        ),
    )
    logits, labels = np.concatenate([model(x) for x, _ in batches]), np.concatenate([y for _, y in batches])
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    measured = model.evaluate(dataset, verbose=0, return_dict=True)
    assert measured["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert measured["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    before = [v.numpy() for v in model.trainable_variables]
    assert len(before) == 21 + 5
    model.fit(dataset, epochs=1, verbose=0)
    still = {v.name for v, old in zip(model.trainable_variables, before, strict=True) if np.array_equal(v.numpy(), old)}
    assert still <= {"bert/layer_0/attention/key/bias:0"}  # has no effect on attention


def test_dropout_is_off_unless_asked_for(encoder):
    inputs, _ = masked_batch(framed(2, 8), VOCABULARY, SEED)
    for dropout in (False, True):
        model = MaskedLanguageModel(encoder, VOCABULARY, dropout=dropout)
        assert np.array_equal(model(inputs, training=True), model(inputs, training=False)) != dropout


@pytest.mark.slow
def test_written_encoder_loads_as_any_other_and_may_be_trained_again(encoder, tmp_path):
    save_encoder(encoder, tmp_path / "0")
    batch = masked_batch(framed(4, 6), VOCABULARY, SEED)
    inputs = {name: batch[0][name] for name in INPUTS}

    def train(module):
        model = MaskedLanguageModel(module, VOCABULARY)
        model.compile(optimizer=tf.keras.optimizers.SGD(0.1))
        model.train_step(batch)
        return module(inputs)["sequence_output"].numpy()

    module = hub.load(str(tmp_path / "0"))
    trained = train(module)
    assert np.abs(trained - encoder(inputs)["sequence_output"]).max() > 1e-3
    save_encoder_again(module, tmp_path / "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    layer = hub.KerasLayer(str(tmp_path / "1"), trainable=True)
    assert [v.name for v in layer.trainable_variables] == [v.name for v in module.trainable_variables]
    assert len(layer.trainable_variables) == 21 and layer.losses == []
    out = layer(inputs)
    np.testing.assert_allclose(out["sequence_output"], trained, atol=1e-6)
    assert np.abs(layer(inputs, training=True)["default"] - out["default"]).max() > 1e-3  # dropout
    assert np.abs(train(hub.load(str(tmp_path / "1"))) - trained).max() > 1e-3


def test_nothing_is_left_of_a_save_that_failed(tmp_path, monkeypatch):
    def fail(module, folder):
        raise OSError("full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="full"):
        save_encoder_again(object(), tmp_path / "encoder")
    assert not list(tmp_path.iterdir())
