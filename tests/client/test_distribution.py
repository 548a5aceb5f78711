"""``tfllmrec-client``, a distribution of its own: what is in it, and that it works without TensorFlow."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfllmrec import __version__

ROOT = Path(__file__).parents[2]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "tfllmrec", "client")
# What pip says when it reaches no index.
NO_INDEX = re.compile(
    r"NewConnectionError|ConnectTimeout|Failed to establish|name resolution|ProxyError|from versions: none",
    re.IGNORECASE,
)


def test_it_holds_links_to_the_one_copy():
    package = ROOT / "client" / "tfllmrec_client"
    own = {path.name for path in package.iterdir() if not path.is_symlink() and path.name != "__pycache__"}
    assert own == {"__init__.py"}
    for path in package.iterdir():
        if path.is_symlink():
            assert path.resolve() == ROOT / "tfllmrec" / path.name


def run(*command, cwd=None, **more):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, **more
    )
    return done


def output(*command, cwd=None):
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy, for what building leaves in the folders."""
    folder = tmp_path_factory.mktemp("checkout")
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=leave)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(checkout, tmp_path_factory):
    """Of both distributions the sdist, the wheel that pip makes of it, and the wheel that it makes of the checkout."""
    made = {}
    offline = ("wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    for name, source in (("tfllmrec", checkout), ("tfllmrec_client", checkout / "client")):
        out = tmp_path_factory.mktemp(name)
        script = f"from setuptools import build_meta; print(build_meta.build_sdist({str(out)!r}))"
        sdist = out / output(sys.executable, "-c", script, cwd=source).splitlines()[-1]
        for kind, given in (("of_sdist", sdist), ("of_checkout", source)):
            output(sys.executable, "-m", "pip", *offline, "--wheel-dir", out / kind, given)
        made[name] = SimpleNamespace(
            sdist=sdist, wheel=next((out / "of_sdist").iterdir()), direct=next((out / "of_checkout").iterdir())
        )
    return made


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


@pytest.mark.slow
def test_both_are_whole_and_own_no_file_in_common(built):
    core, client = (contents(built[name].wheel) for name in ("tfllmrec", "tfllmrec_client"))
    assert not core.keys() & client.keys()
    assert {name.split("/")[0] for name in core} == {"tfllmrec"}
    assert {name.split("/")[0] for name in client} == {"tfllmrec_client"}
    for name, content in client.items():
        assert content == (ROOT / "client" / name).read_bytes(), name
    assert {f"tfllmrec_client/client/{path.name}" for path in (ROOT / "tfllmrec" / "client").glob("*.py")} < set(client)
    for name, made in built.items():
        assert contents(made.wheel) == contents(made.direct)
        assert made.wheel.name.startswith(f"{name}-{__version__}-py3-none-any")
        with tarfile.open(made.sdist) as archive:
            assert not [member.name for member in archive if member.issym() or member.islnk()]
        with zipfile.ZipFile(made.wheel) as archive:
            assert [file for file in archive.namelist() if file.endswith("/LICENSE")]


@pytest.fixture
def environment(tmp_path):
    """The Python of a new virtual environment in which nothing is installed but pip."""
    venv.create(tmp_path / "venv", with_pip=True)
    return tmp_path / "venv" / "bin" / "python"


@pytest.mark.slow
def test_together_and_one_removed_after_the_other(built, environment):
    """Without what they require: the modules of the client load its transports' libraries when a client is made."""

    def importable(*modules):
        script = "import sys; from importlib.util import find_spec; print([bool(find_spec(m)) for m in sys.argv[1:]])"
        return output(environment, "-I", "-c", script, *modules).strip()

    wheels = [built[name].wheel for name in ("tfllmrec", "tfllmrec_client")]
    install = (environment, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    remove = (environment, "-m", "pip", "uninstall", "--quiet", "--yes")
    load = {
        "tfllmrec": "import tfllmrec.client.client, tfllmrec.errors",
        "tfllmrec_client": "from tfllmrec_client import Client, __version__",
    }
    for first, second in (("tfllmrec", "tfllmrec_client"), ("tfllmrec_client", "tfllmrec")):
        output(*install, *wheels)
        for script in load.values():
            output(environment, "-I", "-c", script)
        output(*remove, first.replace("_", "-"))
        assert importable("tfllmrec", "tfllmrec_client") == str([first != "tfllmrec", first != "tfllmrec_client"])
        output(environment, "-I", "-c", load[second])
        output(*remove, second.replace("_", "-"))
        assert importable("tfllmrec", "tfllmrec_client") == "[False, False]"


ASK = """
import importlib.util, json, sys
from tfllmrec_client import Client, ServingError

there = [name for name in ("tensorflow", "numpy", "pandas", "tfllmrec") if importlib.util.find_spec(name)]
answers = []
for address in sys.argv[1:]:
    with Client(address, "chain", deadline_s=60) as client:
        answer = client.recommend(["i3", "i4"], ratings=[5, 1], k=4)
        try:
            client.predict("nothing", {"k": [1]})
        except ServingError as error:
            refused = error.request_id in str(error) and len(error.request_id) == 32
        answers.append([[item.item_id for item in answer], len(answer.request_id), refused])
print(json.dumps([there, answers]))
"""


@pytest.mark.slow
@pytest.mark.tf
def test_it_recommends_over_rest_and_grpc_without_tensorflow(checkout, environment, serving, chain_version):
    from tfllmrec.serving.saved_model import SavedModel

    done = run(environment, "-m", "pip", "install", "--retries", "1", "./client", cwd=checkout)
    if done.returncode and NO_INDEX.search(done.stdout + done.stderr):
        pytest.skip(f"pip reaches no package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    with serving(chain_version.parents[1]) as server:
        addresses = f"http://127.0.0.1:{server.rest_port}", f"grpc://127.0.0.1:{server.grpc_port}"
        there, answers = json.loads(output(environment, "-I", "-c", ASK, *addresses))
    assert there == []
    expected = SavedModel.open(chain_version).recommend(histories=[["i3", "i4"]], ratings=[[5, 1]], k=4)
    assert answers == [[expected.item_id.tolist(), 32, True]] * 2
