"""Escapes text for TensorBoard, which reads it as Markdown."""

from __future__ import annotations

from tfllmrec.wording import visible


def escaped(text: str) -> str:
    """Returns the text on one line, with Markdown characters escaped."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>#|" else c for c in visible(text))
