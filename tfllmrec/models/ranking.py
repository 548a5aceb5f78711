"""Orders a few hundred candidates: target attention and feature crosses on top of the hybrid's score.

    click_c  = softmax over the offered c of  w score(u, c) + s f(u, c)
    rating_c = mean + b_c + b_u + <f_c, g_u> + t g(u, c)

``f`` and ``g`` are two small heads on one network, and start at nothing: an untrained model orders as the hybrid does,
and rates as the factor model does (:mod:`tfllmrec.models.rating_factors`), or as biases where factors do not help
(Koren, Bell and Volinsky 2009, "Matrix factorization techniques for recommender systems").
``s`` and ``t`` are 1 in training and chosen on validation afterwards; 0 where a head does not help held-out users.
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

#: Ratings that an item and a user need for half of their bias to be believed.
ITEM_SHRINKAGE, USER_SHRINKAGE = 10.0, 10.0
ABSENT = -1e9
#: The entries that training lists have in addition to those of :meth:`RankingModel.given`; see
#: :meth:`RankingModel.compute_loss`.
LEARNT_FROM = ("label", "log_times", "weight")
NAN = float("nan")


@dataclass(frozen=True)
class RatingScale:
    """What ratings are like before anything is known of a user.

    Attributes:
      mean, low, high: of the training ratings.
      item_bias: float32 ``[N]``, how far an item's ratings are from the mean, shrunk towards 0; 0 where it has none.
      item_counts: float32 ``[N]``, its ratings.
    """

    mean: float
    low: float
    high: float
    item_bias: np.ndarray
    item_counts: np.ndarray

    @classmethod
    def of(cls, items: np.ndarray, ratings: np.ndarray, n_items: int) -> RatingScale:
        """From int ``[E]`` item indices and their ratings float32 ``[E]``, at least one of which is not NaN."""
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
        """That of a split's training events; ``None`` where they have no ratings, or the data only one value.

        Args:
          n_items: of a grown catalogue, whose further items nobody has rated.
        """
        ratings = split.train[RATING].to_numpy(np.float32)
        if not split.dataset.has_ratings or not np.isfinite(ratings).any():
            return None
        return cls.of(split.train[ITEM_INDEX].to_numpy(), ratings, n_items or split.dataset.n_items)

    def ratings(self, queries: Queries, items: np.ndarray) -> np.ndarray:
        """The ratings by biases, float32 ``[B, M]``, of ``items`` int ``[B, M]``."""
        history, ratings = queries.history, queries.ratings.values
        rated = np.isfinite(ratings)
        row, item = history.row_of_value[rated], history.values[rated]
        above = np.bincount(row, ratings[rated] - self.mean - self.item_bias[item], len(queries))
        user = above / (USER_SHRINKAGE + np.bincount(row, minlength=len(queries)))
        return np.clip(self.mean + user[:, np.newaxis] + self.item_bias[items], self.low, self.high).astype(np.float32)

    def bias_without(self, items: np.ndarray, ratings: np.ndarray) -> np.ndarray:
        """The biases of ``items``, had the training events not had these ``ratings`` of them, one each."""
        total = self.item_bias[items] * (ITEM_SHRINKAGE + self.item_counts[items]) - (ratings - self.mean)
        return total / (ITEM_SHRINKAGE + self.item_counts[items] - 1)


@tf.keras.utils.register_keras_serializable("tfllmrec")
class RankingNetwork(tf.keras.layers.Layer):
    """All that is learnt: float32 ``[B, M]`` for the order, and ``[B, M]`` for the ratings.

    Args:
      config: sizes.
      terms: how many numbers come for each pair of user and candidate.
      seed: of all initialisers.
      factors: the sizes of the layer ``prior``, which rates before the rating head does: ``RatingFactors.sizes``. None:
        there is no such layer.
    """

    def __init__(
        self, config: RankingConfig, terms: int, seed: int, factors: Sequence[int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.config, self.seed = config, seed
        self.prior = None if factors is None else RatingPosterior(*factors, name="prior")
        glorot = tf.keras.initializers.GlorotUniform
        self.attention = TargetAttention(config.keys, config.hidden, seed, name="attention")
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
        #: Of the terms, so that each is about 0 and 1 wide.
        self.shift = self.add_weight(name="shift", shape=(terms,), initializer="zeros", **frozen)
        self.scale = self.add_weight(name="scale", shape=(terms,), initializer="ones", **frozen)
        #: How much of each head counts, chosen on validation.
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
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Candidates, events, features and present as in :class:`TargetAttention`; terms ``[B, M, T]``, scores."""
        read, keys = self.attention(candidates, events, features, present)
        known = tf.math.log1p(tf.reduce_sum(tf.cast(present, tf.float32), axis=1))[:, tf.newaxis, tf.newaxis]
        x = start = tf.concat(
            [(terms - self.shift) / self.scale, read, keys, known * tf.ones_like(scores)[..., tf.newaxis]], axis=-1
        )
        for cross in self.crosses:
            x = cross(start, x)
        # Of somebody of whom nothing is known, nothing was learnt either.
        known = known[:, 0] > 0
        click, rating = (tf.where(known, head(x)[..., 0], 0.0) for head in self.heads.values())
        return tf.exp(self.log_weight) * scores + self.strengths[0] * click, self.strengths[1] * rating

    def get_config(self) -> dict[str, Any]:
        settings = {"config": self.config.model_dump(mode="json"), "terms": self.shift.shape[0], "seed": self.seed}
        sizes = None if self.prior is None else [self.prior.n_items, self.prior.rank, self.prior.components]
        return {**super().get_config(), **settings, "factors": sizes}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config | {"config": RankingConfig(**config["config"])})


