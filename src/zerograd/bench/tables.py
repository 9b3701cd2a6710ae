"""Tables of a leaderboard: methods by accuracy at a budget, with their gains over the reference and their costs."""

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

COMPARISONS = (("evaluations", "evaluations"), ("seconds", "seconds"), ("seconds", "evaluations"))
"""(budget of the methods, budget of the reference that they are compared with) of each table."""

ALL_TASKS = "all tasks"
"""The task name of a table of means over several tasks."""

HEADINGS = (
    "method", "scheme", "% right", "95 % interval", "against {}", "", "evaluations", "seconds", "s / 100 evaluations", "peak MB",
    "state MB", "lr", "seeds",
)  # fmt: skip


ACCURACY = Measure(is_share=True)


@dataclass(frozen=True)
class Line:
    """A method with a scheme in a table: means over its seeds, and over the table's tasks.

    interval: of the mean over seeds, by Student's t; None for one seed. gain: over the reference, on the same seeds and
    test rows; None for the reference itself, and without common seeds. gain_interval: the interval of the gain.
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
        """ "above" or "below" if the interval of the gain excludes 0, else "even"; "" without an interval."""
        if self.gain_interval is None:
            return ""
        low, high = self.gain_interval
        return "above" if low > 0 else "below" if high < 0 else "even"


@dataclass(frozen=True, order=True)
class Place:
    """The fields that the rows of a table have in common."""

    protocol: str
    model: str
    prompt: str
    task: str

    @staticmethod
    def of(row: Row) -> Place:
        """The place of a row."""
        return Place(*(str(row[spec.name]) for spec in dataclasses.fields(Place)))


@dataclass(frozen=True)
class Table:
    """Methods at one budget, the best first.

    budget, limit: the methods' budget. against: the reference's budget. reference_seconds: the reference's mean seconds
    at its budget. before: accuracy of the untrained model. machines: of the rows. is_one_of_several: whether other
    machines have the same table.
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
        """The title: task, prompt, model and budget."""
        what = f"{self.place.task}, {self.place.prompt} prompt, {self.place.model}"
        on = f", on {self.machines[0]}" * self.is_one_of_several
        if self.budget == self.against:
            return f"{what}: at matched {self.budget} ({self.limit:g}){on}"
        return f"{what}: after {self.limit:g} s, against {self.reference} after {seconds(self.reference_seconds)}{on}"

    @property
    def note(self) -> str:
        """A note on rows, study, machines and intervals."""
        several = "; seconds of different machines are not comparable" * (len(self.machines) > 1)
        return (
            f"{self.test_rows:,} test rows, of which the untrained model gets {percent(self.before)} right. "
            f"{'Study' if len(self.studies) == 1 else 'Studies'} {', '.join(self.studies)}, protocol {self.place.protocol}. "
            + f"Measured on {' and '.join(self.machines)}{several}. " * any(self.machines)
            + f"The interval of the mean is over seeds; the interval against {self.reference} is paired, over seeds and test rows."
        )


@dataclass(frozen=True)
class SeedResult:
    """The result of a seed's runs on all tasks of a table.

    value, evaluations, seconds: means over tasks. right: 0 or 1 for each test row of all tasks. widths: the number of
    test rows of each task. tests: the hash of each task's test rows.
    """

    value: float
    evaluations: float
    seconds: float
    right: list[int]
    widths: list[int]
    tests: list[str]

    def is_comparable(self, other: SeedResult) -> bool:
        """Whether both have every right answer of the same test rows."""
        return self.tests == other.tests and self.widths == other.widths and min(self.widths) > 0


def tables(leaderboard_rows: Iterable[Row]) -> list[Table]:
    """The tables of each protocol, model, prompt and task, and of all tasks together, for each of COMPARISONS."""
    all_tables = []
    for (protocol, model, prompt), group in groupby(
        sorted(leaderboard_rows, key=Place.of), lambda row: dataclasses.astuple(Place.of(row))[:3]
    ):
        rows_of = {task: list(task_rows) for task, task_rows in groupby(group, lambda row: str(row["task"]))}
        together = {ALL_TASKS: [row for task_rows in rows_of.values() for row in task_rows]} if len(rows_of) > 1 else {}
        for task, task_rows in (together | rows_of).items():
            for budget, against in COMPARISONS:
                groups = _by_machine(task_rows) if budget == "seconds" else [task_rows]
                for table_rows in groups:
                    table = _table(Place(protocol, model, prompt, task), table_rows, budget, against, len(groups) > 1)
                    if table is not None:
                        all_tables.append(table)
    return all_tables


