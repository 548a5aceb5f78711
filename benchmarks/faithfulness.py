"""Tests by deletion and insertion how faithful explanations are to scores; writes a section of RESULTS.md for each run.

    python benchmarks/faithfulness.py runs/quality/movielens-100k

For each test query, the best item is explained. The events of the history are deleted from it, or inserted into an
empty one, a tenth at a time, in the order of their contributions, and the item is scored after each step (Petsiuk et
al., "RISE", BMVC 2018). For a few items, the words of the text are tested in the same way with the meaning term.
Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from sections import made_by, sections_of_runs

from tfllmrec.assets import cache_folder
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.errors import ModelError
from tfllmrec.evaluation.metrics import masked, top_items
from tfllmrec.evaluation.protocol import mean_interval, users_of
from tfllmrec.evaluation.report import markdown_table
from tfllmrec.layers.history_encoder import causal_mask
from tfllmrec.models.hybrid import Hybrid
from tfllmrec.models.words import TextOfItem
from tfllmrec.progress import show_progress, to_stderr
from tfllmrec.runs.run import Run
from tfllmrec.text.store import VectorStore
from tfllmrec.text.template import ItemTemplate

#: The number of test queries and the fewest events of each; the number of items whose words are deleted and the fewest
#: words of each.
QUERIES, EVENTS, ITEMS, WORDS = 500, 5, 50, 4
STEPS = 10
Curves = dict[str, np.ndarray]
"""The mean height of the curve for each query or item, float64 ``[Q]``, by the name of the order."""


def kept(order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which of n parts are present at each step of the deletion and of the insertion test.

    At least one part is present, because there is no score without any.

    Args:
      order: The parts in the order of deletion or insertion, int ``[n]``.

    Returns:
      Two arrays, bool ``[STEPS, n]``: for deletion and for insertion.
    """
    place = np.argsort(order)
    shares = np.arange(STEPS) / STEPS
    gone = np.minimum(np.floor(shares * len(order)), len(order) - 1)
    there = np.maximum(np.ceil((shares + 1 / STEPS) * len(order)), 1)
    return place >= gone[:, np.newaxis], place < there[:, np.newaxis]


def part_of(queries: Queries, there: Sequence[np.ndarray]) -> Queries:
    """Returns a copy of a single query for each mask in ``there``, bool ``[n]``, with only the selected events."""
    lengths = [int(each.sum()) for each in there]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    at = np.concatenate([np.flatnonzero(each) for each in there])
    row = np.zeros(len(there), int)
    fields = {
        key: Ragged(values.values[at], offsets) if isinstance(values, Ragged) else values[row]
        for key, values in queries.fields.items()
    }
    history = Ragged(queries.history.values[at], offsets)
    weights = None if queries.weights is None else Ragged(queries.weights.values[at], offsets)
    nothing = Ragged.from_rows([[]] * len(there), np.int64)
    return Queries(queries.user_ids[row], history, nothing, nothing, fields, weights)


def attention_weights(model: Hybrid, query: Queries) -> np.ndarray | None:
    """Returns the attention weights of the last block at the newest event, averaged over heads, float32 ``[n]``.

    Events that are too old to be read by the model have weight 0. ``None`` if the model has no attention.
    """
    encoder = model.history_encoder
    if not encoder.blocks or "meaning" not in model.config.terms:
        return None
    inputs = {key: tf.constant(values) for key, values in model.query_inputs(query, model.history_length).items()}
    events, present = model.events_of(model.item_vectors(), inputs)
    read = model.events_read(events, inputs)
    x = encoder.input_norm(read) + encoder.positions[tf.newaxis, : tf.shape(read)[1]]
    mask, weights = causal_mask(present), None
    for block in encoder.blocks:
        attention, normed = block.attention, block.attention_norm(x)
        packed = attention.query_key_value(normed)
        shape = (1, tf.shape(packed)[1], 3, attention.heads, attention.head_dim)
        asked, key, _ = tf.unstack(tf.transpose(tf.reshape(packed, shape), (2, 0, 3, 1, 4)))
        logits = tf.matmul(asked, key, transpose_b=True) * attention.head_dim**-0.5
        weights = tf.nn.softmax(tf.cast(logits, tf.float32) + mask)
        x = block(x, mask)
    assert weights is not None
    known = int(present.numpy().sum())
    found = np.zeros(len(query.history.values), np.float32)
    found[-known:] = tf.reduce_mean(weights, axis=1)[0, known - 1, :known]
    return found


