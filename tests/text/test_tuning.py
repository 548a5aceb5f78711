import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from tfllmrec.errors import ModelError

tf = pytest.importorskip("tensorflow")
hub = pytest.importorskip("tensorflow_hub")
pytestmark = pytest.mark.tf

from safetensors import safe_open  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from tfllmrec.text.bert import BertConfig, BertEncoder  # noqa: E402
from tfllmrec.text.bundled import save_encoder  # noqa: E402
from tfllmrec.text.encoder import TextEncoder  # noqa: E402
from tfllmrec.text.preprocessor import INPUTS  # noqa: E402
from tfllmrec.text.tuning import MODES, load_tuning, text_vectors, tuning_of  # noqa: E402

IDS = np.array([[2, 4, 6, 3, 0], [2, 5, 7, 9, 3], [2, 8, 3, 0, 0]], np.int32)
TEXTS = ["red car", "blue toys", "the cafe", ""]


@pytest.fixture
def batch():
    return dict(zip(INPUTS, map(tf.constant, (IDS, np.int32(IDS > 0), np.zeros_like(IDS))), strict=True))


def unchanged(module):
    """Lends a module to a test, and puts its variables back."""
    before = [variable.numpy() for variable in module.variables]
    yield module
    for variable, value in zip(module.variables, before, strict=True):
        variable.assign(value)


@pytest.fixture(scope="module")
def loaded(tiny_hub):
    return hub.load(str(tiny_hub[1]))


@pytest.fixture
def encoder(loaded):
    yield from unchanged(loaded)


@pytest.fixture(scope="module")
def another(tiny_hub):
    """The same once more, where a test needs two."""
    return hub.load(str(tiny_hub[1]))


@pytest.fixture
def second(another):
    yield from unchanged(another)


class KerasLike(tf.Module):
    """A layer or two of BERT under the names and in the shapes that Keras gives them: D 6, 2 heads of 3, inner 10."""

    def __init__(self, layers=2):
        super().__init__()
        rng, self.v, self.count = np.random.default_rng(1), {}, layers

        def add(name, *shape, trainable=True):
            self.v[name] = tf.Variable(rng.normal(0, 0.5, shape).astype(np.float32), trainable, name=name)

        add("word_embeddings/embeddings", 12, 6)
        add("pooler_transform/kernel", 6, 6)
        add("steps/kernel", 6, 6, trainable=False)
        for i in range(layers):
            for part in ("query", "key", "value"):
                add(f"transformer/layer_{i}/self_attention/{part}/kernel", 6, 2, 3)
                add(f"transformer/layer_{i}/self_attention/{part}/bias", 2, 3)
            add(f"transformer/layer_{i}/self_attention/attention_output/kernel", 2, 3, 6)
            add(f"transformer/layer_{i}/intermediate/kernel", 6, 10)
            add(f"transformer/layer_{i}/output/kernel", 10, 6)
            add(f"transformer/layer_{i}/output_layer_norm/gamma", 6)

    def __call__(self, inputs, training):
        x = tf.gather(self.v["word_embeddings/embeddings"], inputs["input_word_ids"])
        away = (tf.cast(inputs["input_mask"], tf.float32)[:, None, None, :] - 1) * 1e9
        for i in range(self.count):
            w = {name.partition(f"layer_{i}/")[2]: v for name, v in self.v.items()}
            query, key, value = (
                tf.einsum("btd,dhw->bthw", x, w[f"self_attention/{part}/kernel"]) + w[f"self_attention/{part}/bias"]
                for part in ("query", "key", "value")
            )
            attended = tf.nn.softmax(tf.einsum("bthw,bshw->bhts", query, key) + away)
            mixed = tf.einsum("bhts,bshw->bthw", attended, value)
            x += tf.einsum("bthw,hwd->btd", mixed, w["self_attention/attention_output/kernel"])
            inner = tf.tanh(tf.tensordot(x, w["intermediate/kernel"], 1))
            x += tf.tensordot(inner, w["output/kernel"], 1) * w["output_layer_norm/gamma"]
        if training:
            x = tf.nn.dropout(x, 0.1)
        return {
            "sequence_output": x,
            "pooled_output": tf.tanh(tf.tensordot(x[:, 0], self.v["pooler_transform/kernel"], 1)),
        }


@pytest.fixture(scope="module")
def keras_loaded(tmp_path_factory):
    """Such a module, saved and loaded."""
    made = KerasLike()
    spec = {name: tf.TensorSpec([None, None], tf.int32, name) for name in INPUTS}
    call = tf.function(lambda inputs, training=False: made(inputs, training))
    for training in (False, True):
        call.get_concrete_function(spec, training=training)
    model = tf.train.Checkpoint(made=made)
    model.__call__ = call
    model.variables = list(made.v.values())
    model.trainable_variables = [v for v in model.variables if v.trainable]
    folder = tmp_path_factory.mktemp("keras") / "like"
    tf.saved_model.save(model, str(folder))
    return hub.load(str(folder))


