"""What models say besides what is to be seen: openings that speak of the video itself, labels, refusals."""

from __future__ import annotations

import re

from captioning.words import sentences

_MEDIUM = r"(?:video|clip|image|picture|photo|photograph|footage|frame|frames|scene|sequence|animation|gif)(?:\s+clip)?"
_FILM = r"(?:video|clip|footage|scene|sequence|animation|gif)(?:\s+clip)?"  # what has a beginning
_KIND = r"(?:(?:short|brief|entire|given|provided|first|video|looping)\s+)*"
_SHOWS = (
    r"(?:show|depict|feature|capture|present|portray|display|showcase|illustrate)s?"
    r"|(?:is|are)\s+(?:showing|depicting|featuring|about)|(?:is|appears\s+to\s+be)(?=\s+an?\s)"
)
_GIVEN = r"(?:(?:provided|given|frame|video|visual|short)\s+)*"
_MANNER = r"(?:(?:primarily|mainly|clearly|simply|mostly|vividly|beautifully)\s+)?"

# Each is of the beginning of a sentence; the rest of it says the same alone.
OPENINGS = re.compile(
    rf"(?:(?:in|throughout)\s+(?:the|this)\s+{_KIND}{_MEDIUM},?\s+(?:we\s+(?:can\s+)?see\s+)?(?=\S)"
    rf"|(?:the|this|these)\s+{_KIND}{_MEDIUM}s?\s+{_MANNER}(?:{_SHOWS})\s+(?:(?:to\s+)?us\s+)?(?:that\s+|how\s+)?"
    rf"|(?:the|this)\s+{_KIND}{_FILM}\s+(?:begin|open|start)s\s+(?:with|by\s+showing)\s+"
    rf"|based\s+(?:only\s+|solely\s+)?on\s+(?:the|these|this|your)\s+{_GIVEN}"
    rf"(?:notes|descriptions?|captions?|{_MEDIUM}s?)(?:\s+(?:provided|given))?,\s+"
    rf"|this\s+is\s+an?\s+{_KIND}{_MEDIUM}\s+(?:of|showing|depicting)\s+"
    rf"|an?\s+{_KIND}(?:video|clip|footage|image|picture)\s+(?:of|showing|depicting)\s+"
    rf"|(?:here,?\s+)?we\s+(?:can\s+)?see\s+)(?=\S)",
    re.IGNORECASE,
)
LABEL = re.compile(
    r"(?:(?:sure|certainly|of\s+course|absolutely|okay)\s*[!,.]\s*)?"
    r"(?:here(?:\s+is|['’]s)\s+(?:an?|the|your)\s+[^.:!?\n]{0,60}(?:caption|description|summary)[^.:!?\n]{0,60}:"
    r"|(?:(?:final|video|detailed|dense|short|long|image|brief|the)\s+)*(?:caption|description|summary|answer)\s*:)\s*"
    r"|(?:sure|certainly|of\s+course|absolutely)\s*!\s*",
    re.IGNORECASE,
)

_DOING = (
    r"(?:see|view|watch|access|open|process|describe|analy[sz]e|identify|provide|assist|help|create|generate|play"
    r"|fulfill?|comply|complete|answer|caption)"
)
_CANNOT = (
    r"(?:cannot|can['’]?t|can\s+not|could\s+not|am\s+(?:not\s+able|unable)\s+to|am\s+not\s+capable\s+of|won['’]?t)"
)
_SENT = rf"(?:{_MEDIUM}|file|link|url|detail|description|caption)s?|information|context|content|it|them|more"
_REFUSAL = re.compile(
    rf"(?:i['’]?\s?a?m\s+(?:very\s+|so\s+)?sorry\b|i\s+apologi[sz]e\b|(?:sorry|unfortunately|apologies),?\s+(?:but\s+)?i\b"
    r"|as\s+an?\s+(?:(?:ai\s+)?(?:large\s+)?language\s+model\b"
    r"|ai(?:\s+(?:model|assistant))?,|ai\b[^.!?]{0,80}?\bi\b)"
    r"|(?:i(?:['’]m|\s+am)\s+afraid\s+(?:that\s+)?)?"
    rf"i(?:\s+{_CANNOT}|\s*['’]m\s+(?:unable|not\s+able)\s+to)\s+(?:\w+ly\s+)?{_DOING}"
    rf"|unable\s+to\s+{_DOING}\s+(?:the|this|that|any|these)\s+(?:\w+\s+)?(?:{_MEDIUM}|content|request)s?"
    r"(?=\s*(?:[.!:]|$))"
    r"|i\s+(?:do\s+not|don['’]?t)\s+(?:have\s+(?:the\s+ability|access"
    r"|enough\s+(?:\w+\s+)?(?:information|context|details?))|see\s+(?:an?y?|the)\s+(?:video|image|picture))"
    # What is to be sent is named, and no sign says so.
    rf"|please\s+(?:provide|upload|share|attach)\s+(?![^.!?]*\b(?:reads?|says?)\b)(?:[\w']+\s+){{0,5}}?(?:{_SENT})\b"
    rf"|(?:it\s+(?:seems|appears|looks)\s+(?:that\s+|like\s+)?)?(?:no|there\s+(?:is|are|was|were)\s+no)\s+{_MEDIUM}s?\s+"
    r"(?:(?:was|is|were|are|has\s+been|have\s+been)\s+)?(?:provided|uploaded"
    r"|attached(?!\s+to\s+(?!(?:your|this|the)\s+(?:message|prompt|request))))\b"
    r"|我(?:无法|不能|没办法)(?:直接)?(?:查看|观看|看到|访问|打开|播放|描述|分析|处理|识别|提供)"
    r"|(?:es\s+)?tut\s+mir\s+leid\b|lo\s+siento\b|je\s+suis\s+désolée?\b|(?:很|非常)?(?:抱歉|对不起)|作为(?:一个|一名)?(?:AI|人工智能)"
    r"|申し訳(?:ありません|ございません)|죄송합니다)",
    re.IGNORECASE,
)


def opening(sentence: str) -> str:
    """How a sentence begins that speaks of the video or picture instead of what it shows; empty otherwise."""
    found = OPENINGS.match(sentence)
    return found[0] if found else ""


def label(text: str) -> str:
    """``Caption:`` or ``Sure! Here is a description of the video:`` before a caption; empty otherwise."""
    found = LABEL.match(text)
    return found[0] if found else ""


def is_refusal(text: str) -> bool:
    """Whether a sentence begins as models do that do not answer. What is quoted does not count."""
    return any(_REFUSAL.match(sentence) for sentence in sentences(text))