@tf.keras.utils.register_keras_serializable("tfllmrec")
class RankingModel(MeasuredModel):
    """Ranks candidates for a query: how likely each is the next item, and its expected rating.

    It is a ``tfrs.Model`` for ``compile`` and ``fit`` on batches from ``training.ranking``. It contains a fitted
    hybrid, which is frozen. Items are represented by the hybrid's ``e_i``, which come from text. So cold and new items
    are ranked, too.

    ``save("m.keras")`` and ``.weights.h5`` files also store the hybrid, and loading them sets its weights. Other weight
    files contain only the weights of the ranking model: load them into a model that was made with the same hybrid.
    Keras cannot save the model as a SavedModel, because it has no ``call``. Use :func:`tfllmrec.export` instead.

    Args:
      hybrid: a fitted hybrid.
      config: sizes.
      scale: the scale of the ratings; ``None`` if the data has none. No ratings are predicted then.
      seed: random seed of all initialisers.
      factors: the factor model of the base ratings; ``None``: item and user biases. The factors may cover only the
        first items of a catalogue that has grown since. Other items are then rated by the mean rating plus the user's
        bias.
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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config, self.seed = config, seed
        self.n_items, self.length, self.rates = hybrid.n_items, config.history_length, scale is not None
        scale = scale or RatingScale(0.0, 0.0, 0.0, none := np.zeros(self.n_items, np.float32), none)
        self.mean, self.low, self.high = scale.mean, scale.low, scale.high
        self.item_bias = tf.Variable(scale.item_bias, trainable=False, name="item_bias")
        self.counts = hybrid.train_counts
        # A function: the hybrid's own variables stay out of this model's.
        self._hybrid = lambda: hybrid
        sizes = None if factors is None else factors.sizes
        terms = len(hybrid.term_names) + 1
        self.network = RankingNetwork(config, terms=terms, seed=seed, factors=sizes, name="network")
        # Under tf.distribute Keras refuses to average a loss over the batch. MeanSquaredError of [B] is a mean anyway.
        self.click_task = tfrs.tasks.Ranking(
            loss=FocalCrossentropy(config.focal_gamma, reduction="sum", name="focal"), name="click_task"
        )
        self.rating_task = tfrs.tasks.Ranking(
            loss=tf.keras.losses.MeanSquaredError(reduction="sum"), name="rating_task"
        )
        self.click_loss = tf.keras.metrics.Mean("click_loss")
        self.rating_loss = tf.keras.metrics.Mean("rating_loss")
        self.item_vectors = tf.Variable(hybrid.item_vectors(), trainable=False, name="item_vectors")
        # Every variable exists from the start: weights are read before any call.
        nobody = empty_query(hybrid.query_spec, self.n_items)
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
        """Whether the click head counts. If not, the order is that of the hybrid."""
        return float(self.network.strengths[0]) > 0

    def get_config(self) -> dict[str, Any]:
        """Settings of this model and of the hybrid; what is large is in the weights."""
        return {
            "name": self.name,
            "hybrid": tf.keras.saving.serialize_keras_object(self.hybrid),
            "config": self.config.model_dump(mode="json"),
            "scale": [self.mean, self.low, self.high] if self.rates else None,
            "factors": self.network.get_config()["factors"],
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """A model of the same sizes, with a hybrid of the same sizes, until weights are loaded into both."""
        config = dict(config)
        hybrid = tf.keras.saving.deserialize_keras_object(config.pop("hybrid"))
        none = np.zeros(hybrid.n_items, np.float32)
        marks = config.pop("scale")
        scale = None if marks is None else RatingScale(marks[0], marks[1], marks[2], none, none)
        sizes = config.pop("factors", None)
        factors = None if sizes is None else RatingFactors.empty(*sizes)
        return cls(hybrid, RankingConfig(**config.pop("config")), scale, factors=factors, **config)

    def given(
        self,
        item_vectors: tf.Tensor,
        query: Query,
        items: tf.Tensor,
        terms: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """What is known of queries and candidates before anything is learnt here, as :meth:`learned` takes it.

        Args:
          item_vectors: ``Servable.item_vectors``, or the same as a constant.
          query: its history may have any length. items: int32 ``[B, M]``; N for none.
          terms: ``Servable.terms_of_items``, where they are known already.

        Returns:
          ``recent`` int32 ``[B, L']``, the newest events; ``marks`` float32 ``[B, L']``, how much better each was rated
          than its item and the user would have it, NaN for none; ``items``; ``terms`` float32 ``[B, M, 4]``, those of
          the hybrid and the log popularity; ``scores`` float32 ``[B, M]``, the hybrid's; ``prior`` float32 ``[B, M]``,
          the rating by factors, or by biases alone.
        """
        history, ratings = query["history"], query[RATING_KEY]
        present = history < self.n_items
        known_items = tf.where(items < self.n_items, items, 0)
        if terms is None:
            terms = self.hybrid.terms_of_items(item_vectors, query, known_items)
        popularity = tf.math.log1p(rows_of(self.counts, known_items))
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
            # Takes [B, L, 1 + D + P] numbers.
            prior = self.network.prior(
                newest_events(history, lengths, LONGEST, self.n_items),
                newest_events(ratings, lengths, LONGEST, NAN),
                known_items,
            )
        return {
            "recent": newest_events(history, lengths, self.length, self.n_items),
            "marks": newest_events(tf.where(rated, above - user, NAN), lengths, self.length, NAN),
            "items": items,
            "terms": tf.concat([terms, popularity[..., tf.newaxis]], axis=-1),
            "scores": tf.reduce_sum(terms, axis=-1) + tf.where(nothing_known, popularity, 0.0),
            "prior": prior,
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
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Logits and ratings of the candidates, float32 ``[B, M]`` each; arguments are what :meth:`given` gives."""
        present = recent < self.n_items
        events = rows_of(item_vectors, tf.where(present, recent, 0))
        candidates = rows_of(item_vectors, tf.where(items < self.n_items, items, 0))
        rated = present & tf.math.is_finite(marks)
        there = tf.cast(present, tf.float32)
        steps_back = tf.reduce_sum(there, axis=1, keepdims=True) - tf.cumsum(there, axis=1)
        features = [tf.where(rated, marks, 0.0), tf.cast(rated, tf.float32), tf.math.log1p(steps_back) * there]
        logits, better = self.network(candidates, terms, scores, events, tf.stack(features, axis=-1), present)
        return tf.where(items < self.n_items, logits, ABSENT), prior + better

    @tf.autograph.experimental.do_not_convert  # nothing here needs AutoGraph, which takes seconds to find that out
    def compute_loss(self, inputs: dict[str, dict[str, tf.Tensor]], training: bool = False) -> tf.Tensor:
        """The sum of the losses of both tasks.

        Args:
          inputs: ``lists``, what :meth:`given` gives with ``label`` int32 ``[B]``, the place of the next item in each,
            ``log_times`` float32 ``[B, M]``, the logarithm of how many items each of them stands for, and ``weight``
            float32 ``[B]``, how much each list counts;
            and where ratings are learnt ``rated``, the same of lists of one item with ``rating`` float32 ``[B]``.
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
        """The place of the next item in each list, int32 ``[B]``, and the logits of its items, float32 ``[B, M]``."""
        lists = {name: values for name, values in inputs["lists"].items() if name not in LEARNT_FROM}
        return inputs["lists"]["label"], self.learned(self.item_vectors, **lists)[0]

    @traced_once
    def rank(self, item_vectors: tf.Tensor, query: Query, items: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The probability and the rating of each candidate, float32 ``[B, M]`` each; arguments as in :meth:`given`.

        The probability is that the candidate is the user's next item, given that the next item is among the candidates.
        So the probabilities of a row sum to 1, more candidates make each less likely, and a single candidate has 1. An
        item that is given twice counts as two candidates. The rating is the expected one, within the range of the
        ratings in the data. Both are 0 where there is no item.
        """
        logits, told = self.learned(item_vectors, **self.given(item_vectors, query, items))
        there = items < self.n_items
        told = tf.clip_by_value(told, self.low, self.high)
        # TensorFlow's optimizer loses the rank of what comes from a lookup table, and would warn at each load.
        return tf.where(there, tf.nn.softmax(tf.ensure_shape(logits, items.shape)), 0.0), tf.where(there, told, 0.0)


