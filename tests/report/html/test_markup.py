"""HTML from texts: escaped, on one line, and without local paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longvis_bench.report.html.markup import Markup, element, escaped, script_json, table


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("<b>", "&lt;b&gt;"),
        ("a & \"b\" 'c'", "a &amp; &quot;b&quot; &#x27;c&#x27;"),
        ("two\nlines\x1b[31m", "two lines[31m"),
        ("read /home/alice/data/x.png", "read x.png"),
        (f"{Path.home()}/x is lost", "x is lost"),
    ],
)
def test_texts_are_escaped_and_have_no_paths(text: str, html: str) -> None:
    assert escaped(text) == html


def test_attributes_are_escaped_and_markup_is_kept() -> None:
    inner = element("b", "<")
    assert element("p", inner, " >", class_='"x"', data_row=3, id=None) == (
        '<p class="&quot;x&quot;" data-row="3"><b>&lt;</b>&gt;</p>'
    )
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'


def test_markup_in_an_attribute_is_not_taken_for_a_path() -> None:
    assert 'content="a+/bc/de"' in element("meta", content=Markup("a+/bc/de"))


def test_json_in_a_script_cannot_end_it() -> None:
    value = {"name": "</script><script>&<!--\u2028"}
    text = script_json(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_a_table_has_headings_of_columns_and_rows() -> None:
    made = table(["model", "n"], [["a", "1"]], "label", numbers=1)
    assert '<th scope="col">model</th><th scope="col" class="number">n</th>' in made
    assert '<th scope="row">a</th><td class="number">1</td>' in made
    assert 'tabindex="0" role="region" aria-label="label"' in made
