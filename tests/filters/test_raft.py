"""Motion by RAFT: against torchvision's own, with known fields in its place, and what is said before work starts."""

from __future__ import annotations

import pickle
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from curation.cli import main
from curation.config import load_plan
from curation.errors import ConfigError, MissingError, StageError, UsageError
from curation.frames import PACKED
from curation.model_files import MissingWeightsError
from curation.run import chains, run
from curation.stage import run_stage
from curation.table import Store
from filters import raft
from filters.classify import torch_threads
from filters.motion import Motion
from filters.raft import Raft
from tests.captioning.server import coded_film
from tests.filters.tiny import raft_weights
from tests.helpers import batch_for, moving_frames


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    return {name: str(raft_weights(folder / f"{name}.pth", name)) for name in raft.NAMES}


def pictures(count: int, width: int, height: int, seed: int = 0) -> np.ndarray:
    """T H W 3, of soft noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, height // 8, width // 8, 3), np.uint8)
    return np.stack([cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC) for picture in noise])


def by_torchvision(file: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """What the flow H W 2 between two pictures is, by torchvision's model and its own way to prepare pictures."""
    from torchvision.models import optical_flow

    model = getattr(optical_flow, Path(file).stem)()
    model.load_state_dict(torch.load(file, weights_only=True))
    prepare = optical_flow.Raft_Small_Weights.DEFAULT.transforms()
    tensors = (torch.from_numpy(picture.transpose(2, 0, 1)[None].copy()) for picture in (before, after))
    both = prepare(*tensors)
    with torch.inference_mode(), torch_threads(1):  # as many as ours: others add up in another order
        flow: np.ndarray = model.eval()(*both)[-1][0].permute(1, 2, 0).numpy()
    return flow


@pytest.mark.slow
@pytest.mark.parametrize("name", raft.NAMES)
def test_flow_is_that_of_torchvision(weights: dict[str, str], name: str) -> None:
    frames, pairs = pictures(4, 136, 128), [(0, 1), (2, 3), (3, 0)]
    model = Raft(weights[name], gpu=False, threads=1)
    expected = np.stack([by_torchvision(weights[name], frames[first], frames[last]) for first, last in pairs])
    largest = np.abs(expected).max()
    assert largest > 0.1
    alone = list(model.flows(frames, pairs, batch_size=1))
    np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-5)
    together = list(model.flows(frames, pairs, batch_size=2))  # adds up in another order, twelve times over
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize(("width", "height"), [(136, 66), (130, 131)])
def test_pictures_of_any_size_are_filled_up_with_their_edges(weights: dict[str, str], width: int, height: int) -> None:
    frames = pictures(2, width, height)
    (found,) = Raft(weights["raft_small"], gpu=False, threads=1).flows(frames, [(0, 1)], batch_size=4)
    fill = ((0, 0), (0, (128 if height < 128 else 136) - height), (0, 136 - width), (0, 0))
    whole = by_torchvision(weights["raft_small"], *np.pad(frames, fill, mode="edge"))
    np.testing.assert_allclose(found, whole[:height, :width], rtol=1e-5, atol=1e-5)


