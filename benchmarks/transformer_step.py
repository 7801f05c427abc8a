"""What a training step of our transformer costs against diffusers' module: forward and backward, in turn, as ratios.

    python -m benchmarks.transformer_step [--size debug] [--frames N] [--height N] [--width N] [--batch N]
                                          [--precision fp32|bf16|autocast] [--pairs N] [--threads N] [--packed]
                                          [--device cpu|cuda]

Both have the same weights, configuration and input, and run in one process, pair after pair, each pair in the other
order than the one before; sizes are in latents. A line of JSON for each pair, then one that sums up: the ratio is the
median over the pairs, and below 1 ours is faster.

With ``--packed`` ours is a pack of ``--batch`` samples whose lengths run evenly from 1 to ``--frames``, and the other
is our own batch in which each is filled up to the longest: the ratio is then what packing leaves of the time.

Measured on CPUs, size debug, fp32: 0.87 to 0.98. On a GPU (``--device cuda``) it has not been measured yet.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curation.torchvision import mend
from training.transformer.config import size
from training.transformer.model import Transformer
from training.transformer.positions import rotary

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "autocast": torch.float32}


class Contender(NamedTuple):
    """A module and a forward pass of it."""

    name: str
    module: nn.Module
    forward: Callable[[], Tensor | Sequence[Tensor]]


def contenders(args: argparse.Namespace) -> list[Contender]:
    """What is compared, ours first."""
    config, dtype = size(args.size), _DTYPES[args.precision]
    torch.manual_seed(0)
    ours = Transformer(config)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.02)  # zeros at the end would leave nothing to compute backwards
    ours = ours.to(args.device, dtype)
    latents = torch.randn(args.batch, args.frames, config.in_channels, args.height, args.width).to(like(ours))
    text = torch.randn(args.batch, config.max_text_seq_length, config.text_embed_dim).to(like(ours))
    t = torch.randint(0, 1000, (args.batch,)).to(args.device)
    if args.packed:
        lengths = [1 + i * args.frames // args.batch for i in range(args.batch)]
        pack = [x[:length] for x, length in zip(latents, lengths, strict=True)]
        return [
            Contender("packed", ours, lambda: ours(pack, list(text), t)),
            Contender("padded", ours, lambda: ours(latents, text, t)),
        ]
    other = _diffusers(ours)
    places = None
    if config.use_rotary_positional_embeddings:
        grid = (args.frames // config.time_patch, args.height // config.patch_size, args.width // config.patch_size)
        turns = rotary(config, grid, device=latents.device)
        places = (turns[..., 0].repeat_interleave(2, -1), turns[..., 1].repeat_interleave(2, -1))
    return [
        Contender("ours", ours, lambda: ours(latents, text, t)),
        Contender("diffusers", other, lambda: other(latents, text, t, image_rotary_emb=places, return_dict=False)[0]),
    ]


def _diffusers(transformer: Transformer) -> Any:
    """diffusers' module with the weights of ours."""
    mend()
    from diffusers import CogVideoXTransformer3DModel
    from diffusers.utils import logging

    logging.set_verbosity_error()
    model = CogVideoXTransformer3DModel(**dataclasses.asdict(transformer.config))
    model.load_state_dict(transformer.state_dict())
    return model.to(like(transformer))


def like(module: nn.Module) -> Tensor:
    """A tensor where the module lies, of its precision."""
    return next(module.parameters())


def clock(device: torch.device) -> float:
    """Seconds: on a CPU those of all its threads, so that what else the machine does counts little."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(contender: Contender, *, autocast: bool) -> float:
    """Seconds for one forward and backward pass."""
    contender.module.zero_grad()
    device = like(contender.module).device
    start = clock(device)
    with torch.autocast(device.type, torch.bfloat16) if autocast else contextlib.nullcontext():
        out = contender.forward()
    parts = [out] if isinstance(out, Tensor) else out
    torch.autograd.backward(torch.stack([part.float().square().mean() for part in parts]).mean())
    return clock(device) - start


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Print a line for each pair; the sum of them."""
    both, ratios = contenders(args), []
    for pair in range(-2, args.pairs):
        seconds = {
            one.name: timed(one, autocast=args.precision == "autocast") for one in both[:: 1 if pair % 2 else -1]
        }
        if pair >= 0:  # two pairs to warm up
            ratios.append(seconds[both[0].name] / seconds[both[1].name])
            unit = "cpu_s" if args.device == "cpu" else "s"
            rounded = {f"{one.name}_{unit}": round(seconds[one.name], 5) for one in both}
            print(json.dumps({"pair": pair, **rounded, "ratio": round(ratios[-1], 4)}))
    low, *_, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 2
    quartiles = {"ratio": round(statistics.median(ratios), 4), "quartiles": [round(low, 4), round(high, 4)]}
    return {**vars(args), **quartiles}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="debug")
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--height", type=int, default=16)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=_DTYPES, default="fp32")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--packed", action="store_true", help="a pack against a padded batch, both ours")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    print(json.dumps(compare(args)))


if __name__ == "__main__":
    main()
