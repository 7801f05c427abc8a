"""Does a captioner learn? ``python -m benchmarks.distill``: a tiny model with random weights, distilled from captions.

Trains on a generated world for some minutes on the CPU and reads the attributes out of the captions that the model
writes about clips it has not seen: of combinations of colour and shape that it was taught, and of others. Two
controls: with captions shuffled among the clips nothing can be learnt about a clip but what is common, and with the
frames of a clip reversed the direction is to turn round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from captioning.chat import generate, load
from captioning.distill import distill
from captioning.examples import Sheets, read_examples, split
from captioning.question import Question
from captioning.requests import Request
from captioning.small import Size, make_small
from captioning.tuning import Settings
from captioning.world import ATTRIBUTES, PROMPT, Scene, attributes_of, make_world, read_truth
from curation.table import Store

QUESTION = Question(prompt=PROMPT, frames=8, max_tokens=24)
SIZE = Size()
_BATCH = 50
_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


def settings(minutes: float) -> Settings:
    """What is known to work from random weights on a CPU."""
    return Settings(
        method="full",
        learning_rate=1e-3,
        optimiser="muon",
        batch=24,
        accumulate=1,
        minutes=minutes,
        held_out=0.1,
        judged=96,
        evaluate_every=200,
        patience=None,
        cache_mb=4096,
    )


def shuffle_captions(store: Store, *, seed: int = 0) -> None:
    """Give every clip the caption of some other one."""
    captions = [caption for _, clips in store.parts("clips") for caption in clips["caption"].to_pylist()]
    captions = [captions[i] for i in np.random.default_rng(seed).permutation(len(captions))]
    for part_id, clips in list(store.parts("clips")):
        own, captions = captions[: clips.num_rows], captions[clips.num_rows :]
        place = clips.schema.get_field_index("caption")
        store.write("clips", part_id, clips.set_column(place, "caption", pa.array(own, pa.string())))


@dataclasses.dataclass(frozen=True)
class Asked:
    """Clips with their truth."""

    requests: list[Request]
    scenes: list[Scene]

    @classmethod
    def of(cls, run: Path, clip_ids: Sequence[str]) -> Asked:
        truth = read_truth(run)
        sheets = Sheets(run, clip_ids, run / "asked")
        requests = [QUESTION.of(sheets[clip_id]) for clip_id in clip_ids]
        sheets.close()
        return cls(requests, [truth[clip_id] for clip_id in clip_ids])

    def reversed(self) -> Asked:
        backward = [dataclasses.replace(request, images=request.images[::-1]) for request in self.requests]
        return Asked(backward, self.scenes)


def captions_by(model: Any, processor: Any, requests: Sequence[Request]) -> list[str]:
    parts = [requests[start : start + _BATCH] for start in range(0, len(requests), _BATCH)]
    return [reply.text for part in parts for reply in generate(model, processor, part)]


def accuracy(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """For each attribute the share of captions that say it rightly."""
    right: dict[str, int] = {}
    for caption, scene in zip(captions, scenes, strict=True):
        for name, said in attributes_of(caption).items():
            right[name] = right.get(name, 0) + (said == str(getattr(scene, name)))
    return {name: count / len(scenes) for name, count in right.items()}


def commonest(scenes: Sequence[Scene]) -> dict[str, float]:
    """For each attribute the share that would be right if one value was always said."""
    values = {name: [str(getattr(scene, name)) for scene in scenes] for name in (*ATTRIBUTES, "letters")}
    return {name: max(map(said.count, said)) / len(said) for name, said in values.items()}


def turned(before: Sequence[str], after: Sequence[str]) -> float:
    """The share of captions that name the opposite direction once the frames are reversed."""
    pairs = [(attributes_of(a)["direction"], attributes_of(b)["direction"]) for a, b in zip(before, after, strict=True)]
    return sum(_OPPOSITE.get(a or "") == b for a, b in pairs) / len(pairs)


def judge(model_folder: Path, world: Path, new: Path, held_out: Sequence[str]) -> dict[str, Any]:
    """Everything that is asked of a finished model."""
    model, processor = load(str(model_folder), device="cpu", dtype="float32")
    taught = Asked.of(world, held_out)
    others = Asked.of(new, sorted(read_truth(new)))
    said = captions_by(model, processor, taught.requests)
    began = time.monotonic()
    back = captions_by(model, processor, taught.reversed().requests)
    return {
        "always the same answer": commonest(taught.scenes),
        "seen combinations": accuracy(said, taught.scenes),
        "unseen combinations": accuracy(captions_by(model, processor, others.requests), others.scenes),
        "reversed frames turn the direction": turned(said, back),
        "ms per caption": 1000 * (time.monotonic() - began) / len(back),
        "examples": [{"truth": scene.caption, "said": text} for scene, text in zip(taught.scenes, said, strict=True)][
            :3
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder for the world, the base and the models")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--clips", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shuffled", action="store_true", help="the control")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    world, new, base = (arguments.output / name for name in ("world", "new", "base"))
    store = make_world(world, arguments.clips, seed=10 * arguments.seed)
    make_world(new, 240, seed=10 * arguments.seed + 1, new=True)
    examples = read_examples(world)
    words = [f"A {' '.join(values)}" for values in ATTRIBUTES.values()]  # whatever the captions happen to say
    make_small(base, [*words, *(e.caption for e in examples)], prompt=PROMPT, size=SIZE, seed=arguments.seed)
    held_out = [example.clip_id for example in split(examples, settings(1).held_out)[1]]
    if arguments.shuffled:
        shuffle_captions(store)
    chosen = dataclasses.replace(settings(arguments.minutes), seed=arguments.seed)
    done = distill(world, str(base), arguments.output / "model", question=QUESTION, settings=chosen, say=print)
    figures = judge(arguments.output / "model", world, new, held_out)
    print(json.dumps({"steps": done.steps, "seconds": done.seconds, **figures}, indent=1))


if __name__ == "__main__":
    main()
