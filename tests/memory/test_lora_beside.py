"""LoRAs beside the weights: the same as merged where that is exact, nearer to the truth where weights are in 8 bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infinitalk_cli.memory.block_stages import StreamedStage
from infinitalk_cli.memory.loading import load_into
from infinitalk_cli.memory.lora import Lora, LoraPlan, merge_loras, plan_loras
from infinitalk_cli.memory.lora_beside import put_beside
from infinitalk_cli.memory.offload import BlockOffloader
from infinitalk_cli.memory.quant import QuantizedLinear, quantize_rows, swap_quantized_linears
from tests.memory.refs import NOWHERE, refs_of

WIDTH, HIDDEN, RANK, NUM_BLOCKS = 64, 96, 4, 3
EIGHT_BIT = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


class Block(nn.Module):
    """Two layers with a GELU between, which a second layer in 8 bits takes upon itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.ffn = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(approximate="tanh"), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        hidden, second = self.ffn[0](self.norm(x)), self.ffn[2]
        if isinstance(second, QuantizedLinear):
            return x + second.after_gelu(hidden)
        return x + second(F.gelu(hidden, approximate="tanh"))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(4, 8, (1, 2, 2))
        self.blocks = nn.ModuleList(Block() for _ in range(NUM_BLOCKS))
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights(form: str) -> dict[str, Tensor]:
    """Of a network; of its blocks' layers the 8-bit form, if that is wanted."""
    torch.manual_seed(0)
    state = dict(Net().state_dict())
    if form not in EIGHT_BIT:
        return state
    for name in [name for name in state if ".ffn." in name and name.endswith("weight")]:
        state[f"{name}._data"], state[f"{name}._scale"] = quantize_rows(state.pop(name), EIGHT_BIT[form])
    return state


def lora(seed: int, scale: float, strength: float = 0.1, rank: int = RANK) -> Lora:
    """Pairs for all layers of the blocks and for the head, with an alpha, and a bias."""
    tensors: dict[str, Tensor] = {"head.lora_A.weight": random(7, rank, WIDTH) / 8}
    tensors["head.lora_B.weight"] = random(8, WIDTH, rank) * strength
    for number in range(NUM_BLOCKS):
        for leaf, (width, out) in {"0": (WIDTH, HIDDEN), "2": (HIDDEN, WIDTH)}.items():
            layer = f"diffusion_model.blocks.{number}.ffn.{leaf}"
            tensors[f"{layer}.lora_down.weight"] = random(seed + number, rank, width) / width**0.5
            tensors[f"{layer}.lora_up.weight"] = random(seed + 50 + number, out, rank) * strength / rank**0.5
            tensors[f"{layer}.alpha"] = torch.tensor(rank / 2)
        tensors[f"diffusion_model.blocks.{number}.ffn.0.diff_b"] = random(seed + 90 + number, HIDDEN) / 8
        tensors[f"diffusion_model.blocks.{number}.norm.diff"] = random(seed + 95 + number, WIDTH) / 8
    return Lora(NOWHERE, scale, refs_of(tensors))


def pairs_alone(whole: Lora) -> Lora:
    """Of a LoRA what is beside the weights."""
    kept = {name: ref for name, ref in whole.tensors.items() if ".ffn." in name and "diff_b" not in name}
    return Lora(whole.path, whole.scale, kept)


def build(form: str, loras: list[Lora], dtype: torch.dtype = torch.float32, *, beside: bool) -> tuple[Net, LoraPlan]:
    """A network with LoRAs, and what of them was merged. The head is never beside."""
    with torch.device("meta"):
        net = Net()
    plan = plan_loras(net, loras)
    named = swap_quantized_linears(net, refs_of(weights(form)))
    if beside:
        named, plan = put_beside(net, named, plan, where=lambda layer: layer.startswith("blocks."))
    load_into(net, named, what="the network", dtype_of=lambda name, stored: dtype)
    merge_loras(net, plan)
    return net, plan


@torch.no_grad()
def output(net: Net, dtype: torch.dtype = torch.float32) -> Tensor:
    return net(random(3, 2, 20, WIDTH).to(dtype)).float()


def off(made: Tensor, expected: Tensor) -> float:
    return ((made - expected).norm() / expected.norm()).item()


TWO = [lora(100, 0.7), lora(200, -1.3, rank=2 * RANK)]


