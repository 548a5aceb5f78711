"""Which events are valid, which time is believed, and what makes two events the same one."""

import math

import pytest

from tfllmrec.feedback.events import LATE_S, MOST_CHARACTERS, MOST_FIELDS, SKEW_S, Unreadable, check

NOW = 1_790_000_000.0
CLICK = {"user_id": "u", "item_id": "i", "timestamp_s": NOW - 1}


def row(**changes):
    batch = check([CLICK | changes], NOW)
    assert batch.refused == []
    return batch.rows[0]


def reason(event):
    batch = check([event], NOW)
    assert batch.rows == []
    return batch.refused[0].reason


def test_what_an_event_may_hold():
    full = row(rating=4, kind="click", request_id="r1", event_id="e1", dwell=2.5, device="phone", seen=True, n=3)
    assert (full.user_id, full.item_id, full.rating, full.kind) == ("u", "i", 4.0, "click")
    assert (full.request_id, full.key, full.timestamp_s, full.received_s) == ("r1", "e1", NOW - 1, NOW)
    assert full.fields == '{"device":"phone","dwell":2.5,"n":3,"seen":true}'
    plain = row(user_id=7, item_id=2**40, kind=None, rating=None, device=None)
    assert (plain.user_id, plain.item_id) == ("7", str(2**40))
    assert (plain.kind, plain.rating, plain.fields) == (None, None, None)
    assert isinstance(plain.key, bytes)


@pytest.mark.parametrize(
    ("event", "what"),
    [
        (3, "expected an object with user_id and item_id, found 3"),
        (Unreadable("the line is no JSON"), "the line is no JSON"),
        ({}, "no user_id: found nothing"),
        ({"user_id": "u", "movie": "i"}, "no item_id: found movie, user_id"),
        (CLICK | {"item_id": "nan"}, "no item_id"),
        (CLICK | {"item_id": ["a", "b"]}, "item_id: expected one text, found ['a', 'b']"),
        (CLICK | {"user_id": True}, "user_id: expected one text, found True"),
        (CLICK | {"user_id": "x" * (MOST_CHARACTERS + 1)}, "user_id: expected a line of 1 to 512 characters"),
        (CLICK | {"user_id": "a\nb"}, "user_id: expected a line"),
        (CLICK | {"user_id": "\ud800"}, "user_id: no valid Unicode"),
        (CLICK | {"user_id": 2**70}, "user_id: expected one text"),
        (CLICK | {"rating": "4"}, "rating: expected a finite number, found '4'"),
        (CLICK | {"rating": math.nan}, "rating: expected a finite number"),
        (CLICK | {"rating": 1e39}, "rating: expected a number that float32 holds"),
        (CLICK | {"rating": 10**400}, "rating: expected a finite number"),
        (CLICK | {"timestamp_s": NOW * 1000}, "seconds since 1970 (UTC), found 1790000000000; milliseconds?"),
        (CLICK | {"timestamp_s": -1}, "timestamp_s: expected seconds since 1970 (UTC), found -1"),
        (CLICK | {"timestamp_s": "2026-01-01"}, "timestamp_s: expected a finite number"),
        ({"user_id": "u", "item_id": "i", "timestamp": 1}, "field 'timestamp': expected the time as timestamp_s"),
        ({"user_id": "u", "item_id": "i"}, "expected timestamp_s or event_id"),
        (CLICK | {"tags": ["a"]}, "field 'tags': expected text, a number or true/false, found ['a']"),
        (CLICK | {"n": 2**63}, "field 'n': expected an integer of 64 bits"),
        (CLICK | {"x": math.inf}, "x: expected a finite number"),
        (CLICK | {"x": "\udc00"}, "x: no valid Unicode"),
        (CLICK | {"x": "a\0"}, "x: a NUL character"),
        (CLICK | {"a\nb": 1}, "expected a name of"),
        (CLICK | {3: 1}, "field 3: expected a name of"),
        (CLICK | {"\ud800": 1}, "expected a name of"),
        ({"\ud800": 1}, "no user_id: found \\ud800"),
        ({"timestamp_s": 1, "x" * 9000: 1}, f"no user_id: found timestamp_s, {'x' * 39}…"),
        (CLICK | {"x" * 500: []}, "xxx': expected text, a number or true/false"),
        (CLICK | {"claimed_s": 1}, "field 'claimed_s': the log has a meaning of its own"),
        (CLICK | {"order": 1}, "field 'order': the log has a meaning of its own"),
        (CLICK | {"received_s": 1}, "field 'received_s': the log has a meaning of its own"),
        (CLICK | {f"x{n}": 1 for n in range(MOST_FIELDS + 1)}, "expected at most 100 further fields, found 101"),
        (CLICK | {"x": "y" * 20_000}, "expected further fields of at most 16384 bytes"),
    ],
)
def test_an_invalid_event_is_refused_with_a_reason(event, what):
    found = reason(event)
    assert what in found and len(found.encode()) < 300


def test_an_invalid_event_does_not_lose_the_others():
    batch = check([CLICK, {}, CLICK | {"item_id": "j"}], NOW)
    assert [kept.item_id for kept in batch.rows] == ["i", "j"]
    assert [refused.event for refused in batch.refused] == [1]


def test_equal_content_or_an_equal_id_makes_an_event_the_same():
    assert row(a=1, b=2).key == row(b=2, a=1, c=None).key
    assert row(user_id=7).key == row(user_id="7").key
    assert len({row(**{name: value}).key for name, value in [
        ("a", 1), ("item_id", "j"), ("user_id", "v"), ("rating", 1), ("kind", "click"), ("request_id", "r"),
        ("timestamp_s", NOW - 2), ("user_id", "u ui"), ("event_id", "e"),
    ]}) == 9  # fmt: skip
    assert row(event_id="e", item_id="i").key == row(event_id="e", item_id="j", rating=3).key
    assert row(event_id="e").key != row(event_id="f").key


def test_the_key_does_not_depend_on_when_the_event_came():
    """Or a second attempt to send it would be another event; also where its clock is ahead."""
    ahead = CLICK | {"timestamp_s": NOW + 1e6}
    first, second = (check([CLICK, ahead], at).rows for at in (NOW, NOW + 60))
    assert [each.key for each in first] == [each.key for each in second]


def test_which_time_is_believed():
    times = [NOW + SKEW_S, NOW + SKEW_S + 1, NOW - LATE_S, NOW - LATE_S - 1]
    batch = check([CLICK | {"timestamp_s": time} for time in times], NOW)
    assert [kept.timestamp_s for kept in batch.rows] == [NOW + SKEW_S, NOW, NOW - LATE_S, NOW - LATE_S - 1]
    assert [kept.claimed_s for kept in batch.rows] == [None, NOW + SKEW_S + 1, None, None]
    assert (batch.skewed, batch.late) == (1, 1)
    batch = check([{"user_id": "u", "item_id": "i", "event_id": "e"}], NOW)
    assert (batch.rows[0].timestamp_s, batch.skewed, batch.late) == (NOW, 0, 0)
