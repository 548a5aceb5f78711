"""Fits a hybrid from a split and text vectors: the steps of a Keras script, in the required order."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tensorflow as tf
from scipy import sparse

from tfllmrec.board.scoreboard import Scoreboard
from tfllmrec.config import ExperimentConfig, ItemWeightSettings, TrainingConfig, settings_of
from tfllmrec.data.batches import Sequences, steps_per_epoch, training_batches
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.durable import read_json
from tfllmrec.errors import ConfigError, DataError, ModelError
from tfllmrec.evaluation.metrics import TargetRanks, masked, rank_targets
from tfllmrec.evaluation.protocol import Result, selection_gain, selection_value, selection_value_of_ranks
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.layers.global_state import keras_policy, random_state_kept
from tfllmrec.models.baselines import fit_baseline
from tfllmrec.models.fitting import Fitted, TrainingData
from tfllmrec.models.hybrid import Catalogue, Hybrid, Negatives, Teacher
from tfllmrec.models.item_weights import ItemWeightStatistics, PrunedWeights, check_domains, solve
from tfllmrec.progress import Tell, show_progress
from tfllmrec.training.callbacks import EpochCheckpoint, StepProgress, claim
from tfllmrec.training.checks import check_fields
from tfllmrec.training.defaults import choose_user_text, sizes
from tfllmrec.training.fingerprint import fingerprint, queries_fingerprint
from tfllmrec.training.item_weight_search import (
    choose_context,
    choose_domains,
    choose_item_weights,
    choose_kinds,
    choose_view,
)
from tfllmrec.training.optimizer import adamw

#: Values of the gates' dense strength, closing and discount to try; see :func:`choose_gates`.
STRENGTHS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
CLOSINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
DISCOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
#: Values of the gates' lift of cold items to try, in units of the logit; see :func:`choose_cold_lift`.
LIFTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
#: Strengths of the fields of a query without a history to try; see :func:`choose_strength_alone`.
ALONE = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Smallest number of validation queries with a cold target for a choice.
COLD_QUERIES = 20
#: Lengths of the lists by which choices on validation data are measured.
KS = (5, 10, 20)
_ROWS = 512  # number of queries that are scored at once


def set_seeds(seed: int) -> None:
    """Seeds Python, numpy and TensorFlow, and makes TensorFlow's operations deterministic from then on."""
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def build_hybrid(
    data: TrainingData, config: ExperimentConfig, precision: str = "float32", blank: bool = False
) -> Hybrid:
    """Creates an untrained model of the data's catalogue; its item-item weights are 0.

    Args:
      data: The data with items, text vectors and the number of training events of each item.
      config: The settings, without *auto*.
      precision: Keras' dtype policy for the layers, independent of the global policy.
      blank: Whether the fields of items are left missing, because weights that contain them are loaded later.
    """
    items, schema = data.split.dataset.items, data.split.schema
    if config.model.user_text and data.user_texts is not None:
        schema = schema.reading_text(data.text.shape[1])
    catalogue = Catalogue.of(items, data.text, schema, data.text_widths, config.model, blank, data.graph)
    negatives = Negatives(config.training.negatives or 0, config.training.log_q)
    with keras_policy(precision):
        model = Hybrid(
            catalogue, data.split.train_counts, config.model, config.item_weights, negatives, config.seed,
            schema, data.split.dataset.repeats,
        )  # fmt: skip
    model.texts = data.user_texts
    return model


@dataclass(frozen=True, eq=False)
class WarmStart:
    """A fitted model from which a fit starts, instead of random weights.

    Attributes:
      model: A model that was fitted with the same settings on an earlier state of the data or on other data.
      rows: Int ``[N]``, the row of each item in the catalogue of ``model``, -1 for none.
      users: Bool ``[U]``, the training users whose events the dense side and the gates are trained on; ``None`` for
        all.
      new_events: Bool ``[E]``, the events of :meth:`Split.train_queries` on which ``model`` was not trained. Only these
        are held out for the gates, because the dense side already knows the others. ``None`` for all.
      keeps_choices: Whether to keep the settings that were chosen on validation data for ``model`` (for the gates,
        unless others are significantly better, see :func:`choose_gates`). Otherwise all of them are chosen again.
    """

    model: Hybrid
    rows: np.ndarray
    users: np.ndarray | None = None
    new_events: np.ndarray | None = None
    keeps_choices: bool = False


