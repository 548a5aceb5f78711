import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tfllmrec.data.cleaning.times import times
from tfllmrec.errors import ConfigError

UNREADABLE, NOTHING = "unreadable", "nothing"


def read(*cells, time_format="auto", dtype=None):
    """The times as ISO text without a clock of zeros, and the findings as {description: rows}."""
    notes = {}

    def note(rows, what, action):
        if rows.any():
            notes[what] = int(rows.sum())

    seconds, bad = times(pd.Series(cells, dtype=dtype), time_format, note)
    texts = []
    for second, wrong in zip(seconds, bad, strict=True):
        assert not (wrong and second == second)
        moment = NOTHING if second != second else str(np.datetime64(round(second * 1000), "ms"))
        texts.append(UNREADABLE if wrong else moment.removesuffix(".000").removesuffix("T00:00:00"))
    return texts, notes


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2014-05-26", "2014-05-26"),
        ("2014/5/6", "2014-05-06"),
        ("2019-10-01 00:00:00 America/New_York", "2019-10-01T04:00:00"),  # "am" is no half of the day here
        ("01-OCT-2019 12.00.01.000000000 PM", "2019-10-01T12:00:01"),  # Oracle
        ("2014-05-26T01:00:00+01:00", "2014-05-26"),
        ("2014-05-26T10", "2014-05-26T10:00:00"),
        ("2014-05-26 10:11:12.5Z", "2014-05-26T10:11:12.500"),
        ("2014-05-26 10:11:12,123", "2014-05-26T10:11:12.123"),
        ("2019-10-01 00:00:00 UTC", "2019-10-01"),
        ("2019-10-01 00:00:00 GMT+0200", "2019-09-30T22:00:00"),
        ("2019-10-01 05:30 +0530", "2019-10-01"),
        ("2019-10-01 02:00:00 Europe/Berlin", "2019-10-01"),
        ("2019-01-01T01:00+01:00[Europe/Berlin]", "2019-01-01"),
        ("2009-11-10 23:00:00.5 +0000 UTC m=+0.001", "2009-11-10T23:00:00.500"),
        ("20140526T101112Z", "2014-05-26T10:11:12"),
        ("02 26, 2014", "2014-02-26"),
        ("11/13/2019 8:36:57 AM", "2019-11-13T08:36:57"),
        ("11/13/2019 12:36 PM", "2019-11-13T12:36:00"),
        ("11/13/2019 12:36 a.m.", "2019-11-13T00:36:00"),
        ("26.05.2014 10:11", "2014-05-26T10:11:00"),
        ("26. 5. 2014", "2014-05-26"),
        ("26-05-2014", "2014-05-26"),
        ("26-Feb-2014", "2014-02-26"),
        ("26 May 2014", "2014-05-26"),
        ("26MAY2014:10:11:12", "2014-05-26T10:11:12"),
        ("May 26th, 2014 at 8:36 PM", "2014-05-26T20:36:00"),
        ("Nov 13, 2019, 8:36:57\u202fAM", "2019-11-13T08:36:57"),
        ("Sept 5, 2014", "2014-09-05"),
        ("Wed Feb 26 00:00:00 +0000 2014", "2014-02-26"),
        ("Sun Nov  6 08:49:37 1994", "1994-11-06T08:49:37"),
        ("Wed, 26 Feb 2014 10:11:12 -0500", "2014-02-26T15:11:12"),
        ("Sun, 06 Nov 1994 08:49:37 GMT", "1994-11-06T08:49:37"),
        ("Wed Feb 26 2014 00:00:00 GMT+0100 (Central European Standard Time)", "2014-02-25T23:00:00"),
        ("[10/Oct/2000:13:55:36 -0700]", "2000-10-10T20:55:36"),
        ("2014年5月26日 10:11", "2014-05-26T10:11:00"),
        ("May 2014", "2014-05-01"),
        ("1969-07-20 20:17:40", "1969-07-20T20:17:40"),
    ],
)
def test_dates_as_text(text, moment):
    assert read(text, "", None, dtype="str") == ([moment, NOTHING, NOTHING], {})


