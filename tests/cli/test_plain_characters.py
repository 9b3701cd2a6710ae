"""Output that the terminal's encoding cannot hold is printed in plain characters."""

from __future__ import annotations

import io

import pytest

from zerograd.cli import plain_characters, screen


@pytest.mark.parametrize(
    ("encoding", "text", "printed"),
    [
        ("ascii", "crème → 3 ÷ 4", "creme -> 3 ? 4"),
        ("cp1252", "crème → 3 ÷ 4", "crème -> 3 ÷ 4"),
        ("latin-1", "“so” … ½ 日", '"so" ... ½ ?'),
        ("utf-8", "▁█ → 日", "▁█ → 日"),
    ],
)
def test_characters_have_plain_ones_in_their_place(encoding, text, printed):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors=plain_characters.NAME)
    print(text, end="", file=stream, flush=True)
    assert raw.getvalue().decode(encoding) == printed


def test_a_curve_stays_a_curve():
    assert "".join(map(plain_characters.plain, screen.sparkline(range(8)))) == "_.:-=+*#"
