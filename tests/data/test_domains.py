"""Joined data, and the split that asks in one domain for what users of another one did there."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tfllmrec.config import DataConfig, SplitConfig
from tfllmrec.data import Dataset, dataset_from_frames, make_split
from tfllmrec.data.domains import domain_names, item_domains, items_of_domain, join_datasets, overlaps, with_new_domains
from tfllmrec.errors import ConfigError, DataError


def dataset(name, rows, items=None, *, times=None, tags=None, **config) -> Dataset:
    """``rows``: "user item" in their order; ``times``: of each, in seconds."""
    frame = pd.DataFrame([row.split() for row in rows], columns=["user", "item"])
    frame["order" if times is None else "timestamp"] = np.arange(len(rows)) if times is None else times
    catalogue = None if items is None else pd.DataFrame(items)
    written = None if tags is None else pd.DataFrame([row.split() for row in tags], columns=["user", "item", "tag"])
    return dataset_from_frames(frame, catalogue, config=DataConfig(name=name, **config), tags=written)


def shops(**more):
    return {
        "books": dataset("books", ["u 1", "u 2", "v 1", "w 2"], **more),
        "films": dataset("films", ["u 1", "v 3", "v 1", "x 3"]),
    }


def told(joined):
    events = joined.events
    return [" ".join(row) for row in zip(events.user_id, events.item_id, events.domain, strict=True)]


def test_users_are_shared_and_items_are_not():
    joined = join_datasets(shops())
    assert joined.name == "books+films" and list(joined.users.user_id) == ["u", "v", "w", "x"]
    assert list(joined.items.item_id) == ["books:1", "books:2", "films:1", "films:3"]
    assert list(joined.items.domain) == ["books", "books", "films", "films"]
    assert told(joined) == [
        *("u books:1 books", "u books:2 books", "u films:1 films", "v books:1 books", "v films:3 films"),
        *("v films:1 films", "w books:2 books", "x films:3 films"),
    ]
    assert joined.events.order.tolist() == [0, 1, 2, 0, 1, 2, 0, 0]
    assert joined.items.item_id.iloc[joined.events.item_index].tolist() == joined.events.item_id.tolist()
    assert joined.users.user_id.iloc[joined.events.user_index].tolist() == joined.events.user_id.tolist()
    assert [str(field).split(":")[0] for field in joined.schema.lines() if "domain" in field] == [
        "event.domain",
        "item.domain",
    ]


def test_ids_stay_the_same_when_a_domain_is_added():
    two, three = join_datasets(shops()), join_datasets(shops() | {"games": dataset("games", ["u 1", "y 9"])})
    assert list(three.items.item_id)[:4] == list(two.items.item_id)
    assert set(told(two)) < set(told(three))


def test_users_can_be_separate_and_items_shared():
    joined = join_datasets(shops(), share_users=False, share_items=True)
    assert list(joined.users.user_id) == [
        *("books:u", "books:v", "books:w"),
        *("films:u", "films:v", "films:x"),
    ]
    assert dict(zip(joined.items.item_id, joined.items.domain, strict=True)) == {
        "1": "books|films",
        "2": "books",
        "3": "films",
    }
    assert items_of_domain(joined.items, "films").tolist() == [True, False, True]
    assert domain_names(item_domains(joined.items, joined.schema)) == ["books", "films"]


def test_a_shared_item_has_the_first_value_that_is_not_empty():
    one = dataset("a", ["u 1", "u 2"], {"item": ["1", "2"], "title": ["", "Two"]})
    other = dataset("b", ["u 1", "u 3"], {"item": ["1", "3"], "title": ["One", "Three"], "brand": ["X", ""]})
    items = join_datasets({"a": one, "b": other}, share_items=True).items
    assert items[["item_id", "title", "brand"]].to_numpy().tolist() == [
        ["1", "One", "X"],
        ["2", "Two", ""],
        ["3", "Three", ""],
    ]


def test_an_event_that_two_domains_have_is_kept_once_and_counted():
    joined = join_datasets(shops(), share_items=True)
    assert told(joined) == ["u 2 books", "u 1 films", "v 3 films", "v 1 films", "w 2 books", "x 3 films"]
    dropped = [finding for finding in joined.report.findings if finding.action == "dropped"]
    assert [finding.count for finding in dropped] == [2] and joined.report.rows_kept["events"] == 6


def test_times_order_the_events_where_all_have_them():
    books = dataset("books", ["u 1", "u 2"], times=[5, 20])
    timed = join_datasets({"books": books, "films": dataset("films", ["u 1", "x 3"], times=[10, 11])})
    assert told(timed)[:3] == ["u books:1 books", "u films:1 films", "u books:2 books"]
    assert not [f for f in timed.report.findings if "no common clock" in f.what]
    joined = join_datasets({"books": books, "films": dataset("films", ["u 1", "x 3"])})
    assert told(joined)[:3] == ["u books:1 books", "u books:2 books", "u films:1 films"]
    assert [f.count for f in joined.report.findings if "no common clock" in f.what] == [1]


def test_overlaps_count_users_items_and_events():
    (overlap,) = overlaps(shops(), share_items=True)
    assert (overlap.users, overlap.items, overlap.events) == (2, 1, (3, 3))
    assert overlap.user_share == 2 / 3 and overlap.item_share == 1 / 2
    assert "books and films share 2 users (66.7% of the smaller domain; 3 and 3 events) and 1 items" in str(overlap)
    assert overlaps(shops())[0].items == 0 and overlaps(shops(), share_users=False)[0].users == 0


def test_tags_and_further_columns_come_along(tmp_path):
    one = dataset("a", ["u 1", "v 2"], tags=["u 1 good"])
    joined = join_datasets({"a": one, "b": dataset("b", ["u 5", "w 5"])})
    assert joined.tags[["user_id", "item_id", "tag"]].to_numpy().tolist() == [["u", "a:1", "good"]]
    joined.save(tmp_path / "joined")
    assert Dataset.load(tmp_path / "joined").fingerprint == joined.fingerprint


def test_new_events_of_joined_data_get_the_domain_of_their_item():
    joined = join_datasets(shops(), share_items=True)
    came = pd.DataFrame({"user": ["y"] * 4, "item": ["1", "2", "3", "new"], "order": range(4)})
    extended = joined.extend(came, pd.DataFrame({"item": ["new"], "domain": ["films"]}))
    assert [row for row in told(extended) if row.startswith("y")] == ["y 1 ", "y 2 books", "y 3 films", "y new films"]
    assert (
        told(extended)[: len(joined.events)] == told(joined)
        and not extended.report.doubts()[len(joined.report.doubts()) :]
    )
    lines = extended.report.lines()
    assert "  events: 3 repaired: no domain: that of the item" in lines
    assert "  events: 1 kept: no domain, and the item has several or none" in lines
    # Known events that come again are known.
    again = joined.extend(joined.events[["user_id", "item_id", "order"]])
    pd.testing.assert_frame_equal(again.events, joined.events)


def test_new_items_without_a_domain_are_a_doubt():
    joined = join_datasets(shops())
    extended = joined.extend(pd.DataFrame({"user": ["u", "u"], "item": ["films:3", "3"], "order": [0, 1]}))
    assert told(extended)[3:5] == ["u films:3 films", "u 3 "]
    (doubt,) = extended.report.doubts()
    assert doubt.startswith("1 new items have no domain") and "such as 'books:1'" in doubt and doubt.endswith("('3')")


def test_what_cannot_be_joined_is_refused():
    books = shops()["books"]
    with pytest.raises(ConfigError, match="at least two domains to join, got 1"):
        join_datasets({"books": books})
    for name in ("", "a:b", "a|b"):
        with pytest.raises(ConfigError, match="Expected a name of a domain"):
            join_datasets({name: books, "films": books})
    with pytest.raises(
        DataError, match=r"found joined data. Join the data sets that it was made of .* several --source"
    ):
        join_datasets({"a": join_datasets(shops()), "b": books})
    with pytest.raises(DataError, match="its items have a column 'domain' already"):
        join_datasets({"a": sites("a.com", "b.com"), "b": books})
    items = {"item": ["1", "2"], "brand": ["X", "Y"]}
    one, other = (dataset("a", ["u 1", "u 2"], items, fields={"brand": {"kind": kind}}) for kind in ("category", "id"))
    with pytest.raises(DataError, match="a and b declare it differently"):
        join_datasets({"a": one, "b": other})
    with pytest.raises(DataError, match="for every domain or for none"):
        join_datasets({"a": books, "b": dataset("b", ["u 1", "u 1"], repeats="all")})


def users_of_both(n=20):
    """Users a0 .. with two books and three films each, and users of films alone."""
    books = [f"a{u} {i}" for u in range(n) for i in (u % 7, 7 + u % 5)]
    films = [f"{kind}{u} {i}" for kind in "ab" for u in range(n) for i in (u % 6, 6 + u % 4, 10 + u % 3)]
    return join_datasets({"books": dataset("books", books), "films": dataset("films", films)})


@pytest.mark.parametrize("known", [0, 1])
def test_cold_domain_asks_for_what_was_done_there(known):
    joined = users_of_both()
    config = SplitConfig(kind="cold_domain", domain="films", known_events=known, validation_share=0.2, test_share=0.3)
    split = make_split(joined, config, seed=1)
    assert (len(split.validation), len(split.test)) == (4, 6)
    ids = joined.items.item_id.to_numpy()
    trained = set(zip(split.train.user_id, split.train.domain, strict=True))
    for queries in (split.validation, split.test):
        assert ids[queries.candidates].tolist() == [i for i in ids if i.startswith("films:")]
        for user, history, targets in zip(queries.user_ids, queries.history, queries.targets, strict=True):
            own = joined.events[joined.events.user_id == user].item_id.tolist()
            assert [*ids[history], *ids[targets]] == own and len(targets) == 3 - known
            assert (user, "books") in trained and (user, "films") not in trained
    # All books are trained on, and the films of all other users.
    assert len(split.train) == len(joined.events) - 10 * 3


def test_users_without_an_event_to_ask_for_are_not_held_out():
    books, films = [f"u{u} 1" for u in range(10)], [f"u{u} {i}" for u in range(10) for i in range(1 + u % 2)]
    joined = join_datasets({"books": dataset("books", books), "films": dataset("films", films)})
    config = SplitConfig(kind="cold_domain", domain="films", known_events=1, validation_share=0.4, test_share=0.4)
    split = make_split(joined, config, seed=0)
    assert (len(split.validation), len(split.test)) == (2, 2) and len(split.train) == 25 - 2 * 4


def test_cold_domain_needs_joined_data_and_a_domain():
    with pytest.raises(ConfigError, match="needs a column 'domain'"):
        make_split(dataset("a", ["u 1", "u 2"]), SplitConfig(kind="cold_domain", domain="a"), 0)
    with pytest.raises(ConfigError, match="expected one of books, films, found 'music'"):
        make_split(users_of_both(), SplitConfig(kind="cold_domain", domain="music"), 0)
    with pytest.raises(DataError, match="users with events in two domains"):
        config = SplitConfig(kind="cold_domain", domain="films", known_events=5)
        make_split(users_of_both(), config, 0)


def test_a_held_out_user_who_was_trained_on_there_is_found():
    split = make_split(users_of_both(), SplitConfig(kind="cold_domain", domain="films", known_events=1), 0)
    events = split.dataset.events
    # The one film that is in the history and no target.
    more = events[(events.user_id == split.test.user_ids[0]) & (events.domain == "films")][:1]
    leaking = replace(split, train=pd.concat([split.train, more], ignore_index=True))
    with pytest.raises(DataError, match=r"the test user 'a[0-9]+' has trained events there"):
        leaking.check()


def in_films(rows_of_books=(), films=("u 1", "u 2", "u 3", "u 4"), **config):
    """Two domains with a common clock; the films of u at the times 10, 20, ..."""
    books = dataset("books", [row for row, _ in rows_of_books], times=[time for _, time in rows_of_books])
    seen = dataset("films", films, times=[10 * (place + 1) for place in range(len(films))])
    return make_split(join_datasets({"books": books, "films": seen}), SplitConfig(domain="films", **config), seed=1)


def test_the_last_events_of_a_domain_are_held_out_and_later_ones_elsewhere_are_not_trained_on():
    split = in_films([("u 1", 15), ("u 2", 35), ("u 3", 45), ("v 1", 99)])
    items = split.dataset.items.item_id
    (history,), (target,) = split.test.history, split.test.targets
    assert list(items.iloc[target]) == ["films:4"]
    assert list(items.iloc[history]) == ["films:1", "books:1", "films:2", "films:3", "books:2"]
    assert list(items.iloc[split.validation.history[0]]) == ["films:1", "books:1", "films:2"]
    assert set(split.train.item_id) == {"films:1", "books:1", "films:2"}  # v's event is of another item: books:1
    assert split.test.candidates.tolist() == [name.startswith("films") for name in items]


def test_what_is_solved_again_reads_the_events_elsewhere_until_the_test_event():
    split = in_films([("u 1", 15), ("u 2", 35), ("u 3", 45), ("v 1", 99)])
    assert list(split.train_and_validation_events.item_id) == [
        *("films:1", "books:1", "films:2", "films:3", "books:2"),
        "books:1",  # of v
    ]
    test = split.test_events
    with pytest.raises(DataError, match="test event of user 'u' is not later"):
        replace(split, between=split.dataset.events.iloc[[-2]], test_events=test).check()


def test_events_elsewhere_that_are_too_late_to_train_on_are_counted():
    (found,) = in_films([("u 1", 15), ("u 2", 35), ("u 3", 45), ("v 1", 99)]).findings
    assert str(found) == (
        "events: 2 kept: of 4 events in books: not trained on, because they are later than their user's validation "
        "event in films"
    )
    (found,) = in_films([("u 2", 35), ("u 3", 45), ("v 1", 99)]).findings
    assert str(found).endswith("split.kind=leave_random_out trains on them all")
    assert not in_films([("u 1", 15)]).findings
    split = make_split(sites("toys", "toys", "toys", ""), SplitConfig(domain="toys"), seed=1)
    assert "3 events without a domain" in str(split.findings[0])
    assert not in_films([("u 2", 35)], kind="leave_random_out").findings


def test_random_events_of_a_domain_are_held_out():
    split = in_films([("u 1", 15), ("u 2", 35)], kind="leave_random_out")
    assert set(split.test_events.domain) == set(split.validation_events.domain) == {"films"}
    assert {"books:1", "books:2"} <= set(split.train.item_id) and len(split.train) == 4


def test_a_user_needs_three_events_in_the_domain():
    with pytest.raises(DataError, match="too few events"):
        in_films([("u 1", 15), ("u 2", 16), ("u 3", 17)], films=("u 1", "u 2"))


def test_a_split_that_reads_on_is_refused():
    split = in_films([("u 1", 15), ("u 2", 35)])
    late = split.dataset.events[split.dataset.events.item_id == "books:2"]
    with pytest.raises(DataError, match="validation event of user 'u' is not later"):
        replace(split, train=pd.concat([split.train, late])).check()


def sites(*domains):
    """One catalogue with a column ``domain``; three users with an event on each item."""
    items = {"item": [str(i) for i in range(len(domains))], "domain": domains}
    return dataset("sites", [f"{user} {i}" for user in "uvw" for i in items["item"]], items)


def test_a_catalogue_with_a_column_of_that_name_is_not_joined():
    own = sites(*[f"site{i}.com" for i in range(5)])
    split = make_split(own, SplitConfig(), seed=1)
    assert item_domains(split.items, split.schema) is None and domain_names(None) == []


def test_a_domain_of_one_catalogue_may_be_asked_for():
    split = make_split(sites("toys", "toys", "", "beauty", "toys"), SplitConfig(domain="toys"), seed=1)
    assert set(split.test_events.domain) == set(split.validation_events.domain) == {"toys"}
    assert split.test.candidates.tolist() == [True, True, False, False, True]
    assert domain_names(item_domains(split.items, split.schema)) == ["toys", "beauty"]
    with pytest.raises(ConfigError, match="expected one of beauty, toys, found 'music'"):
        make_split(sites("toys", "", "beauty"), SplitConfig(domain="music"), seed=1)


def test_a_new_item_without_a_domain_takes_it_from_its_id_or_the_target_domain():
    items = pd.DataFrame({"item_id": ["old", "toys:1", "2", "a:3", "toys"], "domain": ["", "", "", "music", ""]})
    is_new, names = np.arange(5) > 0, ["toys", "beauty"]
    filled = with_new_domains(items, is_new, names, "beauty")
    assert filled.domain.tolist() == ["", "toys", "beauty", "music", "beauty"]
    with pytest.raises(DataError, match=r"\(toys, beauty\), found none for 2, such as '2'.*as in 'toys:2'"):
        with_new_domains(items, is_new, names, None)


def test_a_domain_is_named_where_data_has_some():
    with pytest.raises(ConfigError, match=r"split\.domain needs a column 'domain'"):
        make_split(shops()["books"], SplitConfig(domain="books"), seed=1)
    with pytest.raises(ConfigError, match="expected one of books, films"):
        make_split(join_datasets(shops()), SplitConfig(domain="toys"), seed=1)
