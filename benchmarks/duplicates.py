"""How well copies of clips are found, and how fast among a million.

    python -m benchmarks.duplicates [--json] [--videos FOLDER] [--sources 60] [--hashes 1000000]

First, clips (real ones where ``--videos`` or CUTROOM_TEST_VIDEOS names a folder, and painted ones) are changed in ways
that leave them copies, and in two that do not; see ``benchmarks.copies``. For each way, the stage ``duplicates`` sees
the clips and what became of them: of copies the share that is found is counted, and of all clips those that are called
a duplicate of something else. Then hashes are made up, a twentieth of them near-duplicates of others with as many wrong
bits as the first part has seen, and searched in one process on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.copies import COPIES, Source, painted_sources, real_sources, variants, write
from curation.config import load_plan
from curation.decode import decode_video
from curation.plan import Step
from filters.alignment import likeness
from filters.duplicates import Duplicates, links
from filters.video_hash import FREQUENCIES, MIRROR, K, VideoHash, pack, unpack

Row = dict[str, Any]

_STEPS = 20  # of a made-up hash: five seconds
_PLANTED = 20  # every so many is a near-duplicate of the one before
_STILL = 0.003  # change of a clip in which nothing moves is less, of a picture of energy 1


def hashed(path: Path) -> bytes | None:
    """The hash of a file of one shot."""
    plan, stage = load_plan("as_is"), VideoHash()
    clips = decode_video(str(path), {"video": "", "video_id": ""}, plan.decode, [Step(stage, "", {})], False).clips
    return clips["video_hash"][0].as_py() if clips.num_rows else None


def changed(count: int, videos: Path | None, folder: Path) -> tuple[dict[str, list[bytes | None]], dict[str, int]]:
    """For each way of changing ``count`` clips, their hashes; ``original`` are those of the clips as they were.

    Real ones as far as there are any, painted ones for a quarter at least. Clips in which nothing moves are passed
    over: they show the same backwards, and a moment later.

    Returns:
        The hashes; and how many clips of each kind there are, and how many were passed over.
    """
    hashes: dict[str, list[bytes | None]] = {}
    taken = {"real": 0, "painted": 0, "still": 0}

    def take(kind: str, source: Source) -> None:
        films = variants(source, np.random.default_rng([1, sum(taken.values())]))
        name, original = next(films)
        write(folder / "clip.mp4", original)
        if (found := hashed(folder / "clip.mp4")) is None or not moves(found):
            taken["still"] += 1
            return
        taken[kind] += 1
        hashes.setdefault(name, []).append(found)
        for name, film in films:
            write(folder / "clip.mp4", film)
            hashes.setdefault(name, []).append(hashed(folder / "clip.mp4"))

    for source in real_sources(videos) if videos else ():
        if taken["real"] == count - count // 4:
            break
        take("real", source)
    for source in painted_sources():
        if taken["real"] + taken["painted"] == count:
            break
        take("painted", source)
    return hashes, taken


def moves(video_hash: bytes) -> bool:
    """Whether anything moves in a clip."""
    return bool(np.square(unpack(video_hash).change).sum(1).mean() > _STILL**2)


def judged(hashes: dict[str, list[bytes | None]]) -> tuple[list[Row], dict[str, float]]:
    """For each way: how many clips are found to be copies of their original, and how many of anything else."""
    originals, rows = hashes["original"], list[Row]()
    for kind in (*COPIES, "reversed", "next clip"):
        own, other = 0, 0
        for pair in pairs(originals, hashes[kind]):
            own += pair[0] == pair[1]
            other += pair[0] != pair[1]
        rows.append({"change": kind, "clips": len(originals), "found": own, "called another's": other})
    asked = [row for row in rows if row["change"] in list(COPIES)[:-1]]  # all at once is more than is asked
    right = sum(row["found"] for row in asked)
    wrong = sum(row["called another's"] for row in rows) + sum(row["found"] for row in rows[-2:])
    total = {
        "recall": round(right / sum(row["clips"] for row in asked), 4),
        "precision": round(right / (right + wrong), 4),
    }
    return rows, total


def pairs(originals: list[bytes | None], others: list[bytes | None]) -> list[tuple[int, int]]:
    """Numbers of clips of which one is called a duplicate of the other."""
    count = len(originals)
    table = pa.table(
        {
            "video_hash": pa.array([*originals, *others], pa.binary()),
            "clip_id": [f"{i:04d}" for i in range(2 * count)],
            "status": ["kept"] * 2 * count,
            "duration_s": [4.0] * 2 * count,
            **{name: pa.array([1] * 2 * count) for name in ("width", "height", "bit_rate")},
        }
    )
    of = Duplicates().process(table)["duplicate_of"].to_pylist()
    return [(i % count, int(original) % count) for i, original in enumerate(of) if original is not None]


def wrong_bits(hashes: dict[str, list[bytes | None]]) -> np.ndarray:
    """Of each copy: the share of its coefficients, and of their changes in a second, that have another sign: N 2."""
    rates = []
    for kind in list(COPIES)[:-1]:
        for original, copy in zip(hashes["original"], hashes[kind], strict=True):
            if original is None or copy is None:
                continue
            one, other, mirror = unpack(original), unpack(copy), MIRROR if kind == "mirrored" else np.ones(K)
            found = likeness(one, other, mirrored=kind == "mirrored")
            first, last = max(0, -found.offset), max(0, found.offset)
            a = (one.mean + one.change)[first : first + found.shared_steps]
            b = ((other.mean + other.change) * mirror)[last : last + found.shared_steps]
            if found.value > 0.75 and len(a) > 4:
                rates.append([np.mean((x > 0) != (y > 0)) for x, y in ((a, b), (a[4:] - a[:-4], b[4:] - b[:-4]))])
    return np.array(rates)


def made_up(count: int, rates: np.ndarray) -> list[bytes]:
    """Hashes as those of real clips are: energy falls with frequency, change is smooth, from hardly any to a lot."""
    random, made = np.random.default_rng(0), list[bytes]()
    spread = (1 / FREQUENCIES) / np.linalg.norm(1 / FREQUENCIES)
    while len(made) < count:
        size = min(20_000, count - len(made))
        much = np.exp(random.uniform(np.log(0.02), 0, (size, 1, 1)))
        mean = random.standard_normal((size, 1, K)) * spread
        change = smooth(random, size) * spread * much
        steps = mean + change
        planted = np.arange(_PLANTED - 1, size, _PLANTED)
        # Numbers of spread s and noise of spread n differ in sign in a share arctan(n / s) / pi.
        noise = np.tan(np.pi * np.minimum(rates[random.integers(len(rates), size=len(planted))], 0.4))[..., None, None]
        steps[planted] = (
            steps[planted - 1]
            + noise[:, 0] * random.standard_normal((len(planted), 1, K)) * spread
            + noise[:, 1] * smooth(random, len(planted)) * spread * much[planted - 1]
        )
        made += [pack(clip) for clip in steps.astype(np.float32)]
    return made


def smooth(random: np.random.Generator, count: int) -> np.ndarray:
    """Numbers of spread 1 that change slowly: N T K."""
    values = random.standard_normal((count, _STEPS, K))
    for step in range(1, _STEPS):
        values[:, step] = 0.85 * values[:, step - 1] + np.sqrt(1 - 0.85**2) * values[:, step]
    return values


def search(file: Path) -> Row:
    """Find the links between the hashes in a file: what it takes, and the pairs."""
    hashes = pq.read_table(file)["video_hash"]
    started_s, cpu_s = time.monotonic(), time.process_time()
    found = links(hashes, Duplicates().alike)
    return {
        "hashes": len(hashes),
        "cpu_s": round(time.process_time() - cpu_s, 1),
        "wall_s": round(time.monotonic() - started_s, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "pairs": [[link.other, link.better] for link in found],
    }


def searched(count: int, rates: np.ndarray, folder: Path) -> Row:
    """The same in a process of its own, on one core, with the share of planted pairs that were found."""
    pq.write_table(pa.table({"video_hash": pa.array(made_up(count, rates), pa.binary())}), folder / "hashes.parquet")
    command = [sys.executable, "-m", "benchmarks.duplicates", "--search", str(folder / "hashes.parquet")]
    one_core = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(  # noqa: S603 - this very file
        command, env={**os.environ, **one_core}, check=True, capture_output=True, text=True
    )
    row: Row = json.loads(done.stdout)
    found = {tuple(pair) for pair in row.pop("pairs")}
    planted = {(i, i - 1) for i in range(_PLANTED - 1, count, _PLANTED)}
    return {**row, "planted": len(planted), "found": len(planted & found), "by chance": len(found - planted)}


def main() -> None:
    """Measure, and print tables or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.duplicates")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--videos", type=Path, default=os.environ.get("CUTROOM_TEST_VIDEOS"))
    parser.add_argument("--sources", type=int, default=60)
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search:
        print(json.dumps(search(options.search)))
        return
    with tempfile.TemporaryDirectory() as name:
        hashes, taken = changed(options.sources, options.videos and Path(options.videos), Path(name))
        rows, total = judged(hashes)
        rates = wrong_bits(hashes)
        bits = dict(zip(("picture", "change"), rates.mean(axis=0).round(4).tolist(), strict=True))
        million = searched(options.hashes, rates, Path(name))
    results = {"copies": rows, "together": [{**total, **taken}], "wrong bits, mean": [bits], "search": [million]}
    if options.json:
        print(json.dumps(results, indent=1, default=int))
        return
    for title, lines in results.items():
        table = Table(*lines[0], title=title, title_justify="left", box=None)
        for line in lines:
            table.add_row(*map(str, line.values()))
        Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
