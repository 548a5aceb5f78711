"""An exported model answers without Python: recommend.c, built from the headers and libraries of the wheels."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [pytest.mark.tf, pytest.mark.slow]

TENSORFLOW = Path(find_spec("tensorflow").origin).parent
TEXT_OPS = Path(find_spec("tensorflow_text").origin).parent / "python" / "ops"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """recommend.c, compiled."""
    if sys.platform != "linux":
        pytest.skip("built against the wheel's libraries by their names on Linux")
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed, which builds the C program")
    built = tmp_path_factory.mktemp("c") / "recommend"
    subprocess.run(
        ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{TENSORFLOW / 'include'}",
         Path(__file__).with_name("recommend.c"), "-o", built,
         f"-L{TENSORFLOW}", "-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2", f"-Wl,-rpath,{TENSORFLOW}"],
        check=True,
    )  # fmt: skip
    return built


def run(program, *arguments):
    # No way to any Python: neither its own path nor the program's.
    environment = {"PATH": "", "HOME": os.environ.get("HOME", "/"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run([program, *map(str, arguments)], env=environment, capture_output=True, text=True)


def test_it_answers_as_python_does(program, chain_version):
    from tfllmrec.serving.saved_model import SavedModel

    told = run(program, chain_version, TEXT_OPS, 6, "red toy", "i3", "nope", "i4")
    assert told.returncode == 0, told.stderr
    lines = [line.split("\t") for line in told.stdout.splitlines()]
    model = SavedModel.open(chain_version)
    history = ["i3", "nope", "i4"]
    answers = {
        "recommend": model.recommend(histories=[history], k=6),
        "search": model.search(["red toy"], 6, histories=[history]),
    }
    expected = [(name, str(item.rank), item) for name, found in answers.items() for item in found.itertuples()]
    assert len(lines) == 12
    for (signature, rank, item_id, score), (name, place, item) in zip(lines, expected, strict=True):
        assert (signature, rank, item_id) == (name, place, item.item_id)
        assert float(score) == pytest.approx(item.score, abs=1e-5)


@pytest.mark.long
def test_it_obeys_business_rules(program, chain_version, tmp_path):
    from tfllmrec.serving.rules.folder import apply_rules

    shutil.copytree(chain_version.parent, tmp_path / "chain")

    def items():
        told = run(program, tmp_path / "chain" / "1", TEXT_OPS, 6, "red toy", "i3", "i4")
        assert told.returncode == 0, told.stderr
        return [line.split("\t")[2] for line in told.stdout.splitlines()]

    recommended, found = items()[0], items()[6]
    (tmp_path / "rules.yaml").write_text(f"block:\n  - items: [{recommended}, {found}]")
    apply_rules(tmp_path / "chain", tmp_path / "rules.yaml", print)
    assert len(items()) == 12 and not {recommended, found} & set(items())
    damaged = tmp_path / "chain" / "1" / "assets" / "rules.bin"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    told = run(program, tmp_path / "chain" / "1", TEXT_OPS, 6, "red toy", "i3", "i4")
    assert told.returncode == 4 and told.stdout == ""


@pytest.mark.long
def test_it_searches_in_chinese(program, chinese_version):
    from tfllmrec.serving.saved_model import SavedModel

    model = SavedModel.open(chinese_version)
    for query in ("红茶", "蓝帐篷"):
        told = run(program, chinese_version, TEXT_OPS, 5, query)
        assert told.returncode == 0, told.stderr
        found = [line.split("\t") for line in told.stdout.splitlines() if line.startswith("search")]
        expected = model.search([query], 5)
        assert [item_id for _, _, item_id, _ in found] == expected.item_id.tolist()
        assert [float(score) for *_, score in found] == pytest.approx(expected.score.tolist(), abs=1e-5)


def test_it_says_what_is_wrong(program, tmp_path):
    told = run(program, tmp_path / "nothing", TEXT_OPS, 6, "red toy")
    assert told.returncode == 4 and "Could not find SavedModel" in told.stderr and told.stdout == ""
    told = run(program, tmp_path / "nothing", tmp_path, 6, "red toy")
    assert told.returncode == 4 and f"no library of TensorFlow Text: {tmp_path}/*.so" in told.stderr
    assert run(program, tmp_path, TEXT_OPS, "six", "red toy").returncode == 2
