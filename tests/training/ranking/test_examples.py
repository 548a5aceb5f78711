from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from liked_kinds import CONFIG, EACH, GROUPS, N, by_device, data_of, events, randomly_split, split_of, untrained, walks

import tfllmrec.training.ranking.examples as making
import tfllmrec.training.ranking.fit as fitting
from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.models.ranking import RankingModel, RatingScale
from tfllmrec.models.rating_factors import fit_rating_factors
from tfllmrec.training.ranking.examples import batches, lists_of, rated_events, ratings_of_targets, target_ratings
from tfllmrec.training.ranking.fit import fit_ranking

pytestmark = pytest.mark.tf


def test_lists_are_the_best_the_target_and_some_others(planted, whole_hybrid, monkeypatch):
    hybrid = whole_hybrid
    monkeypatch.setattr(making, "DRAWN", 6)
    model = RankingModel(hybrid, CONFIG, None)
    queries = planted.validation
    lists = lists_of(model, hybrid, queries, 10, seed=3)
    assert lists["items"].shape == (len(queries), 10 + 1 + 6)
    scores, found = hybrid.score(queries), 0
    for row in range(len(queries)):
        history, target = set(queries.history[row]), queries.targets[row][0]
        best = [i for i in np.argsort(-scores[row], kind="stable") if i not in history][:10]
        items = lists["items"][row]
        assert items[:10].tolist() == best
        assert items[lists["label"][row]] == target
        if target in best:
            found += 1
            assert items[10] == N
        else:
            assert items[10] == target and lists["label"][row] == 10
        drawn = set(items[11:])
        assert len(drawn) == 6 and not drawn & (history | set(best) | {target, N})
        others = N - len(history | set(best) | {target})
        expected = [0.0] * 10 + [np.log(others / 6)] * 7
        np.testing.assert_allclose(lists["log_times"][row], expected, atol=1e-5)
        assert lists["recent"][row][: len(queries.history[row])].tolist() == queries.history[row].tolist()
    assert 0 < found < len(queries)
    # Everything there is, where that is little: then each item stands for itself.
    monkeypatch.setattr(making, "DRAWN", 500)
    whole = lists_of(model, hybrid, queries.slice(0, 3), 500, seed=3)
    for row in range(3):
        assert sorted(i for i in whole["items"][row] if i < N) == sorted(set(range(N)) - set(queries.history[row]))
    assert not whole["log_times"].any()


def test_a_target_has_the_rating_of_its_own_event():
    generator = np.random.default_rng(4)
    frame = pd.DataFrame(
        {"user": np.repeat(["a", "b", "c"], 40), "item": [f"i{i:02}" for i in generator.integers(5, size=120)],
         "rating": np.arange(120) + 1.0, "timestamp": np.tile(np.arange(40), 3)}
    )  # fmt: skip
    split = randomly_split(frame, "all", validation_share=0.3, test_share=0.3)
    given = {user: set(rows.rating) for user, rows in split.dataset.events.groupby("user_id")}
    item_of = split.dataset.events.set_index("rating").item_index
    validation, test = (
        ratings_of_targets(events, queries)
        for events, queries in ((split.validation_events, split.validation), (split.test_events, split.test))
    )
    for row, user in enumerate(split.test.user_ids):  # who knows all other events
        own = test[split.test.targets.row_of_value == row]
        assert sorted([*own, *split.test.ratings[row]]) == sorted(given[user])
        trained, validated = split.validation.ratings[row], validation[split.validation.targets.row_of_value == row]
        assert sorted([*trained, *validated]) == sorted(split.test.ratings[row])
    np.testing.assert_array_equal(item_of.loc[test], split.test.targets.values)
    np.testing.assert_array_equal(item_of.loc[validation], split.validation.targets.values)
    # In another order of the queries, each still has its own.
    turned = split.test.take(np.array([2, 0]))
    assert ratings_of_targets(split.test_events, turned).tolist() == [
        *test[split.test.targets.row_of_value == 2], *test[split.test.targets.row_of_value == 0]
    ]  # fmt: skip


