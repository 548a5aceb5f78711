"""The record of a ranking model: its training data, and which heads are kept because they help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tfllmrec.durable import read_json

RECORD = "record.json"


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
      labels: Whether the model compares the labels of candidates with the user's interests.
      requests: Whether the model reads the fields of the request and its user.
      seconds: The time of fitting in seconds.
    """

    lists: int
    held_out: int
    rated: int
    epochs: int
    weight: float
    seconds: float
    labels: bool = False
    requests: bool = False
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
        by_chance = ": the gain may be chance" if low <= 0 < with_it - without and not self.strengths[0] else ""
        order = (
            f"selection value {with_it:.4f} against {without:.4f} without it on {self.held_out:,} held-out users "
            f"(difference between {low:+.4f} and {high:+.4f} with 95 % confidence{by_chance})"
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
        if not self.strengths[1] and with_head < prior and self.rating_interval and self.rating_interval[0] <= 0:
            errors += " (the gain of the head may be chance)"
        if not self.epochs:  # no head was trained
            errors = f"rating RMSE {prior:.4f} by {'factors' if self.factors else 'biases'}"
        if self.left_out:
            return f"left out: {order}; {errors}"
        click, rating = ("kept" if strength else "left out" for strength in self.strengths)
        if self.factors:
            rating = "kept, by factors and the head" if self.strengths[1] else "kept, by factors alone"
        order_kept = "" if self.strengths[0] else ", the order stays the hybrid's"
        return f"order {click}{order_kept}: {order}; ratings {rating}: {errors}"
