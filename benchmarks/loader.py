"""Clips a second of the loader against what people write around webdataset, on the same shards with as many workers.

    python -m benchmarks.loader [--workers N] [--rounds N] [--clips N] [--size 854x480] [--frames 17] [--crop 256x256]
                                [--codec h264] [SHARDS]

Without SHARDS it makes some: ``--clips`` samples of 97 frames. Each contender reads every sample once, picks a random
span, and gives batches B C T H W uint8 of the crop; it runs in a process of its own, in turn with the others, and is
timed from its first batch on. One line of JSON per contender: medians of the rounds, and ratios to the loader's, taken
round by round (a ratio of 0.5 is half as many clips a second, or half the CPU time).

``webdataset_pyav`` decodes from the clip's start and scales with OpenCV; ``webdataset_pyav_seek`` seeks to the span and
lets FFmpeg scale; ``webdataset_decord`` reads the span and scales it with OpenCV; so does ``webdataset_torchcodec``,
and ``webdataset_torchcodec_resize`` scales by itself: both are there where torchcodec can be imported. All decode and
scale on one thread a worker: more threads than cores help nobody who is alone on a machine, and take time from the
others where not.

Measured on two cores, as it stands above (H.264, torchcodec 0.13), as shares of the loader's speed and times its CPU
time: pyav 0.46 and 2.2, pyav_seek 0.66 and 1.5, decord 0.40 and 2.5, torchcodec 0.54 and 1.9, torchcodec_resize 0.57
and 1.7.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from curation.torchvision import mend

_BATCH = 4
_LENGTH = 97  # frames of the clips that are made
_DISTINCT = 8  # clips that are encoded; the others are copies
_WARM = 3  # batches before the clock runs: importing is over, and what was made meanwhile is mostly handed out

Decode = Callable[[bytes], "np.ndarray"]  # MP4 -> T H W 3


def make_shards(folder: Path, clips: int, size: tuple[int, int], codec: str) -> None:
    """Shards in our form, of noise that pans."""
    import cv2
    import webdataset

    from curation.plan import ShardSettings
    from shards.encode import cut_clip
    from shards.pack import sample_json

    width, height = size
    options = ShardSettings(codec=codec)  # type: ignore[arg-type]
    made = []
    with tempfile.TemporaryDirectory() as scratch:
        for n in range(_DISTINCT):
            noise = np.random.default_rng(n).integers(0, 256, (height // 8, (width + 3 * _LENGTH) // 8, 3), np.uint8)
            world = cv2.resize(noise, (width + 3 * _LENGTH, height), interpolation=cv2.INTER_CUBIC)
            source = str(Path(scratch) / f"{n}.mp4")
            _write_source(source, [world[:, 3 * i : 3 * i + width] for i in range(_LENGTH)])
            row = {"start_s": 0.0, "end_s": _LENGTH / 24, "num_frames": _LENGTH, "fps": 24.0}
            cut = cut_clip(source, row, options)
            made.append((cut.mp4, sample_json(row, options, cut).encode()))
    per_shard = -(-clips // 8)
    for shard in range(8):
        with webdataset.TarWriter(str(folder / f"{shard:06d}.tar")) as tar:
            for i in range(shard * per_shard, min(clips, (shard + 1) * per_shard)):
                mp4, about = made[i % _DISTINCT]
                tar.write({"__key__": f"{i:06d}", "mp4": mp4, "txt": f"clip {i}", "json": about})


def _write_source(path: str, pictures: list[np.ndarray]) -> None:
    import av

    with av.open(path, "w") as out:
        stream: Any = out.add_stream("libx264", rate=24, options={"crf": "10", "preset": "ultrafast"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
        out.mux(stream.encode(None))


def ours(shards: str, workers: int, frames: int, crop: tuple[int, int]) -> Iterator[Any]:
    """Batches of the loader."""
    from training.data.loader import Loader
    from training.data.settings import Bucket, DataSettings

    bucket = Bucket(frames=frames, height=crop[0], width=crop[1], batch_size=_BATCH)
    with Loader(DataSettings(shards=shards, buckets=[bucket], workers=workers), epochs=1) as loader:
        for batch in loader:
            yield batch.video


def around_webdataset(decode: Decode, shards: str, workers: int, crop: tuple[int, int]) -> Iterator[Any]:
    """Batches as torch's DataLoader gives them from a webdataset whose videos are decoded by ``decode``."""
    import torch
    import webdataset

    def cut(sample: dict[str, Any]) -> tuple[torch.Tensor, str]:
        frames = decode(sample["mp4"])  # T H W 3
        top, left = (random.randint(0, have - want) for have, want in zip(frames.shape[1:3], crop, strict=True))  # noqa: S311
        video = frames[:, top : top + crop[0], left : left + crop[1]].transpose(3, 0, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(video)), sample["txt"].decode()

    def collate(samples: list[tuple[torch.Tensor, str]]) -> torch.Tensor:
        return torch.stack([video for video, _ in samples])

    tars = [str(path) for path in sorted(Path(shards).glob("*.tar"))]
    dataset = webdataset.WebDataset(tars, shardshuffle=False).map(cut).batched(_BATCH, collation_fn=collate)
    yield from torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=2)


