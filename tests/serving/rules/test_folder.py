"""Rules of a model's folder: apply, review, clear, and what a new version takes over; without a model."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from plain_versions import made_catalogue, write_version

from tfllmrec import durable
from tfllmrec.durable import locked
from tfllmrec.errors import ConfigError, DataError, ModelError
from tfllmrec.serving.rules.compiled import NO_RULES
from tfllmrec.serving.rules.folder import (
    apply_rules,
    clear_rules,
    read_stored,
    review_items,
    show_rules,
    take_over,
    take_over_again,
)


def silent(line):
    """Takes what an apply tells."""


def applied(shop, text, **given):
    rules = shop.parent / "rules.yaml"
    rules.write_text(text)
    return apply_rules(shop, rules, silent, **given)


def file_of(shop, number):
    return (shop / str(number) / "assets" / "rules.bin").read_bytes()


def test_all_versions_obey_and_clear_undoes_it(shop):
    done = applied(shop, "block:\n  - items: [i1, i33]")
    assert {number: one.hidden for number, one in done.versions.items()} == {1: 1, 2: 2}
    assert [count["not_found"] for count in done.as_dict()["counts"]] == [()]  # of the newest version
    assert len({file_of(shop, 1), file_of(shop, 2), NO_RULES}) == 3
    stored, shown, others = show_rules(shop)
    assert stored.text == "block:\n  - items: [i1, i33]" and shown.newest.hidden == 2 and others == []
    clear_rules(shop)
    assert file_of(shop, 1) == file_of(shop, 2) == NO_RULES
    assert show_rules(shop)[2] == [] and read_stored(shop).name == ""


def test_a_dry_run_and_a_wrong_file_change_nothing(shop):
    applied(shop, "block:\n  - items: [i1]")
    before = {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()}
    assert applied(shop, "block:\n  - items: [i1, i2]", dry_run=True).newest.hidden == 2
    for text in ("block: [", "price: nothing", "", "stock: nothing.csv"):
        with pytest.raises((ConfigError, DataError)):
            applied(shop, text)
    assert {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()} == before


def test_a_table_of_prices(shop):
    (shop.parent / "prices.csv").write_text("item_id,price\ni1,999\ni2,1\nelsewhere,5\n")
    rules = "price: price\nprices: prices.csv\nblock:\n  - where: {price: {above: 500}}"
    done = applied(shop, rules)
    assert done.newest.hidden == 1 and done.newest.counts[0].not_found == ("elsewhere",)
    assert read_stored(shop).prices == {"i1": 999, "i2": 1, "elsewhere": 5}
    version = write_version(shop, 3, made_catalogue(30))
    take_over(shop, version, silent)
    assert show_rules(shop)[1].versions[3].hidden == 1
    assert (
        applied(shop, "price: price\nprices: {i1: 999, i3: 600.5}\n" + rules[rules.index("block") :]).newest.hidden == 2
    )
    clear_rules(shop)
    assert read_stored(shop).prices == {}


def test_a_stock_table(shop):
    (shop.parent / "stock.csv").write_text("item_id,stock\ni1,0\ni2,5\nelsewhere,0\n")
    done = applied(shop, "price: price\nstock: stock.csv")
    assert done.newest.hidden == 1 and done.newest.counts[0].not_found == ("elsewhere",)
    assert read_stored(shop).stock == {"i1": 0, "i2": 5, "elsewhere": 0}
    for table, said in (
        ("item_id,stock\ni1,many\n", "rules.yaml, line 2: Expected a finite number"),
        ("item,left\ni1,0\n", "Expected a column"),
        ("item_id,stock\ni1,0\ni1,3\n", "expected each item once, found 2 rows of 1 items"),
    ):
        (shop.parent / "stock.csv").write_text(table)
        with pytest.raises(DataError, match=said):
            applied(shop, "price: price\nstock: stock.csv")


def test_reviews_and_new_items(shop):
    text = "review:\n  - new: true\n  - where: {price: {above: 20}}"
    dear = [
        item for item, price in zip(made_catalogue(35).ids, made_catalogue(35).fields.price, strict=True) if price > 20
    ]
    done = applied(shop, text)
    assert [item for item, _ in done.newest.waiting] == dear
    assert review_items(shop, approve=dear[:1], reject=dear[1:2]).newest.hidden == len(dear) - 1
    assert [item for item, _ in review_items(shop).newest.waiting] == dear[2:]
    # A version with items that no version had before: these wait; decisions are kept.
    version = write_version(shop, 3, made_catalogue(37))
    take_over(shop, version, silent)
    waiting = [item for item, _ in review_items(shop).newest.waiting]
    assert {"i35", "i36"} <= set(waiting) and not set(dear[:2]) & set(waiting)
    # Applied again, the rules know which items are new; a rejected item may be approved after all.
    assert [item for item, _ in applied(shop, text).newest.waiting] == waiting
    assert review_items(shop, approve=dear[1:2]).newest.hidden == len(waiting)
    with pytest.raises(DataError, match=r"No version .* has the item 'i360' \(nearest"):
        review_items(shop, approve=["i360"])
    with pytest.raises(DataError, match="found 'i1' in both"):
        review_items(shop, approve=["i1"], reject=["i1"])


@pytest.mark.parametrize("between", ["clear", "other rules"])
def test_decisions_on_new_items_survive(shop, between):
    applied(shop, "review:\n  - new: true")
    take_over(shop, write_version(shop, 3, made_catalogue(37)), silent)
    review_items(shop, reject=["i35"])
    clear_rules(shop) if between == "clear" else applied(shop, "block:\n  - items: [i1]")
    done = applied(shop, "review:\n  - new: true")
    assert done.newest.hidden == 2 and [item for item, _ in done.newest.waiting] == ["i36"]


def test_a_new_version_takes_the_rules_over(shop):
    applied(shop, "block:\n  - items: [i1, i36]")
    version = write_version(shop, 3, made_catalogue(37))
    told = []
    before = take_over(shop, version, told.append)
    assert told == ["rules: rules.yaml hides 2 items, and 0 from some requests"]
    assert gzip.decompress(file_of(shop, 3)) and show_rules(shop)[2] == []
    old = file_of(shop, 3)
    take_over_again(shop, version, before, silent)
    assert file_of(shop, 3) == old
    applied(shop, "block:\n  - items: [i2]")
    (version / "assets" / "rules.bin").write_bytes(old)  # as if it was published a moment later
    take_over_again(shop, version, before, silent)
    assert show_rules(shop)[2] == [] and file_of(shop, 3) != old
    clear_rules(shop)
    (version / "assets" / "rules.bin").write_bytes(old)
    take_over_again(shop, version, before, silent)
    assert file_of(shop, 3) == NO_RULES


def test_a_version_that_was_just_published_waits_for_rules_that_are_applied(shop, monkeypatch):
    """Otherwise, it might be the last to write, and write rules that it read before."""
    applied(shop, "block:\n  - items: [i1]")
    version = write_version(shop, 3, made_catalogue(37))
    before = take_over(shop, version, silent)
    old = file_of(shop, 3)
    applying = locked(shop)
    applying.__enter__()

    def end(seconds):
        applying.__exit__(None, None, None)
        applied(shop, "block:\n  - items: [i2]")
        (version / "assets" / "rules.bin").write_bytes(old)  # as if it was published after the versions were listed

    monkeypatch.setattr(durable.time, "sleep", end)
    take_over_again(shop, version, before, silent)
    assert show_rules(shop)[2] == [] and file_of(shop, 3) != old


def test_a_version_that_cannot_obey_is_not_published(shop):
    applied(shop, "price: price")
    catalogue = made_catalogue(37)
    catalogue.fields = catalogue.fields.drop(columns="price")
    with pytest.raises(ConfigError, match="line 1: the items have no field 'price'") as error:
        take_over(shop, write_version(shop, 3, catalogue), silent)
    assert f"tfllmrec rules clear {shop}" in str(error.value)


def test_an_old_version_that_cannot_obey_keeps_its_rules_and_is_named(shop):
    applied(shop, "block:\n  - items: [i1]")
    catalogue = made_catalogue()
    catalogue.fields = catalogue.fields.drop(columns="price")
    write_version(shop, 0, catalogue)
    text = "block:\n  - items: [i1]\n  - where: {price: {above: 20}}"
    done = applied(shop, text)
    assert sorted(done.versions) == [1, 2] and file_of(shop, 0) == NO_RULES != file_of(shop, 1)
    assert done.unfit[0].startswith("version 0: ") and "line 3: the items have no field 'price'" in done.unfit[0]
    assert done.as_dict()["unfit"][0]["version"] == 0 and show_rules(shop)[2] == []
    (shop / "promotions.json").write_text('{"stable": 0, "served": [0]}')
    with pytest.raises(ConfigError, match=r"version 0: .*line 3: the items have no field 'price'"):
        applied(shop, text)


def test_an_apply_repairs_a_missing_file_of_rules(shop):
    applied(shop, "block:\n  - items: [i1]")
    before = file_of(shop, 2)
    (shop / "2" / "assets" / "rules.bin").unlink()
    assert applied(shop, "block:\n  - items: [i1]").older == [] and file_of(shop, 2) == before


def test_versions_of_before_there_were_rules(shop):
    write_version(shop, 0, made_catalogue(), obeys=False)
    assert applied(shop, "block:\n  - items: i1").older == [0]
    write_version(shop, 3, made_catalogue(), obeys=False)
    with pytest.raises(ModelError, match=r"shop/3 has no table of fields"):
        applied(shop, "block:\n  - items: i1")


def test_where_there_is_no_model(shop, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text("block:\n  - items: i1")
    with pytest.raises(ModelError, match=f"is a version: expected the folder of the model, {shop}"):
        apply_rules(shop / "1", rules, silent)
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ModelError, match="has no version of a model"):
            apply_rules(folder, rules, silent)
    with pytest.raises(ConfigError, match=r"rulez.yaml does not exist \(nearest"):
        apply_rules(shop, tmp_path / "rulez.yaml", silent)
    with pytest.raises(ConfigError, match="cannot be read"):
        apply_rules(shop, tmp_path, silent)
    rules.write_text("#" * 1_000_001)
    with pytest.raises(ConfigError, match="expected at most 1,000,000 bytes"):
        apply_rules(shop, rules, silent)


def test_two_processes_do_not_apply_at_once(shop):
    with locked(shop), pytest.raises(ConfigError, match="is in use by process"):
        applied(shop, "block:\n  - items: i1")


def test_damaged_rules_are_an_error(shop):
    applied(shop, "block:\n  - items: i1")
    (shop / "rules.json").write_text("{}}")
    with pytest.raises(ModelError, match=r"rules.json is damaged"):
        show_rules(shop)


LOOP = """
import sys
from pathlib import Path
from tfllmrec.serving.rules.folder import apply_rules
shop, *rules = map(Path, sys.argv[1:])
print("ready", flush=True)
while True:
    for file in rules:
        apply_rules(shop, file, print)
"""


@pytest.mark.slow
def test_killed_applies_leave_the_old_or_the_new_rules_of_each_version(shop, tmp_path):
    whole = set()
    files = []
    for items in ("[i1]", "[i1, i2, i3]"):
        files.append(tmp_path / f"{len(items)}.yaml")
        files[-1].write_text(f"block:\n  - items: {items}")
        apply_rules(shop, files[-1], silent)
        whole |= {(number, file_of(shop, number)) for number in (1, 2)}
    for turn in range(12):
        process = subprocess.Popen([sys.executable, "-c", LOOP, shop, *files], stdout=subprocess.PIPE, env=os.environ)
        process.stdout.readline()
        time.sleep(0.03 + 0.013 * turn)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert {(number, file_of(shop, number)) for number in (1, 2)} <= whole
        assert json.loads((shop / "rules.json").read_text())["name"]
        apply_rules(shop, files[0], silent)
        assert show_rules(shop)[2] == []
