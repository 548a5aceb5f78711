"""``tfllmrec doctor``: checks that all requirements are installed and work together, and says how to repair them."""

from __future__ import annotations

import json as json_format
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

import typer

from tfllmrec.cli.arguments import Json
from tfllmrec.cli.output import print_json, say
from tfllmrec.errors import ModelError

# Packages that need TensorFlow's minor version, because they are compiled against it or copy a part of it.
TENSORFLOW_FAMILY = ("tf-keras", "tensorflow-text", "tensorboard")
SHOWN = (
    "tensorflow",
    "tf-keras",
    "tensorflow-text",
    "tensorflow-hub",
    "tensorflow-recommenders",
    "tensorboard",
    "numpy",
    "pandas",
    "scann",
    "setuptools",
)
OPTIONAL = ("scann",)
# tensorflow_recommenders imports scann if it is installed, so an incompatible scann breaks both.
SCANN, SCANN_TENSORFLOW = "1.4.2", "2.20"
DEFAULT_ENCODER = "minilm"  # the default of text.encoder, which is in a module that needs pydantic
LEGACY_KERAS = ("1", "true", "True")
PROBE_TIMEOUT_S = 180
LISTED = 20  # languages

# The probe runs in a separate process, because a broken library may end its process instead of raising an error.
PROBE = """
import json, sys
def tell(**what): print(json.dumps(what), flush=True)
tell(early=[name for name in ("tensorflow", "keras", "tf_keras") if name in sys.modules])
import tfllmrec
for name in ("tensorflow", "tf_keras", "tensorflow_text", "tensorflow_hub", "tensorflow_recommenders", "tensorboard"):
    tell(trying=name)
    try:
        __import__(name)
    except Exception as error:
        tell(failed=name, error=f"{type(error).__name__}: {error}")
tf = sys.modules.get("tensorflow")
try:
    tell(devices=[device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices()])
    # tf.keras of the old kind has no version of its own.
    tell(keras=sys.modules[tf.keras.Model.__module__.split(".")[0]].__version__)
except Exception:
    pass  # one of the imports has said why
tell(done=True)
for encoder in sys.argv[1:]:
    tell(loading=encoder)
    try:
        from tfllmrec.config import TextConfig
        from tfllmrec.text.encoder import TextEncoder
        name, precision = encoder.split("-")
        TextEncoder.from_config(TextConfig(encoder=name, precision=precision))
        tell(loaded="")
    except Exception as error:
        tell(loaded=f"{type(error).__name__}: {error}")
"""


@dataclass(frozen=True)
class Problem:
    """A problem, and the command that fixes it."""

    what: str
    mend: str


@dataclass
class Diagnosis:
    """The output of ``doctor --json``."""

    python: str
    versions: dict[str, str | None]
    devices: list[str] = field(default_factory=list)
    keras: str | None = None
    cache: dict[str, Any] = field(default_factory=dict)
    encoders: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def doctor(json: Json = False) -> None:
    """Check the installation, and print how to repair it.

    Prints versions, devices, caches and text encoders, and a command that fixes each problem. Exits with 4 if there is
    a problem.
    """
    diagnosis = diagnose()
    if json:
        print_json({"ok": not diagnosis.problems, **asdict(diagnosis)})
    else:
        _print(diagnosis)
    if diagnosis.problems:
        raise typer.Exit(ModelError.exit_code)


def diagnose() -> Diagnosis:
    """Checks everything; raises no errors, whatever is broken."""
    versions = {name: _version(name) for name in SHOWN}
    python = ".".join(map(str, sys.version_info[:3]))
    result = Diagnosis(python, versions)
    result.problems += requirement_problems(_requirements(), python)
    result.problems += family_problems(versions)
    if find_spec("pkg_resources") is None:
        result.problems.append(
            Problem("pkg_resources is missing, which tensorflow-hub and tensorboard import", _pip("setuptools<81"))
        )
    result.encoders = _encoders()
    present = [encoder["name"] for encoder in result.encoders if encoder["present"]]
    if DEFAULT_ENCODER not in present:
        result.warnings.append(_absent())
    told, end = _probe(_to_load(present))
    for line in told:
        result.devices = line.get("devices", result.devices)
        result.keras = line.get("keras", result.keras)
    result.problems += probe_problems(told, end, os.environ.get("TF_USE_LEGACY_KERAS"), len(result.problems) > 0)
    result.cache, unwritable = _cache()
    result.problems += unwritable
    return result


