"""``cutroom enhance``: a skin over ``captioning.enhance``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curation.served import Body, KeyEnv, Omit, Url, served


def enhance(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What you want to see, in your own words.")],
    run: Annotated[Path, typer.Option("--run", help="The output folder of the run that the model was trained on.")],
    model: Annotated[str, typer.Option(help="A language model: a folder, a hub id, or its name at --endpoint.")],
    endpoint: Url = None,
    key_env: KeyEnv = None,
    omit: Omit = None,
    body: Body = None,
    examples: Annotated[int, typer.Option(min=1, help="Captions that are shown to the model.")] = 6,
    max_tokens: Annotated[int, typer.Option(min=1, help="The answer is cut off there.")] = 320,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest words.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the examples, and of what is drawn.")] = 0,
    gpu: Annotated[bool, typer.Option("--gpu", help="Load the model on the GPU.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rewrite short prompts for sampling, in the style of the captions that the model was trained on."""
    import dataclasses
    import json as jsonlib

    from captioning.enhance import UnansweredError
    from captioning.enhance import enhance as enhance_prompts
    from captioning.requests import Sampling
    from curation.report import open_store

    at = served(endpoint, key_env, omit, body)
    open_store(run)
    failed = None
    try:
        done = enhance_prompts(
            prompts,
            run,
            model,
            endpoint=at,
            gpu=gpu,
            num_examples=examples,
            max_tokens=max_tokens,
            sampling=Sampling(temperature=temperature, seed=seed),
        )
    except UnansweredError as error:  # said after the answers to the others
        done, failed = error.done, error
    if json:
        print(jsonlib.dumps([dataclasses.asdict(one) for one in done], indent=1, ensure_ascii=False))
    for one in [] if json else done:
        print(one.text)
        if one.cut_off:
            limit = "the limit in --body" if "max_tokens" in (omit or ()) else f"{max_tokens} tokens; see --max-tokens"
            typer.echo(f"(cut off at {limit})", err=True)
    if failed:
        raise failed
