import tracemalloc

import numpy as np
import pandas as pd
import pytest

from tfllmrec.config import DataConfig
from tfllmrec.data import read_dataset
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.files.raw_table import RawTable
from tfllmrec.data.files.vector_files import with_vectors
from tfllmrec.errors import ConfigError, DataError

NAN, INF = np.nan, np.inf
#: In the order of the file, which is not that of the data set.
IMAGES = np.array([[0.1, -2e-5, 3], [1, 0, 0], [NAN, 1, 2], [1, INF, 2]], np.float64)


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,b,1\nu,a,2\nv,c,3\nv,a,4\n")
    (tmp_path / "shop.csv").write_text("item_id,title\nb,Ball\na,Apple\nd,Doll\nc,Cap\n")
    np.save(tmp_path / "images.npy", IMAGES)
    return tmp_path


def read(shop, **settings):
    given = {"events": "log.csv", "items": "shop.csv", "vectors": {"image": "images.npy"}} | settings
    return read_dataset(DataConfig(**given), shop)


def test_each_vector_goes_with_its_item(shop):
    data = read(shop)
    assert data.items[["item_id", "image"]].to_numpy().tolist() == [
        ["a", "1.0, 0.0, 0.0"], ["b", "0.1, -2e-05, 3.0"], ["c", ""], ["d", ""],
    ]  # fmt: skip
    field = data.schema["item.image"]
    assert (field.kind, field.width) == ("vector", 3)
    found = field.encode(data.items.image)
    np.testing.assert_array_equal(found, np.array([IMAGES[1], IMAGES[0], [NAN] * 3, [NAN] * 3], np.float32))
    assert "  items: 2 kept: no vector in images.npy" in data.report.lines()


def test_vectors_are_part_of_the_saved_data_set_and_its_fingerprint(shop):
    data = read(shop)
    data.save(shop / "saved")
    assert Dataset.load(shop / "saved").items.image.tolist() == data.items.image.tolist()
    np.save(shop / "images.npy", IMAGES + 1)
    assert read(shop).fingerprint != data.fingerprint != read(shop, vectors={}).fingerprint
    with pytest.raises(ConfigError, match=r"saved data set.*data\.vectors"):
        read_dataset(DataConfig(source="saved", vectors={"image": "images.npy"}), shop)


def test_float32_survives_as_text(shop):
    vectors = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32) * np.float32(1e-3)
    np.save(shop / "images.npy", vectors)
    data = read(shop)
    np.testing.assert_array_equal(data.schema["item.image"].encode(data.items.image), vectors[[1, 0, 3, 2]])


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (IMAGES[:3], r"images\.npy: expected a vector for each of the 4 rows read from shop\.csv, .* found 3\."),
        (IMAGES[:, :1], r"expected a vector of two or more numbers in each row, \[R, D\]; found float64 \[4, 1\]"),
        (IMAGES[0], r"found float64 \[3\]"),
        (IMAGES.astype(str), r"found <U32 \[4, 3\]"),
        (np.array([{}] * 4), r"expected a \.npy file as numpy\.save writes it"),
    ],
)
def test_other_arrays_are_refused(shop, array, said):
    np.save(shop / "images.npy", array)
    with pytest.raises(DataError, match=said):
        read(shop)


def test_other_files_are_refused(shop):
    (shop / "images.npy").write_text("0.1,0.2")
    with pytest.raises(DataError, match=r"expected a \.npy file"):
        read(shop)
    np.savez(shop / "several.npz", a=IMAGES, b=IMAGES)
    with pytest.raises(DataError, match="found several arrays"):
        read(shop, vectors={"image": "several.npz"})
    with pytest.raises(DataError, match=r"gone\.npy does not exist"):
        read(shop, vectors={"image": "gone.npy"})


@pytest.mark.parametrize(("limit", "value"), [("max_columns", 2), ("max_bytes", 95), ("max_rows", 3)])
def test_limits_hold(shop, limit, value):
    np.save(shop / "images.npy", np.vstack([IMAGES] * 2))
    with pytest.raises(DataError, match=rf"data\.{limit}"):
        read(shop, **{limit: value})


@pytest.mark.parametrize(("limit", "value"), [("max_columns", 5), ("max_bytes", 191)])
def test_limits_hold_for_all_files_together(shop, limit, value):
    np.save(shop / "sounds.npy", IMAGES)
    both = {"image": "images.npy", "sound": "sounds.npy"}
    assert read(shop, vectors=both, **{limit: value + 1}).items.sound.tolist()[1] == "0.1, -2e-05, 3.0"
    with pytest.raises(DataError, match=rf"sounds\.npy: found {value + 1} .* data\.{limit}"):
        read(shop, vectors=both, **{limit: value})


def test_rows_of_several_files_are_rows_of_one_table(shop):
    np.save(shop / "sounds.npy", IMAGES)
    read(shop, vectors={"image": "images.npy", "sound": "sounds.npy"}, max_rows=4)


def test_the_error_tells_of_rows_that_were_skipped(shop):
    (shop / "shop.csv").write_text("item_id,title\nb,Ball\na,Apple,Pie\nd,Doll\n\nc,Cap\n")
    said = (
        r"each of the 3 rows read from shop\.csv, .* found 4\. shop\.csv has 5 rows, of which 2 were skipped "
        r"\(found 3 fields, expected 2: shop\.csv:3.*; blank row: shop\.csv:5\)\. Mend or remove these rows"
    )
    with pytest.raises(DataError, match=said):
        read(shop, max_bad_rows=0.5)


def test_wide_vectors_are_converted_a_few_at_a_time(tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((1500, 400), np.float32))
    ids = pd.DataFrame({"item_id": np.arange(1500).astype(str)})
    raw = RawTable("items", "shop.csv", ids, np.arange(1500), np.ones(1500, int))
    tracemalloc.start()
    try:
        told = with_vectors(raw, {"image": tmp_path / "wide.npy"}, DataConfig(events="log.csv"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert told.frame.image[1499] == ", ".join(["0.0"] * 400)
    assert peak < 30e6  # 77 MB if all are converted at once


def test_settings_that_do_not_fit_are_refused(shop):
    with pytest.raises(ConfigError, match=r"data\.vectors\.title: shop\.csv has a column title already"):
        read(shop, vectors={"title": "images.npy"})
    with pytest.raises(ConfigError, match=r"data\.vectors: expected a file of items"):
        read(shop, items=None)


def test_vectors_in_a_column_of_lists_need_no_setting(tmp_path, shop):
    table = pd.read_csv(shop / "shop.csv").assign(image=[[0.25, 1.5], [0.5, 2.0], None, [1.0, 0.125]])
    table.to_parquet(shop / "shop.parquet")
    data = read(shop, items="shop.parquet", vectors={})
    np.testing.assert_array_equal(
        data.schema["item.image"].encode(data.items.image),
        np.array([[0.5, 2], [0.25, 1.5], [1, 0.125], [NAN, NAN]], np.float32),
    )
