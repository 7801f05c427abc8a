"""The ``cutroom`` command: every verb is a thin skin over a function that a notebook can call.

Nothing heavy is imported here; ``cutroom --help`` must answer at once.
"""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from curation.caption_cli import app as caption_app
from curation.enhance_cli import enhance
from curation.errors import CutroomError, UsageError
from curation.eval_cli import evaluate
from curation.filter_cli import app as filter_app
from training.cli import train as train_app
from training.cli import vae as vae_app
from training.sample_cli import convert, sample

app = typer.Typer(
    name="cutroom",
    help="Turn raw footage into a captioned, sharded training set for video generation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(caption_app, name="caption")
app.add_typer(filter_app, name="filter")
app.add_typer(train_app, name="train")
app.add_typer(vae_app, name="vae")


app.command()(enhance)
app.command()(sample)
app.command()(convert)
app.command("eval")(evaluate)


class EngineChoice(str, enum.Enum):
    ray = "ray"
    local = "local"


Input = Annotated[list[str] | None, typer.Option("--input", help="A file, folder, glob or list of paths; repeatable.")]
Output = Annotated[Path, typer.Option("--output", help="Folder for the tables and shards.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="A YAML file of pipelines.", show_default="Cutroom's own")
]
EngineOption = Annotated[EngineChoice, typer.Option(help="ray, or local: in this process, for debugging.")]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster.", show_default="a Ray on this machine")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The output folder of a run.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help="A pipeline's name; `cutroom check` lists them.")],
    input: Input = None,
    output: Output = Path("cutroom-out"),
    config: Config = None,
    engine: EngineOption = EngineChoice.ray,
    address: Address = None,
    shards: Annotated[bool, typer.Option("--shards/--no-shards", help="Write shards, or stop at the table.")] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N videos.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed videos and clips again.")] = False,
    json: Json = False,
) -> None:
    """Curate footage into a clip table and shards. Run it again to continue or to bring changes in."""
    from curation import report
    from curation.progress import Progress
    from curation.run import run as run_pipeline

    summary = run_pipeline(
        pipeline,
        input or [],
        output,
        config=str(config) if config else None,
        engine=engine.value,
        address=address,
        shards=shards,
        limit=limit,
        retry_failed=retry_failed,
        progress=Progress(),
    )
    report.say(summary, json=json)
    raise typer.Exit(report.exit_status(summary))


@app.command()
def demo(
    output: Output = Path("cutroom-demo"),
    engine: EngineOption = EngineChoice.ray,
) -> None:
    """Make footage, curate, caption, distil, train and sample: the whole way in minutes, without weights or a GPU."""
    from curation import report
    from curation.demo import demo as run_demo

    raise typer.Exit(report.exit_status(run_demo(output, engine=engine.value)))


@app.command()
def check(
    pipeline: Annotated[str | None, typer.Argument(help="A pipeline's name; all of them if left out.")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Check pipelines and say what they measure and keep, without running anything."""
    from curation import report
    from curation.config import load_plan, pipeline_names
    from curation.errors import MissingError

    plans, missing = [], {}
    for name in [pipeline] if pipeline else pipeline_names(config):
        try:
            plans.append(load_plan(name, config))
        except MissingError as error:
            if pipeline:
                raise
            missing[name] = str(error)  # the others are fine, and this one only needs an install or weights
    report.say_plans(plans, missing, json=json)


@app.command()
def stats(directory: Directory, json: Json = False) -> None:
    """Show what a run kept and lost, by reason, and how the scores are spread."""
    from curation import report

    report.say_stats(report.open_store(directory), json=json)


@app.command()
def shard(
    directory: Directory,
    output: Annotated[
        Path | None, typer.Option("--output", help="For a folder of videos/ and labels/: where the shards go.")
    ] = None,
    engine: EngineOption = EngineChoice.ray,
    address: Address = None,
    json: Json = False,
) -> None:
    """Write the shards of a run, or pack a folder of videos/*.mp4 and labels/*.txt as it is."""
    from curation import report
    from curation.progress import Progress
    from curation.reshard import shard_directory

    summary = shard_directory(directory, output, engine=engine.value, address=address, progress=Progress())
    report.say(summary, json=json)
    raise typer.Exit(report.exit_status(summary))


@app.command()
def verify(
    directory: Directory,
    decode: Annotated[bool, typer.Option("--decode/--no-decode", help="Decode every sample and count frames.")] = True,
    json: Json = False,
) -> None:
    """Check that tables, shards and index agree and that every sample can be read."""
    from curation import report
    from shards.verify import verify as verify_shards

    problems = verify_shards(report.open_store(directory), decode=decode)
    report.say_problems(directory, problems, json=json)
    raise typer.Exit(1 if problems else 0)


def main() -> None:
    """Run the command; mistakes of the user end with status 2, other known errors with 1, without a traceback."""
    try:
        app()
    except CutroomError as error:
        from rich.console import Console
        from rich.markup import escape

        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to continue.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
