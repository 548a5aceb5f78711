import functools
import json
import subprocess
import sys

import numpy as np
import pytest

import tfllmrec
from tfllmrec.errors import ConfigError, ModelError

tf = pytest.importorskip("tensorflow")
tfrs = pytest.importorskip("tensorflow_recommenders")
pytestmark = pytest.mark.tf

from tfllmrec.layers.text_tower import TextTower, _inputs_of  # noqa: E402
from tfllmrec.text.encoder import TextEncoder  # noqa: E402
from tfllmrec.text.tuning import MODES  # noqa: E402

TEXTS = ["red car", "blue toys", "", "the cafe, red (car)"]
TRAINED = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="module")
def handles(thin_hub, cache):
    preprocessor, encoder = thin_hub
    return {"encoder": encoder, "preprocessor": preprocessor, "max_tokens": 12}


@pytest.fixture(scope="module")
def expected(handles):
    """The vectors of ``TEXTS``, float32 ``[4, D]``."""
    encoder = TextEncoder(handles["encoder"], handles["preprocessor"], 12)
    return encoder.encode(TEXTS)


#: Small, and as many layers as the encoder has.
TUNING = {
    "lora": {"rank": 2},
    "adalora": {"rank": 2, "steps": 1000},
    "prefix": {"length": 3},
    "top_layers": {"layers": 1},
}


@pytest.fixture(scope="module")
def made(handles):
    """A tower of ``TEXTS`` by mode, each made once."""
    return functools.cache(lambda mode: TextTower(**handles, texts=TEXTS, mode=mode, tuning=TUNING.get(mode)))


@pytest.fixture
def tower_of(made):
    """The same for one test, which may change their weights."""
    lent = {}

    def lend(mode):
        tower = made(mode)
        lent[mode] = [(variable, variable.numpy()) for variable in tower.trainable_variables]
        return tower

    yield lend
    for variable, value in (pair for pairs in lent.values() for pair in pairs):
        variable.assign(value)


def moved(tower):
    """Other values for all that is trained, as training would leave them."""
    rng = np.random.default_rng(1)
    for variable in tower.trainable_variables:
        variable.assign_add(rng.normal(0, 0.1, variable.shape))
    return tower


def test_it_is_public():
    assert tfllmrec.TextTower is TextTower


def test_strings_and_indices_have_the_vectors_of_the_encoder(tower_of, expected):
    tower = tower_of("frozen")
    np.testing.assert_allclose(tower(tf.constant(TEXTS)), expected, atol=1e-6)
    np.testing.assert_allclose(tower(tf.constant([3, 0, 3])), expected[[3, 0, 3]], atol=1e-6)


def test_any_shape_goes_in_and_the_index_after_the_last_is_padding(tower_of, expected):
    tower = tower_of("frozen")
    padded = np.vstack([expected, np.zeros_like(expected[:1])])
    history = np.array([[1, 0, 4], [3, 4, 4]])
    np.testing.assert_allclose(tower(tf.constant(history)), padded[history], atol=1e-6)
    texts = np.array(TEXTS, object).reshape(2, 2)
    np.testing.assert_allclose(tower(tf.constant(texts)), expected.reshape(2, 2, -1), atol=1e-6)
    assert tower(tf.constant([], tf.int64)).shape == (0, 16)
    assert tower.compute_output_shape((None, 3)).as_list() == [None, 3, 16]


@pytest.mark.slow
@TRAINED
def test_a_tower_that_is_trained_starts_from_the_same_vectors(tower_of, expected, mode):
    tower = tower_of(mode)
    np.testing.assert_allclose(tower(tf.constant(TEXTS)), expected, atol=1e-6)
    history = np.array([[1, 0, 4], [3, 1, 2]])
    padded = np.vstack([expected, np.zeros_like(expected[:1])])
    np.testing.assert_allclose(tower(tf.constant(history)), padded[history], atol=1e-6)


def test_an_empty_batch_keeps_one_token_for_pooling():
    assert _inputs_of(tf.zeros([0, 5], tf.int32))["input_word_ids"].shape == (0, 1)


def test_the_default_is_the_bundled_encoder_frozen_and_mean_pooled(thin_hub, monkeypatch, expected):
    monkeypatch.setattr("tfllmrec.text.encoder.hub_handles", lambda name, precision: thin_hub)
    tower = TextTower(max_tokens=12)
    config = tower.get_config()
    assert (config["encoder"], config["mode"], config["pooling"]) == ("minilm", "frozen", "mean")
    assert tower.trainable_variables == []
    np.testing.assert_allclose(tower(tf.constant(TEXTS)), expected, atol=1e-6)