@pytest.mark.parametrize(
    "text",
    [
        *("soon", "now", "today", "12:30", "2014-13-01", "2014-02-30", "2014-05-26 25:00", "2014-05-26 13:00 PM"),
        *("31/31/2014", "1 Foo 2014", "2014-05-26 10:00 IST", "2014-05-26 10:00 Europe/Nowhere"),  # IST: three zones
    ],
)
def test_text_that_is_no_date(text):
    assert read(text, "2014-05-26", dtype="str") == ([UNREADABLE, "2014-05-26"], {})


def test_names_of_time_zones_are_told():
    texts, notes = read("2014-05-26 10:00:00 PST", "Mon, 26 May 2014 10:00 EDT", dtype="str")
    assert texts == ["2014-05-26T18:00:00", "2014-05-26T14:00:00"]
    assert notes == {"the time zone PST was read as UTC-8": 1, "the time zone EDT was read as UTC-4": 1}


@pytest.mark.parametrize(
    ("texts", "months", "why"),
    [
        (["03/04/2014", "05/06/2014"], [3, 5], "neither number exceeds 12"),
        (["03.04.2014", "05.06.2014"], [4, 6], "dates with dots usually are"),
        (["03/04/2014 8:30 PM", "12/25/2014 8:30 AM"], [3, 12], "fit no other way"),
        (["03/04/2014", "25/12/2014"], [4, 12], "fit no other way"),
        (["03-04-2014", "25-12-2014"], [4, 12], "fit no other way"),
    ],
)
def test_day_and_month_are_told_apart_by_the_whole_column(texts, months, why):
    moments, notes = read(*texts, dtype="str")
    assert [int(moment[5:7]) for moment in moments] == months
    ((what, rows),) = notes.items()
    assert why in what and "data.time_format" in what
    assert rows == sum(max(map(int, (text[:2], text[3:5]))) <= 12 for text in texts)


def test_a_date_that_contradicts_the_rest_of_the_column_is_unreadable():
    moments, _ = read("25/12/2014", "26/12/2014", "12/27/2014", dtype="str")
    assert moments == ["2014-12-25", "2014-12-26", UNREADABLE]


def test_years_of_two_digits_are_told():
    moments, notes = read("05/26/14", "12/31/99", dtype="str")
    assert moments == ["2014-05-26", "1999-12-31"] and "two digits" in next(iter(notes))


SPELT = "the time is a number that spells a date ({}): read as one"


@pytest.mark.parametrize("dtype", [None, "str", "Int64", "float64"])
@pytest.mark.parametrize(
    ("numbers", "moments", "finding"),
    [
        (
            [20140407105109, 20151231235959],
            ["2014-04-07T10:51:09", "2015-12-31T23:59:59"],
            SPELT.format("YYYYMMDDhhmmss"),
        ),
        ([201404071051, 201512312359], ["2014-04-07T10:51:00", "2015-12-31T23:59:00"], SPELT.format("YYYYMMDDhhmm")),
        ([2014040710, 2015123123], ["2014-04-07T10:00:00", "2015-12-31T23:00:00"], SPELT.format("YYYYMMDDhh")),
        ([20140526, 20151231], ["2014-05-26", "2015-12-31"], SPELT.format("YYYYMMDD")),
        ([201405, 201512], ["2014-05-01", "2015-12-01"], SPELT.format("YYYYMM")),
        ([2001, 1999], ["2001-01-01", "1999-01-01"], SPELT.format("YYYY")),
        ([41785, 42000], ["2014-05-26", "2014-12-27"], "the time is in days as Excel counts them (from 1899-12-30)"),
        ([16216, 16431], ["2014-05-26", "2014-12-27"], "the time is in days since 1970"),
        ([1401062400000, 1419638400000], ["2014-05-26", "2014-12-27"], "the time is in milliseconds since 1970"),
        ([1401062400000000, 1419638400000000], ["2014-05-26", "2014-12-27"], "the time is in microseconds since 1970"),
        ([1401062400 * 10**9, 1419638400 * 10**9], ["2014-05-26", "2014-12-27"], "the time is in nanoseconds since"),
        ([(1401062400 + 62135596800) * 10**7], ["2014-05-26"], "the time is in ticks of .NET"),
        ([(1401062400 + 11644473600) * 10**7], ["2014-05-26"], "the time is in ticks of Windows"),
        ([(1401062400 + 11644473600) * 10**6], ["2014-05-26"], "the time is in microseconds since 1601"),
    ],
)
def test_numbers_that_are_dates(numbers, moments, finding, dtype):
    cells = pd.Series(numbers).astype(dtype) if dtype else numbers
    texts, notes = read(*cells, dtype=dtype)
    assert texts == moments
    ((what, rows),) = notes.items()
    assert what.startswith(finding) and rows == len(numbers)


