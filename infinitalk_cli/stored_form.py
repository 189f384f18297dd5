"""Whether a transformer's blocks can be read from their files in every pass, told by headers alone, without torch.

A block that RAM has no room for is read as it lies in its file, so the file must hold it as it is computed with. That
goes for 8-bit files, and for bfloat16 ones on a GPU; not for the published base in float32, nor for what is rounded to
8 bits while it is read. `memory/stored.py` decides it tensor by tensor, with the same share.
"""

from __future__ import annotations

import math

from infinitalk_cli.file_headers import BYTES_OF_DTYPE, DamagedHeaderError, read_safetensors_header
from infinitalk_cli.weights import WeightFiles

LEAST_SHARE = 0.9
"""Of the blocks' bytes that must be in files as they are computed with."""

EIGHT_BITS = frozenset({"F8_E4M3", "F8_E5M2", "I8"})


def is_stored_as_computed(files: WeightFiles, dtype: str) -> bool:
    """Whether nearly all of the blocks is. `dtype`: of all that is not in 8 bits, "auto", "bfloat16" or "float32".

    Files that can't be read make no difference here: loading will name them.
    """
    computed = EIGHT_BITS
    if files.round_to == "none":
        computed |= {"F32" if dtype == "float32" else "BF16"}
    tensors: dict[str, tuple[str, int]] = {}
    for path in (*files.dit_shards, *((files.adapter,) if files.adapter else ())):
        try:
            header = read_safetensors_header(path)
        except (OSError, DamagedHeaderError):
            return False
        sizes = {name: (form, BYTES_OF_DTYPE[form] * math.prod(shape)) for name, (form, shape) in header.items()}
        tensors |= {name: size for name, size in sizes.items() if "blocks." in name}
    as_computed = sum(num_bytes for form, num_bytes in tensors.values() if form in computed)
    return as_computed > 0 and as_computed >= LEAST_SHARE * sum(num_bytes for _, num_bytes in tensors.values())
