"""Frame counts, and the audio encoder: whole and streamed, short and long, one window and many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from infinitalk_cli.models.audio_encoder import AudioEncoder, AudioStream, num_audio_frames
from infinitalk_cli.models.encoder_config import AudioEncoderConfig
from tests.models.published import published_shapes

RATE = 16_000
SMALL = AudioEncoderConfig(
    dim=32, ffn_dim=24, num_layers=3, num_heads=2, conv_dim=(8,) * 7, position_kernel=16, position_groups=4
)

PUBLISHED = {  # the fields of chinese-wav2vec2-base/config.json that tell sizes
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "conv_bias": False,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "layer_norm_eps": 1e-5,
}

Wave = NDArray[np.float32]


def make_encoder(*, do_normalize: bool = False) -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(SMALL, do_normalize=do_normalize)


def sound(num_samples: int, seed: int = 0) -> Wave:
    """Noise whose loudness and mean wander, so that a piece has other statistics than the whole."""
    noise = np.random.default_rng(seed).standard_normal(num_samples, dtype=np.float32)
    time_s = np.arange(num_samples, dtype=np.float32) / RATE
    return (noise * (0.1 + 0.09 * np.sin(time_s)) + 0.02 * np.cos(time_s / 3)).astype(np.float32)


def all_rows(stream: AudioStream) -> torch.Tensor:
    return stream.gather(torch.arange(stream.num_frames))


@pytest.mark.parametrize(
    "num_samples, exact, floating",
    [(16_000, 25, 25), (51_840, 81, 81), (51_839, 80, 80), (640_000, 1000, 1000), (18_560, 29, 28), (639, 1, 1)],
)
def test_frames_are_counted_exactly_and_on_demand_as_the_reference_counts(
    num_samples: int, exact: int, floating: int
) -> None:
    assert num_audio_frames(num_samples) == exact
    assert num_audio_frames(num_samples, "float") == floating


def test_frame_rule_reaches_both_ways_of_encoding() -> None:
    encoder, wave = make_encoder(), sound(18_560)
    assert len(encoder.embed(torch.from_numpy(wave), frames_rule="float")) == 28
    assert encoder.stream(wave, frames_rule="float").num_frames == 28
    assert encoder.stream(wave).num_frames == 29


def test_embedding_has_a_row_per_frame_of_every_layer() -> None:
    embeds = make_encoder().embed(torch.from_numpy(sound(RATE)))
    assert embeds.shape == (25, 3, 32)
    assert embeds.dtype == torch.float32


def test_first_and_last_row_lie_on_first_and_last_vector() -> None:
    encoder, wave = make_encoder(), torch.from_numpy(sound(RATE))
    seen: list[torch.Tensor] = []
    handle = encoder.model.feature_projection.register_forward_hook(lambda _, args, __: seen.append(args[0][0]))
    encoder.embed(wave)
    handle.remove()
    with torch.no_grad():
        vectors = encoder.model.feature_extractor(wave[None])[0].T
    assert len(vectors) == 49
    torch.testing.assert_close(seen[0][[0, -1]], vectors[[0, -1]])
    torch.testing.assert_close(seen[0][12], vectors[24])  # the middle of 25 frames is the middle of 49 vectors


@pytest.mark.parametrize("do_normalize", [False, True])
@pytest.mark.parametrize("seconds", [0.2, 3.7, 31.0])
def test_streamed_rows_within_one_window_equal_the_whole(seconds: float, do_normalize: bool) -> None:
    encoder, wave = make_encoder(do_normalize=do_normalize), sound(round(seconds * RATE))
    torch.testing.assert_close(
        all_rows(encoder.stream(wave)), encoder.embed(torch.from_numpy(wave)), atol=2e-4, rtol=2e-4
    )


def test_normalisation_makes_gain_and_offset_of_the_sound_irrelevant() -> None:
    encoder, wave = make_encoder(do_normalize=True), sound(2 * RATE)
    torch.testing.assert_close(
        all_rows(encoder.stream(wave * 3 + 1)), all_rows(encoder.stream(wave)), atol=2e-3, rtol=2e-3
    )


def test_windows_see_the_statistics_of_the_whole_utterance() -> None:
    """The first norm spans the utterance: features of a window do not depend on where windows are cut."""
    encoder, wave = make_encoder(), sound(8 * RATE)
    seen: list[torch.Tensor] = []
    encoder.model.feature_projection.register_forward_hook(lambda _, args, __: seen.append(args[0][0]))
    encoder.embed(torch.from_numpy(wave))
    stream = encoder.stream(wave, window_s=2, context_s=0)
    for second in range(0, 8, 2):
        stream.gather(torch.tensor([second * 25]))
    whole, *windows = seen
    torch.testing.assert_close(torch.cat(windows), whole, atol=1e-5, rtol=1e-4)


def test_rows_come_in_the_order_asked_for_across_windows() -> None:
    stream = make_encoder().stream(sound(6 * RATE), window_s=1, context_s=0.5)
    indices = torch.tensor([149, 0, 0, 77, 26, 24, 25])
    assert torch.equal(stream.gather(indices), all_rows(stream)[indices])


def test_frames_outside_are_refused() -> None:
    stream = make_encoder().stream(sound(RATE))
    with pytest.raises(IndexError, match="25"):
        stream.gather(torch.tensor([25]))
    with pytest.raises(IndexError):
        stream.gather(torch.tensor([-1]))


@pytest.mark.parametrize("num_samples", [1, 399, 400, 719, 3_200])
def test_very_short_sound_gives_at_least_one_row(num_samples: int) -> None:
    encoder, wave = make_encoder(), sound(num_samples)
    rows = all_rows(encoder.stream(wave))
    assert len(rows) == max(1, num_samples // 640)
    torch.testing.assert_close(rows, encoder.embed(torch.from_numpy(wave)), atol=2e-4, rtol=2e-4)


def test_silence_gives_finite_rows() -> None:
    assert torch.isfinite(all_rows(make_encoder(do_normalize=True).stream(np.zeros(RATE, np.float32)))).all()


def test_empty_sound_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        make_encoder().stream(np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="empty"):
        make_encoder().embed(torch.zeros(0))


def test_sound_that_is_not_finite_is_refused() -> None:
    wave = sound(RATE)
    wave[5000] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        all_rows(make_encoder().stream(wave))


def test_sound_may_be_a_read_only_file_map(tmp_path: Path) -> None:
    wave = sound(2 * RATE)
    wave.tofile(tmp_path / "speech.f32")
    mapped: Wave = np.memmap(tmp_path / "speech.f32", dtype=np.float32, mode="r")
    assert torch.equal(all_rows(make_encoder().stream(mapped)), all_rows(make_encoder().stream(wave)))


def test_each_window_is_computed_once_while_chunks_advance_over_its_border() -> None:
    encoder = make_encoder()
    lengths: list[int] = []
    encoder.model.feature_projection.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    stream = encoder.stream(sound(200 * RATE), window_s=30, context_s=5)
    for start in range(0, stream.num_frames - 81, 72):
        stream.gather(torch.arange(start, start + 81))
    assert lengths == [875, 1000, 1000, 1000, 1000, 1000, 625]  # 30 s, and 5 s more where there is sound


def test_memory_does_not_grow_with_the_length_of_the_sound() -> None:
    """Neither a read nor a pass through the network is longer for an hour than for a minute."""

    class LongSound:
        """An hour of sound that exists only in pieces and notes the largest asked for."""

        longest = 0

        def __len__(self) -> int:
            return 3600 * RATE

        def __getitem__(self, piece: slice, /) -> Wave:
            start, stop, _ = piece.indices(len(self))
            self.longest = max(self.longest, stop - start)
            return (np.arange(start, stop) % 97 / 97 - 0.5).astype(np.float32)

    hour = LongSound()
    stream = make_encoder().stream(hour)
    assert stream.num_frames == 90_000
    stream.gather(torch.arange(60_000, 60_081))
    assert hour.longest <= 10 * RATE + 400


def test_taps_on_the_layers_are_removed_also_after_an_error() -> None:
    encoder = make_encoder()
    with pytest.raises(ValueError, match="not finite"):
        encoder.embed(torch.full((RATE,), float("nan")))
    assert not any(layer._forward_hooks for layer in encoder.model.encoder.layers)


def test_published_config_and_file_agree() -> None:
    config = AudioEncoderConfig.from_json(PUBLISHED)
    with torch.device("meta"):
        encoder = AudioEncoder(config)
    shapes = published_shapes("wav2vec2")
    kept = {name: shape for name, shape in shapes.items() if name.startswith("wav2vec2.") and "masked" not in name}
    ours = {name: tuple(tensor.shape) for name, tensor in encoder.model.state_dict().items()}
    assert sorted(ours.values()) == sorted(kept.values())
    assert encoder.span == 400
    assert encoder.hop == 320


@pytest.mark.parametrize("change", [{"feat_extract_norm": "layer"}, {"do_stable_layer_norm": True}])
def test_another_form_of_the_network_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="base form"):
        AudioEncoderConfig.from_json({**PUBLISHED, **change})
