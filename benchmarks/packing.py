"""What packs gain over padded batches and over buckets: useful tokens a second of forward and backward, in one run.

    python -m benchmarks.packing [--size debug] [--samples N] [--images SHARE] [--height N] [--width N] [--pack N]
                                 [--ranks N] [--rounds N] [--threads N] [--attention NAME] [--device cpu|cuda]

Samples are clips of 1 to 13 latent frames, as many of each, mixed with images; sizes are in latents. Every way has the
same samples, the same weights, and about as many tokens at a time (``--pack`` times the longest sample):

* packs: as ``training.transformer.packing`` fills them;
* padding: batches in random order, every sample with empty frames up to the longest of all, so one shape serves all;
* trimmed: the same, but up to the longest of its batch only;
* buckets: batches of one length each, as many after each other as there are ranks.

The ways take turns, round after round. A line of JSON for each way and round; a last line sums up by the median over
rounds: the ratio of useful tokens a second of packs to the others, how full packs are, and what each way is worth when
``--ranks`` ranks wait for the slowest at every step, which is computed of the times of the same batches.

Measured with the defaults on two CPU cores: packs give 2.27 times the useful tokens of padding, 1.55 of trimmed, and
0.91 of buckets in one process, but 1.22 of them where 8 ranks wait for each other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.transformer.attention import attention
from training.transformer.config import size
from training.transformer.model import Transformer
from training.transformer.packing import Groups, batches, fill, packs, shuffled

_LONGEST = 13


class Bench:
    """A transformer and samples; the time of a group of them, in a pack or in a batch."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.config, self.device = size(args.size), torch.device(args.device)
        torch.manual_seed(0)
        self.model = Transformer(self.config)
        for parameter in self.model.parameters():
            nn.init.normal_(parameter, std=0.02)  # zeros at the end would leave nothing to compute backwards
        self.model.to(self.device)
        self.model.attention = attention(args.attention)
        self.words = self.config.max_text_seq_length
        self.area = (args.height, args.width)
        each = args.height * args.width // self.config.patch_size**2
        random = np.random.default_rng(0)
        self.frames = np.resize(np.arange(1, _LONGEST + 1), args.samples)
        self.frames[random.random(args.samples) < args.images] = 1
        self.tokens = self.words + each * self.frames
        self.budget = args.pack * (self.words + each * _LONGEST)
        self.rows, self.ranks = args.pack, args.ranks
        self.autocast = args.device != "cpu"

    def groups(self, way: str, epoch: int) -> Groups:
        """How the samples are computed together."""
        if way == "packs":
            return packs(self.tokens, tokens=self.budget, seed=0, epoch=epoch)
        if way in ("padding", "trimmed"):
            order = shuffled(len(self.tokens), seed=0, epoch=epoch).tolist()
            return [order[at : at + self.rows] for at in range(0, len(order), self.rows)]
        longest = [int(self.tokens[self.frames == frames].max(initial=1)) for frames in range(1, _LONGEST + 1)]
        sizes = [max(1, self.budget // tokens) for tokens in longest]
        return batches((self.frames - 1).tolist(), sizes, seed=0, epoch=epoch, following=self.ranks)

    def timed(self, way: str, group: list[int]) -> float:
        """Seconds of a forward and a backward pass."""
        frames = [int(self.frames[at]) for at in group]
        longest = {"padding": _LONGEST, "trimmed": max(frames)}
        counts = [longest[way]] * len(frames) if way in longest else frames
        t = torch.randint(0, 1000, (len(group),), device=self.device)
        self.model.zero_grad()
        latents: Any = [self._noise(count, self.config.in_channels, *self.area) for count in counts]
        texts: Any = [self._noise(self.words, self.config.text_embed_dim) for _ in counts]
        if way != "packs":
            latents, texts = torch.stack(latents), torch.stack(texts)
        self._wait()
        start = time.perf_counter()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            out = self.model(latents, texts, t)
        parts = out if way == "packs" else [out]
        loss = torch.stack([part.float().square().mean() for part in parts]).mean()
        torch.autograd.backward(loss)
        self._wait()
        return time.perf_counter() - start

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def in_step(times: list[float], ranks: int) -> float:
    """The share of the time that ranks compute, when all wait for the slowest of each step."""
    steps = [times[at : at + ranks] for at in range(0, len(times) - ranks + 1, ranks)]
    return sum(map(sum, steps)) / (ranks * sum(map(max, steps))) if steps else 1.0


def compare(args: argparse.Namespace, say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Every way in every round; the summary."""
    bench, ways = Bench(args), ("packs", "padding", "trimmed", "buckets")
    for way in ways:
        bench.timed(way, bench.groups(way, 0)[0])  # what is done once
    speed: dict[str, list[float]] = {way: [] for way in ways}
    worth: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(args.rounds):
        found = {way: bench.groups(way, number) for way in ways}
        times: dict[str, list[float]] = {way: [] for way in ways}
        # In turns, batch by batch, so that what else the machine does falls on all alike.
        for row in itertools.zip_longest(*found.values()):
            for way, group in zip(ways, row, strict=True):
                if group is not None:
                    times[way].append(bench.timed(way, group))
        for way in ways:
            speed[way].append(float(bench.tokens.sum()) / sum(times[way]))
            worth[way].append(speed[way][-1] * in_step(times[way], args.ranks))
            say({"way": way, "round": number, "batches": len(found[way]), "tokens_per_s": round(speed[way][-1])})
    middle = {way: statistics.median(values) for way, values in speed.items()}
    ranked = {way: statistics.median(values) for way, values in worth.items()}
    return {
        **{f"packs_over_{way}": round(middle["packs"] / middle[way], 3) for way in ways[1:]},
        **{f"packs_over_{way}_{args.ranks}_ranks": round(ranked["packs"] / ranked[way], 3) for way in ways[1:]},
        "fill": round(fill(bench.groups("packs", 0), bench.tokens, tokens=bench.budget), 4),
        "samples": args.samples,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="debug")
    parser.add_argument("--samples", type=int, default=260)
    parser.add_argument("--images", type=float, default=0.2)
    parser.add_argument("--height", type=int, default=16)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--pack", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--attention", default="split")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    print(json.dumps(compare(args, lambda line: print(json.dumps(line), flush=True))))


if __name__ == "__main__":
    main()
