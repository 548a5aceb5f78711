import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from tfllmrec.errors import ModelError
from tfllmrec.serving.layout import EXTRA, LARGEST_VERSION, MANIFEST, read_catalogue, read_manifest, version_folders


@pytest.mark.parametrize("name", [name for name in dir(pa.lib) if name.startswith("Arrow")])
def test_every_error_of_pyarrow_on_a_table_of_items_is_named(tmp_path, monkeypatch, name):
    def damaged(path):
        raise getattr(pa.lib, name)("damaged")

    monkeypatch.setattr(pd, "read_parquet", damaged)
    with pytest.raises(ModelError, match=r"items\.parquet cannot be read \(.*damaged.*\): export the run again"):
        read_catalogue(tmp_path)


def test_a_manifest_is_returned_with_every_key_as_it_was_written(tmp_path, monkeypatch):
    manifest = {
        "indexes": {"recommend": {"form": "cells", "cells": 3}},
        "run": "runs/shop",
        "config": {"split": {"kind": "random"}, "seed": 1, "evaluation": {"head_share": 0.5, "ks": [10]}, "name": None},
        "new_items": {"items": 2},
    }
    path = tmp_path / EXTRA / MANIFEST
    path.parent.mkdir()
    path.write_text(json.dumps(manifest))
    reading, read = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or reading(path))
    assert read_manifest(tmp_path) == manifest
    assert read == [path]


def make(base, *names):
    for name in names:
        (base / name).mkdir(parents=True)


def test_version_folders_have_numbers_for_names(tmp_path, caplog):
    make(tmp_path, "22", "1", "007", "0", str(LARGEST_VERSION), "variables", ".writing-3", "x9", "1.0", "latest", "²")
    (tmp_path / "README").write_text("a file")
    assert list(version_folders(tmp_path).items()) == [
        (0, tmp_path / "0"),
        (1, tmp_path / "1"),
        (7, tmp_path / "007"),
        (22, tmp_path / "22"),
        (LARGEST_VERSION, tmp_path / str(LARGEST_VERSION)),
    ]
    assert caplog.text == ""


def test_what_only_looks_like_a_version_is_ignored_with_one_warning(tmp_path, caplog):
    too_large = str(LARGEST_VERSION + 1)
    make(tmp_path, "3", too_large, "9" * 200, "-1", "+2", "３", "٣")
    (tmp_path / "4").write_text("a file")
    (tmp_path / "5").symlink_to(tmp_path / "nowhere")
    for _ in range(2):
        assert version_folders(tmp_path) == {3: tmp_path / "3"}
    messages = {Path(record.args[0]).name: record.getMessage() for record in caplog.records}
    assert set(messages) == {too_large, "9" * 200, "-1", "+2", "３", "٣", "4", "5"}
    assert len(caplog.records) == 8
    assert messages[too_large].endswith(f"is ignored: expected a version number of at most {LARGEST_VERSION} (int64)")
    assert messages["-1"].endswith("is ignored: expected a version number in the digits 0 to 9, without a sign")
    assert messages["4"].endswith("is ignored: expected a version folder, found a file")


def test_of_several_folders_with_one_number_the_shortest_name_counts(tmp_path, caplog):
    make(tmp_path, "001", "01", "02", "002")
    assert version_folders(tmp_path) == {1: tmp_path / "01", 2: tmp_path / "02"}
    make(tmp_path, "1")
    assert version_folders(tmp_path) == {1: tmp_path / "1", 2: tmp_path / "02"}
    assert "01 is ignored: 1 beside it is version 1 too" in caplog.text
