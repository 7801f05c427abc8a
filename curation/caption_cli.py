"""``cutroom caption``: distil captions into one model, and judge it. Skins over ``captioning``."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curation.served import Body, KeyEnv, Omit, Url, served

if TYPE_CHECKING:  # the rest of the command line must not wait for what this imports
    from captioning.evaluate import Evaluation

app = typer.Typer(help="Distil captions into one video model, and judge it.", no_args_is_help=True)


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
    long_side_px: Annotated[int | None, typer.Option(min=28, help="Size of a frame, at most.")] = None,
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
    rank: Annotated[int | None, typer.Option(min=1, help="Of lora.")] = None,
    alpha: Annotated[int | None, typer.Option(min=1, help="Of lora: how much its additions count, in ranks.")] = None,
    dropout: Annotated[float | None, typer.Option(min=0, max=1, help="Of lora.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order of clips and of lora's beginning.")] = None,
    save_memory: Annotated[
        bool,
        typer.Option("--save-memory", help="Compute activations twice instead of keeping them; takes a third longer."),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Such as cuda or cpu.", show_default="a GPU if there is one")
    ] = None,
    json: Json = False,
) -> None:
    """Finetune a video-language model on the captions of a run; run it again to continue."""
    import dataclasses
    import json as jsonlib

    from rich.console import Console

    from captioning.distill import distill as distill_run
    from captioning.question import Question
    from captioning.tuning import Settings

    asked: dict[str, Any] = {"prompt": prompt, "frames": frames, "long_side_px": long_side_px, "max_tokens": max_tokens}
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
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "save_memory": save_memory,
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


@app.command("eval")
def evaluate(
    run: Run,
    model: Annotated[
        str, typer.Option(help="The model to judge: a folder that distill wrote, a hub id, or its name at --endpoint.")
    ],
    endpoint: Url = None,
    key_env: KeyEnv = None,
    omit: Omit = None,
    body: Body = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Judge by so many clips.", show_default="all held out")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="JSON of what is known: clip_id -> attribute -> word; adds recall.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Parquet file for both captions of every clip.")] = None,
    clip: Annotated[
        str | None, typer.Option(help="CLIP for match_score: a folder or a hub id.", show_default="that of the run")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Load the model on the GPU.")] = False,
    json: Json = False,
) -> None:
    """Compare a captioner with the captions of a run, on clips that it did not learn from, and say what each costs."""
    import dataclasses
    import json as jsonlib

    from captioning.evaluate import evaluate as evaluate_model
    from captioning.evaluate import read_truth_file
    from curation.caption_match import find_matcher

    at = served(endpoint, key_env, omit, body)
    known = read_truth_file(truth) if truth else None
    found = find_matcher(run, clip, gpu=gpu)
    match, unknown = (None, found) if isinstance(found, str) else (found, None)

    def say(done: Evaluation) -> None:
        if json:
            print(jsonlib.dumps({**dataclasses.asdict(done), "match_score_unknown": unknown}, indent=1))
        else:
            _say(done)
            if unknown:
                print(f"match_score is unknown: {unknown}")

    done = evaluate_model(run, model, endpoint=at, truth=known, limit=limit, gpu=gpu, match=match, table=table, say=say)
    raise typer.Exit(1 if done.errors else 0)


def _say(done: Evaluation) -> None:
    """Print both captioners side by side."""
    import dataclasses

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    which = "held out" if done.held_out else "learnt from or not"
    table = Table(title=f"{done.num_clips} clips, {which}", title_justify="left", box=None)
    for heading in ("", "captions of the run", "model"):
        table.add_column(heading, justify="right" if heading else "left")
    for field in dataclasses.fields(done.model):
        if field.name not in ("pairs", "attributes"):
            table.add_row(field.name, *(_cell(getattr(side, field.name)) for side in (done.taught, done.model)))
    for name in sorted({*done.taught.attributes, *done.model.attributes}):
        table.add_row(f"  {escape(name)}", *(_cell(side.attributes.get(name)) for side in (done.taught, done.model)))
    for field in dataclasses.fields(done.model_cost):
        values = (getattr(cost, field.name, None) for cost in (done.taught_cost, done.model_cost))
        table.add_row(f"{field.name} per clip", *map(_cell, values))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for clip_id, error in list(done.errors.items())[:3]:
        console.print(f"no caption for {clip_id}: {error}", markup=False)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:d}" if isinstance(value, int) else f"{value:.3f}"
