import asyncio
import os
import shutil
import threading
import time
import types

import pytest

from tfllmrec.client.status import Code, RequestError
from tfllmrec.errors import ConfigError
from tfllmrec.server.models_config import ModelSource
from tfllmrec.server.versions import ENDED_SHOWN, Models, State, Version, content_of


class Says(str):
    """A text in the place of a servable."""

    def __init__(self, text):
        self.alive, self.closed = True, threading.Event()

    def close(self):
        self.closed.set()


class Loader:
    """Loads the text of a version's file; ``broken`` raises. ``go`` holds up a load."""

    def __init__(self):
        self.loaded, self.made = [], []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, folder):
        self.loaded.append(folder.name)
        assert self.go.wait(10)
        says = (folder / "saved_model.pb").read_text()
        if says == "broken":
            raise ValueError("bits are missing")
        self.made.append(Says(says))
        return self.made[-1]


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def models(loader):
    return Models(loader, settled_s=0)


@pytest.fixture
def base(tmp_path):
    return tmp_path / "shop"


@pytest.fixture
def clock(monkeypatch):
    """The clocks of ``versions``: they stand still until a test moves them."""
    clock = types.SimpleNamespace(of_day=time.time(), running=0.0)
    clock.time, clock.monotonic = lambda: clock.of_day, lambda: clock.running
    monkeypatch.setattr("tfllmrec.server.versions.time", clock)
    return clock


def put(base, number, says=None):
    folder = base / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "saved_model.pb").write_text(says or f"v{number}")
    return folder


def follow(models, *sources):
    asyncio.run(models.follow(sources))


def states(models, name="shop"):
    return {version.number: version.state.name for version in models.status(name)}


async def begins_loading(models, number):
    while states(models).get(number) != "LOADING":
        await asyncio.sleep(0.005)


def answer(models, *which):
    with models.hold("shop", *which) as version:
        return version.servable


def refusal(call, *arguments):
    with pytest.raises(RequestError) as refused:
        call(*arguments)
    return refused.value.code, refused.value.message


def test_the_newest_replaces_the_one_before_it(models, base):
    put(base, 1)
    put(base, 9)
    follow(models, ModelSource("shop", base))
    assert answer(models) == "v9"
    assert states(models) == {9: "AVAILABLE"}  # 1 was never loaded
    put(base, 10)
    follow(models, ModelSource("shop", base))
    assert answer(models) == "v10"
    assert states(models) == {10: "AVAILABLE", 9: "END"}


def test_policies(models, base):
    for number in (1, 2, 3):
        put(base, number)
    follow(models, ModelSource("shop", base, "latest", 2))
    assert models.available("shop") == [2, 3]
    follow(models, ModelSource("shop", base, "all"))
    assert models.available("shop") == [1, 2, 3]
    assert answer(models, 1) == "v1"
    follow(models, ModelSource("shop", base, "specific", versions=(1,)))
    assert models.available("shop") == [1]
    assert answer(models) == "v1"
    follow(models, ModelSource("shop", base, "specific", versions=(7,)))
    assert models.available("shop") == [1]  # nothing to put in its place


def test_version_0_is_the_newest_one_where_there_is_no_such_version(models, loader, base):
    for number in (1, 2):
        put(base, number)
    follow(models, ModelSource("shop", base, "all"))
    assert answer(models, 0) == "v2"
    assert [version.number for version in models.status("shop", 0)] == [2, 1]
    put(base, 0)
    follow(models, ModelSource("shop", base, "all"))
    assert answer(models, 0) == "v0"
    assert [version.number for version in models.status("shop", 0)] == [0]
    assert refusal(models.status, "other", 0)[0] is Code.NOT_FOUND


def test_a_new_version_is_there_before_the_old_one_goes(models, loader, base):
    put(base, 1)
    source = ModelSource("shop", base)

    async def swap():
        await models.follow([source])
        loader.go.clear()
        put(base, 2)
        following = asyncio.ensure_future(models.follow([source]))
        await begins_loading(models, 2)
        assert answer(models) == "v1"
        assert refusal(answer, models, 2) == (Code.UNAVAILABLE, "shop/2 is being loaded; try again later")
        loader.go.set()
        await following
        assert answer(models) == "v2"

    asyncio.run(asyncio.wait_for(swap(), 10))


