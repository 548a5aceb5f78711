"""Text vectors with the covariance of another domain."""

import numpy as np

from tfllmrec.evaluation.alignment import distances
from tfllmrec.text import coral as module
from tfllmrec.text.coral import coral


def test_the_result_has_mean_and_covariance_of_the_other_domain(monkeypatch):
    monkeypatch.setattr(module, "SHRINKAGE", 0.0)
    rng = np.random.default_rng(0)
    own, onto = rng.normal(size=(500, 4)) * [1, 2, 3, 4] + 1, rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4))
    moved = coral(own, onto)
    np.testing.assert_allclose(moved.mean(axis=0), onto.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(np.cov(moved.T, bias=True), np.cov(onto.T, bias=True), atol=1e-4)


def test_two_domains_come_nearer_and_items_without_text_stay_so():
    rng = np.random.default_rng(0)
    own, onto = rng.normal(size=(400, 8)) * [5, *[1] * 7] + 2, rng.normal(size=(400, 8))
    own[0] = 0
    before, after = distances(own, onto), distances(coral(own, onto), onto)
    assert after.mmd < 0.2 * before.mmd and after.a_distance < 0.3 * before.a_distance
    assert not coral(own, onto)[0].any() and np.isfinite(coral(own, onto)).all()
