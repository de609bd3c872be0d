"""Normalizes line breaks: browsers and Windows send CR LF, old systems CR; stored texts have LF."""

from __future__ import annotations


def with_line_feeds(text: str) -> str:
    """Returns the text with each CR LF, and each other CR, replaced by LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
