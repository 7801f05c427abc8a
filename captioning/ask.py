"""Yes/no questions about a clip to a vision-language model, as scores for rules."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from annotated_types import Ge, Len

from captioning.captioner import Captioner
from captioning.prompts import Prompt
from captioning.question import Question
from captioning.requests import Reply, Request
from captioning.stages import about_all, readable
from curation.errors import UsageError, nearest
from curation.table import USAGE

# The six kinds of bad footage that CogVideoX's authors trained filters for. Yes is always what one does not want.
KINDS: dict[str, str] = {
    "edited": (
        "Has this clip been visibly edited: are there special effects, animated graphics, split screens or pictures "
        "within the picture that no camera has recorded?"
    ),
    "no_coherent_motion": (
        "Does this clip lack coherent motion: is it a slide show, a still picture that is only panned or zoomed, or "
        "pieces joined so that things jump from one frame to the next instead of moving?"
    ),
    "low_quality": (
        "Is this clip poorly shot: is it blurred, out of focus, badly exposed, full of compression artefacts, or so "
        "shaky that it is hard to see what it shows?"
    ),
    "lecture": (
        "Is this clip mainly of someone who talks, while little else happens, as in a lecture, a presentation, an "
        "interview, a news programme, a video call or a live stream?"
    ),
    "text_dominated": (
        "Does text dominate this clip: does it cover much of the picture, or is it what the clip is mainly about?"
    ),
    "screen_noise": (
        "Was this clip recorded from the screen of a phone or computer, or filmed off a display: are there windows, "
        "menus, buttons, a cursor, an app, or moire patterns?"
    ),
}

_WRITES = {"": pa.float32(), "_reply": pa.string(), "_usage": USAGE}  # end of a column's name -> its type
_NAME = re.compile(r"[A-Za-z0-9_]+")
# A word, then the end or what reasons may follow: "No idea", "No-one" and "No way to tell" are no answers.
_ANSWER = re.compile(
    r"(?:the )?(?:answer(?: is)?\s*:?\s*)?(yes|no)"
    r"(?P<why>(?:\s*[.,;:!\n…–—].*|\s+[-(].*|\s+(?:because|since|as|it|there|this)\b.*)?)",
    re.DOTALL,
)
_OTHER = re.compile(  # "yes and no", "yes/no", "Yes. No.": a second answer, not the "no" of "there is no text"
    r"(?:\b(?:and|or|then)\s+|/\s*)(yes|no)\b(?!\s+\w)|[.,;!?\n]\s*(yes|no)\s*(?=[.,;!?\n]|$)"
)
_CANNOT = re.compile(r"\b(?:can['’]?t|cannot|can not|unable)\b")
_AROUND = " \t\r\n*_`\"'“”‘’-–—"


@dataclasses.dataclass(kw_only=True)
class Ask(Captioner):
    """Yes/no questions about the contact sheet's frames, each asked by itself; a pipeline may have several stages.

    Writes, for each question:
        asked_lecture: for instance: 1 where the model says yes, 0 where it says no, null where it says neither.
        asked_lecture_reply: what it said instead of yes or no; null where it said either.
        asked_lecture_usage: the model, the prompt with a digest of the question, and what it took.

    Where the model cannot be asked, the clip fails with the reason, as for captions.

    Args:
        questions: names out of ``KINDS``, or ``name: the question`` of your own. By default all of ``KINDS``, the six
            kinds of bad footage that CogVideoX's authors trained filters for.
        prompt: what is put around a question, which stands there as ``$question``.
        max_frames: of a clip, spread over it from the first to the last.
        long_side_px: larger pictures are scaled down to it; null takes them as they are, which blur and artefacts need.
        see: the frames as one video, or as several images, as for ``short_caption``.

    Every question is a request of its own. All six in one would read the pictures once instead of six times; but then
    the answer to one leans on those before it, a list that cannot be read loses all, and another wording of one
    changes all. The pictures stand before the words, the same for each question, so that servers that keep what
    prompts have in common (vLLM, most hosted ones) read them once after all.

    To add, drop, reword or move a question asks no other again, whichever stages they stand in. In a stage of its own,
    a question is not asked about clips that the rule on an earlier one has rejected.

    After CogVideoX (Yang et al. 2024, the part on filtering), whose filters were trained on 20,000 labelled clips. How
    right a model is without that has not been measured here: look at clips of both answers before a rule decides.
    """

    prompt: str = "ask-1"
    questions: Annotated[list[str | dict[str, str]], Len(1)] = dataclasses.field(default_factory=lambda: list(KINDS))
    max_tokens: Annotated[int, Ge(1)] = 16
    max_frames: Annotated[int, Ge(1)] = 8
    long_side_px: Annotated[int, Ge(28)] | None = None
    see: Literal["video", "images"] = "video"

    version: ClassVar[int] = 2
    reads: ClassVar[tuple[str, ...]] = ("frames", "clip_id", "video_id")
    fills: ClassVar[tuple[str, ...]] = ("question",)

    @property
    def name(self) -> str:  # type: ignore[override]  # so that a pipeline can have several
        return f"ask({','.join(name for name, _ in self._asked)})"

    @property
    def writes(self) -> pa.Schema:  # the columns are an argument
        return pa.schema([(f"asked_{name}{end}", kind) for name, _ in self._asked for end, kind in _WRITES.items()])

    @property
    def asks_for_video(self) -> bool:
        return self.see == "video"

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "questions": self._asked}

    def parts(self, upstream: Mapping[str, str]) -> dict[str, list[str]]:
        """Each question under the mark that it has in a stage of its own, so that it can move there and back."""
        if len(self._asked) == 1:
            return {}
        settings = self.settings()
        return {
            self.mark_of(f"ask({name})", {**settings, "questions": [(name, text)]}, upstream): _columns(name)
            for name, text in self._asked
        }

    def check(self) -> None:
        if not all(self.questions):
            raise UsageError("a question is empty: write `name: Is ...?`")
        names = [name.casefold() for name, _ in self._asked]  # as many readers of tables compare them
        for name, text in self._asked:
            if name.casefold() in ("true", "false"):
                raise UsageError(
                    f"a question is called {name}, for which YAML takes a bare yes or no: name it otherwise"
                )
            if not _NAME.fullmatch(name):
                raise UsageError(f"the question {name!r} becomes a column: name it with letters, digits and _ only")
            if text is None:
                raise UsageError(f"no question {name!r}.{nearest(name, KINDS)} Or write your own: `{name}: Is ...?`")
            if not text.strip():
                raise UsageError(f"the question {name!r} is empty")
            if names.count(name.casefold()) > 1:
                raise UsageError(f"two questions are called {name!r}")
        if "question" not in self.filled.names:
            raise UsageError(f"the prompt {self.prompt} has no $question: nothing would be asked")
        super().check()

    @property
    def _asked(self) -> list[tuple[str, str | None]]:
        """Name and text of each question; None for a name that has no text."""
        named = [{entry: KINDS.get(entry)} if isinstance(entry, str) else entry for entry in self.questions]
        return [pair for entry in named for pair in entry.items()]

    @functools.cached_property
    def _prompts(self) -> list[Prompt]:
        """What is asked, whole."""
        texts = (self.filled.fill({"question": (text or "").strip()}) for _, text in self._asked)
        return [Prompt(self.filled.name, text) for text in texts]

    def requests(self, clip: dict[str, Any]) -> list[Request]:
        whole = Question(prompt="", frames=self.max_frames, long_side_px=self.long_side_px, max_tokens=self.max_tokens)
        shown = about_all(whole, readable(clip["frames"]), video=self.asks_for_video)
        return [dataclasses.replace(one, prompt=prompt.text) for one in shown for _, prompt in self._open(clip)]

    def _open(self, clip: dict[str, Any]) -> list[tuple[str, Prompt]]:
        """Name and prompt of each question that has no answer yet, readable or not."""
        asked = zip(self._asked, self._prompts, strict=True)
        return [(name, prompt) for (name, _), prompt in asked if clip.get(f"asked_{name}_usage") is None]

    def _key(self, clip_id: str, question: int, request: Request) -> str:
        return super()._key(clip_id, 0, request)  # whichever others are asked before it

    def result(self, clip: dict[str, Any], replies: list[Reply]) -> dict[str, Any]:
        row = {name: clip.get(name) for name in self.writes.names}
        for (name, prompt), reply in zip(self._open(clip), replies, strict=True):
            said = yes_or_no(reply.text)
            row[f"asked_{name}"] = None if said is None else float(said)
            row[f"asked_{name}_reply"] = reply.text.strip() if said is None else None
            row[f"asked_{name}_usage"] = {**self.usage([reply]), "prompt": prompt.mark}
        return row


def _columns(question: str) -> list[str]:
    return [f"asked_{question}{end}" for end in _WRITES]


def yes_or_no(text: str) -> bool | None:
    """What an answer says: it begins with the word, and does not give the other one as well; None for anything else."""
    answer = text.strip(_AROUND).casefold()
    found = _ANSWER.fullmatch(re.sub(r"[*_`]", "", answer))
    if not found:
        return None
    why = found["why"]
    others = {one for pair in _OTHER.findall(why) for one in pair if one}
    first = re.split(r"[.!?\n]", why.lstrip(" .,;:!\n\t…–—-"), maxsplit=1)[0]
    if others - {found[1]} or _CANNOT.search(first):
        return None
    return found[1] == "yes"
