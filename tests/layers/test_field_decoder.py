"""Entries of a request become the values that the encoder of the files gives."""

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tfllmrec.data.cleaning.kind_words import GROUPS
from tfllmrec.data.schema import Field
from tfllmrec.layers.field_decoder import FieldDecoder

pytestmark = pytest.mark.tf

DEVICE = Field("device", "request", "category", ("phone", "tv", "a=b", "25", "ä"))
DEFAULTED = Field("plan", "user", "category", ("free", "paid"), default="paid ")
TAGS = Field("tags", "user", "category", ("red", "blue", "green"), width=2)
AGE = Field("age", "user", "number")
SHOE = Field("shoe", "user", "number", default="42.5")
AT = Field("at", "request", "time")
LOOK = Field("look", "user", "vector", width=3)
NOTE = Field("note", "request", "text")
FIELDS = [DEVICE, DEFAULTED, TAGS, AGE, SHOE, AT, LOOK, NOTE]
DECODER = FieldDecoder(FIELDS, {field.key for field in FIELDS})
DECODE = tf.function(DECODER.__call__, input_signature=[tf.TensorSpec((None, None), tf.string)])


def decoded(*rows):
    width = max(map(len, rows))
    values, unread = DECODE(tf.constant([[*row, *[""] * (width - len(row))] for row in rows], shape=(len(rows), width)))
    return {key: value.numpy() for key, value in values.items()}, unread.numpy().tolist()


def same(one, other):
    if one.dtype == object:
        assert [v.decode() for v in one.ravel()] == other.ravel().tolist()
    else:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


RNG = np.random.default_rng(3)
SPACES = ["", " ", "\t", "\n", "\u00a0", "\u2003", "\x1f"]
CELLS = {
    "category": ["phone", "tv", "a=b", "25", "ä", "PHONE", "nope", "free", "red", "red|blue", "red||green|blue", "|",
                 "black|red", "x\ny"],
    "number": [*map(repr, RNG.normal(0, 1e4, 40).tolist()), *map(str, RNG.integers(-(10**9), 10**9, 20)),
               *(f"{x:.3e}" for x in RNG.normal(0, 1e-4, 20)), "5.", ".5", "+3", "1e5", "1E-3", "1e39", "1e400",
               "abc", "1.2.3", "--", "NA", "nan", "inf", "-inf", "0x10", "12 13", "1e", "1_000"],
    "vector": ["0.1,0.2,0.3", "[1.5; 2 ;-3e2]", "(1 2 3)", "1,2", "1 2 3 4", "a 1 2 3", "1,2,x", "[]", "1e400,2,3",
               "[0.25, 0.5, 0.75", "7", *(repr(v) for v in RNG.normal(size=(20, 3)).tolist())],
    "time": ["2014-05-26", "2014-05-26T10:11:12Z", "2000-02-29 23:59", "1999-12-31T00:00:00.5", "2016-02-30",
             "2015-02-29", "2014-13-01", "2014-05-26 24:00", "2014-05-26 24:01",
             "0000-00-00", "soon", "1950-01-01", "2100-02-28 12:30:15",
             "2014-05-26T10:11:12+00:00", *np.datetime_as_string(
                 RNG.integers(-(10**9), 4 * 10**9, 40).astype("datetime64[s]"), unit="s")],
    "text": ["a note", "é ü", "a=b", "=", '"', "x\ny"],
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.key)
def test_values_are_those_of_the_files(field):
    """Each cell is a column of its own, so that none decides how another one is read."""
    cells = ["", *CELLS[field.kind]]
    spaces = RNG.choice(SPACES, (len(cells), 4))
    values, _ = decoded(
        *([f"{a}{field.name}{b}={c}{cell}{d}"] for cell, (a, b, c, d) in zip(cells, spaces, strict=True))
    )
    same(values[field.key], np.concatenate([field.encode(pd.Series([cell], dtype=object)) for cell in cells]))


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.key)
def test_what_is_left_out_has_the_default_or_the_padding(field):
    expected = field.encode([""])
    for row in ([], ["", " "], [f"{field.name}="], [f"{field.name}= "], [f"{field.name}=x", f"{field.name}="]):
        values, unread = decoded(row or [""])
        same(values[field.key], expected)
        assert unread == [0]
    same(DECODER.missing(tf.constant([2]))[field.key].numpy(), np.concatenate([expected, expected]))
    assert DECODER.missing(tf.constant([2, 3]))[field.key].shape == (2, 3, *expected.shape[1:])


def test_seconds_are_taken_as_they_are():
    values, unread = decoded(["at=1400000000.25"], ["at=-5"], ["at=20140526"])
    same(values["request.at"], AT.encode(pd.Series([1400000000.25, -5, 20140526.0])))
    assert unread == [0, 0, 0]


def test_entries_that_cannot_be_read_are_counted():
    values, unread = decoded(
        ["age=25", "colour=red", "", "nonsense", "=x"],
        ["age=old", "at=soon", "look=1,2", "shoe=inf"],
        ["device=toaster", "note=", "age=1"],
        ["device=phone", "tags=red|puce", "", ""],
        ["", "", "", ""],
    )
    assert unread == [3, 4, 1, 1, 0]  # a value that a category does not have is the unknown one
    np.testing.assert_array_equal(values["user.age"], np.array([25, np.nan, 1, np.nan, np.nan], np.float32))
    assert values["request.device"].tolist() == [0, 0, 1, 2, 0]


