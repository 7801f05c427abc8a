"""Peak memory and time of decoding one video with the VAE: in chunks, in chunks and tiles, whole, and by diffusers.

    python -m benchmarks.vae_memory [--mode chunks|chunks+tiles|whole|diffusers ...] [--size full] [--frames 49]
                                    [--height 480] [--width 720] [--dtype bfloat16] [--device cpu] [--threads N]

Each mode runs in a process of its own and prints one JSON line. ``peak_bytes`` is the most that the process held (on a
GPU: its allocator), ``pass_bytes`` that less what it held before the pass: weights, libraries and the latent. Weights
are random, of the decoder alone; they change neither. ``diffusers`` is its own model in its own chunks, where it is
installed. With ``--device meta`` nothing is computed: the bytes of all tensors that live at a time are counted, in
seconds and on any machine, without what convolutions take for themselves.

Counted, the ``full`` size, 49 frames of 480x720, GB over the weights:

                in chunks   in chunks and tiles   whole   diffusers in its chunks
    bfloat16       7.9             2.3             26.1           15.8
    float32       15.8             4.5             52.2           31.7

Measured on a CPU in float32, beside what is counted: 17x480x720 in chunks 16.0 (14.6), 17x240x360 in chunks 4.4 (3.8),
49x96x144 in chunks 1.0 (0.7) and whole 2.8 (2.5). Whole, 49x480x720 fits few cards.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from curation.torchvision import mend
from training.vae.config import SIZES, Chunks, Tiles, size
from training.vae.model import VAE

CUTS: dict[str, tuple[Chunks | None, Tiles | None]] = {
    "chunks": (Chunks(), None),
    "chunks+tiles": (Chunks(), Tiles()),
    "whole": (None, None),
}
MODES = (*CUTS, "diffusers")


class Counted(TorchDispatchMode):
    """The bytes of the tensors that operations made and that are still held."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._held: dict[int, tuple[object, int]] = {}  # by storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count what it made."""
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if (key := storage._cdata) not in self._held and key not in given:
                gone = weakref.finalize(storage, self._free, key)
                self._held[key] = gone, storage.nbytes()
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        return made

    def _free(self, key: int) -> None:
        self.now -= self._held.pop(key)[1]


def decoder(mode: str, options: argparse.Namespace) -> Callable[[Tensor], object]:
    """The function to measure, its weights random and in place."""
    config = size(options.size)
    with torch.device("meta"):
        if mode == "diffusers":
            mend()
            from diffusers import AutoencoderKLCogVideoX

            model: nn.Module = AutoencoderKLCogVideoX.from_config(json.loads(config.to_json()))
        else:
            model = VAE(config)
    del model.encoder
    model = model.to(getattr(torch, options.dtype)).to_empty(device=options.device).requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    if isinstance(model, VAE):
        chunks, tiles = CUTS[mode]
        return functools.partial(model.decode, chunks=chunks, tiles=tiles)
    theirs: Any = model
    decode: Callable[[Tensor], object] = theirs.decode
    return decode


def measure(mode: str, options: argparse.Namespace) -> dict[str, object]:
    """Decode once in this process."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    decode = decoder(mode, options)
    with torch.device("meta"):
        shape = VAE(size(options.size)).latent_shape(options.frames, options.height, options.width)
    z = torch.randn(1, *shape, dtype=getattr(torch, options.dtype), device=options.device)
    about = {
        "mode": mode,
        "size": options.size,
        "video": f"{options.frames}x{options.height}x{options.width}",
        "dtype": options.dtype,
    }
    if z.is_meta:
        with torch.no_grad(), Counted() as counted:
            decode(z)
        return {**about, "device": "meta", "pass_bytes": counted.peak}
    cuda = z.is_cuda
    before = torch.cuda.memory_allocated() if cuda else psutil.Process().memory_info().rss
    start = time.perf_counter()
    with torch.no_grad():
        decode(z)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        **about,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": options.threads,
        "peak_bytes": peak,
        "pass_bytes": peak - before,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    """One process per mode."""
    options = _arguments()
    if options.only:
        print(json.dumps(measure(options.only, options)), flush=True)
        return
    for mode in options.mode or list(CUTS):
        command = [sys.executable, "-m", "benchmarks.vae_memory", *sys.argv[1:], "--only", mode]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)  # noqa: S603 - our own
        if done.returncode:
            print(json.dumps({"mode": mode, "exit_status": done.returncode}), flush=True)  # such as -9: no memory


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Peak memory of decoding with the VAE.")
    parser.add_argument("--mode", action="append", choices=MODES, help="give it several times; all but diffusers")
    parser.add_argument("--size", default="full", choices=SIZES)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=720)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=MODES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
