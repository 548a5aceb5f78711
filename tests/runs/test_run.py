import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import tfllmrec.training.ranking.fit
from tfllmrec.config import (
    DataConfig,
    FieldConfig,
    RankingConfig,
    SplitConfig,
    dump_config,
    load_config,
    paraphrase_option,
)
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.data.domains import join_datasets
from tfllmrec.data.readers import read_dataset
from tfllmrec.durable import replacing
from tfllmrec.errors import ConfigError, DataError, ModelError, WriteError
from tfllmrec.evaluation.protocol import evaluate, paired_difference, selection_value
from tfllmrec.models.baselines import fit_baseline
from tfllmrec.models.fitting import Fitted, TrainingData
from tfllmrec.models.item_weights import ItemWeightStatistics, score_history, solve
from tfllmrec.models.ranking import Reranked
from tfllmrec.runs import experiment
from tfllmrec.runs.experiment import _record, encode, fit_experiment, start_run
from tfllmrec.runs.run import TRAINED, UPDATE, Run, Update
from tfllmrec.runs.scoreboard import fit_all_baselines, measure_one, report
from tfllmrec.text import reading
from tfllmrec.training.callbacks import FitState
from tfllmrec.training.fit import fit_hybrid
from tfllmrec.training.ranking.fit import load_ranking
from tfllmrec.training.ranking.record import RankingRecord
from tfllmrec.training.text.tower import TowerRecord

pytestmark = pytest.mark.tf


def test_the_dense_terms_of_the_ring_have_a_weight(chain_run):
    """Otherwise no test that uses this run could show what meaning and feedback do."""
    assert chain_run[0].load_model().gates.dense_strength.numpy() > 0


def test_a_run_is_all_there(chain_run):
    run, _ = chain_run
    assert run.complete
    assert {path.name for path in run.folder.iterdir()} == {
        *(
            "config.yaml",
            "source.json",
            "run.json",
            "data",
            "schema.json",
            "vectors.npy",
            "vectors.json",
            "checkpoints",
            "logs",
            "model",
            "ranking",
            "per_query.npz",
            "metrics.json",
        )
    }
    record = json.loads((run.folder / "run.json").read_text())
    assert record["seed"] == 42 and record["parent"] is None
    assert record["data_sha256"] == run.dataset.fingerprint
    assert record["versions"]["tensorflow"] == tf.__version__
    assert any(line.startswith("item_weights decay") for line in record["chosen"])
    assert record["cleaning"]


def test_its_config_is_resolved_and_a_valid_input(chain_run):
    run, _ = chain_run
    config = load_config(run.folder / "config.yaml").config
    sections = config.model_dump(include={"model", "training"})
    assert [k for section in sections.values() for k, v in section.items() if v is None] == []
    assert config.split.kind == "leave_last_out" and config.text.template == "{title}"
    assert read_dataset(config.data, run.folder).fingerprint == run.dataset.fingerprint
    assert run.config == config  # and so says the run that fit gave back


def test_its_figures(chain_run):
    run, _ = chain_run
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert set(metrics) >= {"data", "split", "results", "intervals", "alarms"}
    assert list(metrics["results"]) == ["hybrid", "hybrid_refit", "popularity", "markov", "two_tower"]
    for figures in metrics["results"].values():
        assert {"ndcg@10", "recall@10", "recall@10/tail", "recall@10/cold", "coverage@10"} <= set(figures)
    assert metrics["data"]["sha256"] == run.dataset.fingerprint
    assert metrics["results"]["hybrid"]["ndcg@10"] > 2 * metrics["results"]["popularity"]["ndcg@10"]


def test_the_exported_model_also_learns_from_the_validation_events(chain_run):
    run, told = chain_run
    split, settings = run.split, run.config.item_weights
    assert run.may_refit and run.is_refit
    assert told.count("item-item weights: solving again, with the validation events") == 1
    for model, validation in ((run.load_model(), False), (run.load_model(refit=True), True)):
        histories = split.train_queries(validation).choices
        solved = solve(ItemWeightStatistics.of(histories, 40, settings), settings, model.text_vectors)
        alone = score_history(split.test.history, solved, settings.decay)
        np.testing.assert_allclose(model.score_terms(split.test)[1], alone, rtol=1e-3, atol=1e-3)
        name = "hybrid_refit" if validation else "hybrid"
        assert measure_one(model, split.test, split, run.config).metrics == run.metrics["results"][name]
    own = run.metrics["results"]
    assert own["hybrid_refit"]["ndcg@10"] != own["hybrid"]["ndcg@10"]


def test_there_is_no_refit_where_validation_events_would_mislead_or_weights_are_of_other_runs(chain_run):
    run, _ = chain_run

    def may(kind="leave_last_out", terms=("meaning", "behaviour"), sources=()):
        config = run.config.model_copy(deep=True)
        config.model.terms, config.transfer.sources = list(terms), list(sources)
        return Run.may_refit.fget(SimpleNamespace(split=replace(run.split, kind=kind), config=config))

    assert all(map(may, ("leave_last_out", "leave_random_out", "random", "fixed")))
    assert not any(map(may, ("global_time", "cold_items", "cold_users", "cold_domain")))
    assert not may(terms=["meaning"]) and not may(sources=[Path("runs/films")])
    undivided = SimpleNamespace(split=replace(run.split, validation_events=None), config=run.config)
    assert not Run.may_refit.fget(undivided)


