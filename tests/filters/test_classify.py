"""An image classifier's probabilities are what transformers computes, and mistakes are found before any work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from curation.config import load_plan
from curation.errors import ConfigError, MissingError, UsageError
from curation.frames import SHEET
from curation.plan import Plan
from curation.run import run
from curation.stage import run_stage
from curation.table import Store
from filters.classify import Classify, read_labels
from tests.filters.tiny import LABELS, resnet, vit
from tests.helpers import clip_rows, moving_frames, sheet_cell

ALL = {f"p_{label}": label for label in LABELS}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vit(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vit(tmp_path_factory.mktemp("models") / "multi", multi_label=True, seed=1)


@pytest.fixture(scope="module")
def aspect(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another kind, whose processor keeps the picture's aspect before it crops."""
    return resnet(tmp_path_factory.mktemp("models") / "resnet")


def sheets(counts: tuple[int, ...] = (3, 1, 4, 2)) -> list[list[dict[str, Any]]]:
    """Contact sheets of so many frames each; every other clip is upright."""
    made = []
    for i, count in enumerate(counts):
        frames, times = moving_frames(Classify.frames, count=max(1, count), seed=i)
        if i % 2:
            frames = np.ascontiguousarray(frames.transpose(0, 2, 1, 3))
        made.append(sheet_cell(frames * ((i + 2) / len(counts) % 1.2), times) if count else [])
    return made


def measure(stage: Classify, cells: list[list[dict[str, Any]]]) -> dict[str, list[float | None]]:
    stage.check()
    stage.setup()
    done = run_stage(stage, clip_rows(len(cells), frames=pa.array(cells, SHEET)), mark="m@1")
    assert done["status"].to_pylist() == ["kept"] * len(cells)
    return {column: done[column].to_pylist() for column in stage.columns}


