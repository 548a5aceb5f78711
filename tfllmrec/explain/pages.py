"""Pages from templates. Inserted values are data, so they are escaped, and their invisible characters are shown."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfllmrec.errors import not_installed
from tfllmrec.wording import clipped

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
#: The maximum number of characters of an inserted text.
LETTERS = 1000

_MARKDOWN = re.compile(r"[\\`*\[\]<>|#]")


def html_page(template: str, **facts: Any) -> str:
    """Renders an HTML page from a template; only text marked by :func:`as_is` is not escaped.

    Raises:
      ConfigError: jinja2 is not installed.
    """
    return _environment(html=True).get_template(template).render(facts)


def markdown_page(template: str, **facts: Any) -> str:
    """Renders a Markdown page; special characters of Markdown and HTML in data are escaped by a backslash.

    Raises:
      ConfigError: jinja2 is not installed.
    """
    return _environment(html=False).get_template(template).render(facts)


def as_is(text: str) -> Any:
    """Marks HTML or Markdown made by this package, so that a template prints it without escaping."""
    require_jinja()
    from markupsafe import Markup

    return Markup(text)


def require_jinja() -> None:
    """Checks that jinja2 is installed.

    Raises:
      ConfigError: jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise not_installed("pages and cards need jinja2", error, "report") from error


@functools.cache
def _environment(html: bool) -> Environment:
    require_jinja()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        if not isinstance(value, str) or isinstance(value, Markup):
            return value
        value = clipped(value, LETTERS)
        return value if html else _MARKDOWN.sub(r"\\\g<0>", value)

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["groups"] = _groups
    return environment


def _groups(parts: Sequence[tuple[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Groups successive parts of a section of the same kind."""
    return [(kind, [part for _, part in group]) for kind, group in itertools.groupby(parts, key=lambda part: part[0])]
