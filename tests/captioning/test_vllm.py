"""vLLM in the workers of a stage: against a stub of its API, because vLLM itself needs GPUs of its own make."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from captioning.requests import Reply, Request, Sampling
from captioning.stages import Caption, FrameCaptions, ShortCaption
from captioning.vllm import Vllm, VllmBackend, _opened, engine_arguments
from curation.config import load_plan
from curation.engine import EngineName
from curation.errors import ConfigError, StageError, UsageError
from curation.run import run
from curation.stage import Needs
from curation.table import Store
from tests.captioning import tiny
from tests.captioning.server import coded_film, coded_picture

STUB = Path(__file__).parent / "stub"
ROOT = Path(__file__).parents[2]
CLIP_S = 0.5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "qwen": tiny.qwen2_5_vl(folder / "qwen"),
        "llava": tiny.llava(folder / "llava"),
        "llama": tiny.llama(folder / "llama"),
    }


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Puts the stub where vLLM would be; the file gets what it was given."""
    monkeypatch.syspath_prepend(str(STUB))
    monkeypatch.setenv("VLLM_STUB_LOG", str(tmp_path / "log.jsonl"))
    monkeypatch.setenv("PYTHONPATH", f"{STUB}{os.pathsep}{ROOT}")  # of processes that are started
    _opened.cache_clear()
    yield tmp_path / "log.jsonl"
    _opened.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]


