# SPDX-License-Identifier: Apache-2.0
"""A reader of the pages that reports write."""

import html.parser

import pytest


class PageReader(html.parser.HTMLParser):
    """
    Reads a page: `tags` of its elements, `references` to other files, `alts` of its figures. Every element must be
    closed, every figure described, and all text of a figure in the page's colour.
    """

    NEVER_CLOSED = ("meta", "br")

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.references, self.alts = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []
        assert "color-scheme:light dark" in page

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        found = [given.get(name, "#") for name in ("src", "href", "xlink:href")]
        self.references += [value for value in found if not value.startswith(("#", "data:"))]
        if tag == "svg":
            assert given["role"] == "img"
            self.alts.append(given["aria-label"])
        if tag == "text":  # the text of a formula has no style; its group has
            style = given.get("style") or self.open[-1][1].get("style", "")
            assert "fill: currentColor" in style
        if tag not in self.NEVER_CLOSED:
            self.open.append((tag, given))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in self.NEVER_CLOSED:
            assert self.open.pop()[0] == tag


@pytest.fixture
def read_page():
    """A function from the HTML of a page to a reader of it, which fails where the page is not whole."""
    return PageReader
