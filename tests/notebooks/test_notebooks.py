"""Each notebook is stored with what it showed, and runs from top to bottom on MovieLens 100K."""

import ast
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
assert NAMES
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/tfllmrec/tfllmrec/blob/main/notebooks/{}.ipynb)"
)
SETUP = """import sys

if "google.colab" in sys.modules:
    ![ -d /content/tfllmrec ] || git clone --depth 1 https://github.com/tfllmrec/tfllmrec /content/tfllmrec
    %cd /content/tfllmrec/notebooks
    %pip install -q "..[report,serve]"  # if Colab asks for a restart: restart, and run this cell again
"""


def stored(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def run(name, clone):
    """The notebook after a run in a clone."""
    notebook = stored(name)
    where = {"metadata": {"path": clone / "notebooks"}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    return notebook


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs)


@pytest.fixture(scope="session")
def clone(made_once):
    """What the notebooks read of the repository, and the run that the first of them fits and the others open.

    All of them run here, at the same time: each writes into folders of its own.
    """

    def make(folder):
        shutil.copytree(ROOT / "configs", folder / "configs")
        (folder / "notebooks").mkdir()
        nbformat.write(run("quickstart", folder), folder / "quickstart.ipynb")

    return made_once("clone", make)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_shows_pictures(name, clone):
    ran = nbformat.read(clone / "quickstart.ipynb", as_version=4) if name == "quickstart" else run(name, clone)
    assert pictures(ran) == pictures(stored(name)) > 0


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_as_it_ran(name):
    notebook = stored(name)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output.evalue for output in outputs if output.output_type == "error"]
    assert re.findall(r"(?<![\w.])/(?:tmp|home|root|work|Users)/\S*", str(outputs)) == []  # paths of a machine
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 500_000


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_in_colab_and_defines_nothing(name):
    notebook = stored(name)
    title, setup = notebook.cells[:2]
    assert re.match("# .+\n", title.source) and BADGE.format(name) in title.source
    assert setup.source.strip() == SETUP.strip()
    python = "\n".join(re.sub(r"^[%!].*", "", cell.source, flags=re.MULTILINE) for cell in code(notebook)[1:])
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert [node.name for node in ast.walk(ast.parse(python)) if isinstance(node, kinds)] == []
