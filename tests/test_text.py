"""Untrusted text on one line, and text on streams that have ASCII alone."""

import codecs
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from longvis_bench.text import ascii_instead, clean, first_line, in_ascii, message_of


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("±2 µs", "+-2 us"), ("256¹⁰", "256^1^0"), ("café…", "cafe..."), ("plain", "plain"), ("模", "?")],
)
def test_text_in_ascii(text: str, wanted: str) -> None:
    assert in_ascii(text) == wanted


@given(st.text())
def test_any_text_becomes_ascii(text: str) -> None:
    assert in_ascii(text).isascii()


@given(st.text())
@example("0\r\x1b\r0")
def test_clean_text_is_one_printable_line(text: str) -> None:
    found = clean(text)
    assert found.isprintable()
    assert clean(found) == found


@pytest.mark.parametrize(("encoding", "wanted"), [("ascii", "+-1 us ^1"), ("latin-1", "±1 µs ¹")])
def test_a_stream_replaces_only_what_its_encoding_lacks(encoding: str, wanted: str) -> None:
    codecs.register_error("longvis-test", ascii_instead)
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, errors="longvis-test")
    stream.write("±1 µs ¹")
    stream.flush()
    assert buffer.getvalue().decode(encoding) == wanted
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", errors="longvis-test")


@pytest.mark.parametrize(("text", "wanted"), [("\n one.\ntwo", "one"), ("a;", "a"), ("", ""), (" \n", "")])
def test_first_line_of_a_message(text: str, wanted: str) -> None:
    assert first_line(text) == wanted


def test_an_exception_without_a_message_is_named_by_its_type() -> None:
    assert message_of(RuntimeError()) == "RuntimeError"
    assert message_of(ValueError("no such mode.\nAt line 3")) == "no such mode"
