"""The sparse-dense hybrid: a sum of meaning, feedback and behaviour terms, weighted by learned gates.

    score(u, i) = c s_d a_i (<e_i, (1 - b_u) q_u + b_u r_u> - tau log(1 + n_i)) + s_w (1 - d a_i) <m_u, W_i>
                  + lift [n_i = 0 and item i has text]

``e_i`` and the two query vectors ``q_u`` and ``r_u`` are compared by cosine, divided by a temperature. ``a_i`` depends
on ``n_i``, the number of the item's training events, and on whether the item has text; ``b_u`` depends on the amount of
the user's feedback. ``s_d`` and ``s_w`` bring the dense and the sparse score to one scale. ``c``, ``d``, ``tau`` and
``lift`` are chosen on validation after training (:class:`~tfllmrec.layers.term_gates.TermGates`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfllmrec.client.fields import Fields
from tfllmrec.columns import ITEM
from tfllmrec.config import ItemWeightSettings, ModelConfig, Section
from tfllmrec.data.batches import Sequences
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.domains import domain_bits, item_domains
from tfllmrec.data.graph import ItemGraph, Relation
from tfllmrec.data.queries import LONGEST, Queries, Ragged
from tfllmrec.data.schema import LEAST_SHARE, MISSING_CODE, RATING_KEY, UNKNOWN_CODE, Field, Schema
from tfllmrec.errors import ModelError
from tfllmrec.layers.feedback_profile import FeedbackProfile
from tfllmrec.layers.field_encoder import is_given
from tfllmrec.layers.global_state import keras_policy
from tfllmrec.layers.history_encoder import HistoryEncoder
from tfllmrec.layers.id_table import IdTable, placeholder_ids
from tfllmrec.layers.item_fusion import Content, ItemFusion
from tfllmrec.layers.item_propagation import ItemPropagation, blank_edges
from tfllmrec.layers.neighbour_scores import NeighbourScores, places
from tfllmrec.layers.newest_events import at_event, newest_events
from tfllmrec.layers.query_fusion import EventFusion, QueryFusion
from tfllmrec.layers.rows_of import rows_of
from tfllmrec.layers.scene_experts import SceneExperts
from tfllmrec.layers.term_gates import Factors, TermGates
from tfllmrec.layers.traced_once import traced_once
from tfllmrec.layers.unit import unit
from tfllmrec.losses.replicas import share_of_replica
from tfllmrec.losses.retrieval import CatalogueRetrieval, SampledRetrieval, mean_loss
from tfllmrec.models.answers import recommend, similar
from tfllmrec.models.contributions import (
    Contributions,
    among,
    contributions,
    contributions_of,
    feedback_by_event,
)
from tfllmrec.models.domain_weights import maps_between, with_maps
from tfllmrec.models.folding import FoldedHybrid
from tfllmrec.models.graph import edges_of, view_of
from tfllmrec.models.item_weights import (
    PrunedWeights,
    between_domains,
    check_domains,
    solve_item_weights,
)
from tfllmrec.models.measured import MeasuredModel
from tfllmrec.models.servable import SCORE_BATCH, Query, empty_query, spec_of
from tfllmrec.progress import Tell
from tfllmrec.text.centring import centred_unit, text_mean
from tfllmrec.text.user_texts import UserTexts

#: Largest number of values in the text vectors of queries that are scored at once: 200 MB.
TEXT_VALUES = 50_000_000


@dataclass(frozen=True)
class Catalogue:
    """The items and their data that a model gets before training.

    Attributes:
      item_ids: The item ids, object ``[N]``, all different, in the order of the items table.
      text: Text vectors from the encoder, float32 ``[N, Dt]``, rows of length 1; a row of zeros is an item without
        text.
      text_widths: Widths of the encoders' vectors that are concatenated in ``text``; ``None`` if there is one encoder.
      fields: Further fields of the items by key (``item.brand``), ``[N]`` or ``[N, width]`` each, encoded by
        :meth:`tfllmrec.data.schema.Field.encode`.
      domains: The domain of each item in joined data, object ``[N]``; ``None`` if there is only one domain.
      graph: The graph of the N items, if ``config.propagation`` or ``item_weights.graph`` may read it.

    Raises:
      ModelError: An id occurs twice, or text, a field or the graph does not have one row for each id.
    """

    item_ids: np.ndarray
    text: np.ndarray
    text_widths: Sequence[int] | None = None
    fields: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    domains: np.ndarray | None = None
    graph: ItemGraph | None = None

    @classmethod
    def of(
        cls,
        items: pd.DataFrame,
        text: np.ndarray,
        schema: Schema,
        text_widths: Sequence[int] | None = None,
        config: ModelConfig | None = None,
        blank: bool = False,
        graph: ItemGraph | None = None,
    ) -> Self:
        """Creates the catalogue of an items table, with the item fields of ``schema`` that have an encoder.

        Args:
          items: The items table.
          text, text_widths: As in the class.
          schema: The schema of the data.
          config: The config of the model; fields that it does not read are left out. By default all are encoded.
          blank: Whether to leave all values of fields missing. This is faster, and enough for a model whose weights
            are loaded next.
          graph: A graph of the first items of the table; all other items have no edges.
        """
        fields = [each for each in schema.of("item") if each.has_encoder]
        fields = [each for each in fields if config is None or config.reads_item_field(each.kind)]
        encoded = {each.key: each.blank(len(items)) if blank else each.encode(items[each.name]) for each in fields}
        graph = None if graph is None else dataclasses.replace(graph, n_items=len(items))
        return cls(items[ITEM].to_numpy(object), text, text_widths, encoded, item_domains(items, schema), graph)

    def __post_init__(self) -> None:
        n_items = len(self.item_ids)
        if np.ndim(self.text) != 2 or len(self.text) != n_items:
            raise ModelError(
                f"Catalogue: expected a row of text for each of {n_items:,} item ids, [{n_items}, Dt], found shape "
                f"{list(np.shape(self.text))}. Encode the texts of the same items table."
            )
        for key, values in self.fields.items():
            if len(values) != n_items:
                raise ModelError(
                    f"Catalogue: expected a value of {key} for each of {n_items:,} item ids, found {len(values):,}. "
                    "Encode the column of the same items table."
                )
        if self.graph is not None and self.graph.n_items != n_items:
            raise ModelError(
                f"Catalogue: expected a graph of {n_items:,} items, found one of {self.graph.n_items:,}. Build it from "
                "the same items table."
            )
        if len(set(self.item_ids)) < n_items:
            ids, times = np.unique(np.asarray(self.item_ids, str), return_counts=True)
            raise ModelError(
                f"Catalogue: expected each item id once, found '{ids[times.argmax()]}' {times.max()} times. Leave out "
                "the other rows."
            )


@dataclass(frozen=True)
class Negatives:
    """The negatives of the retrieval task.

    Attributes:
      count: Number of negatives sampled in each step; 0 for the whole catalogue.
      log_q: Strength of the logQ correction of sampled negatives.
    """

    count: int = 0
    log_q: float = 1.0


@dataclass(frozen=True, eq=False)
class Teacher:
    """A model of the same catalogue whose dense scores another model learns to reproduce (Hinton et al. 2015).

    Attributes:
      model: The teacher; it reads the same queries.
      items: The item vectors of the teacher, float32 ``[N, D]``.
      weight: Weight of the loss of the teacher's soft targets, relative to the loss of the next items.
    """

    model: Hybrid
    items: tf.Tensor
    weight: float


@tf.keras.utils.register_keras_serializable("tfllmrec")
class Hybrid(MeasuredModel):
    """A recommender that scores items by their text, the user's ratings and item-item weights (docs/model.md).

    It is a ``tfrs.Model``, so a Keras model. ``fit`` takes batches from ``data.batches.training_batches``::

        model = Hybrid(catalogue, split.train_counts, config, weights)
        tfllmrec.set_item_weights(model, sequences)
        model.compile(optimizer="adam")
        model.fit(training_batches(sequences, batch_size=128, length=50, seed=42, epochs=3))

    The item-item weights are not learned by gradient descent: set them before ``fit`` with
    :func:`tfllmrec.set_item_weights`, or with :meth:`set_item_weights` and :meth:`set_holdout`.

    ``predict`` returns the score of every item after the newest event of each history, float32 ``[B, N]``. The metrics
    of ``compile`` compare these scores with the item that came next (:meth:`targets_and_predictions`).

    The model is saved and loaded like any Keras model. The ids, texts and counts of the catalogue and the item-item
    weights are saved as non-trainable weights, so :meth:`get_config` stays small.

    Args:
      catalogue: The items with their text vectors.
      train_counts: Number of training events of each item, int ``[N]``.
      config: Sizes and terms. Each *auto* is replaced by :meth:`ModelConfig.settled`.
      item_weights: Settings of the item-item weights; the decay also applies to histories. Each *auto* is replaced by
        :meth:`ItemWeightSettings.settled`.
      negatives: The negatives: the whole catalogue, or a sample.
      seed: Random seed of all initialisers and of all noise.
      schema: The fields of the data. Fields that have an encoder are read in addition to texts, ids and ratings: those
        of events, requests and users if ``config.fields`` is set, those of items if ``config.item_fields`` is set and
        the catalogue has them. Texts of users are read if they have a width (:meth:`Schema.reading_text`), regardless
        of ``config.user_text``.
      repeats: Whether users use items again, so that the gates also learn from such events.
      kwargs: ``name``, as in ``tf.keras.Model``.

    Attributes:
      reads: Keys of the fields that a query needs in addition to its ``history``.
      query_spec: Types and shapes of a query.
      texts: The encoder of texts in queries (:class:`tfllmrec.text.user_texts.UserTexts`), if the schema has texts with
        a width. It is not saved. ``None``: queries may not have texts.

    Raises:
      ModelError: ``train_counts``, the widths of texts or ``item_weights.context`` do not fit the catalogue and the
        schema.
      ConfigError: ``item_weights`` do not fit the domains of the catalogue.
    """

    reads: Sequence[str] = (RATING_KEY,)

    def __init__(
        self,
        catalogue: Catalogue,
        train_counts: np.ndarray,
        config: ModelConfig,
        item_weights: ItemWeightSettings | None = None,
        negatives: Negatives | None = None,
        seed: int = 42,
        schema: Schema | None = None,
        repeats: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # ratings stay float32 in every precision
        self.negatives = negatives = negatives or Negatives()
        self.seed = seed
        self.config = config = config.settled()
        self.item_weights = item_weights = (item_weights or ItemWeightSettings()).settled()
        assert config.dropout is not None and config.id_dropout is not None
        assert config.history_length is not None and item_weights.decay is not None
        self.n_items, self.domains = len(catalogue.item_ids), catalogue.domains
        if self.domains is not None:
            check_domains(self.domains, item_weights)
        if len(train_counts) != self.n_items:
            raise ModelError(
                f"Hybrid: expected a number of training events for each of {self.n_items:,} items, found "
                f"{len(train_counts):,}. Take catalogue and counts from the same data set."
            )
        self.ids = IdTable.of(catalogue.item_ids, name="ids")
        self.use_dense = "meaning" in config.terms or "feedback" in config.terms
        self.use_feedback = "feedback" in config.terms
        self.use_behaviour = "behaviour" in config.terms
        self.repeats = repeats
        encoded = Schema(tuple(each for each in schema or () if each.has_encoder and each.key != RATING_KEY))
        reads_fields = config.fields and "meaning" in config.terms
        weighs = self.use_behaviour and item_weights.kinds is not False
        #: The fields that determine the weights of events in the behaviour term: their kind and their dwell time.
        self.kind, self.dwell = (encoded.kind_of_event, encoded.dwell_time) if weighs else (None, None)
        weighing = [field for field in (self.kind, self.dwell) if field is not None]
        of_queries = encoded.of("event", "request", "user") if reads_fields else weighing
        of_items = [each for each in encoded.of("item") if config.reads_item_field(each.kind)]
        of_items = [each for each in of_items if each.key in catalogue.fields]
        self.schema = Schema((*of_queries, *of_items))
        self.reads = (RATING_KEY, *(field.key for field in self.schema.of_inputs()))
        lacking = [name for name in item_weights.context or {} if f"request.{name}" not in self.reads]
        if lacking:
            raise ModelError(
                f"item_weights.context: expected request fields that the model reads; found {', '.join(lacking)}. Set "
                f"model.fields=true and data.fields.{lacking[0]}.owner=request, or remove {lacking[0]}."
            )
        self.query_spec = {
            "history": tf.TensorSpec((None, None), tf.int32),
            RATING_KEY: tf.TensorSpec((None, None), tf.float32),
            **{field.key: spec_of(field) for field in self.schema.of_inputs()},
        }
        text = centred_unit(catalogue.text, widths=catalogue.text_widths)
        dim, dropout = config.embedding_dim, config.dropout
        self.text_widths = catalogue.text_widths
        self.texts: UserTexts | None = None
        #: The teacher during training. It is not saved.
        self.teacher: Teacher | None = None
        self._texts = [each for each in self.schema.of_inputs() if each.is_read_text]
        if foreign := [each.key for each in self._texts if each.width != text.shape[1]]:
            raise ModelError(
                f"Hybrid: expected texts of the width of the items' text vectors, {text.shape[1]}, for "
                f"{', '.join(foreign)}. Encode both with one encoder, and declare them by "
                "schema.reading_text(encoder.dim)."
            )
        self.items = ItemFusion(text, dim, config.id_dropout, seed, of_items, catalogue.fields, name="items")
        edges = {}
        if self.use_dense and config.propagation != "none":
            edges = edges_of(catalogue.graph, by_relation=config.propagation == "relations")
        #: ``None`` if item vectors are not mixed with those of their neighbours, or if there are no edges.
        self.propagation = ItemPropagation(self.n_items, dim, edges, name="propagation") if edges else None
        self.history_encoder = HistoryEncoder(
            config.embedding_dim, config.blocks, config.heads, config.dropout, config.history_length, seed + 100,
            name="history",
        )  # fmt: skip
        of_history, of_query = (self.schema.of_history(), self.schema.of_query()) if reads_fields else ([], [])
        widths = self.text_widths if self._texts else None
        self.event_fusion = (
            EventFusion(of_history, dim, seed + 150, widths, name="event_fields") if of_history else None
        )
        self.query_fusion = (
            QueryFusion(of_query, dim, config.heads, dropout, seed + 160, widths, name="query_fields")
            if of_query
            else None
        )
        if self._texts:
            #: Chosen on validation: 0 if the texts of users do not help. They are then treated as missing.
            self.reads_text = tf.Variable(1.0, trainable=False, name="reads_text")
        self.scene = next((f for f in of_query if f.key == f"request.{config.scene}" and f.kind == "category"), None)
        self.scene_experts = (
            SceneExperts(self.scene.size, dim, config.scene_experts, seed + 180, name="scene_experts")
            if self.scene
            else None
        )
        self.feedback = FeedbackProfile(config.embedding_dim, config.dropout, seed + 200, name="feedback")
        neighbours, decay = item_weights.neighbours, item_weights.decay
        self.behaviour = NeighbourScores(self.n_items, neighbours, decay, item_weights.map, name="behaviour")
        #: W solved without the events that the gates are fitted on; only training uses it.
        self.behaviour_without_holdout = NeighbourScores(
            self.n_items, neighbours, decay, item_weights.map, name="behaviour_without_holdout"
        )
        if item_weights.map and self.domains is not None:  # without domains, they are loaded with the weights
            for layer in (self.behaviour, self.behaviour_without_holdout):
                layer.set_domains(domain_bits(self.domains))
        assert item_weights.itself is not None
        #: Weights of neighbours are about 0.01; the weight of an item for itself is about a hundred times larger.
        sparse_scale = 50.0 / (1.0 + 20.0 * item_weights.itself)
        self.gates = TermGates(np.any(catalogue.text != 0, axis=1), seed + 300, sparse_scale, name="gates")
        self.train_counts = tf.Variable(train_counts, trainable=False, dtype=tf.float32, name="train_counts")
        self.counts_without_holdout = tf.Variable(self.train_counts, trainable=False, name="counts_without_holdout")
        if negatives.count:
            share = train_counts / max(train_counts.sum(), 1)
            self.retrieval: tfrs.tasks.Retrieval = SampledRetrieval(
                tf.constant(share, tf.float32), negatives.count, negatives.log_q, seed + 400, name="retrieval"
            )
        else:
            self.retrieval = CatalogueRetrieval(candidate_mask=tf.constant(train_counts > 0), name="retrieval")
        self.gate_task = CatalogueRetrieval(name="gate_task")
        self.retrieval_loss = tf.keras.metrics.Mean("retrieval_loss")
        self.gate_loss = tf.keras.metrics.Mean("gate_loss")
        # These calls create all variables, because checkpoints may be read or functions exported before any other call.
        nobody = empty_query(self.query_spec, self.n_items)
        scores = self.score_items(self.item_vectors(), nobody)
        self.gates(scores, scores, self.train_counts)  # explanations read the gates even if there is only one term
        self.gates.trainable = self.use_dense and self.use_behaviour
        # Layers of unused terms are not trained, because no loss depends on them.
        self.history_encoder.trainable = "meaning" in config.terms
        self.feedback.trainable = self.use_feedback
        self.built = True
        # Without this, Keras would fix the lengths of the first call, and the train_step of TFRS never calls the model.
        self._set_save_spec(self.query_spec)

    def get_config(self) -> dict[str, Any]:
        """Returns the sizes and settings of the model. Large arrays are in the weights."""
        return {
            "name": self.name,
            "dtype": self.dtype_policy.name,
            "n_items": self.n_items,
            "id_width": self.ids.width,
            "text_dim": self.items.blocks["text"].shape[1],
            "config": self.config.model_dump(mode="json"),
            "item_weights": self.item_weights.model_dump(mode="json"),
            "negatives": asdict(self.negatives),
            "seed": self.seed,
            "schema": self.schema.as_dict(),
            "repeats": self.repeats,
            "text_widths": None if self.text_widths is None else list(self.text_widths),
            "relations": {} if self.propagation is None else self.propagation.get_config()["relations"],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """Creates a model of the same sizes, with placeholders for catalogue, counts and item-item weights.

        The weights must be loaded afterwards. The layers have the precision of the saved model, regardless of Keras'
        global policy.
        """
        config = dict(config)
        n_items, width = config.pop("n_items"), config.pop("id_width")
        text = np.zeros((n_items, config.pop("text_dim")), np.float32)
        # Configs of earlier versions lack item fields, scenes and weights of kinds, and have a setting "form".
        settings = ModelConfig(**{"item_fields": "none", "scene": None} | config.pop("config"))
        negatives = Negatives(**config.pop("negatives"))
        settings_of_weights = {"kinds": False} | config.pop("item_weights")
        settings_of_weights.pop("form", None)
        item_weights = ItemWeightSettings(**settings_of_weights)
        schema = Schema.from_dict(config.pop("schema", []))
        fields = {each.key: each.blank(n_items) for each in schema.of("item")}
        text_widths, relations = config.pop("text_widths", None), config.pop("relations", {})
        graph = ItemGraph(n_items, tuple(Relation(each, "link", *blank_edges(n)) for each, n in relations.items()))
        with keras_policy(config.pop("dtype")):
            catalogue = Catalogue(placeholder_ids(n_items, width), text, text_widths, fields, graph=graph)
            counts = np.zeros(n_items, np.int64)
            return cls(catalogue, counts, settings, item_weights, negatives, schema=schema, **config)

    @property
    def item_ids(self) -> np.ndarray:
        """Ids of the items, object ``[N]``."""
        return self.ids.ids

    @property
    def text_vectors(self) -> np.ndarray:
        """Text vectors of the items after :func:`centred_unit`, float32 ``[N, Dt]``."""
        return self.items.blocks["text"].numpy()

    def mapped(self, weights: PrunedWeights, histories: Ragged) -> PrunedWeights:
        """Replaces the weights between domains by those of a map if ``item_weights.map`` is set.

        Args:
          weights: The weights of this catalogue.
          histories: The histories that they were solved from.

        Raises:
          ConfigError: The catalogue has only one domain.
          ModelError: No user has events in two domains.
        """
        if not self.item_weights.map:
            return weights
        check_domains(self.domains, self.item_weights)
        assert self.domains is not None
        maps = maps_between(histories, self.domains, self.text_vectors, self.text_widths, self.seed)
        return with_maps(weights, maps, self.domains)

    def set_item_weights(self, weights: PrunedWeights) -> None:
        """Sets W."""
        weights = between_domains(weights, self.domains, self.item_weights.domains)
        self.behaviour.set_weights_of_items(weights.neighbours, weights.weights)

    def set_holdout(self, weights: PrunedWeights, counts: np.ndarray) -> None:
        """Sets the weights and counts without the events that the gates are fitted on.

        Args:
          weights: W, solved without these events.
          counts: Number of the other training events of each item, int ``[N]``.
        """
        weights = between_domains(weights, self.domains, self.item_weights.domains)
        self.behaviour_without_holdout.set_weights_of_items(weights.neighbours, weights.weights)
        self.counts_without_holdout.assign(np.asarray(counts, np.float32))

    # The dense side -------------------------------------------------------------------------------------------------

    def item_vectors(
        self,
        counts: tf.Tensor | None = None,
        training: bool = False,
        items: tf.Tensor | None = None,
        content: Content | None = None,
    ) -> tf.Tensor:
        """Computes the unit vectors ``e_i`` of the items, float32 ``[N, D]`` or ``[M, D]``.

        Args:
          counts: Number of events of each item, float32 ``[N]``; by default those of training.
          training: Whether the call is part of training.
          items: Item indices, int32 ``[M]``; by default the whole catalogue.
          content: The :meth:`ItemFusion.content` of these items, if it has been computed already. With
            :attr:`propagation`, it must be that of the whole catalogue, whose vectors are then computed in any case.
        """
        counts = self.train_counts if counts is None else counts
        if self.propagation is not None:
            counts = tf.convert_to_tensor(counts)
            vectors = self.propagation(unit(self.items(counts, content=content, training=training)), counts)
            return vectors if items is None else tf.gather(vectors, items)
        if items is None:
            return unit(self.items(tf.convert_to_tensor(counts), content=content, training=training))
        return unit(self.items(rows_of(counts, items), items, content, training=training))

    def item_vectors_of_texts(self, item: int, text: tf.Tensor) -> tf.Tensor:
        """Computes the unit vectors ``e_i`` that one item would have with other texts, float32 ``[W, D]``.

        The contribution of its neighbours is unchanged.

        Args:
          item: The index of the item.
          text: The text vectors of the other texts, ``[W, Dt]``.
        """
        items = tf.fill([tf.shape(text)[0]], item)
        counts = rows_of(self.train_counts, items)
        vectors = unit(self.items(counts, items, self.items.content(items, own_text=text)))
        if self.propagation is None:
            return vectors
        whole = unit(self.items(tf.convert_to_tensor(self.train_counts)))
        return self.propagation.mixed(vectors, rows_of(self.propagation.of_neighbours(whole), items), counts)

    def query_vectors(
        self, item_vectors: tf.Tensor, query: Query, training: bool = False, last: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes ``(1 - b_u) q_u`` and ``b_u r_u`` after each event, divided by the temperature, ``[B, L, D]`` each.

        Args:
          item_vectors: The item vectors, ``[N, D]``, or some of them.
          query: The queries; their histories index the rows of ``item_vectors``.
          training: Whether the call is part of training.
          last: Position of an event in each row, int32 ``[B]``. If given, only the vectors after this event are
            computed, ``[B, 1, D]`` each.
        """
        events, present = self.events_of(item_vectors, query)
        meaning = feedback = at_event(tf.zeros_like(events), last)
        query = self.with_texts_read(query)
        if "meaning" in self.config.terms:
            read = self.events_read(events, query, training)
            meaning = unit(self.meaning(read, present, query, training, last=last)) / self.config.temperature
        if self.use_feedback:
            of_events = self.feedback(events, query[RATING_KEY], present, training=training)
            profile, gate = (at_event(each, last) for each in of_events)
            meaning *= 1.0 - gate
            feedback = unit(profile) * gate / self.config.temperature
        return meaning, feedback

    def events_of(self, item_vectors: tf.Tensor, query: Query) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the item vectors of a history, ``[B, L, D]``, zeros for padding; and where events are, ``[B, L]``."""
        history = query["history"]
        present = history < self.n_items
        # Appending a row of zeros for padding to the catalogue would copy the catalogue for each request.
        events = rows_of(item_vectors, tf.where(present, history, 0))
        return tf.where(present[..., tf.newaxis], events, 0.0), present

    def with_texts_read(self, query: Query) -> Query:
        """Returns the query; its texts are replaced by missing ones if :attr:`reads_text` is 0."""
        if not self._texts:
            return query
        read = self.reads_text > 0
        return {**query, **{each.key: tf.where(read, query[each.key], each.padding) for each in self._texts}}

    @property
    def _text_map(self) -> tf.Tensor | None:
        return tf.convert_to_tensor(self.items.maps["text"]) if self._texts else None

    def choices(self, query: Query) -> Query:
        """Returns ``history`` and ``event.rating`` without events of weight 0 or less, left-aligned."""
        kind, history, ratings = self.schema.kind_of_event, query["history"], query[RATING_KEY]
        if kind is None:
            return {"history": history, RATING_KEY: ratings}
        chosen = (history < self.n_items) & (tf.gather(tf.constant(kind.code_weights), query[kind.key]) > 0)
        order = tf.argsort(tf.where(chosen, 0, 1), axis=1, stable=True)
        kept = tf.where(chosen, history, self.n_items), tf.where(chosen, ratings, float("nan"))
        history, ratings = (tf.gather(values, order, batch_dims=1) for values in kept)
        return {"history": history, RATING_KEY: ratings}

    def request_vectors(self, query: Query) -> tf.Tensor:
        """Returns the encoded fields of the request and its user, except texts, float32 ``[B, F]``, as in training."""
        present = query["history"] < self.n_items
        if self.query_fusion is None or self.query_fusion.encoder is None:
            return tf.zeros((tf.shape(present)[0], 0))
        lengths = tf.reduce_sum(tf.cast(present, tf.int32), axis=1)
        known = (lengths > 0)[:, tf.newaxis, tf.newaxis]
        given = tf.fill(tf.shape(known), self.query_fusion.reads > 0)
        profile = self.query_fusion.profile(query, known, given, last=tf.maximum(lengths - 1, 0))
        return tf.cast(profile[:, 0], tf.float32)

    def events_read(self, events: tf.Tensor, query: Query, training: bool = False) -> tf.Tensor:
        """Adds the fields of each event to its vector, as input of the meaning term, ``[B, L, D]``.

        Args:
          events: The result of :meth:`events_of`.
          query: The result of :meth:`with_texts_read`.
          training: Whether the call is part of training.
        """
        if self.event_fusion is None:
            return events
        return events + tf.cast(self.event_fusion(query, self._text_map, training=training), events.dtype)

    def meaning(
        self,
        events: tf.Tensor,
        present: tf.Tensor,
        query: Query,
        training: bool = False,
        fields_given: tf.Tensor | None = None,
        last: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Computes ``q_u`` before it is scaled to length 1, ``[B, L, D]``.

        Args:
          events: The result of :meth:`events_read`.
          present: Where there are events, bool ``[B, L]``.
          query: The result of :meth:`with_texts_read`.
          training: Whether the call is part of training.
          fields_given: Interpolation between missing (0) and given (1, the default) fields of the request and its user,
            float32 ``[B]``. Explanations use values in between.
          last: As in :meth:`query_vectors`.
        """
        state = self.history_encoder(events, present, training=training, last=last)
        if self.query_fusion is None:
            return state
        state = self.query_fusion(
            state,
            tf.cast(events, state.dtype),
            present,
            query,
            self._text_map,
            training=training,
            fields_given=fields_given,
            last=last,
        )
        if self.scene is None or self.scene_experts is None:
            return state
        scene = query[self.scene.key]
        # Scenes that do not occur in training have no trained gate. Fields that do not help are not read at all.
        scene = tf.where(is_given(self.scene, scene) & (self.query_fusion.reads > 0), scene, MISSING_CODE)
        known = self.scene_experts(state, scene, training=training)
        if fields_given is None:
            return known
        unknown = self.scene_experts(state, tf.fill(tf.shape(scene), MISSING_CODE), training=training)
        return unknown + tf.cast(fields_given[:, tf.newaxis, tf.newaxis], known.dtype) * (known - unknown)

    # Training -------------------------------------------------------------------------------------------------------

    @tf.autograph.experimental.do_not_convert  # AutoGraph would take seconds, and nothing here needs it
    def compute_loss(
        self, inputs: dict[str, tf.Tensor], training: bool = False, text: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Computes the loss of one batch: the retrieval loss of the dense side, plus the loss of the gates.

        The loss of the gates is on held-out events, which no other part of the model is trained on.

        Args:
          inputs: A query, and for each event of its history: the next item as ``targets``, int32 ``[B, L]``, N if
            there is none to learn; ``held_out``, bool ``[B, L]``, the targets that only the gates may learn from; and,
            if events have weights, the weight of each target as ``target_weights``, float32 ``[B, L]``.
          training: Whether the call is part of training.
          text: Text vectors that replace the model's own, such as those of an encoder in training, float32 ``[N, Dt]``.
        """
        targets, held_out = inputs["targets"], inputs["held_out"]
        if strings := [each.key for each in self._texts if inputs[each.key].dtype == tf.string]:
            raise ModelError(
                f"The model reads the texts {', '.join(strings)} as vectors, found strings: pass texts=model.texts to "
                "training_batches."
            )
        query = {key: inputs[key] for key in ("history", *self.reads)}
        wanted = targets < self.n_items
        weights = inputs.get("target_weights")
        loss = tf.constant(0.0)
        # The content of the whole catalogue is computed once for both losses.
        of_some = isinstance(self.retrieval, SampledRetrieval) and self.propagation is None
        content = None if of_some else self.items.content(text=text)
        if self.use_dense:
            retrieval = self._retrieval_loss(query, targets, wanted & ~held_out, weights, content, text, training)
            self.retrieval_loss.update_state(retrieval)
            loss += retrieval
        if self.use_dense and self.use_behaviour:
            rows = tf.reduce_any(wanted & held_out, axis=1)
            held_query, held_targets, held = tf.nest.map_structure(
                lambda tensor: tf.boolean_mask(tensor, rows), (query, targets, wanted & held_out)
            )
            gating = self._gate_loss(held_query, held_targets, held, content)
            self.gate_loss.update_state(gating, tf.cast(tf.reduce_any(rows), tf.float32))
            loss += gating
        return share_of_replica(loss)

    def targets_and_predictions(self, inputs: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the item after the newest event of each history, int32 ``[R]``, and the scores of all items.

        The scores ``[R, N]`` are those of ``predict``: no item is masked. In ``fit`` they are too optimistic, because
        the item-item weights were solved from the targets. Rows whose last target is padding are left out.

        Args:
          inputs: As in :meth:`compute_loss`.
        """
        lengths = tf.reduce_sum(tf.cast(inputs["history"] < self.n_items, tf.int32), axis=1)
        targets = tf.gather(inputs["targets"], tf.maximum(lengths - 1, 0), batch_dims=1)
        rows = (lengths > 0) & (targets < self.n_items)
        query = {key: inputs[key] for key in ("history", *self.reads)}
        for field in self.schema.of("request"):  # each target has its own request; the last one is used
            query[field.key] = tf.gather(query[field.key], tf.maximum(lengths - 1, 0), batch_dims=1)
        query = {key: tf.boolean_mask(values, rows) for key, values in query.items()}
        return tf.boolean_mask(targets, rows), self(query)

    def _retrieval_loss(
        self,
        query: Query,
        targets: tf.Tensor,
        learnt: tf.Tensor,
        weights: tf.Tensor | None,
        content: Content | None,
        text: tf.Tensor | None,
        training: bool,
    ) -> tf.Tensor:
        """Computes the retrieval loss.

        Args:
          query: The queries.
          targets: The next item of each event, int32 ``[B, L]``.
          learnt: The targets to learn from, bool ``[B, L]``.
          weights: The weights of the targets, float32 ``[B, L]``.
          content: The content of the whole catalogue, if it has been computed already.
          text: As in :meth:`compute_loss`.
          training: Whether the call is part of training.
        """
        weights = None if weights is None else tf.boolean_mask(weights, learnt)
        if not isinstance(self.retrieval, SampledRetrieval):
            items = self.item_vectors(self.counts_without_holdout, training, content=content)
            vectors = tf.add_n(self.query_vectors(items, query, training=training))
            asked, wanted = tf.boolean_mask(vectors, learnt), tf.boolean_mask(targets, learnt)
            loss = self.retrieval(asked, items, wanted, sample_weight=weights)
            return loss + self._teacher_loss(query, learnt, asked, items, weights)
        candidates = tf.concat([tf.boolean_mask(targets, learnt), self.retrieval.draw()], axis=0)
        items, history, at = self._among_themselves(query["history"], candidates)
        content = self.items.content(items, text) if content is None else content
        vectors = self.item_vectors(self.counts_without_holdout, training, items, content)
        query = {**query, "history": history}
        asked = tf.boolean_mask(tf.add_n(self.query_vectors(vectors, query, training=training)), learnt)
        loss = self.retrieval(asked, tf.gather(vectors, at), candidates, sample_weight=weights)
        return loss + self._teacher_loss(query, learnt, asked, vectors, weights, items)

    def _teacher_loss(
        self,
        query: Query,
        learnt: tf.Tensor,
        asked: tf.Tensor,
        vectors: tf.Tensor,
        weights: tf.Tensor | None,
        items: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Computes the cross-entropy to the softmax of the teacher's dense scores, times its weight.

        The result is 0 without a teacher.

        Args:
          query: The queries; their histories index the rows of ``vectors``.
          learnt: The targets to learn from, bool ``[B, L]``.
          asked: The query vectors at these targets, ``[R, D]``.
          vectors: The item vectors of ``items``, ``[M, D]``.
          weights: The weights of the targets, float32 ``[R]``.
          items: Item indices, int32 ``[M]``; by default the whole catalogue.
        """
        teacher = self.teacher
        if teacher is None:
            return tf.constant(0.0)
        known = teacher.items if items is None else tf.gather(teacher.items, items)
        taught = tf.boolean_mask(tf.add_n(teacher.model.query_vectors(known, query)), learnt)
        soft, ours = (
            tf.matmul(tf.cast(a, tf.float32), tf.cast(b, tf.float32), transpose_b=True)
            for a, b in ((taught, known), (asked, vectors))
        )
        soft = tf.stop_gradient(tf.nn.softmax(soft))
        return teacher.weight * mean_loss(tf.nn.softmax_cross_entropy_with_logits(soft, ours), weights)

    def _among_themselves(self, history: tf.Tensor, candidates: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Collects the distinct items of the histories and the candidates.

        Args:
          history: The histories, int32 ``[B, L]``, padded with N.
          candidates: The candidates, int32.

        Returns:
          The distinct items, int32 ``[M]``; and ``history`` and ``candidates`` as indices into them, where padding
          stays N.
        """
        present = history < self.n_items
        flat = tf.concat([tf.reshape(tf.where(present, history, 0), [-1]), candidates], axis=0)
        items, at = tf.unique(flat)
        of_history, of_candidates = tf.split(at, [tf.size(history), tf.size(candidates)])
        return items, tf.where(present, tf.reshape(of_history, tf.shape(history)), self.n_items), of_candidates

    def _gate_loss(self, query: Query, targets: tf.Tensor, held_out: tf.Tensor, content: Content | None) -> tf.Tensor:
        """Computes the softmax loss of the gated sum at the held-out targets; no gradient reaches the terms themselves.

        The softmax is over the items that are new to the user, as in the lists that users get: W ranks the user's own
        items high in any case. If users use items again (:attr:`repeats`), it is over all items. With sampled
        negatives, it is over the target and a uniform sample of n items of the catalogue, each of which counts N / n
        times (importance sampling, Bengio and Senecal 2003).
        """
        history = query["history"]
        at = tf.cast(tf.where(held_out), tf.int32)
        until = tf.range(tf.shape(history)[1])[tf.newaxis] <= at[:, 1:]
        known = tf.where(until, tf.gather(history, at[:, 0]), self.n_items)
        weights = self.event_weights(query, at)
        target = tf.gather_nd(targets, at)
        if isinstance(self.retrieval, SampledRetrieval):
            return self._sampled_gate_loss(query, at, known, weights, target, content)
        items = self.item_vectors(self.counts_without_holdout, content=content)
        asked = tf.add_n(self.query_vectors(items, query))
        dense = tf.stop_gradient(tf.matmul(tf.gather_nd(asked, at), items, transpose_b=True))
        sparse = self.behaviour_without_holdout(known, weights)
        logits = self.gates(dense, sparse, self.counts_without_holdout, training=True)
        known = self._had(known, query, at)
        with tf.device("CPU:0"):  # as in NeighbourScores
            met = tf.raw_ops.DenseBincount(input=known, size=self.n_items, weights=tf.zeros((0,)), binary_output=True)
        masked = (met > 0) & (tf.range(self.n_items) != target[:, tf.newaxis]) & (not self.repeats)
        return mean_loss(self.gate_task.per_example_of_logits(tf.where(masked, -1e9, logits), target))

    def _sampled_gate_loss(
        self,
        query: Query,
        at: tf.Tensor,
        known: tf.Tensor,
        weights: tf.Tensor | None,
        target: tf.Tensor,
        content: Content | None,
    ) -> tf.Tensor:
        """Computes :meth:`_gate_loss` with sampled items.

        Args:
          query: The queries.
          at: Row and position of the event before each target, int32 ``[R, 2]``.
          known: The events up to that position, int32 ``[R, L]``, padded with N.
          weights: The weights of these events, float32 ``[R, L]``.
          target: The targets, int32 ``[R]``.
          content: The content of the whole catalogue, if it has been computed already.
        """
        drawn = self.retrieval.draw_evenly()
        items, history, places_of = self._among_themselves(query["history"], tf.concat([target, drawn], axis=0))
        vectors = self.item_vectors(self.counts_without_holdout, items=items, content=content)
        asked = tf.add_n(self.query_vectors(vectors, {**query, "history": history}))
        dense = tf.stop_gradient(tf.matmul(tf.gather_nd(asked, at), vectors, transpose_b=True))
        sparse = self.behaviour_without_holdout.of_items(known, items, weights)
        counts = rows_of(self.counts_without_holdout, items)
        logits = self.gates(dense, sparse, counts, training=True, items=items)
        known = self._had(known, query, at)
        with tf.device("CPU:0"):  # as in NeighbourScores
            met = tf.raw_ops.DenseBincount(
                input=rows_of(places(items, self.n_items), known), size=tf.size(items) + 1, weights=tf.zeros((0,)),
                binary_output=True,
            )[:, :-1]  # fmt: skip
        own, others = tf.split(places_of, [tf.size(target), tf.size(drawn)])
        masked = (tf.gather(met, others, axis=1) > 0) & (not self.repeats) | (drawn == target[:, tf.newaxis])
        times = math.log(self.n_items / self.retrieval.n_negatives)
        drawn_logits = tf.where(masked, -1e9, tf.gather(logits, others, axis=1) + times)
        own_logits = tf.gather(logits, own, batch_dims=1)[:, tf.newaxis]
        every = tf.concat([own_logits, drawn_logits], axis=1)
        return mean_loss(self.gate_task.per_example_of_logits(every, tf.zeros_like(target)))

    def _had(self, known: tf.Tensor, query: Query, at: tf.Tensor) -> tf.Tensor:
        """Returns ``known`` without events of weight 0, as in :attr:`tfllmrec.data.queries.Queries.had`."""
        kind = self.schema.kind_of_event
        if kind is None:
            return known
        weights = tf.gather(tf.gather(tf.constant(kind.code_weights), query[kind.key]), at[:, 0])
        return tf.where(weights == 0, self.n_items, known)

    # Inference ------------------------------------------------------------------------------------------------------

    def score_items(self, item_vectors: tf.Tensor, query: Query) -> tf.Tensor:
        """Computes the score of every item for each query, float32 ``[B, N]``.

        Without a history, the score is the item's popularity, log(1 + n_i). If there are fields of the request or its
        user, ``alone`` times the dense score is added (:class:`~tfllmrec.layers.query_fusion.QueryFusion`).

        Args:
          item_vectors: The result of :meth:`item_vectors`, or the same as a constant.
          query: The queries; their histories may have any length.
        """
        dense, sparse = self.terms(item_vectors, query)
        factors = self.item_factors()
        scores = dense * factors.dense + sparse * factors.sparse + factors.offset
        popularity = tf.math.log1p(self.train_counts)[tf.newaxis]
        nothing_known = tf.reduce_all(query["history"] >= self.n_items, axis=1, keepdims=True)
        return tf.where(nothing_known, popularity + dense * factors.dense, scores)

    def terms(self, item_vectors: tf.Tensor, query: Query) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the dense and the sparse scores of every item before the gates weight them, float32 ``[B, N]`` each.

        The scores of a side that the model does not use are zeros. The arguments are those of :meth:`score_items`.
        """
        dense = sparse = tf.zeros((tf.shape(query["history"])[0], self.n_items))
        if self.use_dense:
            vectors = tf.add_n(self.last_query_vectors(item_vectors, query))
            dense = tf.matmul(vectors, item_vectors, transpose_b=True)
        if self.use_behaviour:
            sparse = self.behaviour(query["history"], self.event_weights(query))
        return dense, sparse

    def event_weights(self, query: Query, at: tf.Tensor | None = None) -> tf.Tensor | None:
        """Computes the weights of events like :func:`tfllmrec.models.item_weights.event_weights`.

        Args:
          query: The queries.
          at: Row and position of the event before each of R targets, int32 ``[R, 2]``. If given, the result has the
            weights for the history of each target, because each target may have its own context.

        Returns:
          The weights, float32 ``[B, L]`` or ``[R, L]``; ``None`` if all weights are 1.
        """
        weights, kind, dwell = None, self.kind, self.dwell
        if kind is not None:
            of_codes = kind.code_weights * kind.code_factors(self.item_weights.factors_of_kinds)
            weights = tf.gather(tf.constant(of_codes), query[kind.key])
        if dwell is not None:  # as in Schema.event_weights
            times, medians = query[dwell.key], tf.constant(self.schema.code_medians)
            medians = medians[0] if kind is None else tf.gather(medians, query[kind.key])
            shares = tf.where(times >= 0, tf.clip_by_value(times / medians, LEAST_SHARE, 1.0), 1.0)
            weights = shares if weights is None else tf.where(weights > 0, weights * shares, weights)
        if weights is not None and at is not None:
            weights = tf.gather(weights, at[:, 0])
        exponent = None
        for name, strength in (self.item_weights.context or {}).items():
            of_events, asked = query[f"event.{name}"], query[f"request.{name}"]
            if at is not None:
                of_events = tf.gather(of_events, at[:, 0])
                asked = tf.gather_nd(asked, at[:, : len(asked.shape)])
            same = (of_events == asked[:, tf.newaxis]) & (of_events > UNKNOWN_CODE)
            shared = strength * tf.cast(same, tf.float32)
            exponent = shared if exponent is None else exponent + shared
        if exponent is None:
            return weights
        return tf.exp(exponent) if weights is None else weights * tf.exp(exponent)

    def behaviour_pairs(self, query: Query) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the summands of the behaviour term, see :meth:`NeighbourScores.pairs`."""
        return self.behaviour.pairs(query["history"], self.event_weights(query))

    @traced_once
    def last_query_vectors(self, item_vectors: tf.Tensor, query: Query) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the :meth:`query_vectors` after the newest event, float32 ``[B, D]`` each.

        For an empty history, the first is ``alone`` times the vector from the fields, or zeros without fields; the
        second is zeros.
        """
        lengths = tf.reduce_sum(tf.cast(query["history"] < self.n_items, tf.int32), axis=1)
        size = self.history_encoder.max_length
        last = tf.maximum(tf.minimum(lengths, size) - 1, 0)
        known = tf.cast(lengths > 0, tf.float32)
        meaning, feedback = self.query_vectors(item_vectors, self.newest(query, lengths, size), last=last)
        meaning = meaning[:, 0] * self.weight_of_meaning(query, lengths)[:, tf.newaxis]
        return meaning, feedback[:, 0] * known[:, tf.newaxis]

    def weight_of_meaning(self, query: Query, lengths: tf.Tensor) -> tf.Tensor:
        """Returns the weight of ``q_u``, float32 ``[B]``: 1 with a history; otherwise ``alone`` with fields, else 0.

        Args:
          query: The queries.
          lengths: Lengths of the histories, int32 ``[B]``.
        """
        known = tf.cast(lengths > 0, tf.float32)
        if self.query_fusion is None:
            return known
        given = self.query_fusion.given(self.with_texts_read(query))
        by_fields = tf.cast(given, tf.float32) * self.query_fusion.alone
        return tf.where(lengths > 0, known, by_fields)

    def newest(self, query: Query, lengths: tf.Tensor, size: int) -> dict[str, tf.Tensor]:
        """Cuts the query to the ``size`` newest events.

        Args:
          query: The queries.
          lengths: Lengths of the histories, int32 ``[B]``.
          size: Largest number of events.
        """
        padding = {"history": self.n_items, RATING_KEY: float("nan")}
        padding |= {field.key: field.padding for field in self.schema.of_history()}
        newest = {}
        for key, fill in padding.items():
            # Texts may have fewer columns than the history: only those of its newest events.
            known = tf.minimum(lengths, tf.shape(query[key])[1])
            newest[key] = newest_events(query[key], known, size, fill)
        return {key: newest.get(key, query[key]) for key in self.query_spec}

    @traced_once
    def explain_items(self, item_vectors: tf.Tensor, query: Query, items: tf.Tensor) -> dict[str, tf.Tensor]:
        """Computes the terms of the scores of some items, and the history events that explain them.

        Only the newest :data:`LONGEST` events are examined, which bounds the memory: ``[B, LONGEST, M]``.

        Args:
          item_vectors, query: As in :meth:`score_items`.
          items: Item indices, int32 ``[B, M]``; N for an unknown item.

        Returns:
          A mapping with these entries:

          - ``meaning``, ``feedback``, ``behaviour``: The terms, float32 ``[B, M]``. Their sum is the score, without the
            popularity that is added for an empty history. The offset of the gates is part of the meaning term (of the
            feedback term if there is no meaning term).
          - ``because``: The position in the history of the event that explains the score, int32 ``[B, M]``; -1 if there
            is none. If behaviour is at least the sum of the other terms, it is the event that adds the most to
            behaviour. Otherwise it is the event whose item is closest in meaning; if feedback is larger than meaning,
            among the events that were rated no lower than the user's mean.
          - ``behind``: The positions of the events that explain each of the three terms, int32 ``[B, M, 3]``; -1 if no
            event adds to the score by that term. For meaning, it is the event closest in meaning. For feedback, it is
            the event whose rating adds the most, if the rating is above the user's mean and the item is similar, or
            below and the item is dissimilar. For behaviour, it is the event that adds the most.
        """
        known_items = tf.where(items < self.n_items, items, 0)
        factors = self.factors_of(known_items)
        vectors = rows_of(item_vectors, known_items)
        terms = {}
        asked = self.last_query_vectors(item_vectors, query)
        for name, vector in zip(("meaning", "feedback"), asked, strict=True):
            terms[name] = tf.einsum("bmd,bd->bm", vectors, vector) * factors.dense
        history, ratings = query["history"], query[RATING_KEY]
        known = tf.math.is_finite(ratings)
        mean = tf.math.divide_no_nan(tf.reduce_sum(marks_of(ratings), 1), tf.reduce_sum(tf.cast(known, tf.float32), 1))
        lengths = tf.reduce_sum(tf.cast(history < self.n_items, tf.int32), axis=1)
        first = tf.maximum(lengths - LONGEST, 0)[:, tf.newaxis]
        newest = self.newest(query, lengths, LONGEST)
        history, ratings = newest["history"], newest[RATING_KEY]
        by_event = self.behaviour.by_event(history, known_items, self.event_weights(newest))  # [B, L, M]
        terms["behaviour"] = tf.reduce_sum(by_event, axis=1) * factors.sparse
        present = history < self.n_items
        events = rows_of(item_vectors, tf.where(present, history, 0))
        closeness = tf.einsum("bld,bmd->blm", events, vectors)
        absent = tf.where(present, 0.0, -1e9)[..., tf.newaxis]
        behaves = terms["behaviour"] >= terms["meaning"] + terms["feedback"]
        liked = tf.math.is_finite(ratings) & (ratings >= mean[:, tf.newaxis])
        disliked = tf.where(liked, 0.0, -1e6)[..., tf.newaxis]
        because = tf.where(
            behaves,
            tf.argmax(by_event + absent, axis=1, output_type=tf.int32),
            tf.where(
                terms["feedback"] > terms["meaning"],
                tf.argmax(closeness + absent + disliked, axis=1, output_type=tf.int32),
                tf.argmax(closeness + absent, axis=1, output_type=tf.int32),
            ),
        )
        has_history = tf.reduce_any(history < self.n_items, axis=1, keepdims=True)
        # The offset is added only now, because it does not depend on the history.
        terms[self._offset_term] += tf.where(has_history, factors.offset, 0.0)
        there = items < self.n_items
        terms = {name: tf.where(there, value, 0.0) for name, value in terms.items()}
        by_rating = tf.zeros_like(closeness)
        if self.use_feedback:
            by_rating = among(self._by_rating(item_vectors, query, vectors), lengths, self.history_length, closeness)
            agrees = (marks_of(ratings) - mean[:, tf.newaxis])[..., tf.newaxis] * closeness > 0
            by_rating = tf.where(agrees, by_rating, 0.0)
        behind = []
        for name, added in (("meaning", closeness), ("feedback", by_rating), ("behaviour", by_event)):
            used = name in self.config.terms
            best = tf.argmax(added + absent, axis=1, output_type=tf.int32)
            adds = there & has_history & (tf.reduce_max(added + absent, axis=1) > 0) & used
            behind.append(tf.where(adds, first + best, -1))
        found = {"because": tf.where(there & has_history, first + because, -1), "behind": tf.stack(behind, axis=-1)}
        return terms | found

    def _by_rating(self, item_vectors: tf.Tensor, query: Query, vectors: tf.Tensor) -> tf.Tensor:
        """Computes the contribution of each of the newest events to the unscaled feedback term, float32 ``[B, L, M]``.

        Args:
          item_vectors, query: As in :meth:`score_items`.
          vectors: The vectors of the items to explain, float32 ``[B, M, D]``.
        """
        lengths = tf.reduce_sum(tf.cast(query["history"] < self.n_items, tf.int32), axis=1)
        newest = self.newest(query, lengths, self.history_length)
        last = tf.maximum(tf.minimum(lengths, self.history_length) - 1, 0)
        events, present = self.events_of(item_vectors, newest)
        return feedback_by_event(self, vectors, events, newest, present, last)[0]

    def terms_of_items(self, item_vectors: tf.Tensor, query: Query, items: tf.Tensor) -> tf.Tensor:
        """Computes meaning, feedback and behaviour of a few items, float32 ``[B, M, 3]``; their sum is the score.

        These are the terms of :meth:`explain_items`, computed without searching for the events behind them, which is
        many times faster. They do not include the popularity that is added for an empty history.

        Args:
          item_vectors, query: As in :meth:`score_items`.
          items: Item indices, int32 ``[B, M]``; all must be in the catalogue.
        """
        queries = tf.stack(self.last_query_vectors(item_vectors, query), axis=-1)
        return self.weighed_terms(item_vectors, queries, query["history"], items, self.event_weights(query))

    def weighed_terms(
        self,
        item_vectors: tf.Tensor,
        queries: tf.Tensor,
        history: tf.Tensor,
        items: tf.Tensor,
        event_weights: tf.Tensor | None,
    ) -> tf.Tensor:
        """Computes :meth:`terms_of_items` from given :meth:`query_vectors`.

        Args:
          item_vectors: As in :meth:`score_items`.
          queries: Both query vectors, float32 ``[B, D, 2]``.
          history: The histories, int32 ``[B, L]``.
          items: Item indices, int32 ``[B, M]``; all must be in the catalogue.
          event_weights: The result of :meth:`event_weights`.
        """
        factors = self.factors_of(items)
        dense = tf.matmul(rows_of(item_vectors, items), queries) * factors.dense[..., tf.newaxis]
        terms = dict(zip(("meaning", "feedback"), tf.unstack(dense, axis=-1), strict=True))
        known = tf.reduce_any(history < self.n_items, axis=1, keepdims=True)
        terms[self._offset_term] += tf.where(known, factors.offset, 0.0)
        terms["behaviour"] = tf.gather(self.behaviour(history, event_weights), items, batch_dims=1) * factors.sparse
        return tf.stack(list(terms.values()), axis=-1)

    def factors_of(self, items: tf.Tensor) -> Factors:
        """Returns the factors and the offset of ``items`` int32 ``[B, M]``; without gates, see :meth:`item_factors`."""
        return self._without_missing_terms(self.gates.factors(rows_of(self.train_counts, items), items=items))

    def item_factors(self) -> Factors:
        """Returns the gates' factors and offset of each item, ``[N]``.

        A model with only a dense or only a sparse side has no gates: the factor of its side is 1, the other factor 0,
        and the offset 0.
        """
        return self._without_missing_terms(self.gates.factors(self.train_counts))

    @property
    def _offset_term(self) -> str:
        """The term that includes the gates' offset in explanations."""
        return "meaning" if "meaning" in self.config.terms else "feedback"

    def _without_missing_terms(self, factors: Factors) -> Factors:
        if self.use_dense and self.use_behaviour:
            return factors
        ones = tf.ones_like(factors.dense)
        return Factors(ones * float(self.use_dense), ones * float(self.use_behaviour), tf.zeros_like(ones))

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Returns the scores of all items, float32 ``[B, N]``, for queries as in :meth:`score_items`."""
        return self.score_items(self.item_vectors(training=training), inputs)

    @property
    def _score_inputs(self) -> list[Any]:
        """The arguments of :meth:`score_items`."""
        return [tf.TensorSpec((None, None), tf.float32), self.query_spec]

    # The functions are wrapped by partial, because Keras would save every attribute that is a tf.function.
    @cached_property
    def _score_batch(self) -> Callable[..., tf.Tensor]:
        return partial(tf.function(self.score_items, input_signature=self._score_inputs, autograph=False))

    @cached_property
    def _terms_batch(self) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
        return partial(tf.function(self.terms, input_signature=self._score_inputs, autograph=False))

    @cached_property
    def _explain_batch(self) -> Callable[..., dict[str, tf.Tensor]]:
        items = tf.TensorSpec((None, None), tf.int32)
        return partial(tf.function(self.explain_items, input_signature=[*self._score_inputs, items], autograph=False))

    @cached_property
    def contributions_batch(self) -> Callable[..., tuple[tf.Tensor, ...]]:
        """:func:`contributions_of` for this model, as a graph function."""
        inputs = [*self._score_inputs, tf.TensorSpec((None, None), tf.int32)]
        return partial(tf.function(partial(contributions_of, self), input_signature=inputs, autograph=False))

    def score(self, queries: Queries) -> np.ndarray:
        """Scores all items for each query, float32 ``[B, N]``, without masking, as :class:`Recommender` requires."""
        scores = np.empty((len(queries), self.n_items), np.float32)
        for rows, inputs in self._batches(queries):
            scores[rows] = self._score_batch(*inputs)
        return scores

    def score_terms(self, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
        """Computes the :meth:`terms` of all ``queries``."""
        dense, sparse = (np.empty((len(queries), self.n_items), np.float32) for _ in range(2))
        for rows, inputs in self._batches(queries):
            dense[rows], sparse[rows] = self._terms_batch(*inputs)
        return dense, sparse

    def explain(self, queries: Queries, items: np.ndarray) -> dict[str, np.ndarray]:
        """Computes :meth:`explain_items` for all ``queries`` and their ``items`` int ``[B, M]``; N for no item."""
        terms = {name: np.zeros(items.shape, np.float32) for name in ("meaning", "feedback", "behaviour")}
        explained = terms | {"because": np.empty(items.shape, np.int32)}
        explained["behind"] = np.empty((*items.shape, len(terms)), np.int32)
        for rows, inputs in self._batches(queries):
            for name, values in self._explain_batch(*inputs, items[rows].astype(np.int32)).items():
                explained[name][rows] = values
        return explained

    def contributions(self, query: Queries, items: np.ndarray) -> Contributions:
        """Computes the contribution of each event of a history to the scores of ``items``.

        All parts of a score add up to the score.

            parts = model.contributions(Queries.from_histories([[49, 171]]), np.array([180]))
            parts.events.sum(axis=-1)  # by event and item

        Args:
          query: A single query.
          items: Indices of items in the catalogue, int ``[M]``, at most 100.

        Raises:
          DataError: There is not exactly one query, there are more than 100 items, or an item is not in the catalogue.
        """
        return contributions(self, query, np.asarray(items))

    def recommend(
        self,
        users: Sequence[str] | None = None,
        k: int = 10,
        *,
        histories: Sequence[Sequence[str]] | None = None,
        ratings: Sequence[Sequence[float | None]] | None = None,
        exclude: Sequence[str] = (),
        dataset: Dataset | None = None,
        context: Sequence[Fields | None] | None = None,
        event_fields: Sequence[Sequence[Fields | None] | None] | None = None,
    ) -> pd.DataFrame:
        """Recommends the best ``k`` items for each user, or for each history, with titles and reasons.

            model.recommend(["42", "515"], k=5, dataset=dataset)
            model.recommend(histories=[["50", "172"], []], ratings=[[5, 4], []])
            model.recommend(histories=[[]], context=[{"device": "phone", "age": 25}])

        Args:
          users: Ids of users of ``dataset``. The history of a user is all events of the user in it.
          k: Length of each list. A list is shorter if fewer items remain.
          histories: Lists of item ids, oldest first, instead of ``users``. Unknown ids are ignored.
          ratings: The ratings of ``histories``: a row for each history, of the same length; ``None`` or NaN for no
            rating.
          exclude: Ids of items that are not recommended to anyone. Items of a user's own history are not recommended
            either, unless users use items again (``repeats``) or the event has a kind of weight 0.
          dataset: The source of titles, users' events and their fields. Without it, lists show ids instead of titles.
          context: Fields of each request and its user, by name. With ``users``, the fields of the user come from the
            data and may be left out.
          event_fields: The fields of each event of ``histories``, such as ``[{"kind": "view"}, {"kind": "purchase"}]``.

        Returns:
          A DataFrame with a row for each recommendation, see :func:`tfllmrec.client.answers.to_frame`.

        Raises:
          DataError: Both or neither of ``users`` and ``histories`` are given; there are users without a ``dataset``, or
            users that it does not have; ``ratings`` or fields do not fit.
        """
        return recommend(self, users, k, histories, ratings, exclude, dataset, context, event_fields)

    def similar(self, items: Sequence[str], k: int = 10, *, dataset: Dataset | None = None) -> pd.DataFrame:
        """Lists the ``k`` items most similar to each of ``items``, by the cosine of their vectors ``e_i``.

        The lists have no reasons. An exported model averages these cosines with those of the text vectors, so its lists
        may differ.

        Args:
          items: Item ids.
          k: Length of each list.
          dataset: The source of titles. Without it, lists show ids instead of titles.

        Returns:
          A DataFrame with a row for each similar item, see :func:`tfllmrec.client.answers.to_frame`. ``query`` is the
          position in ``items``.

        Raises:
          DataError: The catalogue does not have one of ``items``.
        """
        return similar(self, items, k, dataset)

    def _batches(self, queries: Queries) -> Iterator[tuple[np.ndarray, tuple[tf.Tensor, Query]]]:
        """Yields the rows of each batch and the arguments of :meth:`score_items` for them."""
        items = self.item_vectors()
        # Groups similar lengths: most histories are short, and a padded event costs as much as a real one.
        order = np.argsort(queries.history.lengths, kind="stable")
        for start in range(0, len(order), self.rows_at_once):
            rows = order[start : start + self.rows_at_once]
            inputs = self.query_inputs(queries.take(rows))
            yield rows, (items, {key: tf.constant(values) for key, values in inputs.items()})

    # Export, ranking and new items: the protocol Servable ------------------------------------------------------------

    @property
    def rows_at_once(self) -> int:
        of_row = sum(each.width * (self.history_length if each.owner == "event" else 1) for each in self._texts)
        return max(min(SCORE_BATCH, TEXT_VALUES // max(of_row, 1)), 1)

    def query_inputs(self, queries: Queries, length: int | None = None) -> dict[str, np.ndarray]:
        queries, texts = queries.with_missing(self.schema.of_inputs()), {each.key: each for each in self._texts}
        inputs = queries.inputs(self.n_items, [key for key in self.reads if key not in texts], length)
        if texts:
            # Without a length, the item-item weights read the whole history; texts are read only of its newest events.
            newest = min(inputs["history"].shape[1], self.history_length) if length is None else length
            strings = queries.inputs(self.n_items, self.reads_texts, newest)
            for key, field in texts.items():
                found = strings.get(key)
                if found is None or not np.any(found != ""):
                    inputs[key] = field.without_text(len(queries))
                else:
                    inputs[key] = self._vectors_of(found, field)
        return inputs

    def _vectors_of(self, texts: np.ndarray, field: Field) -> np.ndarray:
        """Returns the vectors of ``texts`` object ``[...]``, float32 ``[..., width]``.

        Raises:
          ModelError: The model has no encoder of texts, or one whose vectors have another width.
        """
        if self.texts is None:
            raise ModelError(
                f"The model reads texts of {field.key}, but has no encoder: set model.texts = UserTexts(encoder."
                "for_queries) with the encoder of the fit, or load the model by Run.load_model()."
            )
        if self.texts.width != field.width:
            raise ModelError(
                f"The model reads texts of {field.key} as vectors of {field.width} numbers, but its encoder gives "
                f"{self.texts.width}: set model.texts to the encoder of the fit."
            )
        return self.texts(texts)

    @property
    def reads_texts(self) -> list[str]:
        """Keys of the fields whose texts are read as vectors; empty if validation was better without texts."""
        return [field.key for field in self._texts] if self._texts and float(self.reads_text) > 0 else []

    @property
    def ignored(self) -> list[str]:
        """Keys among :attr:`reads` that count as missing, because validation was no better with them."""
        ignored = {field.key for field in self._texts} - set(self.reads_texts)
        if self.query_fusion is not None and not float(self.query_fusion.reads):
            contexts = {f"request.{name}" for name in self.item_weights.context or {}}
            ignored |= {field.key for field in self.query_fusion.fields if not field.is_read_text} - contexts
        return sorted(ignored)

    def centre_texts(self, sequences: Sequences, texts: UserTexts) -> None:
        """Sets the means of the text vectors of users to those of the training data. Call it before ``fit``.

        Args:
          sequences: The training histories.
          texts: The encoder of the texts; it becomes :attr:`texts`.
        """
        self.texts = texts
        for fusion in (self.event_fusion, self.query_fusion):
            for encoder in [] if fusion is None or fusion.texts is None else fusion.texts.encoders:
                found = np.unique(texts.codes(sequences.values_of(encoder.field.key)))
                vectors = texts.table[found[found > 0]]
                encoder.mean.assign(text_mean(vectors[np.isfinite(vectors).all(axis=1)]))

    term_names = ("meaning", "feedback", "behaviour")

    @property
    def history_length(self) -> int:
        return self.history_encoder.max_length

    @property
    def settings(self) -> dict[str, Section]:
        return {"model": self.config, "item_weights": self.item_weights}

    @property
    def _query_layers(self) -> list[tf.keras.layers.Layer]:
        """The layers that read queries, without the item-item weights."""
        layers = (self.history_encoder, self.event_fusion, self.query_fusion, self.scene_experts, self.feedback)
        return [layer for layer in layers if layer is not None]

    @property
    def _learned_variables(self) -> list[tf.Variable]:
        # W is not included: settings and training events determine it, and its last digits may differ between machines.
        layers = [self.items, *([] if self.propagation is None else [self.propagation])]
        weights = [variable for layer in (*layers, *self._query_layers, self.gates) for variable in layer.weights]
        return [*weights, self.reads_text] if self._texts else weights

    @property
    def learned(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in self._learned_variables]

    @property
    def resources(self) -> list[tf.Variable]:
        layers = (*self._query_layers, self.behaviour, self.gates)
        of_texts = [self.reads_text, self.items.maps["text"]] if self._texts else []
        return [self.train_counts, *of_texts, *(variable for layer in layers for variable in layer.variables)]

    def fold(self) -> FoldedHybrid:
        return FoldedHybrid(self)

    def terms_after(
        self, item_vectors: tf.Tensor, query: Query, row: tf.Tensor, at: tf.Tensor, items: tf.Tensor
    ) -> tf.Tensor:
        """Computes :meth:`terms_of_items` for histories that end earlier.

        The encoder runs once for each row of ``query``.

        Args:
          item_vectors: As in :meth:`score_items`.
          query: The queries, with at most :attr:`history_length` events.
          row: Rows of the query, int32 ``[R]``.
          at: Position of the last known event, int32 ``[R]``.
          items: Item indices, int32 ``[R, M]``.

        Returns:
          The terms, float32 ``[R, M, 3]``.
        """
        queries, history = tf.stack(self.query_vectors(item_vectors, query), axis=-1), query["history"]
        known = tf.range(tf.shape(history)[1]) <= at[:, tf.newaxis]
        past = tf.where(known, tf.gather(history, row), self.n_items)
        asked = tf.gather_nd(queries, tf.stack([row, at], axis=1))
        weights = self.event_weights(query, tf.stack([row, at], axis=1))
        return self.weighed_terms(item_vectors, asked, past, items, weights)

    def extend(
        self,
        catalogue: Catalogue,
        text: np.ndarray,
        histories: Ragged,
        tell: Tell,
    ) -> Hybrid:
        """Returns this model for a larger catalogue, without training; see :mod:`tfllmrec.serving.new_items`.

        Solving the item-item weights takes as long as in a fit: 15 s for 12,000 items, four minutes for 100,000.

        Args:
          catalogue: The N items in their order, followed by the new ones; texts and fields may have changed. If the
            model reads a graph, the catalogue must have the graph that the model was fitted with.
          text: The text vectors that the model was fitted with, float32 ``[N, Dt]``.
          histories: The histories of the training events.
          tell: Called with a line of text for each step.

        Raises:
          ModelError: The catalogue lacks a field that the model reads.
        """
        here = np.arange(len(catalogue.item_ids))
        rows = np.where(here < self.n_items, here, -1)
        return self.with_catalogue(catalogue, rows, histories, tell, text)

    def with_catalogue(
        self,
        catalogue: Catalogue,
        rows: np.ndarray,
        histories: Ragged | None,
        tell: Tell,
        text: np.ndarray | None = None,
        item_weights: ItemWeightSettings | None = None,
    ) -> Hybrid:
        """Returns this model for another catalogue, without training.

        Items in both catalogues keep their learned id embeddings and their numbers of events. The model treats all
        other items as cold. The item-item weights are solved for the new catalogue.

        Args:
          catalogue: The new catalogue, of N items.
          rows: The row of each item in this model's catalogue, int ``[N]``; -1 if it has none.
          histories: Histories with items of the new catalogue, from which the item-item weights are solved. ``None``:
            all weights are 0, for a model of which only the other terms are used.
          tell: Called with a line of text for each step.
          text: The vectors whose mean is subtracted from the text vectors of the catalogue, float32 ``[M, Dt]``; by
            default the catalogue's own.
          item_weights: Settings of the item-item weights; by default those of this model.

        Raises:
          ModelError: The catalogue lacks a field that the model reads.
        """
        of_items = [each.key for each in self.schema.of("item")]
        if lacking := [key for key in of_items if key not in catalogue.fields]:
            raise ModelError(
                f"Catalogue: the model reads the item fields {', '.join(lacking)}, but the catalogue does not have "
                "them. Build it with Catalogue.of(items, text, schema)."
            )
        n_items, item_weights = len(catalogue.item_ids), item_weights or self.item_weights
        counts = np.append(self.train_counts.numpy(), 0)[rows]
        with keras_policy(self.dtype_policy.name):
            model = Hybrid(
                catalogue, counts, self.config, item_weights, self.negatives, self.seed, self.schema, self.repeats,
                name=self.name,
            )  # fmt: skip
        model.texts = self.texts
        model.start_from(self, rows)
        if text is not None:
            model.items.blocks["text"].assign(centred_unit(catalogue.text, text, catalogue.text_widths))
        for each, ours in zip(model.items.fields, self.items.fields, strict=True):
            if each.field.kind == "vector":
                each.mean.assign(ours.mean)
                each.set_values(catalogue.fields[each.field.key])
        if model.use_behaviour and histories is not None:
            tell(f"item-item weights: solving again, for {n_items:,} items")
            graph = view_of(catalogue.graph) if catalogue.graph is not None and item_weights.graph else None
            weights = solve_item_weights(histories, n_items, item_weights, model.text_vectors, graph)
            model.set_item_weights(model.mapped(weights, histories))
        return model

    def start_from(self, other: Hybrid, rows: np.ndarray) -> None:
        """Copies the weights that another model has learned by gradient descent, and its choices on validation.

        Values that belong to the catalogue are not copied: texts, fields and the means that are subtracted from them,
        numbers of events, item-item weights, and edges. The id embeddings of items in both catalogues are copied; all
        others become zero, as for an item without events. The weights of relations are copied for relations that both
        models have, by name.

        Args:
          other: A model with the same settings and schema.
          rows: The row of each item in the other model's catalogue, int ``[N]``; -1 if it has none.

        Raises:
          ModelError: The models have different layers.
        """
        own, learned = self._of_no_catalogue, other._of_no_catalogue
        if [variable.shape for variable in own] != [variable.shape for variable in learned]:
            raise ModelError(
                "Expected a model with the same layers to start from: its section 'model' and its schema must be the "
                "same, and its text encoder must give vectors of the same width."
            )
        for variable, value in zip(own, learned, strict=True):
            variable.assign(value)
        if self.items.use_ids:
            shared = np.asarray(rows) >= 0
            ids = self.items.id_embedding.numpy()
            ids[shared] = other.items.id_embedding.numpy()[rows[shared]]
            ids[~shared] = 0.0
            self.items.id_embedding.assign(ids)
        if self.propagation is not None and other.propagation is not None:
            self.propagation.start_from(other.propagation)

    @property
    def _of_no_catalogue(self) -> list[tf.Variable]:
        """The learned variables except those that belong to a catalogue: values of items, and the means of vectors."""
        fields = self.items.fields
        own = [self.items.blocks["text"], self.gates.has_text, *(each.values for each in fields)]
        own += [each.mean for each in fields if each.field.kind == "vector"]
        own += [self.items.id_embedding] if self.items.use_ids else []
        own += [] if self.propagation is None else self.propagation.weights
        return [each for each in self._learned_variables if not any(each is variable for variable in own)]


def marks_of(ratings: tf.Tensor) -> tf.Tensor:
    """Returns the ratings with missing ones replaced by 0."""
    return tf.where(tf.math.is_finite(ratings), ratings, 0.0)
