import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.board.tags import tag_of
from tfllmrec.config import GraphConfig, ItemWeightSettings, dump_config, load_config
from tfllmrec.data.splits import make_split
from tfllmrec.errors import ConfigError, ModelError, WriteError
from tfllmrec.evaluation.protocol import evaluate, selection_value
from tfllmrec.models.fitting import TrainingData
from tfllmrec.runs import search as library
from tfllmrec.runs.experiment import _record, encode, fit_experiment, start_run
from tfllmrec.runs.run import Run
from tfllmrec.runs.search import Pruning, _open_study, resume, tune
from tfllmrec.runs.search_space import parse_space
from tfllmrec.training.callbacks import FitState
from tfllmrec.training.fit import fit_hybrid
from tfllmrec.training.text import tower

pytestmark = [pytest.mark.tf, pytest.mark.slow]
optuna = pytest.importorskip("optuna", reason="needs the extra 'tune'")

LINES = [
    "training.learning_rate=1e-4..1e-1:log",
    "model.dropout=0.05..0.4",
    "model.blocks=1,2",
    "model.terms=[meaning],",
]
LINES[-1] += "[meaning,behaviour]"


@pytest.fixture(scope="module")
def small(chain_config):
    """The ring in two epochs, its item-item weights settled, so that a search takes seconds."""
    config = chain_config.model_copy(deep=True)
    config.training.epochs = 2
    config.item_weights = ItemWeightSettings(decay=0.8, l2=10.0, co_occurrence=0.1, text=1.0)
    config.model.terms = ["meaning", "behaviour"]
    return config


@pytest.fixture(scope="module")
def space(small):
    return parse_space(LINES, small)


class Untouchable:
    """In the place of the test queries."""

    def __getattribute__(self, name):
        if name == "__class__":
            return Untouchable
        raise AssertionError(f"test queries were asked for {name}")