@pytest.fixture
def keras_like(keras_loaded):
    yield from unchanged(keras_loaded)


def values(variables):
    return {v.name: v.numpy() for v in variables}


def goal(vectors):
    """A loss, lower where the vectors point along a direction that each row has of its own."""
    wanted = np.random.default_rng(3).normal(size=vectors.shape).astype(np.float32)
    return -tf.reduce_mean(tf.reduce_sum(vectors * wanted, axis=1))


def gradients_of(tuning, batch):
    with tf.GradientTape() as tape:
        loss = goal(tuning.vectors(batch))
    return tuning.gradients(tape.gradient(loss, tuning.watched))


def largest(gradient):
    return np.unravel_index(np.abs(gradient).argmax(), gradient.shape)


def check_slope(tuning, batch, v, gradient, place, more=lambda: 0.0):
    """That an entry of a variable's gradient is the slope of the loss there, and of what is added to it."""
    here, step, losses = v.numpy(), np.zeros(v.shape, np.float32), []
    step[place] = 0.01
    for side in (-1, 1):
        v.assign(here + side * step)
        tuning.write()
        losses.append(float(goal(tuning.vectors(batch)) + more()))
    v.assign(here)
    assert (losses[1] - losses[0]) / 0.02 == pytest.approx(float(gradient[place]), rel=0.03, abs=1e-4), v.name


def stir(variables, seed=5):
    """Small numbers in place of what may be 0."""
    rng = np.random.default_rng(seed)
    for v in variables:
        v.assign_add(rng.normal(0, 0.1, v.shape))


def trainer(tuning, optimizer):
    """A step of training as a graph, and a list that grows with each tracing."""
    traced = []
    optimizer.build(tuning.variables)

    @tf.function(input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}])
    def step(inputs):
        traced.append(True)
        with tf.GradientTape() as tape:
            loss = goal(tf.ensure_shape(tuning.vectors(inputs), [3, None]))
        gradients = tuning.gradients(tape.gradient(loss, tuning.watched))
        tuning.update(gradients, lambda: optimizer.apply_gradients(zip(gradients, tuning.variables, strict=True)))
        return loss

    return step, traced


# --- LoRA against full fine-tuning ------------------------------------------------------------------------------------


