import pandas as pd
import pytest

from tfllmrec.client.answers import Answer, Recommendation, to_frame

LISTS = [
    Answer([Recommendation("a", "Title a", 0.5, "because"), Recommendation("b", "b", 0.1)], unknown=1, request_id="r"),
    Answer(),
    [Recommendation("007", "Bond", 2.0)],
]


def test_a_frame_has_a_row_for_each_recommendation():
    frame = to_frame(LISTS)
    assert frame.to_dict("records") == [
        {"query": 0, "rank": 1, "item_id": "a", "title": "Title a", "score": 0.5, "reason": "because"},
        {"query": 0, "rank": 2, "item_id": "b", "title": "b", "score": pytest.approx(0.1), "reason": ""},
        {"query": 2, "rank": 1, "item_id": "007", "title": "Bond", "score": 2.0, "reason": ""},
    ]
    assert list(to_frame(LISTS, ["u1", "u2", "3"]).user_id) == ["u1", "u1", "3"]
    with pytest.raises(ValueError):
        to_frame(LISTS, ["u1"])


@pytest.mark.parametrize("users", [None, ["u1"]])
def test_types_are_the_same_where_nothing_was_found(users):
    full, empty = to_frame(LISTS[:1], users), to_frame([[]], users)
    assert empty.empty and (empty.dtypes == full.dtypes).all() and full.score.dtype == "float32"
    assert pd.concat([empty, full]).dtypes.equals(full.dtypes)