@pytest.fixture(scope="module")
def searched(small, space, cache, tmp_path_factory):
    """(search, what it told, its split): two trials on the ring, with test queries that nobody can look at."""
    told, splits = [], []

    def hidden(*given):
        splits.append(dataclasses.replace(make_split(*given), test=Untouchable()))
        return splits[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfllmrec.runs.run.make_split", hidden)
        search = tune(small, tmp_path_factory.mktemp("searches") / "ring", space=space, trials=2, tell=told.append)
    return search, told, splits[-1]


def quietly(line):
    pass


def comparable(search):
    return [dataclasses.replace(trial, seconds=0.0) for trial in search.trials]


def test_the_folder(searched):
    search, *_ = searched
    best = search.ranking[0].number
    assert {path.name for path in search.folder.iterdir()} == {
        *("search.json", "base", "study.log", f"trial-{best}", "logs", "trials.json", "best.yaml")
    }
    # One trial's checkpoints are kept: the best one's, and of it nothing but them and what it was.
    assert {path.name for path in (search.folder / f"trial-{best}").iterdir()} == {"checkpoints", "settings.json"}
    assert json.loads((search.folder / "trials.json").read_text()) == search.as_json()


def test_the_trials(searched, small):
    search, told, _ = searched
    assert [trial.number for trial in search.trials] == [1, 2]
    assert [trial.state for trial in search.trials] == ["complete"] * 2
    assert search.ranking[0].selection == max(trial.selection for trial in search.trials)
    for trial in search.trials:
        both = trial.metrics["ndcg@10"], trial.metrics["ndcg@10/tail"]
        assert min(both) <= trial.selection <= max(both)
        assert trial.epochs == 2
    # The first one is the config as it is; the others are drawn.
    assert search.trials[0].settings == {
        "training.learning_rate": small.training.learning_rate,
        "model.dropout": small.model.dropout,
        "model.blocks": small.model.blocks,
        "model.terms": '["meaning", "behaviour"]',
    }
    assert len({trial.settings["model.dropout"] for trial in search.trials}) == 2
    assert sum(line == "reading the data" for line in told) == 1
    assert sum(line.startswith("text: ") for line in told) == 1
    assert sum("epoch 2: retrieval_loss" in line for line in told) == 2


@pytest.mark.long
def test_the_best_config_is_fitted_to_the_same_figures(searched, tmp_path):
    search, *_ = searched
    loaded = load_config(search.folder / "best.yaml", ["evaluation.baselines=[popularity]"])
    run = fit_experiment(loaded.config, tmp_path / "run", base=loaded.base, tell=quietly)
    split = run.split
    result = evaluate(
        run.load_model(), split.validation, train_counts=split.train_counts, strata=split.strata(), bootstrap=0
    )
    best = search.ranking[0]
    assert selection_value(result) == pytest.approx(best.selection, abs=1e-6)
    assert loaded.config.model.dropout == best.settings["model.dropout"]


def test_tensorboard_shows_settings_and_figures(searched, space):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    def read(folder):
        events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
        events.Reload()
        tags = events.Tags()["tensors"]
        content = {tag: HParamsPluginData.FromString(it) for tag, it in events.PluginTagToContent("hparams").items()}
        values = {
            tag: float(tf.make_ndarray(events.Tensors(tag)[-1].tensor_proto))
            for tag in tags
            if not tag.startswith("_hparams_")
        }
        return content, values

    search, *_ = searched
    (experiment,) = (content.experiment for content in read(search.folder / "logs")[0].values())
    assert [info.name for info in experiment.hparam_infos] == [setting.key for setting in space]
    assert {info.name.tag for info in experiment.metric_infos} >= {
        "accuracy/selection",
        "accuracy/ndcg@10",
        "accuracy/recall@10",
        "tail/recall@10",
    }
    assert experiment.hparam_infos[0].domain_interval.max_value == 1e-1
    for trial in search.trials:
        folder = search.folder / "logs" / f"trial-{trial.number}"
        content, values = read(folder)
        (start,) = (each.session_start_info for each in content.values())
        assert start.hparams["model.dropout"].number_value == trial.settings["model.dropout"]
        assert start.hparams["model.terms"].string_value == trial.settings["model.terms"]
        figures = {"selection": trial.selection, **trial.metrics}
        assert values == pytest.approx({tag_of(label): value for label, value in figures.items()})
        assert list((folder / "validation").iterdir())  # the curves of its epochs


@pytest.mark.long
def test_a_killed_search_goes_on_to_the_same_trials(searched, small, tmp_path):
    """SIGKILL in the second epoch of the first trial, in a process of its own."""
    (tmp_path / "config.yaml").write_text(dump_config(small))
    script = """
import os, signal, sys
from pathlib import Path
from tfllmrec.board.tags import tag_of
from tfllmrec.config import load_config
from tfllmrec.runs.search_space import parse_space
from tfllmrec.runs.search import tune

def tell(line):
    if line.startswith("trial 1: epoch 2"):
        os.kill(os.getpid(), signal.SIGKILL)

config = load_config(sys.argv[1]).config
tune(config, Path(sys.argv[2]), space=parse_space(sys.argv[3:], config), trials=2, tell=tell)
"""
    out = tmp_path / "search"
    command = [sys.executable, "-c", script, str(tmp_path / "config.yaml"), str(out), *LINES]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert json.loads((out / "trials.json").read_text())["trials"] == []

    told = []
    again = resume(out, 1, tell=told.append)
    assert "trial 1: resumed after epoch 1" in told
    assert not any(line.startswith(("trial 1: epoch 1", "text: ")) for line in told)
    assert comparable(again) == comparable(searched[0])[:1]
    assert (out / "search.json").read_text() == (searched[0].folder / "search.json").read_text()


def test_a_search_killed_while_its_text_tower_trains_goes_on(planted, small, space, tmp_path, monkeypatch):
    real, folders = tower.prepared_encoder, []

    def killed_at_first(folder, *rest):
        folders.append(folder)
        if len(folders) == 1:
            (folder / "checkpoints").mkdir(parents=True)
            raise KeyboardInterrupt
        return real(folder, *rest)

    monkeypatch.setattr(tower, "prepared_encoder", killed_at_first)
    with pytest.raises(KeyboardInterrupt):
        tune(small, tmp_path / "s", space=space, trials=2, tell=quietly)
    with pytest.raises(ConfigError, match=r"is not empty: .*tfllmrec tune --resume"):
        tune(small, tmp_path / "s", space=space, trials=2, tell=quietly)
    again = resume(tmp_path / "s", tell=quietly)
    assert folders == [tmp_path / "s" / "base" / "text"] * 2
    assert comparable(again) == comparable(tune(small, tmp_path / "whole", space=space, trials=2, tell=quietly))


def result_of(value):
    return SimpleNamespace(metrics={"ndcg@10": value}, per_query={"ndcg@10": np.array([value])})


@pytest.fixture
def planted(monkeypatch, cache):
    """Fits that take no time: a trial's value is its dropout, reached step by step; and a list of their configs."""
    fitted = []

    def fit(data, config, folder, tell, callbacks):
        fitted.append(config)
        state, model = FitState.load(folder / "checkpoints"), SimpleNamespace(value=config.model.dropout)
        model.stop_training = state.finished
        while state.epochs_done < config.training.epochs and not model.stop_training:
            epoch, state.epochs_done = state.epochs_done, state.epochs_done + 1
            state.values.append(config.model.dropout * state.epochs_done / config.training.epochs)
            state.save(folder / "checkpoints")
            for callback in callbacks:
                callback.set_model(model)
                callback.on_epoch_end(epoch, {"selection": state.values[-1]})
        return SimpleNamespace(options=config, model=model)

    for name, fewer in {"RANDOM_TRIALS": 3, "UNPRUNED_TRIALS": 2, "IMPORTANCE_TRIALS": 5}.items():
        monkeypatch.setattr(library, name, fewer)
    monkeypatch.setattr(library, "gc", SimpleNamespace(collect=lambda: 0))  # half a second each, for no garbage
    monkeypatch.setattr(library, "fit_hybrid", fit)
    monkeypatch.setattr(library, "evaluate", lambda model, *_, **__: result_of(model.value))
    return fitted


def test_a_complete_search_goes_on_for_more(planted, small, space, tmp_path):
    whole = tune(small, tmp_path / "whole", space=space, trials=6, tell=quietly)
    first = tune(small, tmp_path / "parts", space=space, trials=4, tell=quietly)
    more = resume(tmp_path / "parts", 6, tell=quietly)
    assert more.trials[:4] == first.trials
    assert comparable(more) == comparable(whole)
    assert len(planted) == 2 * 6
    assert resume(tmp_path / "parts", 6, tell=quietly) == more
    assert len(planted) == 2 * 6


def test_a_search_that_is_interrupted_in_every_trial_ends_the_same(planted, small, tmp_path, monkeypatch):
    """After the fit, before the study is told: also in trials that were just given up."""
    space = parse_space(["model.dropout=0.05,0.4", "model.blocks=1,2"], small)
    config = small.model_copy(deep=True)
    config.model.dropout, config.training.epochs = 0.4, 5
    whole = tune(config, tmp_path / "whole", space=space, trials=6, tell=quietly)
    assert {trial.state for trial in whole.trials} == {"complete", "pruned"}
    real, calls = library.evaluate, []

    def interrupted(*arguments, **settings):
        calls.append(None)
        if len(calls) % 2:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    monkeypatch.setattr(library, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(config, tmp_path / "s", space=space, trials=6, tell=quietly)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "s", tell=quietly)
    assert comparable(resume(tmp_path / "s", tell=quietly)) == comparable(whole)


def test_an_interruption_between_the_study_and_the_folder_is_made_good(planted, small, space, tmp_path, monkeypatch):
    whole = tune(small, tmp_path / "whole", space=space, trials=3, tell=quietly)
    real, calls = library._write_hparams, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 3:  # of the second trial: once it is written before the first one
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(library, "_write_hparams", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(small, tmp_path / "s", space=space, trials=3, tell=quietly)
    again = resume(tmp_path / "s", tell=quietly)
    assert comparable(again) == comparable(whole)
    assert sorted(path.name for path in (again.folder / "logs").glob("trial-*")) == ["trial-1", "trial-2", "trial-3"]
    assert [path.name for path in again.folder.glob("trial-*")] == [f"trial-{again.ranking[0].number}"]


def test_trials_that_are_worse_than_most_are_given_up(planted, small, tmp_path):
    space = parse_space(["model.dropout=0.05,0.4"], small)
    config = small.model_copy(deep=True)
    config.model.dropout, config.training.epochs = 0.4, 5
    search = tune(config, tmp_path / "s", space=space, trials=10, tell=quietly)
    states = {(t.settings["model.dropout"], t.state, t.epochs) for t in search.trials[library.UNPRUNED_TRIALS :]}
    # The first epoch is let pass.
    assert states <= {(0.4, "complete", 5), (0.05, "pruned", 2), (0.05, "complete", 5)}
    assert (0.05, "pruned", 2) in states
    assert {t.state for t in search.trials[: library.UNPRUNED_TRIALS]} == {"complete"}
    assert all(trial.state == "complete" for trial in search.ranking)
    assert search.ranking[0].selection == 0.4

    config.training.epochs = 2  # that it is hopeless shows after the last one: nothing is left to save
    search = tune(config, tmp_path / "short", space=space, trials=10, tell=quietly)
    assert {trial.state for trial in search.trials} == {"complete"}
    assert {trial.selection for trial in search.trials} == {0.05, 0.4}


def test_what_matters_is_said_once_there_is_enough(planted, small, space, tmp_path):
    few = tune(small, tmp_path / "s", space=space, trials=library.IMPORTANCE_TRIALS - 1, tell=quietly)
    assert few.importance == {}
    search = resume(tmp_path / "s", 20, tell=quietly)
    assert next(iter(search.importance)) == "model.dropout" and search.importance["model.dropout"] > 0.5
    assert sum(search.importance.values()) == pytest.approx(1.0)
    # The sampler has learnt it too: the range goes to 0.4.
    drawn = [trial.settings["model.dropout"] for trial in search.trials]
    assert np.mean(drawn[-5:]) > np.mean(drawn[:5]) + 0.05


def test_a_trial_that_fails_does_not_end_the_search(planted, small, tmp_path, monkeypatch):
    real = library.fit_hybrid

    def fit(data, config, *rest):
        if config.model.blocks == 2:
            raise ModelError("The loss is not a number")
        return real(data, config, *rest)

    monkeypatch.setattr(library, "fit_hybrid", fit)
    space = parse_space(["model.blocks=1,2"], small)
    search = tune(small, tmp_path / "s", space=space, trials=5, tell=quietly)
    assert {(trial.settings["model.blocks"], trial.state, trial.error) for trial in search.trials} == {
        (1, "complete", None),
        (2, "failed", "The loss is not a number"),
    }
    assert {trial.state for trial in search.ranking} == {"complete"}
    assert len(list((search.folder / "logs").glob("trial-*"))) == 5

    monkeypatch.setattr(library, "fit_hybrid", lambda *_: (_ for _ in ()).throw(ModelError("diverged")))
    with pytest.raises(ModelError, match=r"No trial of .* was completed; the last one: diverged"):
        tune(small, tmp_path / "none", space=space, trials=2, tell=quietly)
    assert not (tmp_path / "none" / "best.yaml").exists()


def test_the_first_trial_is_what_a_fit_would_choose(planted, small, tmp_path):
    config = small.model_copy(deep=True)
    config.model.dropout = config.model.history_length = None
    space = parse_space(["model.dropout=0.1..0.6", "model.history_length=10..200:log"], config)
    tune(config, tmp_path / "s", space=space, trials=2, tell=quietly)
    # The ring: fewer than 100 events an item, and no history longer than 50.
    assert (planted[0].model.dropout, planted[0].model.history_length) == (0.4, 50)
    assert planted[1].model.dropout != 0.4


def test_item_weights_are_chosen_once_unless_they_are_searched(planted, small, space, tmp_path, monkeypatch):
    config = small.model_copy(deep=True)
    config.item_weights.l2 = config.item_weights.text = None
    told = []
    tune(config, tmp_path / "once", space=space, trials=2, tell=told.append)
    settled = Run(tmp_path / "once" / "base").config.item_weights.text
    assert settled is not None
    assert [trial.item_weights.text for trial in planted] == [settled] * 2
    assert sum(line.startswith("chosen: item_weights decay ") for line in told) == 1
    told.clear()
    resume(tmp_path / "once", 3, tell=told.append)
    assert not any("item_weights decay" in line or "item-item" in line for line in told)

    planted.clear()
    fit, weights = library.fit_hybrid, parse_space(["item_weights.l2=0.1..10000:log"], config)

    def telling(data, config, folder, tell, callbacks):
        for line in ("chosen: item_weights of this trial", next(line for line in told if line.startswith("chosen: "))):
            tell(line)
        return fit(data, config, folder, tell, callbacks)

    monkeypatch.setattr(library, "fit_hybrid", telling)
    tune(config, tmp_path / "each", space=weights, trials=2, tell=told.append)
    assert [trial.item_weights.text for trial in planted] == [None] * 2
    (chosen,) = [line for line in told if line.startswith("chosen: item_weights decay ")]
    assert f"l2 {planted[0].item_weights.l2:.3g}, " in chosen  # what a fit would choose
    assert planted[1].item_weights.l2 != planted[0].item_weights.l2
    of_trials = [line for line in told if line.startswith("trial ") and "chosen: " in line]
    assert of_trials == [f"trial {number}: chosen: item_weights of this trial" for number in (1, 2)]


def test_trials_read_the_graph_that_the_config_asks_for(planted, small, tmp_path, monkeypatch):
    config = small.model_copy(deep=True)
    config.graph, config.model.propagation, config.item_weights.graph = GraphConfig(relations=["text"]), "lightgcn", 0.0
    read, fit = [], library.fit_hybrid
    monkeypatch.setattr(library, "fit_hybrid", lambda data, *rest: read.append(data.graph) or fit(data, *rest))
    tune(config, tmp_path / "s", space=parse_space(["model.dropout=0.1..0.4"], config), trials=1, tell=quietly)
    resume(tmp_path / "s", 2, tell=quietly)
    kept = Run(tmp_path / "s" / "base").graph
    assert kept.relations and [graph and graph.lines() for graph in read] == [kept.lines()] * 2


class Told:
    """Stands in for optuna's trial: gives up at the epochs named."""

    def __init__(self, hopeless=()):
        self.hopeless, self.reported = hopeless, []

    def report(self, value, step):
        self.reported.append((step, value))

    def should_prune(self):
        return self.reported[-1][0] in self.hopeless


def test_a_hopeless_fit_is_stopped_after_the_epoch(chain_split, small, tmp_path):
    config = small.model_copy(deep=True)
    config.training.epochs = 4
    text = np.eye(chain_split.dataset.n_items, dtype=np.float32)
    pruning = Pruning(Told({1}))
    fit_hybrid(TrainingData(chain_split, text), config, tmp_path, callbacks=[pruning])
    state = FitState.load(tmp_path / "checkpoints")
    assert state.epochs_done == 2 and pruning.pruned
    assert pruning.trial.reported == list(enumerate(state.values))


def test_catching_up_after_a_kill(tmp_path):
    FitState(2, 1, 0.2, False, [0.1, 0.2]).save(tmp_path)
    pruning = Pruning(Told())
    pruning.catch_up(tmp_path)
    assert pruning.trial.reported == [(0, 0.1), (1, 0.2)]
    assert not pruning.pruned and not FitState.load(tmp_path).finished
    given_up = Pruning(Told({1}))  # killed after the epoch was kept, before optuna was told
    given_up.catch_up(tmp_path)
    assert given_up.pruned and FitState.load(tmp_path).finished


def test_folders_that_are_taken_missing_or_damaged(searched, small, space, tmp_path):
    search, *_ = searched
    with pytest.raises(ConfigError, match=r"is not empty: .*--out.*tfllmrec tune --resume"):
        tune(small, search.folder, space=space)
    with pytest.raises(ConfigError, match=r"Nothing to resume: .* has no search\.json"):
        resume(tmp_path)
    (tmp_path / "search.json").write_text("{}")
    shutil.copytree(search.folder / "base", tmp_path / "base")
    with pytest.raises(ModelError, match=r"search\.json is damaged"):
        resume(tmp_path)
    (tmp_path / "search.json").write_text((search.folder / "search.json").read_text())
    whole = (search.folder / "study.log").read_text()
    (tmp_path / "study.log").write_text(whole + whole[:40])  # cut off while a line was written
    _open_study(tmp_path / "study.log")
    assert (tmp_path / "study.log").read_text().startswith(whole)
    (tmp_path / "study.log").write_text("nonsense\nnonsense\n")
    with pytest.raises(ModelError, match=r"study\.log is damaged"):
        resume(tmp_path, tell=quietly)


def test_a_mistake_before_the_first_trial_leaves_the_folder_free(small, space, tmp_path):
    config = small.model_copy(deep=True)
    config.text.template = "{name}"
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"names the column 'name'"):
            tune(config, tmp_path / "s", space=space, tell=quietly)


def test_a_setting_with_one_meaning_is_refused_before_anything_is_learnt(planted, small, tmp_path, monkeypatch):
    config = small.model_copy(deep=True)
    config.model.history_length = None
    same = parse_space(["model.history_length=null,50"], config)  # the ring: auto is 50
    encoded = []
    monkeypatch.setattr(library, "encode", lambda *arguments: encoded.append(None) or encode(*arguments))
    with pytest.raises(ConfigError, match=r"model\.history_length=.*expected two different values or more"):
        tune(config, tmp_path / "s", space=same, trials=1, tell=quietly)
    assert encoded == [] and not (tmp_path / "s" / "search.json").exists()
    corrected = parse_space(["model.history_length=null,50,20"], config)
    tune(config, tmp_path / "s", space=corrected, trials=1, tell=quietly)
    assert json.loads((tmp_path / "s" / "search.json").read_text())["space"] == ["model.history_length=50, 20"]


def test_a_search_that_was_begun_with_equal_values_keeps_them(planted, small, tmp_path, monkeypatch):
    config = small.model_copy(deep=True)
    config.model.history_length = None
    space = parse_space(["model.history_length=null,50,20"], config)
    with monkeypatch.context() as patch:  # as earlier versions did
        patch.setattr(library, "distinct", lambda space, *_: space)
        tune(config, tmp_path / "s", space=space, trials=1, tell=quietly)
    assert len(resume(tmp_path / "s", 3, tell=quietly).trials) == 3


def test_without_optuna(small, space, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'tfllmrec\[tune\]'"):
        tune(small, tmp_path / "s", space=space)
    assert not (tmp_path / "s").exists()


def test_a_second_search_does_not_touch_the_folder_of_the_first(planted, small, space, tmp_path):
    refused = []

    def second(line):
        if line.startswith("trial 1: ") and not refused:
            for begin in (
                lambda: tune(small, tmp_path / "s", space=space, trials=1, tell=quietly),
                lambda: resume(tmp_path / "s", tell=quietly),
                lambda: fit_experiment(small, tmp_path / "s" / "base", resume=True, tell=quietly),
            ):
                with pytest.raises(ConfigError, match=rf"is in use by process {os.getpid()} on ") as raised:
                    begin()
                refused.append(str(raised.value))

    search = tune(small, tmp_path / "s", space=space, trials=1, tell=second)
    assert len(refused) == 3 and len(search.trials) == 1
    assert not list((tmp_path / "s").rglob(".lock"))


def test_a_full_disk_says_how_to_continue(planted, small, space, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(library, "fit_hybrid", full)
    with pytest.raises(WriteError) as raised:
        tune(small, tmp_path / "s", space=space, trials=1, tell=quietly)
    first, advice = str(raised.value).split("\n")
    assert first.startswith(f"{tmp_path}/s cannot be written: No space left on device (")
    assert advice == f"Once it can be written, continue with: tfllmrec tune --resume {tmp_path}/s"
    monkeypatch.setattr(library, "encode", full)
    with pytest.raises(WriteError) as raised:
        resume(tmp_path / "s", paraphrase="words:again", tell=quietly)
    assert str(raised.value).endswith(f" tune --resume {tmp_path}/s --set tuning.paraphrase=words:again")


def test_the_best_config_is_fitted_by_the_command_for_it(planted, small, space, tmp_path):
    search = tune(small, tmp_path / "s", space=space, trials=1, tell=quietly)
    command = f"tfllmrec fit {tmp_path}/s/best.yaml --out {tmp_path}/s-best"
    assert search.fit_command == command
    config = small.model_copy(deep=True)
    config.tuning.paraphrase = "words:again"  # which a frozen encoder does not call
    search = tune(config, tmp_path / "with", space=space, trials=1, tell=quietly)
    *_, path, _, _, option, override = search.fit_command.split()
    assert option == "--set" and override == "tuning.paraphrase=words:again"
    assert load_config(path, [override]).config.tuning.paraphrase == "words:again"


def test_a_run_of_the_best_config_names_its_search(planted, small, space, tmp_path):
    loaded = load_config(tune(small, tmp_path / "s", space=space, trials=1, tell=quietly).best_config)
    with start_run(loaded.config, tmp_path / "run", base=loaded.base, tell=quietly) as (run, _):
        parent = {"folder": "s", "data_sha256": run.dataset.fingerprint}
        assert _record(run, 42, [], 0.0, {})["parent"] == parent
    again = load_config(tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / "run.json").write_text("{}")  # as a run that is complete has it
    with start_run(again.config, tmp_path / "again", base=again.base, tell=quietly) as (run, _):
        assert _record(run, 42, [], 0.0, {})["parent"] == parent | {"folder": "run"}
    with start_run(small, tmp_path / "other", base=loaded.base, tell=quietly) as (run, _):  # it reads other files
        assert _record(run, 42, [], 0.0, {})["parent"] is None


def test_a_resumed_search_calls_no_function_that_its_caller_does_not_name(planted, small, space, tmp_path, monkeypatch):
    named = []

    def interrupted(run, config, tell):
        named.append(run.paraphrase)
        raise KeyboardInterrupt

    config = small.model_copy(deep=True)
    config.text.mode, config.tuning.paraphrase = "adapter", "posixpath:basename"
    monkeypatch.setattr(library, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(config, tmp_path / "s", space=space, trials=1, tell=quietly)
    for allowed in (None, "posixpath:basename"):
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "s", paraphrase=allowed, tell=quietly)
    assert named == ["posixpath:basename", None, "posixpath:basename"]


@pytest.mark.parametrize(
    ("name", "content"), [("search.json", "[" * 100_000), ("study.log", "[1]\n"), ("study.log", "\xff\n")]
)
def test_damaged_files_of_a_search_are_named(planted, small, space, tmp_path, name, content):
    tune(small, tmp_path / "s", space=space, trials=1, tell=quietly)
    (tmp_path / "s" / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=rf"{name} is damaged .*search again into another folder"):
        resume(tmp_path / "s", trials=2, tell=quietly)