def test_what_is_of_low_rank_goes_beside_and_the_rest_is_merged() -> None:
    net, merged = build("none", TWO, beside=True)
    stored = weights("none")
    layer = net.blocks[1].get_submodule("ffn.0")
    assert layer.get_parameter("side_down").shape == (3 * RANK, WIDTH)
    assert layer.get_parameter("side_up").shape == (HIDDEN, 3 * RANK)
    assert torch.equal(layer.get_parameter("weight"), stored["blocks.1.ffn.0.weight"])
    changed = {
        name for name, value in net.named_parameters() if name in stored and not torch.equal(value, stored[name])
    }
    blocks = {f"blocks.{number}.{leaf}" for number in range(NUM_BLOCKS) for leaf in ("ffn.0.bias", "norm.weight")}
    assert changed == set(merged.parameters) == {"head.weight", *blocks}


@pytest.mark.parametrize("form", ["none", *EIGHT_BIT])
def test_in_float32_the_sum_is_that_of_weights_with_the_products_in_them(form: str) -> None:
    net, _ = build(form, TWO, beside=True)
    merged, _ = build("none", TWO, beside=False)
    if form in EIGHT_BIT:  # the truth for these weights: their values in full, and the products added to them
        state = merged.state_dict()
        plain = dict(build(form, [], beside=False)[0].named_modules())
        products = plan_loras(merged, TWO)
        for name in [name for name in state if ".ffn." in name and name.endswith("weight")]:
            held = plain[name.removesuffix(".weight")]
            assert isinstance(held, QuantizedLinear)
            state[name] = held.dequantized() + sum(products.additions_to(name, torch.device("cpu")))
        merged.load_state_dict(state)
    assert off(output(net), output(merged)) < 1e-6


def test_in_bfloat16_it_is_as_near_to_the_truth_as_merged() -> None:
    expected = output(build("none", TWO, beside=False)[0])
    errors = {
        beside: off(output(build("none", TWO, torch.bfloat16, beside=beside)[0], torch.bfloat16), expected)
        for beside in (True, False)
    }
    assert errors[True] < 1.1 * errors[False] < 0.01, errors


@pytest.mark.parametrize(("form", "beside", "merged"), [("fp8", 0.012, 0.0176), ("int8", 0.0020, 0.0029)])
def test_in_8_bits_it_is_nearer_to_the_truth_than_merged(form: str, beside: float, merged: float) -> None:
    expected = output(build("none", TWO, beside=False)[0])
    errors = [off(output(build(form, TWO, beside=kept)[0]), expected) for kept in (True, False)]
    assert errors == pytest.approx([beside, merged], rel=0.15)


def test_a_weak_lora_is_mostly_rounded_away_when_merged_into_fp8_but_whole_beside() -> None:
    weak = [pairs_alone(lora(100, 1.0, strength=0.01))]
    without, merged, kept = (
        output(build("fp8", loras, beside=beside)[0]) for loras, beside in (([], False), (weak, False), (weak, True))
    )
    effect = output(build("none", weak, beside=False)[0]) - output(build("none", [], beside=False)[0])
    shares = [((made - without) * effect).sum().item() / effect.square().sum().item() for made in (merged, kept)]
    assert shares == pytest.approx([0.26, 1.0], abs=0.02)  # the share of the LoRA's effect that is there


@pytest.mark.parametrize("form", ["none", *EIGHT_BIT])
def test_the_matrices_travel_with_their_block_and_change_no_bit(form: str) -> None:
    net, _ = build(form, TWO, torch.bfloat16, beside=True)
    expected = output(net, torch.bfloat16)
    offloader = BlockOffloader(list(net.blocks), torch.device("cpu"), num_resident=1)
    for block in net.blocks:
        storages = {tensor.untyped_storage().data_ptr() for tensor in block.parameters()}
        assert (len(storages) == 1) == offloader.is_streamed(block)
    assert torch.equal(output(net, torch.bfloat16), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["none", *EIGHT_BIT])
def test_streamed_equals_resident_bit_for_bit_with_loras_beside(form: str) -> None:
    nets = [build(form, TWO, torch.bfloat16, beside=True)[0] for _ in range(2)]
    x = random(3, 2, 20, WIDTH).to("cuda", torch.bfloat16)
    resident, streamed = nets[0].cuda(), nets[1]
    with torch.no_grad():
        expected = resident(x)
        offloader = BlockOffloader(list(streamed.blocks), x.device)
        with StreamedStage(streamed, offloader).running():
            assert all(torch.equal(streamed(x), expected) for _ in range(2))
