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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.columns import ITEM_INDEX, RATING, USER_INDEX
from tfllmrec.config import RankingConfig, settings_of
from tfllmrec.data.queries import Queries
from tfllmrec.data.splits import Split
from tfllmrec.durable import write_folder
from tfllmrec.errors import ModelError
from tfllmrec.evaluation.protocol import mean_interval, users_of
from tfllmrec.layers.label_match import LabelMatch
from tfllmrec.models.fitting import Fitted, TrainingData
from tfllmrec.models.ranking import RankingModel, RatingScale
from tfllmrec.models.rating_factors import ITEMS, RatingFactors, fit_rating_factors
from tfllmrec.models.servable import Servable
from tfllmrec.progress import Tell, show_progress
from tfllmrec.training.callbacks import StepProgress, claim, read_weights, write_weights
from tfllmrec.training.fingerprint import fingerprint, queries_fingerprint
from tfllmrec.training.optimizer import adamw
from tfllmrec.training.ranking.examples import (
    Examples,
    batches,
    dataset_of,
    lists_of,
    most_lists,
    rated_events,
    rows_of,
    target_ratings,
)
from tfllmrec.training.ranking.held_out import HeldOut, log_losses
from tfllmrec.training.ranking.record import RECORD, RankingRecord

#: *auto* number of epochs with few lists and with many lists; in between, epochs times lists are about LOOKS. With more
#: lists, fewer epochs suffice: on beauty with 20,000 lists, the selection value is 0.0808 after 3 epochs and 0.0811
#: after 6.
EPOCHS, EPOCHS_OF_MANY, LOOKS = 6, 3, 60_000
#: Smallest number of validation queries for training; with fewer, which are not informative, *auto* is 0 epochs.
FEWEST = 30
#: Initial weights of the hybrid's score to try.
WEIGHTS = np.geomspace(0.02, 10, 28)

MADE_FROM, WEIGHTS_FILE = "made_from.json", "weights"


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
    of_request = [] if network.of_request is None else [network.of_request]
    parts = [network.attention, *of_request, *network.crosses, *network.heads.values()]
    of_parts = [variable for part in parts for variable in part.weights]
    return [*of_parts, network.shift, network.scale, network.log_weight]


