"""What a training step of our transformer costs against diffusers' module: forward and backward, in turn, as ratios.

    python -m benchmarks.transformer_step [--size debug] [--frames N] [--height N] [--width N] [--batch N]
                                          [--precision fp32|bf16|autocast] [--pairs N] [--threads N] [--packed N]

Both have the same weights, configuration and input, and run in one process, pair after pair, each pair in the other
order than the one before; sizes are in latents. A line of JSON for each pair, then one that sums up: the ratio is the
median over the pairs, and below 1 ours is faster. With ``--packed N`` a line compares a pack of N samples of lengths 1
to ``--frames`` with the same samples padded to a batch, in useful tokens a second.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from curation.torchvision import mend
from training.transformer.config import size
from training.transformer.model import Transformer
from training.transformer.positions import rotary

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "autocast": torch.float32}


def theirs(transformer: Transformer) -> Any:
    """diffusers' module with the weights of ours."""
    mend()
    from diffusers import CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel(**dataclasses.asdict(transformer.config))
    model.load_state_dict(transformer.state_dict())
    return model.to(transformer.proj_out.weight.dtype)


def timed(step: Callable[[], Tensor], module: nn.Module, *, autocast: bool) -> float:
    """Seconds for one forward and backward pass."""
    module.zero_grad()
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
        out = step()
    torch.autograd.backward(out.float().square().mean())
    return time.perf_counter() - start


def compare(args: argparse.Namespace) -> list[float]:
    """Print a line for each pair; the ratios."""
    config, dtype = size(args.size), _DTYPES[args.precision]
    torch.manual_seed(0)
    ours = Transformer(config)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.02)  # zeros at the end would leave nothing to compute backwards
    ours = ours.to(dtype)
    other = theirs(ours)
    latents = torch.randn(args.batch, args.frames, config.in_channels, args.height, args.width, dtype=dtype)
    text = torch.randn(args.batch, config.max_text_seq_length, config.text_embed_dim, dtype=dtype)
    t = torch.randint(0, 1000, (args.batch,))
    places = None
    if config.use_rotary_positional_embeddings:
        grid = (args.frames // config.time_patch, args.height // config.patch_size, args.width // config.patch_size)
        turns = rotary(config, grid, device=latents.device)
        places = (turns.real.repeat_interleave(2, -1), turns.imag.repeat_interleave(2, -1))

    def their_step() -> Tensor:
        out: Tensor = other(latents, text, t, image_rotary_emb=places, return_dict=False)[0]
        return out

    steps: list[tuple[str, Callable[[], Tensor], nn.Module]] = [
        ("ours", lambda: ours(latents, text, t), ours),
        ("diffusers", their_step, other),
    ]
    ratios = []
    for pair in range(-2, args.pairs):
        seconds = {
            name: timed(step, module, autocast=args.precision == "autocast")
            for name, step, module in (steps if pair % 2 else steps[::-1])
        }
        if pair >= 0:  # two pairs to warm up
            ratios.append(seconds["ours"] / seconds["diffusers"])
            rounded = {f"{name}_s": round(value, 5) for name, value in seconds.items()}
            print(json.dumps({"pair": pair, **rounded, "ratio": round(ratios[-1], 4)}))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="debug")
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--height", type=int, default=16)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=_DTYPES, default="fp32")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ratios = compare(args)
    print(json.dumps({**vars(args), "ratio": round(statistics.median(ratios), 4), "best": round(min(ratios), 4)}))


if __name__ == "__main__":
    main()