@random_state_kept()
def fit_hybrid(
    data: TrainingData,
    config: ExperimentConfig,
    folder: Path | None = None,
    tell: Tell | None = None,
    callbacks: Sequence[tf.keras.callbacks.Callback] = (),
    start: WarmStart | None = None,
    teacher: Teacher | None = None,
) -> Fitted[Hybrid, ExperimentConfig]:
    """Resolves *auto* settings, solves the item-item weights, trains dense side and gates, and keeps the best epoch.

    The global random states of Python and numpy and Keras' global dtype policy are restored afterwards. TensorFlow's
    global seed and deterministic operations stay set, see :func:`set_seeds`.

    Args:
      data: Training events, validation queries and text vectors.
      config: The settings, possibly *auto*; they are not changed. Without ``training.precision``, the model is trained
        in Keras' global dtype policy. ``seed`` determines the model's initial weights and the order of training.
      folder: The folder of checkpoints and TensorBoard logs. A fit resumes from its own state there.
      tell: Called with a line for each step.
      callbacks: Further callbacks, which are called after those of the fit, when ``logs["selection"]`` contains the
        validation value and the epoch is on disk. A callback that sets ``model.stop_training`` ends the fit with the
        best epoch so far.
      start: The model from which training starts. The item-item weights are solved from all training events even so.
      teacher: The model whose dense scores are soft targets in addition to the next items.

    Returns:
      The model, and the config without *auto*. ``figures`` is empty; ``data.measure`` returns the model's metrics.

    Raises:
      ConfigError: ``training.precision`` is not set, and Keras' global policy is not one of its values.
      DataError: No user has two training events.
      ModelError: The loss is not a number; the folder's checkpoints belong to other settings or other data; or
        ``start`` has other settings.
    """
    config = config.model_copy(deep=True)
    _settle_precision(config)
    tell = tell or (lambda line: None)
    set_seeds(config.seed)
    sequences = Sequences.from_split(data.split, config.training.gate_holdout, config.seed)
    if start is not None and start.new_events is not None:
        held_out = Ragged(sequences.held_out.values & start.new_events, sequences.held_out.offsets)
        sequences = replace(sequences, held_out=held_out)
    if not (sequences.items.lengths >= 2).any():
        raise DataError(
            f"{data.split.dataset.name} leaves no user with two training events, so there is no next event to learn "
            "from: use more data or another split.kind."
        )
    if folder is not None and config.model.user_text is None and _begun_without_user_text(folder):
        config.model.user_text = False
    chosen = choose(data, config, tell)
    model = build_hybrid(data, config, config.training.precision)
    model.teacher = teacher
    if start is not None:
        model.start_from(start.model, start.rows)
    if model.reads_texts and data.user_texts is not None:
        written = [values for key, values in data.split.encoded.items() if key in model.reads_texts]
        data.user_texts.codes(np.concatenate(written))  # including held-out events, with one progress bar
        model.centre_texts(sequences, data.user_texts)
    if model.use_behaviour:
        tell("item-item weights: solving")
        settings = model.item_weights
        set_item_weights(  # no variable keeps the statistics, which may be large, during training
            model,
            sequences,
            data.item_weight_statistics(settings),
            data.graph_view,
            data.source_statistics(settings),
        )
    if model.use_dense:
        with contextlib.ExitStack() as stack:
            kept = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            trained_on = sequences if start is None or start.users is None else sequences.take(start.users)
            keep = start is not None and start.keeps_choices
            chosen += _train(model, trained_on, data, config, kept, tell, callbacks, keep)
    model.teacher = None
    return Fitted(model, config, {}, chosen)


