"""Models of transformers in this process and behind their own server, of the real classes and tiny."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from captioning import local
from captioning.local import LocalBackend, check
from captioning.requests import Reply, Request, Sampling
from captioning.stages import Caption, FrameCaptions, ShortCaption
from curation.config import load_plan
from curation.errors import ConfigError, StageError, UsageError
from curation.run import run
from curation.table import Store
from tests.captioning import tiny
from tests.captioning.server import coded_film

VIDEO = "Describe the video."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "llava": tiny.llava(folder / "llava"),
        "qwen": tiny.qwen2_5_vl(folder / "qwen"),
        "llama": tiny.llama(folder / "llama"),
    }


def questions(count: int) -> list[Request]:
    """Of one to three pictures, and prompts of several lengths."""
    return [
        Request(
            prompt=VIDEO * (i % 2 + 1),
            images=tuple(tiny.jpeg(3 * i + k) for k in range(i % 3 + 1)),
            times=tuple(k / 2 for k in range(i % 3 + 1)),
            max_tokens=6 + i % 3,
        )
        for i in range(count)
    ]


def backend(model: Path, sampling: Sampling | None = None, *, batch_size: int = 1) -> LocalBackend:
    return LocalBackend(str(model), gpu=False, batch_size=batch_size, sampling=sampling or Sampling())


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_batches_answer_as_single_questions_do(models: dict[str, Path], name: str) -> None:
    asked = questions(7)
    together = dict(backend(models[name], batch_size=4).ask(asked))
    alone = dict(backend(models[name], Sampling(deterministic=True), batch_size=4).ask(asked))
    assert together == alone
    assert sorted(together) == list(range(7))
    texts = {reply.text for reply in together.values() if isinstance(reply, Reply)}
    assert len(texts) > 3, "the model says the same whatever it sees"


def test_a_question_that_cannot_be_answered_fails_alone(models: dict[str, Path]) -> None:
    asked = questions(5)
    asked[2] = Request(prompt=VIDEO, images=(b"\xff\xd8torn",), times=(0.0,), max_tokens=6)
    answers = dict(backend(models["qwen"], batch_size=5).ask(asked))
    assert [i for i, answer in answers.items() if isinstance(answer, Exception)] == [2]
    assert len(answers) == 5


def test_a_question_longer_than_the_model_reads_fails_alone(models: dict[str, Path]) -> None:
    long = Request(prompt="word " * 3000, max_tokens=6)
    answers = dict(backend(models["llama"], batch_size=2).ask([Request(prompt=VIDEO, max_tokens=6), long]))
    assert isinstance(answers[0], Reply)
    assert "more than the 2048 that the model reads" in str(answers[1])


def test_what_is_drawn_depends_on_the_seed(models: dict[str, Path]) -> None:
    def said(seed: int) -> str:
        drawing = backend(models["llama"], Sampling(temperature=1.0, seed=seed))
        ((_, reply),) = drawing.ask([Request(prompt=VIDEO, max_tokens=12)])
        assert isinstance(reply, Reply)
        return reply.text

    assert said(0) == said(0)
    assert len({said(seed) for seed in range(4)}) > 1


def test_mistakes_are_said_before_any_work(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="reads only text"):
        FrameCaptions(model=str(models["llama"])).check()
    with pytest.raises(UsageError, match="takes pictures and no video; say see: images"):
        ShortCaption(model=str(models["llava"])).check()
    ShortCaption(model=str(models["llava"]), see="images").check()
    with pytest.raises(UsageError, match=r"config\.json"):
        Caption(model=str(tmp_path)).check()
    without = tiny.llama(tmp_path / "without")
    (without / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        check(str(without), video=False, pictures=False)


def test_damaged_weights_and_a_gpu_that_is_not_there_stop_the_run(tmp_path: Path, models: dict[str, Path]) -> None:
    damaged = tiny.llama(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(StageError, match="damaged"):
        Caption(model=str(damaged)).setup()
    with pytest.raises(StageError, match="asks for a GPU"):
        Caption(model=str(models["llama"]), gpus=1.0).setup()


def test_a_gpu_that_fails_stops_the_run_and_no_question_is_blamed(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, made = questions(4), 0

    def generate(model: object, processor: object, requests: list[Request], **options: object) -> list[Reply]:
        nonlocal made
        made += 1
        if made > 1:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return [Reply(text="seen")] * len(requests)

    monkeypatch.setattr(local, "generate", generate)
    answers = backend(models["llama"], batch_size=2).ask(asked)
    assert [isinstance(answer, Reply) for _, answer in (next(answers), next(answers))] == [True, True]
    with pytest.raises(StageError, match=r"the GPU has failed.*device-side assert"):
        next(answers)
    assert made == 2, "the batch was divided, and asked of a GPU that answers no more"


def pipeline(path: Path, stages: list[str]) -> Path:
    decode = "decode: {detector: none, max_clip_s: 0.5, grid_s: 0.5, sheet_fps: 4, isolate: false}"
    path.write_text("said:\n  stages:\n" + "".join(f"    - {stage}\n" for stage in [decode, *stages]))
    return path


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for i in range(2):
        coded_film(folder / f"{i:03d}.mp4", 1000 * i, num_clips=3)
    return folder


@pytest.mark.parametrize("seeing", ["llava", "qwen"])
def test_version_1_end_to_end(models: dict[str, Path], footage: Path, tmp_path: Path, seeing: str) -> None:
    see = "images" if seeing == "llava" else "video"
    stages = [
        f"frame_captions: {{model: {models[seeing]}, max_tokens: 8, max_frames: 2}}",
        f"short_caption: {{model: {models[seeing]}, max_tokens: 8, see: {see}}}",
        f"caption: {{model: {models['llama']}, max_tokens: 8}}",
    ]
    config = pipeline(tmp_path / "p.yaml", stages)
    run("said", [str(footage)], tmp_path / "out", config=str(config), engine="local")
    rows = Store(tmp_path / "out").clips().to_pylist()
    assert len(rows) == 6
    for row in rows:
        assert (row["status"], row["caption_version"]) == ("kept", "v1")
        assert len(row["frame_captions"]) == 2
        assert row["caption_model"].startswith("llama#")
        assert row["short_caption_usage"]["model"].startswith(f"{seeing}#")
        assert row["short_caption_usage"]["completion_tokens"] <= 8
    assert len({row["short_caption"] for row in rows}) > 1


@contextlib.contextmanager
def transformers_serve(model: Path, log: Path) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    arguments = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", str(model)]
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-m", "tests.captioning.serve", *arguments], stdout=file, stderr=file
        ) as server,
    ):
        try:
            for _ in range(240):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                    break
                assert server.poll() is None, log.read_text()[-2000:]
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


@pytest.mark.slow
def test_version_1_through_a_real_server(models: dict[str, Path], footage: Path, tmp_path: Path) -> None:
    """A Qwen2.5-VL, served by transformers, sees frames, sees clips and sums up; greedy, it says what it says here."""
    with transformers_serve(models["qwen"], tmp_path / "log") as url:
        served = f"model: {models['qwen']}, max_tokens: 8, endpoint: {{url: {url}, concurrency: 2}}"
        stages = [
            f"frame_captions: {{{served}, max_frames: 1}}",
            f"short_caption: {{{served}, see: images}}",
            f"caption: {{{served}}}",
        ]
        config = pipeline(tmp_path / "p.yaml", stages)
        run("said", [str(footage)], tmp_path / "out", config=str(config), engine="local", shards=False)
        wrong = config.read_text().replace(f"model: {models['qwen']}", "model: nobody/nothing")
        (tmp_path / "wrong.yaml").write_text(wrong)
        with pytest.raises(ConfigError, match="has no model 'nobody/nothing'"):
            load_plan("said", tmp_path / "wrong.yaml")
    rows = Store(tmp_path / "out").clips().to_pylist()
    assert [row["error"] for row in rows] == [None] * 6
    assert all(row["caption"] and row["short_caption"] and row["caption_usage"]["prompt_tokens"] for row in rows)

    stages = [stage.replace(f", endpoint: {{url: {url}, concurrency: 2}}", "") for stage in stages]
    config = pipeline(tmp_path / "local.yaml", stages)
    run("said", [str(footage)], tmp_path / "here", config=str(config), engine="local", shards=False)
    here = Store(tmp_path / "here").clips().to_pylist()
    assert [row["short_caption"] for row in here] == [row["short_caption"] for row in rows]
