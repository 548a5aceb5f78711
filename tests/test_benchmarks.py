"""What the commands in ``benchmarks/`` put together around the runs that they measure."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


def test_a_section_is_replaced_and_all_others_are_kept(tmp_path, monkeypatch):
    import sections

    monkeypatch.setattr(sections, "RESULTS", tmp_path / "RESULTS.md")
    sections.replace_section("b", "first\n\n| table |\n")
    sections.replace_section("a: more", "other")
    sections.replace_section("b", "second")
    text = (tmp_path / "RESULTS.md").read_text()
    assert text == sections.OPENING + "\n## a: more\n\nother\n\n## b\n\nsecond\n"


def test_the_section_of_a_search_says_where_the_defaults_stand(tmp_path):
    import search

    from tfllmrec.training.tune import Search, Trial

    def trial(number, state, value):
        metrics = {"ndcg@10": value, "recall@10": 2 * value, "recall@10/tail": None}
        return Trial(
            number, state, value, {"model.blocks": number, "training.learning_rate": 1 / number}, metrics, 3, 9.0
        )

    trials = [trial(1, "complete", 0.2), trial(2, "pruned", 0.1), trial(3, "complete", 0.3)]
    text = search.section(Search(tmp_path, trials, {"model.blocks": 0.75}), "made")
    assert "3 trials, 1 of them given up early" in text and "comes in at place 2" in text and "blocks 75%" in text
    assert text.splitlines()[-2:] == [
        "| 3 | 0.3000 | 0.3000 | 0.6000 | 0.0000 | 3 | 0.333 |",
        "| **1, from the data** | 0.2000 | 0.2000 | 0.4000 | 0.0000 | 1 | 1 |",
    ]


@pytest.mark.tf
def test_the_section_of_a_run_has_its_figures_and_the_published_rows(chain_run):
    import quality

    run, _ = chain_run
    text = quality.section("beauty", run, "the command")
    assert text.startswith("`the command` (seed 42, " + run.record["date"])
    lines = text.splitlines()
    header = next(line for line in lines if line.startswith("| |"))
    rows = [line for line in lines if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {header.count("|")}
    assert f"| hybrid | **{run.metrics['results']['hybrid']['ndcg@10']:.4f} " in text or "| hybrid | " in text
    assert "| *BSARec* (MTandHJ/RecBoard) | 0.0610 | 0.1002 |" in text
    assert "3 epochs, the best one is number" in text


@pytest.mark.tf
def test_switches_switch_off_what_they_say(chain_run):
    import ablation

    run, _ = chain_run
    queries = run.split.test.take(np.arange(8))

    def scores(switch):
        model = run.load_model()
        switch(model, run)
        return model, model.score(queries)

    model, behaviour_alone = scores(ablation.dense_off)
    _, factor = model.gates.factors(model.train_counts)
    padded = queries.history.padded(int(queries.history.lengths.max()), model.n_items).astype(np.int32)
    np.testing.assert_allclose(behaviour_alone, model.behaviour(padded) * factor, rtol=1e-5)

    gated, _ = scores(ablation.gate_a_off)
    gate = gated.gates.gate(gated.train_counts).numpy()
    mean = np.average(run.load_model().gates.gate(gated.train_counts), weights=gated.train_counts.numpy())
    np.testing.assert_allclose(gate, mean, rtol=1e-4)

    dense, _ = scores(ablation.behaviour_off)
    assert not np.any(dense.gates.factors(dense.train_counts)[1])
