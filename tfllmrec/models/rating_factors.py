"""Predicts ratings by a Bayesian factor model that computes a user's factors from the history, in closed form.

    rating(u, i) = mean + b_i + b_u + <f_i, g_u> + noise
    (b_u, g_u)   ~ Normal(map of the items that u has had, prior covariance of users)
    (b_i, f_i)   ~ Normal(map of the item's text and of the users who have had it, prior covariance of items)

Items and priors are learned by variational EM. This is Bayesian matrix factorization (Salakhutdinov and Mnih 2008,
"Bayesian probabilistic matrix factorization using Markov chain Monte Carlo") with Gaussian posteriors instead of
samples (Lim and Teh 2007, "Variational Bayesian approach to movie rating prediction"), and with priors that are
regressions on side information (Agarwal and Chen 2009, "Regression-based latent factor models"). A new user needs no
training: the posterior mean is the solution of a linear system with D + 1 unknowns. As in SVD++ (Koren 2008,
"Factorization meets the neighborhood"), all items that a user has had are informative, whether rated or not. The
rating of a cold item is predicted from its text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from tfllmrec.data.queries import LONGEST, Queries, Ragged

#: Number of principal components of the histories, and of the items' texts.
MET_COMPONENTS, TEXT_COMPONENTS = 20, 40
#: Number of events at which an item's components from its users are shrunk to half of those of a frequent item.
MET_SHRINKAGE = 5.0
#: The log number of events is clipped at this many standard deviations from the mean.
FAR = 2.0
#: Ridge penalty of the maps of the priors, in units of rows.
MAP_PENALTY = 30.0
#: Largest number of EM steps, and number of steps before the prior covariances are learned too.
STEPS, WARM_UP = 24, 2
#: Share of the ratings that the noise and the number of steps are chosen on.
HELD_OUT = 0.1
#: Largest number of users whose ratings are learned from.
USERS = 50_000
#: Number of rows that are solved at once.
BLOCK = 2048
#: Largest number of items of a catalogue for which factors are learned: more covariances would not fit in memory. EM
#: keeps ``(rank + 2) ** 2`` numbers of 8 bytes for each item twice, 1 GB for 200,000 items and 16 factors.
ITEMS = 200_000


@dataclass(frozen=True, eq=False)
class RatingFactors:
    """The learned parameters that predict ratings, for N items and D factors.

    Attributes:
      mean: The mean of the ratings.
      low, high: The minimum and maximum of the ratings; predictions are clipped to this range.
      noise: The variance of a rating around its expectation, measured on held-out ratings.
      item_bias: The biases b_i, float32 ``[N]``.
      item_factors: The factors f_i, float32 ``[N, D]``.
      met: The contribution of each item of a history to the user's prior, float32 ``[N, P]``.
      met_map: The map to the prior mean of (b_u, g_u), float32 ``[P + 2, D + 1]``. Its inputs are 1, the standardised
        log length of the history, and the sum of ``met`` divided by the square root of the length.
      count_shift, count_scale: Mean and standard deviation of log(1 + length of the history).
      precision: The inverse of the prior covariance of (b_u, g_u), float32 ``[D + 1, D + 1]``.
      steps: The number of EM steps.
      item_covariances: The posterior covariances of (b_i, f_i), float32 ``[N, D + 1, D + 1]``. Only :meth:`without`
        needs them; ``None`` if they were not kept.
    """

    mean: float
    low: float
    high: float
    noise: float
    item_bias: np.ndarray
    item_factors: np.ndarray
    met: np.ndarray
    met_map: np.ndarray
    count_shift: float
    count_scale: float
    precision: np.ndarray
    steps: int
    item_covariances: np.ndarray | None = None

    @classmethod
    def empty(cls, n_items: int, rank: int, components: int) -> RatingFactors:
        """Creates an untrained instance of these sizes."""
        none = np.zeros((n_items, rank + components), np.float32)
        met_map = np.zeros((components + 2, rank + 1), np.float32)
        precision = np.eye(rank + 1, dtype=np.float32)
        bias = np.zeros(n_items, np.float32)
        return cls(0.0, 0.0, 0.0, 1.0, bias, none[:, :rank], none[:, rank:], met_map, 0.0, 1.0, precision, 0)

    @property
    def sizes(self) -> list[int]:
        """The numbers of items, factors, and components of ``met``."""
        return [*self.item_factors.shape, self.met.shape[1]]

    @property
    def weights(self) -> list[np.ndarray]:
        """The float32 weights of :class:`tfllmrec.layers.rating_posterior.RatingPosterior`, in its order."""
        scales = [self.mean, self.noise, self.count_shift, self.count_scale]
        of_items = np.column_stack([self.item_bias, self.item_factors, self.met])
        return [of_items, self.met_map, self.precision, np.array(scales, np.float32)]

    def users(self, history: Ragged, ratings: Ragged) -> np.ndarray:
        """Computes the posterior means of (b_u, g_u) from the newest :data:`LONGEST` events, float64 ``[B, D + 1]``.

        Args:
          history: Item indices.
          ratings: The rating of each event, NaN for no rating.
        """
        history, ratings = history.last(LONGEST), ratings.last(LONGEST)
        n, of_item = len(history), np.column_stack([np.ones(len(self.item_bias)), self.item_factors])
        size, row = of_item.shape[1], history.row_of_value
        count = np.maximum(history.lengths, 1)
        met = np.zeros((n, self.met.shape[1]))
        np.add.at(met, row, self.met[history.values])
        prior = _history_features(met / np.sqrt(count)[:, np.newaxis], history.lengths, self) @ self.met_map
        rated = np.isfinite(ratings.values)
        row, item = row[rated], history.values[rated]
        above = ratings.values[rated] - self.mean - self.item_bias[item]
        there = sparse.csr_array((np.ones(len(row)), (row, item)), shape=(n, len(of_item)))
        right = sparse.csr_array((above, (row, item)), shape=(n, len(of_item))) @ of_item
        out = np.empty((n, size))
        outer = (of_item[:, :, np.newaxis] * of_item[:, np.newaxis]).reshape(-1, size * size)
        for start in range(0, n, BLOCK):
            rows = slice(start, start + BLOCK)
            left = (there[rows] @ outer).reshape(-1, size, size) / self.noise + self.precision
            known = right[rows] / self.noise + prior[rows] @ self.precision
            out[rows] = np.linalg.solve(left, known[..., np.newaxis])[..., 0]
        return out

    def ratings(self, queries: Queries, items: np.ndarray) -> np.ndarray:
        """Predicts the ratings of ``items`` int ``[B, M]`` by the users of ``queries``, float32 ``[B, M]``."""
        users = self.users(queries.history, queries.ratings)
        told = (
            self.mean
            + users[:, :1]
            + self.item_bias[items]
            + np.einsum("bmd,bd->bm", self.item_factors[items], users[:, 1:])
        )
        return np.clip(told, self.low, self.high).astype(np.float32)

    def without(self, users: np.ndarray, items: np.ndarray, ratings: np.ndarray) -> np.ndarray:
        """Computes how much each of E training ratings raises its own prediction, float64 ``[E]``.

        This is exact for a linear regression: with the leverage h = x' S x / noise, x = (1, g_u) and the covariance S
        of the item, the prediction without the rating is lower by h / (1 - h) times its residual.

        Args:
          users: (b_u, g_u) from all training ratings, ``[E, D + 1]``.
          items: Item indices, int ``[E]``.
          ratings: The training ratings, ``[E]``.
        """
        assert self.item_covariances is not None
        own = np.column_stack([np.ones(len(users)), users[:, 1:]])
        leverage = np.einsum("ei,eij,ej->e", own, self.item_covariances[items], own) / self.noise
        leverage = np.minimum(leverage, 0.9)
        told = self.mean + users[:, 0] + self.item_bias[items] + (self.item_factors[items] * users[:, 1:]).sum(axis=1)
        return leverage / (1 - leverage) * (ratings - told)


def fit_rating_factors(
    users: np.ndarray,
    items: np.ndarray,
    ratings: np.ndarray,
    n_items: int,
    text: np.ndarray | None = None,
    *,
    rank: int = 16,
    seed: int = 42,
    progress: Callable[[int, int], None] | None = None,
) -> RatingFactors:
    """Learns the factors of all items.

    First, a tenth of the ratings is held out. The noise after each step is the mean squared error on the held-out
    ratings, which is larger than the error on the training ratings. The best number of steps is that with the lowest
    held-out error. Then EM learns from all ratings, with that number of steps and the same noise at each step. With the
    last noise from the start, EM would overfit the initial factors, which are random.

    Args:
      users: User indices of the training events, int ``[E]``. If there are more than :data:`USERS` users, a sample of
        them is used.
      items: Item indices, int ``[E]``.
      ratings: Ratings, ``[E]``; NaN for no rating, but at least one must be given. If all are equal, this value is
        predicted.
      n_items: N; with more than :data:`ITEMS` items, EM may not fit in memory.
      text: The items' text vectors, float ``[N, Dt]``.
      rank: D.
      seed: Random seed of the held-out ratings, the sample of users and the initial factors.
      progress: Called after each step with its number and the total number of steps.
    """
    generator = np.random.default_rng(seed)
    users = np.unique(users, return_inverse=True)[1]
    if (n_users := int(users.max()) + 1) > USERS:
        kept = np.isin(users, generator.choice(n_users, USERS, replace=False))
        if not _differ(ratings[kept]):  # if few users rate, samples users with ratings
            kept = np.isin(users, generator.permutation(np.unique(users[np.isfinite(ratings)]))[:USERS])
        users, items, ratings = np.unique(users[kept], return_inverse=True)[1], items[kept], ratings[kept]
        n_users = int(users.max()) + 1
    ratings = ratings.astype(np.float64)
    told = progress or (lambda done, total: None)
    held_out = np.isfinite(ratings) & (generator.random(len(ratings)) < HELD_OUT)
    if not _differ(ratings[~held_out]):
        held_out[:] = False  # too few ratings would be left to learn from
    table = _Ratings(users[~held_out], items[~held_out], ratings[~held_out], n_users, n_items, text)
    asked = users[held_out], items[held_out], ratings[held_out]
    noises, best = [0.75 * table.variance], 1
    if held_out.any():
        fit = _Fit(table, rank, seed)
        for step in range(STEPS):
            fit.step(noises[-1])
            noises.append(max(fit.error(*asked), 1e-3 * noises[0]))
            told(step + 1, 2 * STEPS)
        best = int(np.argmin(noises[1:])) + 1
    fit = _Fit(_Ratings(users, items, ratings, n_users, n_items, text), rank, seed)
    for step in range(best):
        fit.step(noises[step])
        told(STEPS + step + 1, STEPS + best)
    fit.noise = noises[min(best, len(noises) - 1)]
    return fit.factors(best)


def _differ(ratings: np.ndarray) -> bool:
    """Returns whether there are two distinct ratings, ignoring NaN."""
    known = ratings[np.isfinite(ratings)]
    return len(known) > 0 and bool(np.ptp(known) > 0)


class _Ratings:
    """The training events: sparse matrices of the ratings, and side features of users and items."""

    def __init__(
        self,
        users: np.ndarray,
        items: np.ndarray,
        ratings: np.ndarray,
        n_users: int,
        n_items: int,
        text: np.ndarray | None,
    ) -> None:
        self.ratings = ratings
        rated = np.isfinite(ratings)
        shape = (n_users, n_items)
        self.mean = float(ratings[rated].mean())
        self.low, self.high = float(ratings[rated].min()), float(ratings[rated].max())
        #: The variance of the ratings; 1 if all are equal.
        self.variance = float(ratings[rated].var()) if self.low < self.high else 1.0
        place = users[rated], items[rated]
        self.there = sparse.csr_array((np.ones(len(place[0])), place), shape=shape)
        self.above = sparse.csr_array((ratings[rated] - self.mean, place), shape=shape)
        self.there_by_item, self.above_by_item = self.there.T.tocsr(), self.above.T.tocsr()
        lengths, counts = np.bincount(users, minlength=n_users), np.bincount(items, minlength=n_items)
        weight = 1 / np.sqrt(np.maximum(lengths, 1)[users] * (counts + MET_SHRINKAGE)[items])
        met = sparse.csr_array((weight, (users, items)), shape=shape)
        components = min(MET_COMPONENTS, min(shape) - 1)
        # A fixed start: with a random start, the signs of the components that scipy finds may change.
        start = np.ones(min(shape)) / np.sqrt(min(shape))
        left, _, right = (
            svds(met, k=components, v0=start) if components > 0 else (np.empty((n_users, 0)), 0, np.empty((0, n_items)))
        )
        of_users, of_items = met @ right.T, met.T @ left
        spread = _spread(of_users)
        self.met = right.T / np.sqrt(counts + MET_SHRINKAGE)[:, np.newaxis] / spread
        log_lengths, log_counts = np.log1p(lengths), np.log1p(counts)
        self.count_shift, self.count_scale = float(log_lengths.mean()), float(_spread(log_lengths))
        self.of_users = _history_features(of_users / spread, lengths, self)
        columns = [
            np.ones(n_items), _clipped((log_counts - log_counts.mean()) / _spread(log_counts)),
            of_items / _spread(of_items),
        ]  # fmt: skip
        if text is not None and np.ptp(text, axis=0).max(initial=0) > 1e-6:
            left, scale, _ = np.linalg.svd(text - text.mean(axis=0), full_matrices=False)
            components = left[:, :TEXT_COMPONENTS] * scale[:TEXT_COMPONENTS]
            columns.append(components / components[:, 0].std())
        self.of_items = np.column_stack(columns)


def _spread(values: np.ndarray) -> np.ndarray:
    """Returns the standard deviation of each column; 1 if all values are equal."""
    spread = values.std(axis=0)
    return np.where(spread > 1e-12, spread, 1.0)


def _history_features(met: np.ndarray, lengths: np.ndarray, scales: _Ratings | RatingFactors) -> np.ndarray:
    """Stacks the columns 1, standardised log length, and ``met`` ``[B, P]``, for histories of ``lengths`` ``[B]``."""
    length = _clipped((np.log1p(lengths) - scales.count_shift) / scales.count_scale)
    return np.column_stack([np.ones(len(met)), length, met])


def _clipped(standardized: np.ndarray) -> np.ndarray:
    """Clips lengths and counts that are far from those in training, such as 0."""
    return np.clip(standardized, -FAR, FAR)


@dataclass
class _Side:
    """The posterior and the prior of users, or of items: vectors ``[n, K]``, covariances ``[n, K, K]``.

    Two of the K = D + 2 dimensions are for biases: the first for the bias of users, the second for that of items. Where
    one side has its bias, the other side has the constant 1.
    """

    vectors: np.ndarray
    covariances: np.ndarray
    free: np.ndarray
    features: np.ndarray
    map: np.ndarray
    precision: np.ndarray

    @classmethod
    def start(
        cls, features: np.ndarray, bias: int, scale: float, precision: np.ndarray, generator: np.random.Generator
    ) -> _Side:
        n, size = len(features), len(precision) + 1
        vectors = np.concatenate([np.zeros((n, 2)), generator.normal(0, 0.1 * scale, (n, size - 2))], axis=1)
        vectors[:, 1 - bias] = 1.0
        free = np.concatenate([[bias], np.arange(2, size)])
        return cls(
            vectors, np.zeros((n, size, size)), free, features, np.zeros((features.shape[1], size - 1)), precision
        )

    def moments(self) -> np.ndarray:
        """Computes the expected outer products, ``[n, K * K]``."""
        return (self.vectors[:, :, np.newaxis] * self.vectors[:, np.newaxis] + self.covariances).reshape(
            len(self.vectors), -1
        )

    def update(
        self, other: _Side, there: sparse.csr_array, above: sparse.csr_array, noise: float, learn_precision: bool
    ) -> None:
        """Updates the posterior given the other side, and then the prior given the posterior."""
        n, size = self.vectors.shape
        fixed = 1 - self.free[0]
        prior, moments, right = self.features @ self.map, other.moments(), above @ other.vectors
        for start in range(0, n, BLOCK):
            rows = slice(start, start + BLOCK)
            squares = (there[rows] @ moments).reshape(-1, size, size) / noise
            left = squares[:, self.free][:, :, self.free] + self.precision
            covariances = np.linalg.inv(left)
            known = right[rows][:, self.free] / noise - squares[:, self.free, fixed] + prior[rows] @ self.precision
            self.vectors[rows, self.free] = np.einsum("nij,nj->ni", covariances, known)
            self.covariances[rows][:, self.free[:, np.newaxis], self.free] = covariances
        means = self.vectors[:, self.free]
        penalty = MAP_PENALTY * np.eye(self.features.shape[1])
        self.map = np.linalg.solve(self.features.T @ self.features + penalty, self.features.T @ means)
        if learn_precision:
            rest = means - self.features @ self.map
            free = self.covariances[:, self.free[:, np.newaxis], self.free].sum(axis=0)
            scatter = rest.T @ rest + free + MAP_PENALTY * self.map.T @ self.map
            self.precision = np.linalg.inv(scatter / n + 1e-6 * np.eye(size - 1))


class _Fit:
    """The state of variational EM."""

    def __init__(self, table: _Ratings, rank: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.table, self.noise, self.steps = table, 1.0, 0
        # Prior precisions: the factors of users have variance 1; biases are about half as wide as ratings.
        variance = table.variance
        scale = float(np.sqrt(variance))
        of_users = np.diag(np.concatenate([[5 / variance], np.ones(rank)]))
        of_items = np.diag(np.concatenate([[3 / variance], np.full(rank, 20 / variance)]))
        self.users = _Side.start(table.of_users, 0, 1.0, of_users, generator)
        self.items = _Side.start(table.of_items, 1, scale, of_items, generator)

    def step(self, noise: float) -> None:
        """Runs one step at this noise, the variance of ratings around their expectations."""
        learn, self.noise = self.steps >= WARM_UP, noise
        self.users.update(self.items, self.table.there, self.table.above, self.noise, learn)
        self.items.update(self.users, self.table.there_by_item, self.table.above_by_item, self.noise, learn)
        self.steps += 1

    def error(self, users: np.ndarray, items: np.ndarray, ratings: np.ndarray) -> float:
        """Computes the mean squared error of the predictions of some ratings."""
        told = self.table.mean + np.einsum("ek,ek->e", self.users.vectors[users], self.items.vectors[items])
        return float(np.mean((np.clip(told, self.table.low, self.table.high) - ratings) ** 2))

    def factors(self, steps: int) -> RatingFactors:
        items, table = self.items.vectors.astype(np.float32), self.table
        return RatingFactors(
            mean=table.mean,
            low=table.low,
            high=table.high,
            noise=self.noise,
            item_bias=items[:, 1],
            item_factors=items[:, 2:],
            met=table.met.astype(np.float32),
            met_map=self.users.map.astype(np.float32),
            count_shift=table.count_shift,
            count_scale=table.count_scale,
            precision=self.users.precision.astype(np.float32),
            steps=steps,
            item_covariances=self.items.covariances[:, 1:, 1:].astype(np.float32),
        )
