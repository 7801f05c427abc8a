"""Verification finds what is lost, doubled, mixed up or unreadable."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from curation.table import Store
from shards.verify import verify


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


@pytest.mark.slow
def test_a_shard_that_shrank_is_written_again(output: Path, footage: Path) -> None:
    from curation.reshard import shard_directory

    index = (output / "shards" / "index.json").read_text()
    remove_a_shard(output)
    shard_directory(output, engine="local")
    assert verify(Store(output)) == []
    assert json.loads((output / "shards" / "index.json").read_text()) == json.loads(index)
