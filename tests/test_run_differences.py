"""How the difference of two runs reads: options and names that a user knows, no digests."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from infinitalk_cli.run_differences import Side, differences

DIGESTS = ["a" * 64, "b" * 64]

SHORT = {"job.speakers 1.audio": DIGESTS[0], "seed": "42", "profile.num_steps": "40"}
BOXED = {
    f"job.speakers 1.box.{side}": str(10 * number) for number, side in enumerate(("left", "top", "right", "bottom"))
}
SECOND = {"job.speakers 2.audio": DIGESTS[0], "job.speakers 2.start_s": "0.0", "job.speakers 2.box": "None"}
LORA = {"loras 1.path": DIGESTS[0], "loras 1.scale": "1.0"}


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ({"profile.num_steps": "40"}, {"profile.num_steps": "8"}, ["--steps: 40 then, 8 now"]),
        ({"max_seconds": "None"}, {"max_seconds": "2.5"}, ["--max-seconds: not set then, 2.5 now"]),
        ({"chunks.cross_fade": "False"}, {"chunks.cross_fade": "True"}, ["--cross-fade: off then, on now"]),
        ({"job.prompt": "A"}, {"job.prompt": "B" * 50}, [f"the prompt: 'A' then, '{'B' * 40}...' now"]),
        (BOXED, {"job.speakers 1.box": "None"}, ["box of speaker 1: 0, 10, 20, 30 then, none now"]),
        (BOXED, {**BOXED, "job.speakers 1.box.top": "9"}, ["box of speaker 1: 0, 10, 20, 30 then, 0, 9, 20, 30 now"]),
        (SHORT, {**SHORT, **SECOND}, ["speakers: 1 then, 2 now"]),
        (LORA, {**LORA, "loras 1.scale": "0.8"}, ["the scale of --lora 1: 1.0 then, 0.8 now"]),
        (
            {"picture.width": "None", "picture.height": "None"},
            {"picture.width": "448", "picture.height": "896"},
            ["--resolution: not set then, 448x896 now"],
        ),
        ({"scenes from frames": "30, 75"}, {}, ["scene cuts: 1.20, 3.00 s then, none now"]),
        (
            {"weights.vae": "9 bytes, 0a1b", "weights.dit_shards 1": "8 bytes, a", "weights.dit_shards 2": "8 bytes"},
            {"weights.vae": "9 bytes, 2c3d", "weights.dit_shards 1": "7 bytes, c", "weights.dit_shards 2": "7 bytes"},
            [
                "weights of the transformer: other files now",
                "weights of the video VAE: another file of the same size now",
            ],
        ),
        ({"job.speakers 1.turns 1.start_s": "1"}, {}, ["turns of speaker 1: not the same as then"]),
        (
            {"job.reference": DIGESTS[0]},
            {"job.reference": DIGESTS[1]},
            ["the picture or video: another file, or changed since"],
        ),
        ({"device": "cuda"}, {"device": "cpu"}, ["computed on: cuda then, cpu now"]),
        (SHORT, SHORT, []),
    ],
)
def test_a_difference_is_told_by_option_and_value(
    then: Mapping[str, str], now: Mapping[str, str], told: list[str]
) -> None:
    both = dict.fromkeys(("job.speakers 1.name",), "1")
    assert list(differences(Side({**both, **then}), Side({**both, **now}))) == told


NOON, LATER = "9 bytes of 2026-01-02 12:00:00", "8 bytes of 2026-01-02 12:30:00"


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        (f"a.wav, {NOON}", f"a.wav, {LATER}", f"a.wav has changed since: {NOON} then, {LATER} now"),
        (f"a, b.wav, {NOON}", f"c.wav, {LATER}", "a, b.wav then, c.wav now"),
        (f"a.wav, {NOON}", f"a.wav, {NOON}", "a.wav has other content than then, of the same size and time"),
    ],
)
def test_a_changed_file_is_told_by_name_size_and_time(then: str, now: str, told: str) -> None:
    name = "job.speakers 1.audio"
    sides = [Side({name: digest}, {name: facts}) for digest, facts in zip(DIGESTS, (then, now), strict=True)]
    assert list(differences(*sides)) == [f"sound of speaker 1: {told}"]


def test_a_lora_more_is_one_line() -> None:
    more = Side(LORA, {"loras 1.path": f"fast.safetensors, {NOON}"})
    assert list(differences(Side({}), more)) == ["--lora 1: not set then, fast.safetensors now"]


def test_a_file_in_place_of_the_speech_is_told_by_its_name() -> None:
    then = Side({"sound.output_sound": "source", "sound.output_audio": "None"})
    now = Side(
        {"sound.output_sound": "speech", "sound.output_audio": DIGESTS[0]}, {"sound.output_audio": f"mix.wav, {NOON}"}
    )
    assert list(differences(then, now)) == ["--output-audio: source then, mix.wav now"]
