from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tfllmrec.columns import ITEM_INDEX, TIMESTAMP, USER_INDEX
from tfllmrec.config import DataConfig, SplitConfig
from tfllmrec.data import Ragged, Split, dataset_from_frames, make_split
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.errors import ConfigError, DataError

KINDS = ["leave_last_out", "global_time", "cold_items", "cold_users", "random"]


def dataset(histories, *, timed=True, items=None, repeats="last"):
    """``histories``: user -> item ids; event number n of the whole log happens at n seconds."""
    rows = [(u, i, 1 + ord(i[0]) % 5) for u, row in histories.items() for i in row]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating"])
    if timed:
        frame["timestamp"] = np.arange(len(frame))
    catalogue = None if items is None else pd.DataFrame({"item_id": items, "title": items})
    return dataset_from_frames(frame, catalogue, config=DataConfig(repeats=repeats, name="made"))


def random_dataset(seed=0, users=40, items=30, repeats="last", timed=True):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, users)
    frame = pd.DataFrame(
        {
            "user": np.repeat(np.arange(users), lengths),
            "item": rng.integers(0, items, lengths.sum()),
            "rating": rng.integers(1, 6, lengths.sum()),
        }
    ).astype({"user": str, "item": str})
    if timed:
        frame["time"] = rng.integers(1, 500, lengths.sum())
    return dataset_from_frames(frame, config=DataConfig(repeats=repeats))


def ids(split, row):
    return [split.dataset.items.item_id[i] for i in row]


def by_user(split, queries):
    """user -> (history, targets) as item ids."""
    rows = zip(queries.user_ids, queries.history, queries.targets, strict=True)
    return {u: (ids(split, h), ids(split, t)) for u, h, t in rows}


def test_leave_last_out():
    data = dataset({"u": ["a", "b", "c", "d"], "v": ["b", "a"], "w": ["c", "a", "b"], "x": ["d"]})
    split = make_split(data, SplitConfig(kind="leave_last_out"), seed=0)
    assert by_user(split, split.test) == {"u": (["a", "b", "c"], ["d"]), "w": (["c", "a"], ["b"])}
    assert by_user(split, split.validation) == {"u": (["a", "b"], ["c"]), "w": (["c"], ["a"])}
    # Users with fewer than 3 events are for training only.
    assert list(zip(split.train.user_id, split.train.item_id, strict=True)) == [
        *(("u", "a"), ("u", "b"), ("v", "b"), ("v", "a"), ("w", "c"), ("x", "d"))
    ]
    assert by_user(split, split.train_queries()) == {
        "u": (["a", "b"], []),
        "v": (["b", "a"], []),
        "w": (["c"], []),
        "x": (["d"], []),
    }
    assert split.test.ratings[0].tolist() == [1 + ord("a") % 5, 1 + ord("b") % 5, 1 + ord("c") % 5]


def test_auto_depends_on_whether_the_data_is_ordered():
    histories = {"u": ["a", "b", "c"], "v": ["a", "b", "c"]}
    assert make_split(dataset(histories), SplitConfig(), 0).kind == "leave_last_out"
    assert make_split(dataset(histories, timed=False), SplitConfig(), 0).kind == "random"


def test_leave_last_out_without_order_is_refused():
    with pytest.raises(DataError, match="order"):
        make_split(dataset({"u": ["a", "b", "c"]}, timed=False), SplitConfig(kind="leave_last_out"), 0)


def test_global_time():
    # Ten events at 0 to 9 s; the last tenth is the test (9 s on), the two tenths before that the validation (7 s on).
    data = dataset({"u": ["a", "b", "c"], "v": ["a", "b", "c", "d"], "w": ["a", "b", "c"]})
    order = {"u": [0, 7, 9], "v": [1, 2, 3, 4], "w": [5, 6, 8]}
    events = data.events.copy()
    events[TIMESTAMP] = np.concatenate([order[u] for u in ("u", "v", "w")]).astype(float)
    split = make_split(
        replace(data, events=events), SplitConfig(kind="global_time", validation_share=0.2, test_share=0.1), 0
    )
    assert split.train[TIMESTAMP].max() == 6
    assert by_user(split, split.validation) == {"u": (["a"], ["b"]), "w": (["a", "b"], ["c"])}
    assert by_user(split, split.test) == {"u": (["a", "b"], ["c"])}


