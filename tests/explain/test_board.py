"""What TensorBoard shows of a run; tests/runs/test_board.py has that of a real fit."""

import warnings

import numpy as np
import pytest
from plain_runs import stand_in

from tfllmrec.explain.board import _beside, _pictures

pytestmark = pytest.mark.tf


def test_exposure_is_that_of_the_domain_that_the_test_asks_for(domain_run):
    hybrid = stand_in(domain_run.dataset.n_items)
    hybrid.gates.trainable = False
    figure = _pictures(domain_run, hybrid, print)["exposure"]()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == f"recommended: Gini {domain_run.results['hybrid'].metrics['gini@10']:.2f}"


def test_clusters_are_no_more_than_there_are_vectors(plain_run):
    kept = np.arange(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = _beside(plain_run, plain_run.split.strata(), kept, np.eye(3)[kept % 3])
    assert table.groupby(kept % 3)["cluster"].nunique().tolist() == [1] * 3 and table["cluster"].nunique() == 3
