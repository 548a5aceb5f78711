"""``tfllmrec rules``, on folders of versions without a model."""

import json

import pytest
from plain_versions import made_catalogue, write_version


@pytest.fixture
def shop(tmp_path):
    write_version(tmp_path / "shop", 1, made_catalogue())
    return tmp_path / "shop"


@pytest.fixture
def rules(tmp_path):
    (tmp_path / "rules.yaml").write_text("block:\n  - items: [i1, nope]\nprice: price\nreview:\n  - items: [i2, i3]\n")
    return tmp_path / "rules.yaml"


def test_apply(program, shop, rules):
    told = program("rules", "apply", shop, rules)
    assert told.code == 0, told.err
    assert (
        "version 1: 3 items hidden, 2 of which wait for a review; 27 more are shown to some requests only" in told.out
    )
    assert "rules.yaml, line 2: not in the catalogue: nope" in told.err
    assert "rules.yaml, line 3: 4 items have no value" in told.err


def test_an_old_version_that_the_rules_do_not_fit_is_named(program, shop, rules):
    catalogue = made_catalogue()
    catalogue.fields = catalogue.fields.drop(columns="price")
    write_version(shop, 0, catalogue)
    told = program("rules", "apply", shop, rules)
    assert told.code == 0 and "version 0: " in told.err and "keeps its old rules" in told.err


def test_json(program, shop, rules):
    told = program("rules", "apply", shop, rules, "--dry-run", "--json")
    document = json.loads(told.out)
    assert document["versions"] == [{"version": 1, "hidden": 3, "restricted": 27, "waiting": 2}]
    assert document["counts"][0] == {
        "line": 2, "rule": "block", "items": 1, "not_found": ["nope"], "without_value": 0, "never_shown": 0,
    }  # fmt: skip
    assert json.loads(program("rules", "show", shop, "--json").out)["rules"] == ""  # nothing was changed


def test_a_sponsored_item_that_is_hidden_is_named(program, shop, rules):
    rules.write_text("block:\n  - items: i1\nsponsored:\n  share: 1\n  places:\n    - {item: i1, place: 1}")
    told = program("rules", "apply", shop, rules)
    assert "line 6: 1 items are never shown, because of other rules" in told.err.replace("\n", " ")


def test_show_and_clear(program, shop, rules):
    assert "no rules" in program("rules", "show", shop).out
    program("rules", "apply", shop, rules)
    assert "items: [i1, nope]" in program("rules", "show", shop).out
    assert json.loads(program("rules", "clear", shop, "--json").out)["versions"][0]["hidden"] == 0
    assert "no rules" in program("rules", "show", shop).out


def test_review(program, shop, rules):
    assert "no item waits for a review" in program("rules", "review", shop).err
    program("rules", "apply", shop, rules)
    assert "Item 2" in program("rules", "review", shop).out
    told = program("rules", "review", shop, "--approve", "i2", "--reject", "i3", "--json")
    assert json.loads(told.out) == {"waiting": []}
    assert "2 items hidden, 0 of which wait" in program("rules", "show", shop).out


def test_errors(program, shop, tmp_path):
    (tmp_path / "rules.yaml").write_text("block:\n  - itms: i1\n")
    told = program("rules", "apply", shop, tmp_path / "rules.yaml")
    assert told.code == 2 and "rules.yaml, line 2: block.0.itms is not a key of rules (nearest: 'items')" in told.err
    assert program("rules", "review", shop, "--approve", "nobody").code == 3
    assert program("rules", "show", tmp_path).code == 4


def test_older_versions_are_named(program, shop, rules):
    write_version(shop, 0, made_catalogue(), obeys=False)
    assert "version 0 was exported before there were rules" in program("rules", "apply", shop, rules).err