def test_lora_gradients_are_the_chain_rule_on_those_of_full_tuning(encoder, batch):
    tuning = tuning_of(encoder, "lora", rank=3, alpha=6)
    assert len(tuning.watched) == 2 * 6 and len(tuning.variables) == 2 * 2 * 6
    stir(tuning.variables)
    tuning.write()
    with tf.GradientTape() as tape:
        loss = goal(text_vectors(encoder, batch))
    full = tape.gradient(loss, encoder.trainable_variables)
    full = {v.name: g for v, g in zip(encoder.trainable_variables, full, strict=True)}
    came = gradients_of(tuning, batch)
    for i, w in enumerate(tuning.watched):
        a, b = (v.numpy() for v in tuning.variables[2 * i : 2 * i + 2])
        dw = full[w.name].numpy()
        assert a.shape == (3, dw.shape[0]) and b.shape == (dw.shape[1], 3) and np.abs(dw).max() > 1e-4
        # W[i, o] = W0[i, o] + 6/3 sum over k of A[k, i] B[o, k]
        np.testing.assert_allclose(came[2 * i], 6 / 3 * np.einsum("io,ok->ki", dw, b), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(came[2 * i + 1], 6 / 3 * np.einsum("io,ki->ok", dw, a), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [16, 5])
def test_a_step_of_b_is_a_step_of_full_tuning_as_far_as_the_rank_allows(encoder, second, batch, rank):
    scale = 1.5
    tuning = tuning_of(encoder, "lora", rank=rank, alpha=scale * rank, targets=["query", "inner"])
    start = values(tuning.watched)
    frames = {}
    for w, a in zip(tuning.watched, tuning.variables[::2], strict=True):
        # Orthonormal rows; as many as W is wide (16 -> 16 and 16 -> 24) they are a base of all that there is.
        frames[w.name] = np.linalg.qr(np.random.default_rng(len(frames)).normal(size=(16, 16)))[0][:rank]
        a.assign(frames[w.name])
    full = tuning_of(second, "full")
    of_full = dict(zip((v.name for v in full.variables), gradients_of(full, batch), strict=True))
    gradients = tuning.gradients([of_full[w.name] for w in tuning.watched])  # B is 0: both encoders are the same
    for b, gradient in zip(tuning.variables[1::2], gradients[1::2], strict=True):
        b.assign_sub(0.2 / scale**2 * gradient)
    tuning.write()
    for w in tuning.watched:
        kept = frames[w.name].T @ frames[w.name]  # the identity where the rank is 16
        np.testing.assert_allclose(w, start[w.name] - 0.2 * kept @ of_full[w.name].numpy(), atol=1e-6)
    for v in full.variables:
        if v.name in start:
            v.assign_sub(0.2 * of_full[v.name])
    difference = np.abs(full.vectors(batch) - tuning.vectors(batch)).max()
    assert difference < 1e-5 if rank == 16 else difference > 1e-3


# --- What changes, and what does not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_starts_as_the_frozen_encoder(encoder, batch, mode):
    frozen = text_vectors(encoder, batch).numpy()
    tuning = tuning_of(encoder, mode, steps=10)
    tuning.write()
    if mode == "prefix":  # the same by a graph of its own
        np.testing.assert_allclose(tuning.vectors(batch), frozen, atol=1e-6)
    else:
        np.testing.assert_array_equal(tuning.vectors(batch), frozen)


CHANGED = {
    "lora": "/kernel:0",
    "adalora": "/kernel:0",
    "prefix": "nothing",
    "adapter": "nothing",
    "top_layers": "layer_1/",
    "full": "",
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_steps_in_one_graph_change_what_is_tuned_alone(encoder, batch, mode):
    tuning = tuning_of(encoder, mode, rank=4, alpha=4, layers=1, width=8, length=3, steps=1000)
    before, started = values(encoder.variables), [v.numpy() for v in tuning.variables]
    optimizer = tf.keras.optimizers.AdamW(0.01, weight_decay=0.01, global_clipnorm=1.0)
    step, traced = trainer(tuning, optimizer)
    losses = [float(step(batch)) for _ in range(12)]
    small = {name: value[:2, :3] for name, value in batch.items()}
    step({name: tf.concat([value, value[:1]], axis=0) for name, value in small.items()})
    assert len(traced) == 1
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1
    changed = {v.name for v in encoder.variables if (before[v.name] != v.numpy()).any()}
    assert changed == {name for name in before if CHANGED[mode] in name}
    assert all((value != v.numpy()).any() for v, value in zip(tuning.variables, started, strict=True))
    if mode == "lora":
        for w, a, b in zip(tuning.watched, tuning.variables[::2], tuning.variables[1::2], strict=True):
            np.testing.assert_allclose(w, before[w.name] + 4 / 4 * (b.numpy() @ a.numpy()).T, atol=1e-6)


def test_nothing_is_differentiated_below_an_adapter(encoder, batch):
    tuning = tuning_of(encoder, "adapter", width=5)
    stir(tuning.variables)
    with tf.GradientTape() as tape:
        loss = goal(tuning.vectors(batch))
    below = tape.gradient(loss, encoder.trainable_variables)
    assert all(gradient is None for gradient in below)


def test_an_adapter_is_its_formula(encoder, batch):
    tuning = tuning_of(encoder, "adapter", width=5)
    stir(tuning.variables)
    w, b, v, c = (variable.numpy() for variable in tuning.variables)
    assert w.shape == (16, 5) and v.shape == (5, 16)
    expected = []
    for states, ids in zip(encoder(batch)["sequence_output"].numpy(), IDS, strict=True):
        inner = states[ids > 0] @ w + b
        total = (states[ids > 0] + tf.nn.gelu(inner).numpy() @ v + c).sum(axis=0)
        expected.append(total / np.linalg.norm(total))
    np.testing.assert_allclose(tuning.vectors(batch), expected, atol=1e-6)


# --- AdaLoRA ----------------------------------------------------------------------------------------------------------


def test_adalora_is_its_formula_with_orthonormal_vectors(keras_like, batch):
    before = values(keras_like.variables)
    tuning = tuning_of(keras_like, "adalora", rank=2, alpha=3, targets=["query", "output"], steps=1000)
    factors = list(zip(*(tuning.variables[i::3] for i in range(3)), strict=True))
    for w, (p, singular, q) in zip(tuning.watched, factors, strict=True):
        width_in = 10 if "/output/" in w.name else 6
        assert (p.shape, singular.shape, q.shape) == ((6, 3), (3,), (3, width_in))  # 1.5 * 2
        np.testing.assert_allclose(p.numpy().T @ p.numpy(), np.eye(3), atol=1e-6)
        np.testing.assert_allclose(q.numpy() @ q.numpy().T, np.eye(3), atol=1e-6)
        assert not singular.numpy().any()
    stir(tuning.variables)
    tuning.write()
    for w, (p, singular, q) in zip(tuning.watched, factors, strict=True):
        change = 3 / 2 * np.einsum("or,r,ri->io", p, singular, q)
        np.testing.assert_allclose(w, before[w.name] + change.reshape(w.shape), atol=1e-6)


def test_gradients_of_adalora_are_the_slopes_with_the_regulariser(keras_like, batch):
    tuning = tuning_of(keras_like, "adalora", rank=2, alpha=3, targets=["query", "attention_output"], steps=1000)
    stir(tuning.variables)
    tuning.write()

    def regulariser():
        total = 0.0
        for p, q in zip(tuning.variables[::3], tuning.variables[2::3], strict=True):
            p, q = p.numpy(), q.numpy()
            total += ((p.T @ p - np.eye(3)) ** 2).sum() + ((q @ q.T - np.eye(3)) ** 2).sum()
        return 0.1 * total

    assert regulariser() > 0.01
    for v, gradient in zip(tuning.variables, gradients_of(tuning, batch), strict=True):
        check_slope(tuning, batch, v, gradient, largest(gradient), regulariser)


def test_ranks_follow_the_schedule_and_what_is_left_is_shipped(encoder, second, batch, tmp_path):
    tuning = tuning_of(encoder, "adalora", rank=2, targets=["query", "inner"], steps=20)
    step, _ = trainer(tuning, tf.keras.optimizers.Adam(0.01))
    found = []
    for _ in range(20):
        step(batch)
        found.append(sum(int(tf.math.count_nonzero(singular)) for singular in tuning.variables[1::3]))
    # 4 kernels: 12 triplets up to step 2, 8 from step 10 on.
    assert found == [8 + int(4 * (1 - min(max(t - 2, 0) / 8, 1)) ** 3) for t in range(1, 21)]
    tuning.variables[1].assign(tf.ones_like(tuning.variables[1]))
    tuning.write()
    assert tf.reduce_all(tuning.variables[1] == 1)  # to write alone takes nothing away
    tuning._prune()
    tuning.write()
    tuning.save(tmp_path / "tuning", "base")
    with safe_open(tmp_path / "tuning", "np") as file:
        keys = sorted(file.keys(), key=lambda key: int(key.partition(":")[0]))
        shapes = [file.get_tensor(key).shape for key in keys]
    assert sum(singular[0] for singular in shapes[1::3]) == 8
    for p, singular, q in zip(shapes[::3], shapes[1::3], shapes[2::3], strict=True):
        assert p[1] == singular[0] == q[0]
    again = load_tuning(tmp_path / "tuning", second, "base")
    np.testing.assert_allclose(again.vectors(batch), tuning.vectors(batch), atol=1e-6)
    assert again.digest() == tuning.digest()


class TwoKernels(tf.Module):
    """Two maps of 8 numbers, side by side."""

    def __init__(self):
        super().__init__()
        self.kernels = [tf.Variable(tf.zeros([8, 8]), name=f"layer_0/{name}/kernel") for name in "ab"]

    def __call__(self, inputs):
        return tf.concat(self.kernels, axis=1)


@pytest.mark.parametrize("needed", [(5, 1), (1, 5), (3, 3)])
def test_the_kernel_that_needs_more_rank_gets_more(needed):
    """Of changes of these ranks, with all singular values 1; there are 2 * 5 triplets at first, 2 * 3 in the end."""
    rng = np.random.default_rng(2)
    frames = [np.linalg.qr(rng.normal(size=(8, 8)))[0] for _ in range(4)]
    wanted = np.concatenate([frames[i][:, :r] @ frames[i + 2][:, :r].T for i, r in enumerate(needed)], axis=1)
    module = TwoKernels()
    tuning = tuning_of(module, "adalora", rank=3, alpha=3, targets=["kernel"], steps=300)
    optimizer = tf.keras.optimizers.Adam(0.03)
    optimizer.build(tuning.variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((module({}) - tf.constant(wanted, tf.float32)) ** 2)
        gradients = tuning.gradients(tape.gradient(loss, tuning.watched))
        tuning.update(gradients, lambda: optimizer.apply_gradients(zip(gradients, tuning.variables, strict=True)))
        return loss

    losses = [float(step()) for _ in range(300)]
    assert losses[-1] < 0.05 * losses[0]
    assert tuple(int(tf.math.count_nonzero(singular)) for singular in tuning.variables[1::3]) == needed


@pytest.mark.parametrize("nested", [False, True])
def test_a_step_of_adalora_is_counted_in_any_graph(encoder, batch, nested):
    """Also where the gradient is a function of its own."""
    tuning = tuning_of(encoder, "adalora", rank=2, targets=["query"], steps=1000)
    stir(tuning.variables)
    vectors = tf.function(tuning.differentiable) if nested else tuning.differentiable

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = goal(tf.ensure_shape(vectors(batch), [3, 16]))
        return tape.gradient(loss, tuning.variables)

    for count in (1, 2):
        gradients = step()
        assert int(tuning.state[0]) == count
    now = np.abs(tuning.variables[0] * gradients[0])
    np.testing.assert_allclose(tuning.state[1], 0.15 * now * (1 + 0.85), rtol=1e-4)
    vectors(batch)
    assert int(tuning.state[0]) == 2  # without a gradient there is no step


# --- Prefixes ---------------------------------------------------------------------------------------------------------


def dense(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def states_by_hand(tiny, ids, prefixes):
    """The tiny BERT on one text, head by head: int ``[T]`` -> ``[T, D]``; keys, values and gates for each layer."""

    def norm(x, name):
        centred = x - x.mean(axis=1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12)
        return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]

    def softmax(x):
        weights = np.exp(x - x.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    state, heads = tiny.state(), tiny.sizes["num_attention_heads"]
    width = tiny.sizes["hidden_size"] // heads
    table = "embeddings.{}_embeddings.weight".format
    x = state[table("word")][ids] + state[table("position")][: len(ids)] + state[table("token_type")][0]
    x = norm(x, "embeddings.LayerNorm")
    for i, ((keys, values), gates) in enumerate(prefixes):
        name = f"encoder.layer.{i}"
        query, key, value = (dense(state, f"{name}.attention.self.{part}", x) for part in ("query", "key", "value"))
        context = np.zeros_like(x)
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            q = query[:, own] / np.sqrt(width)
            context[:, own] = softmax(q @ key[:, own].T) @ value[:, own]
            context[:, own] += gates[head] * softmax(q @ keys[:, own].T) @ values[:, own]
        attended = dense(state, f"{name}.attention.output.dense", context)
        x = norm(x + attended, f"{name}.attention.output.LayerNorm")
        inner = tf.nn.gelu(dense(state, f"{name}.intermediate.dense", x), approximate=False).numpy()
        x = norm(x + dense(state, f"{name}.output.dense", inner), f"{name}.output.LayerNorm")
    return x


def test_a_prefix_is_its_formula(tiny, encoder, batch):
    tuning = tuning_of(encoder, "prefix", length=50)  # more than the encoder has positions
    assert [v.shape for v in tuning.variables] == [(2, 50, 16), (4,)] * 2  # of each layer
    stir(tuning.variables)
    parts = [v.numpy() for v in tuning.variables]
    prefixes = list(zip(parts[::2], parts[1::2], strict=True))
    found = tuning.encoder(batch)["sequence_output"]
    for states, ids in zip(found, IDS, strict=True):
        expected = states_by_hand(tiny, ids[ids > 0], prefixes)
        np.testing.assert_allclose(states[: len(expected)], expected, atol=1e-4)


def test_without_its_gate_a_prefix_leaves_the_encoder_as_it_was(encoder, batch):
    frozen = text_vectors(encoder, batch).numpy()
    tuning = tuning_of(encoder, "prefix", length=3)
    stir(tuning.variables)
    assert np.abs(tuning.vectors(batch) - frozen).max() > 1e-2
    for gate in tuning.variables[1::2]:
        gate.assign(tf.zeros_like(gate))
    np.testing.assert_allclose(tuning.vectors(batch), frozen, atol=1e-6)


def test_a_prefix_starts_as_the_keys_and_values_of_tokens(tiny, encoder):
    """Each token is a text of its own: which ones they are is found in the first layer, and holds in the second."""
    started = [v.numpy() for v in tuning_of(encoder, "prefix", length=9).variables]
    none = (started[0], np.zeros(4))
    own = "encoder.layer.{}.attention.self.{}".format
    for i, keys_values in enumerate(started[::2]):
        states = [states_by_hand(tiny, np.array([token]), [none] * i)[0] for token in range(len(tiny.vocabulary))]
        expected = [dense(tiny.state(), own(i, part), states) for part in ("key", "value")]
        if i == 0:
            tokens = [np.abs(expected[0] - key).max(axis=1).argmin() for key in keys_values[0]]
        np.testing.assert_allclose(keys_values, np.stack(expected)[:, tokens], atol=1e-4)
    assert len(set(tokens)) > 4


def test_gradients_of_a_prefix_are_the_slopes(encoder, batch):
    tuning = tuning_of(encoder, "prefix", length=3)
    stir(tuning.variables)
    for v, gradient in zip(tuning.variables, gradients_of(tuning, batch), strict=True):
        for i in range(2):  # of keys and of values, or of two gates
            check_slope(tuning, batch, v, gradient, (i, *largest(gradient[i])))


def test_sparse_gradients_of_the_embeddings_pass(batch):
    class Table(tf.Module):
        def __init__(self):
            super().__init__()
            self.table = tf.Variable(np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32), name="table")

        def __call__(self, inputs):
            return tf.gather(self.table, inputs["input_word_ids"])[:, 1]

    table = Table()
    (sparse,) = gradients_of(tuning_of(table, "full"), batch)
    assert isinstance(sparse, tf.IndexedSlices)
    optimizer = tf.keras.optimizers.Adam(0.1)
    tuning, before = tuning_of(table, "full"), table.table.numpy()
    trainer(tuning, optimizer)[0](batch)
    assert set(np.flatnonzero((table.table != before).numpy().any(axis=1))) == set(IDS[:, 1])
    # The same table as a LoRA target: one that needs the gradient of all of it.
    table.table.assign(before)
    tuning = tuning_of(table, "lora", rank=2, alpha=2, targets=["table"])
    da, db = gradients_of(tuning, batch)
    dense = tf.convert_to_tensor(sparse).numpy()
    np.testing.assert_allclose(db, dense.T @ tuning.variables[0].numpy().T, atol=1e-6)
    assert not da.numpy().any()  # B is 0


def test_an_encoder_without_a_sequence(batch):
    class Plain(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(tf.eye(4), name="kernel")

        def __call__(self, inputs):
            return {"default": tf.one_hot(inputs["input_word_ids"][:, 1] % 4, 4) @ self.kernel}

    tuning = tuning_of(Plain(), "adapter", width=2)
    np.testing.assert_allclose(tuning.vectors(batch), np.eye(4)[IDS[:, 1] % 4], atol=1e-6)


# --- Encoders of Keras ------------------------------------------------------------------------------------------------


def test_lora_trains_kernels_of_heads_as_the_matrices_they_stand_for(keras_like, batch):
    encoder, before = keras_like, values(keras_like.variables)
    tuning = tuning_of(encoder, "lora", rank=2, alpha=3)
    parts = ["query", "key", "value", "attention_output", "intermediate", "output"]
    prefix = {part: "" if part in ("intermediate", "output") else "self_attention/" for part in parts}
    assert [w.name for w in tuning.watched] == [
        f"transformer/layer_{i}/{prefix[part]}{part}/kernel:0" for i in range(2) for part in parts
    ]
    shapes = {w.name.split("/")[-2]: v for w, v in zip(tuning.watched, tuning.variables[::2], strict=True)}
    assert {part: shapes[part].shape[1] for part in parts} == dict.fromkeys(parts, 6) | {"output": 10}
    step, _ = trainer(tuning, tf.keras.optimizers.Adam(0.02))
    losses = [float(step(batch)) for _ in range(40)]
    assert losses[-1] < losses[0] - 0.5
    for w, a, b in zip(tuning.watched, tuning.variables[::2], tuning.variables[1::2], strict=True):
        change = 3 / 2 * np.einsum("ki,ok->io", a, b)
        np.testing.assert_allclose(w, before[w.name] + change.reshape(w.shape), atol=1e-6)
    changed = {v.name for v in encoder.variables if (before[v.name] != v.numpy()).any()}
    assert changed == {w.name for w in tuning.watched}


def test_lora_gradients_are_the_slopes(keras_like, batch):
    tuning = tuning_of(keras_like, "lora", rank=2, alpha=3, targets=["query", "attention_output"])
    stir(tuning.variables)
    tuning.write()
    for v, gradient in zip(tuning.variables, gradients_of(tuning, batch), strict=True):
        check_slope(tuning, batch, v, gradient, largest(gradient))


# --- Choosing ---------------------------------------------------------------------------------------------------------


def test_targets_choose_by_name(encoder, keras_like):
    def chosen(module, *targets):
        return [w.name for w in tuning_of(module, "lora", targets=targets).watched]

    for module in (encoder, keras_like):
        attention, forward = chosen(module, "attention"), chosen(module, "feed_forward")
        assert len(attention) == 2 * 4 and len(forward) == 2 * 2 and not set(attention) & set(forward)
        assert set(chosen(module, "attention", "feed_forward")) == {*attention, *forward}
        assert all("layer_" in name and name.endswith("kernel:0") for name in attention + forward)
        assert len(chosen(module, "layer_1/")) == 6 and len(chosen(module, "query", "value")) == 4
    assert chosen(keras_like, "pooler") == ["pooler_transform/kernel:0"]


def test_top_layers_are_found_by_name(encoder, keras_like):
    assert len(tuning_of(encoder, "top_layers", layers=1).variables) == 16  # 6 dense of two, 2 norms of two
    assert len(tuning_of(encoder, "top_layers", layers=2).variables) == 32
    for module in (encoder, keras_like):
        names = {v.name for v in tuning_of(module, "top_layers", layers=1).variables}
        assert names == {v.name for v in module.variables if "layer_1/" in v.name}
    for layers in (0, 3):
        with pytest.raises(
            ModelError, match=rf"at least 1 and at most 2,.*got {layers}.*bert/layer_\*/attention/query/kernel"
        ):
            tuning_of(encoder, "top_layers", layers=layers)


def test_a_prefix_needs_an_encoder_of_our_own(keras_like):
    with pytest.raises(ModelError, match=r"tfllmrec's own format.*: use text\.mode lora or adapter"):
        tuning_of(keras_like, "prefix")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("bert/layer_0/attention/query/kernel", "0"),
        ("bert_model/encoder/layer_11/intermediate/kernel", "11"),
        ("transformer_layer_3/self_attention_layer/query/kernel", "3"),
        ("tf_bert_model/bert/encoder/layer_._10/attention/self/query/kernel", "10"),
        ("encoder/block_2/layer_1/kernel", "2"),
        ("embeddings/layer_norm/gamma", None),
        ("layer_norm_1/gamma", None),
        ("layer_normalization_3/gamma", None),
        ("player_1/kernel", None),
    ],
)
def test_numbered_layers_by_the_names_of_several_makers(name, number):
    from tfllmrec.text.tuning import _LAYER

    found = _LAYER.search(name)
    assert (found and found[1]) == number


def test_full_leaves_what_the_encoder_does_not_train(keras_like):
    names = {v.name for v in tuning_of(keras_like, "full").variables}
    assert {v.name for v in keras_like.variables} - names == {"steps/kernel:0"}
    bare = SimpleNamespace(variables=keras_like.variables)  # says so at each variable alone
    assert {v.name for v in tuning_of(bare, "full").variables} == names


def test_biases_and_norms_have_no_decay(encoder, keras_like):
    tuning = tuning_of(encoder, "full")
    names = {v.name for v in tuning.undecayed}
    assert names == {v.name for v in tuning.variables if v.name.endswith(("bias:0", "gamma:0", "beta:0"))}
    assert len(names) == 2 + 2 * 10
    of_heads = {v.name for v in tuning_of(keras_like, "full").undecayed}
    assert "transformer/layer_0/self_attention/key/bias:0" in of_heads and len(of_heads) == 2 * 4
    assert tuning_of(encoder, "lora").undecayed == []
    assert len(tuning_of(encoder, "adapter").undecayed) == 2
    optimizer = tf.keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=tuning.undecayed)
    before = values(tuning.variables)
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in tuning.variables])
    assert {v.name for v in tuning.variables if (before[v.name] == v.numpy()).all()} == names