def _by_machine(task_rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each machine, the machine with most rows first."""
    by_machine = [list(machine_rows) for _, machine_rows in groupby(sorted(task_rows, key=rows.machine_name), rows.machine_name)]
    return sorted(by_machine, key=len, reverse=True)


def _table(place: Place, table_rows: Sequence[Row], budget: str, against: str, is_one_of_several: bool) -> Table | None:
    """A table; None if no run has the budget, or if the reference took no longer than a table of two budgets allows."""
    if all(rows.at_budget(row, budget) is None for row in table_rows):
        return None
    first = table_rows[0]
    names = sorted({str(row["task"]) for row in table_rows})
    reference = str(first.get("reference", "mezo"))
    by_method: dict[tuple[str, str], list[Row]] = {}
    for row in table_rows:
        by_method.setdefault((str(row["method"]), str(row["scheme"])), []).append(row)
    by_scheme = {
        scheme: _seed_results(method_rows, names, against)
        for (method, scheme), method_rows in by_method.items()
        if method == reference
    }
    seconds = [result.seconds for results in by_scheme.values() for result in results.values()]
    limit = float(first.get("budget", {}).get(budget, 0))
    if budget != against and not (seconds and fmean(seconds) > limit):
        return None
    lines = []
    for (method, scheme), method_rows in by_method.items():
        results = _seed_results(method_rows, names, against if method == reference else budget)
        reference_results = by_scheme.get(scheme) or next(iter(by_scheme.values()), {})
        if results:
            lines.append(_line(method, scheme, method_rows, results, reference_results, method == reference))
    if not lines:
        return None
    tests = {str(row["task"]): (row.get("accuracy_before", float("nan")), row.get("test_rows", 0)) for row in table_rows}
    return Table(
        place, budget, against, limit, reference, fmean(seconds) if seconds else float("nan"),
        fmean(before for before, _ in tests.values()), sum(count for _, count in tests.values()),
        tuple(sorted({str(row["study"]) for row in table_rows})), tuple(sorted({rows.machine_name(row) for row in table_rows})),
        is_one_of_several,
        sorted(lines, key=lambda line: (-line.value, line.method, line.scheme)),
    )  # fmt: skip


def _seed_results(method_rows: Sequence[Row], names: Sequence[str], budget: str) -> dict[int, SeedResult]:
    """The result of each seed that has rows of all tasks."""
    results = {}
    for seed in dict.fromkeys(row["seed"] for row in method_rows):
        by_task = {
            str(row["task"]): (rows.at_budget(row, budget), str(row.get("test"))) for row in method_rows if row["seed"] == seed
        }
        parts = [(part, test) for part, test in (by_task.get(name, (None, "")) for name in names) if part is not None]
        if len(parts) == len(names):
            value, evaluations, seconds = (fmean(numbers) for numbers in zip(*(part[:3] for part, _ in parts), strict=True))
            right = [part[3] for part, _ in parts]
            tests = [test for _, test in parts]
            results[seed] = SeedResult(
                value, evaluations, seconds, [bit for bits in right for bit in bits], [*map(len, right)], tests
            )
    return results


def _line(
    method: str,
    scheme: str,
    method_rows: Sequence[Row],
    results: dict[int, SeedResult],
    reference_results: dict[int, SeedResult],
    is_reference: bool,
) -> Line:
    common = {seed: (result, reference_results[seed]) for seed, result in results.items() if seed in reference_results}
    comparable = [(ours, theirs) for ours, theirs in common.values() if ours.is_comparable(theirs)]
    # the latest test rows, if a task's have changed
    pairs = [(ours, theirs) for ours, theirs in comparable if ours.tests == comparable[-1][0].tests]
    differences = [[a - b for a, b in zip(ours.right, theirs.right, strict=True)] for ours, theirs in pairs]
    gain = gain_interval = None
    if pairs and not is_reference:
        gain = fmean(ours.value - theirs.value for ours, theirs in pairs)
        gain_interval = intervals.crossed_bootstrap(differences, pairs[0][0].widths)
    values = [result.value for result in results.values()]
    interval = [min(1.0, max(0.0, side)) for side in intervals.student(values)] if len(values) > 1 else None
    return Line(
        method, scheme, fmean(values), interval, gain, gain_interval,
        fmean(result.evaluations for result in results.values()), fmean(result.seconds for result in results.values()),
        fmean(row["peak_bytes"] for row in method_rows), fmean(row.get("state_bytes", 0) for row in method_rows),
        fmean(row.get("lr", float("nan")) for row in method_rows), len(values), is_reference,
    )  # fmt: skip


def cells(line: Line) -> list[str]:
    """A line as texts, one per heading."""
    gain = "reference" if line.is_reference else ""
    if line.gain is not None and line.gain_interval is not None:
        gain = f"{ACCURACY.gain(line.gain)} ({ACCURACY.gain_interval(line.gain_interval)})"
    interval = ACCURACY.interval(line.interval) if line.interval else ""
    return [
        line.method, line.scheme, ACCURACY.value(line.value), interval, gain, line.verdict, f"{line.evaluations:,.0f}",
        f"{line.seconds:,.0f}", f"{100 * line.seconds / max(1, line.evaluations):.1f}", f"{line.peak_bytes / 1e6:,.0f}",
        f"{line.state_bytes / 1e6:,.1f}", f"{line.lr:.3g}", str(line.seeds),
    ]  # fmt: skip


def heads(table: Table) -> list[str]:
    """The headings of a table, with the reference's name."""
    return [head.format(table.reference) for head in HEADINGS]


def markdown(table: Table) -> str:
    """A table in Markdown, with title and note."""
    head = heads(table)
    body = [head, ["---", *["---:"] * (len(head) - 1)], *map(cells, table.lines)]
    return "\n".join([f"### {table.title}", "", *("| " + " | ".join(line) + " |" for line in body), "", table.note])