def test_a_request_holds_its_version_until_it_is_done(models, base):
    put(base, 1)
    follow(models, ModelSource("shop", base))
    with models.hold("shop") as first, models.hold("shop") as second:
        assert first is second
        put(base, 2)
        follow(models, ModelSource("shop", base))
        assert (first.state, first.servable) == (State.UNLOADING, "v1")
        assert answer(models) == "v2"
        assert refusal(answer, models, 1)[0] is Code.NOT_FOUND  # no new ones
    assert (first.state, first.servable) == (State.END, None)


def test_a_request_that_fails_lets_go_too(models, base):
    put(base, 1)
    follow(models, ModelSource("shop", base))
    with pytest.raises(ZeroDivisionError), models.hold("shop") as version:
        1 / 0  # noqa: B018
    assert version.in_flight == 0


def test_one_that_cannot_be_loaded_changes_nothing(models, loader, base, monkeypatch, caplog):
    put(base, 1)
    put(base, 2)
    source = ModelSource("shop", base)
    follow(models, source)
    broken = put(base, 3, "broken")
    for _ in range(3):
        follow(models, source)
    assert answer(models) == "v2"
    assert loader.loaded == ["2", "3"]  # not tried again and again
    (status,) = models.status("shop", 3)
    assert (status.state, status.code, status.error) == (State.END, Code.UNKNOWN, "bits are missing")
    assert "shop/3 cannot be loaded: bits are missing; version 2 goes on answering" in caplog.text
    (broken / "saved_model.pb").write_text("mended")  # tried again at once
    follow(models, source)
    assert answer(models) == "mended"
    assert states(models) == {3: "AVAILABLE", 2: "END"}


def test_a_server_that_starts_on_a_broken_version_takes_the_one_before(models, base):
    put(base, 1)
    put(base, 2, "broken")
    follow(models, ModelSource("shop", base))
    assert answer(models) == "v1"


@pytest.mark.parametrize("asked", [1, 2])
def test_nobody_waits_for_a_load_when_the_server_stops(models, loader, base, asked):
    """Neither who asked for what is being loaded, nor who waits for a turn to ask for something else."""
    put(base, 1)
    source = ModelSource("shop", base)

    async def stop():
        await models.follow([source])
        loader.go.clear()
        put(base, 2)
        following = [asyncio.ensure_future(models.follow([source])) for _ in range(asked)]
        await begins_loading(models, 2)
        models.stop_loading()
        for one in following:
            with pytest.raises(RequestError, match="the server is stopping") as refused:
                await one
            assert refused.value.code is Code.UNAVAILABLE
        assert loader.loaded == ["1", "2"] and not loader.made[1:]
        assert answer(models) == "v1"  # until it closes
        await models.close()

    asyncio.run(asyncio.wait_for(stop(), 10))
    loader.go.set()  # its loop is closed meanwhile
    while len(loader.made) < 2:
        threading.Event().wait(0.005)
    assert loader.made[1].closed.wait(10)


class Unspeakable(Exception):
    def __str__(self):
        raise UnicodeDecodeError("utf-8", b"", 0, 1, "what TensorFlow says is no text")


@pytest.mark.parametrize("error", [SystemExit(), asyncio.CancelledError(), Unspeakable()])
def test_whatever_ends_a_load_is_told(base, error):
    def load(folder):
        raise error

    models = Models(load, settled_s=0)
    put(base, 1)
    asyncio.run(asyncio.wait_for(models.follow([ModelSource("shop", base)]), 10))
    (version,) = models.status("shop")
    assert (version.state, version.code) == (State.END, Code.UNKNOWN)
    assert version.error in {"SystemExit", "CancelledError", "Unspeakable"}