def _begun_without_user_text(folder: Path) -> bool:
    """Returns whether a fit in ``folder`` does not read texts of users, for example one of an older version."""
    made_from = _made_from_file(folder)
    return made_from.is_file() and "model.user_text" not in read_json(
        made_from, dict[str, Any], f"delete {made_from.parent} and start again"
    )


def _made_from_file(folder: Path) -> Path:
    return folder / "checkpoints" / "made_from.json"


def _settle_precision(config: ExperimentConfig) -> None:
    """Sets ``training.precision`` to Keras' global policy if the config does not set it."""
    if "precision" in config.training.model_fields_set:
        return
    own = tf.keras.mixed_precision.global_policy().name
    known = get_args(TrainingConfig.model_fields["precision"].annotation)
    if own not in known:
        raise ConfigError(
            f"Keras' global dtype policy: expected {' or '.join(known)}, found {own}. Set training.precision, or "
            "another policy."
        )
    config.training.precision = own


def choose(data: TrainingData, config: ExperimentConfig, tell: Tell) -> list[str]:
    """Chooses the *auto* settings of ``config``, in place.

    Settings of the item-item weights are not changed if the model has no behaviour term.

    Returns:
      A line for each choice; ``tell`` is also called with these.
    """
    check_fields(data.split.schema, config)
    chosen = _told([*sizes(data.split, config), *choose_user_text(data, config, tell)], tell)
    if "behaviour" in config.model.terms:
        check_domains(data.domains, config.item_weights)
        given = config.item_weights
        tried: list[ItemWeightSettings] = []

        def take(found: tuple[ItemWeightSettings, list[str]]) -> None:
            config.item_weights, said = found
            chosen.extend(_told(said, tell))

        take(choose_item_weights(data, given, tried, tell))
        take(choose_view("graph", data, given, config.item_weights, tried, tell))
        take(choose_view("source", data, given, config.item_weights, tried, tell))
        take(choose_domains(data, config.item_weights, tell))
        take(choose_kinds(data, config.item_weights, tell))
        if config.model.fields and "meaning" in config.model.terms:  # else the model reads no fields
            take(choose_context(data, config.item_weights, tell))
    return chosen


def _told(chosen: list[str], tell: Tell) -> list[str]:
    """Calls ``tell`` with each line, and returns the lines."""
    for line in chosen:
        tell(f"chosen: {line}")
    return chosen


def set_item_weights(
    model: Hybrid,
    sequences: Sequences,
    statistics: ItemWeightStatistics | None = None,
    graph: sparse.csr_array | None = None,
    of_sources: ItemWeightStatistics | None = None,
) -> None:
    """Solves and sets W twice: with all training events, and without the events on which the gates are fitted.

    Args:
      model: The model; its ``item_weights`` are the settings, and its text vectors the side information.
      sequences: The training events.
      statistics: The statistics of all training events for these settings; by default they are computed.
      graph: As in :func:`tfllmrec.models.item_weights.solve_item_weights`.
      of_sources: The part of ``statistics`` that comes from other domains; both solutions include it.
    """
    unit, settings = model.text_vectors, model.item_weights
    whole, kept = sequences.choices(held_out=True), sequences.choices(held_out=False)
    if statistics is None:
        statistics = ItemWeightStatistics.of(whole, model.n_items, settings)
    model.set_item_weights(model.mapped(solve(statistics, settings, unit, graph), whole))
    without = ItemWeightStatistics.of(kept, model.n_items, settings)
    if of_sources is not None:
        without += of_sources
    weights = solve(without, settings, unit, graph)
    with contextlib.suppress(ModelError):  # if no user of two domains is left, there is no map
        weights = model.mapped(weights, kept)
    model.set_holdout(weights, np.bincount(kept.values, minlength=model.n_items))


