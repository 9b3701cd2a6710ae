"""Tables of a leaderboard: who is ahead at a budget, by how much more or less than the reference, and what it cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

from zerograd.bench import rows
from zerograd.bench.rows import Row
from zerograd.machine.format import Measure, percent, seconds
from zerograd.text import intervals

MATCHES = (("evaluations", "evaluations"), ("seconds", "seconds"), ("seconds", "evaluations"))
"""At which budget methods are seen, and the reference that they are held against."""

ALL = "all tasks"
"""The task of a table of means over several."""

HEADS = (
    "method", "scheme", "% right", "95 % interval", "against {}", "", "evaluations", "seconds", "s / 100 evaluations", "peak MB",
    "state MB", "lr", "seeds",
)  # fmt: skip


SHARE = Measure(is_share=True)


@dataclass(frozen=True)
class Line:
    """A method with a scheme in a table: means over its seeds, and over the table's tasks.

    interval: of the mean over seeds, by Student's t; None for one seed. gain: over the reference, in the same seeds and test rows,
    None for the reference itself, and where there is nothing to compare. gain_interval: of that.
    """

    method: str
    scheme: str
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

    protocol: str
    model: str
    prompt: str
    task: str

    @staticmethod
    def of(row: Row) -> Place:
        """Where a row belongs."""
        return Place(*(str(row[spec.name]) for spec in dataclasses.fields(Place)))


@dataclass(frozen=True)
class Table:
    """Methods at one budget, the best first. before: the share of test rows that the untouched model has right.

    against: the budget of the reference, and its seconds there where that is another than the table's. machines: that its rows were
    measured on. is_one_of_several: whether the same table is there of another machine's rows.
    """

    place: Place
    budget: str
    against: str
    limit: float
    reference: str
    reference_seconds: float
    before: float
    test_rows: int
    studies: tuple[str, ...]
    machines: tuple[str, ...]
    is_one_of_several: bool
    lines: list[Line]

    @property
    def title(self) -> str:
        """What is compared, and at what."""
        what = f"{self.place.task}, {self.place.prompt} prompt, {self.place.model}"
        on = f", on {self.machines[0]}" * self.is_one_of_several
        if self.budget == self.against:
            return f"{what}: at matched {self.budget} ({self.limit:g}){on}"
        return f"{what}: after {self.limit:g} s, against {self.reference} after {seconds(self.reference_seconds)}{on}"

    @property
    def note(self) -> str:
        """What is needed to read it."""
        several = "; their seconds are not alike" * (len(self.machines) > 1)
        return (
            f"{self.test_rows:,} test rows, of which the untouched model has {percent(self.before)} right. "
            f"{'Study' if len(self.studies) == 1 else 'Studies'} {', '.join(self.studies)}, protocol {self.place.protocol}. "
            + f"Measured on {' and '.join(self.machines)}{several}. " * any(self.machines)
            + f"The interval of the mean is over seeds; that against {self.reference} over seeds and test rows, paired."
        )


@dataclass(frozen=True)
class End:
    """Where a seed's runs of all of a table's tasks ended: means over tasks, and every right answer, so many of each task."""

    value: float
    evaluations: float
    seconds: float
    right: list[int]
    widths: list[int]
    tests: list[str]


def tables(found: Iterable[Row]) -> list[Table]:
    """Tables of each protocol, model, prompt and task, and of all its tasks: at each budget, then at one against another."""
    made = []
    for (protocol, model, prompt), group in groupby(
        sorted(found, key=Place.of), lambda row: dataclasses.astuple(Place.of(row))[:3]
    ):
        rows_of = {task: list(some) for task, some in groupby(group, lambda row: str(row["task"]))}
        together = {ALL: [row for some in rows_of.values() for row in some]} if len(rows_of) > 1 else {}
        for task, some in (together | rows_of).items():
            for budget, against in MATCHES:
                alike = _alike(some) if budget == "seconds" else [some]
                for mine in alike:
                    table = _table(Place(protocol, model, prompt, task), mine, budget, against, len(alike) > 1)
                    if table is not None:
                        made.append(table)
    return made


def _alike(some: Sequence[Row]) -> list[list[Row]]:
    """Rows by machine, those of most rows first."""
    by_machine = [list(mine) for _, mine in groupby(sorted(some, key=rows.machine), rows.machine)]
    return sorted(by_machine, key=len, reverse=True)


def _table(place: Place, some: Sequence[Row], budget: str, against: str, is_one_of_several: bool) -> Table | None:
    """None where no run has the budget, and where the reference took no longer to the other one."""
    if all(rows.matched(row, budget) is None for row in some):
        return None
    first = some[0]
    names = sorted({str(row["task"]) for row in some})
    reference = str(first.get("reference", "mezo"))
    of: dict[tuple[str, str], list[Row]] = {}
    for row in some:
        of.setdefault((str(row["method"]), str(row["scheme"])), []).append(row)
    theirs = {scheme: _ends(mine, names, against) for (method, scheme), mine in of.items() if method == reference}
    seconds = [end.seconds for ends in theirs.values() for end in ends.values()]
    limit = float(first.get("budget", {}).get(budget, 0))
    if budget != against and not (seconds and fmean(seconds) > limit):
        return None
    lines = []
    for (method, scheme), mine in of.items():
        ends = _ends(mine, names, against if method == reference else budget)
        held = theirs.get(scheme) or next(iter(theirs.values()), {})
        if ends:
            lines.append(_line(method, scheme, mine, ends, held, method == reference))
    if not lines:
        return None
    tests = {str(row["task"]): (row.get("accuracy_before", float("nan")), row.get("test_rows", 0)) for row in some}
    return Table(
        place, budget, against, limit, reference, fmean(seconds) if seconds else float("nan"),
        fmean(before for before, _ in tests.values()), sum(count for _, count in tests.values()),
        tuple(sorted({str(row["study"]) for row in some})), tuple(sorted({rows.machine(row) for row in some})), is_one_of_several,
        sorted(lines, key=lambda line: (-line.value, line.method, line.scheme)),
    )  # fmt: skip


def _ends(mine: Sequence[Row], names: Sequence[str], budget: str) -> dict[int, End]:
    """By seed, where all tasks are there."""
    ends = {}
    for seed in dict.fromkeys(row["seed"] for row in mine):
        by_task = {str(row["task"]): (rows.matched(row, budget), str(row.get("test"))) for row in mine if row["seed"] == seed}
        parts = [(part, test) for part, test in (by_task.get(name, (None, "")) for name in names) if part is not None]
        if len(parts) == len(names):
            value, evaluations, seconds = (fmean(numbers) for numbers in zip(*(part[:3] for part, _ in parts), strict=True))
            right = [part[3] for part, _ in parts]
            tests = [test for _, test in parts]
            ends[seed] = End(value, evaluations, seconds, [bit for bits in right for bit in bits], [*map(len, right)], tests)
    return ends


def _line(method: str, scheme: str, mine: Sequence[Row], ends: dict[int, End], held: dict[int, End], is_reference: bool) -> Line:
    alike = [
        (seed, end)
        for seed, end in ends.items()
        if seed in held and held[seed].tests == end.tests and held[seed].widths == end.widths and min(end.widths)
    ]
    pairs = [(seed, end) for seed, end in alike if end.tests == alike[-1][1].tests]  # the last, where a task's rows are others now
    differences = [[a - b for a, b in zip(end.right, held[seed].right, strict=True)] for seed, end in pairs]
    gain = gain_interval = None
    if pairs and not is_reference:
        gain = fmean(end.value - held[seed].value for seed, end in pairs)
        gain_interval = intervals.crossed(differences, pairs[0][1].widths)
    values = [end.value for end in ends.values()]
    interval = [min(1.0, max(0.0, side)) for side in intervals.student(values)] if len(values) > 1 else None
    return Line(
        method, scheme, fmean(values), interval, gain, gain_interval,
        fmean(end.evaluations for end in ends.values()), fmean(end.seconds for end in ends.values()),
        fmean(row["peak_bytes"] for row in mine), fmean(row.get("state_bytes", 0) for row in mine),
        fmean(row.get("lr", float("nan")) for row in mine), len(values), is_reference,
    )  # fmt: skip


def cells(line: Line) -> list[str]:
    """A line as texts, one a heading of `HEADS`."""
    gain = "reference" if line.is_reference else ""
    if line.gain is not None and line.gain_interval is not None:
        gain = f"{SHARE.gain(line.gain)} ({SHARE.gain_interval(line.gain_interval)})"
    interval = SHARE.interval(line.interval) if line.interval else ""
    return [
        line.method, line.scheme, SHARE.value(line.value), interval, gain, line.verdict, f"{line.evaluations:,.0f}",
        f"{line.seconds:,.0f}", f"{100 * line.seconds / max(1, line.evaluations):.1f}", f"{line.peak_bytes / 1e6:,.0f}",
        f"{line.state_bytes / 1e6:,.1f}", f"{line.lr:.3g}", str(line.seeds),
    ]  # fmt: skip


def heads(table: Table) -> list[str]:
    """The headings of a table."""
    return [head.format(table.reference) for head in HEADS]


def markdown(table: Table) -> str:
    """A table with its title and its note."""
    head = heads(table)
    body = [head, ["---", *["---:"] * (len(head) - 1)], *map(cells, table.lines)]
    return "\n".join([f"### {table.title}", "", *("| " + " | ".join(line) + " |" for line in body), "", table.note])
