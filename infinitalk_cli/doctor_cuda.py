"""Whether the CUDA driver starts, asked in a child process: a driver that crashes or hangs there is a result here.

NVML answers also where CUDA can't start: without the fabric manager of an NVSwitch machine, without /dev/nvidia-uvm in
a container, after an update without a restart. torch would tell, but takes seconds to load, so the library below it is
asked, as the doctor is to answer in two. `talk doctor --deep` asks torch.

Run as a program this prints what the driver says, one JSON object.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from typing import Any

from infinitalk_cli.doctor_machine import Check
from infinitalk_cli.hardware import Gpu, Hardware, cuda_environment

LIMIT_S = 15.0
PROGRAM = (sys.executable, "-m", "infinitalk_cli.doctor_cuda")

FIXES = {
    2: "close other programs on the GPU",
    46: "another program has the GPU for itself: `nvidia-smi -q -d COMPUTE` shows the compute mode",
    100: "unset CUDA_VISIBLE_DEVICES; in a container, start it with --gpus all",
    802: "sudo systemctl start nvidia-fabricmanager",
    803: "sudo reboot",
    999: "sudo modprobe nvidia_uvm",
}
"""What mends CUDA's error codes (cuda.h)."""


def check_cuda(hardware: Hardware, gpu: Gpu, program: tuple[str, ...] = PROGRAM, limit_s: float = LIMIT_S) -> Check:
    """Start CUDA on the GPU. `program`: what is run."""
    environment = {**os.environ, **cuda_environment(hardware, gpu)}
    try:
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Check("cuda", False, True, f"the driver does not answer in {limit_s:g} s", "sudo reboot")
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        told = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        return Check("cuda", False, True, f"asking the driver ends with code {done.returncode}: {told}", "sudo reboot")
    if answer["code"] == 0:
        return Check("cuda", True, True, f"starts, {answer['count']} device{'s' * (answer['count'] != 1)} to use")
    fix = FIXES.get(answer["code"], "sudo reboot")
    return Check("cuda", False, True, f"does not start: {answer['name']} ({answer['code']})", fix)


def main() -> None:
    """Ask the driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError as error:
        sys.stdout.write(json.dumps({"code": 999, "name": str(error), "count": 0}))
        return
    count, name = ctypes.c_int(), ctypes.c_char_p()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    driver.cuGetErrorName(code, ctypes.byref(name))
    told = (name.value or b"unknown").decode(errors="replace")
    sys.stdout.write(json.dumps({"code": code, "name": told, "count": count.value}))


if __name__ == "__main__":
    main()
