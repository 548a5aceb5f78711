"""Ranks a few hundred candidates with target attention and feature crosses, in addition to the hybrid's score.

    click_c  = softmax over the candidates c of  w score(u, c) + s f(u, c)
    rating_c = mean + b_c + b_u + <f_c, g_u> + t g(u, c)

``f`` and ``g`` are two small heads on one network, and are 0 before training. So an untrained model ranks like the
hybrid, and predicts ratings like the factor model (:mod:`tfllmrec.models.rating_factors`). If factors do not help, the
ratings come from item and user biases alone (Koren, Bell and Volinsky 2009, "Matrix factorization techniques for
recommender systems"). ``s`` and ``t`` are 1 in training and chosen on validation afterwards; 0 if a head does not help
held-out users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfllmrec.columns import ITEM_INDEX, RATING
from tfllmrec.config import RankingConfig
from tfllmrec.data.queries import LONGEST, Queries
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.data.splits import Split
from tfllmrec.evaluation.metrics import masked, top_items
from tfllmrec.layers.global_state import keras_policy
from tfllmrec.layers.label_match import LabelMatch
from tfllmrec.layers.newest_events import newest_events
from tfllmrec.layers.rating_posterior import RatingPosterior
from tfllmrec.layers.rows_of import rows_of
from tfllmrec.layers.target_attention import TargetAttention
from tfllmrec.layers.traced_once import traced_once
from tfllmrec.losses.focal import FocalCrossentropy
from tfllmrec.losses.replicas import share_of_replica
from tfllmrec.models.measured import MeasuredModel
from tfllmrec.models.rating_factors import RatingFactors
from tfllmrec.models.servable import Query, Servable, empty_query

#: Number of ratings of an item, and of a user, at which shrinkage halves their bias.
ITEM_SHRINKAGE, USER_SHRINKAGE = 10.0, 10.0
ABSENT = -1e9
#: The entries that training lists have in addition to those of :meth:`RankingModel.given`; see
#: :meth:`RankingModel.compute_loss`.
LEARNT_FROM = ("label", "log_times", "weight")
NAN = float("nan")


@dataclass(frozen=True)
class RatingScale:
    """The mean and the range of the training ratings, and the biases of the items.

    Attributes:
      mean, low, high: The mean, the minimum and the maximum of the training ratings.
      item_bias: The mean difference of an item's ratings from ``mean``, shrunk towards 0, float32 ``[N]``; 0 for items
        without ratings.
      item_counts: The number of ratings of each item, float32 ``[N]``.
    """

    mean: float
    low: float
    high: float
    item_bias: np.ndarray
    item_counts: np.ndarray

    @classmethod
    def of(cls, items: np.ndarray, ratings: np.ndarray, n_items: int) -> RatingScale:
        """Computes the scale from item indices, int ``[E]``, and ratings, float32 ``[E]``; at least one is not NaN."""
        rated = np.isfinite(ratings)
        items, ratings = items[rated], ratings[rated].astype(np.float64)
        mean = ratings.mean()
        counts = np.bincount(items, minlength=n_items)
        bias = np.bincount(items, ratings - mean, n_items) / (ITEM_SHRINKAGE + counts)
        return cls(
            float(mean), float(ratings.min()), float(ratings.max()), bias.astype(np.float32), counts.astype(np.float32)
        )

    @classmethod
    def of_split(cls, split: Split, n_items: int | None = None) -> RatingScale | None:
        """Computes the scale of a split's training events; ``None`` if they have no ratings, or all ratings are equal.

        Args:
          split: The split.
          n_items: The number of items of a catalogue that has grown since. The new items have no ratings.
        """
        ratings = split.train[RATING]
        if ratings.nunique() < 2:  # missing ratings are not counted
            return None
        items = split.train[ITEM_INDEX].to_numpy()
        return cls.of(items, ratings.to_numpy(np.float32), n_items or split.dataset.n_items)

    def ratings(self, queries: Queries, items: np.ndarray) -> np.ndarray:
        """Predicts the ratings of ``items`` int ``[B, M]`` from the biases of items and users, float32 ``[B, M]``."""
        history, ratings = queries.history, queries.ratings.values
        rated = np.isfinite(ratings)
        row, item = history.row_of_value[rated], history.values[rated]
        above = np.bincount(row, ratings[rated] - self.mean - self.item_bias[item], len(queries))
        user = above / (USER_SHRINKAGE + np.bincount(row, minlength=len(queries)))
        return np.clip(self.mean + user[:, np.newaxis] + self.item_bias[items], self.low, self.high).astype(np.float32)

    def bias_without(self, items: np.ndarray, ratings: np.ndarray) -> np.ndarray:
        """Returns the biases that ``items`` would have without these training ratings, one of each item."""
        total = self.item_bias[items] * (ITEM_SHRINKAGE + self.item_counts[items]) - (ratings - self.mean)
        return total / (ITEM_SHRINKAGE + self.item_counts[items] - 1)


@tf.keras.utils.register_keras_serializable("tfllmrec")
class RankingNetwork(tf.keras.layers.Layer):
    """The trained part of the ranking model: logits for the order and corrections of the ratings, ``[B, M]`` each.

    Args:
      config: The sizes.
      terms: Number of terms for each pair of user and candidate.
      seed: Random seed of all initialisers.
      reads_requests: Whether the fields of the request and its user are crossed with the candidates.
      factors: The sizes of the layer ``prior``, ``RatingFactors.sizes``; the rating head corrects the ratings of this
        layer. ``None``: there is no such layer.
    """

    def __init__(
        self,
        config: RankingConfig,
        terms: int,
        seed: int,
        reads_requests: bool = False,
        factors: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config, self.seed = config, seed
        self.prior = None if factors is None else RatingPosterior(*factors, name="prior")
        glorot = tf.keras.initializers.GlorotUniform
        self.attention = TargetAttention(config.keys, config.hidden, seed, name="attention")
        self.of_request = (
            tf.keras.layers.Dense(config.keys, kernel_initializer=glorot(seed + 5), name="of_request")
            if reads_requests
            else None
        )
        self.crosses = [
            tfrs.layers.dcn.Cross(kernel_initializer=glorot(seed + 10 + i), name=f"cross_{i}")
            for i in range(config.crosses)
        ]
        self.heads = {}
        for i, name in enumerate(("click", "rating")):
            self.heads[name] = tf.keras.Sequential(
                [
                    tf.keras.layers.Dense(
                        config.hidden, "relu", kernel_initializer=glorot(seed + 20 + i), name=f"{name}_hidden"
                    ),
                    tf.keras.layers.Dense(1, kernel_initializer="zeros", use_bias=False, name=f"{name}_output"),
                ],
                name=name,
            )
        frozen = {"dtype": tf.float32, "trainable": False}
        #: Mean and deviation of the terms, which are standardised by them.
        self.shift = self.add_weight(name="shift", shape=(terms,), initializer="zeros", **frozen)
        self.scale = self.add_weight(name="scale", shape=(terms,), initializer="ones", **frozen)
        #: Weights of the two heads, chosen on validation.
        self.strengths = self.add_weight(name="strengths", shape=(2,), initializer="ones", **frozen)
        self.log_weight = self.add_weight(name="log_weight", shape=(), initializer="zeros")

    def call(
        self,
        candidates: tf.Tensor,
        terms: tf.Tensor,
        scores: tf.Tensor,
        events: tf.Tensor,
        features: tf.Tensor,
        present: tf.Tensor,
        request: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the logits and the corrections of the ratings, float32 ``[B, M]`` each.

        Args:
          candidates, events, features, present: As in :class:`TargetAttention`.
          terms: The terms of each candidate, ``[B, M, T]``.
          scores: The hybrid's scores, ``[B, M]``.
          request: The fields of the request and its user, ``[B, F]``.
        """
        read, keys = self.attention(candidates, events, features, present)
        known = tf.math.log1p(tf.reduce_sum(tf.cast(present, tf.float32), axis=1))[:, tf.newaxis, tf.newaxis]
        parts = [(terms - self.shift) / self.scale, read, keys, known * tf.ones_like(scores)[..., tf.newaxis]]
        if self.of_request is not None:
            parts.append(self.of_request(request)[:, tf.newaxis] * tf.ones_like(scores)[..., tf.newaxis])
        x = start = tf.concat(parts, axis=-1)
        for cross in self.crosses:
            x = cross(start, x)
        # Without a history, the heads have no effect and get no gradient.
        known = known[:, 0] > 0
        click, rating = (tf.where(known, head(x)[..., 0], 0.0) for head in self.heads.values())
        return tf.exp(self.log_weight) * scores + self.strengths[0] * click, self.strengths[1] * rating

    def get_config(self) -> dict[str, Any]:
        settings = {"config": self.config.model_dump(mode="json"), "terms": self.shift.shape[0], "seed": self.seed}
        sizes = None if self.prior is None else [self.prior.n_items, self.prior.rank, self.prior.components]
        reads = self.of_request is not None
        return {**super().get_config(), **settings, "reads_requests": reads, "factors": sizes}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config | {"config": RankingConfig(**config["config"])})


