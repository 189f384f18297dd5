"""Trains the audio encoder: after each layer a linear map must tell how far and how wide the mouth is open.

`python -m training.demo.train_audio --data DIR --out DIR --minutes 2.5` writes `audio.safetensors` in wav2vec2's
published names. The maps are thrown away; what counts is that every layer's states hold what a mouth needs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from infinitalk_cli.models.audio_encoder import AudioEncoder, frame_positions
from training.demo.networks import AUDIO, AUDIO_FILE, new_audio_encoder, published_audio_names, save_half
from training.demo.pace import Averaged, Log, Pace, optimizer_for, pick_device, take_step
from training.demo.speech import Corpus, disturbed, mouth_opening, mouth_width

PEAK = 8e-4
WIDTH_WEIGHT = 0.3


class Hearing(nn.Module):
    """The encoder with its maps. Results: opening and width of every frame from every layer."""

    def __init__(self, encoder: AudioEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.maps = nn.ModuleList(nn.Linear(AUDIO.dim, 2) for _ in range(AUDIO.num_layers))

    def forward(self, waveforms: Tensor, num_frames: int) -> Tensor:
        """`(B, samples)` to `(B, num_frames, layers, 2)`."""
        states = layer_states(self.encoder, waveforms, num_frames)
        return torch.stack([read(states[:, :, index]) for index, read in enumerate(self.maps)], dim=2)


def layer_states(encoder: AudioEncoder, waveforms: Tensor, num_frames: int) -> Tensor:
    """What `AudioEncoder.embed` gives, for a batch and with gradients: `(B, num_frames, layers, dim)`."""
    vectors = encoder.model.feature_extractor(waveforms).transpose(1, 2)
    places = frame_positions(0, num_frames, num_frames, vectors.shape[1]).to(vectors.device)
    low = places.long().clamp(max=vectors.shape[1] - 1)
    high = (low + 1).clamp(max=vectors.shape[1] - 1)
    features = torch.lerp(vectors[:, low], vectors[:, high], (places - low).to(vectors.dtype)[:, None])
    found: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        del module, args
        found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in encoder.model.encoder.layers]
    try:
        encoder.model.encoder(encoder.model.feature_projection(features)[0])
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found, dim=2)


def correlation(first: Tensor, second: Tensor) -> float:
    """Of two tensors of numbers."""
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's audio encoder.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    wish = parser.parse_args()
    wish.out.mkdir(parents=True, exist_ok=True)
    train(wish, pick_device(wish.device), Log(wish.out / "log.jsonl", "audio"))


def train(wish: argparse.Namespace, device: torch.device, log: Log) -> None:
    """Until the time is up; then the held-out clips are read and the encoder is stored."""
    generator = torch.Generator(device).manual_seed(wish.seed)
    clean = Corpus.load(wish.data / "speech.npz").waveforms(device)
    hearing = Hearing(new_audio_encoder(wish.seed)).to(device)
    optimizer, average = optimizer_for(hearing, device, PEAK), Averaged(hearing, 0.995)
    pace = Pace(wish.minutes, wish.steps)
    for step in pace:
        rows = torch.randint(len(clean), (wish.batch,), generator=generator, device=device)
        with torch.no_grad():
            heard, speech = disturbed(clean[rows], generator)
            targets = torch.stack([mouth_opening(speech), mouth_width(speech)], dim=-1)
        guess = hearing(heard, targets.shape[1])
        error = (guess - targets[:, :, None]).square().mean(dim=(0, 1, 2))
        loss = error[0] + WIDTH_WEIGHT * error[1]
        take_step(optimizer, hearing, loss, pace.learning_rate(PEAK))
        average.update(step)
        if step % 200 == 0 or step < 3:
            fit = correlation(guess[:, :, -1, 0].detach(), targets[..., 0])
            log.write(step=step, seconds=pace.elapsed_s, opening=error[0].item(), width=error[1].item(), fit=fit)
    hearing.load_state_dict({**hearing.state_dict(), **average.state()})
    encoder_state = hearing.encoder.state_dict()
    save_half(published_audio_names(encoder_state), wish.out / AUDIO_FILE)
    log.write(step=pace.step, seconds=pace.elapsed_s, **held_out(hearing, wish.data, device))


@torch.no_grad()
def held_out(hearing: Hearing, data: Path, device: torch.device) -> dict[str, float]:
    """How well each layer tells the opening and the width of voices never heard."""
    waveforms = Corpus.load(data / "speech_held_out.npz").waveforms(device)
    opening, width = mouth_opening(waveforms), mouth_width(waveforms)
    guess = hearing(waveforms, opening.shape[1])
    return {
        f"held_out_{name}_{layer}": correlation(guess[:, :, layer, index], target)
        for layer in range(guess.shape[2])
        for index, (name, target) in enumerate((("opening", opening), ("width", width)))
    }


if __name__ == "__main__":
    main()
