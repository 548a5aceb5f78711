"""Converts item-item weights to a matrix of all pairs, and back."""

import numpy as np

from tfllmrec.models.item_weights import PrunedWeights, strongest


def as_dense(pruned):
    """Returns the weights as a matrix ``[N, N]``, with 0 for items that are not neighbours."""
    weights = np.zeros((len(pruned.weights),) * 2, np.float32)
    np.put_along_axis(weights, pruned.neighbours.astype(np.int64), pruned.weights, axis=1)
    return weights


def pruned_to(weights, neighbours):
    """Returns the strongest weights of each row of a matrix ``[N, N]``."""
    places, values = strongest(weights, min(neighbours, len(weights)))
    return PrunedWeights(places.astype(np.int32), values.astype(np.float32))
