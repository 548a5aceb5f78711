import numpy as np
import pandas as pd
import pytest
from liked_kinds import CONFIG, N, events, randomly_split, untrained

import tfllmrec.training.ranking.measure as measure
from tfllmrec.config import DataConfig, SplitConfig
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.models.ranking import RankingModel, RatingScale, Reranked
from tfllmrec.training.ranking.examples import lists_of
from tfllmrec.training.ranking.held_out import HeldOut

pytestmark = pytest.mark.tf


def test_other_targets_of_a_query_are_not_wrong():
    split = randomly_split(events(people=60), validation_share=0.4, test_share=0.4)
    hybrid = untrained(split, ["meaning", "feedback", "behaviour"])
    model = RankingModel(hybrid, CONFIG, None)
    queries = split.validation.take(split.validation.targets.lengths > 1)
    assert len(queries) > 20
    lists, scores = lists_of(model, hybrid, queries, 30, seed=3), hybrid.score(queries)
    lists["weight"] = np.ones(len(queries), np.float32)
    found, better = 0, 0
    for row, targets in enumerate(queries.targets):
        items, others = lists["items"][row], set(targets[1:])
        assert items[lists["label"][row]] == targets[0] and not others & set(items)
        best = [i for i in np.argsort(-scores[row], kind="stable") if i not in queries.history[row]][:30]
        assert items[:30].tolist() == [N if i in others else i for i in best]
        found += len(others & set(best))
        better += targets[0] in best and bool(others & set(best[: best.index(targets[0])]))
    assert found and better
    # So the place of the first target is its place beside the items that did not come.
    held_out = HeldOut(model, lists, np.full(len(queries), np.nan), np.arange(len(queries)), CONFIG)
    held_out.begin(np.arange(len(queries)))
    for row, targets in enumerate(queries.targets):
        left = [i for i in np.argsort(-scores[row], kind="stable") if i not in {*queries.history[row], *targets[1:]}]
        place = left.index(targets[0])
        assert held_out.without[1, row] == pytest.approx(1 / np.log2(place + 2) if place < 10 else 0)
    # Nor are they candidates in the test figures.
    reranked, asked = Reranked(hybrid, model, N), split.test.take(split.test.targets.lengths > 1)
    even = measure._of_probabilities(reranked, asked)["log_loss_even"]
    there = N - asked.exclude.lengths - asked.targets.lengths + 1
    assert even == pytest.approx(np.log(there).mean())


def test_all_rated_targets_count():
    frame = events(people=40)
    frame.loc[frame.groupby("user").tail(1).index[:10], "rating"] = np.nan
    items = pd.DataFrame({"item": [f"i{i:02}" for i in range(N)], "title": "x"})
    config = SplitConfig(kind="random", test_share=0.4)
    split = make_split(dataset_from_frames(frame, items, config=DataConfig(name="made")), config, seed=0)
    hybrid = untrained(split)
    reranked = Reranked(hybrid, RankingModel(hybrid, CONFIG, RatingScale.of_split(split)), 5)
    found = measure._of_ratings(reranked, split, split.test)
    given = dict(zip(zip(frame.user, frame.item, strict=True), frame.rating, strict=True))
    ids = split.dataset.items.item_id
    errors, missing = [], 0
    for query, (user, targets) in enumerate(zip(split.test.user_ids, split.test.targets, strict=True)):
        told = RatingScale.of_split(split).ratings(split.test.take(np.array([query])), targets[np.newaxis])[0]
        for item, rating in zip(targets, told, strict=True):
            truth = given[user, ids[item]]
            errors += [] if np.isnan(truth) else [(rating - truth) ** 2]
            missing += np.isnan(truth)
    assert found["rated"] == len(errors) == len(split.test.targets.values) - missing and missing > 0
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(errors)), abs=1e-4)
    assert found["rmse_biases"] == pytest.approx(np.sqrt(np.mean(errors)), abs=1e-4)
