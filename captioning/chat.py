"""Requests in a model's own words: chat templates, pictures and videos, padding, and labels for training.

Inference and training share this, so that a model is trained on exactly what it will be asked.

Suffixes in this file: B requests, L tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captioning.pictures import decode, metadata_of
from captioning.plain import control_tokens, plain
from captioning.requests import Reply, Request
from curation.errors import UsageError, one_line
from curation.model_files import MissingWeightsError, check_weights, located
from curation.torchvision import mend

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BatchFeature

IGNORED = -100  # label of tokens that are not learnt; PyTorch's cross entropy leaves them out
_SEES, _READS = "image-text-to-text", "text"  # kinds of models


def load(source: str, *, device: str, dtype: str) -> tuple[Any, Any]:
    """Open a model for inference, and what prepares its input.

    Args:
        source: a folder, or the id of a repository, of an image-text-to-text model, or a causal language model, of a
            class that is in transformers itself. Code that comes with weights is never run.
        device: such as ``cpu`` or ``cuda``.
        dtype: such as ``float32`` or ``bfloat16``.

    Returns:
        The model, and its processor (or tokenizer, where the model reads only text).

    Raises:
        UsageError: the model is not there, of another kind, damaged, or does not fit on the device.
    """
    import torch

    mend()
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

    opener: Any = AutoModelForImageTextToText if kind_of(source) == _SEES else AutoModelForCausalLM
    try:
        model = opener.from_pretrained(
            located(source), dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
        ).to(device)
    except (OSError, ValueError) as error:
        raise _not_opened(source, error) from error
    except Exception as error:  # damaged weights raise anything
        raise UsageError(f"the model {source} cannot be loaded on {device}: {one_line(error)}") from error
    processor = load_processor(source)
    # Settings that come with a model are for chatting: a penalty on words said before changes captions, here and in
    # every model that is made of this one.
    marks = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(model.generation_config, name) for name in marks})
    return model.eval(), processor


def check_whole(source: str) -> None:
    """Make sure that no file of weights in a folder is damaged or breaks off; only their headers are read.

    Raises:
        UsageError: one is.
    """
    from safetensors import safe_open

    for path in sorted(Path(located(source)).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except Exception as error:  # safetensors has an error of its own, which is of no built-in kind
            raise UsageError(f"{path} is damaged ({one_line(error)}); copy or download the model again") from error


def load_processor(source: str) -> Any:
    """What prepares a model's input, without the model: its processor, or its tokenizer where it reads only text.

    Raises:
        UsageError: it is not there, or the model was never tuned to answer.
    """
    mend()
    from transformers import AutoProcessor, AutoTokenizer

    opener: Any = AutoProcessor if kind_of(source) == _SEES else AutoTokenizer
    try:
        processor = opener.from_pretrained(located(source), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _not_opened(source, error) from error
    tokenizer = tokenizer_of(processor)
    if not tokenizer.chat_template and not getattr(processor, "chat_template", None):
        raise UsageError(f"the model {source} has no chat template; use one that was tuned to answer (-Instruct, -it)")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _not_opened(source: str, error: Exception) -> MissingWeightsError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return MissingWeightsError(f"the model {source} cannot be opened: {why}")


def kind_of(source: str) -> str:
    """``image-text-to-text`` or ``text``, by the model's configuration.

    Raises:
        UsageError: the model is not there, or of neither kind.
    """
    mend()
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    config = config_of(source)
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return _SEES
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return _READS
    raise UsageError(f"the model {source} ({config.model_type}) neither describes pictures nor writes text")


def config_of(source: str) -> Any:
    """The configuration of a model of a class that is in transformers itself.

    Raises:
        UsageError: the model is not there, or of no such class.
    """
    check_weights(source, ["config.json"])
    mend()
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(located(source), trust_remote_code=False)
    except (OSError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the model {source} is of no class of transformers: {why}") from error


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor; a tokenizer is its own."""
    return getattr(processor, "tokenizer", processor)


