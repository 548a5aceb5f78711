"""Lists with rules, against a slow version in numpy that knows all scores."""

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.layers.item_index import NOTHING, ItemIndex
from tfllmrec.layers.list_order import Rules, list_order
from tfllmrec.server import work
from tfllmrec.serving import list_rules
from tfllmrec.serving.list_rules import Asked, ListRules

pytestmark = pytest.mark.tf
N, D = 120, 6
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(N, D)).astype(np.float32)
UNIT = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
CATEGORIES = [sorted({item % 3, 3 + item % 4}) if item % 10 else [] for item in range(N)]
TAIL = np.arange(N) % 5 == 0
QUERY = RNG.normal(size=(4, D)).astype(np.float32)
EXCLUDE = np.array([[5, 6, N], [N, N, N], [7, 8, 9], [0, 0, N]])
ALLOWED = np.full((4, 90), NOTHING)
ALLOWED[2] = np.arange(90)
WANTED = np.array([[NOTHING], [NOTHING], [NOTHING], [4]])
PINS = np.array([[70, 5, N, 11, 70], [N] * 5, [100, 8, 30, 3, N], [1, 5, 2, 13, N]])


def made_lists():
    """``(rows, k, ...) -> (item, score)`` of each list, chosen in the graph."""
    members = [np.array([i for i in range(N) if group in CATEGORIES[i]]) for group in range(7)]
    index = ItemIndex(VECTORS, categories=members)
    rules = ListRules(index, tf.Variable(UNIT, trainable=False), CATEGORIES, TAIL)

    def run(k, request, *asked):
        asked = Asked(*asked)
        items, scores = index.top_k(k=tf.where(rules.any_of(asked), rules.candidates(k), k), **request)
        return rules.apply(items, scores, k, asked, request)

    types = {"exclude": tf.int32, "allowed": tf.int32, "categories": tf.int32}
    signature = [
        tf.TensorSpec([None], tf.int32),
        {"query": tf.TensorSpec([None, D])} | {name: tf.TensorSpec([None, None], kind) for name, kind in types.items()},
        tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None]), tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None]),
    ]  # fmt: skip
    compiled = tf.function(run, input_signature=signature, autograph=False)

    def lists(k, pins=None, diversity=0.0, cap=0, share=0.0, rows=range(4)):
        rows = list(rows)
        count = len(rows)
        request = {"query": tf.constant(QUERY[rows])}
        for name, values in (("exclude", EXCLUDE), ("allowed", ALLOWED), ("categories", WANTED)):
            request[name] = tf.constant(values[rows], tf.int32)
        k = np.broadcast_to(k, count)
        items, scores = compiled(
            tf.constant(k, tf.int32),
            request,
            tf.constant(np.full((count, 0), N) if pins is None else pins[rows], tf.int32),
            tf.constant(np.broadcast_to(diversity, count), tf.float32),
            tf.constant(np.broadcast_to(cap, count), tf.int32),
            tf.constant(np.broadcast_to(share, count), tf.float32),
        )
        found = []
        for *row, wanted in zip(items.numpy(), scores.numpy(), k, strict=True):
            listed = [(int(item), float(score)) for item, score in zip(*row, strict=True)][:wanted]
            found.append([line for line in listed if line[0] < N])
            assert found[-1] == listed[: len(found[-1])]  # what is not there comes last
        return found

    lists.alive = rules
    return lists


@pytest.fixture(scope="module")
def lists():
    return made_lists()


def test_the_first_categories_of_an_item_count():
    index = ItemIndex(VECTORS[:3], categories=[])
    most = list_rules.CATEGORIES
    categories = [range(1000), [], range(7, 7 + most + 1)]
    rules = ListRules(index, tf.Variable(UNIT[:3], trainable=False), categories, TAIL[:3])
    found = rules._categories_of(tf.constant([[0, 1, 2, 3]])).numpy()
    assert found.tolist() == [[[*range(most)], [-1] * most, [*range(7, 7 + most)], [-1] * most]]
    assert most == 32 and 500 * most <= work._RULED  # what a request with a rule is taken to need


def passing(row):
    """Those that may be listed, best first, and all scores."""
    scores = VECTORS.astype(float) @ QUERY[row]
    left = set(range(N)) - set(EXCLUDE[row])
    if ALLOWED[row, 0] != NOTHING:
        left &= set(ALLOWED[row])
    if WANTED[row, 0] != NOTHING:
        left = {item for item in left if WANTED[row, 0] in CATEGORIES[item]}
    return sorted(left, key=lambda item: -scores[item]), scores


