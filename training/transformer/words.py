"""A text encoder for small models of a small world: the words of its captions, each with a random vector.

It is a T5 encoder of one layer with its tokenizer, in the folders ``text_encoder`` and ``tokenizer`` as in a pipeline,
so that whatever reads T5 reads it. It never learns: what words mean is left to the transformer. The layer mixes each
word with its neighbours, without which ``a blue ball in a red room`` and ``a red ball in a blue room`` were the same.
"""

from __future__ import annotations

import collections
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from curation.bars import no_bars

_MOST_WORDS = 8192
_MARKS = ("<pad>", "</s>", "<unk>")
_NEAR = 3.0  # how unlike the weights of neighbours at different distances are; T5 begins with nearly equal ones


def write_words(folder: Path, captions: Iterable[str], *, width: int) -> None:
    """Write the tokenizer and the encoder of the words of ``captions``, ``width`` numbers each.

    The same captions give the same files. Words that come later are unknown to it.
    """
    from curation.torchvision import mend

    mend()
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    # Digits by themselves, so that a number is never unknown.
    division = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])
    counts = collections.Counter(word for text in captions for word, _ in division.pre_tokenize_str(text.lower()))
    words = sorted(counts, key=lambda word: (-counts[word], word))[: _MOST_WORDS - len(_MARKS)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*_MARKS, *words])}, unk_token=_MARKS[2]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = division
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {_MARKS[1]}", pair=None, special_tokens=[(_MARKS[1], 1)]
    )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_MARKS[0], eos_token=_MARKS[1], unk_token=_MARKS[2]
    )
    config = T5Config(
        vocab_size=len(_MARKS) + len(words), d_model=width, d_kv=width // 4, d_ff=width, num_layers=1, num_heads=4
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = T5EncoderModel(config).eval()
        bias = encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        torch.nn.init.normal_(bias.weight, std=_NEAR)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    with no_bars():
        whole.save_pretrained(aside / "tokenizer")
        encoder.save_pretrained(aside / "text_encoder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.replace(aside, folder)
