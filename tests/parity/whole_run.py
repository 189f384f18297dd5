"""A whole run of an end-to-end case on the case's own files, and a record of what passed between the networks.

The networks are the real ones, built as the runner builds them; only their entrances are watched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from infinitalk_cli.media.color import match_color
from infinitalk_cli.media.image import Bucket, bucket_table, choose_bucket, plan_crop, read_image, to_frames
from infinitalk_cli.media.reference import PictureReference, Reference, open_reference
from infinitalk_cli.media.speech import prepare_speech
from infinitalk_cli.media.video import is_video
from infinitalk_cli.memory.lora import read_lora
from infinitalk_cli.models.audio_encoder import AudioEncoder
from infinitalk_cli.models.image_encoder import ImageEncoder
from infinitalk_cli.models.text_encoder import TextEncoder
from infinitalk_cli.models.vae import VideoVAE
from infinitalk_cli.networks import build_audio_encoder, build_image_encoder, build_text_encoder, build_vae
from infinitalk_cli.sampling.conditioning import AudioEmbeds, Conditioning, TensorEmbeds
from infinitalk_cli.sampling.settings import ApgSettings, Compatibility, SamplingSettings
from infinitalk_cli.sampling.speaker_boxes import DEFAULT_MARGIN, PixelBox, default_boxes
from infinitalk_cli.sampling.speaker_masks import speaker_masks
from infinitalk_cli.sampling.stream import Networks, generate_chunks
from infinitalk_cli.weights import WeightFiles
from tests.parity.conftest import TinyTree
from tests.parity.dit_pass import dit_files, load_dit
from tests.parity.reference import DEVICE, Case, reference_dir, tensor

PLAYS_NO_PART = ""
"""The negative prompt where the data has none."""


@dataclass(frozen=True)
class Encoders:
    """The networks that all cases share."""

    text: TextEncoder
    image: ImageEncoder
    vae: VideoVAE
    audio: AudioEncoder

    @classmethod
    def build(cls, tree: TinyTree, case: Case) -> Encoders:
        """Build them from the files of the tree, float32; `case` is any end-to-end case."""
        files = all_files(tree, case)
        return cls(
            text=build_text_encoder(files, dtype=torch.float32, device=DEVICE),
            image=build_image_encoder(files, dtype=torch.float32, device=DEVICE),
            vae=build_vae(files, device=DEVICE),
            audio=build_audio_encoder(files, device=DEVICE),
        )


@dataclass
class ChunkRecord:
    """What happened in one chunk: per call of the transformer its latents, time and whether the blocks ran, and once
    its condition, the image features and the latents that went to the decoder."""

    inputs: list[Tensor] = field(default_factory=list[Tensor])
    times: list[float] = field(default_factory=list[float])
    blocks_ran: list[bool] = field(default_factory=list[bool])
    condition: Tensor | None = None
    image: Tensor | None = None
    decoded: Tensor | None = None


@dataclass(frozen=True)
class WholeRun:
    """A finished case. `frames`: `(3, n, H, W)`."""

    case: Case
    settings: SamplingSettings
    conditioning: Conditioning
    chunks: list[ChunkRecord]
    frames: Tensor


def run_case(
    tree: TinyTree, case: Case, encoders: Encoders, work_dir: Path, dtype: torch.dtype = torch.float32
) -> WholeRun:
    """Generate the video of a case with the rules of the original program. `dtype`: of the transformer."""
    loras = [read_lora(tree.need(entry["file"])[0], entry["scale"]) for entry in case.settings.get("lora", ())]
    dit = load_dit(tree, case, dtype=dtype, loras=loras)
    settings = settings_of(case)
    conditioning = conditioning_of(case, encoders, work_dir)
    networks = Networks(dit, encoders.vae, encoders.image, match_color, DEVICE)
    chunks = [ChunkRecord()]

    def before_pass(module: object, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        latents, condition, t, *_ = args
        chunks[-1].inputs.append(latents[0].clone())
        chunks[-1].times.append(float(t))
        chunks[-1].blocks_ran.append(False)
        chunks[-1].condition = condition[0]

    def before_blocks(module: object, args: tuple[Any, ...]) -> None:
        chunks[-1].blocks_ran[-1] = True

    def watched_context(text: Tensor, image: Tensor) -> Any:
        chunks[-1].image = image
        return embed_context(text, image)

    def watched_decoder(latents: Tensor) -> Iterator[Tensor]:
        chunks[-1].decoded = latents[0]
        chunks.append(ChunkRecord())
        return decode_stream(latents)

    dit.register_forward_pre_hook(before_pass, with_kwargs=True)
    dit.blocks[0].register_forward_pre_hook(before_blocks)
    embed_context, decode_stream = dit.embed_context, encoders.vae.decode_stream
    with (
        patch.object(dit, "embed_context", watched_context),
        patch.object(encoders.vae, "decode_stream", watched_decoder),
    ):
        frames = torch.cat([chunk.frames[0] for chunk in generate_chunks(networks, conditioning, settings)], dim=1)
    return WholeRun(case, settings, conditioning, chunks[:-1], frames)


def settings_of(case: Case) -> SamplingSettings:
    """The settings of a case, and everywhere the rule of the original program."""
    given = case.settings
    return SamplingSettings(
        engine=given.get("program", "infinitetalk"),
        chunk_frames=given["frame_num"],
        motion_frames=given["motion_frame"],
        max_frames=given["max_frames_num"],
        num_steps=given["steps"],
        shift=given["shift"],
        text_guidance_scale=given["text_scale"],
        audio_guidance_scale=given["audio_scale"],
        apg=ApgSettings(**given["apg"]) if "apg" in given else None,
        step_cache_threshold=given.get("teacache_threshold"),
        seed=given["seed"],
        color_strength=given["color_correction"],
        color_reference="first",
        compatibility=Compatibility(
            reference_trim=True, refuse_short_audio=True, any_motion_length=True, nan_for_empty_mask=True
        ),
    )


@torch.no_grad()
def conditioning_of(case: Case, encoders: Encoders, work_dir: Path) -> Conditioning:
    """The inputs of a case, encoded."""
    reference = open_source(reference_dir() / case.inputs["source"], bucket_table(case.settings["bucket_table"]))
    audio = audio_of(case, encoders.audio, work_dir)
    return Conditioning(
        text=encoders.text.encode(case.inputs["prompt"]),
        null_text=encoders.text.encode(case.settings.get("negative_prompt") or PLAYS_NO_PART),
        audio=audio,
        reference=reference,
        speaker_masks=masks_of(case, reference) if len(audio) == 2 else None,
        height=reference.crop.height,
        width=reference.crop.width,
    )


def open_source(path: Path, table: tuple[Bucket, ...]) -> Reference:
    """The source as the original reads it: video frames by their number, pictures without regard to alpha."""
    if is_video(path):
        return open_reference(path, table, is_video=True, by_index=True)
    picture = read_image(path, background=None)
    bucket = choose_bucket(picture.height, picture.width, table)
    crop = plan_crop(picture.height, picture.width, bucket.height, bucket.width)
    return PictureReference(to_frames(picture, crop), crop, picture.height, picture.width)


def audio_of(case: Case, encoder: AudioEncoder, work_dir: Path) -> tuple[AudioEmbeds, ...]:
    """The speakers' embeddings: given, or made from their files."""
    people: Mapping[str, Any] = case.inputs["audio_embeddings"]
    names = sorted(people)
    if all("from_wav" not in people[name] for name in names):
        return tuple(TensorEmbeds(tensor(people[name])) for name in names)
    files = [people[name]["from_wav"] for name in names]
    speech = prepare_speech(
        [file and reference_dir() / file for file in files], work_dir, case.inputs.get("audio_type", "para")
    )
    embeds = [
        TensorEmbeds(encoder.embed(torch.from_numpy(waveform), frames_rule="float")) for waveform in speech.waveforms
    ]
    assert [each.num_frames for each in embeds] == [people[name]["frames"] for name in names]
    if "sound_track" in case.expected:
        assert float(speech.duration_s) == case.expected["sound_track"]["seconds"]
    return tuple(embeds)


