"""Templates and expressions over the columns of a row: sandboxed Jinja, where an unknown column is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, UndefinedError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_REPEATS = 10_000
"""The most repeats of a text, and the largest base or exponent of a power, in a template. A task from elsewhere could
otherwise ask for all memory.
"""


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with operators that bound the length of a text."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "**" and numbers and max(abs(left), abs(right)) > MAX_REPEATS:
            raise TemplateError(f"{left} ** {right} is too large")
        if operator == "*" and not numbers and max(x for x in (left, right, 0) if isinstance(x, int)) > MAX_REPEATS:
            raise TemplateError(f"a text is repeated more than {MAX_REPEATS:,} times")
        if operator == "%" and not numbers:
            raise TemplateError("% is for numbers; write {{ column }}")
        return super().call_binop(context, operator, left, right)


_ENVIRONMENT = _Environment(undefined=StrictUndefined, keep_trailing_newline=True)
for _name in ("center", "format", "indent"):  # they pad to any width
    del _ENVIRONMENT.filters[_name]

ROW_NAME = "row"
"""The name of the whole row, for columns whose names are not identifiers: `{{ row['review text'] }}`."""


class Template:
    """A text with placeholders: `{{ column }}`.

    field: the template's name in messages.
    Raises ValueError for a text that is not a template.
    """

    def __init__(self, source: str, field: str = "template") -> None:
        self.source = source
        self.field = field
        try:
            parsed = _ENVIRONMENT.parse(source)
            names, of_row = meta.find_undeclared_variables(parsed), _of_row(parsed)
            self.names = frozenset(names - {ROW_NAME} | of_row if of_row else names)
            self._template = _ENVIRONMENT.from_string(source)
        except TemplateError as error:
            raise ValueError(f"{field} {source!r} is not a template: {error}; a placeholder is written {{{{ column }}}}") from None

    def render(self, row: Mapping[str, Any]) -> str:
        """The text for a row. Raises ValueError naming a column that the row lacks."""
        try:
            return self._template.render({**row, ROW_NAME: row})
        except UndefinedError as error:
            raise ValueError(f"{self.field} {self.source!r}: {_with_columns(error, row)}") from None
        except Exception as error:  # of anything that the template calls
            raise ValueError(f"{self.field} {self.source!r} fails: {error}") from None


def _of_row(parsed: nodes.Template) -> set[str]:
    """The columns that a template reads as `row['a name']` or `row.name`."""
    columns = set()
    for item in parsed.find_all(nodes.Getitem):
        if isinstance(item.node, nodes.Name) and item.node.name == ROW_NAME and isinstance(item.arg, nodes.Const):
            columns.add(str(item.arg.value))
    for name in parsed.find_all(nodes.Getattr):
        if isinstance(name.node, nodes.Name) and name.node.name == ROW_NAME:
            columns.add(name.attr)
    return columns


class Expression:
    """A value computed from the columns of a row: a column's name, or any Jinja expression, `score > 0`.

    field: the expression's name in messages.
    Raises ValueError for a text that is not an expression.
    """

    def __init__(self, source: str, field: str) -> None:
        self.source = source
        self.field = field
        self._value: Any = None
        try:
            self._value = _ENVIRONMENT.compile_expression(source, undefined_to_none=False)
        except TemplateError as error:
            if not source.replace(" ", "").replace("-", "").isidentifier():  # the text may still be a column's name
                raise ValueError(f"{field} {source!r} is neither a column nor an expression: {error}") from None

    def value(self, row: Mapping[str, Any]) -> Any:
        """The value for a row. Raises ValueError naming a column that the row lacks."""
        if self.source in row:
            return row[self.source]
        try:
            if self._value is None:
                raise UndefinedError(f"{self.source!r} is undefined")
            value = self._value({**row, ROW_NAME: row})
            if isinstance(value, StrictUndefined):
                str(value)  # raises
        except UndefinedError as error:
            raise ValueError(f"{self.field} {self.source!r}: {_with_columns(error, row)}") from None
        except Exception as error:  # of anything that the expression calls
            raise ValueError(f"{self.field} {self.source!r} fails: {error}") from None
        return value


def _with_columns(error: Exception, row: Mapping[str, Any]) -> str:
    return f"{error}; the columns are {', '.join(map(str, row)) or 'none'}"
