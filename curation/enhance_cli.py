"""``cutroom enhance``: a skin over ``captioning.enhance``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def enhance(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What you want to see, in your own words.")],
    run: Annotated[Path, typer.Option("--run", help="The output folder of the run that the model was trained on.")],
    model: Annotated[str, typer.Option(help="A language model: a folder, a hub id, or its name at --endpoint.")],
    endpoint: Annotated[str | None, typer.Option(help="Where it is served, up to and with /v1.")] = None,
    key_env: Annotated[str | None, typer.Option(help="The environment variable that holds the key.")] = None,
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

    from captioning.endpoint import Endpoint
    from captioning.enhance import enhance as enhance_prompts
    from captioning.requests import Sampling
    from curation.report import open_store

    open_store(run)
    done = enhance_prompts(
        prompts,
        run,
        model,
        endpoint=Endpoint(url=endpoint, key_env=key_env) if endpoint else None,
        gpu=gpu,
        num_examples=examples,
        max_tokens=max_tokens,
        sampling=Sampling(temperature=temperature, seed=seed),
    )
    if json:
        print(jsonlib.dumps([dataclasses.asdict(one) for one in done], indent=1, ensure_ascii=False))
        return
    for one in done:
        print(one.text)
        if one.cut_off:
            typer.echo(f"(cut off at {max_tokens} tokens; see --max-tokens)", err=True)
