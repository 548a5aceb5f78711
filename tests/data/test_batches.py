import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.data.batches import (
    Sequences,
    epoch_batches,
    hold_out,
    n_windows,
    steps_per_epoch,
    training_batches,
    windows,
)
from tfllmrec.data.queries import Ragged
from tfllmrec.data.schema import RATING_KEY

pytestmark = pytest.mark.tf
N = 50
RNG = np.random.default_rng(0)
LENGTHS = np.array([0, 1, 2, 3, 7, 8, 9, 20, 25, 41])


@pytest.fixture
def sequences():
    """Every event is told apart by its item: user u's t-th event is item 50 * u + t."""
    items = Ragged.from_rows([100 * u + np.arange(n) for u, n in enumerate(LENGTHS)], np.int64)
    ratings = Ragged(items.values.astype(np.float32) / 10, items.offsets)
    return Sequences(items, hold_out(items, 0.5, seed=3), 1000, {RATING_KEY: ratings})


def test_windows_cover_every_target_and_fit(sequences):
    for seed in range(20):
        cuts = windows(LENGTHS, 8, np.random.default_rng(seed))
        covered = {(row, t) for row, first, end in cuts for t in range(first + 1, end)}
        assert covered == {(row, t) for row, n in enumerate(LENGTHS) for t in range(1, n)}
        assert ((cuts[:, 2] - cuts[:, 1] >= 2) & (cuts[:, 2] - cuts[:, 1] <= 8 + 1)).all()
        newest = {row: max(end for r, _, end in cuts if r == row) for row in cuts[:, 0]}
        assert newest == {row: n for row, n in enumerate(LENGTHS) if n >= 2}
        assert len(cuts) >= n_windows(LENGTHS, 8)


def test_short_histories_are_one_window_each():
    cuts = windows(np.array([0, 1, 2, 9]), 8, np.random.default_rng(0))
    assert cuts.tolist() == [[2, 0, 2], [3, 0, 9]]
    assert n_windows(np.array([0, 1, 2, 9]), 8) == 2
    assert n_windows(np.array([10]), 8) == 2
    assert windows(np.array([1, 0]), 8, np.random.default_rng(0)).shape == (0, 3)


def test_long_histories_are_cut_at_other_places_each_time():
    ends = {tuple(windows(np.array([41]), 8, np.random.default_rng(seed))[:, 2]) for seed in range(30)}
    assert len(ends) == 8  # one for each offset


