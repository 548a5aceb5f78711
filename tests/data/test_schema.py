import json

import numpy as np
import pandas as pd
import pytest

from tfllmrec.config import DataConfig, FieldConfig, SplitConfig
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.data.dataset import Dataset
from tfllmrec.data.queries import Ragged
from tfllmrec.data.schema import UNKNOWN_CODE, Field, Schema, infer_schema
from tfllmrec.errors import ConfigError


def events(n=60, **columns):
    """Six users with ten events each, one a day; ``columns`` are functions of the event's number."""
    frame = {
        "user": [f"u{i // 10}" for i in range(n)],
        "item": [f"i{i % 10}" for i in range(n)],
        "time": [1.6e9 + 86_400 * i for i in range(n)],
    }
    return pd.DataFrame({**frame, **{name: [of(i) for i in range(n)] for name, of in columns.items()}})


def schema_of(frame, items=None, users=None, **fields):
    config = DataConfig(fields={name: FieldConfig(**known) for name, known in fields.items()})
    return dataset_from_frames(frame, items, users, config).schema


KINDS = [
    ("colour", lambda i: ["red", "green", "blue"][i % 3], "category"),
    ("shelf", lambda i: i % 24, "category"),
    ("length_cm", lambda i: i / 7, "number"),
    ("weight_g", lambda i: 1000 + 17 * i, "number"),
    ("parcel", lambda i: f"{i:05d}", "id"),
    ("order_id", lambda i: 1000 + i, "id"),
    ("ZIPCODE", lambda i: 10001 + 17 * i, "id"),
    ("ean", lambda i: 4006381333900 + i, "id"),
    ("city", lambda i: i, "category"),
    ("note", lambda i: f"a note of several words, number {i}", "text"),
    ("hash", lambda i: f"{i:032x}", "id"),
    ("shipped", lambda i: f"2021-03-{1 + i % 28:02d}", "time"),
    ("look", lambda i: [0.1 * i, 0.5, -1.0], "vector"),
    ("written", lambda i: f"[{0.25 * i}, 1.5, 2]", "vector"),
    ("sizes", lambda i: [1, 2, 3 + i], "text"),  # whole numbers may be ids
]


@pytest.mark.parametrize(("name", "of", "kind"), KINDS, ids=[name for name, _, _ in KINDS])
def test_kinds_follow_from_the_values(name, of, kind):
    assert {f.name: f.kind for f in schema_of(events(**{name: of}))}[name] == kind


def test_a_field_belongs_to_its_table_and_a_context_to_the_request():
    schema = schema_of(
        events(device=lambda i: f"d{i % 2}", isWeekend=lambda i: i % 2, dwell=lambda i: i / 3, kind=lambda i: "view"),
        pd.DataFrame({"item": [f"i{i}" for i in range(10)], "year": np.arange(1990, 2000), "title": "some words"}),
        pd.DataFrame({"user": [f"u{i}" for i in range(6)], "age": np.arange(6) + 20.5}),
    )
    assert [field.key for field in schema] == [
        "event.dwell", "event.kind", "event.rating", "request.device", "request.isWeekend", "request.timestamp_s",
        "user.age", "item.title", "item.year",
    ]  # fmt: skip
    assert [f.key for f in schema.of_query()] == [
        "request.device", "request.isWeekend", "request.timestamp_s", "user.age",
    ]  # fmt: skip
    assert schema["event.device"].vocabulary == schema["request.device"].vocabulary == ("d0", "d1")
    with pytest.raises(KeyError, match=r"user\.size: expected one of event\.dwell"):
        schema["user.size"]


