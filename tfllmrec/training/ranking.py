"""Trains the ranking model on data that the hybrid has not seen, and drops each head that does not help there.

W and the hybrid were fitted on all training events, so the next item is much easier to find for these than for new
events. The order is therefore learned from the validation queries. Queries with tail targets count twice, as in the
selection value. Ratings are learned from the training events, because the hybrid is not trained on the values of
ratings. The rating head corrects base ratings, which come from factors (closed form), or from biases if factors do not
help.

Each head is evaluated on all users of the validation queries, by cross-validation: the heads are measured on each fold
with a model that was not trained on it. With the users of a single fold, about 190 for movielens-100k, a gain of 0.01
would not be significant, and a useful head would be dropped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from tfllmrec.columns import ITEM_INDEX, RATING, USER, USER_INDEX
from tfllmrec.config import RankingConfig, settings_of
from tfllmrec.data.batches import like_lengths
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.data.splits import Split
from tfllmrec.durable import read_json, write_folder
from tfllmrec.evaluation.calibration import calibration_error
from tfllmrec.evaluation.metrics import UNREACHABLE, TargetRanks, masked, ndcg, top_items
from tfllmrec.evaluation.protocol import Result, mean_interval, paired_difference, users_of
from tfllmrec.models.fitting import Fitted, TrainingData
from tfllmrec.models.ranking import LEARNT_FROM, NAN, RankingModel, RatingScale, Reranked
from tfllmrec.models.rating_factors import ITEMS, RatingFactors, fit_rating_factors
from tfllmrec.models.servable import SCORE_BATCH, Servable
from tfllmrec.progress import Tell, show_progress
from tfllmrec.training.callbacks import StepProgress, claim, read_weights, write_weights
from tfllmrec.training.fingerprint import fingerprint, queries_fingerprint
from tfllmrec.training.optimizer import adamw

#: *auto* number of epochs with few lists and with many lists; in between, epochs times lists are about LOOKS. With more
#: lists, fewer epochs suffice: on beauty with 20,000 lists, the selection value is 0.0808 after 3 epochs and 0.0811
#: after 6.
EPOCHS, EPOCHS_OF_MANY, LOOKS = 6, 3, 60_000
#: Smallest number of validation queries for training; with fewer, which are not informative, *auto* is 0 epochs.
FEWEST = 30
#: Number of items sampled for each list from those that are not candidates; they represent all others.
DRAWN = 50
#: Largest numbers of lists (of up to 100 candidates), rated events, and users of rated events for training. If lists
#: are longer, fewer are used.
LISTS, RATED, RATERS = 20_000, 20_000, 1_000
#: Largest number of queries on which probabilities and ratings are measured.
MEASURED = 6_000
#: Largest number of scores that the hybrid computes for the lists, and again for the rated events; with more than
#: 150,000 items, there are fewer lists and events. It limits the work and not the time, so that the same seed gives the
#: same model on every machine.
SCORED = 3_000_000_000
#: Number of rated events in a step, in addition to its lists, and number of lists that are measured at once.
RATED_BATCH, HELD_BATCH = 256, 256
#: Largest number of scores in a block.
SCORES = 50_000_000
#: Initial weights of the hybrid's score to try, and strengths of a kept head to try.
WEIGHTS = np.geomspace(0.02, 10, 28)
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
#: Temperatures to try, by which logits are divided.
TEMPERATURES = np.geomspace(0.25, 4, 65)

RECORD, MADE_FROM, WEIGHTS_FILE = "record.json", "made_from.json", "weights"

#: Entries of the examples that have one column for each event of the history.
OF_EVENTS = ("recent", "marks")

Examples = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which heads of a ranking model are kept, with their metrics on users on which it was not trained.

    Attributes:
      best_epoch: The number of training epochs with the lowest losses on held-out users; 0 if no epoch was better than
        the untrained model. In an update, the parent's network counts as epoch 1, and the first epoch of training as
        epoch 2.
      strengths: The strengths of the click head and the rating head; 0 if the head is dropped.
      click_loss: The loss of the click head on held-out users at its best strength, which is the one with the highest
        selection value, even if the head is dropped. Lists with tail targets count twice.
      rating_loss: The mean squared error of the rating head on held-out users at its best strength, which is the one
        with the lowest error, even if the head is dropped.
      untrained: Both losses without the heads, with the order of the hybrid and the ratings from factors or biases.
      selection: The selection value (:func:`tfllmrec.evaluation.protocol.selection_value`) of the first target of each
        held-out query, with the click head and without it; a target that is not among the candidates counts as missed.
      selection_interval: The low and the high end of the confidence interval of the gain in ``selection``. It holds
        with 95 % confidence for all strengths together (Bonferroni); in an update, for each strength separately.
      rating_interval: The low and the high end of the 95 % interval of the decrease from ``untrained[1]`` to
        ``rating_loss``; empty without ratings.
      temperature: The temperature by which the logits of the click probabilities are divided.
      log_loss: The mean negative log probability of the next item, at ``temperature`` and at 1, over the queries whose
        next item is a candidate. The probabilities are those that are served; without the click head, they depend on
        the hybrid's score alone.
      ece: The calibration error of the probabilities of all candidates of these queries, at ``temperature`` and at 1.
      rating_ece: The calibration error of the served ratings; ``None`` without ratings.
    """

    best_epoch: int
    strengths: list[float]
    click_loss: float
    rating_loss: float
    untrained: list[float]
    selection: list[float]
    selection_interval: list[float]
    rating_interval: list[float] = field(default_factory=list)
    temperature: float = 1.0
    log_loss: list[float] = field(default_factory=list)
    ece: list[float] = field(default_factory=list)
    rating_ece: float | None = None


