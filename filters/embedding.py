"""What a clip looks like, as a vector: the CLIP embedding of its contact sheet."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from annotated_types import Ge

from curation.model_files import located
from curation.stage import Needs, Stage, operational
from filters import clip


@dataclasses.dataclass(kw_only=True)
class Embedding(Stage):
    """CLIP embeddings, computed once for all that reads them: aesthetics, match, duplicates, learned filters.

    Writes:
        embedding: mean over the frames of the contact sheet of the embeddings of length 1. It is not made to length 1
            again: so its dot product with a text's embedding is the mean cosine over the frames, and a linear head
            of it is the mean of the head over the frames. Kept in ``OUT/embeddings``, apart from the clip table; the
            metadata of the files name the ``encoder``.

    Model: any of open_clip (https://github.com/mlfoundations/open_clip); frames are scaled and cropped to the middle as
    it was trained with. On a GPU, frames in batches of another size differ by rounding.

    Args:
        model: a repository on the Hugging Face hub, or a folder, with ``open_clip_config.json``.
        gpus: what a worker occupies of a GPU, such as 0.5; 0 computes on the CPU.
        batch: frames that are computed together; on a GPU across clips.
        threads: CPU threads of a worker.
    """

    model: str = clip.DEFAULT
    gpus: Annotated[float, Ge(0)] = operational(0.0)
    batch: Annotated[int, Ge(1)] = operational(32)
    threads: Annotated[int, Ge(1)] = operational(1)

    name: ClassVar[str] = "embedding"
    extra: ClassVar[str] = "models"
    packages: ClassVar[tuple[str, ...]] = ("open_clip", "torch", "torchvision")
    reads: ClassVar[tuple[str, ...]] = ("frames",)

    def __post_init__(self) -> None:
        self.model = located(self.model)
        self._width: int | None = None

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "model": clip.identity(self.model)}

    @property
    def writes(self) -> pa.Schema:
        if self._width is None:
            self._width = clip.width(self.model)
        encoder = {"encoder": clip.identity(self.model)}  # for what is fitted to this encoder's embeddings
        return pa.schema([pa.field("embedding", pa.list_(pa.float32(), self._width), metadata=encoder)])

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(cpus=self.threads, gpus=self.gpus)

    def check(self) -> None:
        clip.check(self.model)

    def process(self, clips: pa.Table) -> pa.Table:
        sheets = [[cell["jpeg"] for cell in cells or []] for cells in clips["frames"].to_pylist()]
        # On the CPU batches across clips gain nothing, and the same clip would no longer give the same bits.
        together = [list(itertools.chain(*sheets))] if self.gpus else sheets
        vectors = itertools.chain.from_iterable(map(self._embed, together))
        rows = []
        for sheet in sheets:
            own = list(itertools.islice(vectors, len(sheet)))
            mean = np.mean(own, axis=0, dtype=np.float64).astype(np.float32) if own else None
            rows.append({"embedding": mean})
        return pa.Table.from_pylist(rows, schema=self.writes)

    def _embed(self, jpegs: Sequence[bytes]) -> Iterator[np.ndarray]:
        return clip.embed_pictures(self.model, jpegs, gpu=self.gpus > 0, threads=self.threads, batch=self.batch)
