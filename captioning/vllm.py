"""Models run by vLLM in the workers that ask them: on GPUs, many questions at a time, each joining as others end.

Ray Data has a processor for language models (``ray.data.llm``): a pool of actors with GPUs and a vLLM engine in each.
A stage with ``gpus`` runs in such a pool already, so the engine goes into its workers. That gives the same, and keeps
what the processor would take away: one caller of stages, the journal of answers, a clip's own error, the local engine.

A question goes in as the tokens and pixels that ``captioning.local`` would give the same model, and not through vLLM's
chat templates and video readers, so that a model that was taught a question is asked exactly that one.

So far this has been run against a stub of vLLM's API only (``tests/captioning/stub``), never against vLLM itself. The
API is that of vLLM 0.11 and later: ``LLM.generate`` with ``prompt_token_ids`` and ``multi_modal_data``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le

from captioning.chat import Pieces, load_processor, pieces
from captioning.plain import control_tokens
from captioning.requests import Reply, Request, Sampling
from curation.errors import CutroomError, NotNowError, StageError, UsageError, one_line
from curation.model_files import located
from curation.stage import Needs

_AT_A_TIME = 128  # those with 16 frames of 640 px take 1.4 GB of memory while they wait
# What vLLM's own readers say of a video.
_METADATA = ("fps", "duration", "total_num_frames", "frames_indices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vllm:
    """How vLLM runs a model, as written under ``vllm:``; ``{}`` takes everything as it is here.

    Attributes:
        max_model_len: tokens of a question and its answer together; a longer question fails. null takes what the model
            was made for. vLLM says at the start if a GPU has no memory for it.
        gpu_memory_utilization: of the GPU's memory, or of the share of it that ``gpus`` reserves.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    max_model_len: Annotated[int, Ge(1)] | None = None
    gpu_memory_utilization: Annotated[float, Gt(0), Le(1)] = 0.9

    def check(self, gpus: float) -> None:
        """Make sure, before any work and without loading anything, that there is a vLLM and something to run it on.

        Raises:
            UsageError: there is not.
        """
        if importlib.util.find_spec("vllm") is None:
            raise UsageError("vllm: needs the package vllm, not installed here: pip install vllm")
        if gpus <= 0:
            raise UsageError("vllm: needs GPUs; say gpus: 1, a share such as 0.5, or 2 to divide a large model")
        if gpus > 1 and not float(gpus).is_integer():
            raise UsageError(
                f"gpus: {gpus:g}: vLLM divides a model among whole GPUs; say {int(gpus)} or {int(gpus) + 1}"
            )


@dataclasses.dataclass(frozen=True)
class EngineNeeds(Needs):
    """What a worker with a vLLM engine occupies.

    An engine takes all the memory it may, so a worker has one: stages share a worker only if they ask the same
    ``engine``.
    """

    engine: str = ""


class VllmBackend:
    """Answers with a vLLM engine in this process. A question that vLLM refuses fails alone; the others go in again.

    What is drawn at a temperature above 0 depends on the question and the seed alone, whatever is asked beside it.
    """

    def __init__(
        self, source: str, settings: Vllm, *, gpus: float, sampling: Sampling, batch_size: int | None = None
    ) -> None:
        self._sampling = sampling
        self._batch_size = 1 if sampling.deterministic else batch_size or _AT_A_TIME
        self._engine, self._processor = _opened(source, settings, gpus, sampling.deterministic)
        self._controls = control_tokens(self._processor)

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Exception]]:
        """See ``Backend``."""
        for start in range(0, len(requests), self._batch_size):
            ready: list[tuple[int, dict[str, Any]]] = []
            for i in range(start, min(start + self._batch_size, len(requests))):
                try:
                    ready.append((i, _prompt(pieces(self._processor, requests[i], self._controls))))
                except Exception as error:  # pictures may be torn, and processors raise anything
                    yield i, error
            yield from self._together(requests, ready)

    def _together(
        self, requests: Sequence[Request], ready: list[tuple[int, dict[str, Any]]]
    ) -> Iterator[tuple[int, Reply | Exception]]:
        if not ready:
            return
        try:
            prompts, params = [prompt for _, prompt in ready], [self._params(requests[i]) for i, _ in ready]
            outputs = self._engine.generate(prompts, params, use_tqdm=False)
        except _fatal_errors() as error:
            raise StageError(f"vLLM's engine has died: {one_line(error)}") from error
        except Exception as error:  # too long, pictures of a kind the model does not take, and what else vLLM refuses
            if len(ready) == 1:
                yield ready[0][0], error
                return
            half = len(ready) // 2
            yield from self._together(requests, ready[:half])
            yield from self._together(requests, ready[half:])
            return
        if len(outputs) < len(ready):
            raise StageError(f"vLLM has given {len(outputs)} answers to {len(ready)} questions")
        # Answers come in the order of the questions. Before those of this call there may be others: the
        # engines of older releases go on with what came before a question that they refused.
        for (i, _), output in zip(ready, outputs[-len(ready) :], strict=True):
            yield i, _reply(output)

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams

        drawn = {"seed": self._sampling.seed ^ int(request.digest()[:8], 16)} if self._sampling.temperature else {}
        return SamplingParams(temperature=self._sampling.temperature, max_tokens=request.max_tokens, **drawn)


