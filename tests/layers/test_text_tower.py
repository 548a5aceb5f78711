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

from tfllmrec.layers.text_tower import TextTower  # noqa: E402
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


@pytest.fixture(autouse=True)
def repeatable():
    tf.keras.utils.set_random_seed(0)


def text_model(tower):
    """A functional model of strings ``[B]``."""
    texts = tf.keras.Input((), dtype=tf.string)
    return tf.keras.Model(texts, tf.keras.layers.Dense(1)(tower(texts)))


def moved(tower):
    """Other values for all that is trained, as training would leave them."""
    rng = np.random.default_rng(1)
    for variable in tower.trainable_variables:
        variable.assign_add(rng.normal(0, 0.1, variable.shape))
    return tower


def test_it_is_public():
    assert tfllmrec.TextTower is TextTower


def test_strings_and_indices_have_the_vectors_of_the_encoder(handles, expected):
    tower = TextTower(**handles, texts=TEXTS)
    np.testing.assert_allclose(tower(tf.constant(TEXTS)), expected, atol=1e-6)
    np.testing.assert_allclose(tower(tf.constant([3, 0, 3])), expected[[3, 0, 3]], atol=1e-6)


def test_any_shape_goes_in_and_the_index_after_the_last_is_padding(handles, expected):
    tower = TextTower(**handles, texts=TEXTS)
    padded = np.vstack([expected, np.zeros_like(expected[:1])])
    history = np.array([[1, 0, 4], [3, 4, 4]])
    np.testing.assert_allclose(tower(tf.constant(history)), padded[history], atol=1e-6)
    texts = np.array(TEXTS, object).reshape(2, 2)
    np.testing.assert_allclose(tower(tf.constant(texts)), expected.reshape(2, 2, -1), atol=1e-6)
    assert tower(tf.constant([], tf.int64)).shape == (0, 16)
    assert tower.compute_output_shape((None, 3)).as_list() == [None, 3, 16]


@TRAINED
def test_a_tower_that_is_trained_starts_from_the_same_vectors(handles, expected, mode):
    tower = TextTower(**handles, texts=TEXTS, mode=mode)
    np.testing.assert_allclose(tower(tf.constant(TEXTS)), expected, atol=1e-6)
    history = np.array([[1, 0, 4], [3, 1, 2]])
    padded = np.vstack([expected, np.zeros_like(expected[:1])])
    np.testing.assert_allclose(tower(tf.constant(history)), padded[history], atol=1e-6)


def test_the_default_is_the_bundled_encoder_frozen_and_mean_pooled(thin_hub, monkeypatch, expected):
    monkeypatch.setattr("tfllmrec.text.encoder.hub_handles", lambda precision: thin_hub)
    tower = TextTower(max_tokens=12)
    config = tower.get_config()
    assert (config["encoder"], config["mode"], config["pooling"]) == ("minilm", "frozen", "mean")
    assert tower.trainable_variables == []
    np.testing.assert_allclose(tower(tf.constant(TEXTS)), expected, atol=1e-6)


def test_a_frozen_catalogue_is_one_gather(handles):
    tower = TextTower(**handles, texts=TEXTS)
    graph = tf.function(tower).get_concrete_function(tf.TensorSpec([None, None], tf.int32)).graph
    kinds = [op.type for op in graph.get_operations()]
    assert kinds.count("ResourceGather") == 1
    assert not any("Call" in kind or "MatMul" in kind for kind in kinds)


def test_a_catalogue_is_encoded_once_for_all_towers(handles, monkeypatch):
    texts = ["the red toy", "the blue toy"]
    first = TextTower(**handles, texts=texts)
    monkeypatch.setattr(TextEncoder, "encode", lambda *_: pytest.fail("encoded again"))
    second = TextTower(**handles, texts=texts)
    np.testing.assert_array_equal(first(tf.constant([0, 1])), second(tf.constant([0, 1])))


def test_each_distinct_item_of_a_batch_is_encoded_once(handles, monkeypatch):
    tower = TextTower(**handles, texts=TEXTS, mode="adapter")
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


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("inputs", [["red car", "the cafe"], [0, 3]])
def test_the_gradient_reaches_the_encoder_or_what_is_beside_it(handles, inputs, compiled):
    """By mode: which of the encoder's own variables and which of the tower's have a gradient."""
    inputs = tf.constant(inputs)
    frozen = TextTower(**handles, texts=TEXTS, output_dim=3)
    assert [v.shape.as_list() for v in frozen.trainable_variables] == [[16, 3], [3]]
    frozen(tf.constant(TEXTS))
    own = frozen._loaded().text_to_vector.encoder.trainable_variables
    assert gradients(frozen, own, inputs, compiled) == [None] * len(own)
    assert all(g is not None and g.any() for g in gradients(frozen, frozen.trainable_variables, inputs, compiled))

    lora = moved(TextTower(**handles, texts=TEXTS, mode="lora", tuning={"rank": 2}))
    own = lora._loaded().text_to_vector.encoder.trainable_variables
    assert len(lora.trainable_variables) == 2 * 6
    assert gradients(lora, own, inputs, compiled) == [None] * len(own)
    of_lora = gradients(lora, lora.trainable_variables, inputs, compiled)
    assert all(g is not None for g in of_lora) and sum(g.any() for g in of_lora) == len(of_lora)

    full = TextTower(**handles, texts=TEXTS, mode="full")
    own = full._loaded().text_to_vector.encoder.trainable_variables
    assert [v.ref() for v in full.trainable_variables] == [v.ref() for v in own]
    assert all(g is not None for g in gradients(full, own, inputs, compiled))


