import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.config import ModelConfig, TextConfig, TuningConfig
from tfllmrec.data.batches import Sequences, training_batches
from tfllmrec.errors import ModelError
from tfllmrec.models.fitting import TrainingData
from tfllmrec.text.centring import centred_unit
from tfllmrec.text.encoder import TextEncoder, tokenise
from tfllmrec.text.template import ItemTemplate
from tfllmrec.training.fit import build_hybrid
from tfllmrec.training.text import joint as joint_training
from tfllmrec.training.text.joint import JointTower
from tfllmrec.training.text.tower import TowerRecord, prepared_encoder
from tfllmrec.training.text.tuned_tower import new_tuning

pytestmark = pytest.mark.tf


def joint(chain_split, chain_config, thin_hub, **settings):
    """(tower, encoder, the catalogue's vectors, a batch): an untrained hybrid, without noise, on the ring."""
    config = chain_config.model_copy(deep=True)
    config.model = ModelConfig(
        terms=settings.pop("terms", ["meaning", "behaviour"]),
        embedding_dim=8,
        blocks=0,
        dropout=0.0,
        id_dropout=1.0,
        history_length=6,
    )
    encoder = TextEncoder(*reversed(thin_hub), max_tokens=12)
    texts = ItemTemplate.from_items(chain_split.dataset.items).texts(chain_split.dataset.items)
    vectors = encoder.encode(texts)
    config.training.negatives = settings.pop("negatives", 0)
    hybrid = build_hybrid(TrainingData.of(chain_split, vectors, config), config)
    sequences = Sequences.from_split(chain_split, 0.2, 1)
    tuning = new_tuning(encoder, settings.pop("mode", "full"), TuningConfig(layers=1), 1, 1)
    tower = JointTower(tuning, hybrid, tokenise(encoder.text_to_vector, texts), **{"texts": 100, "seed": 1} | settings)
    tower.refresh(vectors)
    batch = next(iter(training_batches(sequences, 16, 6, 1, 1, keys=hybrid.reads)))
    return tower, encoder, vectors, batch


@pytest.mark.parametrize("negatives", [0, 5])
def test_before_it_is_trained_the_loss_is_that_of_the_hybrid(chain_split, chain_config, thin_hub, negatives):
    tower, _, vectors, batch = joint(chain_split, chain_config, thin_hub, negatives=negatives)
    np.testing.assert_allclose(tower.hybrid.text_vectors, centred_unit(vectors), atol=1e-6)
    counters = [variable for variable in tower.hybrid.variables if variable.dtype == tf.int64]
    before = [counter.numpy() for counter in counters]
    expected = tower.hybrid.compute_loss(dict(batch), training=True)
    for counter, value in zip(counters, before, strict=True):  # the same negatives and hidden fields again
        counter.assign(value)
    assert float(tower.compute_loss(batch)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("negatives", [0, 5])
def test_the_gradient_of_the_encoder_is_that_of_the_retrieval_loss(chain_split, chain_config, thin_hub, negatives):
    """Against a finite difference, in the direction of the gradient; the loss of the gates has none by design."""
    tower, _, _, batch = joint(chain_split, chain_config, thin_hub, negatives=negatives, terms=["meaning"])
    counters = [v for v in (*tower.hybrid.variables, tower.draws) if v.dtype == tf.int64]
    at = [counter.numpy() for counter in counters]

    def loss():
        for counter, value in zip(counters, at, strict=True):
            counter.assign(value)
        return tower.compute_loss(batch)

    kernel = max(tower.tuning.variables, key=lambda variable: variable.shape.num_elements())
    with tf.GradientTape() as tape:
        value = loss()
    gradient = tf.convert_to_tensor(tape.gradient(value, kernel))
    length = tf.norm(gradient)
    step = 1e-3 * gradient / length
    kernel.assign_add(step)
    above = loss()
    kernel.assign_sub(2 * step)
    below = loss()
    assert float(length) > 1e-3
    assert float(above - below) / 2e-3 == pytest.approx(float(length), rel=0.05)


def test_no_gradient_reaches_the_encoder_where_text_has_no_part(chain_split, chain_config, thin_hub):
    tower, _, _, batch = joint(chain_split, chain_config, thin_hub)
    tower.hybrid.items.maps["text"].assign(tf.zeros_like(tower.hybrid.items.maps["text"]))
    with tf.GradientTape() as tape:
        loss = tower.compute_loss(batch)
    gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, tower.tuning.variables) if g is not None]
    assert gradients and not any(np.any(g) for g in gradients)


