"""`report.html`: the report's Markdown as one page that loads nothing, with its pictures and its style inside.

Markup inside Markdown is text here, and a link or picture that the caller does not name is text too: whatever stands in
the data, the page loads nothing and runs nothing. Its content policy says the same to the browser.
"""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Literal, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

DEFINITIONS = "How each number is defined"  # the heading of the list whose terms the tables link to
TEMPLATE = "report.html"  # beside this module
TAKEN: tuple[str, ...] = ("report", "contents")  # ids of the template
LEAST_WIDTH = 34  # rem; a wide picture is not made smaller, it scrolls
_INTERVAL = re.compile(r"\[[+-]?[\d.]+, [+-]?[\d.]+\]")  # a line that breaks inside one is hard to read
_PNG = b"\x89PNG\r\n\x1a\n"


class Heading(NamedTuple):
    level: int
    title: str
    slug: str


def page(text: str, pictures: Mapping[str, Path], links: Mapping[str, str]) -> str:
    """The page of a Markdown text.

    `pictures`: link in the text -> PNG file. `links`: other links that may stand in it -> where they lead on the page.
    Raises OSError for a picture that cannot be read.
    """
    reader = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")

    def is_known(url: str) -> bool:
        return url in pictures or url in links

    reader.validateLink = is_known
    tokens = reader.parse(text)
    headings = [*_anchor(tokens)]
    _place(tokens, pictures, links)
    _name_cells(tokens)
    _link_terms(tokens)
    tokens = [*_scrolling(tokens)]
    starts = [at for at, token in enumerate(tokens) if _is_chapter(token)]
    parts = [tokens[start:end] for start, end in pairwise([0, *starts, len(tokens)])]
    first, *chapters = (str(reader.renderer.render(part, reader.options, {})) for part in parts)
    top = [heading for heading in headings if heading.level == 2]
    title = next((heading.title for heading in headings if heading.level == 1), "Report")
    template = Template(files("warmline.evaluate").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        opening=first,
        contents="".join(f'<li><a href="#{each.slug}">{escape(each.title)}</a></li>\n' for each in top),
        chapters="".join(
            f'<section aria-labelledby="{heading.slug}" class="{heading.slug}">\n{chapter}</section>\n'
            for heading, chapter in zip(top, chapters, strict=True)
        ),
    )


def _is_chapter(token: Token) -> bool:
    return token.type == "heading_open" and token.tag == "h2" and token.level == 0


def _anchor(tokens: Sequence[Token]) -> Iterator[Heading]:
    """Give each heading an id and a link to itself."""
    used: dict[str, int] = dict.fromkeys(TAKEN, 1)
    for at, token in enumerate(tokens):
        if token.type != "heading_open" or token.level:
            continue
        inline = tokens[at + 1]
        title = _plain(inline)
        slug = _slug(title)
        used[slug] = used.get(slug, 0) + 1
        if used[slug] > 1:
            slug = f"{slug}--{used[slug]}"  # two hyphens: no title makes such a slug
        token.attrs["id"] = slug
        if token.tag != "h1" and inline.children is not None:
            attrs: dict[str, str | int | float] = {
                "href": f"#{slug}",
                "class": "anchor",
                "aria-label": f"Link to {title}",
            }
            inline.children += _linked([Token("text", "", 0, content="#")], attrs)
        yield Heading(int(token.tag[1:]), title, slug)


def _slug(title: str) -> str:
    return "-".join(re.findall(r"\w+", title.lower())) or "part"


def _plain(inline: Token) -> str:
    return "".join(child.content for child in inline.children or () if child.type in {"text", "code_inline"})


def _linked(children: Sequence[Token], attrs: dict[str, str | int | float]) -> list[Token]:
    return [Token("link_open", "a", 1, attrs=attrs), *children, Token("link_close", "a", -1)]


def _name_cells(tokens: Sequence[Token]) -> None:
    """Say which cells are headers: those of the first line, and the first of every other line; keep intervals whole."""
    for at, token in enumerate(tokens):
        if token.type in {"td_open", "th_open"}:
            for child in tokens[at + 1].children or ():
                child.content = _INTERVAL.sub(lambda found: found[0].replace(" ", "\u00a0"), child.content)
        if token.type == "th_open":
            token.attrs["scope"] = "col"
        elif token.type == "td_open" and tokens[at - 1].type == "tr_open":
            token.attrs["scope"] = "row"
            token.tag = tokens[at + 2].tag = "th"  # what opens it, its words, what closes it


