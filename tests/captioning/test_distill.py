"""Distillation: what is learnt from, what is held out, what a crash costs, and what comes out."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from benchmarks.distill import Asked, accuracy, captions_by, shuffle_captions
from captioning.chat import generate, load, load_processor, tokenizer_of
from captioning.distill import LOG, RECORD, Distilled, DivergedError, distill
from captioning.examples import Encoder, Example, Sheets, read_examples, split, without_long
from captioning.prompts import Prompt
from captioning.question import Question, read_question
from captioning.small import Size, make_small
from captioning.stages import Caption
from captioning.tuning import Settings, Tuned, prepare, rate_at, steps_of
from captioning.world import PROMPT, make_world
from curation.curate import attach_sheets
from curation.errors import UsageError
from curation.stage import run_stage
from curation.table import Store
from tests.captioning import tiny

QUESTION = Question(prompt=PROMPT, frames=8, max_tokens=24)
SIZE = Size(vision_layers=1, layers=1, vision_width=32, width=32, heads=2)
QUICK = Settings(method="full", learning_rate=1e-3, batch=4, accumulate=2, epochs=2, evaluate_every=5, judged=8)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over 80 generated clips of 20 videos. Do not change it."""
    return make_world(tmp_path_factory.mktemp("world"), 80).root


