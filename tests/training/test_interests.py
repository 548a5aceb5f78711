"""The forecast of labels, on planted histories whose next label is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.errors import ModelError
from tfllmrec.models.interests import Interests
from tfllmrec.training import interests
from tfllmrec.training.interests import (
    HeadStart,
    fit_forecast,
    label_figures,
    listed,
    mixture_of,
    prepared_forecast,
    targets_of,
)

pytestmark = [pytest.mark.tf, pytest.mark.slow]
C, EACH = 8, 6
N = C * EACH  # item i has the label i // EACH


class Knows:
    """A model that recommends items of the label ``step`` after the newest one, or the same items to everybody."""

    def __init__(self, step=None):
        self.n_items, self.step, self.learned = N, step, [np.float32([step or 0])]

    def score(self, queries):
        if self.step is None:
            return np.tile(np.linspace(1, 0, N, dtype=np.float32), (len(queries), 1))
        newest = queries.history.values[queries.history.offsets[1:] - 1] // EACH
        return 6.0 * (np.arange(N) // EACH == (newest[:, np.newaxis] + self.step) % C).astype(np.float32)


@pytest.fixture(scope="module")
def planted():
    """Labels follow each other on a ring, so the next label is never the one that the history has most of."""
    rng = np.random.default_rng(5)

    def walk(length):
        first = rng.integers(C)
        return [((first + step) % C) * EACH + rng.integers(EACH) for step in range(length)]

    walks = [walk(rng.integers(3, 7)) for _ in range(1200)]
    labels = np.array([f"label {c}" for c in range(C)], object)
    found = Interests(labels, np.ones(C, bool), np.arange(N)[:, np.newaxis] // EACH, np.ones((N, 1), np.float32))
    users = [f"u{number}" for number in range(1200)]
    train = Queries.from_histories([row[:-1] for row in walks[:900]], user_ids=users[:900])
    # Nothing is excluded: otherwise labels that users have had would have fewer items left.
    rows, targets, nothing = [row[:-1] for row in walks], [row[-1:] for row in walks], [[]] * len(walks)
    asked = Queries.from_histories(rows, targets=targets, exclude=nothing, user_ids=users)
    return found, train, asked.slice(900, 1050), asked.slice(1050, 1200)


def first_label(found, forecast, queries, hybrid):
    """How often the first label of a list is that of the next item."""
    items, scores = interests.recommended_items(hybrid, queries)
    lists = listed(found, forecast, queries, items, scores, 1)
    wanted = targets_of(found, queries).toarray()
    return float((wanted[np.arange(len(queries)), np.minimum(lists[:, 0], C - 1)] > 0).mean())


def test_the_head_learns_which_label_follows_which(planted, monkeypatch):
    found, train, validation, test = planted
    forecast, record = fit_forecast(found, train, validation, Knows(), 42)
    assert record.kept and record.epochs and record.mixture[1] > 0.9
    assert first_label(found, forecast, test, Knows()) > 0.9
    assert first_label(found, None, test, Knows()) == 0.0  # it is never one of the history
    # Without training the head knows how frequent labels are, and no more.
    monkeypatch.setattr(interests, "EPOCHS", 0)
    untrained, record = fit_forecast(found, train, validation, Knows(), 42)
    assert record.epochs == 0
    assert first_label(found, untrained, test, Knows()) < 0.3


def test_the_labels_of_recommended_items_count_as_far_as_they_are_right(planted, monkeypatch):
    found, train, validation, test = planted
    monkeypatch.setattr(interests, "EPOCHS", 0)
    forecast, record = fit_forecast(found, train, validation, Knows(1), 42)
    assert record.mixture[2] > 0.9 and first_label(found, forecast, test, Knows(1)) == 1.0
    _, record = fit_forecast(found, train, validation, Knows(3), 42)  # the wrong label
    assert record.mixture[2] < 0.1


def test_what_is_counted_stays_where_nothing_is_better(planted):
    """Users who stay with one label: there is nothing to learn beyond the history."""
    found, *_ = planted
    rng = np.random.default_rng(1)
    rows = [[c * EACH + rng.integers(EACH) for _ in range(4)] for c in rng.integers(C, size=200)]
    train = Queries.from_histories([row[:3] for row in rows])
    validation = Queries.from_histories([row[:3] for row in rows], targets=[row[3:] for row in rows])
    _, record = fit_forecast(found, train, validation, Knows(), 42)
    assert not record.kept
    assert record.line().startswith("left out: precision@5 ")


def test_an_updates_head_goes_on_from_the_one_of_its_parent(planted, monkeypatch):
    found, train, validation, test = planted
    earlier, _ = fit_forecast(found, train, validation, Knows(), 42)
    some = np.arange(len(train)) < 20

    def updated(forecast):
        return fit_forecast(found, train, validation, Knows(), 42, HeadStart(forecast, some))

    forecast, record = updated(earlier)
    assert record.kept and record.events == (train.history.lengths[some] - 1).sum()
    assert first_label(found, forecast, test, Knows()) > 0.9
    # So few events teach nothing to a head that knows nothing.
    nothing = np.zeros_like(earlier.slow)
    forecast, _ = updated(replace(earlier, slow=nothing, fast=nothing, out=nothing))
    assert first_label(found, forecast, test, Knows()) < 0.3


def test_labels_that_are_new_begin_with_their_frequency(planted):
    found, train, validation, _ = planted
    earlier, _ = fit_forecast(found, train.slice(0, 100), validation, Knows(), 42)
    labels = np.append(found.labels, "new")
    more = replace(
        found, labels=labels, named=np.ones(C + 1, bool), columns=np.where(found.columns == 2, C, found.columns)
    )
    profile = interests.profile_of(more)
    head = interests._first_head(more, profile, train, 42, earlier)
    counted = interests._first_head(more, profile, train, 42, None)
    assert np.array_equal(head.bias[:C], earlier.bias) and np.array_equal(head.out[:C], earlier.out)
    assert head.bias[C] == counted.bias[C] > counted.bias[2] and not np.any(head.slow[C])


def test_the_same_seed_gives_the_same_forecast(planted):
    found, train, validation, _ = planted
    one, other = (fit_forecast(found, train.slice(0, 200), validation, Knows(), 7)[0] for _ in range(2))
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("slow", "out", "bias", "mixture"))


def test_a_forecast_is_made_once_and_read_again(planted, tmp_path):
    found, train, validation, _ = planted
    folder, told = tmp_path / "interests", []
    assert interests.load_forecast(folder) is None
    few = validation.slice(0, interests.FEWEST - 1)
    assert prepared_forecast(folder, found, train, few, Knows(), 42, told.append) is None and not folder.exists()
    assert told[-1].endswith("only 29 validation queries have a target with labels; at least 30 are needed")
    made = prepared_forecast(folder, found, train, validation, Knows(), 42, told.append)
    assert told[-1].startswith("interests: kept: precision@5 ")
    told.clear()
    read = prepared_forecast(folder, found, train, validation, Knows(), 42, told.append)
    assert told == [] and np.array_equal(made.out, read.out) and read.labels.tolist() == found.labels.tolist()
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"kept": False}))
    assert interests.load_forecast(folder) is None
    with pytest.raises(ModelError, match="belongs to a run with other weights of the hybrid"):
        prepared_forecast(folder, found, train, validation, Knows(2), 42, told.append)
    with pytest.raises(ModelError, match="belongs to a run with other seed, training events"):
        prepared_forecast(folder, found, train.slice(0, 9), validation, Knows(), 1, told.append)
    (folder / "record.json").write_text("{}")
    with pytest.raises(ModelError, match=r"record\.json"):
        interests.load_forecast(folder)


def test_the_hybrid_is_asked_with_what_the_signature_knows(planted):
    """A model that reads the device: ``interests`` has none, so the record must not know it either."""
    validation = planted[2]

    class Reads(Knows):
        def score(self, queries):
            assert set(queries.fields) == {RATING_KEY} and queries.weights is None
            return super().score(queries)

    device = np.array(["phone"] * len(validation), object)
    kind = Ragged(np.zeros(len(validation.history.values), np.int32), validation.history.offsets)
    asked = replace(validation, fields={**validation.fields, "request.device": device, "event.kind": kind})
    interests.recommended_items(Reads(), asked)


def test_events_that_count_nothing_are_no_history(planted):
    found, *_ = planted
    asked = Queries.from_histories([[3, 9, 4], [7]], ratings=[[1, 2, 3], [4]], targets=[[1], [2]])
    asked = replace(asked, weights=Ragged(np.float32([1, -1, 0.5, 0]), asked.history.offsets))
    read = interests.chosen(asked)
    assert [row.tolist() for row in read.history] == [[3, 4], []]
    assert [row.tolist() for row in read.ratings] == [[1, 3], []]
    assert [row.tolist() for row in read.exclude] == [[3, 9, 4], [7]]
    lists = listed(found, None, asked, np.zeros((2, 0), np.int32), np.zeros((2, 0), np.float32), 2)
    assert lists.tolist() == [[0, C], [C, C]]  # item 9, of label 1, was rejected


def test_without_an_order_what_comes_before_an_event_is_no_matter_of_how_the_file_is_sorted(planted):
    found, *_ = planted
    train = Queries.from_histories([list(range(0, N, 2))] * 50)  # sorted by label
    for decay, ordered in ((1.0, False), (0.9, True)):
        events = interests._Events(train, interests.profile_of(replace(found, decay=decay)), 3)
        higher = [
            (history[history < N].max() < item)
            for histories, _, items in events.batches()
            for history, item in zip(histories, items, strict=True)
        ]
        assert all(higher) if ordered else np.mean(higher) < 0.4


def test_ratings_are_compared_with_those_of_the_whole_history(planted):
    found, *_ = planted
    profile = interests.profile_of(replace(found, decay=0.5, spread=1.0))
    train = Queries.from_histories([[0] * 30], ratings=[[1.0] * 20 + [5.0] * 10])
    assert profile.reach < 20
    histories, ratings, _ = next(interests._Events(train, profile, 0).batches())
    assert histories.shape[1] == 29 and np.nanmin(ratings) == 1.0


def test_learning_leaves_other_random_numbers_alone(planted):
    found, train, validation, _ = planted

    def drawn(learn):
        tf.random.set_seed(5)
        if learn:
            fit_forecast(found, train.slice(0, 50), validation, Knows(), 7)
        return tf.random.uniform([3]).numpy().tolist()

    assert drawn(False) == drawn(True)


def test_without_an_interval_nothing_is_kept(planted, monkeypatch):
    found, train, validation, _ = planted
    monkeypatch.setattr(interests, "mean_interval", lambda *_, **__: None)
    _, record = fit_forecast(found, train.slice(0, 50), validation, Knows(), 7)
    assert not record.kept and record.precision_interval == [] and "(no interval, 150 validation" in record.line()


def test_of_many_labels_few_rows_are_counted_together(planted, monkeypatch):
    """The tables of a batch are bounded, and the answer does not depend on it."""
    found, train, validation, _ = planted
    monkeypatch.setattr(interests, "EPOCHS", 0)
    _, once = fit_forecast(found, train, validation, Knows(1), 42)
    monkeypatch.setattr(interests, "CELLS_AT_ONCE", 40 * (C + 1))
    assert interests._batch(C) == 40 and interests._batch(10**9) == 1
    _, parts = fit_forecast(found, train, validation, Knows(1), 42)
    assert parts.mixture == pytest.approx(once.mixture, rel=1e-4) and parts.precision == once.precision


def test_figures_by_hand():
    """Label 0 is of 4 of 8 items, label 1 of 2, label 2 of 1."""
    columns = np.array([[0, 3], [0, 1], [0, 1], [0, 2], [3, 3], [3, 3], [3, 3], [3, 3]])
    found = Interests(np.array(list("abc"), object), np.ones(3, bool), columns, np.ones((8, 2)))
    wanted = sp.csr_array(np.array([[1.0, 1.0, 0.0], [0.0, 0.5, 0.0]]))
    figures = label_figures(found, np.array([[0, 2], [1, 3]]), wanted)
    assert figures.precision.tolist() == [1 / 2, 1 / 2] and figures.recall.tolist() == [1 / 2, 1.0]
    log = np.log
    assert figures.specific == pytest.approx([log(8 / 4) / (log(8 / 4) + log(8 / 2)), 1.0])


def test_the_likeliest_mixture_is_found():
    """Of four observations the first source alone explains three, the second one: three parts to one."""
    mixture, likelihood = mixture_of(np.array([[0.5, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.5]]), np.ones(4))
    assert mixture == pytest.approx([3 / 4, 1 / 4])
    assert likelihood == pytest.approx((3 * np.log(3 / 8) + np.log(1 / 8)) / 4)
    mixture, _ = mixture_of(np.array([[0.5, 0.5], [0.25, 0.25]]), np.array([1.0, 3.0]))
    assert mixture[0] > 0.99