def test_global_time_leaves_out_users_of_whom_nothing_was_known():
    data = dataset({"u": ["a", "b"], "v": ["a", "b"], "w": ["a", "b"]})
    events = data.events.copy()
    events[TIMESTAMP] = [0.0, 3.0, 1.0, 5.0, 4.0, 6.0]  # w begins after train ends
    split = make_split(
        replace(data, events=events), SplitConfig(kind="global_time", validation_share=0.34, test_share=0.33), 0
    )
    assert by_user(split, split.validation) == {"u": (["a"], ["b"])}
    assert by_user(split, split.test) == {"v": (["a"], ["b"]), "w": (["a"], ["b"])}


def test_global_time_needs_times():
    with pytest.raises(DataError, match="6 of 6 events of made have no time"):
        make_split(
            dataset({"u": ["a", "b", "c"], "v": ["a", "b", "c"]}, timed=False), SplitConfig(kind="global_time"), 0
        )


def test_cold_items_are_nowhere_but_in_their_targets():
    data = random_dataset()
    split = make_split(data, SplitConfig(kind="cold_items", validation_share=0.1, test_share=0.2), seed=3)
    tested, validated = (set(q.targets.values) for q in (split.test, split.validation))
    active = data.events[ITEM_INDEX].nunique()
    assert (split.train_counts == 0).sum() == round(0.1 * active) + round(0.2 * active)
    assert tested and validated and not tested & validated
    assert not (tested | validated) & set(split.train[ITEM_INDEX])
    own = split.train_queries()
    history = dict(zip(own.user_ids, own.history, strict=True))
    for user, row in zip(split.test.user_ids, split.test.history, strict=True):
        assert row.tolist() == history[user].tolist()


def test_cold_users_are_not_in_train():
    data = random_dataset()
    split = make_split(data, SplitConfig(kind="cold_users", validation_share=0.2, test_share=0.2), seed=3)
    counts = np.bincount(data.events[USER_INDEX])
    enough = int((counts >= 2).sum())
    assert len(split.test) == len(split.validation) == round(0.2 * enough)
    held_out = set(split.test.user_ids) | set(split.validation.user_ids)
    assert len(held_out) == 2 * round(0.2 * enough)
    assert not held_out & set(split.train.user_id)
    for user, history, target in zip(split.test.user_ids, split.test.history, split.test.targets, strict=True):
        assert [*history, *target] == data.events[ITEM_INDEX][data.events.user_id == user].tolist()


