"""Templates and expressions over the columns of a row: sandboxed Jinja, where an unknown column is an error.

A column of any name can be written as it is, `{{ review text }}`: what stands between braces is the column of that name where a
row has one, and an expression otherwise. `row['a name']` and `row.name` are columns too.
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from jinja2 import StrictUndefined, TemplateError, UndefinedError, meta, nodes, pass_context
from jinja2 import Template as JinjaTemplate
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from zerograd.text.data.values import is_empty

MAX_REPEATS = 10_000
"""The most repeats of a text, and the largest base or exponent of a power, in a template. A task from elsewhere could
otherwise ask for all memory.
"""

ROW = "row"
"""The name by which a template reads any column: `{{ row['review text'] }}`."""

COLUMNS = "columns of the row\n"
"""The variable of a template's context that holds the row. No expression can name it."""

RESERVED = frozenset(
    """
    and as block caller context elif else environment extends false filter for from if import in include is loop macro none not or
    range recursive resolve row self set super true undefined varargs kwargs with
    """.split()  # noqa: SIM905
)
"""Names that mean something else in Jinja, in lower case."""

PLACEHOLDER = re.compile(r"(\{\{[-+]?)(.*?)([-+]?\}\}(?!\}))", re.DOTALL)

VERBATIM = re.compile(r"\{%[-+]?\s*raw\b|(?<!\{)\{#")
"""What braces may stand in without being placeholders."""


TEXTS = (str, int, float, Decimal, datetime.date, datetime.time, datetime.timedelta, uuid.UUID)
"""What can be printed as a text."""


class NotText(TemplateError):
    """A list or an object stands where a text is wanted."""

    def __init__(self, value: Any) -> None:
        super().__init__(f"a {type(value).__name__} stands where a text is wanted")
        self.value = value


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


def _printed(value: Any) -> Any:
    """What a placeholder prints. Raises NotText for a value that is no text, number or date."""
    if isinstance(value, StrictUndefined):
        return value  # its name is in the error that printing it raises
    if value is not None and not isinstance(value, TEXTS):
        raise NotText(value)
    return "" if is_empty(value) else value


@pass_context
def _column(context: Context, name: str) -> Any:
    """The column of a name; undefined where the row has none."""
    columns = context[COLUMNS]
    if name in columns:
        return columns[name]
    inner = columns.get(ROW)  # a column called row may hold an object
    if isinstance(inner, Mapping) and name in inner:
        return inner[name]
    return context.environment.undefined(name=name)


@pass_context
def _is_column(context: Context, name: str) -> bool:
    return name in context[COLUMNS]


_ENVIRONMENT = _Environment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_printed)
for _name in ("center", "format", "indent"):  # they pad to any width
    del _ENVIRONMENT.filters[_name]
_ENVIRONMENT.filters["column"] = _ENVIRONMENT.filters["candidate"] = _column  # a candidate is an expression, or a column's name
_ENVIRONMENT.tests["column"] = _is_column


class _RowColumns(NodeTransformer):
    """Turns `row['a name']` and `row.name` into the column of that name."""

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        if _is_row(node.node) and isinstance(node.arg, nodes.Const):
            return _column_node(str(node.arg.value), node.lineno)
        return self.generic_visit(node)

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:
        return _column_node(node.attr, node.lineno) if _is_row(node.node) else self.generic_visit(node)