def test_hold_out_marks_the_last_tenth_of_a_share():
    lengths = RNG.integers(0, 60, 2000)
    items = Ragged.from_rows([np.arange(n) for n in lengths], np.int64)
    held = hold_out(items, 0.3, seed=1)
    counts = np.array([row.sum() for row in held])
    chosen = counts > 0
    assert not chosen[lengths < 2].any()
    assert chosen[lengths >= 2].mean() == pytest.approx(0.3, abs=0.04)
    assert (counts[chosen] == np.maximum(lengths[chosen] // 10, 1)).all()
    for row, count in zip(held, counts, strict=True):
        assert row.tolist() == [False] * (len(row) - count) + [True] * count
    assert np.array_equal(hold_out(items, 0.3, seed=1).values, held.values)
    assert not np.array_equal(hold_out(items, 0.3, seed=2).values, held.values)


def test_hold_out_never_leaves_the_gates_without_an_event():
    items = Ragged.from_rows([[1], [1, 2, 3], [1, 2]], np.int64)
    assert [row.tolist() for row in hold_out(items, 1e-9, seed=0)] == [[False], [False, False, True], [False, False]]
    assert not hold_out(Ragged.from_rows([[1], []], np.int64), 0.9, seed=0).values.any()


def test_without_held_out(sequences):
    kept = sequences.without_held_out()
    assert len(kept) == len(LENGTHS)
    for row, (items, held) in enumerate(zip(sequences.items, sequences.held_out, strict=True)):
        assert kept[row].tolist() == [i for i, h in zip(items, held, strict=True) if not h]


def test_batches_against_loops(sequences):
    """Each row is one stretch of one history, its targets the events after, its marks those of the targets."""
    held_items = set(sequences.items.values[sequences.held_out.values])
    seen = 0
    for batch in epoch_batches(sequences, 4, 8, seed=1, epoch=0):
        assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
            name: (np.dtype(dtype), batch["history"].shape)
            for name, dtype in (("history", "i4"), ("targets", "i4"), ("held_out", "?"), (RATING_KEY, "f4"))
        }
        assert len(batch["history"]) <= 4 and batch["history"].shape[1] <= 8
        lengths = []
        for history, targets, held, ratings in zip(*batch.values(), strict=True):
            n = int((history < 1000).sum())
            lengths.append(n)
            assert n >= 1
            user, first = divmod(int(history[0]), 100)
            stretch = np.arange(first, first + n) + 100 * user
            assert first + n < LENGTHS[user]
            assert history.tolist() == [*stretch, *[1000] * (len(history) - n)]
            assert targets.tolist() == [*(stretch + 1), *[1000] * (len(history) - n)]
            assert ratings[:n] == pytest.approx(stretch / 10)
            assert np.isnan(ratings[n:]).all()
            assert held.tolist() == [i + 1 in held_items for i in stretch] + [False] * (len(history) - n)
            seen += 1
        assert batch["history"].shape[1] == max(lengths)  # no column of padding alone
    assert seen == n_windows(LENGTHS, 8)


def test_every_target_is_met_once_where_histories_fit_one_window(sequences):
    targets = np.concatenate([b["targets"].ravel() for b in epoch_batches(sequences, 4, 40, seed=1, epoch=0)])
    assert sorted(targets[targets < 1000]) == [100 * u + t for u, n in enumerate(LENGTHS) for t in range(1, n)]


def test_every_target_is_met_over_some_epochs(sequences):
    met = set()
    for epoch in range(10):
        for batch in epoch_batches(sequences, 4, 8, seed=1, epoch=epoch):
            met |= set(batch["targets"].ravel())
    assert met - {1000} == {100 * u + t for u, n in enumerate(LENGTHS) for t in range(1, n)}


def test_an_epoch_is_a_function_of_seed_and_number(sequences):
    def epoch(seed, number):
        return [b["history"].tolist() for b in epoch_batches(sequences, 4, 8, seed, number)]

    assert epoch(1, 2) == epoch(1, 2)
    assert epoch(1, 2) != epoch(1, 3)
    assert epoch(1, 2) != epoch(2, 2)


@pytest.mark.parametrize(("size", "length"), [(1, 8), (4, 8), (64, 8), (3, 5), (4, 40)])
def test_the_number_of_batches_never_changes(sequences, size, length):
    counts = {sum(1 for _ in epoch_batches(sequences, size, length, seed=0, epoch=e)) for e in range(6)}
    assert counts == {steps_per_epoch(sequences, size, length)}


def test_tf_data_counts_epochs_on_from_the_first(sequences):
    def told(batches):
        return [b["history"].numpy().tolist() for b in batches]

    def made(epoch):
        return [b["history"].tolist() for b in epoch_batches(sequences, 4, 8, 1, epoch)]

    batches = training_batches(sequences, 4, 8, seed=1)
    assert told(batches) == made(0)
    assert told(batches) == made(1)
    assert told(training_batches(sequences, 4, 8, seed=1, first_epoch=7)) == made(7)


def test_from_split(chain_split):
    sequences = Sequences.from_split(chain_split, 0.2, seed=1)
    queries = chain_split.train_queries()
    assert np.array_equal(sequences.items.values, queries.history.values)
    assert np.array_equal(sequences.values_of(RATING_KEY), queries.ratings.values)
    assert np.array_equal(sequences.held_out.values, hold_out(queries.history, 0.2, 1).values)
    assert sequences.n_items == chain_split.dataset.n_items


def test_keras_takes_no_step_too_many_in_the_first_epoch_of_a_fit(sequences):
    # Noise is drawn by a count of steps; one more where a fit begins would make a resumed run differ.
    class Counter(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.steps = tf.Variable(0)

        def train_step(self, data):
            self.steps.assign_add(1)
            return {"steps": self.steps}

    model = Counter()
    model.compile()
    model.fit(training_batches(sequences, batch_size=2, length=4, seed=1), epochs=3, verbose=0)
    assert int(model.steps) == 3 * steps_per_epoch(sequences, 2, 4)
