"""The graph of a run's items: builds it, with edges from text vectors and common users, and prepares its uses.

:func:`similarity_of` turns the graph into a view for the ridge regression of the item-item weights, in addition to
events and text. :func:`edges_of` returns the edges along which
:class:`tfllmrec.layers.item_propagation.ItemPropagation` passes item vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from tfllmrec.columns import CATEGORIES, DESCRIPTION, DOMAIN, ITEM, TITLE
from tfllmrec.config import DataConfig, GraphConfig
from tfllmrec.data.cleaning.names import SEPARATOR
from tfllmrec.data.graph import (
    MOST_RELATIONS,
    READ,
    ItemGraph,
    Relation,
    edges_of_file,
    shared_values,
    strongest_of_rows,
)
from tfllmrec.data.queries import Ragged
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.data.splits import Split
from tfllmrec.errors import ConfigError
from tfllmrec.layers.item_cells import partition
from tfllmrec.layers.item_propagation import Edges
from tfllmrec.models.item_weights import interactions
from tfllmrec.progress import Tell, show_progress, to_stderr
from tfllmrec.text.centring import centred_unit

#: Up to this many items, all texts are compared with each other; with more items, only texts of near cells are.
EXACT_ITEMS = 50_000
#: Seed of the cells, and number of items on which the number of probes is chosen.
_SEED, _ASKED = 0, 1000
_SCORES = 16_000_000  # largest number of cosines in memory at once
_ROWS = 4096


def build_graph(
    split: Split,
    text: np.ndarray,
    settings: GraphConfig,
    data: DataConfig,
    text_widths: Sequence[int] | None = None,
    tell: Tell = to_stderr,
) -> ItemGraph:
    """Builds the graph of a split's items from its training events, its catalogue, its texts and a file of edges.

    Args:
      split: The split. Its held-out events are not read.
      text: Text vectors, float32 ``[N, Dt]``; rows of zeros are items without text.
      settings: The relations, the number of neighbours, and the file of edges.
      data: Limits for the file of edges.
      text_widths: As in :func:`tfllmrec.text.centring.centred_unit`.
      tell: Called with a line for each thing that is left out: columns, rows of the file, and relations without edges.

    Returns:
      The graph with all relations that have edges.

    Raises:
      ConfigError: Two relations have the same name, or there are too many relations.
      DataError: The file of edges cannot be used.
    """
    items, n_items, k = split.items, split.dataset.n_items, settings.neighbours
    found: list[Relation] = []
    if "text" in settings.relations and np.any(text):
        found.append(text_relation(centred_unit(text, widths=text_widths), k))
    if "use" in settings.relations:
        found.append(use_relation(split.train_queries().choices, n_items, k, settings.support))
    if "values" in settings.relations:
        found += value_relations(split, k, tell)
    if settings.edges is not None:
        found += edges_of_file(settings.edges, items[ITEM].tolist(), data, k, tell)
    if empty := [relation.name for relation in found if not len(relation)]:
        tell(f"relations without edges: {', '.join(empty)}")
    found = [relation for relation in found if len(relation)]
    names = [relation.name for relation in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"graph: expected relations with different names, found {twice[0]!r} twice. Rename it in the file of edges."
        )
    if len(found) > MOST_RELATIONS:
        raise ConfigError(
            f"graph: expected at most {MOST_RELATIONS} relations, found {len(found)}. Leave some out of the file."
        )
    return ItemGraph(n_items, tuple(found))


def value_relations(split: Split, neighbours: int, tell: Tell) -> list[Relation]:
    """Joins items that share a value of a column: a relation for each category, column of ids and list of names.

    A column of texts is a list of names if most of its filled cells have several names. Title, description and the
    domain of joined data are not values that items share.

    Args:
      split: The split whose catalogue is read.
      neighbours: As in :meth:`Relation.of`.
      tell: Called with a line that names the columns of texts and numbers without a relation.
    """
    items, found, unused = split.items, [], []
    for field in split.schema.of("item"):
        if field.kind in ("vector", "time") or field.name in (TITLE, DESCRIPTION, DOMAIN):
            continue
        if field.name not in items:  # the schema of a transfer is that of its source
            continue
        cells = items[field.name].fillna("").astype(str)
        if field.kind == "number" or (
            field.kind == "text" and cells[cells != ""].str.contains(SEPARATOR, regex=False).mean() <= 0.5
        ):
            unused.append(f"{field.name} ({field.kind})")
            continue
        # Of a path of categories, only the last level is used: it says the most about an item.
        path = field.name == CATEGORIES
        found.append(shared_values("category" if path else field.name, cells.tolist(), neighbours, last_only=path))
    if unused:
        tell(
            f"columns without a relation: {', '.join(unused)}. To join items by such a column, fit with "
            "data.fields.NAME.kind=category"
        )
    return found


def text_relation(vectors: np.ndarray, neighbours: int) -> Relation:
    """Joins mutual nearest neighbours by text: each of two items is among the K nearest of the other, by cosine.

    Up to :data:`EXACT_ITEMS` items the neighbours are exact. With more items, an item is compared only with the items
    of its nearest cells (:func:`tfllmrec.layers.item_cells.partition`). The number of cells is chosen so that 95 % of
    the ten nearest items are found.

    Args:
      vectors: Text vectors of length 1, float32 ``[N, D]``; rows of zeros have no neighbours.
      neighbours: K.
    """
    find = _exact if len(vectors) <= EXACT_ITEMS else _by_cells
    items, scores = find(vectors, min(neighbours, len(vectors) - 1))
    rows = np.repeat(np.arange(len(vectors)), items.shape[1])
    real = np.isfinite(scores.ravel())
    places = (rows[real], items.ravel()[real])
    pairs = sparse.coo_array((scores.ravel()[real], places), shape=(len(vectors), len(vectors)))
    return Relation.of("text", "text", pairs, neighbours, mutual=True)


def _exact(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ``k`` nearest items of each item: indices and cosines, ``[N, k]`` each."""
    n_items = len(vectors)
    items, scores = np.zeros((n_items, k), np.int32), np.full((n_items, k), -np.inf, np.float32)
    step = max(1, _SCORES // n_items)
    with show_progress("Comparing texts", "items") as progress:
        for start in range(0, n_items, step) if k else ():
            rows = slice(start, min(start + step, n_items))
            cosines = vectors[rows] @ vectors.T
            cosines[np.arange(len(cosines)), np.arange(start, rows.stop)] = -np.inf
            items[rows], scores[rows] = _best(cosines, k)
            progress(rows.stop, n_items)
    return items, scores


def _by_cells(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Searches like :func:`_exact`, but only in the nearest cells; if they have fewer items, the rest has ``-inf``."""
    n_items = len(vectors)
    asked = evenly_spread(n_items, _ASKED)
    cells = partition(vectors, vectors[asked], _SEED, exclude=asked[:, np.newaxis].astype(np.int32))
    order = np.argsort(cells.cell_of, kind="stable")
    starts = np.searchsorted(cells.cell_of[order], np.arange(len(cells.centroids) + 1))
    probed = np.empty((n_items, cells.probes), np.int32)
    for start in range(0, n_items, _ROWS):
        rows = slice(start, start + _ROWS)
        probed[rows] = _best(vectors[rows] @ cells.centroids.T, cells.probes)[0]
    askers = np.argsort(probed.ravel(), kind="stable")
    ends = np.searchsorted(probed.ravel()[askers], np.arange(len(cells.centroids) + 1))
    askers //= cells.probes
    items, scores = np.zeros((n_items, k), np.int32), np.full((n_items, k), -np.inf, np.float32)
    with show_progress("Comparing texts", "cells") as progress:
        for cell in range(len(cells.centroids)):
            inside = order[starts[cell] : starts[cell + 1]]
            own = vectors[inside].T
            for start in range(ends[cell], ends[cell + 1] if len(inside) else ends[cell], _ROWS):
                asking = askers[start : min(start + _ROWS, ends[cell + 1])]
                cosines = vectors[asking] @ own
                cosines[asking[:, np.newaxis] == inside] = -np.inf
                place, best = _best(cosines, min(k, len(inside)))
                both, names = np.hstack([scores[asking], best]), np.hstack([items[asking], inside[place]])
                items[asking], scores[asking] = _best(both, k, names)
            progress(cell + 1, len(cells.centroids))
    return items, scores


def _best(scores: np.ndarray, k: int, names: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the columns, or their ``names``, and the values of the ``k`` highest scores of each row, unordered."""
    place = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    best = np.take_along_axis(scores, place, axis=1)
    return (place if names is None else np.take_along_axis(names, place, axis=1)), best


def use_relation(histories: Ragged, n_items: int, neighbours: int, support: int) -> Relation:
    """Joins items that have common users. The weight is ``c_ij / sqrt(n_i n_j)``.

    ``c_ij`` is the number of users who have had both items, and ``n_i`` the number of users of item i.

    Args:
      histories: Items of each training user.
      n_items: N.
      neighbours: As in :meth:`Relation.of`.
      support: Pairs with fewer common users are left out.
    """
    x = interactions(histories, n_items)
    by_item = x.T.tocsr()
    # The maximum only avoids a division by zero: an item without users is in no pair.
    scale = 1 / np.sqrt(np.maximum(np.bincount(x.indices, minlength=n_items), 1))
    rows, columns, weights = [], [], []
    with show_progress("Counting use together", "items") as progress:
        for start in range(0, n_items, _ROWS):
            both = (by_item[start : start + _ROWS] @ x).tocoo()
            row, column = both.coords[0] + start, both.coords[1]
            kept = (both.data >= support) & (row != column)
            row, column = row[kept], column[kept]
            value = (both.data[kept] * scale[row] * scale[column]).astype(np.float32)
            order = strongest_of_rows(row, column, value, neighbours)
            rows.append(row[order])
            columns.append(column[order])
            weights.append(value[order])
            progress(min(start + _ROWS, n_items), n_items)
    places = (np.concatenate(rows), np.concatenate(columns))
    pairs = sparse.coo_array((np.concatenate(weights), places), shape=(n_items, n_items))
    return Relation.of("use", "use", pairs, neighbours)


def edges_of(graph: ItemGraph | None, by_relation: bool) -> dict[str, Edges]:
    """Returns the edges that a model reads.

    Args:
      graph: The graph, if there is one.
      by_relation: Whether the edges of each relation are returned separately, by its name. If not, all edges are
        returned under the name ``all``.

    Returns:
      The edges by name; empty without edges.
    """
    read = [] if graph is None else [each for each in graph.relations if each.kind in READ]
    found = {each.name: Edges(each.heads, each.tails, each.weights) for each in read}
    if by_relation or not found:
        return found
    return {"all": Edges(*(np.concatenate(parts) for parts in zip(*found.values(), strict=True)))}


def view_of(graph: ItemGraph) -> sparse.csr_array:
    """Returns the :func:`similarity_of` those relations of the graph that a model reads."""
    return similarity_of(graph.adjacency(READ))


def similarity_of(adjacency: sparse.csr_array) -> sparse.csr_array:
    """Returns the graph as a view for the ridge regression: ``(I + D^-1/2 A D^-1/2) / 2``, sparse float32 ``[N, N]``.

    Rows and columns of items without edges are 0. The matrix is positive semidefinite, because the eigenvalues of the
    scaled adjacency are between -1 and 1. So it can be added to ``T T^T``, the similarity of texts.
    """
    degree = np.asarray(adjacency.sum(axis=1)).ravel()
    scale = sparse.diags_array(np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0))
    joined = sparse.diags_array((degree > 0).astype(np.float32))
    return (0.5 * (joined + scale @ adjacency @ scale)).astype(np.float32).tocsr()