def test_a_large_catalogue_has_fewer_lists_and_rated_events(planted, hybrid, monkeypatch):
    monkeypatch.setattr(making, "SCORED", 7 * N + 1)
    model = RankingModel(hybrid, CONFIG, scale := RatingScale.of_split(planted))
    assert len(rated_events(model, hybrid, planted, scale, 3)[0]["rating"]) == 7
    monkeypatch.setattr(fitting, "lists_of", lambda model, hybrid, queries, *_: pytest.fail(f"{len(queries)} lists"))
    with pytest.raises(pytest.fail.Exception, match=r"^7 lists"):
        fit_ranking(data_of(planted), CONFIG, hybrid)


def test_progress_is_told_while_lists_and_rated_events_are_scored(monkeypatch):
    said = []

    @contextmanager
    def told(label, unit):
        yield lambda done, total: said.append((label, done, total, unit))

    monkeypatch.setattr(making, "show_progress", told)
    assert list(making._starts("Scoring", "lists", 5, 2)) == [0, 2, 4]
    assert said == [("Scoring", 2, 5, "lists"), ("Scoring", 4, 5, "lists"), ("Scoring", 5, 5, "lists")]


def test_rated_events_are_what_a_request_after_them_would_be(planted, whole_hybrid, monkeypatch):
    hybrid = whole_hybrid
    scale = RatingScale.of_split(planted)
    model = RankingModel(hybrid, CONFIG, scale)
    monkeypatch.setattr(making, "RATERS", 30)
    examples, raters = rated_events(model, hybrid, planted, scale, seed=3)
    assert len(examples["rating"]) == len(raters) == 30 * 5  # six training events; the first has nothing before it
    histories = {
        tuple(row[: t + 1]): (row[t + 1], marks[: t + 1], marks[t + 1])
        for row, marks in zip(*(lambda q: (q.history, q.ratings))(planted.train_queries()), strict=True)
        for t in range(5)
    }
    histories_of = dict(zip(planted.train_queries().user_ids, planted.train_queries().history, strict=True))
    for recent, user in zip(examples["recent"], raters, strict=True):
        past = [i for i in recent if i < N]
        assert past == histories_of[user][: len(past)].tolist()
    pasts = [tuple(i for i in recent if i < N) for recent in examples["recent"]]
    assert sorted({len(past) for past in pasts}) == [1, 2, 3, 4, 5]
    for row, past in enumerate(pasts):
        if len(past) < 4 or row % 5:  # others begin alike
            continue
        target, marks, rating = histories[past]
        assert (examples["items"][row, 0], examples["rating"][row]) == (target, rating)
        given = model.given(
            model.item_vectors,
            {"history": tf.constant([past], tf.int32), RATING_KEY: tf.constant([marks])},
            tf.constant([[target]], tf.int32),
        )
        for name in ("terms", "scores"):
            np.testing.assert_allclose(examples[name][row], given[name][0], atol=1e-4)
        np.testing.assert_allclose(examples["marks"][row][: len(past)], given["marks"][0][: len(past)], atol=1e-5)
        # What the event itself says of its item is left out.
        n, bias = scale.item_counts[target], float(scale.item_bias[target])
        without = (bias * (10 + n) - (rating - scale.mean)) / (10 + n - 1)
        assert examples["prior"][row, 0] == pytest.approx(float(given["prior"][0, 0]) - bias + without, abs=1e-4)


def test_only_users_with_rated_events_are_learnt_from(planted, hybrid):
    scale, everybody = RatingScale.of_split(planted), planted.train_queries()
    model = RankingModel(hybrid, CONFIG, scale)
    among = np.zeros(len(everybody), bool)
    assert (examples := rated_events(model, hybrid, planted, scale, 3, among=among))[0] is None
    assert len(examples[1]) == 0
    among[[2, 5]] = True
    examples, raters = rated_events(model, hybrid, planted, scale, 3, among=among)
    assert len(examples["rating"]) == 2 * 5 and set(raters) == set(everybody.user_ids[among])