def test_says_what_cannot_be_chosen(encoder):
    with pytest.raises(ModelError, match=r"'querry' matches no kernel.*bert/layer_\*/attention/query/kernel, "):
        tuning_of(encoder, "lora", targets=["query", "querry"])
    with pytest.raises(ModelError, match=r"lora, adalora, prefix, adapter, top_layers, full.*'frozen'"):
        tuning_of(encoder, "frozen")
    with pytest.raises(ModelError, match=r"adalora needs the number of training steps: expected steps=…, got none"):
        tuning_of(encoder, "adalora")
    with pytest.raises(ModelError, match="'trainable_variables', got none"):
        tuning_of(tf.Module(), "full")


# --- Shipping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_saved_and_loaded_it_gives_the_same_vectors(encoder, second, batch, tmp_path, mode):
    settings = {"rank": 2, "alpha": 5, "targets": ["value", "feed_forward"], "layers": 1, "width": 7, "length": 3}
    tuning = tuning_of(encoder, mode, **settings, steps=9, seed=9)
    frozen = tuning.vectors(batch).numpy()
    stir(tuning.variables)
    tuning.write()
    path = tmp_path / "run" / "tuning.safetensors"
    tuning.save(path, "base")
    tuning.save(path, "base")  # in the place of the first
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    numbers = sum(v.shape.num_elements() for v in tuning.variables)
    assert 4 * numbers < path.stat().st_size < 4 * numbers + 200 * (len(tuning.variables) + 2)
    again = load_tuning(path, second, "base")
    np.testing.assert_allclose(again.vectors(batch), tuning.vectors(batch), atol=1e-6)
    assert np.abs(again.vectors(batch) - frozen).max() > 1e-2
    assert again.mode == mode and again.settings == tuning.settings and again.digest() == tuning.digest()
    again.variables[-1].assign_add(tf.fill(again.variables[-1].shape, 1e-3))
    assert again.digest() != tuning.digest()