def _prompt(asked: Pieces) -> dict[str, Any]:
    """A question in the form that ``LLM.generate`` takes."""
    prompt: dict[str, Any] = {"prompt_token_ids": asked.token_ids}
    if asked.images:
        prompt["multi_modal_data"] = {"image": asked.images}
    if asked.video is not None:
        # Some of vLLM's models read the frame rate here and some there. The contact sheet is the sample: none is taken
        # of it again.
        metadata = {name: asked.metadata[name] for name in _METADATA}
        metadata |= {"video_backend": "jpeg_sequence", "do_sample_frames": False}
        prompt["multi_modal_data"] = {"video": [(asked.video, metadata)]}
        prompt["mm_processor_kwargs"] = {"fps": asked.metadata["fps"], "do_sample_frames": False}
    return prompt


def _reply(output: Any) -> Reply | Exception:
    answer = output.outputs[0]
    if answer.finish_reason not in ("stop", "length"):
        return NotNowError(f"vLLM has given up this answer ({answer.finish_reason})")
    return Reply(
        text=answer.text.strip(),
        cut_off=answer.finish_reason == "length",
        prompt_tokens=None if output.prompt_token_ids is None else len(output.prompt_token_ids),
        completion_tokens=len(answer.token_ids),
    )


@functools.lru_cache(maxsize=2)  # stages that share a worker share the engine
def _opened(source: str, settings: Vllm, gpus: float, deterministic: bool) -> tuple[Any, Any]:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # else its doings reach users
    try:
        from vllm import LLM

        processor = load_processor(source)
        return LLM(**engine_arguments(source, settings, gpus=gpus, deterministic=deterministic)), processor
    except CutroomError as error:
        raise StageError(str(error)) from error
    except Exception as error:  # no memory, no GPU, a class that it does not know, damaged weights
        hint = "; stages that share a GPU each want a share, such as gpus: 0.5" if gpus == 1 else ""
        raise StageError(f"vLLM cannot run the model {source}: {one_line(error)}{hint}") from error


def engine_arguments(source: str, settings: Vllm, *, gpus: float, deterministic: bool) -> dict[str, Any]:
    """The arguments of ``vllm.LLM``."""
    whole = max(1, int(gpus))
    arguments: dict[str, Any] = {
        "model": located(source),
        "dtype": "bfloat16",
        "seed": 0,  # every question that needs one brings its own
        "trust_remote_code": False,
        "tensor_parallel_size": whole,
        "gpu_memory_utilization": settings.gpu_memory_utilization * min(1.0, gpus),
        # What is remembered of earlier questions is computed in other shapes, and rounded otherwise.
        "enable_prefix_caching": not deterministic,
    }
    if settings.max_model_len is not None:
        arguments["max_model_len"] = settings.max_model_len
    if whole > 1:  # the GPUs are those of this worker; inside Ray, vLLM might ask the cluster for others
        arguments["distributed_executor_backend"] = "mp"
    return arguments


def _fatal_errors() -> tuple[type[Exception], ...]:
    """After these no question can be answered any more, and none is to blame."""
    try:
        from vllm.v1.engine.exceptions import EngineDeadError
    except ImportError:
        return ()
    return (EngineDeadError,)
