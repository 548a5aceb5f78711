import numpy as np
import pytest
import tensorflow as tf
from liked_kinds import CONFIG, N

from tfllmrec.evaluation.calibration import calibration_error
from tfllmrec.models.ranking import LEARNT_FROM, RankingModel, RatingScale
from tfllmrec.training.ranking.examples import lists_of, target_ratings
from tfllmrec.training.ranking.held_out import STRENGTHS, HeldOut, fitted_temperature

pytestmark = pytest.mark.tf


def test_the_strength_of_the_order_is_that_of_the_best_lists_and_tail_targets_count_twice(planted, hybrid):
    model = RankingModel(hybrid, CONFIG, None)
    asked = planted.validation.take(np.arange(40))
    lists = lists_of(model, hybrid, asked, CONFIG.candidates, 7)

    def verdict(tail):
        config, weight = CONFIG.model_copy(update={"epochs": 1}), np.where(tail, 2.0, 1.0)
        held_out = HeldOut(model, lists | {"weight": weight}, np.full(40, np.nan), np.arange(40), config)
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
        held_out = HeldOut(model, lists, np.full(40, np.nan), np.arange(40), config, earlier)
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
    held_out = HeldOut(model, lists, ratings, np.arange(40), CONFIG.model_copy(update={"epochs": 1}))
    for fold in (np.arange(0, 40, 2), np.arange(1, 40, 2)):
        held_out.begin(fold)
        held_out.on_epoch_end(0, logs := {})
    for at, strength in enumerate(STRENGTHS):
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
    held_out = HeldOut(model, lists, ratings, np.arange(40), CONFIG.model_copy(update={"epochs": 1}))
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
