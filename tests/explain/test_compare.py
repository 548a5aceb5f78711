from dataclasses import replace

import numpy as np
import pytest
from plain_runs import write_run

import tfllmrec
from tfllmrec.config import EvaluationConfig
from tfllmrec.errors import DataError
from tfllmrec.evaluation.protocol import paired_difference
from tfllmrec.explain.compare import comparison_of, folders_of, names_of
from tfllmrec.runs.run import Run


@pytest.fixture
def runs(chain_split, tmp_path):
    return [write_run(tmp_path / name, chain_split, share) for name, share in (("first", 0.6), ("second", 0.9))]


def test_rows_columns_and_differences(runs):
    comparison = tfllmrec.compare([runs[0].folder, runs[1]])
    table = comparison.table
    assert table.index.names == ["run", "recommender"]
    assert list(table.index) == [("first", "hybrid"), ("second", "hybrid"), ("", "popularity")]
    assert comparison.labels == ["ndcg@10", "recall@10", "recall@10/tail", "coverage@10"]
    assert comparison.targets == {"ndcg@10": 60, "recall@10": 60, "recall@10/tail": 46}
    first, second = (run.results["hybrid"] for run in runs)
    for label in comparison.targets:
        row = table.loc[("second", "hybrid"), label]
        assert row["value"] == second.metrics[label]
        assert (row["low"], row["high"]) == second.intervals[label]
        found = (row["difference"], row["difference_low"], row["difference_high"])
        assert found == paired_difference(second, first, label) == comparison.differences[label]["second"]
        assert row["difference"] == pytest.approx(second.metrics[label] - first.metrics[label])
    assert table.loc[("first", "hybrid"), ("ndcg@10", "difference")] == 0
    assert ("coverage@10", "difference") not in table.columns
    assert (
        table.loc[("", "popularity"), ("coverage@10", "value")] == runs[0].results["popularity"].metrics["coverage@10"]
    )


def test_it_is_a_table_and_a_plot(runs):
    comparison = tfllmrec.compare(runs)
    assert "<table" in comparison._repr_html_()
    assert [axes.get_title("left") for axes in comparison.plot().axes] == ["ndcg@10", "recall@10", "recall@10/tail"]
    (axes,) = comparison.plot(["recall@10"]).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["second", "popularity"]


def test_metrics_without_differences_are_no_plot(runs):
    with pytest.raises(DataError, match=r"No differences in coverage@10, mrr: expected metrics among ndcg@10, recall"):
        tfllmrec.compare(runs).plot(["coverage@10", "ndcg@10", "mrr"])
    comparison = tfllmrec.compare(runs)
    bare = replace(comparison, table=comparison.table[["coverage@10"]])
    with pytest.raises(DataError, match="no difference to plot"):
        bare.plot()


def test_a_single_run_cannot_be_plotted(runs):
    alone = comparison_of({("first", "hybrid"): runs[0].results["hybrid"]})
    with pytest.raises(DataError, match="nothing is compared"):
        alone.plot()


def test_a_run_beside_itself_does_not_differ(runs):
    table = tfllmrec.compare([runs[0], runs[0]]).table
    assert list(table.index)[:2] == [("first", "hybrid"), ("first (2)", "hybrid")]
    assert table["ndcg@10"]["difference"].iloc[1] == 0


def test_names_tell_folders_apart(tmp_path, chain_split):
    paths = ["a/run", "b/run", "a/x/run", "a/popularity"]
    runs = [write_run(tmp_path / path, chain_split) for path in paths]
    assert names_of(runs) == ["a/run", "b/run", "x/run", "run popularity"]
    assert folders_of(runs) == ["a/run", "b/run", "x/run", "popularity"]


def test_what_cannot_be_compared_is_refused(runs, chain_split, tmp_path):
    with pytest.raises(DataError, match="at least one run"):
        tfllmrec.compare([])
    other = write_run(tmp_path / "other", chain_split)
    config = (other.folder / "config.yaml").read_text()
    (other.folder / "config.yaml").write_text(config.replace("head_share: 0.2", "head_share: 0.5"))
    with pytest.raises(DataError, match=r"different items as head items.*same evaluation\.head_share"):
        tfllmrec.compare([runs[0], Run.open(other.folder)])
    assert EvaluationConfig().head_share == 0.2
    assert np.isfinite(tfllmrec.compare([runs[0]]).table["ndcg@10"]["value"]).all()
