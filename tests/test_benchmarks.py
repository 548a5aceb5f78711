"""Tests of the commands in ``benchmarks/``."""

import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
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

    from tfllmrec.runs.search import Search, Trial

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
            minutes=1, clients=2, pause_s=0, swap_s=30, bound_mb=50, items=7, swaps=1, memory_mb=[500, 900, 740]
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

    from tfllmrec.client.answers import ModelVersion

    class Served:
        """Reports these states of versions 1 and 2 one after the other, and then always the last ones."""

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
    assert soak.swap(tmp_path, version, Served(*states), course, 600) == ""
    assert course.newest == 2 and there == [True] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "made"]
    told = soak.swap(tmp_path, version, Served(("END", "AVAILABLE")), course, 0)
    assert told.startswith("version 3 was not in the place of version 2 within 0 s: {1: 'END', 2: 'AVAILABLE'}")


def quality_section(seeds, hybrid, ease, published=""):
    return "\n".join(
        [
            f"`python benchmarks/quality.py x` ({seeds}, 2026-11-22, x86_64, 2 cores, some, CPU)\n\n7 users; text\n",
            "| | ndcg@10 | recall@10 | recall@10/head | recall@10/tail | coverage@10 |",
            "|---|---:|---:|---:|---:|---:|",
            f"| hybrid | **{hybrid} ±0.003** (0.1 to 0.3) | **0.3000** | 0.1000 | 0.0900 | 0.5000 |",
            "| popularity | 0.0100 ±0.001 | 0.0200 | 0.1000 | 0.0000 | 0.0100 |",
            f"| ease | {ease} ±0.001 | 0.2000 | **0.2000** | 0.0500 | 0.1000 |",
            "| hybrid, in the order of its ranking model | 0.4000 | 0.4000 | 0.1000 | 0.0900 | 0.5000 |",
            *([published] if published else []),
            "| targets | 1,000 | 1,000 | 600 | 400 | |",
        ]
    )


def test_the_overview_is_read_from_the_sections(tmp_path, monkeypatch):
    import sections

    monkeypatch.setattr(sections, "RESULTS", tmp_path / "RESULTS.md")
    sections.replace_section("speed: toys", "`python benchmarks/speed.py toys` (2026-11-22)\n\n| a | b |\n|---|---|")
    sections.replace_section("toys", quality_section("seed 42", "0.2000", "0.1500"))
    row = "| *BSARec*, id-only (somewhere) | 0.0610 | 0.1002 | | | |"
    sections.replace_section("beauty", quality_section("seeds 1, 2, 42", "0.2000", "0.1500", row))
    sections.replace_section("toys", quality_section("seed 42", "0.1000", "0.1600"))
    text = (tmp_path / "RESULTS.md").read_text()
    table = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    assert table[1:] == [
        "| [beauty](#beauty) | 1, 2, 42 | 0.2000 ±0.003 (0.1 to 0.3) | 0.3000 | 0.0900 | ease 0.1500 "
        "| *BSARec*, id-only (somewhere) 0.0610 |",
        "| [toys](#toys) | 42 | 0.1000 ±0.003 (0.1 to 0.3) | 0.3000 | 0.0900 | ease 0.1600 | - |",
    ]
    assert text.count("| ease |") == 2 and "## speed: toys" in text  # the sections themselves are kept


def test_an_overview_of_sections_from_before_the_targets_were_shown():
    import sections

    results = (Path(__file__).parents[1] / "benchmarks" / "RESULTS.md").read_text()
    parts = {part.splitlines()[0]: part for part in results.split("\n## ")[1:]}
    rows = [line for line in sections.opening(parts).splitlines() if line.startswith("| [")]
    assert len(rows) == sum("`python benchmarks/quality.py " in part for part in parts.values()) > 3
    assert all(line.count("|") == 8 for line in rows)


def test_how_figures_were_made_names_the_seeds():
    from sections import made_by

    assert made_by("python x", [1, 2], "2026-01-01").startswith("`python x` (seeds 1, 2, 2026-01-01, ")
    assert made_by("python x", [7], "2026-01-01") == made_by("python x", 7, "2026-01-01")
    assert made_by("python x", date="2026-01-01").startswith("`python x` (2026-01-01, ")


def test_differences_are_starred_beyond_chance_after_the_seeds_are_averaged(monkeypatch):
    """One variant is better with both seeds; the other is better with one seed and as much worse with the other."""
    import seeds

    from tfllmrec.evaluation.protocol import Result, averaged

    def result(values):
        per_query = {
            "ndcg@10": values,
            "recall@10": values,
            "recall@10/cold": np.where(np.arange(600) < 3, 0.5, np.nan),
        }
        metrics = {label: float(np.nanmean(column)) for label, column in per_query.items()} | {"coverage@10": 0.5}
        counts = {"queries": 600, "targets": 600, "targets/cold": 3}
        return Result(metrics, {}, counts, per_query, [])

    noise = np.random.default_rng(0).random(600)
    other = np.random.default_rng(1).normal(0, 0.1, 600)
    other -= other.mean()
    whole, helps, varies = (
        averaged([result(noise), result(noise / 2)]),
        averaged([result(noise + 0.1), result(noise / 2 + 0.1)]),
        averaged([result(noise + 0.1), result(noise / 2 - 0.1 + other)]),
    )
    more = {name: {"s": name} for name in ("whole", "helps", "varies")}
    results = {"whole": whole, "helps": helps, "varies": varies}
    for few, mark in ((2, "(*)"), (3, "*")):
        lines = seeds.differences(results, few, more)
        assert f"(+0.1000{mark})" in lines[3]
    monkeypatch.setattr(seeds, "CLAIM_TARGETS", 601)
    assert "(+0.1000(*))" in seeds.differences(results, 3, more)[3]
    monkeypatch.undo()
    mean = 0.75 * noise.mean()
    assert lines[0] == "| | ndcg@10 | recall@10 | s |"
    spread = f"({noise.mean() / 2:.4f} to {noise.mean():.4f})"
    assert lines[2] == f"| whole | {mean:.4f} {spread} | {mean:.4f} {spread} | whole |"
    assert f"| helps | {mean + 0.1:.4f} (+0.1000*)" in lines[3]
    assert f"| varies | {mean:.4f} (+0.0000) ({noise.mean() / 2 - 0.1:.4f} to {noise.mean() + 0.1:.4f})" in lines[
        4
    ] or (f"| varies | {mean:.4f} (-0.0000) " in lines[4])
    assert lines[5] == "| targets | 600 | 600 | |" and lines[-1].endswith("recall@10/cold (3)")


