"""Tables of recommendations of a fitted hybrid: user and item ids in, item ids with titles and reasons out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import tensorflow as tf

from tfllmrec.client.answers import Answer, Recommendation, to_frame
from tfllmrec.client.fields import Fields, context_inputs, event_field_inputs
from tfllmrec.client.inputs import MOST_REASONS, count_of, listed, listed_strings
from tfllmrec.client.ratings import rating_rows
from tfllmrec.columns import CATEGORIES, DOMAIN, ITEM, RATING, USER
from tfllmrec.data.cleaning.names import category_names
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.domains import only_domains
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import RATING_KEY, missing
from tfllmrec.data.splits import head_items, ragged_column
from tfllmrec.errors import DataError
from tfllmrec.evaluation.metrics import masked, top_items
from tfllmrec.layers.field_decoder import FieldDecoder
from tfllmrec.models.reasons import Reasons, Subjects
from tfllmrec.wording import nearest

if TYPE_CHECKING:
    from tfllmrec.models.hybrid import Hybrid

BATCH = 128


def recommend(
    model: Hybrid,
    users: Sequence[str] | None,
    k: int,
    histories: Sequence[Sequence[str]] | None,
    ratings: Sequence[Sequence[float | None]] | None,
    exclude: Sequence[str],
    dataset: Dataset | None,
    context: Sequence[Fields | None] | None,
    event_fields: Sequence[Sequence[Fields | None] | None] | None,
) -> pd.DataFrame:
    """Implements :meth:`Hybrid.recommend`."""
    queries, unknown = queries_of(model, users, histories, ratings, exclude, dataset, context, event_fields)
    answers = recommended(model, queries, k, dataset)
    for answer, number in zip(answers, unknown, strict=True):
        answer.unknown = number
    return to_frame(answers, users)


def queries_of(
    model: Hybrid,
    users: Sequence[str] | None,
    histories: Sequence[Sequence[str]] | None,
    ratings: Sequence[Sequence[float | None]] | None,
    exclude: Sequence[str],
    dataset: Dataset | None,
    context: Sequence[Fields | None] | None,
    event_fields: Sequence[Sequence[Fields | None] | None] | None,
) -> tuple[Queries, list[int]]:
    """Returns the queries for the arguments of :meth:`Hybrid.recommend`, and the number of unknown ids in each.

    Unknown ids are item ids in a history that are not in the model's catalogue.
    """
    past, marks = histories_and_ratings(users, histories, ratings, lambda users: _past_of(users, dataset))
    index = {item: row for row, item in enumerate(model.item_ids)}
    events = [
        [(row, place) for place, item in enumerate(history) if (row := index.get(item)) is not None] for history in past
    ]
    known = [[row for row, _ in history] for history in events]
    unknown = [len(history) - len(found) for history, found in zip(past, known, strict=True)]
    others = [index[item] for item in listed_strings("exclude", exclude) if item in index]
    fields = _fields_of(model, users, dataset, past, events, context, event_fields)
    queries = Queries.from_histories(
        known,
        None if marks is None else [[own[place] for _, place in of] for of, own in zip(events, marks, strict=True)],
        fields=fields,
    )
    of_events = {key: values for key, values in fields.items() if isinstance(values, Ragged)}
    weighing = [each.key for each in (model.schema.kind_of_event, model.schema.dwell_time) if each is not None]
    if weighing and of_events.keys() >= {*weighing}:
        weights = model.schema.event_weights({key: of_events[key].values for key in weighing})
        assert weights is not None
        queries = replace(queries, weights=Ragged(weights, of_events[weighing[0]].offsets))
    rows = [others if model.repeats else [*history, *others] for history in queries.had]
    return replace(queries, exclude=Ragged.from_rows(rows, np.int64)), unknown


def recommended(model: Hybrid, queries: Queries, k: int, dataset: Dataset | None) -> list[Answer[Recommendation]]:
    """Returns the best ``k`` items of each query with their reasons; items that the query excludes are left out.

    Args:
      model: The fitted hybrid.
      queries: The queries.
      k: Length of each list.
      dataset: The source of titles and categories. Without it, ids replace the titles.
    """
    ids, titles = model.item_ids, _titles(dataset)
    answers: list[Answer[Recommendation]] = []
    for batch in queries.batches(BATCH):
        scores = masked(model.score(batch), batch)
        best = top_items(scores, min(count_of(k), len(ids)))
        why = reasons_of(model, batch, best[:, :MOST_REASONS], dataset)
        for row in range(len(batch)):
            answer: Answer[Recommendation] = Answer()
            for place, item in enumerate(best[row][best[row] >= 0]):
                reason = why[row, place] if place < MOST_REASONS else ""
                answer.append(Recommendation(ids[item], _title(titles, ids[item]), float(scores[row, item]), reason))
            answers.append(answer)
    return answers


def reasons_of(model: Hybrid, queries: Queries, best: np.ndarray, dataset: Dataset | None) -> np.ndarray:
    """Returns the reason for each recommended item, object ``[B, M]``.

    Args:
      model: The fitted hybrid.
      queries: The B queries.
      best: Item indices, int ``[B, M]``; -1 for no item.
      dataset: The source of titles and categories. Without it, ids replace the titles.
    """
    titles = _titles(dataset)
    explained = model.explain(queries, np.where(best < 0, model.n_items, best))
    history = queries.history.padded(max(int(queries.history.lengths.max(initial=0)), 1), model.n_items)
    # Only these items need titles and categories.
    met = np.unique(np.concatenate([best[best >= 0], queries.history.values]))
    ids = model.item_ids[met]
    categories: list[list[str]] = [[]] * len(met)
    if dataset is not None and CATEGORIES in dataset.items:
        cells = dataset.items.set_index(ITEM)[CATEGORIES].reindex(ids, fill_value="")
        categories = [category_names(cell) for cell in cells]
    named = [_title(titles, item) for item in ids]
    reasons = Reasons(
        tf.constant([*named, ""]),
        Subjects.of_texts(named if titles else [""] * len(met), categories),
        head_items(model.train_counts.numpy())[met],
        dataset is None or dataset.ordered,
    )

    def among_met(items: np.ndarray) -> tf.Tensor:
        there = (items >= 0) & (items < model.n_items)
        return tf.constant(np.where(there, np.searchsorted(met, items), len(met)), tf.int32)

    marks = model.query_inputs(queries, history.shape[1])[RATING_KEY]
    told = reasons(
        {name: tf.constant(of) for name, of in explained.items()}, among_met(history), marks, among_met(best)
    )
    return np.vectorize(bytes.decode, otypes=[object])(told.numpy())


def _fields_of(
    model: Hybrid,
    users: Sequence[str] | None,
    dataset: Dataset | None,
    past: Sequence[Sequence[str]],
    events: Sequence[Sequence[tuple[int, int]]],
    context: Sequence[Fields | None] | None,
    event_fields: Sequence[Sequence[Fields | None] | None] | None,
) -> dict[str, Ragged | np.ndarray]:
    """Returns the fields that the model reads: from the data set for ``users``, and from the caller's arguments.

    Fields in ``context`` take precedence over those of the data set.

    Args:
      model: The fitted hybrid.
      users: User ids, or ``None`` if the caller gave histories.
      dataset: The data set of ``users``.
      past: The histories.
      events: The known events of each history, as pairs of item index and position in the history.
      context: As in :meth:`Hybrid.recommend`.
      event_fields: As in :meth:`Hybrid.recommend`.

    Raises:
      DataError: ``event_fields`` are given together with ``users``, or the caller's fields do not fit the queries.
    """
    of_history, of_query = model.schema.of_history(), model.schema.of_query()
    places = Ragged.from_rows([[place for _, place in row] for row in events], np.int64)
    fields: dict[str, Ragged | np.ndarray] = {}
    if users is not None and dataset is not None:
        if event_fields is not None:
            raise DataError(
                "Expected event_fields only with histories, found it with users: leave it out, the data has them."
            )
        dataset = dataset.with_tags_written
        encoded = {field.key: field.encode(dataset.events[field.name]) for field in of_history}
        of_users = [field for field in of_query if field.owner == "user"]
        encoded |= {field.key: field.encode(dataset.users[field.name]) for field in of_users}
        fields |= fields_of_users(dataset, users, places, encoded)
    if lines := event_field_inputs(past, event_fields).get("event_fields"):
        texts = [lines[row][place] for row, known in enumerate(events) for _, place in known]
        decoded, _ = FieldDecoder(of_history, model.reads).decode_lines(tf.constant(texts, tf.string))
        fields |= {key: Ragged(_decoded(values), places.offsets) for key, values in decoded.items()}
    domain = next((field for field in of_history if field.key == f"event.{DOMAIN}" and field.key in model.reads), None)
    if domain is not None and model.domains is not None:  # an event is in the domain of its item if it names none
        items = [item for row in events for item, _ in row]
        own = domain.encode(only_domains(model.domains[items]))
        if isinstance(given := fields.get(domain.key), Ragged):
            own = np.where(given.values == domain.encode([""])[0], own, given.values)
        fields[domain.key] = Ragged(own, places.offsets)
    if entries := context_inputs(len(past), context).get("context"):
        width = max(map(len, entries))
        padded = tf.constant([[*row, *[""] * (width - len(row))] for row in entries], tf.string)
        # Defaults are removed, so that a field missing in the context keeps the user's value from the data set.
        decoded, _ = FieldDecoder([replace(field, default=None) for field in of_query], model.reads)(padded)
        for field in of_query:
            given = _decoded(decoded[field.key])
            left_out, known = missing(given), fields.get(field.key)
            given[left_out] = known[left_out] if isinstance(known, np.ndarray) else field.encode([""])[0]
            fields[field.key] = given
    return fields


def _decoded(values: tf.Tensor) -> np.ndarray:
    """Converts the output of a :class:`FieldDecoder` to that of :meth:`Field.encode`: texts become ``str``."""
    if values.dtype == tf.string:
        return np.array([text.decode(errors="replace") for text in values.numpy().tolist()], object)
    return values.numpy()


def fields_of_users(
    dataset: Dataset, users: Sequence[str], places: Ragged, encoded: Mapping[str, np.ndarray]
) -> dict[str, Ragged | np.ndarray]:
    """Returns the encoded fields of users and of some of their events, by key.

    Args:
      dataset: The data set with the users and their events.
      users: Ids of users of ``dataset``.
      places: Positions of the selected events in each user's history, int64, one row per user.
      encoded: The fields to return, with the values of all events and all users of ``dataset``, as in
        :attr:`Split.encoded`.
    """
    rows = pd.Index(dataset.users[USER]).get_indexer(list(users))
    every = ragged_column(dataset.events.assign(row=np.arange(len(dataset.events))), "row", rows)
    at = every.values[np.repeat(every.offsets[:-1], places.lengths) + places.values]
    return {
        key: values[rows] if key.startswith("user.") else Ragged(values[at], places.offsets)
        for key, values in encoded.items()
    }


def similar(model: Hybrid, items: Sequence[str], k: int, dataset: Dataset | None) -> pd.DataFrame:
    """Implements :meth:`Hybrid.similar`."""
    ids, asked = model.item_ids, listed_strings("items", items)
    index, titles = {item: row for row, item in enumerate(ids)}, _titles(dataset)
    for item in asked:
        if item not in index:
            raise no_such_item(item, index)
    rows = np.array([index[item] for item in asked], np.int64)
    vectors = model.item_vectors().numpy()
    answers: list[Answer[Recommendation]] = []
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        cosines = vectors[some] @ vectors.T
        cosines[np.arange(len(some)), some] = -np.inf
        best = top_items(cosines, min(count_of(k), len(ids)))
        answers += [
            Answer(Recommendation(ids[item], _title(titles, ids[item]), float(own[item])) for item in found[found >= 0])
            for own, found in zip(cosines, best, strict=True)
        ]
    return to_frame(answers)


def histories_and_ratings(
    users: Sequence[str] | None,
    histories: Sequence[Sequence[str]] | None,
    ratings: Sequence[Sequence[float | None]] | None,
    past_of: Callable[[list[str]], tuple[Any, Any]],
) -> tuple[list[list[str]], list[list[float]] | None]:
    """Returns the caller's histories and ratings, or looks up those of the given users.

    Args:
      users, histories, ratings: As in :meth:`Hybrid.recommend`.
      past_of: Looks up the histories of users, and their ratings or ``None``.

    Raises:
      DataError: Both or neither of ``users`` and ``histories`` are given; ``ratings`` are given without ``histories``
        or do not fit them; or an id is not a string.
    """
    if (users is None) == (histories is None):
        raise DataError("Expected either users or histories, found both or neither.")
    if users is not None:
        if ratings is not None:
            raise DataError("Expected ratings only with histories; those of users are in the data.")
        histories, ratings = past_of(listed_strings("users", users))
    assert histories is not None
    past = [listed_strings("a history", history) for history in listed("histories", histories)]
    return past, None if ratings is None else rating_rows(past, ratings)


def no_such_item(item: str, ids: Iterable[str]) -> DataError:
    """Returns the error for an item that is missing from the catalogue ``ids``; its message lists similar ids."""
    near = nearest(item, ids, n=3)
    return DataError(f"No item {item!r} in this model's catalogue." + (f" Near: {', '.join(near)}." if near else ""))


def _past_of(users: Sequence[str], dataset: Dataset | None) -> tuple[list[list[str]], list[list[float]] | None]:
    """Returns the history of each user in the data set, and its ratings; ``None`` if the data set has no ratings.

    Raises:
      DataError: There is no data set, or it lacks some of the users.
    """
    if dataset is None:
        raise DataError("Expected dataset=, which has the users' events, or histories instead of users; found neither.")
    row_of = {user: row for row, user in enumerate(dataset.users[USER])}
    if missing := [str(user) for user in users if user not in row_of]:
        raise DataError(
            f"{len(missing):,} of {len(users):,} users are not in {dataset.name}, such as {missing[0]!r}. Leave them "
            "out, or give histories instead of users."
        )
    rows = np.array([row_of[user] for user in users], np.int64)
    histories = [row.tolist() for row in ragged_column(dataset.events, ITEM, rows)]
    if not dataset.has_ratings:
        return histories, None
    return histories, [row.tolist() for row in ragged_column(dataset.events, RATING, rows)]


def _titles(dataset: Dataset | None) -> Mapping[str, str]:
    """Returns the titles by item id; empty without a data set."""
    return {} if dataset is None else dataset.titles


def _title(titles: Mapping[str, str], item: str) -> str:
    return titles.get(item) or item
