"""Verification finds what is lost, doubled, mixed up or unreadable."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

from curation.reshard import shard_directory
from curation.table import Store
from shards.verify import verify
from tests.shards.films import Film


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def test_a_finished_run_has_no_problems(finished: Path) -> None:
    assert verify(Store(finished)) == []


def rewrite(tar_path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Write a tar again with changed members; None drops a member."""
    with tarfile.open(tar_path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(tar_path, "w") as tar:
        for name, data in members:
            changed = change(name, data)
            if changed is not None:
                info = tarfile.TarInfo(name)
                info.size = len(changed)
                tar.addfile(info, io.BytesIO(changed))


def lose_a_sample(output: Path) -> None:
    path = output / "shards" / "000000.tar"
    with tarfile.open(path) as tar:
        first = tar.getnames()[0].partition(".")[0]
    rewrite(path, lambda name, data: None if name.startswith(first) else data)


def cut_a_video_short(output: Path) -> None:
    path = output / "shards" / "000000.tar"
    rewrite(path, lambda name, data: data[:600] if name.endswith(".mp4") else data)


def swap_captions(output: Path) -> None:
    rewrite(output / "shards" / "000000.tar", lambda name, data: b"wrong" if name.endswith(".txt") else data)


def drop_captions(output: Path) -> None:
    rewrite(output / "shards" / "000000.tar", lambda name, data: None if name.endswith(".txt") else data)


def remove_a_shard(output: Path) -> None:
    (output / "shards" / "000000.tar").unlink()


def add_a_stray_shard(output: Path) -> None:
    shutil.copy(output / "shards" / "000000.tar", output / "shards" / "000009.tar")


def break_the_index(output: Path) -> None:
    (output / "shards" / "index.json").write_text("{")


def flip_a_bit(output: Path) -> None:
    data = bytearray((output / "shards" / "000000.tar").read_bytes())
    data[len(data) // 2] ^= 1
    (output / "shards" / "000000.tar").write_bytes(data)


def double_a_row(output: Path) -> None:
    store = Store(output)
    part_id, table = next((p, t) for p, t in store.parts("clips") if t.num_rows)
    store.write("clips", part_id, pa.concat_tables([table, table.slice(0, 1)]))


def lose_contact_sheets(output: Path) -> None:
    store = Store(output)
    for part_id, table in store.parts("frames"):
        store.write("frames", part_id, table.slice(0, 0))


def reject_what_is_delivered(output: Path) -> None:
    store = Store(output)
    for part_id, table in store.parts("clips"):
        rows = [{**row, "status": "rejected", "reason": "x"} for row in table.to_pylist()]
        store.write("clips", part_id, pa.Table.from_pylist(rows, schema=table.schema))


def forget_a_reason(output: Path) -> None:
    store = Store(output)
    for part_id, table in store.parts("clips"):
        gone = table.set_column(table.schema.get_field_index("reason"), "reason", pa.nulls(table.num_rows, pa.string()))
        store.write("clips", part_id, gone)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose_a_sample, "is kept and in no shard"),
        (cut_a_video_short, "cannot be decoded"),
        (swap_captions, "the caption of"),
        (drop_captions, "lacks txt"),
        (remove_a_shard, "000000.tar is missing"),
        (add_a_stray_shard, "000009.tar is not in index.json"),
        (break_the_index, "index.json cannot be read"),
        (flip_a_bit, "is not what index.json says (md5)"),
        (double_a_row, "has more than one row"),
        (lose_contact_sheets, "has no contact sheet"),
        (reject_what_is_delivered, "is rejected in the table"),
        (forget_a_reason, "rejected without a reason"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_harm_is_found(output: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(output)
    assert any(message in problem for problem in verify(Store(output)))


def lose_a_packet(path: Path) -> None:
    """Damage the eighth packet of a film, so that no decoder takes it."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][7]
    data = bytearray(path.read_bytes())
    data[packet.pos : packet.pos + 4] = b"\xff" * 4  # the length of what follows
    path.write_bytes(data)


def say_it_in_latin_1(path: Path) -> None:
    data = path.read_bytes()
    assert data.count(b"VideoHandler") == 1
    path.write_bytes(data.replace(b"VideoHandler", b"VideoHandl\xe9r"))


def put_a_cover_before_the_film(path: Path) -> None:
    """MP4 lists its streams in the order of its boxes."""
    plain = path.rename(path.with_suffix(".plain"))
    with av.open(str(plain)) as source, av.open(str(path), "w") as out:
        film = source.streams.video[0]
        stream, cover = out.add_stream_from_template(film, opaque=True), out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in (packet for packet in source.demux(film) if packet.size):
            packet.stream = stream
            out.mux(packet)
        out.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
    plain.unlink()
    data = path.read_bytes()
    film_box, about = data.index(b"trak") - 4, data.rindex(b"udta") - 4
    path.write_bytes(data[:film_box] + data[about:] + data[film_box:about])


@pytest.mark.parametrize(
    ("prepare", "num_frames"), [(lose_a_packet, 23), (say_it_in_latin_1, 24), (put_a_cover_before_the_film, 24)]
)
def test_strangers_files_that_were_packed_as_they_are_are_counted_as_they_were_decoded(
    tmp_path: Path, prepare: Callable[[Path], None], num_frames: int
) -> None:
    (tmp_path / "in" / "videos").mkdir(parents=True)
    prepare(Film(count=24).write(tmp_path / "in" / "videos" / "film.mp4"))
    shard_directory(tmp_path / "in", tmp_path / "out", engine="local")
    store = Store(tmp_path / "out")
    assert store.clips()["num_frames"].to_pylist() == [num_frames]
    assert verify(store) == []


def test_nothing_that_a_shard_holds_ends_the_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in" / "videos").mkdir(parents=True)
    for i, name in enumerate(("caption", "json", "list", "none", "good")):
        Film(count=10 + i).write(tmp_path / "in" / "videos" / f"{name}.mp4")
    shard_directory(tmp_path / "in", tmp_path / "out", engine="local")
    keys = {Path(row["video"]).stem: row["clip_id"] for row in Store(tmp_path / "out").clips().to_pylist()}
    monkeypatch.chdir(tmp_path / "in" / "videos")  # where FFmpeg would find what the playlist names
    wrong = {
        f"{keys['caption']}.txt": b"\xff",
        f"{keys['json']}.json": b"[" * 100_000,
        f"{keys['list']}.mp4": b"ffconcat version 1.0\nfile list.mp4\n",
        f"{keys['none']}.mp4": b"",
    }
    shard = tmp_path / "out" / "shards" / "000000.tar"
    rewrite(shard, lambda name, data: wrong.get(name, data))
    with tarfile.open(shard, "a") as tar:
        for name, kind in (("link.mp4", tarfile.SYMTYPE), (b"\xff.mp4".decode(errors="surrogateescape"), b"0")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "nowhere"
            tar.addfile(member)
    problems = "\n".join(verify(Store(tmp_path / "out")))
    assert problems.isascii()
    assert f"the caption of {keys['caption']} is not the table's" in problems
    assert f"{keys['json']}.mp4 has no readable description beside it" in problems
    assert f"{keys['list']}.mp4 cannot be decoded" in problems
    assert f"{keys['none']}.mp4 cannot be decoded" in problems
    assert "link.mp4 is not a file" in problems
    assert r"sample \udcff is no clip of the table" in problems
    assert keys["good"] not in problems


@pytest.mark.slow
def test_a_shard_that_shrank_is_written_again(output: Path, footage: Path) -> None:
    index = (output / "shards" / "index.json").read_text()
    remove_a_shard(output)
    shard_directory(output, engine="local")
    assert verify(Store(output)) == []
    assert json.loads((output / "shards" / "index.json").read_text()) == json.loads(index)
