import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tfllmrec import assets
from tfllmrec.cli import doctor
from tfllmrec.config import TextConfig

FINE = {
    "tensorflow": "2.20.0",
    "tf-keras": "2.20.1",
    "tensorflow-text": "2.20.1",
    "tensorboard": "2.20.0",
    "scann": None,
}
PROBED = [{"early": []}, {"trying": "tensorflow"}, {"devices": ["CPU:0"]}, {"keras": "2.20.1"}, {"done": True}]


def whats(problems):
    return [problem.what for problem in problems]


@pytest.fixture
def sound(monkeypatch, tmp_path):
    """A machine on which everything is as it should be."""
    monkeypatch.setattr(doctor, "_version", lambda name: FINE.get(name, "1.0"))
    monkeypatch.setattr(doctor, "_requirements", lambda: ["tensorflow>=2.20,<2.21", 'ruff==0; extra == "test"'])
    monkeypatch.setattr(doctor, "_probe", lambda encoders: (PROBED, "exit code 0"))
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    monkeypatch.setenv("TFLLMREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    return tmp_path / "cache"


def test_all_is_well(program, sound):
    (sound / "weights" / "minilm").mkdir(parents=True)
    (sound / "weights" / "minilm" / "model").write_bytes(b"x" * 2_500_000)
    answer = program("doctor")
    assert answer.code == 0
    assert "everything is in order" in answer.out
    assert "weights/minilm" in answer.out
    assert "2.5 MB" in answer.out


def test_json(program, sound):
    document = json.loads(program("doctor", "--json").out)
    assert (document["ok"], document["problems"]) == (True, [])
    assert (document["versions"]["tensorflow"], document["versions"]["scann"]) == ("2.20.0", None)
    assert (document["devices"], document["keras"]) == (["CPU:0"], "2.20.1")
    assert document["cache"] == {"folder": str(sound), "writable": True, "entries": []}


def test_encoders_with_their_languages(program, sound, monkeypatch):
    asked = []
    monkeypatch.setattr(doctor, "_probe", lambda encoders: (asked.append(encoders), (PROBED, "exit code 0"))[1])
    assert TextConfig().encoder == doctor.DEFAULT_ENCODER
    out = program("doctor").out
    assert "minilm   weights not in the cache; English" in out
    assert "e5       weights not in the cache; 94 languages, such as Afrikaans, " in out
    assert "warning: the weights of minilm, the default text encoder, are not in the cache" in out
    assert "everything is in order" in out
    monkeypatch.setattr(assets, "is_present", lambda asset: asset.name == "minilm")
    answer = program("doctor")
    assert "minilm   weights in the cache; English" in answer.out and "warning" not in answer.out
    assert asked == [[], ["minilm-float32"]]
    document = json.loads(program("doctor", "--json").out)
    assert document["warnings"] == []
    assert document["encoders"][0] == {"name": "minilm", "languages": ["English"], "present": True}


def test_every_encoder_that_has_been_made_is_loaded(sound, monkeypatch):
    asked = []
    monkeypatch.setattr(doctor, "_probe", lambda encoders: (asked.append(encoders), (PROBED, "exit code 0"))[1])
    monkeypatch.setattr(assets, "is_present", lambda asset: asset.name != "use")
    for made in ("e5-preprocessor-2", "e5-bfloat16-2", "e5-float32-2", "use-float32-2"):
        (sound / "hub" / made).mkdir(parents=True)
    doctor.diagnose()
    assert asked == [["minilm-float32", "e5-float32", "e5-bfloat16"]]


def test_weights_that_cannot_be_read_are_absent(sound, monkeypatch):
    def refuse(asset):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(assets, "is_present", refuse)
    assert not any(encoder["present"] for encoder in doctor.diagnose().encoders)


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ([{"loading": "e5-float32"}, {"loaded": ""}], None),
        ([{"loading": "e5-float32"}, {"loaded": "ModelError: damaged"}], "ModelError: damaged"),
        ([{"loading": "use-float32"}, {"loaded": ""}, {"loading": "e5-float32"}], "exit code -11: Aborted"),
        ([{"failed": "tensorflow_hub", "error": "no"}, {"loading": "e5-float32"}, {"loaded": "no"}], None),  # as said
    ],
)
def test_an_encoder_that_cannot_be_loaded_is_made_again(sound, told, error):
    problems = [
        p for p in doctor.probe_problems([*PROBED, *told], "exit code -11: Aborted", "1") if "encoder" in p.what
    ]
    assert whats(problems) == ([f"the text encoder e5-float32 cannot be loaded: {error}"] if error else [])
    assert all(p.mend.startswith(f"rm -r {sound}/hub/e5-*") for p in problems)


def test_problems_exit_4_with_the_line_that_mends(program, sound, monkeypatch):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")
    answer = program("doctor")
    assert answer.code == 4
    assert "unset TF_USE_LEGACY_KERAS" in answer.out
    assert program("doctor", "--json").code == 4


