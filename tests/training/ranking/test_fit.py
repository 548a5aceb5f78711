import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import tensorflow as tf
from liked_kinds import (
    CONFIG,
    EACH,
    GROUPS,
    N,
    by_device,
    by_kind,
    data_of,
    events,
    measured,
    split_of,
    untrained,
    walks,
)

import tfllmrec.training.ranking.examples
import tfllmrec.training.ranking.fit as making
from tfllmrec.config import RankingConfig
from tfllmrec.errors import ModelError
from tfllmrec.layers.interest_forecast import LabelHead
from tfllmrec.layers.label_match import LabelMatch
from tfllmrec.models.fitting import Fitted
from tfllmrec.models.interests import Interests
from tfllmrec.models.ranking import RankingModel, RatingScale, Reranked
from tfllmrec.training.interests import profile_of
from tfllmrec.training.ranking.examples import lists_of, target_ratings
from tfllmrec.training.ranking.fit import (
    RankingStart,
    fit_ranking,
    load_ranking,
    prepared_ranking,
    settle_epochs,
    start_from_hybrid,
    weights_of,
)
from tfllmrec.training.ranking.measure import measure_ranking, ranking_lines
from tfllmrec.training.ranking.record import RankingRecord

pytestmark = pytest.mark.tf


def match():
    """The kinds of items as labels, and a head that has learned nothing: labels are counted."""
    of_items = np.arange(N)[:, np.newaxis] // EACH
    kinds = Interests(np.array(list("abcde"), object), np.ones(GROUPS, bool), of_items, np.ones((N, 1)))
    return LabelMatch(profile_of(kinds), LabelHead(*np.zeros((3, GROUPS, 2)), np.zeros(GROUPS)))


def all_of(split, seed):
    """The validation queries as ``fit_ranking`` divides them."""
    return split.validation.take(np.random.default_rng(seed).permutation(len(split.validation)))


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
def test_candidates_are_ordered_by_the_device_of_the_request():
    split = split_of(by_device())
    hybrid = untrained(split, ["meaning", "behaviour"], split.dataset.schema)
    made = fit_ranking(data_of(split), CONFIG.model_copy(update={"candidates": N, "epochs": 16}), hybrid)
    assert RankingRecord(**made.figures).selection_interval[0] > 0.1
    reranked, device = Reranked(hybrid, made.model, N), split.test.fields["request.device"]
    of_device, of_others = (
        measured(replace(split, test=replace(split.test, fields=fields)), reranked)
        for fields in (split.test.fields, split.test.fields | {"request.device": np.roll(device, 1)})
    )
    # About ten items of the device's kind are left, in the place of 52 of any kind.
    assert of_device.metrics["recall@10"] > 0.8 > 0.4 > of_others.metrics["recall@10"]


@pytest.mark.slow
@pytest.mark.parametrize("read", [True, False])
def test_candidates_are_ordered_by_the_labels_of_the_history(read, tmp_path):
    split = split_of(by_kind())
    hybrid = untrained(split, tells=0.0)
    labels = match() if read else None
    config = CONFIG.model_copy(update={"candidates": N})
    folder = tmp_path / "ranking"
    model = prepared_ranking(folder, data_of(split), config, hybrid, lambda line: None, labels=labels)
    record = RankingRecord.load(folder)
    assert record.labels == read
    # Of six items of the kind that are left, one comes next. Without labels, items are told apart by noise alone.
    assert (record.selection[0] > 0.45) == read and (record.selection[0] < 0.3) != read
    if not read:
        return
    assert measured(split, Reranked(hybrid, model, N)).metrics["recall@10"] > 0.95
    again = load_ranking(folder, hybrid, split, config, 7, labels)
    np.testing.assert_array_equal(again.network.get_weights()[0], model.network.get_weights()[0])
    with pytest.raises(ModelError, match="the model reads labels of items, and the run has none: fit again"):
        load_ranking(folder, hybrid, split, config, 7)


