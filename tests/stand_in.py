"""`talk generate` with a stand-in for the engine: what the commands say is looked at, and nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from typer.testing import CliRunner, Result

from infinitalk_cli.main import app
from infinitalk_cli.progress import OnProgress, Progress
from infinitalk_cli.request import GenerateRequest, GenerateResult


@dataclass
class Engine:
    """Takes the runner's place: keeps the requests, and answers or fails as told."""

    requests: list[GenerateRequest] = field(default_factory=list)
    failure: BaseException | None = None

    def generate(
        self, request: GenerateRequest, on_progress: OnProgress, on_note: Callable[[str], None], warm: object = None
    ) -> GenerateResult:
        self.requests.append(request)
        on_note("note: from the engine")
        on_progress(Progress(stage="video", chunk=1, num_chunks=1))
        if self.failure is not None:
            raise self.failure
        request.output.parent.mkdir(exist_ok=True)
        request.output.write_bytes(b"mp4")
        return GenerateResult(request.output, width=64, height=96, num_frames=70, fps=25, num_chunks=3, elapsed_s=9.0)

    @property
    def request(self) -> GenerateRequest:
        """The only request there was."""
        assert len(self.requests) == 1
        return self.requests[0]


def talk(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def generate(*arguments: str) -> Result:
    """A run with the demo profile, which needs no weights."""
    return talk("generate", *arguments, "--profile", "demo")


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def lay_plain_weights(root: Path) -> None:
    """Empty files under the names of a MultiTalk download."""
    base = [f"diffusion_pytorch_model-0000{number}-of-00007.safetensors" for number in range(1, 8)]
    base += ["config.json", "google/umt5-xxl/tokenizer.json", "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"]
    base += ["models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"]
    speech = ["config.json", "preprocessor_config.json", "model.safetensors"]
    names = [f"Wan2.1-I2V-14B-480P/{name}" for name in base] + [f"chinese-wav2vec2-base/{name}" for name in speech]
    for name in [*names, "MeiGen-MultiTalk/multitalk.safetensors"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
