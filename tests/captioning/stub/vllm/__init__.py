"""A stand-in for vLLM, with as much of its offline API as Cutroom uses and with its manners, that needs no GPU.

It refuses what vLLM refuses: unknown arguments, pictures without placeholders, videos without metadata, questions
that are too long. It says the numbers that it sees in pictures, or reads in the text, so that an answer shows what was
asked.

Environment variables, because engines run in other processes:
    VLLM_STUB_LOG: a file that gets a JSON line for each engine and each question that was answered.
    VLLM_STUB_REFUSES: a question that is to be answered with this text is refused.
    VLLM_STUB_KEEPS: after a refusal, what came before it stays in the engine, as in older releases.
    VLLM_STUB_DIES: the engine dies of a question that is to be answered with this text.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from tests.captioning.server import tell
from vllm.v1.engine.exceptions import EngineDeadError


@dataclasses.dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int | None = 16
    seed: int | None = None


@dataclasses.dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None


@dataclasses.dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput]
    finished: bool = True


class LLM:
    def __init__(
        self,
        model: str,
        *,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        enable_prefix_caching: bool | None = None,
        distributed_executor_backend: str | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        given = {name: value for name, value in locals().items() if name not in ("self", "AutoTokenizer")}
        _log({"engine": given, "pid": os.getpid()})
        assert not trust_remote_code
        self._words = AutoTokenizer.from_pretrained(model)
        self._max_model_len = max_model_len or 32768
        self._waiting: dict[int, tuple[dict[str, Any], SamplingParams]] = {}
        self._next_id = 0
        self._dead = False

    def generate(
        self,
        prompts: Sequence[dict[str, Any]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        assert isinstance(sampling_params, list)
        assert len(sampling_params) == len(prompts)
        added: list[int] = []
        try:
            for prompt, params in zip(prompts, sampling_params, strict=True):
                self._validate(prompt)
                self._waiting[self._next_id] = (prompt, params)
                added.append(self._next_id)
                self._next_id += 1
        except ValueError:
            if "VLLM_STUB_KEEPS" not in os.environ:
                for request_id in added:
                    del self._waiting[request_id]
            raise
        running = list(self._waiting)
        random.Random(0).shuffle(running)  # they do not end in the order in which they came
        outputs = [self._answer(request_id, *self._waiting.pop(request_id)) for request_id in running]
        return sorted(outputs, key=lambda output: int(output.request_id))

    def _validate(self, prompt: dict[str, Any]) -> None:
        if self._dead:
            raise EngineDeadError("EngineCore encountered an issue. See stack trace (above) for the root cause.")
        text = self._words.decode(prompt["prompt_token_ids"])
        seen = prompt.get("multi_modal_data", {})
        for kind, sign in (("image", r"<\|image_pad\|>|<image>"), ("video", r"<\|video_pad\|>")):
            if len(re.findall(sign, text)) != len(seen.get(kind, [])):
                raise ValueError(f"{len(seen.get(kind, []))} of {kind} do not fit the placeholders in {text!r}")
        for frames, metadata in seen.get("video", []):
            wanted = {"fps", "duration", "total_num_frames", "frames_indices", "video_backend", "do_sample_frames"}
            if set(metadata) != wanted or metadata["total_num_frames"] != len(frames):
                raise ValueError(f"Video metadata is required: {sorted(metadata)}")
        if (length := len(self._expanded(prompt))) > self._max_model_len:
            raise ValueError(
                f"The decoder prompt (length {length}) is longer than the maximum model length of "
                f"{self._max_model_len}. Make sure that `max_model_len` is no smaller than the number of text tokens."
            )
        if (text := self._tell(prompt)) == os.environ.get("VLLM_STUB_REFUSES"):
            raise ValueError(f"the stub refuses {text}")

    def _expanded(self, prompt: dict[str, Any]) -> list[int]:
        """Each picture takes ten tokens."""
        seen = prompt.get("multi_modal_data", {})
        return [*prompt["prompt_token_ids"], *[0] * 10 * (len(_pictures(seen)))]

    def _tell(self, prompt: dict[str, Any]) -> str:
        text = self._words.decode(prompt["prompt_token_ids"], skip_special_tokens=True)
        jpegs = [bytes(cv2.imencode(".jpg", picture)[1]) for picture in _pictures(prompt.get("multi_modal_data", {}))]
        return tell(text, jpegs)

    def _answer(self, request_id: int, prompt: dict[str, Any], params: SamplingParams) -> RequestOutput:
        text = self._tell(prompt)
        if text == os.environ.get("VLLM_STUB_DIES"):
            self._dead = True
            raise EngineDeadError("EngineCore encountered an issue. See stack trace (above) for the root cause.")
        tokens = self._words(text, add_special_tokens=False)["input_ids"][: params.max_tokens]
        stopped = len(tokens) < (params.max_tokens or 0)
        said = CompletionOutput(0, f" {self._words.decode(tokens)}\n", tokens, "stop" if stopped else "length")
        kinds = {kind: len(items) for kind, items in prompt.get("multi_modal_data", {}).items()}
        about = {"seen": kinds, "kwargs": prompt.get("mm_processor_kwargs"), "sampling": dataclasses.asdict(params)}
        _log({"asked": self._words.decode(prompt["prompt_token_ids"]), "said": text, "pid": os.getpid(), **about})
        return RequestOutput(str(request_id), self._expanded(prompt), [said])


def _pictures(seen: dict[str, Any]) -> list[np.ndarray]:
    frames = [frame for video, _ in seen.get("video", []) for frame in video]
    return [np.asarray(image)[..., ::-1] for image in [*seen.get("image", []), *frames]]


def _log(entry: dict[str, Any]) -> None:
    if path := os.environ.get("VLLM_STUB_LOG"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
