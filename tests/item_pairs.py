"""Item-item weights as a matrix of all pairs, and back."""

import numpy as np

from tfllmrec.models.item_weights import PrunedWeights, strongest


def as_dense(pruned):
    """``[N, N]``, 0 where an item is not among another's neighbours."""
    weights = np.zeros((len(pruned.weights),) * 2, np.float32)
    np.put_along_axis(weights, pruned.neighbours.astype(np.int64), pruned.weights, axis=1)
    return weights


def pruned_to(weights, neighbours):
    """The strongest of each row of ``[N, N]``."""
    places, values = strongest(weights, min(neighbours, len(weights)))
    return PrunedWeights(places.astype(np.int32), values.astype(np.float32))
