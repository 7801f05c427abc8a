"""Texts to the embeddings that the transformer reads: T5's encoder by transformers, no mask, as in CogVideoX."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curation.bars import no_bars
from curation.errors import UsageError

TOKENS = 226


class TextEncoder:
    """A tokenizer and an encoder of transformers, and how many tokens every text is cut or filled to.

    CogVideoX attends to the filling too. No text at all is **zeros**, in training and in sampling.
    """

    def __init__(self, tokenizer: Any, encoder: Any, *, tokens: int = TOKENS) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokens = tokens

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, tokens: int = TOKENS, dtype: torch.dtype = torch.float32
    ) -> TextEncoder:
        """Load from a folder, from that of a whole pipeline, or by an id such as ``google/t5-v1_1-xxl``.

        Raises UsageError, with what to do, if it is none of these.
        """
        from curation.torchvision import mend

        mend()
        from transformers import AutoModelForTextEncoding, AutoTokenizer

        parts = [Path(source, part) for part in ("tokenizer", "text_encoder")]
        places = [str(part) for part in parts] if all(part.is_dir() for part in parts) else [str(source)] * 2
        try:
            with no_bars():
                tokenizer = AutoTokenizer.from_pretrained(places[0])
                encoder = AutoModelForTextEncoding.from_pretrained(places[1], dtype=dtype)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no text encoder in {source} ({error}); give the folder of a CogVideoX pipeline, of a T5 encoder with "
                "its tokenizer, or the id of one on the Hugging Face hub that this machine can reach or holds"
            ) from error
        return cls(tokenizer, encoder, tokens=tokens)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, tokens, D), in the encoder's precision. Warns of texts that are cut."""
        long = [text for text, count in zip(texts, self.count(texts), strict=True) if count > self.tokens]
        if long:
            warnings.warn(
                f"{len(long)} of {len(texts)} texts have more than {self.tokens} tokens; what comes after is not read: "
                f"{long[0][:60]!r}",
                stacklevel=2,
            )
        filled = self.tokenizer(
            list(texts), padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )
        out: Tensor = self.encoder(filled.input_ids.to(self.encoder.device))[0]
        return out

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, the closing one included; none is cut."""
        return [len(ids) for ids in self.tokenizer(list(texts)).input_ids] if texts else []