def test_lora_ships_little(encoder, tmp_path):
    for mode in ("lora", "full"):
        tuning_of(encoder, mode, rank=1).save(tmp_path / mode, "base")
    numbers = 2 * (4 * (16 + 16) + 2 * (16 + 24))  # a layer: 4 of 16 x 16, two of 16 x 24
    assert sum(v.shape.num_elements() for v in tuning_of(encoder, "lora", rank=1).variables) == numbers
    assert (tmp_path / "lora").stat().st_size < (tmp_path / "full").stat().st_size / 3


def test_what_was_cut_off_while_writing_leaves_the_old_file(encoder, tmp_path, monkeypatch):
    tuning, path = tuning_of(encoder, "adapter"), tmp_path / "tuning.safetensors"
    tuning.save(path, "base")
    old = path.read_bytes()

    def killed(arrays, to, metadata):
        to.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("tfllmrec.text.tuning.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        tuning.save(path, "base")
    assert path.read_bytes() == old


def test_refuses_what_does_not_belong_together(encoder, second, keras_like, tmp_path):
    path = tmp_path / "tuning.safetensors"
    tuning_of(encoder, "top_layers", layers=1).save(path, "0123")
    before = values(second.variables)
    with pytest.raises(ModelError, match=r"tuning\.safetensors was trained on another encoder.*0123, got 4567"):
        load_tuning(path, second, "4567")
    with pytest.raises(ModelError, match=r"'0:bert/layer_1/.*' is of shape unknown there and of shape \(16,\)"):
        load_tuning(path, keras_like, "0123")
    with safe_open(path, "np") as file:
        arrays, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    key = max(arrays)
    save_file(arrays | {key: arrays[key][..., :5]}, tmp_path / "narrow", metadata)
    with pytest.raises(ModelError, match=rf"'{key}' is of shape \(.*\) there and of shape \(.*5,?\) in"):
        load_tuning(tmp_path / "narrow", second, "0123")
    with pytest.raises(ModelError, match="cannot be read"):
        load_tuning(tmp_path / "nowhere", second, "0123")
    (tmp_path / "half").write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ModelError, match="cannot be read"):
        load_tuning(tmp_path / "half", second, "0123")
    save_file({"x": np.zeros(3)}, tmp_path / "other")
    with pytest.raises(ModelError, match="cannot be read"):
        load_tuning(tmp_path / "other", second, "0123")
    headers = ["", "[1]", "{}", "[" * 100_000, '{"base": 1, "mode": "full", "settings": {}}',
               '{"base": "0123", "mode": "full", "settings": []}',
               '{"base": "0123", "mode": "full", "settings": {"depth": 1}}',
               '{"base": "0123", "mode": "lora", "settings": {"rank": 0}}']  # fmt: skip
    for header in headers:
        save_file(arrays, tmp_path / "header", dict.fromkeys(metadata, header))
        with pytest.raises(ModelError, match=r"header .* it cannot be read: .*\. Copy it again"):
            load_tuning(tmp_path / "header", second, "0123")
    assert all((before[v.name] == v.numpy()).all() for v in second.variables)