def refit_weights(model: Hybrid, data: TrainingData) -> PrunedWeights:
    """Solves the item-item weights again, from the training and the validation events.

    All settings are chosen before, so the validation events may be learned from. The test events are not read.

    Args:
      model: Fitted on ``data``; it does not change. :meth:`Hybrid.set_item_weights` sets the result.
      data: Without :attr:`~tfllmrec.models.fitting.TrainingData.source_histories`.
    """
    histories, settings = data.split.train_queries(validation=True).choices, model.item_weights
    statistics = ItemWeightStatistics.of(histories, model.n_items, settings)
    return model.mapped(solve(statistics, settings, model.text_vectors, data.graph_view), histories)


@dataclass(frozen=True)
class GateSettings:
    """The settings of :class:`~tfllmrec.layers.term_gates.TermGates` that are chosen on validation data."""

    dense_strength: float
    closing: float
    discount: float = 0.0
    cold_lift: float = 0.0

    @classmethod
    def of(cls, model: Hybrid) -> GateSettings:
        return cls(**{field.name: float(getattr(model.gates, field.name)) for field in fields(cls)})

    def apply(self, model: Hybrid) -> None:
        for name, value in asdict(self).items():
            getattr(model.gates, name).assign(value)

    def line(self) -> str:
        """Returns a line for users, without the lift of cold items, which has a separate line."""
        alone = (
            " (items are ranked by behaviour alone: meaning and feedback, with the fields and texts that they read, "
            "brought no gain on validation)"
        )
        return (
            f"gates dense strength {self.dense_strength:g}{'' if self.dense_strength else alone}, closing "
            f"{self.closing:g}, popularity discount {self.discount:.2g}"
        )


class _Weighed:
    """The terms of the scores of some queries, computed once and combined for each choice of the gates' settings."""

    def __init__(self, model: Hybrid, queries: Queries) -> None:
        self.dense, self.sparse = model.score_terms(queries)
        self.model, self.queries = model, queries
        self.next_row = 0

    def score(self, queries: Queries) -> np.ndarray:
        """Returns the scores of the next rows, float32 ``[B, N]``; ``queries`` must come in their original order."""
        rows = slice(self.next_row, self.next_row + len(queries))
        self.next_row = rows.stop % len(self.dense)
        dense, sparse, offset = (factor.numpy() for factor in self.model.item_factors())
        return self.dense[rows] * dense + self.sparse[rows] * sparse + offset

    def selection_value(self, strata: Mapping[str, np.ndarray]) -> float:
        """Returns the :func:`selection_value` of the current settings."""
        parts, first_rows, done = [], [], 0
        for batch in self.queries.batches(_ROWS):
            first_rows.append(done)
            parts.append(rank_targets(masked(self.score(batch), batch), batch.targets))
            done += len(batch)
        ranks = TargetRanks.concatenate(parts, first_rows)
        return selection_value_of_ranks(ranks, len(self.queries), strata)


