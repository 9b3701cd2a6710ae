"""Pages from the templates in `templates/`. A page has no script and needs no other file.

Every value is escaped, so data never becomes markup.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from zerograd.machine import format as text
from zerograd.machine.files import write_text

MAX_CARD_CHARACTERS = 320
"""The most characters of a row's text in a card."""


def write(path: Path, template: str, **values: Any) -> None:
    """Fill in a template and write the page atomically.

    Raises OSError, which names the file.
    """
    write_text(path, _templates.get_template(template).render(**values))


def typeset(number: str) -> str:
    """A number's text with minus signs in place of hyphens, and no line break before its percent sign."""
    return number.replace("-", "\u2212").replace(" %", "\u00a0%")


def percent(share: float) -> str:
    return typeset(text.percent(share))


def signed(value: float, digits: int = 2) -> str:
    return typeset(f"{value:+.{digits}f}")


def short(row: str) -> str:
    return row if len(row) <= MAX_CARD_CHARACTERS else row[: MAX_CARD_CHARACTERS - 1] + "…"


def power_of_ten(p: float) -> tuple[str, str]:
    """A small probability as (mantissa, exponent)."""
    mantissa, exponent = f"{p:.1e}".split("e")
    return mantissa, typeset(str(int(exponent)))


def thousands(number: float) -> str:
    return f"{number:,.0f}"


_templates = Environment(
    loader=PackageLoader("zerograd.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_templates.filters |= {
    "duration": text.duration,
    "megabytes": text.megabytes,
    "percent": percent,
    "power_of_ten": power_of_ten,
    "short": short,
    "signed": signed,
    "thousands": thousands,
    "typeset": typeset,
}
