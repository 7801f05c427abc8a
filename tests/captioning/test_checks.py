"""What can be wrong with a caption, measured; good captions have nothing wrong."""

from __future__ import annotations

import pyarrow as pa
import pytest

from captioning.checks import CaptionChecks, boilerplate, repetition
from captioning.language import language_of
from captioning.phrases import is_refusal
from captioning.similarity import similarity
from captioning.words import is_cut_off, sentences, words

GOOD = """\
A dog runs across a wide green field while its owner waves from the fence.
The U.S. flag flies over a 1.5 m wide road. A truck passes from left to right.
At 5 p.m. the market closes, and vendors fold their red and white awnings.
Dr. Lee points at a chart. The audience, about 40 people, takes notes.
A woman in a blue coat walks up the stairs of No. 12 and rings the bell.
Waves roll in, higher and higher, until they break over the pier.
The carousel turns round and round under strings of yellow bulbs.
A man says "I'm sorry, I can't stay", takes his hat and leaves the room.
The video game console sits on a low shelf beside a stack of cartridges.
The picture frame falls from the wall and breaks on the wooden floor.
The image of a saint hangs above the altar; candles flicker below it.
Snow falls on St. Peter's Square. Two nuns hurry towards the colonnade.
A red ball rolls down a slope and comes to rest against a stone.
Steam rises from a cup of coffee, e.g. the kind sold at railway stations.
The camera pans left and zooms in on a lighthouse on a rocky shore.
Close-up of hands kneading dough on a floured table.
a small brown bird on a branch
timelapse of clouds over a mountain ridge
A child blows out six candles on a cake. Everyone claps. The lights come back on.
Two boxers circle each other. One jabs, the other ducks and steps back.
An old tram, number 28, climbs a narrow street between tiled façades.
The chef slices an onion, then a carrot, then a leek, and slides them into the pot.
A drone rises above a forest in autumn; the river below bends to the right.
Is it a fox? A shape moves behind the ferns, stops and disappears.
A train arrives at 10:45 a.m. Passengers step down with suitcases.
A skater jumps over a bench, lands and rolls away with raised arms!
Rain runs down a window. Behind it, blurred lights of cars move slowly.
The goalkeeper dives to the left, but the ball goes in on the right.
A potter shapes a bowl on a wheel, her thumbs pressing into the wet clay.
Three sheep stand on a hill. One of them looks at the camera and walks on.
The sign reads "OPEN 24/7". A man in an apron wipes the counter beneath it.
A 35 mm camera lies on a map of Patagonia next to a compass.
Fireworks burst over the harbour, first in gold, then in green and violet.
A cyclist in a yellow jersey leads the group through a tunnel of plane trees.
The sun sets behind the dunes, and the sky turns from orange to deep blue.
A mechanic tightens a bolt, wipes his forehead and looks up at the lift.
Goldfish swim in a round pond. A leaf drops onto the water and spins.
An orchestra tunes. The conductor, Ms. Ito, raises her baton, and all fall silent.
A cat stretches on a windowsill, yawns and curls up again.
The elevator doors open on the 3rd floor; a courier with two parcels steps out.
Bees crawl over a honeycomb in extreme close-up, wings trembling.
As an AI robot walks past, people watch.
"Please share", reads the sign on the door.
Please share, reads the sign on the door.
Please share the road, says a sign beside the lane.
The video store opens. A clerk turns the sign with her elbow.
The door opens with a creak, and a child starts with surprise.
These frames hang on a white wall; no pictures are attached to the one beside them.
Unable to see the path, a hiker stops and takes out a lamp.
Unable to watch the video, a girl covers her eyes.
Based on the bank of the river, a crane lifts a boat.
Afraid of the water, a dog stays on the pier.
An astronaut floats past the window of the station and gives a thumbs-up.""".splitlines()

FOREIGN = {
    "de": "Ein Hund läuft über eine grüne Wiese, während z. B. Kinder am Zaun stehen und winken.",
    "fr": "Une femme en manteau bleu monte l'escalier et sonne à la porte de la maison.",
    "es": "Un niño apaga las seis velas del pastel y todos los invitados aplauden con alegría.",
    "pt": "Um cachorro corre pela grama verde enquanto as crianças brincam na praia.",
    "it": "Il sole tramonta dietro le colline e il cielo diventa arancione sopra la città.",
    "ru": "Собака бежит по зелёной траве, а мальчик стоит у забора и машет рукой.",
    "zh": "一只狗在绿色的草地上奔跑，一个男孩站在栅栏旁边挥手。",
    "ja": "犬が緑の草原を走り、男の子が柵のそばで手を振っている。",
    "ko": "강아지가 푸른 잔디밭을 달리고 소년이 울타리 옆에서 손을 흔든다.",
}