def test_a_load_for_which_there_is_no_thread_has_failed(models, base, monkeypatch):
    begin = threading.Thread.start

    def start(self):
        if self.name == "load":
            raise RuntimeError("can't start new thread")
        begin(self)

    put(base, 1)
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", start)
        follow(models, ModelSource("shop", base))
    (version,) = models.status("shop")
    assert (version.state, version.code, version.error) == (
        State.END, Code.RESOURCE_EXHAUSTED, "can't start new thread"
    )  # fmt: skip


def test_a_failed_one_is_retried_now_and_then(models, loader, base, monkeypatch):
    monkeypatch.setattr("tfllmrec.server.versions.RETRY_S", 0)
    monkeypatch.setattr("tfllmrec.server.versions.RETRIES", 2)
    put(base, 1, "broken")
    for _ in range(6):
        follow(models, ModelSource("shop", base))
    assert loader.loaded == ["1"] * (1 + 2)


def test_a_new_base_that_fails_is_not_tried_with_each_poll(models, loader, base, caplog):
    put(base, 1)
    follow(models, ModelSource("shop", base))
    elsewhere = base.with_name("elsewhere")
    put(elsewhere, 5, "broken")
    for _ in range(3):
        follow(models, ModelSource("shop", elsewhere))
    assert loader.loaded == ["1", "5"]
    assert caplog.text.count("nothing in") == 1
    assert answer(models) == "v1"
    put(elsewhere, 5, "mended")
    follow(models, ModelSource("shop", elsewhere))
    assert answer(models) == "mended"


