"""Scores by an image classifier of one's own choice: watermark, unsafe content, or whatever it tells apart."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import keyword
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from annotated_types import Ge, Len

from curation.bars import no_bars
from curation.errors import UsageError, nearest
from curation.frames import Frames
from curation.model_files import check_safetensors, check_weights, fetch_weights, identity, located
from curation.stage import Filter, Needs, known, operational
from curation.table import CAPTIONS, CLEANED, CLIPS, SHARDED, extend

_RESERVED = {*("frames", "video_path", "bit_rate", "embedding"), *extend(CLIPS, CAPTIONS, CLEANED, SHARDED).names}
_MOST_LABELS = 1_000_000


@dataclasses.dataclass(kw_only=True)
class Classify(Filter):
    """How probable labels are on the contact sheet, by an image classification model of Hugging Face transformers.

    A pipeline may have several such stages, with a model each.

    Writes:
        watermark_score: for instance; the columns are those that ``columns`` names. Probability that a frame shows the
            label, 0..1, over frames. Unknown without frames.

    Args:
        model: a folder, or ORGANISATION/NAME on the hub. Weights must be safetensors; code of a repository is not run.
        columns: column -> label of the model, or several labels: the probability that it is any of them (the sum; the
            largest where the model's labels do not exclude each other).
        over: the mean of the frames, or the largest of them, which finds what shows up for a moment.
        gpus: GPUs, or the share of one, for each worker. With a GPU the model computes in bfloat16, and probabilities
            may differ in the second decimal. 0 is the CPU.
        batch_size: frames at a time, on a GPU across clips.
        threads: what the model may use on a CPU. Other numbers may change the last digit.

    Labels exclude each other (softmax) unless the model's config says ``multi_label_classification`` or has a single
    label (sigmoid), as in the image classification pipeline of transformers.
    """

    model: str
    columns: Annotated[dict[str, str | list[str]], Len(1)]
    over: Literal["mean", "max"] = "mean"
    gpus: Annotated[float, Ge(0)] = operational(0.0)
    batch_size: Annotated[int, Ge(1)] = operational(16)
    threads: Annotated[int, Ge(1)] = operational(1)

    version: ClassVar[int] = 1
    extra: ClassVar[str] = "models"
    packages: ClassVar[tuple[str, ...]] = ("huggingface_hub", "torch", "torchvision", "transformers")
    frames: ClassVar[Frames] = Frames.sheet(long_side_px=None)

    @property
    def name(self) -> str:  # type: ignore[override]  # so that a pipeline can have several
        return f"classify({','.join(self.columns)})"

    @property
    def writes(self) -> pa.Schema:  # the columns are an argument
        return pa.schema([(column, pa.float32()) for column in self.columns])

    @property
    def needs(self) -> Needs:  # type: ignore[override]  # so is this
        return Needs(gpus=self.gpus)

    @functools.cached_property
    def _source(self) -> str:
        """The model as workers, which start in other folders, find it."""
        return located(self.model)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "model": identity(self._source, "*.json", "*.safetensors")}

    def check(self) -> None:
        for column in self.columns:
            if not column.isidentifier() or keyword.iskeyword(column):
                raise UsageError(f"column {column!r}: use letters, digits and _ only, so that SQL takes it unquoted")
            if column in _RESERVED:
                raise UsageError(f"column {column!r} has another meaning in the table; name it {column}_score, say")
        check_weights(self._source, ["config.json", "preprocessor_config.json"])
        check_safetensors(self._source)
        names, _ = read_labels(self._source)
        for label in itertools.chain.from_iterable(_listed(labels) for labels in self.columns.values()):
            if label not in names:
                raise UsageError(f"the model {self.model} has no label {label!r}.{nearest(label, names)}")

    def setup(self) -> None:
        import torch

        from curation.torchvision import mend

        mend()
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        if self.gpus and not torch.cuda.is_available():
            raise UsageError(f"stage {self.name!r} asks for a GPU and this worker has none; leave gpus out for the CPU")
        self._device, self._dtype = ("cuda", torch.bfloat16) if self.gpus else ("cpu", torch.float32)
        labels, self._independent = read_labels(self._source)
        self._indices = [[labels.index(label) for label in _listed(wanted)] for wanted in self.columns.values()]
        # PIL, because the processors of torchvision resize a little differently from release to release.
        self._processor = AutoImageProcessor.from_pretrained(self._source, backend="pil", trust_remote_code=False)
        with no_bars():  # a run shows its own
            model, info = AutoModelForImageClassification.from_pretrained(
                self._source, dtype=self._dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        if lost := sorted(info["missing_keys"]):  # transformers would go on with random ones
            raise UsageError(f"the weights of {self.model} lack {', '.join(lost[:3])}: it cannot classify images")
        self._model = model.to(self._device).eval()

    def process(self, clips: pa.Table) -> pa.Table:
        found: list[list[np.ndarray]] = [[] for _ in range(clips.num_rows)]
        for _, alike in itertools.groupby(self._pictures(clips["frames"]), key=self._together):
            for batch in _batches(alike, self.batch_size):
                with torch_threads(self.threads):
                    measured = self._values([picture for _, picture in batch])
                for (row, _), values in zip(batch, measured, strict=True):
                    found[row].append(values)
        over = np.mean if self.over == "mean" else np.max
        rows = [over(np.stack(values), axis=0).tolist() if values else [None] * len(self.columns) for values in found]
        scores = [dict(zip(self.columns, map(known, row), strict=True)) for row in rows]
        return pa.Table.from_pylist(scores, schema=self.writes)

    def _pictures(self, sheets: Iterable[pa.Scalar]) -> Iterator[tuple[int, np.ndarray]]:
        """(row, picture H W 3) of all frames, clip after clip, so that only one contact sheet is unpacked at a time."""
        for row, sheet in enumerate(sheets):
            for picture in self.frames.unpack(sheet)[0]:
                if picture is None:
                    raise ValueError("a frame of the contact sheet is no JPEG")
                yield row, picture

    def _together(self, item: tuple[int, np.ndarray]) -> tuple[int, ...]:
        """Equal for frames that may share a batch: of one size, and on a CPU of one clip.

        Kernels add up in an order that depends on the batch, and CPUs gain nothing from larger ones.
        """
        row, picture = item
        return (0 if self.gpus else row, *picture.shape)

    def _values(self, pictures: list[np.ndarray]) -> np.ndarray:
        """What each of B pictures H W 3 has for each column, float64, B and the number of columns."""
        import torch

        inputs = self._processor(images=pictures, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**{name: self._filled(value) for name, value in inputs.items()}).logits  # B L
            logits = logits[: len(pictures)].float()
            each = (torch.sigmoid(logits) if self._independent else torch.softmax(logits, dim=-1)).double().cpu()
        together = torch.amax if self._independent else torch.sum
        return torch.stack([together(each[:, indices], dim=-1) for indices in self._indices], dim=-1).numpy()

    def _filled(self, value: Any) -> Any:
        """A tensor B ... on the device. For a GPU it is filled up, so that all batches go through the same kernels."""
        import torch

        if self.gpus:
            value = torch.cat([value, value[:1].expand(self.batch_size - len(value), *value.shape[1:])])
        return value.to(self._device, self._dtype if value.is_floating_point() else value.dtype)


def read_labels(source: str) -> tuple[list[str], bool]:
    """The labels of a model in the order of its outputs, and whether each is judged by itself, from its config.json.

    Raises:
        UsageError: it is no image classification model.
    """
    path = fetch_weights(source, "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        count = config.get("num_labels", 2)
        given = config.get("id2label") or {i: f"LABEL_{i}" for i in range(min(count, _MOST_LABELS + 1))}
        if len(given) > _MOST_LABELS:
            raise ValueError(f"it has {count} labels")
        labels = [str(label) for _, label in sorted((int(i), label) for i, label in given.items())]
        architectures = [str(name) for name in config.get("architectures") or []]
        problem = config.get("problem_type")
    except (ValueError, AttributeError, TypeError, OSError, RecursionError) as error:
        raise UsageError(f"{path} is not the config of a transformers model: {error}") from error
    if not any("ForImageClassification" in name for name in architectures) or problem == "regression":
        kind = problem if problem == "regression" else ", ".join(architectures) or "no architecture"
        raise UsageError(f"{source} is no image classification model (its config.json says: {kind})")
    return labels, problem == "multi_label_classification" or len(labels) == 1


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Engines give workers different numbers of threads, and kernels add up in an order that depends on the number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _listed(labels: str | list[str]) -> list[str]:
    return [labels] if isinstance(labels, str) else labels


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(items, size)):
        yield batch
