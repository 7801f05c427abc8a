"""How well shots are found: hard cuts, gradual transitions, false cuts, beside PySceneDetect at its defaults.

    python -m benchmarks.shots [--json] [--verbose] [--seed N] [--videos DIR] [--keep DIR] [--only NAME]

The films of ``benchmarks.transitions`` are made first; ``--keep DIR`` keeps them, and what PySceneDetect said of
them, for the next time. With a folder of real clips (``--videos``, or ``CUTROOM_TEST_VIDEOS``) their pieces are joined
to films too, and the clips themselves are judged by the cuts in their INDEX.csv.

To try a detector on frames that are decoded once:

    from benchmarks.shots import evaluate
    from benchmarks.transitions import corpus, frames_of
    films = corpus("/tmp/films", seed=0)
    verdict = evaluate(films, lambda film: my_clips(frames_of(film)), verbose=True)
    verdict.f1(), verdict.excluded(), verdict.false_per_10_min()

where ``my_clips`` takes N H W 3 BGR and gives [(first, end)], half open frame indices; a cut is where two clips touch,
a gradual transition is a gap between them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.annotated import annotated
from benchmarks.transitions import Film, corpus, real_corpus
from benchmarks.verdict import Span, Verdict, clips_of_cuts, judge, listing, reports_of, total
from curation.decode import Decode, decode_video
from curation.plan import Step

Finder = Callable[[Film], Sequence[Span]]


def ours(film: Film) -> list[Span]:
    """The clips of our decode pass, undivided."""
    stage = Decode(max_clip_s=None, sheet_fps=0.2, sheet_long_side_px=64)
    decoded = decode_video(str(film.path), {"video": film.name, "video_id": "0" * 24}, Step(stage, "", {}), [], True)
    if decoded.video["status"] != "done":
        raise RuntimeError(f"{film.path}: {decoded.video['error']}")
    times = sorted(zip(*(decoded.clips[name].to_pylist() for name in ("start_s", "end_s")), strict=True))
    return [(film.frame_at(start_s), film.frame_at(end_s)) for start_s, end_s in times]


def pyscenedetect(film: Film, detector: str) -> list[Span]:
    """The scenes of ``scenedetect.detect`` with a detector at its defaults; PyAV, as OpenCV cannot read AV1."""
    import scenedetect

    scenes = scenedetect.detect(str(film.path), getattr(scenedetect, detector)(), backend="pyav")
    begin_s = scenes[0][0].seconds if scenes else 0.0
    return clips_of_cuts(film.num_frames, [film.frame_at(start.seconds - begin_s) for start, _ in scenes[1:]])


FINDERS: dict[str, Finder] = {
    "cutroom": ours,
    "AdaptiveDetector": functools.partial(pyscenedetect, detector="AdaptiveDetector"),
    "ContentDetector": functools.partial(pyscenedetect, detector="ContentDetector"),
}


def evaluate(films: Sequence[Film], finder: Finder, *, verbose: bool = False) -> Verdict:
    """Judge a finder on films, all added up; ``verbose`` prints every miss and every false report."""
    clips = {film.name: [*finder(film)] for film in films}
    verdict = total(judge(film, clips[film.name]) for film in films)
    if verbose:
        print("\n".join(listing(verdict, {film.name: reports_of(film.num_frames, clips[film.name]) for film in films})))
    return verdict


def find(name: str, film: Film) -> list[Span]:
    """What a finder of FINDERS says of a film; PySceneDetect's answer is kept beside the film."""
    note = film.note(f".{name}.json")
    if note.exists():
        return [(first, end) for first, end in json.loads(note.read_text())]
    clips = list(FINDERS[name](film))
    if name != "cutroom":
        note.write_text(json.dumps(clips))
    return clips


def measure(films: Sequence[Film], names: Sequence[str], jobs: int | None) -> dict[str, dict[str, list[Span]]]:
    """Clips by finder and film name."""
    tasks = [(name, film) for name in names for film in films]
    with ProcessPoolExecutor(jobs) as pool:
        found = list(pool.map(find, *zip(*tasks, strict=True)))
    answers: dict[str, dict[str, list[Span]]] = {name: {} for name in names}
    for (name, film), clips in zip(tasks, found, strict=True):
        answers[name][film.name] = clips
    return answers


def summary(title: str, verdicts: dict[str, Verdict]) -> Table:
    """One row per finder."""
    columns = ("", "hard cuts", "precision", "recall", "F1", "gradual", "excluded", "seen", "cuts inside", "false cuts")
    table = Table(*columns, "false gaps", "lost frames", title=title, title_justify="left", box=None)
    for name, v in verdicts.items():
        shares = (f"{value:.3f}" for value in (v.precision(), v.recall(), v.f1()))
        counts = (len(v.cuts_inside), len(v.false_cuts), len(v.false_gaps))
        lost = f"{v.lost} ({v.lost / max(1, v.frames):.1%})"
        gradual = (f"{v.excluded():.3f}", f"{v.seen():.3f}")
        table.add_row(name, str(len(v.hard)), *shares, str(len(v.gradual)), *gradual, *map(str, counts), lost)
    return table


