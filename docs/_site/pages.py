"""MkDocs hook: the pages that are made from other files, links out of ``docs/``, and the content of linked scripts.

Pages in ``docs/`` link to files of the repository as GitHub does, ``../benchmarks/RESULTS.md``. In the site the README
is the home page, and every other linked file from outside ``docs/`` stands below ``repository/``. Settings, commands
and the lists of modules come from the code; neither TensorFlow nor any other large package is loaded.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tfllmrec import _HOME  # noqa: E402
from tfllmrec.config import DataConfig, ExperimentConfig, Section  # noqa: E402

#: Pages made of a file outside of ``docs/``.
HOME = "README.md"
#: The packages of the API reference, and their modules that it describes; ``None``: all.
PACKAGES: dict[str, list[str] | None] = {
    "data": None,
    "evaluation": None,
    "feedback": None,
    "text": ["encoder", "template", "store", "tuning", "bundled", "reading"],
    "layers": None,
    "losses": None,
    "models": None,
    "board": ["scoreboard"],
    "training": ["fit", "callbacks", "defaults"],
    "runs": ["experiment", "run", "search", "update"],
    "explain": ["compare", "report", "card", "experiment", "board"],
    "serving": ["export", "saved_model", "signatures", "new_items", "gate", "promotion"],
    "client": ["client", "answers", "status"],
}
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
#: A line with a link to a config or script and nothing else.
SHOWN = re.compile(r"^(?:[\w ]+: )?\[[^\]]+\]\(([^)\s]+\.(yaml|py))\)$", re.MULTILINE)
#: The style that pandas gives its tables; without it they look like the others.
PANDAS = re.compile(r"<style scoped>.*?</style>\s*<table border=\"1\" class=\"dataframe\">", re.DOTALL)
#: A picture of another host, and its link.
BADGE = re.compile(r"\[!\[[^\]]*\]\(https://[^)]*\)\]\(([^)]*)\)")
FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made, and the files that pages link to."""
    made: dict[str, Callable[[], str]] = {
        "reference/settings.md": settings,
        "reference/commands.md": commands,
        "reference/api/index.md": exported_names,
        **{f"reference/api/{package}.md": lambda p=package: modules(p) for package in PACKAGES},
    }
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content()))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for uri, content in notebook(path).items():
            files.append(File.generated(config, uri, content=content))
    waiting = [
        ROOT / HOME,
        *(Path(str(file.abs_src_path)) for file in files.documentation_pages() if file.abs_src_path),
    ]
    waiting += [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md")]
    while waiting:
        path = waiting.pop()
        uri = uri_of(path)
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
        if path.suffix == ".md":
            new = (target for target in targets(path) if files.get_file_from_path(uri_of(target)) is None)
            waiting += [target for target in new if target.is_file()]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a page as they are in the site."""
    path = source_of(page.file)
    if path is None:
        return markdown

    def in_site(link: re.Match[str]) -> str:
        opening, target, anchor, closing = link.groups()
        if "://" in target or target.startswith("mailto:"):
            return link[0]
        aim = (path.parent / target).resolve()
        if aim.is_dir():  # GitHub lists a folder; the site has no page for it
            aim /= "README.md"
        uri = posixpath.relpath(uri_of(aim), posixpath.dirname(page.file.src_uri) or ".")
        return f"{opening}{uri}{anchor or ''}{closing}"

    def with_content(line: re.Match[str]) -> str:
        target, suffix = line.groups()
        return f"{line[0]}\n\n```{suffix}\n{(path.parent / target).read_text()}```\n"

    return outside_fences(markdown, lambda text: LINK.sub(in_site, SHOWN.sub(with_content, text)))


def notebook(path: Path) -> dict[str, str | bytes]:
    """The page of a notebook, with what it showed when it was stored, and its pictures."""
    markdown, made = MarkdownExporter().from_filename(path, {"output_files_dir": f"{path.stem}_pictures"})
    markdown = BADGE.sub(r"[Open in Colab](\1)", markdown)
    markdown = PANDAS.sub("<table>", markdown)
    pages = {f"{path.stem}.md": markdown, **made["outputs"]}
    return {f"notebooks/{name}": content for name, content in pages.items()}


def outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def targets(path: Path) -> Iterator[Path]:
    """The files that a page links to."""
    for _, target, _, _ in LINK.findall(FENCE.sub("", path.read_text())):
        if "://" not in target and not target.startswith("mailto:"):
            yield Path(os.path.normpath(path.parent / target))


def uri_of(path: Path) -> str:
    """Where the site has a file of the repository."""
    inside = Path(os.path.normpath(path)).relative_to(ROOT)
    if inside == Path(HOME):
        return "index.md"
    if inside.suffix == ".ipynb":
        return inside.with_suffix(".md").as_posix()
    return inside.relative_to("docs").as_posix() if inside.parts[0] == "docs" else f"repository/{inside.as_posix()}"


def source_of(file: File) -> Path | None:
    """The file of the repository that a page is made of; ``None``: it is made of code."""
    if file.src_uri == "index.md":
        return ROOT / HOME
    path = ROOT / file.src_uri.removeprefix("repository/") if file.src_uri.startswith("repository/") else None
    path = path or ROOT / "docs" / file.src_uri
    return path if path.is_file() else None


# --- Made of code -----------------------------------------------------------------------------------------------------


def settings() -> str:
    """Every setting with its type, default and description."""
    lines = [
        "# Settings",
        "",
        "A config is a YAML file with the sections below. Every setting may be left out. `--set SECTION.KEY=VALUE`",
        "sets one on the command line. *auto* settings are chosen from the data when a run starts, printed, and",
        "written to `config.yaml` in the run folder.",
        "",
    ]
    for name, default in ExperimentConfig():
        if isinstance(default, Section):
            lines += [f"## {name}", "", f"{(type(default).__doc__ or '').splitlines()[0]}", "", *table(type(default))]
        else:
            field = ExperimentConfig.model_fields[name]
            lines += [f"## {name}", "", f"`{name}: {default}`. {field.description or ''}", ""]
        if name == "data":
            lines += ["### data.fields", "", "The keys of each entry, by the name of the column.", ""]
            lines += table(DataConfig.model_fields["fields"].annotation.__args__[1])  # type: ignore[union-attr]
    return "\n".join(lines)


def table(section: type[Section]) -> list[str]:
    """The settings of a section as a table in Markdown."""
    lines = ["| setting | values | default | |", "|---|---|---|---|"]
    for name, schema in section.model_json_schema(ref_template="{model}")["properties"].items():
        described = schema.get("description", "")
        value = section.model_fields[name].get_default(call_default_factory=True)
        default = f"`{plain(value)}`" if value is not None else "*auto*" if "auto" in described else "none"
        lines.append(f"| `{name}` | {values(schema)} | {default} | {cell(described)} |")
    return [*lines, ""]


def values(schema: dict[str, Any]) -> str:
    """What a setting may be, in words."""
    if "anyOf" in schema:
        return " or ".join(values(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "settings")
    if kind == "array":
        return f"list of {values(schema['items'])}"
    if kind == "object":
        return f"name: {values(schema['additionalProperties'])}" if "additionalProperties" in schema else "settings"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{words} {schema[key]:g}" for key, words in bounds.items() if key in schema]
    named = {"number": "number", "integer": "whole number", "boolean": "true, false", "string": "text"}
    kind = schema.get("format", kind)
    return ", ".join([named.get(kind, kind), *limits])


def plain(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def cell(text: str) -> str:
    """Text in a table: no column of its own, no placeholder that reads like HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def commands() -> str:
    """Every command with its arguments and options, as ``--help`` has them."""
    import typer.main

    from tfllmrec.cli.app import app

    lines = [
        "# Commands",
        "",
        "Results go to stdout, all else to stderr. Exit codes: 0 done, 1 a file that cannot be written, or a bug, 2",
        "usage or config, 3 data, 4 model, 5 a check that failed (an alarm of `monitor`, a run that is not",
        "promoted), 130 Ctrl-C.",
        "",
    ]

    def describe(name: str, command: Any) -> None:
        if hasattr(command, "commands"):
            for inner, below in command.commands.items():
                describe(f"{name} {inner}", below)
            return
        lines.extend([f"## {name}", "", *(cell(part) + "\n" for part in (command.help or "").split("\n\n"))])
        lines.extend(["| | default | |", "|---|---|---|"])
        for parameter in command.params:
            names = ", ".join(f"`{option}`" for option in parameter.opts) or f"`{parameter.name}`"
            if parameter.param_type_name == "argument":
                names = f"`{(parameter.metavar or parameter.name or '').upper()}`"
            default = parameter.default
            shown = (
                f"`{plain(default)}`" if isinstance(default, str | int | float | Path) and default is not False else ""
            )
            lines.append(f"| {names} | {shown} | {cell(getattr(parameter, 'help', '') or '')} |")
        lines.append("")

    describe("tfllmrec", typer.main.get_command(app))
    return "\n".join(lines)


def exported_names() -> str:
    """The names that ``import tfllmrec`` offers, with the module that each comes from."""
    lines = [
        "# Python",
        "",
        "`import tfllmrec` before any code that uses `tf.keras`: it selects Keras 2, which TensorFlow Recommenders",
        "needs. These names are loaded when they are first used:",
        "",
        "| name | from |",
        "|---|---|",
    ]
    for name, home in _HOME.items():
        package, *module = home.split(".")[1:]
        page = "../settings.md" if package == "config" else f"{package}.md{f'#{home}.{name}' if module else ''}"
        lines.append(f"| [`tfllmrec.{name}`]({page}) | `{home}` |")
    return "\n".join([*lines, ""])


def modules(package: str) -> str:
    """The page of a package: each of its modules, by mkdocstrings."""
    folder = ROOT / "tfllmrec" / package
    names = PACKAGES[package] or sorted(path.stem for path in folder.glob("[!_]*.py"))
    summary = (ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "").split("\n\n")[0]
    return "\n".join(
        [f"# tfllmrec.{package}", "", summary, "", *(f"::: tfllmrec.{package}.{name}\n" for name in names)]
    )
