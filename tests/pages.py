"""A reader of HTML pages for tests: tags with their attributes, what is seen, and what is not well formed."""

from collections.abc import Sequence
from html.parser import HTMLParser

VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})
BLOCKS = frozenset({"p", "li", "ul", "td", "th", "div", "br", "h1", "h2", "h3", "blockquote", "pre", "figcaption"})


class Page(HTMLParser):
    """A page, read at once."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.problems: list[str] = []
        self._open: list[str] = []
        self._seen: list[str] = []
        self.feed(text)
        self.close()
        self.problems += [f"<{tag}> is never closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len({*names}) != len(names):
            self.problems.append(f"<{tag}> has an attribute twice: {names}")
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag in BLOCKS:
            self._seen.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.problems.append(f"</{tag}> at {self.getpos()} closes {self._open[-1:]}")
        else:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self._seen.append(data)

    @property
    def text(self) -> str:
        """What is seen, spaces and lines as one space."""
        return " ".join("".join(self._seen).split())

    def values(self, attribute: str) -> list[str]:
        """Every value of an attribute."""
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]
