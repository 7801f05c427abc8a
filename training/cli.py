"""``cutroom train`` and ``cutroom vae``: skins over ``training``."""

from __future__ import annotations

import contextlib
import enum
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.sample_cli import chunks_of

if TYPE_CHECKING:  # the rest of the command line must not wait for what these import
    from collections.abc import Callable, Collection, Iterator

    from training.data.preflight import Preflight
    from training.transformer.preflight import TransformerPreflight
    from training.vae.evaluate import Look

train = typer.Typer(help="Train a model on shards.", no_args_is_help=True)
vae = typer.Typer(help="Look at what a VAE does to videos.", no_args_is_help=True)


_PACKAGES = ("torch", "safetensors", "torchmetrics", "tensorboard", "lpips", "fsspec")
_TEXT_PACKAGES = ("transformers", "tokenizers")


def _need_packages(*more: str) -> None:
    """Raises UsageError where an optional package is missing."""
    import importlib.util

    from curation.errors import UsageError

    if absent := [name for name in (*_PACKAGES, *more) if importlib.util.find_spec(name) is None]:
        raise UsageError(f"training needs {', '.join(absent)}, not installed here: pip install 'cutroom[train]'")


class Launcher(str, enum.Enum):
    processes = "processes"
    ray = "ray"


Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of one of Cutroom's own.")]
Output = Annotated[Path, typer.Option("--output", help="Folder for the model; the same command continues there.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, as training.steps=100.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Processes = Annotated[int, typer.Option(min=1, help="Processes that train together, one for each GPU of this machine.")]
Engine = Annotated[Launcher, typer.Option(help="Start them on this machine, or as workers of a Ray cluster.")]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster.", show_default="a Ray on this machine")]
PreflightOnly = Annotated[bool, typer.Option("--preflight", help="Only say what the training will read.")]


@train.command("vae")
def train_vae(
    config: Config,
    output: Output = Path("cutroom-vae"),
    changes: Changes = None,
    num_processes: Processes = 1,
    engine: Engine = Launcher.processes,
    address: Address = None,
    preflight: PreflightOnly = False,
    json: Json = False,
) -> None:
    """Train the 3D VAE; run it again to continue."""
    _need_packages()
    from training.recipes import find_recipe
    from training.vae.run import load, look_ahead

    file = find_recipe(config)
    from training.distributed import num_processes as started

    stages = load(file, changes=changes or ())

    def report() -> None:
        reports = look_ahead(stages, world=max(num_processes, started()))
        if preflight or not json:
            _say_preflight(reports, json=json)

    if preflight:
        report()
        return
    with _looked_ahead(report):
        _run("vae", file, output, changes or [], num_processes=num_processes, engine=engine, address=address, json=json)


@train.command("transformer")
def train_transformer(
    config: Config,
    output: Output = Path("cutroom-transformer"),
    changes: Changes = None,
    num_processes: Processes = 1,
    engine: Engine = Launcher.processes,
    address: Address = None,
    preflight: PreflightOnly = False,
    encode_only: Annotated[
        bool, typer.Option("--encode-only", help="Only encode what the cache lacks, to train later.")
    ] = False,
    json: Json = False,
) -> None:
    """Train the text-to-video transformer on a VAE's latents; run it again to continue."""
    _need_packages(*_TEXT_PACKAGES)
    from training.distributed import num_processes as started
    from training.recipes import find_recipe
    from training.transformer.preflight import look_ahead
    from training.transformer.run import load

    file = find_recipe(config)
    stages = load(file, changes=changes or ())

    def report() -> None:
        reports = look_ahead(stages, world=max(num_processes, started()))
        if preflight or not json:
            _say_transformer_preflight(reports, json=json)

    if preflight:
        report()
        return
    with _looked_ahead(report):
        _run(
            "transformer",
            file,
            output,
            changes or [],
            num_processes=num_processes,
            engine=engine,
            address=address,
            json=json,
            encode_only=encode_only,
        )


Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="A video, a folder of them, or shards: a run's folder, a tar, a pattern."),
]
Weights = Annotated[str, typer.Option(help="The VAE: a folder, or an id on the Hugging Face hub.")]
Frames = Annotated[int, typer.Option(min=1, help="Of each video, from its start; made 4k+1.")]
Height = Annotated[int, typer.Option(min=8, help="What samples of shards are cut to, px; made a multiple of 8.")]
Width = Annotated[int, typer.Option(min=8, help="What samples of shards are cut to, px; made a multiple of 8.")]
Chunk = Annotated[int, typer.Option(min=0, help="Frames that pass through at a time, a multiple of 4; 0: all.")]
Tiled = Annotated[bool, typer.Option("--tiled", help="Large pictures in tiles, which takes less memory.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many samples.")]
Lpips = Annotated[str | None, typer.Option(help="LPIPS too: a file with AlexNet's weights, or 'torchvision'.")]
Device = Annotated[str | None, typer.Option(help="Such as cuda or cpu.", show_default="a GPU if there is one")]