@pytest.mark.parametrize("text", [*GOOD, *FOREIGN.values()])
def test_a_good_caption_has_nothing_wrong(text: str) -> None:
    assert (repetition(text), boilerplate(text), is_refusal(text), is_cut_off(text)) == (0, 0, False, False)


@pytest.mark.slow
def test_languages_are_told_apart_and_no_good_caption_is_taken_for_another() -> None:
    assert {language_of(text) for text in GOOD} <= {"en", None}
    assert {code: language_of(text) for code, text in FOREIGN.items()} == {code: code for code in FOREIGN}


def test_a_text_too_short_has_no_language() -> None:
    assert language_of("A dog.") is None


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("the the the the", 3 / 4),
        ("the cat sits the cat sits the cat sits the cat sits", 9 / 12),
        ("A dog runs in snow. A cat sits. A dog runs in snow.", 6 / 16),
        ("他在跑步。他在跑步。", 5 / 10),
        ("...........", 10 / 11),
        ("", 0),
    ],
)
def test_repetition_is_the_share_that_was_said_before(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


@pytest.mark.timeout(20)  # word by word it took 43 s
def test_a_transcript_in_place_of_a_caption_is_measured_in_no_time() -> None:
    said = " ".join(f"w{i * i % 9973}" for i in range(20000))
    assert repetition(said) == pytest.approx((20000 - 9973) / 20000)  # the squares begin again
    assert repetition(f"{said} {'x' * 10**6}") == pytest.approx((20000 - 9973) / 20001)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("The video shows a dog running.", 3 / 6),
        ("In this video, a dog runs.", 3 / 6),
        ("Caption: a dog runs", 1 / 4),
        ("A dog runs. The image depicts a tree.", 3 / 8),
        ("The video begins with a dog running.", 4 / 7),
        ("The clip opens with a dog.", 4 / 6),
        ("This short video starts with a dog.", 5 / 7),
        ("These frames depict a dog.", 3 / 5),
        ("The images show a dog.", 3 / 5),
        ("Based on the notes, a dog runs.", 4 / 7),
    ],
)
def test_boilerplate_is_the_share_of_words_about_the_video(text: str, share: float) -> None:
    assert boilerplate(text) == pytest.approx(share)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I am unable to view videos.",
        "I cannot describe this image.",
        "As an AI language model, I have no eyes.",
        "Please provide the video.",
        "As an AI, I can only read.",
        "As an AI trained by nobody, I have no eyes.",
        "Please share more details about what happens.",
        "Please provide it again.",
        "Please provide me with the video's frames.",
        "I don't have enough information to describe this.",
        "No frames were provided.",
        "No video was attached to your message.",
        "There are no images attached.",
        "It seems that no video was attached.",
        "It looks like there is no video provided.",
        "Unable to describe the video.",
        "I cannot fulfill this request.",
        "I'm afraid I can't describe this.",
        "I'm afraid that I'm not able to see it.",
        "抱歉，我无法描述这个视频。",
        "我无法查看视频。",
    ],
)
def test_refusals_are_recognised(text: str) -> None:
    assert is_refusal(text)


def test_what_nobody_can_see_in_a_video_is_no_refusal() -> None:
    assert not is_refusal("我们无法看到骑手的脸，他骑着马穿过田野。")


@pytest.mark.parametrize("text", ["A dog runs. The cat", "A man walks along the", "A dog, a cat,", "他在跑步。他停"])
def test_captions_that_break_off_are_recognised(text: str) -> None:
    assert is_cut_off(text)


def test_words_and_sentences_survive_abbreviations_and_numbers() -> None:
    text = "The U.S. flag is 1.5 m wide. Dr. Lee waves."
    assert sentences(text) == ["The U.S. flag is 1.5 m wide.", "Dr. Lee waves."]
    assert words(text) == ["The", "U.S", "flag", "is", "1.5", "m", "wide", "Dr", "Lee", "waves"]


def test_no_caption_has_no_words_and_all_else_is_unknown() -> None:
    rows = CaptionChecks().process(pa.table({"caption": pa.array([None, "", " "], pa.string())})).to_pylist()
    for row in rows:
        assert row.pop("caption_words") == 0
        assert set(row.values()) == {None}


def test_what_the_model_says_about_being_stopped_counts() -> None:
    stage = CaptionChecks()
    usage = pa.array([{"cut_off": True}, {"cut_off": False}, None])
    stage.check_inputs(pa.schema([("caption_usage", usage.type)]))
    clips = pa.table({"caption": ["A dog runs."] * 3, "caption_usage": usage})
    assert stage.process(clips)["caption_cut_off"].to_pylist() == [1, 0, 0]


def test_similarity_counts_pairs_of_words() -> None:
    assert similarity("A dog runs", "a dog runs.") == 1
    assert similarity("a dog", "two cats") == 0
    assert similarity("a dog runs", "a dog sits") == pytest.approx(2 * 2 / 8)
