"""Tables of feedback in any format, with ids as text and numbers that are checked."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from tfllmrec.errors import DataError
from tfllmrec.feedback.tables import numbers, read_feedback, require_columns, texts

TABLE = pd.DataFrame({"user_id": [7, 8], "arm": ["a", "b"], "reward": [1.0, 0.5]})


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_all_formats_give_the_same_values(tmp_path, suffix):
    path = tmp_path / f"log.{suffix}"
    if suffix == "parquet":
        TABLE.to_parquet(path)
    elif suffix == "jsonl":
        TABLE.to_json(path, orient="records", lines=True)
    else:
        TABLE.to_csv(path, index=False, sep="," if suffix == "csv" else "\t")
    frame, findings = read_feedback(path)
    assert texts(frame, "user_id").tolist() == ["7", "8"] and texts(frame, "arm").tolist() == ["a", "b"]
    assert numbers(frame, "reward", "the log").tolist() == [1.0, 0.5] and findings == []


def test_rows_that_are_dropped_are_told(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,arm\n1,a\n2,b,c\n3,a\n")
    frame, findings = read_feedback(tmp_path / "log.csv")
    assert len(frame) == 2 and "1 dropped" in findings[0] and findings[0].startswith("log.csv: ")


def test_ids_are_text_without_decimal_point_and_missing_ones_are_empty():
    assert texts(pd.DataFrame({"x": [7.0, np.nan]}), "x").tolist() == ["7", ""]
    assert texts(pd.DataFrame({"x": [" a ", None]}), "x").tolist() == ["a", ""]
    assert texts(pd.DataFrame({"x": [0.5, 7.0]}), "x").tolist() == ["0.5", "7"]
    long = pd.Series([2**53 + 1, None], dtype="int64[pyarrow]")
    assert texts(pd.DataFrame({"x": long}), "x").tolist() == [str(2**53 + 1), ""]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["0,5", "1,25", ""], [0.5, 1.25, np.nan]),
        (["0.5", "1,234.5", "N/A"], [0.5, 1234.5, np.nan]),
        ([True, False, None], [1, 0, np.nan]),
        (pd.Series([True, None], dtype="boolean"), [1, np.nan]),
        (pd.Series([True, None], dtype="bool[pyarrow]"), [1, np.nan]),
        (pd.Series([3, None], dtype="int64[pyarrow]"), [3, np.nan]),
        ([Decimal("0.5"), 2, None], [0.5, 2, np.nan]),
    ],
)
def test_numbers_are_read_as_in_ratings(column, expected):
    found = numbers(pd.DataFrame({"x": column}), "x", "the log", missing=True)
    assert found.dtype == np.float64 and found.tolist() == pytest.approx(expected, nan_ok=True)


def test_values_that_are_no_numbers_are_refused():
    frame = pd.DataFrame({"x": ["1", "", "inf"]})
    assert np.isnan(numbers(frame[:2], "x", "the log", missing=True)[1])
    with pytest.raises(DataError, match=r"found a missing value in row 2, and 2 such rows in all"):
        numbers(frame, "x", "the log")
    with pytest.raises(DataError, match=r"'x' of the log; found 'inf' in row 3, and 1 such rows"):
        numbers(frame, "x", "the log", missing=True)
    with pytest.raises(DataError, match=r"Expected a column 'propensity' in the log .nearest: 'propensities'"):
        require_columns(pd.DataFrame({"propensities": []}), ["propensity"], "the log")
