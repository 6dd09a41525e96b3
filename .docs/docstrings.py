"""What docstrings have of reStructuredText, as Markdown has it."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Markdown(griffe.Extension):
    """`text::` before an indented block is `text:`; the block is code in both."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"::(?=\s*\n\s*\n)", ":", obj.docstring.value)
