import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tfllmrec.config import DataConfig
from tfllmrec.data import Dataset, dataset_from_frames
from tfllmrec.errors import DataError, WriteError

EVENTS = pd.DataFrame(
    {
        "user": ["u", "u", "v", "v", "v"],
        "item": ["a", "b", "a", "c", "a"],
        "rating": [5, 3, None, 4, 4],
        "timestamp": [10, 20, 10, 20, 86410],
    }
)
ITEMS = pd.DataFrame({"item": ["a", "b", "c", "d"], "title": ["Ant", "Bée", "", "Dog"], "price": [1, 2, 3, 4]})


def dataset(**changes):
    config = {"name": "made", "repeats": "all", **changes}
    return dataset_from_frames(EVENTS, ITEMS, config=DataConfig(**config))


def test_types_and_sizes():
    data = dataset()
    assert (data.n_users, data.n_items, data.name) == (2, 4, "made")
    assert {c: str(t) for c, t in data.events.dtypes.items()} == {
        "user_id": "str",
        "item_id": "str",
        "user_index": "int64",
        "item_index": "int64",
        "rating": "float32",
        "timestamp_s": "float64",
        "order": "int64",
        "kind": "str",
    }
    assert data.has_ratings
    assert not dataset_from_frames(EVENTS.assign(rating=1)).has_ratings
    assert not dataset_from_frames(EVENTS.drop(columns="rating")).has_ratings


def test_ratings_that_are_nearly_equal_are_counted_apart():
    times = [1234567, 1234568, 0.1, 4]
    told = dataset_from_frames(pd.DataFrame({"user": "u", "item": list("abcd"), "rating": times})).describe()
    assert told["ratings"] == {"0.1": 1, "4": 1, "1234567": 1, "1234568": 1}


def test_describe():
    told = dataset().describe()
    assert told["density"] == 5 / (2 * 4)
    assert told["ratings"] == {"3": 1, "4": 2, "5": 1}
    assert told["items_with_text"] == 3 / 4
    assert told["mean_text_characters"] == 3  # "Ant", "Bée", "Dog"; the price is no text
    assert told["cold_items"] == 1
    assert told["repeated_pairs"] == 1
    assert (told["tied_users"], told["doubts"]) == (0, [])
    assert dataset_from_frames(EVENTS.assign(timestamp=[9, 9, 1, 2, 3])).describe()["tied_users"] == 1
    assert told["time_span"] == ["1970-01-01T00:00:10", "1970-01-02T00:00:10"]
    assert told["events_per_user"] == {
        "min": 2,
        "25%": 2.25,
        "median": 2.5,
        "75%": 2.75,
        "90%": 2.9,
        "max": 3,
        "mean": 2.5,
    }
    assert told["events_per_item"]["mean"] == 5 / 4
    assert json.loads(json.dumps(told)) == told


def test_describe_of_the_barest_data():
    told = dataset_from_frames(EVENTS[["user", "item"]]).describe()
    assert told["ratings"] == {} and told["time_span"] is None and told["mean_text_characters"] == 0


def test_save_and_load(tmp_path):
    data = dataset()
    data.save(tmp_path / "deep" / "saved")
    back = Dataset.load(tmp_path / "deep" / "saved")
    for table in ("events", "items", "users"):
        pd.testing.assert_frame_equal(getattr(back, table), getattr(data, table))
    assert (back.name, back.ordered, back.report, back.fingerprint) == ("made", True, data.report, data.fingerprint)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["saved"]


def test_save_replaces_a_saved_one_and_nothing_else(tmp_path):
    dataset().save(tmp_path / "saved")
    dataset(name="new", repeats="last").save(tmp_path / "saved")
    assert Dataset.load(tmp_path / "saved").name == "new"
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="already exists and is not a saved data set"):
        dataset().save(other)
    assert (other / "thesis.txt").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "saved"]


def test_a_save_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    dataset().save(tmp_path / "saved")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(WriteError, match=r"saved cannot be written: No space left .* are free there"):
        dataset(name="new").save(tmp_path / "saved")
    assert Dataset.load(tmp_path / "saved").name == "made"
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_a_rename_that_fails_brings_the_old_one_back(tmp_path, monkeypatch):
    dataset().save(tmp_path / "saved")
    rename = Path.rename

    def stuck(path, target):
        if path.parent.name == "new":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stuck)
    with pytest.raises(WriteError, match="Input/output error"):
        dataset(name="new").save(tmp_path / "saved")
    assert Dataset.load(tmp_path / "saved").name == "made"
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_what_a_killed_save_leaves_is_known_by_its_name(tmp_path, monkeypatch):
    dataset().save(tmp_path / "saved")
    rename, met = Path.rename, set()

    def watched(path, target):
        result = rename(path, target)
        met.update(p.name for p in tmp_path.iterdir())
        return result

    monkeypatch.setattr(Path, "rename", watched)
    dataset(name="new").save(tmp_path / "saved")
    left = met - {"saved"}
    assert len(left) == 2  # the one being written, and the one being replaced
    assert sorted(name.partition("-")[0].partition(".old")[2] for name in left) == ["", ".tmp"]
    assert all(name.startswith((".writing-", ".saved.")) for name in left)


