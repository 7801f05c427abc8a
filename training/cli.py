"""``cutroom train`` and ``cutroom vae``: skins over ``training``."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # the rest of the command line must not wait for what these import
    from collections.abc import Callable

    from training.data.preflight import Preflight

train = typer.Typer(help="Train a model on shards.", no_args_is_help=True)
vae = typer.Typer(help="Look at what a VAE does to videos.", no_args_is_help=True)


class Launcher(str, enum.Enum):
    processes = "processes"
    ray = "ray"


Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of one of Cutroom's own.")]
Output = Annotated[Path, typer.Option("--output", help="Folder for the model; the same command continues there.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, as training.steps=100.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@train.command("vae")
def train_vae(
    config: Config,
    output: Output = Path("cutroom-vae"),
    changes: Changes = None,
    num_processes: Annotated[
        int, typer.Option(min=1, help="Processes that train together, one for each GPU of this machine.")
    ] = 1,
    engine: Annotated[
        Launcher, typer.Option(help="Start them on this machine, or as workers of a Ray cluster.")
    ] = Launcher.processes,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster [default: a Ray on this machine].")] = None,
    preflight: Annotated[bool, typer.Option("--preflight", help="Only say what the training will read.")] = False,
    json: Json = False,
) -> None:
    """Train the 3D VAE; run it again to continue."""
    from training.recipes import find_recipe
    from training.vae.run import load, look_ahead

    file = find_recipe(config)
    stages = load(file, changes=changes or ())  # mistakes are said before anything is started
    if preflight:
        _say_preflight(look_ahead(stages), json=json)
        return
    _run("vae", file, output, changes or [], num_processes=num_processes, engine=engine, address=address, json=json)


def _run(
    kind: str,
    file: Path,
    output: Path,
    changes: list[str],
    *,
    num_processes: int,
    engine: Launcher,
    address: str | None,
    json: bool,
) -> None:
    """Train in this process, in several, or on a Ray cluster."""
    from training import launch

    if engine is Launcher.ray:
        from training.vae.run import on_worker

        request = {"file": str(file.absolute()), "output": str(output.absolute()), "changes": changes}
        launch.on_ray(on_worker, request, num_workers=num_processes, address=address)
        _say_end(output, {}, json=json)
        return
    if num_processes > 1:
        arguments = ["train", kind, str(file), "--output", str(output)]
        arguments += [part for change in changes for part in ("--set", change)]
        if status := launch.on_this_machine(arguments, num_processes=num_processes):
            raise typer.Exit(status)
        return
    from training.vae.run import train_vae as work

    figures = work(file, output, changes=changes, say=_progress(quiet=json))
    if launch.is_first():
        _say_end(output, figures, json=json)


def _progress(*, quiet: bool) -> Callable[[str], None]:
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False, quiet=quiet, soft_wrap=True)
    return lambda text: console.print(escape(text))


def _say_end(output: Path, figures: dict[str, float], *, json: bool) -> None:
    """A short summary, and what to do next."""
    import json as jsonlib

    from rich.console import Console
    from rich.markup import escape

    weights = sorted(str(path) for path in output.glob("**/weights") if path.is_dir())
    if json:
        typer.echo(jsonlib.dumps({"output": str(output), "weights": weights, "figures": figures}))
        return
    console = Console(highlight=False, soft_wrap=True)
    for name, value in figures.items():
        console.print(f"  {name}: {value:.4g}")
    last = weights[-1] if weights else str(output)
    console.print(f"Weights: {escape(last)} (diffusers' AutoencoderKLCogVideoX opens them)")
    console.print(f"Curves: {escape(str(output))}/**/metrics.jsonl, or tensorboard --logdir {escape(str(output))}")
    console.print(f"Next: cutroom vae eval SHARDS --weights {escape(last)}")


def _say_preflight(reports: dict[str, Preflight], *, json: bool) -> None:
    import json as jsonlib

    from rich.console import Console

    if json:
        typer.echo(jsonlib.dumps({name: report.to_dict() for name, report in reports.items()}))
        return
    console = Console(highlight=False)
    for name, report in reports.items():
        if name:
            console.print(f"[bold]{name}[/]")
        console.print(_table(report))
        for reason, count in report.dropped.items():
            console.print(f"  {count} left out: {reason}")


def _table(report: Preflight) -> Any:
    from rich.table import Table

    rows = report.to_table()
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.1%}" if isinstance(value, float) else str(value) for value in row.values()))
    return table
