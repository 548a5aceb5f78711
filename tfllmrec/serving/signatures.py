"""What a client may ask of an exported model: strings in, strings out, core TensorFlow and TF Text operations only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.data.cleaning.names import category_names
from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.layers.interest_profile import InterestProfile
from tfllmrec.layers.item_index import NOTHING, Form, build_index, is_exact
from tfllmrec.layers.item_scann import Scann
from tfllmrec.models.folding import FoldedHybrid
from tfllmrec.models.hybrid import Hybrid
from tfllmrec.models.interests import Interests
from tfllmrec.models.ranking import RankingModel
from tfllmrec.text.bundled import INPUTS

#: What a request may hold, by the name that a client gives it; a signature takes some of these, in its own order.
TEXT, ITEM_ID = (tf.TensorSpec((None,), tf.string, name) for name in ("text", "item_id"))
HISTORY, EXCLUDE, ITEMS = (tf.TensorSpec((None, None), tf.string, name) for name in ("history", "exclude", "items"))
FILTERS = [tf.TensorSpec((None, None), tf.string, name) for name in ("allow", "categories")]
TOKENS = [tf.TensorSpec((None, None), tf.int32, name) for name in INPUTS]
RATINGS = tf.TensorSpec((None, None), tf.float32, "ratings")
K = tf.TensorSpec((None,), tf.int32, "k")

#: How much a history moves a search, in standard deviations of its scores; a cosine is between -1 and 1.
PERSONAL = 0.05
#: Scores that are spread less are equal but for rounding: they move nothing.
FAINT = 1e-4
#: Requests that an index of a large catalogue is measured on: chosen on 300, recall on others was .02 lower.
SAMPLED = 2000
AT_ONCE = 250  # of these through the network


class ServingModel(tf.Module):
    """A fitted hybrid with its catalogue and its text tower, ready to be saved.

    Every signature takes a batch of any size. String matrices are padded with ``""``; ids that the catalogue does not
    have count as absent, and ``unknown`` ``[B]`` says how many there were. Where fewer than ``k`` items remain, a row
    is filled up with ``""`` at score 0.

    What lists items has a twin, such as ``recommend_filtered``, that takes two inputs more: ``allow`` string
    ``[B, A]``, the only ids that may come back, and ``categories`` string ``[B, F]``, of which an item needs one. A row
    of nothing but ``""`` lets everything pass; one of ids or categories that the catalogue does not have, nothing.
    They are signatures of their own because TF Serving refuses a request that leaves an input out.

    Up to :data:`tfllmrec.layers.item_index.EXACT_ITEMS` items every list is exact.

    Args:
      model: fitted.
      item_ids: object ``[N]``.
      text: float32 ``[N, Dt]``, zeros where an item has no text.
      text_to_vector: string ``[B]`` -> float32 ``[B, Dt]``; ``None`` without text: no ``search`` then, nor ``encode``.
        Without ``vectors`` of its own, of token ids, as :class:`tfllmrec.text.encoder.TextToVector` has: no
        ``search_tokens``.
      histories: what people had: the lists of a larger catalogue are made to be right for such requests.
      categories: the clean cell of each item, see :func:`tfllmrec.data.cleaning.names.category_names`; ``None``: no
        item has any.
      labels: what the items are about; ``None``: nothing is said of them, and there is no ``interests``.
      ranking: fitted on ``model``; ``None``: no ``rank``.
      index: the form of the indexes; *scann* has operations that are not in TensorFlow.
    """

    def __init__(
        self,
        model: Hybrid,
        item_ids: np.ndarray,
        text: np.ndarray,
        text_to_vector: Any,
        histories: Queries,
        categories: Sequence[str] | None = None,
        labels: Interests | None = None,
        ranking: RankingModel | None = None,
        index: Form = "auto",
    ) -> None:
        super().__init__(name="tfllmrec")
        self.n_items = len(item_ids)
        ids = [str(item) for item in item_ids]
        self.index_of = _table({item: i for i, item in enumerate(ids)}, default=self.n_items)
        self.item_ids = tf.constant([*ids, ""])
        members: dict[str, list[int]] = {}
        for item, names in enumerate(() if categories is None else categories):
            for name in category_names(names):
                members.setdefault(name, []).append(item)
        self.category_of = _table({"": NOTHING} | {name: i for i, name in enumerate(members)}, default=len(members))
        self.item_vectors = tf.Variable(model.item_vectors(), trainable=False, name="item_vectors")
        self.folded = FoldedHybrid(model)
        labelled = list(map(np.asarray, members.values()))
        self._build_indexes(model, np.asarray(text, np.float32), histories, labelled, index)
        self._scann = [one.cells for one in (self.best, self.alike) if isinstance(one.cells, Scann)]
        self.text_to_vector = text_to_vector
        # Saving traces every function of a module, offered or not.
        if text_to_vector is None:
            self.search = self.search_filtered = self.encode = None
        if not hasattr(text_to_vector, "vectors"):
            self.search_tokens = None
        if not self._scann:
            self.prepare = self.release = None
        if labels is None:
            self.interests = None
        else:
            self.labels = tf.constant([*labels.labels, ""])
            self.profile = InterestProfile(
                labels.columns, labels.weights, len(labels.labels), labels.decay, labels.liking, labels.spread
            )
        # The Keras model itself stays out of the SavedModel; these are the variables that its functions read.
        layers = (model.history_encoder, model.feedback, model.behaviour, model.gates)
        self.variables_of_model = [model.train_counts] + [variable for layer in layers for variable in layer.variables]
        self._score_items = model.score_items
        self._explain_items = model.explain_items
        if ranking is None:
            self.rank = None
        else:
            self.variables_of_model += [*ranking.network.variables, ranking.item_bias]
            self._rank_items, self._rates = ranking.rank, ranking.rates

    def _build_indexes(
        self, model: Hybrid, text: np.ndarray, histories: Queries, categories: list[np.ndarray], index: Form
    ) -> None:
        """``best``, for ``recommend``; ``alike``, for ``search`` and ``similar``, of three vectors side by side."""
        own, folded = self.item_vectors.numpy(), self.folded.vectors
        # Without a dense side all are zeros, and there are no cells to be near to.
        form: Form = index if model.use_dense else "exact"
        asked, known = (None, None) if is_exact(form, self.n_items) else self._asked(model, histories)
        self.best = build_index(folded, asked, form, prior=self.folded.prior, categories=categories, exclude=known)
        # The texts of items stand for those that will be looked for.
        rows = _some(self.n_items)
        searched = np.hstack([text[rows], np.zeros_like(own[rows]), np.zeros_like(folded[rows])])
        compared = np.hstack([text[rows], own[rows], np.zeros_like(folded[rows])]) / 2
        vectors = np.hstack([text, own, folded])
        itself = np.concatenate([np.full_like(rows, self.n_items), rows])[:, np.newaxis]  # unless it is searched
        self.alike = build_index(vectors, np.vstack([searched, compared]), index, categories=categories, exclude=itself)

    def _asked(self, model: Hybrid, histories: Queries) -> tuple[np.ndarray, np.ndarray]:
        """What some of the ``histories`` ask for, float32 ``[Q, D]``, and they themselves, int32 ``[Q, L]``."""
        some = histories.take(_some(len(histories)))
        longest = max(int(some.history.lengths.max(initial=1)), 1)
        length = min(longest, model.history_encoder.max_length)
        asked = [
            self.folded.queries(
                self.item_vectors,
                {key: tf.constant(values) for key, values in few.inputs(self.n_items, model.reads, length).items()},
            ).numpy()
            for few in list(some.batches(AT_ONCE)) or [some]
        ]
        return np.concatenate(asked), some.history.padded(longest, self.n_items)

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """By the name that a client calls them by."""
        served = {
            "serving_default": self.recommend,
            "recommend": self.recommend,
            "recommend_filtered": self.recommend_filtered,
            "similar": self.similar,
            "similar_filtered": self.similar_filtered,
            "explain": self.explain,
            "score": self.score,
        }
        names = ("search", "search_filtered", "search_tokens", "encode", "interests", "rank")
        served |= {name: function for name in names if (function := getattr(self, name)) is not None}
        return {name: function.get_concrete_function() for name, function in served.items()}

    @tf.function(input_signature=[HISTORY, RATINGS, EXCLUDE, K])
    def recommend(self, history, ratings, exclude, k):
        """The best ``k`` items beyond the history and ``exclude``.

        Args:
          history: string ``[B, L]``, oldest first. ratings: float32 ``[B, R]``, one per history entry; NaN, or a row
            that is shorter, for none. exclude: string ``[B, E]``. k: int32 ``[B]``.
        """
        return self.recommend_filtered(history, ratings, exclude, *_no_filters(history), k)

    @tf.function(input_signature=[HISTORY, RATINGS, EXCLUDE, *FILTERS, K])
    def recommend_filtered(self, history, ratings, exclude, allow, categories, k):
        """As :meth:`recommend`, of what passes the filters."""
        query, unknown = self._known(history, ratings)
        found = self.best.top_k(
            k=k,
            exclude=tf.concat([query["history"], self.index_of.lookup(exclude)], axis=1),
            **self._filters(allow, categories),
            **self.folded.requests(self.item_vectors, query),
        )
        return self._listed(*found) | {"unknown": unknown}

    @tf.function(input_signature=[TEXT, HISTORY, EXCLUDE, K])
    def search(self, text, history, exclude, k):
        """Items whose text means what ``text`` string ``[B]`` says; a history moves those up that suit the person."""
        return self.search_filtered(text, history, exclude, *_no_filters(history), k)

    @tf.function(input_signature=[TEXT, HISTORY, EXCLUDE, *FILTERS, K])
    def search_filtered(self, text, history, exclude, allow, categories, k):
        """As :meth:`search`, of what passes the filters."""
        return self._found(self.text_to_vector(text), history, exclude, allow, categories, k)

    @tf.function(input_signature=[*TOKENS, HISTORY, EXCLUDE, K])
    def search_tokens(self, input_word_ids, input_mask, input_type_ids, history, exclude, k):
        """As :meth:`search`, for clients that tokenise by themselves: the same tokens find the same items.

        Args:
          input_word_ids, input_mask, input_type_ids: int32 ``[B, T]``, ``[CLS]`` and ``[SEP]`` included. Columns after
            the last one that any text fills do no harm; the others may be as many as the encoder has positions.
        """
        used = tf.reduce_any(input_mask != 0, axis=0)
        width = tf.reduce_max(tf.where(used, tf.range(tf.size(used)), 0)) + 1
        tokens = zip(INPUTS, (input_word_ids, input_mask, input_type_ids), strict=True)
        vectors = self.text_to_vector.vectors({name: value[:, :width] for name, value in tokens})
        return self._found(vectors, history, exclude, *_no_filters(history), k)

    @tf.function(input_signature=[TEXT])
    def encode(self, text):
        """What ``search`` takes ``text`` string ``[B]`` for: float32 ``[B, Dt]``, in the space of the items' texts."""
        return {"vectors": self.text_to_vector(text)}

    def _found(self, vectors, history, exclude, allow, categories, k) -> dict[str, tf.Tensor]:
        """The answer to texts of these ``vectors``, float32 ``[B, Dt]``."""
        known, unknown = self._known(history, tf.zeros((tf.shape(history)[0], 0)))
        query, items, values, mean = tf.cond(
            tf.reduce_any(known["history"] < self.n_items),
            lambda: self._leaning(known),
            lambda: self._no_leaning(known["history"]),
        )
        own = tf.zeros((tf.shape(vectors)[0], self.item_vectors.shape[1]))
        indices, scores = self.alike.top_k(
            query=tf.concat([vectors, own, query], axis=1),
            k=k,
            exclude=self.index_of.lookup(exclude),
            pairs=(items, values),
            **self._filters(allow, categories),
        )
        scores = tf.where(indices < self.n_items, scores - mean[:, tf.newaxis], 0.0)
        return self._listed(indices, scores) | {"unknown": unknown}

    @tf.function(input_signature=[ITEM_ID, K])
    def similar(self, item_id, k):
        """Items like ``item_id`` string ``[B]``: the mean of the cosines of their learned and of their text vectors."""
        return self.similar_filtered(item_id, *_no_filters(item_id), k)

    @tf.function(input_signature=[ITEM_ID, *FILTERS, K])
    def similar_filtered(self, item_id, allow, categories, k):
        """As :meth:`similar`, of what passes the filters."""
        index = self.index_of.lookup(item_id)
        present = index < self.n_items
        filters = self._filters(allow, categories)
        # Nothing is like an item that is not there.
        allowed = tf.pad(filters.pop("allowed"), [[0, 0], [0, 1]], constant_values=NOTHING)
        allowed = tf.where(present[:, tf.newaxis], allowed, self.n_items)
        text_and_own = self.alike.read(index)[:, : -self.folded.dim]
        query = tf.pad(0.5 * text_and_own, [[0, 0], [0, self.folded.dim]])
        found = self.alike.top_k(query, k, exclude=index[:, tf.newaxis], allowed=allowed, **filters)
        return self._listed(*found) | {"unknown": tf.cast(~present, tf.int32)}

    @tf.function(input_signature=[HISTORY, RATINGS, ITEMS])
    def explain(self, history, ratings, items):
        """The terms of the scores of ``items`` string ``[B, M]``, and the history item behind each (``""``: none)."""
        query, unknown = self._known(history, ratings)
        terms = self._explain_items(self.item_vectors, query, self.index_of.lookup(items))
        return terms | {"because": self._event_ids(query["history"], terms.pop("because")), "unknown": unknown}

    @tf.function(input_signature=[HISTORY, RATINGS, K])
    def interests(self, history, ratings, k):
        """The ``k`` labels that a history is most about, their weights, and the history item that adds most to each.

        Weights of a row sum to 1. Rows are filled up with ``""`` at weight 0 where the liked items have fewer labels.
        """
        query, unknown = self._known(history, ratings)
        labels, weights, position = self.profile(query["history"], query[RATING_KEY], k)
        return {
            "labels": tf.gather(self.labels, labels),
            "weights": weights,
            "because": self._event_ids(query["history"], position),
            "unknown": unknown,
        }

    @tf.function(input_signature=[HISTORY, RATINGS, ITEMS])
    def rank(self, history, ratings, items):
        """``click_probability`` of ``items`` string ``[B, M]``, and ``rating`` where the data has any.

        Both float32 ``[B, M]``, and 0 for ``""`` and unknown ids. What they mean:
        :meth:`tfllmrec.models.ranking.RankingModel.rank`.
        """
        query, unknown = self._known(history, ratings)
        probability, rating = self._rank_items(self.item_vectors, query, self.index_of.lookup(items))
        told = {"click_probability": probability, "unknown": unknown}
        return told | {"rating": rating} if self._rates else told

    @tf.function(input_signature=[HISTORY, RATINGS])
    def score(self, history, ratings):
        """All scores in catalogue order, float32 ``[B, N]``, nothing masked; for measuring what is served."""
        query, _ = self._known(history, ratings)
        return {"scores": self._score_items(self.item_vectors, query)}

    @tf.function(input_signature=[])
    def prepare(self):
        """Has ScaNN make of the variables what it needs, for who loads the model; not there without ScaNN."""
        for searcher in self._scann:
            searcher.prepare()

    @tf.function(input_signature=[])
    def release(self):
        """Gives up what :meth:`prepare` made, for who unloads the model; not there without ScaNN."""
        for searcher in self._scann:
            searcher.release()

    def _known(self, history: tf.Tensor, ratings: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """The query as the model reads it, and the count of unknown ids, int32 ``[B]``."""
        index = self.index_of.lookup(history)
        present = index < self.n_items
        length = tf.shape(history)[1]
        marks = tf.pad(ratings, [[0, 0], [0, tf.maximum(length - tf.shape(ratings)[1], 0)]], constant_values=np.nan)
        unknown = tf.reduce_sum(tf.cast(~present & (history != ""), tf.int32), axis=1)
        known = tf.ragged.boolean_mask(index, present).to_tensor(default_value=self.n_items)
        marks = tf.ragged.boolean_mask(marks[:, :length], present).to_tensor(default_value=np.nan)
        # A batch of empty histories still needs a column.
        known = tf.pad(known, [[0, 0], [0, 1]], constant_values=self.n_items)
        return {"history": known, RATING_KEY: tf.pad(marks, [[0, 0], [0, 1]], constant_values=np.nan)}, unknown

    def _event_ids(self, known: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        """Ids of the items at ``position`` int32 ``[B, M]`` of a history; ``""`` at -1."""
        event = tf.where(position >= 0, tf.gather(known, tf.maximum(position, 0), batch_dims=1), self.n_items)
        return tf.gather(self.item_ids, event)

    def _leaning(self, known: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """How histories move a search, 0 for an empty one.

        Returns:
          Query float32 ``[B, D]``, pairs ``[B, S]``, and what these add to an item on the mean, ``[B]``.
        """
        request = self.folded.requests(self.item_vectors, known)
        query = self.folded.without_offset(request["query"])  # what it adds is the same for every user
        mean, variance = self.folded.moments(self.best, query, request["pairs"])
        spread = tf.sqrt(variance)
        moves = (spread > FAINT) & ~request["unknown"]
        weight = tf.where(moves, PERSONAL / tf.maximum(spread, FAINT), 0.0)
        items, values = request["pairs"]
        return query * weight[:, tf.newaxis], items, values * weight[:, tf.newaxis], mean * weight

    def _no_leaning(self, known: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        batch = tf.shape(known)[0]
        nothing = tf.zeros((batch, 0))
        return tf.zeros((batch, self.folded.dim)), tf.cast(nothing, tf.int32), nothing, tf.zeros(batch)

    def _filters(self, allow: tf.Tensor, categories: tf.Tensor) -> dict[str, tf.Tensor]:
        """``allowed`` and ``categories`` of ``ItemIndex.top_k``."""
        return {
            "allowed": tf.where(allow == "", NOTHING, self.index_of.lookup(allow)),
            "categories": self.category_of.lookup(categories),
        }

    def _listed(self, indices: tf.Tensor, scores: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"item_ids": tf.gather(self.item_ids, indices), "scores": scores}


def _table(names: dict[str, int], default: int) -> tf.lookup.StaticHashTable:
    initializer = tf.lookup.KeyValueTensorInitializer(list(names), list(names.values()), tf.string, tf.int32)
    return tf.lookup.StaticHashTable(initializer, default_value=default)


def _no_filters(requests: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """``allow`` and ``categories`` that let everything pass."""
    none = tf.fill((tf.shape(requests)[0], 0), "")
    return none, none


def _some(size: int) -> np.ndarray:
    """Up to :data:`SAMPLED` places below ``size``, evenly spread."""
    return np.unique(np.linspace(0, max(size - 1, 0), min(size, SAMPLED)).astype(int))