def requirement_problems(requirements: list[str] | None, python: str) -> Iterator[Problem]:
    """Yields declared requirements that the installed versions do not meet; ``None``: the package is not installed."""
    if requirements is None:
        yield Problem("tfllmrec is not installed, only found", f"{_python()} -m pip install -e .")
        return
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Problem("packaging is missing, so that versions cannot be compared", _pip("packaging"))
        return
    if not (3, 11) <= tuple(map(int, python.split(".")[:2])) <= (3, 13):
        yield Problem(f"Python {python}: TensorFlow 2.20 needs 3.11 to 3.13 here", "make PYTHON=python3.11 demo")
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _version(requirement.name)
        needed = f"{requirement.name}{requirement.specifier}"
        if installed is None:
            yield Problem(f"{requirement.name} is missing", _pip(needed))
        elif not requirement.specifier.contains(installed, prereleases=True):
            yield Problem(f"{requirement.name} {installed}: {requirement.specifier} is needed", _pip(needed))


def family_problems(versions: Mapping[str, str | None]) -> Iterator[Problem]:
    """Yields packages that are valid on their own, but do not work together."""
    tensorflow = versions.get("tensorflow")
    if tensorflow is None:
        return
    minor = ".".join(tensorflow.split(".")[:2])
    for name in TENSORFLOW_FAMILY:
        version = versions.get(name)
        if version is not None and ".".join(version.split(".")[:2]) != minor:
            yield Problem(f"{name} {version} does not go with tensorflow {tensorflow}", _pip(f"{name}=={minor}.*"))
    scann = versions.get("scann")
    if scann is not None and (scann, minor) != (SCANN, SCANN_TENSORFLOW):
        what = f"scann {scann} with tensorflow {tensorflow} breaks the import of tensorflow_recommenders"
        mend = _pip(f"scann=={SCANN}") if minor == SCANN_TENSORFLOW else f"{_python()} -m pip uninstall -y scann"
        yield Problem(what, mend)


def probe_problems(
    told: list[dict[str, Any]], end: str, legacy: str | None = None, blamed: bool = False
) -> Iterator[Problem]:
    """Yields the problems that the probe reports: Keras 3, and imports that fail or end the process.

    Args:
      told: The lines of the probe. The process may have ended while it loaded the last encoder.
      end: How the probe ended, and its last line on stderr.
      legacy: The user's value of ``TF_USE_LEGACY_KERAS``.
      blamed: Whether an earlier problem may be the cause of a failing import.
    """
    lines: dict[str, Any] = {key: value for line in told for key, value in line.items()}
    wrong_keras = str(lines.get("keras", "2")).startswith("3")
    if legacy is not None and legacy not in LEGACY_KERAS:
        wrong_keras = True
        what = f"TF_USE_LEGACY_KERAS is {legacy!r}, which makes tf.keras Keras 3; TensorFlow Recommenders needs Keras 2"
        yield Problem(what, "unset TF_USE_LEGACY_KERAS")
    elif wrong_keras and lines.get("early"):
        early = ", ".join(lines["early"])
        what = f"{early} is loaded before tfllmrec, which then sets TF_USE_LEGACY_KERAS too late: tf.keras is Keras 3"
        yield Problem(what, "export TF_USE_LEGACY_KERAS=1")
    elif wrong_keras:
        what = f"tf.keras is Keras {lines['keras']}; TensorFlow Recommenders needs Keras 2"
        yield Problem(what, _pip("--force-reinstall", _declared("tf-keras")))

    def mend(module: str) -> str:
        if blamed or wrong_keras:
            return "tfllmrec doctor  # again, after the lines above"
        return _pip("--force-reinstall", _declared(module.replace("_", "-")))

    for line in told:
        if "failed" in line:
            yield Problem(f"import {line['failed']} fails: {_short(line['error'])}", mend(line["failed"]))
    if not lines.get("done"):
        module = lines.get("trying", "tensorflow")
        yield Problem(f"import {module} ends the process ({end})", mend(module))
    if "failed" in lines:
        return
    encoders = [line["loading"] for line in told if "loading" in line]
    errors = [line["loaded"] for line in told if "loaded" in line]
    for encoder, error in zip_longest(encoders, errors, fillvalue=end):
        if error:
            folders = f"{shlex.quote(str(_cache_folder()))}/hub/{encoder.partition('-')[0]}-*"
            what = f"the text encoder {encoder} cannot be loaded: {_short(error)}"
            yield Problem(what, f"rm -r {folders}  # it is made again from the weights")