@pytest.mark.parametrize("owner", ["request", "event"])
def test_usual_names_say_whether_a_value_is_known_before_the_event(owner):
    names = {
        "request": "day_of_week DayOfWeek time-of-day timezone tz is_mobile isMobile user_agent UserAgent screen tab "
        "screen_name page_type lat user_lng search_query searchTerm utm_source Week local_time city",
        "event": "dwell screen_time tab_count page_views section keyword watched_on_mobile delivery_day agent",
    }[owner].split()
    frame = events(**{name: lambda i: "ab"[i % 2] for name in names})
    assert {field.name: field.owner for field in schema_of(frame) if field.name in names} == dict.fromkeys(names, owner)


def test_a_line_says_what_requests_cannot_have():
    frame = events(dwell=lambda i: i % 5, device=lambda i: "ab"[i % 2], kind=lambda i: ["view", "buy"][i % 2])
    assert schema_of(frame).notes == [
        "the context of a request cannot have these columns, because they are known only after the event: dwell. If "
        "one is known before, set data.fields.NAME.owner=request"
    ]
    assert schema_of(frame, dwell={"owner": "request"}).notes == []


def test_a_column_whose_name_another_one_took_is_no_context():
    deeds = schema_of(events(kind=lambda i: f"deed {i}"))  # not the kinds of events, so not "kind"
    assert [field.key for field in deeds if field.name.startswith("source")] == ["event.source_kind"]
    assert schema_of(events(source=lambda i: "ab"[i % 2]))["request.source"]


def test_settings_come_before_what_is_recognised():
    frame = events(device=lambda i: f"d{i % 2}", dwell=lambda i: i % 5)
    dwell = {"owner": "request", "kind": "number", "default": "3"}
    schema = schema_of(frame, device={"owner": "event"}, dwell=dwell)
    assert {f.key: f.kind for f in schema} == {
        "event.device": "category", "event.rating": "number", "request.dwell": "number", "request.timestamp_s": "time",
    }  # fmt: skip
    assert schema["request.dwell"].encode(["", "4"]).tolist() == [3, 4]
    assert "event.device" not in {f.key for f in schema_of(frame, device={"use": False})}


