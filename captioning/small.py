"""A tiny Qwen2.5-VL with random weights, to be trained from nothing: for the demo, the tests and the benchmark.

It knows the words of the captions it is made for and no others. About a million parameters; 48 x 48 px and 8 frames
become 18 tokens.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from curation.torchvision import mend

_END, _PAD, _UNKNOWN = "<|im_end|>", "<|endoftext|>", "<|unknown|>"
_SEEN = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
_VISION = {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>", **_SEEN}
_WORD = r" ?\w+|[^\w\s]+|\s+"
_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How large the model is, and what it sees.

    Attributes:
        side_px: pictures are scaled to about this side.
        patch_px: side of the patches that become vectors; as many as ``merge`` squared of them make a token.
        frames_per_token: that are joined before anything is computed; the vision part never looks across them.
    """

    side_px: int = 48
    patch_px: int = 8
    merge: int = 2
    frames_per_token: int = 4
    vision_width: int = 128
    vision_layers: int = 2
    width: int = 128
    layers: int = 2
    heads: int = 4


def make_small(
    folder: str | os.PathLike[str], captions: Iterable[str], *, prompt: str, size: Size | None = None, seed: int = 0
) -> Path:
    """Save a model, its processor and its chat template, for ``--base``.

    Args:
        folder: made if it does not exist.
        captions: whose words it is to know.
        prompt: the question it will be asked.
        seed: of the weights.
    """
    import torch

    mend()
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    size = size or Size()
    words = _tokenizer([prompt, *captions])
    area: dict[str, Any] = {"shortest_edge": size.side_px**2, "longest_edge": size.side_px**2}
    shape: dict[str, Any] = {
        "patch_size": size.patch_px,
        "merge_size": size.merge,
        "temporal_patch_size": size.frames_per_token,
    }
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=area, **shape),
        words,
        Qwen2VLVideoProcessor(size=area, **shape, cap_pixels_per_frame=False),
        chat_template=_TEMPLATE,
    )
    config = Qwen2_5_VLConfig(
        vision_config=_vision(size),
        text_config=_text(size, words),
        **{name: words.convert_tokens_to_ids(token) for name, token in _VISION.items()},
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    _initialise(model)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def _vision(size: Size) -> dict[str, Any]:
    return {
        "depth": size.vision_layers,
        "hidden_size": size.vision_width,
        "out_hidden_size": size.width,
        "intermediate_size": 2 * size.vision_width,
        "num_heads": size.heads,
        "patch_size": size.patch_px,
        "spatial_merge_size": size.merge,
        "temporal_patch_size": size.frames_per_token,
        "tokens_per_second": 1,
        "window_size": size.side_px,
        "fullatt_block_indexes": list(range(size.vision_layers)),
    }


def _text(size: Size, words: Any) -> dict[str, Any]:
    half = size.width // size.heads // 2
    spatial = half // 3
    return {
        "vocab_size": len(words),
        "hidden_size": size.width,
        "intermediate_size": 2 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        # With few dimensions the usual base of 1e6 leaves the width of a picture only frequencies that hardly turn.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 100.0,
            "mrope_section": [half - 2 * spatial, spatial, spatial],
        },
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }


def _initialise(model: Any) -> None:
    """Weights by the number of inputs. With the usual 0.02 so narrow a model takes many times longer to take off."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            inputs = parameter[0].numel()
            torch.nn.init.normal_(parameter, std=0.1 if "embed_tokens" in name else inputs**-0.5)


def _tokenizer(texts: list[str]) -> Any:
    """Whole words, each with the space before it, and single punctuation marks."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = [_END, _PAD, _UNKNOWN, "<|im_start|>", *_VISION.values()]
    found = sorted({word for text in texts for word in re.findall(_WORD, text)})
    vocabulary = {word: i for i, word in enumerate([*specials, *found])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        additional_special_tokens=[token for token in specials if token not in (_END, _PAD, _UNKNOWN)],
        clean_up_tokenization_spaces=False,
    )