def _probe(encoders: list[str]) -> tuple[list[dict[str, Any]], str]:
    """Runs the probe, which also loads ``encoders`` (``NAME-PRECISION``); returns its lines and how it ended."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", PROBE, *encoders]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S
        )
        stdout, last = done.stdout, (done.stderr.strip().splitlines() or [""])[-1]
        end = f"exit code {done.returncode}: {_short(last)}"
    except subprocess.TimeoutExpired as error:
        partial = error.stdout or b""
        stdout = partial.decode() if isinstance(partial, bytes) else partial
        end = f"no answer in {PROBE_TIMEOUT_S} s"
    told = []
    for line in stdout.splitlines():
        try:
            value = json_format.loads(line)
        except ValueError:
            continue  # something that a library printed
        if isinstance(value, dict):
            told.append(value)
    return told, end


def _encoders() -> list[dict[str, Any]]:
    """Returns the bundled text encoders: name, languages, and whether the cache has the weights."""
    from tfllmrec.assets import ASSETS, is_present

    found = []
    for asset in (asset for asset in ASSETS if asset.kind == "weights"):
        try:
            present = is_present(asset)
        except OSError:  # not readable for this user
            present = False
        found.append({"name": asset.name, "languages": list(asset.languages), "present": present})
    return found


def _to_load(present: list[str]) -> list[str]:
    """Returns those of the encoders whose module is in the cache, and the default one, as ``NAME-PRECISION``."""
    made = {folder.name.rpartition("-")[0] for folder in (_cache_folder() / "hub").glob("*-*float*-*")}
    return [
        encoder
        for name in present
        for encoder in (f"{name}-float32", f"{name}-bfloat16")
        if encoder in made or encoder == f"{DEFAULT_ENCODER}-float32"
    ]


def _absent() -> str:
    folder = _cache_folder() / "weights" / DEFAULT_ENCODER
    return (
        f"the weights of {DEFAULT_ENCODER}, the default text encoder, are not in the cache: they are downloaded "
        f"when they are first needed. Without a network, put the files into {folder} by hand."
    )


def _cache_folder() -> Path:
    from tfllmrec.assets import cache_folder

    return cache_folder()


def _cache() -> tuple[dict[str, Any], list[Problem]]:
    from tfllmrec.assets import installed

    folder = _cache_folder()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        problems = []
    except OSError as error:
        mend = 'export TFLLMREC_CACHE="$PWD/.cache"'
        problems = [Problem(f"the cache {folder} cannot be written: {error.strerror or error}", mend)]
    try:
        entries = [{"name": entry.name, "size_bytes": entry.size_bytes} for entry in installed()]
    except OSError:  # not readable either; the problem is reported above
        entries = []
    return {"folder": str(folder), "writable": not problems, "entries": entries}, problems


def _print(diagnosis: Diagnosis) -> None:
    say(f"python                   {diagnosis.python}  {sys.executable}")
    for name, version in diagnosis.versions.items():
        absent = "not installed (optional)" if name in OPTIONAL else "MISSING"
        say(f"{name:<24} {version or absent}")
    say(f"{'tf.keras':<24} {diagnosis.keras or 'unknown'}")
    say(f"{'devices':<24} {', '.join(diagnosis.devices) or 'unknown'}")
    entries = diagnosis.cache["entries"]
    size = sum(entry["size_bytes"] for entry in entries)
    say(f"{'cache':<24} {diagnosis.cache['folder']}  {size / 1e6:,.1f} MB")
    for entry in entries:
        say(f"  {entry['name']:<40} {entry['size_bytes'] / 1e6:>10,.1f} MB")
    say("text encoders")
    for encoder in diagnosis.encoders:
        where = "weights in the cache" if encoder["present"] else "weights not in the cache"
        say(f"  {encoder['name']:<8} {where}; {_in_words(encoder['languages'])}")
    for warning in diagnosis.warnings:
        say(f"warning: {warning}")
    if not diagnosis.problems:
        say("everything is in order")
    for problem in diagnosis.problems:
        say()
        say(f"problem: {problem.what}")
        say(f"  mend:  {problem.mend}")


def _in_words(languages: list[str]) -> str:
    """Returns the names of up to 20 languages; for more, their number and some examples."""
    if len(languages) <= LISTED:
        return ", ".join(languages)
    return f"{len(languages)} languages, such as {', '.join(languages[:: len(languages) // 6])}"


def _requirements() -> list[str] | None:
    try:
        return metadata.requires("tfllmrec") or []
    except metadata.PackageNotFoundError:
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _declared(name: str) -> str:
    """Returns ``name`` with the versions that tfllmrec requires."""
    from packaging.requirements import Requirement

    declared = [Requirement(text) for text in _requirements() or []]
    return next((f"{r.name}{r.specifier}" for r in declared if r.name == name), name)


def _python() -> str:
    return shlex.quote(str(Path(sys.executable)))


def _pip(*requirements: str) -> str:
    return f"{_python()} -m pip install {' '.join(map(shlex.quote, requirements))}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:197]}..."
