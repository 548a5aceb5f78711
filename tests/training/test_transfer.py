"""What a transfer chooses, on stand-ins for models and figures."""

from types import SimpleNamespace

import pytest

from tfllmrec.config import ExperimentConfig, ItemWeightSettings
from tfllmrec.models.fitting import Fitted
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
