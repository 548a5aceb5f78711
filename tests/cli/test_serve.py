import io
import sys
import types
from pathlib import Path

import pytest

from tfllmrec.cli.serve import _say_where
from tfllmrec.errors import ConfigError
from tfllmrec.feedback.exploration import Exploration


@pytest.fixture
def served(monkeypatch):
    """What the command asked for; the stand-in server says that it started."""
    asked = []
    server = types.SimpleNamespace(
        rest_port=8501,
        grpc_port=8500,
        local=True,
        has_page=True,
        interrupted=False,
        loaded=lambda: {"shop": [2]},
        example=lambda: ("shop", '{"inputs": {"k": [5]}}'),
    )

    def serve(settings, started):
        asked.append(settings)
        server.settings = settings
        started(server)
        if server.interrupted:
            raise KeyboardInterrupt

    fields = lambda **given: types.SimpleNamespace(**given)  # noqa: E731
    engine = types.ModuleType("tfllmrec.server.engine")
    engine.Limits = fields
    module = types.ModuleType("tfllmrec.server.server")
    module.Settings = lambda path, **given: fields(path=path, **given)
    module.serve = serve
    monkeypatch.setitem(sys.modules, "tfllmrec.server.engine", engine)
    monkeypatch.setitem(sys.modules, "tfllmrec.server.server", module)
    monkeypatch.delenv("TFLLMREC_TOKEN", raising=False)
    return types.SimpleNamespace(asked=asked, server=server)


def test_says_where_it_is_and_how_to_try(program, served, tmp_path):
    answer = program("serve", tmp_path)
    assert answer.code == 0
    assert answer.out.splitlines() == [
        "page  http://127.0.0.1:8501/",
        "REST  http://127.0.0.1:8501/v1/models/NAME:predict",
        "gRPC  127.0.0.1:8500",
        "model shop, version 2",
        'try   curl http://127.0.0.1:8501/v1/models/shop:predict -d \'{"inputs": {"k": [5]}}\'',
    ]
    (settings,) = served.asked
    assert (settings.path, settings.host, settings.rest_port, settings.grpc_port) == (tmp_path, "127.0.0.1", 8501, 8500)
    assert (settings.token, settings.certificate, settings.limits.body_bytes) == (None, None, 8 << 20)
    assert (settings.allow_reload, settings.allow_hosts, settings.page, settings.log) == (False, (), None, None)


@pytest.mark.parametrize(("option", "wanted"), [("--page", True), ("--no-page", False)])
def test_the_page_can_be_asked_for(program, served, tmp_path, option, wanted):
    assert program("serve", tmp_path, option).code == 0
    assert served.asked[0].page is wanted


def test_a_page_behind_a_token_is_refused(program, served, tmp_path):
    (tmp_path / "token").write_text("secret")
    answer = program("serve", tmp_path, "--page", "--token-file", tmp_path / "token")
    assert answer.code == 2 and "a browser sends no token" in answer.err and not served.asked


def test_a_second_interrupt_ends_the_process_at_once(program, served, tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    program("serve", tmp_path)
    assert ended == []
    served.server.interrupted = True
    program("serve", tmp_path)
    assert ended == [130]


def test_settings_reach_the_server(program, served, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    options = "--host 0.0.0.0 --rest-port 0 --max-body-mb 0.5 --batch-wait-ms 2 --workers 3 --max-queue 7 --max-batch 9"
    options += " --max-bodies-mb 4 --max-rows 50"
    options += " --allow-reload --allow-host shop.example --allow-host 10.0.0.7 --log events"
    answer = program("serve", tmp_path, *options.split(), "--token-file", tmp_path / "token", "--tls-cert", "c.pem")
    (settings,) = served.asked
    assert (settings.host, settings.rest_port, settings.token) == ("0.0.0.0", 0, "secret")
    assert settings.limits.__dict__ == {
        "body_bytes": 1 << 19, "bodies_bytes": 1 << 22, "rows": 50, "batch_rows": 9, "batch_wait_s": 0.002, "queue": 7,
        "workers": 3, "timeout_s": 30.0,
    }  # fmt: skip
    assert (settings.allow_reload, settings.allow_hosts) == (True, ("shop.example", "10.0.0.7"))
    assert (settings.certificate, settings.log) == (Path("c.pem"), Path("events"))
    assert "log   https://0.0.0.0:8501/v1/events -> events" in answer.out
    assert '-H "authorization: Bearer $TFLLMREC_TOKEN" --cacert c.pem https://' in answer.out


def test_exploration_reaches_the_server(program, served, tmp_path):
    given = "--log events --explore 0.1 --explore-max-loss 0.5"
    assert program("serve", tmp_path, *given.split()).code == 0
    assert program("serve", tmp_path, *given.split(), "--explore-places", "3", "--explore-tail", "9").code == 0
    assert [settings.exploration for settings in served.asked] == [
        Exploration(0.1, 0.5), Exploration(0.1, 0.5, 3, tail_exposures=9)
    ]  # fmt: skip
    assert program("serve", tmp_path).code == 0 and served.asked[-1].exploration is None


def test_the_help_has_the_defaults_of_exploration(program):
    told = " ".join(program("serve", "--help").out.replace("│", " ").split())
    for number in (Exploration.places, Exploration.tail_exposures):
        assert f"by default {number}." in told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--explore 0.1 --log events", "--explore-max-loss"),
        ("--explore 0.1 --explore-max-loss 1", "--log"),
        ("--log events --explore-max-loss 1", "without --explore"),
        ("--log events --explore-tail 9", "without --explore"),
        ("--log events --explore 2 --explore-max-loss 1", "for --explore, found 2"),
        ("--log events --explore 1 --explore-max-loss -1", "for --explore-max-loss, found -1"),
        ("--log events --explore 1 --explore-max-loss 1 --explore-places 0", "for --explore-places, found 0"),
        ("--log events --explore 1 --explore-max-loss 1 --explore-tail -1", "for --explore-tail, found -1"),
    ],
)
def test_exploration_that_cannot_be_is_refused(program, served, tmp_path, given, message):
    answer = program("serve", tmp_path, *given.split())
    assert answer.code == 2 and message in answer.err and not served.asked