SHOP = Field(
    "kind", "event", "category", ("view", "PURCHASE", "-1"), weights={"view": 0.5, "PURCHASE": 1.0, "-1": 0.25}
)
OPINIONS = Field("kind", "event", "category", ("like", "dislike"), weights={"like": 0.2, "dislike": -1.0})
ONLY_LIKES = Field("kind", "event", "category", ("like",))
REACTIONS = Field("reaction", "event", "category", ("a", "like"), weights={"a": 1.0, "like": 0.75})
SPELLINGS = [
    "Dislike", "DISLIKE", "hide", "thumbs_down", "thumbs-down", "video_disliked", "don't like", "Don’t Like", "👎",
    "👍🏻", "❤️", "impression", "purchase", "Purchases", "product purchased", "bought", "PURCHASE", "addToCart", "View",
    "PAGE VIEW", "page_view", "skip", "zzz", "1", "+1", "-1", "", "?", "_", "unlike", "undo like", "refund",
    "not_purchased", "ver", "tv_ver", "boarding_pass_view", "AÑADIR al carrito", "anadir al carrito",
    "Gefällt mir nicht", "購入", "カートに追加", "Не нравится", "НЕ НРАВИТСЯ", "j'aime", "e\u0301", "İ", "user", "to",
    "a", "A", "ad_click_2", "\ud7ff", "x\nview", "1view",
]  # fmt: skip


@pytest.mark.parametrize(
    "field", [SHOP, OPINIONS, ONLY_LIKES, REACTIONS], ids=["shop", "opinions", "likes", "reactions"]
)
def test_kinds_in_any_spelling_are_decoded_as_training_encodes_them(field):
    every = [f"{group.names} {group.in_other_languages} {group.as_a_whole}".split() for group in GROUPS]
    names = [name for group in every for name in group]
    cells = [*SPELLINGS, *names, *(name.upper() for name in names), *(f"not {name}" for name in names)]
    cells += [f"{name} {other}" for name, other in zip(names, RNG.permutation(names), strict=True)]
    decoder = FieldDecoder([field], {field.key})
    values, unread = decoder(tf.constant([[f"{field.name}={cell}"] for cell in cells]))
    expected = field.encode(cells)
    same(values[field.key].numpy(), expected)
    assert unread.numpy().tolist() == (expected == 1).astype(int).tolist()
    assert field.encode(field.words(expected)).tolist() == expected.tolist()


def test_kinds_that_are_no_utf8_are_unread():
    values, unread = FieldDecoder([SHOP], {SHOP.key})(
        tf.constant([[b"kind=\xff\xfe"], [b"kind= "], [b"kind=\xc3View"]])
    )
    assert values["event.kind"].numpy().tolist() == [0, 0, 0] and unread.numpy().tolist() == [1, 0, 1]


def test_the_last_of_several_counts():
    values, unread = decoded(["age=1", "device=tv", "age=2", "device=phone"], ["age=1", "age=x"], ["age=x", "age=1"])
    np.testing.assert_array_equal(values["user.age"], np.array([2, np.nan, 1], np.float32))
    assert values["request.device"].tolist() == [2, 0, 0] and unread == [0, 1, 0]


def test_a_key_says_which_field_is_meant():
    fields = [Field("country", owner, "category", ("fr", "nl")) for owner in ("request", "user")]
    decoder = FieldDecoder(fields, {"request.country", "user.country"})
    values, unread = decoder(tf.constant([["country=nl", "user.country=fr"], ["country=fr", ""]]))
    assert values["request.country"].numpy().tolist() == [3, 2]
    assert values["user.country"].numpy().tolist() == [2, 2] and unread.numpy().tolist() == [0, 0]


def test_only_what_the_model_reads_is_decoded():
    decoder = FieldDecoder(FIELDS, {"user.age"})
    values, unread = decoder(tf.constant([["age=3", "at=soon", "colour=red"]]))
    assert list(values) == ["user.age"] and unread.numpy().tolist() == [1]  # at is a field, colour is none
    values, unread = FieldDecoder([], ())(tf.constant([["age=3"]]))
    assert values == {} and unread.numpy().tolist() == [1]
    _, unread = decoder(tf.constant([["price=3", "colour=red"]]), tf.constant([[True, False]]))
    assert unread.numpy().tolist() == [1]  # the price is read elsewhere


def test_lines_are_entries_and_only_so_many_are_read():
    lines = ["age=3\ndevice=tv", "", "\n".join([*["age=1"] * 40, "age=9"])]
    values, unread = DECODER.decode_lines(tf.constant(lines))
    np.testing.assert_array_equal(values["user.age"], np.array([3, np.nan, 1], np.float32))
    assert values["request.device"].numpy().tolist() == [3, 0, 0] and unread.numpy().tolist() == [0, 0, 9]
    assert DECODER.decode_lines(tf.zeros((0,), tf.string))[1].shape == (0,)


def test_bytes_that_are_no_text_are_no_error():
    values, unread = DECODE(tf.constant([[b"age=\xff\xfe", b"\xff=3", b"device=\xff", b"note=a\xffb"]]))
    assert np.isnan(values["user.age"][0]) and unread.numpy()[0] >= 1
    assert DECODE(tf.zeros((0, 2), tf.string))[1].shape == (0,)
    assert DECODE(tf.zeros((2, 0), tf.string))[1].numpy().tolist() == [0, 0]