def test_a_field_may_be_named_as_it_is_printed():
    tables = {
        "frame": events(device=lambda i: f"d{i % 2}", dwell=lambda i: i % 5),
        "items": pd.DataFrame({"item": [f"i{i}" for i in range(10)], "device": ["x", "y"] * 5}),
        "users": pd.DataFrame({"user": [f"u{i}" for i in range(6)], "age": np.arange(6) + 20.5}),
    }
    printed = {field.key for field in schema_of(**tables)}
    for key in printed - {"event.rating"}:
        kept = {field.key for field in schema_of(**tables, **{key: {"use": False}})}
        assert kept == printed - {key}
    # A column of the events has either owner in its name.
    assert printed - {f.key for f in schema_of(**tables, **{"event.device": {"use": False}})} == {"request.device"}
    assert schema_of(**tables, **{"event.dwell": {"owner": "request"}})["request.dwell"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dwel": {}}, r"data.fields.dwel: no table has such a column \(nearest: 'dwell'\)"),
        ({"colour": {"kind": "number"}}, "data.fields.colour.kind: expected numbers, found 'red'"),
        ({"colour": {"kind": "vector"}}, "data.fields.colour.kind: expected vectors of one length"),
        ({"colour": {"default": "1"}, "dwell": {"kind": "number", "default": "much"}}, "default: expected a number"),
        ({"dwell": {"weights": {"1": 1.0}, "kind": "number"}}, "dwell.weights: expected a category"),
        ({"dwell": {"weighs": True, "owner": "request"}}, "dwell.weighs: .*known after the event .* of the requests"),
        ({"dwell": {"weighs": True, "kind": "category"}}, "dwell.weighs: expected a number, .* found a category"),
        ({"dwell": {"weighs": True, "use": False}}, "data.fields.dwell: expected either weighs=true or use=false"),
        ({"empty": {"weighs": True}}, "empty.weighs: expected numbers above 0, found none in the training events"),
        ({"colour": {"weighs": True}}, "data.fields.colour.weighs: expected numbers above 0, found 'red'"),
        ({"zero": {"weighs": True}}, "data.fields.zero.weighs: expected numbers above 0, found '0'"),
        ({"age": {"weighs": True}}, "age.weighs: .* of the users"),
        ({"rating": {"weighs": True}}, "rating.weighs: expected .* no rating, found 'rating'"),
        ({"dwell": {"weighs": True}, "stay": {"weighs": True}}, "one column that weighs events, found dwell, stay"),
        ({"rating": {"use": False}}, "data.fields.rating: ratings are numbers of events"),
        ({"rating": {"kind": "category"}}, "data.fields.rating: ratings are numbers of events"),
        (
            {"age": {"owner": "request"}},
            "data.fields.age.owner: expected a column of the events, found one of the user",
        ),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_when_the_data_is_read(fields, message):
    columns = {
        "dwell": lambda i: i,
        "stay": lambda i: i,
        "zero": lambda i: 0,
        "empty": lambda i: "",
        "rating": lambda i: i % 5,
    }
    frame = events(**columns, colour=lambda i: "red", kind=lambda i: "view")
    users = pd.DataFrame({"user": ["u1"], "age": [30]})
    config = DataConfig(fields={name: FieldConfig(**known) for name, known in fields.items()})
    with pytest.raises(ConfigError, match=message):
        dataset_from_frames(frame, users=users, config=config)


VECTOR = [0.1, 0.5, -1.0]
ODD_CELLS = [
    *[("dwell", lambda i: i / 7, odd, "number", odd) for odd in ("error", "inf", "1e400", "12 s")],
    ("dwell", lambda i: i / 7, "n/a", "number", None),
    ("hour", lambda i: i % 24, "n/a", "category", None),
    ("views", lambda i: 1000 + 17 * i, "error", "number", "error"),
    ("shipped", lambda i: f"2021-03-{1 + i % 28:02d}", "late", "time", "late"),
    *[("look", lambda i: str(VECTOR), odd, "vector", None) for odd in ("null", "None", "n/a", "[]", "[NaN, NaN, NaN]")],
    *[("look", lambda i: str(VECTOR), odd, "vector", odd) for odd in ("[0.1, 0.5]", "[NaN, 0.5, -1.0]", "none yet")],
    ("look", lambda i: VECTOR, [np.nan, 0.5, -1.0], "vector", "0.5, -1"),
]


@pytest.mark.parametrize(("name", "of", "odd", "kind", "found"), ODD_CELLS, ids=[str(case[2]) for case in ODD_CELLS])
def test_one_odd_cell_does_not_change_the_kind_and_is_reported(name, of, odd, kind, found):
    dataset = dataset_from_frames(events(**{name: lambda i: odd if i == 30 else of(i)}))
    assert {f.name: f.kind for f in dataset.schema}[name] == kind
    findings = [finding for finding in dataset.report.findings if f"column '{name}': not a {kind}" in finding.what]
    assert [(finding.table, finding.count, finding.example) for finding in findings] == (
        [("events", 1, repr(found))] if found else []
    )


def test_repeated_whole_numbers_among_other_values_are_codes():
    made_in = schema_of(events(120, made_in=lambda i: "V" if i == 30 else 1950 + i % 40))["event.made_in"]
    assert made_in.kind == "category" and "V" in made_in.vocabulary


def test_many_odd_cells_change_the_kind_unless_it_is_asked_for():
    frame = events(dwell=lambda i: "error" if i % 10 == 0 else i / 7)
    assert schema_of(frame)["event.dwell"].kind == "id"
    config = DataConfig(fields={"dwell": FieldConfig(kind="number")})
    dataset = dataset_from_frames(frame, config=config)
    counts = [finding.count for finding in dataset.report.findings if "column 'dwell'" in finding.what]
    again = dataset.extend(frame.assign(time=frame["time"] + 1e8, user="new"), config=config)
    counts += [finding.count for finding in again.report.findings if "column 'dwell'" in finding.what]
    assert counts == [6, 6, 1]  # the new ones are counted apart


def test_a_column_of_words_for_nothing_is_neither_numbers_nor_times():
    assert schema_of(events(dwell=lambda i: "unknown"))["event.dwell"].kind == "category"


def test_the_error_names_the_first_vector_of_another_length():
    frame = events(look=lambda i: "[0.3, 0.2]" if i % 10 == 4 else "[0.1, 0.5, -1.0]")
    with pytest.raises(
        ConfigError, match=r"expected vectors of one length, such as \[0.1, 0.2\], found '\[0.3, 0.2\]'"
    ):
        schema_of(frame, look={"kind": "vector"})


@pytest.mark.parametrize("cell", [", ".join(["123"] * 400), "   ".join(["0.1"] * 400)])
def test_a_long_cell_that_is_nearly_a_vector_takes_no_time(cell):
    assert schema_of(events(look=lambda i: f"[{cell}, nan]"))["event.look"].kind != "vector"


def test_vectors_that_are_asked_for_may_be_whole_numbers():
    look = schema_of(events(look=lambda i: [i, 2, 3]), look={"kind": "vector"})["event.look"]
    assert look.width == 3 and look.encode(["[1, 2, 3]"]).tolist() == [[1, 2, 3]]


def test_vectors_are_read_many_at_a_time_in_any_notation(monkeypatch):
    monkeypatch.setattr("tfllmrec.data.schema._NUMBERS", 6)  # three cells
    good = ["[1, 2.5]", " ( -1.;+.5e1 ] ", "3\u00a04", "3\t,4", [1.0, 2.0], np.float32([1, 2]), "1e-50,2"]
    odd = ["", None, "1", "1, 2, 3", "[1,, 2]", "[1, 2,]", "1, nan", "inf, 1", "1e39, 2", "0x1, 2", "[[1, 2]]", "1, x"]
    found = Field("look", "item", "vector", width=2).encode(pd.Series([*odd[:5], *good, *odd[5:]], dtype=object))
    assert found[5:12].tolist() == [[1, 2.5], [-1, 5], [3, 4], [3, 4], [1, 2], [1, 2], [0, 2]]
    assert np.isnan(found[:5]).all() and np.isnan(found[12:]).all() and found.dtype == np.float32


def wide(n=60, width=20, directions=3):
    """Items with vectors that differ in few directions, and hardly in the others."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(n, directions)) @ rng.normal(size=(directions, width)) + 5
    vectors = (vectors + rng.normal(size=(n, width)) * 0.01).astype(np.float32)
    return vectors, pd.DataFrame({"item": [f"i{k}" for k in range(n)], "look": [str(row.tolist()) for row in vectors]})


def test_a_wide_vector_of_items_is_read_by_its_principal_components():
    vectors, items = wide()
    schema = schema_of(events(), items, look={"components": 3})
    look = schema["item.look"]
    assert (look.kind, look.width, look.length) == ("vector", 3, 20) and look.kept > 0.999
    assert look.line() == "item.look: vector of 20 numbers, read by 3 principal components with 100.0% of the variance"
    read = look.encode(items.look)
    centred = vectors - vectors.mean(0)
    expected = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
    assert np.abs(np.corrcoef((read - read.mean(0)).T, expected.T)[:3, 3:]) == pytest.approx(np.eye(3), abs=0.01)
    # A new item is projected alike, also by the schema of a run.
    again = Schema.from_dict(json.loads(json.dumps(schema.as_dict())))["item.look"]
    assert again == look and again.encode([items.look[7]])[0] == pytest.approx(read[7], abs=1e-4)
    assert np.isnan(again.encode(["", "[1, 2, 3]"])).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"look": {"components": 20}}, r"look\.components: expected at most 19 for 60 vectors of 20 numbers, found 20"),
        ({"colour": {"components": 2}}, r"colour\.components: expected a column of the items, found one of the events"),
        ({"title": {"components": 2}}, r"title\.components: expected a vector, found a text"),
    ],
)
def test_components_that_there_are_not_are_refused(asked, message):
    items = wide()[1].assign(title="A film")
    with pytest.raises(ConfigError, match=message):
        schema_of(events(colour=lambda i: "ab"[i % 2]), items, **asked)


def test_a_default_is_one_of_the_values():
    shop = schema_of(events(shop=lambda i: "ab"[i % 2]), shop={"default": "online"})["event.shop"]
    assert shop.vocabulary == ("a", "b", "online") and shop.encode(["", "a"]).tolist() == [4, 2]


def test_times_of_items_have_statistics():
    """As numbers have; those of requests and users come round each day and week."""
    items = pd.DataFrame({"item": ["i0", "i1", "i2", "i3"], "released": ["1970-01-03", "1970-01-02", "", "1970-01-06"]})
    schema = schema_of(events(), items)
    released = schema["item.released"]
    assert (released.kind, released.median) == ("time", 2 * 86_400)
    assert (released.edges[0], released.edges[-1]) == (86_400, 5 * 86_400)
    assert not schema["request.timestamp_s"].edges


def test_values_beyond_the_vocabulary_are_counted(monkeypatch):
    monkeypatch.setattr("tfllmrec.data.schema.MAX_VOCABULARY", 5)
    lines = schema_of(events(shop=lambda i: f"s{i % 9}")).lines()
    assert (
        "event.shop: category, 5 values (s0, s1, s2, s3, s4), the most frequent ones; 4 others count as unknown"
        in lines
    )


def test_values_are_encoded_and_missing_ones_are_the_padding():
    category = Field("colour", "event", "category", vocabulary=("red", "blue"))
    assert category.encode(["blue", "", "pink", "red"]).tolist() == [3, 0, 1, 2]
    assert category.encode(["blue"]).dtype == np.int32 and category.padding == 0 and category.size == 4
    several = Field("genres", "item", "category", vocabulary=("a", "b"), width=2)
    assert several.encode(["b|a", "", "x", "a|b|x"]).tolist() == [[3, 2], [0, 0], [1, 0], [2, 3]]
    number = Field("price", "event", "number")
    np.testing.assert_array_equal(number.encode(["4.5", "", "1.5", "much"]), np.array([4.5, np.nan, 1.5, np.nan], "f4"))
    moment = Field("at", "request", "time")
    np.testing.assert_array_equal(moment.encode(["1970-01-02", ""]), [86_400, np.nan])
    vector = Field("look", "item", "vector", width=2)
    np.testing.assert_array_equal(
        vector.encode(["[1, 2.5]", "", "3 4", "1"]), np.float32([[1, 2.5], [np.nan] * 2, [3, 4], [np.nan] * 2])
    )
    assert Field("note", "event", "text").encode(["a", None]).tolist() == ["a", ""]


def test_statistics_and_vocabulary_are_those_of_the_given_rows():
    frame = events(dwell=lambda i: 1.5 * i, colour=lambda i: "bbac"[i % 4])
    schema = schema_of(frame)
    colour, dwell = schema["event.colour"], schema["event.dwell"]
    assert colour.vocabulary == ("b", "a", "c")
    assert (dwell.median, dwell.spread) == (pytest.approx(1.5 * 29.5), pytest.approx(1.5 * 29.5 / 1.349))
    assert dwell.edges[0] == 0 and dwell.edges[-1] == 1.5 * 59 and len(dwell.edges) == 17


def test_a_few_huge_numbers_move_neither_median_nor_spread_and_equal_ones_still_have_a_spread():
    plain = schema_of(events(dwell=lambda i: 1.5 * i))["event.dwell"]
    wild = schema_of(events(dwell=lambda i: 1.5 * i if i else 1e9))["event.dwell"]
    assert wild.median == pytest.approx(plain.median, rel=0.05) and wild.spread == pytest.approx(plain.spread, rel=0.05)
    mostly = schema_of(events(dwell=lambda i: 0.5 if i else 60.5))["event.dwell"]
    assert mostly.median == 0.5 and mostly.spread == pytest.approx(np.std([60.5] + 59 * [0.5]))


def test_kinds_of_events_have_weights():
    frame = events(kind=lambda i: ["view", "cart", "purchase", "zzz"][i % 4])
    kind = schema_of(frame)["event.kind"]
    assert kind.weights == {"cart": 0.75, "purchase": 1.0, "view": 0.5, "zzz": 0.25}
    codes = kind.encode(["purchase", "", "nod", "view"])
    assert kind.code_weights[codes].tolist() == [1.0, 0.75, 0.25, 0.5]  # a missing kind is as "cart", of four the first
    both = {"kind": {"weights": {"view": 0.1}}, "look": {"weights": {"a": 1.0}}}
    with pytest.raises(ConfigError, match=r"data\.fields: .*"):
        schema_of(frame.assign(look="a", gaze="b"), look={"weights": {"a": 1.0}}, gaze={"weights": {"b": 1.0}})
    other = schema_of(frame.assign(look=["a", "b"] * (len(frame) // 2)), look=both["look"])
    assert other.kind_of_event.name == "look" and other["event.kind"].weights is None
    own = schema_of(frame, kind={"weights": {"view": 0.1, "gift": 0.9}})["event.kind"]
    assert own.weights == {**kind.weights, "view": 0.1, "gift": 0.9}  # which no event of these has
    assert own.code_weights[own.encode(["gift"])].tolist() == [pytest.approx(0.9)]
    assert schema_of(events(kind=lambda i: ["shown", "skip"][i % 2]))["event.kind"].weights is None  # no choice is left


def test_rejections_count_against_an_item():
    kind = schema_of(events(kind=lambda i: ["like", "dislike", "skip", "impression"][i % 4]))["event.kind"]
    assert kind.weights == {"like": 0.75, "dislike": -0.75, "skip": -0.25, "impression": 0.0}
    assert kind.code_weights[kind.encode(["dislike", "new"])].tolist() == [-0.75, 0.25]


def test_a_kind_that_is_not_in_the_data_has_the_weight_that_training_would_give_it():
    data = events(kind=lambda i: ["view", "PURCHASE", "shown"][i % 3])
    kind = schema_of(data, kind={"weights": {"view": 0.1}})["event.kind"]
    spellings = ["View", "purchase", "click", "Dislike", "don't like", "skip", "refund", "like", "new"]
    weights = kind.code_weights[kind.encode(spellings)].tolist()
    assert weights == [pytest.approx(0.1), 1, 0.5, -0.75, -0.75, -0.25, 0, 0.75, 0.25]
    known = schema_of(events(kind=lambda i: spellings[i % 9]), kind={"weights": {"view": 0.1}})["event.kind"]
    assert known.code_weights[known.encode(spellings)].tolist() == weights
    assert (
        kind.encode(["purchase", "Bought", "View"]).tolist() == kind.encode(["PURCHASE", "PURCHASE", "view"]).tolist()
    )
    assert kind.size > kind.encode(["Dislike"])[0] >= kind.size_in_data == 5 and kind.encode(["new"]).tolist() == [
        UNKNOWN_CODE
    ]
    alike = schema_of(events(kind=lambda i: "like"))["event.kind"]
    assert alike.weights is None and alike.encode(["Liked", "dislike"]).tolist() == [2, UNKNOWN_CODE]


def test_a_schema_is_stored_and_read_back():
    schema = schema_of(
        events(dwell=lambda i: i / 3, kind=lambda i: "view", look=lambda i: [0.5, 0.1 * i]),
        pd.DataFrame({"item": ["i1"], "categories": ["a|b"]}),
    )
    assert Schema.from_dict(json.loads(json.dumps(schema.as_dict()))) == schema
    earlier = {"name": "age", "owner": "user", "kind": "number", "mean": 40.0, "deviation": 9.0, "edges": [1.0, 90.0]}
    assert Schema.from_dict([earlier])["user.age"] == Field("age", "user", "number", (), 40.0, 9.0, (1.0, 90.0))


def test_lines_say_what_is_read():
    lines = schema_of(events(device=lambda i: "abcdefg"[i % 7], kind=lambda i: ["view", "cart"][i % 3 == 0])).lines()
    assert "request.device: category, 7 values (a, b, c, d, e, ...)" in lines
    assert "event.kind: category, 2 values (view, cart); weights view 0.5, cart 0.75" in lines
    assert not any("rating" in line for line in lines)  # there are none
    assert "event.rating: number, median 2, spread 1.483" in schema_of(events(rating=lambda i: 1 + i % 3)).lines()


def test_other_columns_of_events_are_kept_counted_in_the_fingerprint_and_saved(tmp_path):
    frame = events(dwell=lambda i: i, colour=lambda i: "red")
    dataset = dataset_from_frames(frame, config=DataConfig(fields={"dwell": FieldConfig(owner="request")}))
    assert list(dataset.events)[8:] == ["colour", "dwell"]
    assert "other columns: dwell, colour" in dataset.report.sources[0]
    other = dataset_from_frames(frame.assign(colour="blue"))
    assert (
        other.fingerprint
        != dataset.fingerprint
        == dataset_from_frames(frame.sample(frac=1, random_state=0)).fingerprint
    )
    dataset.save(tmp_path / "d")
    again = Dataset.load(tmp_path / "d")
    assert again.events.equals(dataset.events) and again.schema == dataset.schema
    assert again.schema["request.dwell"]


def test_users_and_events_may_have_a_column_of_one_name():
    users = pd.DataFrame({"user": [f"u{i}" for i in range(6)], "country": list("ABABAB"), "user_country": "Z"})
    schema = dataset_from_frames(events(country=lambda i: "CD"[i % 2]), users=users).schema
    assert schema["request.country"].vocabulary == ("C", "D") and schema["user.country"].vocabulary == ("A", "B")
    asked = {"user.country": {"use": False}, "country": {"owner": "event"}}
    kept = schema_of(events(country=lambda i: "CD"[i % 2]), users=users, **asked)
    assert [field.key for field in kept if "country" in field.name] == ["event.country", "user.user_country"]


@pytest.mark.parametrize(
    "name",
    [
        *("dwell_time", "watchTime", "time_on_page", "total_time", "delivery_date", "return_date", "review_date"),
        *("page_views", "order_state", "payment_state", "delivered_city", "source_clicks"),
    ],
)
def test_what_is_known_afterwards_is_no_context(name):
    schema = schema_of(events(**{name: lambda i: f"x{i % 3}"}))
    assert [field.owner for field in schema if field.name == name] == ["event"]


@pytest.mark.parametrize("name", ["hour", "userAgentDevice", "city_code", "weather", "query", "source"])
def test_what_is_known_beforehand_is_context(name):
    schema = schema_of(events(**{name: lambda i: f"x{i % 3}"}))
    assert [field.owner for field in schema if field.name == name] == ["request"]


def test_a_cell_is_encoded_as_its_whole_column_is_written():
    """Day and month, and the decimal mark, follow from all rows; a target alone would tell neither."""
    frame = events(
        shown=lambda i: "01/06/2020" if i % 10 == 9 else f"{13 + i % 10}/06/2020",
        price=lambda i: "1,200" if i % 10 == 9 else f"{i},5",
    )
    config = DataConfig(fields={"shown": FieldConfig(owner="request"), "price": FieldConfig(owner="request")})
    split = make_split(dataset_from_frames(frame, config=config), SplitConfig(), seed=1)
    assert set(split.test.fields["request.price"]) == {np.float32(1.2)}
    assert set(split.test.fields["request.shown"]) == {pd.Timestamp("2020-06-01").timestamp()}


def test_queries_carry_the_fields():
    """The request's fields are those of the target event, the history has its own; users' come along."""
    frame = events(device=lambda i: f"d{i % 4}", dwell=lambda i: float(i) / 2, look=lambda i: [0.5 * i, 1.0])
    users = pd.DataFrame({"user": [f"u{i}" for i in range(6)], "age": np.arange(6) + 20.5})
    split = make_split(dataset_from_frames(frame, users=users), SplitConfig(), seed=1)
    queries = split.test
    row = queries.user_ids.tolist().index("u2")  # events 20 to 29; 29 is the target
    device = split.schema["request.device"]
    assert queries.fields["request.device"][row] == device.encode([f"d{29 % 4}"])[0]
    history = queries.fields["event.device"]
    assert isinstance(history, Ragged)
    assert history[row].tolist() == device.encode([f"d{i % 4}" for i in range(20, 29)]).tolist()
    assert queries.fields["event.dwell"][row].tolist() == [i / 2 for i in range(20, 29)]
    assert queries.fields["event.look"][row].tolist() == [[0.5 * i, 1.0] for i in range(20, 29)]
    assert queries.fields["request.timestamp_s"][row] == 1.6e9 + 86_400 * 29
    assert queries.fields["user.age"][row] == 22.5
    train = split.train_queries()
    assert (train.fields["request.device"] == 0).all() and np.isnan(train.fields["request.timestamp_s"]).all()
    inputs = queries.take(np.array([row])).inputs(10, ["event.look", "event.device", "request.device"], length=12)
    assert inputs["event.look"].shape == (1, 12, 2) and np.isnan(inputs["event.look"][0, 9:]).all()
    assert inputs["event.device"][0, 9:].tolist() == [0, 0, 0]


def test_statistics_of_a_split_are_those_of_training():
    """A value that only the test events have is unknown, and moves no median."""
    frame = events(device=lambda i: "last" if i % 10 == 9 else "d", dwell=lambda i: 1e9 if i % 10 == 9 else i / 3)
    split = make_split(dataset_from_frames(frame), SplitConfig(), seed=1)
    assert split.dataset.schema["request.device"].vocabulary == ("d", "last")
    assert split.schema["request.device"].vocabulary == ("d",)
    assert split.schema["event.dwell"].median < 100
    assert (split.test.fields["request.device"] == 1).all()


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (lambda i: f"{i},99 €", True),
        (lambda i: f"$1,{i:03}.50", True),
        (lambda i: f"EUR {i}.50", True),
        (lambda i: f"{i} kg" if i % 2 else f"{i} g", True),
        (lambda i: f"{i} минут", True),
        (lambda i: f"{i}m {i % 60}s", True),
        (lambda i: f"0:{i:02}:07", True),
        (lambda i: f"{i}%" if i % 30 else "n/a", True),
        (lambda i: f"{i % 9} kg", False),  # few values, which are good categories
        (lambda i: f"{i}{'ABCDEFGH'[i % 8]}", False),
        (lambda i: f"A{i}", False),
        (lambda i: f"{i * 7919:09}{'X' if i % 9 == 0 else i % 9}", False),
        (lambda i: f"{i} - {i + 5}", False),
        (lambda i: f"10.0.0.{i}", False),
        (lambda i: f"{i} of them were red", False),
    ],
)
def test_numbers_with_units_are_told(written, told):
    data = dataset_from_frames(events(size=written))
    found = [f for f in data.report.findings if "column 'size': numbers with a unit, so read as" in f.what]
    assert [(f.table, f.action) for f in found] == [("events", "kept")] * told


def test_nothing_is_inferred_twice():
    frame = dataset_from_frames(events(device=lambda i: "a"))
    assert infer_schema(frame.events, frame.items, frame.users) == frame.schema
