"""What a run has come to, from tables whose content is known."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from curation.summary import score_table
from curation.table import VIDEOS, Store
from tests.helpers import clip_rows


@pytest.mark.parametrize("kind", [pa.int32(), pa.float32()], ids=str)
def test_scores_of_whole_numbers_are_shown_like_others(kind: pa.DataType, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    for part, counts in (("a", [1, None, 3]), ("b", [5, 7])):  # a part without nulls is of integers
        store.write("videos", part, VIDEOS.empty_table())
        store.write("clips", part, clip_rows(len(counts), caption_words=pa.array(counts, kind)))
    shown = score_table(store)
    assert list(shown) == ["caption_words"]
    assert shown["caption_words"] == pytest.approx({"min": 1, "p05": 1.3, "p50": 4, "p95": 6.7, "max": 7, "unknown": 1})
