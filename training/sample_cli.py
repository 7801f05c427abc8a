"""``cutroom sample`` and ``cutroom convert``: skins over ``training.transformer``."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

if TYPE_CHECKING:  # the rest of the command line must not wait for what these import
    from training.transformer.produce import Made
    from training.transformer.requests import Prepared, Request
    from training.vae.config import Chunks

_PACKAGES = ("torch", "safetensors", "transformers")

Pixels = Annotated[
    int | None, typer.Option(min=8, help="px, such as 480 or 720.", show_default="as trained, or the video's")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Dtype(str, enum.Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"


class Form(str, enum.Enum):
    diffusers = "diffusers"
    sat = "sat"
    peft = "peft"


def sample(
    model: Annotated[str, typer.Option(help="A folder of diffusers or of a training, a hub id, or a SAT checkpoint.")],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="What is to be seen.")] = None,
    vae: Annotated[str | None, typer.Option(help="Another VAE than the model brings; SAT's .pt too.")] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="Another text encoder than the model brings: a folder or a hub id.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER[:SCALE]", help="A LoRA to add, of peft, diffusers or SAT; repeatable."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="Folder for NAME.mp4, NAME.jpg and NAME.json.")] = Path(
        "cutroom-samples"
    ),
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts", help="A file of prompts, one a line, besides those named.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Of a window, 4k+1, such as 49.", show_default="as the model was trained")
    ] = None,
    height: Pixels = None,
    width: Pixels = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second.", show_default="8, 16 for CogVideoX 1.5, or the video's")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Frames of the whole video, made in windows of --frames.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Of each prompt, with seeds that count up.")] = 1,
    seed: Annotated[int, typer.Option(help="Of each prompt's first sample.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Passes of the transformer for a window.")] = 50,
    guidance: Annotated[
        float, typer.Option(help="How far to follow the text beyond its prediction; 1: no further.")
    ] = 6.0,
    solver: Annotated[str, typer.Option(help="dpm (for 5b), or ddim (for 2b).")] = "dpm",
    course: Annotated[str, typer.Option(help="Of guidance: constant, dynamic or dynamic_diffusers.")] = "constant",
    negative: Annotated[str | None, typer.Option(help="A text to go away from, instead of no text.")] = None,
    snr_shift: Annotated[
        float | None, typer.Option(help="Of the noise (3 for 2b, 1 for 5b).", show_default="the model's scheduler")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="The first frame, for an image-to-video model.")] = None,
    first: Annotated[Path | None, typer.Option(help="A picture to begin with, for a model trained with masks.")] = None,
    last: Annotated[Path | None, typer.Option(help="A picture to end with, for a model trained with masks.")] = None,
    extend: Annotated[
        Path | None, typer.Option(help="A video to continue, whose frames come first in the result.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=1, help="Frames that a window takes over, 4k+1.", show_default="a quarter of it")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Lead the end back to the start.")] = False,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="Of the weights; int8 by torchao, transformer only.", show_default="bf16 on a GPU, else fp32"
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Such as cuda or cpu.", show_default="a GPU if there is one")
    ] = None,
    offload: Annotated[
        bool, typer.Option("--offload", help="Transformer and VAE on the device one after the other.")
    ] = False,
    chunk: Annotated[int, typer.Option(min=0, help="Frames through the VAE at a time, a multiple of 4; 0: all.")] = 8,
    tiled: Annotated[bool, typer.Option("--tiled", help="Through the VAE in tiles, which takes less memory.")] = False,
    embeddings: Annotated[
        Path | None, typer.Option(help="Texts embedded by --save-embeddings; no text encoder is needed.")
    ] = None,
    save_embeddings: Annotated[
        Path | None, typer.Option(help="Write the texts' embeddings to this file (safetensors) too.")
    ] = None,
    json: Json = False,
) -> None:
    """Make videos from texts, pictures and videos. Run it again to continue; torchrun shares prompts among GPUs."""
    _need_packages()
    from training.transformer.models import Sources
    from training.transformer.requests import Request
    from training.transformer.sampling import Sampling
    from training.vae.config import Tiles

    request = Request(
        prompts=(*(prompts or ()), *_lines(prompts_file)),
        sources=Sources(
            model=model,
            vae=vae,
            text_encoder=text_encoder,
            loras=tuple(_lora(each) for each in lora or ()),
            snr_shift=snr_shift,
        ),
        frames=frames,
        height=height,
        width=width,
        fps=fps,
        length=length,
        settings=Sampling(steps=steps, solver=solver, guidance=guidance, course=course),
        seed=seed,
        samples=samples,
        negative=negative,
        image=image,
        first=first,
        last=last,
        extend=extend,
        overlap=overlap,
        loop=loop,
        dtype=dtype.value if dtype else None,
        device=device,
        offload=offload,
        chunks=chunks_of(chunk),
        tiles=Tiles() if tiled else None,
        embeddings=embeddings,
        save_embeddings=save_embeddings,
    )
    _make(request, output, json=json)


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder of weights, or a file of SAT's.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder.")],
    to: Annotated[Form, typer.Option(help="diffusers (ours too), sat, or, of a LoRA, peft.")],
    vae: Annotated[bool, typer.Option("--vae", help="The VAE is meant, not the transformer.")] = False,
    lora: Annotated[bool, typer.Option("--lora", help="A LoRA is meant, not a whole transformer.")] = False,
    scaling_factor: Annotated[
        float | None, typer.Option(help="Of a VAE from SAT: 0.7 for 5b and 1.5.", show_default="1.15258426, of 2b")
    ] = None,
    lora_alpha: Annotated[
        float | None, typer.Option(help="Of a LoRA.", show_default="what its files say; 1 for SAT's")
    ] = None,
    json: Json = False,
) -> None:
    """Convert weights between the form of diffusers, which is ours, and that of SAT; a LoRA to peft's too."""
    _need_packages()
    import json as jsonlib

    from curation.errors import UsageError
    from training.transformer.convert import convert as convert_weights

    if vae and lora:
        raise UsageError("--vae and --lora: choose one")
    kind = "vae" if vae else "lora" if lora else "transformer"
    done = convert_weights(source, target, to=to.value, kind=kind, scaling_factor=scaling_factor, alpha=lora_alpha)
    if json:
        typer.echo(jsonlib.dumps({"source": str(source), "written": str(done), "kind": kind, "form": to.value}))
        return
    typer.echo(f"Written: {done}")
    option = {"transformer": "--model", "vae": "--vae", "lora": "--lora"}[kind]
    named = done if kind == "vae" else target
    typer.echo(f"Next: cutroom sample PROMPT {'' if kind == 'transformer' else '--model MODEL '}{option} {named}")