def test_rated_events_have_the_request_of_their_own():
    frame = by_device().assign(rating=lambda events: 1 + events.index % 5)
    split = split_of(frame)
    hybrid = untrained(split, ["meaning", "behaviour"], split.dataset.schema)
    model = RankingModel(hybrid, CONFIG, scale := RatingScale.of_split(split))
    rated, _ = rated_events(model, hybrid, split, scale, 7)
    vectors = rated["request"].round(5)
    of_kind = [np.unique(vectors[rated["items"][:, 0] // EACH == kind], axis=0) for kind in range(GROUPS)]
    # The device of an event tells the kind of its item.
    assert len(np.unique(vectors, axis=0)) == sum(map(len, of_kind)) >= GROUPS


def test_rated_events_are_rated_by_factors_that_do_not_know_them(monkeypatch):
    split = split_of(walks(lambda likes, groups: np.where(likes[groups], 5, 1), people=600))
    hybrid, scale = untrained(split), RatingScale.of_split(split)
    monkeypatch.setattr(making, "RATERS", 30)
    train = split.train
    columns = (train[name].to_numpy() for name in ("user_index", "item_index", "rating"))
    factors = fit_rating_factors(*columns, N, rank=16)
    model = RankingModel(hybrid, CONFIG, scale, factors=factors)
    examples, raters = rated_events(model, hybrid, split, scale, 3, factors)
    everybody = split.train_queries()
    row_of = {user: row for row, user in enumerate(everybody.user_ids)}
    of_users = factors.users(everybody.history, everybody.ratings)
    changes = []
    for row in range(0, len(raters), 7):
        place = row_of[raters[row]]
        before = int((examples["recent"][row] < N).sum())
        past = everybody.history[place][:before], everybody.ratings[place][:before]
        told = factors.ratings(Queries.from_histories([past[0]], [past[1]]), examples["items"][row : row + 1])[0, 0]
        own = factors.without(of_users[[place]], examples["items"][row], examples["rating"][[row]])[0]
        if 1 < told < 5:  # where it is not clipped
            assert examples["prior"][row, 0] == pytest.approx(told - own, abs=3e-3)
            changes.append(abs(own))
    assert max(changes) > 0.02


def test_how_targets_were_rated(planted):
    assert target_ratings(planted.test_events, planted.test).tolist() == [5.0] * 260
    frame = events()
    frame.loc[frame.groupby("user").tail(1).index[:200], "rating"] = np.nan
    split = split_of(frame)
    ratings = target_ratings(split.test_events, split.test)
    assert np.isnan(ratings).sum() == 200 and set(ratings[~np.isnan(ratings)]) == {5.0}


def test_a_batch_is_a_function_of_the_seed_and_every_list_comes_once():
    def events_of(lengths):
        recent = np.where(np.arange(20) < np.asarray(lengths)[:, np.newaxis], 3, N)
        return {"recent": recent, "marks": np.where(recent < N, 0.5, np.nan)}

    lists = {"label": np.arange(370), **events_of(np.arange(370) % 20)}
    rated = {"rating": np.arange(300), **events_of(np.full(300, 4))}
    epoch = list(batches(lists, rated, 8, [1, 2], N))
    assert sorted(np.concatenate([b["lists"]["label"] for b in epoch])) == list(range(370))
    assert [len(b["rated"]["rating"]) for b in epoch] == [256] * 47
    assert np.bincount(np.concatenate([b["rated"]["rating"] for b in epoch])).tolist().count(0) == 0
    again, other = (list(batches(lists, rated, 8, seed, N)) for seed in ([1, 2], [1, 3]))
    assert [b["lists"]["label"].tolist() for b in again] == [b["lists"]["label"].tolist() for b in epoch]
    assert [b["lists"]["label"].tolist() for b in other] != [b["lists"]["label"].tolist() for b in epoch]
    assert all(set(b) == {"lists"} for b in batches(lists, None, 8, [1], N))
    # Like lengths together, and no column of padding alone.
    widths = [b["lists"]["recent"].shape[1] for b in epoch]
    longest = [(b["lists"]["label"] % 20).max() for b in epoch]
    assert widths == [b["lists"]["marks"].shape[1] for b in epoch] == np.maximum(longest, 1).tolist()
    assert np.mean(widths) < 12 and {b["rated"]["recent"].shape[1] for b in epoch} == {4}