def encode(processor: Any, requests: Sequence[Request], *, answers: Sequence[str] | None = None) -> BatchFeature:
    """Requests as input of a model, padded on the left to one length.

    Args:
        processor: as ``load`` gives it.
        requests: frames of a video are given as a video where the model takes videos, and as pictures where not.
        answers: to learn: they follow the requests, padded on the right, and there are ``labels`` (B L) with the
            tokens of the answer and of its end, and ``IGNORED`` everywhere else.

    Control tokens that stand in a prompt or an answer are broken up: there they are text.

    Raises:
        UsageError: there are pictures and the model reads only text.
    """
    import torch

    controls = control_tokens(processor)
    requests = [dataclasses.replace(request, prompt=plain(request.prompt, controls)) for request in requests]
    texts = [_prompt(processor, request) for request in requests]
    batch = _prepare(processor, requests, texts)
    if answers is None:
        return batch
    tokenizer = tokenizer_of(processor)
    endings = [
        _ending(processor, request, text, plain(answer, controls))
        for request, text, answer in zip(requests, texts, answers, strict=True)
    ]
    answered = tokenizer(endings, add_special_tokens=False)["input_ids"]
    longest = max(map(len, answered))
    ids = torch.full((len(requests), longest), tokenizer.pad_token_id)
    known = torch.zeros_like(ids)
    for row, tokens in enumerate(answered):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        known[row, : len(tokens)] = 1
    batch["labels"] = torch.cat(
        [torch.full_like(batch["input_ids"], IGNORED), torch.where(known.bool(), ids, IGNORED)], dim=1
    )
    batch["input_ids"] = torch.cat([batch["input_ids"], ids], dim=1)
    batch["attention_mask"] = torch.cat([batch["attention_mask"], known], dim=1)
    for kind in ("mm_token_type_ids", "token_type_ids"):  # an answer is text, which is 0 in both
        if kind in batch:
            batch[kind] = torch.cat([batch[kind], torch.zeros_like(ids)], dim=1)
    return batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pieces:
    """A request before its pictures are tokens: for engines that join the two themselves.

    Attributes:
        token_ids: of the whole prompt, with one placeholder for each picture, or for the video.
        images: RGB, in the order of their placeholders.
        video: T H W 3, uint8, all of one size; None without one. ``metadata`` is what processors want to know of it.
    """

    token_ids: list[int]
    images: list[Image] = dataclasses.field(default_factory=list)
    video: np.ndarray | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


def pieces(processor: Any, request: Request, controls: set[str]) -> Pieces:
    """What ``encode`` makes tensors of, for one request. ``controls``: as of ``control_tokens``.

    Raises:
        UsageError: there are pictures and the model reads only text.
    """
    request = dataclasses.replace(request, prompt=plain(request.prompt, controls))
    text = _prompt(processor, request)
    ids = tokenizer_of(processor)(text, add_special_tokens=_wants_specials(processor, text))["input_ids"]
    as_video = request.video and bool(request.images) and takes_video(processor)
    seen = decode(request.images, alike=as_video)
    if not as_video:
        return Pieces(token_ids=ids, images=seen)
    return Pieces(
        token_ids=ids,
        video=np.stack([np.asarray(image) for image in seen]),
        metadata=metadata_of(request, seen),
    )


def generate(
    model: Any, processor: Any, requests: Sequence[Request], *, temperature: float = 0.0, seed: int = 0
) -> list[Reply]:
    """Answer requests together; each answer ends at its own ``max_tokens``.

    Args:
        model, processor: as ``load`` gives them.
        temperature: 0 always takes the likeliest token. Above it, answers depend on what is asked together.
        seed: of what is drawn.

    Raises:
        ValueError: a question and its answer may together be longer than what the model reads.
    """
    import torch

    tokenizer = tokenizer_of(processor)
    batch = encode(processor, requests)
    _check_length(model, requests, batch["attention_mask"].sum(dim=1).tolist())
    batch = batch.to(model.device)
    for name, value in batch.items():
        if torch.is_tensor(value) and value.is_floating_point():
            batch[name] = value.to(model.dtype)
    most = max(request.max_tokens for request in requests)
    drawn: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    if temperature:
        torch.manual_seed(seed ^ int(requests[0].digest()[:8], 16))
    with torch.inference_mode():
        output = model.generate(
            **batch,
            max_new_tokens=most,
            **{"temperature": None, **drawn},
            num_beams=1,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
        )
    stops = end_tokens(model, processor)
    replies = []
    for request, mask, tokens in zip(
        requests, batch["attention_mask"], output[:, batch["input_ids"].shape[1] :].tolist(), strict=True
    ):
        tokens = tokens[: request.max_tokens]
        length = next((i for i, token in enumerate(tokens) if token in stops), None)
        text = tokenizer.decode(tokens[:length], skip_special_tokens=True).strip()
        used = len(tokens) if length is None else length + 1
        replies.append(Reply(text=text, cut_off=length is None, prompt_tokens=int(mask.sum()), completion_tokens=used))
    return replies


