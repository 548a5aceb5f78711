"""The ``interests`` signature, from a run to an answer."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.client.answers import Interest, Outputs
from tfllmrec.client.client import Client
from tfllmrec.errors import ModelError
from tfllmrec.models.interests import Interests, LabelForecast
from tfllmrec.runs.labels import labels_of_run
from tfllmrec.serving.export import export
from tfllmrec.serving.layout import EXTRA, WARM_UP
from tfllmrec.serving.saved_model import SavedModel
from tfllmrec.training.interests import InterestRecord

pytestmark = [pytest.mark.tf, pytest.mark.slow]
NAN = float("nan")


def export_with_kinds(run_folder, folder):
    """The ring, some of whose stretches are of one kind: who walks it has one kind after the other."""
    kinds = ["wool scarf"] * 9 + ["steel knife"] * 9 + ["oak table"] * 9 + ["glass bowl"] * 9
    rows = [{"item_id": f"i{i}", "title": f"the {kind} (no. {i})"} for i, kind in enumerate(kinds)]
    rows.append({"item_id": "new", "title": "a wool scarf"})
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told: list[str] = []
    version = export(run_folder, folder / "ring", folder / "new.jsonl", tell=told.append)
    return SavedModel.open(version), told


@pytest.fixture(scope="module")
def exported(chain_run, tmp_path_factory):
    return export_with_kinds(chain_run[0].folder, tmp_path_factory.mktemp("interests"))


def test_an_export_chooses_labels_for_old_and_new_items(exported):
    model, told = exported
    assert any(line.startswith("interests: 4 labels; 4 of 41 items have none") for line in told)
    assert model.interests(["i1", "i2"]) == [Interest("wool scarf", 1.0, "i2", "broad", "steady")]
    assert model.interests(["new"]) == [Interest("wool scarf", 1.0, "new", "broad", "steady")]
    assert model.interests(["i39"]) == model.interests([]) == model.interests(["nope"]) == []


def test_an_answer_by_hand(exported, chain_run):
    """All items have one label each, so what counts is how long ago, and how they were rated."""
    model, _ = exported
    spread = float(np.nanstd(chain_run[0].split.train_queries().ratings.values))
    history, ratings = ["i1", "i10", "i11", "i20"], [5.0, 4.0, 4.0, 3.0]
    liked = [1 + 0.25 * (mark - 4) / spread for mark in ratings]
    weight = {
        "wool scarf": 0.95**3 * liked[0], "steel knife": 0.95**2 * liked[1] + 0.95 * liked[2], "oak table": liked[3],
    }  # fmt: skip
    best = sorted(weight, key=weight.get, reverse=True)
    found = model.interests(history, ratings)
    assert [interest.label for interest in found] == best
    assert [i.weight for i in found] == pytest.approx([weight[b] / sum(weight.values()) for b in best], rel=1e-4)
    because = {"wool scarf": "i1", "steel knife": "i11", "oak table": "i20"}
    assert [interest.because for interest in found] == [because[label] for label in best]
    two = model.interests(history, ratings, k=2)
    assert [i.weight for i in two] == pytest.approx([weight[b] / (weight[best[0]] + weight[best[1]]) for b in best[:2]])


def call(model, history, ratings, k):
    out = model._signatures["interests"](
        history=tf.constant(history, tf.string), ratings=tf.constant(ratings, tf.float32), k=tf.constant(k, tf.int32)
    )
    return {name: value.numpy() for name, value in out.items()}


def test_types_padding_and_batches(exported):
    model, _ = exported
    rows = [["i1", "i10", ""], ["", "", ""], ["", "i20", "nope"], ["", "i1", "i10"]]
    out = call(model, rows, [[5, 1, NAN], [NAN] * 3, [NAN] * 3, [NAN, 5, 1]], [3, 3, 1, 3])
    assert {name: (value.dtype, value.shape) for name, value in out.items()} == {
        "labels": (object, (4, 3)), "weights": (np.float32, (4, 3)), "because": (object, (4, 3)),
        "levels": (object, (4, 3)), "trends": (object, (4, 3)), "unknown": (np.int32, (4,)),
    }  # fmt: skip
    assert out["unknown"].tolist() == [0, 0, 1, 0]
    for name in ("labels", "weights", "because", "levels", "trends"):
        assert out[name][0].tolist() == out[name][3].tolist()
    assert out["labels"][1].tolist() == [b""] * 3 and not out["weights"][1].any()
    assert out["levels"][1].tolist() == out["trends"][1].tolist() == [b""] * 3
    assert out["because"][2].tolist() == [b"i20", b"", b""]
    alone = call(model, [["i1", "i10"]], [[5, 1]], [3])
    assert alone["labels"][0].tolist() == out["labels"][0].tolist()
    np.testing.assert_allclose(alone["weights"][0], out["weights"][0], rtol=1e-6)
    assert call(model, np.zeros((0, 2), str), np.zeros((0, 0)), [])["labels"].shape[0] == 0
    assert call(model, [["i1"]], [[]], [2_000_000_000])["labels"].shape == (1, 4)


def test_the_export_answers_as_the_numbers_that_were_chosen(exported, chain_run):
    """What is served is what ``fit_interests`` gave, through the Keras-free formula by loops."""
    model, _ = exported
    items = chain_run[0].dataset.items.assign(title=[model.title(i) for i in model.item_ids[:40]])
    found = labels_of_run(chain_run[0], items, lambda line: None)
    assert isinstance(found, Interests)
    history = ["i3", "i12", "i30", "i31"]
    total = np.zeros(len(found.labels) + 1)
    for back, item in enumerate(reversed(history)):
        row = int(item[1:])
        np.add.at(total, found.columns[row], found.decay**back * found.weights[row])
    order = np.argsort(-total[:-1])[:3]
    answer = model.interests(history)
    assert [interest.label for interest in answer] == found.labels[order].tolist()
    assert [interest.weight for interest in answer] == pytest.approx(total[order] / total.sum(), rel=1e-4)


def test_a_label_that_the_newest_events_have_more_often_rises(exported):
    """Scarves, then knives: of eight events the newest two count, and five like all eight."""
    model, _ = exported
    found = {i.label: i.trend for i in model.interests(["i1", "i2", "i3", "i4", "i5", "i6", "i10", "i11"])}
    # Knives are 2 of 8: (2 + 5 * 2 / 8) / (2 + 5) / (2 / 8) = 1.86; scarves (0 + 5 * 6 / 8) / (2 + 5) / (6 / 8) = 0.71.
    assert found == {"steel knife": "rising", "wool scarf": "steady"}
    found = {i.label: i.trend for i in model.interests([f"i{i}" for i in (1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14)])}
    # Of 12 events three: scarves (0 + 5 * 7 / 12) / (3 + 5) / (7 / 12) = 0.625, below two thirds.
    assert found["wool scarf"] == "falling"


@pytest.mark.long
def test_what_a_run_has_learned_is_exported_by_the_names_of_labels(chain_run, tmp_path):
    """A forecast that knows two of the four labels, and looks at nothing but how frequent they are."""
    run = shutil.copytree(chain_run[0].folder, tmp_path / "run")
    (run / "interests").mkdir()
    none = np.zeros((2, 3), np.float32)
    labels, bias = np.array(["oak table", "wool scarf"], object), np.float32([3, 1])
    LabelForecast(labels, none, none, none, bias, np.float32([0, 1, 0]), 1.0, 0.6, 10.0).save(
        run / "interests" / "forecast.npz"
    )
    figures = {"precision": [0.5, 0.4], "precision_interval": [0.05, 0.15], "specific": [0.5, 0.4]}
    record = InterestRecord(
        events=9, queries=9, epochs=1, mixture=[0, 1, 0], sharpness=1.0, kept=True, seconds=1.0, **figures
    )
    (run / "interests" / "record.json").write_text(json.dumps(asdict(record)))
    model, told = export_with_kinds(run, tmp_path)
    assert any("2 of 4 labels are new since the fit" in line for line in told)
    found = model.interests(["i1"])
    assert found[0].label == "oak table" and len(found) == 4
    odds = np.exp([3, 1, 1, 1])  # of new labels: as of the least likely one
    assert sorted((i.weight for i in found), reverse=True) == pytest.approx(odds / odds.sum(), rel=1e-5)
    assert {i.label: i.because for i in found} == {
        "oak table": "", "wool scarf": "i1", "steel knife": "", "glass bowl": ""
    }  # fmt: skip
    assert model.interests([]) == []
    moved = model.recommend(histories=[["i1"]], k=5, label_weights={"oak table": 1})
    plain = model.recommend(histories=[["i1"]], k=5)
    assert moved.item_id.tolist() != plain.item_id.tolist() and moved.attrs["unread"] == [0]
    oak = {f"i{i}" for i in range(18, 27)}
    assert moved.item_id.isin(oak).sum() > plain.item_id.isin(oak).sum()
    assert model.recommend(histories=[["i1"]], k=5, label_weights={"nope": 1}).attrs["unread"] == [1]


def test_the_warm_up_asks_for_them(exported):
    records = tf.data.TFRecordDataset(str(exported[0].folder / EXTRA / WARM_UP)).as_numpy_iterator()
    assert sum(b"interests" in record for record in records) == 2


def test_without_shared_words_there_is_no_such_signature(chain_version):
    model = SavedModel.open(chain_version)
    assert "interests" not in model._signatures
    with pytest.raises(ModelError, match=r"no signature 'interests'.*makes no label that some of them share"):
        model.interests(["i1"])


def test_the_client_reads_the_same(exported, monkeypatch):
    model, _ = exported

    def predict(signature, inputs, timeout, request_id):
        out = call(model, inputs["history"], inputs["ratings"], inputs["k"])
        assert signature == "interests" and inputs["history"][0][0] == ""
        texts = {
            name: [[text.decode() for text in row] for row in out[name]]
            for name in ("labels", "because", "levels", "trends")
        }
        return Outputs(texts | {"weights": out["weights"].tolist(), "unknown": out["unknown"].tolist()}, request_id)

    with Client("http://localhost:1", "ring") as client:
        monkeypatch.setattr(client._transport, "predict", predict)
        assert client.interests(["i1", "i10"], [5, None], k=2) == model.interests(["i1", "i10"], [5, NAN], k=2)
        assert client.interests([]) == []
