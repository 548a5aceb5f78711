from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stand_ins import training_data

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import Field, Schema
from tfllmrec.errors import ModelError
from tfllmrec.evaluation.protocol import evaluate, selection_value
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.models.baselines import (
    BASELINES,
    Ease,
    ItemKNN,
    Markov,
    Popularity,
    RecentPopularity,
    SegmentPopularity,
    Star,
    TextSimilarity,
    candidates,
    fit_baseline,
    select,
)
from tfllmrec.models.fitting import SAMPLE

SHARED = Path(__file__).parents[3] / "shared" / "data"


def ragged(*rows):
    return Ragged.from_rows(rows, np.int64)


def ask(*histories):
    return Queries.from_histories(histories)


@pytest.fixture(scope="module")
def checkerboard():
    """Users of even number like even items, of odd number odd ones; each has had 8 of their 20; text says which."""
    rng = np.random.default_rng(0)
    likes = [rng.choice(20, size=10, replace=False) * 2 + user % 2 for user in range(120)]
    text = np.where(np.arange(40)[:, None] % 2 == 0, [1.0, 0, 0.3], [0, 1.0, 0.3]) + rng.normal(0, 0.05, (40, 3))
    train = ragged(*(items[:8] for items in likes))
    validation = Queries.from_histories([items[:8] for items in likes], targets=[items[8:9] for items in likes])
    test = Queries.from_histories([items[:9] for items in likes], targets=[items[9:] for items in likes])
    return train, 40, validation, test, text


def test_popularity_counts_training_events():
    model = Popularity().fit(training_data(ragged([0, 2], [2], [2, 1]), 4))
    assert model.score(ask([0], [])).tolist() == [[1, 1, 3, 0]] * 2


def test_recent_popularity_fades_with_the_share_of_events_that_are_newer():
    # By time: 2, 0, 1, 2; 0, 1, 2 and 3 quarters of the events are newer than these, from the last one on.
    histories, times = ragged([0, 2], [2, 1]), [20.0, 40.0, 10.0, 30.0]
    model = RecentPopularity(half_life=0.25).fit(training_data(histories, 4, times=times))
    expected = [2**-2, 2**-1, 2**0 + 2**-3, 0]
    np.testing.assert_allclose(model.score(ask([0], [])), [expected] * 2)
    # Without times an order says what is newer among the events of a user: half of them, or none.
    model = RecentPopularity(half_life=0.25).fit(training_data(histories, 4))
    np.testing.assert_allclose(model.score(ask([])), [[2**-2, 2**0, 2**0 + 2**-2, 0]])
    with pytest.raises(ModelError, match="events with times or an order"):
        RecentPopularity().fit(training_data(histories, 4, ordered=False))


def test_the_half_life_is_chosen_on_validation():
    # Item 0 was popular for long, item 1 is popular now.
    histories = ragged(*([0] for _ in range(90)), *([1] for _ in range(10)))
    for target, half_life in ((1, 0.01), (0, 0.3)):
        validation = Queries.from_histories([[2]] * 5, targets=[[target]] * 5)
        data = training_data(histories, 3, validation, times=np.arange(100.0))
        assert fit_baseline(data, "recent_popularity").model.half_life == half_life


def test_markov_by_hand():
    # After 0 came 1 twice and 2 once; popularity of 0..3 is 3, 2, 2, 0 of 7.
    model = Markov(smoothing=2.0).fit(training_data(ragged([0, 1], [0, 1], [0, 2]), 4))
    model.shares[:] = [3 / 7, 2 / 7, 2 / 7, 0]
    after_0 = [(0 + 2 * 3 / 7) / 5, (2 + 2 * 2 / 7) / 5, (1 + 2 * 2 / 7) / 5, 0]
    popularity = [3 / 7, 2 / 7, 2 / 7, 0]
    scores = model.score(ask([2, 0], [0, 3], [2], []))  # only the last item counts; 3, 2 and nothing lead nowhere
    assert scores == pytest.approx(np.array([after_0, popularity, popularity, popularity]))
    assert scores.dtype == np.float32