def choose_gates(
    model: Hybrid,
    data: TrainingData,
    strengths: Sequence[float] = STRENGTHS,
    closings: Sequence[float] = CLOSINGS,
    *,
    climb: bool = False,
    keep: GateSettings | None = None,
) -> Result:
    """Sets the gates' dense strength, closing and discount to the best values on the validation sample.

    Strength and closing are chosen together without a discount. Then each of :data:`DISCOUNTS` is tried, and strength
    and closing are changed from there as long as that helps. The best of these settings are used only if their gain in
    :func:`selection_value` is significant: the paired bootstrap interval over users excludes zero, at 95 % for all
    discounts together (Bonferroni). The lift of cold items is not changed.

    Args:
      model: The model. If its gates are not trainable, there is nothing to choose.
      data: The data, of which the validation sample is used.
      strengths: The values of the dense strength to try, ascending. Of several pairs with the same result, the first is
        chosen.
      closings: The values of the closing to try, ascending.
      climb: Whether to make a quick choice, as between epochs. Strength and closing are changed one after the other
        from their current values as long as that helps, without a discount.
      keep: The settings to use, unless a climb from them, which also changes the discount, finds settings whose gain is
        significant: the paired interval excludes zero, at 95 % for all settings tried.

    Returns:
      The result of the model on the validation sample with the chosen settings.
    """
    if not model.gates.trainable:
        return data.measure(model, ks=KS)
    weighed = _Weighed(model, data.sample)
    values: dict[GateSettings, float] = {}

    def value(settings: GateSettings) -> float:
        if settings not in values:
            settings.apply(model)
            values[settings] = weighed.selection_value(data.strata)
        return values[settings]

    moves: dict[str, Sequence[float]] = {"dense_strength": strengths, "closing": closings}
    if keep is not None:
        moves["discount"] = (0.0, *DISCOUNTS)

    def climbed(best: GateSettings) -> GateSettings:
        for name, choices in moves.items():
            at = int(np.argmin(np.abs(np.array(choices) - getattr(best, name))))  # equal except for float32 rounding
            for further in (choices[at + 1 :], choices[:at][::-1]):
                for choice in further:
                    there = replace(best, **{name: choice})
                    if value(there) <= value(best):
                        break
                    best = there
        return best

    def result_of(settings: GateSettings) -> Result:
        settings.apply(model)
        return data.measure(weighed, ks=KS)

    def better(best: GateSettings, base: GateSettings, tried: int) -> Result:
        """Applies ``best`` of ``tried`` settings if its gain over ``base`` is significant, else ``base``."""
        result = result_of(base)
        if value(best) > value(base):
            other = result_of(best)
            if selection_gain(other, result, confidence=1 - 0.05 / tried)[1] > 0:
                return other
            base.apply(model)
        return result

    if keep is not None:
        best = climbed(keep)
        return better(best, keep, len(values) - 1)
    if climb:
        return result_of(climbed(replace(GateSettings.of(model), discount=0.0)))
    start = replace(GateSettings.of(model), discount=0.0)
    best = max(
        (replace(start, dense_strength=c, closing=d) for c, d in product(strengths, closings)),
        key=value,
    )
    discounted = max((climbed(replace(best, discount=tau)) for tau in DISCOUNTS), key=value)
    return better(discounted, best, len(DISCOUNTS))


def choose_cold_lift(model: Hybrid, data: TrainingData, keep: bool = False) -> str | None:
    """Sets the gates' lift of items without training events, so that they are ranked no worse than by text alone.

    It is the smallest of :data:`LIFTS` with which the recall of cold targets at 5, 10 and 20, on validation queries
    with a cold target, is at least that of :class:`~tfllmrec.models.baselines.TextSimilarity`. If there is none, it is
    the lift with the highest recall. The lift with the best validation metrics would be too high if the catalogue is
    made from the events, because then, unlike in real catalogues, every cold item has a held-out event.

    Args:
      model: The model, whose other gate settings are chosen.
      data: Validation queries and text vectors.
      keep: Whether the current lift is kept if there are fewer than :data:`COLD_QUERIES` such queries.

    Returns:
      A line on the choice. ``None`` if there are no trainable gates, no texts, or fewer than :data:`COLD_QUERIES` such
      queries; the lift is then 0, or kept by ``keep``.
    """
    asked = data.split.validation
    has_cold = np.bincount(asked.targets.row_of_value, data.strata["cold"][asked.targets.values], len(asked)) > 0
    if keep and has_cold.sum() < COLD_QUERIES:
        return None
    model.gates.cold_lift.assign(0.0)
    if not model.gates.trainable or not np.any(data.text) or has_cold.sum() < COLD_QUERIES:
        return None
    queries = data.drawn(has_cold)

    def recalls(recommender: Recommender) -> np.ndarray:
        metrics = data.measure(recommender, queries, KS).metrics
        return np.array([metrics[f"recall@{k}/cold"] or 0.0 for k in KS])

    goal, weighed = recalls(fit_baseline(data, "text").model), _Weighed(model, queries)
    tried: dict[float, np.ndarray] = {}
    for lift in LIFTS:
        model.gates.cold_lift.assign(lift)
        tried[lift] = recalls(weighed)
        if (tried[lift] >= goal).all():
            break
    else:
        lift = max(tried, key=lambda lift: tried[lift].sum())
        model.gates.cold_lift.assign(lift)
    cost = ""
    if lift:
        everyone = _Weighed(model, data.sample)
        after = everyone.selection_value(data.strata)
        model.gates.cold_lift.assign(0.0)
        cost = f"; selection value {everyone.selection_value(data.strata):.4f} without it, {after:.4f} with it"
        model.gates.cold_lift.assign(lift)
    return (
        f"gates cold lift {lift:g}: recall@10/cold {tried[lift][1]:.4f} on {len(queries):,} validation queries, "
        f"text alone {goal[1]:.4f}{cost}"
    )