def test_a_run_of_an_earlier_version_is_exported_as_it_was_measured(chain_run, tmp_path):
    run, _ = chain_run
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    (copy.folder / "model" / "refit_weights.npz").unlink()
    assert not copy.is_refit
    plain, exported = copy.load_model(), copy.load_model(refit=True)
    np.testing.assert_array_equal(plain.behaviour.weights_.numpy(), exported.behaviour.weights_.numpy())
    assert len(copy.exported_histories.values) == len(run.exported_histories.values) - len(run.split.validation)
    (copy.folder / "model" / "refit_weights.npz").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"refit_weights\.npz"):
        copy.load_model(refit=True)


def test_values_per_query_are_kept(chain_run, tmp_path):
    run, _ = chain_run
    assert list(run.per_query["user_ids"]) == list(run.split.test.user_ids)
    assert list(run.results) == list(run.metrics["results"])
    for name, result in run.results.items():
        assert result.metrics == run.metrics["results"][name] and result.counts["targets"] == len(run.split.test)
        assert set(result.intervals) <= set(result.per_query)
        for label, values in result.per_query.items():
            mean = result.metrics[label]
            assert np.isnan(values).all() if mean is None else np.nanmean(values) == pytest.approx(mean)
    difference, low, high = paired_difference(run.results["hybrid"], run.results["popularity"], "ndcg@10")
    assert 0 < low < difference < high

    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    (copy.folder / "per_query.npz").write_bytes(b"PK nothing")
    with pytest.raises(ModelError, match=r"copy/per_query\.npz cannot be read .*fit again"):
        _ = copy.results
    (copy.folder / "per_query.npz").unlink()
    with pytest.raises(ModelError, match="fit again"):
        _ = Run(copy.folder).results


def test_baselines_are_chosen_on_the_queries_and_strata_of_the_hybrid(chain_split, chain_config, monkeypatch):
    from tfllmrec.models import fitting

    chosen_on = []

    def noted(recommender, queries, **settings):
        chosen_on.append((type(recommender).__name__, list(queries.user_ids), settings["strata"]["head"].sum()))
        return evaluate(recommender, queries, **settings)

    monkeypatch.setattr(fitting, "SAMPLE", 20)
    monkeypatch.setattr(fitting, "evaluate", noted)
    config = chain_config.model_copy(deep=True)
    config.evaluation.head_share = 0.3
    text = np.zeros((chain_split.dataset.n_items, 1), np.float32)
    data = fitting.TrainingData.of(chain_split, text, config)
    fit_all_baselines(data, config.evaluation, print)
    users = list(data.sample.user_ids)
    assert len(users) == 20 and users != list(chain_split.validation.user_ids[:20])
    assert {name for name, _, _ in chosen_on} == {"Popularity", "Markov", "TwoTower"}
    assert all(asked == users and head == 12 for _, asked, head in chosen_on)


def test_maps_between_domains_are_left_out_where_no_user_is_in_two(chain_split, chain_config):
    config = chain_config.model_copy(deep=True)
    config.evaluation.baselines = ["popularity", "emcdr", "domain_map"]
    text, told = np.zeros((chain_split.dataset.n_items, 1), np.float32), []
    assert set(fit_all_baselines(TrainingData(chain_split, text), config.evaluation, told.append)) == {"popularity"}
    assert told == ["baseline: popularity"]  # the data is not joined: nothing is missing
    shops = dict.fromkeys("ab", chain_split.dataset)
    for shared, expected in ((False, {"popularity"}), (True, {"popularity", "emcdr", "domain_map"})):
        split = make_split(join_datasets(shops, share_users=shared), config.split, 0)
        data = TrainingData(split, np.zeros((split.dataset.n_items, 1), np.float32))
        assert set(fit_all_baselines(data, config.evaluation, told.append)) == expected
    assert told.count("no user has training events in two domains, so there is no baseline emcdr, domain_map") == 1


def test_alarms_are_about_every_baseline(chain_split, chain_config):
    """A Markov chain knows the ring; a model that is as good as popularity is behind it."""
    config = chain_config.model_copy(deep=True)
    config.evaluation.baselines = ["popularity", "markov"]
    config.evaluation.ks = [10]
    data = TrainingData(chain_split, np.zeros((chain_split.dataset.n_items, 1), np.float32))
    fitted = fit_all_baselines(data, config.evaluation, print)
    results = {name: measure_one(one, chain_split.test, chain_split, config) for name, one in fitted.items()}
    results["hybrid"] = results["popularity"]
    alarms = report(chain_split, config, results)["alarms"]
    assert any(line.startswith("hybrid: markov is ahead of it") for line in alarms)
    assert all(line.startswith("hybrid: ") for line in alarms)


def test_a_scoreboard_has_figures_of_each_scene_and_of_the_groups_asked_for(chain_config):
    rows = [(f"u{user}", f"i{event}", event, ["home", "mail"][user % 2]) for user in range(60) for event in range(4)]
    frame = pd.DataFrame(rows, columns=["user", "item", "timestamp", "surface"])
    split = make_split(dataset_from_frames(frame.assign(device=frame.surface)), SplitConfig(), seed=0)
    config = chain_config.model_copy(deep=True)
    model = fit_baseline(TrainingData(split, np.zeros((split.dataset.n_items, 1))), "popularity").model
    config.model.scene, config.evaluation.by = "surface", ["request.device"]
    groups = report(split, config, {"popularity": measure_one(model, split.test, split, config)})["groups"]
    assert {key: set(values) for key, values in groups.items()} == {
        "request.surface": {"home", "mail"},
        "request.device": {"home", "mail"},
    }


