"""What docstrings have of reStructuredText, as Markdown has it."""

from __future__ import annotations

import re
from typing import Any

import griffe


def markdown(text: str) -> str:
    """`text::` before a block is `text:`; sessions are code, but for those of sections, which are known.

    >>> markdown("A list::\\n\\n    item\\n\\n>>> 1 + 1\\n2")
    'A list:\\n\\n    item\\n\\n```pycon\\n>>> 1 + 1\\n2\\n```'
    """
    text = re.sub(r"::(?=\s*\n\s*\n)", ":", text)
    section = re.search(r"^\w+\n-{3,}$", text, re.M)
    end = section.start() if section else len(text)
    session = re.compile(r"^>>> .*(?:\n(?!\n).*)*", re.M)
    return session.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```", text[:end]) + text[end:]


class Markdown(griffe.Extension):
    """Docstrings as they are read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
