"""``cutroom enhance``: a skin over ``captioning.enhance``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # the rest of the command line must not wait for what this imports
    from captioning.endpoint import Field


def enhance(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What you want to see, in your own words.")],
    run: Annotated[Path, typer.Option("--run", help="The output folder of the run that the model was trained on.")],
    model: Annotated[str, typer.Option(help="A language model: a folder, a hub id, or its name at --endpoint.")],
    endpoint: Annotated[str | None, typer.Option(help="Where it is served, up to and with /v1.")] = None,
    key_env: Annotated[str | None, typer.Option(help="The environment variable that holds the key.")] = None,
    omit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD", help="What the server refuses: temperature, seed or max_tokens; may be repeated."
        ),
    ] = None,
    body: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What else it wants, as max_completion_tokens=2000; may be repeated."),
    ] = None,
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
    from captioning.enhance import UnansweredError
    from captioning.enhance import enhance as enhance_prompts
    from captioning.requests import Sampling
    from curation.errors import UsageError
    from curation.report import open_store

    if not endpoint and (key_env or omit or body):
        raise UsageError("--key-env, --omit and --body are about a server: name it with --endpoint")
    fields = _fields(body)
    if "max_tokens" in (omit or ()) and "max_completion_tokens" not in fields:
        raise UsageError("--omit max_tokens leaves answers without a limit; add --body max_completion_tokens=2000")
    served = Endpoint(url=endpoint, key_env=key_env, body=fields, omit=_omitted(omit)) if endpoint else None
    open_store(run)
    failed = None
    try:
        done = enhance_prompts(
            prompts,
            run,
            model,
            endpoint=served,
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


def _omitted(names: Sequence[str] | None) -> tuple[Field, ...]:
    from captioning.endpoint import FIELDS
    from curation.errors import UsageError, nearest

    for name in names or ():
        if name not in FIELDS:
            raise UsageError(f"--omit {name}: no such field.{nearest(name, FIELDS)}")
    return tuple(field for field in FIELDS if field in (names or ()))


def _fields(changes: Sequence[str] | None) -> dict[str, Any]:
    """Fields of a request's body; values as JSON has them, and other text as it is."""
    import json

    from curation.errors import UsageError

    found = {}
    for change in changes or ():
        name, equals, text = change.partition("=")
        if not name or not equals:
            raise UsageError(f"--body {change}: NAME=VALUE is meant, such as max_completion_tokens=2000")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found