def choose_item_field_use(model: Hybrid, data: TrainingData) -> str | None:
    """Sets whether the fields of items are read: yes, unless the validation sample is ranked better without them.

    Args:
      model: A trained model.
      data: The data, of which the validation sample is used; lists are compared by :func:`selection_value`.

    Returns:
      A line on the choice; ``None`` for a model that reads no such fields.
    """
    read = [each.field.key for each in model.items.fields]
    return f"fields of items ({', '.join(read)}) {_choose_use(model.items.reads, model, data)}" if read else None


def choose_graph_use(model: Hybrid, data: TrainingData) -> str | None:
    """Sets whether item vectors are mixed with those of neighbours: only if this ranks the validation sample better.

    Returns:
      A line on the choice; ``None`` for a model without graph propagation.
    """
    if model.propagation is None:
        return None
    said = _choose_use(model.propagation.reads, model, data, only_if_better=True)
    return f"neighbours in the graph (model.propagation={model.config.propagation}) {said}"


def choose_field_use(model: Hybrid, data: TrainingData) -> str | None:
    """Sets whether the fields of requests and users are read, in the same way as :func:`choose_item_field_use`.

    :func:`choose_text_use` decides on their texts.

    Returns:
      A line on the choice; ``None`` for a model that reads no such fields.
    """
    fusion = model.query_fusion
    if fusion is None or fusion.encoder is None:
        return None
    return f"fields of queries ({', '.join(fusion.encoder.keys)}) {_choose_use(fusion.reads, model, data)}"


def choose_text_use(model: Hybrid, data: TrainingData) -> str | None:
    """Sets whether the texts of users are read: only if the validation sample is ranked better with them.

    Texts without an effect are not read, because a server would have to encode them for each request.

    Returns:
      A line on the choice; ``None`` for a model that reads no such texts.
    """
    if not (read := model.reads_texts):
        return None
    return f"texts of users ({', '.join(read)}) {_choose_use(model.reads_text, model, data, only_if_better=True)}"


def _choose_use(reads: tf.Variable, model: Hybrid, data: TrainingData, only_if_better: bool = False) -> str:
    """Sets ``reads`` to 1, or to 0 if this ranks the validation sample better; returns the end of a line on the choice.

    With ``only_if_better``, ``reads`` is also set to 0 if both rank the sample equally well.
    """
    reads.assign(1.0)
    with_them = data.measure(model, ks=KS)
    reads.assign(0.0)
    without = data.measure(model, ks=KS)
    figures = [selection_value(result) for result in (with_them, without)]
    tie = figures[0] == figures[1]
    reads.assign(float(not (figures[1] > figures[0] or (tie and only_if_better))))
    verdict = f"are{'' if float(reads) else ' not'} read{' (they make no difference)' if tie else ''}"
    return f"{verdict}: selection value {figures[0]:.4f} with them, {figures[1]:.4f} without them, on validation"