def expected(folder: Path, cell: list[dict[str, Any]]) -> np.ndarray:
    """Logits T and one per label, by transformers alone, one frame at a time."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    network = AutoModelForImageClassification.from_pretrained(folder).eval()
    rows = []
    for frame in cell:
        bgr = cv2.imdecode(np.frombuffer(frame["jpeg"], np.uint8), cv2.IMREAD_COLOR)
        with torch.no_grad():
            rows.append(network(**processor(images=[bgr[..., ::-1].copy()], return_tensors="pt")).logits[0])
    return torch.stack(rows).double().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("kind", ["model", "aspect"])
@pytest.mark.parametrize("over", ["mean", "max"])
def test_the_score_is_the_mean_or_maximum_of_the_labels_probability(
    kind: str, over: Any, request: pytest.FixtureRequest
) -> None:
    folder, cells = request.getfixturevalue(kind), sheets()
    found = measure(Classify(model=str(folder), columns=dict(ALL), over=over, batch_size=2), cells)
    for row, cell in enumerate(cells):
        values = getattr(softmax(expected(folder, cell)), over)(axis=0)
        assert [found[column][row] for column in ALL] == pytest.approx(values, abs=1e-5)
    spread = np.ptp([found["p_watermark"], found["p_clean"]], axis=1)
    assert spread.max() > 0.05  # clips differ, so the test could tell them apart


def test_a_multi_label_model_judges_each_label_by_itself(multi: Path) -> None:
    cells = sheets()
    found = measure(Classify(model=str(multi), columns=dict(ALL)), cells)
    for row, cell in enumerate(cells):
        values = (1 / (1 + np.exp(-expected(multi, cell)))).mean(axis=0)
        assert [found[column][row] for column in ALL] == pytest.approx(values, abs=1e-5)
    assert not np.allclose(sum(np.array(found[column]) for column in ALL), 1, atol=0.05)


def test_several_labels_give_the_probability_of_any_of_them(model: Path, multi: Path) -> None:
    cells = sheets()
    for folder, together in ((model, np.add), (multi, np.maximum)):
        frames = [cell[:1] for cell in cells]
        columns: dict[str, str | list[str]] = {**ALL, "either": ["watermark", "nsfw"]}
        found = measure(Classify(model=str(folder), columns=columns), frames)
        either = together(found["p_watermark"], found["p_nsfw"])
        assert found["either"] == pytest.approx(either, abs=1e-6)


def test_a_score_does_not_depend_on_what_else_is_measured(model: Path) -> None:
    cells = sheets((3, 1, 4, 2, 3))
    stage = Classify(model=str(model), columns=dict(ALL))
    together = measure(stage, cells)
    for row, cell in enumerate(cells):
        assert {column: [values[row]] for column, values in together.items()} == measure(stage, [cell])
    small = measure(Classify(model=str(model), columns=dict(ALL), batch_size=1), cells)
    for column in ALL:
        assert small[column] == pytest.approx(together[column], abs=1e-5)


def test_a_score_does_not_depend_on_the_threads_that_an_engine_gives(model: Path) -> None:
    import torch

    before, seen = torch.get_num_threads(), []
    stage = Classify(model=str(model), columns=dict(ALL))
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            seen.append(measure(stage, sheets()))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert seen[0] == seen[1]


def test_a_clip_without_frames_is_unknown(model: Path) -> None:
    found = measure(Classify(model=str(model), columns={"w": "watermark"}), sheets((2, 0, 1)))
    assert [value is None for value in found["w"]] == [False, True, False]


def test_the_mark_depends_on_what_the_model_is_and_not_where_it_lies(model: Path, tmp_path: Path) -> None:
    columns: dict[str, str | list[str]] = {"w": "watermark"}
    here, moved = (Classify(model=str(place), columns=columns) for place in (model, tmp_path / "deep" / "vit"))
    shutil.copytree(model, tmp_path / "deep" / "vit")
    assert moved.mark({}) == here.mark({})
    assert Classify(model=str(model), columns=columns, batch_size=3, gpus=1).mark({}) == here.mark({})
    assert Classify(model=str(model), columns={"w": "nsfw"}).mark({}) != here.mark({})
    other = vit(tmp_path / "other" / "vit", seed=5)
    assert Classify(model=str(other), columns=columns).mark({}) != here.mark({})


def plan(folder: Path, *stages: str, keep: str = "") -> Plan:
    lines = "".join(f"    - {stage}\n" for stage in ("decode", *stages))
    (folder / "mine.yaml").write_text(f"p:\n  stages:\n{lines}{keep}")
    return load_plan("p", folder / "mine.yaml")


def test_one_pipeline_can_have_several_models(model: Path, multi: Path, tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        f"classify: {{model: {model}, columns: {{watermark_score: watermark}}}}",
        f"classify: {{model: {multi}, columns: {{nsfw_score: nsfw, odd: [nsfw, clean]}}, gpus: 0.5}}",
        keep="  keep: {watermark_score: {max: 0.5}, nsfw_score: {max: 0.2}}\n",
    )
    assert made.scores == ["watermark_score", "nsfw_score", "odd"]
    assert [step.stage.name for step in made.later] == ["classify(watermark_score)", "classify(nsfw_score,odd)"]
    assert [step.stage.needs.gpus for step in made.later] == [0.0, 0.5]
    assert [list(step.rules) for step in made.later] == [["watermark_score"], ["nsfw_score"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("columns: {w: watermrk}", "has no label 'watermrk'. Did you mean 'watermark'? Valid: clean, nsfw, watermark."),
        ("columns: {w: [nsfw, clear]}", "has no label 'clear'. Did you mean 'clean'?"),
        ("columns: {w-score: watermark}", "column 'w-score': use letters, digits and _"),
        ("columns: {class: watermark}", "column 'class': use letters"),
        ("columns: {caption: watermark}", "column 'caption' has another meaning in the table; name it caption_score"),
        ("columns: {frames: watermark}", "column 'frames' has another meaning"),
        ("columns: {bit_rate: watermark}", "column 'bit_rate' has another meaning"),
        ("columns: {}", "columns: dictionary should have at least 1 item"),
        ("columns: {w: watermark}, over: median", "over: input should be 'mean' or 'max', got 'median'"),
        ("colums: {w: watermark}", "unknown key 'colums'. Did you mean 'columns'?"),
        ("batch_size: 8", "'columns' is missing"),
    ],
)
def test_mistakes_are_said_with_their_place(arguments: str, says: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, f"classify: {{model: {model}, {arguments}}}")
    assert str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}:4:")
    assert says in str(caught.value)


def test_two_stages_cannot_write_one_column(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"writes 'w', which 'classify\(w\)' writes too"):
        plan(
            tmp_path,
            *(f"classify: {{model: {model}, columns: {columns}}}" for columns in ("{w: nsfw}", "{x: nsfw, w: nsfw}")),
        )


def test_missing_weights_are_said_before_any_work(model: Path, tmp_path: Path) -> None:
    columns = "columns: {w: watermark}"
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        shutil.rmtree(tmp_path / "vit", ignore_errors=True)
        shutil.copytree(model, tmp_path / "vit")
        (tmp_path / "vit" / name).unlink()
        with pytest.raises(MissingError, match=rf"stage 'classify\(w\)': no weights at .*{name}"):
            plan(tmp_path, f"classify: {{model: {tmp_path / 'vit'}, {columns}}}")
    with pytest.raises(MissingError, match=r"no weights at .*absent"):
        plan(tmp_path, f"classify: {{model: {tmp_path / 'absent'}, {columns}}}")


def test_weights_in_several_files_must_all_be_there(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    shutil.copytree(model, tmp_path / "vit", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForImageClassification.from_pretrained(model).save_pretrained(tmp_path / "vit", max_shard_size="10KB")
    stage = Classify(model=str(tmp_path / "vit"), columns={"w": "watermark"})
    whole = Classify(model=str(model), columns={"w": "watermark"})
    assert measure(stage, sheets()) == measure(whole, sheets())
    sorted((tmp_path / "vit").glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(UsageError, match=r"no weights at .*model-00002-of"):
        stage.check()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["ViTModel"]}, "no image classification model (its config.json says: ViTModel)"),
        ({"architectures": None}, "no image classification model (its config.json says: no architecture)"),
        ({"problem_type": "regression"}, "no image classification model (its config.json says: regression)"),
        ({"id2label": {"x": "y"}}, "is not the config of a transformers model"),
        ({"id2label": ["x"]}, "is not the config of a transformers model"),
        ({"id2label": None, "num_labels": 10**12}, "is not the config of a transformers model"),
    ],
)
def test_what_is_no_classifier_is_refused(change: dict[str, Any], says: str, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "vit")
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UsageError) as caught:
        Classify(model=str(tmp_path / "vit"), columns={"w": "watermark"}).check()
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "[]", "{", '{"architectures": ["ForImageClassification"], "id2label": 1}']
)
def test_a_config_that_makes_no_sense_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config\.json is not the config of a transformers model"):
        read_labels(str(tmp_path))


@pytest.mark.parametrize("over", ["mean", "max"])
def test_weights_that_give_no_number_leave_the_score_unknown(model: Path, over: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, tmp_path / "vit")
    file = tmp_path / "vit" / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.bias"] = np.full_like(tensors["classifier.bias"], np.nan)
    save_file(tensors, file, metadata={"format": "pt"})
    found = measure(Classify(model=str(tmp_path / "vit"), columns={"w": "watermark"}, over=over), sheets())
    assert found["w"] == [None] * 4


def test_labels_that_a_config_leaves_out_have_the_names_that_transformers_gives_them(
    model: Path, tmp_path: Path
) -> None:
    config = json.loads((model / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_labels(str(tmp_path)) == (["LABEL_0", "LABEL_1"], False)


def test_weights_without_a_head_are_refused_and_not_made_up(model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, tmp_path / "vit")
    weights = load_file(model / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, tmp_path / "vit" / "model.safetensors", metadata={"format": "pt"})
    stage = Classify(model=str(tmp_path / "vit"), columns={"w": "watermark"})
    stage.check()
    with pytest.raises(UsageError, match=r"lack classifier\.bias, classifier\.weight: it cannot classify"):
        stage.setup()


def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="asks for a GPU and this worker has none"):
        Classify(model=str(model), columns={"w": "watermark"}, gpus=1).setup()


def test_batches_across_clips_in_half_precision_give_nearly_the_same(model: Path) -> None:
    """What a GPU is given, computed by the CPU: batches are full, whatever clips their frames are of."""
    import torch

    cells = sheets((3, 1, 4, 2, 3))
    stage = Classify(model=str(model), columns=dict(ALL), batch_size=4)
    single = measure(stage, cells)
    shapes = []
    network = stage._model
    network.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(inputs["pixel_values"].shape[0]), with_kwargs=True
    )
    for dtype, within in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        stage.gpus, stage._dtype, stage._model = 1, dtype, network.to(dtype)
        found = Classify.process(stage, clip_rows(len(cells), frames=pa.array(cells, SHEET))).to_pydict()
        for column in ALL:
            assert found[column] == pytest.approx(single[column], abs=within)
    assert set(shapes) == {4}
    wide = sheets((3, 3))[::2] * 4  # 12 frames of one size
    shapes.clear()
    stage.process(clip_rows(4, frames=pa.array(wide, SHEET)))
    assert shapes == [4, 4, 4]


def test_the_command_line_refuses_an_unknown_label_with_status_2(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"p:\n  stages:\n    - decode\n    - classify: {{model: {model}, columns: {{w: watermrk}}}}\n"
    )
    command = [sys.executable, "-m", "curation.cli", "run", "p", "--config", "mine.yaml", "--input", "nothing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "mine.yaml:4:7: stage 'classify(w)': the model" in done.stderr
    assert "Did you mean 'watermark'?" in done.stderr
    assert not (tmp_path / "cutroom-out").exists()


def test_a_run_scores_clips_and_judges_them(
    model: Path, multi: Path, footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "vit")
    shutil.copytree(multi, tmp_path / "multi")
    (tmp_path / "mine.yaml").write_text(
        "p:\n  stages:\n    - decode\n"
        "    - classify: {model: ./vit, columns: {watermark_score: watermark}}\n"
        "    - classify: {model: ./multi, columns: {nsfw_score: nsfw}}\n"
        "  keep: {watermark_score: {max: 1}, nsfw_score: {max: -1}}\n"
    )
    arguments: dict[str, Any] = {"config": "mine.yaml", "engine": "local", "shards": False}
    summary = run("p", [str(footage / "hard_cuts.mp4")], "out", **arguments)
    assert summary.rejected_by == {"nsfw_score": summary.clips["rejected"]}
    store = Store("out")
    rows = store.clips().to_pylist()
    assert len(rows) >= 2
    cells: dict[str, list[dict[str, Any]]] = {row["clip_id"]: [] for row in rows}
    for _, table in store.parts("frames"):
        for frame in table.to_pylist():
            cells[frame["clip_id"]].append(frame)
    for row in rows:
        expected_score = softmax(expected(model, cells[row["clip_id"]])).mean(axis=0)[LABELS.index("watermark")]
        assert row["watermark_score"] == pytest.approx(expected_score, abs=1e-5)
        assert 0 < row["nsfw_score"] < 1
    again = run("p", [str(footage / "hard_cuts.mp4")], "out", **arguments)
    assert again.metrics.get("videos_decoded", 0) == 0
