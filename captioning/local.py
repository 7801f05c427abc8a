"""Models of transformers, loaded in this process."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from captioning.chat import config_of, generate, kind_of, load
from captioning.requests import Reply, Request, Sampling
from curation.errors import StageError, UsageError, one_line
from curation.model_files import check_safetensors


class LocalBackend:
    """Answers with a model in this process, in bfloat16 on a GPU and in float32 on the CPU.

    Questions are answered in batches, of like sizes, so that little is padded. One that cannot be answered fails
    alone: its batch is done again without it.
    """

    def __init__(
        self,
        source: str,
        *,
        gpu: bool,
        batch_size: int,
        sampling: Sampling,
        threads: int = 1,
    ) -> None:
        import torch

        if gpu and not torch.cuda.is_available():
            raise StageError(f"{source} asks for a GPU and this worker has none; leave gpus out for the CPU")
        self._batch_size = 1 if sampling.deterministic else batch_size
        self._sampling, self._threads = sampling, threads
        self._model, self._processor = _loaded(source, "cuda" if gpu else "cpu", "bfloat16" if gpu else "float32")

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Exception]]:
        """See ``Backend``."""
        order = sorted(range(len(requests)), key=lambda i: _size(requests[i]))
        for start in range(0, len(order), self._batch_size):
            yield from self._together(requests, order[start : start + self._batch_size])

    def _together(self, requests: Sequence[Request], places: list[int]) -> Iterator[tuple[int, Reply | Exception]]:
        try:
            yield from zip(places, self._generate([requests[i] for i in places]), strict=True)
        except _gpu_failures() as error:
            raise StageError(f"the GPU has failed, and the worker with it: {one_line(error)}") from error
        except Exception as error:  # models and processors raise anything
            if len(places) == 1:
                yield places[0], error
                return
            half = len(places) // 2
            yield from self._together(requests, places[:half])
            yield from self._together(requests, places[half:])

    def _generate(self, requests: list[Request]) -> list[Reply]:
        import torch

        before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        torch.set_num_threads(self._threads)
        torch.use_deterministic_algorithms(self._sampling.deterministic or before[1], warn_only=True)
        try:
            return generate(
                self._model,
                self._processor,
                requests,
                temperature=self._sampling.temperature,
                seed=self._sampling.seed,
            )
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1])


def check(source: str, *, video: bool, pictures: bool) -> None:
    """Make sure, before any work and without loading anything large, that a model can do what it will be asked.

    Raises:
        UsageError: the model is not there, or of the wrong kind.
    """
    config = config_of(source)
    if pictures and kind_of(source) == "text":
        raise UsageError(f"the model {source} ({config.model_type}) reads only text; name one that sees")
    if video and not any(getattr(config, name, None) for name in ("video_token_id", "video_token_index")):
        raise UsageError(f"the model {source} ({config.model_type}) takes pictures and no video; say see: images")
    check_safetensors(source)


@functools.lru_cache(maxsize=2)  # stages that share a worker may share a model
def _loaded(source: str, device: str, dtype: str) -> tuple[Any, Any]:
    try:
        return load(source, device=device, dtype=dtype)
    except UsageError as error:
        raise StageError(str(error)) from error


def _gpu_failures() -> tuple[type[Exception], ...]:
    """After these every call in this process fails, whatever is asked. Not so after a lack of memory."""
    import torch

    return (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()  # from torch 2.8 on


def _size(request: Request) -> tuple[int, int, int]:
    return len(request.images), sum(map(len, request.images)), len(request.prompt)