def test_a_folder_that_vanishes_while_it_is_listed(base, monkeypatch):
    folder = put(base, 1)
    (folder / "variables").mkdir()
    (folder / "variables" / "part").write_text("x")
    everything = {".", "saved_model.pb", "variables", "variables/part"}
    assert {name for name, _, _ in content_of(folder)} == everything
    scandir = os.scandir

    def vanishing(path):
        if path == str(folder / "variables"):
            shutil.rmtree(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert {name for name, _, _ in content_of(folder)} == {".", "saved_model.pb"}


def test_half_a_folder_is_left_alone(loader, base, caplog, clock):
    models = Models(loader, settled_s=20)
    source = ModelSource("shop", base)
    folder = base / "1"
    (folder / "variables").mkdir(parents=True)
    follow(models, source)
    follow(models, source)
    assert caplog.text.count("has no saved_model.pb yet: it is not loaded") == 1
    put(base, 1)
    for part in range(3):  # still growing
        (folder / "variables" / str(part)).write_text("x")
        follow(models, source)
        clock.running += 15
    assert loader.loaded == []
    assert models.undecided()
    clock.running += 6
    follow(models, source)
    assert loader.loaded == ["1"]
    assert not models.undecided()


def test_a_disk_whose_clock_is_ahead_settles_by_ours(loader, base, clock):
    models = Models(loader, settled_s=20)
    put(base, 1)
    clock.of_day -= 3600
    follow(models, ModelSource("shop", base))
    assert loader.loaded == []
    clock.running += 21
    follow(models, ModelSource("shop", base))
    assert loader.loaded == ["1"]


def test_what_vanishes_from_the_disk_goes_on_answering_while_nothing_is_in_its_place(models, base, caplog):
    put(base, 1)
    put(base, 2)
    source = ModelSource("shop", base)
    follow(models, source)
    shutil.rmtree(base / "2")
    follow(models, source)
    assert (answer(models), states(models)) == ("v1", {2: "END", 1: "AVAILABLE"})  # so one goes back
    shutil.rmtree(base / "1")
    follow(models, source)
    assert answer(models) == "v1"
    shutil.rmtree(base)
    follow(models, source)
    follow(models, source)
    assert answer(models) == "v1"
    assert caplog.text.count("cannot be read") == 1
    follow(models)
    assert refusal(answer, models) == (
        Code.NOT_FOUND,
        "Servable not found for request: Latest(shop) (models: none)",
    )


def test_another_folder_under_the_same_name(models, base, tmp_path):
    put(base, 1)
    put(tmp_path / "other", 1, "other")
    put(tmp_path / "bad", 5, "broken")
    follow(models, ModelSource("shop", base))
    follow(models, ModelSource("shop", tmp_path / "bad"))
    assert answer(models) == "v1"
    follow(models, ModelSource("shop", tmp_path / "other"))
    assert answer(models) == "other"


def test_labels(models, base):
    put(base, 1)
    put(base, 2)
    source = ModelSource("shop", base, "all", labels={"stable": 1, "canary": 2})
    follow(models, source)
    assert (answer(models, None, "stable"), answer(models, None, "canary")) == ("v1", "v2")
    assert models.unmoved_labels([source]) == []
    assert refusal(answer, models, None, "nope") == (
        Code.INVALID_ARGUMENT,
        "Unrecognized servable version label: nope",
    )
    # A label stays where it was until its new version answers.
    moved = ModelSource("shop", base, "all", labels={"stable": 3})
    follow(models, moved)
    assert answer(models, None, "stable") == "v1"
    assert "assign label to version 3 of model shop, which is not currently" in models.unmoved_labels([moved])[0]
    put(base, 3)
    follow(models, moved)
    assert answer(models, None, "stable") == "v3"
    assert refusal(answer, models, None, "canary")[0] is Code.INVALID_ARGUMENT


def test_a_label_keeps_its_version_until_the_new_one_answers_whatever_else_is_loaded(models, base):
    def source(versions, **labels):
        return ModelSource("shop", base, "specific", versions=versions, labels=labels)

    put(base, 1)
    follow(models, source((1,), stable=1))
    put(base, 2, "broken")
    follow(models, source((1, 2), stable=2))
    put(base, 3)
    follow(models, source((2, 3), stable=2, canary=3))
    assert answer(models, None, "stable") == "v1" and answer(models, None, "canary") == "v3"
    models.status("shop", 1)[0].servable.alive = False  # it ended, and is loaded again
    follow(models, source((2, 3), stable=2, canary=3))
    assert answer(models, None, "stable") == "v1"
    follow(models, source((2, 3), stable=3))
    assert answer(models, None, "stable") == "v3" and models.available("shop") == [3]


def test_who_asks_for_what_is_not_there_is_told_what_is(models, base):
    put(base, 1)
    follow(models, ModelSource("shop", base))
    assert refusal(answer, models, 7) == (
        Code.NOT_FOUND,
        "Servable not found for request: Specific(shop, 7) (available versions: 1)",
    )
    assert refusal(models.status, "nope") == (Code.NOT_FOUND, "Could not find any versions of model nope")
    assert refusal(models.status, "shop", 7) == (Code.NOT_FOUND, "Could not find version 7 of model shop")


def test_what_is_gone_is_listed_for_a_while_only(models, base):
    for number in range(1, ENDED_SHOWN + 5):
        put(base, number)
        shutil.rmtree(base / str(number - 1), ignore_errors=True)
        follow(models, ModelSource("shop", base))
    assert len(models.status("shop")) <= ENDED_SHOWN + 2


def test_each_try_is_told(loader, base):
    told = []
    models = Models(loader, settled_s=0, on_load=lambda version, seconds: told.append((str(version), version.state)))
    put(base, 1)
    put(base, 2, "broken")
    follow(models, ModelSource("shop", base))
    assert told == [("shop/2", State.END), ("shop/1", State.AVAILABLE)]
    assert isinstance(models.status("shop")[0], Version)


def test_closing_lets_everything_go(models, base):
    put(base, 1)
    follow(models, ModelSource("shop", base))
    (version,) = models.status("shop")
    asyncio.run(models.close())
    assert (version.state, version.servable, models.names()) == (State.END, None, [])


def test_an_unloaded_version_is_closed_when_its_last_request_is_done(models, base):
    source = ModelSource("shop", base)
    put(base, 1)
    follow(models, source)
    put(base, 2)
    with models.hold("shop") as version:
        first = version.servable
        follow(models, source)
        assert answer(models) == "v2"
        assert not first.closed.is_set()
    assert first.closed.wait(10)


def test_a_version_that_has_ended_is_loaded_again(models, loader, base, caplog):
    put(base, 1)
    follow(models, ModelSource("shop", base))
    first = answer(models)
    first.alive = False
    follow(models, ModelSource("shop", base))
    assert answer(models) is not first
    assert first.closed.wait(10)
    assert loader.loaded == ["1", "1"]
    assert "shop/1 has ended: it is loaded again" in caplog.text


def test_requests_for_a_version_that_is_loaded_again_are_to_try_later(loader, base):
    """Also those that name no version: the canary does not get the users of the stable version."""
    models = Models(loader, settled_s=0, stable_first=True)
    put(base, 1)
    put(base, 2)
    source = ModelSource("shop", base, "all", labels={"stable": 1, "canary": 2})

    async def crash():
        await models.follow([source])
        loader.go.clear()
        answer(models, 1).alive = False
        following = asyncio.ensure_future(models.follow([source]))
        await begins_loading(models, 1)
        for which in ((), (1,), (None, "stable")):
            assert refusal(answer, models, *which) == (Code.UNAVAILABLE, "shop/1 is being loaded; try again later")
        assert answer(models, 2) == answer(models, None, "canary") == "v2"
        loader.go.set()
        await following
        assert answer(models) == "v1"
        answer(models, 1).alive = False
        put(base, 1, "broken")
        await models.follow([source])
        assert answer(models) == "v2"  # better than no answer

    asyncio.run(asyncio.wait_for(crash(), 10))


def test_a_version_whose_load_ends_after_the_stop_is_closed(models, loader, base):
    source = ModelSource("shop", base)
    put(base, 1)

    async def stop():
        await models.follow([source])
        loader.go.clear()
        put(base, 2)
        following = asyncio.ensure_future(models.follow([source]))
        await begins_loading(models, 2)
        models.stop_loading()
        with pytest.raises(RequestError):
            await following
        loader.go.set()
        while len(loader.made) < 2 or not loader.made[1].closed.is_set():
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(stop(), 10))


