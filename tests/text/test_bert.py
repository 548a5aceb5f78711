import math

import numpy as np
import pytest

from tfllmrec.errors import ModelError

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from tfllmrec.text.bert import BertConfig, BertEncoder, mean_pool  # noqa: E402


@pytest.fixture
def config(tiny):
    return BertConfig(**tiny.sizes)


def inputs(ids, mask=None, types=None):
    ids = np.asarray(ids, np.int32)
    return {
        "input_word_ids": tf.constant(ids),
        "input_mask": tf.constant(np.ones_like(ids) if mask is None else np.asarray(mask, np.int32)),
        "input_type_ids": tf.constant(np.zeros_like(ids) if types is None else np.asarray(types, np.int32)),
    }


def slow_bert(ids, types, state, sizes):
    """One text without padding, a token and a head at a time, in float64."""

    def w(name):
        return state[name].astype(np.float64)

    def norm(x, name):
        return (x - x.mean()) / math.sqrt(x.var() + 1e-12) * w(f"{name}.weight") + w(f"{name}.bias")

    def dense(x, name):
        return w(f"{name}.weight") @ x + w(f"{name}.bias")

    def embed(position, token, kind):
        return (
            w("embeddings.word_embeddings.weight")[token]
            + w("embeddings.position_embeddings.weight")[position]
            + w("embeddings.token_type_embeddings.weight")[kind]
        )

    x = [norm(embed(i, *pair), "embeddings.LayerNorm") for i, pair in enumerate(zip(ids, types, strict=True))]
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"] // sizes["num_attention_heads"]
    for layer in range(sizes["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        query, key, value = (
            [dense(t, f"{name}.attention.self.{part}") for t in x] for part in ("query", "key", "value")
        )
        attended = []
        for i in range(len(x)):
            context = []
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                weights = np.exp([query[i][part] @ k[part] / math.sqrt(width) for k in key])
                context.append(sum(a * v[part] for a, v in zip(weights / weights.sum(), value, strict=True)))
            out = dense(np.concatenate(context), f"{name}.attention.output.dense")
            attended.append(norm(x[i] + out, f"{name}.attention.output.LayerNorm"))
        x = []
        for t in attended:
            inner = dense(t, f"{name}.intermediate.dense")
            inner = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in inner])
            x.append(norm(t + dense(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm"))
    return np.array(x)


def test_matches_a_plain_bert_and_padding_changes_nothing(tiny, config):
    state = tiny.state()
    short, long = [2, 9, 4, 3], [2, 5, 6, 8, 10, 7, 3]
    out = BertEncoder(config, state)(
        inputs(
            [short + [0] * 3, long],
            mask=[[1] * 4 + [0] * 3, [1] * 7],
            types=[[0, 0, 1, 1, 0, 0, 0], [0] * 7],
        )
    )
    sequence = out["sequence_output"].numpy()
    expected = [slow_bert(short, [0, 0, 1, 1], state, tiny.sizes), slow_bert(long, [0] * 7, state, tiny.sizes)]
    np.testing.assert_allclose(sequence[0, :4], expected[0], atol=1e-5)
    np.testing.assert_allclose(sequence[1], expected[1], atol=1e-5)
    for pooled, text in zip(out["pooled_output"].numpy(), expected, strict=True):
        mean = text.mean(axis=0)
        np.testing.assert_allclose(pooled, mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_array_equal(out["default"], out["pooled_output"])


def test_mean_pool_reads_only_what_the_mask_shows():
    sequence = tf.constant([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]], [[1.0, 1.0]] * 3])
    # mean of (3, 0) and (0, 4) is (1.5, 2), of length 2.5; no token at all gives zero
    np.testing.assert_allclose(mean_pool(sequence, [[1, 1, 0], [0, 0, 0]]), [[1.5 / 2.5, 2 / 2.5], [0, 0]], atol=1e-7)


def test_dropout_works_in_training_alone(tiny, config):
    bert, batch = BertEncoder(config, tiny.state()), inputs([[2, 4, 5, 3]])
    still = bert(batch)["pooled_output"].numpy()
    np.testing.assert_array_equal(bert(batch, training=False)["pooled_output"], still)
    first, second = (bert(batch, training=True)["pooled_output"].numpy() for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    undropped = BertEncoder(
        BertConfig(**tiny.sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), tiny.state()
    )
    np.testing.assert_allclose(undropped(batch, training=True)["pooled_output"], still, atol=1e-6)


def test_every_variable_is_named_and_learns(tiny, config):
    bert = BertEncoder(config, tiny.state())
    names = {variable.name for variable in bert.trainable_variables}
    assert len(names) == len(bert.trainable_variables) == 5 + 2 * 16  # 3 tables and a norm; a layer: 6 dense, 2 norms
    for part in ("attention/query", "attention/output", "feed_forward/inner", "feed_forward/output"):
        assert f"bert/layer_1/{part}/kernel:0" in names
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(bert(inputs([[2, 4, 3]]))["sequence_output"][..., 0] ** 3)
    gradients = tape.gradient(loss, bert.trainable_variables)
    still = {
        variable.name
        for variable, gradient in zip(bert.trainable_variables, gradients, strict=True)
        if gradient is None or not np.abs(tf.convert_to_tensor(gradient)).max() > 0
    }
    # A shift of all keys cancels in the softmax: their bias has a gradient of 0 up to rounding.
    assert still <= {f"bert/layer_{i}/attention/key/bias:0" for i in range(2)}


def test_bfloat16_is_near_and_keeps_float32_variables(tiny, config):
    batch = inputs([[2, 4, 5, 3, 0, 0]], mask=[[1, 1, 1, 1, 0, 0]])
    bert = BertEncoder(config, tiny.state(), precision="bfloat16")
    pooled = bert(batch)["pooled_output"]
    exact = BertEncoder(config, tiny.state())(batch)["pooled_output"]
    assert pooled.dtype == tf.float32 and {v.dtype for v in bert.variables} == {tf.float32}
    assert np.abs(pooled - exact).max() > 0  # it did compute in another type
    assert float(tf.reduce_sum(pooled * exact)) > 0.995  # bfloat16 has 8 bits, about 1 % a product


def test_names_what_is_wrong_with_the_weights(tiny, config):
    state = tiny.state()
    with pytest.raises(ModelError, match=r"'encoder\.layer\.1\.output\.dense\.bias'"):
        BertEncoder(config, {k: v for k, v in state.items() if k != "encoder.layer.1.output.dense.bias"})
    key = "encoder.layer.0.intermediate.dense.weight"
    with pytest.raises(ModelError, match=r"intermediate.*\[24, 16\].*\[16, 24\]"):
        BertEncoder(config, state | {key: state[key].T})


def test_takes_names_with_the_prefix_of_a_wrapped_model(tiny, config):
    state, batch = tiny.state(), inputs([[2, 4, 3]])
    wrapped = BertEncoder(config, {f"bert.{key}": value for key, value in state.items()})
    np.testing.assert_array_equal(wrapped(batch)["default"], BertEncoder(config, state)(batch)["default"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "'bert'.*'roberta'"),
        ({"hidden_act": "relu"}, "'gelu'.*'relu'"),
        ({"num_attention_heads": 3}, "multiple"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_config_says_what_it_cannot_use(tiny, change, message):
    config = {k: v for k, v in (tiny.sizes | change).items() if v is not None}
    with pytest.raises(ModelError, match=message):
        BertConfig.from_dict(config)


def test_config_reads_what_hugging_face_writes(tiny):
    read = BertConfig.from_dict(tiny.sizes | {"model_type": "bert", "use_cache": True, "layer_norm_eps": 1e-5})
    assert read == BertConfig(**tiny.sizes, layer_norm_eps=1e-5)
