"""One exported model for two shops: histories mix them, and a request asks for the items of one."""

import json
import urllib.request

import pandas as pd
import pytest

from tfllmrec.config import DataConfig
from tfllmrec.data.domains import join_datasets
from tfllmrec.data.readers import read_dataset
from tfllmrec.runs.experiment import fit_experiment
from tfllmrec.serving.export import export
from tfllmrec.serving.saved_model import SavedModel

pytestmark = [pytest.mark.tf, pytest.mark.slow]


@pytest.fixture(scope="module")
def shops(chain_config, chain_files, cache, tmp_path_factory):
    """The version of a model of the ring and of a second shop, whose items follow the ring's a step later."""
    folder = tmp_path_factory.mktemp("shops")
    ring = pd.read_csv(chain_files[0])
    there = ring.assign(item="s" + ring["item"].str[1:], timestamp=ring["timestamp"] + 0.5)
    there.to_csv(folder / "events.csv", index=False)
    datasets = {
        "ring": read_dataset(DataConfig(name="ring", events=chain_files[0], items=chain_files[1])),
        "shop": read_dataset(DataConfig(name="shop", events=folder / "events.csv")),
    }
    join_datasets(datasets).save(folder / "joined")
    config = chain_config.model_copy(deep=True)
    config.data = DataConfig(source=str(folder / "joined"))
    config.split.domain = "shop"
    config.model.terms, config.ranking.epochs, config.interests.learned = ["behaviour"], 0, False
    config.evaluation.baselines = ["popularity"]
    run = fit_experiment(config, folder / "run", tell=lambda line: None)
    assert run.metrics["results"]["hybrid"]["recall@5"] > 2 * run.metrics["results"]["popularity"]["recall@5"]
    return export(run.folder, folder / "models" / "shops", tell=lambda line: None)


def test_a_history_may_mix_domains_and_a_request_asks_for_one(shops):
    model = SavedModel.open(shops)
    assert model.categories == {"domain=ring", "domain=shop"}
    mixed = [["ring:i3", "shop:s4"]]
    for domain in ("ring", "shop"):
        found = model.recommend(histories=mixed, k=5, categories=[f"domain={domain}"])
        assert len(found) == 5 and found.item_id.str.startswith(f"{domain}:").all()
    assert model.recommend(histories=mixed, k=5).item_id.nunique() == 5


@pytest.mark.long
def test_over_rest_too(shops, serving):
    body = {"signature_name": "recommend_full", "inputs": {
        "history": [["ring:i3", "shop:s4"]], "ratings": [[]], "event_fields": [[]], "context": [[]], "exclude": [[]],
        "allow": [[]], "categories": [["domain=shop"]], "k": [3], "diversity": [0], "pinned": [[]], "category_cap": [0],
        "tail_share": [0], "skip": [[]], "label_weights": [[]], "reasons": [0],
    }}  # fmt: skip
    with serving(shops.parent) as server:
        url = f"http://localhost:{server.rest_port}/v1/models/shops:predict"
        with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as answer:
            (items,) = json.load(answer)["outputs"]["item_ids"]
    assert len(items) == 3 and all(item.startswith("shop:") for item in items)