@vae.command()
def reconstruct(
    source: Source,
    weights: Weights,
    output: Annotated[Path, typer.Option("--output", help="Folder for videos and contact sheets.")] = Path(
        "cutroom-reconstructed"
    ),
    frames: Frames = 49,
    height: Height = 256,
    width: Width = 256,
    chunk: Chunk = 8,
    tiled: Tiled = False,
    limit: Limit = 8,
    device: Device = None,
) -> None:
    """Pass videos through a VAE, and write them beside what came out."""
    _need_packages()
    from rich.console import Console
    from rich.markup import escape

    from training.vae.evaluate import Reconstructor, check_output, write

    check_output(source, output)
    console, written, failed = Console(highlight=False, soft_wrap=True), set[str](), 0
    model = Reconstructor(weights, _look(frames, height, width, chunk, tiled, None), device=device)
    for found in model.each(source, limit=limit):
        if isinstance(found, str):
            console.print(f"failed: {escape(found)}")
            failed += 1
            continue
        paths = write(found, output, written)
        said = ", ".join(f"{name} {value:.4g}" for name, value in found.figures.items() if value is not None)
        console.print(f"{escape(str(paths[0]))}: {said}")
    raise typer.Exit(0 if written and not failed else 1)


@vae.command("eval")
def evaluate(
    source: Source,
    weights: Weights,
    frames: Frames = 17,
    height: Height = 256,
    width: Width = 256,
    chunk: Chunk = 8,
    tiled: Tiled = False,
    limit: Limit = None,
    lpips: Lpips = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """How near a VAE's reconstructions come: PSNR, SSIM, LPIPS and flicker."""
    _need_packages()
    import json as jsonlib

    from rich.console import Console
    from rich.markup import escape

    from training.vae.evaluate import Reconstructor, mean

    model = Reconstructor(weights, _look(frames, height, width, chunk, tiled, lpips), device=device)
    figures, failed = [], []
    for found in model.each(source, limit=limit):
        if isinstance(found, str):
            failed.append(found)
        else:
            figures.append(found.figures)
    result = mean(figures)
    if json:
        typer.echo(jsonlib.dumps({"samples": len(figures), "failed": failed, **result}))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for line in failed:
            console.print(f"failed: {escape(line)}")
        console.print(f"{len(figures)} samples")
        for name, value in result.items():
            console.print(f"  {name}: {'unknown' if value is None else f'{value:.4g}'}")
    raise typer.Exit(0 if figures and not failed else 1)


def _look(frames: int, height: int, width: int, chunk: int, tiled: bool, lpips: str | None) -> Look:
    from training.vae.config import Tiles
    from training.vae.evaluate import Look

    tiles = Tiles() if tiled else None
    return Look(frames=frames, height=height, width=width, chunks=chunks_of(chunk), tiles=tiles, lpips=lpips)


@contextlib.contextmanager
def _looked_ahead(report: Callable[[], None]) -> Iterator[None]:
    """Mistakes are said before anything is started, by one process and once.

    The others have joined it and wait, however long it reads: they would wait half an hour only for it to join.
    """
    from training.checkpoint import on_first
    from training.distributed import find_world, joined, num_processes
    from training.launch import has_looked_ahead

    if has_looked_ahead():
        yield
    elif num_processes() == 1:
        report()
        yield
    else:
        with joined():
            on_first(find_world(), report)
            yield


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
    encode_only: bool = False,
) -> None:
    """Train in this process, in several, or on a Ray cluster."""
    import importlib

    from training import launch

    run = importlib.import_module(f"training.{kind}.run")
    weights = [output / stage.name / "weights" for stage in run.load(file, changes=changes)]
    if engine is Launcher.ray:
        request: dict[str, Any] = {"file": str(file.absolute()), "output": str(output.absolute()), "changes": changes}
        request |= {"encode_only": True} if encode_only else {}
        launch.on_ray(run.on_worker, request, num_workers=num_processes, address=address)
        _say_end(weights, output, {}, json=json)
        return
    if num_processes > 1:
        arguments = ["train", kind, str(file), "--output", str(output), *(["--encode-only"] if encode_only else [])]
        arguments += [part for change in changes for part in ("--set", change)] + (["--json"] if json else [])
        if status := launch.on_this_machine(arguments, num_processes=num_processes):
            raise typer.Exit(status)
        return
    work = functools.partial(run.train, encode_only=True) if encode_only else run.train
    figures = work(file, output, changes=changes, say=_progress(quiet=json))
    if launch.is_first():
        _say_end(weights, output, figures, json=json)