def test_settings_that_name_no_field_are_refused_before_anything_is_computed(chain_config, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "encode", None)
    config = chain_config.model_copy(deep=True)
    config.model.scene = "surfase"
    with pytest.raises(ConfigError, match=r"model.scene: expected categories of requests .*, found 'surfase'"):
        fit_experiment(config, tmp_path / "run")


def test_settings_without_effect_are_those_of_the_runs_own_config(chain_config, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "encode", stop)
    config = chain_config.model_copy(deep=True)
    config.tuning.rank = 4
    for asked, resume in ((config, False), (chain_config, True)):
        told = []
        with pytest.raises(KeyboardInterrupt):
            fit_experiment(asked, tmp_path / "run", resume=resume, tell=told.append)
        assert "warning: tuning.rank has no effect with text.mode=frozen" in told


def test_the_ranking_model_is_there_and_measured(chain_run, bare_run):
    run, told = chain_run
    hybrid = run.load_model(refit=True)
    model = run.load_ranking(hybrid)
    measured, record = run.metrics["ranking"], run.record["ranking"]
    assert record == json.loads((run.folder / "ranking" / "record.json").read_text())
    assert record["lists"] == record["held_out"] == len(run.split.validation)
    figures = evaluate(
        Reranked(hybrid, model, 20), run.split.test, train_counts=run.split.train_counts, strata=run.split.strata(),
        bootstrap=0,
    ).metrics  # fmt: skip
    assert measured["reranked"] == figures and measured["candidates"] == 20
    assert "reranked" not in run.metrics["results"]
    assert measured["rated"] == len(run.split.test) and measured["rmse"] < 2
    assert sum(line.startswith("ranking: ") for line in told) == 5
    # Without ratings, order and text there is less to say.
    assert "rmse" not in bare_run[0].metrics["ranking"]
    assert not bare_run[0].load_ranking(bare_run[0].load_model()).rates


def test_a_run_without_a_ranking_model(chain_run, tmp_path):
    copy = Run(shutil.copytree(chain_run[0].folder, tmp_path / "copy"))
    shutil.rmtree(copy.folder / "ranking")
    with pytest.raises(ModelError, match=r"ranking/record\.json cannot be read"):
        copy.load_ranking(copy.load_model())
    # One from before there was any, or with none asked for.
    text = (copy.folder / "config.yaml").read_text()
    for epochs in ("null", "0"):
        (copy.folder / "config.yaml").write_text(text.replace("ranking:\n  epochs: 1", f"ranking:\n  epochs: {epochs}"))
        assert copy.load_ranking(copy.load_model()) is None and copy.ranking_record is None


@pytest.mark.slow
@pytest.mark.long
def test_a_run_whose_ranking_model_is_left_out(chain_run, tmp_path, monkeypatch):
    from tfllmrec.serving.export import export
    from tfllmrec.serving.saved_model import SavedModel

    copy = Run(shutil.copytree(chain_run[0].folder, tmp_path / "copy"))
    figures = chain_run[0].record["ranking"] | {"strengths": [0.0, 0.0]}
    (copy.folder / "metrics.json").unlink()
    shutil.rmtree(copy.folder / "ranking")
    made = Fitted(None, RankingConfig(), figures)
    monkeypatch.setattr(tfllmrec.training.ranking.fit, "fit_ranking", lambda *_: made)
    monkeypatch.setattr(experiment, "fit_all_baselines", lambda *_: {})
    told = []
    run = fit_experiment(copy.config, copy.folder, resume=True, tell=told.append)
    line = RankingRecord(**figures).line()
    assert line.startswith("left out: selection value ") and f"ranking: {line}" in told
    assert run.metrics["ranking"] == {"left_out": line} and run.record["ranking"] == figures
    assert run.load_ranking(run.load_model()) is None
    saved = SavedModel.open(export(run.folder, tmp_path / "served", tell=told.append))
    with pytest.raises(ModelError, match="no signature 'rank'") as error:
        saved.rank(["i3"], ["i5"])
    assert f"the ranking model of its run was {line}. Use recommend with allow=<candidates> instead" in str(error.value)
    assert len(saved.recommend(histories=[["i3"]], k=3)) == 3


def test_ratings_of_an_update_that_does_not_reorder_are_measured(chain_run, tmp_path, monkeypatch):
    from tfllmrec.runs import warm_start

    copy = Run(shutil.copytree(chain_run[0].folder, tmp_path / "copy"))
    (copy.folder / "metrics.json").unlink()
    begun = Update(parent=str(chain_run[0].folder), new_events=1, new_items=0, new_users=0)
    (copy.folder / UPDATE).write_text(begun.model_dump_json())
    np.save(copy.folder / TRAINED, np.empty(0, np.int64))
    start = warm_start.Start(None, copy.config, None, None)
    monkeypatch.setattr(warm_start, "warm_start", lambda *_: start)

    def rates_only(folder, data, config, hybrid, *_):
        model = load_ranking(folder, hybrid, data.split, config, data.seed)
        model.network.strengths.assign([0.0, 0.5])
        return model

    monkeypatch.setattr(tfllmrec.training.ranking.fit, "prepared_ranking", rates_only)
    measured = fit_experiment(copy.config, copy.folder, resume=True, tell=lambda line: None).metrics["ranking"]
    assert "left_out" not in measured and "reranked" not in measured
    assert measured["rated"] == len(copy.split.test) and measured["rmse"] < 2