@tf.keras.utils.register_keras_serializable("tfllmrec")
class RankingModel(MeasuredModel):
    """Ranks candidates for a query: predicts the probability that each is the next item, and its rating.

    It is a ``tfrs.Model`` for ``compile`` and ``fit`` on batches from ``training.ranking.examples``. It contains a
    fitted hybrid, which is frozen. Items are represented by the hybrid's ``e_i``, which come from text, so cold and new
    items are also ranked.

    ``save("m.keras")`` and ``.weights.h5`` files also store the hybrid, and loading them sets its weights. Other weight
    files contain only the weights of the ranking model: load them into a model that was made with the same hybrid.
    Keras cannot save the model as a SavedModel, because it has no ``call``. Use :func:`tfllmrec.export` instead.

    Args:
      hybrid: A fitted hybrid.
      config: The sizes.
      scale: The scale of the ratings; ``None`` if the data has none. No ratings are predicted then.
      seed: Random seed of all initialisers.
      factors: The factor model of the base ratings; ``None``: item and user biases. The factors may cover only the
        first items of a catalogue that has grown since. The base rating of other items is then the mean rating plus the
        user's bias.
      labels: Compares the labels of candidates with the user's interests; ``None``: labels are not read.
      kwargs: ``name``, as in ``tf.keras.Model``.
    """

    @keras_policy("float32")
    def __init__(
        self,
        hybrid: Servable,
        config: RankingConfig,
        scale: RatingScale | None,
        seed: int = 42,
        factors: RatingFactors | None = None,
        labels: LabelMatch | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config, self.seed, self.labels = config, seed, labels
        self.n_items, self.length, self.rates = hybrid.n_items, config.history_length, scale is not None
        scale = scale or RatingScale(0.0, 0.0, 0.0, none := np.zeros(self.n_items, np.float32), none)
        self.mean, self.low, self.high = scale.mean, scale.low, scale.high
        self.item_bias = tf.Variable(scale.item_bias, trainable=False, name="item_bias")
        self.counts = hybrid.train_counts
        # A function, so that Keras does not track the hybrid's variables as those of this model.
        self._hybrid = lambda: hybrid
        sizes = None if factors is None else factors.sizes
        terms = len(hybrid.term_names) + 1 + (0 if labels is None else LabelMatch.WIDTH)
        nobody = empty_query(hybrid.query_spec, self.n_items)
        reads = hybrid.request_vectors(nobody).shape[-1] > 0
        self.network = RankingNetwork(config, terms, seed, reads, sizes, name="network")
        # Under tf.distribute, Keras cannot average a loss over the batch. MeanSquaredError of [B] is a mean anyway.
        self.click_task = tfrs.tasks.Ranking(
            loss=FocalCrossentropy(config.focal_gamma, reduction="sum", name="focal"), name="click_task"
        )
        self.rating_task = tfrs.tasks.Ranking(
            loss=tf.keras.losses.MeanSquaredError(reduction="sum"), name="rating_task"
        )
        self.click_loss = tf.keras.metrics.Mean("click_loss")
        self.rating_loss = tf.keras.metrics.Mean("rating_loss")
        self.item_vectors = tf.Variable(hybrid.item_vectors(), trainable=False, name="item_vectors")
        # This call creates all variables, because weights may be loaded before any other call.
        self.learned(self.item_vectors, **self.given(self.item_vectors, nobody, nobody["history"]))
        if self.network.prior is not None and factors is not None:
            self.network.prior.set_weights(factors.weights)
        self.network.heads["rating"].trainable = self.rates
        self.built = True

    @property
    def hybrid(self) -> Servable:
        return self._hybrid()

    @property
    def reorders(self) -> bool:
        """Whether the click head has a weight above 0. If not, the order is that of the hybrid."""
        return float(self.network.strengths[0]) > 0

    @property
    def reads_requests(self) -> bool:
        """Whether the fields of the request and its user are crossed with the candidates."""
        return self.network.of_request is not None

    @property
    def resources(self) -> list[tf.Variable]:
        """Variables that :meth:`rank` reads in addition to those of the hybrid; a SavedModel must contain them."""
        return [*self.network.variables, self.item_bias, *([] if self.labels is None else self.labels.variables)]

    def get_config(self) -> dict[str, Any]:
        """Returns the settings of this model and of the hybrid; large arrays are in the weights."""
        return {
            "name": self.name,
            "hybrid": tf.keras.saving.serialize_keras_object(self.hybrid),
            "config": self.config.model_dump(mode="json"),
            "scale": [self.mean, self.low, self.high] if self.rates else None,
            "factors": self.network.get_config()["factors"],
            "labels": None if self.labels is None else tf.keras.saving.serialize_keras_object(self.labels),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """Creates a model and a hybrid of the same sizes; their weights must be loaded afterwards."""
        config = dict(config)
        hybrid = tf.keras.saving.deserialize_keras_object(config.pop("hybrid"))
        none = np.zeros(hybrid.n_items, np.float32)
        marks = config.pop("scale")
        scale = None if marks is None else RatingScale(marks[0], marks[1], marks[2], none, none)
        sizes = config.pop("factors", None)
        factors = None if sizes is None else RatingFactors.empty(*sizes)
        if (labels := config.pop("labels", None)) is not None:
            labels = tf.keras.saving.deserialize_keras_object(labels)
        return cls(hybrid, RankingConfig(**config.pop("config")), scale, factors=factors, labels=labels, **config)

    def given(
        self,
        item_vectors: tf.Tensor,
        query: Query,
        items: tf.Tensor,
        terms: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Computes the inputs of :meth:`learned`, which do not depend on trained weights of this model.

        Args:
          item_vectors: ``Servable.item_vectors``, or the same as a constant.
          query: The queries; their histories may have any length.
          items: The candidates, int32 ``[B, M]``; N for no item.
          terms: ``Servable.terms_of_items``, if they have been computed already.

        Returns:
          A mapping with these entries:

          - ``recent``: The newest events, int32 ``[B, L']``.
          - ``marks``: The rating of each of these events minus the mean and the biases of its item and the user,
            float32 ``[B, L']``; NaN for no rating.
          - ``items``: The candidates.
          - ``terms``: The T terms of the hybrid, the log popularity and, if labels are read, the two numbers of
            :class:`~tfllmrec.layers.label_match.LabelMatch`, float32 ``[B, M, T + 1]`` or ``[B, M, T + 3]``.
          - ``scores``: The hybrid's scores, float32 ``[B, M]``.
          - ``prior``: The base rating from factors, or from biases alone, float32 ``[B, M]``.
          - ``request``: ``Servable.request_vectors``, float32 ``[B, F]``.
        """
        history, ratings = query["history"], query[RATING_KEY]
        present = history < self.n_items
        known_items = tf.where(items < self.n_items, items, 0)
        if terms is None:
            terms = self.hybrid.terms_of_items(item_vectors, query, known_items)
        popularity = tf.math.log1p(rows_of(self.counts, known_items))
        beside = [terms, popularity[..., tf.newaxis]]
        if self.labels is not None:
            choices = self.hybrid.choices(query)
            beside.append(self.labels(choices["history"], choices[RATING_KEY], known_items))
        nothing_known = ~tf.reduce_any(present, axis=1, keepdims=True)
        rated = present & tf.math.is_finite(ratings)
        usual = self.mean + rows_of(self.item_bias, tf.where(present, history, 0))
        above = tf.where(rated, ratings - usual, 0.0)
        user = tf.reduce_sum(above, axis=1, keepdims=True) / (
            USER_SHRINKAGE + tf.reduce_sum(tf.cast(rated, tf.float32), axis=1, keepdims=True)
        )
        lengths = tf.reduce_sum(tf.cast(present, tf.int32), axis=1)
        if self.network.prior is None:
            prior = self.mean + user + rows_of(self.item_bias, known_items)
        else:
            # Needs an array of [B, L, 1 + D + P] numbers.
            prior = self.network.prior(
                newest_events(history, lengths, LONGEST, self.n_items),
                newest_events(ratings, lengths, LONGEST, NAN),
                known_items,
            )
        return {
            "recent": newest_events(history, lengths, self.length, self.n_items),
            "marks": newest_events(tf.where(rated, above - user, NAN), lengths, self.length, NAN),
            "items": items,
            "terms": tf.concat(beside, axis=-1),
            "scores": tf.reduce_sum(terms, axis=-1) + tf.where(nothing_known, popularity, 0.0),
            "prior": prior,
            "request": self.hybrid.request_vectors(query),
        }

    def learned(
        self,
        item_vectors: tf.Tensor,
        recent: tf.Tensor,
        marks: tf.Tensor,
        items: tf.Tensor,
        terms: tf.Tensor,
        scores: tf.Tensor,
        prior: tf.Tensor,
        request: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes logits and ratings of the candidates, float32 ``[B, M]`` each, from the result of :meth:`given`."""
        present = recent < self.n_items
        events = rows_of(item_vectors, tf.where(present, recent, 0))
        candidates = rows_of(item_vectors, tf.where(items < self.n_items, items, 0))
        rated = present & tf.math.is_finite(marks)
        there = tf.cast(present, tf.float32)
        steps_back = tf.reduce_sum(there, axis=1, keepdims=True) - tf.cumsum(there, axis=1)
        features = [tf.where(rated, marks, 0.0), tf.cast(rated, tf.float32), tf.math.log1p(steps_back) * there]
        logits, better = self.network(candidates, terms, scores, events, tf.stack(features, axis=-1), present, request)
        return tf.where(items < self.n_items, logits, ABSENT), prior + better

    @tf.autograph.experimental.do_not_convert  # AutoGraph would take seconds, and nothing here needs it
    def compute_loss(self, inputs: dict[str, dict[str, tf.Tensor]], training: bool = False) -> tf.Tensor:
        """Computes the sum of the losses of both tasks.

        Args:
          inputs: The candidate lists as ``lists``: the result of :meth:`given`, with the position of the next item in
            each list as ``label``, int32 ``[B]``; the logarithm of the number of items that each candidate represents
            as ``log_times``, float32 ``[B, M]``; and the weight of each list as ``weight``, float32 ``[B]``. If ratings
            are learned, also ``rated``: the result of :meth:`given` for lists of one item, with ``rating``, float32
            ``[B]``.
        """
        lists = dict(inputs["lists"])
        label, log_times, weight = (lists.pop(name) for name in LEARNT_FROM)
        logits = self.learned(self.item_vectors, **lists)[0] + log_times
        total = self.click_task(labels=label, predictions=logits, sample_weight=weight, compute_metrics=False)
        loss = tf.math.divide_no_nan(total, tf.reduce_sum(weight))
        self.click_loss.update_state(loss, tf.reduce_sum(weight))
        if "rated" in inputs:
            rated = dict(inputs["rated"])
            rating = rated.pop("rating")
            _, told = self.learned(self.item_vectors, **rated)
            squared = self.rating_task(labels=rating, predictions=told[:, 0], compute_metrics=False)
            self.rating_loss.update_state(squared, tf.shape(rating)[0])
            loss += squared
        return share_of_replica(loss)

    def targets_and_predictions(self, inputs: dict[str, dict[str, tf.Tensor]]) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the position of the next item in each list, int32 ``[B]``, and the logits, float32 ``[B, M]``."""
        lists = {name: values for name, values in inputs["lists"].items() if name not in LEARNT_FROM}
        return inputs["lists"]["label"], self.learned(self.item_vectors, **lists)[0]

    @traced_once
    def rank(self, item_vectors: tf.Tensor, query: Query, items: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the probability and the rating of each candidate, float32 ``[B, M]`` each.

        The probability is that the candidate is the user's next item, given that the next item is among the candidates.
        So the probabilities of a row sum to 1, more candidates lower each probability, and a single candidate has 1. An
        item that is given twice counts as two candidates. The rating is the expected rating, clipped to the range of
        the ratings in the data. Both are 0 where there is no item. The arguments are those of :meth:`given`.
        """
        logits, told = self.learned(item_vectors, **self.given(item_vectors, query, items))
        there = items < self.n_items
        told = tf.clip_by_value(told, self.low, self.high)
        # TensorFlow's optimizer loses the rank of values from a lookup table and would log a warning at each load.
        return tf.where(there, tf.nn.softmax(tf.ensure_shape(logits, items.shape)), 0.0), tf.where(there, told, 0.0)


class Reranked:
    """A ``Recommender`` that ranks the hybrid's best items by the ranking model, and all other items below them.

    Args:
      hybrid: The fitted hybrid.
      model: The fitted ranking model.
      candidates: The number of items that the ranking model ranks.
    """

    def __init__(self, hybrid: Servable, model: RankingModel, candidates: int) -> None:
        self.hybrid, self.model, self.candidates = hybrid, model, candidates
        self._rank = tf.function(
            model.rank,
            input_signature=[
                tf.TensorSpec((None, None), tf.float32),
                hybrid.query_spec,
                tf.TensorSpec((None, None), tf.int32),
            ],
            autograph=False,
        )

    def rank(self, queries: Queries, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Computes probabilities and ratings of ``items`` int ``[B, M]`` (N for no item), float32 ``[B, M]`` each."""
        probability, rating = np.empty(items.shape, np.float32), np.empty(items.shape, np.float32)
        order = np.argsort(queries.history.lengths, kind="stable")  # groups similar lengths, as the model's score does
        size = self.hybrid.rows_at_once
        for start in range(0, len(queries), size):
            rows = order[start : start + size]
            query = self.hybrid.query_inputs(queries.take(rows))
            probability[rows], rating[rows] = self._rank(self.model.item_vectors, query, items[rows].astype(np.int32))
        return probability, rating

    def score(self, queries: Queries) -> np.ndarray:
        """Scores all items for each query, float32 ``[B, N]``; items that a query excludes are not candidates."""
        scores = self.hybrid.score(queries)
        best = self.best(scores, queries)
        probability, _ = self.rank(queries, best)
        place = np.argsort(np.argsort(-probability, axis=1, kind="stable"), axis=1, kind="stable")
        row, column = np.nonzero(best < self.model.n_items)
        top = scores.max(axis=1, keepdims=True) + best.shape[1]
        scores[row, best[row, column]] = (top - place)[row, column]
        return scores

    def best(self, scores: np.ndarray, queries: Queries) -> np.ndarray:
        """Returns the candidates of each query, best first, int64 ``[B, M]``; N for no item.

        Args:
          scores: The hybrid's scores, ``[B, N]``.
          queries: The queries, whose excluded items are no candidates.
        """
        best = top_items(masked(scores, queries), min(self.candidates, self.model.n_items))
        return np.where(best >= 0, best, self.model.n_items)