def stand_in_run(seed, values, users=("a", "b"), data="d"):
    """Returns an object with the attributes of a complete run that are read."""
    from types import SimpleNamespace

    from tfllmrec.evaluation.protocol import Result

    values = np.asarray(values, float)
    metrics = {"ndcg@10": float(values.mean()), "recall@10": float(values.mean()), "coverage@10": 0.5}
    made = Result(metrics, {}, {"queries": 2, "targets": 200}, {"ndcg@10": values, "recall@10": values}, [])
    return SimpleNamespace(
        folder=Path(f"run-{seed}"),
        config=SimpleNamespace(seed=seed),
        record={"data_sha256": data},
        split=SimpleNamespace(kind="random", test=SimpleNamespace(user_ids=np.array(users))),
        results={"hybrid": made, "ease": made},
    )


def test_runs_of_several_seeds_are_averaged_only_where_they_are_one_experiment():
    import seeds

    from tfllmrec.errors import ModelError

    runs = [stand_in_run(1, [0.0, 0.2]), stand_in_run(2, [0.4, 0.2])]
    mean = seeds.averaged_runs(runs)["hybrid"]
    np.testing.assert_allclose(mean.per_query["ndcg@10"], [0.2, 0.2])
    assert mean.spread["ndcg@10"] == pytest.approx((0.1, 0.3))
    for wrong, message in (
        (stand_in_run(1, [0.0, 0.2]), "a seed each"),
        (stand_in_run(2, [0.0, 0.2], data="e"), "same data"),
        (stand_in_run(2, [0.0, 0.2], users=("a", "c")), "same test users; .*random split"),
    ):
        with pytest.raises(ModelError, match=message):
            seeds.averaged_runs([runs[0], wrong])
    assert seeds.averaged_runs(runs[1:])["hybrid"] is runs[1].results["hybrid"]


def test_every_published_row_says_what_it_reads():
    import quality

    rows = quality.PUBLISHED["movielens-1m"]
    assert (rows["HSTU-large + MoL"].ndcg, rows["HSTU-large + MoL"].recall) == (0.1979, 0.3412)
    assert {row.reads for rows in quality.PUBLISHED.values() for row in rows.values()} == {
        "id-only", "semantic ids from text"
    }  # fmt: skip
    assert all("ties in time" in row.differs for name, row in rows.items() if row.source in (
        "bailuding/rails", "NetEase-Media/HSTU-Tensorflow", "facebookresearch/generative-recommenders"
    ))  # fmt: skip


def test_curves_of_starting_values_go_on_where_they_stopped(tmp_path, monkeypatch, chain_split):
    from types import SimpleNamespace

    import starting_values

    from tfllmrec.config import ExperimentConfig
    from tfllmrec.models.fitting import TrainingData

    settings = {"decay": 0.6, "l2": 50.0, "co_occurrence": 0.1, "text": 0.0, "next_item": 1.0, "popularity": 0.25}
    config = ExperimentConfig(item_weights=settings | {"rank": "all"})
    run = SimpleNamespace(
        folder=tmp_path, config=config,
        training_data=TrainingData(chain_split, np.zeros((chain_split.dataset.n_items, 1), np.float32)),
        metrics={"data": {"name": "chain"}},
    )  # fmt: skip
    solved = []

    def value_of(data, tried):
        if len(solved) == 5:
            raise KeyboardInterrupt
        solved.append(tried)
        return tried.decay - abs(np.log10(tried.l2 / 100)) / 10

    monkeypatch.setattr(starting_values, "item_weights_value", value_of)
    with pytest.raises(KeyboardInterrupt):
        starting_values.curves(run)
    everything = list(solved)
    for _ in range(12):  # five points each time
        solved.clear()
        try:
            start, chosen, made = starting_values.curves(run)
            break
        except KeyboardInterrupt:
            everything += solved
    everything += solved
    assert chosen.l2 == 50 and start.l2 == 100 and "text" not in made  # items without text
    assert len(everything) > 10 and len({str(one) for one in everything}) == len(everything)  # no point is solved twice
    assert list(made["l2"]) == [10, 30, 50, 100, 300, 1000, 3000]
    assert made["l2"][50] == pytest.approx(0.6 - np.log10(2) / 10) and made["decay"][1.0] == pytest.approx(
        0.97, abs=0.01
    )
    rows = [line for line in starting_values.curve_tables([run]) if line.startswith("| chain")]
    assert len(rows) == 5 and rows[1].startswith("| chain | 0.5000 | 0.5477 | **0.6000**† | 0.5523 |")
    assert "| 40: 0.5699 | 40: 0.5699 |" in rows[4]  # the rank *all*: 40 items
    assert "| 100: 0.6000 | 50: 0.5699 | +0.0000 (+0.0%) |" in rows[1]


def test_the_run_folder_of_a_seed():
    import quality

    assert quality.folder_of(Path("runs/quality/toys"), 42) == Path("runs/quality/toys")
    assert quality.folder_of(Path("runs/quality/toys"), 1) == Path("runs/quality/toys-seed1")