def test_the_saved_model_is_the_one_that_was_measured(chain_run):
    run, _ = chain_run
    model = run.load_model()
    result = evaluate(
        model, run.split.test, train_counts=run.split.train_counts, strata=run.split.strata(), bootstrap=0
    )
    assert result.metrics == run.metrics["results"]["hybrid"]
    assert float(model.behaviour.weights_.numpy().max()) > 0
    np.testing.assert_array_equal(model.train_counts, run.split.train_counts)


def test_the_best_epoch_on_validation_is_kept(chain_run):
    run, _ = chain_run
    state = FitState.load(run.folder / "checkpoints")
    assert state.epochs_done == 3 and state.best_value == max(state.values) == state.values[state.best_epoch]
    result = evaluate(
        run.load_model(), run.split.validation, train_counts=run.split.train_counts, strata=run.split.strata(),
        bootstrap=0,
    )  # fmt: skip
    # All dense strengths were tried at the end; the whole model sums in another order than the search did.
    assert selection_value(result) > state.best_value - 1e-3


def test_tensorboard_has_the_labels_of_each_epoch(chain_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, told = chain_run
    events = EventAccumulator(str(run.folder / "logs" / "validation"), size_guidance={"tensors": 0})
    events.Reload()
    tags = {"accuracy/ndcg@10", "accuracy/recall@10", "head/recall@10", "tail/recall@10", "lists/coverage@10"}
    assert tags <= set(events.Tags()["tensors"])
    points = {e.step: float(tf.make_ndarray(e.tensor_proto)) for e in events.Tensors("tail/recall@10")}
    lines = [line for line in told if line.startswith("epoch ")]
    assert list(points) == [0, 1, 2]
    for step, value in points.items():
        assert f"recall@10/tail {value:.4f}" in lines[step]


@pytest.mark.slow
def test_a_killed_fit_ends_where_an_undisturbed_one_does(chain_run, chain_config, both_heads_kept, tmp_path):
    """SIGKILL while the second epoch is measured, in a process of its own; then an interruption after training."""
    undisturbed, _ = chain_run
    (tmp_path / "config.yaml").write_text(dump_config(chain_config))
    script = """
import os, signal, sys
from pathlib import Path
from tfllmrec.config import load_config
from tfllmrec.runs.experiment import fit_experiment

def tell(line):
    if line.startswith("epoch 2"):
        os.kill(os.getpid(), signal.SIGKILL)

fit_experiment(load_config(sys.argv[1]).config, Path(sys.argv[2]), tell=tell)
"""
    out = tmp_path / "run"
    command = [sys.executable, "-c", script, str(tmp_path / "config.yaml"), str(out)]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert json.loads((out / "checkpoints" / "state.json").read_text())["epochs_done"] == 1
    with pytest.raises(ModelError, match=f"was not finished: continue it with 'tfllmrec fit --resume {out}'"):
        Run.open(out)

    told = []

    def interrupt(line):
        told.append(line)
        if line.startswith("baseline: "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_experiment(chain_config, out, resume=True, tell=interrupt)
    assert "resumed after epoch 1" in told
    assert [line.split(":")[0] for line in told if line.startswith("epoch ")] == ["epoch 2", "epoch 3"]
    # The ranking model was whole by then, and is not made again.
    assert sum("learning to order" in line for line in told) == 1
    again = fit_experiment(chain_config, out, resume=True, tell=told.append)
    assert "resumed after epoch 3" in told
    assert sum("learning to order" in line for line in told) == 1

    # Another process may have fitted the undisturbed run, with sums in another order: one of 60 lists may differ.
    figures = [tf.nest.flatten(run.metrics) for run in (undisturbed, again)]
    assert len(figures[0]) == len(figures[1])
    for a, b in zip(*figures, strict=True):
        assert a == (pytest.approx(b, abs=0.02, rel=0.02) if isinstance(b, float) else b)
    assert (out / "config.yaml").read_text() == (undisturbed.folder / "config.yaml").read_text()
    models = undisturbed.load_model(), again.load_model()
    for a, b in zip(*(model.variables for model in models), strict=True):
        # Adam moves weights whose gradient is nothing but rounding, such as biases of keys, by a learning rate.
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=a.name)
    chosen = [json.loads((run.folder / "run.json").read_text())["chosen"] for run in (undisturbed, again)]
    assert chosen[0] == chosen[1]


@pytest.mark.long
@pytest.mark.slow
def test_a_fit_learns_interests_once_and_refuses_those_of_another_run(chain_config, cache, tmp_path):
    items = pd.read_csv(chain_config.data.items)
    items["categories"] = [f"stretch {'abcdefg'[i // 6]}" for i in range(len(items))]
    items.to_csv(tmp_path / "items.csv", index=False)
    config = chain_config.model_copy(deep=True)
    config.data.items = tmp_path / "items.csv"
    config.training.epochs, config.ranking.epochs, config.evaluation.baselines = 1, 0, ["popularity"]
    told: list[str] = []
    run = fit_experiment(config, tmp_path / "run", tell=told.append)
    assert "interests: learning which labels come next" in told
    folder = run.folder / "interests"
    assert sorted(path.name for path in folder.iterdir()) == ["forecast.npz", "made_from.json", "record.json"]
    record = json.loads((folder / "record.json").read_text())
    assert record["queries"] >= 30 and (run.load_label_forecast() is not None) == record["kept"]

    def resumed():
        (run.folder / "metrics.json").unlink()
        told.clear()
        return fit_experiment(config, run.folder, resume=True, tell=told.append)

    resumed()
    assert "interests: learning which labels come next" not in told
    assert json.loads((folder / "record.json").read_text()) == record
    claims = json.loads((folder / "made_from.json").read_text())
    (folder / "made_from.json").write_text(json.dumps(claims | {"labels": "others"}))
    with pytest.raises(ModelError, match="interests belongs to a run with other labels"):
        resumed()


@pytest.mark.slow
def test_a_fit_that_is_to_learn_no_interests(chain_config, cache, tmp_path, monkeypatch):
    config = chain_config.model_copy(deep=True)
    config.interests.learned, config.training.epochs, config.ranking.epochs = False, 1, 0
    config.evaluation.baselines = ["popularity"]
    monkeypatch.setattr("tfllmrec.runs.labels.labels_of_run", lambda *_: pytest.fail("nobody needs labels"))
    run = fit_experiment(config, tmp_path / "run", tell=lambda line: None)
    assert not (run.folder / "interests").exists() and run.load_label_forecast() is None


def test_resuming_a_complete_run_does_nothing(chain_run, chain_config):
    told = []
    again = fit_experiment(chain_config, chain_run[0].folder, resume=True, tell=told.append)
    assert told == [f"{again.folder} is already complete."]


def test_a_folder_that_is_taken_or_missing(chain_run, chain_config, tmp_path):
    with pytest.raises(ConfigError, match=r"is not empty.*--out.*tfllmrec fit --resume"):
        fit_experiment(chain_config, chain_run[0].folder, tell=print)
    with pytest.raises(ConfigError, match="Nothing to resume"):
        fit_experiment(chain_config, tmp_path, resume=True, tell=print)
    with pytest.raises(ModelError, match=r"not a run folder: expected a config\.yaml"):
        Run.open(tmp_path)


def test_a_run_that_had_learnt_nothing_is_started_again(chain_config, tmp_path):
    config = chain_config.model_copy(deep=True)
    config.text.template = "{name}"
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"text\.template '\{name\}' names the column 'name'"):
            fit_experiment(config, tmp_path / "run", tell=print)
        assert (tmp_path / "run" / "data").is_dir()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        fit_experiment(config, tmp_path / "run", tell=print)