def test_the_gradient_of_lora_is_that_of_a_step_by_hand(handles):
    tower = moved(TextTower(**handles, mode="lora"))
    texts = tf.constant(["red car", "the cafe"])
    tuning = tower._tuning
    tuning.write()
    with tf.GradientTape() as tape:
        vectors = tuning.vectors(tower._graph().tokens(texts))
        loss = tf.reduce_sum(vectors * tf.range(1.0, 17.0))
    by_hand = tuning.gradients(tape.gradient(loss, tuning.watched))
    for compiled in (False, True):
        for found, wanted in zip(gradients(tower, tuning.variables, texts, compiled), by_hand, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


@TRAINED
def test_any_tfrs_model_trains_it(handles, mode):
    """Each word of a query belongs to one item; the loss of the batch falls because the tower learns it."""

    class TwoTower(tfrs.Model):
        def __init__(self):
            super().__init__()
            self.tower = TextTower(**handles, texts=TEXTS, mode=mode)
            self.query = tf.keras.layers.Embedding(3, 16)
            self.task = tfrs.tasks.Retrieval()

        def compute_loss(self, inputs, training=False):
            return self.task(self.query(inputs["user"]), self.tower(inputs["item"]), compute_metrics=False)

    model = TwoTower()
    model.compile(tf.keras.optimizers.Adam(0.01))
    model.query.build(None)
    model.query.trainable = False
    batches = tf.data.Dataset.from_tensors({"user": [0, 1, 2], "item": [0, 1, 3]}).repeat(10)
    losses = [model.fit(batches, verbose=0).history["loss"][0] for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    assert len(model.trainable_variables) == len(model.tower.trainable_variables) > 0


@pytest.mark.parametrize("mode", ["frozen", "lora"])
def test_sequential_and_functional_models_fit_and_predict(handles, mode):
    texts, labels = np.array(TEXTS[:2] * 8, object), np.array([1.0, -1.0] * 8)
    sequential = tf.keras.Sequential([TextTower(**handles, mode=mode), tf.keras.layers.Dense(1)])
    for model in (sequential, text_model(TextTower(**handles, mode=mode))):
        model.compile(tf.keras.optimizers.Adam(0.05), "mse")
        losses = model.fit(tf.constant(texts), labels, epochs=30, batch_size=16, verbose=0).history["loss"]
        assert losses[-1] < 0.2 * losses[0]
        assert model.predict(tf.constant(TEXTS), verbose=0).shape == (4, 1)
        model.summary(print_fn=lambda _: None)


def test_mixed_precision_casts_the_vectors_and_keeps_the_weights(handles, expected):
    tower = TextTower(**handles, texts=TEXTS, output_dim=4, mode="lora", dtype="mixed_bfloat16")
    plain = TextTower(**handles, texts=TEXTS, dtype="mixed_bfloat16")
    assert tower(tf.constant(TEXTS)).dtype == tower(tf.constant([0])).dtype == tf.bfloat16
    assert {v.dtype for v in tower.trainable_variables} == {tf.float32}
    np.testing.assert_allclose(tf.cast(plain(tf.constant([0, 1, 2, 3])), tf.float32), expected, atol=0.01)
    found = gradients(tf.keras.Sequential([tower, tf.keras.layers.Dense(2)]), tower.trainable_variables, [0, 1], True)
    assert all(gradient is not None and gradient.dtype == np.float32 for gradient in found)


@pytest.mark.parametrize("mode", ["frozen", "lora", "top_layers"])
def test_a_config_makes_the_same_tower(handles, mode):
    settings = {"lora": {"rank": 3, "alpha": 4}, "top_layers": {"layers": 1}}.get(mode)
    tower = TextTower(**handles, mode=mode, tuning=settings, output_dim=5, seed=3, pooling="cls", name="reads")
    config = tower.get_config()
    again = TextTower.from_config(json.loads(json.dumps(config)))
    assert again.get_config() == config and again.name == "reads"
    np.testing.assert_allclose(again(tf.constant(TEXTS)), tower(tf.constant(TEXTS)), atol=1e-6)


@pytest.mark.parametrize("mode", ["frozen", "adapter"])
def test_a_catalogue_comes_with_the_weights_not_with_the_config(handles, mode):
    tower = TextTower(**handles, texts=TEXTS, mode=mode)
    again = TextTower.from_config(tower.get_config())
    with pytest.raises(tf.errors.InvalidArgumentError, match="load the weights that were saved with its config"):
        again(tf.constant([0]))
    again.set_weights(tower.get_weights())
    np.testing.assert_allclose(again(tf.constant([0, 3, 4])), tower(tf.constant([0, 3, 4])), atol=1e-6)


def test_a_handle_that_is_gone_is_named(handles, tmp_path):
    tower = TextTower(**handles, texts=TEXTS)
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


def saved_model(handles, mode):
    """A functional model of both kinds of input, with a trained tower for each, and what it is called with."""
    tower = moved(TextTower(**handles, texts=TEXTS, mode=mode, output_dim=3))
    texts, items = tf.keras.Input((), dtype=tf.string), tf.keras.Input((None,), dtype=tf.int32)
    return tf.keras.Model([texts, items], [tower(texts), tower(items)]), [
        tf.constant(TEXTS),
        tf.constant([[0, 1, 4], [3, 2, 2], [0, 0, 0], [1, 1, 1]]),
    ]


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_models_are_saved_and_loaded_in_each_format(handles, mode, tmp_path):
    model, inputs = saved_model(handles, mode)
    wanted = model(inputs)
    model.save(tmp_path / "m.keras")
    model.save(tmp_path / "folder")
    loaded = [tf.keras.models.load_model(tmp_path / name) for name in ("m.keras", "folder")]
    for name in ("w.h5", "w.weights.h5", "checkpoint"):
        model.save_weights(tmp_path / name)
        other, _ = saved_model(handles, mode)
        for variable in other.trainable_variables:
            variable.assign(tf.zeros_like(variable))
        other.load_weights(tmp_path / name)
        loaded.append(other)
    for other in loaded:
        for found, vectors in zip(other(inputs), wanted, strict=True):
            np.testing.assert_allclose(found, vectors, atol=1e-5)


def test_a_loaded_model_is_trained_further(handles, tmp_path):
    model, inputs = saved_model(handles, "lora")
    model.save(tmp_path / "m.keras")
    model.save(tmp_path / "folder")
    for name in ("m.keras", "folder"):
        loaded = tf.keras.models.load_model(tmp_path / name)
        assert len(loaded.trainable_variables) == len(model.trainable_variables)
        loaded.compile(tf.keras.optimizers.SGD(0.1), "mse")
        before = loaded(inputs)[0]
        loaded.fit(inputs, [tf.ones_like(x) for x in loaded(inputs)], batch_size=4, verbose=0)
        assert not np.allclose(loaded(inputs)[0], before)


SCRIPT = """
import sys
import numpy as np
import tfllmrec, tensorflow as tf
from tfllmrec import TextTower
folder = sys.argv[1]
given = np.load(f"{folder}/given.npz", allow_pickle=True)
inputs = [tf.constant(given["texts"]), tf.constant(given["items"])]
for name in ("m.keras", "folder"):
    model = tf.keras.models.load_model(f"{folder}/{name}")
    for found, wanted in zip(model(inputs), (given["of_texts"], given["of_items"])):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert isinstance(model.get_layer("text_tower"), TextTower), name
config = model.get_config()
again = tf.keras.Model.from_config(config)
again.load_weights(f"{folder}/w.weights.h5")
for found, wanted in zip(again(inputs), (given["of_texts"], given["of_items"])):
    np.testing.assert_allclose(found, wanted, atol=1e-5)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_a_fresh_process_loads_what_was_saved(handles, mode, tmp_path):
    tf.keras.backend.clear_session()
    model, inputs = saved_model(handles, mode)
    of_texts, of_items = model(inputs)
    given = {"texts": np.array(TEXTS, object), "items": inputs[1].numpy()}
    np.savez(tmp_path / "given.npz", **given, of_texts=of_texts.numpy(), of_items=of_items.numpy())
    model.save(tmp_path / "m.keras")
    model.save(tmp_path / "folder")
    model.save_weights(tmp_path / "w.weights.h5")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.stdout.endswith("equal\n"), done.stderr[-3000:]


def test_a_file_has_the_encoder_only_where_it_is_trained(handles, tmp_path):
    sizes = {}
    for mode in ("frozen", "full"):
        model, _ = saved_model(handles, mode)
        model.save_weights(tmp_path / f"{mode}.weights.h5")
        sizes[mode] = sum(int(np.prod(v.shape)) for v in model.weights)
    encoder = TextTower(**handles)._loaded().text_to_vector.encoder
    parameters = sum(int(np.prod(v.shape)) for v in encoder.trainable_variables)
    assert sizes["frozen"] == 5 * 16 + 16 * 3 + 3
    assert sizes["full"] == parameters + 5 * 7 + 16 * 3 + 3
