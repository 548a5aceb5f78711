"""The report and the card of a run that ``fit`` made, by the program."""

import json
import re
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from html_pages import check, told

from tfllmrec.evaluation.calibration import calibration_error
from tfllmrec.evaluation.report import baselines_of
from tfllmrec.explain.calibration import candidates_of, predictions_of
from tfllmrec.explain.epochs import epochs_of
from tfllmrec.explain.interest_labels import label_confusion
from tfllmrec.models.interests import Interests, LabelForecast
from tfllmrec.models.ranking import Reranked
from tfllmrec.runs.run import Run

pytestmark = [pytest.mark.tf, pytest.mark.slow]

EACH = 9


@pytest.fixture(scope="module")
def copied(chain_run, tmp_path_factory):
    """The fitted ring with learned interests: four labels, of which each follows itself."""
    folder = shutil.copytree(chain_run[0].folder, tmp_path_factory.mktemp("fit") / "ring")
    c = 4
    labels = np.array([f"label {n}" for n in range(c)], object)
    head = {name: np.zeros((c, 2), np.float32) for name in ("slow", "fast", "out")}
    forecast = LabelForecast(
        labels, **head, bias=np.zeros(c, np.float32), mixture=np.float32([1, 0, 0]), sharpness=1.0, fast_decay=0.5,
        scale=10.0,
    )  # fmt: skip
    (folder / "interests").mkdir()
    forecast.save(folder / "interests" / "forecast.npz")
    from tfllmrec.training.interests import InterestRecord

    record = InterestRecord(
        events=1, queries=2, epochs=1, mixture=[1.0, 0.0, 0.0], sharpness=1.0, precision=[0.5, 0.4],
        precision_interval=[0.05, 0.15], specific=[0.3, 0.2], kept=True, seconds=1.0,
    )  # fmt: skip
    (folder / "interests" / "record.json").write_text(json.dumps(asdict(record)))
    return Run.open(folder)


@pytest.fixture
def four_labels(monkeypatch):
    """The items of the ring have a label for each quarter; those that nobody has met have none."""

    def labels(run, items, tell):
        columns = np.minimum(np.arange(len(items)) // EACH, 4).astype(np.int32)[:, np.newaxis]
        weights = (columns < 4).astype(np.float32)
        return Interests(np.array([f"label {n}" for n in range(4)], object), np.ones(4, bool), columns, weights)

    monkeypatch.setattr("tfllmrec.runs.labels.labels_of_run", labels)


def test_the_program_writes_page_and_card(copied, four_labels, program):
    answer = program("report", copied.folder, "--json")
    assert answer.code == 0, answer.err
    written = json.loads(answer.out)
    assert written["report"] == str(copied.folder / "report.html") and written["card"] == str(copied.folder / "CARD.md")
    text = check(copied.folder / "report.html")
    assert re.findall(r"<h2>(.*?)</h2>", text)[4:] == [
        "Examples", "Exposure", "What the lists rely on", "What the fields are worth",
        "How informative the fields are", "Ranking of candidates", "Interests", "Data and split", "How to reproduce",
    ]  # fmt: skip
    assert text.count("<svg") == 8
    words, measured = told(text), copied.metrics
    assert f"calibration error {measured['ranking']['ece']:.4f}" in words
    assert f"calibration error {measured['ranking']['rating_ece']:.4f}" in words
    assert f"recommended: Gini {measured['results']['hybrid_refit']['gini@10']:.2f}" in words
    assert all(line in words for line in copied.record["chosen"])
    assert f"The model is ahead of the best baseline, {best_baseline(measured)}" in written["headline"]
    assert "# chain" in (copied.folder / "CARD.md").read_text()


def test_the_page_in_chromium(shown_run, browser, picture, tmp_path):
    from tfllmrec.explain.report import write_report

    page = write_report([shown_run.folder], tmp_path / "page.html").path
    for width in (390, 1280):
        browser.open(page.as_uri(), width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width and browser.problems == []
        picture(f"report-{width}")


def best_baseline(measured):
    values = {name: figures["ndcg@10"] for name, figures in baselines_of(measured["results"]).items()}
    return max(values, key=values.get)


def test_examples_have_the_ranks_that_were_measured(copied):
    from tfllmrec.explain.lists import examples_of

    examples = examples_of(copied.load_model(refit=True), copied.split.test, 10)
    found = [sum(rank[0] <= 10 for _, rank in example.targets if rank) for example in examples]
    assert found == copied.results["hybrid_refit"].per_query["recall@10"].tolist()


def test_epochs_are_those_of_the_logs(copied):
    epochs = epochs_of(copied)
    assert len(epochs.selection) == 3 == len(epochs.strata["all"]) == len(epochs.strata["tail"])
    # With one target each, the selection value is the mean of the ndcg of all, in which the tail's counts twice.
    tail = (copied.split.strata()["tail"][copied.split.validation.targets.values]).sum()
    n = len(copied.split.validation)
    mean = [(n * a + tail * t) / (n + tail) for a, t in zip(epochs.strata["all"], epochs.strata["tail"], strict=True)]
    assert mean == pytest.approx(epochs.selection, abs=1e-5)
    assert epochs.best == int(np.argmax(epochs.selection))
    assert copied.metrics["validation"].keys() == baselines_of(copied.metrics["results"]).keys()
    assert all(0 <= figures["selection"] <= 1 for figures in copied.metrics["validation"].values())


def test_calibration_is_that_of_the_metrics(copied):
    hybrid = copied.load_model(refit=True)
    reranked = Reranked(hybrid, copied.load_ranking(hybrid), copied.config.ranking.candidates)
    found = predictions_of(copied, reranked, candidates_of(copied, reranked))
    errors = {what: calibration_error(*both) for what, both in found.items()}
    measured = copied.metrics["ranking"]
    assert errors == pytest.approx({"probability": measured["ece"], "rating": measured["rating_ece"]}, rel=1e-4)


def test_labels_of_the_next_items(copied, four_labels):
    counts, labels = label_confusion(copied, copied.load_model(), lambda line: None)
    assert sorted(labels[:-1]) == [f"label {n}" for n in range(4)] and labels[-1] == "other"
    assert counts.sum() == len(copied.split.test)
    assert counts.trace() > 0.4 * counts.sum()  # by chance a quarter of them


def test_the_least_that_a_team_may_have(bare_run, tmp_path):
    """No titles, no text, no order, no ratings."""
    from tfllmrec.explain.card import write_card
    from tfllmrec.explain.report import write_report

    words = told(check(write_report([bare_run[0].folder], tmp_path / "page.html").path))
    assert "leave_random_out" in words and re.search(r"Held out: i\d+ \(rank", words)
    card = write_card(bare_run[0], tmp_path / "card.md").read_text()
    assert "No item has text." in card and "with ratings" not in card and "text query" not in card
