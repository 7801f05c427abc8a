"""Models behind an OpenAI-compatible HTTP endpoint: vLLM, SGLang, ``transformers serve``, hosted ones."""

from __future__ import annotations

import base64
import collections
import dataclasses
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from annotated_types import Ge, Gt

from captioning.mp4 import mp4
from captioning.pictures import frame_rate
from captioning.plain import USUAL_CONTROLS, plain
from captioning.requests import RefusedError, Reply, Request, Sampling, spoken
from curation.errors import NotNowError, UsageError, nearest, one_line

Field = Literal["max_tokens", "seed", "temperature"]
FIELDS = get_args(Field)
_CHECK_S = 10.0  # for the server to say which models it has
_Failure = TypeVar("_Failure", NotNowError, RefusedError, NotNowError | RefusedError)
_BAD_QUESTION = {400, 413, 422}  # too long, too large, a picture that cannot be read, against a policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a model is served and how much may be asked of it, as written under ``endpoint:``.

    A run has one worker for each stage with an endpoint, so that limits hold for a stage in the run as a whole.

    Attributes:
        url: up to and with ``/v1``.
        key_env: the environment variable that holds the key, on the machine of the worker; null sends none.
        concurrency: requests on their way at a time.
        timeout_s: for one answer.
        retries: of one request, after time-outs, lost connections, 429 and 5xx, with growing pauses.
        requests_per_minute: at most, those that are tried again included; null is no limit.
        max_usd: the stage stops asking in this run once its answers have cost so much, by ``usd_per_million``. What is
            on its way then still comes in.
        usd_per_million: price of a million tokens of prompt, and of answer.
        body: more fields of the request body, as the server wants them.
        omit: fields that the server refuses; with ``max_tokens`` say ``body: {max_completion_tokens: 2000}`` as well.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    url: str
    key_env: str | None = None
    concurrency: Annotated[int, Ge(1)] = 16
    timeout_s: Annotated[float, Gt(0)] = 120.0
    retries: Annotated[int, Ge(0)] = 6
    requests_per_minute: Annotated[float, Gt(0)] | None = None
    max_usd: Annotated[float, Gt(0)] | None = None
    usd_per_million: tuple[float, float] | None = None
    body: dict[str, Any] = dataclasses.field(default_factory=dict)
    omit: tuple[Field, ...] = ()

    def check(self, model: str) -> None:
        """Make sure, before any work, that the server answers and has the model.

        Raises:
            UsageError: it does not, or the settings make no sense together.
        """
        import openai

        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"endpoint url {self.url!r} must begin with http:// or https://, and mostly ends in /v1")
        if "max_tokens" in self.omit and "max_completion_tokens" not in self.body:
            raise UsageError(
                "omit: [max_tokens] leaves answers without a limit; say body: {max_completion_tokens: 2000}"
            )
        if self.max_usd is not None and self.usd_per_million is None:
            raise UsageError("max_usd needs usd_per_million: [price of prompts, price of answers]")
        try:
            with self.client(timeout_s=_CHECK_S, retries=1) as client:
                known = [served.id for served in client.models.list()]
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            key = f"the key in {self.key_env}" if self.key_env else "to answer without a key (set key_env)"
            raise UsageError(f"{self.url} refuses {key}: {one_line(error)}") from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise UsageError(f"nothing answers at {self.url} ({one_line(cause)}); start the server first") from error
        except openai.APIError:
            return  # some have no list; then the first request will tell
        except (AttributeError, TypeError) as error:  # what is no list of models the client cannot read
            raise UsageError(
                f"{self.url} answers, but not as an OpenAI-compatible server; end the url in /v1"
            ) from error
        if known and model not in known:
            raise UsageError(f"{self.url} has no model {model!r}.{nearest(model, known)}")

    def client(self, *, timeout_s: float, retries: int, before: Callable[[], None] = lambda: None) -> Any:
        """A client of the package openai, to be closed; ``before`` is called before every try of a request.

        Raises:
            UsageError: the key is not in the environment, or cannot be sent; the url cannot be read.
        """
        import openai

        key = os.environ.get(self.key_env, "").strip() if self.key_env else "none"
        if not key:
            raise UsageError(f"the environment variable {self.key_env} does not hold a key for {self.url}")
        if not (key.isascii() and key.isprintable()):  # the client would print it, or fail without a reason
            raise UsageError(
                f"the key in the environment variable {self.key_env} has letters that cannot be sent, such as curly "
                "quotes or line breaks; set it again without them"
            )
        hooks = {"request": [lambda request: before()], "response": [lambda response: _bound(response, timeout_s)]}
        http = openai.DefaultHttpxClient(event_hooks=hooks)
        try:
            return openai.OpenAI(
                base_url=self.url, api_key=key, timeout=timeout_s, max_retries=retries, http_client=http
            )
        except Exception as error:  # InvalidURL of the package below openai, which is not the same in all versions
            http.close()
            raise UsageError(
                f"endpoint url {self.url!r} cannot be read ({one_line(error)}); write it like http://localhost:8000/v1"
            ) from error


