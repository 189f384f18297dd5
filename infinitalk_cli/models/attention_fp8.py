"""Self-attention in fp8 (e4m3) through cuDNN, from compute capability 9.0: faster than bfloat16, and not exact.

Queries, keys and values are rounded to 8 bits with one scale each, so that the largest value just fits; so are the
weights of the softmax, within the kernel, and its output, which can't be larger than the largest value. On normal
random numbers the result is 6 % off, 4.7 % of it from rounding the inputs; torch has no way to this kernel, so the
package nvidia-cudnn-frontend must be installed. It is never chosen, only asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

LARGEST = 448.0  # of e4m3
SOFTMAX_SCALE = 256.0
"""What the softmax's weights, at most 1, are multiplied with before they are rounded."""
_BLOCK = 8192


def attention_fp8(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention. Args: q, k, v: `(1, L, H, D)` of one half-precision dtype. Returns: the same shape and dtype.

    Raises: ImportError, RuntimeError: if cuDNN's front end is not there or has no such kernel for the GPU.
    """
    graph = _graph(q.shape[1], k.shape[1], q.shape[2], q.shape[3], q.device)
    (q8, q_back), (k8, k_back), (v8, v_back) = (_to_fp8(x) for x in (q, k, v))
    out8 = torch.empty_like(q8)
    graph.run(q8, k8, v8, out8, q_back, k_back, v_back)
    return _rescaled(out8, v_back, q.dtype)


def _to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` in 8 bits, and the factor `(1,)` that leads back."""
    low, high = x.aminmax()
    back = (torch.maximum(-low, high).float() / LARGEST).clamp_min(1e-12).view(1)
    return _rescaled(x, 1 / back, torch.float8_e4m3fn), back


def _rescaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`x * factor` in another dtype, in one pass over memory."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    kernels: Any = import_module("infinitalk_cli.models.triton_kernels")
    kernels.rescale[(-(-x.numel() // _BLOCK),)](x, factor, out, x.numel(), LARGEST=LARGEST, BLOCK=_BLOCK, num_warps=8)
    return out


@dataclass(frozen=True)
class _Graph:
    """A compiled kernel of cuDNN for one shape, with its workspace. `ends`: its inputs and outputs by name."""

    graph: Any
    handle: Any
    cudnn: Any
    ends: dict[str, Any]
    workspace: Tensor
    numbers: dict[str, Tensor]

    def run(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, q_back: Tensor, k_back: Tensor, v_back: Tensor) -> None:
        given = {"q": q, "k": k, "v": v, "out": out, **self.numbers}
        given |= {"descale_q": q_back, "descale_k": k_back, "descale_v": v_back, "scale_o": 1 / v_back}
        self.cudnn.set_stream(self.handle, torch.cuda.current_stream(q.device).cuda_stream)
        self.graph.execute({self.ends[name]: tensor for name, tensor in given.items()}, self.workspace, self.handle)


@cache
def _graph(num_queries: int, num_keys: int, num_heads: int, width: int, device: torch.device) -> _Graph:
    cudnn: Any = import_module("cudnn")
    fp8, float32 = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
    handle = cudnn.create_handle()
    graph = cudnn.pygraph(io_data_type=fp8, intermediate_data_type=float32, compute_data_type=float32, handle=handle)

    def shape(length: int) -> dict[str, list[int]]:
        stride = [length * num_heads * width, width, num_heads * width, 1]
        return {"dim": [1, num_heads, length, width], "stride": stride}

    one = {"dim": [1, 1, 1, 1], "stride": [1, 1, 1, 1]}
    ends = {
        name: graph.tensor(name=name, data_type=fp8, **shape(length))
        for name, length in (("q", num_queries), ("k", num_keys), ("v", num_keys))
    }
    scales = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
    ends |= {name: graph.tensor(name=name, data_type=float32, **one) for name in scales}
    out, _, *largest = graph.sdpa_fp8(**ends, is_inference=True, attn_scale=width**-0.5, use_causal_mask=False)
    given = shape(num_queries)
    out.set_output(True).set_dim(given["dim"]).set_stride(given["stride"]).set_data_type(fp8)
    for name, end in zip(("amax_s", "amax_o"), largest, strict=True):  # not used, but the kernel writes them
        end.set_output(True).set_dim(one["dim"]).set_stride(one["stride"]).set_data_type(float32)
        ends[name] = end
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    graph.check_support()
    graph.build_plans()
    workspace = torch.empty(max(1, graph.get_workspace_size()), dtype=torch.uint8, device=device)
    numbers = {"descale_s": 1 / SOFTMAX_SCALE, "scale_s": SOFTMAX_SCALE, "amax_s": 0.0, "amax_o": 0.0}
    held = {name: torch.full((1,), value, device=device) for name, value in numbers.items()}
    return _Graph(graph, handle, cudnn, {**ends, "out": out}, workspace, held)