def test_markov_takes_shares_from_training_events():
    assert Markov().fit(training_data(ragged([0, 1], [0]), 3)).shares == pytest.approx([2 / 3, 1 / 3, 0])


def test_markov_does_not_step_from_one_user_to_the_next():
    model = Markov().fit(training_data(ragged([0], [1], [], [2]), 3))
    assert model.successions.nnz == 0


def test_item_knn_by_hand():
    # n_0 = 3, n_1 = 2, n_2 = 1; both: 01 two users, 02 one, 12 one.
    model = ItemKNN(shrinkage=1.0, neighbours=4, decay=0.5).fit(training_data(ragged([0, 1], [0, 1, 2], [0]), 4))
    s01, s02, s12 = 2 / (np.sqrt(3 * 2) + 1), 1 / (np.sqrt(3 * 1) + 1), 1 / (np.sqrt(2 * 1) + 1)
    expected = [[s01, 0, s12, 0], [0.5 * s01 + s02, 0.5 * 0 + s12, 0.5 * s12, 0], [0, 0, 0, 0]]
    assert model.score(ask([1], [1, 2], [])) == pytest.approx(np.array(expected))


def test_item_knn_keeps_the_nearest():
    model = ItemKNN(shrinkage=0.0, neighbours=1).fit(training_data(ragged([0, 1], [0, 1, 2], [0]), 3))
    assert model.score(ask([0])) == pytest.approx(np.array([[0, 2 / np.sqrt(3 * 2), 0]]))


def test_ease_by_hand():
    model = Ease(l2=1.0, decay=0.5).fit(training_data(ragged([0, 1], [1, 0], [0]), 2))
    assert model.score(ask([0, 1])) == pytest.approx(np.array([[1.0 * 2 / (2 + 1), 0.5 * 2 / (3 + 1)]]))


def test_text_similarity_is_the_cosine_with_the_faded_mean():
    vectors = np.array([[2.0, 1], [1, 2], [0, 1], [1, 0], [0, 0]])  # mean of those with text: 1, 1
    model = TextSimilarity(decay=0.5).fit(training_data(ragged(), 5, text=vectors))
    unit = np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [0, 0]])
    profile = (0.5 * unit[0] + unit[1]) / np.sqrt(0.5**2 + 1)
    scores = model.score(ask([0, 1], [4], []))
    assert scores == pytest.approx(np.array([unit @ profile, np.zeros(5), np.zeros(5)]))
    assert scores.dtype == np.float32


def test_star_by_hand():
    # n_0 = 3, n_1 = 2, n_2 = 1; both: 01 two users, 02 one, 12 one. Item 3 is cold, item 4 has no text and no user.
    vectors = np.array([[2.0, 1], [1, 2], [0, 1], [1, 0], [0, 0]])  # mean of those with text: 1, 1
    unit = np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [0, 0]])
    data = training_data(ragged([0, 1], [0, 1, 2], [0]), 5, text=vectors)
    model = Star(text_share=0.25, history_length=2, decay=0.5).fit(data)
    r01, r02, r12 = 2 / np.sqrt(3 * 2), 1 / np.sqrt(3 * 1), 1 / np.sqrt(2 * 1)
    users = np.array([[1, r01, r02, 0, 0], [r01, 1, r12, 0, 0], [r02, r12, 1, 0, 0]])
    both = 0.25 * unit[:3] @ unit.T + 0.75 * users
    scores = model.score(ask([0, 1, 2], [1], [4], []))  # of three events, the two newest
    assert scores == pytest.approx(np.array([0.5 * both[1] + both[2], both[1], np.zeros(5), np.zeros(5)]))


