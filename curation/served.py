"""Options of commands that may ask a model behind an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # the rest of the command line must not wait for what this imports
    from captioning.endpoint import Endpoint, Field

Url = Annotated[str | None, typer.Option("--endpoint", help="Where it is served, up to and with /v1.")]
KeyEnv = Annotated[str | None, typer.Option(help="The environment variable that holds the key.")]
Omit = Annotated[
    list[str] | None,
    typer.Option(metavar="FIELD", help="What the server refuses: temperature, seed or max_tokens; may be repeated."),
]
Body = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="What else it wants, as max_completion_tokens=2000; may be repeated."),
]


def served(
    url: str | None, key_env: str | None, omit: Sequence[str] | None, body: Sequence[str] | None
) -> Endpoint | None:
    """The endpoint that the options name, if any.

    Raises:
        UsageError: they make no sense.
    """
    from captioning.endpoint import Endpoint
    from curation.errors import UsageError

    if not url and (key_env or omit or body):
        raise UsageError("--key-env, --omit and --body are about a server: name it with --endpoint")
    fields = _fields(body)
    if "max_tokens" in (omit or ()) and "max_completion_tokens" not in fields:
        raise UsageError("--omit max_tokens leaves answers without a limit; add --body max_completion_tokens=2000")
    return Endpoint(url=url, key_env=key_env, body=fields, omit=_omitted(omit)) if url else None


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