def choose_strength_alone(model: Hybrid, data: TrainingData) -> str | None:
    """Sets the weight of the fields of a request and its user, relative to popularity, for queries without a history.

    It is the best of :data:`ALONE` on the validation sample without its histories if the gain is significant (as for
    the discount in :func:`choose_gates`), else 0, so that only popularity counts.

    Args:
      model: The model, whose fields and gate settings are chosen.
      data: The data, of which the validation sample is used.

    Returns:
      A line on the choice; ``None`` for a model that reads no such fields.
    """
    fusion = model.query_fusion
    if fusion is None or not (
        (fusion.encoder is not None and float(fusion.reads)) or (fusion.texts is not None and model.reads_texts)
    ):
        return None
    nobody = data.sample.without_histories()
    alone: dict[float, Result] = {}
    for strength in (0.0, *ALONE):
        fusion.alone.assign(strength)
        alone[strength] = data.measure(model, nobody, KS)
    best = max(ALONE, key=lambda strength: selection_value(alone[strength]))
    if selection_gain(alone[best], alone[0.0], confidence=1 - 0.05 / len(ALONE))[1] <= 0:
        best = 0.0
    fusion.alone.assign(best)
    figures = [alone[strength].metrics["ndcg@10"] for strength in (best, 0.0)]
    return (
        f"fields of queries without a history: strength {best:g} (ndcg@10 {figures[0]:.4f}, popularity "
        f"{figures[1]:.4f}, on validation)"
    )