def _need_packages() -> None:
    """Raises UsageError where an optional package is missing."""
    import importlib.util

    from curation.errors import UsageError

    if absent := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UsageError(f"this needs {', '.join(absent)}, not installed here: pip install 'cutroom[train,models]'")


def _lines(file: Path | None) -> list[str]:
    """The prompts in a file, one a line; empty lines are none."""
    from curation.errors import UsageError

    if file is None:
        return []
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--prompts {file} cannot be read ({error}); a text file with a prompt a line is meant"
        ) from error
    if not any(lines):
        raise UsageError(f"--prompts {file} has no prompt in it")
    return [line for line in lines if line]


def _lora(given: str) -> tuple[str, float]:
    """``FOLDER:0.8`` to the folder and the scale."""
    folder, colon, scale = given.rpartition(":")
    try:
        return (folder, float(scale)) if colon and folder else (given, 1.0)
    except ValueError:
        return given, 1.0


def chunks_of(frames: int) -> Chunks | None:
    """Frames through the VAE at a time, and the latents that they become."""
    from curation.errors import UsageError
    from training.vae.config import Chunks

    if frames % 4:
        raise UsageError(f"--chunk {frames}: a multiple of 4 is meant, such as 8, or 0 for all frames at once")
    return Chunks(frames=frames, latents=frames // 4) if frames else None


def _make(request: Request, output: Path, *, json: bool) -> None:
    """Do what is asked for, say what came of it, and exit."""
    from rich.console import Console

    from training.transformer.requests import prepare

    with Console(stderr=True, quiet=json).status("reading what the models are"):  # their digests take a minute for 5b
        prepared = prepare(request)
    made = _run(prepared, output, quiet=json)
    _say(made, output, json=json)
    raise typer.Exit(1 if any(one.status == "failed" for one in made) else 0)


def _run(prepared: Prepared, output: Path, *, quiet: bool) -> list[Made]:
    """Make the samples. A bar counts the passes of the transformer on a terminal; a line tells what became of each."""
    import warnings

    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from training.transformer.produce import run

    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    made: list[Made] = []

    def warn(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        console.print(f"warning: {escape(str(message))}")

    bar = Progress(*columns, console=console, disable=not console.is_terminal or quiet)
    with warnings.catch_warnings(), bar:
        warnings.showwarning = warn  # such as of prompts that are cut; the place in the code says nothing to a user
        task = bar.add_task("steps", total=prepared.steps * len(prepared.jobs))
        for one in run(prepared, output, each=lambda job, count: bar.update(task, advance=1)):
            made.append(one)
            console.print(f"{one.status}: {escape(one.name)}" + (f": {escape(one.error)}" if one.error else ""))
            if one.status != "made":
                bar.update(task, completed=prepared.steps * len(made))
    return made


def _say(made: list[Made], output: Path, *, json: bool) -> None:
    """What became of each, and what to do next."""
    import dataclasses
    import json as jsonlib

    from rich.console import Console
    from rich.markup import escape

    if json:
        typer.echo(jsonlib.dumps({"output": str(output), "samples": [dataclasses.asdict(one) for one in made]}))
        return
    console = Console(highlight=False, soft_wrap=True)
    counts = {status: sum(one.status == status for one in made) for status in ("made", "there", "failed")}
    console.print(
        f"{counts['made']} made, {counts['there']} there already, {counts['failed']} failed: {escape(str(output))}"
    )
    if counts["failed"]:
        console.print("Next: run the same command again; only what failed is tried")
    else:
        console.print(f"Next: look at {escape(str(output))}/*.jpg; NAME.json says how each was made")