def test_a_score_is_that_of_torchvision(weights: dict[str, str]) -> None:
    stage = Motion(flow="raft", weights=weights["raft_small"])
    stage.setup()
    frames = pictures(2, 384, 216)
    score = stage.score(frames, np.array([1.0, 1.125]))
    flow = by_torchvision(weights["raft_small"], *frames)
    cells = flow.reshape(27, 8, 48, 8, 2).mean(axis=(1, 3))  # in pixels of the large picture
    lengths = np.sort(np.hypot(cells[..., 0], cells[..., 1]).ravel()) / 216 / 0.125
    assert score["motion_score"] == pytest.approx(lengths[len(lengths) // 2], rel=1e-5)
    assert score["motion_p90"] == pytest.approx(lengths[int(0.9 * (len(lengths) - 1))], rel=1e-5)


def moving(monkeypatch: pytest.MonkeyPatch, along: float, down: float, *, fps: float = 8.0) -> Motion:
    """A stage whose network sees everything move at so many frame heights a second."""

    def flows(self: Raft, frames: np.ndarray, pairs: Sequence[Any], *, batch_size: int) -> Iterator[np.ndarray]:
        height, width = frames.shape[1:3]
        for first, last in pairs:
            step_px = height * (last - first) / fps
            yield np.full((height, width, 2), (along * step_px, down * step_px), np.float32)

    monkeypatch.setattr(Raft, "__init__", lambda self, weights, gpu, threads: None)
    monkeypatch.setattr(Raft, "flows", flows)
    stage = Motion(flow="raft", weights="raft_small")
    stage.setup()
    return stage


@pytest.mark.parametrize(("width", "height"), [(384, 216), (216, 384), (384, 161), (384, 288)])
@pytest.mark.parametrize(("along", "down"), [(0.02, 0.0), (0.3, -0.4), (-2.0, 0.0)])
def test_a_known_field_has_its_speed_in_frame_heights_per_second(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int, along: float, down: float
) -> None:
    frames = pictures(17, width, height)
    score = moving(monkeypatch, along, down).score(frames, np.arange(17) / 8)
    speed = np.hypot(along, down)
    for name in ("motion_score", "motion_p90", "camera_speed"):
        assert score[name] == pytest.approx(speed, rel=0.02), name
    assert score["object_motion"] == pytest.approx(0, abs=0.01)
    expected = {(0.02, 0.0): {"pan_left"}, (0.3, -0.4): {"pan_left", "tilt_down"}, (-2.0, 0.0): {"pan_right"}}
    assert set(score["camera_motion"]) == expected[along, down]


def test_a_speed_is_over_the_true_time_between_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = pictures(17, 384, 216)
    score = moving(monkeypatch, 0.5, 0.0, fps=6.0).score(frames, np.arange(17) / 6)
    assert score["motion_score"] == pytest.approx(0.5, rel=1e-5)


def test_what_stands_still_is_still_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.repeat(pictures(1, 384, 216), 17, axis=0)
    score = moving(monkeypatch, 0.0, 0.0).score(frames, np.arange(17) / 8)
    assert (score["motion_score"], score["still_share"], score["camera_motion"]) == (0.0, 1.0, ["static"])
    small = np.stack([cv2.cvtColor(cv2.resize(frame, (96, 54)), cv2.COLOR_RGB2GRAY) for frame in frames])
    assert Motion().score(small, np.arange(17) / 8)["still_share"] == 1.0


@pytest.mark.parametrize("shape", [(1, 216, 384, 3), (17, 56, 384, 3), (17, 384, 63, 3)])
def test_too_few_frames_and_strips_are_unknown(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    frames = np.zeros(shape, np.uint8)
    assert set(moving(monkeypatch, 1.0, 0.0).score(frames, np.arange(len(frames)) / 8).values()) == {None}


def test_it_keeps_the_contract_of_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tests/test_stages.py has it for the stage with its defaults."""
    stage = moving(monkeypatch, 0.25, 0.0)
    batch = batch_for(stage, 3)
    (column,) = stage.inputs
    assert column == "frames_8fps_384px_rgb"
    assert run_stage(stage, batch_for(stage, 0), mark="m@1").num_rows == 0
    good = run_stage(stage, batch, mark="m@1")
    values = batch[column].to_pylist()
    broken = batch.set_column(
        batch.schema.get_field_index(column), batch.schema.field(column), pa.array([values[0], None, values[2]], PACKED)
    )
    done = run_stage(stage, broken, mark="m@1")
    assert done["status"].to_pylist() == ["kept", "failed", "kept"]
    for name in stage.writes.names:
        assert done[name].to_pylist() == [good[name][0].as_py(), None, good[name][2].as_py()]


def test_it_pickles_and_measures_the_same_afterwards(weights: dict[str, str]) -> None:
    stage = Motion(flow="raft", weights=weights["raft_small"])
    copy = pickle.loads(pickle.dumps(stage))
    frames, times = moving_frames(stage.frames, count=3)
    scores = []
    for one in (stage, copy):
        one.setup()
        scores.append(one.score(frames, times))
    assert scores[0] == scores[1]
    assert copy.mark({}) == stage.mark({})


def test_weights_that_give_no_numbers_cost_the_clip(tmp_path: Path) -> None:
    file = raft_weights(tmp_path / "raft_small.pth", "raft_small")
    state = torch.load(file, weights_only=True)
    state["update_block.flow_head.conv2.bias"][:] = 3e38
    torch.save(state, file)
    stage = Motion(flow="raft", weights=str(file))
    stage.check()
    stage.setup()
    with pytest.raises(ValueError, match="give no numbers"):
        stage.score(pictures(2, 384, 216), np.array([0.0, 0.125]))


def test_weights_that_are_no_numbers_are_said_before_work(tmp_path: Path) -> None:
    file = raft_weights(tmp_path / "raft_small.pth", "raft_small")
    state = torch.load(file, weights_only=True)
    state["update_block.flow_head.conv2.bias"][:] = np.nan
    torch.save(state, file)
    with pytest.raises(UsageError, match=r"raft_small\.pth holds weights that are no numbers"):
        raft.check(str(file))


@pytest.mark.parametrize("content", [b"", b"half a file", b"PK\x03\x04"])
def test_a_damaged_download_is_named_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "raft_small_C_T_V2-01064c6d.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    for ask in (raft.check, lambda weights: Raft(weights, gpu=False, threads=1)):
        with pytest.raises(UsageError) as caught:
            ask("raft_small")
        assert f"{file} is damaged" in str(caught.value)
        assert str(caught.value).endswith(": delete it")


def test_a_download_that_is_torn_or_of_another_file_is_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    there = tmp_path / "raft_small_C_T_V2-01064c6d.pth"
    there.write_bytes(b"PK\x03\x04 half of it")
    monkeypatch.setattr(raft, "_url", lambda _: there.as_uri())
    with pytest.raises(MissingWeightsError) as caught:
        Raft("raft_small", gpu=False, threads=1)
    place = tmp_path / "hub" / "checkpoints" / there.name
    assert f"{there.as_uri()} gave: RuntimeError: invalid hash value" in str(caught.value)
    assert f"put it at {place}, or give the path of a copy" in str(caught.value)
    assert not place.exists()


def test_names_that_are_no_text_are_no_state_dict(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(1)}, tmp_path / "numbers.pth")
    with pytest.raises(UsageError, match="is no state dict of torchvision's"):
        raft.check(str(tmp_path / "numbers.pth"))


def test_a_file_that_holds_more_than_tensors_is_not_opened(tmp_path: Path) -> None:
    torch.save({"weight": Path("anything")}, tmp_path / "more.pth")
    with pytest.raises(UsageError, match=r"holds more than tensors; it is not opened$"):
        raft.check(str(tmp_path / "more.pth"))


def test_every_batch_is_a_sign_of_life(weights: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    signs: list[int] = []
    monkeypatch.setattr(raft, "alive", lambda: signs.append(1))
    frames = pictures(2, 128, 128)
    model = Raft(weights["raft_small"], gpu=False, threads=1)
    assert len(list(model.flows(frames, [(0, 1)] * 5, batch_size=2))) == 5
    assert len(signs) == 3


def test_the_key_of_dis_is_what_it_was_and_that_of_raft_is_its_weights(weights: dict[str, str], tmp_path: Path) -> None:
    assert Motion().mark({}) == "motion@862b43b02f", "tables of version 5 would be measured again"
    assert Motion(flow="dis", threads=3).mark({}) == Motion().mark({})
    small, large = (Motion(flow="raft", weights=weights[name]) for name in ("raft_small", "raft_large"))
    assert len({stage.mark({}) for stage in (Motion(), small, large)}) == 3
    (tmp_path / "raft_small.pth").write_bytes(Path(weights["raft_small"]).read_bytes())
    elsewhere = Motion(flow="raft", weights=str(tmp_path / "raft_small.pth"), batch_size=9, gpus=0.5)
    assert elsewhere.mark({}) == small.mark({})
    assert Motion(flow="raft", weights="raft_small").settings()["weights"] == "raft_small_C_T_V2-01064c6d.pth"


def pipeline(path: Path, arguments: str, keep: str = "{}") -> Path:
    decode = "decode: {detector: none}"
    path.write_text(f"moves:\n  stages:\n    - {decode}\n    - motion: {{{arguments}}}\n  keep: {keep}\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("flow: raft", "flow: raft needs weights: raft_large, raft_small, or the path of a state dict"),
        ("weights: raft_small", "weights and gpus are for flow: raft"),
        ("gpus: 1", "weights and gpus are for flow: raft"),
        ("flow: rafft, weights: raft_small", "flow: input should be 'dis' or 'raft', got 'rafft'"),
    ],
)
def test_a_mistake_is_said_with_its_place(tmp_path: Path, arguments: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_plan("moves", pipeline(tmp_path / "p.yaml", arguments))
    assert str(caught.value).startswith(f"{tmp_path}/p.yaml:4:")
    assert message in str(caught.value)


@pytest.mark.parametrize("given", ["absent.pth", "raft_tiny", ""])
def test_weights_that_are_not_there_are_said_before_work(tmp_path: Path, given: str) -> None:
    where = tmp_path / given if "." in given or not given else given
    config = pipeline(tmp_path / "p.yaml", f"flow: raft, weights: {where}")
    with pytest.raises(MissingError, match=r"p\.yaml:4:\d+: stage 'motion': no file of weights at .*"):
        load_plan("moves", config)


def test_check_says_that_weights_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked: list[urllib.request.Request] = []

    def offline(request: urllib.request.Request, timeout: float) -> None:
        asked.append(request)
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    config = pipeline(tmp_path / "p.yaml", "flow: raft, weights: raft_small")
    monkeypatch.setattr(sys, "argv", ["cutroom", "check", "moves", "--config", str(config)])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert f"{config}:4:7: stage 'motion': " in said
    assert "the weights raft_small are not on this machine" in said
    assert "no route" in said
    assert f"put it at {tmp_path}/hub/checkpoints/raft_small_C_T_V2-01064c6d.pth" in said
    assert [request.get_method() for request in asked] == ["HEAD"]
    raft_weights(tmp_path / "hub" / "checkpoints" / "raft_small_C_T_V2-01064c6d.pth", "raft_small")
    assert load_plan("moves", config).dense[0].stage.name == "motion"
    assert len(asked) == 1, "what is here is not asked for"


@pytest.mark.parametrize("content", [b"nothing", None], ids=["no file of torch", "of another model"])
def test_a_file_that_is_not_rafts_is_said_before_work(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "other.pth"
    if content is None:
        torch.save({"layer.weight": torch.zeros(2)}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="no state dict"):
        load_plan("moves", pipeline(tmp_path / "p.yaml", f"flow: raft, weights: {file}"))


def test_safetensors_are_read_too(weights: dict[str, str], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(torch.load(weights["raft_small"], weights_only=True), tmp_path / "raft.safetensors")
    Motion(flow="raft", weights=str(tmp_path / "raft.safetensors")).check()


def test_workers_that_decode_reserve_the_gpu(weights: dict[str, str], tmp_path: Path) -> None:
    plan = load_plan("moves", pipeline(tmp_path / "p.yaml", f"flow: raft, weights: {weights['raft_small']}, gpus: 0.5"))
    ((first, *_),) = chains(plan, Store(tmp_path), str(tmp_path), False)
    assert (first.needs.gpus, first.needs.cpus, plan.decode.stage.needs.gpus) == (0.5, 1.0, 0.0)
    plain = load_plan("moves", pipeline(tmp_path / "p.yaml", ""))
    assert plain.decode_needs == plain.decode.stage.needs


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_stops_the_run(weights: dict[str, str]) -> None:
    stage = Motion(flow="raft", weights=weights["raft_small"], gpus=1)
    stage.check()
    with pytest.raises(StageError, match="asks for a GPU and this worker has none"):
        stage.setup()


@pytest.mark.slow
def test_a_run_measures_and_judges_by_raft(weights: dict[str, str], tmp_path: Path) -> None:
    """In the process that decodes, which is stopped when it shows no sign of life."""
    coded_film(tmp_path / "film.mp4", 7, num_clips=2)
    config = pipeline(tmp_path / "p.yaml", f"flow: raft, weights: {weights['raft_small']}", "{motion_score: {max: 0}}")
    summary = run("moves", [str(tmp_path / "film.mp4")], tmp_path / "out", config=str(config), engine="local")
    assert summary.rejected_by == {"motion_score": 1}
    (row,) = Store(tmp_path / "out").clips().to_pylist()
    assert (row["error"], row["reason"]) == (None, "motion_score")
    assert row["motion_score"] > 0
    assert row["motion_p90"] >= row["motion_score"]


def test_an_unreadable_argument_is_no_state_dict(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file of weights"):
        raft.check(str(tmp_path))