@pytest.mark.parametrize("complete", [True, False])
def test_an_encoder_that_is_another_by_now_is_refused(chain_run, tmp_path, complete):
    folder = tmp_path / "run"
    shutil.copytree(chain_run[0].folder, folder)
    if not complete:
        (folder / "metrics.json").unlink()
    there = Run(folder)
    assert there.text_encoder().fingerprint == json.loads((folder / "vectors.json").read_text())["encoder"]
    config = there.config
    config.text.max_tokens += 1
    (folder / "config.yaml").write_text(dump_config(config))
    with pytest.raises(ModelError, match=r"read by another encoder \(fingerprint .*fit again"):
        Run(folder).text_encoder()
    (folder / "vectors.npy").unlink()  # killed before anything was read
    Run(folder).text_encoder()


def test_damaged_weights_are_named(chain_run, tmp_path):
    copy = shutil.copytree(chain_run[0].folder, tmp_path / "copy")
    for path in (copy / "model").glob("weights.index"):
        path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"copy/model/weights cannot be read; .*fit again"):
        Run.open(copy).load_model()


def test_a_doubtful_order_is_told_before_the_training_and_recorded(chain_config, tmp_path):
    rows = [f"u{u},{i},{i}" for u in range(30) for i in range(1 + u % 3, 10)]  # sorted by item id within each user
    (tmp_path / "events.csv").write_text("\n".join(["user,item,order", *rows]))
    config = chain_config.model_copy(update={"data": DataConfig(events="events.csv", name="sorted")})
    told = []
    with start_run(config, tmp_path / "run", base=tmp_path, tell=told.append) as (run, _):
        pass
    doubt = "the events of almost every user ascend by item id: 30 of 30 users"
    assert any(line.startswith(f"data: warning: {doubt}") for line in told)
    recorded = _record(run, 42, [], 0.0, {})["cleaning"]["findings"]
    assert any(f["action"] == "doubted" and f["what"].startswith(doubt) for f in recorded)


def test_fields_are_told_and_stored_when_a_run_starts(chain_config, tmp_path):
    (tmp_path / "users.csv").write_text("user,age,city\nu0,7.5,x\n")
    config = chain_config.model_copy(deep=True)
    config.data.users, told = tmp_path / "users.csv", []
    config.data.fields = {"city": FieldConfig(default="y")}
    with start_run(config, tmp_path / "run", base=tmp_path, tell=told.append) as (run, _):
        pass
    assert "field: user.city: category, 2 values (x, y); 'y' where none is given" in told
    assert run.split.schema["user.city"].default == "y"
    # What was stored counts, whatever is recognised later.
    stored = json.loads((run.folder / "schema.json").read_text())
    stored[-1]["kind"] = "id"
    (run.folder / "schema.json").write_text(json.dumps(stored))
    again = Run(run.folder).split.schema
    assert [field.kind for field in again][-1] == "id" and len(list(again)) == len(stored)
    (run.folder / "schema.json").write_text("[{}]")
    with pytest.raises(ModelError, match="schema: expected fields with name, owner and kind"):
        _ = Run(run.folder).split