# --- In TextEncoder ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "adalora", "prefix", "adapter"])
def test_text_encoder_gives_the_tuned_vectors_eagerly_and_exported(thin_hub, tmp_path, mode):
    preprocessor, folder = thin_hub
    plain = TextEncoder(folder, preprocessor, max_tokens=10)
    frozen, of_frozen = plain.encode(TEXTS), plain.fingerprint
    tuning = tuning_of(plain.text_to_vector.encoder, mode, rank=4, layers=1, width=8, steps=9)
    plain.tune(tuning)
    assert plain.fingerprint != of_frozen
    stir(tuning.variables)
    tuning.write()
    path = tmp_path / "tuning.safetensors"
    tuning.save(path, plain.base_fingerprint)
    expected = tuning.vectors(plain.text_to_vector.tokens(tf.constant(TEXTS))).numpy()
    assert np.abs(expected - frozen).max() > 1e-2 and not expected[3].any()

    tuned = TextEncoder(folder, preprocessor, max_tokens=10, tuning=path)
    assert tuned.tuning.mode == mode and plain.tuning is tuning
    assert tuned.fingerprint == plain.fingerprint != of_frozen and tuned.base_fingerprint == plain.base_fingerprint
    for encoder in (plain, tuned):
        np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    tf.saved_model.save(tuned.text_to_vector, str(tmp_path / "model"))
    moved = shutil.move(tmp_path / "model", tmp_path / "moved")
    np.testing.assert_allclose(tf.saved_model.load(str(moved))(tf.constant(TEXTS)), expected, atol=1e-5)


@pytest.mark.slow
def test_a_tuning_goes_with_any_precision_and_length(tiny, thin_hub, tmp_path):
    save_encoder(BertEncoder(BertConfig(**tiny.thin), tiny.state(), "bfloat16"), tmp_path / "fast")
    exact = TextEncoder(thin_hub[1], thin_hub[0], max_tokens=10)
    fast = TextEncoder(tmp_path / "fast", thin_hub[0], max_tokens=12, precision="bfloat16")
    assert exact.tuning is None and exact.fingerprint != fast.fingerprint
    assert exact.base_fingerprint == fast.base_fingerprint
    changed = tiny.state()
    changed["encoder.layer.0.output.dense.bias"][0] += 1e-3
    save_encoder(BertEncoder(BertConfig(**tiny.thin), changed), tmp_path / "other")
    path = tmp_path / "tuning.safetensors"
    tuning_of(exact.text_to_vector.encoder, "lora").save(path, exact.base_fingerprint)
    with pytest.raises(ModelError, match="another encoder"):
        TextEncoder(tmp_path / "other", thin_hub[0], max_tokens=10, tuning=path)