def test_a_frozen_catalogue_is_one_gather(tower_of):
    graph = tf.function(tower_of("frozen")).get_concrete_function(tf.TensorSpec([None, None], tf.int32)).graph
    kinds = [op.type for op in graph.get_operations()]
    assert kinds.count("ResourceGather") == 1
    assert not any("Call" in kind or "MatMul" in kind for kind in kinds)


def test_a_catalogue_is_encoded_once_for_all_towers(handles, monkeypatch):
    texts = ["the red toy", "the blue toy"]
    first = TextTower(**handles, texts=texts)
    monkeypatch.setattr(TextEncoder, "encode", lambda *_: pytest.fail("encoded again"))
    second = TextTower(**handles, texts=texts)
    np.testing.assert_array_equal(first(tf.constant([0, 1])), second(tf.constant([0, 1])))


def test_each_distinct_item_of_a_batch_is_encoded_once(tower_of, monkeypatch):
    tower = tower_of("adapter")
    seen, plain = [], tower._tuning.differentiable
    monkeypatch.setattr(
        tower._tuning, "differentiable", lambda tokens: (seen.append(len(tokens["input_mask"])), plain(tokens))[1]
    )
    tower(tf.constant([[0, 1, 1], [0, 0, 4]]))
    tower(tf.constant(["red car", "red car"]))
    assert seen == [3, 1]


def gradients(tower, variables, inputs, compiled):
    """Of a sum that is no constant, by ``variables``."""

    def step():
        with tf.GradientTape() as tape:
            vectors = tower(inputs)
            loss = tf.reduce_sum(vectors * tf.range(1.0, 1.0 + vectors.shape[-1]))
        return tape.gradient(loss, variables)

    found = tf.function(step)() if compiled else step()
    return [None if gradient is None else tf.convert_to_tensor(gradient).numpy() for gradient in found]


def own_variables(tower):
    return tower._loaded().text_to_vector.encoder.trainable_variables


def test_a_frozen_tower_trains_its_projection_alone(handles):
    tower = TextTower(**handles, texts=TEXTS, output_dim=3)
    assert [v.shape.as_list() for v in tower.trainable_variables] == [[16, 3], [3]]
    for inputs in (tf.constant(["red car"]), tf.constant([0])):
        assert {g is None for g in gradients(tower, own_variables(tower), inputs, compiled=False)} == {True}
        assert all(g.any() for g in gradients(tower, tower.trainable_variables, inputs, compiled=False))


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("mode", "factors"), [("lora", 2), ("adalora", 3)])
def test_lora_trains_its_own_weights_by_the_gradient_of_a_step_by_hand(tower_of, mode, factors, compiled):
    tower = moved(tower_of(mode))
    texts, tuning = tf.constant(["red car", "the cafe"]), tower._tuning
    assert len(tower.trainable_variables) == factors * 6
    found = gradients(tower, tuning.variables, texts, compiled)
    assert {g is None for g in gradients(tower, own_variables(tower), texts, compiled)} == {True}
    with tf.GradientTape() as tape:
        vectors = tuning.vectors(tower._loaded().text_to_vector.tokens(texts))
        loss = tf.reduce_sum(vectors * tf.range(1.0, 17.0))
    by_hand = tuning.gradients(tape.gradient(loss, tuning.watched))
    for gradient, wanted in zip(found, by_hand, strict=True):
        assert gradient.any()
        np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-5)


def test_full_training_reaches_all_of_the_encoder(tower_of):
    tower = tower_of("full")
    assert [v.ref() for v in tower.trainable_variables] == [v.ref() for v in own_variables(tower)]
    assert all(g is not None for g in gradients(tower, tower.trainable_variables, tf.constant([0, 3]), compiled=True))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_any_tfrs_model_trains_it(tower_of, mode):
    """Each of three fixed queries belongs to one item; the loss of the batch falls because the tower learns it."""

    class TwoTower(tfrs.Model):
        def __init__(self):
            super().__init__()
            self.tower = tower_of(mode)
            self.queries = 4 * tf.eye(3, 16)
            self.task = tfrs.tasks.Retrieval()

        def compute_loss(self, inputs, training=False):
            return self.task(tf.gather(self.queries, inputs["user"]), self.tower(inputs["item"]), compute_metrics=False)

    model = TwoTower()
    model.compile(tf.keras.optimizers.Adam(0.01))
    batches = tf.data.Dataset.from_tensors({"user": [0, 1, 2], "item": [0, 1, 3]}).repeat(5)
    losses = model.fit(batches, epochs=3, verbose=0).history["loss"]
    assert losses[0] > losses[1] > losses[2]
    assert len(model.trainable_variables) == len(model.tower.trainable_variables) > 0