def test_nothing_is_remembered_of_models_that_are_no_longer_served(models, base, tmp_path):
    """Clients may ask for any number of models, one after the other."""
    for number in range(5):
        elsewhere = tmp_path / f"elsewhere{number}"
        (elsewhere / "1").mkdir(parents=True)
        follow(models, ModelSource("shop", tmp_path / f"missing{number}"), ModelSource(f"m{number}", elsewhere))
    follow(models)
    assert str(tmp_path) not in repr(vars(models))


def test_labels_follow_promotions_and_rollbacks_and_stable_always_answers(models, loader, base):
    from tfllmrec.server.models_config import read_sources
    from tfllmrec.serving.promotion import adopt, promote, rollback, set_canary

    def stable():
        follow(models, *read_sources(base))
        with models.hold("shop", label="stable") as version:
            return version.number, models.available("shop")

    put(base, 1)
    adopt(base)
    assert stable() == (1, [1])
    put(base, 2)  # exported, and not promoted
    assert stable() == (1, [1])
    set_canary(base, 2)
    assert stable() == (1, [1, 2]) and models.labelled("shop", "canary") == 2
    promote(base)
    assert stable() == (2, [1, 2])
    rollback(base)
    assert stable() == (1, [1])
    put(base, 3, "broken")
    set_canary(base, 3)
    promote(base)
    assert stable() == (1, [1])  # version 3 cannot be loaded: the label stays where it was
    rollback(base)
    put(base, 4)
    set_canary(base, 4)
    promote(base)
    put(base, 5)
    set_canary(base, 5)
    assert stable() == (4, [1, 4, 5])
    rollback(base)
    assert stable() == (4, [1, 4])
    rollback(base)
    assert stable() == (1, [1])  # version 1 was loaded before the label moved
    (base / "promotions.json").write_text("{")
    with pytest.raises(ConfigError, match=r"promotions\.json is damaged"):
        read_sources(base)
