"""What a client may ask of an exported model: strings in, strings out, core TensorFlow and TF Text operations only."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.models.hybrid import Hybrid
from tfllmrec.text.bundled import INPUTS

STRINGS = tf.TensorSpec((None, None), tf.string)
FLOATS = tf.TensorSpec((None, None), tf.float32)
ONE_STRING = tf.TensorSpec((None,), tf.string)
ONE_INT = tf.TensorSpec((None,), tf.int32)
INTS = tf.TensorSpec((None, None), tf.int32)

#: How much a history moves a search, in standard deviations of its scores; a cosine is between -1 and 1.
PERSONAL = 0.05


class ServingModel(tf.Module):
    """A fitted hybrid with its catalogue and its text tower, ready to be saved.

    Every signature takes a batch of any size. String matrices are padded with ``""``; ids that the catalogue does not
    have count as absent, and ``unknown`` ``[B]`` says how many there were. Where fewer than ``k`` items remain, a row
    is filled up with ``""`` at score 0.

    Args:
      model: fitted.
      item_ids: object ``[N]``.
      text: float32 ``[N, Dt]``, zeros where an item has no text.
      text_to_vector: string ``[B]`` -> float32 ``[B, Dt]``; ``None`` without text: no ``search`` then, nor ``encode``.
        Without ``vectors`` of its own, of token ids, as :class:`tfllmrec.text.encoder.TextToVector` has: no
        ``search_tokens``.
    """

    def __init__(
        self,
        model: Hybrid,
        item_ids: np.ndarray,
        text: np.ndarray,
        text_to_vector: Any,
    ) -> None:
        super().__init__(name="tfllmrec")
        self.n_items = len(item_ids)
        ids = tf.constant([str(item) for item in item_ids])
        self.index_of = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(ids, tf.range(self.n_items)), default_value=self.n_items
        )
        self.item_ids = tf.concat([ids, [""]], axis=0)
        self.item_vectors = tf.Variable(model.item_vectors(), trainable=False, name="item_vectors")
        self.text = tf.Variable(np.asarray(text, np.float32), trainable=False, name="text_vectors")
        self.text_to_vector = text_to_vector
        # Saving traces every function of a module, offered or not.
        if text_to_vector is None:
            self.search = self.encode = None
        if not hasattr(text_to_vector, "vectors"):
            self.search_tokens = None
        # The Keras model itself stays out of the SavedModel; these are the variables that its functions read.
        layers = (model.history_encoder, model.feedback, model.behaviour, model.gates)
        self.variables_of_model = [model.train_counts] + [variable for layer in layers for variable in layer.variables]
        self._score_items = model.score_items
        self._explain_items = model.explain_items

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """By the name that a client calls them by."""
        served = {
            "serving_default": self.recommend,
            "recommend": self.recommend,
            "similar": self.similar,
            "explain": self.explain,
            "score": self.score,
        }
        reading = {"search": self.search, "search_tokens": self.search_tokens, "encode": self.encode}
        served |= {name: function for name, function in reading.items() if function is not None}
        return {name: function.get_concrete_function() for name, function in served.items()}

    @tf.function(
        input_signature=[
            tf.TensorSpec(STRINGS.shape, tf.string, "history"),
            tf.TensorSpec(FLOATS.shape, tf.float32, "ratings"),
            tf.TensorSpec(STRINGS.shape, tf.string, "exclude"),
            tf.TensorSpec(ONE_INT.shape, tf.int32, "k"),
        ]
    )
    def recommend(self, history, ratings, exclude, k):
        """The best ``k`` items beyond the history and ``exclude``.

        Args:
          history: string ``[B, L]``, oldest first. ratings: float32 ``[B, R]``, one per history entry; NaN, or a row
            that is shorter, for none. exclude: string ``[B, E]``. k: int32 ``[B]``.
        """
        known, marks, unknown = self._known(history, ratings)
        scores = self._score_items(self.item_vectors, known, marks)
        return self._best(scores, [known, self.index_of.lookup(exclude)], k) | {"unknown": unknown}

    @tf.function(
        input_signature=[
            tf.TensorSpec(ONE_STRING.shape, tf.string, "text"),
            tf.TensorSpec(STRINGS.shape, tf.string, "history"),
            tf.TensorSpec(STRINGS.shape, tf.string, "exclude"),
            tf.TensorSpec(ONE_INT.shape, tf.int32, "k"),
        ]
    )
    def search(self, text, history, exclude, k):
        """Items whose text means what ``text`` string ``[B]`` says; a history moves those up that suit the person."""
        return self._found(self.text_to_vector(text), history, exclude, k)

    @tf.function(
        input_signature=[
            *(tf.TensorSpec(INTS.shape, tf.int32, name) for name in INPUTS),
            tf.TensorSpec(STRINGS.shape, tf.string, "history"),
            tf.TensorSpec(STRINGS.shape, tf.string, "exclude"),
            tf.TensorSpec(ONE_INT.shape, tf.int32, "k"),
        ]
    )
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
        return self._found(vectors, history, exclude, k)

    @tf.function(input_signature=[tf.TensorSpec(ONE_STRING.shape, tf.string, "text")])
    def encode(self, text):
        """What ``search`` takes ``text`` string ``[B]`` for: float32 ``[B, Dt]``, in the space of the items' texts."""
        return {"vectors": self.text_to_vector(text)}

    def _found(self, vectors: tf.Tensor, history: tf.Tensor, exclude: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        """The answer to texts of these ``vectors``, float32 ``[B, Dt]``."""
        meant = tf.matmul(vectors, self.text, transpose_b=True)
        known, marks, unknown = self._known(history, tf.zeros((tf.shape(history)[0], 0)))
        liked = self._score_items(self.item_vectors, known, marks)
        spread = tf.math.reduce_std(liked, axis=1, keepdims=True)
        personal = tf.math.divide_no_nan(liked - tf.reduce_mean(liked, axis=1, keepdims=True), spread)
        has_history = tf.reduce_any(known < self.n_items, axis=1, keepdims=True)
        scores = meant + tf.where(has_history, PERSONAL * personal, 0.0)
        return self._best(scores, [self.index_of.lookup(exclude)], k) | {"unknown": unknown}

    @tf.function(
        input_signature=[
            tf.TensorSpec(ONE_STRING.shape, tf.string, "item_id"),
            tf.TensorSpec(ONE_INT.shape, tf.int32, "k"),
        ]
    )
    def similar(self, item_id, k):
        """Items like ``item_id`` string ``[B]``: the mean of the cosines of their learned and of their text vectors."""
        index = self.index_of.lookup(item_id)
        present = index < self.n_items
        row = tf.where(present, index, 0)
        scores = 0.5 * (
            tf.matmul(tf.gather(self.item_vectors, row), self.item_vectors, transpose_b=True)
            + tf.matmul(tf.gather(self.text, row), self.text, transpose_b=True)
        )
        scores = tf.where(present[:, tf.newaxis], scores, -np.inf)
        return self._best(scores, [index[:, tf.newaxis]], k) | {"unknown": tf.cast(~present, tf.int32)}

    @tf.function(
        input_signature=[
            tf.TensorSpec(STRINGS.shape, tf.string, "history"),
            tf.TensorSpec(FLOATS.shape, tf.float32, "ratings"),
            tf.TensorSpec(STRINGS.shape, tf.string, "items"),
        ]
    )
    def explain(self, history, ratings, items):
        """The terms of the scores of ``items`` string ``[B, M]``, and the history item behind each (``""``: none)."""
        known, marks, unknown = self._known(history, ratings)
        terms = self._explain_items(self.item_vectors, known, marks, self.index_of.lookup(items))
        position = terms.pop("because")
        event = tf.where(position >= 0, tf.gather(known, tf.maximum(position, 0), batch_dims=1), self.n_items)
        return terms | {"because": tf.gather(self.item_ids, event), "unknown": unknown}

    @tf.function(
        input_signature=[
            tf.TensorSpec(STRINGS.shape, tf.string, "history"),
            tf.TensorSpec(FLOATS.shape, tf.float32, "ratings"),
        ]
    )
    def score(self, history, ratings):
        """All scores in catalogue order, float32 ``[B, N]``, nothing masked; for measuring what is served."""
        known, marks, _ = self._known(history, ratings)
        return {"scores": self._score_items(self.item_vectors, known, marks)}

    def _known(self, history: tf.Tensor, ratings: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Indices int32 ``[B, L']`` left-aligned and padded with N, their ratings, and the count of unknown ids."""
        index = self.index_of.lookup(history)
        present = index < self.n_items
        length = tf.shape(history)[1]
        marks = tf.pad(ratings, [[0, 0], [0, tf.maximum(length - tf.shape(ratings)[1], 0)]], constant_values=np.nan)
        unknown = tf.reduce_sum(tf.cast(~present & (history != ""), tf.int32), axis=1)
        known = tf.ragged.boolean_mask(index, present).to_tensor(default_value=self.n_items)
        marks = tf.ragged.boolean_mask(marks[:, :length], present).to_tensor(default_value=np.nan)
        # A batch of empty histories still needs a column.
        known = tf.pad(known, [[0, 0], [0, 1]], constant_values=self.n_items)
        return known, tf.pad(marks, [[0, 0], [0, 1]], constant_values=np.nan), unknown

    def _best(self, scores: tf.Tensor, forbidden: list[tf.Tensor], k: tf.Tensor) -> dict[str, tf.Tensor]:
        """Top k of ``[B, N]`` scores without the ``forbidden`` indices ``[B, *]`` (N among them is nothing)."""
        batch = tf.shape(scores)[0]
        columns = tf.concat(forbidden, axis=1)
        rows = tf.repeat(tf.range(batch)[:, tf.newaxis], tf.shape(columns)[1], axis=1)
        at = tf.reshape(tf.stack([rows, columns], axis=-1), (-1, 2))
        masked = tf.pad(scores, [[0, 0], [0, 1]], constant_values=-np.inf)
        masked = tf.tensor_scatter_nd_update(masked, at, tf.fill((tf.shape(at)[0],), np.float32(-np.inf)))
        k = tf.maximum(tf.broadcast_to(k, (batch,)), 0)
        width = tf.reduce_max(tf.concat([k, [0]], axis=0))
        found = tf.math.top_k(masked, k=tf.minimum(width, self.n_items + 1))
        shown = tf.math.is_finite(found.values) & (tf.range(tf.shape(found.values)[1])[tf.newaxis] < k[:, tf.newaxis])
        missing = [[0, 0], [0, width - tf.shape(found.values)[1]]]
        indices = tf.pad(tf.where(shown, found.indices, self.n_items), missing, constant_values=self.n_items)
        return {
            "item_ids": tf.gather(self.item_ids, indices),
            "scores": tf.pad(tf.where(shown, found.values, 0.0), missing),
        }
