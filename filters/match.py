"""How well a caption fits its clip, by CLIP."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from annotated_types import Ge

from curation.errors import UsageError
from curation.model_files import located
from curation.stage import Needs, Stage, known, operational
from curation.table import caption_columns, caption_of
from filters import clip


@dataclasses.dataclass(kw_only=True)
class Match(Stage):
    """Similarity of caption and pictures. It stands behind the stage that writes captions, and that which cleans them.

    Writes:
        match_score: cosine (-1..1) between the embeddings of caption and frame, mean over the frames of the contact
            sheet. With CLIP ViT-L/14 captions that fit have about 0.2 to 0.35; some papers write 100 times that.
            Unknown without a caption.

    CLIP reads 77 tokens, some 50 words: of a longer caption, only its beginning counts.

    Args:
        model: the same as that of ``embedding``.
        gpus, threads: as in ``embedding``.
    """

    model: str = clip.DEFAULT
    gpus: Annotated[float, Ge(0)] = operational(0.0)
    threads: Annotated[int, Ge(1)] = operational(1)

    name: ClassVar[str] = "match"
    extra: ClassVar[str] = "models"
    packages: ClassVar[tuple[str, ...]] = ("open_clip", "torch", "torchvision")
    writes: ClassVar[pa.Schema] = pa.schema([("match_score", pa.float32())])

    def __post_init__(self) -> None:
        self.model = located(self.model)
        self._captions: tuple[str, ...] = ("caption",)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on the stages before
        return ("embedding", *self._captions)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "model": clip.identity(self.model)}

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(cpus=self.threads, gpus=self.gpus)

    def check(self) -> None:
        clip.check(self.model)

    def check_inputs(self, columns: pa.Schema) -> None:
        encoder = clip.encoder_of(columns)
        if encoder not in (None, own := clip.identity(self.model)):
            raise UsageError(f"its model is {own}, that of `embedding` is {encoder}: they must be the same")
        self._captions = caption_columns(columns.names)

    def process(self, clips: pa.Table) -> pa.Table:
        scores: list[float | None] = [None] * clips.num_rows
        captions = [caption_of(row) for row in clips.select(list(self._captions)).to_pylist()]
        vectors = clips["embedding"]
        with_both = [i for i, caption in enumerate(captions) if caption and vectors[i].is_valid]
        if with_both:
            said = [captions[i] or "" for i in with_both]
            texts = clip.embed_texts(self.model, said, gpu=self.gpus > 0, threads=self.threads)
            for i, text in zip(with_both, texts, strict=True):
                scores[i] = known(float(np.asarray(vectors[i].values) @ text))
        return pa.table({"match_score": pa.array(scores, pa.float32())}, schema=self.writes)
