"""What the camera does, in words, from the scores."""

from __future__ import annotations

from collections.abc import Sequence

# Label of `camera_motion` -> verb and direction; the labels are those of filters/camera.py.
_MOVES = {
    "pan_left": ("pan", "left"),
    "pan_right": ("pan", "right"),
    "tilt_up": ("tilt", "up"),
    "tilt_down": ("tilt", "down"),
    "zoom_in": ("zoom", "in"),
    "zoom_out": ("zoom", "out"),
    "roll_cw": ("roll", "clockwise"),
    "roll_ccw": ("roll", "counterclockwise"),
    "shake": ("shake", ""),
}
LABELS = tuple(_MOVES)
_SILENT = ("undetermined",)  # of what is not known, nothing is said


def camera_phrase(labels: Sequence[str] | None) -> str:
    """Say a value of ``camera_motion``: ``the camera pans left and zooms in``; empty where it is not known.

    The order of the labels does not matter.

    Raises:
        ValueError: there is no such label.
    """
    _check(labels)
    directions: dict[str, list[str]] = {}
    for label, (verb, direction) in _MOVES.items():
        if label in (labels or ()):
            directions.setdefault(verb, []).append(direction)
    verbs = [f"{verb}s {' and '.join(found)}".rstrip() for verb, found in directions.items()]
    if not verbs:
        return "the camera stays still" if "static" in (labels or ()) else ""
    plain = len(verbs) <= 2 and not any(" and " in verb for verb in verbs)
    *others, last = verbs
    before = " and " if plain else ", and "
    return f"the camera {', '.join(others)}{before if others else ''}{last}"


def camera_moves(labels: Sequence[str] | None) -> list[str]:
    """The same in a list, as words to ask for: ``["pan left", "zoom in"]``, ``["static"]``; empty where not known.

    Raises:
        ValueError: there is no such label.
    """
    _check(labels)
    moves = [f"{verb} {direction}".rstrip() for label, (verb, direction) in _MOVES.items() if label in (labels or ())]
    return moves or (["static"] if "static" in (labels or ()) else [])


def _check(labels: Sequence[str] | None) -> None:
    if unknown := [label for label in labels or () if label not in (*_MOVES, *_SILENT, "static")]:
        raise ValueError(f"no words for the camera motion {unknown[0]!r}; known are {', '.join(_MOVES)} and static")