def test_missing_pkg_resources(sound, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    (problem,) = doctor.diagnose().problems
    assert "pkg_resources" in problem.what
    assert problem.mend == f"{sys.executable} -m pip install 'setuptools<81'"


def test_unwritable_cache(sound, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    diagnosis = doctor.diagnose()
    assert diagnosis.cache["writable"] is False
    assert "Permission denied" in diagnosis.problems[0].what
    assert diagnosis.problems[0].mend.startswith("export TFLLMREC_CACHE=")


def test_declared_requirements(monkeypatch):
    monkeypatch.setattr(doctor, "_version", {"old": "1.0", "fine": "2.5"}.get)
    requirements = ["old>=2,<3", "fine>=2", "absent>=1", 'unasked>=1; extra == "test"']
    problems = list(doctor.requirement_problems(requirements, "3.11.7"))
    assert whats(problems) == ["old 1.0: <3,>=2 is needed", "absent is missing"]
    assert problems[0].mend == f"{sys.executable} -m pip install 'old<3,>=2'"


def test_not_installed():
    (problem,) = doctor.requirement_problems(None, "3.11.7")
    assert problem.mend.endswith("pip install -e .")


@pytest.mark.parametrize(("python", "fits"), [("3.10.9", False), ("3.11.0", True), ("3.13.2", True), ("3.14.0", False)])
def test_python_version(python, fits):
    assert (not list(doctor.requirement_problems([], python))) == fits


@pytest.mark.parametrize(
    ("changed", "mend"),
    [
        ({}, None),
        ({"tensorflow-text": "2.19.0"}, "'tensorflow-text==2.20.*'"),
        ({"tf-keras": "2.21.0"}, "'tf-keras==2.20.*'"),
        ({"scann": "1.4.2"}, None),
        ({"scann": "1.4.1"}, "scann==1.4.2"),
        ({"tensorflow": None}, None),  # said elsewhere
    ],
)
def test_versions_that_do_not_go_together(changed, mend):
    problems = list(doctor.family_problems({**FINE, **changed}))
    assert [p.mend.removeprefix(f"{sys.executable} -m pip install ") for p in problems] == ([mend] if mend else [])


def test_scann_beside_another_tensorflow_must_go():
    versions = {name: version and version.replace("2.20", "2.21") for name, version in FINE.items()}
    (problem,) = doctor.family_problems({**versions, "scann": "1.4.2"})
    assert problem.mend.endswith("pip uninstall -y scann")


def test_a_sound_probe():
    assert list(doctor.probe_problems(PROBED, "exit code 0", "1")) == []


def test_keras_3_because_something_was_earlier():
    told = [
        {"early": ["keras"]},
        {"keras": "3.15.1"},
        {"failed": "tensorflow_recommenders", "error": "no"},
        {"done": True},
    ]
    first, second = doctor.probe_problems(told, "")
    assert "too late" in first.what
    assert first.mend == "export TF_USE_LEGACY_KERAS=1"
    assert second.mend.startswith("tfllmrec doctor")  # a consequence


def test_a_failing_import_is_installed_again(monkeypatch):
    monkeypatch.setattr(doctor, "_requirements", lambda: ["tensorflow-text>=2.20"])
    told = [*PROBED, {"failed": "tensorflow_text", "error": "ImportError: undefined symbol"}]
    (problem,) = doctor.probe_problems(told, "")
    assert problem.what == "import tensorflow_text fails: ImportError: undefined symbol"
    assert problem.mend == f"{sys.executable} -m pip install --force-reinstall 'tensorflow-text>=2.20'"


def test_an_import_that_ends_the_process():
    told = [{"early": []}, {"trying": "tensorflow"}, {"trying": "tensorflow_text"}]
    (problem,) = doctor.probe_problems(told, "exit code -11: ")
    assert problem.what == "import tensorflow_text ends the process (exit code -11: )"


def test_the_probe_without_tensorflow(monkeypatch, tmp_path):
    """The real probe in a process where TensorFlow is broken and the others are missing."""
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('broken on purpose')")
    for name in ("tf_keras", "tensorflow_text", "tensorflow_hub", "tensorflow_recommenders", "tensorboard"):
        (tmp_path / f"{name}.py").write_text("raise ModuleNotFoundError('not here')")
    (tmp_path / "tfllmrec.py").write_text("print('{')")  # noise, too
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told, end = doctor._probe([])
    assert end.startswith("exit code 0")
    problems = whats(doctor.probe_problems(told, end))
    assert problems[0] == "import tensorflow fails: RuntimeError: broken on purpose"
    assert len(problems) == 6


def test_a_probe_that_hangs(monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("python", 1, output=b'{"trying": "tensorflow"}\n')

    monkeypatch.setattr(doctor, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": hang}))
    told, end = doctor._probe([])
    assert told == [{"trying": "tensorflow"}]
    assert "no answer" in end