class Reranked:
    """The hybrid's best items in the order of the ranking model, all others behind them: a ``Recommender``.

    Args:
      hybrid, model: fitted. candidates: how many are put into order.
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
        """Probabilities and ratings of ``items`` int ``[B, M]``, N for none: float32 ``[B, M]`` each."""
        probability, rating = np.empty(items.shape, np.float32), np.empty(items.shape, np.float32)
        order = np.argsort(queries.history.lengths, kind="stable")  # like lengths together, as in the model's score
        size = self.hybrid.rows_at_once
        for start in range(0, len(queries), size):
            rows = order[start : start + size]
            query = self.hybrid.query_inputs(queries.take(rows))
            probability[rows], rating[rows] = self._rank(self.model.item_vectors, query, items[rows].astype(np.int32))
        return probability, rating

    def score(self, queries: Queries) -> np.ndarray:
        """Keeps the ``Recommender`` contract: what is excluded takes no candidate's place."""
        scores = self.hybrid.score(queries)
        best = self.best(scores, queries)
        probability, _ = self.rank(queries, best)
        place = np.argsort(np.argsort(-probability, axis=1, kind="stable"), axis=1, kind="stable")
        row, column = np.nonzero(best < self.model.n_items)
        top = scores.max(axis=1, keepdims=True) + best.shape[1]
        scores[row, best[row, column]] = (top - place)[row, column]
        return scores

    def best(self, scores: np.ndarray, queries: Queries) -> np.ndarray:
        """The candidates of each query by the hybrid's scores ``[B, N]``, best first: int64 ``[B, M]``, N for none."""
        best = top_items(masked(scores, queries), min(self.candidates, self.model.n_items))
        return np.where(best >= 0, best, self.model.n_items)