def by_hand(row, k, pins=None, cap=0, share=0.0, candidates=50):
    """One list without diversity."""
    left, scores = passing(row)
    pinned = list(dict.fromkeys(item for item in ([] if pins is None else pins[row]) if item in left))
    pool = pinned + [item for item in left[: max(candidates, k)] if item not in pinned]
    found = []
    while len(found) < k:
        groups = [group for item in found for group in CATEGORIES[item]]
        may = [i for i in pool if i not in found and not (cap and any(groups.count(g) >= cap for g in CATEGORIES[i]))]
        if sum(TAIL[found]) < int(share * (len(found) + 1) + 1e-6):
            may = [item for item in may if TAIL[item]] or may
        if len(found) < len(pinned):
            may = pinned[len(found) :]
        if not may:
            break
        found.append(may[0])
    return [(item, pytest.approx(scores[item], abs=1e-5)) for item in found]


@pytest.mark.parametrize("k", [1, 8, 30])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"pins": PINS},
        {"cap": 2},
        {"cap": 1},
        {"share": 0.5},
        {"share": 1.0},
        {"pins": PINS, "cap": 3, "share": 0.4},
    ],
    ids=str,
)
def test_a_list_is_that_of_the_slow_version(lists, k, asked):
    found = lists(k, **asked)
    candidates = min(max(5 * k, 50), 500)
    for row in range(4):
        assert found[row] == by_hand(row, k, candidates=candidates, **asked)


def test_rows_with_and_without_rules_are_each_as_if_alone(lists):
    k, cap, share, diversity = np.array([6, 9, 0, 4]), np.array([0, 2, 1, 0]), [0.5, 0, 0, 0], [0, 0, 0.5, 0.8]
    together = lists(k, PINS, diversity, cap, share)
    for row in range(4):
        (alone,) = lists(k[row], PINS, diversity[row], cap[row], share[row], [row])
        assert [item for item, _ in alone] == [item for item, _ in together[row]]
        assert [score for _, score in alone] == pytest.approx([score for _, score in together[row]], abs=1e-5)
    assert together[2] == []


def test_a_pinned_item_is_listed_once_and_only_if_it_may_be(lists):
    found = lists(4, PINS)
    expected = [[70, 11], [], [30, 3], [1, 5, 13]]
    # In the first row 5 is excluded and 70 comes twice; in the third 100 is not allowed and 8 is excluded; in the last
    # one 2 is not of the category.
    for row, pinned in enumerate(expected):
        behind = [item for item in passing(row)[0] if item not in pinned][: 4 - len(pinned)]
        assert [item for item, _ in found[row]] == pinned + behind
    assert [len({item for item, _ in row}) for row in found] == [4] * 4
    assert lists(2, np.array([[11, 12, 13]] * 4), rows=[0])[0] == by_hand(0, 2, np.array([[11, 12, 13]] * 4))


def test_a_diverse_list_has_other_items_in_the_order_of_the_layer(lists):
    best = by_hand(0, 50)
    items = [item for item, _ in best]
    order, _ = list_order(
        tf.constant([[score.expected for _, score in best]], tf.float32),
        tf.constant(UNIT[items][np.newaxis]),
        tf.ones((1, 50), tf.bool),
        tf.constant(5),
        tf.constant([0.7]),
        Rules(
            tf.constant([0]), tf.zeros((1, 50, 0), tf.int32), tf.constant([0]), tf.zeros((1, 50), tf.bool), tf.zeros(1)
        ),
    )  # fmt: skip
    (found,) = lists(5, diversity=0.7, rows=[0])
    assert found == [best[i] for i in order[0, :5].numpy()] != best[:5]


def test_a_list_longer_than_the_rules_goes_on_in_the_order_of_scores_or_ends_with_a_cap(monkeypatch):
    monkeypatch.setattr(list_rules, "PLACES", 7)
    monkeypatch.setattr(list_rules, "MOST", 12)
    monkeypatch.setattr(list_rules, "FEWEST", 5)
    lists = made_lists()
    whole, scores = passing(1)
    pins = np.array([[N] * 2, [whole[3], whole[60]], [N] * 2, [N] * 2])
    (found,) = lists(N, pins, diversity=0.9, rows=[1])
    items = [item for item, _ in found]
    assert items[:2] == [whole[3], whole[60]] and sorted(items) == sorted(whole)
    rest = [item for item in whole if item not in items[:7]]
    assert items[7:] == rest and items[2:7] != [item for item in whole if item not in items[:2]][:5]
    assert [score for _, score in found] == pytest.approx(scores[items], abs=1e-5)
    (capped,) = lists(N, cap=100, rows=[1])
    assert [item for item, _ in capped] == whole[:7]
    assert len(lists(9, np.tile(np.arange(20, 40), (4, 1)), rows=[1])[0]) == 9  # 7 of 20 pins count