def test_excel_days_have_a_fraction_and_perhaps_a_decimal_comma():
    assert read(41785.5, 41785.75)[0] == ["2014-05-26T12:00:00", "2014-05-26T18:00:00"]
    assert read("41785,5", "41785,75", dtype="str")[0] == ["2014-05-26T12:00:00", "2014-05-26T18:00:00"]


def test_seconds_since_1970_are_no_finding():
    assert read(881250949, None, 1393372800) == (["1997-12-04T15:55:49", NOTHING, "2014-02-26"], {})


def test_numbers_that_are_early_however_they_are_read_are_told():
    texts, notes = read(100, 7, 13)
    assert texts == ["1970-01-01T00:01:40", "1970-01-01T00:00:07", "1970-01-01T00:00:13"]
    assert list(notes.values()) == [3] and "lies before 1995 if it is in seconds since 1970" in next(iter(notes))


def test_a_number_that_is_no_date_among_numbers_that_are():
    assert read(*[20140526] * 19, 20149999)[0][-1] == UNREADABLE


def test_the_unit_is_that_of_the_whole_column():
    # Taken one by one, the last of these would be seconds, and the latest of all.
    texts, _ = read(1401062400000, 1401062400001, 99_999_999_999)
    assert texts == ["2014-05-26", "2014-05-26T00:00:00.001", "1973-03-03T09:46:39.999"]
    texts, _ = read("1401062400000", "1401062400001", "99999999999", dtype="str")
    assert texts[2] == "1973-03-03T09:46:39.999"


@pytest.mark.parametrize("dtype", ["str", "datetime64[us]"])
def test_dates_far_away_keep_their_order(dtype):
    dates = ["0800-12-25", "1850-01-01", "2014-05-26", "2500-01-01", "7000-01-01"]
    cells = pd.Series(dates, dtype="str").astype(dtype)
    early = "the time lies before 1900; if it is a date of another calendar, convert it"
    assert read(*cells, dtype=dtype) == (dates, {"the time lies in the future": 2, early: 2})
    texts, _ = read("2500-01-01T00:00:00.5", "2014-05-26 00:00:00.123456789", dtype="str")
    assert texts == ["2500-01-01T00:00:00.500", "2014-05-26T00:00:00.123"]


@pytest.mark.parametrize(
    "placeholder",
    [
        *("1970-01-01", "1900-01-01T00:00:00Z", "9999-12-31 23:59:59", "0001-01-01", "1753-01-01", "1899-12-30"),
        *("1969-12-31T16:00:00", "2099-12-31", "01/01/1970", "0000-00-00 00:00:00", "0", "-1"),
    ],
)
def test_dates_that_stand_for_unknown(placeholder):
    texts, notes = read("2014-05-26", placeholder, "2015-12-31", placeholder, dtype="str")
    assert texts == ["2014-05-26", NOTHING, "2015-12-31", NOTHING]
    assert any("stands for 'unknown'" in what and rows == 2 for what, rows in notes.items())


