"""A child process of the doctor: tries what only a run can tell, one JSON object at a time as each is known.

Run as a program it imports torch, so a driver that crashes takes this process along and not the doctor; what was found
before is on stdout already. Each probe runs a tiny kernel and compares it with plain arithmetic.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

OPTIONAL = ("flash_attn", "sageattention", "triton")
ROWS, WIDTH, HEADS = 64, 128, 2
TOLERANCE = 0.1
"""Largest difference of a probe's result, relative to its largest value, in 8 and 16 bits."""


def main() -> None:
    """Print the result of every probe as a line of JSON: name, ok, detail."""
    torch: Any = import_module("torch")
    if not torch.cuda.is_available():
        _tell("torch sees the gpu", False, f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees none")
        return
    name, capability = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
    built = ", ".join(torch.cuda.get_arch_list())
    _tell("torch sees the gpu", True, f"{name}, compute capability {capability[0]}.{capability[1]}; built for {built}")
    for probe, run in PROBES.items():
        try:
            _tell(probe, True, run(torch))
        except ModuleNotFoundError as error:
            _tell(probe, error.name in OPTIONAL, f"{error.name} is not installed")
        except Exception as error:  # whatever a kernel says is the result
            _tell(probe, False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200])


def _tell(name: str, ok: bool, detail: str) -> None:
    sys.stdout.write(json.dumps({"name": name, "ok": ok, "detail": detail}) + "\n")
    sys.stdout.flush()


def _matmul(torch: Any) -> str:
    a = torch.randn(ROWS, WIDTH, device="cuda", dtype=torch.bfloat16)
    _compare(a @ a.T, a.float() @ a.float().T)
    return "a bfloat16 product is right"


def _fp8_matmul(torch: Any) -> str:
    a, b = (torch.randn(ROWS, WIDTH, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device="cuda")
    found = torch._scaled_mm(a, b.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    _compare(found, a.float() @ b.float().T)
    return "an fp8 product is right"


def _int8_matmul(torch: Any) -> str:
    a, b = (torch.randint(-9, 9, (ROWS, WIDTH), device="cuda", dtype=torch.int8) for _ in range(2))
    _compare(torch._int_mm(a, b.T.contiguous()), a.float() @ b.float().T)
    return "an 8-bit integer product is right"


def _sdpa(backend: str) -> Callable[[Any], str]:
    def run(torch: Any) -> str:
        attention: Any = import_module("torch.nn.attention")
        q, k, v = _heads(torch)
        with attention.sdpa_kernel([getattr(attention.SDPBackend, backend)]):
            found = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        _compare(found, _plain(torch, q, k, v))
        return "runs and is right"

    return run


def _flash_attn(torch: Any) -> str:
    q, k, v = _heads(torch)
    turned = [part.transpose(1, 2).contiguous() for part in (q, k, v)]
    _compare(import_module("flash_attn").flash_attn_func(*turned).transpose(1, 2), _plain(torch, q, k, v))
    return "runs and is right"


def _sage(torch: Any) -> str:
    q, k, v = _heads(torch)
    _compare(import_module("sageattention").sageattn(q, k, v, tensor_layout="HND"), _plain(torch, q, k, v))
    return "runs and is right"


def _int8_attention(torch: Any) -> str:
    q, k, v = _heads(torch)
    turned = [part.transpose(1, 2).contiguous() for part in (q, k, v)]
    found = import_module("infinitalk_cli.models.attention_int8").attention_int8(*turned)
    _compare(found.transpose(1, 2), _plain(torch, q, k, v))
    return "runs and is right"


def _heads(torch: Any) -> list[Any]:
    return [torch.randn(1, HEADS, 2 * ROWS, WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(3)]


def _plain(torch: Any, q: Any, k: Any, v: Any) -> Any:
    weights = torch.softmax(q.float() @ k.float().transpose(-1, -2) / WIDTH**0.5, dim=-1)
    return weights @ v.float()


def _compare(found: Any, wanted: Any) -> None:
    """Raises: ValueError: if the two differ by more than rounding explains."""
    worst = float((found.float() - wanted).abs().max() / wanted.abs().max())
    if not worst <= TOLERANCE:
        raise ValueError(f"the result is wrong by {worst:.0%}")


PROBES: dict[str, Callable[[Any], str]] = {
    "bfloat16": _matmul,
    "fp8": _fp8_matmul,
    "int8": _int8_matmul,
    "attention: torch flash": _sdpa("FLASH_ATTENTION"),
    "attention: torch efficient": _sdpa("EFFICIENT_ATTENTION"),
    "attention: cudnn": _sdpa("CUDNN_ATTENTION"),
    "attention: flash-attn": _flash_attn,
    "attention: sageattention": _sage,
    "attention: int8": _int8_attention,
}

REQUIRED = frozenset({"torch sees the gpu", "bfloat16"})
"""Probes without which nothing runs; the others cost speed alone."""


if __name__ == "__main__":
    main()