def test_the_token_may_be_in_the_environment(program, served, tmp_path, monkeypatch):
    monkeypatch.setenv("TFLLMREC_TOKEN", "secret")
    program("serve", tmp_path)
    assert served.asked[0].token == "secret"


OF_NUMBERS = "poll-seconds batch-wait-ms max-body-mb max-bodies-mb timeout-seconds grace-seconds"


@pytest.mark.parametrize("option", OF_NUMBERS.split())
def test_endless_times_and_sizes_are_refused(program, served, tmp_path, option):
    answer = program("serve", tmp_path, f"--{option}", "inf")
    assert answer.code == 2 and "expected a finite number, found inf" in answer.err and not served.asked


def test_the_share_of_a_canary_is_between_0_and_1(program, served, tmp_path):
    assert program("serve", tmp_path, "--canary-share", "0.1").code == 0
    assert served.asked.pop().canary_share == 0.1
    for share in ("0", "1"):
        answer = program("serve", tmp_path, "--canary-share", share)
        assert answer.code == 2 and f"--canary-share {share}: expected a number above 0" in answer.err
    assert not served.asked


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_token_in_the_environment_is_one_word_too(program, served, tmp_path, monkeypatch, token):
    monkeypatch.setenv("TFLLMREC_TOKEN", token)
    answer = program("serve", tmp_path)
    assert answer.code == ConfigError.exit_code and "$TFLLMREC_TOKEN: expected one word of ASCII" in answer.err
    assert served.asked == []


def test_addresses_are_flushed_also_while_no_model_answers(served, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written))
    monkeypatch.setattr("tfllmrec.cli.serve.note", lambda what: None)
    served.server.loaded, served.server.example = dict, lambda: None
    served.server.settings = types.SimpleNamespace(
        host="127.0.0.1", certificate=None, token=None, path=Path("m"), log=None
    )
    _say_where(served.server)
    assert written.getvalue().startswith(
        b"page  http://127.0.0.1:8501/\nREST  http://127.0.0.1:8501/v1/models/NAME:predict\ngRPC  127.0.0.1:8500\n"
    )


def test_an_open_door_and_an_empty_house_are_said(program, served, tmp_path):
    served.server.local = False
    served.server.loaded, served.server.example = lambda: {"shop": []}, lambda: None
    answer = program("serve", tmp_path)
    assert "other machines can use this server without a token" in answer.err
    assert "no model answers yet" in answer.err
    assert "model shop, version none yet" in answer.out


def test_a_model_without_signatures_answers_too(program, served, tmp_path):
    served.server.example = lambda: None
    answer = program("serve", tmp_path)
    assert "model shop, version 2" in answer.out and "no model answers" not in answer.err


def test_what_is_wrong_is_said_before_anything_starts(program, served, tmp_path, monkeypatch):
    assert "nowhere does not exist" in program("serve", tmp_path / "nowhere").err
    (tmp_path / "token").write_text("two words")
    answer = program("serve", tmp_path, "--token-file", tmp_path / "token")
    assert answer.code == ConfigError.exit_code and "expected one word of ASCII" in answer.err
    assert "cannot be read" in program("serve", tmp_path, "--token-file", tmp_path / "no").err
    monkeypatch.setitem(sys.modules, "tfllmrec.server.server", None)
    answer = program("serve", tmp_path)
    assert answer.code == ConfigError.exit_code and "pip install 'tfllmrec[serve]'" in answer.err
    assert served.asked == []


def test_help_says_that_models_are_code(program):
    assert "Loading a SavedModel runs the code in it" in program("serve", "--help").out
