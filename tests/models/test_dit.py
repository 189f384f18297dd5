"""The transformer as a whole: its sizes and names, what its inputs do to the output, and its number formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.models.dit import BlockResidual, DiT
from infinitalk_cli.models.dit_layers import Context
from infinitalk_cli.models.tokens import Portions, TokenShare
from tests.models.tiny import TINY

PUBLISHED = {
    "_class_name": "WanModel",
    "_diffusers_version": "0.30.0",
    "dim": 5120,
    "eps": 1e-06,
    "ffn_dim": 13824,
    "freq_dim": 256,
    "in_dim": 36,
    "model_type": "i2v",
    "num_heads": 40,
    "num_layers": 40,
    "out_dim": 16,
    "text_len": 512,
}
T, H, W = 3, 6, 8  # latent frames, rows, columns
TIME = torch.tensor(612.5)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    with torch.no_grad():
        yield


def tiny_dit(config: DiTConfig = TINY) -> DiT:
    torch.manual_seed(7)
    return DiT(config)


def inputs(dit: DiT, num_speakers: int = 1) -> dict[str, Any]:
    """Arguments of a pass with random contents."""
    config, draw = dit.config, torch.Generator().manual_seed(3)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    windows = randn(num_speakers, 1 + 4 * (T - 1), 5, config.audio_layers, config.audio_dim)
    masks = torch.zeros(3, H, W)
    masks[0, 1:5, :3], masks[1, 1:5, 5:] = 1, 1
    masks[2] = 1 - masks[:2].amax(dim=0)
    return {
        "latents": randn(1, 16, T, H, W),
        "condition": randn(1, 20, T, H, W),
        "t": TIME,
        "context": dit.embed_context(randn(5, config.text_dim), randn(1, 257, config.image_dim)),
        "audio_tokens": dit.embed_audio(windows),
        "speaker_masks": masks,
    }


def to_bfloat16(dit: DiT) -> DiT:
    """The model as a loader would leave it in a bfloat16 run."""
    for name, parameter in dit.named_parameters():
        if not dit.keeps_float32(name):
            parameter.data = parameter.data.to(torch.bfloat16)
    return dit


class TestSizes:
    def test_published_config_gives_every_published_tensor(self) -> None:
        with torch.device("meta"):
            tensors = DiT(DiTConfig.from_json(PUBLISHED)).state_dict()
        adapter = [name for name in tensors if "audio_" in name or ".norm_x." in name]
        in_block = [name for name in tensors if name.startswith("blocks.39.")]
        assert (len(tensors), len(adapter)) == (1633, 330)
        assert sum(t.numel() for t in tensors.values()) == 18_882_046_784
        assert sum(tensors[name].numel() for name in adapter) == 2_487_168_000
        assert sum(tensors[name].numel() for name in in_block) == 464_162_304

    def test_config_takes_the_adapter_sizes_under_their_stored_names(self) -> None:
        stored = {**PUBLISHED, "text_dim": 64, "intermediate_dim": 32, "output_dim": 48, "context_tokens": 8}
        config = DiTConfig.from_json(stored)
        sizes = (config.text_dim, config.audio_hidden_dim, config.audio_token_dim, config.audio_tokens)
        assert sizes == (64, 32, 48, 8)

    def test_config_defaults_to_the_published_adapter(self) -> None:
        config = DiTConfig.from_json(PUBLISHED)
        sizes = (config.text_dim, config.audio_hidden_dim, config.audio_token_dim, config.audio_tokens)
        assert sizes == (4096, 512, 768, 32)
        assert config.head_dim == 128

    def test_config_without_a_size_names_it(self) -> None:
        with pytest.raises(ValueError, match="ffn_dim, num_heads"):
            DiTConfig.from_json({key: PUBLISHED[key] for key in ("dim", "freq_dim", "num_layers")})

    @pytest.mark.parametrize("num_heads", [3, 5120])
    def test_config_refuses_heads_that_do_not_divide_the_width_evenly(self, num_heads: int) -> None:
        with pytest.raises(ValueError, match="heads do not divide"):
            DiTConfig.from_json({**PUBLISHED, "num_heads": num_heads})


class TestTime:
    def test_features_are_cosines_then_sines(self) -> None:
        dit = tiny_dit(replace(TINY, freq_dim=256))
        seen: list[Tensor] = []
        dit.time_embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for t in (1000.0, 500.0):
            dit.embed_time(torch.tensor(t))
        picked = torch.cat(seen)[:, [0, 1, 127, 128, 129, 255]]
        expected = [
            [0.562379, 0.789615, 0.994232, 0.826880, 0.613603, 0.107254],
            [-0.883849, 0.945943, 0.998557, -0.467772, 0.324334, 0.053705],
        ]
        torch.testing.assert_close(picked, torch.tensor(expected), atol=1e-6, rtol=0)

    def test_fractions_of_a_time_step_count(self) -> None:
        dit = tiny_dit()
        assert not torch.equal(dit.embed_time(torch.tensor(22.5))[1], dit.embed_time(torch.tensor(22.0))[1])

    def test_shapes_for_head_and_blocks(self) -> None:
        for_head, for_blocks = tiny_dit().embed_time(TIME)
        assert for_head.shape == (1, 64)
        assert for_blocks.shape == (1, 6, 64)


class TestContext:
    def test_text_is_padded_with_zero_rows_before_it_is_embedded(self) -> None:
        dit, image = tiny_dit(), torch.randn(1, 257, TINY.image_dim)
        text = torch.randn(5, TINY.text_dim)
        padded = torch.cat((text, torch.zeros(3, TINY.text_dim)))
        short, long = dit.embed_context(text, image), dit.embed_context(padded, image)
        assert torch.equal(short.text, long.text)
        assert short.text[0, -1].abs().max() > 0

    def test_padding_is_attended_to(self) -> None:
        dit = tiny_dit()
        given = inputs(dit)
        context = given["context"]
        without = Context(context.text[:, :5], context.image)
        assert not torch.allclose(dit(**given), dit(**{**given, "context": without}))

    def test_too_long_text_is_refused(self) -> None:
        with pytest.raises(ValueError, match="9 text tokens, at most 8"):
            tiny_dit().embed_context(torch.zeros(9, TINY.text_dim), torch.zeros(1, 257, TINY.image_dim))


class TestForward:
    def test_velocity_has_the_shape_of_the_latents(self) -> None:
        dit = tiny_dit()
        given = inputs(dit)
        velocity = dit(**given)
        assert velocity.shape == given["latents"].shape
        assert velocity.dtype == torch.float32

    def test_channel_is_the_fastest_index_of_a_patch(self) -> None:
        dit = tiny_dit()
        volume = 4 * TINY.out_dim
        nn.init.zeros_(dit.head.head.weight)
        dit.head.head.bias.copy_(torch.arange(volume, dtype=torch.float32))
        velocity = dit(**inputs(dit))
        for row, column, channel in ((0, 0, 3), (0, 1, 0), (1, 0, 0), (5, 7, 15)):
            expected = ((row % 2) * 2 + column % 2) * TINY.out_dim + channel
            assert (velocity[0, channel, :, row, column] == expected).all()

    @pytest.mark.parametrize("name", ["latents", "condition", "audio_tokens"])
    def test_every_input_steers_the_result(self, name: str) -> None:
        dit = tiny_dit()
        given = inputs(dit)
        assert (dit(**{**given, name: -given[name]}) - dit(**given)).abs().max() > 1e-3

    def test_pass_of_another_size_leaves_nothing_behind(self) -> None:
        dit = tiny_dit()
        given = inputs(dit)
        first = dit(**given)
        dit(**{**given, "latents": given["latents"][..., :4], "condition": given["condition"][..., :4]})
        assert torch.equal(first, dit(**given))

    def test_linear_layers_may_be_replaced_by_modules_without_a_weight(self) -> None:
        dit = tiny_dit()
        given = inputs(dit, num_speakers=2)
        expected = dit(**given)
        for name, linear in [(n, m) for n, m in dit.named_modules() if isinstance(m, nn.Linear)]:
            parent, _, child = name.rpartition(".")
            setattr(dit.get_submodule(parent), child, Replaced(linear))
        assert torch.equal(dit(**given), expected)


class Replaced(nn.Module):
    """A linear layer that answers calls and has no other attribute of one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.stored = [linear]

    def forward(self, x: Tensor) -> Tensor:
        return self.stored[0](x)


