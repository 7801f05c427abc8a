"""``cutroom eval``: how good videos that a model made are, as far as measures tell, beside real ones if wanted.

    for one in measure(samples(Path("out")), Measures()): print(one.video, one.figures)

Each video is decoded once, in a child process, by the decode pass that footage goes through; figures are those of the
filters. One longer than a minute is measured in pieces, so that memory holds the frames of any. Here and not in
``training``, which knows nothing of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from captioning.sidecar import caption_for
from curation.clips import Range
from curation.decode import Decode, Decoded, Decoder, join
from curation.errors import CutroomError, UsageError, VideoError, one_line
from curation.files import aside
from curation.inputs import find_videos
from curation.isolate import Isolated, TooLargeError
from curation.model_files import MissingWeightsError, located
from curation.output import check_file
from curation.plan import Step
from curation.sheets import take_sheets
from curation.stage import known
from filters import clip, consistency
from filters.flicker import Flicker
from filters.match import Match
from filters.motion import Motion
from shards.bytes import Bytes
from shards.read import find_shards, read_catalogue

DYNAMIC_ABOVE = 0.19
FIGURES = {
    "dynamic_degree": "share of videos whose motion_p90 is above the limit",
    "motion_p90": "speed of the fastest tenth of the picture, frame heights a second",
    "flicker": "change from frame to frame that motion does not explain, 0..1",
    "subject_consistency": "likeness of frames to the first and to the one before, by DINO, 0..1",
    "frame_consistency": "the same by CLIP",
    "match_score": "cosine of prompt and frames by CLIP, -1..1",
}
_FPS = 8  # of the frames that DINO and CLIP see, and of the motion's
_PIECE_S = 60.0  # the frames of so much are in memory at once
_MARK = "eval"
_FORMAT = "cutroom eval 1"
_VIDEO = "." * 24  # stands for a video's id, which is not asked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured, and by what.

    Attributes:
        clip: a model of open_clip, for ``frame_consistency`` and ``match_score``; None leaves these out.
        dino: DINO or DINOv2 of transformers, for ``subject_consistency``; None leaves it out.
        gpu: they compute on it.
        dynamic_above: a video is dynamic whose ``motion_p90`` is above this. The default is VBench's limit in our
            units: 6 px of 256 in an eighth of a second. VBench (Huang et al., CVPR 2024) asks for it of the mean of the
            fastest 5% of RAFT's flow, in a quarter of the time; here it is asked of the 90th percentile of DIS's,
            averaged over time.
    """

    clip: str | None = None
    dino: str | None = None
    gpu: bool = False
    dynamic_above: float = DYNAMIC_ABOVE