@pytest.mark.parametrize(
    ("numbers", "unknown"),
    [
        ([1401062400, 0, 1401062401], 0),
        ([1401062400, -1, 1401062401], -1),
        ([1401062400000, 0, 1401062400001], 0),
        ([1401062400, 253402214400, 1401062401], 253402214400),  # 9999-12-31
        ([1401062400, -62135596800, 1401062401], -62135596800),  # the year 1: the zero of Go and .NET
        ([1401062400, -9223372036854775808, 1401062401], -9223372036854775808),  # NaT as int64
        ([1401062400, 2147483647, 1401062401], 2147483647),
        ([20140526, 0, 20140527], 0),
        ([20140526, 99991231, 20140527], 99991231),
        ([20140526, 19000101, 20140527], 19000101),
        ([41785.5, 0, 41786.5], 0),
    ],
)
def test_numbers_that_stand_for_unknown(numbers, unknown):
    texts, notes = read(*numbers)
    assert [text == NOTHING for text in texts] == [number == unknown for number in numbers]
    assert any("stands for 'unknown'" in what for what in notes)


def test_placeholders_that_are_near_to_other_times_are_times():
    assert NOTHING not in read(0, 1, 2)[0]
    assert NOTHING not in read("1970-01-01", "1970-01-02", dtype="str")[0]
    assert NOTHING not in read("1899-12-31", "1900-01-01", "1900-01-02", dtype="str")[0]
    assert NOTHING not in read("1970-01-01", "1970-01-01", dtype="str")[0]
    assert NOTHING not in read(-5, -1, 3)[0]


def test_numbers_among_dates():
    texts, notes = read("1401062400", "2014-05-26 01:00:00", "2014-05-26T02:00:00Z", dtype="str")
    assert texts == ["2014-05-26", "2014-05-26T01:00:00", "2014-05-26T02:00:00"]
    assert notes == {"the time is a number among dates: read as seconds since 1970": 1}
    assert read("41785.5", "26.05.2014", dtype="str")[0] == ["2014-05-26T12:00:00", "2014-05-26"]
    assert read("1401062400000", "26 May 2014", dtype="str")[0] == ["2014-05-26", "2014-05-26"]


@pytest.mark.parametrize(
    ("time_format", "cells", "moments"),
    [
        ("%d/%m/%Y", ["03/04/2014", "", "05/06/2014"], ["2014-04-03", NOTHING, "2014-06-05"]),
        ("%d|%m|%y %H.%M", ["03|04|14 10.30", "x"], ["2014-04-03T10:30:00", UNREADABLE]),
        ("%Y%m%d", [20140526, 19691230], ["2014-05-26", "1969-12-30"]),
        ("%d/%m/%Y", ["0", "05/06/2014"], [NOTHING, "2014-06-05"]),
        ("%Y-%m-%d %z", ["2014-05-26 +0200"], ["2014-05-25T22:00:00"]),
        ("epoch_s", [20140526, 20140527], ["1970-08-22T02:35:26", "1970-08-22T02:35:27"]),
        ("epoch_ms", ["1500", "x"], ["1970-01-01T00:00:01.500", UNREADABLE]),
        ("epoch_d", [1, 2.5], ["1970-01-02", "1970-01-03T12:00:00"]),
        ("excel", [3.0], ["1900-01-02"]),
    ],
)
def test_a_time_format_that_is_set(time_format, cells, moments):
    assert read(*cells, time_format=time_format)[0] == moments


@pytest.mark.parametrize("time_format", ["%Q", "seconds", "epoch", ""])
def test_a_time_format_that_is_none(time_format):
    with pytest.raises(ConfigError, match=r"data\.time_format"):
        read("2014-05-26", time_format=time_format)