def _scrolling(tokens: Sequence[Token]) -> Iterator[Token]:
    """The tokens with a named frame around each table, in which it scrolls on a narrow screen."""
    about, number = "", 0
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            about = _plain(tokens[at + 1]).removesuffix("#")
        if token.type == "table_open":
            number += 1
            yield _markup("block", _frame("region", f"Table {number}: {about}"))
        yield token
        if token.type == "table_close":
            yield _markup("block", "</div>\n")


def _markup(kind: Literal["block", "inline"], content: str) -> Token:
    return Token(f"html_{kind}", "", 0, content=content)


def _frame(role: str, label: str) -> str:
    return f'<div class="scroll" role="{role}" tabindex="0" aria-label="{escape(label)}">'


def _place(tokens: Sequence[Token], pictures: Mapping[str, Path], links: Mapping[str, str]) -> None:
    """Put each picture's bytes in its place, as a figure where it stands alone, and turn links to the page itself."""
    for at, token in enumerate(tokens):
        children = token.children or []
        for child in children:
            if child.type == "image" and (file := pictures.get(str(child.attrs["src"]))):
                _put_inside(child, file)
            elif child.type == "image":  # of no address at all, which the reader lets through
                child.type, child.children = "text", None
            elif child.type == "link_open" and not str(child.attrs["href"]).startswith("#"):
                child.attrs["href"] = links.get(str(child.attrs["href"]), f"#{TAKEN[0]}")
        before = tokens[at - 1]
        alone = len(children) == 1 and children[0].type == "image"
        if alone and before.type == "paragraph_open" and not before.hidden:
            before.tag = tokens[at + 1].tag = "figure"
            caption = children[0].content
            token.children = [
                _markup("inline", _frame("group", f"Picture: {caption}")),
                children[0],
                _markup("inline", f"</div><figcaption>{escape(caption)}</figcaption>"),
            ]


def _put_inside(image: Token, file: Path) -> None:
    content = file.read_bytes()
    width, height = _size(content)
    image.attrs = {
        "src": f"data:image/png;base64,{base64.b64encode(content).decode()}",
        "alt": "",
        "width": width,
        "height": height,
        "style": f"min-width:min({width}px,{LEAST_WIDTH}rem)",
    }
    alt = f"Picture: {image.content}. The numbers stand in the tables of this page."
    image.children = [Token("text", "", 0, content=alt)]  # what the renderer makes the alt text of


def _size(content: bytes) -> tuple[int, int]:
    """Width and height in pixels, from a PNG's first chunk. Raises OSError."""
    if not content.startswith(_PNG) or len(content) < 24:
        raise OSError("a picture of the report is not a PNG file")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def _link_terms(tokens: Sequence[Token]) -> None:
    """Link a table's header cells to the definition of what they name, the first words of it at hand."""
    terms = _terms(tokens)
    for at, token in enumerate(tokens):
        if token.tag != "th" or token.nesting != 1 or not (inline := tokens[at + 1]).children:
            continue
        words = _plain(inline)
        name = re.sub(r"\s*\[95 %\]$", "", words.rsplit(", ", 1)[-1]).strip().lower()
        if name in terms:
            slug, definition = terms[name]
            inline.children = _linked(inline.children, {"href": f"#{slug}", "title": definition})


def _terms(tokens: Sequence[Token]) -> dict[str, tuple[str, str]]:
    """What the list of definitions explains: term -> id of its list item, its definition. Gives those items ids."""
    found: dict[str, tuple[str, str]] = {}
    item, inside = None, False
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            inside = _plain(tokens[at + 1]).removesuffix("#") == DEFINITIONS
        elif inside and token.type == "list_item_open":
            item = token
        elif inside and token.type == "inline" and item is not None:
            children = token.children or []
            names = [each.content.lower() for before, each in pairwise(children) if before.type == "em_open"]
            if names:
                item.attrs["id"] = f"is-{_slug(names[0])}"
                definition = " ".join(_plain(token).split())
                for name in names:
                    found.setdefault(name, (str(item.attrs["id"]), definition))
            item = None
    return found
