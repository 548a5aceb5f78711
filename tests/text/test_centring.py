import numpy as np
import pytest

from tfllmrec.text.centring import centred_unit


def test_centred_unit():
    vectors = np.array([[3.0, 0], [0, 0], [1, 0], [2, 3]])
    # The mean of the three with text is (2, 1); the row without stays zero.
    expected = np.array([np.array([1, -1]) / np.sqrt(2), [0, 0], np.array([-1, -1]) / np.sqrt(2), [0, 1]])
    assert centred_unit(vectors) == pytest.approx(expected)
    assert not centred_unit(np.full((3, 4), 0.1)).any()
    assert not centred_unit(np.zeros((3, 4))).any()


def test_vectors_that_come_later_lose_the_mean_of_the_catalogue():
    catalogue = np.array([[3.0, 0], [0, 0], [1, 0], [2, 3]])
    later = centred_unit(np.array([[5.0, 5], [0, 0]]), catalogue)
    assert later == pytest.approx(np.array([np.array([3, 4]) / 5, [0, 0]]))


def test_each_encoder_is_centred_and_counts_the_same():
    rng = np.random.default_rng(1)
    # The second encoder's vectors are nearly parallel: their mean is all but all of them.
    first, second = rng.normal(size=(9, 4)), 50 + 0.1 * rng.normal(size=(9, 3))
    together = centred_unit(np.hstack([first, second]), widths=[4, 3])
    assert np.linalg.norm(together, axis=1) == pytest.approx(1)
    alone = [centred_unit(vectors) for vectors in (first, second)]
    assert together @ together.T == pytest.approx(sum(v @ v.T for v in alone) / 2, abs=1e-5)


def test_an_item_that_one_encoder_has_no_vector_of():
    first, second = np.array([[1.0, 0], [0, 1], [0, 0]]), np.array([[1.0, 0], [0, 1], [1, 1]])
    together = centred_unit(np.hstack([first, second]), widths=[2, 2])
    assert not together[2, :2].any()
    assert np.linalg.norm(together, axis=1)[:2] == pytest.approx(1)
