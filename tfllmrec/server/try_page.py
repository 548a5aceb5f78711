"""The page at ``/``: try a model in a browser, by the same REST API that clients ask."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files
from string import Template

from starlette.responses import Response

#: Only what this server sends is loaded, and the page is in no frame of another one.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
#: Path -> file, type.
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}


def page(path: str, models: Sequence[str]) -> Response:
    """The file at one of the paths of :data:`FILES`.

    Args:
      models: the names of those that answer, for the page to choose from.
    """
    name, kind = FILES[path]
    text = (files("tfllmrec.server") / "page" / name).read_text(encoding="utf-8")
    if name == "page.html":
        text = Template(text).substitute(models="".join(f"<option>{html.escape(model)}</option>" for model in models))
    headers = {
        "content-type": kind,
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
    }
    return Response(text, headers=headers)
