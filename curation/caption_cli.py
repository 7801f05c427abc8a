"""``cutroom caption``: finetune a captioner on the captions of a run. Skins over ``captioning.distill``."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Distil captions into one video model.", no_args_is_help=True)


class Optimiser(str, enum.Enum):
    adamw = "adamw"
    muon = "muon"


class Method(str, enum.Enum):
    lora = "lora"
    full = "full"


Run = Annotated[Path, typer.Argument(metavar="OUT", help="The output folder of a run with captions.")]
Base = Annotated[str, typer.Option(help="The model to finetune: a folder, or an id on the Hugging Face hub.")]
Output = Annotated[Path, typer.Option("--output", help="Folder for the model; the same command continues there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def distill(
    run: Run,
    base: Base,
    output: Output,
    method: Annotated[Method, typer.Option(help="lora: small additions to the weights; full: all weights.")] = (
        Method.lora
    ),
    prompt: Annotated[str | None, typer.Option(help="What is asked of every clip.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a contact sheet, at most.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Length of a caption, at most.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its highest.")] = None,
    optimiser: Annotated[
        Optimiser | None, typer.Option(help="muon: for all weights of a model that begins at random.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Clips that are computed together.")] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Batches per step.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How often each clip is learnt from.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train for so long, whatever the epochs.")] = None,
    held_out: Annotated[float | None, typer.Option(help="Share of the videos to judge by.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(min=1, help="Steps from one judgement to the next.")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Stop after so many judgements without progress.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order of clips and of lora's beginning.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu [default: a GPU if there is one].")] = None,
    json: Json = False,
) -> None:
    """Finetune a video-language model on the captions of a run; run it again to continue."""
    import dataclasses
    import json as jsonlib

    from rich.console import Console

    from captioning.distill import distill as distill_run
    from captioning.question import Question
    from captioning.tuning import Settings

    asked: dict[str, Any] = {"prompt": prompt, "frames": frames, "max_tokens": max_tokens}
    chosen: dict[str, Any] = {
        "method": method.value,
        "learning_rate": learning_rate,
        "optimiser": optimiser.value if optimiser else None,
        "batch": batch,
        "accumulate": accumulate,
        "epochs": epochs,
        "minutes": minutes,
        "held_out": held_out,
        "evaluate_every": evaluate_every,
        "patience": patience,
        "seed": seed,
    }
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    done = distill_run(
        run,
        base,
        output,
        question=dataclasses.replace(Question(), **{key: value for key, value in asked.items() if value is not None}),
        settings=dataclasses.replace(Settings(), **{key: value for key, value in chosen.items() if value is not None}),
        device=device,
        say=console.print,
    )
    if json:
        print(jsonlib.dumps(dataclasses.asdict(done), indent=1))
    else:
        print(f"written to {output}; in a pipeline:  caption: {{version: v2, model: {output}}}")
