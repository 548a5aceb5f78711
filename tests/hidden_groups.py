"""Planted data in which each user stays within a hidden group of items, which texts do not reveal."""

import numpy as np
import tensorflow as tf

from tfllmrec.data.batches import Sequences, hold_out, training_batches
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import RATING_KEY

GROUPS, N, N_COLD = 4, 48, 16  # the last N_COLD items are cold: they have no events
GROUP = np.arange(N) % GROUPS
IDS = np.arange(N).astype(str).astype(object)


def walks():
    """Returns the histories of 200 users, each of items of one group in random order."""
    rng = np.random.default_rng(1)
    known = [np.flatnonzero(GROUP[: N - N_COLD] == group) for group in range(GROUPS)]
    return [rng.permutation(known[user % GROUPS])[:6] for user in range(200)]


def histories():
    return Ragged.from_rows(walks(), np.int64)


def fit(model):
    """Trains the model for five epochs and returns it."""
    items = histories()
    ratings = {RATING_KEY: Ragged(np.full(len(items.values), np.nan, np.float32), items.offsets)}
    sequences = Sequences(items, hold_out(items, 0.2, 0), N, ratings)
    batches = training_batches(sequences, 16, 6, seed=1, epochs=5, keys=model.reads)
    model.compile(optimizer=tf.keras.optimizers.Adam(0.02))
    model.fit(batches, epochs=5, steps_per_epoch=len(batches) // 5, verbose=0)
    return model


def cold_hits(model, end=N):
    """Returns the share of users whose best cold item before ``end`` is of their group; 1 in 4 by chance."""
    cold = np.arange(N - N_COLD, end)
    scores = model.score(Queries.from_histories(walks()[:40]))[:, cold]
    return (GROUP[cold[scores.argmax(1)]] == np.arange(40) % GROUPS).mean()
