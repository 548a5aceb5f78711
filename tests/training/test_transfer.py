"""What a transfer chooses, on stand-ins for models and figures; alignment of texts of another style."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from stand_ins import two_domains

from tfllmrec.config import ExperimentConfig, ItemWeightSettings
from tfllmrec.data.queries import Ragged
from tfllmrec.errors import ConfigError
from tfllmrec.models.fitting import Fitted, TrainingData
from tfllmrec.training import transfer

pytestmark = pytest.mark.tf


@pytest.fixture
def fits(monkeypatch):
    found = []

    def zero_shot(data, config, source, tell, align=False):
        found.append(("align" if align else "zero_shot", config.item_weights))
        return Fitted("zero-shot model", config, {}, [])

    def fine_tune(data, config, source, folder, tell, callbacks):
        found.append(("fine_tune", config.item_weights))
        return Fitted("fine-tuned model", config, {}, ["of the fit"])

    def search(data, given, tried, tell):
        return given.model_copy(update={"decay": 0.7, "graph": 0.0, "source": 0.0}), ["item_weights decay=0.7"]

    def with_source(name, data, given, settings, tried, tell):
        assert name == "source"
        return settings.model_copy(update={"source": 0.3}), ["item_weights.source 0.3"]

    monkeypatch.setattr(transfer, "zero_shot", zero_shot)
    monkeypatch.setattr(transfer, "fine_tune", fine_tune)
    monkeypatch.setattr(transfer, "choose_item_weights", search)
    monkeypatch.setattr(transfer, "choose_view", with_source)
    monkeypatch.setattr(transfer, "item_weights_result", lambda data, settings: 0.2)
    monkeypatch.setattr(transfer, "selection_value", lambda value: value)
    return found


def fit(method, figure_of_zero_shot=0.0):
    config = ExperimentConfig()
    config.transfer.method = method
    data = SimpleNamespace(measure=lambda model: figure_of_zero_shot)
    return transfer.fit_from(None, data, config, None, lambda line: None)


def test_auto_takes_what_ranks_better_on_validation(fits):
    fitted = fit("auto", 0.3)
    assert [name for name, _ in fits] == ["zero_shot", "zero_shot"]  # measured, and then made
    assert fits[-1][1] == ItemWeightSettings() and len(fitted.chosen) == 1
    assert fitted.chosen[0].startswith("transfer.method zero_shot: selection value of zero_shot 0.3000")


def test_auto_fits_with_the_settings_that_it_found(fits):
    fitted = fit("auto", 0.1)
    assert [name for name, _ in fits] == ["zero_shot", "fine_tune"]
    settings = fits[-1][1]
    assert (settings.decay, settings.source, settings.graph) == (0.7, 0.3, None)  # the graph is still to be chosen
    assert [line.split(":")[0] for line in fitted.chosen] == [
        "transfer.method fine_tune", "item_weights decay=0.7", "of the fit",
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["align", "zero_shot", "fine_tune"])
def test_a_given_method_is_taken(fits, method):
    fit(method)
    assert [name for name, _ in fits] == [method]


def taught_by(model, monkeypatch, folder):
    """The teacher and the folder of each fit by :func:`transfer.distil` with a weight of 0.5."""
    fits = []

    def fit_hybrid(data, config, folder, tell, callbacks, teacher):
        fits.append((teacher, folder))
        return Fitted("taught model", config, {}, [])

    monkeypatch.setattr(transfer, "fit_hybrid", fit_hybrid)
    monkeypatch.setattr(transfer, "_catalogue", lambda data, text, source: None)
    config = ExperimentConfig()
    config.transfer.distil = 0.5
    data, source = SimpleNamespace(text=np.zeros((1, 1))), SimpleNamespace(model=model, rows=None)
    transfer.distil(data, config, source, folder, lambda line: None)
    return fits


def test_a_teacher_has_nothing_of_the_domains_of_its_own_data(monkeypatch, tmp_path):
    config = ExperimentConfig()
    model = SimpleNamespace(use_dense=True, config=config.model, item_vectors=lambda: "vectors")
    model.item_weights = ItemWeightSettings(domains={"a>b": 0.5}, map=True, graph=0.1, decay=0.7)
    asked = []

    def with_catalogue(catalogue, rows, histories, tell, item_weights):
        asked.append(item_weights)
        return model

    model.with_catalogue = with_catalogue
    ((teacher, folder),) = taught_by(model, monkeypatch, tmp_path)
    assert (teacher.model, teacher.items, teacher.weight, folder) == (model, "vectors", 0.5, tmp_path)
    (settings,) = asked
    assert (settings.domains, settings.map, settings.graph, settings.decay) == ({}, False, 0, 0.7)


def test_a_source_without_a_dense_side_teaches_nothing(monkeypatch):
    with pytest.raises(ConfigError, match="meaning or feedback"):
        taught_by(SimpleNamespace(use_dense=False), monkeypatch, None)


@pytest.mark.slow
def test_texts_of_another_style_are_read_where_they_are_aligned(chain_run, monkeypatch):
    """The same catalogue, with texts whose directions are stretched unequally: aligned, it is scored as before."""
    run = chain_run[0]
    model, text = run.load_model(), np.asarray(run.text)
    values, axes = np.linalg.eigh(np.cov(text.T))
    stretch = np.random.default_rng(0).permutation(np.geomspace(0.2, 5, len(values)))
    styled = ((text - text.mean(axis=0)) @ axes * stretch @ axes.T + 1).astype(np.float32)
    nothing = Ragged.from_rows([], np.int64)
    source = transfer.Source(model, np.full(len(text), -1), text, nothing, nothing)
    monkeypatch.setattr(transfer, "order_settings", lambda model: {"as it is": model.item_weights})

    def scores(text, align=False):
        data = TrainingData.of(run.split, text, run.config)
        made = transfer.zero_shot(data, run.config, source, lambda line: None, align)
        return made.model.score(run.split.test).ravel()

    as_before, as_it_is, aligned = scores(text), scores(styled), scores(styled, align=True)
    with_it, without = (np.corrcoef(as_before, found)[0, 1] for found in (aligned, as_it_is))
    assert with_it > 0.8 and with_it > without + 0.1, (with_it, without)


def test_the_setting_names_the_alignment(chain_run, monkeypatch):
    run = chain_run[0]
    asked = []

    def stop(text, onto, seed):
        asked.append((onto, seed))
        raise InterruptedError

    monkeypatch.setattr(transfer, "adversarial", stop)
    config = run.config.model_copy(deep=True)
    config.transfer.alignment, config.seed = "adversarial", 7
    data, source = SimpleNamespace(text=[[1.0]]), SimpleNamespace(text="of the source")
    with pytest.raises(InterruptedError):
        transfer.zero_shot(data, config, source, lambda line: None, align=True)
    assert asked == [("of the source", 7)]


def test_texts_of_the_domains_of_joined_data_are_compared():
    data = two_domains()
    (found,) = transfer.text_distances_between(data).items()
    apart = replace(data, text=data.text + 9 * (np.arange(80) < 40)[:, np.newaxis])
    (far,) = transfer.text_distances_between(apart).values()
    assert found[0] == "items of books and films, before" and found[1].mmd < far.mmd and far.a_distance > 1.9
    assert transfer.text_distances_between(replace(data, text=np.zeros((80, 1)))) == {found[0]: None}
