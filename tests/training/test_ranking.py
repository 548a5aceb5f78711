import json
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import tfllmrec.training.ranking as making
from tfllmrec.config import DataConfig, ModelConfig, RankingConfig, SplitConfig
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.errors import ModelError
from tfllmrec.evaluation.calibration import calibration_error
from tfllmrec.evaluation.protocol import evaluate
from tfllmrec.models.fitting import Fitted, TrainingData
from tfllmrec.models.hybrid import Catalogue, Hybrid
from tfllmrec.models.ranking import LEARNT_FROM, RankingModel, RatingScale, Reranked
from tfllmrec.models.rating_factors import fit_rating_factors
from tfllmrec.training.ranking import (
    RankingRecord,
    batches,
    fit_ranking,
    fitted_temperature,
    lists_of,
    load_ranking,
    measure_ranking,
    prepared_ranking,
    ranking_lines,
    rated_events,
    ratings_of_targets,
    settle_epochs,
    start_from_hybrid,
    target_ratings,
)

pytestmark = pytest.mark.tf
GROUPS, EACH = 5, 12
N = GROUPS * EACH
CONFIG = RankingConfig(epochs=8, candidates=30, history_length=8, batch_size=16, learning_rate=0.01, folds=2)


def events(rated=True, liked_first=None, people=260):
    """Everybody had items of two kinds, liked one of them, and goes on with that kind.

    Which one it is only the ratings say: without them, or with others, both kinds are alike.
    """
    generator = np.random.default_rng(0)
    rows = []
    for person in range(people):
        liked, disliked = generator.permutation(GROUPS)[:2]
        of_liked, of_disliked = (EACH * g + generator.permutation(EACH) for g in (liked, disliked))
        past = [(i, 5) for i in of_liked[:3]] + [(i, 1) for i in of_disliked[:3]]
        walk = [past[i] for i in generator.permutation(6)] + [(i, 5) for i in of_liked[3:5]]
        for step, (item, rating) in enumerate(walk):
            rows.append((f"u{person}", f"i{item:02}", rating, step))
    frame = pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])
    return frame if rated else frame.drop(columns="rating")


def split_of(frame):
    items = pd.DataFrame({"item": [f"i{i:02}" for i in range(N)], "title": "x"})
    return make_split(dataset_from_frames(frame, items, config=DataConfig(name="made")), SplitConfig(), seed=0)