def in_cyrillic(chain_config, folder):
    """The config of the ring with titles that its encoder has no letters for."""
    config = chain_config.model_copy(deep=True)
    items = pd.read_csv(config.data.items).assign(title=lambda table: [f"чай {row}" for row in range(len(table))])
    config.data.items = folder / "items.csv"
    items.to_csv(config.data.items, index=False)
    return config


def test_an_encoder_that_cannot_read_the_items_is_told(chain_config, cache, tmp_path):
    told = []
    with start_run(in_cyrillic(chain_config, tmp_path), tmp_path / "run", base=tmp_path, tell=told.append) as given:
        encode(*given, told.append)
    (warning,) = (line for line in told if "cannot read these texts" in line)
    assert "scripts CYRILLIC 100%" in warning and "Set text.encoder=e5" in warning
    told.clear()
    with start_run(chain_config, tmp_path / "latin", base=tmp_path, tell=told.append) as given:
        encode(*given, told.append)
    assert not any("cannot read" in line for line in told)


def test_items_that_may_not_be_english_are_told(chain_config, cache, tmp_path, monkeypatch):
    german = reading.Reading({"LATIN": 1.0}, (), 0.0, 0.35, 0.43)
    monkeypatch.setattr(reading, "reading_of", lambda *of: german)
    told = []
    with start_run(chain_config, tmp_path / "run", base=tmp_path, tell=told.append) as given:
        encode(*given, told.append)
    (warning,) = (line for line in told if line.startswith("warning: these texts may not be English"))
    assert "vocabulary has 43% of their words" in warning and "Set text.encoder=e5" in warning


@pytest.mark.long
@pytest.mark.slow
def test_two_encoders_side_by_side_from_fit_to_search(chain_config, thin_hub, cache, tmp_path, monkeypatch):
    """Names of bundled encoders stand for tiny ones; all else is as in a fit of minilm+e5."""
    from tfllmrec.serving.export import export
    from tfllmrec.serving.saved_model import SavedModel
    from tfllmrec.text import encoder as text_encoder

    monkeypatch.setattr(text_encoder, "hub_handles", lambda name, precision: thin_hub)
    config = chain_config.model_copy(deep=True)
    config.text.encoder = f"minilm+{config.text.encoder}"  # with the preprocessor of the second
    run = fit_experiment(config, tmp_path / "run")
    assert run.text_widths == [16, 16] and run.text.shape[1] == 32
    model = SavedModel.open(export(run.folder, tmp_path / "exported"))
    title = model.title(model.item_ids[3])
    assert model.search([title], k=1).item_id.tolist() == [model.item_ids[3]]
    np.testing.assert_allclose(model.encode([title])[0], run.text[3], atol=1e-5)


def test_auto_takes_an_encoder_that_can_read_the_items(chain_config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        reading, "choose_encoder", lambda texts: ("e5" if texts[0] == "чай 0" else "use", "text.encoder: why")
    )
    config, told = in_cyrillic(chain_config, tmp_path), []
    config.text.encoder, config.text.preprocessor = "auto", None
    with start_run(config, tmp_path / "run", base=tmp_path, tell=told.append) as (run, settled):
        assert settled.text.encoder == run.config.text.encoder == "e5"
    assert "chosen: text.encoder: why" in told


def test_items_without_text_and_events_without_order(bare_run):
    run, told = bare_run
    assert any("no item has text" in line for line in told)
    assert "no item has text, so there is no baseline text, star" in told
    assert run.split.kind == "leave_random_out"
    assert run.config.item_weights.decay == 1.0 and run.config.item_weights.text == 0.0
    assert not np.any(run.text)
    assert set(run.metrics["results"]) == {"hybrid", "hybrid_refit", "popularity"}
    assert np.isfinite(run.load_model().score(run.split.test)).all()


def test_nobody_with_two_training_events_is_an_error(chain_config):
    import pandas as pd

    rows = [(f"{user}", f"{(user + step) % 5}", step) for user in range(9) for step in range(3)]
    dataset = dataset_from_frames(pd.DataFrame(rows, columns=["user", "item", "time"]))
    split = make_split(dataset, SplitConfig(), seed=0)
    config = chain_config.model_copy(deep=True)
    text = np.eye(split.dataset.n_items, dtype=np.float32)
    with pytest.raises(DataError, match="no user with two training events"):
        fit_hybrid(TrainingData(split, text), config)


@pytest.mark.slow
def test_a_fit_that_diverges_says_so(chain_split, chain_config):
    config = chain_config.model_copy(deep=True)
    config.training.learning_rate = 1e38
    config.model.terms = ["meaning"]
    text = np.random.default_rng(0).normal(size=(chain_split.dataset.n_items, 5)).astype(np.float32)
    with pytest.raises(ModelError, match=r"diverged: lower training\.learning_rate"):
        fit_hybrid(TrainingData(chain_split, text), config)


