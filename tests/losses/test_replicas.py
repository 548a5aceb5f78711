import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.tf

SCRIPT = """
import json
import numpy as np
import tfllmrec
import tensorflow as tf
from tfllmrec.config import ModelConfig, RankingConfig
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.models.hybrid import Catalogue, Hybrid, Negatives
from tfllmrec.models.ranking import RankingModel, RatingScale

N, NAN = 12, float("nan")
history, ratings = np.array([[0, 1, 2], [3, 4, N]], np.int32), np.full((2, 3), NAN, np.float32)
batch = {
    "history": history,
    RATING_KEY: ratings,
    "targets": np.array([[1, 2, 3], [4, 5, N]], np.int32),
    "held_out": np.array([[False, False, True], [False, True, False]]),
}
text = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
ids = np.arange(N).astype(str).astype(object)
config = ModelConfig(embedding_dim=8, blocks=0, heads=2, history_length=3)


def losses(strategy):
    with strategy.scope():
        full, sampled = (Hybrid(Catalogue(ids, text), np.ones(N, int), config, negatives=Negatives(n)) for n in (0, 5))
        ranking = RankingModel(full, RankingConfig(), RatingScale.of(np.arange(3), np.array([1.0, 5, 4]), N))
    query = {key: batch[key] for key in ("history", RATING_KEY)}
    lists = ranking.given(ranking.item_vectors, query, np.array([[5, 6, 7], [8, 9, 1]], np.int32))
    rated = {name: values[:, :1] if name in ("items", "terms", "scores", "prior") else values
             for name, values in lists.items()} | {"rating": np.array([2, 4], np.float32)}
    lists |= {"label": np.array([0, 1], np.int32), "log_times": np.zeros((2, 3), np.float32)}
    lists |= {"weight": np.array([1, 2], np.float32)}
    told = []
    for model, inputs in ((full, batch), (sampled, batch), (ranking, {"lists": lists, "rated": rated})):
        parts = strategy.run(lambda: model.compute_loss(inputs, training=True))
        told.append([float(part) for part in strategy.experimental_local_results(parts)])
    return told


cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
print(json.dumps([losses(tf.distribute.get_strategy()), losses(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))]))
"""


@pytest.mark.slow
def test_the_losses_of_replicas_add_up_to_their_mean():
    """Two replicas with a copy of the same batch each; Keras adds up what they report, and their gradients."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone, mirrored = json.loads(done.stdout)
    assert len(alone) == 3
    for [whole], parts in zip(alone, mirrored, strict=True):
        assert whole > 0.5 and parts == pytest.approx([whole / 2, whole / 2], rel=1e-4)
