from datetime import UTC, datetime

import pytest

from tfllmrec.client.fields import context_inputs, event_field_inputs
from tfllmrec.errors import DataError


@pytest.mark.parametrize("context", [None, [None, None], [{}, None]])
def test_nothing_is_sent_where_no_query_has_fields(context):
    assert context_inputs(2, context) == {}
    assert event_field_inputs([["a"], []], None) == event_field_inputs([["a"], []], [None, []]) == {}


def test_values_are_written_as_in_files():
    noon = datetime(2014, 5, 26, 12)
    fields = {
        "device": "tv",
        "age": 25.0,
        "shoe": 42.5,
        "n": 3,
        "look": [0.5, 1],
        "at": noon,
        "new": True,
        "gone": None,
    }
    expected = ["device=tv", "age=25", "shoe=42.5", "n=3", "look=0.5 1", "at=1401105600", "new=True"]
    assert context_inputs(1, [fields]) == {"context": [expected]}
    assert context_inputs(1, [{"at": noon.replace(tzinfo=UTC)}]) == {"context": [["at=1401105600"]]}


def test_fields_of_events_are_lines():
    told = event_field_inputs([["a", "b"], ["c"]], [[{"kind": "view", "dwell": 3}, None], None])
    assert told == {"event_fields": [["kind=view\ndwell=3", ""], [""]]}


@pytest.mark.parametrize("field", [{"": 1}, {"a=b": 1}, {3: 1}, {"ki\nnd": 1}])
def test_a_field_that_cannot_be_sent_is_named(field):
    with pytest.raises(DataError, match="Expected fields of events and requests as names of one line"):
        event_field_inputs([["a"]], [[field]])
    with pytest.raises(DataError, match="Expected fields"):
        context_inputs(1, [field])


def test_the_lines_of_a_value_are_joined_where_a_line_is_an_entry():
    review = {"review": "Good.\r\nkind=purchase\n\nAgain!", "kind": "view"}
    told = event_field_inputs([["a"]], [[review]])
    assert told == {"event_fields": [["review=Good. kind=purchase  Again!\nkind=view"]]}
    assert context_inputs(1, [{"about": "a\nb"}]) == {"context": [["about=a\nb"]]}


def test_as_many_as_there_are():
    with pytest.raises(DataError, match="one mapping of context for each of 3 queries, got 1"):
        context_inputs(3, [{"a": 1}])
    for rows in ([[{}, {"a": 1}]], [[{"a": 1}], [{}]]):
        with pytest.raises(DataError, match=r"Expected fields for each event of the history, .* for \[1\] events"):
            event_field_inputs([["a"]], rows)


def test_missing_values_of_any_library_are_left_out():
    numpy, pandas = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    missing = [None, float("nan"), numpy.float32("nan"), numpy.datetime64("NaT"), numpy.datetime64("NaT", "ns")]
    for value in [*missing, pandas.NA, pandas.NaT]:
        assert context_inputs(1, [{"age": value, "n": 1}]) == {"context": [["n=1"]]}
        assert event_field_inputs([["a"]], [[{"kind": value, "n": 1}]]) == {"event_fields": [["n=1"]]}


def test_numpy_values_nothing_and_a_mapping_in_the_place_of_a_list():
    numpy = pytest.importorskip("numpy")
    vector = numpy.arange(1200) / 2
    [[entry]] = context_inputs(1, [{"look": vector, "age": float("nan"), "n": None}])["context"]
    assert entry.startswith("look=0.0 0.5 1.0") and entry.endswith("599.5")
    assert context_inputs(1, [{"n": numpy.int64(3)}])["context"] == [["n=3"]]
    noon = numpy.datetime64("2014-05-26T12:00")
    for unit in ("h", "s", "ms", "us", "ns"):
        at = noon.astype(f"datetime64[{unit}]")
        assert context_inputs(1, [{"at": at}]) == {"context": [["at=1401105600"]]}
    with pytest.raises(DataError, match="Expected context as a list with one mapping for each query"):
        context_inputs(1, {"device": "phone"})
    with pytest.raises(DataError, match="for each of 3 queries, got 1"):
        context_inputs(3, [None])
