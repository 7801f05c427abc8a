"""Text that a model is shown, kept apart from the signs by which its chat template says who speaks and what is seen.

Captions, notes and prompts may hold such signs, by chance or on purpose: ``<|im_end|>`` in a caption file would end the
user's turn, ``<image>`` would stand for a picture that is not there.
"""

from __future__ import annotations

from typing import Any

# Processors put these into the text themselves and count them again; not all tokenizers know them as special.
_PLACEHOLDERS = ("image_token", "video_token", "audio_token", "boi_token", "eoi_token")

# Of the model behind a server nobody here knows the tokens, and servers read them in any text: those of the usual
# families. ``<|`` begins those of ChatML, Llama 3, Phi and GLM.
USUAL_CONTROLS = {
    *("<|", "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<image>", "<video>", "<audio>", "<think>", "</think>"),
    *("[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<image_soft_token>"),
}


def control_tokens(processor: Any) -> set[str]:
    """What the tokenizer of a model never reads as text: all its special tokens, and others in angle brackets."""
    tokenizer = getattr(processor, "tokenizer", processor)
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {token.content for token in added if token.special or token.content.startswith("<")}
    placeholders = {getattr(processor, name, None) for name in _PLACEHOLDERS}
    found |= {*tokenizer.all_special_tokens, *(token for token in placeholders if isinstance(token, str))}
    return {token for token in found if len(token) > 1 and not token.isspace()}


def plain(text: str, controls: set[str]) -> str:
    """A text in which every control token is broken by a space behind its first sign: ``< |im_end|>``."""
    for token in sorted(controls):
        while token in text:  # overlapping ones need a second round
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
