import numpy as np
import pytest

from tfllmrec.evaluation.calibration import calibration_curve, calibration_error


def test_the_error_by_hand():
    predicted, observed = np.array([0.1, 0.2, 0.6, 0.8]), np.array([0, 1, 1, 0])
    # The bins are the first two and the last two.
    expected = 2 / 4 * abs((0.1 + 0.2) / 2 - 1 / 2) + 2 / 4 * abs((0.6 + 0.8) / 2 - 1 / 2)
    assert calibration_error(predicted, observed, bins=2) == pytest.approx(expected)
    turned = np.array([3, 0, 2, 1])
    assert calibration_error(predicted[turned], observed[turned], bins=2) == pytest.approx(expected)
    assert calibration_error(predicted, observed, bins=1) == pytest.approx(abs(1.7 / 4 - 2 / 4))
    assert calibration_error(predicted, observed, bins=50) == pytest.approx((0.1 + 0.8 + 0.4 + 0.8) / 4)
    assert np.isnan(calibration_error(np.array([]), np.array([])))


def test_equal_predictions_are_not_told_apart():
    observed = np.array([0] * 30 + [1] * 10)
    assert calibration_error(np.full(40, 0.25), observed, bins=10) == 0
    assert calibration_error(np.full(40, 0.3), observed, bins=10) == pytest.approx(0.05)


def test_honest_probabilities_have_a_small_error_and_overconfident_ones_a_large_one():
    generator = np.random.default_rng(0)
    logits = generator.normal(-2, 1.5, 200_000)
    true = 1 / (1 + np.exp(-logits))
    happened = generator.random(len(true)) < true
    assert calibration_error(true, happened) < 0.003
    assert calibration_error(1 / (1 + np.exp(-2 * logits)), happened) > 0.05


def test_the_curve_has_the_bins_of_the_error():
    generator = np.random.default_rng(1)
    predicted = generator.random(1000).round(2)  # many are equal
    observed = generator.random(1000) < predicted**2
    foretold, happened, counts = calibration_curve(predicted, observed, bins=8)
    assert counts.sum() == 1000 and len(counts) == 8 and (np.diff(foretold) > 0).all()
    error = (counts * np.abs(foretold - happened)).sum() / 1000
    assert error == pytest.approx(calibration_error(predicted, observed, bins=8))


def test_the_curve_leaves_out_empty_bins():
    foretold, happened, counts = calibration_curve(np.array([0.3] * 5 + [0.9] * 5), np.array([0] * 5 + [1] * 5), bins=5)
    assert (foretold.tolist(), happened.tolist(), counts.tolist()) == (pytest.approx([0.3, 0.9]), [0, 1], [5, 5])
    assert [len(part) for part in calibration_curve(np.array([]), np.array([]))] == [0, 0, 0]