def cover(height: int, width: int, crop: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the picture that just covers the crop."""
    scale = max(crop[0] / height, crop[1] / width)
    return max(crop[0], round(height * scale)), max(crop[1], round(width * scale))


def pyav(frames: int, crop: tuple[int, int]) -> Decode:
    """From the start of the clip to the end of the span."""
    import av
    import cv2

    def decode(mp4: bytes) -> np.ndarray:
        with av.open(io.BytesIO(mp4), "r") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            start = random.randint(0, stream.frames - frames)  # noqa: S311
            size = cover(stream.height, stream.width, crop)[::-1]
            taken = []
            for i, frame in enumerate(container.decode(stream)):
                if i >= start:
                    picture = frame.reformat(format="rgb24", threads=1).to_ndarray()
                    taken.append(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
                if len(taken) == frames:
                    return np.stack(taken)
        raise ValueError("too short")

    return decode


def pyav_seek(frames: int, crop: tuple[int, int]) -> Decode:
    """From the keyframe before the span; FFmpeg makes the pictures small."""
    import av

    def decode(mp4: bytes) -> np.ndarray:
        with av.open(io.BytesIO(mp4), "r") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            start = random.randint(0, stream.frames - frames)  # noqa: S311
            assert stream.average_rate is not None
            assert stream.time_base is not None
            first = round(start / stream.average_rate / stream.time_base)
            height, width = cover(stream.height, stream.width, crop)
            container.seek(first, stream=stream)
            taken = []
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts >= first:
                    small = frame.reformat(width, height, "rgb24", interpolation="BICUBIC", threads=1)
                    taken.append(small.to_ndarray())
                if len(taken) == frames:
                    return np.stack(taken)
        raise ValueError("too short")

    return decode


def decord(frames: int, crop: tuple[int, int]) -> Decode:
    """The frames of the span in full, then scaled."""
    import cv2

    def decode(mp4: bytes) -> np.ndarray:
        import decord as library

        reader = library.VideoReader(io.BytesIO(mp4), ctx=library.cpu(0), num_threads=1)
        start = random.randint(0, len(reader) - frames)  # noqa: S311
        taken = reader.get_batch(range(start, start + frames)).asnumpy()
        size = cover(taken.shape[1], taken.shape[2], crop)[::-1]
        return np.stack([cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in taken])

    return decode


def torchcodec(frames: int, crop: tuple[int, int]) -> Decode:
    """The frames of the span in full, then scaled."""
    import cv2
    from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]

    def decode(mp4: bytes) -> np.ndarray:
        decoder = VideoDecoder(mp4, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
        start = random.randint(0, len(decoder) - frames)  # noqa: S311
        taken = decoder.get_frames_in_range(start, start + frames).data.numpy()
        size = cover(taken.shape[1], taken.shape[2], crop)[::-1]
        return np.stack([cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in taken])

    return decode


def torchcodec_resize(frames: int, crop: tuple[int, int]) -> Decode:
    """The frames of the span, which it makes small itself."""
    mend()
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize  # type: ignore[import-not-found]

    def decode(mp4: bytes) -> np.ndarray:
        about = VideoDecoder(mp4, seek_mode="approximate").metadata
        small = [Resize(cover(about.height, about.width, crop))]
        options = {"num_ffmpeg_threads": 1, "seek_mode": "approximate", "transforms": small}
        decoder = VideoDecoder(mp4, dimension_order="NHWC", **options)
        start = random.randint(0, len(decoder) - frames)  # noqa: S311
        taken: np.ndarray = decoder.get_frames_in_range(start, start + frames).data.numpy()
        return taken

    return decode


CONTENDERS: dict[str, Callable[[int, tuple[int, int]], Decode] | None] = {
    "cutroom": None,
    "webdataset_pyav": pyav,
    "webdataset_pyav_seek": pyav_seek,
    "webdataset_decord": decord,
    "webdataset_torchcodec": torchcodec,
    "webdataset_torchcodec_resize": torchcodec_resize,
}


def run_one(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Read every sample once, in this process; what it took after the first batches."""
    import cv2

    cv2.setNumThreads(1)
    crop, make = _size(arguments.crop)[::-1], CONTENDERS[name]
    if make is None:
        batches = ours(arguments.shards, arguments.workers, arguments.frames, crop)
    else:
        batches = around_webdataset(make(arguments.frames, crop), arguments.shards, arguments.workers, crop)
    clips, begun_s, begun_cpu_s, cpu_s = 0, 0.0, 0.0, 0.0
    for i, video in enumerate(batches):
        if i == _WARM:
            begun_s, begun_cpu_s = time.perf_counter(), _cpu_s()
        elif i > _WARM:
            clips += len(video)
            cpu_s = _cpu_s() - begun_cpu_s
        assert tuple(video.shape[1:]) == (3, arguments.frames, *crop)
    return {"clips_per_s": clips / (time.perf_counter() - begun_s), "cpu_s_per_clip": cpu_s / clips, "clips": clips}


def _cpu_s() -> float:
    """User and system time of this process and its living children."""
    this, total = psutil.Process(), 0.0
    for process in (this, *this.children(recursive=True)):
        try:
            used = process.cpu_times()
        except psutil.Error:
            continue
        total += used.user + used.system
    return total


def compare(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row per contender."""
    names = [name for name in CONTENDERS if "torchcodec" not in name or importlib.util.find_spec("torchcodec")]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    told = ["--workers", "--frames", "--crop"]
    options = [word for flag in told for word in (flag, str(getattr(arguments, flag[2:])))]
    for _ in range(arguments.rounds):
        for name in names:
            command = [sys.executable, "-m", "benchmarks.loader", *options, "--only", name, arguments.shards]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
            rounds[name].append(json.loads(done.stdout))
    for name in names:
        row: dict[str, Any] = {"loader": name, "workers": arguments.workers, "rounds": arguments.rounds}
        row["clips"] = int(rounds[name][0]["clips"])
        for what, key in (("clips_per_s", "speed"), ("cpu_s_per_clip", "cpu")):
            row[what] = round(statistics.median(one[what] for one in rounds[name]), 4)
            pairs = zip(rounds[name], rounds["cutroom"], strict=True)
            row[f"{key}_ratio"] = round(statistics.median(one[what] / own[what] for one, own in pairs), 3)
        yield row


def main() -> None:
    """Compare, or be one of the contenders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="?", help="a folder of tars in Cutroom's form")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=192)
    parser.add_argument("--size", default="854x480")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--crop", default="256x256")
    parser.add_argument("--codec", default="h264", choices=["h264", "hevc", "vp9", "av1"])
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(run_one(arguments.only, arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.shards is None:
            make_shards(Path(folder), arguments.clips, _size(arguments.size), arguments.codec)
            arguments.shards = folder
        for row in compare(arguments):
            print(json.dumps({"size": arguments.size, "frames": arguments.frames, "crop": arguments.crop, **row}))


def _size(text: str) -> tuple[int, int]:
    """(width, height)."""
    width, height = (int(word) for word in text.split("x"))
    return width, height


if __name__ == "__main__":
    main()
