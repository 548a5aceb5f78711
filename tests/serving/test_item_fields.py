"""A run whose items have no text but vectors, from files to an export with new items."""

import json
import shutil

import numpy as np
import pytest
from conftest import CHAIN, COLD, chain_items, fit_and_tell, run_and_told

from tfllmrec.config import ItemWeightSettings
from tfllmrec.data.schema import Field
from tfllmrec.errors import ModelError
from tfllmrec.runs.run import Run
from tfllmrec.serving.export import export
from tfllmrec.serving.saved_model import SavedModel

pytestmark = [pytest.mark.tf, pytest.mark.slow]
N = CHAIN + COLD
#: Where a cold item lies on the ring: between this item and the next one.
BESIDE = {CHAIN: 4, CHAIN + 1: 13, CHAIN + 2: 22, CHAIN + 3: 31}


def look(place):
    turns = 2 * np.pi * place / CHAIN * np.array([1.0, 2, 3])
    return np.concatenate([np.sin(turns), np.cos(turns)])


@pytest.fixture(scope="module")
def run(cache, chain_config, made_once):
    def make(folder):
        chain_items()[["item"]].to_csv(folder / "items.csv", index=False)
        places = [BESIDE[item] + 0.5 if item in BESIDE else item for item in range(N)]
        np.save(folder / "looks.npy", np.array([look(place) for place in places]))
        config = chain_config.model_copy(deep=True)
        config.data = config.data.model_copy(
            update={"items": folder / "items.csv", "vectors": {"look": folder / "looks.npy"}}
        )
        config.model.terms, config.training.epochs, config.ranking.epochs = ["meaning"], 12, 0
        config.item_weights = ItemWeightSettings(decay=1.0)
        fit_and_tell(config, folder)

    return run_and_told(made_once("item-fields", make))


@pytest.fixture(scope="module")
def served(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("item-fields")
    rows = [
        {"item": "new", "look": look(9.5).tolist()},
        {"item": "blank", "look": None},
        {"item": "i3", "look": look(20).tolist()},
    ]
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SavedModel.open(export(run[0].folder, folder / "shop", folder / "new.jsonl", tell=lambda line: None))


def neighbours(model, item, k=4):
    return set(model.similar([item], k=k)["item_id"])


def test_the_fields_of_items_are_chosen_on_validation_and_told(run):
    line = next(line for line in run[0].record["chosen"] if line.startswith("fields of items (item.look) are read"))
    assert f"chosen: {line}" in "\n".join(run[1])
    assert "field: item.look: vector of 6 numbers" in run[1]


def test_a_cold_item_is_found_by_its_vector(run):
    model = run[0].load_model()
    for item, place in BESIDE.items():
        assert neighbours(model, f"i{item}") & {f"i{place}", f"i{place + 1}"}
        histories = [[f"i{place - 2}", f"i{place - 1}", f"i{place}"]]
        assert f"i{item}" in set(model.recommend(histories=histories, k=8)["item_id"])


def test_a_loaded_model_has_the_values_of_its_weights(run, monkeypatch):
    run, encode = Run.open(run[0].folder), Field.encode
    encoded = run.split.schema["item.look"].encode(run.dataset.items["look"])
    monkeypatch.setattr(Field, "encode", lambda field, cells: None if field.owner == "item" else encode(field, cells))
    loaded = run.load_model().items.fields[0]
    np.testing.assert_allclose(loaded.mean, encoded.mean(axis=0), atol=1e-6)
    centred = encoded - encoded.mean(axis=0)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(loaded.values, expected, atol=1e-5)


def test_the_export_has_the_items_of_the_run_and_the_new_ones(run, served):
    assert served.manifest["new_items"] == {
        "file": "new.jsonl", "added": 1, "replaced": 1, "unchanged": 0, "dropped": 1,
    }  # fmt: skip
    assert neighbours(served, "new") & {"i9", "i10"}
    assert neighbours(served, "i36") & {"i4", "i5"}
    histories = [["i7", "i8", "i9"], ["i30", "i31"]]
    one, own = (model.recommend(histories=histories, k=N) for model in (served, run[0].load_model(refit=True)))
    ranks = [frame[~frame["item_id"].isin(["new", "i3"])]["item_id"].tolist() for frame in (one, own)]
    assert ranks[0] == ranks[1]  # of what did not change
    assert "new" in set(one[one["query"] == 0]["item_id"][:8])


def test_fields_that_validation_left_out_add_no_items(run, monkeypatch, tmp_path):
    model = run[0].load_model()
    model.items.reads.assign(0.0)
    monkeypatch.setattr(Run, "load_model", lambda self, refit: model)
    (tmp_path / "new.jsonl").write_text(json.dumps({"item": "new", "look": look(9.5).tolist()}))
    with pytest.raises(ModelError, match="without texts and fields of items"):
        export(run[0].folder, tmp_path / "shop", tmp_path / "new.jsonl", tell=lambda line: None)


def test_a_run_of_an_earlier_version_reads_no_fields_of_items(chain_run, tmp_path):
    folder = shutil.copytree(chain_run[0].folder, tmp_path / "run")
    path = folder / "config.yaml"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "item_fields" not in line and "vectors" not in line))
    old = Run.open(folder)
    assert old.config.model.item_fields == "none"
    np.testing.assert_array_equal(old.load_model().item_vectors(), chain_run[0].load_model().item_vectors())
