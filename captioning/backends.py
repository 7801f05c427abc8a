"""Which backend answers for a model: an endpoint, a function of one's own, or transformers or vLLM in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from captioning.endpoint import Endpoint, EndpointBackend
from captioning.requests import Backend, Reply, Request, Sampling
from captioning.vllm import Vllm, VllmBackend
from curation.dotted import load_object
from curation.errors import UsageError, one_line

LOCAL_BATCH_SIZE = 8


def check_backend(
    model: str,
    *,
    endpoint: Endpoint | None,
    vllm: Vllm | None = None,
    gpus: float = 0.0,
    video: bool = False,
    pictures: bool = False,
) -> None:
    """Make sure, before any work and without loading anything large, that a model can be asked.

    Args:
        model, endpoint, vllm, gpus: as of ``Captioner``.
        video: it must take videos; pictures: it must see.

    Raises:
        UsageError: it cannot. The message says why.
    """
    if vllm and (endpoint or is_callable(model)):
        asked = "a server" if endpoint else "a function"
        raise UsageError(
            f"vllm: is for a model that workers load, and {model!r} is asked through {asked}; leave one out"
        )
    if endpoint:
        endpoint.check(model)
    elif is_callable(model):
        find_callable(model)
    else:
        from captioning.local import check

        if vllm:
            vllm.check(gpus)
        check(model, video=video, pictures=pictures)


def open_backend(
    model: str,
    *,
    endpoint: Endpoint | None = None,
    vllm: Vllm | None = None,
    gpus: float = 0.0,
    batch_size: int | None = None,
    sampling: Sampling | None = None,
    threads: int = 1,
) -> Backend:
    """Make what answers for a model; loads it where it runs in this process.

    Raises:
        StageError: it cannot be loaded here.
    """
    sampling = sampling or Sampling()
    if endpoint:
        return EndpointBackend(endpoint, model, sampling)
    if is_callable(model):
        return CallableBackend(find_callable(model))
    if vllm:
        return VllmBackend(model, vllm, gpus=gpus, sampling=sampling, batch_size=batch_size)
    from captioning.local import LocalBackend

    return LocalBackend(
        model, gpu=gpus > 0, batch_size=batch_size or LOCAL_BATCH_SIZE, sampling=sampling, threads=threads
    )


class CallableBackend:
    """A Python function that answers: for tests, and for models of one's own."""

    def __init__(self, answer: Callable[[Request], str]) -> None:
        self._answer = answer

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Exception]]:
        """See ``Backend``."""
        for i, request in enumerate(requests):
            try:
                yield i, Reply(text=str(self._answer(request)))
            except Exception as error:  # a user's function may raise anything; it costs the clip
                yield i, error


def is_callable(model: str) -> bool:
    """Whether a model is named as ``module:function``."""
    module, colon, name = model.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), name])


def find_callable(model: str) -> Callable[[Request], str]:
    """The function that ``module:function`` names; a class is called once, to make one.

    Raises:
        UsageError: there is none.
    """
    try:
        found = load_object(model)
        answer = found() if isinstance(found, type) else found
    except Exception as error:  # a user's module may raise anything
        raise UsageError(f"model {model!r} cannot be loaded: {one_line(error)}") from error
    if not callable(answer):
        raise UsageError(f"model {model!r} is not a function that takes a request")
    return answer
