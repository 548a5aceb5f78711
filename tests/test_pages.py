"""Tests that README and the pages of docs/ name only existing paths, links, settings, commands, options and imports.

Their Python blocks are run by tests/test_pages_run.py.
"""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml

import tfllmrec
from tfllmrec.cli.app import app
from tfllmrec.config import ExperimentConfig, parse_config
from tfllmrec.serving.rules.document import parse_rules

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]
#: The pages that are generated when the site is built.
MADE = r"reference/(settings|commands|api/\w+)\.md$"
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
#: Paths of pages in mkdocs.yml; the file itself has YAML tags that only MkDocs reads.
NAVIGATION = re.findall(r"[\w/-]+\.md$", (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2], re.MULTILINE)
SETTING = re.compile(r"`((?:" + "|".join(ExperimentConfig.model_fields) + r")\.(?!safetensors)[a-z]\w*)[`=]")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path, *languages: str) -> list[str]:
    """Returns the code blocks of a page in these languages, without their indentation."""
    found = FENCE.findall(page.read_text())
    return [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, name, code in found if name in languages]


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub spells them in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_path_link_and_setting_that_a_page_names_is_there(page):
    text = page.read_text()
    named = re.findall(r"`((?:tfllmrec|configs|benchmarks|notebooks|docs|deploy|examples)/[\w./-]*)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []
    prose = FENCE.sub("", text)
    links = [link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]
    links = [link for link in links if not re.search(MADE, link[0])]
    assert [link for link, _, _ in links if not (page.parent / link).exists()] == []
    assert [(link, a) for link, _, a in links if a and a not in anchors(page.parent / link if link else page)] == []
    sections = ExperimentConfig().model_dump()
    settings = [name.split(".") for name in SETTING.findall(text)]
    assert [f"{section}.{key}" for section, key in settings if key not in sections[section]] == []


PROGRAM = typer.main.get_command(app)


def problems(words: list[str]) -> list[str]:
    """Returns the errors in the words after ``tfllmrec``: unknown commands, options and settings."""
    command = PROGRAM
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            return [f"no command {' '.join(words[:1])}"]
        command, words = command.commands[words[0]], words[1:]
    options = {name: option for option in command.params for name in option.opts if name.startswith("-")}
    wrong = [f"no option {word}" for word in words if word.startswith("-") and word not in options]
    for i, word in enumerate(words[:-1]):
        if word == "--set":
            try:
                parse_config({}, [words[i + 1]])
            except Exception as error:
                wrong.append(str(error))
    return wrong


def commands(code: str) -> list[list[str]]:
    """Returns the words after ``tfllmrec`` of each call in a shell block."""
    lines = code.replace("\\\n", " ").splitlines()
    calls = [re.search(r"(?:^|&& *|\$ )tfllmrec (.*)", line) for line in lines]
    return [shlex.split(call[1], comments=True) for call in calls if call]


@every_page
def test_every_command_is_one_that_the_program_takes(page):
    calls = [words for code in blocks(page, "", "bash", "sh", "console") for words in commands(code)]
    assert [(words, wrong) for words in calls if (wrong := problems(words))] == []


def test_a_wrong_command_is_found():
    assert problems(["fit", "--events", "a.csv", "--set", "model.blocks=3"]) == []
    assert problems(["fti"]) == ["no command fti"]
    assert problems(["fit", "--event", "a.csv"]) == ["no option --event"]
    assert "model.block is not a setting" in problems(["fit", "--set", "model.block=3"])[0]
    assert commands("pip install x\ntfllmrec fit \\\n  --out a  # a run\n") == [["fit", "--out", "a"]]


@every_page
def test_every_yaml_block_is_a_config_or_rules(page):
    for code in blocks(page, "yaml"):
        if page.name == "rules.md":
            parse_rules(code, page.name)
        else:
            parse_config(yaml.safe_load(code), origin=page.name)


@every_page
def test_every_python_block_compiles_and_imports_what_there_is(page):
    for code in blocks(page, "python", "py"):
        assert [name for name in names_of_the_package(ast.parse(code)) if not is_there(name)] == []


def names_of_the_package(tree: ast.AST) -> list[str]:
    """Returns the dotted names of the package that code imports or uses."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("tfllmrec", "tfllmrec_client"):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tfllmrec":
            names.append(f"tfllmrec.{node.attr}")
    return names


def is_there(name: str) -> bool:
    """Returns whether a module's text contains a name, or its folder has a module of this name; imports nothing."""
    module, _, last = name.rpartition(".")
    path = ROOT / ("client" if module == "tfllmrec_client" else "") / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.is_file() and (bool(re.search(rf"\b{last}\b", file.read_text())) or (path / f"{last}.py").is_file())


def test_a_name_that_is_not_there_is_found():
    tree = ast.parse("import tfllmrec\nfrom tfllmrec_client import Client, Clint\ntfllmrec.Hybrid\ntfllmrec.Hybird")
    wrong = [name for name in names_of_the_package(tree) if not is_there(name)]
    assert wrong == ["tfllmrec_client.Clint", "tfllmrec.Hybird"]


def test_every_page_is_in_the_navigation():
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if ROOT / "docs" in page.parents]
    assert [page for page in pages if page not in NAVIGATION] == []


def test_the_home_of_every_exported_name_is_in_the_reference():
    tree = ast.parse((ROOT / "docs" / "_site" / "pages.py").read_text())
    (described,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "PACKAGES" and node.value
    )
    homes = [home.split(".")[1:] for home in tfllmrec._HOME.values() if home != "tfllmrec.config"]
    assert {package for package, *_ in homes} <= described.keys()
    assert [home for home in homes if (modules := described[home[0]]) and not set(home[1:]) <= set(modules)] == []
    assert [package for package in described if f"reference/api/{package}.md" not in NAVIGATION] == []


def test_every_setting_is_described():
    sections = [(name, value) for name, value in ExperimentConfig() if hasattr(value, "model_fields_set")]
    fields = [(f"{name}.{key}", field) for name, part in sections for key, field in type(part).model_fields.items()]
    assert [name for name, field in fields if not field.description] == []
