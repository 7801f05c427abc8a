"""What all stages have in common that ask models for captions."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from annotated_types import Ge

from captioning.backends import check_backend, is_callable, open_backend
from captioning.endpoint import Endpoint
from captioning.journal import Journal
from captioning.prompts import Prompt, load_prompt
from captioning.requests import Reply, Request, Sampling
from captioning.vllm import EngineNeeds, Vllm
from curation.errors import StageError
from curation.model_files import identity, is_path, located
from curation.stage import Needs, SomeFailedError, Stage, operational

LOCAL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")  # of a model's folder, that decide its answers


@dataclasses.dataclass(kw_only=True)
class Captioner(Stage):
    """A stage that asks a model about each clip. Subclasses say what to ask and what becomes of the answers.

    Args:
        model: which: a folder, ORGANISATION/NAME on the hub, with ``endpoint`` the name it is served under, or
            ``my_module:my_function``, which gets a ``captioning.requests.Request`` and returns the text.
        prompt: the name of a prompt that comes with Cutroom, or a .txt file.
        endpoint: where the model is served; null loads it in the workers.
        vllm: workers run the model with vLLM, which answers many questions at once on a GPU; ``{}`` takes its defaults,
            null is transformers. Both are asked the same, and what one has captioned the other does not do again.
        max_tokens: an answer is cut off there, and counts as ``cut_off``.
        temperature: 0 takes the likeliest words.
        seed: of what is drawn at a higher temperature.
        gpus: GPUs, or the share of one, for each worker that loads the model, which is in bfloat16 then. 0 is the CPU.
            vLLM divides a model among 2 or more.
        batch_size: questions at a time, also of different clips; by default 8, and 128 with vllm.
        deterministic: question by question and with deterministic kernels only, so that a clip's caption does not
            depend on what shares its batch. Slow on a GPU.
        threads: what a model on a CPU may use.
    """

    model: str
    prompt: str
    endpoint: Endpoint | None = operational(None)
    vllm: Vllm | None = operational(None)
    max_tokens: Annotated[int, Ge(1)] = 256
    temperature: Annotated[float, Ge(0)] = 0.0
    seed: int = 0
    gpus: Annotated[float, Ge(0)] = operational(0.0)
    batch_size: Annotated[int, Ge(1)] | None = operational(None)
    deterministic: bool = operational(False)
    threads: Annotated[int, Ge(1)] = operational(1)

    extra: ClassVar[str] = "caption"
    packages: ClassVar[tuple[str, ...]] = ("openai", "torch", "torchvision", "transformers")
    fills: ClassVar[tuple[str, ...]] = ()  # names that the prompt may have

    def __post_init__(self) -> None:
        self._folder: Path | None = None
        if not self.endpoint and not is_callable(self.model) and is_path(self.model):
            self.model = located(self.model)
        if self.prompt.endswith(".txt"):
            self.prompt = located(self.prompt)

    @property
    def needs(self) -> Needs:  # type: ignore[override]  # depends on the arguments
        if self.endpoint:
            return Needs(cpus=0.5, max_workers=1)
        if self.vllm:
            return EngineNeeds(gpus=self.gpus, engine=repr((self.model, self.vllm, self.deterministic)))
        return Needs(gpus=self.gpus)

    @functools.cached_property
    def filled(self) -> Prompt:
        """The prompt, read once: what is asked stays what the mark says."""
        return load_prompt(self.prompt, self.fills)

    def settings(self) -> dict[str, Any]:
        model = self.model if self.endpoint or is_callable(self.model) else identity(self.model, *LOCAL_FILES)
        sent: dict[str, Any] = {"body": self.endpoint.body} if self.endpoint and self.endpoint.body else {}
        if self.endpoint and self.endpoint.omit:
            sent["omit"] = sorted(self.endpoint.omit)
        if self.endpoint and self.asks_for_video:
            sent["sent_as"] = "mp4"  # once these were single pictures
        if self.vllm and self.vllm.max_model_len is not None:
            sent["max_model_len"] = self.vllm.max_model_len  # what was refused as too long is to be asked again
        return {**super().settings(), "model": model, "prompt": self.filled.mark, **sent}

    def check(self) -> None:
        _ = self.filled
        check_backend(
            self.model,
            endpoint=self.endpoint,
            vllm=self.vllm,
            gpus=self.gpus,
            video=self.asks_for_video,
            pictures="frames" in self.reads,
        )

    @property
    def asks_for_video(self) -> bool:
        """Whether the model must take videos."""
        return False

    def keep_in(self, folder: Path) -> None:
        self._folder = folder

    def setup(self) -> None:
        self._backend = open_backend(
            self.model,
            endpoint=self.endpoint,
            vllm=self.vllm,
            gpus=self.gpus,
            batch_size=self.batch_size,
            sampling=Sampling(temperature=self.temperature, seed=self.seed, deterministic=self.deterministic),
            threads=self.threads,
        )
        self._journal = Journal(self._folder, self.name.partition("(")[0])  # the keys say what was asked

    def requests(self, clip: dict[str, Any]) -> list[Request]:
        """What to ask about a clip, given as its row; nothing if it cannot be described, or all is known already."""
        raise NotImplementedError

    def result(self, clip: dict[str, Any], replies: list[Reply]) -> dict[str, Any]:
        """The row of ``writes`` for a clip from the answers, in the order of its requests."""
        raise NotImplementedError

    def process(self, clips: pa.Table) -> pa.Table:
        rows = clips.to_pylist()
        asked = [self._requests(clip) for clip in rows]
        answers = self._answers(rows, asked)
        results = [
            self._result(clip, requests, replies) for clip, requests, replies in zip(rows, asked, answers, strict=True)
        ]
        if any(isinstance(result, Exception) for result in results):
            raise SomeFailedError(results)
        return pa.Table.from_pylist(results, schema=self.writes)

    def _requests(self, clip: dict[str, Any]) -> list[Request] | Exception:
        try:
            return self.requests(clip)
        except Exception as error:  # whatever is wrong with one clip costs only that clip
            return error

    def _result(
        self, clip: dict[str, Any], requests: list[Request] | Exception, replies: dict[int, Reply | Exception]
    ) -> dict[str, Any] | Exception:
        if isinstance(requests, Exception):
            return requests
        in_order = [replies.get(i, StageError("a backend left a question unanswered")) for i in range(len(requests))]
        good = [reply for reply in in_order if isinstance(reply, Reply)]
        if len(good) < len(in_order):
            return next(reply for reply in in_order if isinstance(reply, Exception))
        return self.result(clip, good) if good else {name: clip.get(name) for name in self.writes.names}

    def _answers(
        self, clips: list[dict[str, Any]], asked: list[list[Request] | Exception]
    ) -> list[dict[int, Reply | Exception]]:
        """The answers for each clip, by the place of the question among those of the clip."""
        answers: list[dict[int, Reply | Exception]] = [{} for _ in clips]
        known = {video_id: self._journal.read(video_id) for video_id in {clip["video_id"] for clip in clips}}
        open_: list[tuple[int, int, str]] = []  # clip, question, key
        todo: list[Request] = []
        for c, requests in enumerate(asked):
            for q, request in enumerate([] if isinstance(requests, Exception) else requests):
                key = self._key(clips[c]["clip_id"], q, request)
                if (reply := known[clips[c]["video_id"]].get(key)) is not None:
                    answers[c][q] = reply
                else:
                    open_.append((c, q, key))
                    todo.append(request)
        for place, answer in self._backend.ask(todo) if todo else ():
            c, q, key = open_[place]
            if isinstance(answer, Reply):
                # Half a surrogate pair is text in JSON and in Python, and in no table.
                answer = dataclasses.replace(answer, text=answer.text.encode(errors="replace").decode())
                self._journal.add(clips[c]["video_id"], key, answer)
            answers[c][q] = answer
        return answers

    def _key(self, clip_id: str, question: int, request: Request) -> str:
        stated = ("prompt", "questions")  # in the request itself
        made_by = {name: value for name, value in self.settings_once.items() if name not in stated}
        text = json.dumps([clip_id, question, request.digest(), made_by], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @functools.cached_property
    def settings_once(self) -> dict[str, Any]:
        """``settings``, which reads a folder's files, worked out once per worker."""
        return self.settings()

    def usage(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """The value of a column of the type ``USAGE``."""
        return {
            "model": self.settings_once["model"],
            "prompt": self.filled.mark,
            "calls": len(replies),
            "prompt_tokens": total(reply.prompt_tokens for reply in replies),
            "completion_tokens": total(reply.completion_tokens for reply in replies),
            "cut_off": any(reply.cut_off for reply in replies),
        }


def total(counts: Iterable[int | None]) -> int | None:
    """The sum of counts; unknown if one of them is."""
    whole = 0
    for count in counts:
        if count is None:
            return None
        whole += count
    return whole
