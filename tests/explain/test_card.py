import json
import re

import pytest
import yaml
from plain_runs import write_run

from tfllmrec.config import dump_config
from tfllmrec.errors import ModelError
from tfllmrec.explain.card import small_strata, write_card

SECTIONS = ["Intended use", "Data", "Training", "Evaluation", "Limits", "Privacy", "How to reproduce and cite"]


def read(path):
    """Front matter and body."""
    _, front, body = path.read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_card_has_front_matter_and_sections(plain_run):
    path = write_card(plain_run.folder)
    assert path == plain_run.folder / "CARD.md"
    front, body = read(path)
    assert front["library_name"] == "tfllmrec" and "language" not in front and "license" not in front
    assert "# license:" in path.read_text() and "# language:" in path.read_text()
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert result["dataset"]["revision"] == plain_run.dataset.fingerprint
    figures = plain_run.metrics["results"]["hybrid"]
    assert {each["name"]: each["value"] for each in result["metrics"]} == {
        label: round(figures[label], 4) for label in ("ndcg@10", "ndcg@10/tail", "recall@10", "recall@10/tail")
    }  # of the head and of cold items there are fewer than 20 targets
    assert re.findall(r"^## (.*)$", body, re.MULTILINE) == SECTIONS
    assert "60 users, 40 items, 440 events" in body and "4 of 40 items have no training event" in body
    assert "hints, not claims: all (60), head (14), tail (46), cold (0)." in body
    assert f"| hybrid | **{figures['ndcg@10']:.4f} ±" in body
    assert "tfllmrec fit plain/config.yaml --out plain-again" in body
    assert "answers a text query" in body and "The lists of 10 for all test queries show" in body
    assert "minilm (English)" in body and "LATIN 100%" in body


def test_a_card_written_from_inside_the_folder_names_it(plain_run, monkeypatch):
    named = write_card(plain_run.folder).read_bytes()
    monkeypatch.chdir(plain_run.folder)
    assert write_card(".").read_bytes() == named and b"name: plain" in named


@pytest.mark.parametrize(
    ("encoder", "words"), [("minilm+e5", "minilm (English), e5 (about 100 languages)"), ("/hub/a+b", "a+b,")]
)
def test_a_card_names_each_encoder(plain_run, encoder, words):
    path = plain_run.folder / "config.yaml"
    config = plain_run.config
    config.text.encoder = encoder
    path.write_text(dump_config(config))
    assert f"text encoder {words}" in write_card(plain_run.folder).read_text()


def test_what_was_not_measured_is_left_out(plain_run):
    path = plain_run.folder / "metrics.json"
    measured = json.loads(path.read_text())
    measured["results"]["hybrid"] |= {"coverage@10": None, "gini@10": None}
    path.write_text(json.dumps(measured))
    assert "The lists of 10" not in write_card(plain_run.folder).read_text()


def test_a_card_of_a_domain_counts_its_items(domain_run):
    front, body = read(write_card(domain_run.folder))
    of_domain = "the 15 items of the domain small"
    coverage = domain_run.results["hybrid"].metrics["coverage@10"]
    assert f"against {of_domain}." in body and f"show {coverage:.1%} of {of_domain}; the Gini" in body
    assert front["model-index"][0]["results"][0]["task"]["name"] == f"next items from {of_domain}"


def test_names_are_data(hostile_split, tmp_path):
    _, body = read(write_card(write_run(tmp_path / "run", hostile_split), tmp_path / "card.md"))
    assert "# \\<u\\>shop\\</u\\>" in body and "<u>" not in body


def test_small_strata(plain_run):
    assert small_strata(plain_run.results, 20) == {"head": 14, "cold": 0}


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ModelError, match="is not a run folder"):
        write_card(tmp_path)