@dataclasses.dataclass(frozen=True)
class Sample:
    """A video to measure, by the name to report; ``prompt`` None is looked for beside it."""

    video: str
    path: Path
    prompt: str | None = None


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is known of a video. ``error`` of one that is done says what could not be read of it."""

    video: str
    status: Literal["done", "failed"]
    error: str | None
    prompt: str | None
    figures: dict[str, float | None]


def choose(clip_model: str | None, dino_model: str | None, **others: Any) -> tuple[Measures, dict[str, str]]:
    """The measures that can be taken here, and of each that cannot, why and how to get it.

    Args:
        clip_model, dino_model: what someone has asked for. None takes CLIP ViT-L/14 and DINO ViT-B/16 if they are on
            this machine: nothing is downloaded that nobody has named.

    Raises:
        UsageError: a model was named and cannot be had.
    """
    out: dict[str, str] = {}
    found: dict[str, str | None] = {}
    for option, named, default, module, packages, names in (
        ("clip", clip_model, clip.DEFAULT, clip, Match.packages, ("frame_consistency", "match_score")),
        ("dino", dino_model, consistency.DINO, consistency, consistency.PACKAGES, ("subject_consistency",)),
    ):
        absent = [package for package in packages if importlib.util.find_spec(package) is None]
        why = None
        if absent:
            why = f"{' and '.join(absent)} not installed: pip install 'cutroom[{Match.extra}]'"
            if named is not None:
                raise UsageError(f"--{option} {named}: {why}")
        elif named is not None:
            try:
                module.check(located(named))
            except MissingWeightsError as error:
                raise UsageError(f"--{option}: {error}") from error
        elif not module.is_here(default):
            why = f"{default} is not on this machine: `hf download {default}`, or name a model with --{option}"
        found[option] = None if why else located(named or default)
        out |= dict.fromkeys(names, why) if why else {}
    return Measures(clip=found["clip"], dino=found["dino"], **others), out


def samples(source: str, *, limit: int | None = None, into: Path | None = None) -> list[Sample]:
    """The videos of a folder, a file or a glob.

    Args:
        limit: so many of them at most, spread evenly over all.
        into: a folder to write videos of shards to; where it is given, ``source`` may be shards too.

    Raises:
        UsageError: there is none.
    """
    try:
        videos = find_videos([source]).videos
    except UsageError as error:
        if into is None:
            raise UsageError(str(error).removeprefix("--input ")) from error
        return _from_shards(source, limit, into)
    return [Sample(videos[i], Path(videos[i])) for i in _spread(len(videos), limit)]


def _spread(count: int, limit: int | None) -> list[int]:
    kept = count if limit is None else min(limit, count)
    return [i * count // kept for i in range(kept)]


def _from_shards(source: str, limit: int | None, into: Path) -> list[Sample]:
    """Samples of shards as files, with their captions."""
    try:
        find_shards(source)
    except UsageError as error:
        raise UsageError(f"{source}: neither videos nor shards are there ({error})") from error
    catalogue, reader = read_catalogue(source), Bytes()
    found = []
    with contextlib.closing(reader):
        for i in _spread(len(catalogue), limit):
            row = catalogue.table.slice(i, 1).to_pylist()[0]
            url = catalogue.shards[row["shard"]].url
            path = into / f"{i:06d}.mp4"
            path.write_bytes(reader.read(url, row["video_offset"], row["video_bytes"]))
            text = reader.read(url, row["text_offset"] or 0, row["text_bytes"] or 0).decode("utf-8", "replace").strip()
            found.append(Sample(row["key"], path, text or None))
    if not found:
        raise UsageError(f"{source}: no sample in the shards can be read")
    return found


def measure(videos: Sequence[Sample], measures: Measures) -> Iterator[Measured]:
    """Measure one video after the other. One that cannot be read is a row with the reason."""
    first = Step(Decode(detector="none", max_clip_s=_PIECE_S, sheet_fps=float(_FPS), sheet_quality=95), _MARK, {})
    dense = [Step(stage, stage.mark({}), {}) for stage in (Motion(), Flicker())]
    settings = first.stage
    assert isinstance(settings, Decode)
    child = Isolated(Decoder(first, dense), stall_s=settings.stall_s, memory_bytes=settings.memory_mb << 20)
    with tempfile.TemporaryDirectory(prefix="cutroom-") as scratch, contextlib.closing(child):
        for sample in videos:
            try:
                decoded = _decode(child, sample, os.path.join(scratch, "sheets.arrow"))
                yield _measured(sample, decoded, measures)
            except VideoError as error:
                yield Measured(sample.video, "failed", str(error), sample.prompt, {})


def _decode(child: Isolated, sample: Sample, sheets: str) -> Decoded:
    """Decode one video; VideoError whatever it does."""
    row = {"video": sample.video, "video_id": _VIDEO}
    try:
        with open(sample.path, "rb"):
            pass
        piece = child.call(str(sample.path), row, Range(), sheets)
    except TooLargeError as error:
        raise VideoError(f"{error}: cut it first with `cutroom run`, and give its shards") from error
    except CutroomError:
        raise  # it says why, or is not this file's fault
    except Exception as error:
        raise VideoError(one_line(error)) from error
    return join(row, _MARK, [piece], [take_sheets(sheets)])


def _measured(sample: Sample, decoded: Decoded, measures: Measures) -> Measured:
    pieces = decoded.clips.to_pylist()
    if errors := [piece["error"] for piece in pieces if piece["status"] == "failed"]:
        raise VideoError(errors[0])
    error, prompt = decoded.video["error"], sample.prompt
    if prompt is None:
        try:
            prompt = _prompt(sample.path, pieces[0]["start_s"], pieces[-1]["end_s"])
        except (OSError, ValueError) as unreadable:
            error = "; ".join(filter(None, (error, f"its prompt: {one_line(unreadable)}")))
    moves = _over_time(pieces, "motion_p90")
    figures = {
        "dynamic_degree": None if moves is None else float(moves > measures.dynamic_above),
        "motion_p90": moves,
        "flicker": _over_time(pieces, "flicker"),
    }
    if measures.dino is not None:
        seen = _seen(consistency.embed_pictures, measures.dino, decoded.frames, measures)
        figures["subject_consistency"] = consistency.consistency(seen)
    if measures.clip is not None:
        seen = _seen(clip.embed_pictures, measures.clip, decoded.frames, measures)
        figures["frame_consistency"] = consistency.consistency(seen)
        figures["match_score"] = None
        if prompt is not None:
            (text,) = clip.embed_texts(measures.clip, [prompt], gpu=measures.gpu, threads=_threads())
            figures["match_score"] = known(float(seen.mean(axis=0) @ text))
    return Measured(sample.video, "done", error, prompt, figures)


def _over_time(pieces: Sequence[dict[str, Any]], figure: str) -> float | None:
    """The mean over the pieces that have a figure, by their length."""
    found = [(piece[figure], piece["duration_s"]) for piece in pieces if piece[figure] is not None]
    if len(found) < 2:
        return found[0][0] if found else None
    values, lengths_s = zip(*found, strict=True)
    return float(np.average(values, weights=lengths_s))


def _seen(embed: Callable[..., Iterator[np.ndarray]], model: str, frames: pa.Table, measures: Measures) -> np.ndarray:
    """Embeddings of the frames, T D; pictures are read from the file as they are needed."""
    some = (chunk.to_pylist() for chunk in frames["jpeg"].iterchunks())
    return np.stack([vector for jpegs in some for vector in embed(model, jpegs, gpu=measures.gpu, threads=_threads())])


def _threads() -> int:
    """As many as torch would take by itself: videos are measured one after the other."""
    import torch

    return torch.get_num_threads()


def _prompt(video: Path, start_s: float, end_s: float) -> str | None:
    """What ``cutroom sample`` was asked for, or else the caption beside the video.

    Raises:
        OSError, ValueError: a file that should say it cannot be read.
    """
    about = video.with_suffix(".json")
    if about.is_file():
        with contextlib.suppress(ValueError):  # if it is to be a caption file, that is said below
            content = json.loads(about.read_text(encoding="utf-8-sig"))
            if isinstance(content, dict) and isinstance(content.get("prompt"), str):
                return content["prompt"].strip() or None
    return caption_for(video, start_s, end_s)


def means(measured: Sequence[Measured]) -> dict[str, float | None]:
    """Over videos; of a figure over those that have it."""
    result: dict[str, float | None] = {}
    for name in FIGURES:
        if any(name in one.figures for one in measured):
            values = [value for one in measured if (value := one.figures.get(name)) is not None]
            result[name] = float(np.mean(values)) if values else None
    return result


def report(
    measured: Sequence[Measured], against: Sequence[Measured] | None, measures: Measures, left_out: dict[str, str]
) -> dict[str, Any]:
    """All that is known, for JSON. Means are over the videos that have a figure."""

    def whole(videos: Sequence[Measured]) -> dict[str, Any]:
        failed = sum(one.status == "failed" for one in videos)
        counts = {"num_videos": len(videos), "num_failed": failed}
        return {**counts, "mean": means(videos), "videos": [dataclasses.asdict(one) for one in videos]}

    by = {
        "dynamic_above": measures.dynamic_above,
        "clip": measures.clip and clip.identity(measures.clip),
        "dino": measures.dino and consistency.identity(measures.dino),
    }
    content = {"format": _FORMAT, **whole(measured), "measured_by": by, "left_out": left_out}
    return content if against is None else {**content, "against": whole(against)}


def place_for(source: str, output: Path | None) -> Path:
    """The file that a report goes to: beside the samples if nothing else is said.

    Raises:
        UsageError: it would be written over something else, or it cannot be written.
    """
    near = Path(source) if Path(source).is_dir() else Path(source).parent
    place = output or near / "eval.json"
    check_file(place, "--output")
    if place.exists() and not _is_report(place):
        raise UsageError(f"{place} is there already and is no report of `cutroom eval`; name another with --output")
    return place


def _is_report(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == _FORMAT


def write(place: Path, content: dict[str, Any]) -> None:
    """Write a report, whole or not at all."""
    with aside(place) as file:
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