def test_a_step_encodes_a_few_different_items_of_its_batch(chain_split, chain_config, thin_hub):
    tower, _, _, batch = joint(chain_split, chain_config, thin_hub, texts=3)
    met = {int(i) for key in ("history", "targets") for i in batch[key].numpy().ravel()}
    drawn = [set(tower._drawn(batch).numpy().tolist()) for _ in range(20)]
    assert all(len(items) == 3 and items <= met for items in drawn)
    assert len(set().union(*drawn)) > 10  # others in the next step
    tower.draws.assign(0)
    assert set(tower._drawn(batch).numpy().tolist()) == drawn[0]


def test_items_without_text_are_never_encoded(chain_split, chain_config, thin_hub):
    """With a prefix, as e5 has one, the tokens of an empty text look like those of any other."""
    tower, encoder, vectors, batch = joint(chain_split, chain_config, thin_hub)
    met = tower._drawn(batch).numpy()
    without = met[::2]
    vectors[without] = 0.0
    tower.hybrid.items.blocks["text"].assign(centred_unit(vectors))
    tokens = tokenise(encoder.text_to_vector, ["red toy"] * len(vectors))
    tower = JointTower(tower.tuning, tower.hybrid, tokens, 100, 1)
    tower.refresh(vectors)
    assert set(tower._drawn(batch).numpy().tolist()) == set(met.tolist()) - set(without.tolist())
    tower.compute_loss(batch)
    assert not tower.hybrid.text_vectors[without].any()


@pytest.mark.slow
def test_training_moves_the_encoder_and_the_hybrid(chain_split, chain_config, thin_hub):
    tower, encoder, vectors, batch = joint(chain_split, chain_config, thin_hub, texts=8, accumulate=2)
    tower.compile(optimizer=tf.keras.optimizers.Adam(0.003))
    tower.beside_optimizer = tf.keras.optimizers.Adam(0.003)
    text_map = tower.hybrid.items.maps["text"].numpy()
    data = tf.data.Dataset.from_tensors(batch).repeat(60)
    losses = tower.fit(data, verbose=0, epochs=2, steps_per_epoch=30).history["loss"]
    assert losses[1] < losses[0]
    texts = ItemTemplate.from_items(chain_split.dataset.items).texts(chain_split.dataset.items)
    assert np.abs(encoder.encode(texts) - vectors).max() > 1e-2
    assert np.abs(tower.hybrid.items.maps["text"].numpy() - text_map).max() > 1e-3


@pytest.mark.parametrize("mode", ["adapter", "lora", "adalora", "prefix", "top_layers", "full"])
def test_every_mode_trains_the_encoder_and_the_hybrid_at_rates_of_their_own(chain_split, chain_config, thin_hub, mode):
    tower, encoder, vectors, batch = joint(chain_split, chain_config, thin_hub, mode=mode, texts=8)
    tower.compile(optimizer=tf.keras.optimizers.Adam(0.1))
    tower.beside_optimizer = tf.keras.optimizers.SGD(0.0)
    before = [variable.numpy() for variable in tower.beside]
    tower.train_step(batch)
    texts = ItemTemplate.from_items(chain_split.dataset.items).texts(chain_split.dataset.items)
    assert np.abs(encoder.encode(texts) - vectors).max() > 1e-3
    assert all(np.array_equal(variable, value) for variable, value in zip(tower.beside, before, strict=True))
    tower.beside_optimizer = tf.keras.optimizers.SGD(0.1)
    tower.train_step(batch)
    assert not all(np.array_equal(variable, value) for variable, value in zip(tower.beside, before, strict=True))


