"""Tables of a leaderboard: who is ahead at a budget, by how much more or less than the reference, and what it cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

from zerograd.bench import rows
from zerograd.bench.rows import Row
from zerograd.train import statistics

BUDGETS = ("evaluations", "seconds")

HEADS = (
    "method", "% right", "95 % interval", "against {}", "", "evaluations", "seconds", "s / 100 evaluations", "peak MB", "state MB",
    "lr", "seeds",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A method in a table: means over its seeds.

    interval: of the mean over seeds, by Student's t; None for one seed. gain: over the reference, in the same seeds and test rows,
    None for the reference itself, and where there is nothing to compare. gain_interval: of that.
    """

    method: str
    value: float
    interval: list[float] | None
    gain: float | None
    gain_interval: list[float] | None
    evaluations: float
    seconds: float
    peak_bytes: float
    state_bytes: float
    lr: float
    seeds: int
    is_reference: bool

    @property
    def verdict(self) -> str:
        """ "above" or "below" where the interval of the gain leaves out 0, "even" where it does not; nothing without one."""
        if self.gain_interval is None:
            return ""
        low, high = self.gain_interval
        return "above" if low > 0 else "below" if high < 0 else "even"


@dataclass(frozen=True, order=True)
class Place:
    """What the rows of a table have in common."""

    study: str
    protocol: str
    model: str
    scheme: str
    task: str
    prompt: str

    @staticmethod
    def of(row: Row) -> Place:
        """Where a row belongs."""
        return Place(*(str(row[spec.name]) for spec in dataclasses.fields(Place)))


@dataclass(frozen=True)
class Table:
    """Methods at one budget, the best first. before: the share of test rows that the untouched model has right."""

    place: Place
    budget: str
    limit: float
    reference: str
    before: float
    test_rows: int
    lines: list[Line]

    @property
    def title(self) -> str:
        """What is compared, and at what."""
        what = f"{self.place.task}, {self.place.prompt} prompt, {self.place.scheme}, {self.place.model}"
        return f"{what}: at matched {self.budget} ({self.limit:g})"

    @property
    def note(self) -> str:
        """What is needed to read it."""
        return (
            f"{self.test_rows:,} test rows, of which the untouched model has {100 * self.before:.1f} % right. "
            f"Study {self.place.study}, protocol {self.place.protocol}. "
            f"The interval of the mean is over seeds; that against {self.reference} over seeds and test rows, paired."
        )


def tables(found: Iterable[Row]) -> list[Table]:
    """A table for each budget of each protocol, model, scheme, task and prompt."""
    made = []
    for place, group in groupby(sorted(found, key=Place.of), Place.of):
        some = list(group)
        for budget in BUDGETS:
            there = [row for row in some if rows.matched(row, budget) is not None]
            if there:
                made.append(_table(place, there, budget))
    return made


def _table(place: Place, some: Sequence[Row], budget: str) -> Table:
    first = some[0]
    reference = first.get("reference", "mezo")
    of = {method: [row for row in some if row["method"] == method] for method in dict.fromkeys(row["method"] for row in some)}
    lines = [_line(method, mine, of.get(reference, []), budget) for method, mine in of.items()]
    return Table(
        place, budget, first.get("budget", {}).get(budget, 0), reference,
        first.get("accuracy_before", float("nan")), first.get("test_rows", 0),
        sorted(lines, key=lambda line: (-line.value, line.method)),
    )  # fmt: skip


def _line(method: str, mine: Sequence[Row], reference: Sequence[Row], budget: str) -> Line:
    at = {row["seed"]: rows.matched(row, budget) for row in mine}
    known = {seed: part for seed, part in at.items() if part is not None}
    values = [part[0] for part in known.values()]
    theirs = {row["seed"]: (rows.matched(row, budget), row.get("test")) for row in reference}
    ours_test = {row["seed"]: row.get("test") for row in mine}
    pairs = [
        (part[3], other[3])
        for seed, part in known.items()
        for other, test in [theirs.get(seed, (None, None))]
        if other is not None and test == ours_test[seed] and len(other[3]) == len(part[3]) > 0
    ]
    is_reference = bool(reference) and reference[0]["method"] == method
    gain = gain_interval = None
    if pairs and not is_reference:
        differences = [[a - b for a, b in zip(ours, other, strict=True)] for ours, other in pairs]
        gain = fmean(fmean(row) for row in differences)
        gain_interval = statistics.crossed(differences)
    interval = [min(1.0, max(0.0, end)) for end in statistics.student(values)] if len(values) > 1 else None
    return Line(
        method, fmean(values), interval, gain, gain_interval,
        fmean(part[1] for part in known.values()), fmean(part[2] for part in known.values()),
        fmean(row["peak_bytes"] for row in mine), fmean(row.get("state_bytes", 0) for row in mine),
        fmean(row.get("lr", float("nan")) for row in mine), len(values), is_reference,
    )  # fmt: skip


def cells(line: Line) -> list[str]:
    """A line as texts, one a heading of `HEADS`."""
    gain = "reference" if line.is_reference else ""
    if line.gain is not None and line.gain_interval is not None:
        low, high = line.gain_interval
        gain = f"{100 * line.gain:+.1f} ({100 * low:+.1f}, {100 * high:+.1f})"
    interval = f"{100 * line.interval[0]:.1f}, {100 * line.interval[1]:.1f}" if line.interval else ""
    return [
        line.method, f"{100 * line.value:.1f}", interval, gain, line.verdict, f"{line.evaluations:,.0f}", f"{line.seconds:,.0f}",
        f"{100 * line.seconds / max(1, line.evaluations):.1f}", f"{line.peak_bytes / 1e6:,.0f}", f"{line.state_bytes / 1e6:,.1f}",
        f"{line.lr:.3g}", str(line.seeds),
    ]  # fmt: skip


def heads(table: Table) -> list[str]:
    """The headings of a table."""
    return [head.format(table.reference) for head in HEADS]


def markdown(table: Table) -> str:
    """A table with its title and its note."""
    head = heads(table)
    body = [head, ["---", *["---:"] * (len(head) - 1)], *map(cells, table.lines)]
    return "\n".join([f"### {table.title}", "", *("| " + " | ".join(line) + " |" for line in body), "", table.note])