class TestResidual:
    def test_reused_residual_stands_in_for_the_blocks(self) -> None:
        dit, residual = tiny_dit(), BlockResidual()
        given = inputs(dit)
        ran: list[int] = []
        dit.blocks[0].register_forward_pre_hook(lambda *_: ran.append(1))
        computed = dit(**given, residual=residual)
        residual.reuse = True
        reused = dit(**given, residual=residual)
        assert len(ran) == 1
        torch.testing.assert_close(reused, computed, atol=1e-5, rtol=1e-5)

    def test_pass_that_is_not_reused_renews_the_residual(self) -> None:
        dit, residual = tiny_dit(), BlockResidual()
        given = inputs(dit)
        dit(**given, residual=residual)
        first = residual.value
        dit(**{**given, "t": torch.tensor(10.0)}, residual=residual)
        assert first is not None
        assert residual.value is not None
        assert not torch.allclose(first, residual.value)

    def test_residual_does_not_change_a_computed_pass(self) -> None:
        dit = tiny_dit()
        given = inputs(dit)
        assert torch.equal(dit(**given, residual=BlockResidual()), dit(**given))


class TestSpeakers:
    def test_one_speaker_needs_no_masks_and_ignores_them(self) -> None:
        dit = tiny_dit()
        given = inputs(dit)
        assert torch.equal(dit(**given), dit(**{**given, "speaker_masks": None}))

    def test_map_is_not_computed_for_one_speaker(self) -> None:
        dit = tiny_dit()
        seen: list[Tensor | None] = []
        dit.blocks[0].self_attn.register_forward_hook(lambda _, __, out: seen.append(out[1]))  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        dit(**inputs(dit))
        assert seen == [None]

    def test_masks_say_where_each_speaker_is_heard(self) -> None:
        dit = tiny_dit()
        given = inputs(dit, num_speakers=2)
        swapped = given["speaker_masks"][[1, 0, 2]]
        assert (dit(**given) - dit(**{**given, "speaker_masks": swapped})).abs().max() > 1e-3

    def test_two_speakers_without_masks_are_refused(self) -> None:
        dit = tiny_dit()
        with pytest.raises(ValueError, match="no masks"):
            dit(**{**inputs(dit, num_speakers=2), "speaker_masks": None})

    def test_three_speakers_are_refused(self) -> None:
        dit = tiny_dit()
        with pytest.raises(ValueError, match="3 speakers"):
            dit(**inputs(dit, num_speakers=3))

    def test_empty_background_leaves_the_speakers_apart(self) -> None:
        dit = tiny_dit()
        given = inputs(dit, num_speakers=2)
        given["speaker_masks"][2] = 0
        ours, reference = dit(**given), dit(**given, empty_mask="nan")
        nobody_is_near = dit(**{**given, "speaker_masks": given["speaker_masks"][[1, 0, 2]]}, empty_mask="nan")
        assert torch.isfinite(ours).all()
        # With NaN every token counts as background, so it no longer matters who sits where.
        assert torch.equal(reference, nobody_is_near)
        assert (ours - reference).abs().max() > 1e-3