def heights(model: Hybrid, query: Queries, item: int, there: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the score of ``item`` with each subset of the events, ``[len(there)]``.

    The unit is the standard deviation of the catalogue's scores; 0 is their mean.
    """
    scores = model.score(part_of(query, there))
    return (scores[:, item] - scores.mean(axis=1)) / np.maximum(scores.std(axis=1), 1e-9)


def curves_of_events(model: Hybrid, queries: Queries, seed: int) -> tuple[Curves, Curves, np.ndarray]:
    """Returns curves of deletion (lower is better) and insertion (higher is better), and the users of the queries."""
    asked = queries.take(np.flatnonzero(queries.history.lengths >= EVENTS))
    asked = asked.take(evenly_spread(len(asked), QUERIES))
    rng = np.random.default_rng(seed)
    deletion: dict[str, list[float]] = {}
    insertion: dict[str, list[float]] = {}
    with show_progress("Deleting events", "queries") as progress:
        for row in range(len(asked)):
            # Both tests leave out events that are too old to be explained.
            query = _newest(asked.take(np.array([row])), model.history_length)
            item = int(top_items(masked(model.score(query), query), 1)[0, 0])
            n = len(query.history.values)
            added = model.contributions(query, np.array([item])).events[:, 0].sum(axis=1)
            orders = {
                "contributions": np.argsort(-added, kind="stable"),
                "random": rng.permutation(n),
                "recency": np.arange(n)[::-1],
            }
            if (attention := attention_weights(model, query)) is not None:
                orders["attention weights"] = np.argsort(-attention, kind="stable")
            for name, order in orders.items():
                gone, there = kept(order)
                height = heights(model, query, item, [*gone, *there])
                deletion.setdefault(name, []).append(height[:STEPS].mean())
                insertion.setdefault(name, []).append(height[STEPS:].mean())
            progress(row + 1, len(asked))
    return _arrays(deletion), _arrays(insertion), users_of(asked.user_ids)


def _newest(query: Queries, length: int) -> Queries:
    n = len(query.history.values)
    cut = part_of(query, [np.arange(n) >= n - length])
    return Queries(cut.user_ids, cut.history, query.exclude, query.targets, cut.fields, cut.weights)


def curves_of_words(run: Run, model: Hybrid, seed: int) -> tuple[Curves, Curves]:
    """Returns curves as :func:`curves_of_events`: the meaning term by words of the best items of a few queries."""
    catalogue, items = np.asarray(run.text), run.split.items
    deletion: dict[str, list[float]] = {}
    insertion: dict[str, list[float]] = {}
    if "meaning" not in model.config.terms or not np.any(catalogue):
        return {}, {}
    encoder, store = run.text_encoder(), VectorStore(cache_folder() / "vectors")
    template, rng = ItemTemplate.from_items(items, run.config.text.template), np.random.default_rng(seed)
    queries = run.split.test.take(np.flatnonzero(run.split.test.history.lengths >= EVENTS))
    queries = queries.take(evenly_spread(len(queries), ITEMS))
    with show_progress("Deleting words", "items") as progress:
        for row in range(len(queries)):
            query = queries.take(np.array([row]))
            item = int(top_items(masked(model.score(query), query), 1)[0, 0])
            (text,) = template.texts(items.iloc[[item]])
            read = TextOfItem(model, query, item, text, encoder, catalogue)
            progress(row + 1, len(queries))
            if len(read.spans) < WORDS:
                continue
            orders = {"leave-one-out": np.argsort(-read.left_out(store).added, kind="stable")}
            try:
                orders["integrated gradients"] = np.argsort(-read.by_gradients().added, kind="stable")
            except ModelError as error:
                to_stderr(f"words: no gradients: {error}")
            orders |= {"random": rng.permutation(len(read.spans)), "position": np.arange(len(read.spans))}
            words = np.array([text[start:end] for start, end in read.spans], object)
            for name, order in orders.items():
                gone, there = kept(order)
                height = read.terms_of([" ".join(words[each]) for each in (*gone, *there)], store)
                deletion.setdefault(name, []).append(height[:STEPS].mean())
                insertion.setdefault(name, []).append(height[STEPS:].mean())
    return _arrays(deletion), _arrays(insertion)


def _arrays(lists: Mapping[str, list[float]]) -> Curves:
    return {name: np.array(values, np.float64) for name, values in lists.items()}


def table(deletion: Curves, insertion: Curves, users: np.ndarray | None = None) -> list[str]:
    """Returns a table with a row for each order; differences are to the first one, with paired 95 % intervals."""
    first = next(iter(deletion))

    def cells(curves: Curves, name: str) -> list[str]:
        mean = f"{curves[name].mean():.3f}"
        if name == first:
            return [mean, ""]
        difference = curves[name] - curves[first]
        found = mean_interval(difference, users)
        return [mean, f"{difference.mean():+.3f}" + (f" [{found[0]:+.3f}, {found[1]:+.3f}]" if found else "")]

    rows = [[name, *cells(deletion, name), *cells(insertion, name)] for name in deletion]
    return markdown_table(["order", "deletion", "difference", "insertion", "difference"], rows)


def section(run: Run, command: str) -> str:
    model, seed = run.load_model(), run.config.seed
    deletion, insertion, users = curves_of_events(model, run.split.test, seed)
    lines = [
        made_by(command, seed),
        "",
        f"The best item of {len(users):,} test queries with at least {EVENTS} events, of which the newest "
        f"{model.history_length} are looked at. Events are deleted, or inserted, in {STEPS} steps in the order of what "
        "they add to the item's score, by other orders for comparison. Figures are means over the steps of how many "
        "standard deviations the item's score is above the mean of the catalogue. Deletion: lower is better; "
        "insertion: higher is better. Differences to the first row have paired 95 % intervals over users.",
        "",
        *table(deletion, insertion, users),
    ]
    deletion, insertion = curves_of_words(run, model, seed)
    if deletion:
        count = len(next(iter(deletion.values())))
        lines += [
            "",
            f"The words of the text of the best item of {count:,} of these queries. Figures are means over the steps "
            "of the meaning term of the score.",
            "",
            *table(deletion, insertion),
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sections_of_runs(__doc__ or "", "faithfulness", section)
