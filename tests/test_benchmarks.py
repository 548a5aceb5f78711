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


def test_a_soak_is_passed_only_when_nothing_failed():
    import soak

    def figures(**changes):
        made = soak.Figures(
            minutes=1, clients=2, pause_s=0, swap_s=30, bound_mb=50, items=7, swaps=1, rss_mb=[500, 900, 740]
        )
        made.settled_mb = [700, 740]
        made.seconds = {"recommend, REST": [0.001] * 98 + [0.003, 0.1], "search, gRPC": [0.002]}
        made.versions.update({"10": 1, "2": 60, "1": 39, soak.DURING: 1})
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    assert figures().problems() == []
    text = soak.section(figures(), "made")
    assert "**Passed.** 101 answers (2 a second), 0 failed requests, 1 swaps." in text
    assert "| recommend, REST | 100 | 1.0 | 4.0 | 100 |" in text  # 3 + .01 of the way to 100
    assert "500 MB at the start, at most 900 MB; 2 s after each swap 700, 740 MB." in text
    assert text.endswith("Answers by version: 1: 39, 2: 60, 10: 1, during a swap: 1.")
    for changes, problem in (
        ({"failures": ["search, gRPC: why", "other"]}, "2 of 103 requests failed, the first: search, gRPC: why"),
        ({"troubles": ["version 3 was not there"]}, "version 3 was not there"),
        ({"swaps": 3}, "no answers from version 3, 4"),
        ({"settled_mb": [700, 751]}, "memory grew by 51 MB, more than 50 MB"),
    ):
        assert figures(**changes).problems() == [problem]
        assert f"**Not passed: {problem}.**" in soak.section(figures(**changes), "made")


def test_a_swap_of_a_soak_removes_the_old_version_when_it_has_ended(tmp_path):
    import soak

    from tfllmrec.serving.answers import ModelVersion

    class Served:
        """Tells these states of versions 1 and 2, the last of them for ever."""

        def __init__(self, *states):
            self.states = list(states)

        def status(self):
            there.append((tmp_path / "1").exists() and (tmp_path / "2" / "file").exists())
            one, two = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            return [ModelVersion(1, one, ""), ModelVersion(2, two, "")]

    version, course, there = tmp_path / "made", soak.Course(), []
    version.mkdir()
    (version / "file").write_text("x")
    soak.put(version, tmp_path, 1)
    states = [("AVAILABLE", "LOADING"), ("UNLOADING", "AVAILABLE"), ("END", "AVAILABLE")]
    assert soak.swap(tmp_path, version, Served(*states), course, 10) == ""
    assert course.newest == 2 and there == [True] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "made"]
    told = soak.swap(tmp_path, version, Served(("END", "AVAILABLE")), course, 0.1)
    assert told.startswith("version 3 was not in the place of version 2 within 0 s: {1: 'END', 2: 'AVAILABLE'}")


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
def test_the_section_of_a_ranking_model_has_its_figures_and_what_it_takes(chain_run, monkeypatch):
    import ranking

    run, _ = chain_run
    monkeypatch.setattr(ranking, "CALLS", 2)  # fewer than are left out at the beginning
    monkeypatch.setattr(ranking, "OFFERED", (10, 100))
    title, text = ranking.measured(run.folder, "made")
    assert title == "chain: what the ranking model brings" and text.startswith("made\n\n- the hybrid's best 20 in the")
    assert f"ndcg@10 {run.metrics['ranking']['reranked']['ndcg@10']:.4f} (hybrid" in text and "learnt in" not in text
    ten, all_ = text.splitlines()[-2:]
    assert ten.startswith("- 10 candidates of one person: ") and "nan" not in ten
    assert all_.startswith("- 40 candidates of one person: ")  # there are no more


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


@pytest.mark.tf
def test_what_clients_and_server_took_is_told_beside_brute_force_and_the_targets():
    import serving

    def cell(model, clients, *turns):
        """Each turn: milliseconds of two calls."""
        cells = serving.Cell(model, "gRPC", clients)
        for taken in turns:
            cells.milliseconds.append(np.array(taken))
            cells.rates.append(sum(taken))
            cells.server_cpu.append(taken[0])
            cells.client_cpu.append(taken[1])
        return cells

    # Medians of the turns: 5 / 2, 2 / 4 and 8 / 2.
    ours, theirs = cell("recommend", 8, [4, 6], [1, 3], [8, 8]), cell("brute_force", 8, [2, 2], [4, 4], [1, 3])
    row, other = serving.load_table([ours, theirs])[2:]
    assert row == "| 8 | gRPC | recommend | 5.0 | 8.0 | 10 | 4.00 | 6.00 | 2.50 |"
    assert other.endswith("|  |")

    exact, cells = cell("exact", 1, [6, 8]), cell("partitioned", 1, [3, 5])
    told = serving.targets([ours, theirs], [exact, cells], 1000, 0.96, np.array([2, 2.5, 3]))[2:]
    assert [line.rsplit("|", 2)[1].strip() for line in told] == ["8.0 at 8", "2.80 at 1", "4.0 at 1"]
    assert "(2.5 ms, lowest 2.0)" in told[1] and "(0.960)" in told[2]


def test_clients_ask_until_their_time_is_over(monkeypatch):
    import serving_clients

    asked = []

    class Client:
        def __init__(self, address, model, **given):
            asked.append((address, model, given["connections"]))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            asked.append("closed")

        def recommend(self, history):
            asked.append(history)

    monkeypatch.setattr(serving_clients, "Client", Client)
    calls = [{"history": letter} for letter in "abcd"]
    done = serving_clients.ask(serving_clients.Order("grpc://here", "shop", 2, 0), "recommend", calls)
    # The first one connects; the two clients begin at different requests.
    assert asked[:2] == [("grpc://here", "shop", 2), "a"] and sorted(asked[2:4]) == ["a", "c"]
    assert asked[4:] == ["closed"] and len(done.milliseconds) == 2
    done = serving_clients.ask(serving_clients.Order("grpc://here", "shop", 1, 0.02), "recommend", calls)
    assert done.seconds >= 0.02 and 1 <= len(done.milliseconds) == len(asked) - 8

    def refuse(self, history):
        raise RuntimeError("no")

    monkeypatch.setattr(Client, "recommend", refuse)
    with pytest.raises(RuntimeError):
        serving_clients.ask(serving_clients.Order("grpc://here", "shop", 2, 0.02), "recommend", calls)
