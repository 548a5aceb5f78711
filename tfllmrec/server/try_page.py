"""The web page at ``/`` for trying a model in a browser; it uses the same REST API as clients."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files
from string import Template

from starlette.responses import Response

#: The page loads files of this server only, and cannot be embedded in a frame of another page.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
#: The file and the content type of each path.
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}


def page(path: str, models: Sequence[str]) -> Response:
    """Returns the response for one of the paths of :data:`FILES`.

    Args:
      path: The path.
      models: The names of the available models, which the page offers.
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