def test_a_setting_that_does_not_fit_the_encoder_is_reported_before_anything_is_fitted(
    chain_split, chain_config, thin_hub, tmp_path, monkeypatch
):
    monkeypatch.setattr(joint_training, "fit_hybrid", lambda *_: pytest.fail("a hybrid is fitted"))
    config = chain_config.model_copy(deep=True)
    config.text = TextConfig(encoder=str(thin_hub[1]), preprocessor=str(thin_hub[0]), max_tokens=12, mode="joint")
    config.tuning = TuningConfig(joint="top_layers", layers=9)
    template = ItemTemplate.from_items(chain_split.items)
    with pytest.raises(ModelError, match=r"tuning\.layers: expected at least 1 and at most \d, .* got 9"):
        prepared_encoder(tmp_path, chain_split, template, config, lambda line: None)


def test_the_hybrid_beside_the_encoder_has_no_graph(chain_split, chain_config, thin_hub, tmp_path, monkeypatch):
    """The graph of the run is built later, from the vectors of the trained encoder."""

    class Fitting(Exception):
        pass

    def fit(data, config, *_):
        raise Fitting(data.graph, config.item_weights.graph)

    monkeypatch.setattr(joint_training, "fit_hybrid", fit)
    config = chain_config.model_copy(deep=True)
    config.text = TextConfig(encoder=str(thin_hub[1]), preprocessor=str(thin_hub[0]), max_tokens=12, mode="joint")
    config.graph.relations, config.item_weights.graph = ["text"], 30.0
    told, template = [], ItemTemplate.from_items(chain_split.items)
    with pytest.raises(Fitting) as raised:
        prepared_encoder(tmp_path, chain_split, template, config, told.append)
    assert raised.value.args == (None, 0.0)
    assert "text tower: hybrid: without the item graph, which is built when the encoder is trained" in told
    assert config.item_weights.graph == 30.0


# --- In a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
def test_a_run_reads_with_what_it_has_trained_jointly_and_goes_on_where_it_was_killed(
    chain_config, thin_hub, cache, chain_run, tmp_path
):
    config = chain_config.model_copy(deep=True)
    config.text = TextConfig(encoder=str(thin_hub[1]), preprocessor=str(thin_hub[0]), max_tokens=12, mode="joint")
    config.tuning = TuningConfig(epochs=2, batch_size=8, learning_rate=0.01, accumulate=3)
    config.training.epochs = 1
    split, template = chain_run[0].split, ItemTemplate.from_items(chain_run[0].dataset.items)
    texts = template.texts(split.items)

    def prepared(folder, tell):
        return prepared_encoder(folder, split, template, config, tell).encode(texts)

    told = []

    def listen(line):
        told.append(line)
        if line.startswith("text tower: epoch 2"):  # what a process that is killed now leaves behind
            shutil.copytree(tmp_path / "one", tmp_path / "two")

    undisturbed = prepared(tmp_path / "one", listen)
    assert any(line.startswith("text tower: hybrid: epoch 1") for line in told)
    assert any(line.startswith("text tower: lora") for line in told)
    told.clear()
    np.testing.assert_allclose(prepared(tmp_path / "two", told.append), undisturbed, atol=1e-4)
    assert "text tower: resumed after epoch 1" in told
    assert TowerRecord.load(tmp_path / "two").trained > 0
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"tuned.safetensors", "tower.json", "logs"}
    told.clear()
    shutil.copytree(tmp_path / "two", tmp_path / "three")
    np.testing.assert_allclose(prepared(tmp_path / "three", told.append), undisturbed, atol=1e-4)
    assert not told
