from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tfllmrec.data.cleaning.values import as_text, numbers, strings


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7.0, "7"),
        (7.5, "7.5"),
        (10**17 + 1, "100000000000000001"),
        (None, ""),
        (pd.NaT, ""),
        (["a", ["b", None]], "a, b"),
        ([1.0, 0.5, float("nan"), 1e-7, 1e16], "1, 0.5, 1e-07, 10000000000000000"),
        ({"b": 1, "a": [2]}, '{"a": [2], "b": 1}'),
        ("\ud800x", "?x"),
        ("é", "é"),
        (True, "True"),
        (np.array(["a", "b"], dtype=object), "a, b"),
        ([np.array([1, 2]), b"caf\xe9 \xe2\x9c\x93"], "1, 2, caf\ufffd ✓"),
        ({"\ud800": 1}, '{"?": 1}'),
        (Decimal("76561197970982401"), "76561197970982401"),
        (Decimal("7E+16"), "70000000000000000"),
        (Decimal("16.00"), "16"),
        (Decimal("1.50"), "1.50"),
        (Decimal("NaN"), ""),
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


def arrow(values, kind):
    plain = pa.array(values, kind.value_type).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(values)
    return pd.Series(pd.array(plain.cast(kind), dtype=pd.ArrowDtype(kind)))


BIG = [76561197970982401, 76561197970982402]  # one apart: equal as float64


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([*BIG, None], dtype="Int64"),
        pd.Series([*BIG, None], dtype="UInt64"),
        pd.Series([*BIG, None], dtype=object),
        pd.Series([Decimal(BIG[0]), Decimal(BIG[1]), None]),
        pd.Series(pd.Categorical([*BIG, None])),
        pd.Series(pd.Categorical(pd.array([*BIG, None], dtype="UInt64"))),
        arrow([*BIG, None], pa.int64()),
        arrow([*BIG, None], pa.uint64()),
        arrow([*BIG, None], pa.decimal128(20, 0)),
        arrow([*BIG, None], pa.dictionary(pa.int32(), pa.int64())),
    ],
    ids=lambda column: str(column.dtype)[:40],
)
def test_integers_of_every_type_keep_their_digits(column):
    assert strings(column).tolist() == [*map(str, BIG), ""]


def test_integers_beyond_int64_and_in_lists_keep_their_digits():
    more = [2**64 + 1, 2**64 - 1]
    assert strings(pd.Series([*more, None], dtype=object)).tolist() == [*map(str, more), ""]
    assert strings(pd.Series(more[1:], dtype="uint64")).tolist() == [str(more[1])]
    assert strings(arrow([[BIG[0], None], None], pa.list_(pa.int64()))).tolist() == [str(BIG[0]), ""]
    assert strings(arrow(["a ", None], pa.string())).tolist() == ["a", ""]


def read_numbers(*texts):
    notes = []
    values, bad = numbers(pd.Series(texts, dtype="str"), lambda rows, what, action: notes.append((rows.sum(), what)))
    return values.tolist(), bad.any(), [note for note in notes if note[0]]


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["4,5", "3", "2,25"], [4.5, 3, 2.25]),
        (["1.234,5", "1.234"], [1234.5, 1234]),
        (["1 234,5", "0,5"], [1234.5, 0.5]),
        (["1\u202f234,5", "-3,5"], [1234.5, -3.5]),
        (["0,125", "1,234"], [0.125, 1.234]),
        (["1,234.5", "3.5"], [1234.5, 3.5]),
        (["1,234,567", "12"], [1234567, 12]),
        (["12,34,567.5", "7"], [1234567.5, 7]),
        (["1'234.5", "2"], [1234.5, 2]),
        (["1,234", "2,345"], [1234, 2345]),
    ],
)
def test_numbers_of_other_locales_are_read_by_the_whole_column(texts, values):
    read, bad, notes = read_numbers(*texts)
    assert read == values and not bad
    assert len(notes) == 1 and ("decimal comma" in notes[0][1]) != ("separated by commas" in notes[0][1])


def test_plain_numbers_are_no_finding():
    assert read_numbers("4.5", "1234.567", "1e3") == ([4.5, 1234.567, 1000], False, [])
    assert read_numbers("4.5", "3.5", "4,5")[1]  # most cells have a dot: the one with a comma is unreadable


def test_numbers_too_long_for_an_integer():
    values, bad = numbers(pd.Series(["1" * 5000, "4", "-", "1,5x"]))
    assert bad.tolist() == [True, False, False, True] and values[1] == 4
