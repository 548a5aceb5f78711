import pytest
import typer

from tfllmrec.cli.arguments import ids, open_model, past_of, require, require_data
from tfllmrec.errors import DataError, ModelError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b", ["a", "b"]),
        (" a , b,", ["a", "b"]),
        ("", []),
        (None, []),
        ("a b", ["a b"]),
        ('a, "b, c",d', ["a", "b, c", "d"]),
        ('"say ""b""",5" disc', ['say "b"', '5" disc']),
        ("a,b\nc\n", ["a", "b", "c"]),
    ],
)
def test_ids(text, expected):
    assert ids(text) == expected


def test_the_saved_model_finds_its_newest_version_itself(libraries, saved_model):
    assert open_model(saved_model) is libraries.models[0]


def test_a_path_that_is_not_there_is_refused_before_anything_is_loaded(libraries, tmp_path):
    libraries.models = None  # opening would fail
    with pytest.raises(ModelError, match="none does not exist"):
        open_model(tmp_path / "none")


@pytest.mark.parametrize(("check", "error"), [(require, ModelError), (require_data, DataError)])
@pytest.mark.parametrize("where", ["os.scandir", "pathlib.Path.is_dir"])  # the folder, and a folder above it
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path, monkeypatch, check, error, where):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched, pytest.raises(error, match=r"cannot be read: Permission denied\.$"):
        patched.setattr(where, denied)
        check(tmp_path)


def test_a_single_event_may_lack_a_value(libraries, saved_model):
    libraries.manifest = {"schema": [KIND]}
    past = past_of(open_model(saved_model), None, "a", ["kind=", "rating="])
    assert past[1] == [None] and past[2]["event_fields"] == [{"kind": ""}]


KIND = {"name": "kind", "owner": "event", "kind": "category", "vocabulary": ["view", "purchase"]}


def test_a_history_has_kinds_and_ratings(libraries, saved_model, capsys):
    libraries.manifest = {"schema": [KIND]}
    model = open_model(saved_model)
    given = ["event.kind = view,,hide", "rating=5,,2.5", 'note="a, b",c,', "kinds=1,2,3"]
    kinds = [{"kind": "view"}, {"kind": ""}, {"kind": "hide"}]
    past, ratings, fields, _ = past_of(model, None, "a,b,c", given[:2])
    assert (past, ratings) == (["a", "b", "c"], [5.0, None, 2.5])
    assert fields == {"context": None, "event_fields": kinds}
    assert capsys.readouterr().err == "the model does not know these values of kind: hide\n"
    *_, fields, _ = past_of(model, None, "a,b,c", given[2:])
    assert fields["event_fields"][0] == {"note": "a, b", "kinds": "1"}
    err = capsys.readouterr().err
    assert "no such field of events: note\n" in err and "events: kinds (nearest: 'kind')" in err
    assert past_of(model, None, "a", None) == (["a"], None, {"context": None, "event_fields": None}, ["a"])


@pytest.mark.parametrize(
    ("user", "given", "said"),
    [
        ("u1", ["kind=view"], "--event-field goes with --history ID,ID"),
        (None, ["kind"], "expected NAME=VALUE,VALUE"),
        (None, ["kind=view"], "expected a value for each of the 2 items of --history, found 1"),
        (None, ["kind=a,b", "event.kind=a,b"], "expected each field once"),
        (None, ["rating=5,good"], "expected numbers, found 'good'"),
    ],
)
def test_fields_that_do_not_fit_the_history(libraries, saved_model, user, given, said):
    with pytest.raises(typer.BadParameter, match=said):
        past_of(open_model(saved_model), user, None if user else "a,b", given)


DEVICES = ["phone", "tv", "car", "watch", "lamp", "fridge"]
CONTEXT = [
    {"name": "device", "owner": "request", "kind": "category", "vocabulary": DEVICES},
    {"name": "hour", "owner": "request", "kind": "number"},
    {"name": "since", "owner": "user", "kind": "time"},
]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("devic=phone", "the model has no such field of requests and users: devic (nearest: 'device')"),
        ("zip=1234", "the model has no such field of requests and users: zip (it has device, hour, since)"),
        ("max_price=60", "no rule in force reads max_price, and the model has no such field of requests and users"),
        ("device=phon", "does not know this value of device: phon (nearest: 'phone')"),
        (
            "device=oven",
            "does not know this value of device: oven (it knows phone, tv, car, watch, lamp and 1 more)",
        ),
        ("hour=noon", "the model cannot read this value of hour: noon (expected a number such as 12.5)"),
        ("since=may", "the model cannot read this value of since: may (expected seconds since 1970, or a date such as"),
    ],
)
def test_an_entry_that_the_model_does_not_read_is_told_with_the_reason(libraries, saved_model, capsys, entry, said):
    libraries.manifest = {"schema": CONTEXT, "reads": ["request.device", "request.hour", "user.since"]}
    past_of(open_model(saved_model), None, "a", None, [entry])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["recommend", "rank --items c", "explain --item c"])
def test_every_command_whose_answer_depends_on_the_request_takes_its_fields(
    program, libraries, saved_model, monkeypatch, command
):
    asked = {}
    monkeypatch.setattr("tfllmrec.explain.explanation.explain", lambda run, items, **given: asked.update(given) or [])
    name, *further = command.split()
    for whom, known in ((["--history", "a"], {}), (["--user", "u1"], {"age": "30"})):
        context = known | {"about": "space"}
        assert program(name, saved_model, *whom, "--context", "about=space", *further).code == 0
        assert libraries.models[-1].fields["context"] in (context, [context])
        assert name != "explain" or asked["context"] == context


@pytest.mark.parametrize("command", ["recommend", "rank --items c", "interests", "explain --item c"])
def test_every_command_with_a_history_takes_its_kinds(program, libraries, saved_model, monkeypatch, command):
    asked = {}
    monkeypatch.setattr("tfllmrec.explain.explanation.explain", lambda run, items, **given: asked.update(given) or [])
    name, *further = command.split()
    given = ["--history", "a,b", "--event-field", "kind=view,hide", "--event-field", "rating=5,1"]
    assert program(name, saved_model, *given, *further).code == 0
    model, kinds = libraries.models[0], [{"kind": "view"}, {"kind": "hide"}]
    assert model.fields["event_fields"] in (kinds, [kinds])
    assert [5.0, 1.0] in model.calls[0] or [[5.0, 1.0]] in model.calls[0]
    if name == "explain":
        assert (asked["event_fields"], asked["ratings"]) == (kinds, [5.0, 1.0])
