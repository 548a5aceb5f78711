import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.models.interests import Interests
from tfllmrec.serving.label_weights import SPREADS, LabelWeights

pytestmark = pytest.mark.tf
#: Items 0 to 4; item 3 has no label.
COLUMNS = np.array([[0, 1], [1, 3], [0, 2], [3, 3], [2, 3]])
NAMES = np.array(["red", "a=b, c", "Zürich"], object)


@pytest.fixture(scope="module")
def weights():
    return LabelWeights(Interests(NAMES, np.ones(3, bool), COLUMNS, (COLUMNS < 3).astype(np.float32)), 5)


def test_entries_are_read_bounded_and_counted(weights):
    entries = [
        ["red=1", "a=b, c=-0.5", "", "Zürich=7"],
        ["nope=1", "red", "red=", "red=x"],
        ["red=0", "", "=1", "red=nan"],
    ]
    weighed, unread = weights.read(tf.constant(entries))
    assert weighed.weights.numpy().tolist() == [[1, -0.5, 1, 0], [0] * 4, [0] * 4]
    assert weighed.labels.numpy().tolist() == [[0, 1, 2, 3], [3] * 4, [3] * 4]
    assert unread.numpy().tolist() == [0, 4, 2]
    assert weighed.any.numpy().tolist() == [True, False, False]


def test_blanks_are_ignored_and_a_label_counts_once(weights):
    entries = [[" red = 1 ", "Zürich= 0.5", "red=1"], ["red=0.5", "red=-1", "red=0.25"], ["red=1", "red=-1", "red=7"]]
    weighed, unread = weights.read(tf.constant(entries))
    assert weighed.labels.numpy().tolist() == [[0, 3, 2], [0, 3, 3], [0, 3, 3]]
    assert weighed.weights.numpy().tolist() == [[1, 0, 0.5], [-0.25, 0, 0], [1, 0, 0]]
    assert unread.numpy().tolist() == [0, 0, 0]
    assert weights.added(weighed, tf.zeros((3, 1), tf.int32)).numpy().ravel() == pytest.approx([2, -0.5, 2])


def slowly(entries, spread):
    """What is added to each item, by loops."""
    added = np.zeros(5)
    for entry in filter(None, entries):
        name, _, weight = entry.rpartition("=")
        for item in range(5):
            if name in NAMES and list(NAMES).index(name) in COLUMNS[item]:
                added[item] += SPREADS * spread * float(weight)
    return added


@pytest.mark.parametrize("entries", [["red=1", "Zürich=-1"], ["a=b, c=0.5", "red=0.5"], ["", ""], ["nope=1", "red=0"]])
def test_pairs_and_sums_against_loops(weights, entries):
    weighed, _ = weights.read(tf.constant([entries, ["red=-1", ""]]))
    items, values = (part.numpy() for part in weights.pairs(weighed, tf.constant([0.5, 3.0])))
    for row, (said, spread) in enumerate(((entries, 0.5), (["red=-1"], 3.0))):
        added = np.zeros(5)
        np.add.at(added, items[row], values[row])
        assert added == pytest.approx(slowly(said, spread))
    every = tf.tile(tf.range(6)[tf.newaxis], [2, 1])  # item 5 does not exist
    assert weights.added(weighed, every).numpy()[0] == pytest.approx([*slowly(entries, 1.0), 0])


def test_a_catalogue_without_labels_has_none_to_weigh():
    none = LabelWeights(None, 5)
    weighed, unread = none.read(tf.constant([["red=1", ""], ["", ""]]))
    assert unread.numpy().tolist() == [1, 0] and not weighed.any.numpy().any()
    assert not none.pairs(weighed, tf.ones(2))[1].numpy().any()


def test_nobody_and_no_column(weights):
    for shape in ((0, 3), (2, 0)):
        weighed, unread = weights.read(tf.fill(shape, ""))
        assert unread.shape == (shape[0],) and weights.pairs(weighed, tf.ones(shape[0]))[0].shape[0] == shape[0]
        assert weights.added(weighed, tf.zeros((shape[0], 4), tf.int32)).numpy().tolist() == [[0] * 4] * shape[0]
