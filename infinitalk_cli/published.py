"""Lengths and SHA-256 sums of published files, as far as they are known without asking the hub.

They let `verify` say that a file is the published one, and let `import` recognise a file under any name in another
program's folder. Repackaged forms of the same weights are in the table too, with no place of their own in the layout.
Sums come from public commit pages and from independent installers that pin them; where there were two, they agreed.
"""

from __future__ import annotations

from dataclasses import dataclass

from infinitalk_cli.manifest import SPEECH_SYNTHESIS
from infinitalk_cli.weights import BASE, SPEECH


@dataclass(frozen=True)
class Published:
    """A published file: its name, its length (None where only the sum is known), its place in our layout if any."""

    name: str
    size: int | None
    sha256: str
    place: str | None = None


def _placed(folder: str, path: str, size: int | None, sha256: str) -> Published:
    place = f"{folder}/{path}" if folder else path
    return Published(path, size, sha256, place)


PUBLISHED: tuple[Published, ...] = (
    _placed(
        BASE,
        "models_t5_umt5-xxl-enc-bf16.pth",
        11361920418,
        "7cace0da2b446bbbbc57d031ab6cf163a3d59b366da94e5afe36745b746fd81d",
    ),
    _placed(
        BASE,
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        4772359047,
        "628c9998b613391f193eb67ff68da9667d75f492911e4eb3decf23460a158c38",
    ),
    _placed(BASE, "Wan2.1_VAE.pth", 507609880, "38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981"),
    _placed(
        BASE,
        "google/umt5-xxl/spiece.model",
        4548313,
        "e3909a67b780650b35cf529ac782ad2b6b26e6d1f849d3fbb6a872905f452458",
    ),
    _placed(
        BASE,
        "google/umt5-xxl/tokenizer.json",
        16837417,
        "6e197b4d3dbd71da14b4eb255f4fa91c9c1f2068b20a2de2472967ca3d22602b",
    ),
    _placed(
        BASE,
        "google/umt5-xxl/tokenizer_config.json",
        61728,
        "ed9a3a8b0faa71a70a32847e0435fe036e6e112d4df4edb7bb48a921e344dc05",
    ),
    _placed(
        BASE,
        "google/umt5-xxl/special_tokens_map.json",
        6623,
        "7b8a9f5040adb67b5805abdfd42c1f8d0f3d0e711f10726580eb3789cd0ad61d",
    ),
    _placed(SPEECH, "config.json", 1951, "dc2cd2f989104b9510ce9e43a343a6f1fe55aa60baa1fcfca0c5908e6590b8b6"),
    _placed(
        SPEECH, "preprocessor_config.json", 160, "c1707926644954affc391ab09ccfaf470ccd80af218d11350991090711441c09"
    ),
    _placed(
        "",
        "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors",
        738005744,
        "85c4a61c30e0497aa44b91d93a893b624708461a56fe5485183b28fa07e2dfb3",
    ),
    _placed(
        SPEECH_SYNTHESIS,
        "kokoro-v1_0.pth",
        327212226,
        "496dba118d1a58f5f3db2efc88dbdc216e0483fc89fe6e47ee1f2c53f18ad1e4",
    ),
    _placed(SPEECH_SYNTHESIS, "config.json", None, "5abb01e2403b072bf03d04fde160443e209d7a0dad49a423be15196b9b43c17f"),
    _placed(
        SPEECH_SYNTHESIS,
        "voices/af_heart.pt",
        None,
        "0ab5709b8ffab19bfd849cd11d98f75b60af7733253ad0d67b12382a102cb4ff",
    ),
    _placed(
        SPEECH_SYNTHESIS,
        "voices/am_michael.pt",
        None,
        "9a443b79a4b22489a5b0ab7c651a0bcd1a30bef675c28333f06971abbd47bd37",
    ),
    Published("t5_fp8.safetensors", None, "585a6f8cd13432f79e18695b58a4312c1782528a6f3cfc58121dbc2c018a7467"),
    Published("pytorch_model.bin", 380261837, "be2da40c9e7ae26bfc904a3ed79ebb9e8f060bec6dba85d6a6ae86114bc38901"),
    Published(
        "wav2vec2-chinese-base_fp16.safetensors",
        190115368,
        "000813e441020f18cff844c969d2d5d4adc2a5ce46b2db1f23950b05d88805b4",
    ),
    Published(
        "Wan2_1-InfiniTetalk-Single_fp16.safetensors",
        5125258232,
        "bf212c5c647eaf1c019b2158d2edf4a360d97e38b746c4bac994fee485e09fc3",
    ),
    Published(
        "Wan2_1-InfiniteTalk-Multi_fp16.safetensors",
        5124439112,
        "4c2486cdfb6ff9a9f27408e98e11e20619136933b20411e0c365b1e84075d195",
    ),
    Published(
        "Wan2_1-InfiniteTalk-Single_fp8_e4m3fn_scaled_KJ.safetensors",
        2713548210,
        "bd6e0e6feab8c22a482b1c4dd7c0504c215c35b507ddc3b4dcaa5d3ef539879e",
    ),
    Published(
        "Wan2_1-InfiniteTalk-Single_fp8_e5m2_scaled_KJ.safetensors",
        2713548210,
        "26a26b356b56e073de0b699fbbd792a85a0c408649a062094af7a7a547fad4c5",
    ),
    Published(
        "Wan2_1-I2V-14B-480p_fp8_e4m3fn_scaled_KJ.safetensors",
        16643349018,
        "2ff922282cd84589702e6e8c26e083d1160bfc2b217dd44e1ae2688441dc495d",
    ),
    Published(
        "Wan2_1-I2V-14B-480P_fp8_e4m3fn.safetensors",
        16993877896,
        "996dbad030df09b0b3c8e764f0fb5a81b98b220ab89524d6a9369e9ed882791f",
    ),
    Published(
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        6735906897,
        "c3355d30191f1f066b26d93fba017ae9809dce6c627dda5f6a66eaa651204f68",
    ),
    Published(
        "clip_vision_h.safetensors",
        1264219396,
        "64a7ef761bfccbadbaa3da77366aac4185a6c58fa5de5f589b42a65bcc21f161",
    ),
    Published(
        "Wan2_1_VAE_bf16.safetensors",
        253806278,
        "1ab9a32cc2c740f6e39d80d367ce5dcc28db8c71b79b28670546b8973e9d75f9",
    ),
)

BY_SHA256: dict[str, Published] = {published.sha256: published for published in PUBLISHED}


def published_at(place: str) -> Published | None:
    """What is known of the file that belongs at this place."""
    return next((published for published in PUBLISHED if published.place == place), None)


def published_size(place: str) -> int | None:
    """The length of the published file that belongs at this place, if it is known."""
    listed = published_at(place)
    return listed.size if listed else None
