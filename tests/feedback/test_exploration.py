"""Exploration: logged propensities are those of many draws, no item comes twice, and losses are bounded."""

import numpy as np
import pandas as pd
import pytest

from tfllmrec.errors import ConfigError, DataError
from tfllmrec.feedback.exploration import DRAWS, FLOOR, Exploration
from tfllmrec.feedback.off_policy import ExposureLog, estimate

ITEMS = [f"i{n}" for n in range(12)]
SCORES = np.linspace(0.3, 0.08, 12)
EXPOSURES = np.array([900, 800, 700, 900, 10, 500, 0, 50, 200, 5, 100, 101])
CLICKS = np.array([90, 80, 70, 90, 1, 50, 0, 20, 20, 0, 3, 4])
TAIL = ["i6", "i7", "i9", "i10"]  # of those after the first five, with at most 100 exposures
DRAWN = 20_000


def plan_of(method="uniform", seed=0, **given):
    settings = Exploration(**{"places": 2, "epsilon": 0.3, "max_loss": 1.0, "method": method} | given)
    return settings.plan(ITEMS, SCORES, EXPOSURES, 5, clicks=CLICKS, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("method", ["uniform", "thompson"])
def test_propensities_are_the_frequencies_of_many_draws(method):
    plan, rng = plan_of(method), np.random.default_rng(1)
    shown = {}
    for _ in range(DRAWN):
        choice = plan.draw(rng)
        assert len(set(choice.items)) == 5 and choice.items[:3].tolist() == ITEMS[:3]
        for place, (item, p) in enumerate(zip(choice.items, choice.propensity, strict=True)):
            shown.setdefault((place, item, p), []).append(1)
    frequency = {(place, item): len(times) / DRAWN for (place, item, _), times in shown.items()}
    propensity = {(place, item): p for place, item, p in shown}
    assert len(propensity) == len(shown) == 3 + 2 * (1 + len(TAIL))  # one propensity for each item at each place
    for key, p in propensity.items():
        assert frequency[key] == pytest.approx(p, abs=4.5 * np.sqrt(p * (1 - p) / DRAWN) + 1e-9), key
    for place in range(5):
        assert sum(p for (own, _), p in propensity.items() if own == place) == pytest.approx(1)
    assert propensity[3, "i3"] == propensity[4, "i4"] == 0.7 and propensity[0, "i0"] == 1


def test_uniform_gives_each_tail_item_the_same_probability():
    plan = plan_of()
    assert plan.tail.tolist() == TAIL
    assert plan.probability == pytest.approx(np.full((2, 4), 0.3 / 4))
    best = SCORES[3] + SCORES[4]
    assert plan.expected_loss == pytest.approx(0.3 * (best - 2 * SCORES[[6, 7, 9, 10]].mean()))


def test_thompson_prefers_what_was_clicked_and_leaves_each_item_a_chance():
    probability = plan_of("thompson").probability
    assert probability.min() >= 0.3 * FLOOR / 4
    assert probability[0].argmax() == TAIL.index("i7") and probability[0].max() > 0.3 * 0.7
    counts = (probability - 0.3 * FLOOR / 4) / (0.3 * (1 - FLOOR)) * DRAWS
    assert counts == pytest.approx(counts.round(), abs=1e-6) and counts.sum(axis=1) == pytest.approx([DRAWS] * 2)


def test_a_list_that_would_cost_too_much_is_explored_less_often():
    loss = plan_of().expected_loss
    plan = plan_of(max_loss=loss / 2)
    assert (plan.expected_loss, plan.epsilon) == (pytest.approx(loss / 2), pytest.approx(0.15))
    assert plan.probability == pytest.approx(plan_of(epsilon=0.15).probability)
    assert plan_of(max_loss=0).draw(np.random.default_rng(0)).propensity.tolist() == [1.0] * 5
    clicks, rng = [], np.random.default_rng(3)
    rate = dict(zip(ITEMS, SCORES, strict=True))
    for _ in range(8000):
        choice = plan.draw(rng)
        assert all(choice.propensity > 0)
        clicks.append(sum(rate[item] for item in choice.items))
    assert SCORES[:5].sum() - np.mean(clicks) == pytest.approx(loss / 2, rel=0.1)


def test_without_tail_items_nothing_is_explored():
    everything = Exploration(1.0, 0.0, tail_exposures=0).plan(ITEMS, SCORES, EXPOSURES + 1, 5)
    choice = everything.draw(np.random.default_rng(0))
    assert (
        choice.items.tolist() == ITEMS[:5] and choice.propensity.tolist() == [1.0] * 5 and everything.expected_loss == 0
    )
    one = Exploration(1.0, 1.0, tail_exposures=0).plan(ITEMS, SCORES, EXPOSURES, 5).draw(np.random.default_rng(0))
    assert one.items.tolist() == [*ITEMS[:4], "i6"] and one.explored.tolist() == [False] * 4 + [True]


def test_a_list_with_fewer_items_than_places_is_explored_as_a_whole():
    always = Exploration(1.0, 9.0)
    choice = always.plan(ITEMS, SCORES, EXPOSURES, 1).draw(np.random.default_rng(0))
    assert choice.explored.tolist() == [True] and choice.items[0] in {"i4", *TAIL}
    assert len(always.plan(ITEMS, SCORES, EXPOSURES, 0).draw(np.random.default_rng(0)).items) == 0


def test_logged_lists_tell_what_another_policy_earns():
    """The circle: explore, log, and estimate a policy that shows the best tail item at the last place."""
    plan, rng = plan_of("thompson", epsilon=0.5), np.random.default_rng(5)
    rate = dict(zip(ITEMS, SCORES, strict=True)) | {"i9": 0.6}
    choices = [plan.draw(rng) for _ in range(4000)]
    frame = pd.DataFrame(
        {"item_id": [each.items[4] for each in choices], "propensity": [each.propensity[4] for each in choices]}
    )
    frame["reward"] = [float(rng.random() < rate[item]) for item in frame["item_id"]]
    found = estimate(ExposureLog.from_frame(frame), (frame["item_id"] == "i9").to_numpy(float))
    for each in (found.estimates["ips"], found.estimates["snips"]):
        assert each.low <= 0.6 <= each.high and each.high - each.low < 0.5


@pytest.mark.parametrize(
    "settings",
    [{"places": 0}, {"epsilon": 0.0}, {"epsilon": 1.1}, {"max_loss": -1}, {"max_loss": np.nan}, {"method": "ucb"},
     {"tail_exposures": -1}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=f"for {next(iter(settings))} of exploration, found"):
        plan_of(**settings)


def test_candidates_that_cannot_be_are_refused():
    uniform, thompson = Exploration(0.1, 1.0), Exploration(0.1, 1.0, method="thompson")
    rng = np.random.default_rng(0)
    for settings, given, message in (
        (uniform, (ITEMS, SCORES[:3], EXPOSURES, 5), "found 12 items, 3 scores"),
        (uniform, ([*ITEMS[:11], "i0"], SCORES, EXPOSURES, 5), "found 11 items"),
        (uniform, (ITEMS, SCORES[::-1], EXPOSURES, 5), "scores that descend"),
        (uniform, (ITEMS, SCORES, EXPOSURES - 1, 5), "exposures that are 0 or more"),
        (thompson, (ITEMS, SCORES * 10, EXPOSURES, 5), "click rates above 0 and below 1"),
        (thompson, (ITEMS, SCORES, EXPOSURES, 5, CLICKS[:3]), "clicks for each item"),
        (thompson, (ITEMS, SCORES, EXPOSURES, 5, CLICKS + 9), "from 0 to its exposures"),
    ):
        clicks = given[4] if len(given) == 5 else CLICKS
        with pytest.raises(DataError, match=message):
            settings.plan(*given[:4], clicks=clicks, rng=rng)
    with pytest.raises(ConfigError, match="found k=-1"):
        uniform.plan(ITEMS, SCORES, EXPOSURES, -1)
    with pytest.raises(ConfigError, match="clicks and rng"):
        thompson.plan(ITEMS, SCORES, EXPOSURES, 5)
