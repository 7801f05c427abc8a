"""``cutroom demo``: the whole way on footage made on the spot, without weights, network or GPU."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from curation import report
from curation.engine import EngineName
from curation.errors import UsageError
from curation.footage import DEMO, make_footage
from curation.progress import Progress
from curation.run import run
from curation.summary import Summary

PIPELINE = "weight_free"


def demo(output: Path, *, engine: EngineName = "ray") -> Summary:
    """Make footage, curate it, write shards and say what happened.

    Args:
        output: a folder that receives ``footage/`` and ``out/``; running again continues there.
        engine: where to run.
    """
    console = Console(highlight=False, soft_wrap=True)
    footage, out = output / "footage", output / "out"
    console.print(
        f"[bold]1. Footage[/]  {len(DEMO)} short films with known truth and two broken files -> {escape(str(footage))}"
    )
    with console.status("painting and encoding"):
        try:
            make_footage(footage)
        except OSError as error:
            raise UsageError(f"--output {output} cannot be written: {error.strerror}") from error
    console.print(
        f"[bold]2. Curation[/] cutroom run {PIPELINE} --input {escape(str(footage))} --output {escape(str(out))}"
    )
    summary = run(PIPELINE, [str(footage)], out, engine=engine, progress=Progress(console=console))
    report.say(summary)
    return summary
