"""The catalogue of a set of shards: found by any name, read once, true to what the tars hold, and never stopped."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curation.errors import CutroomError, UsageError, VideoError
from shards.bytes import Bytes, RangeFile, beside, hidden
from shards.read import expand, find_shards, read_catalogue
from tests.training.data.made import clip, read_tar, row, sample, write_tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of four samples, with an index that tells of them."""
    place = tmp_path / "out" / "shards"
    for i in range(3):
        write_tar(place / f"{i:06d}.tar", [sample(4 * i + k, motion_score=0.1 * k, words=["a", "b"]) for k in range(4)])
    shards = [{"url": f"{i:06d}.tar", "nsamples": 4, "filesize": 1, "md5sum": "0"} for i in range(3)]
    (place / "index.json").write_text(json.dumps({"shardlist": shards}))
    return place


NAMES = {
    "output": "{0}/..",
    "folder": "{0}",
    "folder_with_slash": "{0}/",
    "index": "{0}/index.json",
    "stars": "{0}/*.tar",
    "braces": "{0}/{{000000..000002}}.tar",
    "list": "{0}/00000{{0,1,2}}.tar",
    "address": "file://{0}",
    "address_of_stars": "file://{0}/*.tar",
}


@pytest.mark.parametrize("name", NAMES)
def test_shards_are_found_by_any_name(folder: Path, name: str) -> None:
    found = find_shards(NAMES[name].format(folder))
    assert [shard.url.rpartition("/")[2] for shard in found] == ["000000.tar", "000001.tar", "000002.tar"]
    assert len(read_catalogue(NAMES[name].format(folder))) == 12


