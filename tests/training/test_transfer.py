"""What a transfer chooses, on stand-ins for models and figures; alignment of texts of another style."""

from types import SimpleNamespace

import numpy as np
import pytest

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

    def search(data, given, tell):
        return given.model_copy(update={"decay": 0.7, "graph": 0.0, "source": 0.0}), ["item_weights decay=0.7"]

    def with_source(data, given, settings, tell):
        return settings.model_copy(update={"source": 0.3}), ["item_weights.source 0.3"]

    monkeypatch.setattr(transfer, "zero_shot", zero_shot)
    monkeypatch.setattr(transfer, "fine_tune", fine_tune)
    monkeypatch.setattr(transfer, "choose_item_weights", search)
    monkeypatch.setattr(transfer, "choose_source", with_source)
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


def teaching(monkeypatch, gain, use_dense=True):
    """What :func:`transfer.distil` needs, and a list of (weight of the teacher, folder) of its fits."""
    fits = []

    def fit_hybrid(data, config, folder, tell, callbacks, teacher):
        weight = 0.0 if teacher is None else teacher.weight
        fits.append((weight, folder))
        return Fitted(weight, config.model_copy(deep=True), {}, ["of the fit"])

    model = SimpleNamespace(use_dense=use_dense, config=ExperimentConfig().model, item_vectors=lambda: None)
    model.with_catalogue = lambda catalogue, rows, histories, tell: model
    monkeypatch.setattr(transfer, "fit_hybrid", fit_hybrid)
    monkeypatch.setattr(transfer, "_catalogue", lambda data, text, source: None)
    monkeypatch.setattr(transfer, "selection_value", lambda weight: weight)
    monkeypatch.setattr(transfer, "selection_gain", lambda a, b, confidence: (gain, gain - 0.1, gain + 0.1))
    data = SimpleNamespace(measure=lambda weight: weight, text=np.zeros((1, 1)))
    return data, SimpleNamespace(model=model, rows=None), fits


@pytest.mark.parametrize(("gain", "taken"), [(0.2, 1.0), (0.05, 0.0)])
def test_a_teacher_counts_only_where_it_helps(monkeypatch, tmp_path, gain, taken):
    data, source, fits = teaching(monkeypatch, gain)
    fitted = transfer.distil(data, ExperimentConfig(), source, tmp_path, lambda line: None)
    assert fits == [(weight, tmp_path / "distil" / f"{weight:g}") for weight in (0.0, *transfer.DISTIL_WEIGHTS)]
    assert fitted.model == fitted.options.transfer.distil == taken
    assert fitted.chosen[-1].startswith(f"transfer.distil {taken:g}") and ("chance" in fitted.chosen[-1]) != taken


def test_a_given_weight_of_the_teacher_is_one_fit(monkeypatch, tmp_path):
    data, source, fits = teaching(monkeypatch, 0.0)
    config = ExperimentConfig()
    config.transfer.distil = 0.5
    fitted = transfer.distil(data, config, source, tmp_path, lambda line: None)
    assert fits == [(0.5, tmp_path)] and fitted.options.transfer.distil == 0.5
    (tmp_path / "distil" / "0.5").mkdir(parents=True)  # a run that was interrupted after the weight was chosen
    transfer.distil(data, config, source, tmp_path, lambda line: None)
    assert fits[1:] == [(0.5, tmp_path / "distil" / "0.5")]


def test_a_source_without_a_dense_side_teaches_nothing(monkeypatch):
    data, source, _ = teaching(monkeypatch, 0.0, use_dense=False)
    with pytest.raises(ConfigError, match="meaning or feedback"):
        transfer.distil(data, ExperimentConfig(), source, None, lambda line: None)


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

    def stop(text, onto):
        asked.append((text, onto))
        raise InterruptedError

    monkeypatch.setitem(transfer.ALIGNMENTS, "adversarial", stop)
    config = run.config.model_copy(deep=True)
    config.transfer.alignment = "adversarial"
    data, source = SimpleNamespace(text=[[1.0]]), SimpleNamespace(text="of the source")
    with pytest.raises(InterruptedError):
        transfer.zero_shot(data, config, source, lambda line: None, align=True)
    assert asked[0][1] == "of the source"
