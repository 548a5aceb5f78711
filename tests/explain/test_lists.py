import numpy as np
from plain_runs import Next

from tfllmrec.data.queries import Queries
from tfllmrec.evaluation.protocol import evaluate
from tfllmrec.explain.lists import draw_examples, examples_of, exposure_of


class Fixed:
    def __init__(self, *scores):
        self.scores = np.array(scores, np.float32)

    def score(self, queries):
        return np.tile(self.scores, (len(queries), 1))


def test_examples_are_drawn_from_both_kinds_a_user_once():
    found = np.array([1.0, 0.0, 0.5, 0.0, np.nan, 1.0] * 20)
    users = np.array([f"u{n // 3}" for n in range(len(found))], object)
    good, bad = draw_examples(found, users, seed=3)
    assert len(good) == len(bad) == 5 and (found[good] > 0).all() and (found[bad] == 0).all()
    assert len({*users[good], *users[bad]}) == 10
    again, _ = draw_examples(found, users, seed=3)
    other, _ = draw_examples(found, users, seed=4)
    assert list(good) == list(again) and list(good) != list(other)


def test_few_queries_give_few_examples():
    good, bad = draw_examples(np.array([1.0, np.nan]), np.array(["a", "b"], object), seed=0)
    assert (list(good), list(bad)) == ([0], [])


def test_an_example_has_the_list_and_the_rank_of_each_target():
    queries = Queries.from_histories([[4], [0]], targets=[[2, 4], [3]], user_ids=["a", "b"])
    first, second = examples_of(Fixed(5, 4, 3, 3, 9), queries, k=3)
    assert (first.user_id, list(first.history), list(first.recommended)) == ("a", [4], [0, 1, 2])
    # 2 and 3 score the same behind 0 and 1; 4 is in the history.
    assert first.targets == [(2, (3, 4)), (4, None)]
    assert list(second.recommended) == [4, 1, 2] and second.targets == [(3, (3, 4))]
    assert examples_of(Fixed(1), queries.slice(0, 0), 3) == []


def test_exposure_is_what_the_evaluation_counts(chain_split):
    n_items, told = chain_split.dataset.n_items, []
    model = Next(n_items, 0.6)
    exposure = exposure_of(model, chain_split.test, n_items, 10, 25, lambda done, total: told.append((done, total)))
    assert exposure.sum() == 10 * len(chain_split.test)
    measured = evaluate(model, chain_split.test, train_counts=chain_split.train_counts, strata={}, bootstrap=0)
    assert np.count_nonzero(exposure) / n_items == measured.metrics["coverage@10"]
    assert told == [(25, 60), (50, 60), (60, 60)]
