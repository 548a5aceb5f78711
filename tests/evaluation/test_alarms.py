import numpy as np
import pytest

from tfllmrec.evaluation import alarms

DIFFERENT = np.zeros(100, bool)


def test_alike_means_up_to_float32_rounding():
    scores = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1e6, 1e6 + 0.25, 1e6], [1.0, 1.001, 1.0]], np.float32)
    assert alarms.scores_alike(scores).tolist() == [True, True, True, False]


def test_a_single_item_tells_nothing():
    assert alarms.scores_alike(np.ones((3, 1), np.float32)).tolist() == [False] * 3


@pytest.mark.parametrize(("share", "alarmed"), [(0.09, False), (0.1, True)])
def test_scores_alike_for_many_queries(share, alarmed):
    alike = np.arange(100) < share * 100
    assert bool(alarms.collapse(alike, np.full(1000, 5), 10)) == alarmed


@pytest.mark.parametrize(("top", "alarmed"), [(89, False), (90, True)])
def test_one_list_for_everybody(top, alarmed):
    exposure = np.zeros(100, np.int64)
    exposure[[3, 50]] = top, 100 - top
    messages = alarms.collapse(DIFFERENT, exposure, 1)
    assert bool(messages) == alarmed
    if alarmed:
        assert "1 of 100 items take 90%" in messages[0]


def test_small_catalogues_and_few_queries_may_well_agree():
    exposure = np.zeros(100, np.int64)
    exposure[:10] = 100
    assert alarms.collapse(DIFFERENT, exposure, 10)
    assert not alarms.collapse(DIFFERENT, exposure[:99], 10)
    assert not alarms.collapse(DIFFERENT[:49], exposure, 10)
    assert not alarms.collapse(DIFFERENT[:0], exposure * 0, 10)
    with np.errstate(all="raise"):
        assert not alarms.collapse(DIFFERENT, exposure * 0, 10)  # everything was excluded


def test_behind_speaks_only_where_the_difference_is_above_zero():
    assert alarms.behind("ndcg@10", 0.1, "ease", 0.2, 0.0, 0.2) is None
    message = alarms.behind("ndcg@10", 0.1, "ease", 0.2, 0.05, 0.15)
    assert "ease is ahead of it: ndcg@10 0.2000 against 0.1000 (difference between +0.0500 and +0.1500" in message


def test_not_better_speaks_unless_the_difference_is_above_zero():
    assert alarms.not_better("ndcg@10", 0.2, "popularity", 0.1, 0.01, 0.2) is None
    message = alarms.not_better("ndcg@10", 0.11, "popularity", 0.1, -0.01, 0.03)
    assert (
        "is not shown to beat popularity: ndcg@10 0.1100 against 0.1000 (difference between -0.0100 and +0.0300"
        in message
    )
