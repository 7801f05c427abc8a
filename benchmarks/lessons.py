"""Does version 2 learn from version 1's own captions? ``python -m benchmarks.lessons OUT``

Everything goes the way of the demo, for longer and on more films: films are encoded, version 1 (a teacher that sees
pixels only) captions them, a tiny model with random weights is distilled from those captions for some minutes on the
CPU, and version 2 captions films that neither has seen. What both say is compared with the truth, which neither knew.
Then version 2 is shown clips of combinations of colour and shape that no lesson had, and clips backwards.
``--shuffled`` is the control: the same captions, each of another clip.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.distill import accuracy, commonest, judge, shuffle_captions
from captioning.world import Scene, make_world, read_truth, write_films
from curation.lessons import SIDE, Pair, School
from curation.progress import Progress
from curation.table import Store


def with_truth(pairs: list[Pair], films: dict[str, list[Scene]]) -> list[tuple[Pair, Scene]]:
    """Each pair of captions with what its clip really shows: clips of a film are 2 s long and in order."""
    return [(pair, films[Path(pair.video).name][round(pair.start_s / 2)]) for pair in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder for films, tables and models")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--films", type=int, default=120, help="to learn from, of 50 clips each")
    parser.add_argument("--exams", type=int, default=10, help="films to be judged by")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shuffled", action="store_true", help="the control")
    arguments = parser.parse_args()
    chosen: dict[str, Any] = {name: getattr(arguments, name) for name in ("films", "exams", "minutes", "seed")}
    school, quiet = School(arguments.output, "local", **chosen), Progress(quiet=True)
    school.film()
    school.caption("v1", "lessons", progress=quiet)
    if arguments.shuffled:
        shuffle_captions(Store(arguments.output / "lessons-v1"), seed=arguments.seed)
    done = school.distil(print)
    for version in ("v1", "v2"):
        school.caption(version, "exam", progress=quiet)
    films = write_films(
        arguments.output / "exam", arguments.exams, seed=10 * arguments.seed + 2
    )  # those that are there
    judged = with_truth(school.compare(), films)
    scenes = [scene for _, scene in judged]
    seen, new = (arguments.output / name for name in ("seen", "new"))
    for folder, number, is_new in ((seen, 3, False), (new, 4, True)):
        make_world(folder, 240, seed=10 * arguments.seed + number, side=SIDE, new=is_new, grain=False)  # as films are
    figures = {
        "steps": done.steps,
        "seconds": done.seconds,
        "lessons that failed": school.errors("v1", "lessons"),
        "clips judged": len(judged),
        "always the same answer": commonest(scenes),
        "v1": accuracy([pair.first for pair, _ in judged], scenes),
        "v2": accuracy([pair.second for pair, _ in judged], scenes),
        "v2 on drawn clips": judge(school.model, seen, new, sorted(read_truth(seen))),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
