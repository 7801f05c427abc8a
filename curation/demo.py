"""``cutroom demo``: the whole way on footage made on the spot, without weights, network or GPU."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from curation import report
from curation.engine import EngineName
from curation.errors import UsageError
from curation.footage import DEMO, make_footage
from curation.progress import Progress
from curation.run import run
from curation.summary import Summary

if TYPE_CHECKING:
    from curation.lessons import School

PIPELINE = "weight_free"
_SHOWN = 3
_PROMPTS = (
    "A blue circle moves right across a desert.",
    "A red cross moves up across a green meadow.",
    "A yellow bar moves left across a blue sky.",
)


def demo(output: Path, *, engine: EngineName = "ray") -> Summary:
    """Make footage, curate it, write shards and say what happened; then caption a generated world, and train on it.

    Args:
        output: a folder that receives ``footage/``, ``out/``, ``captions/`` and ``training/``; running again continues.
        engine: where to run.

    Returns:
        What became of the footage.
    """
    console = Console(highlight=False, soft_wrap=True)
    footage, out = output / "footage", output / "out"
    console.print(
        f"[bold]1. Footage[/]  {len(DEMO)} short films with known truth and two broken files -> {escape(str(footage))}"
    )
    with console.status("painting and encoding"):
        try:
            make_footage(footage)
        except OSError as error:
            raise UsageError(f"--output {output} cannot be written: {error.strerror}") from error
    console.print(
        f"[bold]2. Curation[/] cutroom run {PIPELINE} --input {escape(str(footage))} --output {escape(str(out))}"
    )
    summary = run(PIPELINE, [str(footage)], out, engine=engine, progress=Progress(console=console))
    report.say(summary)
    if importlib.util.find_spec("transformers") is None:
        console.print("\nThe demo goes on with captions where there is transformers: pip install 'cutroom[caption]'")
        return summary
    school = _captions(console, output / "captions", engine)
    if any(importlib.util.find_spec(package) is None for package in ("torchmetrics", "lpips", "tensorboard")):
        console.print("\nThe demo goes on with training where its packages are: pip install 'cutroom[train]'")
    else:
        _training(console, school, output / "training")
    return summary


def _captions(console: Console, folder: Path, engine: EngineName) -> School:
    """Version 1 by a teacher, a distillation, version 2, and both side by side."""
    from curation.lessons import School, agreement

    school, shown = School(folder, engine), escape(str(folder))
    console.print(
        f"\n[bold]3. Captions[/] {school.films} films of a generated world -> {shown}/lessons; version 1 by a small "
        "teacher\n   that sees nothing but pixels: single frames, the motion, and a summary of both. Pipelines: "
        f"{shown}/pipelines.yaml"
    )
    with console.status("drawing and encoding"):
        school.film()
    for films in ("lessons", "exam"):
        done = school.caption("v1", films, progress=Progress(console=console))
        console.print(f"   {films}: {done.num_captioned} clips captioned")
        for error, count in school.errors("v1", films).items():
            console.print(f"   {count} failed: {escape(error)}")
    console.print(
        f"[bold]4. Distillation[/] a tiny video model learns from random weights what version 1 says, for "
        f"{60 * school.minutes:.0f} s.\n   That is short: it shows the way, and gets colours and backgrounds before "
        "shapes. A real one takes hours on a GPU."
    )
    school.distil(lambda text: console.print(escape(textwrap.indent(text, "   "))))
    school.caption("v2", "exam", progress=Progress(console=console))
    pairs = school.compare()
    console.print(f"\nThree of {len(pairs)} clips of films that were not learnt from:")
    for pair in pairs[:: max(1, len(pairs) // _SHOWN)][:_SHOWN]:
        console.print(
            f"  {escape(pair.video)} {pair.start_s:.0f}-{pair.end_s:.0f} s; contact sheet: {escape(str(pair.sheet))}, "
            f"{pair.clip_id}\n    v1 (4 + 1 + 1 calls): {escape(pair.first)}\n    v2 (1 call):          "
            f"{escape(pair.second)}"
        )
    shares = (f"{name} {share:.0%}" for name, share in agreement(pairs).items())
    console.print(f"Both say the same: {', '.join(shares)}")
    return school


def _training(console: Console, school: School, folder: Path) -> None:
    """A VAE and a transformer on the shards of the lessons, and samples of what the transformer was told."""
    from curation.practice import Practice

    console.print(f"\n[bold]5. Shards[/] the captioned lessons -> {escape(str(school.lessons / 'shards'))}")
    done = school.caption("v1", "lessons", progress=Progress(console=console), shards=True)
    console.print(f"   {done.shards['samples']} samples in {done.shards['shards']} shards")
    practice, model = Practice(school.lessons, folder), escape(str(folder))
    console.print(
        f"[bold]6. VAE[/] cutroom train vae vae-debug: from random weights, {60 * practice.vae_minutes:.0f} s of "
        f"single frames, then as long of videos -> {model}/vae"
    )
    with console.status("training"):
        practice.train_vae()
    before, after = practice.progress("vae/images", "images_psnr")[0], practice.progress("vae/videos", "videos_psnr")[1]
    console.print(f"   frames held out at the start: {before:.1f} dB PSNR; videos held out at the end: {after:.1f} dB")
    console.print(
        f"[bold]7. Transformer[/] cutroom train transformer transformer-debug: "
        f"{60 * practice.transformer_minutes:.0f} s on the VAE's latents\n   -> {model}/transformer. That is short: it "
        "gets backgrounds and some colours; directions and shapes take longer."
    )
    with console.status("training"):
        practice.train_transformer()
    before, after = practice.progress("transformer", "loss")
    console.print(f"   loss on clips held out, over a grid of timesteps and noise: {before:.3f} -> {after:.3f}")
    console.print(f"[bold]8. Samples[/] cutroom sample PROMPT... --model {escape(str(practice.model))}")
    for made in practice.sample(_PROMPTS):
        console.print(f"   {escape(made.prompt)} {made.status}: {model}/samples/{made.name}.jpg")