def masks_of(case: Case, reference: Reference) -> Tensor:
    """The masks of two speakers from their boxes, which the original reads as rows first, or from the halves."""
    rows_first: Mapping[str, Any] = case.settings.get("bbox_row0_col0_row1_col1", {})
    boxes = [PixelBox(left, top, right, bottom) for _, (top, left, bottom, right) in sorted(rows_first.items())]
    height, width = reference.source_height, reference.source_width
    halves = default_boxes(height, width, case.settings.get("face_scale", DEFAULT_MARGIN))
    return speaker_masks(height, width, reference.crop, boxes or halves)


def all_files(tree: TinyTree, case: Case) -> WeightFiles:
    """Every file that a case's networks are built from."""
    (text_encoder,) = tree.need_matching("models_t5*.pth")
    (image_encoder,) = tree.need_matching("models_clip*.pth")
    (vae,) = tree.need_matching("*VAE.pth")
    speech = tree.need_matching("*wav2vec2*/*")[0].parent
    return replace(
        dit_files(tree, case),
        text_encoder=text_encoder,
        tokenizer=reference_dir() / "tokenizer" / "tokenizer.json",
        image_encoder=image_encoder,
        vae=vae,
        audio_encoder=speech / "model.safetensors",
        audio_encoder_config=speech / "config.json",
        audio_preprocessor_config=speech / "preprocessor_config.json",
    )