@pytest.mark.tf
def test_the_section_of_a_run_has_its_figures_and_the_published_rows(chain_run):
    import quality

    run, _ = chain_run
    text = quality.section("beauty", [run], "the command")
    assert text.startswith("`the command` (seed 42, " + run.record["date"])
    lines = text.splitlines()
    header = next(line for line in lines if line.startswith("| |"))
    rows = [line for line in lines if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {header.count("|")}
    figures = run.metrics["results"]
    best = max(figures.keys() - {"hybrid_refit"}, key=lambda name: figures[name]["ndcg@10"])
    cell = f"{figures['hybrid']['ndcg@10']:.4f} "
    assert f"| hybrid | {'**' if best == 'hybrid' else ''}{cell}" in text
    assert "| *BSARec*, id-only (MTandHJ/RecBoard) | 0.0610 | 0.1002 |" in text
    assert "3 epochs, the best one is number" in text and "One seed: " in text
    assert rows[-1].startswith("| targets | 60 | 60 |")


@pytest.mark.tf
def test_the_section_of_several_seeds_has_their_mean_and_spread(chain_run, tmp_path):
    """The second run is a copy with another seed, whose hybrid has an ndcg@10 of 1 for every query."""
    import quality

    from tfllmrec.runs.run import Run

    run, _ = chain_run
    copy = Run(shutil.copytree(run.folder, tmp_path / "seed1"))
    config = copy.folder / "config.yaml"
    config.write_text(config.read_text().replace("\nseed: 42", "\nseed: 1"))
    perfect = np.ones_like(run.results["hybrid"].per_query["ndcg@10"])
    copy.results["hybrid"].metrics["ndcg@10"], copy.results["hybrid"].per_query["ndcg@10"] = 1.0, perfect
    value = run.metrics["results"]["hybrid"]["ndcg@10"]
    text = quality.section("chain", [run, copy], "the command")
    assert text.startswith("`the command` (seeds 42, 1, ") and "Each user's values are averaged" in text
    assert f"({value:.4f} to 1.0000)" in text and f"| hybrid | **{(value + 1) / 2:.4f} ±" in text
    assert "- Seed 42: Chosen from the data: " in text and "- Seed 1: Chosen from the data: " in text


@pytest.mark.tf
def test_the_section_of_a_ranking_model_has_its_figures_and_what_it_takes(chain_run, monkeypatch):
    import ranking
    import sections

    run, _ = chain_run
    monkeypatch.setattr(ranking, "CALLS", 2)  # fewer than the first calls, which are not measured
    monkeypatch.setattr(ranking, "OFFERED", (10, 100))
    assert ranking.title_of(run) == "chain: what the ranking model brings"
    found = ranking.measured(run)
    text = ranking.section([found], "command")
    assert text.startswith(f"`command` (seed {run.config.seed}, ") and "- hybrid: the hybrid's best 20 in" in text
    assert "- hybrid_refit: the hybrid's best 20 in the new order" in text
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| hybrid")]
    assert rows == [name + order for name in ("hybrid", "hybrid_refit") for order in ("", sections.ORDERED)]
    new, own = run.metrics["ranking"]["reranked"]["ndcg@10"], run.results["hybrid"].metrics["ndcg@10"]
    gain = new - own
    assert f"ndcg@10 {new:.4f} (hybrid" in text and "learnt in" not in text
    assert f"| {new:.4f} ({gain:+.4f}" in text
    ten, all_ = text.splitlines()[-2:]
    assert ten.startswith("- 10 candidates of one person: ") and "nan" not in ten
    assert all_.startswith("- 40 candidates of one person: ")  # there are no more
    plain = {name: found.results[name.removesuffix(sections.ORDERED)] for name in found.results}
    both = ranking.section([found, found._replace(seed=7, results=plain)], "command")
    assert "(seeds" in both and "- Seed 7: hybrid: the hybrid's best 20" in both
    refit = plain["hybrid_refit"].metrics["ndcg@10"]
    assert f"({(new + refit) / 2 - own:+.4f}" in both


@pytest.mark.tf
def test_the_section_of_modalities_compares_the_variants(chain_run):
    import modalities
    from variants import section

    run, _ = chain_run
    runs = {name: [run] for name in modalities.VARIANTS}
    text = section(runs, modalities.about("use"), modalities.CHOSEN, "made")
    figure = f"{run.metrics['results']['hybrid']['ndcg@10']:.4f}"
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| and ")]
    assert [name.strip() for name, _ in rows] == list(modalities.VARIANTS)[1:]
    assert {ndcg.strip() for _, ndcg in rows} == {f"{figure} (+0.0000)"}


@pytest.mark.tf
def test_the_section_of_user_text_compares_with_and_without(chain_run):
    import user_text
    from variants import section

    run, _ = chain_run
    runs = {name: [run] for name in user_text.VARIANTS}
    text = section(runs, user_text.about("movielens-small", run), user_text.CHOSEN, "made")
    figure = f"{run.metrics['results']['hybrid']['ndcg@10']:.4f}"
    assert f"| with them | {figure} (+0.0000) |" in text and "The texts are the tags" in text
    assert user_text.data_of("movielens-small", Path("d")) == {"name": "movielens-small", "source": "d/movielens-small"}


def test_each_variant_of_modalities_reads_what_the_one_before_it_reads():
    import modalities

    from tfllmrec.config import parse_config

    configs = [parse_config({}, settings) for settings in modalities.VARIANTS.values()]
    assert [config.model.item_fields for config in configs] == ["none", "all", "all"]
    unread = [name for config in configs for name, field in config.data.fields.items() if not field.use]
    assert unread == [modalities.VECTORS]


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
    _, factor, _ = model.gates.factors(model.train_counts)
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
        """Returns a cell; each turn has the milliseconds of two calls."""
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
    # The first request connects; the two clients begin at different requests.
    assert asked[:2] == [("grpc://here", "shop", 2), "a"] and sorted(asked[2:4]) == ["a", "c"]
    assert asked[4:] == ["closed"] and len(done.milliseconds) == 2
    done = serving_clients.ask(serving_clients.Order("grpc://here", "shop", 1, 0.02), "recommend", calls)
    assert done.seconds >= 0.02 and 1 <= len(done.milliseconds) == len(asked) - 8

    def refuse(self, history):
        raise RuntimeError("no")

    monkeypatch.setattr(Client, "recommend", refuse)
    with pytest.raises(RuntimeError):
        serving_clients.ask(serving_clients.Order("grpc://here", "shop", 2, 0.02), "recommend", calls)


@pytest.mark.long
@pytest.mark.slow
def test_e5_finds_in_chinese_and_german_what_it_finds_in_english():
    import languages

    from tfllmrec.config import TextConfig
    from tfllmrec.text.side_by_side import encoder_of

    encoder = encoder_of(TextConfig(encoder="e5"))
    english, chinese, german = (languages.recalls(encoder, language).mean() for language in languages.LANGUAGES)
    assert english > 0.4
    assert min(chinese, german) >= 0.8 * english


@pytest.mark.tf
def test_what_a_rule_costs_by_hand():
    import list_rules

    categories = list_rules.category_matrix(["a|b", "", "b", "c"])
    assert categories.tolist() == [[0, 1], [-1, -1], [1, -1], [2, -1]]
    listed = np.full((3, list_rules.K), -1)
    listed[0, :3], listed[1, :2], listed[2, :1] = [3, 0, 2], [1, 2], [0]
    tail = np.array([False, True, True, False])
    found = list_rules.figures(listed, np.array([0, 2, 1]), tail, categories)
    assert found == {
        "ndcg@10": pytest.approx((1 / np.log2(3) + 1 / np.log2(3) + 0) / 3),
        "recall@10": pytest.approx(2 / 3),
        "recall@10/tail": pytest.approx(1 / 2),
        "tail items": pytest.approx(3 / 6),
        "categories": pytest.approx((3 + 1 + 2) / 3),
        "items": pytest.approx(6 / 3),
        "coverage@10": 4 / 4,
    }
    header, _, plain, half = list_rules.table("cap", {"none": found, "1": found | {"ndcg@10": found["ndcg@10"] / 2}})
    assert header.startswith("| cap | ndcg@10 | recall@10") and "(+0.0%)" in plain and "(-50.0%)" in half


def planted_ratings():
    """Returns ratings that are made of biases and one factor, and text vectors that are random."""
    import ratings

    generator = np.random.default_rng(0)
    users, items = np.nonzero(generator.random((80, 40)) < 0.6)
    of_users, of_items = generator.normal(size=80), generator.normal(size=40)
    exact = 3 + 0.4 * of_users[users] - 0.4 * of_items[items] + of_users[users] * of_items[items]
    return ratings.Ratings(
        users,
        items,
        np.clip(exact + 0.2 * generator.normal(size=len(users)), 1, 5),
        80,
        generator.normal(size=(40, 25)),
    )


def test_contenders_in_ratings_learn_from_the_same_rows(capsys):
    import ratings

    train, test = planted_ratings().divided(1)
    found = {
        name: ratings.error(ratings.CONTENDERS[name](train, 3), test)
        for name in (ratings.OURS, "biased matrix factorization (ALS)", "biases")
    }
    spread = test.ratings.std()
    assert found["biases"] < spread and all(found[name] < 0.6 * found["biases"] for name in list(found)[:2])


def test_trees_read_means_of_other_folds():
    import ratings

    rows = planted_ratings()
    columns = ratings.Columns(rows, 5)
    table = columns.table(rows.users, rows.items, columns.fold)
    for row in (0, 77):
        others = (rows.users == rows.users[row]) & (columns.fold != columns.fold[row])
        above = (rows.ratings[others] - rows.ratings.mean()).sum() / (others.sum() + 5)
        assert table["user_mean"][row] == pytest.approx(above)
        assert table["user_count"][row] == pytest.approx(np.log1p(others.sum()))
    of_all = columns.table(rows.users[:1], rows.items[:1])
    assert of_all["item_count"][0] == pytest.approx(np.log1p((rows.items == rows.items[0]).sum()))
    assert [name for name in table if name.startswith("text_")] == [f"text_{i}" for i in range(20)]


def test_the_section_of_ratings(monkeypatch):
    import pandas as pd
    import ratings

    from tfllmrec.data import dataset_from_frames

    rows = planted_ratings()
    frame = pd.DataFrame({"user": rows.users, "item": rows.items, "rating": rows.ratings})
    dataset = dataset_from_frames(frame, test_events="0:200")
    monkeypatch.setattr(ratings, "CONTENDERS", {
        ratings.OURS: lambda train, seed: lambda users, items: np.full(len(users), 3.0),
        "biases": lambda train, seed: lambda users, items: np.full(len(users), 3.0 + seed),
    })  # fmt: skip
    table = ratings.measured(dataset, rows.text, [1, 2], list(ratings.CONTENDERS))
    test = np.clip(frame.rating[:200].to_numpy(), 1, 5)
    each = [np.sqrt(np.mean((3.0 + seed - test) ** 2)) for seed in (0, 1, 2)]
    assert table[0][1].startswith(f"{each[0]:.4f} ±") and table[0][2] == ""
    assert table[1][1].endswith(f"({min(each[1:]):.4f} to {max(each[1:]):.4f})")
    ahead = (each[1] ** 2 + each[2] ** 2) / 2 - each[0] ** 2
    assert table[1][2].startswith(f"{ahead:+.4f} [")
    text = ratings.section("movielens-100k", dataset, table, ["YDF"], "made")
    assert "the 200 ratings in the first lines of the file are the test (u1)" in text
    assert "| *GLocal-K, best epoch on the test (usydnlp/Glocal_K)* | 0.8889 | | |" in text
    assert text.endswith("Not installed, so not measured: YDF.")


@pytest.mark.tf
def test_a_row_of_interests_says_how_much_higher_the_first_one_is():
    import interests

    from tfllmrec.training.interests import LabelFigures

    low, high = (
        LabelFigures(*(np.full(50, value) for value in values)) for values in ((0.1, 0.2, 0.3), (0.3, 0.3, 0.3))
    )
    assert interests.cells_of(high, high, np.arange(50)) == ["0.3000"] * 3
    assert interests.cells_of(low, high, np.arange(50)) == [
        "0.1000 (+0.2000, +0.2000 to +0.2000)", "0.2000 (+0.1000, +0.1000 to +0.1000)",
        "0.3000 (+0.0000, +0.0000 to +0.0000)",
    ]  # fmt: skip


@pytest.mark.tf
def test_interests_without_an_interval_have_none(monkeypatch):
    import interests

    from tfllmrec.training.interests import LabelFigures

    low, high = (LabelFigures(*[np.full(5, value)] * 3) for value in (0.1, 0.3))
    monkeypatch.setattr(interests, "mean_interval", lambda *_: None)
    assert interests.cells_of(low, high, np.arange(5)) == ["0.1000 (+0.2000, no interval)"] * 3


@pytest.mark.tf
def test_labels_are_learned_beside_a_run_that_has_no_forecast(tmp_path, monkeypatch):
    from types import SimpleNamespace

    import interests

    run = SimpleNamespace(
        folder=tmp_path,
        split=SimpleNamespace(train_queries=lambda: "train", validation="validation"),
        config=SimpleNamespace(seed=7),
    )
    monkeypatch.setattr(interests, "fit_forecast", lambda *asked: asked)
    assert interests.learned_of(run, "found", "hybrid") == ("found", "train", "validation", "hybrid", 7)
    monkeypatch.setattr(interests, "fit_forecast", lambda *asked: None)
    assert interests.learned_of(run, "found", "hybrid") == (None, None) and not list(tmp_path.iterdir())


def uses_of_apps():
    """Returns the benchmark, and its task with users who use two apps each, on work days and at weekends."""
    import frappe

    from tfllmrec.config import DataConfig, SplitConfig
    from tfllmrec.data import dataset_from_frames, make_split

    rng = np.random.default_rng(0)
    rows = [
        (user, app, day) for user in range(12) for app in rng.choice(9, 2, replace=False) for day in ("work", "end")
    ]
    rows += [(user, app, "work") for user, app, _ in rows[::3]]
    frame = pd.DataFrame(rows, columns=["user", "item", "weekday"]).astype(str)
    dataset = dataset_from_frames(frame, config=DataConfig(repeats="all"))
    return frappe, frappe.Task(make_split(dataset, SplitConfig(kind="random"), 0), seed=0)


def test_an_area_under_the_roc_curve_is_the_share_of_pairs_in_the_right_order():
    frappe, _ = uses_of_apps()
    rng = np.random.default_rng(1)
    values, label = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.3
    weights = rng.integers(0, 3, 80).astype(float)
    pairs = [
        (weights[i] * weights[j], (values[i] > values[j]) + (values[i] == values[j]) / 2)
        for i in np.flatnonzero(label)
        for j in np.flatnonzero(~label)
    ]
    assert frappe.area(values, label) == pytest.approx(np.mean([share for _, share in pairs]))
    of_weights = sum(weight * share for weight, share in pairs) / sum(weight for weight, _ in pairs)
    assert frappe.area(values, label, weights) == pytest.approx(of_weights)


def test_apps_that_the_user_has_used_in_that_context_are_no_negatives():
    _, task = uses_of_apps()
    used = {(*row[:3],) for row in np.concatenate([
        np.column_stack([rows.users, rows.items, rows.context])
        for rows in (task.train, task.uses(task.split.validation)[1], task.uses(task.split.test)[1])
    ]).tolist()}  # fmt: skip
    rows = task.train
    drawn = task.negatives(rows, 5, seed=3)
    assert drawn.shape == (len(rows), 5) and len(np.unique(drawn)) == 9
    for user, apps, context in zip(rows.users, drawn, rows.context[:, 0], strict=True):
        assert not any((user, app, context) in used for app in apps)


def test_counts_for_trees_are_those_of_the_other_folds():
    frappe, task = uses_of_apps()
    columns, rows = frappe.Columns(task), task.train
    table, plain = columns.table(rows, columns.fold), columns.table(rows)
    for at in range(len(rows)):
        others = columns.fold != columns.fold[at]
        for counted, kept, scale in ((table, others, 10 / 9), (plain, others | True, 1.0)):
            own = kept & (rows.users == rows.users[at]) & (rows.items == rows.items[at])
            assert counted.own[at] == pytest.approx(scale * own.sum())
            assert counted["all"][at] == pytest.approx(scale * (kept & (rows.items == rows.items[at])).sum())
            here = own & (rows.context[:, 0] == rows.context[at, 0])
            assert counted.own_weekday[at] == pytest.approx(scale * here.sum())


def test_rows_are_valued_as_the_recommender_scores_them():
    frappe, task = uses_of_apps()
    by_row = frappe.ByRow(task, lambda rows: 10.0 * rows.users + rows.items)
    queries = task.split.test
    found = frappe.values_of_rows(by_row, task, queries)
    _, uses = task.uses(queries)
    assert found[:, 0].tolist() == (10.0 * uses.users + uses.items).tolist()
    own = frappe.OwnFrequency(task.split.train_counts.astype(float))
    assert (own.score(queries).argmax(axis=1) == [np.bincount(row).argmax() for row in queries.history]).mean() > 0.5
    together = frappe.pooled([frappe.ndcg_of(own, task, queries)] * 2, [np.arange(len(queries))] * 2)
    assert together.metrics["ndcg@10"] == pytest.approx(frappe.ndcg_of(own, task, queries).metrics["ndcg@10"])


def test_scores_become_probabilities_with_the_settings_that_are_best_on_validation(monkeypatch):
    frappe, task = uses_of_apps()
    queries = task.split.validation
    scores = np.zeros((len(queries), task.n_items))
    of_query, uses = task.uses(queries)
    scores[of_query, uses.items] = 2.0
    found, said = frappe.probability_of(frappe.Known(scores), task)
    likely = np.exp(found.score(queries))
    np.testing.assert_allclose(likely.sum(axis=1), 1.0)
    of_query, items = frappe.rows_of(task, queries)
    label = np.tile([True, False, False], len(items))
    assert frappe.area(likely[of_query[:, np.newaxis], items].ravel(), label) > 0.9
    assert f"temperature {found.temperature:g}, share of popularity {found.share:g}" in said

    noise = frappe.Known(np.random.default_rng(0).normal(size=scores.shape) * 8)
    popular = np.argsort(-task.split.train_counts)  # the validation asks for popular apps alone
    monkeypatch.setattr(frappe, "rows_of", lambda task, queries: (
        np.arange(len(queries)), np.tile(popular[[0, -1, -2]], (len(queries), 1))
    ))  # fmt: skip
    assert frappe.probability_of(noise, task)[0].share == max(frappe.SHARES)


def test_a_run_that_was_begun_is_gone_on_with_unless_its_settings_are_others(chain_run, chain_config):
    from quality import fitted_run

    run = fitted_run(chain_config, chain_run[0].folder)
    assert run.folder == chain_run[0].folder and run.complete
    other = chain_config.model_copy(deep=True)
    other.model.embedding_dim *= 2
    with pytest.raises(SystemExit, match=r"was started with other settings: .*embedding_dim.* Name another folder"):
        fitted_run(other, chain_run[0].folder)


def test_parts_are_deleted_and_inserted_in_an_order():
    import faithfulness

    gone, there = faithfulness.kept(np.array([2, 0, 1]))
    assert gone.sum(axis=1).tolist() == [3, 3, 3, 3, 2, 2, 2, 1, 1, 1]
    assert there.sum(axis=1).tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert gone[4].tolist() == [True, True, False] and gone[7].tolist() == [False, True, False]
    assert there[0].tolist() == [False, False, True] and there[3].tolist() == [True, False, True]


def test_orders_are_compared_with_the_first():
    import faithfulness

    deletion = {"contributions": np.array([0.0, 1.0]), "random": np.array([1.0, 2.0])}
    text = "\n".join(faithfulness.table(deletion, {name: -values for name, values in deletion.items()}))
    assert "| contributions | 0.500 | | -0.500 | |" in text
    assert "| random | 1.500 | +1.000 [+1.000, +1.000] | -1.500 | -1.000 [-1.000, -1.000] |" in text


@pytest.mark.tf
def test_the_order_of_contributions_is_the_best_one_where_a_score_is_a_sum():
    """With behaviour alone, a score is a sum over events, whose terms depend on other events only by position."""
    import faithfulness

    from tfllmrec.config import ItemWeightSettings, ModelConfig
    from tfllmrec.data.queries import Queries
    from tfllmrec.models.hybrid import Catalogue, Hybrid
    from tfllmrec.models.item_weights import PrunedWeights

    rng, n = np.random.default_rng(0), 30
    text = rng.normal(size=(n, 8)).astype(np.float32)
    config = ModelConfig(embedding_dim=8, blocks=2, heads=2, dropout=0.0, history_length=12)
    ids = np.arange(n).astype(str).astype(object)
    model = Hybrid(Catalogue(ids, text), np.full(n, 5), config, ItemWeightSettings(neighbours=9, decay=0.99), seed=1)
    model.gates.dense_strength.assign(0.0)
    neighbours = np.stack([rng.permutation(n)[:9] for _ in range(n)])
    model.set_item_weights(PrunedWeights(neighbours, rng.exponential(size=(n, 9)).astype(np.float32) ** 3))
    asked = Queries.from_histories([rng.permutation(n)[: 8 + row % 8] for row in range(12)] + [[1, 2]])
    deletion, insertion, users = faithfulness.curves_of_events(model, asked, 3)
    assert list(deletion) == ["contributions", "random", "recency", "attention weights"] and len(users) == 12
    for other in ("random", "recency", "attention weights"):
        assert deletion["contributions"].mean() < deletion[other].mean() - 0.2
        assert insertion["contributions"].mean() > insertion[other].mean() + 0.2
    weights = faithfulness.attention_weights(model, asked.take(np.array([7])))
    assert weights.shape == (15,) and not weights[:3].any() and weights.sum() == pytest.approx(1, abs=1e-4)


def test_the_section_of_experiments_has_a_row_for_each_metric_and_split():
    import experiments

    lines = experiments.section(2, 200, 100, 1, "made").splitlines()
    rows = [line for line in lines if line.startswith(tuple(f"| {name}" for name in experiments.METRICS))]
    assert len(rows) == 2 * len(experiments.METRICS)
    assert all("0.0% [0.0%, 84.2%]" in row for row in rows)  # Clopper and Pearson: 1 - .025 ** (1 / 2)
    assert sum(line.startswith("| sample ratio") for line in lines) == 2


def test_intervals_of_simulated_logs_cover_the_click_rate_of_the_target_policy():
    import off_policy

    clicks = np.array([[0.1, 0.3], [0.2, 0.4]])
    world = off_policy.World(clicks, np.full((2, 2), 0.5), np.array([[0.2, 0.8], [0.7, 0.3]]))
    log = world.logged(world.bts, 4000, np.random.default_rng(0))
    shown = [(log.item[log.position == place] == 1).mean() for place in (0, 1)]
    assert shown == pytest.approx([0.8, 0.3], abs=0.04) and set(log.propensity) == {0.2, 0.3, 0.7, 0.8}
    for covered, widths in off_policy.coverage(world, 300, 60, 1).values():
        assert covered.mean() > 0.85 and 0.02 < widths.mean() < 0.3


def test_policies_of_open_bandit_are_tables():
    import off_policy

    frame = pd.DataFrame({"position": [1, 1, 1, 2], "item_id": [0, 0, 2, 1]})
    assert off_policy.frequencies(frame).values.tolist() == [[1, 0, 2 / 3], [1, 2, 1 / 3], [2, 1, 1.0]]
    assert off_policy.uniform(frame).values.tolist() == [[0, 1 / 3], [1, 1 / 3], [2, 1 / 3]]
    assert off_policy.covers(off_policy.Estimate(1.0, 0.5, 1.5), 1.4)
    assert not off_policy.covers(off_policy.Estimate(1.0), 1.0)


def test_kills_fail_if_an_acknowledged_event_is_lost_or_there_twice():
    import intake

    good = intake.Kills(kills=3, acknowledged=1000, sent_again=7, lost=0, twice=0, unasked=0)
    assert intake.told(good).endswith("**Passed.**") and "1,000 events were acknowledged; 0 of them are lost" in (
        intake.told(good)
    )
    for wrong in ({"lost": 1}, {"twice": 1}, {"unasked": 1}):
        assert intake.told(intake.Kills(**{**vars(good), **wrong})).endswith("**FAILED.**")


def test_contenders_of_intake_write_what_they_are_given(tmp_path, monkeypatch):
    import intake

    monkeypatch.setattr(intake, "SIZES", (1, 3))
    monkeypatch.setattr(intake, "TURNS", 1)
    monkeypatch.setattr(intake, "CONTENDERS", {n: intake.CONTENDERS[n] for n in ("fsync", "JSON lines", "event log")})
    header, _, *rows = intake.speed(tmp_path, 0.02, seed=1)
    assert header.endswith("| batches of 1 | batches of 3 |") and len(rows) == 3
    lines = (tmp_path / "1" / "events.jsonl").read_text().splitlines()
    with intake.EventLog(tmp_path / "2" / "log") as log:
        assert {event["event_id"][17:] for event in log.replay()} >= {"0-1-0-0-0", "0-3-0-0-2"}
    assert len(lines) >= 4


def test_a_data_set_is_cut_by_time_or_by_order():
    import update

    from tfllmrec.config import DataConfig
    from tfllmrec.data import dataset_from_frames

    rows = [("u", f"i{n}", n) for n in range(8)] + [("v", "i9", 100), ("v", "i0", 101)]
    timed = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
    by_time = update.parts_of(dataset_from_frames(timed, config=DataConfig(name="t")), 0.5, 2)
    assert by_time.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    ordered = timed.rename(columns={"timestamp": "order"})
    by_order = update.parts_of(dataset_from_frames(ordered, config=DataConfig(name="o")), 0.5, 2)
    assert by_order.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 0, 1]