def _train(
    model: Hybrid,
    sequences: Sequences,
    data: TrainingData,
    config: ExperimentConfig,
    folder: Path,
    tell: Tell,
    more: Sequence[tf.keras.callbacks.Callback],
    keep: bool = False,
) -> list[str]:
    """Trains the dense side and the gates, keeps the best epoch, and returns a line for each choice.

    Args:
      model: The model, with its item-item weights.
      sequences: The training events.
      data: The data, for validation.
      config: The settings, without *auto*.
      folder: The folder of checkpoints and TensorBoard logs.
      tell: Called with a line for each step.
      more: Further callbacks.
      keep: See :attr:`WarmStart.keeps_choices`.
    """
    training, length = config.training, config.model.history_length
    assert training.batch_size is not None and training.epochs is not None and length is not None
    gates_before = GateSettings.of(model) if keep else None

    def measure(model: Hybrid) -> Result:
        """Sets the gates that are best on validation data, and returns the result with them."""
        return choose_gates(model, data, climb=True, keep=gates_before)

    steps = training.epochs * steps_per_epoch(sequences, training.batch_size, length)
    optimizer = adamw(training.learning_rate, steps, training.warmup_share, training.weight_decay)
    optimizer.build(model.trainable_variables)  # in the first step, this would cause a second tracing
    model.compile(optimizer=optimizer)
    callbacks = [Scoreboard(measure, folder / "logs" / "validation", tell), tf.keras.callbacks.TerminateOnNaN()]
    checkpoint = EpochCheckpoint(folder / "checkpoints", training.patience)
    made_from, made_from_file = _made_from(model, sequences, data, config), _made_from_file(folder)
    if checkpoint.state.epochs_done and not made_from_file.is_file():
        raise ModelError(
            f"{made_from_file} is missing, so it is not known which settings and data the checkpoints beside it belong "
            "to: fit into another folder, or delete this one."
        )
    if made_from_file.is_file():
        claim(made_from_file, made_from)
    checkpoint.restore_last(model)
    first_epoch = training.epochs if checkpoint.state.finished else checkpoint.state.epochs_done
    if first_epoch:
        tell(f"resumed after epoch {checkpoint.state.epochs_done}")
    # Written only after the first epoch: before that, a run may be restarted with other settings.
    callbacks.append(tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: claim(made_from_file, made_from)))
    callbacks += [checkpoint, *more]
    if first_epoch < training.epochs:
        batches = training_batches(
            sequences, training.batch_size, length, config.seed, training.epochs, first_epoch, model.reads, model.texts
        )
        with show_progress("Training", "steps") as progress:
            callbacks.append(StepProgress(progress, steps, done=steps * first_epoch // training.epochs))
            history = model.fit(
                batches,
                epochs=training.epochs,
                initial_epoch=first_epoch,
                steps_per_epoch=steps // training.epochs,
                callbacks=callbacks,
                verbose=0,
            ).history
        if not np.all(np.isfinite(history["loss"])):
            raise ModelError(
                f"The loss is not a number after epoch {len(history['loss']) + first_epoch}: lower "
                f"training.learning_rate (now {training.learning_rate}) or use training.precision float32."
            )
    checkpoint.restore_best(model)
    epoch = f"epoch {checkpoint.state.best_epoch + 1}"
    if gates_before is not None:
        kept = GateSettings.of(model) == gates_before
        why = "as before, because no others are significantly better" if kept else "significantly better than before"
        gates = f"{GateSettings.of(model).line()}: {why}, with {epoch}" if model.gates.trainable else None
        lift = choose_cold_lift(model, data, keep=True)
        return _told([line for line in (gates, lift) if line is not None], tell)
    of_items, of_texts = choose_item_field_use(model, data), choose_text_use(model, data)
    of_fields, of_graph = choose_field_use(model, data), choose_graph_use(model, data)
    choose_gates(model, data)  # between epochs, not all settings are tried
    lift, alone = choose_cold_lift(model, data), choose_strength_alone(model, data)
    gates = f"{GateSettings.of(model).line()}: best on validation, with {epoch}"
    chosen = [
        gates if model.gates.trainable else f"{epoch}: best on validation",
        lift,
        of_items,
        of_texts,
        of_fields,
        of_graph,
        alone,
    ]
    return _told([line for line in chosen if line is not None], tell)


def _made_from(model: Hybrid, sequences: Sequences, data: TrainingData, config: ExperimentConfig) -> dict[str, Any]:
    """Returns all settings and data on which the trained model depends, as JSON values."""
    parts = (sequences.items, sequences.fields[RATING_KEY], sequences.held_out)
    arrays = [a for part in parts for a in ((part.values, part.offsets) if isinstance(part, Ragged) else (part,))]
    further = [key for key in model.reads if key != RATING_KEY]
    settings = settings_of(model=config.model, item_weights=config.item_weights, training=config.training)
    may_lack = (
        "model.fields",
        *(f"item_weights.{name}" for name in ("itself", "context", "graph", "source", "domains", "map")),
    )
    without_effect = [key for key in may_lack if not settings[key]]
    if config.item_weights.graph and data.graph_view is not None:
        settings["graph"] = fingerprint(data.graph_view.data, data.graph_view.indices, data.graph_view.indptr)
    if config.item_weights.source and data.source_histories is not None:
        settings["events of sources"] = fingerprint(data.source_histories.values, data.source_histories.offsets)
    if sequences.weights is None:
        without_effect.append("item_weights.kinds")
    else:
        settings["weights of events"] = fingerprint(sequences.weights.values)
    if model.scene is None:
        without_effect += ["model.scene", "model.scene_experts"]
    if not model.reads_texts:
        without_effect.append("model.user_text")
    elif model.texts is not None:
        settings["encoder of texts of users"] = model.texts.encoder.fingerprint
    if model.propagation is None:
        without_effect.append("model.propagation")
    else:
        edges = (*model.propagation.ends, *model.propagation.edge_weights)
        settings["edges"] = fingerprint(*(each.numpy() for each in edges))
    if not model.items.fields:
        without_effect.append("model.item_fields")
    else:
        settings["fields of items"] = fingerprint(*(each.values.numpy() for each in model.items.fields))
    if model.teacher is not None:
        settings["teacher"] = [model.teacher.weight, fingerprint(model.teacher.items.numpy())]
    for key in without_effect:  # so that fits from before this setting existed can resume
        del settings[key]
    return {
        **settings,
        "evaluation.head_share": config.evaluation.head_share,
        "seed": config.seed,
        "training events": fingerprint(data.split.train_counts, *arrays, *map(sequences.values_of, further)),
        "validation queries": queries_fingerprint(data.split.validation, further),
        "text vectors": fingerprint(data.unit_text),
    }
