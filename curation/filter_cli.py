"""``cutroom filter``: train filters on labels, and judge them. Skins over ``filters.learning``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # the rest of the command line must not wait for what these import
    from filters.learned import Figures, LearnedFilter, Verdict

app = typer.Typer(help="Train filters on your own labels, and judge them.", no_args_is_help=True)

Labels = Annotated[Path, typer.Argument(metavar="LABELS.csv", help="clip_id, and columns of 0 and 1 (empty: unseen).")]
Run = Annotated[Path, typer.Option("--run", help="The output folder of a run whose pipeline has `embedding`.")]
Precision = Annotated[float, typer.Option(help="Find the threshold at which this share of what is called 1 is 1.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def train(
    labels: Labels,
    run: Run,
    output: Annotated[Path, typer.Option("--output", help="The file to write the filter to, for the stage `learned`.")],
    name: Annotated[str | None, typer.Option(help="The label to train for; needed if there are several.")] = None,
    precision: Precision = 0.9,
    json: Json = False,
) -> None:
    """Train a filter on labelled clips, and say how well it does on videos that it has not seen."""
    from curation.errors import UsageError
    from curation.output import check_file
    from filters.learning import train as train_filter

    check_file(output, "--output")
    if output.exists() and labels.exists() and output.samefile(labels):
        raise UsageError(f"--output {output} is the file of labels; name another")
    trained = train_filter(labels, run, name=name, precision=precision)
    trained.save(output)
    _say(trained, trained.cross_validated, json=json)
    if not json:
        print(f"\nwritten to {output}; in a pipeline, after `embedding`:  - learned: {{model: {output}}}")


@app.command("eval")
def evaluate(
    filter_file: Annotated[Path, typer.Argument(metavar="FILTER", help="A file that `filter train` wrote.")],
    labels: Labels,
    run: Run,
    precision: Precision = 0.9,
    json: Json = False,
) -> None:
    """Judge a filter by labels that it was not trained on."""
    from filters.learned import LearnedFilter
    from filters.learning import evaluate as evaluate_filter

    loaded = LearnedFilter.load(filter_file)
    _say(loaded, evaluate_filter(loaded, labels, run, precision=precision), json=json)


def _say(model: LearnedFilter, verdict: Verdict, *, json: bool) -> None:
    """Print what labels say of a filter; without the coefficients, which are for machines."""
    import dataclasses
    import json as jsonlib

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if json:
        about = {"name": model.name, "column": model.column, "encoder": model.encoder, "dimension": model.dimension}
        print(jsonlib.dumps({**about, **dataclasses.asdict(verdict)}, indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    table = Table(title=escape(f"{model.column}: {_counts(verdict)}"), title_justify="left", box=None)
    for heading in ("", "threshold", "precision", "recall", "F1"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("middle", *_cells(verdict.at_half))
    if verdict.at_trained:
        table.add_row("threshold of the training", *_cells(verdict.at_trained))
    if verdict.at_wanted:
        table.add_row(f"precision of {verdict.wanted_precision:g} or more", *_cells(verdict.at_wanted))
    console.print(table)
    chance = verdict.num_positive / verdict.num_labels
    console.print(f"average precision {verdict.average_precision:.3f}; chance is {chance:.3f}")
    if not verdict.at_wanted:
        console.print(f"[yellow]No threshold has a precision of {verdict.wanted_precision:g}: label more clips.[/]")
    if verdict.num_unmeasured:
        console.print(f"{verdict.num_unmeasured} labelled clips have no usable embedding in the run and were left out.")


def _counts(verdict: Verdict) -> str:
    return f"{verdict.num_labels} labels ({verdict.num_positive} of them 1) of {verdict.num_videos} videos"


def _cells(figures: Figures) -> list[str]:
    values = (figures.threshold, figures.precision, figures.recall, figures.f1)
    return ["-" if value is None else f"{value:.3f}" for value in values]