class EndpointBackend:
    """Asks an endpoint, many requests at a time.

    A request that fails for good is a ``NotNowError``, and a ``RefusedError`` if the server calls the question itself
    bad, or withholds the answer, and has answered others: with one that has answered none yet, the server may have to
    be set up otherwise. Once nothing but failures and refusals have come back for a while, or the cap on spending is
    reached, the rest is not asked any more in this run.
    """

    def __init__(self, endpoint: Endpoint, model: str, sampling: Sampling) -> None:
        self.endpoint, self.model = endpoint, model
        self._sampling = {"temperature": sampling.temperature, "seed": sampling.seed}
        self._turns = _Turns(endpoint.requests_per_minute)
        self._client = endpoint.client(
            timeout_s=endpoint.timeout_s, retries=endpoint.retries, before=self._turns.take_again
        )
        weakref.finalize(self, self._client.close)
        self._lock = threading.Lock()
        self._failures = 0  # in a row
        self._has_answered = False
        self._usd = 0.0
        self._gave_up: str | None = None

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply | Exception]]:
        """See ``Backend``."""
        todo = collections.deque(enumerate(requests))
        done: queue.SimpleQueue[tuple[int, Reply | Exception]] = queue.SimpleQueue()

        def work() -> None:
            while True:
                try:
                    place, request = todo.popleft()
                except IndexError:
                    return  # no more to do
                done.put((place, self._one(request)))

        # The interpreter waits for the threads of an executor at its end: a server that stalls would hold up Ctrl-C.
        for _ in range(min(self.endpoint.concurrency, len(requests))):
            threading.Thread(target=work, name="endpoint", daemon=True).start()
        refused: list[tuple[int, RefusedError]] = []
        try:
            for _ in requests:
                place, answer = done.get()
                if isinstance(answer, RefusedError):
                    refused.append((place, answer))  # what becomes of the others says whose fault it is
                else:
                    yield place, answer
        finally:
            todo.clear()
        for place, why in refused:
            yield place, why if self._has_answered else NotNowError(str(why))

    def _one(self, request: Request) -> Reply | Exception:
        self._turns.take()
        if self._gave_up:
            return NotNowError(self._gave_up)
        limits = {"max_tokens": request.max_tokens, **self._sampling}
        try:
            answer = self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": content(request)}],
                extra_body=self.endpoint.body or None,
                **{name: value for name, value in limits.items() if name not in self.endpoint.omit},
            )
            return self._answered(answer)
        except Exception as error:  # of the client, the network or the server, whatever they raise or answer
            return self._failed(error, request)

    def _failed(self, error: Exception, request: Request) -> NotNowError | RefusedError:
        import openai

        hopeless = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
        refused = isinstance(error, openai.APIStatusError) and error.status_code in _BAD_QUESTION
        hint = " (if the server takes no video_url, say see: images)" if refused and request.video else ""
        if refused and (field := getattr(error, "param", None)) in FIELDS:
            hint = f" (say endpoint: {{omit: [{field}]}}, or --omit {field} to `cutroom enhance`)"
        kind = RefusedError if refused else NotNowError
        why = kind(f"{self.endpoint.url}: {one_line(error.__cause__ or error)}{hint}")
        return self._count(why, hopeless=isinstance(error, hopeless))

    def _answered(self, answer: Any) -> Reply | Exception:
        usage, choice = answer.usage, answer.choices[0] if answer.choices else None
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        message = choice.message if choice else None
        text = _text(message.content) if message else None
        why = _withheld(choice.finish_reason, message) if choice and not (text and spoken(text)[0]) else None
        with self._lock:
            self._spend(tokens)
            self._has_answered |= text is not None or why is not None
        if why:
            return self._count(RefusedError(f"{self.endpoint.url}: {why}"))
        if choice is None or text is None:
            return self._count(NotNowError(f"{self.endpoint.url}: the answer holds no text"))
        with self._lock:
            self._failures = 0
        return Reply(
            text=text,
            cut_off=choice.finish_reason == "length",
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
        )

    def _count(self, why: _Failure, *, hopeless: bool = False) -> _Failure:
        """Give up after too many in a row, refusals too: some providers say with a 400 that the money is gone."""
        with self._lock:
            self._failures += 1
            if hopeless or self._failures >= max(8, 2 * self.endpoint.concurrency):
                self._give_up(f"not asked any more after {self._failures} failures in a row: {why}")
        return why

    def _spend(self, tokens: tuple[int | None, int | None]) -> None:
        cap, prices = self.endpoint.max_usd, self.endpoint.usd_per_million
        if cap is None or prices is None:
            return
        if None in tokens:
            self._give_up("max_usd is set, and the server does not say how many tokens it has used")
        self._usd += sum((count or 0) * price / 1e6 for count, price in zip(tokens, prices, strict=True))
        if self._usd >= cap:
            self._give_up(f"max_usd is reached: this stage has spent {self._usd:.2f} USD")

    def _give_up(self, why: str) -> None:
        self._gave_up = self._gave_up or why
        self._turns.over.set()


