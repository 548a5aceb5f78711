"""Evaluates the heads of a ranking model on users on which it was not trained, and decides which of them are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfllmrec.config import RankingConfig
from tfllmrec.evaluation.calibration import calibration_error
from tfllmrec.evaluation.metrics import UNREACHABLE, TargetRanks, ndcg
from tfllmrec.evaluation.protocol import mean_interval
from tfllmrec.models.ranking import LEARNT_FROM, RankingModel
from tfllmrec.training.ranking.examples import Examples, lengths_of, rows_of, trimmed
from tfllmrec.training.ranking.record import Verdict

#: Strengths of a kept head to try.
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
#: Temperatures to try, by which logits are divided.
TEMPERATURES = np.geomspace(0.25, 4, 65)
_HELD_BATCH = 256  # number of lists that are measured at once


def log_losses(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
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
    losses = np.stack([log_losses(logits / temperature, label) for temperature in TEMPERATURES])
    unseen = log_losses(logits, label)
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
        lengths = lengths_of(self.lists, self.ranking.n_items)[fold]
        self.fold = fold[np.argsort(lengths, kind="stable")]  # similar lengths together, as in training
        self.fold_of[fold] = self.fold_of.max() + 1
        for rows in self._blocks():
            part = rows_of(self.lists, rows)
            self.weight[0, rows] = np.exp(self.ranking.network.log_weight)
            scores = self.weight[0, rows, np.newaxis] * part["scores"]
            self.rating[0, rows] = prior = part["prior"][np.arange(len(rows)), part["label"]]
            self.without[:, rows] = self._figures(part, self.ratings[rows], scores, prior)
        self.by_epoch[:, 0, :, fold] = self.without[:, fold].T[:, :, np.newaxis]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        for rows in self._blocks():
            part = trimmed(rows_of(self.lists, rows), self.ranking.n_items)
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
            logs |= {"val_rating_loss": float(rating[np.isfinite(rating)].mean()) if np.isfinite(rating).any() else 0.0}

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
            losses = log_losses(logits / divisor, label)
            total = losses + (logits / divisor)[np.arange(len(label)), label]
            probability = np.exp(logits / divisor - total[:, np.newaxis])[there]
            figures.append((float(losses.mean()), calibration_error(probability, happened)))
        log_loss, ece = (list(of_both) for of_both in zip(*figures, strict=True))
        return {"temperature": temperature, "log_loss": log_loss, "ece": ece, "rating_ece": error}

    def _blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.fold), _HELD_BATCH):
            yield self.fold[start : start + _HELD_BATCH]

    def _figures(self, part: Examples, ratings: np.ndarray, logits: np.ndarray, told: np.ndarray) -> np.ndarray:
        """Returns the loss, ndcg@10 among the candidates, and squared error of served ratings, float64 ``[3, b]``."""
        there = part["items"] < self.ranking.n_items
        surprise = log_losses(np.where(there, logits + part["log_times"], -np.inf), part["label"])
        logits = np.where(there, logits, -np.inf)
        row, found = np.arange(len(logits)), part["label"] < self.candidates
        own, offered = logits[row, part["label"]][:, np.newaxis], logits[:, : self.candidates]
        better = np.where(found, (offered > own).sum(axis=1), UNREACHABLE)
        ranks = TargetRanks(row, part["label"], better, np.maximum((offered == own).sum(axis=1), 1), there.sum(axis=1))
        error = np.clip(told, self.ranking.low, self.ranking.high) - ratings
        return np.stack([surprise, ndcg(ranks, len(row), 10), error**2])