def settle_epochs(config: RankingConfig, split: Split) -> str | None:
    """Sets *auto* epochs in ``config``; returns a line with the choice and its reason."""
    if config.epochs is not None:
        return None
    n_queries = len(split.validation)
    n_lists = min(n_queries, most_lists(config, split.dataset.n_items))
    config.epochs = 0 if n_queries < FEWEST else int(np.clip(LOOKS // max(n_lists, 1), EPOCHS_OF_MANY, EPOCHS))
    if config.epochs:
        return f"ranking.epochs {config.epochs} at most: {n_lists:,} validation queries to learn from"
    return f"ranking.epochs 0 (no ranking model): {n_queries:,} validation queries are too few"


def prepared_ranking(
    folder: Path,
    data: TrainingData,
    config: RankingConfig,
    hybrid: Servable,
    tell: Tell,
    start: RankingStart | None = None,
    labels: LabelMatch | None = None,
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
      labels: As in :func:`fit_ranking`. With ``start``, they are read if the earlier model read labels; if it did, and
        there are none, the network starts from random weights.

    Returns:
      The model; ``None`` if it is dropped.

    Raises:
      ModelError: The folder is damaged, or belongs to other settings, other data or another hybrid.
    """
    split, seed = data.split, data.seed
    if start is not None and not start.record.labels:
        labels = None
    elif start is not None and start.weights and labels is None:
        tell("ranking: starting from the beginning, because the earlier model read labels, and there are none now")
        start = None
    if not folder.is_dir():
        tell("ranking: learning to order candidates from the validation queries")
        if (n_items := split.dataset.n_items) > ITEMS and split.train[RATING].notna().any():
            tell(f"ranking: ratings are by biases: {n_items:,} items are too many for factors, at most {ITEMS:,}")
        fitted = fit_ranking(data, config, hybrid, folder.parent / "logs" / "ranking", start, labels)

        def write(fresh: Path) -> None:
            if fitted.model is None:
                fresh.mkdir()
            else:
                write_weights(fresh / WEIGHTS_FILE, network=fitted.model.network)
            (fresh / RECORD).write_text(json.dumps(fitted.figures, indent=1))
            claim(fresh / MADE_FROM, _made_from(hybrid, split, config, seed, start, labels))

        write_folder(folder, write)
        tell(f"ranking: {RankingRecord.load(folder).line()}")
    elif (folder / MADE_FROM).is_file():  # folders of earlier versions have none
        claim(folder / MADE_FROM, _made_from(hybrid, split, config, seed, start, labels))
    return load_ranking(folder, hybrid, split, config, seed, labels)


def _made_from(
    hybrid: Servable,
    split: Split,
    config: RankingConfig,
    seed: int,
    start: RankingStart | None,
    labels: LabelMatch | None,
) -> dict[str, Any]:
    """Returns all settings and data on which the trained model depends, as JSON values."""
    train = split.train
    settings: dict[str, Any] = {}
    if start is not None:
        arrays = fingerprint(*start.weights, start.queries, start.users)
        settings = {"start": [arrays, start.record.strengths, start.epochs, start.learning_rate_share]}
    if labels is not None:
        settings["labels"] = fingerprint(*(table.numpy() for table in labels.tables.values()))
    return settings | {
        **settings_of(**hybrid.settings, ranking=config),
        "seed": seed,
        "training events": fingerprint(*(train[name].to_numpy() for name in (USER_INDEX, ITEM_INDEX, RATING))),
        "validation queries": queries_fingerprint(split.validation),
        "weights of the hybrid": fingerprint(*hybrid.learned),
    }


def load_ranking(
    folder: Path,
    hybrid: Servable,
    split: Split,
    config: RankingConfig,
    seed: int,
    labels: LabelMatch | None = None,
) -> RankingModel | None:
    """Loads a model that :func:`prepared_ranking` wrote; returns ``None`` if it was dropped.

    Args:
      folder: The folder of the model.
      hybrid: The hybrid of the run, or one for a catalogue with further items at its end.
      split: The split of the run.
      config: The settings of the ranking model.
      seed: Random seed of the run.
      labels: The labels of the hybrid's items; needed if ``record.json`` says that the model reads labels.

    Raises:
      ModelError: The model is damaged, missing, or was fitted with other sizes, or the labels are missing.
    """
    record = RankingRecord.load(folder)
    if record.left_out:
        return None
    if record.labels and labels is None:
        raise ModelError(f"{folder}: the model reads labels of items, and the run has none: fit again.")
    scale, sizes = RatingScale.of_split(split, hybrid.n_items), record.factors
    factors = RatingFactors.empty(*sizes) if sizes else None
    model = RankingModel(hybrid, config, scale, seed, factors, labels if record.labels else None)
    if model.reads_requests and not record.requests:
        raise ModelError(f"{folder}: an earlier version fitted the model, without the fields of requests: fit again.")
    read_weights(folder / WEIGHTS_FILE, f"copy {folder} back, or fit again", network=model.network)
    return model


def fit_ranking(
    data: TrainingData,
    config: RankingConfig,
    hybrid: Servable,
    logs: Path | None = None,
    start: RankingStart | None = None,
    labels: LabelMatch | None = None,
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
      labels: Compares the labels of candidates with the user's interests; by default, labels are not read. With a
        ``start`` whose network has weights, labels are needed if, and only if, its record says so.

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
    asked = asked.take(np.random.default_rng(seed).permutation(len(asked))[: most_lists(config, hybrid.n_items)])
    ratings, users = target_ratings(split.validation_events, asked), users_of(asked.user_ids)
    factors, prior_loss, against_biases = (
        (None, 0.0, {}) if scale is None else _factors(data, scale, asked, ratings, users)
    )
    model = RankingModel(hybrid, config, scale, seed, factors, labels)
    made = against_biases | {
        "labels": labels is not None,
        "requests": model.reads_requests,
        "factors": [] if factors is None else factors.sizes,
    }
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
            **made,
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
        others = rows_of(lists, np.setdiff1d(np.arange(len(asked)), fold))
        of_others = None if rated is None else rows_of(rated, ~np.isin(raters, asked.user_ids[fold]))
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
        **made,
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
    training = dataset_of(
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


def start_from_hybrid(model: RankingModel, lists: Examples) -> None:
    """Sets the shift and scale of the terms, and the weight of the hybrid's score to its best value for the lists."""
    there = lists["items"] < model.n_items
    terms = lists["terms"][there]
    if not len(terms):
        return
    model.network.shift.assign(terms.mean(axis=0))
    model.network.scale.assign(np.maximum(terms.std(axis=0), 1e-3))

    def loss(weight: float) -> float:
        return log_losses(
            np.where(there, weight * lists["scores"] + lists["log_times"], -np.inf), lists["label"]
        ).mean()

    model.network.log_weight.assign(np.log(min(WEIGHTS, key=loss)))