@pytest.mark.parametrize(
    "had, has, kept, starts, reads",
    [
        (False, True, True, True, False),
        (True, True, True, True, True),
        (True, False, True, False, False),
        (True, False, False, True, False),  # the parent dropped its heads: there is no network to go on with
    ],
)
def test_an_update_reads_labels_as_its_parent_did(
    planted, hybrid, tmp_path, monkeypatch, had, has, kept, starts, reads
):
    record = RankingRecord(
        lists=9, held_out=9, rated=0, epochs=1, best_epoch=1, weight=1.0, strengths=[0.0, 0.0], click_loss=3.0,
        rating_loss=0.0, untrained=[3.1, 0.0], seconds=1.0, selection=[0.1, 0.1], selection_interval=[-0.1, 0.1],
        labels=had,
    )  # fmt: skip
    given, told = [], []

    def fit(data, config, hybrid, logs, start, labels):
        given.append((start is not None, labels is not None))
        return Fitted(None, CONFIG, asdict(record))

    monkeypatch.setattr(making, "fit_ranking", fit)
    weights = [np.zeros(1)] if kept else []
    start = RankingStart(record, weights, np.ones(9, bool), np.ones(9, bool), 1, 0.5)
    labels = match() if has else None
    prepared_ranking(tmp_path / "ranking", data_of(planted), CONFIG, hybrid, told.append, start, labels)
    assert given == [(starts, reads)]
    assert starts == (not any("starting from the beginning" in line for line in told))


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


@pytest.mark.slow
def test_an_update_goes_on_from_the_network_of_its_parent(planted, hybrid, fitted):
    model, record, _ = fitted
    new = np.arange(len(planted.validation)) % 2 == 0
    everybody = np.ones(len(planted.train_queries()), bool)

    def updated(weights, strengths):
        start = RankingStart(replace(record, strengths=strengths), weights, new, everybody, 0, 0.5)
        return fit_ranking(data_of(planted), CONFIG, hybrid, start=start)

    made = updated(weights_of(model, record.temperature), record.strengths)
    judged = RankingRecord(**made.figures)
    assert judged.held_out == judged.lists == new.sum() and judged.rated == 0  # nothing is trained
    assert judged.strengths[0] > 0 and judged.selection_interval[0] > 0.1
    assert measured(planted, Reranked(hybrid, made.model, N)).metrics["recall@10"] > 0.8
    # Without what the parent learnt there is nothing to reorder by.
    blank = RankingModel(hybrid, CONFIG, RatingScale.of_split(planted), 7)
    made = updated(weights_of(blank, 1.0), record.strengths)
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
    start = RankingStart(record, weights_of(blank, 1.0), new, among, 1, 1.0)
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
    made = fit_ranking(data_of(planted), CONFIG, hybrid, start=RankingStart(record, [], *all_of, 1, 1.0))
    judged = RankingRecord(**made.figures)
    assert (judged.rating_ece, judged.rating_interval, judged.rated, judged.epochs) == (None, [], 0, 0)
    assert (
        judged.rating_loss == judged.untrained[1] < 1
        and judged.factors[0] == N
        and judged.selection == record.selection
    )


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


def test_a_gain_that_may_be_chance_is_called_so():
    record = RankingRecord(
        lists=260, held_out=260, rated=9, epochs=2, best_epoch=1, weight=1.0, strengths=[0.0, 0.0], click_loss=3.0,
        rating_loss=1.0, untrained=[3.1, 1.21], seconds=1.0, selection=[0.2810, 0.2776],
        selection_interval=[-0.0052, 0.0122], rating_interval=[-0.1, 0.5], rating_ece=0.1,
    )  # fmt: skip
    assert record.line() == (
        "left out: selection value 0.2810 against 0.2776 without it on 260 held-out users (difference between -0.0052 "
        "and +0.0122 with 95 % confidence: the gain may be chance); rating RMSE 1.0000 against 1.1000 by biases (the "
        "gain of the head may be chance)"
    )
    kept = replace(record, strengths=[1.0, 1.0], selection_interval=[0.001, 0.0122], rating_interval=[0.1, 0.5])
    assert "chance" not in kept.line()


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
    monkeypatch.setattr(tfllmrec.training.ranking.examples, "LISTS", 100)
    said = settle_epochs(RankingConfig(candidates=200), planted)
    assert said == "ranking.epochs 5 at most: 50 validation queries to learn from"
