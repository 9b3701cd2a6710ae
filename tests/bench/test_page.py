"""The leaderboard's page."""

from __future__ import annotations

import json
import re

import pytest

from tests.bench.leaderboard import row, write_lines
from zerograd.bench import page, rows
from zerograd.cli import main


def test_the_page_draws_seconds_of_one_machine(tmp_path):
    timed = {
        "budget": {"evaluations": 100, "seconds": 10}, "accuracy_seconds": 0.5, "evaluations_seconds": 40, "seconds_seconds": 10.5,
        "right_seconds": rows.pack("01"),
    }  # fmt: skip
    curve = [{"evaluations": 0, "seconds": 0.0, "dev_loss": 0.7}, {"evaluations": 100, "seconds": 9.0, "dev_loss": 0.6}]
    found = [
        row(method, 0, "01", **timed, curve=curve, machine={"cpu": cpu, "cores": 2})
        for method, cpu in (("mezo", "A"), ("adam", "A"), ("elsewhere", "B"))
    ]
    page.write(tmp_path / "page.html", found)
    by_seconds, by_memory, curves = (tmp_path / "page.html").read_text().split("<svg")[1:]
    assert "elsewhere" in by_memory
    assert "adam" in by_seconds
    assert "elsewhere" not in by_seconds + curves.partition("</figure>")[0]


def test_the_page_needs_nothing_else_and_names_the_losers(tmp_path):
    curve = [{"evaluations": 0, "seconds": 0.0, "dev_loss": 0.7}, {"evaluations": 100, "seconds": 9.0, "dev_loss": 0.6}]
    found = [row("mezo", seed, "01" * 50, curve=curve) for seed in range(2)] + [row("<b>", seed, "00" * 50) for seed in range(2)]
    leaderboard = write_lines(tmp_path / "l.jsonl", [json.dumps(one) for one in found])
    assert main(["bench", "page", str(leaderboard), "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "below mezo: &lt;b&gt;" in text
    assert "<b>" not in text.replace('<b class="after">', "")
    assert "http" not in text.replace("http://www.w3.org", "")
    assert text.count("<svg") == 3


@pytest.mark.full
def test_figures_show_where_most_stand_and_names_that_have_room(tmp_path):
    most, before = "0" * 10 + "1" * 90, {"accuracy_before": 0.8}
    found = [row("mezo", 0, most, **before), row("worst", 0, "0" * 99 + "1", **before)]
    found += [row(f"alike-{number}", 0, most, **before) for number in range(12)]
    found.append(row("mezo", 0, "0" + most[1:-1] + "1", **before, scheme="lora", peak_bytes=9e6))
    page.write(tmp_path / "page.html", found)
    figure = (tmp_path / "page.html").read_text().split("<svg")[2].partition("</svg>")[0]
    written = re.findall(r">([^<>]+)</text>", figure)
    assert "worst 1.0" in written, "where it stands is off the figure, which is drawn for the others"
    assert {"mezo on lora", "mezo on upper"} <= set(written)
    assert 1 <= sum(name.startswith("alike-") for name in written) <= 4, "of those that stand in one place few have room"
    assert min(float(name) for name in written if name.isdigit() and float(name) > 20) >= 60
