"""Models of the real classes that read pictures, videos or text, small enough to be made in a test, weights random."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

SENTENCES = (
    "Describe the video in one sentence. A red circle moves left across a green meadow. The camera pans right.",
    "Summarise what the frames show: a blue square moves up before a desert, a star stands still, frame 1 at 0.5 s.",
)
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As LLaVA 1.5 has it: nothing marks the end of an answer.
_LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def tokenizer(specials: tuple[str, ...], *, eos: str, pad: str, bos: str | None = None, template: str) -> Any:
    """A byte-level BPE trained on some sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(SENTENCES, trainer)
    if bos:
        trained.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, specials.index(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        eos_token=eos,
        pad_token=pad,
        bos_token=bos,
        additional_special_tokens=[token for token in specials if token not in (eos, pad, bos)],
        chat_template=template,
    )


def jpeg(seed: int, *, width: int = 32, height: int = 32) -> bytes:
    """A picture of noise."""
    from PIL import Image

    random = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(random).resize((width, height)).save(file, "JPEG")
    return file.getvalue()


def _save(model: Any, processor: Any, folder: Path, ends: list[int], seed: int) -> Path:
    """Weights large enough for pictures and words to make a difference."""
    import torch

    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or "class_embedding" in name:  # which is drawn before the seed is set
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def llama(folder: Path, *, seed: int = 0) -> Path:
    """Save a Llama with the chat template of Qwen."""
    from curation.torchvision import mend

    mend()
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer(_CHATML_TOKENS, eos="<|im_end|>", pad="<|endoftext|>", template=_CHATML)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return _save(LlamaForCausalLM(config), words, folder, [words.eos_token_id], seed)


def llava(folder: Path, *, seed: int = 0) -> Path:
    """Save a LLaVA: CLIP sees, Llama speaks, each picture becomes 16 tokens."""
    from curation.torchvision import mend

    mend()
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    specials = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
    words = tokenizer(specials, eos="</s>", pad="<pad>", bos="<s>", template=_LLAVA)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA,
    )
    return _save(LlavaForConditionalGeneration(config), processor, folder, [words.eos_token_id], seed)


def llava_next(folder: Path, *, seed: int = 0) -> Path:
    """Save a LLaVA-NeXT: a picture is seen whole and in tiles of 32 pixels, two or four by its shape."""
    from curation.torchvision import mend

    mend()
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    specials = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
    words = tokenizer(specials, eos="</s>", pad="<pad>", bos="<s>", template=_LLAVA)
    shapes = [[32, 64], [64, 32], [64, 64]]
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**width, image_size=32, patch_size=8),
        text_config=LlamaConfig(**width, vocab_size=len(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=shapes,
        vision_feature_layer=-1,
    )
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(**size, image_grid_pinpoints=shapes),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA,
    )
    return _save(LlavaNextForConditionalGeneration(config), processor, folder, [words.eos_token_id], seed)


def qwen2_vl(folder: Path, *, seed: int = 0) -> Path:
    """Save a Qwen2-VL: frames are joined in twos, patches of 4 pixels merge two by two."""
    from curation.torchvision import mend

    mend()
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    words = _vision_words()
    vision = {
        "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
        "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    config = Qwen2VLConfig(vision_config=vision, text_config=_qwen_text(words), **_qwen_tokens(words))
    processor = Qwen2VLProcessor(*_qwen_processors(words), chat_template=_CHATML)
    return _save(Qwen2VLForConditionalGeneration(config), processor, folder, [words.eos_token_id], seed)


def qwen2_5_vl(folder: Path, *, seed: int = 0) -> Path:
    """Save a Qwen2.5-VL: frames are joined in twos, patches of 4 pixels merge two by two."""
    from curation.torchvision import mend

    mend()
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    words = _vision_words()
    vision = {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
        "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "tokens_per_second": 2,
        "window_size": 16, "fullatt_block_indexes": [0, 1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=_qwen_text(words), **_qwen_tokens(words))
    processor = Qwen2_5_VLProcessor(*_qwen_processors(words), chat_template=_CHATML)
    return _save(Qwen2_5_VLForConditionalGeneration(config), processor, folder, [words.eos_token_id], seed)


def _vision_words() -> Any:
    return tokenizer((*_CHATML_TOKENS, *_VISION_TOKENS), eos="<|im_end|>", pad="<|endoftext|>", template=_CHATML)


def _qwen_text(words: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]},
        "bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
    }  # fmt: skip


def _qwen_tokens(words: Any) -> dict[str, int]:
    names = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad"}
    return {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{token}|>") for name, token in names.items()}


def _qwen_processors(words: Any) -> tuple[Any, Any, Any]:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    size = {"size": {"shortest_edge": 8 * 8, "longest_edge": 32 * 32}}
    shape = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    return Qwen2VLImageProcessor(**size, **shape), words, Qwen2VLVideoProcessor(**size, **shape)
