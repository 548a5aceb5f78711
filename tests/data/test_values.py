import numpy as np
import pandas as pd
import pytest

from tfllmrec.data.values import as_text, numbers, strings, times


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7.0, "7"),
        (7.5, "7.5"),
        (10**17 + 1, "100000000000000001"),
        (None, ""),
        (pd.NaT, ""),
        (["a", ["b", None]], "a, b"),
        ({"b": 1, "a": [2]}, '{"a": [2], "b": 1}'),
        ("\ud800x", "?x"),
        ("é", "é"),
        (True, "True"),
        (np.array(["a", "b"], dtype=object), "a, b"),
        ([np.array([1, 2]), b"caf\xe9 \xe2\x9c\x93"], "1, 2, caf\ufffd ✓"),
        ({"\ud800": 1}, '{"?": 1}'),
    ],
)
def test_as_text(value, text):
    assert as_text(value) == text


def test_strings_of_every_column_type():
    assert strings(pd.Series([" a ", None], dtype="str")).tolist() == ["a", ""]
    assert strings(pd.Series([1, 2])).tolist() == ["1", "2"]
    assert strings(pd.Series([2**53 + 1, None], dtype="Int64")).tolist() == ["9007199254740993", ""]
    assert strings(pd.Series([1.0, np.nan])).tolist() == ["1", ""]
    assert strings(pd.Series(["x", "y"], dtype="category")).tolist() == ["x", "y"]


def test_numbers():
    values, bad = numbers(pd.Series(["4.5", "", "abc", " 3 ", "inf", "NA", "1e400", "4,5"], dtype="str"))
    assert bad.tolist() == [False, False, True, False, True, False, True, True]
    assert values[[0, 3]].tolist() == [4.5, 3]
    assert np.isnan(values[[1, 2, 5]]).all()
    values, bad = numbers(pd.Series([1.0, np.inf, np.nan]))
    assert bad.tolist() == [False, True, False]
    values, bad = numbers(pd.Series([True, False]))
    assert bad.all()


@pytest.mark.parametrize(
    "texts",
    [
        ["2014-02-26", "2014-02-27"],
        ["2014-02-26T00:00:00Z", "2014-02-27T01:00:00+01:00"],
        ["02 26, 2014", "02 27, 2014"],
        ["26-Feb-2014", "27-Feb-2014"],
        ["Feb 26, 2014", "Feb 27, 2014"],
        ["Wed Feb 26 00:00:00 +0000 2014", "Thu Feb 27 00:00:00 +0000 2014"],
        ["02/26/2014", "02/27/2014"],
        ["26/02/2014", "27/02/2014"],
        ["26.02.2014", "27.02.2014"],
    ],
)
def test_times_of_date_strings(texts):
    seconds, bad = times(pd.Series([*texts, "", "soon"], dtype="str"))
    assert seconds[:2].tolist() == [1393372800, 1393372800 + 86400]
    assert bad.tolist() == [False, False, False, True]


def test_times_reads_the_whole_column_in_one_format():
    # 03/04 could be March or April; 25/12 settles it for the column.
    seconds, bad = times(pd.Series(["03/04/2014", "25/12/2014"], dtype="str"))
    assert [pd.Timestamp(s, unit="s").month for s in seconds] == [4, 12]
    assert not bad.any()


def test_times_of_numbers_and_datetimes():
    assert times(pd.Series(["881250949", "x", "881250950"], dtype="str"))[0][[0, 2]].tolist() == [881250949, 881250950]
    seconds, bad = times(pd.Series(pd.to_datetime(["2014-02-26", None])))
    assert seconds[0] == 1393372800 and np.isnan(seconds[1]) and not bad.any()
    zoned = pd.Series(pd.to_datetime(["2014-02-26T01:00:00+01:00"]))
    assert times(zoned)[0].tolist() == [1393372800]