def test_typed_dates():
    zoned = datetime.datetime(2014, 5, 26, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    cells = [zoned, datetime.datetime(2014, 5, 26), datetime.date(2014, 5, 26), pd.Timestamp("2014-05-26"), None]
    without = "the time has no time zone, unlike others of the column: read as UTC"
    assert read(*cells, dtype=object) == (["2014-05-26"] * 4 + [NOTHING], {without: 3})
    for kind in (pa.timestamp("ns", "Europe/Berlin"), pa.timestamp("ms"), pa.timestamp("s"), pa.date32(), pa.date64()):
        days = pa.array([datetime.date(2014, 5, 26), None], pa.date32()).cast(pa.timestamp("s")).cast(kind)
        seconds, bad = times(pd.Series(pd.array(days, dtype=pd.ArrowDtype(kind))))
        assert not bad.any() and seconds[0] == 1401062400 and np.isnan(seconds[1])


def test_a_number_in_another_unit_than_the_column_is_read_in_its_own():
    texts, notes = read(1401062400, 1401062400500, 1401062401, 1401062402, 1401062403000000)
    seconds = ["2014-05-26", "2014-05-26T00:00:00.500", *(f"2014-05-26T00:00:0{n}" for n in (1, 2, 3))]
    assert texts == seconds
    assert {what[:40]: rows for what, rows in notes.items()} == {
        "the time is in milliseconds since 1970, ": 1,
        "the time is in microseconds since 1970, ": 1,
    }
    assert read(1401062400, 1401062400500, time_format="epoch_s")[0][1].startswith("46367")


@pytest.mark.parametrize(
    ("numbers", "pattern", "moments"),
    [
        ([26052014, 3042014], "%d%m%Y", ["2014-05-26", "2014-04-03"]),  # the leading zero is lost
        ([5262014, 12042014], "%m%d%Y", ["2014-05-26", "2014-12-04"]),
        ([140526, 30403], "%y%m%d", ["2014-05-26", "2003-04-03"]),
    ],
)
def test_numbers_that_spell_a_date_in_no_certain_order_need_a_time_format(numbers, pattern, moments):
    assert read(*numbers) == ([UNREADABLE, UNREADABLE], {})
    assert read(*numbers, time_format=pattern)[0] == moments


@pytest.mark.parametrize("numbers", [[140526, 140599, 190261], [100, 7, 13], [140526, 140526]])
def test_small_numbers_that_spell_no_date_are_seconds(numbers):
    assert UNREADABLE not in read(*numbers)[0]


@pytest.mark.parametrize(
    ("texts", "doubted"),
    [
        (["1.40106E+12", "1.40115E+12"], 2),  # Excel
        (["1,40106E+12", "1,4E+12"], 2),
        (["1.40106e+09", "1.5e+09"], 2),  # %g
        (["1.4010624E9", "1.40106247E9", "1.5E9"], 0),  # Java prints every digit that there is
        (["1401062400", "1401062401"], 0),
    ],
)
def test_times_that_a_spreadsheet_rounded_are_doubted(texts, doubted):
    _, notes = read(*texts, dtype="str")
    assert sum(rows for what, rows in notes.items() if "rounded to a few digits" in what) == doubted


def test_midnight_at_the_end_of_a_day():
    assert read("2014-05-26T24:00:00", "2014-05-26 24:00", dtype="str")[0] == ["2014-05-27"] * 2
    assert read("2014-05-26T24:00:01", "2014-05-26", dtype="str")[0][0] == UNREADABLE


def test_dates_of_other_calendars_are_told():
    assert read("1401/10/05", "1401/10/06") == (
        ["1401-10-05", "1401-10-06"],
        {"the time lies before 1900; if it is a date of another calendar, convert it": 2},
    )
    assert not any("before 1900" in what for what in read("0001-01-01", "2014-05-26")[1])


def test_times_without_a_zone_among_others_with_one_are_told():
    texts, notes = read("2014-05-26T10:00:00+02:00", "2014-05-26T10:00:00", "2014-05-26T10:00:00Z")
    assert texts == ["2014-05-26T08:00:00", "2014-05-26T10:00:00", "2014-05-26T10:00:00"]
    assert notes == {"the time has no time zone, unlike others of the column: read as UTC": 1}
    assert read("2014-05-26T10:00:00", "2014-05-27T10:00:00")[1] == {}