def _is_row(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == ROW


def _column_node(name: str, line: int) -> nodes.Filter:
    return nodes.Filter(nodes.Const(name, lineno=line), "column", [], [], None, None, lineno=line)


def reference(column: str) -> str:
    """A column as an expression of a template reads it."""
    return f"{ROW}[{column!r}]" if _is_special(column) else column


def _is_special(name: str) -> bool:
    """Whether a column of this name cannot be written as a plain name."""
    return not name.isidentifier() or not name.isascii() or name.lower() in RESERVED or name == "mask"


def _parsed(source: str) -> nodes.Template:
    """A template as Jinja parses it, every placeholder that could be a column's name turned into one."""

    def placeholder(match: re.Match[str]) -> str:
        opening, inner, closing = match.groups()
        name = inner.strip()
        if not name or not _is_special(name):
            return match.group()
        try:
            is_expression = name.lower() not in RESERVED and bool(_ENVIRONMENT.from_string(f"{{{{ {inner} }}}}"))
        except TemplateError:
            is_expression = False
        if not is_expression:
            return f"{opening} {name!r} | column {closing}"
        return f"{opening} {name!r} | candidate if {name!r} is column else ({inner}) {closing}"

    return _with_row(_ENVIRONMENT.parse(source if VERBATIM.search(source) else PLACEHOLDER.sub(placeholder, source)))


def _with_row(tree: nodes.Template) -> nodes.Template:
    """A template whose `row['a name']` and `row.name` are columns, unless it gives the name `row` to something else."""
    if any(name.name == ROW and name.ctx != "load" for name in tree.find_all(nodes.Name)):
        return tree
    changed = _RowColumns().visit(tree)
    assert isinstance(changed, nodes.Template)
    return changed


class Template:
    """A text with placeholders: `{{ column }}`.

    field: the template's name in messages. names: the columns that it reads, and `mask` where it reads that. reads_mask: whether
    `{{ mask }}` is in it.
    Raises ValueError for a text that is not a template.
    """

    def __init__(self, source: str, field: str = "template") -> None:
        self.source = source
        self.field = field
        try:
            tree = _parsed(source)
            variables = meta.find_undeclared_variables(tree)
            self.names = frozenset((variables - {ROW}) | _columns(tree, "column"))
            self.reads_mask = "mask" in variables
            self._candidates = _columns(tree, "candidate") - {"mask"}
            self._printed = frozenset().union(*(_printed_names(node) for node in tree.body if isinstance(node, nodes.Output)))
            self._template = _ENVIRONMENT.from_string(tree)
        except TemplateError as error:
            raise ValueError(f"{field} {source!r} is not a template: {error}; a placeholder is written {{{{ column }}}}") from None

    @property
    def reads_columns(self) -> bool:
        """Whether it may print another text for another row."""
        return bool(self._candidates or self.names - ({"mask"} if self.reads_mask else set()))

    def columns(self, row: Mapping[str, Any]) -> frozenset[str]:
        """The columns of a row that the template reads."""
        return (self.names | self._candidates) & row.keys()

    def printed_columns(self, row: Mapping[str, Any]) -> frozenset[str]:
        """The columns of a row that the template prints without a condition."""
        return self._printed & row.keys()

    def render(self, row: Mapping[str, Any], **others: Any) -> str:
        """The text for a row. others: values of names that are no columns; a column of the same name comes first.

        Raises ValueError naming a column that the row lacks, or that holds no text.
        """
        try:
            return self._template.render(_context(row, others))
        except UndefinedError as error:
            raise ValueError(f"{self.field} {self.source!r}: {_with_columns(error, row)}") from None
        except NotText as error:
            raise ValueError(_not_text(self.field, self.source, row, error.value)) from None
        except Exception as error:  # of anything that the template calls
            raise ValueError(f"{self.field} {self.source!r} fails: {error}") from None


def _printed_names(node: nodes.Node) -> set[str]:
    """The columns that an output prints without a condition."""
    if isinstance(node, nodes.Name):
        return {node.name}
    if isinstance(node, nodes.Filter):
        if node.name in ("column", "candidate") and isinstance(node.node, nodes.Const):
            return {str(node.node.value)}
        return set() if node.name in ("d", "default") or node.node is None else _printed_names(node.node)
    if isinstance(node, nodes.CondExpr) and isinstance(node.test, nodes.Test) and node.test.name == "column":
        return _printed_names(node.expr1) | (_printed_names(node.expr2) if node.expr2 is not None else set())
    if isinstance(node, nodes.Output):
        return set().union(*map(_printed_names, node.nodes))
    return set()


def _columns(tree: nodes.Template, by: str) -> set[str]:
    """The columns that a template reads by a filter."""
    found = (node for node in tree.find_all(nodes.Filter) if node.name == by)
    return {str(node.node.value) for node in found if isinstance(node.node, nodes.Const)}


def _context(row: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return {**others, **row, COLUMNS: row}


def _not_text(field: str, source: str, row: Mapping[str, Any], value: Any) -> str:
    name = next((name for name, held in row.items() if held is value), None)
    what = (
        "a list" if isinstance(value, (list, tuple)) else "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"
    )
    if name is None:
        return f"{field} {source!r}: {what} stands where a text is wanted; choose a part of it, or join it"
    here = reference(name)
    mend = f"{{{{ {here} | join(', ') }}}}" if isinstance(value, (list, tuple)) else f"{{{{ {here}.name }}}}"
    return f"{field} {source!r}: column {name} is {what}, and a text is wanted; choose a part of it, as in {mend}"


class Expression:
    """A value computed from the columns of a row: a column's name, or any Jinja expression, `score > 0`.

    field: the expression's name in messages.
    """

    def __init__(self, source: str, field: str) -> None:
        self.source = source
        self.field = field
        self._problem = ""
        try:
            self._template = _compiled(source)
        except TemplateError as error:  # the text may still be a column's name
            self._problem = f"is neither a column nor an expression: {error}"

    def value(self, row: Mapping[str, Any]) -> Any:
        """The value for a row. Raises ValueError naming a column that the row lacks, or for a text that is no expression."""
        if self.source in row:
            return row[self.source]
        if self._problem:
            raise ValueError(f"{self.field} {self.source!r} {_with_columns(self._problem, row)}")
        try:
            value = self._template.make_module(_context(row, {})).value  # type: ignore[attr-defined]
            if isinstance(value, StrictUndefined):
                str(value)  # raises
        except UndefinedError as error:
            raise ValueError(f"{self.field} {self.source!r}: {_with_columns(error, row)}") from None
        except Exception as error:  # of anything that the expression calls
            raise ValueError(f"{self.field} {self.source!r} fails: {error}") from None
        return value


def _compiled(source: str) -> JinjaTemplate:
    """A template whose module has the expression's value as `value`."""
    if source.strip().lower() in RESERVED:
        raise TemplateError(f"{source!r} is a word of the language")
    return _ENVIRONMENT.from_string(_with_row(_ENVIRONMENT.parse("{% set value = (" + source + ") %}")))


def _with_columns(error: object, row: Mapping[str, Any]) -> str:
    return f"{error}; the columns are {', '.join(map(str, row)) or 'none'}"
