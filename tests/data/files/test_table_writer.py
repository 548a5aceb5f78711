import csv
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from tfllmrec.data.files.table_writer import SUFFIXES, writing_table

SCHEMA = pa.schema({"title": pa.string(), "count": pa.int64(), "score": pa.float32()})
ROWS = pa.table({"title": ['Say "hi",\tthen\nleave, é', None], "count": [2**60 + 1, None], "score": [0.1, 9.5]}, SCHEMA)


def read(path):
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_text_and_integers_come_back_whole(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    with writing_table(path, SCHEMA) as write:
        write(ROWS)
        write(ROWS.to_batches()[0])
    first, second, *again = read(path)
    assert [first, second] == again
    assert first["title"] == ROWS["title"][0].as_py()
    assert int(first["count"]) == 2**60 + 1  # not through a float, though the next one is missing
    assert second["title"] in (None, "") and second["count"] in (None, "")


def test_scores_in_text_have_the_digits_of_float32(tmp_path):
    with writing_table(tmp_path / "x.csv", SCHEMA) as write:
        write(ROWS.slice(0, 1))
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == "title,count,score"
    assert (tmp_path / "x.csv").read_text().endswith(",0.1\n")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failure_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_text("old")
    with pytest.raises(ArithmeticError), writing_table(path, SCHEMA) as write:
        write(ROWS)
        raise ArithmeticError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