def functional(tower):
    texts = tf.keras.Input((), dtype=tf.string)
    return tf.keras.Model(texts, tf.keras.layers.Dense(1)(tower(texts)))


@pytest.mark.slow
@pytest.mark.parametrize("build", [functional, lambda tower: tf.keras.Sequential([tower, tf.keras.layers.Dense(1)])])
@pytest.mark.parametrize("mode", ["frozen", "adapter"])
def test_functional_and_sequential_models_fit_and_predict(tower_of, mode, build):
    model = build(tower_of(mode))
    model.compile(tf.keras.optimizers.Adam(0.05), "mse")
    texts, labels = tf.constant(TEXTS[:2] * 8), tf.constant([1.0, -1.0] * 8)
    losses = model.fit(texts, labels, epochs=20, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert model.predict(tf.constant(TEXTS), verbose=0).shape == (4, 1)
    model.summary(print_fn=lambda _: None)


@pytest.mark.slow
def test_mixed_precision_casts_the_vectors_and_keeps_the_weights(handles, expected):
    tower = TextTower(**handles, texts=TEXTS, output_dim=4, mode="adapter", dtype="mixed_bfloat16")
    assert tower(tf.constant(TEXTS)).dtype == tower(tf.constant([0])).dtype == tf.bfloat16
    assert {v.dtype for v in tower.trainable_variables} == {tf.float32}
    moved(tower)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(tower(tf.constant([0, 1])), tf.float32) ** 2)
    assert all(g.dtype == tf.float32 and g.numpy().any() for g in tape.gradient(loss, tower.trainable_variables))
    plain = TextTower(**handles, texts=TEXTS, dtype="mixed_bfloat16")
    np.testing.assert_allclose(tf.cast(plain(tf.constant([0, 1, 2, 3])), tf.float32), expected, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["frozen", "lora", "adalora", "prefix", "top_layers"])
def test_a_config_makes_the_same_tower(handles, mode):
    tower = TextTower(**handles, mode=mode, tuning=TUNING.get(mode), output_dim=5, seed=3, pooling="cls", name="reads")
    config = tower.get_config()
    again = TextTower.from_config(json.loads(json.dumps(config)))
    assert again.get_config() == config and again.name == "reads"
    np.testing.assert_allclose(again(tf.constant(TEXTS)), tower(tf.constant(TEXTS)), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["frozen", "adalora", "prefix", "adapter"])
def test_a_catalogue_comes_with_the_weights_not_with_the_config(tower_of, mode):
    tower = moved(tower_of(mode))
    again = TextTower.from_config(tower.get_config())
    with pytest.raises(tf.errors.InvalidArgumentError, match="load the weights that were saved with its config"):
        again(tf.constant([0]))
    again.set_weights(tower.get_weights())
    np.testing.assert_allclose(again(tf.constant([0, 3, 4])), tower(tf.constant([0, 3, 4])), atol=1e-6)


