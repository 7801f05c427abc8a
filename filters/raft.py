"""RAFT, a network for optical flow: where its weights come from, and the flow between pictures.

Teed & Deng, ECCV 2020, as torchvision has it (``torchvision.models.optical_flow``).
"""

from __future__ import annotations

import pickle
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curation.errors import StageError, UsageError, one_line
from curation.isolate import alive
from curation.model_files import MissingWeightsError, identity, is_path, located
from curation.torchvision import mend
from filters.classify import torch_threads

NAMES = ("raft_large", "raft_small")  # with the weights that torchvision holds for its best
_LEAST_PX = 128  # of a side: the coarsest level of what RAFT compares is a 64th of it, and one point is too few
_CELL_PX = 8  # it computes flow at an eighth of the size
_ANSWER_S = 10.0  # for the server to say whether it has the weights


class Raft:
    """A loaded RAFT.

    Args:
        weights: one of ``NAMES``, or the file of a state dict of either of torchvision's models.
        gpu: on the GPU, else on the CPU; in float32 on both.
        threads: what it may use on a CPU.

    Raises:
        MissingWeightsError: the weights are neither here nor to be had. UsageError: they are not RAFT's.
        StageError: there is no GPU.
    """

    def __init__(self, weights: str, *, gpu: bool, threads: int) -> None:
        import torch

        if gpu and not torch.cuda.is_available():
            raise StageError("flow: raft asks for a GPU and this worker has none; leave gpus out for the CPU")
        self._device, self._threads = "cuda" if gpu else "cpu", threads
        self._model = _built(_state(weights), weights).to(self._device).eval()
        if gpu:  # what a GPU's libraries take is there before anything measures what the decoder takes
            blank = np.zeros((2, _LEAST_PX, _LEAST_PX, 3), np.uint8)
            list(self.flows(blank, [(0, 1)], batch_size=1))

    def flows(self, frames: np.ndarray, pairs: Sequence[tuple[int, int]], *, batch_size: int) -> Iterator[np.ndarray]:
        """The flow between pairs of frames T H W 3: for each H W 2, pixels, x to the right and y down.

        Raises:
            ValueError: the weights give no numbers.
        """
        for start in range(0, len(pairs), batch_size):
            alive()  # on a CPU a clip may take minutes
            some = np.array(pairs[start : start + batch_size])
            with torch_threads(self._threads):
                found = self._flows(frames[some[:, 0]], frames[some[:, 1]])
            if not np.isfinite(found).all():
                raise ValueError("the weights of RAFT give no numbers")
            yield from found

    def _flows(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """From B pictures H W 3 to B others: B H W 2."""
        import torch

        height, width = before.shape[1:3]
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            found = self._model(self._prepared(before), self._prepared(after))[-1]  # B 2 h w, the last refinement
            return np.asarray(found[..., :height, :width].permute(0, 2, 3, 1).float().cpu().numpy())

    def _prepared(self, pictures: np.ndarray) -> Any:
        """B H W 3 as the model wants them: B 3 h w, -1..1, sides of whole cells, the edges repeated to fill them up."""
        import torch

        height, width = pictures.shape[1:3]
        below, beside = (max(_LEAST_PX, -(-side // _CELL_PX) * _CELL_PX) - side for side in (height, width))
        values = torch.from_numpy(pictures).to(self._device).permute(0, 3, 1, 2).float().contiguous()
        values = (values / 255 - 0.5) / 0.5  # digit for digit as torchvision prepares pictures
        return torch.nn.functional.pad(values, (0, beside, 0, below), mode="replicate")


def check(weights: str) -> None:
    """Raise what ``Raft`` would for weights that are missing, or are in a file and not RAFT's; downloads nothing.

    Raises:
        MissingWeightsError, UsageError: see ``Raft``.
    """
    if weights not in NAMES:
        _built(_state(weights), weights)
        return
    url = _url(weights)
    if _cached(url).exists():
        _built(_state(weights), weights)
        return
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_ANSWER_S).close()  # noqa: S310 - it is https
    except OSError as error:  # offline, or not there
        raise _unreachable(weights, url, error) from error


def known_as(weights: str) -> str:
    """What a resume key knows weights by: the name of torchvision's file, which has a digest, or what a file holds."""
    return Path(_url(weights)).name if weights in NAMES else identity(weights)


def placed(weights: str) -> str:
    """The weights as workers, which start in other folders, find them."""
    return weights if weights in NAMES else located(weights)


def _url(name: str) -> str:
    mend()
    from torchvision.models import optical_flow

    weights = {"raft_large": optical_flow.Raft_Large_Weights, "raft_small": optical_flow.Raft_Small_Weights}[name]
    return str(weights.DEFAULT.url)


def _cached(url: str) -> Path:
    """Where torch keeps what it has downloaded from an address."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def _unreachable(name: str, url: str, error: Exception) -> MissingWeightsError:
    return MissingWeightsError(
        f"the weights {name} are not on this machine, and {url} gave: {one_line(error)}. Download that file where "
        f"there is a network and put it at {_cached(url)}, or give the path of a copy"
    )


def _state(weights: str) -> dict[str, Any]:
    """The tensors of a model, downloaded first where they must be; nothing else in a file is ever executed."""
    import torch

    if weights in NAMES:
        url = _url(weights)
        try:
            return dict(
                torch.hub.load_state_dict_from_url(
                    url, map_location="cpu", progress=False, check_hash=True, weights_only=True
                )
            )
        except Exception as error:
            if _cached(url).exists():  # its digest is looked at only when it is downloaded
                raise UsageError(f"{_cached(url)} is damaged ({one_line(error)[:160]}): delete it") from error
            raise _unreachable(weights, url, error) from error  # or what came is another file, and was not kept
    path = Path(located(weights))
    if not path.is_file():
        one_of = f"{', '.join(NAMES)}, or the path of a state dict"
        hint = "" if is_path(weights) and path.exists() else f"; weights: is one of {one_of}"
        raise MissingWeightsError(f"no file of weights at {path}{hint}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise UsageError(f"{path} is no state dict, or holds more than tensors; it is not opened") from error
    except Exception as error:  # a file of anything
        raise UsageError(f"{path} holds no state dict: {one_line(error)}") from error


def _built(state: dict[str, Any], weights: str) -> Any:
    """The model that a state dict is of; only the large one learns how to enlarge its flow."""
    mend()
    from torchvision.models import optical_flow

    place = _cached(_url(weights)) if weights in NAMES else weights
    advice = ": delete it, it is damaged" if weights in NAMES else ""
    large = any(str(name).startswith("mask_predictor.") for name in state)
    model = optical_flow.raft_large() if large else optical_flow.raft_small()
    try:
        model.load_state_dict({str(name): value for name, value in state.items()})
    except (RuntimeError, AttributeError) as error:
        why = one_line(error)[:160]
        raise UsageError(
            f"{place} is no state dict of torchvision's raft_large or raft_small ({why}){advice}"
        ) from error
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise UsageError(f"{place} holds weights that are no numbers{advice}")
    return model
