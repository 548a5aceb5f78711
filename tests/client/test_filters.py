import pytest

from tfllmrec.client.filters import NO_ITEM, filter_inputs
from tfllmrec.errors import DataError


@pytest.mark.parametrize(("allow", "categories"), [(None, None), ([None, None], None), ([None, None], [[], ()])])
def test_nothing_is_sent_where_nothing_is_filtered(allow, categories):
    assert filter_inputs(2, allow, categories) == {}


def test_an_empty_allow_list_is_not_all_that_there_is():
    assert filter_inputs(3, [["a", "b"], [], None], None) == {
        "allow": [["a", "b"], [NO_ITEM], ()], "categories": [(), (), ()],
    }  # fmt: skip
    assert filter_inputs(1, [[]], [[]]) == {"allow": [[NO_ITEM]], "categories": [()]}
    assert filter_inputs(2, None, [["x"], []]) == {"allow": [(), ()], "categories": [["x"], ()]}


def test_empty_ids_and_categories_allow_nothing():
    """A row of empty strings is a row without ids, which allows all items."""
    assert filter_inputs(2, [[""], ["", "a"]], [[""], ["x", ""]]) == {
        "allow": [[NO_ITEM], ["a"]], "categories": [[NO_ITEM], ["x"]],
    }  # fmt: skip


@pytest.mark.parametrize(("allow", "categories"), [([["a"]], None), (None, [["a"]] * 3)])
def test_one_list_for_each(allow, categories):
    with pytest.raises(DataError, match=r"Expected one list of (allow|categories) for each of 2 users, got [13]"):
        filter_inputs(2, allow, categories)
