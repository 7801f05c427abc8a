"""How well captions fit their clips, by CLIP, for ``cutroom caption eval``: the same as the stages measure.

Here and not in ``captioning``, which knows nothing of filters.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from curation.errors import UsageError
from curation.frames import SHEET
from curation.output import read_run_file
from filters import clip
from filters.embedding import Embedding
from filters.match import Match

_STAGES = ("match", "embedding")  # of a run, whose model is taken


class ClipMatcher:
    """``match_score`` of captions of contact sheets.

    Args:
        model: of open_clip, as of the stage ``match``.
        gpu: compute on it.
    """

    def __init__(self, model: str, *, gpu: bool = False) -> None:
        self._embedding = Embedding(model=model, gpus=float(gpu))
        self._match = Match(model=model, gpus=float(gpu))
        self.by = clip.identity(self._match.model)

    def __call__(
        self, sheets: Sequence[Sequence[tuple[float, bytes]]], *captions: Sequence[str | None]
    ) -> list[list[float | None]]:
        cells = [[{"t_s": t_s, "jpeg": jpeg} for t_s, jpeg in sheet] for sheet in sheets]
        seen = self._embedding.process(pa.table({"frames": pa.array(cells, SHEET)}))
        return [
            self._match.process(seen.append_column("caption", pa.array(said, pa.string())))["match_score"].to_pylist()
            for said in captions
        ]


def find_matcher(run: Path, model: str | None, *, gpu: bool = False) -> ClipMatcher | str:
    """The matcher for a run, or why there is none.

    Args:
        run: the output directory.
        model: what someone has asked for. None takes the model of the run, or else that of ``match``, if its weights
            are on this machine: nothing is downloaded that nobody has named.

    Raises:
        UsageError: a model was named and cannot be had.
    """
    missing = [package for package in Match.packages if importlib.util.find_spec(package) is None]
    why = f"{' and '.join(missing)} not installed: pip install 'cutroom[{Match.extra}]'"
    if model is not None:
        if missing:
            raise UsageError(f"--clip {model}: {why}")
        clip.check(model)
        return ClipMatcher(model, gpu=gpu)
    if missing:
        return why
    stages = {stage["name"]: stage["settings"] for stage in (read_run_file(run) or {}).get("stages", ())}
    found = str(next((stages[name]["model"] for name in _STAGES if name in stages), clip.DEFAULT))
    if "#" in found:  # of a folder a run knows what is in it, not where it lies
        return f"the run's CLIP is the folder {found}; name it with --clip"
    if not clip.is_here(found):
        return f"the weights of {found} are not on this machine; get them with `hf download {found}`, or use --clip"
    return ClipMatcher(found, gpu=gpu)
