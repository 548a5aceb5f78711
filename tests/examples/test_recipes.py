"""Each recipe on its planted data, with a tiny encoder: what its page says must come out."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from tfllmrec.config import load_config, settings_without_effect

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
PAGES = RECIPES.parents[1] / "docs" / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.fixture
def run(tiny_hub, cache, monkeypatch, tmp_path):
    """Calls the ``main`` of a recipe; gives the run."""
    pytest.importorskip("tensorflow")
    monkeypatch.syspath_prepend(RECIPES)
    text = [f"--set=text.{key}={value}" for key, value in zip(("preprocessor", "encoder"), tiny_hub, strict=True)]

    def main(name, *further):
        arguments = [*text, "--set=text.max_tokens=12", f"--out={tmp_path / name}{len(further)}", *further]
        return runpy.run_path(str(RECIPES / f"{name}.py"))["main"](arguments)

    return main


def of(run, label):
    """A metric of each row."""
    return {name: figures[label] for name, figures in run.metrics["results"].items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_valid_and_explained(name):
    config = load_config(RECIPES / f"{name}.yaml").config
    assert settings_without_effect(config) == []
    page = (PAGES / f"{name}.md").read_text()
    assert f"(../../examples/recipes/{name}.yaml)" in page and f"python examples/recipes/{name}.py" in page
    # The files that a config names have their columns in the page.
    named = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["data"]
    rows = re.findall(r"^\| (events|items|users) \| (.+) \|$", page, re.MULTILINE)
    assert {table for table, _ in rows} == {table for table in ("events", "items", "users") if table in named}
    columns = " ".join(columns for _, columns in rows)
    assert [field for field in named.get("fields", {}) if field not in columns] == []


def test_the_index_lists_every_recipe():
    assert sorted(re.findall(r"\]\((\w+)\.md\)", (PAGES / "index.md").read_text())) == NAMES


@pytest.mark.tf
def test_shop_finds_the_next_purchase_and_not_the_next_view(run, capsys):
    made = run("shop")
    recall = of(made, "recall@10")
    assert recall["hybrid"] > 0.9 > 3 * recall["popularity"]
    assert "tent-5" in capsys.readouterr().out


@pytest.mark.tf
def test_news_finds_articles_that_nobody_has_read(run):
    made = run("news")
    cold = of(made, "recall@10/cold")
    assert cold["hybrid"] > 0.3 > 0 == cold["popularity"] == cold["markov"]
    assert made.metrics["split"]["kind"] == "global_time"


@pytest.mark.tf
def test_music_recommends_known_tracks(run):
    recall = of(run("music"), "recall@10")
    assert recall["hybrid"] > 0.6 > 2 * recall["popularity"]


@pytest.mark.tf
def test_video_follows_the_device(run, capsys):
    made = run("video")
    recall = of(made, "recall@10")
    assert recall["hybrid"] > 1.3 * recall["item_knn"]
    assert set(made.metrics["groups"]) == {"request.scene", "request.device"}
    phone, television = re.findall(r"device=\w+: (.+)", capsys.readouterr().out)
    assert phone.count("clip") > television.count("clip")


@pytest.mark.tf
def test_feed_finds_the_language_and_a_hide_counts_against_its_subject(run):
    made = run("feed")
    recall = of(made, "recall@10")
    assert recall["hybrid"] > 0.7 > 1.5 * recall["popularity_by_segment"]
    model = made.load_model()

    def of_the_second_subject(kind):
        found = model.recommend(
            histories=[["de-0-1", "de-1-2"]],
            event_fields=[[{"kind": "like"}, {"kind": kind}]],
            context=[{"language": "de"}],
            k=10,
        )
        return found["item_id"].str.startswith("de-1-").sum()

    assert of_the_second_subject("hide") < of_the_second_subject("like")