def untrained(split, terms=("behaviour",)):
    """A hybrid that knows of behaviour alone, and of that nothing; the texts tell the kinds of items apart."""
    generator = np.random.default_rng(1)
    text = np.eye(GROUPS)[np.arange(N) // EACH] + generator.normal(0, 0.1, (N, GROUPS))
    config = ModelConfig(embedding_dim=8, blocks=0, heads=2, history_length=8, terms=list(terms))
    ids = split.dataset.items["item_id"].to_numpy(object)
    return Hybrid(Catalogue(ids, text.astype(np.float32)), split.train_counts, config)


def data_of(split, seed=7):
    """Training data without texts, which the ranking model does not look at."""
    return TrainingData(split, np.zeros((N, 1), np.float32), seed=seed)


@pytest.fixture(scope="module")
def planted():
    return split_of(events())


@pytest.fixture(scope="module")
def hybrid(planted):
    return untrained(planted)


@pytest.fixture(scope="module")
def whole_hybrid(planted):
    """One that has an order, whatever it is worth."""
    return untrained(planted, ["meaning", "feedback", "behaviour"])


@pytest.fixture(scope="module")
def fitted(planted, hybrid, tmp_path_factory):
    """(model, record, TensorBoard's folder)"""
    tf.keras.utils.set_random_seed(1)
    logs = tmp_path_factory.mktemp("logs")
    made = fit_ranking(data_of(planted), CONFIG, hybrid, logs)
    return made.model, RankingRecord(**made.figures), logs


def measured(split, recommender):
    return evaluate(recommender, split.test, train_counts=split.train_counts, strata=split.strata(), bootstrap=50)


# What it finds --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_finds_what_the_hybrids_order_misses(planted, hybrid, fitted):
    model, record, _ = fitted
    before, reranked = measured(planted, hybrid), Reranked(hybrid, model, N)
    after = measured(planted, reranked)
    # Nine items of the kind that is liked are left: the best that anybody can do is to take one of them.
    assert before.metrics["recall@10"] < 0.35
    assert after.metrics["recall@10"] > 0.8
    assert record.best_epoch > 0 and record.strengths[0] > 0
    assert record.click_loss < record.untrained[0] - 0.3
    assert record.selection[0] > record.selection[1] + 0.1 and record.selection_interval[0] > 0.1
    told = measure_ranking(reranked, planted, after, before, 3)
    assert told["reranked"] == after.metrics
    assert told["difference"]["ndcg@10"][1] > 0
    # About one of nine, or of fewer where the first candidates are taken.
    assert told["log_loss"] < np.log(N - 7) - 0.8 and told["auc"] > 0.85 > 0.7 > told["auc_hybrid"]
    assert 0.05 < told["accuracy"] < 0.35  # about one of nine
    assert told["log_loss_even"] == pytest.approx(np.log(N - 7))
    assert told["offered"] == told["rated"] == len(planted.test) == 260
    assert told["rmse"] < 0.5 < told["rmse_biases"]
    # What was measured in folds holds on other users: one of the candidates comes next, and ratings are 1 or 5. (Tail
    # items count twice, so their probabilities are a little high.)
    assert told["ece"] < 0.01 and record.ece[0] < 0.01 and told["rating_ece"] < 0.4 and record.rating_ece < 0.4
    assert record.log_loss[0] <= record.log_loss[1] and told["log_loss"] == pytest.approx(record.log_loss[0], abs=0.15)
    lines = ranking_lines(told, before.metrics)
    assert len(lines) == 3 and f"ndcg@10 {after.metrics['ndcg@10']:.4f} (hybrid" in lines[0]


@pytest.mark.slow
def test_an_update_goes_on_from_the_network_of_its_parent(planted, hybrid, fitted):
    model, record, _ = fitted
    new = np.arange(len(planted.validation)) % 2 == 0
    everybody = np.ones(len(planted.train_queries()), bool)

    def updated(weights, strengths):
        start = making.RankingStart(replace(record, strengths=strengths), weights, new, everybody, 0, 0.5)
        return fit_ranking(data_of(planted), CONFIG, hybrid, start=start)

    made = updated(making.weights_of(model, record.temperature), record.strengths)
    judged = RankingRecord(**made.figures)
    assert judged.held_out == judged.lists == new.sum() and judged.rated == 0  # nothing is trained
    assert judged.strengths[0] > 0 and judged.selection_interval[0] > 0.1
    assert measured(planted, Reranked(hybrid, made.model, N)).metrics["recall@10"] > 0.8
    # Without what the parent learnt there is nothing to reorder by.
    blank = RankingModel(hybrid, CONFIG, RatingScale.of_split(planted), 7)
    made = updated(making.weights_of(blank, 1.0), record.strengths)
    assert measured(planted, Reranked(hybrid, made.model, N)).metrics["recall@10"] < 0.35
    # What the parent left out is not tried again.
    made = updated([], [0.0, 0.0])
    judged = RankingRecord(**made.figures)
    assert judged.strengths == [0.0, 0.0] and judged.epochs == 0
    assert "the run before left it out, and it was not tried again" in judged.line()
    assert "with the head" not in judged.line()
    assert judged.left_out == (made.model is None) == (not judged.factors)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("users", ["a part", "one", "nobody"])
def test_an_update_trains_on_new_queries_and_on_ratings_of_some_users(planted, hybrid, monkeypatch, users):
    warned = []
    monkeypatch.setattr(tf.get_logger(), "warning", lambda text, *args, **_: warned.append(text % args))
    blank = RankingModel(hybrid, CONFIG, RatingScale.of_split(planted), 7)
    record = RankingRecord(
        lists=9, held_out=9, rated=50, epochs=1, best_epoch=1, weight=1.0, strengths=[1.0, 1.0], click_loss=3.0,
        rating_loss=1.0, untrained=[3.1, 1.1], seconds=1.0, selection=[0.2, 0.1], selection_interval=[0.05, 0.15],
    )  # fmt: skip
    new = np.arange(len(planted.validation)) % 2 == 0
    among = np.zeros(len(planted.train_queries()), bool)
    among[: {"a part": 100, "one": 1, "nobody": 0}[users]] = True
    start = making.RankingStart(record, making.weights_of(blank, 1.0), new, among, 1, 1.0)
    made = fit_ranking(data_of(planted), CONFIG.model_copy(update={"batch_size": 4}), hybrid, start=start)
    judged = RankingRecord(**made.figures)
    # The fold of a single user has no ratings of others, so that ratings are not learnt from.
    assert judged.rated == (100 * 5 if users == "a part" else 0)
    assert judged.lists == judged.held_out == new.sum()
    assert judged.epochs == judged.best_epoch == 2  # the parent's, and one of training
    assert judged.click_loss < judged.untrained[0] - 0.05 and judged.strengths[0] > 0

    def moved(head):
        before, after = (model.network.heads[head].get_weights() for model in (blank, made.model))
        return max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 0

    assert moved("click") and moved("rating") == (users == "a part")
    assert [text for text in warned if "Gradients do not exist" in text] == []


def test_an_update_without_heads_does_not_have_the_parents_figures_of_ratings(planted, hybrid):
    record = RankingRecord(
        lists=9, held_out=9, rated=50, epochs=6, best_epoch=2, weight=1.0, strengths=[0.0, 0.0], click_loss=3.0,
        rating_loss=1.0, untrained=[3.1, 1.1], seconds=1.0, selection=[0.2, 0.1], selection_interval=[-0.1, 0.15],
        rating_interval=[-0.2, 0.3], rating_ece=0.1, factors=[9, 9, 9], biases_loss=9.0,
    )  # fmt: skip
    all_of = np.ones(len(planted.validation), bool), np.ones(len(planted.train_queries()), bool)
    made = fit_ranking(data_of(planted), CONFIG, hybrid, start=making.RankingStart(record, [], *all_of, 1, 1.0))
    judged = RankingRecord(**made.figures)
    assert (judged.rating_ece, judged.rating_interval, judged.rated, judged.epochs) == (None, [], 0, 0)
    assert (
        judged.rating_loss == judged.untrained[1] < 1
        and judged.factors[0] == N
        and judged.selection == record.selection
    )


def test_the_strength_of_the_order_is_that_of_the_best_lists_and_tail_targets_count_twice(planted, hybrid):
    model = RankingModel(hybrid, CONFIG, None)
    asked = planted.validation.take(np.arange(40))
    lists = lists_of(model, hybrid, asked, CONFIG.candidates, 7)

    def verdict(tail):
        config, weight = CONFIG.model_copy(update={"epochs": 1}), np.where(tail, 2.0, 1.0)
        held_out = making.HeldOut(model, lists | {"weight": weight}, np.full(40, np.nan), np.arange(40), config)
        held_out.begin(np.arange(40))
        held_out.on_epoch_end(0)
        of_strengths = held_out.by_epoch[:, 1]  # of 0.25, 0.5, 0.75 and 1
        of_strengths[0] = np.array([4.0, 3.0, 2.0, 1.0])[:, np.newaxis]  # the best loss is at another strength
        of_strengths[1] = np.where(tail, *np.array([[0.3, 0.5, 0.4, 0.2], [0.2, 0.3, 0.5, 0.1]])[:, :, np.newaxis])
        held_out.without[1] = 0.1
        return held_out.verdict(1)

    few, most = verdict(np.arange(40) < 10), verdict(np.arange(40) < 28)
    assert (few.strengths[0], most.strengths[0]) == (0.75, 0.5)
    assert few.selection == pytest.approx([(20 * 0.4 + 30 * 0.5) / 50, 0.1])
    assert most.selection == pytest.approx([(56 * 0.5 + 12 * 0.3) / 68, 0.1]) and most.click_loss == 3
    assert few.selection_interval[0] > 0


def test_heads_of_a_parent_are_left_out_only_if_they_are_worse_beyond_chance(planted, hybrid):
    model = RankingModel(hybrid, CONFIG, None)
    asked = planted.validation.take(np.arange(40))
    lists = lists_of(model, hybrid, asked, CONFIG.candidates, 7) | {"weight": np.ones(40, np.float32)}
    undecided = np.where(np.arange(40) % 2, 0.1, -0.1)

    def strength(earlier, gain):
        config = CONFIG.model_copy(update={"epochs": 1})
        held_out = making.HeldOut(model, lists, np.full(40, np.nan), np.arange(40), config, earlier)
        for fold in (np.arange(0, 40, 2), np.arange(1, 40, 2)):
            held_out.begin(fold)
            held_out.on_epoch_end(0)
        held_out.by_epoch[0, 1] -= 0.1  # so that the epoch is taken
        held_out.by_epoch[1, 1] = held_out.without[1] + gain
        return held_out.verdict(1).strengths[0]

    better, worse = undecided + 0.2, undecided - 0.2
    assert [strength(None, gain) > 0 for gain in (better, undecided, worse)] == [True, False, False]
    assert [strength([0.5, 0.0], gain) > 0 for gain in (better, undecided, worse)] == [True, True, False]
    assert [strength([0.0, 0.5], gain) > 0 for gain in (better, undecided, worse)] == [False, False, False]


def walks(rate, people=200):
    """Nobody's next item has to do with anything; ``rate(likes, groups)`` says how a walk is rated."""
    generator = np.random.default_rng(0)
    rows = []
    for person in range(people):
        likes = generator.permutation(GROUPS) < GROUPS // 2
        walk = generator.choice(N, 8, replace=False)
        for step, (item, rating) in enumerate(zip(walk, rate(likes, walk // EACH), strict=True)):
            rows.append((f"u{person}", f"i{item:02}", rating, step))
    return pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])


@pytest.mark.slow
def test_where_nothing_is_to_be_found_the_model_is_left_out():
    generator = np.random.default_rng(5)
    split = split_of(walks(lambda likes, groups: generator.choice([1, 5], len(groups))))
    fitted = fit_ranking(data_of(split), CONFIG.model_copy(update={"epochs": 3}), untrained(split))
    record = RankingRecord(**fitted.figures)
    assert fitted.model is None and record.left_out and record.strengths == [0, 0]
    assert record.selection_interval[0] <= 0 and record.rating_interval[0] <= 0
    with_it, without = record.selection
    assert record.line().startswith(
        f"left out: selection value {with_it:.4f} against {without:.4f} without it on 200 held-out"
    )
    assert f"; rating RMSE {record.rating_loss**0.5:.4f} against {record.untrained[1] ** 0.5:.4f} by b" in record.line()


@pytest.mark.slow
@pytest.mark.long
def test_where_only_ratings_are_to_be_found_the_order_stays_the_hybrids():
    split = split_of(walks(lambda likes, groups: np.where(likes[groups], 5, 1)))
    hybrid = untrained(split, ["meaning", "feedback", "behaviour"])  # no two items have the same score
    fitted = fit_ranking(data_of(split), CONFIG, hybrid)
    model, record = fitted.model, RankingRecord(**fitted.figures)
    assert record.strengths[0] == 0 < record.strengths[1] and not model.reorders and not record.left_out
    assert (
        "order left out, the order stays the hybrid's: selection value" in record.line()
        and "ratings kept" in record.line()
    )
    assert record.rating_loss < 0.7 * record.untrained[1] and record.rating_interval[0] > 0
    before, reranked = measured(split, hybrid), Reranked(hybrid, model, N)
    assert measured(split, reranked).metrics["ndcg@10"] == pytest.approx(before.metrics["ndcg@10"])
    told = measure_ranking(reranked, split, None, before, 3)
    assert told["rmse"] < 0.85 * told["rmse_biases"] and "difference" not in told
    assert ranking_lines(told, before.metrics)[0] == f"the hybrid's best {N} stay in its order"
    # The probabilities are those of the hybrid's score alone, at the weight that suits it.
    plain = RankingModel(hybrid, CONFIG, RatingScale.of_split(split))
    start_from_hybrid(plain, lists_of(plain, hybrid, all_of(split, 7), CONFIG.candidates, 7))
    assert record.weight * record.temperature == pytest.approx(float(tf.exp(plain.network.log_weight)))


def all_of(split, seed):
    """The validation queries as ``fit_ranking`` divides them."""
    return split.validation.take(np.random.default_rng(seed).permutation(len(split.validation)))


@pytest.mark.slow
def test_each_user_is_judged_by_a_model_that_was_trained_on_others(planted, hybrid, monkeypatch):
    trained = []

    def train(model, lists, rated, config, first, epochs, seed, label, logs, callbacks=()):
        trained.append((lists, rated, callbacks[0].fold))
        for epoch in range(epochs):
            callbacks[0].on_epoch_end(epoch)

    monkeypatch.setattr(making, "_train", train)
    fitted = fit_ranking(data_of(planted), CONFIG.model_copy(update={"folds": 3}), hybrid)
    asked = all_of(planted, 7)
    assert sorted(np.concatenate([fold for *_, fold in trained])) == list(range(260))
    everything = lists_of(RankingModel(hybrid, CONFIG, None), hybrid, asked, CONFIG.candidates, 7)
    for lists, rated, fold in trained:
        others = np.setdiff1d(np.arange(260), fold)
        np.testing.assert_array_equal(lists["label"], everything["label"][others])
        np.testing.assert_array_equal(lists["recent"], everything["recent"][others])
        assert len(rated["rating"]) == 5 * len(others)  # of six training events, the first has nothing before it
    # Nothing was trained, so nothing is gained.
    record = RankingRecord(**fitted.figures)
    assert record.strengths == [0, 0] and record.best_epoch == 0 and record.selection[0] == record.selection[1]
    assert record.selection_interval == record.rating_interval == [0, 0]


@pytest.mark.slow
def test_held_out_figures_by_hand(planted, hybrid):
    model = RankingModel(hybrid, CONFIG, RatingScale.of_split(planted))
    generator = np.random.default_rng(3)
    for variable in model.network.trainable_variables:
        variable.assign(variable + 0.2 * generator.normal(size=variable.shape))
    asked = planted.validation.take(np.arange(40))
    weight = np.where(np.arange(40) % 4, 1, 2).astype(np.float32)
    lists = lists_of(model, hybrid, asked, CONFIG.candidates, 7) | {"weight": weight}
    ratings = target_ratings(planted.validation_events, asked).copy()
    ratings[:5] = np.nan
    held_out = making.HeldOut(model, lists, ratings, np.arange(40), CONFIG.model_copy(update={"epochs": 1}))
    for fold in (np.arange(0, 40, 2), np.arange(1, 40, 2)):
        held_out.begin(fold)
        held_out.on_epoch_end(0, logs := {})
    for at, strength in enumerate(making.STRENGTHS):
        model.network.strengths.assign([strength, strength])
        known = {name: values for name, values in lists.items() if name not in LEARNT_FROM}
        logits, told = (out.numpy() for out in model.learned(model.item_vectors, **known))
        for row, label in enumerate(lists["label"]):
            odds = np.exp(logits[row].astype(float) + lists["log_times"][row])
            place = (logits[row, :30] > logits[row, label]).sum() if label < 30 else 99
            loss, gain, error = held_out.by_epoch[:, 1, at, row]
            assert loss == pytest.approx(-np.log(odds[label] / odds.sum()), rel=1e-4)
            assert gain == pytest.approx(1 / np.log2(place + 2) if place < 10 else 0)
            expected = (np.clip(told[row, label], 1, 5) - ratings[row]) ** 2
            assert error == pytest.approx(expected, rel=1e-3, abs=1e-5, nan_ok=True)
    last = held_out.by_epoch[:, 1, -1, 1::2]
    assert logs["val_click_loss"] == pytest.approx(np.average(last[0], weights=weight[1::2]))
    assert logs["val_rating_loss"] == np.nanmean(last[2])
    held_out.verdict(1)  # ratings that are missing harm nothing


@pytest.mark.slow
@pytest.mark.parametrize("strengths", [[0.5, 0.5], [0.0, 0.0]])
def test_calibration_of_what_is_served_by_hand(planted, whole_hybrid, strengths):
    model = RankingModel(whole_hybrid, CONFIG, RatingScale.of_split(planted))
    asked = planted.validation.take(np.arange(40))
    lists = lists_of(model, whole_hybrid, asked, CONFIG.candidates, 7) | {"weight": np.ones(40, np.float32)}
    ratings = target_ratings(planted.validation_events, asked)
    held_out = making.HeldOut(model, lists, ratings, np.arange(40), CONFIG.model_copy(update={"epochs": 1}))
    generator = np.random.default_rng(3)
    model.network.log_weight.assign(np.log(2.0))
    for fold in (np.arange(0, 40, 2), np.arange(1, 40, 2)):
        held_out.begin(fold)
    for variable in model.network.trainable_variables:
        variable.assign(variable + 0.2 * generator.normal(size=variable.shape))
    for fold in (np.arange(0, 40, 2), np.arange(1, 40, 2)):
        held_out.fold = fold
        held_out.on_epoch_end(0)
    figures = held_out._calibrated(1, strengths)
    if strengths[0]:
        model.network.strengths.assign(strengths)
    else:
        model = RankingModel(whole_hybrid, CONFIG, RatingScale.of_split(planted))
        model.network.log_weight.assign(np.log(2.0))
    offered = np.flatnonzero(lists["label"] < 30)
    assert 5 < len(offered) < 40
    known = {name: values[:, :30] if name in ("items", "terms", "scores", "prior") else values
             for name, values in lists.items() if name not in LEARNT_FROM}  # fmt: skip
    logits, _ = model.learned(model.item_vectors, **known)
    temperature = figures["temperature"]
    for at, divisor in enumerate((temperature, 1.0)):
        probability = tf.nn.softmax(logits / divisor).numpy()[offered]
        own = probability[np.arange(len(offered)), lists["label"][offered]]
        assert figures["log_loss"][at] == pytest.approx(-np.log(own).mean(), rel=1e-4)
        happened = np.arange(30) == lists["label"][offered, np.newaxis]
        there = lists["items"][offered, :30] < N
        assert figures["ece"][at] == pytest.approx(calibration_error(probability[there], happened[there]), abs=1e-5)
    whole = {name: values for name, values in lists.items() if name not in LEARNT_FROM}
    told = model.learned(model.item_vectors, **whole)[1].numpy()[np.arange(40), lists["label"]]
    assert figures["rating_ece"] == pytest.approx(calibration_error(np.clip(told, 1, 5), ratings), abs=1e-5)
    # As fit_ranking puts it into the model.
    model.network.log_weight.assign_sub(np.log(temperature))
    model.network.strengths.assign(model.network.strengths / [temperature, 1.0])
    cooled, _ = model.learned(model.item_vectors, **known)
    there = lists["items"][:, :30] < N
    np.testing.assert_allclose(cooled.numpy()[there], logits.numpy()[there] / temperature, rtol=1e-4, atol=1e-5)


def test_a_temperature_is_kept_if_it_helps_users_that_it_was_not_fitted_on():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 1.5, (900, 20))
    logits[:, 15:] = -np.inf
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label, fold = np.array([generator.choice(20, p=row) for row in chances]), np.arange(900) % 3
    assert fitted_temperature(3 * logits, label, fold) == pytest.approx(3, rel=0.15)
    assert fitted_temperature(0.5 * logits, label, fold) == pytest.approx(0.5, rel=0.15)
    # Each fold wants the temperature that is worst for the other.
    mixed = np.where(np.arange(900)[:, np.newaxis] < 450, 3 * logits, 0.4 * logits)
    assert fitted_temperature(mixed, label, (np.arange(900) >= 450).astype(int)) == 1
    assert fitted_temperature(3 * logits, label, np.zeros(900, int)) == 1  # nobody else to fit it on


@pytest.mark.slow
def test_probabilities_are_honest(planted, hybrid, fitted):
    """Of the items that are given p, a share of p comes next."""
    model, _, _ = fitted
    queries = planted.test
    items = Reranked(hybrid, model, N).best(hybrid.score(queries), queries)
    probability, _ = Reranked(hybrid, model, N).rank(queries, items)
    label = items == queries.targets.values[:, np.newaxis]
    likely = probability > 0.05
    assert likely.sum() > 500
    assert label[likely].mean() == pytest.approx(probability[likely].mean(), rel=0.25)
    assert label[~likely].mean() == pytest.approx(probability[~likely].mean(), abs=0.01)


# What it learns from --------------------------------------------------------------------------------------------------


def test_lists_are_the_best_the_target_and_some_others(planted, whole_hybrid, monkeypatch):
    hybrid = whole_hybrid
    monkeypatch.setattr(making, "DRAWN", 6)
    monkeypatch.setattr(making, "SCORE_BATCH", 50)
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


def randomly_split(frame, repeats="last", **shares):
    items = pd.DataFrame({"item": [f"i{i:02}" for i in range(N)], "title": "x"})
    config = DataConfig(name="made", repeats=repeats)
    return make_split(dataset_from_frames(frame, items, config=config), SplitConfig(kind="random", **shares), seed=0)


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
    held_out = making.HeldOut(model, lists, np.full(len(queries), np.nan), np.arange(len(queries)), CONFIG)
    held_out.begin(np.arange(len(queries)))
    for row, targets in enumerate(queries.targets):
        left = [i for i in np.argsort(-scores[row], kind="stable") if i not in {*queries.history[row], *targets[1:]}]
        place = left.index(targets[0])
        assert held_out.without[1, row] == pytest.approx(1 / np.log2(place + 2) if place < 10 else 0)
    # Nor are they candidates in the test figures.
    reranked, asked = Reranked(hybrid, model, N), split.test.take(split.test.targets.lengths > 1)
    even = making._of_probabilities(reranked, asked)["log_loss_even"]
    there = N - asked.exclude.lengths - asked.targets.lengths + 1
    assert even == pytest.approx(np.log(there).mean())


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


def test_a_large_catalogue_is_rated_by_biases(planted, hybrid, monkeypatch, tmp_path):
    monkeypatch.setattr(making, "ITEMS", N - 1)
    monkeypatch.setattr(making, "fit_rating_factors", lambda *_, **__: pytest.fail("learnt"))
    scale, asked = RatingScale.of_split(planted), planted.validation
    ratings = np.arange(len(asked)) % 5 + 1.0
    factors, loss, figures = making._factors(data_of(planted), scale, asked, ratings, np.arange(len(asked)))
    told = scale.ratings(asked, asked.targets.values[:, np.newaxis])[:, 0]
    assert factors is None and figures == {"biases_loss": pytest.approx(np.mean((told - ratings) ** 2))}
    assert loss == figures["biases_loss"]
    monkeypatch.setattr(making, "fit_ranking", lambda *_: pytest.fail("enough"))
    said = []
    with pytest.raises(pytest.fail.Exception):
        prepared_ranking(tmp_path / "ranking", data_of(planted), CONFIG, hybrid, said.append)
    assert said[1:] == ["ranking: ratings are by biases: 60 items are too many for factors, at most 59"]


def test_without_rated_validation_targets_nothing_is_said_of_ratings():
    record = RankingRecord(
        lists=9, held_out=9, rated=50, epochs=2, best_epoch=1, weight=1.0, strengths=[0.5, 0.0], click_loss=3.0,
        rating_loss=0.0, untrained=[3.1, 0.0], seconds=1.0, selection=[0.2, 0.1], selection_interval=[0.05, 0.15],
    )  # fmt: skip
    assert record.line().startswith("kept: selection value 0.2000") and "RMSE" not in record.line()
    exact = replace(record, rating_ece=0.0)  # all are foretold exactly
    assert "rating RMSE 0.0000 against 0.0000 by biases" in exact.line()
    earlier = replace(record, rating_loss=1.0, untrained=[3.1, 1.44])
    assert "rating RMSE 1.0000 against 1.2000 by biases" in earlier.line()


def test_a_large_catalogue_has_fewer_lists_and_rated_events(planted, hybrid, monkeypatch):
    monkeypatch.setattr(making, "SCORED", 7 * N + 1)
    model = RankingModel(hybrid, CONFIG, scale := RatingScale.of_split(planted))
    assert len(rated_events(model, hybrid, planted, scale, 3)[0]["rating"]) == 7
    monkeypatch.setattr(making, "lists_of", lambda model, hybrid, queries, *_: pytest.fail(f"{len(queries)} lists"))
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


@pytest.mark.parametrize("liked", [True, False])
def test_factors_are_kept_where_they_are_better_than_biases(liked):
    generator = np.random.default_rng(5)

    def rate(likes, groups):
        return np.where(likes[groups], 5, 1) if liked else generator.choice([1, 5], len(groups))

    split = split_of(walks(rate, people=600))
    asked, scale = split.validation, RatingScale.of_split(split)
    ratings, users = target_ratings(split.validation_events, asked), np.arange(len(asked))
    factors, loss, figures = making._factors(data_of(split), scale, asked, ratings, users)
    targets = asked.targets.values[:, np.newaxis]
    by_biases = np.mean((scale.ratings(asked, targets)[:, 0] - ratings) ** 2)
    assert figures["biases_loss"] == pytest.approx(by_biases)
    assert (factors is not None) == (figures["factors_interval"][0] > 0) == liked
    if factors is None:
        assert loss == figures["biases_loss"]
    else:
        assert (
            loss == pytest.approx(np.mean((factors.ratings(asked, targets)[:, 0] - ratings) ** 2))
            and loss < 0.9 * by_biases
        )
    assert making._factors(data_of(split), scale, asked, np.full(len(asked), np.nan), users) == (None, 0.0, {})


@pytest.mark.slow
@pytest.mark.long
def test_factors_are_part_of_a_model_that_is_read_again(tmp_path):
    """They alone are reason enough to have one: its order is the hybrid's."""
    split = split_of(walks(lambda likes, groups: np.where(likes[groups], 5, 1), people=600))
    hybrid = untrained(split)
    config = CONFIG.model_copy(update={"epochs": 1, "learning_rate": 1e-9})
    told = []
    model = prepared_ranking(tmp_path / "ranking", data_of(split), config, hybrid, told.append)
    record = RankingRecord.load(tmp_path / "ranking")
    assert record.strengths == [0, 0] and not record.left_out and not model.reorders
    assert record.factors == [N, 16, 20] and record.untrained[1] < 0.9 * record.biases_loss
    by_factors, by_biases = (f"{loss**0.5:.4f}" for loss in (record.untrained[1], record.biases_loss))
    assert f"kept, by factors alone: rating RMSE {by_factors} by factors, " in told[-1] and by_biases in told[-1]
    again = load_ranking(tmp_path / "ranking", hybrid, split, config, 7)
    items = np.tile(np.arange(N), (len(split.test), 1))
    one, two = (Reranked(hybrid, each, N).rank(split.test, items) for each in (model, again))
    np.testing.assert_array_equal(one[1], two[1])
    before = measured(split, hybrid)
    figures = measure_ranking(Reranked(hybrid, again, N), split, None, before, 3)
    assert figures["rmse"] < 0.95 * figures["rmse_biases"] and figures["rated"] == len(split.test)


def test_all_rated_targets_count():
    frame = events(people=40)
    frame.loc[frame.groupby("user").tail(1).index[:10], "rating"] = np.nan
    items = pd.DataFrame({"item": [f"i{i:02}" for i in range(N)], "title": "x"})
    config = SplitConfig(kind="random", test_share=0.4)
    split = make_split(dataset_from_frames(frame, items, config=DataConfig(name="made")), config, seed=0)
    hybrid = untrained(split)
    reranked = Reranked(hybrid, RankingModel(hybrid, CONFIG, RatingScale.of_split(split)), 5)
    found = making._of_ratings(reranked, split, split.test)
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


def test_the_start_is_the_best_weight_of_the_hybrids_score(hybrid):
    model = RankingModel(hybrid, CONFIG, None)
    generator = np.random.default_rng(0)
    scores = generator.normal(0, 1, (4000, 20)).astype(np.float32)
    odds = np.exp(0.5 * scores)
    label = np.array([generator.choice(20, p=row / row.sum()) for row in odds])
    terms = generator.normal([5, 0, 0, -2], [2, 1, 0, 3], (4000, 20, 4)).astype(np.float32)
    items = np.zeros((4000, 20), np.int32)
    items[:, 7] = N  # nothing there
    kept = label != 7
    lists = {"scores": scores, "terms": terms, "items": items, "log_times": np.zeros_like(scores), "label": label}
    start_from_hybrid(model, {name: value[kept] for name, value in lists.items()})
    assert float(tf.exp(model.network.log_weight)) == pytest.approx(0.5, abs=0.13)
    np.testing.assert_allclose(model.network.shift, [5, 0, 0, -2], atol=0.05)
    np.testing.assert_allclose(model.network.scale, [2, 1, 0.001, 3], atol=0.05)


# Kept in the run folder -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_logs_and_record(fitted):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, record, logs = fitted
    found = EventAccumulator(str(logs / "train"), size_guidance={"tensors": 0}).Reload().Tags()["tensors"]
    assert {"epoch_click_loss", "epoch_rating_loss"} <= set(found)
    assert (record.lists, record.held_out, record.rated) == (260, 260, 1300)
    assert record.epochs == 8 and 0 < record.best_epoch <= 8
    assert model.network.strengths.numpy() == pytest.approx([record.strengths[0] / record.temperature, 0])
    folds = sorted(path.name for path in logs.iterdir() if path.name.startswith("fold-"))
    assert folds == ["fold-1", "fold-2"]
    found = EventAccumulator(str(logs / "fold-2" / "validation"), size_guidance={"tensors": 0}).Reload()
    assert {"epoch_click_loss", "epoch_rating_loss"} <= set(found.Tags()["tensors"])
    with_it, without = record.selection
    assert record.line().startswith(
        f"order kept: selection value {with_it:.4f} against {without:.4f} without it on 260 held-out users (difference "
    )
    # Factors find all that there is in the ratings.
    by_factors, by_biases = record.untrained[1] ** 0.5, record.biases_loss**0.5
    assert by_factors < 0.1 < 1 < by_biases and record.factors_interval[0] > 0 and record.strengths[1] == 0
    with_head = record.rating_loss**0.5
    errors = f"rating RMSE {by_factors:.4f} by factors, {with_head:.4f} with the head, {by_biases:.4f} by biases"
    assert f"; ratings kept, by factors alone: {errors}" in record.line()


@pytest.mark.slow
def test_it_is_made_once_and_read_again(planted, hybrid, tmp_path, monkeypatch):
    config = CONFIG.model_copy(update={"epochs": 2})
    told = []
    model = prepared_ranking(tmp_path / "ranking", data_of(planted), config, hybrid, told.append)
    assert len(told) == 2 and told[1] == f"ranking: {RankingRecord.load(tmp_path / 'ranking').line()}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "ranking"]
    monkeypatch.setattr(making, "fit_ranking", lambda *_: pytest.fail("made again"))
    again = prepared_ranking(tmp_path / "ranking", data_of(planted), config, hybrid, told.append)
    for one, two in zip(model.network.variables, again.network.variables, strict=True):
        np.testing.assert_array_equal(one, two)
    assert len(told) == 2
    fewer = replace(planted, validation=planted.validation.take(np.arange(50)))
    for split, seed, settings, named in (
        (planted, 7, {"learning_rate": 0.5}, r"ranking\.learning_rate"),
        (planted, 8, {}, "seed"),
        (fewer, 7, {}, "validation queries"),
    ):
        with pytest.raises(ModelError, match=f"belongs to a run with other {named}: name another folder"):
            other = config.model_copy(update=settings)
            prepared_ranking(tmp_path / "ranking", data_of(split, seed), other, hybrid, told.append)
    for layer in (hybrid.items, hybrid.history_encoder, hybrid.feedback, hybrid.gates):
        weights = layer.get_weights()
        layer.set_weights([array + 1 for array in weights])
        with pytest.raises(ModelError, match="belongs to a run with other weights of the hybrid"):
            prepared_ranking(tmp_path / "ranking", data_of(planted), config, hybrid, told.append)
        layer.set_weights(weights)
    with pytest.raises(ModelError, match=r"ranking/weights cannot be read; .*: copy .*ranking back, or fit again"):
        load_ranking(tmp_path / "ranking", hybrid, planted, CONFIG.model_copy(update={"keys": 3}), 7)
    (tmp_path / "ranking" / "made_from.json").unlink()  # of an earlier version
    monkeypatch.setattr(making, "fingerprint", lambda *_: pytest.fail("nothing to compare with"))
    prepared_ranking(tmp_path / "ranking", data_of(planted), config, hybrid, told.append)
    (tmp_path / "ranking" / "weights.index").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load_ranking(tmp_path / "ranking", hybrid, planted, CONFIG, 7)
    (tmp_path / "ranking" / "record.json").write_text("{}")
    with pytest.raises(ModelError, match=r"record\.json is damaged"):
        load_ranking(tmp_path / "ranking", hybrid, planted, CONFIG, 7)


def test_a_model_that_is_left_out_is_not_made_again(planted, hybrid, tmp_path, monkeypatch):
    record = RankingRecord(
        lists=260, held_out=260, rated=0, epochs=2, best_epoch=1, weight=1.0, strengths=[0.0, 0.0], click_loss=3.0,
        rating_loss=0.0, untrained=[3.1, 0.0], seconds=1.0, selection=[0.1268, 0.1292],
        selection_interval=[-0.004, 0.001],
    )  # fmt: skip
    monkeypatch.setattr(making, "fit_ranking", lambda *_: Fitted(None, CONFIG, asdict(record)))
    told = []
    assert prepared_ranking(tmp_path / "ranking", data_of(planted), CONFIG, hybrid, told.append) is None
    assert told[1] == (
        "ranking: left out: selection value 0.1268 against 0.1292 without it on 260 held-out users (difference between "
        "-0.0040 and +0.0010 with 95 % confidence)"
    )
    assert sorted(path.name for path in (tmp_path / "ranking").iterdir()) == ["made_from.json", "record.json"]
    monkeypatch.setattr(making, "fit_ranking", lambda *_: pytest.fail("made again"))
    assert prepared_ranking(tmp_path / "ranking", data_of(planted), CONFIG, hybrid, told.append) is None
    assert load_ranking(tmp_path / "ranking", hybrid, planted, CONFIG, 7) is None and len(told) == 2
    assert RankingRecord.load(tmp_path / "ranking") == record


@pytest.mark.slow
def test_no_ratings_no_rating_head(hybrid, monkeypatch):
    warned = []
    monkeypatch.setattr(tf.get_logger(), "warning", lambda text, *args, **_: warned.append(text % args))
    split = split_of(events(rated=False))
    fitted = fit_ranking(data_of(split), CONFIG.model_copy(update={"epochs": 4}), untrained(split))
    model, record = fitted.model, RankingRecord(**fitted.figures)
    assert not model.rates and record.rated == 0 and record.rating_loss == 0
    assert [text for text in warned if "Gradients do not exist" in text] == []
    assert "rating" not in record.line()
    after = measured(split, reranked := Reranked(hybrid, model, 20))
    told = measure_ranking(reranked, split, after, after, 3)
    assert "rmse" not in told and len(ranking_lines(told, after.metrics)) == 2
    json.dumps(told, allow_nan=False)


@pytest.mark.long
@pytest.mark.slow
def test_a_training_that_diverges_is_left_out(planted, whole_hybrid):
    hybrid = whole_hybrid
    wild = CONFIG.model_copy(update={"epochs": 2, "learning_rate": 1e9})
    fitted = fit_ranking(data_of(planted), wild, hybrid)
    record = RankingRecord(**fitted.figures)
    assert record.strengths == [0, 0] and record.best_epoch == 0
    assert record.factors and fitted.model is not None and not fitted.model.reorders  # which no training makes worse
    assert record.click_loss == pytest.approx(record.untrained[0], abs=1e-5)
    json.dumps(fitted.figures, allow_nan=False)


def test_auto_epochs(planted, monkeypatch):
    config = RankingConfig()
    assert settle_epochs(config, planted).startswith("ranking.epochs 6 at most: 260 validation queries")
    assert config.epochs == 6 and settle_epochs(config, planted) is None
    few, config = split_of(events(people=20)), RankingConfig()
    assert "20 validation queries are too few" in settle_epochs(config, few) and config.epochs == 0
    monkeypatch.setattr(making, "LOOKS", 4 * 260)
    assert settle_epochs(config := RankingConfig(), planted).startswith("ranking.epochs 4") and config.epochs == 4
    monkeypatch.setattr(making, "LOOKS", 260)
    assert settle_epochs(config := RankingConfig(), planted).startswith("ranking.epochs 3") and config.epochs == 3
    monkeypatch.setattr(making, "LISTS", 100)
    said = settle_epochs(RankingConfig(candidates=200), planted)
    assert said == "ranking.epochs 5 at most: 50 validation queries to learn from"