def test_tags_that_give_a_target_away_are_not_encoded(chain_config, chain_files, cache, tmp_path):
    events, items = map(pd.read_csv, chain_files)
    last, early = events[events.user == "u0"].iloc[-1], events[events.user == "u1"].iloc[0]

    def encoded(name, *tags):
        folder = tmp_path / name
        folder.mkdir()
        events.to_csv(folder / "ratings.csv", index=False)
        items.to_csv(folder / "movies.csv", index=False)
        columns = ["user", "item", "tag", "timestamp"]
        pd.DataFrame([(early.user, early["item"], "toy", early.timestamp), *tags], columns=columns).to_csv(
            folder / "tags.csv", index=False
        )
        config = chain_config.model_copy(deep=True)
        config.data = DataConfig(source=str(folder))
        with start_run(config, folder / "run", base=folder, tell=lambda line: None) as (run, config):
            pass
        return np.array(encode(run, config, lambda line: None)), run.split.findings, config.text.template

    plain, findings, template = encoded("plain")
    assert template == "{title} [{tags}]" and not findings
    told, findings, _ = encoded("told", (last.user, last["item"], "car", last.timestamp))
    assert np.array_equal(told, plain) and [f.count for f in findings] == [1]
    allowed, findings, _ = encoded("allowed", (early.user, early["item"], "car", early.timestamp))
    assert not np.array_equal(allowed, plain) and not findings


# --- Full disks, damaged files, a second process ----------------------------------------------------------------------


def damaged(run, tmp_path, name, content):
    copy = Run(Path(shutil.copytree(run.folder, tmp_path / "copy")))
    path = copy.folder / name
    path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    return copy


DEEP = b'{"data":' * 100_000
HALF = (b"", b"{}", b"[1]", b"null", b"{", DEEP)


@pytest.mark.parametrize("content", HALF)
def test_damaged_metrics_are_named(chain_run, tmp_path, content):
    copy = damaged(chain_run[0], tmp_path, "metrics.json", content)
    with pytest.raises(ModelError, match=r"copy/metrics\.json is damaged \(.*: copy it back, or fit again"):
        copy.results  # noqa: B018 (reads)


@pytest.mark.parametrize(
    ("key", "value"),
    [("data", {}), ("split", {"kind": "random", "queries": "3"}), ("results", {"hybrid": {}}), ("intervals", {}),
     ("results", {"hybrid": {"ndcg@10": "high"}}), ("results", {}), ("alarms", [1])],
)  # fmt: skip
def test_metrics_without_a_key_or_of_another_type_are_named(chain_run, tmp_path, key, value):
    content = json.dumps(chain_run[0].metrics | {key: value}).encode()
    with pytest.raises(ModelError, match=r"copy/metrics\.json is damaged \(.*: copy it back, or fit again"):
        damaged(chain_run[0], tmp_path, "metrics.json", content).metrics  # noqa: B018


@pytest.mark.parametrize("content", [*HALF, b'{"seed": 42}', b'{"seed": "42"}'])
def test_a_damaged_record_is_named(chain_run, tmp_path, content):
    copy = damaged(chain_run[0], tmp_path, "run.json", content)
    with pytest.raises(ModelError, match=r"copy/run\.json is damaged \(.*: copy it back, or fit again"):
        copy.record  # noqa: B018
    (copy.folder / "metrics.json").unlink()  # a resumed run reads it, too
    if content in (b"", DEEP):
        with pytest.raises(ModelError, match=r"copy/run\.json is damaged"):
            fit_experiment(copy.config, copy.folder, resume=True, tell=lambda line: None)
        assert not (copy.folder / ".lock").exists()


def other_lengths(content):
    stored = dict(np.load(io.BytesIO(content)))
    stored["user_ids"] = stored["user_ids"][:-1]
    written = io.BytesIO()
    np.savez(written, **stored)
    return written.getvalue()


def another_name(content):
    stored = dict(np.load(io.BytesIO(content)))
    written = io.BytesIO()
    np.savez(written, **{"strange:ndcg@10": np.zeros(len(stored["user_ids"])), **stored})
    return written.getvalue()


def an_array(content):
    written = io.BytesIO()
    np.save(written, np.zeros(3))
    return written.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK nothing", pickle.dumps({"user_ids": []}), lambda content: content[: len(content) // 2],
     lambda content: content[:-30], other_lengths, another_name, an_array],
)  # fmt: skip
def test_damaged_values_per_query_are_named(chain_run, tmp_path, content):
    copy = damaged(chain_run[0], tmp_path, "per_query.npz", content)
    with pytest.raises(ModelError, match=r"per_query\.npz (cannot be read|is damaged) \(.*copy it back, or fit again"):
        copy.results  # noqa: B018


def test_missing_values_per_query_are_named_with_the_reason(tmp_path):
    with pytest.raises(ModelError) as raised:
        Run(tmp_path / "shop.v2").per_query  # noqa: B018
    assert str(raised.value) == (
        f"{tmp_path}/shop.v2/per_query.npz cannot be read (No such file or directory): copy it back, or fit again into "
        "another folder."
    )