def _bound(response: Any, timeout_s: float) -> None:
    """End an answer that trickles: the client's own time-out is for each piece, and blanks keep it waiting for ever."""
    library: Any = sys.modules[type(response).__module__.partition(".")[0]]  # httpx; openai's newest has a successor
    stream, until = response.stream, time.monotonic() + timeout_s

    class Bounded(library.SyncByteStream):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            for piece in stream:
                if time.monotonic() > until:
                    raise library.ReadTimeout(f"the answer takes longer than {timeout_s:g} s", request=response.request)
                yield piece

        def close(self) -> None:
            stream.close()

    response.stream = Bounded()


def _text(content: Any) -> str | None:
    """The text of an answer; some servers send a list of parts, of which others hold thoughts or pictures."""
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
        return "".join(text for text in texts if isinstance(text, str)) or None
    return content if isinstance(content, str) else None


def _withheld(finish_reason: str | None, message: Any) -> str | None:
    """Why an answer without text would have none the next time either, and would be paid for again."""
    if refusal := getattr(message, "refusal", None):
        return f"the model refuses: {refusal}"
    if finish_reason == "content_filter":
        return "the content filter of the server withholds the answer"
    if finish_reason == "length":
        return "max_tokens were spent before any text came, as by a model that thinks first; raise max_tokens"
    return None


class _Turns:
    """When requests may go: so many a minute, whether they go for the first time or again."""

    def __init__(self, per_minute: float | None) -> None:
        self._pause_s = 60 / per_minute if per_minute else 0.0
        self._lock, self._thread = threading.Lock(), threading.local()
        self._next_s = 0.0
        self.over = threading.Event()  # nobody has to wait any more

    def take(self) -> None:
        """Wait for a turn. The next request of this thread has it."""
        with self._lock:
            turn = max(time.monotonic(), self._next_s)
            self._next_s = turn + self._pause_s
        if (left := turn - time.monotonic()) > 0:
            self.over.wait(left)
        self._thread.has_one = True

    def take_again(self) -> None:
        """Wait, unless this thread has a turn: the client says so before every try, the first one as well."""
        if not getattr(self._thread, "has_one", False):
            self.take()
        self._thread.has_one = False


def content(request: Request) -> list[dict[str, Any]]:
    """A request in the words of the chat completions API: pictures in time order, or a video, then the text.

    Videos are an addition of vLLM and SGLang; what they pick of one is theirs to say (vLLM: up to 32 frames).
    """
    seen = [("image_url", "image/jpeg", image) for image in request.images]
    if request.video and request.images:
        seen = [("video_url", "video/mp4", mp4(request.images, frame_rate(request.times)))]
    parts: list[dict[str, Any]] = [
        {"type": kind, kind: {"url": f"data:{mime};base64,{base64.b64encode(data).decode()}"}}
        for kind, mime, data in seen
    ]
    return [*parts, {"type": "text", "text": plain(request.prompt, USUAL_CONTROLS)}]