def test_star_is_the_formula_of_the_paper(checkerboard):
    train, n_items, _, test, text = checkerboard
    model = Star().fit(training_data(train, n_items, text=text))
    columns = np.zeros((len(train), n_items))
    for user, items in enumerate(train):
        columns[user, items] = 1
    centred = text - text.mean(axis=0)

    def cosine(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))

    scores = model.score(test)
    for user, history in enumerate(test.history):
        newest = history[::-1][:3]
        expected = [
            sum(
                0.7**t * (0.5 * cosine(centred[s], centred[x]) + 0.5 * cosine(columns[:, s], columns[:, x]))
                for t, s in enumerate(newest, start=1)
            )
            / len(newest)
            for x in range(n_items)
        ]
        np.testing.assert_allclose(scores[user] * 0.7 / len(newest), expected, atol=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_keeps_the_contract(name, checkerboard):
    train, n_items, _, _, text = checkerboard
    before = train.values.copy()
    model = BASELINES[name]().fit(
        training_data(train, n_items + 1, text=np.vstack([text, np.zeros(3)]))  # one cold item without text
    )
    assert isinstance(model, Recommender)
    scores = model.score(ask([0, 2], [], [n_items]))
    assert scores.shape == (3, n_items + 1)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert np.array_equal(train.values, before)
    assert model.score(ask()).shape == (0, n_items + 1)


@pytest.mark.parametrize("name", BASELINES)
def test_planted_checkerboard(name, checkerboard):
    train, n_items, validation, test, text = checkerboard
    model = fit_baseline(training_data(train, n_items, validation, text), name).model
    result = evaluate(model, test, train_counts=np.ones(n_items, np.int64), strata={}, ks=[11], bootstrap=0)
    # Nine of the twenty liked items are known, so a list of eleven can hold all the others and nothing else.
    if name in ("popularity", "recent_popularity", "popularity_by_segment"):
        assert result.metrics["recall@11"] < 0.5  # does not know who asks: about 11 of the 31 left
    elif name == "markov":
        assert result.metrics["recall@11"] > 0.5  # sees one item only, and few successions of it
    elif name == "ials":
        assert result.metrics["recall@11"] > 0.9  # with more dimensions than items it also fits the noise
    else:
        assert result.metrics["recall@11"] == 1.0


def test_candidates_share_a_fit_where_only_scoring_differs(checkerboard):
    train, n_items, _, _, _ = checkerboard
    points = list(candidates(Ease, training_data(train, n_items)))
    assert {(p.l2, p.decay) for p in points} == {
        (l2, decay) for l2 in Ease.fit_grid["l2"] for decay in Ease.score_grid["decay"]
    }
    assert len({id(p.weights) for p in points}) == len(Ease.fit_grid["l2"])


class Likes:
    def __init__(self, item):
        self.item, self.seen = item, []

    def score(self, queries):
        self.seen += queries.user_ids.tolist()
        return np.tile(np.eye(3, dtype=np.float32)[self.item], (len(queries), 1))


def among_three(validation, strata=None):
    return training_data(ragged(), 3, validation, strata=strata)


def test_select_takes_the_best_on_validation_and_the_first_of_equals():
    validation = Queries.from_histories([[]] * 3, targets=[[1], [], [2]], user_ids=["a", "b", "c"])
    models = [Likes(0), Likes(1), Likes(2)]
    assert select(models, among_three(validation))[0] is models[1]
    assert models[0].seen == ["a", "b", "c"]
    assert select([Likes(0)], among_three(validation))[0].item == 0


def test_tail_targets_count_twice_in_select():
    # Item 0 three times, item 1 twice: 3/5 against 2/5 of the targets; counted twice, 3/7 against 4/7.
    validation = Queries.from_histories([[]] * 5, targets=[[0], [0], [0], [1], [1]])
    head, tail = Likes(0), Likes(1)
    assert select([head, tail], among_three(validation))[0] is head
    assert select([head, tail], among_three(validation, {"tail": np.array([False, True, True])}))[0] is tail


def test_select_looks_at_the_whole_sample():
    many = 7000
    validation = Queries.from_histories([[]] * many, targets=[[1]] * many, user_ids=[str(i) for i in range(many)])
    model, data = Likes(0), among_three(validation)
    select([model], data)
    assert model.seen == list(data.sample.user_ids) and len(model.seen) == SAMPLE


def test_select_needs_something_to_select_by():
    with pytest.raises(ModelError, match="with targets"):
        select([Likes(0)], among_three(ask([0])))
    with pytest.raises(ModelError, match="at least one candidate"):
        select([], among_three(Queries.from_histories([[]], targets=[[0]])))


def test_ease_text_is_the_plain_sum_of_the_two_as_they_were_chosen(checkerboard):
    train, n_items, validation, test, text = checkerboard
    data = training_data(train, n_items, validation, text)
    ease, similar, total = (fit_baseline(data, name).model for name in ("ease", "text", "ease_text"))
    assert total.ease is ease and total.text is similar
    expected = ease.score(test) + total.text_weight * similar.score(test)
    np.testing.assert_allclose(total.score(test), expected, rtol=1e-6)
    alone = fit_baseline(training_data(train, n_items, validation, text), "ease_text").model
    assert (alone.ease.l2, alone.ease.decay, alone.text.decay) == (
        total.ease.l2, total.ease.decay, total.text.decay
    )  # fmt: skip


def test_a_baseline_is_fitted_once_for_the_same_data(checkerboard):
    train, n_items, validation, _, text = checkerboard
    data = training_data(train, n_items, validation, text)
    fitted = fit_baseline(data, "markov")
    assert fit_baseline(data, "markov") is fitted
    assert fitted.options == {"smoothing": fitted.model.smoothing}
    assert fitted.figures == {"selection": selection_value(data.measure(fitted.model))}
    assert fit_baseline(replace(data, seed=1), "markov").model is not fitted.model


def test_an_unknown_baseline_is_refused(checkerboard):
    train, n_items, validation, _, _ = checkerboard
    with pytest.raises(ModelError, match="'two_tower'"):
        fit_baseline(training_data(train, n_items, validation), "two_tower")


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the shared data sets are not beside this checkout")
def test_popularity_on_movielens_1m_is_the_published_figure():
    events = pd.read_csv(SHARED / "movielens-1m" / "interactions.tsv.gz", sep="\t").dropna(subset=["order_in_user"])
    events["item"] = events["item"].astype("category").cat.codes.astype(np.int64)
    people = [g.to_numpy() for _, g in events.sort_values(["user", "order_in_user"]).groupby("user")["item"]]
    train = ragged(*(items[:-2] for items in people))
    test = Queries.from_histories([items[:-1] for items in people], targets=[items[-1:] for items in people])
    n_items = int(events["item"].max()) + 1
    model = Popularity().fit(training_data(train, n_items))
    result = evaluate(model, test, train_counts=model.counts.astype(np.int64), strata={}, bootstrap=0)
    assert result.metrics["recall@10"] == pytest.approx(0.0369, abs=0.0001)
    assert result.metrics["ndcg@10"] == pytest.approx(0.0180, abs=0.0001)


def test_popularity_by_segment_is_naive_bayes_over_the_fields_of_queries():
    fields = (
        Field("device", "request", "category", vocabulary=("phone", "tv")),
        Field("age", "user", "number", edges=(0.0, 30.0, 60.0)),
        Field("name", "user", "id"),
    )
    histories = ragged([0, 0, 0, 2], [1, 1, 2])
    known = {
        "event.device": Ragged(np.array([2, 2, 3, 2, 3, 3, 0], np.int32), histories.offsets),
        "user.age": np.array([20.0, 40.0], np.float32),
    }
    data = training_data(histories, 3, fields=known, schema=Schema(fields))
    model = SegmentPopularity(smoothing=2.0).fit(data)
    share = (np.array([3, 2, 2]) + 1e-3) / (7 + 3e-3)
    # On phones 0 twice and 2 once; on televisions 0 once and 1 twice; the young had 0 three times and 2 once.
    phone, young = np.array([2, 0, 1]), np.array([3, 0, 1])
    asked = Queries.from_histories(
        [[], [1], []],
        fields={"request.device": np.array([2, 1, 0], np.int32), "user.age": np.array([25, 25, np.nan], np.float32)},
    )
    by_age = np.log(share) + np.log((young + 2 * share) / (2 * share))
    expected = [by_age + np.log((phone + 2 * share) / (2 * share)), by_age, np.log(share)]
    np.testing.assert_allclose(model.score(asked), expected, rtol=1e-5)
    np.testing.assert_allclose(model.score(ask([])), [np.log(share)], rtol=1e-5)