def _progress(*, quiet: bool) -> Callable[[str], None]:
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False, quiet=quiet, soft_wrap=True)
    return lambda text: console.print(escape(text))


def _say_end(weights: list[Path], output: Path, figures: dict[str, float], *, json: bool) -> None:
    """A short summary, and what to do next. ``weights``: of the stages, in their order."""
    import json as jsonlib

    from rich.console import Console
    from rich.markup import escape

    there = [str(path) for path in weights if path.is_dir()]
    if json:
        typer.echo(jsonlib.dumps({"output": str(output), "weights": there, "figures": figures}))
        return
    console = Console(highlight=False, soft_wrap=True)
    for name, value in figures.items():
        console.print(f"  {name}: {value:.4g}")
    if not there:  # only encoded
        console.print(f"Encoded: {escape(str(output))}; the same command without --encode-only trains")
        return
    last = there[-1]
    is_pipeline = Path(last, "model_index.json").is_file()
    opens = "CogVideoXPipeline" if is_pipeline else "AutoencoderKLCogVideoX"
    console.print(f"Weights: {escape(last)} (diffusers' {opens} opens them)")
    console.print(f"Curves: {escape(str(output))}/**/metrics.jsonl, or tensorboard --logdir {escape(str(output))}")
    following = '"A PROMPT" --model' if is_pipeline else "SHARDS --weights"
    console.print(f"Next: cutroom {'sample' if is_pipeline else 'vae eval'} {following} {escape(last)}")


def _say_preflight(reports: dict[str, Preflight], *, json: bool, packed: Collection[str] = ()) -> None:
    """``packed``: the stages whose samples are in packs, so that no bucket has batches."""
    import json as jsonlib

    from rich.console import Console
    from rich.markup import escape

    if json:
        typer.echo(jsonlib.dumps({name: report.to_dict() for name, report in reports.items()}))
        return
    console = Console(highlight=False, soft_wrap=True)
    for name, report in reports.items():
        if name:
            console.print(f"[bold]{name}[/]")
        console.print(f"{report.num_samples} samples in {report.num_shards} shards; {report.steps} steps in an epoch")
        console.print(_table(report, batches=name not in packed))
        for kind, counts, names in (
            ("left out", report.dropped, report.dropped_names),
            ("bad", report.bad, report.bad_names),
        ):
            for reason, count in counts.items():
                console.print(escape(f"{count} {kind}: {reason}, such as {', '.join(names[reason][:3])}"))
        if report.without_caption:
            console.print(f"{report.without_caption} without a caption")


def _say_transformer_preflight(reports: dict[str, TransformerPreflight], *, json: bool) -> None:
    import json as jsonlib

    from rich.console import Console
    from rich.table import Table

    if json:
        typer.echo(jsonlib.dumps({name: report.to_dict() for name, report in reports.items()}))
        return
    console = Console(highlight=False, soft_wrap=True)
    packed = {name for name, report in reports.items() if report.unit == "packs"}
    _say_preflight({name: report.data for name, report in reports.items()}, json=False, packed=packed)
    for name, report in reports.items():
        table = Table("shape", "kind", "samples", "tokens of each", "tokens", box=None)
        for each in report.shapes:
            table.add_row(each.bucket, each.kind, *map(str, (each.samples, each.tokens, each.samples * each.tokens)))
        console.print(table)
        full = "" if report.fill is None else f", filled to {report.fill:.1%}"
        console.print(f"{name or 'An epoch'}: {report.groups} {report.unit}{full}; {report.steps} steps")
        if report.long_captions:
            console.print(
                f"the captions of {report.long_captions} clips have more than {report.words} tokens and are cut"
            )


def _table(report: Preflight, *, batches: bool) -> Any:
    from rich.table import Table

    table = Table("bucket", "kind", "samples", *(("batches", "of") if batches else ()), "cropped", "enlarged", box=None)
    for each in report.buckets:
        sizes = f"{each.batch_size}" + (f" (last {each.last_batch})" if each.last_batch != each.batch_size else "")
        grouped = (each.batches, sizes) if batches else ()
        numbers = (each.samples, *grouped, f"{each.crop_loss:.1%}", each.num_enlarged)
        table.add_row(each.bucket, each.kind, *map(str, numbers))
    return table
