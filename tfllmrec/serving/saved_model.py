"""An exported model, asked from Python: what the command line uses, and a Recommender for measuring what is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from tfllmrec.client.answers import Interest, Ranked, Recommendation, ranked
from tfllmrec.client.fields import Fields, context_inputs, event_field_inputs
from tfllmrec.client.filters import Allow, filter_inputs
from tfllmrec.client.ratings import rating_rows
from tfllmrec.columns import CATEGORIES, ITEM, RATING, TITLE
from tfllmrec.data.queries import Queries
from tfllmrec.data.splits import ragged_column
from tfllmrec.errors import DataError, ModelError
from tfllmrec.runs.run import Run
from tfllmrec.serving.layout import EXTRA, MANIFEST, has_scann, read_catalogue, read_manifest, version_folders
from tfllmrec.serving.loading import let_go_with, load
from tfllmrec.wording import nearest

SCORE_BATCH = 64
TERMS = {
    "meaning": "reads like what you had, such as {because}",
    "feedback": "fits your ratings, such as {because}",
    "behaviour": "people who had {because} went on to it",
}


class SavedModel:
    """A SavedModel that :func:`tfllmrec.serving.export.export` wrote, loaded as TF Serving would.

    Use :meth:`open`. Threads may share one. What it holds is given up with the last reference to it.
    """

    def __init__(self, folder: Path, loaded: Any, manifest: dict[str, Any], items: pd.DataFrame) -> None:
        self.folder = folder
        self.manifest = manifest
        self.item_ids = items[ITEM].to_numpy(object)
        # Exports of version 0.1 have the titles of the catalogue, some of them empty.
        titles = items[TITLE] if TITLE in items else items[ITEM]
        self._title = {i: t or i for i, t in zip(items[ITEM], titles, strict=True)}
        self._items = items
        self._loaded = loaded
        self._signatures = loaded.signatures

    @classmethod
    def open(cls, path: Path | str) -> SavedModel:
        """Loads ``saved_models/NAME`` (its newest version) or ``saved_models/NAME/VERSION``.

        Raises:
          ModelError: there is no model, or it is not one of ours, or damaged, or needs scann, which is missing.
        """
        folder = Path(path)
        if not (folder / "saved_model.pb").is_file():
            there = version_folders(folder) if folder.is_dir() else {}
            whole = {number: version for number, version in there.items() if (version / "saved_model.pb").is_file()}
            if not whole and (folder / "config.yaml").is_file():
                raise ModelError(
                    f"{path} is a run, not a SavedModel: 'tfllmrec export {path} saved_models/NAME' makes one."
                )
            if not whole:
                raise ModelError(
                    f"{path} holds no SavedModel: expected a version folder such as {folder / '1'}. Write one with "
                    f"'tfllmrec export RUN {folder}'."
                )
            folder = whole[max(whole)]
        try:
            manifest, items = read_manifest(folder), read_catalogue(folder)
        except ModelError as error:
            raise ModelError(f"{folder} was not exported by tfllmrec, or is damaged: {error}") from error
        try:
            loaded = load(folder, has_scann(manifest))
        except ModelError:
            raise
        except Exception as error:  # TensorFlow raises nearly anything on a damaged SavedModel
            reason = str(error).partition("\n")[0]
            raise ModelError(f"The SavedModel in {folder} cannot be loaded ({reason}): export it again.") from error
        opened = cls(folder, loaded, manifest, items)
        let_go_with(opened, loaded, has_scann(manifest))
        return opened

    def known(self, ids: Sequence[str]) -> list[bool]:
        """Whether the catalogue has each id."""
        return [item in self._title for item in ids]

    @cached_property
    def categories(self) -> frozenset[str]:
        """The names of the categories of all items, as filters take them; none if the catalogue has no categories."""
        cells = self._items.get(CATEGORIES, ())
        # Exports of version 0.1 have strings of names with commas between them.
        lists = (map(str.strip, cell.split(",")) if isinstance(cell, str) else cell for cell in cells)
        return frozenset(name for names in lists for name in names if name)

    def title(self, item_id: str) -> str:
        return self._title.get(item_id, item_id)

    def recommend(
        self,
        history: Sequence[str],
        ratings: Sequence[float | None] | None = None,
        exclude: Sequence[str] = (),
        k: int = 10,
        allow: Allow = None,
        categories: Sequence[str] = (),
        context: Fields | None = None,
        event_fields: Sequence[Fields | None] | None = None,
    ) -> list[Recommendation]:
        """The best ``k`` items for one person, with reasons; unknown ids count as absent.

        Args:
          history: item ids, oldest first. ratings: one for each, None or NaN where there is none.
          exclude: what must not come back, beside the history.
          k: length of the list.
          allow: the only ids that may come back; ``None`` for all, and of an empty list nothing does.
          categories: of which an item needs one to come back, spelt as in the catalogue; none lets all pass.
          context: fields of the request and of the user by their names, such as ``{"device": "phone", "age": 25}``.
          event_fields: fields of each event of the history, such as ``[{"kind": "view"}, {"kind": "purchase"}]``.
        """
        ratings_of_all = None if ratings is None else [ratings]
        found = self.recommend_many(
            [history], k, [exclude], ratings_of_all, [allow], [categories], [context], [event_fields]
        )[0]
        if not found:
            return found
        explained = self._call(
            "explain",
            **_person(history, ratings),
            items=_strings([[item.item_id for item in found]]),
        )
        terms = {name: explained[name][0] for name in explained.keys() - {"because", "unknown"}}
        because = [value.decode() for value in explained["because"][0]]
        return [
            Recommendation(
                item.item_id,
                item.title,
                item.score,
                self._reason({name: float(value[i]) for name, value in terms.items()}, because[i]),
                {name: float(value[i]) for name, value in terms.items()},
            )
            for i, item in enumerate(found)
        ]

    def recommend_many(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude: Sequence[Sequence[str]] | None = None,
        ratings: Sequence[Sequence[float | None]] | None = None,
        allow: Sequence[Allow] | None = None,
        categories: Sequence[Sequence[str]] | None = None,
        context: Sequence[Fields | None] | None = None,
        event_fields: Sequence[Sequence[Fields | None] | None] | None = None,
    ) -> list[list[Recommendation]]:
        """As :meth:`recommend` for many people at once, without reasons; every list has a row for each of them.

        Raises:
          DataError: one of the lists has more or fewer rows, or ``ratings`` a row that is not as long as its history.
        """
        if exclude is not None and len(exclude) != len(histories):
            raise DataError(f"Expected one list to exclude for each of {len(histories)} people, got {len(exclude)}.")
        further: dict[str, Sequence[Sequence[str]]] = {
            **filter_inputs(len(histories), allow, categories),
            **context_inputs(len(histories), context),
            **event_field_inputs(histories, event_fields),
        }
        marks = None if ratings is None else rating_rows(histories, ratings)
        answers: list[list[Recommendation]] = []
        for start in range(0, len(histories), SCORE_BATCH):
            rows = slice(start, start + SCORE_BATCH)
            batch = histories[rows]
            answers += self._list(
                "recommend",
                {name: lists[rows] for name, lists in further.items()},
                history=_strings(batch),
                ratings=_padded(marks[rows]) if marks else _no_ratings(len(batch)),
                exclude=_strings([[]] * len(batch) if exclude is None else exclude[rows]),
                k=np.full(len(batch), k, np.int32),
            )
        return answers

    def search(
        self,
        text: str,
        history: Sequence[str] = (),
        exclude: Sequence[str] = (),
        k: int = 10,
        allow: Allow = None,
        categories: Sequence[str] = (),
        context: Fields | None = None,
        event_fields: Sequence[Fields | None] | None = None,
    ) -> list[Recommendation]:
        """Items whose text means what ``text`` says; other arguments as in :meth:`recommend`.

        Raises:
          ModelError: the model was trained without text.
        """
        return self._list(
            "search",
            {
                **filter_inputs(1, [allow], [categories]),
                **context_inputs(1, [context]),
                **event_field_inputs([history], [event_fields]),
            },
            text=np.asarray([text], object),
            history=_strings([history]),
            exclude=_strings([exclude]),
            k=np.asarray([k], np.int32),
        )[0]

    def search_tokens(
        self,
        tokens: Mapping[str, np.ndarray],
        histories: Sequence[Sequence[str]] | None = None,
        exclude: Sequence[Sequence[str]] | None = None,
        k: int = 10,
    ) -> list[list[Recommendation]]:
        """As :meth:`search` for many texts at once, tokenised by the caller.

        Args:
          tokens: ``input_word_ids``, ``input_mask``, ``input_type_ids``, int32 ``[B, T]``: what the preprocessor of the
            run's encoder gives.
          histories, exclude: of each; none by default.

        Raises:
          DataError: there are more or fewer histories, or lists to exclude, than texts.
          ModelError: the model was trained without text, or its encoder of queries takes no tokens.
        """
        batch = len(tokens["input_mask"])
        for name, lists in (("histories", histories), ("exclude", exclude)):
            if lists is not None and len(lists) != batch:
                raise DataError(f"{name}: expected one list for each of {batch} texts, got {len(lists)}.")
        return self._answers(
            self._call(
                "search_tokens",
                **{name: np.asarray(value, np.int32) for name, value in tokens.items()},
                history=_strings(histories or [[]] * batch),
                exclude=_strings(exclude or [[]] * batch),
                k=np.full(batch, k, np.int32),
            )
        )

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 ``[n, Dt]``: what ``search`` takes texts for, in the space of the items' texts.

        Raises:
          ModelError: the model was trained without text.
        """
        return self._call("encode", text=np.asarray(texts, object))["vectors"]

    def similar(
        self, item_id: str, k: int = 10, allow: Allow = None, categories: Sequence[str] = ()
    ) -> list[Recommendation]:
        """Items like this one; ``allow`` and ``categories`` as in :meth:`recommend`.

        Raises:
          DataError: the catalogue does not have it.
        """
        if item_id not in self._title:
            near = nearest(item_id, self._title, n=3)
            raise DataError(
                f"No item {item_id!r} in this model's catalogue." + (f" Near: {', '.join(near)}." if near else "")
            )
        asked = {"item_id": np.asarray([item_id], object), "k": np.asarray([k], np.int32)}
        return self._list("similar", filter_inputs(1, [allow], [categories]), **asked)[0]

    def interests(
        self, history: Sequence[str], ratings: Sequence[float | None] | None = None, k: int = 10
    ) -> list[Interest]:
        """What somebody is interested in, at most ``k`` labels, strongest first; unknown ids count as absent.

        Args:
          history: item ids, oldest first. ratings: one for each.

        Raises:
          ModelError: the catalogue says nothing that would make a label.
        """
        out = self._call(
            "interests",
            **_person(history, ratings),
            k=np.asarray([k], np.int32),
        )
        rows = zip(out["labels"][0], out["weights"][0], out["because"][0], strict=True)
        return [Interest(label.decode(), float(weight), because.decode()) for label, weight, because in rows if label]

    def rank(
        self, history: Sequence[str], items: Sequence[str], ratings: Sequence[float | None] | None = None
    ) -> list[Ranked]:
        """Puts ``items`` into the order of how likely each is the person's next one; unknown ids come last, at 0.

        Args:
          history: item ids, oldest first. items: that are offered, from any source. ratings: one for each of history.

        Raises:
          ModelError: the model was made without one that ranks.
        """
        told = self._call(
            "rank",
            **_person(history, ratings),
            items=_strings([items]),
        )
        n = len(items)
        marks = told["rating"][0][:n].tolist() if "rating" in told else None
        return ranked(items, [self.title(i) for i in items], told["click_probability"][0][:n].tolist(), marks)

    @cached_property
    def run(self) -> Run:
        """The run that the model came from.

        Raises:
          DataError: it is no longer where it was.
          ModelError: the manifest does not name it.
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
                f"The run {folder} that {self.folder} was exported from is not there any more, and with it the "
                "people's histories, which a SavedModel never carries. Give the history itself: --history id1,id2."
            )
        return Run(folder)

    def history_of(self, user_id: str) -> tuple[list[str], list[float] | None]:
        """All events of a user in the training data: item ids, oldest first, and their ratings.

        Raises:
          DataError: the user is not in that data, or the data is not there any more.
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
        """What :meth:`history_of` returns, for each user of ``user_ids`` who is in the training data.

        Raises:
          DataError: the data is not there any more.
        """
        rows = {user: self._row_of_user[user] for user in user_ids if user in self._row_of_user}
        dataset, users = self.run.dataset, np.array(list(rows.values()), dtype=np.int64)
        items = ragged_column(dataset.events, ITEM, users)
        ratings = ragged_column(dataset.events, RATING, users) if dataset.has_ratings else [None] * len(users)
        return {
            user: (had.tolist(), None if rated is None else rated.tolist())
            for user, had, rated in zip(rows, items, ratings, strict=True)
        }

    @cached_property
    def _row_of_user(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.run.dataset.users["user_id"])}

    def score(self, queries: Queries) -> np.ndarray:
        """Keeps the ``Recommender`` contract through the ``score`` signature: float32 ``[B, N]``."""
        scores = np.empty((len(queries), len(self.item_ids)), np.float32)
        for start in range(0, len(queries), SCORE_BATCH):
            batch = queries.slice(start, start + SCORE_BATCH)
            width = max(int(batch.history.lengths.max(initial=1)), 1)
            index = batch.history.padded(width, -1)
            history = np.where(index >= 0, self.item_ids[index], "").astype(object)
            ratings = batch.ratings.padded(width, np.nan)
            scores[start : start + len(batch)] = self._call("score", history=history, ratings=ratings)["scores"]
        return scores

    def _list(
        self, signature: str, further: Mapping[str, Sequence[Sequence[str]]], **inputs: np.ndarray
    ) -> list[list[Recommendation]]:
        """Asks the signature, or the one with all inputs where there are filters or fields."""
        if further:
            rows = len(inputs["k"])
            names = {"allow", "categories"} | (set() if signature == "similar" else {"context", "event_fields"})
            inputs |= {name: _strings(further.get(name, [()] * rows)) for name in names}
            if signature == "search":
                inputs["ratings"] = _no_ratings(rows)
            signature += "_full"
        return self._answers(self._call(signature, **inputs))

    def _call(self, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        if signature not in self._signatures:
            raise ModelError(
                f"{self.folder} has no signature {signature!r}, only {', '.join(sorted(self._signatures))}"
                + self._why_not(signature)
            )
        out = self._signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in out.items()}

    def _why_not(self, signature: str) -> str:
        if signature == "search_tokens" and "search" in self._signatures:
            return ": what reads its queries knows words and no tokens. Ask search."
        if signature == "interests":
            return (
                ": what the catalogue says of its items makes no label that some of them share, or it was exported "
                "before there was this signature; then export it again."
            )
        if signature == "rank":
            return ": it was exported from a run without a ranking model. Fit with ranking.epochs above 0."
        reads = signature in ("search", "search_full", "search_tokens", "encode")
        return ": the catalogue that it was trained on has no text." if reads else "."

    def _answers(self, out: dict[str, np.ndarray]) -> list[list[Recommendation]]:
        return [
            [
                Recommendation(item.decode(), self.title(item.decode()), float(score))
                for item, score in zip(items, scores, strict=True)
                if item
            ]
            for items, scores in zip(out["item_ids"], out["scores"], strict=True)
        ]

    def _reason(self, terms: dict[str, float], because: str) -> str:
        if not because:
            return ""
        # As the model chose ``because``: behaviour against both dense terms together.
        dense = max(("meaning", "feedback"), key=lambda name: terms[name])
        leading = "behaviour" if terms["behaviour"] >= terms["meaning"] + terms["feedback"] else dense
        return TERMS[leading].format(because=self.title(because))


def _strings(rows: Sequence[Sequence[str]]) -> np.ndarray:
    """object ``[B, L]`` padded with ``""``; L is at least 1."""
    width = max([len(row) for row in rows] + [1])
    return np.asarray([[*row, *[""] * (width - len(row))] for row in rows], object).reshape(len(rows), width)


def _person(history: Sequence[str], ratings: Sequence[float | None] | None) -> dict[str, np.ndarray]:
    """What a signature is told of one person."""
    marks = _no_ratings(1) if ratings is None else _padded(rating_rows([history], [ratings]))
    return {"history": _strings([history]), "ratings": marks}


def _no_ratings(people: int) -> np.ndarray:
    """float32 ``[B, 0]``."""
    return np.zeros((people, 0), np.float32)


def _padded(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """The rows of :func:`rating_rows` as float32 ``[B, L]``, padded with NaN; L is at least 1."""
    width = max([len(row) for row in rows] + [1])
    return np.asarray([[*row, *[np.nan] * (width - len(row))] for row in rows], np.float32)
