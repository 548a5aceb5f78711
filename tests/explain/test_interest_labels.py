import numpy as np
import scipy.sparse as sp

from tfllmrec.explain.interest_labels import OTHER, SHOWN, confusion


def test_rows_are_labels_of_the_next_item_and_columns_what_is_listed_first():
    labels = ["drama", "war", "space"]
    wanted = sp.csr_array(np.array([[1, 0.2, 0], [0.5, 0.9, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]], np.float32))
    lists = np.array([[1, 0], [2, 0], [3, 3], [0, 1], [0, 3]])
    counts, names = confusion(lists, wanted, labels)
    assert names == ["drama", "war", OTHER]  # no next item is about space, so it is not told apart
    assert counts.tolist() == [
        [2, 0, 0],  # drama is listed first of those that are told apart, and the next item has it
        [0, 1, 1],  # war is listed, and the next item has it; nothing is listed
        [0, 0, 0],
    ]


def test_only_the_most_frequent_are_told_apart():
    n = SHOWN + 5
    wanted = sp.csr_array(np.vstack([np.eye(n), np.eye(n)[:SHOWN]]).astype(np.float32))
    counts, names = confusion(wanted.toarray().argmax(axis=1)[:, np.newaxis], wanted, [f"l{i}" for i in range(n)])
    assert names == [*(f"l{i}" for i in range(SHOWN)), OTHER]
    assert counts.trace() == counts.sum() == n + SHOWN and counts[-1, -1] == 5
