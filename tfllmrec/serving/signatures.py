"""The signatures of an exported model, whose inputs and outputs have the strings that clients use.

They need core TensorFlow and TF Text operations only, except with the index form *scann*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.client.inputs import MOST_REASONS, STAGES
from tfllmrec.columns import DOMAIN
from tfllmrec.data.cleaning.names import category_names
from tfllmrec.data.graph import ItemGraph
from tfllmrec.data.queries import Queries
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.data.schema import RATING_KEY, Schema, padding_of
from tfllmrec.errors import ModelError
from tfllmrec.layers.field_decoder import ENTRIES, FieldDecoder
from tfllmrec.layers.given_texts import vectors_of_texts
from tfllmrec.layers.interest_forecast import CANDIDATES
from tfllmrec.layers.interest_profile import RISING
from tfllmrec.layers.item_index import NOTHING, Form, build_index, is_exact
from tfllmrec.layers.item_scann import Scann
from tfllmrec.layers.newest_events import newest_events
from tfllmrec.layers.static_table import static_table
from tfllmrec.layers.traced_once import traced_once
from tfllmrec.models.interests import Interests, LabelForecast
from tfllmrec.models.ranking import RankingModel
from tfllmrec.models.reasons import TERMS, Reasons, Subjects, telling
from tfllmrec.models.servable import Query, Servable
from tfllmrec.serving.label_weights import LabelWeights, Weighed
from tfllmrec.serving.list_rules import Asked, ListRules
from tfllmrec.serving.rules.graph import BusinessRules, Ruled
from tfllmrec.text.centring import search_weights
from tfllmrec.text.preprocessor import INPUTS
from tfllmrec.training.interests import forecast_of

#: The possible inputs of a request, by the names that clients use. Each signature takes some of them, in its own order.
TEXT, ITEM_ID = (tf.TensorSpec((None,), tf.string, name) for name in ("text", "item_id"))
HISTORY, EXCLUDE, ITEMS, CONTEXT, EVENT_FIELDS, ALLOW, CATEGORIES, PINNED, SKIP, LABEL_WEIGHTS = (
    tf.TensorSpec((None, None), tf.string, name)
    for name in (
        "history", "exclude", "items", "context", "event_fields", "allow", "categories", "pinned", "skip",
        "label_weights",
    )
)  # fmt: skip
TOKENS = [tf.TensorSpec((None, None), tf.int32, name) for name in INPUTS]
RATINGS = tf.TensorSpec((None, None), tf.float32, "ratings")
K, CATEGORY_CAP, REASONS = (tf.TensorSpec((None,), tf.int32, name) for name in ("k", "category_cap", "reasons"))
DIVERSITY, TAIL_SHARE = (tf.TensorSpec((None,), tf.float32, name) for name in ("diversity", "tail_share"))
#: Defaults of the full signatures. Each has a single row, which applies to every row of a request.
NO_STRINGS, NO_RATINGS, TEN = tf.fill((1, 0), ""), tf.zeros((1, 0)), tf.constant([10])
NO_CAP, NO_REASONS, NO_SHARE = tf.constant([0]), tf.constant([0]), tf.zeros(1)

EXCLUSION, RANKING = STAGES
#: The reason of a sponsored item.
SPONSORED = "sponsored"
#: Weight of a history in a search: one standard deviation of its scores counts as half a standard deviation of the
#: cosines between the catalogue's texts.
PERSONAL = 0.5
#: With a smaller standard deviation, the scores of a history differ by rounding errors only and do not affect a search.
FAINT = 1e-4
#: Number of labels in warm-up requests.
SHOWN_LABELS = 5
#: Largest number of neighbours that ``related`` lists.
NEIGHBOURS = 50
#: Smaller probabilities of the ranking model are raised to this value before the logarithm.
TINY = 1e-30
#: Number of requests on which an index of a large catalogue is tuned. With 300, the recall on other requests was 0.02
#: lower.
SAMPLED = 2000
AT_ONCE = 250  # number of these that are encoded at once


def _signature(*inputs: tf.TensorSpec) -> Callable[[Any], tf.types.experimental.PolymorphicFunction]:
    """Returns ``tf.function`` without AutoGraph, which takes seconds to find that there is nothing to convert here."""
    return tf.function(input_signature=inputs, autograph=False)


_Found = tuple[tf.Tensor, tf.Tensor]
"""Item indices int32 ``[B, k]`` and their scores float32 ``[B, k]``."""


class ServingModel(tf.Module):
    """A fitted model with its catalogue and its text tower, ready to be saved.

    Every signature takes a batch of any size. String matrices are padded with ``""``. Ids that are not in the catalogue
    are ignored; the output ``unknown`` ``[B]`` counts those of the history, or of ``item_id``. If fewer than ``k``
    items remain, a row is padded with ``""`` and score 0.

    ``recommend``, ``search`` and ``similar`` take the most common inputs only, because TF Serving's REST API refuses
    requests that omit an input. Each has a second signature that takes all inputs, such as ``recommend_full``; over
    gRPC, all of them except ``text`` and ``item_id`` may be omitted. The additional inputs are:

    - ``allow``, string ``[B, A]``, the only ids that may be returned, and ``categories``, string ``[B, F]``, of which a
      returned item must have at least one. Entries ``domain=NAME`` are a filter of their own: of these, too, a
      returned item must have at least one. A row that contains only ``""`` allows all items. A row with only ids or
      categories that are not in the catalogue allows none.
    - ``context``, string ``[B, C]``, the fields of the request and of its user, one entry ``name=value`` each, and
      ``event_fields``, string ``[B, L]``, the fields of each event of the history, with entries separated by line
      breaks (``kind=purchase\\ndwell=12``). The fields of a shop are columns of its files, but the signatures should be
      the same for all shops. So there are no inputs for kinds and times of events, which are fields like all others.
      Ratings are a separate input because they are the only field in most requests with fields. :class:`FieldDecoder`
      describes the notation of values.

    The output ``unread`` ``[B]`` of ``recommend_full`` and ``search_full`` counts what was ignored: unreadable entries,
    and the ids of ``exclude``, ``allow`` and ``pinned`` and the ``categories`` that are not in the catalogue.

    The full signatures also return ``titles``, string ``[B, k]``. The stages of ``recommend`` are retrieval, exclusion,
    filters, the ranking model, and re-ranking by the rules of :meth:`recommend_full`.

    If ``ranking`` changes the order (:attr:`RankingModel.reorders`), it orders the best ``ranking.config.candidates``
    items that pass the filters, as :class:`tfllmrec.models.ranking.Reranked` does; all others follow. ``scores`` then
    belong to positions, not to items: the n-th item of a list has the n-th highest retrieval score, so that scores
    descend along the whole list. Without such a model, a score belongs to its item: it is the sum of the terms of
    ``explain`` and of the amounts that ``label_weights`` add.

    Up to :data:`tfllmrec.layers.item_index.EXACT_ITEMS` items, every list is exact.

    Args:
      model: The fitted model.
      item_ids: Object ``[N]``.
      text: Float32 ``[N, Dt]``; zeros for items without text.
      text_to_vector: Encodes string ``[B]`` to float32 ``[B, Dt]``. ``None`` without text; then there is no ``search``
        and no ``encode``. If it has no method ``vectors`` that takes token ids, like
        :class:`tfllmrec.text.encoder.TextToVector`, there is no ``search_tokens``.
      histories: Histories of users. The index of a large catalogue is tuned for such requests.
      categories: The cleaned category cell of each item, see
        :func:`tfllmrec.data.cleaning.names.category_names`; ``None`` if no item has categories.
      labels: The labels of the items; ``None`` if there are none, then there is no ``interests``.
      ranking: The ranking model, fitted on ``model``. ``None`` if there is none; then there is no ``rank``, and
        ``recommend`` keeps the order of retrieval.
      index: The form of the indexes; *scann* needs operations that are not in TensorFlow.
      titles: The titles of the items; ``None`` to use their ids.
      schema: The fields that the model was fitted with.
      text_widths: The widths of the encoders' vectors concatenated in ``text``, which ``search`` weighs with
        :func:`tfllmrec.text.centring.search_weights`; ``None`` if there is one encoder.
      tail: Bool ``[N]``, the items that count as tail items for ``tail_share``; ``None`` for all.
      repeats: Whether ``recommend`` may list items of the history, for tasks where users use items again.
      forecast: The forecast of interests, fitted on ``model``; ``None`` to count the labels of the history only.
      ordered: Whether the order of a user's events is known, so that reasons may mention it.
      graph: The graph of the first items of the catalogue; later items have no neighbours. ``None`` if there is none;
        then there is no ``related``.
      domains: For each item of joined data, additional names that ``categories`` of a request may contain, see
        :func:`tfllmrec.data.domains.domain_filters`.

    Raises:
      ModelError: The model reads a field that the schema does not have, the model reads more fields of events than a
        request can have, or there is no suitable encoder for the texts that it reads.
    """

    def __init__(
        self,
        model: Servable,
        item_ids: np.ndarray,
        text: np.ndarray,
        text_to_vector: Any,
        histories: Queries,
        categories: Sequence[str] | None = None,
        labels: Interests | None = None,
        ranking: RankingModel | None = None,
        index: Form = "auto",
        titles: Sequence[str] | None = None,
        schema: Schema | None = None,
        text_widths: Sequence[int] | None = None,
        tail: np.ndarray | None = None,
        repeats: bool = False,
        forecast: LabelForecast | None = None,
        ordered: bool = True,
        graph: ItemGraph | None = None,
        domains: Sequence[Sequence[str]] = (),
    ) -> None:
        super().__init__(name="tfllmrec")
        self.n_items, self.repeats = len(item_ids), repeats
        ids = [str(item) for item in item_ids]
        self.index_of = static_table({item: i for i, item in enumerate(ids)}, default=self.n_items)
        self.item_ids = tf.constant([*ids, ""])
        self.titles = tf.constant([*(ids if titles is None else titles), ""])
        self.business_rules = BusinessRules(ids)
        names_of = [category_names(cell) for cell in ([""] * self.n_items if categories is None else categories)]
        members: dict[str, list[int]] = {}
        for item, names in enumerate(names_of):
            for name in names:
                members.setdefault(name, []).append(item)
        for item, of_domains in enumerate(domains):
            for name in of_domains:
                members.setdefault(name, []).append(item)
        numbers = {name: number for number, name in enumerate(members)}
        self.category_of = static_table({"": NOTHING} | numbers, len(members))
        schema = Schema() if schema is None else schema
        kind = schema.kind_of_event
        #: The field that tells which events of a history bar their items; ``None``: all do.
        self._kind = kind if kind is not None and (kind.code_weights == 0).any() and not repeats else None
        of_kind = set() if self._kind is None else {self._kind.key}
        reads = {RATING_KEY, *model.reads} | of_kind  # interests and ranking read ratings
        #: Keys of the fields that have an effect.
        self.reads = tuple(sorted(reads - set(model.ignored) | of_kind))
        self.event_decoder = FieldDecoder(schema.of_history(), reads)
        self.context_decoder = FieldDecoder(schema.of_query(), reads)
        domain = next((field for field in self.event_decoder.fields if field.key == f"event.{DOMAIN}"), None)
        #: The encoded domain of each item, and a missing value for the padding; ``None`` if the model reads none.
        self._domain_of: tf.Tensor | None = None
        if domain is not None and len(domains):
            own = [names[0].partition("=")[2] if len(names) == 1 else "" for names in domains]
            self._domain_of = tf.constant(domain.encode([*own, ""]))
        if len(self.event_decoder.fields) > ENTRIES:
            raise ModelError(
                f"The model reads {len(self.event_decoder.fields)} fields of events; expected at most {ENTRIES}, "
                "because a request has no more for an event. Exclude some with data.fields (use: false) and fit again."
            )
        decoded = {field.key for field in (*self.event_decoder.fields, *self.context_decoder.fields)}
        if missing := sorted(reads - decoded - {RATING_KEY}):
            raise ModelError(
                f"The model reads {', '.join(missing)}; expected fields of the data's schema "
                f"({', '.join(field.key for field in schema) or 'none'}). Export it with the data it was fitted on."
            )
        #: Widths of the fields that are texts in requests and that the model reads as vectors, by their keys.
        self._vector_widths = {
            field.key: spec.shape[-1]
            for field in (*self.event_decoder.fields, *self.context_decoder.fields)
            if field.kind == "text" and (spec := model.query_spec[field.key]).dtype == tf.float32
        }
        self.reads_texts = tuple(model.reads_texts)
        self.history_length = model.history_length
        if self.reads_texts and text_to_vector is None:
            raise ModelError(
                f"The model reads the texts {', '.join(self.reads_texts)}; expected the encoder that it was fitted "
                "with, as a graph that can be exported, found none. Export it with encoder=."
            )
        if others := [key for key in self.reads_texts if self._vector_widths[key] != np.shape(text)[1]]:
            raise ModelError(
                f"The model reads the texts {', '.join(others)} as vectors of {self._vector_widths[others[0]]} "
                f"numbers; the encoder gives {np.shape(text)[1]}. Export it with the encoder that it was fitted with."
            )
        self.item_vectors = tf.Variable(model.item_vectors(), trainable=False, name="item_vectors")
        self.folded = model.fold()
        labelled = list(map(np.asarray, members.values()))
        self._build_indexes(model, np.asarray(text, np.float32), text_widths, histories, labelled, index)
        of_items = [[numbers[name] for name in names] for names in names_of]
        tail = np.ones(self.n_items, bool) if tail is None else tail
        self.rules = ListRules(self.best, self.item_vectors, of_items, tail)
        self._scann = [one.cells for one in (self.best, self.alike) if isinstance(one.cells, Scann)]
        self.text_to_vector = text_to_vector
        # Saving traces every function of a module, even if it is not a signature, so the missing ones are removed.
        if text_to_vector is None:
            self.search = self.search_full = self.encode = None
        if not hasattr(text_to_vector, "vectors"):
            self.search_tokens = None
        if not self._scann:
            self.prepare = self.release = None
        #: A few labels that requests may weigh; empty without labels.
        self.some_labels = () if labels is None else tuple(map(str, labels.labels[:SHOWN_LABELS]))
        self._spread_of_prior = float(np.std(self.folded.prior))
        if graph is None:
            self.related = None
        else:
            self._set_neighbours(graph)
        if labels is None:
            self.interests = None
        else:
            names = [str(label) for label in labels.labels]
            self.labels = tf.constant([*names, ""])
            self.levels = tf.constant([*np.where(labels.broad, "broad", "specific"), ""])
            self.forecast = forecast_of(labels, forecast)
        columns = None if labels is None else self.forecast.profile.columns
        self.label_weights = LabelWeights(labels, self.n_items, columns)
        # The SavedModel does not contain the Keras model itself, only the resources that its functions read.
        self.resources = model.resources
        self._score_items = model.score_items
        self._explain_items = model.explain_items
        #: ``None`` if the model lacks one of the three terms that reasons are made of.
        self.reasons: Reasons | None = None
        if set(TERMS) <= set(model.term_names):
            if labels is None:
                subjects = Subjects.of_texts(ids if titles is None else titles, names_of)
            else:
                subjects = Subjects(self.label_weights.columns, telling(names, labels.share))
            self.reasons = Reasons(self.titles, subjects, ~tail, ordered)
        #: Number of the best items that ``recommend`` lists in the order of the ranking model.
        self.ranked = 0
        if ranking is None:
            self.rank = None
        else:
            self.resources += ranking.resources
            self._rank_items, self._rates = ranking.rank, ranking.rates
            self.ranked = ranking.config.candidates if ranking.reorders else 0

    def _set_neighbours(self, graph: ItemGraph) -> None:
        near = graph.strongest(NEIGHBOURS)
        words, place = near.words()
        self.relation_words = tf.constant([*words, ""])
        offsets = np.pad(near.offsets, (0, self.n_items - graph.n_items), mode="edge")  # new items have no edges
        self.neighbour_offsets = tf.Variable(offsets, trainable=False, name="neighbour_offsets", dtype=tf.int64)
        # The additional last row is padding for items with fewer neighbours.
        items, weights = np.append(near.items, self.n_items), np.append(near.weights, 0)
        self.neighbours = tf.Variable(items, trainable=False, name="neighbours", dtype=tf.int32)
        self.neighbour_weights = tf.Variable(weights, trainable=False, name="neighbour_weights", dtype=tf.float32)
        self.neighbour_words = tf.Variable(
            np.append(place, len(words)), trainable=False, name="neighbour_words", dtype=tf.int32
        )

    def _build_indexes(
        self,
        model: Servable,
        text: np.ndarray,
        text_widths: Sequence[int] | None,
        histories: Queries,
        categories: list[np.ndarray],
        index: Form,
    ) -> None:
        """Builds the index ``best`` for ``recommend``, and the index ``alike`` for ``search`` and ``similar``.

        The vectors of ``alike`` are the text vector, the learned vector and the folded vector of an item, concatenated.
        """
        own, folded = self.item_vectors.numpy(), self.folded.vectors
        # Without a dense part, all query vectors are zeros, so no cell is nearer than another.
        form: Form = index if self.folded.has_vectors else "exact"
        asked, known = (None, None) if is_exact(form, self.n_items) else self._asked(model, histories)
        self.best = build_index(folded, asked, form, prior=self.folded.prior, categories=categories, exclude=known)
        self.text_factors, self.text_centre, spread = search_weights(text, text_widths)
        self._personal = PERSONAL * (spread or 1.0)  # if all texts are equal, the history alone decides
        # The texts of items represent the texts that clients will search for.
        rows = evenly_spread(self.n_items, SAMPLED)
        searched = np.hstack([text[rows] * self.text_factors, np.zeros_like(own[rows]), np.zeros_like(folded[rows])])
        compared = np.hstack([text[rows], own[rows], np.zeros_like(folded[rows])]) / 2
        vectors = np.hstack([text, own, folded])
        # ``similar`` excludes the item itself, ``search`` excludes none.
        itself = np.concatenate([np.full_like(rows, self.n_items), rows])[:, np.newaxis]
        self.alike = build_index(vectors, np.vstack([searched, compared]), index, categories=categories, exclude=itself)

    def _asked(self, model: Servable, histories: Queries) -> tuple[np.ndarray, np.ndarray]:
        """Returns query vectors of sampled histories, float32 ``[Q, D]``, and their items, int32 ``[Q, L]``."""
        some = histories.take(evenly_spread(len(histories), SAMPLED))
        longest = max(int(some.history.lengths.max(initial=1)), 1)
        length = min(longest, model.history_length)
        asked = [
            self.folded.queries(
                self.item_vectors,
                {key: tf.constant(values) for key, values in model.query_inputs(few, length).items()},
            ).numpy()
            for few in list(some.batches(AT_ONCE)) or [some]
        ]
        return np.concatenate(asked), some.had.padded(longest, self.n_items)

    def signatures(self) -> dict[str, tf.types.experimental.PolymorphicFunction]:
        """Returns the signatures by the names that clients use."""
        served = {"serving_default": self.recommend}
        names = ("recommend", "recommend_full", "similar", "similar_full", "explain", "score")
        optional = ("search", "search_full", "search_tokens", "encode", "related", "interests", "rank")
        served |= {name: function for name in (*names, *optional) if (function := getattr(self, name)) is not None}
        return served

    @_signature(HISTORY, RATINGS, EXCLUDE, K)
    def recommend(self, history, ratings, exclude, k):
        """Returns the best ``k`` items, without those in ``exclude`` and, unless ``repeats``, those in the history.

        In :meth:`recommend_full`, items of the history whose events have a kind of weight 0 may be listed.

        Args:
          history: String ``[B, L]``, oldest first.
          ratings: Float32 ``[B, R]``, one per history entry. NaN means no rating; rows may be shorter than the history.
          exclude: String ``[B, E]``.
          k: Int32 ``[B]``.
        """
        query, unknown, _ = self._query(history, ratings)
        ruled = self.business_rules(tf.shape(history)[0])
        request = self._request(query, exclude, self._filters(*_no_filters(history), ruled))
        found = self._ordered(query, request, k)
        k = tf.broadcast_to(k, tf.shape(history)[:1])
        items, scores, _ = self.business_rules.placed(*found, k, ruled, self.best, request)
        return self._listed(items, scores) | {"unknown": unknown}

    @_signature(
        HISTORY, RATINGS, EVENT_FIELDS, CONTEXT, EXCLUDE, ALLOW, CATEGORIES, K, DIVERSITY, PINNED, CATEGORY_CAP,
        TAIL_SHARE, SKIP, LABEL_WEIGHTS, REASONS,
    )  # fmt: skip
    def recommend_full(
        self,
        history=NO_STRINGS,
        ratings=NO_RATINGS,
        event_fields=NO_STRINGS,
        context=NO_STRINGS,
        exclude=NO_STRINGS,
        allow=NO_STRINGS,
        categories=NO_STRINGS,
        k=TEN,
        diversity=NO_SHARE,
        pinned=NO_STRINGS,
        category_cap=NO_CAP,
        tail_share=NO_SHARE,
        skip=NO_STRINGS,
        label_weights=NO_STRINGS,
        reasons=NO_REASONS,
    ):
        """Returns lists like :meth:`recommend`, with fields, filters and rules; see the class.

        If any of ``diversity``, ``pinned``, ``category_cap`` and ``tail_share`` is set, up to 100 positions are filled
        one at a time from the best ``5 k`` items (50 to 500), by :func:`tfllmrec.layers.list_order.list_order`. Items
        keep their scores, which then do not descend.

        Args:
          history, ratings, exclude, k: See :meth:`recommend`.
          event_fields, context, allow, categories: See the class.
          diversity: Float32 ``[B]``, from 0 (the best items) to 1 (the most different items), measured by the cosines
            of learned item vectors.
          pinned: String ``[B, P]``, items that come first, in this order, regardless of their scores and the other
            rules; at most 100 of them. Like any other item, they are left out if they are excluded, filtered out, not
            in the catalogue or, unless ``repeats``, in the history.
          category_cap: Int32 ``[B]``, the largest number of items from one category; an item counts in each of its
            first 32 categories. 0 means no cap. A list with a cap ends with its candidates, and after 100 items.
          tail_share: Float32 ``[B]``, s from 0 to 1: at least ``floor(s n)`` of the first n items are tail items, for
            each n up to 100, as long as there are tail candidates.
          skip: String ``[B, S]``, stages to skip: with ``exclusion``, items of the history may come back; with
            ``ranking``, lists keep the order of retrieval. Other names count in ``unread``.
          label_weights: String ``[B, W]``, entries ``label=weight`` with weights from -1 to 1. In retrieval, an item's
            score rises by w times two standard deviations of the row's scores over the whole catalogue, where w is the
            sum of the weights of its labels. In ranking, the logarithm of its click probability rises likewise, by w
            times two standard deviations over the candidates. The weights of a label that is given several times add
            up, clipped to -1 to 1. Entries whose label is not one of ``interests``, or whose weight is not a number,
            count in ``unread``.
          reasons: Int32 ``[B]``, the number of first positions that get a reason, 0 to 100. The output ``reasons``,
            string ``[B, k]``, is ``""`` at all other positions, and where no fact explains a score
            (:mod:`tfllmrec.models.reasons`). Sponsored items always have the reason :data:`SPONSORED`.
        """
        history, ratings, event_fields, context, exclude, allow, categories, k, *rows = _with_as_many_rows(
            history, ratings, event_fields, context, exclude, allow, categories, k, diversity, pinned, category_cap,
            tail_share, skip, label_weights, reasons,
        )  # fmt: skip
        diversity, pinned, category_cap, tail_share, skip, label_weights, reasons = rows
        k = tf.maximum(k, 0)
        ruled = self.business_rules(tf.shape(history)[0], context)
        query, unknown, unread = self._query(history, ratings, event_fields, context, ruled.read)
        weighed, unread_labels = self.label_weights.read(label_weights)
        known_stage = tf.reduce_any(skip[..., tf.newaxis] == ["", *STAGES], axis=2)
        unread += tf.reduce_sum(tf.cast(~known_stage, tf.int32), axis=1) + unread_labels
        unread += self._not_in_catalogue(categories, exclude, allow, pinned)
        again = tf.reduce_any(skip == EXCLUSION, axis=1)
        request = self._request(query, exclude, self._filters(allow, categories, ruled), again)
        request["pairs"] = tf.cond(
            tf.reduce_any(weighed.any), lambda: self._weighed_pairs(request, weighed), lambda: request["pairs"]
        )
        asked = Asked(self.index_of.lookup(pinned), diversity, category_cap, tail_share)
        rearranged, skipped = self.rules.any_of(asked), tf.reduce_any(skip == RANKING, axis=1)
        wanted = tf.where(rearranged & (k > 0), self.rules.candidates(k), k)
        found = self._ordered(query, request, wanted, skipped, weighed)
        items, scores = tf.cond(
            tf.reduce_any(rearranged),
            lambda: self._first(*self.rules.apply(*found, k, asked, request), k),
            lambda: found,
        )
        items, scores, sponsored = self.business_rules.placed(items, scores, k, ruled, self.best, request)
        why = tf.where(sponsored, SPONSORED, self._reasons_of(query, items, reasons))
        return self._titled(items, scores) | {"reasons": why, "unknown": unknown, "unread": unread}

    def _reasons_of(self, query: Query, items: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
        """Returns the reasons of the first ``wanted`` items of each list, string ``[B, k]``; ``""`` for the others.

        Args:
          query: The query of the request.
          items: Int32 ``[B, k]``.
          wanted: Int32 ``[B]``.
        """
        none = tf.fill(tf.shape(items), "")
        if (reasons := self.reasons) is None:
            return none
        first = items[:, : tf.minimum(tf.reduce_max(tf.concat([wanted, [0]], axis=0)), MOST_REASONS)]

        def told() -> tf.Tensor:
            explained = self._explain_items(self.item_vectors, query, first)
            why = reasons(explained, query["history"], query[RATING_KEY], first)
            why = tf.where(tf.range(tf.shape(first)[1]) < wanted[:, tf.newaxis], why, "")
            return tf.concat([why, none[:, tf.shape(first)[1] :]], axis=1)

        return tf.cond(tf.reduce_any(wanted > 0), told, lambda: none)

    def _request(
        self, query: Query, exclude: tf.Tensor, filters: Mapping[str, tf.Tensor], again: tf.Tensor | None = None
    ) -> dict[str, Any]:
        """Returns the arguments of ``self.best.top_k``, except ``k``; ``again``, bool ``[B]``, admits the history."""
        excluded = self.index_of.lookup(exclude)
        if not self.repeats:
            had = query["history"]
            if self._kind is not None:  # as in Queries.had
                weights = tf.gather(self._kind.code_weights, query[self._kind.key])
                had = tf.where(weights == 0, self.n_items, had)
            had = had if again is None else tf.where(again[:, tf.newaxis], self.n_items, had)
            excluded = tf.concat([had, excluded], axis=1)
        return {"exclude": excluded, **filters, **self.folded.requests(self.item_vectors, query)}

    def _ordered(
        self,
        query: Query,
        request: Mapping[str, Any],
        k: tf.Tensor,
        skipped: tf.Tensor | None = None,
        weighed: Weighed | None = None,
    ) -> _Found:
        """Returns the best ``k`` items, in the order of the ranking model if it changes the order.

        Args:
          query: The query of the request.
          request: The arguments of ``self.best.top_k``, except ``k``.
          k: Int32 ``[B]`` or ``[1]``.
          skipped: Bool ``[B]``, rows that keep the order of retrieval.
          weighed: The weighed labels, for the order of the ranking model; ``request`` already contains their effect on
            retrieval.
        """
        if not self.ranked:
            return self.best.top_k(k=k, **request)
        k = tf.maximum(tf.broadcast_to(k, tf.shape(query["history"])[:1]), 0)
        ranked = (k > 0) if skipped is None else (k > 0) & ~skipped
        items, scores = self.best.top_k(k=tf.where(ranked, tf.maximum(k, self.ranked), k), **request)

        def in_order() -> tf.Tensor:
            first = items[:, : self.ranked]
            probability, _ = self._rank_items(self.item_vectors, query, first)
            if weighed is not None:
                probability = self._weighed_order(probability, weighed, first)
            order = tf.argsort(probability, axis=1, direction="DESCENDING", stable=True)
            order = tf.where(ranked[:, tf.newaxis], order, tf.range(tf.shape(first)[1]))
            return tf.concat([tf.gather(first, order, batch_dims=1), items[:, self.ranked :]], axis=1)

        items = tf.cond(tf.reduce_any(ranked), in_order, lambda: items)
        return self._first(items, scores, k)

    def _weighed_pairs(self, request: Mapping[str, Any], weighed: Weighed) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the pairs of a request, followed by the pairs of the labels that it weighs."""
        _, variance = self.folded.moments(self.best, request["query"], request["pairs"])
        spread = tf.where(request["unknown"], self._spread_of_prior, tf.sqrt(variance))
        further = self.label_weights.pairs(weighed, spread)
        items, values = (tf.concat(both, axis=1) for both in zip(request["pairs"], further, strict=True))
        return items, values

    def _weighed_order(self, probability: tf.Tensor, weighed: Weighed, items: tf.Tensor) -> tf.Tensor:
        """Returns the values by which the candidates are ordered, float32 ``[B, M]``.

        These are log probabilities plus the effect of the labels, or the unchanged probabilities for requests without
        weighed labels.

        Args:
          probability: Float32 ``[B, M]``, the output of the ranking model.
          weighed: The weighed labels.
          items: The candidates, int32 ``[B, M]``; N for none.
        """
        there = items < self.n_items
        logits = tf.math.log(tf.maximum(probability, TINY))
        count = tf.maximum(tf.reduce_sum(tf.cast(there, tf.float32), axis=1, keepdims=True), 1.0)
        mean = tf.reduce_sum(tf.where(there, logits, 0.0), axis=1, keepdims=True) / count
        variance = tf.reduce_sum(tf.where(there, (logits - mean) ** 2, 0.0), axis=1, keepdims=True) / count
        moved = logits + tf.sqrt(variance) * self.label_weights.added(weighed, items)
        return tf.where(weighed.any[:, tf.newaxis], tf.where(there, moved, -np.inf), probability)

    def _first(self, items: tf.Tensor, scores: tf.Tensor, k: tf.Tensor) -> _Found:
        """Keeps the first ``k`` items, int32 ``[B]``, of each row; the largest ``k`` is the number of columns."""
        width = tf.minimum(tf.reduce_max(tf.concat([k, [0]], axis=0)), self.n_items)
        items, scores = items[:, :width], scores[:, :width]
        shown = (tf.range(tf.shape(items)[1]) < k[:, tf.newaxis]) & (items < self.n_items)
        return tf.where(shown, items, self.n_items), tf.where(shown, scores, 0.0)

    @_signature(TEXT, HISTORY, EXCLUDE, K)
    def search(self, text, history, exclude, k):
        """Returns items whose texts are similar in meaning to ``text``, string ``[B]``.

        If there is a history, items that suit the user are ranked higher.
        """
        query, unknown, _ = self._query(history, _no_ratings(history))
        filters = self._filters(*_no_filters(history), self.business_rules(tf.shape(history)[0]))
        return self._listed(*self._found(self.text_to_vector(text), query, exclude, filters, k)) | {"unknown": unknown}

    @_signature(TEXT, HISTORY, RATINGS, EVENT_FIELDS, CONTEXT, EXCLUDE, ALLOW, CATEGORIES, K)
    def search_full(
        self,
        text,
        history=NO_STRINGS,
        ratings=NO_RATINGS,
        event_fields=NO_STRINGS,
        context=NO_STRINGS,
        exclude=NO_STRINGS,
        allow=NO_STRINGS,
        categories=NO_STRINGS,
        k=TEN,
    ):
        """Returns items like :meth:`search`, with ratings, fields and filters; see the class."""
        text, history, ratings, event_fields, context, exclude, allow, categories, k = _with_as_many_rows(
            text, history, ratings, event_fields, context, exclude, allow, categories, k
        )
        ruled = self.business_rules(tf.shape(text)[0], context)
        query, unknown, unread = self._query(history, ratings, event_fields, context, ruled.read)
        filters = self._filters(allow, categories, ruled)
        found = self._found(self.text_to_vector(text), query, exclude, filters, k)
        unread += self._not_in_catalogue(categories, exclude, allow)
        return self._titled(*found) | {"unknown": unknown, "unread": unread}

    @_signature(*TOKENS, HISTORY, EXCLUDE, K)
    def search_tokens(self, input_word_ids, input_mask, input_type_ids, history, exclude, k):
        """Returns items like :meth:`search`, for clients that tokenise texts themselves; equal tokens find equal items.

        Args:
          input_word_ids, input_mask, input_type_ids: Int32 ``[B, T]``, including ``[CLS]`` and ``[SEP]``. Columns that
            are padding in all rows are ignored; there may be as many other columns as the encoder has positions.
          history, exclude, k: See :meth:`search`.
        """
        used = tf.reduce_any(input_mask != 0, axis=0)
        width = tf.reduce_max(tf.where(used, tf.range(tf.size(used)), 0)) + 1
        tokens = zip(INPUTS, (input_word_ids, input_mask, input_type_ids), strict=True)
        vectors = self.text_to_vector.vectors({name: value[:, :width] for name, value in tokens})
        query, unknown, _ = self._query(history, _no_ratings(history))
        filters = self._filters(*_no_filters(history), self.business_rules(tf.shape(history)[0]))
        return self._listed(*self._found(vectors, query, exclude, filters, k)) | {"unknown": unknown}

    @_signature(TEXT)
    def encode(self, text):
        """Encodes ``text``, string ``[B]``, as the items' texts are encoded: float32 ``[B, Dt]``."""
        return {"vectors": self.text_to_vector(text)}

    def _found(
        self, vectors: tf.Tensor, query: Query, exclude: tf.Tensor, filters: dict[str, tf.Tensor], k: tf.Tensor
    ) -> _Found:
        """Finds the items for searched texts with these ``vectors``, float32 ``[B, Dt]``."""
        user, items, values, mean = tf.cond(
            tf.reduce_all(self.folded.nothing_known(query)),
            lambda: self._no_leaning(query),
            lambda: self._leaning(query),
        )
        own = tf.zeros((tf.shape(vectors)[0], self.item_vectors.shape[1]))
        indices, scores = self.alike.top_k(
            query=tf.concat([vectors * self.text_factors, own, user], axis=1),
            k=k,
            exclude=self.index_of.lookup(exclude),
            pairs=(items, values),
            **filters,
        )
        mean += tf.linalg.matvec(vectors, self.text_centre)
        return indices, tf.where(indices < self.n_items, scores - mean[:, tf.newaxis], 0.0)

    @_signature(ITEM_ID, K)
    def similar(self, item_id, k):
        """Returns the items most similar to ``item_id``, string ``[B]``.

        The score is the mean of the cosine of the learned vectors and the cosine of the text vectors.
        """
        index = self.index_of.lookup(item_id)
        found = self._similar(index, *_no_filters(item_id), k)
        return self._listed(*found) | {"unknown": tf.cast(index == self.n_items, tf.int32)}

    @_signature(ITEM_ID, ALLOW, CATEGORIES, K)
    def similar_full(self, item_id, allow=NO_STRINGS, categories=NO_STRINGS, k=TEN):
        """Returns items like :meth:`similar`, with filters; see the class."""
        item_id, allow, categories, k = _with_as_many_rows(item_id, allow, categories, k)
        index = self.index_of.lookup(item_id)
        found = self._similar(index, allow, categories, k)
        return self._titled(*found) | {"unknown": tf.cast(index == self.n_items, tf.int32)}

    def _similar(self, index: tf.Tensor, allow: tf.Tensor, categories: tf.Tensor, k: tf.Tensor) -> _Found:
        filters = self._filters(allow, categories, self.business_rules(tf.size(index)))
        # An unknown item has no similar items.
        allowed = tf.pad(filters.pop("allowed"), [[0, 0], [0, 1]], constant_values=NOTHING)
        allowed = tf.where(index[:, tf.newaxis] < self.n_items, allowed, self.n_items)
        text_and_own = self.alike.read(index)[:, : -self.folded.dim]
        query = tf.pad(0.5 * text_and_own, [[0, 0], [0, self.folded.dim]])
        return self.alike.top_k(query, k, exclude=index[:, tf.newaxis], allowed=allowed, **filters)

    @_signature(ITEM_ID, K)
    def related(self, item_id, k):
        """Returns the neighbours of ``item_id``, string ``[B]``, in the graph, strongest first.

        There are at most :data:`NEIGHBOURS`. ``scores`` are the sums of the weights of the relations; ``reasons``,
        string ``[B, k]``, name the relations, such as ``same author, similar text``.
        """
        index = self.index_of.lookup(item_id)
        known = index < self.n_items
        at = tf.where(known, index, 0)
        start, end = tf.gather(self.neighbour_offsets, at), tf.gather(self.neighbour_offsets, at + 1)
        end = tf.where(known, end, start)
        none = tf.size(self.neighbours, tf.int64) - 1
        place = start[:, tf.newaxis] + tf.range(min(NEIGHBOURS, self.n_items), dtype=tf.int64)
        place = tf.where(place < end[:, tf.newaxis], place, none)
        ruled = self.business_rules(tf.size(index))
        left = self.business_rules.without_banned(tf.gather(self.neighbours, place), ruled) < self.n_items
        order = tf.argsort(tf.cast(~left, tf.int32), axis=1, stable=True)
        place = tf.gather(tf.where(left, place, none), order, batch_dims=1)
        place = tf.where(tf.range(tf.shape(place)[1]) < k[:, tf.newaxis], place, none)
        place = place[:, : tf.reduce_max(tf.concat([k, [0]], 0))]
        found = self._listed(tf.gather(self.neighbours, place), tf.gather(self.neighbour_weights, place))
        reasons = tf.gather(self.relation_words, tf.gather(self.neighbour_words, place))
        return found | {"reasons": reasons, "unknown": tf.cast(~known, tf.int32)}

    @_signature(HISTORY, RATINGS, ITEMS, EVENT_FIELDS, CONTEXT)
    def explain(self, history, ratings, items, event_fields=NO_STRINGS, context=NO_STRINGS):
        """Returns the terms of the scores of ``items``, string ``[B, M]``, by name.

        ``because`` is the history item that explains each score; ``""`` if there is none.
        """
        query, unknown = self._query_of(history, ratings, event_fields, context)
        terms = dict(self._explain_items(self.item_vectors, query, self.index_of.lookup(items)))
        terms.pop("behind", None)
        return terms | {"because": self._event_ids(query["history"], terms.pop("because")), "unknown": unknown}

    @_signature(HISTORY, RATINGS, K)
    def interests(self, history, ratings, k):
        """Returns the ``k`` labels that a user's next items most likely have.

        The ``weights`` of a row sum to 1. ``levels`` is *broad* for a label of at least 2 % of the catalogue's items,
        otherwise *specific*. ``because`` is the history item that contributes most to the label; ``""`` if none has it.
        ``trends`` is *rising* if the label's share of the newest quarter of the events is at least 1.5 times its share
        of all events, *falling* if it is at most 1 / 1.5 of that share, otherwise *steady*; see
        :class:`tfllmrec.layers.interest_profile.Profile`. It is ``""`` if no history item has the label, or if the
        order of events is unknown. Rows are padded with ``""`` and weight 0; a row without a known item is only
        padding.
        """
        query, unknown, _ = self._query(history, ratings)
        items = scores = None
        if self.forecast.learned is not None:
            request = self._request(query, history[:, :0], self._filters(*_no_filters(history)))
            items, scores = self.best.top_k(k=tf.constant([CANDIDATES]), **request)
        labels, weights, position, trend = self.forecast(query["history"], query[RATING_KEY], items, scores, k)
        trends = tf.where(trend >= RISING, "rising", tf.where(trend * RISING <= 1, "falling", "steady"))
        return {
            "labels": tf.gather(self.labels, labels),
            "weights": weights,
            "levels": tf.gather(self.levels, labels),
            "trends": tf.where(trend > 0, trends, ""),
            "because": self._event_ids(query["history"], position),
            "unknown": unknown,
        }

    @_signature(HISTORY, RATINGS, ITEMS, EVENT_FIELDS, CONTEXT)
    def rank(self, history, ratings, items, event_fields=NO_STRINGS, context=NO_STRINGS):
        """Returns ``click_probability`` of ``items``, string ``[B, M]``, and ``rating`` if the data has ratings.

        Both are float32 ``[B, M]``, and 0 for ``""``, unknown ids and items that business rules hide from the request.
        :meth:`tfllmrec.models.ranking.RankingModel.rank` explains their meaning.
        """
        history, ratings, items, event_fields, context = _with_as_many_rows(
            history, ratings, items, event_fields, context
        )
        query, unknown, _ = self._query(history, ratings, event_fields, context)
        ruled = self.business_rules(tf.shape(history)[0], context)
        offered = self.business_rules.without_banned(self.index_of.lookup(items), ruled)
        probability, rating = self._rank_items(self.item_vectors, query, offered)
        told = {"click_probability": probability, "unknown": unknown}
        return told | {"rating": rating} if self._rates else told

    @_signature(HISTORY, RATINGS, EVENT_FIELDS, CONTEXT)
    def score(self, history, ratings, event_fields=NO_STRINGS, context=NO_STRINGS):
        """Returns the scores of all items in catalogue order, float32 ``[B, N]``, without masking, for evaluation."""
        query, _ = self._query_of(history, ratings, event_fields, context)
        return {"scores": self._score_items(self.item_vectors, query)}

    @_signature()
    def prepare(self):
        """Builds the ScaNN searchers from the variables, after loading the model; ``None`` without ScaNN."""
        for searcher in self._scann:
            searcher.prepare()

    @_signature()
    def release(self):
        """Releases the searchers that :meth:`prepare` built, before unloading the model; ``None`` without ScaNN."""
        for searcher in self._scann:
            searcher.release()

    def _query_of(self, *inputs: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Calls :meth:`_query` with history, ratings, event fields and context, of which any may have a single row."""
        query, unknown, _ = self._query(*_with_as_many_rows(*inputs))
        return query, unknown

    @traced_once
    def _query(
        self,
        history: tf.Tensor,
        ratings: tf.Tensor,
        event_fields: tf.Tensor | None = None,
        context: tf.Tensor | None = None,
        read_by_rules: tf.Tensor | None = None,
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Decodes the inputs of a request to the query that the model reads.

        Without ``event_fields`` and ``context``, every field is missing, except the domain of events in joined data,
        which is that of the item unless the item is shared. ``read_by_rules`` is :attr:`Ruled.read`.

        Returns:
          The query; and the numbers of unknown ids and of unreadable entries, int32 ``[B]`` each.
        """
        index = self.index_of.lookup(history)
        present, shape = index < self.n_items, tf.shape(history)
        unknown = tf.reduce_sum(tf.cast(~present & (history != ""), tf.int32), axis=1)
        if event_fields is None or context is None:
            events, query = self.event_decoder.missing(shape), self.context_decoder.missing(shape[:1])
            unread = tf.zeros_like(unknown)
        else:
            texts = tf.reshape(_as_wide(event_fields, shape[1], ""), [-1])
            flat, unread_of_events = self.event_decoder.decode_lines(texts)
            events = {
                key: tf.reshape(values, tf.concat([shape, tf.shape(values)[1:]], axis=0))
                for key, values in flat.items()
            }
            query, unread = self.context_decoder(context, read_by_rules)
            unread += tf.reduce_sum(tf.reshape(unread_of_events, shape), axis=1)
        if self._domain_of is not None:  # an event is in the domain of its item if it names none
            given = events[f"event.{DOMAIN}"]
            events[f"event.{DOMAIN}"] = tf.where(given == self._domain_of[-1], tf.gather(self._domain_of, index), given)
        marks = _as_wide(ratings, shape[1], np.nan)
        if RATING_KEY in events:
            marks = tf.where(tf.math.is_nan(marks), events[RATING_KEY], marks)
        events |= {"history": index, RATING_KEY: marks}
        for key, values in events.items():
            padding = self.n_items if key == "history" else padding_of(np.dtype(values.dtype.as_numpy_dtype))
            known = tf.ragged.boolean_mask(values, present).to_tensor(default_value=padding)
            # A batch of empty histories still needs a column, so one is added.
            query[key] = tf.pad(known, [[0, 0], [0, 1], *[[0, 0]] * (known.shape.rank - 2)], constant_values=padding)
        return query | self._vectors_of_texts(query, () if context is None else self.reads_texts), unknown, unread

    def _vectors_of_texts(self, query: Query, given: Sequence[str]) -> dict[str, tf.Tensor]:
        """Returns the text vectors of a query, as in :meth:`Servable.query_inputs`; missing values for other keys.

        Only the texts of the newest :attr:`history_length` events are encoded, which bounds the memory.

        Args:
          query: The decoded query.
          given: The keys of the texts to encode.
        """
        lengths = tf.reduce_sum(tf.cast(query["history"] < self.n_items, tf.int32), axis=1)
        texts = {
            key: newest_events(query[key], lengths, self.history_length, "") if key.startswith("event.") else query[key]
            for key in given
        }
        vectors = {
            key: tf.fill([tf.shape(lengths)[0], *[1] * key.startswith("event."), width], float("nan"))
            for key, width in self._vector_widths.items()
        }
        if texts:
            vectors |= vectors_of_texts(texts, self.text_to_vector, self.width_of_texts)
        return vectors

    @property
    def width_of_texts(self) -> int:
        """The width of the vectors of a request's texts; 0 if the model reads no texts."""
        return self._vector_widths[self.reads_texts[0]] if self.reads_texts else 0

    def _event_ids(self, known: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        """Returns the ids of the items at ``position``, int32 ``[B, M]``, of a history; ``""`` at -1."""
        event = tf.where(position >= 0, tf.gather(known, tf.maximum(position, 0), batch_dims=1), self.n_items)
        return tf.gather(self.item_ids, event)

    @traced_once
    def _leaning(self, asked: Query) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Computes the influence of the users' histories on a search; 0 for a user without a known history.

        Returns:
          Query vectors, float32 ``[B, D]``; items and values of the pairs, ``[B, S]`` each; and the mean amount that
          both add to an item's score, ``[B]``.
        """
        request = self.folded.requests(self.item_vectors, asked)
        query = self.folded.without_offset(request["query"])  # the offset is the same for every user
        mean, variance = self.folded.moments(self.best, query, request["pairs"])
        spread = tf.sqrt(variance)
        moves = (spread > FAINT) & ~request["unknown"]
        weight = tf.where(moves, self._personal / tf.maximum(spread, FAINT), 0.0)
        items, values = request["pairs"]
        return query * weight[:, tf.newaxis], items, values * weight[:, tf.newaxis], mean * weight

    def _no_leaning(self, asked: Query) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        batch = tf.shape(asked["history"])[0]
        nothing = tf.zeros((batch, 0))
        return tf.zeros((batch, self.folded.dim)), tf.cast(nothing, tf.int32), nothing, tf.zeros(batch)

    def _filters(
        self, allow: tf.Tensor, categories: tf.Tensor, ruled: Ruled | None = None
    ) -> dict[str, tf.Tensor | None]:
        """Returns the arguments ``allowed``, ``categories``, ``domains`` and ``banned`` of ``ItemIndex.top_k``."""
        numbers, of_domain = self.category_of.lookup(categories), tf.strings.regex_full_match(categories, "domain=.*")
        return {
            "banned": None if ruled is None else ruled.banned,
            "allowed": tf.where(allow == "", NOTHING, self.index_of.lookup(allow)),
            "categories": tf.where(of_domain, NOTHING, numbers),
            "domains": tf.where(of_domain, numbers, NOTHING),
        }

    def _not_in_catalogue(self, categories: tf.Tensor, *ids: tf.Tensor) -> tf.Tensor:
        """Counts the categories and the item ids that the catalogue does not have, int32 ``[B]``."""
        unknown = [self.category_of.lookup(categories) == self.best.n_categories]
        unknown += [(given != "") & (self.index_of.lookup(given) == self.n_items) for given in ids]
        return tf.add_n([tf.reduce_sum(tf.cast(each, tf.int32), axis=1) for each in unknown])

    def _listed(self, indices: tf.Tensor, scores: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"item_ids": tf.gather(self.item_ids, indices), "scores": scores}

    def _titled(self, indices: tf.Tensor, scores: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._listed(indices, scores) | {"titles": tf.gather(self.titles, indices)}


def _with_as_many_rows(*inputs: tf.Tensor) -> list[tf.Tensor]:
    """Repeats the row of inputs with a single row, so that all inputs have the same number of rows."""
    rows = tf.stack([tf.shape(tensor)[0] for tensor in inputs])
    batch = tf.where(tf.reduce_min(rows) == 0, 0, tf.reduce_max(rows))
    return [tf.broadcast_to(tensor, tf.concat([[batch], tf.shape(tensor)[1:]], axis=0)) for tensor in inputs]


def _as_wide(values: tf.Tensor, width: tf.Tensor, padding: float | str) -> tf.Tensor:
    """Cuts or pads the rows of ``[B, *]`` at the end: ``[B, width]``."""
    more = tf.maximum(width - tf.shape(values)[1], 0)
    return tf.pad(values, [[0, 0], [0, more]], constant_values=padding)[:, :width]


def _no_filters(requests: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns ``allow`` and ``categories`` that allow all items."""
    none = tf.fill((tf.shape(requests)[0], 0), "")
    return none, none


def _no_ratings(history: tf.Tensor) -> tf.Tensor:
    return tf.zeros((tf.shape(history)[0], 0))
