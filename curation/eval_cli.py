"""``cutroom eval``: a skin over ``curation.evaluation``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # the rest of the command line must not wait for what this imports
    from collections.abc import Sequence

    from curation.evaluation import Measured, Measures, Sample


def evaluate(
    samples: Annotated[
        str, typer.Argument(metavar="SAMPLES", help="A folder that `sample` wrote, any folder of videos, or a video.")
    ],
    against: Annotated[
        str | None, typer.Option(metavar="PATH", help="Real videos to measure too: a folder, or shards.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many videos of each, spread evenly.")] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="CLIP of open_clip: a folder or a hub id.", show_default="ViT-L/14 if it is on this machine"),
    ] = None,
    dino: Annotated[
        str | None,
        typer.Option(
            help="DINO of transformers: a folder or a hub id.", show_default="ViT-B/16 if it is on this machine"
        ),
    ] = None,
    dynamic_above: Annotated[
        float | None, typer.Option(min=0.0, help="motion_p90 above which a video is dynamic.", show_default="0.19")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="CLIP and DINO on the GPU.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="File for all figures.", show_default="eval.json beside the samples")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure samples: dynamic degree, flicker, consistency, and how well they match their prompts."""
    import contextlib
    import json as jsonlib
    import tempfile

    from curation import evaluation

    chosen = {} if dynamic_above is None else {"dynamic_above": dynamic_above}
    measures, left_out = evaluation.choose(clip, dino, gpu=gpu, **chosen)
    place = evaluation.place_for(samples, output)
    with contextlib.ExitStack() as stack:
        found = evaluation.samples(samples, limit=limit)
        real = None
        if against is not None:
            into = stack.enter_context(tempfile.TemporaryDirectory(prefix="cutroom-"))
            real = evaluation.samples(against, limit=limit, into=Path(into))
        made = _measure(found, measures, "samples", quiet=json)
        others = None if real is None else _measure(real, measures, "real videos", quiet=json)
    content = evaluation.report(made, others, measures, left_out)
    evaluation.write(place, content)
    if json:
        print(jsonlib.dumps(content, indent=1))
    else:
        _say(made, others, left_out, place)
    nothing_real = others is not None and all(one.status == "failed" for one in others)
    raise typer.Exit(1 if nothing_real or any(one.status == "failed" for one in made) else 0)


def _measure(videos: Sequence[Sample], measures: Measures, named: str, *, quiet: bool) -> list[Measured]:
    from rich.console import Console
    from rich.progress import track

    from curation.evaluation import measure

    console = Console(stderr=True, quiet=quiet)
    bar = track(
        measure(videos, measures),
        f"measuring {named}",
        total=len(videos),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    return list(bar)


def _say(made: Sequence[Measured], real: Sequence[Measured] | None, left_out: dict[str, str], place: Path) -> None:
    """A row for each sample, and means; what failed and what is left out, with reasons."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from curation.evaluation import FIGURES, means

    rows = {name: means(videos) for name, videos in (("mean", made), ("mean of real videos", real)) if videos}
    names = [name for name in FIGURES if name not in left_out]
    table = Table(box=None)
    table.add_column("video", overflow="fold")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for one in made:
        table.add_row(escape(Path(one.video).name), *(_cell(one.figures.get(name)) for name in names))
    table.add_section()
    for title, figures in rows.items():
        table.add_row(f"[bold]{title}[/]", *(_cell(figures.get(name)) for name in names))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table, soft_wrap=False)
    for one in (*made, *(real or ())):
        if one.error:
            console.print(f"{one.status}: {escape(one.video)}: {escape(one.error)}")
    for name in names:
        console.print(f"[dim]{name}: {FIGURES[name]}[/]")
    for why in dict.fromkeys(left_out.values()):
        console.print(f"left out: {', '.join(name for name in left_out if left_out[name] == why)}: {escape(why)}")
    if without := sum(one.status == "done" and one.prompt is None for one in made):
        console.print(f"{without} without a prompt: no NAME.json or NAME.txt beside the video says one")
    console.print(f"Written: {escape(str(place))}")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
