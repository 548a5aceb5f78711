import numpy as np
import pytest

from tfllmrec.text.centring import centred_unit, search_weights


def test_centred_unit():
    vectors = np.array([[3.0, 0], [0, 0], [1, 0], [2, 3]])
    # The mean of the three with text is (2, 1); the row without stays zero.
    expected = np.array([np.array([1, -1]) / np.sqrt(2), [0, 0], np.array([-1, -1]) / np.sqrt(2), [0, 1]])
    assert centred_unit(vectors) == pytest.approx(expected)
    assert not centred_unit(np.full((3, 4), 0.1)).any()
    assert not centred_unit(np.zeros((3, 4))).any()


@pytest.mark.parametrize("n", [3, 1000, 30_000])
def test_equal_texts_have_nothing_but_their_mean(n):
    text = np.tile(unit(np.random.default_rng(5).normal(size=(1, 6))).astype(np.float32), (n, 1))
    assert not centred_unit(text, widths=[4, 2]).any()
    factors, _, spread = search_weights(text, [4, 2])
    assert not factors.any() and spread == 0
    assert search_weights(text)[2] == 0


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


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_one_encoder_is_searched_by_its_cosines():
    text = unit(np.random.default_rng(2).normal(size=(6, 4)))
    for widths in (None, [4]):
        factors, centre, spread = search_weights(text, widths)
        assert factors.tolist() == [1] * 4 and centre.tolist() == [0] * 4
        assert spread == pytest.approx((text @ text.T).std(), rel=1e-4)


def test_the_cosines_of_each_of_several_encoders_vary_equally():
    rng = np.random.default_rng(3)
    # The vectors of the second encoder are nearly parallel.
    parts = [unit(rng.normal(size=(30, 4))), unit(1 + 0.1 * rng.normal(size=(30, 3)))]
    text = np.insert(np.hstack(parts) / np.sqrt(2), 7, 0, axis=0)  # an item without text
    factors, centre, spread = search_weights(text, [4, 3])
    spreads = [(part @ part.T).std() for part in parts]
    assert spread == pytest.approx(np.mean(spreads) / 2, rel=1e-5)  # of vectors that are together of length 1
    expected = np.repeat(np.mean(spreads) / spreads, [4, 3])
    assert factors == pytest.approx(expected, rel=1e-5)
    assert expected[4] > 5 * expected[0]
    query = rng.normal(size=7)
    assert (text @ (query * factors) - query @ centre).sum() == pytest.approx(-query @ centre, abs=1e-5)


def test_an_encoder_to_which_all_texts_are_the_same_says_nothing():
    text = np.hstack([unit(np.random.default_rng(4).normal(size=(5, 3))), np.ones((5, 1))]).astype(np.float32)
    assert search_weights(text / np.sqrt(2), [3, 1])[0] == pytest.approx([0.5] * 3 + [0])
    same = np.full((50, 8), 8**-0.5, np.float32)
    assert not search_weights(same, [4, 4])[0].any()
    assert not search_weights(np.zeros((5, 2)), [1, 1])[0].any()
