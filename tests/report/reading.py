"""A report as a reader, or a program, finds it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reading(HTMLParser):
    """Reads a page: balanced elements, the numbers at the top, the JSON, all text, what it would load.

    Attributes:
        keys: Key of the JSON to (text, value) of the number that is shown.
        loads: Addresses that a browser would fetch by itself.
        scripts: Elements that would run, or might.
        cells: Texts of each row of tables.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.keys: dict[str, tuple[str, str]] = {}
        self.loads: list[str] = []
        self.scripts: list[str] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.json = "", ""
        self.cells: list[list[str]] = []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    @property
    def values(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.json)
        return found

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        own = dict(attributes)
        self.loads += [str(own[name]) for name in ("src", "href", "data", "poster", "srcset") if own.get(name)]
        self.scripts += [name for name in own if name.startswith("on")]
        if tag == "script" and own.get("type") != "application/json":
            self.scripts.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th") and self.cells:
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append((tag, own))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1][0]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        tag, own = self.open[-1] if self.open else ("", {})
        if tag == "script":
            self.json += data
        elif tag != "style":
            self.text += data
            if own.get("data-key"):
                self.keys[str(own["data-key"])] = (data, str(own["value"]))
            if any(name in ("td", "th") for name, _ in self.open):
                self.cells[-1][-1] += data