def test_one_tar_and_lists_of_names(folder: Path) -> None:
    assert [shard.url for shard in find_shards(folder / "000001.tar")] == [str(folder / "000001.tar")]
    assert len(read_catalogue([folder / "000001.tar", f"{folder}/000000.tar"])) == 8
    with pytest.raises(UsageError, match="named twice"):
        find_shards([folder, folder / "000001.tar"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{0}/nothing", "has no index.json and no tars"),
        ("{0}/nothing.tar", "is no file"),
        ("{0}/x*.tar", "matches no file"),
        ("{0}/nothing.json", "cannot read"),
        ("{0}/000000.tar/index.json", "cannot read"),
        ("{0}/{{a}}.tar", "neither a range"),
        ("http://127.0.0.1:9/*.tar", "http lists no files"),
        ("nosuch://x/000000.tar", "nosuch"),
    ],
)
def test_a_wrong_name_is_said(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_catalogue(name.format(folder))


def test_an_index_that_is_none_is_said(folder: Path) -> None:
    for wrong in ("[]", "{", '{"shardlist": [{"url": "a.tar"}]}', '{"shardlist": []}'):
        (folder / "index.json").write_text(wrong)
        with pytest.raises(UsageError, match=r"index\.json"):
            find_shards(folder)


def test_braces_expand_as_in_a_shell() -> None:
    assert expand("s-{08..11}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]
    assert expand("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]


def test_the_catalogue_is_what_the_tars_hold(folder: Path) -> None:
    catalogue = read_catalogue(folder, columns=["motion_score", "words"])
    assert catalogue.faults == ()
    for one in catalogue.table.to_pylist():
        path = Path(catalogue.shards[one["shard"]].url)
        content, data = path.read_bytes(), read_tar(path)[one["key"]]
        for name, suffix in (("video", "mp4"), ("text", "txt"), ("json", "json")):
            start = one[f"{name}_offset"]
            assert content[start : start + one[f"{name}_bytes"]] == data[suffix]
        about = json.loads(data["json"])
        assert {name: one[name] for name in about if name in one} == {n: v for n, v in about.items() if n in one}
        assert (one["how"], one["caption_bytes"]) == ("encoded", len(data["txt"]))
        assert (one["row.motion_score"], one["row.words"]) == (about["motion_score"], about["words"])
    with pytest.raises(UsageError, match=r"no row of the shards has a number or word 'motion'.*motion_score"):
        read_catalogue(folder, columns=["motion"])


def test_headers_are_read_once_for_each_version_of_a_shard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shards.read

    scanned: list[str] = []
    real = shards.read.scan

    @functools.wraps(real)
    def spy(url: str, *args: Any) -> Any:
        scanned.append(Path(url).name)
        return real(url, *args)

    monkeypatch.setattr(shards.read, "scan", spy)
    write_tar(folder / "000001.tar", [("bad", {"txt": b"no video"}), sample(0, motion_score=1)])
    first = read_catalogue(folder, cache=tmp_path / "cache")
    assert scanned == ["000000.tar", "000001.tar", "000002.tar"]
    second = read_catalogue(folder, cache=tmp_path / "cache", columns=["motion_score"])
    assert len(scanned) == 3
    assert second.table.drop_columns("row.motion_score").equals(first.table)
    assert second.faults == first.faults
    assert second.faults
    assert second.fingerprint == first.fingerprint
    for path in (tmp_path / "cache").iterdir():  # of a killed process
        path.write_bytes(path.read_bytes()[:100])
    os.utime(folder / "000002.tar", ns=(1, 1))
    assert read_catalogue(folder, cache=tmp_path / "cache").table.equals(first.table)
    assert len(scanned) == 6


def test_the_memory_of_a_catalogue_is_small(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [(f"{i:06d}", {"mp4": b"x", "txt": b"t", "json": row()}) for i in range(2000)])
    assert read_catalogue(tmp_path).table.nbytes < 2000 * 200


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("mkv", "libx264")])
def test_strangers_shards_are_read_by_the_headers_of_their_videos(tmp_path: Path, suffix: str, codec: str) -> None:
    video = clip(100, 20, f".{suffix}", codec)
    samples = [("a/one.x", {suffix.upper(): video}), ("./b/two", {suffix: video, "txt": b"words", "jpg": b"cover"})]
    write_tar(tmp_path / "0.tar", [*samples, ("b/three", {suffix: b"no video"}), ("__meta__", {"txt": b""})])
    catalogue = read_catalogue(tmp_path)
    # webdataset splits names at the first dot.
    assert [fault.reason for fault in catalogue.faults] == ["no_video", "bad_video"]
    (two,) = catalogue.table.to_pylist()
    told = {name: two[name] for name in ("key", "num_frames", "fps", "width", "height", "codec", "how", "text_bytes")}
    assert told == {
        "key": "b/two",
        "num_frames": 20,
        "fps": 24.0,
        "width": 384,
        "height": 64,
        "codec": codec.removeprefix("lib").replace("x264", "h264").replace("vpx-", ""),
        "how": None,
        "text_bytes": 5,
    }


def test_names_that_no_sample_may_have_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("../up.mp4", "/abs.mp4", "a/../../b.mp4", "line\nfeed.mp4", "none", ".hidden"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name, content in (("good.mp4", clip()), ("good.txt", b"t"), ("good.txt", b"again"), ("good.json", row())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    catalogue = read_catalogue(tmp_path)
    assert catalogue.table["key"].to_pylist() == ["good"]
    assert [fault.reason for fault in catalogue.faults] == ["bad_name"] * 7 + ["duplicate"]
    assert catalogue.table["text_bytes"].to_pylist() == [1]


def test_no_sample_at_all_is_an_error_that_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UsageError, match=r"1 shards hold no sample.*0\.tar: ReadError"):
        read_catalogue(tmp_path)


def test_columns_of_several_kinds_are_of_the_kind_that_most_have(tmp_path: Path) -> None:
    values = [1, 2.5, "word", None, ["a"], True]
    write_tar(tmp_path / "0.tar", [sample(i, score=value) for i, value in enumerate(values)])
    table = read_catalogue(tmp_path, columns=["score"]).table
    assert table["row.score"].to_pylist() == [1.0, 2.5, None, None, None, 1.0]


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server of files that reads ranges, and keeps what it was asked for."""

    asked: list[tuple[str, str]]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, span = Path(self.translate_path(self.path)), self.headers.get("Range", "")
        self.asked.append((path.name, span))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        first, _, last = span.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1]
        self.send_response(206 if part else 416)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(folder: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The address of ``folder``, and what was asked of it."""
    handler = type("Handler", (Ranges,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", handler.asked
        httpd.shutdown()
        thread.join()


def test_remote_shards_need_no_download(
    folder: Path, server: tuple[str, list[tuple[str, str]]], tmp_path: Path
) -> None:
    """Bytes of the size of the videos are not asked for."""
    url, asked = server
    large = [(f"large-{i}", {"mp4": clip() + bytes(1 << 20), "txt": b"t", "json": row()}) for i in range(4)]
    write_tar(folder / "000000.tar", large)
    local, remote = read_catalogue(folder), read_catalogue(url, cache=tmp_path / "cache")
    assert remote.table.equals(local.table)
    assert [shard.url for shard in remote.shards] == [f"{url}/00000{i}.tar" for i in range(3)]
    spans = [span.removeprefix("bytes=").split("-") for name, span in asked if name == "000000.tar"]
    assert sum(int(last) - int(first) + 1 for first, last in spans) < (1 << 20)
    asked.clear()
    assert read_catalogue(url, cache=tmp_path / "cache").table.equals(local.table)
    assert [span for name, span in asked if name.endswith(".tar")] == ["bytes=0-0"] * 3


@pytest.mark.parametrize(
    ("failing", "indexed", "reason", "left"),
    [
        ("header", True, "unreadable_tar", 2),
        ("header", False, "unreadable_tar", 2),
        ("json", True, "unreadable", 3),
        ("video", False, "unreadable", 3),
    ],
)
def test_a_store_that_fails_for_a_moment_costs_no_sample_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, indexed: bool, reason: str, left: int
) -> None:
    parts = {"mp4": clip() + bytes(1 << 18), "txt": b"t", "json": row()}
    if failing == "video":
        del parts["json"]
    write_tar(tmp_path / "0.tar", [(f"s{i}", parts) for i in range(4)])
    whole = read_catalogue(tmp_path)
    if indexed:
        (tmp_path / "index.json").write_text(json.dumps({"shardlist": [{"url": "0.tar", "nsamples": 4}]}))
    part = {"header": "json", "json": "json", "video": "video"}[failing]
    place = whole.table[f"{part}_offset"][2].as_py() - (512 if failing == "header" else 0)
    read, away = Bytes.read, [True]

    def once(self: Bytes, url: str, offset: int, size: int) -> bytes:
        if away[0] and offset == place:
            raise OSError("the network is away")
        return read(self, url, offset, size)

    monkeypatch.setattr(Bytes, "read", once)
    if failing == "video":
        monkeypatch.setattr("shards.probe.Isolated", Here)
    first = read_catalogue(tmp_path, cache=tmp_path / "cache")
    assert [(fault.reason, fault.why) for fault in first.faults] == [
        (reason, "reading failed: OSError: the network is away")
    ]
    assert len(first) == left
    assert first.faults[0].num_samples == (2 if failing == "header" and indexed else 1)
    away[0] = False
    second = read_catalogue(tmp_path, cache=tmp_path / "cache")
    assert (second.faults, second.table["key"].to_pylist()) == ((), ["s0", "s1", "s2", "s3"])
    away[0] = True  # what was found whole is kept
    assert read_catalogue(tmp_path, cache=tmp_path / "cache").table.equals(second.table)


class Here:
    """Stands for a child process, and works in this one."""

    def __init__(self, worker: Any, **_: Any) -> None:
        self.worker = worker

    def start(self) -> None:
        self.worker.setup()

    def call(self, *args: Any) -> Any:
        return self.worker(*args)

    def close(self) -> None:
        pass


def test_a_video_that_a_decoder_crashed_on_is_looked_at_again_and_a_bad_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crashing(Here):
        def call(self, *args: Any) -> Any:
            raise VideoError("the decoder made no progress for 60 s and was stopped")

    for name, content in (("sound", clip()), ("bad", b"no video")):
        write_tar(tmp_path / name / "0.tar", [sample(0), ("stranger", {"mp4": content})])
        monkeypatch.setattr("shards.probe.Isolated", Crashing if name == "sound" else Here)
        first = read_catalogue(tmp_path / name, cache=tmp_path / "cache")
        assert [fault.reason for fault in first.faults] == ["crashed" if name == "sound" else "bad_video"]
        monkeypatch.setattr("shards.probe.Isolated", Here if name == "sound" else Crashing)
        assert len(read_catalogue(tmp_path / name, cache=tmp_path / "cache")) == (2 if name == "sound" else 1)


def test_no_sample_is_to_blame_that_a_decoder_cannot_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unstarted(Here):
        def call(self, *args: Any) -> Any:
            raise CutroomError("the decoder's process cannot be started")

    write_tar(tmp_path / "0.tar", [("stranger", {"mp4": clip()})])
    monkeypatch.setattr("shards.probe.Isolated", Unstarted)
    with pytest.raises(CutroomError, match="cannot be started"):
        read_catalogue(tmp_path)


def test_a_tar_that_lies_about_sizes_is_a_damaged_one(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [sample(0), sample(1)])
    data, at = bytearray(path.read_bytes()), path.read_bytes().index(b"clip-0001.mp4")
    data[at + 124 : at + 136] = b"\x80" + b"\x7f" * 11  # base 256: farther than any file goes
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)
    catalogue = read_catalogue(tmp_path)
    assert catalogue.table["key"].to_pylist() == ["clip-0000"]
    assert {fault.reason for fault in catalogue.faults} >= {"damaged_tar"}


def test_remote_shards_are_trained_on(folder: Path, server: tuple[str, list[tuple[str, str]]]) -> None:
    from tests.training.data.made import settings
    from training.data.loader import Loader

    url, asked = server
    with Loader(settings(url), workers=0, epochs=1) as loader:
        asked.clear()
        batches = list(loader)
    assert len(asked) == 12  # one request a sample, with its caption and row
    with Loader(settings(folder), workers=0, epochs=1) as loader:
        for left, right in zip(batches, loader, strict=True):
            assert (left.video == right.video).all()
            assert (left.keys, left.captions, left.rows) == (right.keys, right.captions, right.rows)


def test_a_server_that_reads_no_ranges_is_said(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [sample(0)])
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(tmp_path))) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        with pytest.raises(UsageError, match="the server does not read ranges"):
            read_catalogue(f"http://127.0.0.1:{httpd.server_port}/0.tar")
        httpd.shutdown()


def test_secrets_of_addresses_are_not_told() -> None:
    assert hidden("https://user:word@host/a.tar?signature=1") == "https://host/a.tar"
    assert beside("https://host/a/index.json?s=1", "0.tar") == "https://host/a/0.tar?s=1"
    with pytest.raises(UsageError, match="names /etc/passwd"):
        beside("https://host/a/index.json", "/etc/passwd")


def test_a_part_of_a_file_reads_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(200)))
    file = RangeFile(Bytes(), f"file://{tmp_path}/x", 50, 100)
    assert file.read(3) == bytes([50, 51, 52])
    assert file.seek(-2, os.SEEK_END) == 98
    assert file.read() == bytes([148, 149])
    assert file.read(1) == b""
    assert file.seek(10) == 10
    assert io.BufferedReader(file).read(2) == bytes([60, 61])