def test_load_refuses_what_is_not_whole(tmp_path):
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        Dataset.load(tmp_path)
    saved = tmp_path / "saved"
    dataset().save(saved)
    pd.read_parquet(saved / "items.parquet").assign(title="x").to_parquet(saved / "items.parquet")
    with pytest.raises(DataError, match="do not fit the manifest's fingerprint"):
        Dataset.load(saved)
    (saved / "events.parquet").write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read as a saved data set"):
        Dataset.load(saved)
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(DataError, match=r"format_version is 99, expected 2; prepare the data again\.$"):
        Dataset.load(saved)
    (saved / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a saved data set"):
        Dataset.load(saved)


def test_fingerprint_is_that_of_the_content():
    data = dataset()
    assert data.fingerprint == dataset(name="other").fingerprint
    for changed in (
        dataset(repeats="last"),
        dataset_from_frames(EVENTS.assign(rating=[5, 3, None, 4, 3]), ITEMS, config=DataConfig(repeats="all")),
        dataset_from_frames(EVENTS, ITEMS.assign(title=["An", "tBée", "", "Dog"]), config=DataConfig(repeats="all")),
        dataset_from_frames(EVENTS, ITEMS.rename(columns={"price": "cost"}), config=DataConfig(repeats="all")),
    ):
        assert changed.fingerprint != data.fingerprint


def test_fingerprint_does_not_depend_on_the_order_of_rows():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        events, items = (table.iloc[rng.permutation(len(table))] for table in (EVENTS, ITEMS))
        for config in (DataConfig(repeats="all"), DataConfig(repeats="last"), DataConfig(repeats="first")):
            expected = dataset_from_frames(EVENTS, ITEMS, config=config).fingerprint
            assert dataset_from_frames(events, items, config=config).fingerprint == expected
            untimed = [table.drop(columns="timestamp") for table in (EVENTS, events)]
            one, other = (dataset_from_frames(table, items, config=config).fingerprint for table in untimed)
            assert one == other


@pytest.mark.parametrize("column", EVENTS.columns)
def test_fingerprint_sees_any_two_values_that_change_places(column):
    seen = {dataset().fingerprint}
    for i, j in [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (1, 4)]:
        changed = EVENTS.copy()
        changed[column] = changed[column].to_numpy()[[{i: j, j: i}.get(row, row) for row in range(len(EVENTS))]]
        rows = [frame.sort_values([*EVENTS]).to_numpy().tolist() for frame in (changed, EVENTS)]
        fingerprint = dataset_from_frames(changed, ITEMS, config=DataConfig(repeats="all")).fingerprint
        assert (fingerprint in seen) == (str(rows[0]) == str(rows[1]))


def test_fingerprint_sees_two_users_who_change_events():
    swapped = EVENTS.assign(user=EVENTS["user"].map({"u": "v", "v": "u"}))
    assert dataset_from_frames(swapped, ITEMS, config=DataConfig(repeats="all")).fingerprint != dataset().fingerprint


def test_fingerprint_knows_one_nan_only():
    data = dataset()
    other_nan = np.array([0x7FC12345], dtype=np.uint32).view(np.float32)[0]
    ratings = data.events["rating"].to_numpy().copy()
    ratings[np.isnan(ratings)] = other_nan
    assert replace(data, events=data.events.assign(rating=ratings)).fingerprint == data.fingerprint


def test_fingerprint_by_hand():
    """The bytes, spelt out: whoever changes them must raise FORMAT_VERSION."""
    digest = hashlib.sha256(b"tfllmrec-dataset-2 ordered=False")
    for name, values in (
        ("events.user_index", np.array([0], "<i8")),
        ("events.item_index", np.array([0], "<i8")),
        ("events.rating", np.array([np.nan], "<f4")),
        ("events.timestamp_s", np.array([np.nan], "<f8")),
        ("events.order", np.array([0], "<i8")),
        ("events.kind", np.array([0], "<i8")),
    ):
        digest.update(f"\n{name} 1\n".encode() + values.tobytes())
    digest.update(b"\nitems.item_id 1\n" + np.array([2], "<i8").tobytes() + "é".encode())
    digest.update(b"\nusers.user_id 1\n" + np.array([1], "<i8").tobytes() + b"u")
    for column in ("user_id", "item_id", "tag", "timestamp_s"):
        digest.update(f"\ntags.{column} 0\n".encode())
    assert dataset_from_frames(pd.DataFrame({"user": ["u"], "item": ["é"]})).fingerprint == digest.hexdigest()
