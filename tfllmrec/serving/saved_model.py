"""The Python API of an exported model, which the command line uses too, and with which served scores are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from tfllmrec.client.answers import Answer, Explanation, Interest, Ranked, Recommendation, ranked, to_frame
from tfllmrec.client.fields import Fields, context_inputs, event_field_inputs, one_line, written
from tfllmrec.client.filters import Allow, filter_inputs
from tfllmrec.client.inputs import MOST_REASONS, count_of, listed_strings, rule_inputs, searched_texts
from tfllmrec.client.ratings import rating_rows
from tfllmrec.columns import CATEGORIES, ITEM, RATING, TITLE
from tfllmrec.config import encoder_names
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import RATING_KEY, Field, Schema
from tfllmrec.data.splits import ragged_column
from tfllmrec.errors import DataError, ModelError
from tfllmrec.models.answers import fields_of_users, histories_and_ratings, no_such_item
from tfllmrec.models.two_tower_servable import USER_FIELD, with_user_ids
from tfllmrec.runs.run import Run
from tfllmrec.serving.layout import EXTRA, MANIFEST, has_scann, read_catalogue, read_manifest
from tfllmrec.serving.loading import let_go_with, load
from tfllmrec.serving.promotion import chosen_version
from tfllmrec.text.preprocessor import pieces_of
from tfllmrec.text.reading import Reading, reading_of
from tfllmrec.wording import nearest

SCORE_BATCH = 64
#: Largest number of ids that an error message names.
SHOWN = 20


class SavedModel:
    """An exported model, loaded in this process with the same graph that TF Serving runs.

        model = SavedModel.open("saved_models/shop")
        model.recommend(histories=[["A17", "B02"]], k=5)

    Create it with :meth:`open`. Several threads may share one. Its memory is released with the last reference to it.
    """

    def __init__(self, folder: Path, loaded: Any, manifest: dict[str, Any], items: pd.DataFrame) -> None:
        self.folder = folder
        self.manifest = manifest
        self.item_ids = items[ITEM].to_numpy(object)
        # Exports of version 0.1 contain the titles of the catalogue, some of which are empty.
        titles = items[TITLE] if TITLE in items else items[ITEM]
        self._title = {i: t or i for i, t in zip(items[ITEM], titles, strict=True)}
        self._items = items
        self._loaded = loaded
        self._signatures = loaded.signatures

    @classmethod
    def open(cls, path: Path | str) -> SavedModel:
        """Loads ``saved_models/NAME`` (its stable version, or else its newest) or ``saved_models/NAME/VERSION``.

        The command ``promote`` makes a version stable, see :mod:`tfllmrec.serving.promotion`.

        Raises:
          ModelError: There is no model, it was not exported by tfllmrec, it is damaged, or it needs scann, which is
            missing.
        """
        folder = Path(path)
        if not (folder / "saved_model.pb").is_file():
            version = chosen_version(folder)
            if version is None and (folder / "config.yaml").is_file():
                raise ModelError(
                    f"{path} is a run, not a SavedModel: 'tfllmrec export {path} saved_models/NAME' makes one."
                )
            if version is None:
                raise ModelError(
                    f"{path} contains no SavedModel: expected a version folder such as {folder / '1'}. Write one with "
                    f"'tfllmrec export RUN {folder}'."
                )
            folder = version
        try:
            manifest, items = read_manifest(folder), read_catalogue(folder)
        except ModelError as error:
            raise ModelError(f"{folder} was not exported by tfllmrec, or is damaged: {error}") from error
        try:
            loaded = load(folder, has_scann(manifest))
        except ModelError:
            raise
        except Exception as error:  # TensorFlow raises nearly anything on a damaged SavedModel
            said = str(error).partition("\n")[0]
            raise ModelError(f"The SavedModel in {folder} cannot be loaded ({said}): export it again.") from error
        opened = cls(folder, loaded, manifest, items)
        let_go_with(opened, loaded, has_scann(manifest))
        return opened

    def known(self, ids: Sequence[str]) -> list[bool]:
        """Returns whether each id is in the catalogue."""
        return [item in self._title for item in ids]

    def known_users(self, user_ids: Sequence[str]) -> list[bool]:
        """Returns whether each user is in the data of the run.

        Raises:
          DataError: The data no longer exists.
        """
        return [user in self._row_of_user for user in user_ids]

    @cached_property
    def schema(self) -> Schema:
        """The fields of the data that the model was fitted on; none for exports of earlier versions."""
        return Schema.from_dict(self.manifest.get("schema", []))

    @cached_property
    def categories(self) -> frozenset[str]:
        """The names of the categories of all items, spelt as filters need them; empty if there are no categories."""
        cells = self._items.get(CATEGORIES, ())
        # Exports of version 0.1 have strings of names separated by commas.
        lists = (map(str.strip, cell.split(",")) if isinstance(cell, str) else cell for cell in cells)
        return frozenset(name for names in lists for name in names if name)

    def title(self, item_id: str) -> str:
        return self._title.get(item_id, item_id)

    def recommend(
        self,
        users: Sequence[str] | None = None,
        k: int = 10,
        *,
        histories: Sequence[Sequence[str]] | None = None,
        ratings: Sequence[Sequence[float | None]] | None = None,
        exclude: Sequence[str] = (),
        allow: Allow = None,
        categories: Sequence[str] = (),
        context: Sequence[Fields | None] | None = None,
        event_fields: Sequence[Sequence[Fields | None] | None] | None = None,
        diversity: float = 0.0,
        pinned: Sequence[str] = (),
        category_cap: int = 0,
        tail_share: float = 0.0,
        skip: Sequence[str] = (),
        label_weights: Mapping[str, float] | None = None,
    ) -> pd.DataFrame:
        """Recommends the best ``k`` items for each user, or for each history, with titles and reasons.

            model.recommend(["42", "515"], k=5)
            model.recommend(histories=[["50", "172"], []], ratings=[[5, 4], []])

        Args:
          users: Ids of users in the data of the run. The history of a user consists of all the user's events in it.
          k: The length of each list. A list is shorter if fewer items remain.
          histories: Lists of item ids, oldest first, instead of ``users``. Unknown ids are ignored.
          ratings: The ratings of ``histories``: a row for each history, of the same length; ``None`` or NaN for no
            rating.
          exclude: Items to exclude, in addition to the history. Items of the history may be recommended again in
            three cases: their events have a kind of weight 0, the data has ``data.repeats=all``, or ``skip`` has
            ``exclusion``.
          allow: Only these items are recommended. ``None`` allows all items, an empty list none.
          categories: Only items with at least one of these categories are recommended; spelt as in the catalogue. An
            empty list allows all items. Entries ``domain=NAME`` are a separate filter: an item also needs one of these.
          context: Fields of each request and its user, by name, such as ``{"device": "phone", "age": 25}``. With
            ``users``, the fields of the user come from the data.
          event_fields: The fields of each event of ``histories``, such as ``[{"kind": "view"}, {"kind": "purchase"}]``.
          diversity: From 0 (the best items) to 1 (the most different items).
          pinned: Items to list first, in this order. Items that are excluded or filtered out are left out.
          category_cap: The largest number of items from one category; 0 for no cap.
          tail_share: The minimum share of tail items among the first n items, for every n, rounded down, as long as
            there are tail items among the best ``5 k`` items (50 to 500). By default, tail items are all items except
            the 20 % with the most training events.
          skip: Stages to skip: with ``exclusion``, items of the history may come back; with ``ranking``, the lists keep
            the order of retrieval.
          label_weights: A weight from -1 to 1 for each label, with labels as returned by :meth:`interests`. A weight of
            1 raises the scores of items with the label by two standard deviations of the request's scores; -1 lowers
            them by as much. Labels that the model does not have count in ``unread``.

        Returns:
          A DataFrame with a row for each recommendation, see :func:`tfllmrec.client.answers.to_frame`.

        Raises:
          DataError: Both or neither of ``users`` and ``histories`` are given; the data does not have a user;
            ``event_fields`` are given with ``users``; ``ratings`` do not fit the histories; a number is out of range; a
            stage does not exist.
          ModelError: The model was exported by an earlier version, which did not have one of the inputs.
        """
        rules = rule_inputs(1, diversity, [pinned], category_cap, tail_share, skip, [label_weights or {}])
        past, marks = histories_and_ratings(users, histories, ratings, self._past_of)
        fields = {**context_inputs(len(past), context), **event_field_inputs(past, event_fields)}
        if users is not None:
            if event_fields is not None:
                raise DataError(
                    "Expected event_fields only with histories, found it with users: leave it out, the data has them."
                )
            for name, known in self._entries_of_users(users, past).items():
                # If several entries have the same name, the last one counts, so given fields replace those of the data.
                given = fields.get(name, [[]] * len(past))
                fields[name] = [[*row, *own] for row, own in zip(known.tolist(), given, strict=True)]

        def of(rows: slice) -> list[Answer[Recommendation]]:
            some = past[rows]
            queries = {"history": _strings(some), "ratings": _padded(marks[rows]) if marks else _no_ratings(len(some))}
            own = {name: lists[rows] for name, lists in fields.items()}
            asked = own | {name: row * len(some) for name, row in rules.items()}
            if "reasons" in self._inputs("recommend_full"):  # exports of earlier versions have none
                asked["reasons"] = [min(count_of(k), MOST_REASONS)] * len(some)
            return self._top("recommend", len(some), k, exclude, allow, categories, asked, **queries)

        return to_frame(_in_batches(len(past), of), users)

    def search(
        self,
        texts: Sequence[str],
        k: int = 10,
        *,
        histories: Sequence[Sequence[str]] | None = None,
        exclude: Sequence[str] = (),
        allow: Allow = None,
        categories: Sequence[str] = (),
        context: Sequence[Fields | None] | None = None,
        event_fields: Sequence[Sequence[Fields | None] | None] | None = None,
    ) -> pd.DataFrame:
        """Finds items whose texts are similar in meaning to each of ``texts``.

        The other arguments, and the rows of the result, are those of :meth:`recommend`.

        Args:
          texts: The texts to search for.
          histories: One history for each text, which raises the scores of items that suit the user; none by default.

        Raises:
          DataError: A text is blank, or the numbers of histories and texts differ.
          ModelError: The model was trained without text.
        """
        asked = searched_texts(texts)
        past = _one_for_each(len(asked), histories)
        fields = {**context_inputs(len(past), context), **event_field_inputs(past, event_fields)}

        def of(rows: slice) -> list[Answer[Recommendation]]:
            inputs = {"text": np.asarray(asked[rows], object), "history": _strings(past[rows])}
            own = {name: lists[rows] for name, lists in fields.items()}
            return self._top("search", len(past[rows]), k, exclude, allow, categories, own, **inputs)

        return to_frame(_in_batches(len(asked), of))

    def reading(self, text: str) -> Reading | None:
        """Returns statistics of the pieces into which the encoder's vocabulary splits a query.

        With several encoders, the statistics are those of an encoder that can read the query, if there is one. ``None``
        if there is no vocabulary, because the model was trained without text or its query encoder is ``hashed_ngrams``.
        """
        tower = getattr(self._loaded, "text_to_vector", None)
        towers = [getattr(each, "preprocessor", None) for each in getattr(tower, "towers", [tower])]
        encoder = (self.manifest.get("config") or {}).get("text", {}).get("encoder", "")
        readings = [
            reading_of(partial(pieces_of, preprocessor), [text], name)
            for name, preprocessor in zip(encoder_names(encoder), towers, strict=False)
            if preprocessor
        ]
        return max(readings, key=lambda reading: reading.works, default=None)

    def search_tokens(
        self,
        tokens: Mapping[str, np.ndarray],
        k: int = 10,
        *,
        histories: Sequence[Sequence[str]] | None = None,
        exclude: Sequence[str] = (),
    ) -> pd.DataFrame:
        """Finds items like :meth:`search`, for texts that the caller has tokenised.

        Args:
          tokens: ``input_word_ids``, ``input_mask`` and ``input_type_ids``, int32 ``[B, T]`` each: the output of the
            preprocessor of the run's query encoder.
          k, histories, exclude: See :meth:`search`.

        Raises:
          DataError: The numbers of histories and texts differ.
          ModelError: The model was trained without text, or its query encoder takes no tokens.
        """
        past = _one_for_each(len(tokens["input_mask"]), histories)

        def of(rows: slice) -> list[Answer[Recommendation]]:
            inputs = {name: np.asarray(value[rows], np.int32) for name, value in tokens.items()}
            inputs["history"] = _strings(past[rows])
            return self._top("search_tokens", len(past[rows]), k, exclude, None, (), None, **inputs)

        return to_frame(_in_batches(len(past), of))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes texts as ``search`` does: float32 ``[n, Dt]``, in the space of the items' text vectors.

        Raises:
          ModelError: The model was trained without text.
        """
        return self._call("encode", text=np.asarray(texts, object))["vectors"]

    def similar(
        self, items: Sequence[str], k: int = 10, *, allow: Allow = None, categories: Sequence[str] = ()
    ) -> pd.DataFrame:
        """Lists items that are similar to each of ``items``.

        The other arguments, and the rows of the result, are those of :meth:`recommend`.

        Raises:
          DataError: One of ``items`` is not in the catalogue.
        """
        return self._of_items("similar", items, k, allow, categories)

    def related(self, items: Sequence[str], k: int = 10) -> pd.DataFrame:
        """Lists the neighbours of each of ``items`` in the graph, at most 50.

        The rows of the result are those of :meth:`recommend`, but ``score`` is the sum of the weights of the relations,
        and ``reason`` names the relations.

        Raises:
          DataError: One of ``items`` is not in the catalogue.
          ModelError: The model was exported without a graph.
        """
        return self._of_items("related", items, k)

    def _of_items(
        self, signature: str, items: Sequence[str], k: int, allow: Allow = None, categories: Sequence[str] = ()
    ) -> pd.DataFrame:
        """Calls a signature that takes item ids.

        Raises:
          DataError: One of ``items`` is not in the catalogue.
        """
        asked = listed_strings("items", items)
        for item in asked:
            if item not in self._title:
                raise no_such_item(item, self._title)

        def of(rows: slice) -> list[Answer[Recommendation]]:
            some = np.asarray(asked[rows], object)
            return self._top(signature, len(some), k, None, allow, categories, item_id=some)

        return to_frame(_in_batches(len(asked), of))

    def explain(
        self,
        history: Sequence[str],
        items: Sequence[str],
        ratings: Sequence[float | None] | None = None,
        *,
        context: Fields | None = None,
        event_fields: Sequence[Fields | None] | None = None,
    ) -> list[Explanation]:
        """Returns the terms of the scores of ``items``, and the event that explains each score.

        Args:
          history: Item ids, oldest first.
          items: The items to explain.
          ratings: One rating for each item of the history.
          context: The fields of the request and its user, by name.
          event_fields: The fields of each event of the history.
        """
        fields = _fields(history, context, event_fields)
        out = self._call("explain", **_person(history, ratings), **fields, items=_strings([items]))
        terms = out.keys() - {"because", "unknown"}
        return [
            Explanation(item, {term: float(out[term][0, place]) for term in terms}, out["because"][0, place].decode())
            for place, item in enumerate(items)
        ]

    def interests(
        self,
        history: Sequence[str],
        ratings: Sequence[float | None] | None = None,
        k: int = 10,
        *,
        event_fields: Sequence[Fields | None] | None = None,
    ) -> list[Interest]:
        """Lists a user's interests: at most ``k`` labels, most likely first. Unknown ids are ignored.

        Args:
          history: Item ids, oldest first.
          ratings: One rating for each item of the history.
          k: The largest number of labels.
          event_fields: The fields of each event of the history. Events whose kind has a weight of 0 or less, such as
            rejections, are left out, as in training.

        Raises:
          DataError: The ratings or fields do not fit the history.
          ModelError: The catalogue has no labels.
        """
        person = _person(history, ratings)
        _fields(history, None, event_fields)  # checks them
        if event_fields is not None and (kind := self.schema.kind_of_event) is not None:
            given = [fields or {} for fields in event_fields]
            kinds = [(written(fields.get(kind.key, fields.get(kind.name))) or "").strip() for fields in given]
            chosen = kind.code_weights[kind.encode(kinds)] > 0
            rated = None if ratings is None else list(compress(ratings, chosen))
            person = _person(list(compress(history, chosen)), rated)
        out = self._call(
            "interests",
            **person,
            k=np.asarray([count_of(k)], np.int32),
        )
        labels, because, *more = (
            [text.decode() for text in out[name][0]]
            for name in ("labels", "because", "levels", "trends")
            if name in out  # exports of earlier versions have neither levels nor trends
        )
        rows = zip(labels, map(float, out["weights"][0]), because, *more, strict=True)
        return [Interest(*row) for row in rows if row[0]]

    def rank(
        self,
        history: Sequence[str],
        items: Sequence[str],
        ratings: Sequence[float | None] | None = None,
        *,
        context: Fields | None = None,
        event_fields: Sequence[Fields | None] | None = None,
    ) -> list[Ranked]:
        """Orders ``items`` by the probability that each is the user's next item. Unknown ids come last, with 0.

        Args:
          history: Item ids, oldest first.
          items: The candidates, from any source.
          ratings: One rating for each item of the history.
          context: The fields of the request and its user, by name.
          event_fields: The fields of each event of the history.

        Raises:
          ModelError: The model was exported without a ranking model.
        """
        fields = _fields(history, context, event_fields)
        told = self._call("rank", **_person(history, ratings), **fields, items=_strings([items]))
        n = len(items)
        marks = told["rating"][0][:n].tolist() if "rating" in told else None
        return ranked(items, [self.title(i) for i in items], told["click_probability"][0][:n].tolist(), marks)

    @cached_property
    def run(self) -> Run:
        """The run that the model was exported from.

        Raises:
          DataError: The run no longer exists.
          ModelError: The manifest does not name the run, or is damaged.
        """
        if not self.manifest.get("run"):
            raise ModelError(
                f"{self.folder / EXTRA / MANIFEST} names no run: the version was exported from a model. Give the "
                "history itself instead of a user, or export a run."
            )
        if missing := [key for key in ("data_sha256", "config") if not self.manifest.get(key)]:
            raise ModelError(
                f"{self.folder / EXTRA / MANIFEST} is damaged (it lacks {', '.join(missing)}): export the run again."
            )
        folder = Path(self.manifest["run"])
        if not (folder / "data").is_dir():
            raise DataError(
                f"The run {folder} that {self.folder} was exported from no longer exists, and with it the "
                "users' histories, which a SavedModel never carries. Give the history itself: --history id1,id2."
            )
        return Run(folder)

    def history_of(self, user_id: str) -> tuple[list[str], list[float] | None]:
        """Returns all events of a user in the data of the run: item ids, oldest first, and their ratings.

        The ratings are ``None`` if the data has none.

        Raises:
          DataError: The data does not have the user, or no longer exists.
        """
        histories = self.histories_of([user_id])
        if not histories:
            near = nearest(user_id, self._row_of_user, n=3)
            raise DataError(
                f"No user {user_id!r} in the data of {self.folder}."
                + (f" Near: {', '.join(near)}." if near else "")
                + " For a new user give --history id1,id2."
            )
        return histories[user_id]

    def histories_of(self, user_ids: Sequence[str]) -> dict[str, tuple[list[str], list[float] | None]]:
        """Returns the :meth:`history_of` each user of ``user_ids`` who is in the data of the run.

        Raises:
          DataError: The data no longer exists.
        """
        rows = {user: self._row_of_user[user] for user in user_ids if user in self._row_of_user}
        dataset, users = self.run.dataset, np.array(list(rows.values()), dtype=np.int64)
        items = ragged_column(dataset.events, ITEM, users)
        ratings = ragged_column(dataset.events, RATING, users) if dataset.has_ratings else [None] * len(users)
        return {
            user: (had.tolist(), None if rated is None else rated.tolist())
            for user, had, rated in zip(rows, items, ratings, strict=True)
        }

    def _past_of(self, users: Sequence[str]) -> tuple[list[list[str]], list[list[float]] | None]:
        """Returns the history of each user of the run, and the ratings; ``None`` if the data has no ratings.

        Raises:
          DataError: The data does not have some of the users, or no longer exists.
        """
        past = self.histories_of(users)
        if missing := [str(user) for user in users if user not in past]:
            more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
            raise DataError(
                f"{len(missing):,} of {len(users):,} users are not in the data of {self.folder}: "
                f"{', '.join(missing[:SHOWN])}{more}. Leave them out (known_users says which are there), or give "
                "histories instead of users."
            )
        ratings = [rated for _, rated in map(past.__getitem__, users) if rated is not None]
        return [past[user][0] for user in users], ratings or None

    @cached_property
    def _row_of_user(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.run.dataset.users["user_id"])}

    def score(self, queries: Queries) -> np.ndarray:
        """Scores all items for each query with the ``score`` signature, as ``Recommender`` requires: ``[B, N]``."""
        scores = np.empty((len(queries), len(self.item_ids)), np.float32)
        for start in range(0, len(queries), SCORE_BATCH):
            batch = queries.slice(start, start + SCORE_BATCH)
            width = max(int(batch.history.lengths.max(initial=1)), 1)
            index = batch.history.padded(width, -1)
            history = np.where(index >= 0, self.item_ids[index], "").astype(object)
            ratings = batch.ratings.padded(width, np.nan)
            person = {"history": history, "ratings": ratings, **self._entries(batch)}
            scores[start : start + len(batch)] = self._call("score", **person)["scores"]
        return scores

    @cached_property
    def _reads(self) -> tuple[list[Field], list[Field]]:
        """The fields of events that the model reads, without ratings; and those of requests and users."""
        schema, reads = self.schema, set(self.manifest.get("reads", []))
        of_history = [field for field in schema.of_history() if field.key in reads and field.key != RATING_KEY]
        return of_history, [field for field in schema.of_query() if field.key in reads]

    def _entries(self, queries: Queries) -> dict[str, np.ndarray]:
        """Returns the fields of queries as ``event_fields`` and ``context``, string ``[B, *]`` each, unless empty."""
        of_history, of_query = self._reads
        if USER_FIELD in of_query:
            queries = with_user_ids(queries)
        queries = queries.with_missing([*of_history, *of_query])
        lines = np.full(len(queries.history.values), "", object)
        for field in of_history:
            values = queries.fields[field.key]
            assert isinstance(values, Ragged)
            for event, word in enumerate(field.words(values.values)):
                if word:
                    lines[event] += f"{field.key}={one_line(word)}\n"
        width = max(int(queries.history.lengths.max(initial=1)), 1)
        context = np.full((len(queries), max(len(of_query), 1)), "", object)
        for column, field in enumerate(of_query):
            asked = queries.fields[field.key]
            assert isinstance(asked, np.ndarray)
            context[:, column] = [f"{field.key}={word}" if word else "" for word in field.words(asked)]
        entries = {"event_fields": Ragged(lines, queries.history.offsets).padded(width, ""), "context": context}
        return {name: values for name, values in entries.items() if np.any(values != "")}

    def _entries_of_users(self, users: Sequence[str], past: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """Returns the fields of users of the run and of the events of their histories, like :meth:`_entries`.

        Args:
          users: Ids of users in the data of the run.
          past: The history of each user.
        """
        of_history, of_query = self._reads
        encoded = {
            f.key: self.run.split.encoded[f.key] for f in (*of_history, *of_query) if f.owner in ("event", "user")
        }
        if not encoded:
            return {}
        queries = Queries.from_histories([range(len(history)) for history in past])
        found = fields_of_users(self.run.dataset, users, queries.history, encoded)
        return self._entries(replace(queries, fields={**queries.fields, **found}))

    def fields_of(self, user: str) -> dict[str, Any]:
        """Returns ``context`` and ``event_fields`` of a user of the run, for :meth:`rank` and :meth:`explain`.

        Raises:
          DataError: The data does not have the user, or no longer exists.
        """
        past, _ = self.history_of(user)
        found = self._entries_of_users([user], [past])
        context = dict(entry.split("=", 1) for entry in found.get("context", [[]])[0] if entry)
        lines = found.get("event_fields", [[""] * len(past)])[0][: len(past)]
        events = [dict(line.split("=", 1) for line in event.splitlines()) for event in lines]
        return {"context": context or None, "event_fields": events if any(events) else None}

    def _top(
        self,
        signature: str,
        queries: int,
        k: int,
        exclude: Sequence[str] | None,
        allow: Allow,
        categories: Sequence[str],
        fields: Mapping[str, Sequence[Any]] | None = None,
        /,
        **inputs: np.ndarray,
    ) -> list[Answer[Recommendation]]:
        """Returns the ``k`` best items of each query by a signature, or its full version if filters or fields are set.

        Args:
          signature: The name of the short signature.
          queries: The number of queries.
          k: The length of each list.
          exclude: Items that are excluded from all lists; ``None`` if the signature has no such input.
          allow, categories: The filters of all queries.
          fields: The other inputs of the full signature that are set, a row for each query.
          inputs: The inputs of the short signature.

        Raises:
          ModelError: The model does not have the signature, or one of its inputs.
        """
        inputs["k"] = np.full(queries, count_of(k), np.int32)
        if exclude is not None:
            inputs["exclude"] = _strings([listed_strings("exclude", exclude)] * queries)
        allow = None if allow is None else listed_strings("allow", allow)
        filters = filter_inputs(queries, [allow] * queries, [listed_strings("categories", categories)] * queries)
        further: dict[str, Sequence[Any]] = {**filters, **(fields or {})}
        if further:
            signature += "_full"
            specs = self._inputs(signature)
            if missing := sorted(further.keys() - specs.keys()):
                raise ModelError(
                    f"{self.folder} was exported by an earlier version, without {', '.join(missing)}: export it again."
                )
            inputs |= {
                name: _rows(spec, queries, further.get(name)) for name, spec in specs.items() if name not in inputs
            }
        out = self._call(signature, **inputs)
        unread = out.get("unread", np.zeros(queries, int))
        reasons = out.get("reasons", np.full(out["item_ids"].shape, b"", object))
        return [
            Answer(
                (
                    Recommendation(item.decode(), self.title(item.decode()), float(score), reason.decode())
                    for item, score, reason in zip(out["item_ids"][row], out["scores"][row], reasons[row], strict=True)
                    if item
                ),
                int(out["unknown"][row]),
                unread=int(unread[row]),
            )
            for row in range(queries)
        ]

    def _call(self, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        if missing := sorted(inputs.keys() - self._inputs(signature).keys()):
            raise ModelError(
                f"{self.folder}: the signature {signature!r} does not take {', '.join(missing)}, because the model was "
                "exported by an earlier version: export it again."
            )
        given = {name: tf.constant(value) for name, value in inputs.items()}
        if signature in ("explain", "rank", "score"):  # the fields may be left out
            left_out = {"event_fields", "context"} & self._inputs(signature).keys() - given.keys()
            given |= dict.fromkeys(left_out, tf.fill((len(inputs["history"]), 0), ""))
        out = self._signatures[signature](**given)
        return {name: value.numpy() for name, value in out.items()}

    def _inputs(self, signature: str) -> Mapping[str, tf.TensorSpec]:
        """Returns the inputs of a signature.

        Raises:
          ModelError: The model does not have the signature.
        """
        if signature not in self._signatures:
            raise ModelError(
                f"{self.folder} has no signature {signature!r}, only {', '.join(sorted(self._signatures))}"
                + self._why_not(signature)
            )
        return self._signatures[signature].structured_input_signature[1]

    def _why_not(self, signature: str) -> str:
        if signature == "search_tokens" and "search" in self._signatures:
            return ": what reads its queries knows words and no tokens. Ask search."
        if signature == "related":
            return ": it was exported from a run without a graph. Make one with 'tfllmrec graph RUN', and export again."
        if signature == "interests":
            return (
                ": what the catalogue says of its items makes no label that some of them share, or it was exported "
                "before there was this signature; then export it again."
            )
        if signature == "rank":
            if line := (self.manifest.get("ranking") or {}).get("left_out"):
                return f": the ranking model of its run was {line}. Use recommend with allow=<candidates> instead."
            return ": it was exported from a run without a ranking model. Fit with ranking.epochs above 0."
        reads = signature in ("search", "search_full", "search_tokens", "encode")
        return ": the catalogue that it was trained on has no text." if reads else "."


def _in_batches(queries: int, answers: Callable[[slice], list[Answer[Recommendation]]]) -> list[Answer[Recommendation]]:
    """Returns the answers to all queries, calling ``answers`` with :data:`SCORE_BATCH` queries at a time."""
    return [
        answer
        for start in range(0, queries, SCORE_BATCH)
        for answer in answers(slice(start, min(start + SCORE_BATCH, queries)))
    ]


def _one_for_each(texts: int, histories: Sequence[Sequence[str]] | None) -> list[list[str]]:
    """Returns a history for each text; empty ones if ``histories`` is ``None``.

    Raises:
      DataError: The numbers of histories and texts differ.
    """
    if histories is None:
        return [[]] * texts
    if len(histories) != texts:
        raise DataError(f"Expected one history for each of {texts} texts, got {len(histories)}.")
    return [listed_strings("a history", history) for history in histories]


def _strings(rows: Sequence[Sequence[str]]) -> np.ndarray:
    """Pads rows of strings with ``""``: object ``[B, L]``; L is at least 1."""
    width = max([len(row) for row in rows] + [1])
    return np.asarray([[*row, *[""] * (width - len(row))] for row in rows], object).reshape(len(rows), width)


def _rows(spec: tf.TensorSpec, queries: int, rows: Sequence[Any] | None) -> np.ndarray:
    """Returns an input with the type and the rank of ``spec``; if ``rows`` is ``None``, an empty one or zeros."""
    if spec.dtype == tf.string:
        return _strings([()] * queries if rows is None else rows)
    shape = [queries, *[0] * (spec.shape.rank - 1)]
    return np.zeros(shape, spec.dtype.as_numpy_dtype) if rows is None else np.asarray(rows, spec.dtype.as_numpy_dtype)


def _person(history: Sequence[str], ratings: Sequence[float | None] | None) -> dict[str, np.ndarray]:
    """Returns the inputs ``history`` and ``ratings`` of a signature for one user."""
    marks = _no_ratings(1) if ratings is None else _padded(rating_rows([history], [ratings]))
    return {"history": _strings([history]), "ratings": marks}


def _fields(
    history: Sequence[str], context: Fields | None, event_fields: Sequence[Fields | None] | None
) -> dict[str, np.ndarray]:
    """Returns the inputs ``context`` and ``event_fields`` of a signature for one query, if they are set."""
    fields = context_inputs(1, [context]) | event_field_inputs([history], [event_fields])
    return {name: _strings(rows) for name, rows in fields.items()}


def _no_ratings(users: int) -> np.ndarray:
    """Returns an input without ratings, float32 ``[B, 0]``."""
    return np.zeros((users, 0), np.float32)


def _padded(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Pads the rows of :func:`rating_rows` with NaN: float32 ``[B, L]``; L is at least 1."""
    width = max([len(row) for row in rows] + [1])
    return np.asarray([[*row, *[np.nan] * (width - len(row))] for row in rows], np.float32)
