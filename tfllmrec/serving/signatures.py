"""What a client may ask of an exported model: strings in, strings out, core TensorFlow and TF Text operations only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.client.inputs import MOST_REASONS, STAGES
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
from tfllmrec.serving.rules.graph import CONTEXT_NAMES, BusinessRules, Ruled
from tfllmrec.text.centring import search_weights
from tfllmrec.text.preprocessor import INPUTS
from tfllmrec.training.interests import forecast_of

#: What a request may hold, by the name that a client gives it; a signature takes some of these, in its own order.
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
#: Defaults of the full signatures, each of one row, which stands for every row of a request.
NO_STRINGS, NO_RATINGS, TEN = tf.fill((1, 0), ""), tf.zeros((1, 0)), tf.constant([10])
NO_CAP, NO_REASONS, NO_SHARE = tf.constant([0]), tf.constant([0]), tf.zeros(1)

(RANKING,) = STAGES
#: The reason of a sponsored item.
SPONSORED = "sponsored"
#: Weight of a history in a search: one standard deviation of its scores counts as half a standard deviation of the
#: cosines between the catalogue's texts.
PERSONAL = 0.5
#: Scores that are spread less are equal but for rounding: they move nothing.
FAINT = 1e-4
#: Labels of warm-up requests.
SHOWN_LABELS = 5
#: Neighbours of an item that ``related`` may list.
NEIGHBOURS = 50
#: The smallest probability that the ranking model is taken to have given.
TINY = 1e-30
#: Requests that an index of a large catalogue is measured on: chosen on 300, recall on others was .02 lower.
SAMPLED = 2000
AT_ONCE = 250  # of these through the network


def _signature(*inputs: tf.TensorSpec) -> Callable[[Any], tf.types.experimental.PolymorphicFunction]:
    """``tf.function`` without AutoGraph, which has nothing to convert here, and takes seconds to find that out."""
    return tf.function(input_signature=inputs, autograph=False)


_Found = tuple[tf.Tensor, tf.Tensor]
"""Item indices int32 ``[B, k]`` and their scores float32 ``[B, k]``."""


class ServingModel(tf.Module):
    """A fitted model with its catalogue and its text tower, ready to be saved.

    Every signature takes a batch of any size. String matrices are padded with ``""``; ids that the catalogue does not
    have count as absent, and ``unknown`` ``[B]`` says how many there were. Where fewer than ``k`` items remain, a row
    is filled up with ``""`` at score 0.

    ``recommend``, ``search`` and ``similar`` take the inputs of the common case. TF Serving's REST API refuses a
    request that leaves an input out, so each has a second signature with all inputs, such as ``recommend_full``; over
    gRPC any of these but ``text`` and ``item_id`` may be left out. They take, beside those of the short one:

    - ``allow`` string ``[B, A]``, the only ids that may come back, and ``categories`` string ``[B, F]``, of which an
      item needs one. A row of nothing but ``""`` lets everything pass; one of ids or categories that the catalogue does
      not have, nothing.
    - ``context`` string ``[B, C]``, the fields of the request and of its user, an entry ``name=value`` each, and
      ``event_fields`` string ``[B, L]``, the fields of each event of the history, entries separated by line breaks
      (``kind=purchase\\ndwell=12``). The fields of a shop are columns of its files, and signatures should not differ
      from shop to shop; so there are no inputs for kinds and times of events, which are fields like all others. Ratings
      are an input of their own because most requests with fields have no others. :class:`FieldDecoder` says how values
      are written; ``unread`` ``[B]`` counts entries that cannot be read.

    and give ``titles`` string ``[B, k]`` too. The stages of ``recommend`` are retrieval, exclusion, filters, the
    ranking model, and re-ranking by the rules of :meth:`recommend_full`.

    If ``ranking`` changes the order (:attr:`RankingModel.reorders`), the best ``ranking.config.candidates`` items that
    pass are listed in its order, as :class:`tfllmrec.models.ranking.Reranked` does it, and all others behind them.
    ``scores`` then belong to places: the n-th item of a list has the n-th highest of the retrieval scores, so that
    scores descend and compare with those behind. Otherwise a score is that of its item, the sum of the terms of
    ``explain`` and of what ``label_weights`` add.

    Up to :data:`tfllmrec.layers.item_index.EXACT_ITEMS` items every list is exact.

    Args:
      model: fitted.
      item_ids: object ``[N]``.
      text: float32 ``[N, Dt]``, zeros where an item has no text.
      text_to_vector: string ``[B]`` -> float32 ``[B, Dt]``; ``None`` without text: no ``search`` then, nor ``encode``.
        Without ``vectors`` of its own, of token ids, as :class:`tfllmrec.text.encoder.TextToVector` has: no
        ``search_tokens``.
      histories: of users: the lists of a larger catalogue are made to be right for such requests.
      categories: the clean cell of each item, see :func:`tfllmrec.data.cleaning.names.category_names`; ``None``: no
        item has any.
      labels: what the items are about; ``None``: nothing is said of them, and there is no ``interests``.
      ranking: fitted on ``model``; ``None``: no ``rank``, and ``recommend`` keeps the order of retrieval.
      index: the form of the indexes; *scann* has operations that are not in TensorFlow.
      titles: of the items; ``None``: their ids.
      schema: the fields that the model was fitted with.
      text_widths: the widths of the encoders' vectors concatenated in ``text``, which ``search`` weighs as
        :func:`tfllmrec.text.centring.search_weights` says; ``None`` if there is one encoder.
      tail: bool ``[N]``, the items that ``tail_share`` is about; ``None``: all.
      repeats: whether ``recommend`` may list items of the history, because using an item again is the task.
      forecast: learned on ``model``; ``None``: interests are what is counted in the history.
      ordered: whether the order of a user's events is known, so that reasons may speak of it.
      graph: of the first items; further ones have no neighbours. ``None``: no ``related``.
      domains: of each item of joined data, further names that ``categories`` of a request may have, see
        :func:`tfllmrec.data.domains.domain_filters`.

    Raises:
      ModelError: the model reads a field that the schema does not have, or texts, and there is no encoder for them.
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
        reads = {RATING_KEY, *model.reads}  # interests and ranking know ratings
        self.reads = tuple(sorted(reads))
        self.event_decoder = FieldDecoder(schema.of_history(), reads)
        self.context_decoder = FieldDecoder(schema.of_query(), reads, CONTEXT_NAMES)
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
        #: Keys of texts that the model reads as vectors: strings in requests, and which of these are encoded.
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
        # Saving traces every function of a module, offered or not.
        if text_to_vector is None:
            self.search = self.search_full = self.encode = None
        if not hasattr(text_to_vector, "vectors"):
            self.search_tokens = None
        if not self._scann:
            self.prepare = self.release = None
        #: A few labels that requests may weigh; none without labels.
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
        # The Keras model itself stays out of the SavedModel; these are the resources that its functions read.
        self.resources = model.resources
        self._score_items = model.score_items
        self._explain_items = model.explain_items
        #: Only of a model with the three terms that reasons are made of.
        self.reasons: Reasons | None = None
        if set(TERMS) <= set(model.term_names):
            if labels is None:
                subjects = Subjects.of_texts(ids if titles is None else titles, names_of)
            else:
                subjects = Subjects(self.label_weights.columns, telling(names, labels.share))
            self.reasons = Reasons(self.titles, subjects, ~tail, ordered)
        #: How many of the best items ``recommend`` lists in the order of the ranking model.
        self.ranked = 0
        if ranking is None:
            self.rank = None
        else:
            self.resources += [*ranking.network.variables, ranking.item_bias]
            self._rank_items, self._rates = ranking.rank, ranking.rates
            self.ranked = ranking.config.candidates if ranking.reorders else 0

    def _set_neighbours(self, graph: ItemGraph) -> None:
        near = graph.strongest(NEIGHBOURS)
        words, place = near.words()
        self.relation_words = tf.constant([*words, ""])
        offsets = np.pad(near.offsets, (0, self.n_items - graph.n_items), mode="edge")  # new items have no edges
        self.neighbour_offsets = tf.Variable(offsets, trainable=False, name="neighbour_offsets", dtype=tf.int64)
        # A row more, for items that have fewer.
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
        """``best``, for ``recommend``; ``alike``, for ``search`` and ``similar``, of three vectors side by side."""
        own, folded = self.item_vectors.numpy(), self.folded.vectors
        # Without a dense side all are zeros, and there are no cells to be near to.
        form: Form = index if self.folded.has_vectors else "exact"
        asked, known = (None, None) if is_exact(form, self.n_items) else self._asked(model, histories)
        self.best = build_index(folded, asked, form, prior=self.folded.prior, categories=categories, exclude=known)
        self.text_factors, self.text_centre, spread = search_weights(text, text_widths)
        self._personal = PERSONAL * (spread or 1.0)  # where all texts are alike, the history decides alone
        # The texts of items stand for those that will be looked for.
        rows = evenly_spread(self.n_items, SAMPLED)
        searched = np.hstack([text[rows] * self.text_factors, np.zeros_like(own[rows]), np.zeros_like(folded[rows])])
        compared = np.hstack([text[rows], own[rows], np.zeros_like(folded[rows])]) / 2
        vectors = np.hstack([text, own, folded])
        itself = np.concatenate([np.full_like(rows, self.n_items), rows])[:, np.newaxis]  # unless it is searched
        self.alike = build_index(vectors, np.vstack([searched, compared]), index, categories=categories, exclude=itself)

    def _asked(self, model: Servable, histories: Queries) -> tuple[np.ndarray, np.ndarray]:
        """What some of the ``histories`` ask for, float32 ``[Q, D]``, and they themselves, int32 ``[Q, L]``."""
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
        return np.concatenate(asked), some.history.padded(longest, self.n_items)

    def signatures(self) -> dict[str, tf.types.experimental.PolymorphicFunction]:
        """By the name that a client calls them by."""
        served = {"serving_default": self.recommend}
        names = ("recommend", "recommend_full", "similar", "similar_full", "explain", "score")
        optional = ("search", "search_full", "search_tokens", "encode", "related", "interests", "rank")
        served |= {name: function for name in (*names, *optional) if (function := getattr(self, name)) is not None}
        return served

    @_signature(HISTORY, RATINGS, EXCLUDE, K)
    def recommend(self, history, ratings, exclude, k):
        """The best ``k`` items outside ``exclude`` and, unless ``repeats``, outside the history.

        Args:
          history: string ``[B, L]``, oldest first. ratings: float32 ``[B, R]``, one per history entry; NaN, or a row
            that is shorter, for none. exclude: string ``[B, E]``. k: int32 ``[B]``.
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
        """As :meth:`recommend`, with fields, filters and rules; see the class.

        If any rule is set, up to 100 places are filled one at a time from the best ``5 k`` items (50 to 500), as
        :func:`tfllmrec.layers.list_order.list_order` says. Items keep their scores, which then do not descend.

        Args:
          diversity: float32 ``[B]``, from 0 (the best items) to 1 (the most different ones), by the cosines of learned
            item vectors.
          pinned: string ``[B, P]``, items that come first, in this order, whatever their scores and the other rules; at
            most 100 of them. Like any other item they are left out if they are excluded, filtered out, not in the
            catalogue or, unless ``repeats``, in the history.
          category_cap: int32 ``[B]``, maximum number of items from one category; an item counts in each of its first 32
            categories. 0: no cap. A list with a cap ends where its candidates do, and after 100 items.
          tail_share: float32 ``[B]``, s from 0 to 1: at least ``floor(s n)`` of the first n items are tail items, for
            each n up to 100, while there are tail candidates.
          skip: string ``[B, S]``, stages to skip: ``ranking``. Other names count in ``unread``.
          label_weights: string ``[B, W]``, entries ``label=weight`` with weights from -1 to 1. In retrieval, an item's
            score rises by w times two standard deviations of the row's scores over the whole catalogue, where w is the
            sum of the weights of its labels. In ranking, the logarithm of its click probability rises likewise, by the
            standard deviation over the candidates. The weights of a label that is given several times add
            up, to -1 or 1 at most. Entries that name no label of ``interests``, or have no number, count in ``unread``.
          reasons: int32 ``[B]``, how many of the first places get a reason, 0 to 100; ``reasons`` string ``[B, k]`` of
            the answer are ``""`` in all others, and where no fact is behind a score (:mod:`tfllmrec.models.reasons`).
            Sponsored items have the reason :data:`SPONSORED`, whether reasons are asked for or not.
        """
        history, ratings, event_fields, context, exclude, allow, categories, k, *rows = _with_as_many_rows(
            history, ratings, event_fields, context, exclude, allow, categories, k, diversity, pinned, category_cap,
            tail_share, skip, label_weights, reasons,
        )  # fmt: skip
        diversity, pinned, category_cap, tail_share, skip, label_weights, reasons = rows
        k = tf.maximum(k, 0)
        query, unknown, unread = self._query(history, ratings, event_fields, context)
        weighed, unread_labels = self.label_weights.read(label_weights)
        unread += tf.reduce_sum(tf.cast((skip != "") & (skip != RANKING), tf.int32), axis=1) + unread_labels
        ruled = self.business_rules(tf.shape(history)[0], context)
        request = self._request(query, exclude, self._filters(allow, categories, ruled))
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
        """The reasons of the first ``wanted`` int32 ``[B]`` of ``items`` int32 ``[B, k]``: string ``[B, k]``."""
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

    def _request(self, query: Query, exclude: tf.Tensor, filters: Mapping[str, tf.Tensor]) -> dict[str, Any]:
        """The arguments of ``self.best.top_k``, but for ``k``."""
        excluded = self.index_of.lookup(exclude)
        if not self.repeats:
            excluded = tf.concat([query["history"], excluded], axis=1)
        return {"exclude": excluded, **filters, **self.folded.requests(self.item_vectors, query)}

    def _ordered(
        self,
        query: Query,
        request: Mapping[str, Any],
        k: tf.Tensor,
        skipped: tf.Tensor | None = None,
        weighed: Weighed | None = None,
    ) -> _Found:
        """The best ``k`` items in the order of the ranking model, if it changes any.

        Args:
          skipped: bool ``[B]``, rows that keep the order of retrieval.
          weighed: labels that move items within the order of the ranking model; ``request`` has them already.
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
        """The pairs of a request, followed by the items of the labels that it weighs."""
        _, variance = self.folded.moments(self.best, request["query"], request["pairs"])
        spread = tf.where(request["unknown"], self._spread_of_prior, tf.sqrt(variance))
        further = self.label_weights.pairs(weighed, spread)
        items, values = (tf.concat(both, axis=1) for both in zip(request["pairs"], further, strict=True))
        return items, values

    def _weighed_order(self, probability: tf.Tensor, weighed: Weighed, items: tf.Tensor) -> tf.Tensor:
        """What ``items`` int32 ``[B, M]`` are ordered by, float32 ``[B, M]``, where requests weigh labels."""
        there = items < self.n_items
        logits = tf.math.log(tf.maximum(probability, TINY))
        count = tf.maximum(tf.reduce_sum(tf.cast(there, tf.float32), axis=1, keepdims=True), 1.0)
        mean = tf.reduce_sum(tf.where(there, logits, 0.0), axis=1, keepdims=True) / count
        variance = tf.reduce_sum(tf.where(there, (logits - mean) ** 2, 0.0), axis=1, keepdims=True) / count
        moved = logits + tf.sqrt(variance) * self.label_weights.added(weighed, items)
        return tf.where(weighed.any[:, tf.newaxis], tf.where(there, moved, -np.inf), probability)

    def _first(self, items: tf.Tensor, scores: tf.Tensor, k: tf.Tensor) -> _Found:
        """The first ``k`` int32 ``[B]`` of each row; only as many columns as the longest list has."""
        width = tf.minimum(tf.reduce_max(tf.concat([k, [0]], axis=0)), self.n_items)
        items, scores = items[:, :width], scores[:, :width]
        shown = (tf.range(tf.shape(items)[1]) < k[:, tf.newaxis]) & (items < self.n_items)
        return tf.where(shown, items, self.n_items), tf.where(shown, scores, 0.0)

    @_signature(TEXT, HISTORY, EXCLUDE, K)
    def search(self, text, history, exclude, k):
        """Items whose text means what ``text`` string ``[B]`` says; a history moves those up that suit the user."""
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
        """As :meth:`search`, with ratings, fields and filters; see the class."""
        text, history, ratings, event_fields, context, exclude, allow, categories, k = _with_as_many_rows(
            text, history, ratings, event_fields, context, exclude, allow, categories, k
        )
        query, unknown, unread = self._query(history, ratings, event_fields, context)
        filters = self._filters(allow, categories, self.business_rules(tf.shape(text)[0], context))
        found = self._found(self.text_to_vector(text), query, exclude, filters, k)
        return self._titled(*found) | {"unknown": unknown, "unread": unread}

    @_signature(*TOKENS, HISTORY, EXCLUDE, K)
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
        query, unknown, _ = self._query(history, _no_ratings(history))
        filters = self._filters(*_no_filters(history), self.business_rules(tf.shape(history)[0]))
        return self._listed(*self._found(vectors, query, exclude, filters, k)) | {"unknown": unknown}

    @_signature(TEXT)
    def encode(self, text):
        """The vectors of ``text`` string ``[B]`` in the space of the items' texts: float32 ``[B, Dt]``."""
        return {"vectors": self.text_to_vector(text)}

    def _found(
        self, vectors: tf.Tensor, query: Query, exclude: tf.Tensor, filters: dict[str, tf.Tensor], k: tf.Tensor
    ) -> _Found:
        """The items for texts of these ``vectors``, float32 ``[B, Dt]``."""
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
        """Items like ``item_id`` string ``[B]``: the mean of the cosines of their learned and of their text vectors."""
        index = self.index_of.lookup(item_id)
        found = self._similar(index, *_no_filters(item_id), k)
        return self._listed(*found) | {"unknown": tf.cast(index == self.n_items, tf.int32)}

    @_signature(ITEM_ID, ALLOW, CATEGORIES, K)
    def similar_full(self, item_id, allow=NO_STRINGS, categories=NO_STRINGS, k=TEN):
        """As :meth:`similar`, with filters; see the class."""
        item_id, allow, categories, k = _with_as_many_rows(item_id, allow, categories, k)
        index = self.index_of.lookup(item_id)
        found = self._similar(index, allow, categories, k)
        return self._titled(*found) | {"unknown": tf.cast(index == self.n_items, tf.int32)}

    def _similar(self, index: tf.Tensor, allow: tf.Tensor, categories: tf.Tensor, k: tf.Tensor) -> _Found:
        filters = self._filters(allow, categories, self.business_rules(tf.size(index)))
        # Nothing is like an item that is not there.
        allowed = tf.pad(filters.pop("allowed"), [[0, 0], [0, 1]], constant_values=NOTHING)
        allowed = tf.where(index[:, tf.newaxis] < self.n_items, allowed, self.n_items)
        text_and_own = self.alike.read(index)[:, : -self.folded.dim]
        query = tf.pad(0.5 * text_and_own, [[0, 0], [0, self.folded.dim]])
        return self.alike.top_k(query, k, exclude=index[:, tf.newaxis], allowed=allowed, **filters)

    @_signature(ITEM_ID, K)
    def related(self, item_id, k):
        """The neighbours of ``item_id`` string ``[B]`` in the graph, at most :data:`NEIGHBOURS`, strongest first.

        ``scores`` are the sums of the weights of the relations; ``reasons`` string ``[B, k]`` say which these are, such
        as ``same author, similar text``.
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
        """The terms of the scores of ``items`` string ``[B, M]``, and the history item behind each (``""``: none)."""
        query, unknown = self._query_of(history, ratings, event_fields, context)
        terms = dict(self._explain_items(self.item_vectors, query, self.index_of.lookup(items)))
        terms.pop("behind", None)
        return terms | {"because": self._event_ids(query["history"], terms.pop("because")), "unknown": unknown}

    @_signature(HISTORY, RATINGS, K)
    def interests(self, history, ratings, k):
        """The ``k`` labels that the next items most likely have.

        ``weights`` of a row sum to 1. ``levels``: *broad* for a label of at least 2 % of the catalogue's items,
        otherwise *specific*. ``because``: the history item that adds most to the label; ``""`` if none has it.
        ``trends``: *rising* if the label's share of the newest quarter of the events is at least 1.5 times its share of
        all, *falling* if that is at least 1.5 times as large, otherwise *steady*; see
        :class:`tfllmrec.layers.interest_profile.Profile`. ``""`` if no history item has the label, or the data has no
        order. Rows are filled up with ``""`` at weight 0; one without a known item has nothing else.
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
        """``click_probability`` of ``items`` string ``[B, M]``, and ``rating`` where the data has any.

        Both float32 ``[B, M]``, and 0 for ``""``, unknown ids and items that business rules hide from the request. What
        they mean: :meth:`tfllmrec.models.ranking.RankingModel.rank`.
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
        """All scores in catalogue order, float32 ``[B, N]``, nothing masked; for measuring what is served."""
        query, _ = self._query_of(history, ratings, event_fields, context)
        return {"scores": self._score_items(self.item_vectors, query)}

    @_signature()
    def prepare(self):
        """Has ScaNN make of the variables what it needs, for who loads the model; not there without ScaNN."""
        for searcher in self._scann:
            searcher.prepare()

    @_signature()
    def release(self):
        """Gives up what :meth:`prepare` made, for who unloads the model; not there without ScaNN."""
        for searcher in self._scann:
            searcher.release()

    def _query_of(self, *inputs: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """:meth:`_query` of history, ratings, fields of events and context, of which the last two may have one row."""
        query, unknown, _ = self._query(*_with_as_many_rows(*inputs))
        return query, unknown

    @traced_once
    def _query(
        self,
        history: tf.Tensor,
        ratings: tf.Tensor,
        event_fields: tf.Tensor | None = None,
        context: tf.Tensor | None = None,
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """The query as the model reads it.

        Without ``event_fields`` and ``context`` every field is left out.

        Returns:
          The query; the number of unknown ids, and of entries that cannot be read, int32 ``[B]`` each.
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
            query, unread = self.context_decoder(context)
            unread += tf.reduce_sum(tf.reshape(unread_of_events, shape), axis=1)
        marks = _as_wide(ratings, shape[1], np.nan)
        if RATING_KEY in events:
            marks = tf.where(tf.math.is_nan(marks), events[RATING_KEY], marks)
        events |= {"history": index, RATING_KEY: marks}
        for key, values in events.items():
            padding = self.n_items if key == "history" else padding_of(np.dtype(values.dtype.as_numpy_dtype))
            known = tf.ragged.boolean_mask(values, present).to_tensor(default_value=padding)
            # A batch of empty histories still needs a column.
            query[key] = tf.pad(known, [[0, 0], [0, 1], *[[0, 0]] * (known.shape.rank - 2)], constant_values=padding)
        return query | self._vectors_of_texts(query, () if context is None else self.reads_texts), unknown, unread

    def _vectors_of_texts(self, query: Query, given: Sequence[str]) -> dict[str, tf.Tensor]:
        """The texts of a query as :meth:`Servable.query_inputs` has them, all missing but those of the ``given`` keys.

        Those of events are cut to the newest that are read before they become vectors, which bounds the memory.
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
        """Numbers in the vector of a text of a request; 0: none is read."""
        return self._vector_widths[self.reads_texts[0]] if self.reads_texts else 0

    def _event_ids(self, known: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        """Ids of the items at ``position`` int32 ``[B, M]`` of a history; ``""`` at -1."""
        event = tf.where(position >= 0, tf.gather(known, tf.maximum(position, 0), batch_dims=1), self.n_items)
        return tf.gather(self.item_ids, event)

    @traced_once
    def _leaning(self, asked: Query) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """How users move a search; 0 for a user of whom nothing is known.

        Returns:
          Query float32 ``[B, D]``, pairs ``[B, S]``, and what these add to an item on the mean, ``[B]``.
        """
        request = self.folded.requests(self.item_vectors, asked)
        query = self.folded.without_offset(request["query"])  # what it adds is the same for every user
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
        """``allowed``, ``categories`` and ``banned`` of ``ItemIndex.top_k``."""
        return {
            "banned": None if ruled is None else ruled.banned,
            "allowed": tf.where(allow == "", NOTHING, self.index_of.lookup(allow)),
            "categories": self.category_of.lookup(categories),
        }

    def _listed(self, indices: tf.Tensor, scores: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"item_ids": tf.gather(self.item_ids, indices), "scores": scores}

    def _titled(self, indices: tf.Tensor, scores: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._listed(indices, scores) | {"titles": tf.gather(self.titles, indices)}


def _with_as_many_rows(*inputs: tf.Tensor) -> list[tf.Tensor]:
    """The inputs, each that has a single row with as many rows as the others."""
    rows = tf.stack([tf.shape(tensor)[0] for tensor in inputs])
    batch = tf.where(tf.reduce_min(rows) == 0, 0, tf.reduce_max(rows))
    return [tf.broadcast_to(tensor, tf.concat([[batch], tf.shape(tensor)[1:]], axis=0)) for tensor in inputs]


def _as_wide(values: tf.Tensor, width: tf.Tensor, padding: float | str) -> tf.Tensor:
    """``[B, *]`` as ``[B, width]``: cut, or filled up at the end."""
    more = tf.maximum(width - tf.shape(values)[1], 0)
    return tf.pad(values, [[0, 0], [0, more]], constant_values=padding)[:, :width]


def _no_filters(requests: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """``allow`` and ``categories`` that let everything pass."""
    none = tf.fill((tf.shape(requests)[0], 0), "")
    return none, none


def _no_ratings(history: tf.Tensor) -> tf.Tensor:
    return tf.zeros((tf.shape(history)[0], 0))
