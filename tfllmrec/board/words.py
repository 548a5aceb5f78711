"""Text for TensorBoard, which reads it as Markdown."""

from __future__ import annotations

from tfllmrec.wording import visible


def escaped(text: str) -> str:
    """The text as it is, on one line: its signs mean nothing."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>#|" else c for c in visible(text))
