"""What is wrong with a sample costs that sample, is counted and named, and too much of it stops."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import training.data.pool
from tests.training.data.made import clip, numbers, row, sample, settings, take, write_tar
from training.data.decode import Bad, Decoder, Job, Sample
from training.data.faults import BadDataError, Faults
from training.data.loader import Batch, Loader
from training.data.settings import Bucket


def damaged(data: bytes, share: float = 0.5) -> bytes:
    """An MP4 whose header is whole and whose pictures are not."""
    start = data.index(b"mdat") + 4
    end = start + int((len(data) - start) * share)
    return data[:start] + bytes((i * 37 + 11) % 256 for i in range(end - start)) + data[end:]


def broken(number: int, **parts: bytes | None) -> tuple[str, dict[str, bytes]]:
    """A sample of which some parts are others, or missing."""
    key, good = sample(number)
    return key, {suffix: content for suffix, content in {**good, **parts}.items() if content is not None}


BAD = {
    "no_video": {"mp4": None},
    "bad_json": {"json": b'{"num_frames": '},
    "undecodable": {"mp4": b"\0\0\0\x20ftypisom" + b"no video at all" * 40},
    "short_clip": {"mp4": clip(700, 6)},
    "wrong_size": {"json": row(width=768, height=128)},
}


@pytest.mark.parametrize("workers", [0, 1])
def test_each_kind_of_bad_sample_costs_itself_and_is_named(tmp_path: Path, workers: int) -> None:
    bad = [broken(10 + i, **parts) for i, parts in enumerate(BAD.values())]
    write_tar(tmp_path / "0.tar", [*(sample(i) for i in range(6)), *bad])
    with Loader(settings(tmp_path), workers=workers, epochs=1) as loader:
        batches = list(loader)
        faults = loader.faults
    keys = [key for batch in batches for key in batch.keys]
    assert set(keys) == {f"clip-{i:04d}" for i in range(6)}
    assert len(keys) == 6 + sum(batch.repeats for batch in batches)
    for batch in batches:
        assert batch.captions == [f"film {shown[0] // 100}" for shown in numbers(batch)]
    assert dict(faults.reasons) == dict.fromkeys(BAD, 1)
    for i, reason in enumerate(BAD):
        assert faults.first[reason][0].name == f"0.tar:clip-{10 + i:04d}"
    assert "has 6 frames, its row says 20" in faults.first["short_clip"][0].why
    assert "is 384x64, its row says 768x128" in faults.first["wrong_size"][0].why


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_a_damaged_video_in_a_sound_tar_costs_itself(tmp_path: Path, share: float, decoder: str) -> None:
    """Concealed damage is no picture to learn from."""
    write_tar(tmp_path / "0.tar", [*(sample(i) for i in range(6)), broken(6, mp4=damaged(clip(600), share))])
    with Loader(settings(tmp_path, frames=20, decoder=decoder, stall_s=5.0, workers=1), epochs=1) as loader:
        keys = {key for batch in loader for key in batch.keys}
    assert keys >= {f"clip-{i:04d}" for i in range(6)}
    if decoder == "pyav":  # decord hands out what it made of the damage
        assert len(keys) == 6
        assert loader.faults.first["undecodable"][0].name == "0.tar:clip-0006"


@pytest.mark.parametrize("how", ["no memfd", "not to be opened"])
def test_frames_come_through_the_pipe_where_memory_cannot_be_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "no memfd":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    else:
        monkeypatch.setattr(training.data.pool, "_OPEN_FILES", "/nowhere/{}/{}")
    write_tar(tmp_path / "0.tar", [sample(i) for i in range(6)])
    with Loader(settings(tmp_path), workers=2, epochs=1) as loader:
        batches = list(loader)
    assert sorted(shown[0] // 100 for batch in batches for shown in numbers(batch)) == list(range(6))
    assert loader.faults.num_bad == 0


def test_a_missing_caption_is_counted_and_left_out_where_captions_are_required(tmp_path: Path) -> None:
    told = broken(2, txt=None, json=row(caption="told in the row"))
    write_tar(tmp_path / "0.tar", [sample(0), broken(1, txt=None), told, broken(3, txt=b"")])
    with Loader(settings(tmp_path), workers=0, epochs=1) as loader:
        captions = {k: c for batch in loader for k, c in zip(batch.keys, batch.captions, strict=True)}
    assert captions == {"clip-0000": "film 0", "clip-0001": "", "clip-0002": "told in the row", "clip-0003": ""}
    with Loader(settings(tmp_path, captions="required"), workers=0, epochs=1) as loader:
        assert {key for batch in loader for key in batch.keys} == {"clip-0000", "clip-0002"}
        assert loader.plan(0).assignment.dropped() == {"no_caption": 2}


def test_a_tar_that_is_cut_off_or_damaged_gives_what_is_before_the_damage(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", [sample(i) for i in range(8)]).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(b"clip-0003.txt")])
    (tmp_path / "torn.tar").write_bytes(whole.replace(b"clip-0004.mp4", b"clip-9999.mp4", 1))  # a wrong checksum
    (tmp_path / "none.tar").write_bytes(b"this is no tar" * 100)
    shards = [{"url": f"{name}.tar", "nsamples": 8} for name in ("whole", "cut", "torn", "none", "away")]
    (tmp_path / "index.json").write_text(json.dumps({"shardlist": shards}))
    with Loader(settings(tmp_path, max_bad=0.9), workers=0, epochs=1) as loader:
        read = sum(len(batch) for batch in loader)
    lost = loader.faults.reasons
    assert read + lost["damaged_tar"] + lost["unreadable_tar"] == 40
    assert read == 8 + 3 + 4
    assert {fault.name for fault in loader.faults.first["damaged_tar"]} >= {"cut.tar", "torn.tar", "none.tar"}
    assert loader.faults.first["unreadable_tar"][0].name == "away.tar"


def test_a_batch_that_loses_all_its_samples_takes_the_next_of_its_bucket(tmp_path: Path) -> None:
    """So that every rank has a batch at every step."""
    bad = [broken(i, mp4=b"nothing") for i in (1, 2)]
    write_tar(tmp_path / "0.tar", [sample(0), *bad, sample(3)])
    with Loader(settings(tmp_path, batch_size=1, shuffle=False), workers=0, epochs=1) as loader:
        batches = list(loader)
    assert [batch.keys for batch in batches] == [["clip-0000"], ["clip-0003"], ["clip-0003"], ["clip-0003"]]
    assert [batch.repeats for batch in batches] == [0, 1, 1, 0]
    with Loader(settings(tmp_path, batch_size=2, shuffle=False, short="fill"), workers=0, epochs=1) as loader:
        filled = list(loader)
    assert [batch.keys for batch in filled] == [["clip-0000", "clip-0003"], ["clip-0003", "clip-0000"]]
    assert [batch.repeats for batch in filled] == [1, 1]


def test_a_bad_clip_alone_in_its_bucket_is_counted_once_and_ends_nothing(tmp_path: Path) -> None:
    long = broken(5, mp4=b"nothing", json=row(60))
    write_tar(tmp_path / "0.tar", [*(sample(i) for i in range(5)), long])
    buckets = [Bucket(frames=frames, height=64, width=384, batch_size=2) for frames in (9, 41)]
    wanted = settings(tmp_path, buckets=buckets, bad_at_least=1, max_bad=0.0)
    with Loader(wanted, workers=0, epochs=3) as loader:
        batches = list(loader)
        assert [len(loader.plan(epoch)) for epoch in (1, 2)] == [4, 4]
    assert len(batches) == 12
    assert (loader.num_bad, loader.faults.reasons["undecodable"]) == (1, 1)
    instead = [batch for batch in batches if batch.repeats]
    assert len(instead) == 3
    assert all(batch.repeats == len(batch) and batch.bucket == buckets[0] for batch in instead)
    once = [key for batch in batches if not batch.repeats for key in batch.keys]
    assert sorted(once) == sorted(3 * [f"clip-{i:04d}" for i in range(5)])
    assert [batch.index for batch in batches] == 3 * [0, 1, 2, 3]


def test_a_full_batch_repeats_what_there_is(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [sample(0), *(broken(i, mp4=b"nothing") for i in (1, 2, 3))])
    with Loader(settings(tmp_path, shuffle=False, short="fill"), workers=0, epochs=1) as loader:
        (batch,) = list(loader)
    assert batch.keys == ["clip-0000"] * 4
    assert batch.repeats == 3
    assert len({tuple(shown) for shown in numbers(batch)}) == 1
    assert loader.num_bad == 3


def test_too_many_bad_samples_stop_training_and_are_named(tmp_path: Path) -> None:
    bad = [broken(i, mp4=b"nothing") for i in range(4, 8)]
    write_tar(tmp_path / "0.tar", [*(sample(i) for i in range(4)), *bad])
    with (
        Loader(settings(tmp_path, max_bad=0.25, bad_at_least=2), workers=0) as loader,
        pytest.raises(BadDataError, match=r"`max_bad` is 0.25.*undecodable: 0.tar:clip-000[4-7] \("),
    ):
        take(loader, 10)
    with Loader(settings(tmp_path, max_bad=0.25), workers=0) as loader:  # fewer than ten are borne
        assert len(take(loader, 4)) == 4
    with pytest.raises(BadDataError, match="no_video"):
        write_tar(tmp_path / "0.tar", [sample(0), *(broken(i, mp4=None) for i in range(1, 5))])
        Loader(settings(tmp_path, bad_at_least=2), workers=0)


def test_where_every_sample_is_bad_nothing_is_repeated_for_ever(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [broken(i, mp4=b"nothing") for i in range(4)])
    with Loader(settings(tmp_path, bad_at_least=1000), workers=0) as loader, pytest.raises(BadDataError, match="none"):
        next(iter(loader))


class Hostile(Decoder):
    """Does what decoders do to damaged files, depending on the sample."""

    def do(self, job: Job, place: np.ndarray | None) -> Sample | Bad:
        if job.key == "clip-0001":
            os.kill(os.getpid(), signal.SIGSEGV)
        if job.key == "clip-0002":
            signal.pause()
        return super().do(job, place)


@pytest.mark.slow
def test_a_decoder_that_crashes_or_hangs_costs_one_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.data.pool, "Decoder", Hostile)
    write_tar(tmp_path / "0.tar", [sample(i) for i in range(8)])
    with Loader(settings(tmp_path, stall_s=1.0), workers=2, epochs=1) as loader:
        keys = sorted(key for batch in loader for key in batch.keys)
    assert keys == [f"clip-{i:04d}" for i in range(8) if i not in (1, 2)]
    assert [(fault.name, fault.why) for fault in sorted(loader.faults.first["crashed"])] == [
        ("0.tar:clip-0001", "VideoError: the decoder crashed (SIGSEGV)"),
        ("0.tar:clip-0002", "VideoError: the decoder made no progress for 1 s and was stopped"),
    ]


def test_a_killed_worker_costs_at_most_one_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [sample(i) for i in range(12)])
    with Loader(settings(tmp_path, batch_size=1, prefetch=1, workers=1), epochs=1) as loader:
        batches: Iterator[Batch] = iter(loader)
        first = next(batches)
        (pid,) = loader.pids()
        os.kill(pid, signal.SIGKILL)
        rest = list(batches)
    keys = [*first.keys, *(key for batch in rest for key in batch.keys if not batch.repeats)]
    assert len(keys) + loader.faults.num_bad == 12
    assert loader.faults.num_bad <= 1


def test_the_first_faults_are_named_and_all_are_counted() -> None:
    faults = Faults(1.0, 10)
    for i in range(50):
        faults.bad("undecodable", f"0.tar:{i}", "why")
    summary: dict[str, Any] = faults.summary()
    assert summary["bad"] == {"undecodable": 50}
    assert summary["named"]["undecodable"][0] == "0.tar:0: why"
    assert len(summary["named"]["undecodable"]) == 20
