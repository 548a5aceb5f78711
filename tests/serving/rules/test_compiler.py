"""Rules and a catalogue to tables."""

import gzip

import numpy as np
import pytest
from plain_versions import DAY, NOW

from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.serving.rules import compiled
from tfllmrec.serving.rules.compiled import HEADER_BYTES, NO_RULES, SECTIONS, SIZES_BYTES, rules_digest
from tfllmrec.serving.rules.compiler import Decisions, RuledCatalogue, compile_rules
from tfllmrec.serving.rules.document import parse_rules

DIGEST = bytes(range(32))


def done(text, catalogue, **decisions):
    return compile_rules(parse_rules(text, "rules.yaml"), Decisions(**decisions), DIGEST, catalogue)


def sections(result):
    """The sections of a compiled file, read without the library."""
    content = gzip.decompress(result.content)
    sizes = np.frombuffer(content[HEADER_BYTES:][:SIZES_BYTES], "<i8")
    found, at = {}, HEADER_BYTES + SIZES_BYTES
    for (name, kind), size in zip(SECTIONS.items(), sizes, strict=True):
        part = content[at : at + size]
        found[name] = part.decode() if kind is bytes else np.frombuffer(part, kind)
        at += size
    return found


def hidden(text, catalogue, **decisions):
    flags = sections(done(text, catalogue, **decisions))["hidden"]
    return [f"i{number}" for number in np.flatnonzero(flags)]


def where(catalogue, holds):
    rows = zip(catalogue.ids, catalogue.items.categories, *(catalogue.fields[c] for c in catalogue.fields), strict=True)
    return [item for item, *row in rows if holds(*row)]


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ("categories: wine", lambda names, *_: "wine" in names),
        ("categories: [toys, news]", lambda names, *_: "toys" in names or "news" in names),
        ("where: {price: {above: 10}}", lambda _, price, *__: price > 10),
        ("where: {price: {at_least: 3, below: 10}}", lambda _, price, *__: 3 <= price < 10),
        ("where: {price: {missing: true}}", lambda _, price, *__: price != price),
        ("where: {brand: Acme}", lambda _, __, ___, brand, *____: brand == "Acme"),
        ("where: {brand: {not: [Acme, Best]}}", lambda _, __, ___, brand, *____: brand in ("Core", "")),
        ("where: {brand: {missing: false}}", lambda _, __, ___, brand, *____: brand != ""),
        ("where: {tags: big}", lambda *row: "big" in row[-1]),
        ("where: {released: {below: 2025-12-20}}", lambda _, __, released, *___: released < NOW - 12 * DAY),
        ("categories: wine\n    where: {brand: Best}", lambda *row: row[3] == "Best" and "wine" in row[0]),
    ],
)  # fmt: skip
def test_a_block_hides_what_it_selects(catalogue, rule, holds):
    expected = where(catalogue, holds)
    assert 0 < len(expected) < 30
    assert hidden(f"block:\n  - {rule}", catalogue) == expected


def test_items_by_id_and_what_was_not_found(catalogue):
    result = done("block:\n  - items: [i3, nope, i5]\n  - categories: [vine]", catalogue)
    assert [(count.line, count.items, count.not_found) for count in result.counts] == [
        (2, 2, ("nope",)), (3, 0, ("vine",)),
    ]  # fmt: skip
    assert result.hidden == 2


def test_stock(catalogue):
    text = "stock: stock.csv"
    stock = {"i1": 0.0, "i2": 3.0, "i4": -1.0, "gone": 0.0}
    assert hidden(text, catalogue, stock=stock) == ["i1", "i4"]
    (count,) = done(text, catalogue, stock=stock).counts
    assert (count.items, count.not_found, count.without_value) == (2, ("gone",), 27)


def test_present_prices(catalogue):
    known = catalogue.fields.price.to_numpy()
    found = done("price: price\nprices: prices.csv", catalogue, prices={"i1": 99.5, "i6": 3, "gone": 1})
    assert np.isnan(known[6])
    expected = np.where(np.isnan(known), np.inf, known)
    expected[[1, 6]] = 99.5, 3
    assert sections(found)["price"].tolist() == expected.tolist()
    assert [(count.rule, count.items, count.not_found) for count in found.counts] == [
        ("prices", 2, ("gone",)), ("price", 30, ()),
    ]  # fmt: skip
    np.testing.assert_array_equal(catalogue.fields.price, known)  # as it was


def test_reviews(catalogue):
    text = "review:\n  - items: [i1, i2, i3]\n  - new: true"
    seen = [f"i{i}" for i in range(28)]  # 28 and 29 are new
    result = done(text, catalogue, seen=seen, approved=["i2"], rejected=["i3"])
    assert hidden(text, catalogue, seen=seen, approved=["i2"], rejected=["i3"]) == ["i1", "i3", "i28", "i29"]
    assert result.waiting == [("i1", "Item 1"), ("i28", "Item 28"), ("i29", "Item 29")]
    assert hidden("block:\n  - items: i0\n" + text, catalogue, seen=seen, approved=["i0", "i1"])[0] == "i0"