class TestBFloat16:
    def test_time_modulation_and_head_stay_float32(self) -> None:
        kept = {name for name in tiny_dit().state_dict() if DiT.keeps_float32(name)}
        expected = {f"{layer}.{kind}" for layer in FLOAT32_LAYERS for kind in ("weight", "bias")}
        assert kept == expected | {"head.modulation", "blocks.0.modulation", "blocks.1.modulation"}

    def test_blocks_hand_on_bfloat16_and_the_velocity_is_float32(self) -> None:
        dit = to_bfloat16(tiny_dit())
        seen: set[torch.dtype] = set()
        for block in dit.blocks:
            block.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
        velocity = dit(**inputs(dit, num_speakers=2))
        assert seen == {torch.bfloat16}
        assert velocity.dtype == torch.float32

    @pytest.mark.parametrize("num_speakers", [1, 2])
    def test_velocity_is_near_that_of_float32(self, num_speakers: int) -> None:
        exact, rounded = tiny_dit(), to_bfloat16(tiny_dit())
        expected = exact(**inputs(exact, num_speakers))
        actual = rounded(**inputs(rounded, num_speakers))
        assert (actual - expected).std() < 0.02 * expected.std()

    def test_time_is_not_rounded(self) -> None:
        exact, rounded = tiny_dit(), to_bfloat16(tiny_dit())
        assert torch.equal(exact.embed_time(TIME)[1], rounded.embed_time(TIME)[1])

    def test_lower_precision_audio_and_text_are_accepted(self) -> None:
        dit = to_bfloat16(tiny_dit())
        windows = torch.randn(1, 9, 5, TINY.audio_layers, TINY.audio_dim)
        context = dit.embed_context(torch.randn(3, TINY.text_dim), torch.randn(1, 257, TINY.image_dim).half())
        assert {context.text.dtype, context.image.dtype, dit.embed_audio(windows).dtype} == {torch.bfloat16}


FLOAT32_LAYERS = ("time_embedding.0", "time_embedding.2", "time_projection.1", "head.head")


@pytest.mark.parametrize("num_speakers", [1, 2])
@pytest.mark.parametrize("portions", [Portions(ffn=100), Portions(attention=50), Portions(ffn=7, attention=1)])
def test_portions_change_no_result(num_speakers: int, portions: Portions) -> None:
    dit = tiny_dit()
    given = inputs(dit, num_speakers)
    expected = dit(**given)
    dit.portions = portions
    torch.testing.assert_close(dit(**given), expected, atol=2e-6, rtol=1e-5)


def test_portions_of_tokens_are_about_equal_and_cover_all() -> None:
    parts = Portions(attention=8).attention_parts(TokenShare(0, 21, 21))
    assert parts == [slice(0, 7), slice(7, 14), slice(14, 21)]
    assert Portions().attention_parts(TokenShare(0, 21, 21)) == [slice(0, 21)]
    assert Portions(attention=8).attention_parts(TokenShare(21, 42, 42)) == [slice(0, 21)]
