"""What is counted without computing is what lives at a time."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import vae_memory
from benchmarks.vae_memory import Counted

_MIB = 2**20


def test_counts_what_lives_at_a_time_and_no_memory_twice() -> None:
    with torch.device("meta"):
        given = torch.empty(_MIB, dtype=torch.uint8)  # was there before
        with Counted() as counted:
            assert given.view(2, -1)[0].numel() == _MIB // 2
            assert counted.now == 0, "a view of what was there"
            kept = given + 1
            view = kept.view(2, -1)[0]
            assert counted.now == _MIB, "a view holds no memory of its own"
            passing = [kept * 2, kept * 3]
            assert counted.now == 3 * _MIB
            passing.clear()
            assert counted.now == _MIB
            del kept
            assert counted.now == _MIB, "the view still holds it"
            del view
    assert (counted.now, counted.peak) == (0, 3 * _MIB)


@pytest.mark.slow
def test_decoding_in_chunks_holds_less_than_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = {}
    for mode in ("chunks", "chunks+tiles", "whole"):
        arguments = ["--only", mode, "--device", "meta", "--dtype", "bfloat16", "--frames", "17"]
        monkeypatch.setattr("sys.argv", ["vae_memory", *arguments])
        vae_memory.main()
        held[mode] = json.loads(capsys.readouterr().out)["pass_bytes"]
    video = 17 * 480 * 720 * 3 * 2
    assert video < held["chunks+tiles"] < held["chunks"] < held["whole"]