def test_the_highest_age_counts(catalogue):
    ages = sections(done("minimum_age:\n  - {age: 18, items: [i1, i2]}\n  - {age: 16, items: [i2, i3]}", catalogue))
    assert ages["minimum_age"][:4].tolist() == [0, 18, 18, 16]


def test_regions_of_several_rules_are_those_that_all_permit(catalogue):
    text = "regions:\n  - {only: [DE, at], items: [i1, i2]}\n  - {except: [AT], items: [i2, i3]}"
    found = sections(done(text, catalogue))
    names = found["region_names"].split("\n")
    table = found["region_table"].reshape(-1, 2 + len(names))
    permitted = [table[found["region_set"][item]].tolist() for item in range(4)]
    assert names == ["DE", "AT"]
    # Without a region, elsewhere, DE, AT.
    assert permitted == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0], [0, 1, 1, 0]]


def test_items_that_no_request_can_be_shown_are_hidden_and_counted(catalogue):
    dated = [item for item, time in zip(catalogue.ids, catalogue.fields.released, strict=True) if time == time][:2]
    text = (
        "block:\n  - items: i1\n"
        "regions:\n  - {only: DE, items: [i2, i3]}\n  - {only: AT, items: [i3, i4]}\n  - {except: DE, items: i2}\n"
        f"fresh:\n  - {{field: released, days: 9, items: {dated}}}\n"
        "sponsored:\n  share: 1\n  places:\n    - {item: i1, place: 1}\n    - {item: i5, place: 2}"
    )
    result = done(text, catalogue)
    assert [(count.line, count.never_shown) for count in result.counts] == [
        (2, 0), (4, 0), (5, 1), (6, 1), (8, 0), (12, 1), (13, 0),
    ]  # fmt: skip
    assert np.flatnonzero(sections(result)["hidden"]).tolist() == [1, 2, 3] and result.hidden == 3


def test_fresh_periods_without_a_common_day_hide_an_item(catalogue):
    fields = catalogue.fields.assign(again=catalogue.fields.released + 10 * DAY)
    twice = RuledCatalogue(catalogue.items, fields, {**catalogue.kinds, "again": "time"})
    dated = int(np.flatnonzero(fields.released.notna())[0])
    text = f"fresh:\n  - {{field: released, days: 9, items: i{dated}}}\n  - {{field: again, items: i{dated}}}"
    assert hidden(text, twice) == [f"i{dated}"]
    assert [count.never_shown for count in done(text, twice).counts] == [0, 1]
    assert done(text.replace("9", "11"), twice).hidden == 0


def test_regions_are_bounded(catalogue):
    names = ", ".join(f"r{number}" for number in range(1001))
    with pytest.raises(ConfigError, match="line 1: expected at most 1,000 regions, found 1,001"):
        done(f"regions:\n  - {{only: [{names}], items: i1}}", catalogue)


def test_fresh(catalogue):
    found = sections(done("fresh:\n  - {field: released, days: 30, categories: news}", catalogue))
    released = catalogue.fields.released.to_numpy()
    for item, names in enumerate(catalogue.items.categories):
        if "news" not in names:
            assert (found["shown_from"][item], found["shown_until"][item]) == (-np.inf, np.inf)
        elif np.isnan(released[item]):
            assert found["hidden"][item] == 1
        else:
            assert found["shown_until"][item] == found["shown_from"][item] + 30 * DAY == released[item] + 30 * DAY


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("price: prise", "line 1: the items have no field 'prise' (nearest: 'price'); expected one of price, released"),
        ("price: brand", "line 1: expected a field of kind number, found 'brand' of kind category"),
        ("fresh:\n  - field: price", "line 2: expected a field of kind time, found 'price' of kind number"),
        ("block:\n  - where: {brand: {above: 3}}", "line 2: expected a number or a time to compare, found the"),
        ("block:\n  - where:\n      price: cheap", "line 3: expected a number, found 'cheap'"),
        ("block:\n  - where: {released: {above: soon}}", "line 2: expected an ISO date, such as 2026-12-01"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_catalogue_is_an_error_with_its_line(catalogue, text, said):
    with pytest.raises(ConfigError) as error:
        done(text, catalogue)
    assert f"rules.yaml, {said}" in str(error.value)


def test_a_catalogue_of_ids_alone(catalogue):
    bare = RuledCatalogue(catalogue.items[["item_id", "title"]], catalogue.fields[[]], {})
    assert hidden("block:\n  - items: i4", bare) == ["i4"]
    with pytest.raises(ConfigError, match="expected one of none: the catalogue has only"):
        done("price: price", bare)


def test_the_size_is_bounded(catalogue, monkeypatch):
    monkeypatch.setattr(compiled, "MOST_BYTES", 100)
    with pytest.raises(ConfigError, match="bytes; expected 100 at most"):
        done("block:\n  - items: i4", catalogue)


def test_a_file_says_what_it_was_compiled_from(catalogue, tmp_path):
    path = tmp_path / "rules.bin"
    content = done("block:\n  - items: i4", catalogue).content
    path.write_bytes(content)
    assert rules_digest(path) == DIGEST
    path.write_bytes(NO_RULES)
    assert rules_digest(path) is None
    for damaged in (b"", b"no", content[:50], content[:-1], gzip.compress(gzip.decompress(content)[:-1])):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="requests fail until"):
            rules_digest(path)