@dataclass(frozen=True, kw_only=True)
class RankingRecord(Verdict):
    """The training data of a ranking model, and the verdict on its heads.

    If the parent of an update dropped both heads, the metrics of the heads and the numbers of lists are those of the
    parent, ``epochs`` and ``rated`` are 0, ``rating_interval`` is empty, and ``rating_ece`` is ``None``. The ratings
    are then predicted by the factors or biases of the update.

    Attributes:
      lists: The number of validation queries for training.
      held_out: The number of validation queries on which the heads were evaluated, each by a model that was not trained
        on its user.
      rated: The number of training events whose ratings were learned; 0 if the data has no ratings, or the rating head
        was not trained.
      factors: The numbers of items, factors and history components of the factor model; empty if biases predict the
        base ratings.
      biases_loss: The mean squared error of the biases on held-out users.
      factors_interval: The low and the high end of the 95 % interval of the decrease from ``biases_loss`` to the error
        of the factors; empty without ratings, and with too many items for factors.
      epochs: The number of epochs tried; in an update, the parent's network counts as one.
      weight: The weight of the hybrid's score.
      seconds: The time of fitting in seconds.
    """

    lists: int
    held_out: int
    rated: int
    epochs: int
    weight: float
    seconds: float
    factors: list[int] = field(default_factory=list)
    biases_loss: float = 0.0
    factors_interval: list[float] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> RankingRecord:
        """Loads the record of a folder that :func:`prepared_ranking` wrote.

        Raises:
          ModelError: The record is damaged.
        """
        return read_json(folder / RECORD, cls, f"copy {folder} back, or fit again")

    @property
    def left_out(self) -> bool:
        """Whether neither a head nor factors helped, so that there is no ranking model."""
        return not any(self.strengths) and not self.factors

    def line(self) -> str:
        """Returns a line for users with the kept heads and their metrics."""
        with_it, without = self.selection
        low, high = self.selection_interval
        order = (
            f"selection value {with_it:.4f} against {without:.4f} without it on {self.held_out:,} held-out users "
            f"(difference between {low:+.4f} and {high:+.4f} with 95 % confidence)"
        )
        if not self.epochs:
            order = "the run before left it out, and it was not tried again"
        if self.rating_ece is None and not self.untrained[1]:  # no validation target is rated
            return f"{'left out' if self.left_out else 'kept'}: {order}"
        with_head, prior = self.rating_loss**0.5, self.untrained[1] ** 0.5
        errors = f"rating RMSE {with_head:.4f} against {prior:.4f} by biases"
        if self.factors:
            biases = self.biases_loss**0.5
            errors = f"rating RMSE {prior:.4f} by factors, {with_head:.4f} with the head, {biases:.4f} by biases"
        if not self.epochs:  # no head was trained
            errors = f"rating RMSE {prior:.4f} by {'factors' if self.factors else 'biases'}"
        if self.left_out:
            return f"left out: {order}; {errors}"
        click, rating = ("kept" if strength else "left out" for strength in self.strengths)
        if self.factors:
            rating = "kept, by factors and the head" if self.strengths[1] else "kept, by factors alone"
        order_kept = "" if self.strengths[0] else ", the order stays the hybrid's"
        return f"order {click}{order_kept}: {order}; ratings {rating}: {errors}"


@dataclass(frozen=True, eq=False)
class RankingStart:
    """The earlier model from which the ranking model of an update starts, and the data for its training.

    Attributes:
      record: The record of the earlier model. Heads that it dropped stay dropped.
      weights: The weights of the earlier model, from :func:`weights_of`; empty if both heads were dropped.
      queries: Bool ``[B]``, the validation queries on whose next item the earlier model was not trained.
      users: Bool ``[U]``, the users of :meth:`Split.train_queries` whose ratings are learned.
      epochs: The largest number of epochs.
      learning_rate_share: The peak learning rate as a share of that of the config.
    """

    record: RankingRecord
    weights: list[np.ndarray]
    queries: np.ndarray
    users: np.ndarray
    epochs: int
    learning_rate_share: float


def weights_of(model: RankingModel, temperature: float) -> list[np.ndarray]:
    """Returns the values of :func:`_learnt`; reverts the division of the logits by ``temperature``."""
    *others, log_weight = (variable.numpy() for variable in _learnt(model))
    return [*others, log_weight + np.float32(np.log(temperature))]


def _learnt(model: RankingModel) -> list[tf.Variable]:
    """Returns the network's variables except strengths, which are chosen, and factors, which depend on a catalogue."""
    network = model.network
    parts = [network.attention, *network.crosses, *network.heads.values()]
    of_parts = [variable for part in parts for variable in part.weights]
    return [*of_parts, network.shift, network.scale, network.log_weight]