def test_random_takes_two_events_of_each_user_that_has_three():
    data = random_dataset(timed=False)
    split = make_split(data, SplitConfig(kind="random"), seed=1)
    counts = np.bincount(data.events[USER_INDEX])
    assert len(split.test) == len(split.validation) == (counts >= 3).sum()
    assert len(split.train) == len(data.events) - 2 * (counts >= 3).sum()
    again, other = (make_split(data, SplitConfig(kind="random"), seed) for seed in (1, 2))
    assert again.test.targets.values.tolist() == split.test.targets.values.tolist()
    assert other.test.targets.values.tolist() != split.test.targets.values.tolist()
    # Not simply the last ones.
    last = data.events.groupby(USER_INDEX)[ITEM_INDEX].last()
    tested = {u: t[0] for u, t in zip(split.test.user_ids, split.test.targets, strict=True)}
    assert any(tested[u] != last[i] for i, u in enumerate(data.users.user_id) if u in tested)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("repeats", ["last", "all"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_event_is_used_twice(kind, repeats, seed):
    """The slow way: lists of events, one at a time."""
    data = random_dataset(seed, users=60, repeats=repeats)
    split = make_split(data, SplitConfig(kind=kind, validation_share=0.2, test_share=0.2), seed)
    for queries in (split.validation, split.test):
        for user, history, targets in zip(queries.user_ids, queries.history, queries.targets, strict=True):
            own = data.events[ITEM_INDEX][data.events.user_id == user].tolist()
            for item in [*history, *targets]:
                own.remove(item)  # ValueError where an event would be used a second time
            assert len(history) and len(targets)
    used = [tuple(e) for e in split.train[[USER_INDEX, ITEM_INDEX]].to_numpy()]
    for queries in (split.validation, split.test):
        for user, targets in zip(queries.user_ids, queries.targets, strict=True):
            used += [(data.users.user_id.tolist().index(user), item) for item in targets]
    left = [tuple(e) for e in data.events[[USER_INDEX, ITEM_INDEX]].to_numpy()]
    for event in used:
        left.remove(event)
    assert split.train.index.tolist() == list(range(len(split.train)))


def test_strata():
    # Training events: a 3, b 2, c 2, d 1, e 0, f 0 of N = 6; users u to x keep their last two events back.
    data = dataset(
        {"u": ["a", "b", "c", "e", "f"], "v": ["a", "c", "b", "e", "f"], "w": ["a", "d", "e", "f"]},
        items=["a", "b", "c", "d", "e", "f"],
    )
    split = make_split(data, SplitConfig(), 0)
    assert split.train_counts.tolist() == [3, 2, 2, 1, 0, 0]
    assert split.train_counts.dtype == np.int64
    strata = split.strata(head_share=1 / 3)
    # round(6 / 3) = 2 items: a, and of b and c, which tie, the one with the smaller index: b.
    assert strata["head"].tolist() == [True, True, False, False, False, False]
    assert strata["tail"].tolist() == [False, False, True, True, True, True]
    assert strata["cold"].tolist() == [False, False, False, False, True, True]
    # A share beyond the items with events does not make cold items popular.
    assert split.strata(0.9)["head"].tolist() == [True, True, True, True, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_events(kind):
    data = dataset({"u": ["a", "b"]})
    with pytest.raises(DataError, match=f"too few events for a {kind} split: 1 users and 2 events"):
        make_split(data, SplitConfig(kind=kind), 0)


def test_shares_that_leave_nothing():
    with pytest.raises(ConfigError, match=r"validation_share 0.5 and test_share 0.5"):
        make_split(random_dataset(), SplitConfig(kind="cold_users", validation_share=0.5, test_share=0.5), 0)


def with_target(queries, targets):
    return replace(queries, targets=Ragged.from_rows(targets, np.int64))


def with_history(queries, rows):
    history = Ragged.from_rows(rows, np.int64)
    ratings = Ragged(np.full(len(history.values), np.nan, np.float32), history.offsets)
    return replace(queries, history=history, exclude=history, fields={RATING_KEY: ratings})


def leaking(kind, timed=True):
    data = random_dataset(5, users=30, items=40, timed=timed)
    return make_split(data, SplitConfig(kind=kind, validation_share=0.2, test_share=0.2), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_check_finds_a_test_event_in_train(kind):
    split = leaking(kind)
    user = split.dataset.users.user_id.tolist().index(split.test.user_ids[0])
    events = split.dataset.events
    leak = events[(events[USER_INDEX] == user) & (events[ITEM_INDEX] == split.test.targets[0][0])]
    leaky = replace(split, train=pd.concat([split.train, leak], ignore_index=True))
    with pytest.raises(DataError, match=rf"The {kind} split of frames leaks: an event is used by two"):
        leaky.check()


@pytest.mark.parametrize("kind", KINDS)
def test_check_finds_a_target_in_its_own_history(kind):
    split = leaking(kind)
    rows = [[*h, t[0]] for h, t in zip(split.test.history, split.test.targets, strict=True)]
    with pytest.raises(DataError, match="a test target is in its own history"):
        replace(split, test=with_history(split.test, rows)).check()


@pytest.mark.parametrize("kind", ["leave_last_out", "random", "global_time"])
def test_check_finds_a_test_target_in_a_validation_history(kind):
    split = leaking(kind)
    targets = dict(zip(split.test.user_ids, split.test.targets, strict=True))
    rows = [[*h, *targets.get(u, [])] for u, h in zip(split.validation.user_ids, split.validation.history, strict=True)]
    with pytest.raises(DataError, match="a validation history holds a test target"):
        replace(split, validation=with_history(split.validation, rows)).check()


def test_check_finds_a_validation_history_beyond_train_that_nobody_asks_for():
    split = leaking("random")
    targets = dict(zip(split.test.user_ids, split.test.targets, strict=True))
    rows = [[*h, *targets.get(u, [])] for u, h in zip(split.validation.user_ids, split.validation.history, strict=True)]
    unasked = split.test.take(np.arange(0))
    with pytest.raises(DataError, match="a validation history holds an event outside train"):
        replace(split, validation=with_history(split.validation, rows), test=unasked).check()


def test_check_finds_a_test_history_with_held_out_items():
    split = leaking("cold_items")
    targets = dict(zip(split.validation.user_ids, split.validation.targets, strict=True))
    rows = [[*h, *targets.get(u, [])] for u, h in zip(split.test.user_ids, split.test.history, strict=True)]
    with pytest.raises(DataError, match="a test history holds an event outside train"):
        replace(split, test=with_history(split.test, rows)).check()


def test_make_split_checks_itself(monkeypatch):
    checked = []
    monkeypatch.setattr(Split, "check", lambda split: checked.append(split))
    split = make_split(random_dataset(), SplitConfig(), 0)
    assert checked == [split]


def test_check_finds_an_exclusion_that_is_not_the_history():
    split = leaking("random")
    none = Ragged.from_rows([[]] * len(split.test), np.int64)
    with pytest.raises(DataError, match="excludes something else"):
        replace(split, test=replace(split.test, exclude=none)).check()


def test_check_finds_an_unknown_user_and_a_user_twice():
    split = leaking("random")
    strange = np.array(["?", *split.test.user_ids[1:]], dtype=object)
    with pytest.raises(DataError, match=r"unknown user '\?'"):
        replace(split, test=replace(split.test, user_ids=strange)).check()
    with pytest.raises(DataError, match="same user"):
        replace(split, test=split.test.take(np.array([0, 0]))).check()


def test_check_finds_a_target_that_is_not_the_next_event():
    split = leaking("leave_last_out")
    # The last history entry and the target change places: same events, wrong order.
    rows = [[*h[:-1], t[0]] for h, t in zip(split.test.history, split.test.targets, strict=True)]
    targets = [[h[-1]] for h in split.test.history]
    validation = split.validation.take(np.arange(0))
    swapped = replace(split, validation=validation, test=with_target(with_history(split.test, rows), targets))
    with pytest.raises(DataError, match="not the event that comes next"):
        swapped.check()


def test_check_finds_an_event_before_the_end_of_train():
    split = leaking("global_time")
    late = split.dataset.events[TIMESTAMP].max() + 1
    train = split.train.copy()
    train.loc[0, TIMESTAMP] = late
    with pytest.raises(DataError, match="not later than all of train"):
        replace(split, train=train).check()
    # The same for a validation event that happens after the test begins.
    user = split.dataset.users.user_id.tolist().index(split.validation.user_ids[0])
    events = split.dataset.events.copy()
    events.loc[(events[USER_INDEX] == user) & (events[ITEM_INDEX] == split.validation.targets[0][0]), TIMESTAMP] = late
    with pytest.raises(DataError, match="not later than all of validation"):
        replace(split, dataset=replace(split.dataset, events=events)).check()


def test_check_finds_a_cold_item_in_train():
    split = leaking("cold_items")
    extra = split.dataset.events.iloc[[0]].assign(**{ITEM_INDEX: split.test.targets[0][0]})
    data = replace(split.dataset, events=pd.concat([split.dataset.events, extra], ignore_index=True))
    with pytest.raises(DataError, match="a held-out test item is met before"):
        replace(split, dataset=data, train=pd.concat([split.train, extra], ignore_index=True)).check()


def test_check_finds_a_cold_user_in_train():
    split = leaking("cold_users")
    user = split.test.user_ids[0]
    events = split.dataset.events
    train = pd.concat([split.train, events[events.user_id == user].iloc[[0]]], ignore_index=True)
    with pytest.raises(DataError, match=f"the held-out test user '{user}' is met before"):
        replace(split, train=train).check()