def by_kind(verdicts: dict[str, Verdict]) -> Table:
    """Recall by kind: hard cuts by the theme of their film, gradual transitions by their own kind."""
    table = Table("found of", *verdicts, title="Recall by kind", title_justify="left", box=None)
    rows: dict[str, dict[str, list[bool]]] = {}
    for name, verdict in verdicts.items():
        for film, transition, what in (*verdict.hard, *verdict.gradual):
            kind = f"cut, {film.theme}" if transition.hard else transition.kind
            rows.setdefault(kind, {}).setdefault(name, []).append(what in ("found", "excluded"))
    for kind in sorted(rows):
        table.add_row(kind, *(f"{sum(rows[kind][name])}/{len(rows[kind][name])}" for name in verdicts))
    return table


def distractions(films: Sequence[Film], answers: dict[str, dict[str, list[Span]]]) -> tuple[Table, dict[str, object]]:
    """False cuts and gaps in films without any, by kind."""
    title = "False cuts and gaps per 10 minutes without any"
    table, facts = Table("", "minutes", *answers, title=title, title_justify="left", box=None), dict[str, object]()
    for kind in (*dict.fromkeys(film.theme for film in films), "all"):
        chosen = [film for film in films if kind in (film.theme, "all")]
        sums = {name: total(judge(film, found[film.name]) for film in chosen) for name, found in answers.items()}
        rates = {name: verdict.false_per_10_min() for name, verdict in sums.items()}
        minutes = sum(film.minutes for film in chosen)
        table.add_row(kind, f"{minutes:.1f}", *(f"{rate:.1f}" for rate in rates.values()))
        facts[kind] = {"minutes": round(minutes, 2), **{name: round(rate, 2) for name, rate in rates.items()}}
    return table, facts


def by_file(films: Sequence[Film], answers: dict[str, dict[str, list[Span]]]) -> Table:
    """Real clips file by file, without those where nothing was to be found and nothing was reported."""
    title = "Annotated real clips: hard cuts found + false, gradual transitions excluded (seen)"
    table = Table("", "hard", "gradual", *answers, title=title, title_justify="left", box=None)
    for film in films:
        verdicts = [judge(film, found[film.name]) for found in answers.values()]
        cells = []
        for v in verdicts:
            false = len(v.false_cuts) + len(v.false_gaps) + len(v.cuts_inside)
            found = sum(what == "found" for *_, what in v.hard)
            gone, seen = (sum(what in good for *_, what in v.gradual) for good in (("excluded",), ("excluded", "seen")))
            cells.append(f"{found} + {false}, {gone} ({seen})")
        if film.transitions or any(not cell.startswith("0 + 0") for cell in cells):
            hard = sum(t.hard for t in film.transitions)
            table.add_row(film.name, str(hard), str(len(film.transitions) - hard), *cells)
    return table


def sections(folder: Path, videos: Path | None, *, seed: int, jobs: int | None) -> dict[str, list[Film]]:
    """The films to be judged, by section."""
    painted = corpus(folder, seed=seed, jobs=jobs)
    films = {
        "Painted films": [film for film in painted if not film.distractor],
        "distractors": [film for film in painted if film.distractor],
    }
    if videos is not None:
        films["Pieces of real clips, joined"] = real_corpus(folder, videos, seed=seed, jobs=jobs)
        films["Annotated real clips"] = annotated(videos, folder)
    return films


def main() -> None:
    """Make the films, let every finder loose on them, print tables or JSON."""
    arguments = _arguments()
    videos = Path(arguments.videos) if arguments.videos else None
    console, facts = Console(width=160), dict[str, object]()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.keep or scratch)
        for section, films in sections(folder, videos, seed=arguments.seed, jobs=arguments.jobs).items():
            answers = measure(films, arguments.only or list(FINDERS), arguments.jobs)
            verdicts = {name: total(judge(film, found[film.name]) for film in films) for name, found in answers.items()}
            rates, facts[section] = distractions(films, answers)
            tables = [rates]
            if section != "distractors":
                facts[section] = {name: verdict.as_dict() for name, verdict in verdicts.items()}
                tables = [summary(section, verdicts), by_kind(verdicts)]
            if section == "Annotated real clips":
                tables = [tables[0], by_file(films, answers)]
            for table in tables if not arguments.json else []:
                console.print(table, "")
            if arguments.verbose:
                reports = {film.name: reports_of(film.num_frames, answers["cutroom"][film.name]) for film in films}
                print("\n".join(listing(verdicts["cutroom"], reports)), "\n")
    if arguments.json:
        print(json.dumps(facts, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Shot detection against known truth.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="list our misses and false reports")
    parser.add_argument("--seed", type=int, default=0, help="0 is for tuning, others are held out")
    parser.add_argument("--videos", default=os.environ.get("CUTROOM_TEST_VIDEOS"), help="a folder with INDEX.csv")
    parser.add_argument("--keep", help="keep the films here")
    parser.add_argument("--only", action="append", choices=list(FINDERS), help="may be repeated")
    parser.add_argument("--jobs", type=int, help="processes; one per CPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