def test_items_join_with_their_first_event(tmp_path):
    import update

    from tfllmrec.config import DataConfig
    from tfllmrec.data import dataset_from_frames

    events = pd.DataFrame({"user": ["u"] * 4, "item": ["a", "b", "a", "c"], "timestamp": range(4)})
    items = pd.DataFrame({"item": ["a", "b", "c", "never"], "title": ["A", "B", "C", "N"]})
    update.write_parts(dataset_from_frames(events, items, config=DataConfig(name="t")), 0.5, 2, tmp_path)
    parts = [pd.read_csv(tmp_path / f"items-{n}.csv").item_id.tolist() for n in range(3)]
    assert parts == [["a", "b", "never"], ["c"], []]
    assert pd.read_csv(tmp_path / "events-1.csv").item_id.tolist() == ["c"]


def test_the_table_of_updates(tmp_path):
    import update

    ndcg = {"update": 0.2, "fit": 0.21, "stale": 0.1, "text alone": 0.05}
    few, gain = dict.fromkeys(ndcg), (-0.01, -0.02, 0.005)
    steps = [
        update.Step(900, 80, 3, 25, ndcg, ndcg, {"update": 10.0, "fit": 100.0}, gain),
        update.Step(1000, 90, 4, 7, ndcg, few, {"update": 11.0, "fit": 100.0}, gain),
    ]
    lines = [line.replace(" ", "") for line in update.section(steps, "made").splitlines()[-2:]]
    figures, difference = "0.2000|0.2100|0.1000|0.0500", "-0.0100[-0.0200,+0.0050]"
    assert lines[0] == f"|1|900|80|{figures}|{difference}|25|{figures}|10|100|10%|"
    assert lines[1] == f"|2|1,000|90|{figures}|{difference}|7|||||11|100|11%|"