@pytest.fixture(scope="module")
def base(world: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    captions = [example.caption for example in read_examples(world)]
    return str(make_small(tmp_path_factory.mktemp("base"), captions, prompt=PROMPT, size=SIZE))


@pytest.fixture(scope="module")
def finished(world: Path, base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed training with ``QUICK``."""
    output = tmp_path_factory.mktemp("finished") / "model"
    distill(world, base, output, question=QUESTION, settings=QUICK)
    return output


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def captions(folder: Path, world: Path, count: int = 12) -> list[str]:
    """What a model says of clips."""
    model, processor = load(str(folder), device="cpu", dtype="float32")
    ids = [example.clip_id for example in read_examples(world)][:count]
    sheets = Sheets(world, ids, folder.parent / "sheets")
    replies = generate(model, processor, [QUESTION.of(sheets[clip_id]) for clip_id in ids])
    sheets.close()
    return [reply.text for reply in replies]


def test_held_out_clips_are_whole_videos_and_stay_so(world: Path) -> None:
    examples = read_examples(world)
    learnt, held_out = split(examples, 0.2)
    assert len(learnt) + len(held_out) == len(examples) == 80
    assert not {e.video_id for e in learnt} & {e.video_id for e in held_out}
    fewer = [example for example in examples if example.video_id != learnt[0].video_id]
    assert {e.clip_id for e in split(fewer, 0.2)[1]} == {e.clip_id for e in held_out}
    two = [e for e in examples if e.video_id in {learnt[0].video_id, learnt[-1].video_id}]
    assert all(split(two, share)[side] for share in (1e-9, 1 - 1e-9) for side in (0, 1))
    with pytest.raises(UsageError, match="one video"):
        split([e for e in examples if e.video_id == learnt[0].video_id], 0.2)


def test_only_kept_clips_with_a_caption_are_learnt(world: Path, tmp_path: Path) -> None:
    store = make_world(tmp_path / "run", 12)
    (part_id, clips), *_ = store.parts("clips")
    rows = clips.to_pylist()
    rows[0]["status"], rows[1]["caption"], rows[2]["caption"] = "rejected", None, "  "
    store.write("clips", part_id, pa.Table.from_pylist(rows, schema=clips.schema))
    assert {e.clip_id for e in read_examples(store.root)} == {row["clip_id"] for row in rows[3:]}


def test_a_sheet_of_many_frames_is_thinned_evenly() -> None:
    sheet = [(float(i), bytes([i])) for i in range(20)]
    request = Question(prompt="?", frames=5, long_side_px=None).of(sheet)
    assert request.times == (0.0, 5.0, 10.0, 14.0, 19.0)
    assert request.images == tuple(bytes([int(t)]) for t in request.times)
    assert Question(prompt="?", frames=32, long_side_px=None).of(sheet).times == tuple(t for t, _ in sheet)


def test_large_pictures_are_scaled_down_and_small_ones_are_not_touched() -> None:
    sheet = [(0.0, tiny.jpeg(1, width=640, height=360)), (0.5, tiny.jpeg(2, width=420, height=236))]
    request = Question().of(sheet)
    small = Image.open(io.BytesIO(request.images[0]))
    assert small.size == (420, 236)
    expected = Image.open(io.BytesIO(sheet[0][1])).resize((420, 236), Image.Resampling.BOX)
    assert np.abs(np.asarray(small, int) - np.asarray(expected, int)).mean() < 3
    assert request.images[1] == sheet[1][1]
    assert Question().of([(0.0, b"\xff\xd8torn")]).images == (b"\xff\xd8torn",), "one clip must not stop the others"


def test_a_model_taught_before_sizes_were_chosen_sees_all_pixels(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(json.dumps({"question": {"prompt": "?", "frames": 16, "max_tokens": 9}}))
    assert read_question(tmp_path) == Question(prompt="?", frames=16, long_side_px=None, max_tokens=9)


def test_sheets_are_those_of_the_table(world: Path, tmp_path: Path) -> None:
    ids = [example.clip_id for example in read_examples(world)][::7]
    sheets = Sheets(world, ids, tmp_path / "sheets")
    frames = pa.concat_tables([table for _, table in Store(world).parts("frames")]).to_pylist()
    for clip_id in ids:
        assert sheets[clip_id] == [(row["t_s"], row["jpeg"]) for row in frames if row["clip_id"] == clip_id]
    assert len(sheets[ids[0]]) == 8
    sheets.close()


def test_the_record_says_what_was_learnt(finished: Path, world: Path, base: str) -> None:
    record = json.loads((finished / RECORD).read_text())
    assert record["held_out"] == [e.clip_id for e in split(read_examples(world), 0.1)[1]]
    assert (record["run"], record["base"], record["num_clips"]) == (str(world), base, 80)
    assert record["question"] == {"prompt": PROMPT, "frames": 8, "long_side_px": 420, "max_tokens": 24}
    assert (record["caption_versions"], record["caption_models"]) == (["v1"], ["truth"])
    assert record["stopped"] == "epochs"
    assert record["steps"] == round(2 * (80 - len(record["held_out"])) / 8)
    assert record["losses"][-1]["held_out_loss"] < record["losses"][0]["held_out_loss"]
    best = min(record["losses"], key=lambda entry: entry["held_out_loss"])
    assert record["best_step"] == best["step"]
    log = [json.loads(line) for line in (finished / LOG).read_text().splitlines()]
    assert [entry["step"] for entry in log] == [entry["step"] for entry in record["losses"]]
    taught = {example.clip_id: example.caption for example in read_examples(world)}
    for sample in log[0]["samples"]:
        assert sample["clip_id"] in record["held_out"]
        assert sample["teacher"] == taught[sample["clip_id"]]
    assert not (finished / ".training").exists()


def test_a_clip_with_a_torn_picture_is_left_out_and_counted(base: str, tmp_path: Path) -> None:
    """Large or small: a large one would be scaled down before it is shown, and lose what says that it is torn."""
    store = make_world(tmp_path / "run", 40)
    torn = sorted(example.clip_id for example in read_examples(store.root))[:2]
    large = tiny.jpeg(1, width=640, height=360)
    for part_id, frames in store.parts("frames"):
        rows = frames.to_pylist()
        for clip_id, jpeg in zip(torn, (None, large), strict=True):
            for row in [row for row in rows if row["clip_id"] == clip_id][3:4]:
                row["jpeg"] = (jpeg or row["jpeg"])[:-40]
        store.write("frames", part_id, pa.Table.from_pylist(rows, schema=frames.schema))
    said: list[str] = []
    done = distill(store.root, base, tmp_path / "model", question=QUESTION, settings=QUICK, say=said.append)
    assert (done.num_torn, done.num_without_sheet, done.num_clips) == (2, 0, 40)
    assert f"2 clips are left out, a picture of theirs cannot be decoded; the first is {torn[0]}" in said
    learnt = 40 - len(set(done.held_out) | set(torn))
    assert done.steps == round(2 * learnt / 8)
    assert json.loads((tmp_path / "model" / RECORD).read_text())["num_torn"] == 2


def test_the_model_kept_is_the_one_that_was_judged_best(finished: Path, world: Path, base: str) -> None:
    from captioning.examples import Encoder
    from captioning.tuning import prepare

    record = json.loads((finished / RECORD).read_text())
    held_out = [e for e in read_examples(world) if e.clip_id in record["held_out"]][: QUICK.judged]
    sheets = Sheets(world, record["held_out"], finished.parent / "judged")
    tuned = prepare(str(finished), QUICK, device="cpu")
    loss = tuned.judge(Encoder(tuned.processor, sheets, QUESTION, cache_mb=10), held_out)
    sheets.close()
    assert loss == pytest.approx(min(entry["held_out_loss"] for entry in record["losses"]), rel=1e-5)


def test_a_finished_training_is_not_repeated(finished: Path, world: Path, base: str) -> None:
    before = (finished / "model.safetensors").stat().st_mtime_ns
    said: list[str] = []
    done = distill(world, base, finished, question=QUESTION, settings=QUICK, say=said.append)
    assert said == [f"{finished} is finished already"]
    assert isinstance(done, Distilled)
    assert done.settings == QUICK
    assert (finished / "model.safetensors").stat().st_mtime_ns == before


def test_what_a_training_leaves_that_is_killed_at_its_very_end_is_removed_later(
    finished: Path, world: Path, base: str, tmp_path: Path
) -> None:
    output = shutil.copytree(finished, tmp_path / "model")
    (output / ".training" / "sheets").mkdir(parents=True)
    (output / ".training" / "sheets" / "0").write_bytes(b"pictures")
    distill(world, base, output, question=QUESTION, settings=QUICK)
    assert not (output / ".training").exists()
    assert (output / RECORD).exists()


@pytest.mark.parametrize("torn", [[], [".request.json.4f1d.tmp"]], ids=["empty", "half a request"])
def test_a_training_killed_before_it_said_what_it_is_leaves_the_folder_free(
    torn: list[str], world: Path, base: str, tmp_path: Path
) -> None:
    (tmp_path / "model" / ".training").mkdir(parents=True)
    (tmp_path / "model" / ".lock").touch()
    for name in torn:
        (tmp_path / "model" / ".training" / name).write_text('{"base_id')
    quickest = Settings(method="full", batch=4, accumulate=1, epochs=0.1, judged=2, samples=0)
    distill(world, base, tmp_path / "model", question=QUESTION, settings=quickest)
    assert (tmp_path / "model" / RECORD).exists()


def test_plain_transformers_gives_the_same_captions(finished: Path, world: Path) -> None:
    """Everything by the library alone: template, frames, generation."""
    import io

    import numpy as np
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(finished)
    processor = AutoProcessor.from_pretrained(finished)
    ids = [example.clip_id for example in read_examples(world)][:4]
    sheets = Sheets(world, ids, finished.parent / "plain")
    theirs = []
    for clip_id in ids:
        sheet = sheets[clip_id]
        frames = np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for _, jpeg in sheet])
        content = [{"type": "video", "video": frames}, {"type": "text", "text": PROMPT}]
        fps = 1 / (sheet[1][0] - sheet[0][0])
        metadata = {"total_num_frames": 8, "fps": fps, "frames_indices": list(range(8))}
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"videos_kwargs": {"video_metadata": [metadata], "do_sample_frames": False}},
        )
        output = model.generate(**inputs, max_new_tokens=24)
        theirs.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    sheets.close()
    assert theirs == captions(finished, world, 4)
    assert len(set(theirs)) > 1, "a model that says one thing of everything shows nothing"


def test_settings_for_chatting_do_not_go_on(base: str, tmp_path: Path) -> None:
    """Plain transformers would follow them, and say something else than what the training has judged."""
    chatty = shutil.copytree(base, tmp_path / "chatty")
    settings = json.loads((chatty / "generation_config.json").read_text())
    more = {"do_sample": True, "temperature": 0.1, "repetition_penalty": 1.05, "no_repeat_ngram_size": 3}
    (chatty / "generation_config.json").write_text(json.dumps({**settings, **more}))
    prepare(str(chatty), QUICK, device="cpu").save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert {name: saved[name] for name in ("eos_token_id", "pad_token_id")} == {
        name: settings[name] for name in ("eos_token_id", "pad_token_id")
    }
    assert not [name for name in more if saved.get(name)]


def test_version_2_asks_what_the_model_was_taught(finished: Path, world: Path) -> None:
    """The stage gives the captions that the training saw, without being told prompt, frames or length again."""
    stage = Caption(version="v2", model=str(finished))
    stage.check()
    stage.setup()
    ((_, clips),) = Store(world).parts("clips")
    ((_, frames),) = Store(world).parts("frames")
    clips = clips.drop_columns(["caption", "caption_version", "caption_model", "caption_prompt"]).sort_by("clip_id")
    clips = clips.slice(0, 4).append_column("frames", attach_sheets(clips["clip_id"].slice(0, 4), frames))
    done = run_stage(stage, clips, mark="caption@1")
    assert done["caption"].to_pylist() == captions(finished, world, 4)
    assert len(set(done["caption"].to_pylist())) > 1
    assert done["caption_version"].to_pylist() == ["v2"] * 4
    assert done["caption_prompt"][0].as_py() == Prompt("distilled", PROMPT).mark
    assert done["caption_usage"][0].as_py()["calls"] == 1
    Caption(version="v2", model=str(finished), max_tokens=24).check()
    for wrong in ({"max_frames": 3}, {"long_side_px": 99}, {"max_tokens": 25}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))}: .* was taught with"):
            Caption(version="v2", model=str(finished), **wrong).check()  # type: ignore[arg-type]
        Caption(version="v2", model=str(finished), prompt="video-1", **wrong).check()  # type: ignore[arg-type]
    other = Caption(version="v2", model=str(finished), prompt="video-1")
    assert other.question.prompt != PROMPT
    for see in ("video", "images"):  # where it is served by its path
        served = Caption(version="v2", model=str(finished), endpoint="http://127.0.0.1:9/v1", see=see)
        assert served.question == stage.question
        assert served.filled.mark == stage.filled.mark
        (request,) = served.requests(clips.slice(0, 1).to_pylist()[0])
        assert (request.prompt, request.video) == (PROMPT, see == "video")
    assert other.mark({}) != stage.mark({})


@pytest.mark.parametrize("build", [tiny.qwen2_5_vl, tiny.llava], ids=lambda build: build.__name__)
def test_lora_merged_gives_the_same_captions_as_lora_beside_the_base(build: Any, world: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    base, output = build(tmp_path / "base"), tmp_path / "model"
    settings = Settings(learning_rate=1e-2, batch=4, accumulate=1, epochs=1, evaluate_every=5, judged=4, rank=4)
    distill(world, str(base), output, question=QUESTION, settings=settings)
    merged, processor = load(str(output), device="cpu", dtype="float32")
    plain, _ = load(str(base), device="cpu", dtype="float32")
    ids = [example.clip_id for example in read_examples(world)][:6]
    sheets = Sheets(world, ids, tmp_path / "sheets")
    requests = [QUESTION.of(sheets[clip_id]) for clip_id in ids]
    untaught = [reply.text for reply in generate(plain, processor, requests)]
    beside = PeftModel.from_pretrained(plain, str(output / "adapter")).eval()
    said = [reply.text for reply in generate(merged, processor, requests)]
    sheets.close()
    assert said == [reply.text for reply in generate(beside, processor, requests)]
    assert said != untaught
    assert json.loads((output / RECORD).read_text())["settings"]["method"] == "lora"
    # As it was taught, whether the base takes videos or not and whatever the pipeline says.
    for see in ("video", "images"):
        stage = Caption(version="v2", model=str(output), see=see)  # type: ignore[arg-type]
        stage.check()
        frames = [{"t_s": t_s, "jpeg": jpeg} for t_s, jpeg in zip(requests[0].times, requests[0].images, strict=True)]
        assert stage.requests({"frames": frames}) == requests[:1]


_SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from captioning.distill import distill
from tests.captioning.test_distill import QUESTION, QUICK
distill(sys.argv[1], sys.argv[2], sys.argv[3], question=QUESTION, settings=QUICK, say=print)
"""


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-u", "-c", _SCRIPT, *arguments], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_training_ends_as_one_that_was_not(finished: Path, world: Path, base: str, tmp_path: Path) -> None:
    output = tmp_path / "model"
    arguments = [str(world), base, str(output)]
    killed = _start(arguments)
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.startswith("step 10"):
            break
    deadline = time.monotonic() + 30
    while not list(output.glob(".training/checkpoint-00000010/state.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert not (output / RECORD).exists()
    said: list[str] = []
    done = distill(world, base, output, question=QUESTION, settings=QUICK, say=said.append)
    assert said[0] == "continuing after step 10"
    assert same(output, finished)
    whole = json.loads((finished / RECORD).read_text())
    assert [entry["held_out_loss"] for entry in done.losses] == [entry["held_out_loss"] for entry in whole["losses"]]
    log = [json.loads(line)["step"] for line in (output / LOG).read_text().splitlines()]
    assert log == [entry["step"] for entry in done.losses]


def test_training_stops_where_nothing_gets_better(world: Path, base: str, tmp_path: Path) -> None:
    settings = Settings(
        method="full", learning_rate=30.0, warmup_steps=0, batch=8, accumulate=1, epochs=50, evaluate_every=1,
        judged=4, patience=3, samples=0,
    )  # fmt: skip
    done = distill(world, base, tmp_path / "model", question=QUESTION, settings=settings)
    assert done.stopped == "no progress"
    assert done.steps == done.best_step + 3


def test_a_training_that_diverges_says_so_and_leaves_no_model(world: Path, base: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, learning_rate=1e30)
    with pytest.raises(DivergedError, match=r"the loss at step \d+ is (nan|inf): name a --learning-rate below"):
        distill(world, base, tmp_path / "model", question=QUESTION, settings=settings)
    assert not (tmp_path / "model" / RECORD).exists()
    assert not (tmp_path / "model" / "config.json").exists()


@pytest.mark.parametrize(("num_clips", "total", "warm"), [(3, 1, 1), (90, 17, 1), (900, 169, 16), (9000, 1688, 50)])
def test_small_sets_are_learnt_from_as_often_and_as_fast(num_clips: int, total: int, warm: int) -> None:
    settings = Settings(learning_rate=1.0)
    assert steps_of(settings, num_clips) == total
    rates = [rate_at(settings, step, step / total, total) for step in range(total)]
    assert next(step for step, rate in enumerate(rates, 1) if rate == 1.0) == warm


def test_accumulated_batches_learn_as_one(world: Path, base: str, tmp_path: Path) -> None:
    import torch

    for name, (batch, accumulate) in {"one": (8, 1), "four": (2, 4)}.items():
        settings = Settings(
            method="full", learning_rate=1e-3, batch=batch, accumulate=accumulate, epochs=0.5, judged=4, samples=0
        )
        distill(world, base, tmp_path / name, question=QUESTION, settings=settings)
    one, four = weights(tmp_path / "one"), weights(tmp_path / "four")
    assert all(torch.allclose(one[name], four[name], atol=2e-4) for name in one)
    assert any((one[name] != weights(Path(base))[name]).any() for name in one)


@pytest.mark.slow
def test_a_tiny_model_learns_colours_and_backgrounds_and_from_shuffled_captions_does_not(tmp_path: Path) -> None:
    """Twenty seconds each; directions and shapes take minutes, see benchmarks/distill.py."""
    figures = {}
    for name in ("taught", "shuffled"):
        store = make_world(tmp_path / name, 400)
        examples = read_examples(store.root)
        base = make_small(tmp_path / "base", [example.caption for example in examples], prompt=PROMPT)
        held_out = [example.clip_id for example in split(examples, 0.15)[1]]
        asked = Asked.of(store.root, held_out)
        if name == "shuffled":
            shuffle_captions(store)
        settings = Settings(
            method="full", optimiser="muon", learning_rate=1e-3, batch=16, accumulate=1, epochs=4, held_out=0.15,
            judged=16, samples=0, warmup_steps=20,
        )  # fmt: skip
        distill(store.root, str(base), tmp_path / f"{name} model", question=QUESTION, settings=settings)
        model, processor = load(str(tmp_path / f"{name} model"), device="cpu", dtype="float32")
        figures[name] = accuracy(captions_by(model, processor, asked.requests), asked.scenes)
    for attribute, chance in (("colour", 1 / 6), ("background", 1 / 4)):
        assert figures["taught"][attribute] > 0.75
        assert figures["shuffled"][attribute] < chance + 0.2


def test_mistakes_are_named_before_work_starts(world: Path, base: str, finished: Path, tmp_path: Path) -> None:
    def expect(
        words: str, *, run: Path = world, model: str = base, output: Path = tmp_path / "x", **changed: Any
    ) -> None:
        with pytest.raises(UsageError, match=words):
            distill(run, model, output, question=QUESTION, settings=Settings(**{**QUICK.__dict__, **changed}))
        assert output in (finished, full, file, odd) or not output.exists()

    full, file, odd = tmp_path / "full", tmp_path / "file", tmp_path / "odd"
    full.mkdir()
    (full / "letter.txt").write_text("mine")
    (odd / ".training").mkdir(parents=True)
    (odd / ".training" / "letter.txt").write_text("mine")
    file.write_text("mine")
    expect("not the output of a run", run=tmp_path / "nothing")
    expect("no weights at", model=str(tmp_path / "nothing"))
    expect("reads only text", model=str(tiny.llama(tmp_path / "llama")))
    expect("holds other files", output=full)
    expect("holds other files", output=odd)
    expect("is a file", output=file)
    expect("other values of settings", output=finished, epochs=3)
    expect("method 'half'", method="half")
    expect("epochs 0", epochs=0)
    expect("held_out 1", held_out=1)
    expect("dropout 1", dropout=1)
    store = make_world(tmp_path / "silent", 8)
    (part_id, clips), *_ = store.parts("clips")
    rows = [{**row, "caption": None} for row in clips.to_pylist()]
    store.write("clips", part_id, pa.Table.from_pylist(rows, schema=clips.schema))
    expect("no kept clip with a caption", run=store.root)


def test_captions_that_break_off_refusals_and_long_ones_are_not_learnt(base: str, tmp_path: Path) -> None:
    store = make_world(tmp_path / "run", 40)
    for part_id, clips in store.parts("clips"):
        rows = clips.to_pylist()
        rows.sort(key=lambda row: row["clip_id"])
        names = [row["clip_id"] for row in rows]
        rows[1]["caption"] = "I'm sorry, but I cannot see the video."
        rows[2]["caption"] = "A red circle moves left across a desert. " * 20
        stopped = pa.array([{"cut_off": i == 0} for i in range(len(rows))])
        table = pa.Table.from_pylist(rows, schema=clips.schema).append_column("caption_usage", stopped)
        store.write("clips", part_id, table)
    flaws = {e.clip_id: e.flaw for e in read_examples(store.root) if e.flaw}
    assert flaws == {names[0]: "breaks off", names[1]: "is a refusal"}
    said: list[str] = []
    done = distill(store.root, base, tmp_path / "model", question=QUESTION, settings=QUICK, say=said.append)
    assert f"3 clips are left out for their captions; the first is {names[0]}, which breaks off" in said
    assert (done.num_flawed, done.num_clips) == (3, 40)
    assert not set(names[:3]) & set(done.held_out)
    assert done.steps == round(2 * (37 - len(done.held_out)) / 8)
    longest = max(len(tokens) for tokens in tokens_of(base, [e.caption for e in read_examples(store.root)][3:]))
    assert longest < QUESTION.max_tokens, "others are long, too"


def test_a_caption_may_be_as_long_as_its_end_allows(base: str) -> None:
    example = Example(clip_id="a", video_id="b", caption="A red circle.", caption_version="v1", caption_model=None)
    count = len(tokens_of(base, [example.caption])[0])
    assert [without_long([example], load_processor(base), most)[0].flaw for most in (count, count + 1)] == [
        f"is longer than {count} tokens (--max-tokens)",
        None,
    ]


def tokens_of(base: str, captions: list[str]) -> list[list[int]]:
    tokens: list[list[int]] = tokenizer_of(load_processor(base))(captions, add_special_tokens=False)["input_ids"]
    return tokens


def test_what_was_learnt_whole_may_be_written_whole() -> None:
    assert Question().max_tokens == Caption.max_tokens


def test_a_gpu_that_is_too_small_is_said_with_the_ways_out(
    world: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def learn(*_: Any, **__: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Tuned, "learn", learn)
    with pytest.raises(UsageError, match=r"--batch 4.*--save-memory"):
        distill(world, base, tmp_path / "model", question=QUESTION, settings=QUICK)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_saving_memory_changes_nothing_in_the_model(method: Any, world: Path, base: str, tmp_path: Path) -> None:
    import torch

    for name in ("kept", "saved"):
        settings = Settings(
            method=method, learning_rate=1e-3, batch=4, accumulate=1, epochs=0.3, judged=4, samples=0, rank=4,
            warmup_steps=1, save_memory=name == "saved",
        )  # fmt: skip
        parts = prepare(base, settings, device="cpu").model.modules()
        assert any(getattr(part, "gradient_checkpointing", False) for part in parts) == settings.save_memory
        distill(world, base, tmp_path / name, question=QUESTION, settings=settings)
    kept, saved = weights(tmp_path / "kept"), weights(tmp_path / "saved")
    assert all(torch.allclose(kept[name], saved[name], atol=1e-6) for name in kept)
    assert any((kept[name] != weights(Path(base))[name]).any() for name in kept)


def test_clips_of_two_shapes_are_learnt_together_as_each_alone(tmp_path: Path) -> None:
    """LLaVA-NeXT cuts a picture into tiles, more or fewer by its shape."""
    import torch

    model, processor = load(str(tiny.llava_next(tmp_path / "base")), device="cpu", dtype="float32")
    sheets: Any = {
        "square": [(i * 0.5, tiny.jpeg(i, width=64, height=64)) for i in range(2)],
        "wide": [(i * 0.5, tiny.jpeg(9 + i, width=64, height=32)) for i in range(2)],
    }
    encoder = Encoder(processor, sheets, Question(), cache_mb=0)
    about: dict[str, Any] = {"video_id": "v", "caption_version": None, "caption_model": None}
    examples = [
        Example(clip_id="square", caption="A red circle moves left.", **about),
        Example(clip_id="wide", caption="The camera pans.", **about),
    ]
    tiles = [encoder.batch([example])["pixel_values"].shape[1] for example in examples]
    assert tiles == [5, 3]
    with torch.inference_mode():
        alone = [model(**encoder.batch([example])) for example in examples]
        together = model(**encoder.batch(examples))
        counts = [int((encoder.batch([example])["labels"] >= 0).sum()) for example in examples]
    mean = sum(one.loss * count for one, count in zip(alone, counts, strict=True)) / sum(counts)
    assert torch.allclose(together.loss, mean, rtol=1e-5)
    assert not torch.allclose(alone[0].loss, alone[1].loss, rtol=1e-2)


def test_a_missing_package_names_the_extra(
    world: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    with pytest.raises(UsageError, match=r"peft: pip install 'cutroom\[caption\]'"):
        distill(world, base, tmp_path / "model")
