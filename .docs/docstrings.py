"""What docstrings have of reStructuredText, as Markdown has it."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import griffe

import fastconv
from fastconv import nn


def place(module: ModuleType, name: str) -> str:
    """Where a public name is explained: by the short name, but for a function that its module is named after.

    The reader of the sources takes that one's short name for the module.

    >>> place(fastconv, "conv2d"), place(fastconv, "prepack")
    ('fastconv.conv2d', 'fastconv.functional.prepack.prepack')
    """
    home = getattr(getattr(module, name), "__module__", "")
    return f"{home}.{name}" if home.rpartition(".")[2] == name else f"{module.__name__}.{name}"


PLACES = {name: place(module, name) for module in (nn, fastconv) for name in module.__all__}


def linked(line: str) -> str:
    """A line with its public names as links, but for one that says the type of a parameter.

    >>> linked("As `conv2d`, not as `numpy`."), linked("weight : ndarray or `PackedWeight`")
    ('As [`conv2d`][fastconv.conv2d], not as `numpy`.', 'weight : ndarray or `PackedWeight`')
    """
    if re.match(r"\w[\w, ]* : ", line):
        return line
    names = re.compile(r"(?<!`)`(?:fastconv\.)?(?:nn\.)?(\w+)`(?!`)")
    return names.sub(lambda m: f"[{m[0]}][{PLACES[m[1]]}]" if m[1] in PLACES else m[0], line)


def markdown(text: str) -> str:
    """`text::` before a block is `text:`, names are links, and a session is code where no section says so.

    >>> markdown("A list::\\n\\n    item\\n\\n>>> 1 + 1\\n2")
    'A list:\\n\\n    item\\n\\n```pycon\\n>>> 1 + 1\\n2\\n```'
    """
    text = re.sub(r"::(?=\s*\n\s*\n)", ":", text)
    text = "\n".join(map(linked, text.split("\n")))
    section = re.search(r"^\w+\n-{3,}$", text, re.M)
    end = section.start() if section else len(text)
    session = re.compile(r"^>>> .*(?:\n(?!\n).*)*", re.M)
    return session.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```", text[:end]) + text[end:]


class Markdown(griffe.Extension):
    """Docstrings as they are read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