def test_the_seconds_of_interrupted_parts_are_added_up(tmp_path, monkeypatch):
    import update

    clock, codes = iter([0.0, 3.0, 10.0, 15.0]), iter([1, 0])
    monkeypatch.setattr(update, "cpu_of_children", lambda: next(clock))

    def run(command, **_):
        assert command[1:] == ["-m", "tfllmrec", "update", "RUN"]
        (tmp_path / "run").mkdir(exist_ok=True)
        if not (code := next(codes)):
            (tmp_path / "run" / "metrics.json").touch()
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(update.subprocess, "run", run)
    with pytest.raises(SystemExit, match="tfllmrec update RUN ended with exit code 1"):
        update.timed(tmp_path / "run", ["update", "RUN"])
    assert update.timed(tmp_path / "run", ["update", "RUN"])[1] == 8.0
    assert update.timed(tmp_path / "run", ["update", "RUN"])[1] == 8.0  # the command is not run again


def test_the_seconds_of_a_child_and_of_its_own_child_count():
    import subprocess

    import update

    spin = "import time\nwhile time.process_time() < 0.2: pass"
    before = update.cpu_of_children()
    subprocess.run([sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"])
    assert update.cpu_of_children() - before > 0.2


def test_a_fit_beside_an_update_is_told_only_its_data(tmp_path):
    import update

    from tfllmrec.config import DataConfig, load_config

    data = DataConfig(name="t", source=str(tmp_path / "data"), format="tfllmrec")
    command = update.fit_command(data, tmp_path / "fit-1", ["training.epochs=2"])
    assert command == ["fit", str(tmp_path / "fit-1.yaml"), "--out", str(tmp_path / "fit-1")]
    config = load_config(tmp_path / "fit-1.yaml").config
    assert config.training.epochs == 2 and config.evaluation.baselines == []
    assert config.model.dropout is None and config.item_weights.decay is None  # None: searched for, as in a user's fit
    (tmp_path / "fit-1" / "checkpoints").mkdir(parents=True)
    assert update.fit_command(data, tmp_path / "fit-1", []) == ["fit", "--resume", str(tmp_path / "fit-1")]


def test_update_and_fit_are_asked_the_same(tmp_path):
    import update

    from tfllmrec.data.queries import Queries

    def run(targets, users):
        queries = Queries.from_histories([[0]] * len(users), targets=targets, user_ids=users)
        return SimpleNamespace(split=SimpleNamespace(test=queries))

    ours, theirs = update.shared_queries(run([[1], [2], [3]], ["a", "b", "c"]), run([[3], [1], [9]], ["c", "a", "b"]))
    assert ours.user_ids.tolist() == theirs.user_ids.tolist() == ["a", "c"]
    assert ours.targets.values.tolist() == theirs.targets.values.tolist() == [1, 3]


def test_what_a_killed_promotion_may_leave(tmp_path):
    import kill_updates

    from tfllmrec.serving.promotion import promote, read_promotions, set_canary

    model = tmp_path / "shop"
    for number in (1, 2):
        (model / str(number) / "assets.extra").mkdir(parents=True)
        (model / str(number) / "assets.extra" / "tfllmrec.json").write_text("{}")
        (model / str(number) / "saved_model.pb").touch()
    set_canary(model, 1)
    set_canary(model, 2)
    before = read_promotions(model)
    after = promote(model)
    assert kill_updates.problem(model, before, before) is None
    assert kill_updates.problem(model, before, after) is None
    assert "another state" in kill_updates.problem(model, before, before.model_copy(update={"stable": 2}))
    (model / "1" / "saved_model.pb").unlink()
    assert "version 1, which is in use, is not there" in kill_updates.problem(model, before, after)
    figures = kill_updates.Figures(answers=5, seconds=dict.fromkeys(kill_updates.ACTIONS, 2.0))
    assert "**Passed.** 0 kills, 5 answers" in kill_updates.section(figures, "made")
    for number, code in enumerate((-signal.SIGKILL, 0, 2)):
        kill_updates.count(figures, number, "promote", code)
    assert (figures.kills["promote"], figures.ended["promote"]) == (1, 2)
    assert figures.troubles == ["command 3, promote: it ended with exit code 2"]
    figures.troubles.clear()
    figures.failures.append("RequestError: no")
    assert "**Not passed.**" in kill_updates.section(figures, "made")


def test_events_that_killed_intakes_lost_or_doubled_are_seen(tmp_path, monkeypatch):
    import kill_updates

    from tfllmrec.config import DataConfig
    from tfllmrec.feedback.event_files import append_file
    from tfllmrec.feedback.event_log import EventLog

    monkeypatch.setattr(kill_updates, "APPENDED", 5)
    asker = SimpleNamespace(sent=["client-1-0"])
    with EventLog(tmp_path / "log") as log:
        log.append([{"user_id": "u", "item_id": "i", "event_id": "client-1-0"}])
        kill_updates.write_appended(tmp_path / "file.csv", 0)
        for _ in range(2):
            append_file(log, tmp_path / "file.csv", DataConfig())
    assert kill_updates.lost_or_twice(tmp_path / "log", [asker], 1) == []
    assert kill_updates.lost_or_twice(tmp_path / "log", [asker], 2) == ["5 of 11 events are not in the log"]
    asker.sent.append("client-1-1")
    assert kill_updates.lost_or_twice(tmp_path / "log", [asker], 1) == ["1 of 7 events are not in the log"]


def test_forgetting_is_measured_over_the_items_of_the_smaller_catalogue():
    import forgetting

    from tfllmrec.data.queries import Queries

    class ByHistory:
        """Scores the larger catalogue of six items: high for the item after the newest one."""

        def score(self, queries):
            assert [list(history) for history in queries.history] == [[4], [1, 3]] and queries.candidates is None
            return np.eye(6, dtype=np.float32)[[5, 4]]

    rows = np.array([1, 3, 4, 5])  # rows of the first run's four items in the larger catalogue
    found = forgetting.InItsCatalogue(ByHistory(), rows, 4).score(Queries.from_histories([[2], [0, 1]]))
    assert found.tolist() == [[0, 0, 0, 1], [0, 0, 1, 0]]


def test_forgetting_leaves_out_targets_that_the_second_model_was_trained_on():
    import forgetting

    from tfllmrec.data.queries import Queries, Ragged

    targets = Ragged.from_rows([[0], [1], [0], [1, 2], [2]], np.int64)
    queries = replace(Queries.from_histories([[]] * 5), targets=targets, user_ids=np.array([*"abcad"], object))
    train = pd.DataFrame({"user_index": [0, 1, 2, 1], "item_index": [5, 5, 5, 3]})
    # In the training events, items 0, 1, 2 are 3, 4, 5; users a, b, c are 0, 1, 2; user d is missing.
    found = forgetting.trained_on(queries, np.array([3, 4, 5]), pd.Series([*"abc"]), train)
    assert found.tolist() == [False, False, False, True, False]
    found = forgetting.trained_on(queries, np.array([5, 3, 4]), pd.Series([*"abc"]), train)
    assert found.tolist() == [True, True, True, False, False]


def test_two_recommenders_are_added_in_standard_deviations_of_the_targets_items():
    import transfer

    def constant(scores):
        return SimpleNamespace(score=lambda queries: np.array([scores], np.float32))

    rows = np.array([0, 1])
    both = transfer.Sum(constant([1, 3, 100]), constant([0, -10, 0]), 0.5, rows)
    assert both.score(None)[0, :2].tolist() == [1.0, 3.0 - 0.5 * 2]  # standard deviations of 1 and 5
    silent = transfer.Sum(constant([1, 3, 100]), constant([7, 7, 7]), 0.5, rows)
    assert silent.score(None)[0, :2].tolist() == [1.0, 3.0]


def test_the_served_map_is_measured_with_the_weights_of_the_target_and_without():
    import cross_domain
    import transfer
    from stand_ins import two_domains

    from tfllmrec.config import ItemWeightSettings
    from tfllmrec.data.queries import Queries

    data, asked = two_domains(), two_domains().split.validation
    settings = ItemWeightSettings(decay=0.5, l2=10, co_occurrence=0, text=0, next_item=1, popularity=0)
    alone = transfer.InDomain(data, SimpleNamespace(config=SimpleNamespace(item_weights=settings)), "films")
    cold, zero, double = cross_domain.ServedMap(data), *(transfer.Mapped(data, alone, factor) for factor in (0, 2))
    assert data.measure(cold).metrics["recall@10"] > 0.9
    assert not zero.score(asked)[:, 40:].any()  # no query has a film in its history
    films = double.score(asked)[:, 40:]
    np.testing.assert_allclose(films / films.max(), (s := cold.score(asked)[:, 40:]) / s.max(), atol=1e-5)
    known = Queries.from_histories([[41, 45]])
    np.testing.assert_allclose(double.score(known)[:, 40:], alone.score(known)[:, 40:], atol=0.01)  # but for pruning


def test_smoothing_mixes_the_texts_of_neighbours():
    import graph
    from scipy import sparse

    x, near = np.eye(4, dtype=np.float32), np.zeros((4, 4), np.float32)  # 0 - 1 - 2, and 3 alone
    near[[0, 1, 1, 2], [1, 0, 2, 1]] = 1
    near = sparse.csr_array(near)
    out = graph.smoothed(x, near, 0.5, steps=1)
    expected = np.array([[0.5, 0.5, 0, 0], [0.25, 0.5, 0.25, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(out, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)
    assert graph.smoothed(x, near, 0.5, steps=2)[0, 2] > 0 == out[0, 2]
    np.testing.assert_allclose(graph.smoothed(x, near, 0.0), x)
    without_text = np.array([[0, 0], [0, 1], [1, 0], [0, 0]], np.float32)
    np.testing.assert_allclose(graph.smoothed(without_text, near, 0.5, steps=1)[[0, 3]], [[0, 1], [0, 0]])