def _check_length(model: Any, requests: Sequence[Request], lengths: Sequence[int]) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for request, length in zip(requests, lengths, strict=True):
        if limit is not None and length + request.max_tokens > limit:  # transformers would go on, and say nonsense
            raise ValueError(
                f"a question of {length} tokens with up to {request.max_tokens} of an answer is more than the {limit} "
                "that the model reads: show it fewer or smaller frames, or lower max_tokens"
            )


def end_tokens(model: Any, processor: Any) -> set[int]:
    """The tokens at which the model stops."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer_of(processor).eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


def takes_video(processor: Any) -> bool:
    """Whether a model sees frames as a video, and not only as pictures."""
    return getattr(processor, "video_processor", None) is not None


def takes_images(processor: Any) -> bool:
    """Whether a model sees anything."""
    return getattr(processor, "image_processor", None) is not None


def _conversation(processor: Any, request: Request) -> list[dict[str, Any]]:
    """What the user says, in the form that chat templates read."""
    if not takes_images(processor):
        if request.images:
            raise UsageError("the model reads only text and was asked about pictures; use an image-text-to-text model")
        return [{"role": "user", "content": request.prompt}]
    seen = [{"type": "image"}] * len(request.images)
    if request.images and request.video and takes_video(processor):
        seen = [{"type": "video"}]
    return [{"role": "user", "content": [*seen, {"type": "text", "text": request.prompt}]}]


def _prompt(processor: Any, request: Request) -> str:
    return _render(processor, _conversation(processor, request), open_end=True)


def _render(processor: Any, conversation: list[dict[str, Any]], *, open_end: bool) -> str:
    template = getattr(processor, "chat_template", None) or tokenizer_of(processor).chat_template
    # Models that think aloud would spend their tokens on it. Templates that know nothing of it are not to be asked.
    quiet = {"enable_thinking": False} if "enable_thinking" in str(template) else {}
    text: str = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=open_end, **quiet)
    return text


def _ending(processor: Any, request: Request, prompt: str, answer: str) -> str:
    """What follows the prompt, as the template has it, up to the token at which the model is to stop."""
    tokenizer = tokenizer_of(processor)
    content: Any = [{"type": "text", "text": answer}] if takes_images(processor) else answer
    whole = _render(
        processor, [*_conversation(processor, request), {"role": "assistant", "content": content}], open_end=False
    )
    before, found, after = whole.removeprefix(prompt).partition(answer) if whole.startswith(prompt) else ("", "", "")
    if not found:  # the template writes answers in another way than it asks for them
        return str(answer + tokenizer.eos_token)
    specials = [token for token in tokenizer.all_special_tokens if token in after]
    return str(before + answer + min(specials, key=after.index, default=tokenizer.eos_token))


def _prepare(processor: Any, requests: Sequence[Request], texts: list[str]) -> BatchFeature:
    """Tokens and pixels of prompts that are rendered already."""
    options: dict[str, Any] = {
        "add_special_tokens": _wants_specials(processor, texts[0]),
        "padding": True,
        "padding_side": "left",  # generation goes on at the end of every row
        "return_tensors": "pt",
    }
    if not takes_images(processor):
        return processor(texts, **options)
    as_video = [request.video and bool(request.images) and takes_video(processor) for request in requests]
    seen = [decode(request.images, alike=video) for request, video in zip(requests, as_video, strict=True)]
    pictures = [[] if video else images for images, video in zip(seen, as_video, strict=True)]
    if any(pictures):
        options["images"] = pictures
    if any(as_video):
        shown = [(request, images) for request, images, video in zip(requests, seen, as_video, strict=True) if video]
        options["videos"] = [np.stack([np.asarray(image) for image in images]) for _, images in shown]
        options["videos_kwargs"] = {
            "video_metadata": [metadata_of(request, images) for request, images in shown],
            "do_sample_frames": False,  # the contact sheet is the sample
        }
    return processor(text=texts, **options)


def _wants_specials(processor: Any, text: str) -> bool:
    """Whether the tokenizer is to begin a rendered prompt as it begins texts; some templates do it themselves."""
    bos = tokenizer_of(processor).bos_token
    return not (bos and text.startswith(bos))