@pytest.mark.parametrize("content", [b"", lambda content: content[:-1], b"\x93NUMPY", an_array])
def test_damaged_vectors_are_named(chain_run, tmp_path, content):
    copy = damaged(chain_run[0], tmp_path, "vectors.npy", content)
    with pytest.raises(ModelError, match=r"copy/vectors\.npy (cannot be read|is damaged).*fit again"):
        copy.load_model()
    (copy.folder / "metrics.json").unlink()
    with pytest.raises(ModelError, match=r"copy/vectors\.npy .*delete it, and continue with 'tfllmrec fit --resume"):
        fit_experiment(copy.config, copy.folder, resume=True, tell=lambda line: None)


@pytest.mark.parametrize("content", [b"- 1", b"seed: {", b"[" * 10_000, b"\xff"])
def test_a_damaged_config_is_named(chain_run, tmp_path, content):
    copy = damaged(chain_run[0], tmp_path, "config.yaml", content)
    with pytest.raises(ConfigError, match=r"copy/config\.yaml"):
        copy.load_model()


@pytest.mark.parametrize("name", ["events", "items", "users", "tags"])
def test_a_table_that_was_cut_short_is_named(chain_run, tmp_path, name):
    copy = damaged(chain_run[0], tmp_path, f"data/{name}.parquet", lambda content: content[:-20])
    with pytest.raises(DataError, match=r"copy/data cannot be read as a saved data set: .*prepare the data again"):
        copy.split  # noqa: B018


@pytest.mark.parametrize("content", [b"[1]", b'{"encoder": 3}'])
def test_damaged_notes_on_the_encoder_are_named(chain_run, tmp_path, content):
    copy = damaged(chain_run[0], tmp_path, "vectors.json", content)
    with pytest.raises(ModelError, match=r"copy/vectors\.json is damaged"):
        copy.text_encoder()


def test_a_second_fit_does_not_touch_the_folder_of_the_first(chain_config, tmp_path):
    out, told = tmp_path / "run", []

    def second(line):
        told.append(line)
        if line.startswith("run folder"):
            before = sorted(out.rglob("*"))
            for resume in (False, True):
                with pytest.raises(ConfigError, match=rf"run is in use by process {os.getpid()} on .* since "):
                    fit_experiment(chain_config, out, resume=resume, tell=print)
            assert sorted(out.rglob("*")) == before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_experiment(chain_config, out, tell=second)
    assert told[-1] == f"run folder: {out}" and (out / "data").is_dir() and not (out / ".lock").exists()


def test_two_fits_without_a_name_get_folders_of_their_own(chain_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        start_run(chain_config, None, base=tmp_path, tell=print) as (first, _),
        start_run(chain_config, None, base=tmp_path, tell=print) as (second, _),
    ):
        assert (first.folder, second.folder) == (Path("runs/chain"), Path("runs/chain-2"))


@pytest.mark.parametrize("function", [None, "posixpath:basename"])
def test_a_full_disk_says_how_to_continue(chain_config, tmp_path, monkeypatch, function):
    def full(*_, **__):
        with replacing(tmp_path / "run" / "model"):
            raise tf.errors.ResourceExhaustedError(None, None, "weights.tempstate; No space left on device")

    monkeypatch.setattr(experiment, "encode", full)
    config = chain_config.model_copy(deep=True)
    config.tuning.paraphrase = function
    with pytest.raises(WriteError) as raised:
        fit_experiment(config, tmp_path / "run", tell=lambda line: None)
    first, advice = str(raised.value).split("\n")
    assert first.startswith(f"{tmp_path}/run/model cannot be written: No space left on device (")
    command = f"tfllmrec fit --resume {tmp_path}/run{paraphrase_option(function)}"
    assert advice == f"Once it can be written, continue with: {command}"
    assert not (tmp_path / "run" / ".lock").exists()
    with pytest.raises(ModelError, match=re.escape(f"continue it with '{command}'")):
        Run.open(tmp_path / "run")
    np.save(tmp_path / "run" / "vectors.npy", np.zeros(3))
    with pytest.raises(ModelError, match=re.escape(f"continue with '{command}'")):
        Run(tmp_path / "run").text  # noqa: B018


def test_a_run_calls_no_function_that_its_caller_does_not_name(chain_run, tmp_path, monkeypatch):
    """A run folder of somebody else must not run code, in whatever state it is."""
    copy = Run(Path(shutil.copytree(chain_run[0].folder, tmp_path / "copy")))
    config = copy.config
    config.text.mode, config.tuning.paraphrase = "adapter", "posixpath:basename"
    (copy.folder / "config.yaml").write_text(dump_config(config))
    for record in (None, TowerRecord(1, 1, 1.0)):  # a complete run is not trained again: nothing has to be allowed
        if record is not None:
            record.save(copy.folder / "text")  # tuned.safetensors is lost
        for named in (None, "posixpath:basename"):
            with pytest.raises(
                ModelError, match=r"copy/text lacks trained parts .*: copy the folder back, or fit again"
            ):
                Run(copy.folder, named).text_encoder()
    (copy.folder / "metrics.json").unlink()
    refused = r"copy records tuning\.paraphrase=posixpath:basename, .*--set tuning\.paraphrase=posixpath:basename"
    for named in (None, "posixpath:dirname"):
        with pytest.raises(ConfigError, match=refused):
            Run(copy.folder, named).text_encoder()
    monkeypatch.setattr("tfllmrec.training.text.tower.prepared_encoder", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # it would be trained now
        Run(copy.folder, "posixpath:basename").text_encoder()