def settle_epochs(config: RankingConfig, split: Split) -> str | None:
    """Sets *auto* epochs in ``config``; returns a line with the choice and its reason."""
    if config.epochs is not None:
        return None
    n_queries = len(split.validation)
    n_lists = min(n_queries, _most_lists(config, split.dataset.n_items))
    config.epochs = 0 if n_queries < FEWEST else int(np.clip(LOOKS // max(n_lists, 1), EPOCHS_OF_MANY, EPOCHS))
    if config.epochs:
        return f"ranking.epochs {config.epochs} at most: {n_lists:,} validation queries to learn from"
    return f"ranking.epochs 0 (no ranking model): {n_queries:,} validation queries are too few"


def _most_lists(config: RankingConfig, n_items: int) -> int:
    """Returns the largest number of lists for training."""
    return min(LISTS * 100 // max(config.candidates, 100), SCORED // n_items)


def prepared_ranking(
    folder: Path,
    data: TrainingData,
    config: RankingConfig,
    hybrid: Servable,
    tell: Tell,
    start: RankingStart | None = None,
) -> RankingModel | None:
    """Loads the ranking model in ``folder``, or fits it if it is not there yet.

    The folder is created when the model is complete, or is found not to help. If the process is killed before that, the
    next call starts from the beginning; the same seed gives the same model.

    Args:
      folder: The folder of the model, with its weights, ``record.json``, which is a :class:`RankingRecord`, and
        ``made_from.json``. Logs are written next to it. A model that is dropped has no weights.
      data: As in :func:`fit_ranking`.
      config: As in :func:`fit_ranking`.
      hybrid: As in :func:`fit_ranking`.
      tell: Called with a line for each step.
      start: As in :func:`fit_ranking`.

    Returns:
      The model; ``None`` if it is dropped.

    Raises:
      ModelError: The folder is damaged, or belongs to other settings, other data or another hybrid.
    """
    split, seed = data.split, data.seed
    if not folder.is_dir():
        tell("ranking: learning to order candidates from the validation queries")
        if (n_items := split.dataset.n_items) > ITEMS and split.train[RATING].notna().any():
            tell(f"ranking: ratings are by biases: {n_items:,} items are too many for factors, at most {ITEMS:,}")
        fitted = fit_ranking(data, config, hybrid, folder.parent / "logs" / "ranking", start)

        def write(fresh: Path) -> None:
            if fitted.model is None:
                fresh.mkdir()
            else:
                write_weights(fresh / WEIGHTS_FILE, network=fitted.model.network)
            (fresh / RECORD).write_text(json.dumps(fitted.figures, indent=1))
            claim(fresh / MADE_FROM, _made_from(hybrid, split, config, seed, start))

        write_folder(folder, write)
        tell(f"ranking: {RankingRecord.load(folder).line()}")
    elif (folder / MADE_FROM).is_file():  # earlier versions did not write this file
        claim(folder / MADE_FROM, _made_from(hybrid, split, config, seed, start))
    return load_ranking(folder, hybrid, split, config, seed)


def _made_from(
    hybrid: Servable, split: Split, config: RankingConfig, seed: int, start: RankingStart | None
) -> dict[str, Any]:
    """Returns all settings and data on which the trained model depends, as JSON values."""
    train = split.train
    settings: dict[str, Any] = {}
    if start is not None:
        arrays = fingerprint(*start.weights, start.queries, start.users)
        settings = {"start": [arrays, start.record.strengths, start.epochs, start.learning_rate_share]}
    return settings | {
        **settings_of(**hybrid.settings, ranking=config),
        "seed": seed,
        "training events": fingerprint(*(train[name].to_numpy() for name in (USER_INDEX, ITEM_INDEX, RATING))),
        "validation queries": queries_fingerprint(split.validation),
        "weights of the hybrid": fingerprint(*hybrid.learned),
    }


def load_ranking(folder: Path, hybrid: Servable, split: Split, config: RankingConfig, seed: int) -> RankingModel | None:
    """Loads a model that :func:`prepared_ranking` wrote; returns ``None`` if it was dropped.

    Args:
      folder: The folder of the model.
      hybrid: The hybrid of the run, or one for a catalogue with further items at its end.
      split: The split of the run.
      config: The settings of the ranking model.
      seed: Random seed of the run.

    Raises:
      ModelError: The model is damaged, missing, or was fitted with other sizes.
    """
    record = RankingRecord.load(folder)
    if record.left_out:
        return None
    scale, sizes = RatingScale.of_split(split, hybrid.n_items), record.factors
    model = RankingModel(hybrid, config, scale, seed, RatingFactors.empty(*sizes) if sizes else None)
    read_weights(folder / WEIGHTS_FILE, f"copy {folder} back, or fit again", network=model.network)
    return model


def fit_ranking(
    data: TrainingData,
    config: RankingConfig,
    hybrid: Servable,
    logs: Path | None = None,
    start: RankingStart | None = None,
) -> Fitted[RankingModel | None, RankingConfig]:
    """Learns the order from validation queries and the ratings from training events, and keeps the heads that help.

    The validation queries are divided into folds. For each fold, a model is trained on the other folds, without the
    rated events of the fold's users, and measured after every epoch. The chosen epoch minimises the sum of both heads'
    losses over all folds, and the strength of the rating head minimises its loss. The strength of the click head
    maximises the selection value, by which all settings are chosen, because the strength with the lowest loss is often
    too high for the best lists. A head is kept if its gain is significant, which means that the paired bootstrap
    interval of the gain over users is above zero. The gain is the increase of the selection value for the click head,
    and the decrease of the squared error for the rating head. If a head is kept, the final model is trained on all
    queries.

    Before that, the factor model of ratings is fitted on the training events, and replaces the biases by the same rule;
    catalogues of more than ``rating_factors.ITEMS`` items have no factor model. The temperature of the click
    probabilities minimises the log loss of the candidates over all folds, if temperatures that are fitted on the other
    folds lower the loss of a fold; otherwise it is 1. If there are no rated events, or all of them are of users of one
    fold, the rating head is not trained.

    With ``start``, training starts from an earlier model, and only uses queries on whose next item that model was not
    trained, for training as well as for the evaluation. The earlier model itself counts as the first epoch. A head that
    it kept is dropped only if it is significantly worse; a head that it dropped is not tried again. If there are fewer
    than :data:`FEWEST` such queries, the earlier network is not trained, and is measured on all queries. If the earlier
    model dropped both heads, only the factors are fitted, and the verdict on the heads is the earlier one.

    Args:
      data: The training data; its seed is that of the folds, the sampled items, the network and the order of the
        batches.
      config: The settings, with the number of epochs.
      hybrid: A fitted hybrid; it is not changed.
      logs: The folder for TensorBoard logs of the final training; those of each fold are in a subfolder.
      start: The model of an earlier run; by default, the network starts from random weights.

    Returns:
      The model, or ``None`` if nothing is kept, with a :class:`RankingRecord` as its figures.
    """
    began, split, seed = time.monotonic(), data.split, data.seed
    scale = RatingScale.of_split(split)
    asks, earlier, first = split.validation.targets.lengths > 0, None, 0
    if start is not None and any(start.record.strengths):
        earlier, first = start.record.strengths, 1
        unseen = asks & start.queries
        enough = unseen.sum() >= FEWEST
        asks = unseen if enough else asks
        rate = config.learning_rate * start.learning_rate_share
        config = config.model_copy(update={"epochs": 1 + start.epochs * int(enough), "learning_rate": rate})
    assert config.epochs is not None
    asked = split.validation.take(asks)
    asked = asked.take(np.random.default_rng(seed).permutation(len(asked))[: _most_lists(config, hybrid.n_items)])
    ratings, users = target_ratings(split.validation_events, asked), users_of(asked.user_ids)
    factors, prior_loss, against_biases = (
        (None, 0.0, {}) if scale is None else _factors(data, scale, asked, ratings, users)
    )
    model = RankingModel(hybrid, config, scale, seed, factors)
    if start is not None and not first:
        model.network.log_weight.assign(np.log(start.record.weight))
        model.network.strengths.assign([0.0, 0.0])
        record = replace(
            start.record,
            epochs=0,
            untrained=[start.record.untrained[0], prior_loss],
            rating_loss=prior_loss,
            rating_interval=[],
            rating_ece=None,
            rated=0,
            seconds=round(time.monotonic() - began, 1),
            factors=[] if factors is None else factors.sizes,
            **against_biases,
        )
        return Fitted(None if record.left_out else model, config, asdict(record))
    # All queries of a user are in one fold.
    folds = [np.flatnonzero(users % config.folds == number) for number in np.unique(users % config.folds)]
    tail = data.strata["tail"][asked.targets.values[asked.targets.offsets[:-1]]]
    lists = lists_of(model, hybrid, asked, config.candidates, seed) | {"weight": (1 + tail).astype(np.float32)}
    rated, raters = None, np.empty(0, object)
    if scale is not None and config.epochs > first:
        users_of_ratings = None if start is None else start.users
        rated, raters = rated_events(model, hybrid, split, scale, seed, factors, users_of_ratings)
        if any(np.isin(raters, asked.user_ids[fold]).all() for fold in folds):
            rated, model.network.heads["rating"].trainable = None, False
    untrained = model.network.get_weights()
    steps = -(-len(asked) // config.batch_size) * config.epochs
    optimizer = adamw(config.learning_rate, max(steps, 1), 0.05, config.weight_decay)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer=optimizer)
    held_out = HeldOut(model, lists, ratings, users, config, earlier)
    for number, fold in enumerate(folds):
        model.network.set_weights(untrained)
        others = _rows(lists, np.setdiff1d(np.arange(len(asked)), fold))
        of_others = None if rated is None else _rows(rated, ~np.isin(raters, asked.user_ids[fold]))
        start_from_hybrid(model, others)
        held_out.begin(fold)
        if start is not None:
            _go_on(model, start)
            held_out.on_epoch_end(0)
        label, fold_logs = f"Learning to rank, fold {number + 1}/{len(folds)}", logs and logs / f"fold-{number + 1}"
        _train(model, others, of_others, config, first, config.epochs, seed, label, fold_logs, [held_out])
    verdict = held_out.verdict(seed)
    model.network.set_weights(untrained)
    start_from_hybrid(model, lists)
    weight = model.network.log_weight.numpy()
    if any(verdict.strengths):
        if start is not None:
            _go_on(model, start)
        _train(model, lists, rated, config, first, verdict.best_epoch, seed, "Learning to rank", logs)
    if not verdict.strengths[0]:
        model.network.log_weight.assign(weight)  # the best weight of the hybrid's score without a head
    # The logits are the sum of these two terms; both are divided by the temperature.
    model.network.log_weight.assign_sub(np.log(verdict.temperature))
    model.network.strengths.assign(np.divide(verdict.strengths, [verdict.temperature, 1.0]))
    record = RankingRecord(
        lists=len(asked),
        held_out=len(asked),
        rated=0 if rated is None else len(rated["rating"]),
        epochs=config.epochs,
        weight=float(np.exp(model.network.log_weight)),
        seconds=round(time.monotonic() - began, 1),
        factors=[] if factors is None else factors.sizes,
        **against_biases,
        **asdict(verdict),
    )
    return Fitted(None if record.left_out else model, config, asdict(record))


def _factors(
    data: TrainingData, scale: RatingScale, asked: Queries, ratings: np.ndarray, users: np.ndarray
) -> tuple[RatingFactors | None, float, dict[str, Any]]:
    """Fits the factor model of the training ratings, and compares it with biases.

    Args:
      data: Training events and texts.
      scale: The biases.
      asked: Queries with targets that were not used for training.
      ratings: The ratings of their first targets, NaN for none.
      users: The users of the queries, for the bootstrap.

    Returns:
      The factor model, or ``None`` if it is not significantly better than biases, there are more than :data:`ITEMS`
      items, or no target is rated; the mean squared error of the factors or biases, whichever are used; and entries of
      the record.
    """
    rated = np.isfinite(ratings)
    if not rated.any():
        return None, 0.0, {}
    train, n_items = data.split.train, data.split.dataset.n_items
    asked, ratings, users = asked.take(rated), ratings[rated], users[rated]
    targets = asked.targets.values[asked.targets.offsets[:-1]][:, np.newaxis]
    without = (scale.ratings(asked, targets)[:, 0] - ratings) ** 2
    figures: dict[str, Any] = {"biases_loss": float(without.mean())}
    if n_items > ITEMS:
        return None, figures["biases_loss"], figures
    with show_progress("Learning rating factors", "steps") as progress:
        factors = fit_rating_factors(
            train[USER_INDEX].to_numpy(),
            train[ITEM_INDEX].to_numpy(),
            train[RATING].to_numpy(),
            n_items,
            data.text,
            seed=data.seed,
            progress=progress,
        )
    with_it = (factors.ratings(asked, targets)[:, 0] - ratings) ** 2
    interval = mean_interval((without - with_it).astype(np.float64), users, seed=data.seed)
    figures["factors_interval"] = list(interval or ())
    if interval is None or interval[0] <= 0:
        return None, figures["biases_loss"], figures
    return factors, float(with_it.mean()), figures


def _train(
    model: RankingModel,
    lists: Examples,
    rated: Examples | None,
    config: RankingConfig,
    first: int,
    epochs: int,
    seed: int,
    label: str,
    logs: Path | None,
    callbacks: Sequence[tf.keras.callbacks.Callback] = (),
) -> None:
    """Trains a compiled model from epoch ``first`` up to ``epochs``, with the optimizer reset to its initial state.

    The model is not compiled again for each fold, because Keras would then trace the training step again.
    """
    if epochs <= first or not len(lists["label"]):
        return
    for variable in model.optimizer.variables:
        variable.assign(tf.zeros_like(variable))
    steps = -(-len(lists["label"]) // config.batch_size)
    numbers = iter(range(first, epochs))
    training = _dataset(
        lambda: batches(lists, rated, config.batch_size, [seed, next(numbers)], model.n_items), lists, rated, steps
    )
    board = [] if logs is None else [tf.keras.callbacks.TensorBoard(str(logs), write_graph=False)]
    with show_progress(label, "steps") as progress:
        told = StepProgress(progress, steps * (epochs - first))
        model.fit(training, initial_epoch=first, epochs=epochs, callbacks=[*callbacks, *board, told], verbose=0)


def _go_on(model: RankingModel, start: RankingStart) -> None:
    """Copies the weights of the earlier network."""
    for variable, value in zip(_learnt(model), start.weights, strict=True):
        variable.assign(value)


# Training data -------------------------------------------------------------------------------------------------------


def lists_of(model: RankingModel, hybrid: Servable, queries: Queries, candidates: int, seed: int) -> Examples:
    """Returns the examples ``lists`` of ``RankingModel.compute_loss`` for all queries.

    A list contains the hybrid's best ``candidates`` that are not excluded, the first target even if it is not among
    these, and a sample of all other items, but none of the query's other targets, which are not wrong. Each sampled
    item represents many items and is weighted accordingly (``log_times``), and so is a target that is not among the
    candidates. Otherwise, a low score would reveal the target, because no other item could be in the list with a low
    score. So the loss approximates that of the softmax over the catalogue, and the model is valid for lists from any
    source (importance sampling: Bengio and Senecal 2003, "Quick training of probabilistic neural nets by importance
    sampling").

    Args:
      model: The ranking model.
      hybrid: The fitted hybrid.
      queries: Queries that all have targets.
      candidates: The number of candidates.
      seed: Random seed of the sampled items.
    """
    generator = np.random.default_rng(seed)
    n_items, parts = hybrid.n_items, []
    given = tf.function(model.given, reduce_retracing=True, autograph=False)
    order = np.argsort(queries.history.lengths, kind="stable")  # similar lengths together, as in the model's score
    ordered, size = queries.take(order), max(1, min(hybrid.rows_at_once, SCORES // n_items))
    for start in _starts("Scoring lists to learn from", "lists", len(ordered), size):
        batch = ordered.slice(start, start + size)
        target = batch.targets.values[batch.targets.offsets[:-1]]
        scores = masked(hybrid.score(batch), batch)
        best = top_items(scores, min(candidates, n_items))
        row = np.arange(len(batch))
        found = (best == target[:, np.newaxis]).any(axis=1)
        best = _without_others(best, batch.targets, -1)
        scores[batch.targets.row_of_value, batch.targets.values] = -np.inf
        scores[row[:, np.newaxis], np.where(best >= 0, best, target[:, np.newaxis])] = -np.inf
        drawn = np.full((len(batch), min(DRAWN, n_items)), -1)
        times = np.ones(len(batch))
        for i in row:
            others = np.flatnonzero(np.isfinite(scores[i]))
            chosen = generator.choice(others, min(drawn.shape[1], len(others)), replace=False)
            drawn[i, : len(chosen)] = chosen
            times[i] = max(len(others) / max(len(chosen), 1), 1)
        items = np.hstack([best, np.where(found, -1, target)[:, np.newaxis], drawn])
        items = np.where(items >= 0, items, n_items).astype(np.int32)
        known = given(
            model.item_vectors,
            {key: tf.constant(values) for key, values in hybrid.query_inputs(batch).items()},
            tf.constant(items),
        )
        log_times = np.where(np.arange(items.shape[1]) < best.shape[1], 0, np.log(times)[:, np.newaxis])
        label = np.argmax(items == target[:, np.newaxis], axis=1)
        parts.append(known | {"log_times": log_times.astype(np.float32), "label": label.astype(np.int32)})
    return _rows(_joined(parts, model), np.argsort(order))


def _without_others(items: np.ndarray, targets: Ragged, absent: int) -> np.ndarray:
    """Replaces all targets of a query except the first by ``absent`` in ``items``, int ``[B, M]``."""
    row, target = targets.row_of_value, targets.values
    other = target != target[targets.offsets[:-1]][row]
    width = max(int(items.max(initial=0)), int(target.max(initial=0))) + 2
    codes = np.arange(len(items))[:, np.newaxis] * width + items
    return np.where(np.isin(codes, row[other] * width + target[other]), absent, items)


def rated_events(
    model: RankingModel,
    hybrid: Servable,
    split: Split,
    scale: RatingScale,
    seed: int,
    factors: RatingFactors | None = None,
    among: np.ndarray | None = None,
) -> tuple[Examples | None, np.ndarray]:
    """Returns the examples ``rated`` of ``RankingModel.compute_loss``: training events with their previous histories.

    There are at most :data:`RATED` events of :data:`RATERS` users, among the newest events that the hybrid reads, and
    fewer if :data:`SCORED` limits them. The bias of an item, or its ``factors``, are computed without the rating that
    is to be predicted. Fields of requests are missing, because training queries have none.

    Args:
      model: The ranking model.
      hybrid: The fitted hybrid.
      split: The split with the training events.
      scale: The biases of ratings.
      seed: Random seed of the sampled users and events.
      factors: The factor model of ratings, if it replaces the biases.
      among: Bool ``[U]``, users of ``Split.train_queries()`` whose events are used; by default all.

    Returns:
      The examples, ``None`` if there are none; and the user id of each, object ``[E]``.
    """
    generator = np.random.default_rng(seed)
    everybody = split.train_queries()
    may = everybody.history.lengths >= 2
    may = may if among is None else may & among
    users = everybody.take(generator.permutation(np.flatnonzero(may))[:RATERS])
    users = users.take(np.argsort(users.history.lengths, kind="stable"))
    of_users = None if factors is None else factors.users(users.history, users.ratings)
    n_items, width = hybrid.n_items, hybrid.history_length
    inputs = users.inputs(n_items, [RATING_KEY], width + 1)
    items, ratings = inputs["history"], inputs[RATING_KEY]
    wanted = np.argwhere(np.isfinite(ratings[:, 1:]))
    wanted = wanted[np.sort(generator.permutation(len(wanted))[: min(RATED, SCORED // n_items)])].astype(np.int32)

    def after_events(query, row, at, target):
        """Returns the inputs of the network after the events ``at`` of the rows ``row`` of ``query``."""
        terms = hybrid.terms_after(model.item_vectors, query, row, at, target)
        before = {key: tf.gather(values, row) for key, values in query.items()}
        known = tf.range(tf.shape(query["history"])[1]) <= at[:, tf.newaxis]
        before["history"] = tf.where(known, before["history"], n_items)
        return model.given(model.item_vectors, before, target, terms)

    given = tf.function(after_events, reduce_retracing=True, autograph=False)
    size = max(1, min(16, hybrid.rows_at_once, SCORES // (n_items * width)))
    parts = []
    for start in _starts("Scoring rated events", "users", len(users), size):
        here = wanted[slice(*np.searchsorted(wanted[:, 0], [start, start + size]))]
        if not len(here):
            continue
        target = items[here[:, 0], here[:, 1] + 1]
        until = here[:, 1].max() + 1
        some = hybrid.query_inputs(users.slice(start, start + size), width + 1)
        known = given(
            {
                key: tf.constant(values[:, :until] if key == "history" or key.startswith("event.") else values)
                for key, values in some.items()
            },
            tf.constant(here[:, 0] - start),
            tf.constant(here[:, 1]),
            tf.constant(target[:, np.newaxis]),
        )
        rating = ratings[here[:, 0], here[:, 1] + 1]
        if factors is None or of_users is None:
            own = scale.item_bias[target] - scale.bias_without(target, rating)
        else:
            own = factors.without(of_users[here[:, 0]], target, rating)
        parts.append(known | {"rating": rating, "prior": known["prior"] - own[:, np.newaxis].astype(np.float32)})
    return _joined(parts, model) if parts else None, users.user_ids[wanted[:, 0]]


def _starts(label: str, unit: str, total: int, size: int) -> Iterator[int]:
    """Yields the start of each block of ``size``, with a progress bar over ``total``."""
    with show_progress(label, unit) as progress:
        for start in range(0, total, size):
            yield start
            progress(min(start + size, total), total)


def target_ratings(events: pd.DataFrame | None, queries: Queries) -> np.ndarray:
    """Returns the rating of the first target of each query, float32 ``[B]``; NaN for none.

    Args:
      events: As in :func:`ratings_of_targets`.
      queries: Queries that all have targets.
    """
    return ratings_of_targets(events, queries)[queries.targets.offsets[:-1]]


def ratings_of_targets(events: pd.DataFrame | None, queries: Queries) -> np.ndarray:
    """Returns the rating of each target, float32 ``[V]``, in the order of ``queries.targets.values``; NaN for none.

    Args:
      events: The events with the targets, ``Split.validation_events`` or ``Split.test_events``. Several events of a
        user with the same item are matched in their order.
      queries: The queries.
    """
    assert events is not None
    targets = pd.DataFrame({USER: queries.user_ids[queries.targets.row_of_value], ITEM_INDEX: queries.targets.values})
    pair = [USER, ITEM_INDEX]
    own, asked = (
        pd.MultiIndex.from_arrays([*(table[name] for name in pair), table.groupby(pair, sort=False).cumcount()])
        for table in (events, targets)
    )
    return pd.Series(events[RATING].to_numpy(), index=own).reindex(asked).to_numpy(np.float32)


def batches(
    lists: Examples, rated: Examples | None, batch_size: int, seed: list[int], n_items: int
) -> Iterator[dict[str, Examples]]:
    """Yields the batches of one epoch, which depend only on the seed and the examples.

    An epoch contains every list once, and each batch also :data:`RATED_BATCH` rated events. Lists with histories of
    similar length are batched together, because the time of a step depends on its longest history.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lists["label"]))
    lengths = _lengths(lists, n_items)[order]
    others = generator.permutation(len(rated["rating"])) if rated is not None else np.empty(0, int)
    for step, rows in enumerate(like_lengths(order, lengths, batch_size, generator)):
        batch = {"lists": _trimmed(_rows(lists, rows), n_items)}
        if rated is not None:
            places = np.arange(step * RATED_BATCH, (step + 1) * RATED_BATCH)
            batch["rated"] = _trimmed(_rows(rated, np.take(others, places, mode="wrap")), n_items)
        yield batch


def _joined(parts: list[dict[str, Any]], model: RankingModel) -> Examples:
    """Concatenates batches of examples, and pads their events to the same width."""
    fill = {"recent": model.n_items, "marks": np.nan}
    for part in parts:
        for name, value in fill.items():
            missing = model.length - part[name].shape[1]
            part[name] = np.pad(part[name], ((0, 0), (0, missing)), constant_values=value)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _rows(examples: Examples, rows: np.ndarray) -> Examples:
    return {name: values[rows] for name, values in examples.items()}


def _lengths(examples: Examples, n_items: int) -> np.ndarray:
    """Returns the number of events in each history, int64 ``[B]``."""
    return (examples["recent"] < n_items).sum(axis=1)


def _trimmed(examples: Examples, n_items: int) -> Examples:
    """Cuts histories to the longest one, so that no column is empty in every row."""
    width = max(_lengths(examples, n_items).max(initial=0), 1)
    return examples | {name: examples[name][:, :width] for name in OF_EVENTS}


def _dataset(
    generator: Callable[[], Iterator[dict[str, Examples]]], lists: Examples, rated: Examples | None, steps: int
) -> tf.data.Dataset:
    groups = {"lists": lists} | ({} if rated is None else {"rated": rated})
    signature = {
        group: {
            name: tf.TensorSpec((None, None) if name in OF_EVENTS else (None, *values.shape[1:]), values.dtype)
            for name, values in examples.items()
        }
        for group, examples in groups.items()
    }
    made = tf.data.Dataset.from_generator(generator, output_signature=signature)
    return made.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)


# Training ------------------------------------------------------------------------------------------------------------


def start_from_hybrid(model: RankingModel, lists: Examples) -> None:
    """Sets the shift and scale of the terms, and the weight of the hybrid's score to its best value for the lists."""
    there = lists["items"] < model.n_items
    terms = lists["terms"][there]
    if not len(terms):
        return
    model.network.shift.assign(terms.mean(axis=0))
    model.network.scale.assign(np.maximum(terms.std(axis=0), 1e-3))

    def loss(weight: float) -> float:
        return _surprise(np.where(there, weight * lists["scores"] + lists["log_times"], -np.inf), lists["label"]).mean()

    model.network.log_weight.assign(np.log(min(WEIGHTS, key=loss)))


def _surprise(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns ``-log softmax`` of ``logits`` ``[B, M]`` at ``label`` ``[B]``; logits are minus infinity for padding."""
    highest = logits.max(axis=1)
    total = np.log(np.exp(logits - highest[:, np.newaxis]).sum(axis=1)) + highest
    return total - logits[np.arange(len(label)), label]


def fitted_temperature(logits: np.ndarray, label: np.ndarray, fold: np.ndarray) -> float:
    """Returns the temperature that minimises the log loss (temperature scaling: Guo et al. 2017, arXiv:1706.04599).

    Args:
      logits: Float ``[n, M]``, minus infinity for padding.
      label: Int ``[n]``, the column of the next item.
      fold: Int ``[n]``, the fold of each row.

    Returns:
      One of :data:`TEMPERATURES`; 1 if the best temperatures of the other folds do not lower the loss of a fold, on
      average.
    """
    losses = np.stack([_surprise(logits / temperature, label) for temperature in TEMPERATURES])
    unseen = _surprise(logits, label)
    before = unseen.mean()
    for each in np.unique(fold):
        rows = fold == each
        if not rows.all():
            unseen[rows] = losses[np.argmin(losses[:, ~rows].mean(axis=1)), rows]
    return float(TEMPERATURES[np.argmin(losses.mean(axis=1))]) if unseen.mean() < before else 1.0


class HeldOut(tf.keras.callbacks.Callback):
    """Measures both heads on the users of a fold after each epoch, at every strength, and evaluates all folds together.

    It adds the losses at strength 1 to ``logs`` as ``val_click_loss`` and ``val_rating_loss``.

    Args:
      model: The model; its strengths are 1 in training.
      lists: The B lists of all folds, each with its ``weight`` in the losses and in the selection value.
      ratings: Float32 ``[B]``, the rating of the target of each list; NaN for none.
      users: Int64 ``[B]``, equal numbers for lists of the same user.
      config: The settings, with the number of epochs.
      earlier: The strengths of the heads in an earlier model, which is then measured as the first epoch.
    """

    def __init__(
        self,
        model: RankingModel,
        lists: Examples,
        ratings: np.ndarray,
        users: np.ndarray,
        config: RankingConfig,
        earlier: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        assert config.epochs is not None
        self.ranking, self.lists, self.ratings, self.users = model, lists, ratings, users
        self.list_weight = lists["weight"] * len(ratings) / max(lists["weight"].sum(), 1.0)  # their mean is 1
        self.earlier, self.candidates = earlier, min(config.candidates, model.n_items)
        self.learned = tf.function(model.learned, reduce_retracing=True, autograph=False)
        self.fold = np.empty(0, int)
        # The loss, ndcg@10 and squared error of each list, by epoch (0: untrained) and strength, and without the heads.
        self.by_epoch = np.full((3, config.epochs + 1, len(STRENGTHS), len(ratings)), np.nan)
        self.without = np.full((3, len(ratings)), np.nan)
        # The weight of the hybrid's score, the rating, and the click head's logit of each candidate, by epoch and list.
        self.weight, self.rating = np.ones((2, config.epochs + 1, len(ratings)), np.float32)
        self.click = np.zeros((config.epochs + 1, len(ratings), self.candidates), np.float32)
        self.fold_of = np.zeros(len(ratings), int)

    def begin(self, fold: np.ndarray) -> None:
        """Measures the untrained model on the lists ``fold``, int ``[n]``, which are held out of the next training."""
        lengths = _lengths(self.lists, self.ranking.n_items)[fold]
        self.fold = fold[np.argsort(lengths, kind="stable")]  # similar lengths together, as in training
        self.fold_of[fold] = self.fold_of.max() + 1
        for rows in self._blocks():
            part = _rows(self.lists, rows)
            self.weight[0, rows] = np.exp(self.ranking.network.log_weight)
            scores = self.weight[0, rows, np.newaxis] * part["scores"]
            self.rating[0, rows] = prior = part["prior"][np.arange(len(rows)), part["label"]]
            self.without[:, rows] = self._figures(part, self.ratings[rows], scores, prior)
        self.by_epoch[:, 0, :, fold] = self.without[:, fold].T[:, :, np.newaxis]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        for rows in self._blocks():
            part = _trimmed(_rows(self.lists, rows), self.ranking.n_items)
            query = {name: values for name, values in part.items() if name not in LEARNT_FROM}
            logits, told = (out.numpy() for out in self.learned(self.ranking.item_vectors, **query))
            self.weight[epoch + 1, rows] = np.exp(self.ranking.network.log_weight)
            scores = self.weight[epoch + 1, rows, np.newaxis] * part["scores"]
            target = np.arange(len(rows)), part["label"]
            prior = part["prior"][target]
            self.click[epoch + 1, rows] = (logits - scores)[:, : self.candidates]
            self.rating[epoch + 1, rows] = told[target]
            for at, strength in enumerate(STRENGTHS):
                self.by_epoch[:, epoch + 1, at, rows] = self._figures(
                    part,
                    self.ratings[rows],
                    scores + strength * (logits - scores),
                    prior + strength * (told[target] - prior),
                )
        if logs is not None:
            click, _, rating = self.by_epoch[:, epoch + 1, -1][:, self.fold]
            logs |= {"val_click_loss": np.average(click, weights=self.list_weight[self.fold])}
            logs |= {"val_rating_loss": _mean(rating[np.isfinite(rating)]) or 0.0}

    def verdict(self, seed: int) -> Verdict:
        """Returns the best epoch and strengths over all folds; the strength of a head that is dropped is 0.

        Args:
          seed: Random seed of the bootstrap.
        """
        rated = np.isfinite(self.ratings) & self.ranking.rates
        click_loss = (self.by_epoch[0] * self.list_weight).mean(axis=-1)
        means = np.stack([click_loss, self.by_epoch[2][..., rated].sum(axis=-1) / max(rated.sum(), 1)])
        untrained = means[:, 0, 0]
        # A head counts at most as much as without it, because it would be dropped; diverged epochs are ignored.
        losses = np.minimum(means.min(axis=-1), untrained[:, np.newaxis]).sum(axis=0)
        losses = np.where(np.isfinite(losses), losses, np.inf)
        first = int(self.earlier is not None)
        epoch = first + int(np.argmin(losses[first:]))
        values, before = self.by_epoch[1, epoch] * self.list_weight, self.without[1] * self.list_weight
        of_strength = values.mean(axis=-1)
        click = max(range(len(STRENGTHS)), key=lambda at: (of_strength[at], -means[0, epoch, at]))
        rating = int(np.argmin(means[1, epoch]))
        gains = (
            (values[click] - before, self.users, 1 - 0.05 / len(STRENGTHS) if self.earlier is None else 0.95),
            ((self.without[2] - self.by_epoch[2, epoch, rating])[rated], self.users[rated], 0.95),
        )
        intervals = [
            mean_interval(gain, users, confidence=confidence, bootstrap=4000, seed=seed) if len(gain) else None
            for gain, users, confidence in gains
        ]
        strengths = [
            STRENGTHS[at] if self._keeps(head, interval) else 0.0
            for head, (at, interval) in enumerate(zip((click, rating), intervals, strict=True))
        ]
        return Verdict(
            **self._calibrated(epoch, strengths),
            best_epoch=epoch,
            strengths=strengths,
            click_loss=float(means[0, epoch, click]),
            rating_loss=float(means[1, epoch, rating]),
            untrained=untrained.tolist(),
            selection=[float(values[click].mean()), float(before.mean())],
            selection_interval=list(intervals[0] or ()),
            rating_interval=list(intervals[1] or ()),
        )

    def _keeps(self, head: int, interval: tuple[float, float] | None) -> bool:
        """Returns whether a head is kept, from the interval of its gain."""
        if self.earlier is not None:
            return self.earlier[head] > 0 and (interval is None or interval[1] >= 0)
        return interval is not None and interval[0] > 0

    def _calibrated(self, epoch: int, strengths: list[float]) -> dict[str, Any]:
        """Returns ``temperature``, ``log_loss``, ``ece`` and ``rating_ece`` of the values that would be served."""
        label, there = self.lists["label"], self.lists["items"][:, : self.candidates] < self.ranking.n_items
        offered = label < self.candidates
        rated = np.isfinite(self.ratings) & self.ranking.rates
        prior, error = self.rating[0], None
        if rated.any():
            told = np.clip(prior + strengths[1] * (self.rating[epoch] - prior), self.ranking.low, self.ranking.high)[
                rated
            ]
            error = calibration_error(told, self.ratings[rated])
        if not offered.any():
            return {"rating_ece": error}
        # Without the click head, the logits are those of the untrained model.
        epoch = epoch if strengths[0] else 0
        logits = self.weight[epoch, :, np.newaxis] * self.lists["scores"][:, : self.candidates]
        logits = np.where(there, logits + strengths[0] * self.click[epoch], -np.inf)[offered].astype(np.float64)
        label, there = label[offered], there[offered]
        temperature = fitted_temperature(logits, label, self.fold_of[offered])
        happened = (np.arange(self.candidates) == label[:, np.newaxis])[there]
        figures = []
        for divisor in (temperature, 1.0):
            losses = _surprise(logits / divisor, label)
            total = losses + (logits / divisor)[np.arange(len(label)), label]
            probability = np.exp(logits / divisor - total[:, np.newaxis])[there]
            figures.append((float(losses.mean()), calibration_error(probability, happened)))
        log_loss, ece = (list(of_both) for of_both in zip(*figures, strict=True))
        return {"temperature": temperature, "log_loss": log_loss, "ece": ece, "rating_ece": error}

    def _blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.fold), HELD_BATCH):
            yield self.fold[start : start + HELD_BATCH]

    def _figures(self, part: Examples, ratings: np.ndarray, logits: np.ndarray, told: np.ndarray) -> np.ndarray:
        """Returns the loss, ndcg@10 among the candidates, and squared error of served ratings, float64 ``[3, b]``."""
        there = part["items"] < self.ranking.n_items
        surprise = _surprise(np.where(there, logits + part["log_times"], -np.inf), part["label"])
        logits = np.where(there, logits, -np.inf)
        row, found = np.arange(len(logits)), part["label"] < self.candidates
        own, offered = logits[row, part["label"]][:, np.newaxis], logits[:, : self.candidates]
        better = np.where(found, (offered > own).sum(axis=1), UNREACHABLE)
        ranks = TargetRanks(row, part["label"], better, np.maximum((offered == own).sum(axis=1), 1), there.sum(axis=1))
        error = np.clip(told, self.ranking.low, self.ranking.high) - ratings
        return np.stack([surprise, ndcg(ranks, len(row), 10), error**2])


# Evaluation ----------------------------------------------------------------------------------------------------------


def measure_ranking(
    reranked: Reranked, split: Split, result: Result | None, hybrids: Result, seed: int
) -> dict[str, Any]:
    """Returns the entry ``ranking`` of ``metrics.json``: metrics on the test queries.

    Args:
      reranked: The fitted model.
      result: The result of ``reranked``; ``None`` if its order is that of the hybrid.
      hybrids: The result of the hybrid on the same queries.
      split: The split with the test queries.
      seed: Random seed of the sampled queries and the bootstrap.

    Returns:
      A mapping with ``candidates``, the number of candidates, and

      - if there is a ``result``: ``reranked``, all its metrics; ``intervals``, their intervals; and ``difference``, the
        differences to the hybrid's order in ``ndcg@10`` and ``recall@10``, of all targets and of the tail, with 95 %
        intervals, as far as these metrics were measured;
      - ``offered``, the number of queries, out of at most :data:`MEASURED`, whose next item is among the candidates,
        and metrics of these queries: ``log_loss``, the mean negative log probability of the next item;
        ``log_loss_even``, the same with equal probabilities; ``auc``, the share of other candidates that are less
        likely than the next item; ``auc_hybrid``, the same by the hybrid's score; ``accuracy``, the share of queries
        whose most likely candidate is the next item, with ties counted proportionally; and ``ece``, the calibration
        error of the probabilities of all candidates;
      - if the data has ratings: ``rated``, the number of rated targets; ``rmse``; ``rmse_mean``, the RMSE of the mean
        rating; ``rmse_biases``, the RMSE of the biases of item and user; and ``rating_ece``, the calibration error of
        the ratings.

      The metrics of ratings are over all rated targets. Those of probabilities are over the first target of each query,
      whose other targets are removed from the candidates. Metrics are ``None`` if there is nothing to average.
    """
    labels = [f"{name}@10{suffix}" for name in ("ndcg", "recall") for suffix in ("", "/tail")]
    measured: dict[str, Any] = {"candidates": reranked.candidates}
    if result is not None:
        measured |= {
            "reranked": dict(result.metrics),
            "intervals": {label: list(interval) for label, interval in result.intervals.items()},
            "difference": {
                label: list(paired_difference(result, hybrids, label, seed=seed))
                for label in labels
                if result.metrics.get(label) is not None
            },
        }
    asked = measured_queries(split, seed)
    return measured | _of_probabilities(reranked, asked) | _of_ratings(reranked, split, asked)


def measured_queries(split: Split, seed: int) -> Queries:
    """Returns the test queries, a sample of at most :data:`MEASURED`, for metrics of probabilities and ratings."""
    asked = split.test.take(split.test.targets.lengths > 0)
    return asked.take(np.random.default_rng(seed).permutation(len(asked))[:MEASURED])


@dataclass(frozen=True)
class Offered:
    """The candidates of those queries whose next item is among the candidates.

    Attributes:
      items: Int64 ``[B, M]``, the candidates; N for none.
      probability: Float32 ``[B, M]``, the probability that the candidate is the next item.
      label: Bool ``[B, M]``, whether the candidate is the next item.
      there: Bool ``[B, M]``, False for padding.
      score: Float32 ``[B, M]``, the score by the hybrid.
      asked: The number of queries in the batch, including those whose next item is not a candidate.
    """

    items: np.ndarray
    probability: np.ndarray
    label: np.ndarray
    there: np.ndarray
    score: np.ndarray
    asked: int


def offered_candidates(reranked: Reranked, queries: Queries) -> Iterator[Offered]:
    """Yields the candidates of ``queries`` in batches."""
    for batch in queries.batches(SCORE_BATCH):
        scores = reranked.hybrid.score(batch)
        items = reranked.best(scores, batch)
        items = _without_others(items, batch.targets, reranked.model.n_items)
        label = items == batch.targets.values[batch.targets.offsets[:-1]][:, np.newaxis]
        rows = label.any(axis=1)
        probability = reranked.rank(batch, items)[0][rows]
        there = (items < reranked.model.n_items)[rows]
        score = np.take_along_axis(scores[rows], np.where(there, items[rows], 0), axis=1)
        yield Offered(items[rows], probability, label[rows], there, score, len(batch))


def _of_probabilities(reranked: Reranked, queries: Queries) -> dict[str, Any]:
    losses, even, ours, hybrids, right, likely, happened = ([] for _ in range(7))
    for batch in offered_candidates(reranked, queries):
        probability, label, there = batch.probability, batch.label, batch.there
        losses.append(-np.log(np.maximum(probability[label], 1e-30)))
        even.append(np.log(there.sum(axis=1)))
        ours.append(_auc(probability, label, there))
        hybrids.append(_auc(batch.score, label, there))
        first = probability == probability.max(axis=1, keepdims=True, initial=0)
        right.append((first & label).sum(axis=1) / np.maximum(first.sum(axis=1), 1))
        likely.append(probability[there])
        happened.append(label[there])
    names = ("log_loss", "log_loss_even", "auc", "auc_hybrid", "accuracy")
    values = [np.concatenate(parts) for parts in (losses, even, ours, hybrids, right)]
    means = {name: _mean(value[np.isfinite(value)]) for name, value in zip(names, values, strict=True)}
    ece = calibration_error(np.concatenate(likely), np.concatenate(happened)) if len(values[0]) else None
    return {"offered": len(values[0]), **means, "ece": ece}


def _auc(values: np.ndarray, label: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Returns the share of other values below that of ``label``, ties half: float64 ``[B]``, NaN without others."""
    own, others = values[label][:, np.newaxis], there & ~label
    lower = ((values < own) & others).sum(axis=1) + 0.5 * ((values == own) & others).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return lower / others.sum(axis=1)


@dataclass(frozen=True)
class RatedTargets:
    """Predicted and given ratings of targets.

    Attributes:
      predicted: Float ``[R]``, the ratings predicted by the model.
      by_biases: Float ``[R]``, the ratings predicted by biases.
      given: Float ``[R]``, the ratings by the users.
    """

    predicted: np.ndarray
    by_biases: np.ndarray
    given: np.ndarray


def predicted_ratings(reranked: Reranked, split: Split, queries: Queries) -> RatedTargets | None:
    """Returns the ratings of the rated targets of ``queries``; ``None`` if the model does not predict ratings."""
    model = reranked.model
    scale = RatingScale.of_split(split, model.n_items) if model.rates else None
    if scale is None:
        return None
    targets = queries.targets.padded(int(queries.targets.lengths.max(initial=1)), model.n_items)
    ratings = Ragged(ratings_of_targets(split.test_events, queries), queries.targets.offsets).padded(
        targets.shape[1], NAN
    )
    rated = np.isfinite(ratings)
    by_biases = scale.ratings(queries, np.where(rated, targets, 0))
    return RatedTargets(reranked.rank(queries, targets)[1][rated], by_biases[rated], ratings[rated])


def _of_ratings(reranked: Reranked, split: Split, queries: Queries) -> dict[str, Any]:
    found = predicted_ratings(reranked, split, queries)
    if found is None:
        return {}
    predicted = {
        "rmse": found.predicted,
        "rmse_mean": np.full_like(found.given, reranked.model.mean),
        "rmse_biases": found.by_biases,
    }
    errors = {name: _mean((values - found.given) ** 2) for name, values in predicted.items()}
    return {
        "rated": len(found.given),
        **{name: None if e is None else float(np.sqrt(e)) for name, e in errors.items()},
        "rating_ece": calibration_error(found.predicted, found.given) if len(found.given) else None,
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def ranking_lines(measured: dict[str, Any], hybrids: dict[str, float | None]) -> list[str]:
    """Returns lines for users about the entry ``ranking`` of ``metrics.json``; ``hybrids`` are the hybrid's metrics."""
    if "left_out" in measured:
        return [measured["left_out"]]
    lines = [f"the hybrid's best {measured['candidates']} stay in its order"]
    if "reranked" in measured:
        shown = [label for label in ("ndcg@10", "recall@10", "recall@10/tail") if label in measured["difference"]]
        orders = [f"{label} {measured['reranked'][label]:.4f} (hybrid {hybrids[label]:.4f})" for label in shown]
        lines = [f"the hybrid's best {measured['candidates']} in the new order: {', '.join(orders)}"]
    if measured["log_loss"] is not None and measured["auc"] is not None:
        lines.append(
            f"where the next item is among them ({measured['offered']:,}): log-loss {measured['log_loss']:.4f} (all "
            f"alike {measured['log_loss_even']:.4f}), AUC {measured['auc']:.4f} (hybrid {measured['auc_hybrid']:.4f})"
            + _calibration(measured.get("ece"))
        )
    if measured.get("rated"):
        lines.append(
            f"ratings of {measured['rated']:,}: RMSE {measured['rmse']:.4f}, by biases of item and user "
            f"{measured['rmse_biases']:.4f}, by the mean of all {measured['rmse_mean']:.4f}"
            + _calibration(measured.get("rating_ece"))
        )
    return lines


def _calibration(error: float | None) -> str:
    """Returns the end of a line; empty for metrics of earlier versions, which lack the calibration error."""
    return "" if error is None else f", expected calibration error {error:.4f}"
