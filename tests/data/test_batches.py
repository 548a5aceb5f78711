from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.data.batches import (
    Sequences,
    epoch_windows,
    hold_out,
    n_windows,
    steps_per_epoch,
    training_batches,
    windows,
)
from tfllmrec.data.queries import Ragged
from tfllmrec.data.schema import RATING_KEY, padding_of

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


def epoch_batches(sequences, batch_size, length, seed, epoch):
    """The batches of an epoch, row by row in numpy."""
    for cuts in epoch_windows(sequences.items.lengths, batch_size, length, seed, epoch):
        width = max(end - first for _, first, end in cuts) - 1
        batch = {
            "history": np.full((len(cuts), width), sequences.n_items, np.int32),
            "targets": np.full((len(cuts), width), sequences.n_items, np.int32),
            "held_out": np.zeros((len(cuts), width), bool),
        }
        for key in sequences.keys:
            values = sequences.values_of(key)
            shape = (len(cuts),) if key.startswith("user.") else (len(cuts), width)
            batch[key] = np.full((*shape, *values.shape[1:]), padding_of(values.dtype), values.dtype)
        for row, (user, first, end) in enumerate(cuts):
            n, begin = end - first - 1, sequences.items.offsets[user] + first
            now, then = slice(begin, begin + n), slice(begin + 1, begin + n + 1)
            batch["history"][row, :n] = sequences.items.values[now]
            batch["targets"][row, :n] = sequences.items.values[then]
            batch["held_out"][row, :n] = sequences.held_out.values[then]
            for key in sequences.keys:
                values = sequences.values_of(key)
                if key.startswith("user."):
                    batch[key][row] = values[user]
                else:
                    batch[key][row, :n] = values[then if key.startswith("request.") else now]
        yield batch


def same(made, expected):
    assert set(made) == set(expected)
    for key, values in expected.items():
        found = made[key].numpy()
        if values.dtype == object:
            found = np.vectorize(lambda v: v.decode(), otypes=[object])(found)
        assert found.dtype == values.dtype, key
        np.testing.assert_array_equal(found, values, key)


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


def test_rejections_are_no_targets_and_others_weigh_by_their_kind(sequences):
    values = np.resize(np.array([1.0, 0.5, -0.75, 0.0], np.float32), len(sequences.items.values))
    weighted = replace(sequences, weights=Ragged(values, sequences.items.offsets))
    plain = list(training_batches(sequences, 4, 8, seed=1, epochs=1).as_numpy_iterator())
    found = list(training_batches(weighted, 4, 8, seed=1, epochs=1).as_numpy_iterator())
    assert "target_weights" not in plain[0]
    weight_of = dict(zip(sequences.items.values.tolist(), values.tolist(), strict=True))  # each event has its own item
    for before, after in zip(plain, found, strict=True):
        there = before["targets"] < 1000
        expected = np.vectorize(lambda item: max(weight_of.get(item, 0.0), 0.0))(before["targets"])
        np.testing.assert_array_equal(after["target_weights"], np.where(there, expected, 0))
        np.testing.assert_array_equal(after["targets"], np.where(expected > 0, before["targets"], 1000))
    chosen = weighted.choices(held_out=True)
    assert chosen.values.tolist() == sequences.items.values[values > 0].tolist()
    assert (chosen.lengths == [int((w > 0).sum()) for w in weighted.weights]).all()


def test_without_held_out(sequences):
    kept = sequences.choices(held_out=False)
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


@pytest.fixture
def with_fields(sequences):
    """Beside ratings: a vector and a text of each event, a code of each request, and a number of each user."""
    n = len(sequences.items.values)
    events = {
        "look": RNG.normal(size=(n, 3)).astype(np.float32),
        "note": np.array([f"note {i}" for i in range(n)], object),
        "device": RNG.integers(1, 4, n).astype(np.int32),
    }
    fields = {f"event.{name}": Ragged(values, sequences.items.offsets) for name, values in events.items()}
    users = {"user.age": RNG.normal(size=len(LENGTHS)).astype(np.float32)}
    return replace(sequences, fields={**sequences.fields, **fields, **users}, requests=["device"])


def test_batches_of_all_epochs_are_gathered_in_the_graph(with_fields):
    batches = training_batches(with_fields, 4, 8, seed=1, epochs=3)
    steps = steps_per_epoch(with_fields, 4, 8)
    assert len(batches) == 3 * steps
    expected = [batch for epoch in range(3) for batch in epoch_batches(with_fields, 4, 8, 1, epoch)]
    assert {"request.device", "event.device", "event.note", "user.age"} < set(expected[0])
    for made, batch in zip(batches, expected, strict=True):
        same(made, batch)


def test_a_fit_that_goes_on_gets_the_batches_that_are_left(with_fields):
    steps = steps_per_epoch(with_fields, 4, 8)
    whole = list(training_batches(with_fields, 4, 8, seed=1, epochs=9))
    rest = list(training_batches(with_fields, 4, 8, seed=1, epochs=9, first_epoch=7))
    assert len(rest) == 2 * steps
    for made, expected in zip(rest, whole[7 * steps :], strict=True):
        same(made, {key: value.numpy() for key, value in expected.items()} | {"event.note": texts_of(expected)})
    assert len(training_batches(with_fields, 4, 8, seed=1, epochs=9, first_epoch=9)) == 0


def texts_of(batch):
    return np.vectorize(lambda v: v.decode(), otypes=[object])(batch["event.note"].numpy())


def test_only_what_the_model_reads_is_gathered(with_fields):
    batch = next(iter(training_batches(with_fields, 4, 8, seed=1, epochs=1, keys=["user.age"])))
    assert set(batch) == {"history", "targets", "held_out", "user.age"}


def test_shards_are_the_batches_of_one_process(with_fields):
    batches = training_batches(with_fields, 4, 8, seed=1, epochs=2)
    whole = [b["history"].numpy().tolist() for b in batches]
    parts = [[b["history"].numpy().tolist() for b in batches.shard(2, i)] for i in range(2)]
    assert [parts[i % 2][i // 2] for i in range(len(whole))] == whole


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
    batches = training_batches(sequences, batch_size=2, length=4, seed=1, epochs=3)
    model.fit(batches, epochs=3, steps_per_epoch=len(batches) // 3, verbose=0)
    assert int(model.steps) == 3 * steps_per_epoch(sequences, 2, 4)


def test_some_users_of_sequences(sequences):
    named = replace(
        sequences, fields={**sequences.fields, "user.age": np.arange(len(LENGTHS))}, weights=sequences.items
    )
    some = named.take(np.array([7, 4]))
    assert [row.tolist() for row in some.items] == [named.items[7].tolist(), named.items[4].tolist()]
    assert np.array_equal(some.held_out[1], named.held_out[4]) and np.array_equal(some.weights[0], named.items[7])
    assert some.values_of("user.age").tolist() == [7, 4] and some.values_of(RATING_KEY)[0] == named.items[7][0] / 10
