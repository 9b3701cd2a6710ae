"""zerograd replay: rebuild a run's model, or its adapter, from its journal and the base model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zerograd.cli.bar import Bar
from zerograd.machine.quiet import quiet


def add(verbs: Any) -> None:
    parser = verbs.add_parser("replay", help="rebuild a run's model from its journal", description=__doc__)
    parser.add_argument("journal", metavar="JOURNAL", help="a journal, or the folder of its run")
    parser.add_argument("--base", metavar="MODEL", default="", help="the base model of the run (default: as in the run)")
    parser.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        help="the folder to write, for plain transformers or PEFT to load; or a .gguf file, of a packed run",
    )
    parser.add_argument(
        "--at",
        metavar="STEP",
        type=int,
        default=None,
        help="rebuild the weights after this many steps (default: at the end of the run)",
    )
    parser.add_argument(
        "--rank", metavar="INT", type=int, default=0, help="write a LoRA adapter of this rank that approximates the change"
    )
    parser.add_argument("--device", metavar="NAME", default="cpu", help="cpu, cuda, cuda:N or mps (default: cpu)")
    parser.add_argument("--threads", metavar="INT", type=int, default=0, help="CPU threads; 0 for all cores (default: 0)")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    from rich.console import Console

    from zerograd.machine import workers
    from zerograd.machine.format import percent
    from zerograd.runs.journals import find_journal, read_journal
    from zerograd.runs.lora import write_lora
    from zerograd.runs.replayed import rebuilt, save_model, settings_of

    out = Path(parsed.out)
    if out.exists():
        raise ValueError(f"out is {out}, which exists; name another folder")
    if parsed.at is not None and parsed.at < 0:
        raise ValueError(f"at is {parsed.at}; it must be a number of steps, at least 0")
    if parsed.rank < 0:
        raise ValueError(f"rank is {parsed.rank}; it must be at least 1, or left out")
    quiet()
    workers.use(parsed.threads)
    console = Console()
    with Bar(console) as bar:
        source = read_journal(find_journal(parsed.journal))
        if parsed.rank:
            missing = write_lora(source, parsed.rank, parsed.base, parsed.at, out, bar.show)
            bar.say(f"{out}: a LoRA adapter of rank {parsed.rank}, which lacks {percent(missing)} of the change")
            return 0
        loaded, spaces = rebuilt(source, parsed.base, parsed.at, parsed.device, bar.show)
        save_model(loaded, spaces, out, settings_of(source))
    steps = len(source.steps) if parsed.at is None else parsed.at
    console.print(f"{out}: {source.header['settings']['scheme']} of {source.path} after {steps:,} steps", highlight=False)
    return 0
