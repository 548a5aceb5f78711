"""Rules files: what they may say, and errors with the line at fault."""

import json

import pytest

from tfllmrec.errors import ConfigError
from tfllmrec.serving.rules.document import parse_rules, seconds_of

WHOLE = """\
block:
  - items: [007, A17]
  - categories: Weapons
    where: {brand: [Acme, Best], price: {above: 10, at_most: 20}}
stock: stock.csv
price: price
prices: {A17: 9.5}
minimum_age:
  - {age: 18, categories: [Wine]}
regions:
  - {only: [DE, AT], items: [C9]}
  - {except: [US], where: {brand: {not: Acme}}}
fresh:
  - {field: released, days: 30}
sponsored:
  share: 0.2
  places:
    - {item: A17, place: 3, from: 2026-12-01, until: 2026-12-24T18:00, context: {device: phone}}
review:
  - new: true
"""


def test_reads_every_kind_of_rule():
    rules = parse_rules(WHOLE, "rules.yaml")
    document = rules.document
    assert document.block[0].items == ["007", "A17"]  # an id is not a number in base 8
    assert document.block[1].categories == ["Weapons"]
    assert document.block[1].where["brand"].is_ == ["Acme", "Best"]
    assert document.block[1].where["price"].above == "10"
    assert document.price == "price" and document.prices == {"A17": 9.5}
    assert document.minimum_age[0].age == 18
    assert document.regions[1].except_ == ["US"] and document.regions[1].where["brand"].is_not == ["Acme"]
    assert document.fresh[0].days == 30 and document.fresh[0].is_empty
    (place,) = document.sponsored.places
    assert place.until - place.since == 23 * 86_400 + 18 * 3600
    assert document.review[0].new is True
    assert rules.line("sponsored", "places", 0) == 18
    assert rules.line("block", 1, "where", "price", "above") == 4


def test_json_says_the_same():
    text = json.dumps({"block": [{"items": ["007"]}], "stock": {"A": 0, "B": 2.5}, "review": [{"new": True}]}, indent=1)
    document = parse_rules(text, "rules.json").document
    assert document.block[0].items == ["007"] and document.stock == {"A": 0, "B": 2.5} and document.review[0].new


def test_times():
    assert seconds_of("1970-01-02") == 86_400 == seconds_of("1970-01-02T01:00+01:00") == seconds_of("86400")
    with pytest.raises(ValueError):
        seconds_of("soon")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected rules such as block or stock, found an empty file"),
        ("- block", "expected rules such as block or stock"),
        ("block:\n  - itmes: [a]", "line 2: block.0.itmes is not a key of rules (nearest: 'items')"),
        ("block:\n  - {}", "line 2: block.0: expected items, categories or where"),
        ("block:\n  - items: []", "line 2: block.0.items: expected"),
        ("price: price\nminimum_age:\n  - {age: 0, items: a}", "line 3: minimum_age.0.age: expected greater than"),
        ("minimum_age:\n  - {items: a}", "line 2: minimum_age.0: expected the key 'age', which is missing"),
        (
            "regions:\n  - items: a\n    only: [DE]\n    except: [US]",
            "line 2: regions.0: expected either only or except",
        ),
        ('regions:\n  - {items: a, only: ["D\\nE"]}', "line 2: regions.0.only: expected texts of one line"),
        ("fresh:\n  - {field: released, days: -1}", "line 2: fresh.0.days: expected greater than 0"),
        (
            "block:\n  - items: a\nprices: prices.csv",
            "line 3: prices: expected the key 'price', too: the name of the field whose values",
        ),
        ("sponsored: {share: 2, places: [{item: a, place: 1}]}", "line 1: sponsored.share: expected less than or"),
        ("sponsored:\n  share: 1\n  places:\n    - {item: a, place: 0}", "line 4: sponsored.places.0.place: expected"),
        (
            "sponsored:\n  share: 1\n  places:\n    - item: a\n      place: 1\n      from: soon",
            "line 6: sponsored.places.0.from: expected an ISO date",
        ),
        (
            "sponsored:\n  share: 1\n  places:\n    - {item: a, place: 1, from: 2026-12-24, until: 2026-12-01}",
            "line 4: sponsored.places.0: expected 'from' to be earlier than 'until'",
        ),
        ("review:\n  - new: false", "line 2: review.0: expected new: true, items, categories or where"),
        ("block:\n  - items: [a\nstock: 1", "line 3"),
        ("block:\n  - where: {brand: {}}", "line 2: block.0.where.brand: expected a value, or one of is"),
        ("stock: {a: many}", "line 1: stock.a: expected a valid number"),
        ("block: x\nblock: y", "line 2"),
    ],
)
def test_errors_name_the_line(text, said):
    with pytest.raises(ConfigError) as error:
        parse_rules(text, "rules.yaml")
    assert str(error.value).startswith("rules.yaml") and said in str(error.value)


def test_every_wrong_key_is_told():
    with pytest.raises(ConfigError) as error:
        parse_rules("blok: []\nprices: x", "rules.yaml")
    assert len(str(error.value).splitlines()) == 2


def test_a_long_list_belongs_into_a_table():
    text = "block:\n  - items: [" + ", ".join(f"i{i}" for i in range(21_000)) + "]"
    with pytest.raises(ConfigError, match="put long lists into a table"):
        parse_rules(text, "rules.yaml")