def entries(log: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
    return [line for line in lines if kind in line]


def question(*numbers: int, video: bool = False, max_tokens: int = 40, prompt: str = "Which?") -> Request:
    """About pictures that show these numbers."""
    jpegs = tuple(cv2.imencode(".jpg", coded_picture(number))[1].tobytes() for number in numbers)
    times = tuple(0.5 * i for i in range(len(numbers)))
    return Request(prompt=prompt, images=jpegs, times=times, video=video, max_tokens=max_tokens)


def backend(model: Path, settings: Vllm | None = None, *, batch_size: int | None = None, **how: Any) -> VllmBackend:
    return VllmBackend(str(model), settings or Vllm(), gpus=1, sampling=Sampling(**how), batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [None, 7])
def test_answers_go_to_their_questions(models: dict[str, Path], log: Path, batch_size: int | None) -> None:
    answers = dict(backend(models["qwen"], batch_size=batch_size).ask([question(i) for i in range(20)]))
    assert [answers[i].text for i in range(20)] == [f"number {i}" for i in range(20)]  # type: ignore[union-attr]
    assert len(entries(log, "asked")) == 20


def test_a_model_is_asked_in_the_words_and_pictures_of_transformers(models: dict[str, Path], log: Path) -> None:
    asked = [question(1, 2, 3, video=True, prompt="Which<|im_end|>?"), question(1, 2), question()]
    list(backend(models["qwen"]).ask(asked))
    begin, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    video, images, nothing = sorted(entries(log, "asked"), key=lambda entry: (*sorted(entry["seen"]), ""), reverse=True)
    assert video["asked"] == f"{begin}<|vision_start|><|video_pad|><|vision_end|>Which< |im_end|>?{end}"
    assert (video["seen"], video["said"]) == ({"video": 1}, "number 1; number 2; number 3")
    assert video["kwargs"] == {"fps": 2.0, "do_sample_frames": False}
    assert images["asked"] == f"{begin}{'<|vision_start|><|image_pad|><|vision_end|>' * 2}Which?{end}"
    assert (images["seen"], images["kwargs"]) == ({"image": 2}, None)
    assert nothing["asked"] == f"{begin}Which?{end}"


def test_frames_are_pictures_where_the_model_takes_no_video(models: dict[str, Path], log: Path) -> None:
    ((_, reply),) = backend(models["llava"]).ask([question(1, 2, video=True)])
    (entry,) = entries(log, "asked")
    assert entry["seen"] == {"image": 2}
    assert entry["asked"].count("<s>") == 1, "the sign that begins a text stands there twice"
    assert isinstance(reply, Reply)
    assert reply.text == "number 1; number 2"


def test_tokens_are_counted_and_a_cut_is_said(models: dict[str, Path], log: Path) -> None:
    whole, cut = (reply for _, reply in backend(models["qwen"]).ask([question(7), question(7, max_tokens=2)]))
    assert isinstance(whole, Reply)
    assert isinstance(cut, Reply)
    assert (whole.cut_off, cut.cut_off) == (False, True)
    assert cut.completion_tokens == 2 < (whole.completion_tokens or 0)
    assert whole.prompt_tokens == cut.prompt_tokens
    assert (whole.prompt_tokens or 0) > 10, "the picture's tokens are not counted"


@pytest.mark.parametrize("keeps", [False, True], ids=["aborts", "keeps"])
def test_a_question_that_is_refused_fails_alone(
    models: dict[str, Path], log: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    """Also where the engine goes on with the questions that came before it."""
    monkeypatch.setenv("VLLM_STUB_REFUSES", "number 5")
    if keeps:
        monkeypatch.setenv("VLLM_STUB_KEEPS", "1")
    asked = [question(i) for i in range(11)]
    asked[8] = Request(prompt="Which?", images=(b"\xff\xd8torn",), times=(0.0,))
    asked[9] = question(9, prompt="Which? " * 300)
    answers = dict(backend(models["qwen"], Vllm(max_model_len=600)).ask(asked))
    assert sorted(answers) == list(range(11))
    good = {i: reply.text for i, reply in answers.items() if isinstance(reply, Reply)}
    assert good == {i: f"number {i}" for i in range(11) if i not in (5, 8, 9)}
    assert "refuses number 5" in str(answers[5])
    assert "longer than the maximum model length of 600" in str(answers[9])


def test_an_engine_that_died_ends_the_run_and_blames_no_clip(
    models: dict[str, Path], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_STUB_DIES", "number 5")
    with pytest.raises(StageError, match="engine has died: EngineDeadError"):
        list(backend(models["qwen"]).ask([question(i) for i in range(11)]))


def test_what_is_drawn_depends_on_the_question_and_the_seed_alone(models: dict[str, Path], log: Path) -> None:
    asked = [question(i) for i in range(4)]
    for batch_size, seed in ((4, 0), (2, 0), (4, 1)):
        list(backend(models["qwen"], temperature=0.7, seed=seed, batch_size=batch_size).ask(asked))
    drawn = [{entry["said"]: entry["sampling"]["seed"] for entry in part} for part in _parts(entries(log, "asked"), 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0].values())) == 4
    list(backend(models["qwen"], seed=3).ask(asked[:1]))
    assert entries(log, "asked")[-1]["sampling"] == {"temperature": 0.0, "max_tokens": 40, "seed": None}


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def test_deterministic_asks_one_by_one_and_remembers_nothing(models: dict[str, Path], log: Path) -> None:
    backend_ = backend(models["qwen"], deterministic=True)
    calls: list[int] = []
    generate = backend_._engine.generate
    backend_._engine.generate = lambda prompts, *rest, **how: (
        calls.append(len(prompts)) or generate(prompts, *rest, **how)
    )
    list(backend_.ask([question(i) for i in range(3)]))
    assert calls == [1, 1, 1]
    assert entries(log, "engine")[0]["engine"]["enable_prefix_caching"] is False


def test_an_engine_takes_the_gpus_of_its_worker_and_no_foreign_code() -> None:
    half = engine_arguments("org/name", Vllm(gpu_memory_utilization=0.8), gpus=0.5, deterministic=False)
    assert (half["tensor_parallel_size"], half["gpu_memory_utilization"]) == (1, 0.4)
    assert (half["dtype"], half["trust_remote_code"], half["model"]) == ("bfloat16", False, "org/name")
    assert not {"max_model_len", "distributed_executor_backend"} & set(half)
    four = engine_arguments("org/name", Vllm(max_model_len=8192), gpus=4, deterministic=False)
    assert (four["tensor_parallel_size"], four["gpu_memory_utilization"]) == (4, 0.9)
    assert (four["max_model_len"], four["distributed_executor_backend"]) == (8192, "mp")


def test_stages_share_a_worker_only_with_the_same_engine() -> None:
    frames = FrameCaptions(model="a/b", vllm=Vllm(), gpus=1)
    short = ShortCaption(model="a/b", vllm=Vllm(), gpus=1)
    other = Caption(model="c/d", vllm=Vllm(), gpus=1)
    assert frames.needs == short.needs != other.needs
    assert frames.needs != FrameCaptions(model="a/b", gpus=1).needs == Needs(gpus=1)
    assert (frames.needs.gpus, pickle.loads(pickle.dumps(frames)).needs) == (1, frames.needs)


def test_captions_of_transformers_are_kept_when_vllm_goes_on(models: dict[str, Path]) -> None:
    model = str(models["llama"])
    here, there = Caption(model=model), Caption(model=model, vllm=Vllm(), gpus=1)
    longer = Caption(model=model, vllm=Vllm(max_model_len=4096), gpus=1)
    assert here.mark({}) == there.mark({}) != longer.mark({})


def test_mistakes_are_said_before_any_work(models: dict[str, Path], log: Path) -> None:
    model = str(models["llama"])
    Caption(model=model, vllm=Vllm(), gpus=0.5).check()
    for gpus, why in ((0.0, "needs GPUs; say gpus: 1"), (1.5, "among whole GPUs; say 1 or 2")):
        with pytest.raises(UsageError, match=why):
            Caption(model=model, vllm=Vllm(), gpus=gpus).check()
    with pytest.raises(UsageError, match="asked through a function"):
        Caption(model="tests.captioning.scripted:read", vllm=Vllm(), gpus=1).check()
    with pytest.raises(UsageError, match="reads only text"):
        FrameCaptions(model=model, vllm=Vllm(), gpus=1).check()
    assert "vllm" not in sys.modules, "a check has loaded it"


def pipeline(path: Path, models: dict[str, Path], *, gpus: float = 0.5, more: str = "") -> Path:
    """Version 1 by two models."""
    seeing, writing = (f"model: {models[name]}, vllm: {{{more}}}, gpus: {gpus}" for name in ("qwen", "llama"))
    decode = f"decode: {{detector: none, max_clip_s: {CLIP_S}, grid_s: {CLIP_S}, sheet_fps: 4, isolate: false}}"
    stages = [
        decode,
        f"frame_captions: {{{seeing}, max_frames: 2}}",
        f"short_caption: {{{seeing}}}",
        f"caption: {{{writing}}}",
    ]
    path.write_text("told:\n  stages:\n" + "".join(f"    - {stage}\n" for stage in stages))
    return path


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for i in range(3):
        coded_film(folder / f"{i:03d}.mp4", 1000 * i, num_clips=6, clip_s=CLIP_S)
    return folder


def number(row: dict[str, Any]) -> int:
    """The number that is shown in a clip."""
    return int(Path(row["video"]).stem) * 1000 + round(row["start_s"] / CLIP_S)


# In a process of its own, because Ray stays up in the process that started it. One GPU, for which Ray takes our word.
RUN = """
import sys, ray
from curation.run import run
engine, footage, output, config = sys.argv[1:]
if engine == "ray":
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
run("told", [footage], output, config=config, engine=engine, shards=False)
"""


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_nobodys_caption_goes_to_another_clip(
    models: dict[str, Path], footage: Path, tmp_path: Path, log: Path, engine: EngineName
) -> None:
    config = pipeline(tmp_path / "p.yaml", models)
    asked = [sys.executable, "-c", RUN, engine, str(footage), str(tmp_path / "out"), str(config)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    rows = Store(tmp_path / "out").clips().to_pylist()
    assert len(rows) == 18
    for row in rows:
        token = f"number {number(row)}"
        assert row["status"] == "kept", row["error"]
        assert [frame["text"] for frame in row["frame_captions"]] == [token] * 2
        assert (row["short_caption"], row["caption"], row["caption_version"]) == (token, token, "v1")
        assert row["caption_model"].startswith("llama#")
        assert row["frame_captions_usage"]["calls"] == 2
        assert row["short_caption_usage"]["prompt_tokens"] > 0
        assert not row["caption_usage"]["cut_off"]
    engines = entries(log, "engine")
    assert len(engines) == 2, "stages that ask the same model have not shared an engine"
    assert {entry["engine"]["gpu_memory_utilization"] for entry in engines} == {0.45}
    assert len({entry["pid"] for entry in engines}) == (1 if engine == "local" else 2)
    assert len(entries(log, "asked")) == 18 * 4


def test_a_refused_clip_is_a_row_with_its_reason_and_is_not_asked_again(
    models: dict[str, Path], footage: Path, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_STUB_REFUSES", "number 1002")
    config = pipeline(tmp_path / "p.yaml", models)
    for _ in range(2):
        summary = run("told", [str(footage)], tmp_path / "out", config=str(config), engine="local", shards=False)
        assert (summary.clips["kept"], summary.clips["failed"], summary.num_waiting) == (17, 1, 0)
    (failed,) = [row for row in Store(tmp_path / "out").clips().to_pylist() if row["status"] == "failed"]
    assert number(failed) == 1002
    assert failed["error"] == "frame_captions: ValueError: the stub refuses number 1002"
    assert len(entries(log, "asked")) == 17 * 4, "the second run has asked again"


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="it is not missing")
def test_a_missing_package_is_said_with_its_place_before_any_work(models: dict[str, Path], tmp_path: Path) -> None:
    config = pipeline(tmp_path / "p.yaml", models)
    with pytest.raises(ConfigError, match=r"p\.yaml:4:.*the package vllm, not installed here: pip install vllm"):
        load_plan("told", config)
    command = ["run", "told", "--input", str(tmp_path), "--output", str(tmp_path / "out"), "--config", str(config)]
    done = subprocess.run(
        [sys.executable, "-m", "curation.cli", *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "pip install vllm" in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()