def test_the_weights_of_adalora_have_what_its_ranks_go_on_from(tower_of):
    tower = moved(tower_of("adalora"))
    gradients(tower, tower.trainable_variables, tf.constant([0, 3]), compiled=False)
    again = TextTower.from_config(tower.get_config())
    again.set_weights(tower.get_weights())
    steps, *smoothed = tower._tuning.state
    assert steps.numpy() > 0 and all(variable.numpy().any() for variable in smoothed)
    for ours, theirs in zip(again._tuning.state, tower._tuning.state, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_handle_that_is_gone_is_named(tower_of, tmp_path):
    tower = tower_of("frozen")
    config = tower.get_config() | {"encoder": str(tmp_path / "gone")}
    frozen = TextTower.from_config(config)
    frozen.set_weights(tower.get_weights())
    np.testing.assert_array_equal(frozen(tf.constant([1])), tower(tf.constant([1])))
    with pytest.raises(ModelError, match="gone"):
        frozen(tf.constant(["red car"]))
    with pytest.raises(ModelError, match="gone"):
        TextTower.from_config(config | {"mode": "lora"})


@pytest.mark.parametrize(
    ("inputs", "said"),
    [([0, 1], "expected strings as the input .* got int32: it has no catalogue"), ([0.5], "expected strings or item")],
)
def test_an_input_that_it_cannot_read_is_refused(handles, inputs, said):
    with pytest.raises(ModelError, match=said):
        TextTower(**handles)(tf.constant(inputs))


def test_settings_that_do_not_go_together_are_refused(handles):
    with pytest.raises(ConfigError, match="a frozen TextTower has no tuning"):
        TextTower(**handles, tuning={"rank": 2})
    with pytest.raises(ConfigError, match=r"needs text\.preprocessor"):
        TextTower(handles["encoder"])


def test_weights_have_the_encoder_only_where_it_is_trained(tower_of):
    parameters = sum(int(np.prod(v.shape)) for v in own_variables(tower_of("full")))
    longest = len(["[CLS]", "the", "cafe", ",", "red", "(", "car", ")", "[SEP]"])
    assert tower_of("frozen").count_params() == (len(TEXTS) + 1) * 16
    assert tower_of("full").count_params() == parameters + (len(TEXTS) + 1) * longest


SCRIPT = """
import sys
import numpy as np
import tfllmrec, tensorflow as tf
from tfllmrec import TextTower

def check(model, given, name):
    assert isinstance(model.get_layer("tower"), TextTower), name
    outputs = model([tf.constant(given["texts"]), tf.constant(given["items"])])
    for found, wanted in zip(outputs, (given["of_texts"], given["of_items"]), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=name)

for folder, models, weights in zip(*[iter(sys.argv[1:])] * 3):
    given = np.load(f"{folder}/given.npz", allow_pickle=True)
    for name in models.split():
        model = tf.keras.models.load_model(f"{folder}/{name}")
        check(model, given, f"{folder}/{name}")
    inputs = [tf.constant(given["texts"]), tf.constant(given["items"])]
    before = model(inputs)[0]
    model.compile(tf.keras.optimizers.SGD(0.1), "mse")
    model.fit(inputs, [tf.ones_like(x) for x in model(inputs)], batch_size=4, verbose=0)
    assert not np.allclose(model(inputs)[0], before)
    for name in weights.split():
        other = tf.keras.Model.from_config(model.get_config())
        other.load_weights(f"{folder}/{name}")
        check(other, given, f"{folder}/{name}")
print("equal")
"""


#: By mode: the formats of models and of weights that it is saved in; each format is there once.
SAVED = {
    "frozen": ("folder m.keras", "w.weights.h5"),
    "lora": ("folder", "checkpoint"),
    "adalora": ("m.keras", "w.h5"),
    "full": ("m.keras", ""),
}


def write(handles, mode, folder):
    """A model with a tower, saved in the formats of its mode, beside inputs and what it gives for them."""
    folder.mkdir()
    models, weights = SAVED[mode]
    tower = TextTower(**handles, texts=TEXTS, mode=mode, tuning=TUNING.get(mode), output_dim=3, name="tower")
    texts, items = tf.keras.Input((), dtype=tf.string), tf.keras.Input((None,), dtype=tf.int32)
    model = tf.keras.Model([texts, items], [moved(tower)(texts), tower(items)])
    rows = np.array([[0, 1, 4], [3, 2, 2], [0, 0, 0], [1, 1, 1]])
    of_texts, of_items = model([tf.constant(TEXTS), tf.constant(rows)])
    assert np.ptp(of_items) > 0.1
    given = {"texts": np.array(TEXTS, object), "items": rows}
    np.savez(folder / "given.npz", **given, of_texts=of_texts.numpy(), of_items=of_items.numpy())
    for name in models.split():
        model.save(folder / name)
    for name in weights.split():
        model.save_weights(folder / name)


@pytest.mark.long
@pytest.mark.slow
def test_a_fresh_process_loads_what_was_saved(handles, tmp_path):
    for mode in SAVED:
        write(handles, mode, tmp_path / mode)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *(part for mode, saved in SAVED.items() for part in (tmp_path / mode, *saved))],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.endswith("equal\n"), done.stderr[-3000:]


@pytest.mark.parametrize("texts", ["abc", ["a", None], ["a", float("nan")]])
def test_texts_are_a_list_of_strings(texts):
    with pytest.raises(ModelError, match="texts: expected a list of strings, found"):
        TextTower(texts=texts)
