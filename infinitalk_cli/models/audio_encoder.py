"""wav2vec2: speech at 16 kHz to the states of its layers at 25 vectors a second, one per video frame.

Convolutions make 50 vectors a second, these are interpolated to the video rate, and the transformer runs on the
result; the outputs of all its layers are kept. The network is `transformers`' class, imported when the first encoder
is built. Its layers are tapped by forward hooks, because a direct call of the inner encoder no longer returns hidden
states on newer versions, and asking for attention maps would cost memory that grows with the square of the length.

`embed` does a whole waveform at once. `stream` gives the same rows for hours of speech at flat memory:

- The convolutions have no padding, so any stretch of vectors is computed exactly from its own samples, but for one
  thing: the norm after the first convolution uses the mean and variance of each channel over the whole utterance. Both
  follow from the sums and products of the samples under the kernel, a 10 x 10 table, gathered once in float64.
- The transformer runs on windows of 30 s with 5 s more on both sides, when a row of theirs is first asked for. The last
  window is kept (28 MB), and the end of the one before it, because chunks overlap. The convolution that marks positions
  reaches 2.6 s, so it sees no edge; attention misses what lies outside the window, which is the only deviation. Speech
  of up to 40 s is one window and moves by rounding only (1e-5).

How large the deviation is depends on the weights. Measured on one to four minutes of sound through the reference set's
tiny random network, whose attention spreads over all frames and whose states have a standard deviation of 1: speech
that goes on alike, 0.007 root mean square and 0.05 at most; loudness that changes up to forty-fold from phrase to
phrase, 0.05 and 0.31. The published weights were not measured; wav2vec2's base form was trained on crops of 15.6 s, so
a window is no strange input to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from infinitalk_cli.models.encoder_config import AudioEncoderConfig

SAMPLE_RATE = 16_000
VIDEO_FPS = 25
VARIANCE_FLOOR = 1e-7  # of the whole waveform, when the feature extractor's settings ask for normalisation

TAIL_FRAMES = 125  # rows kept of the window before the last; chunks overlap by a fifth of that
SAMPLES_PER_READ = 2 * SAMPLE_RATE
VECTORS_PER_BLOCK = 400  # 8 s; at full width the first convolution's output takes 52 MB

SILENCE_S = 4  # long enough for its middle frame to see no edge

FramesRule = Literal["exact", "float"]


class Waveform(Protocol):
    """Samples `(n,)`, float32 at 16 kHz: an array, a memory map, or anything that hands out its slices."""

    def __len__(self) -> int: ...

    def __getitem__(self, piece: slice, /) -> NDArray[Any]: ...


def num_audio_frames(num_samples: int, rule: FramesRule = "exact") -> int:
    """Number of video frames, at least 1, that a waveform at 16 kHz gives.

    The reference program divides in floating point and loses a frame at some lengths (18,560 samples: 28 instead of
    29); `rule="float"` reproduces that. Raises: ValueError: if there are no samples.
    """
    if num_samples == 0:
        raise ValueError("the waveform is empty")
    if rule == "float":
        return max(1, int(num_samples / SAMPLE_RATE * VIDEO_FPS))
    return max(1, num_samples * VIDEO_FPS // SAMPLE_RATE)


class AudioEncoder(nn.Module):
    """wav2vec2 as a source of audio embeddings. `model` is the library's `Wav2Vec2Model`."""

    def __init__(self, config: AudioEncoderConfig, *, do_normalize: bool = False) -> None:
        """`do_normalize`: the field of `preprocessor_config.json`; scales a waveform to mean 0 and variance 1."""
        super().__init__()
        self.config = config
        self.do_normalize = do_normalize
        self.model = build_wav2vec2(config)
        self.eval()

    @torch.no_grad()
    def embed(self, waveform: Tensor, *, frames_rule: FramesRule = "exact") -> Tensor:
        """Encode a whole waveform; memory grows with its length, time with the square.

        Args: waveform: `(n,)` at 16 kHz, float. Fewer samples than the convolutions span are padded with silence.
        Returns: `(frames, layers, dim)`, float32.
        Raises: ValueError: if the waveform is empty, or a result is not finite.
        """
        weight = self.model.feature_extractor.conv_layers[0].conv.weight
        samples = waveform.to(weight.device, torch.float32)
        num_frames = num_audio_frames(len(samples), frames_rule)
        if self.do_normalize:
            samples = (samples - samples.mean()) / (samples.var(correction=0) + VARIANCE_FLOOR).sqrt()
        samples = functional.pad(samples, (0, max(0, self.span - len(samples))))
        vectors = self.model.feature_extractor(samples[None].to(weight.dtype))[0].T
        features = interpolate(vectors, frame_positions(0, num_frames, num_frames, len(vectors)))
        states = features.new_empty(num_frames, self.config.num_layers, self.config.dim, dtype=torch.float32)
        self.layer_states(features, 0, states)
        return states

    def stream(
        self,
        waveform: Waveform,
        *,
        window_s: float = 30.0,
        context_s: float = 5.0,
        frames_rule: FramesRule = "exact",
    ) -> AudioStream:
        """Encode a waveform of any length window by window, as rows are asked for; see the module's note.

        Args: waveform: read once now, and again for every window.
        Raises: ValueError: if the waveform is empty.
        """
        return AudioStream(
            self,
            waveform,
            window=max(1, round(window_s * VIDEO_FPS)),
            context=max(0, round(context_s * VIDEO_FPS)),
            frames_rule=frames_rule,
        )

    def silence(self) -> Tensor:
        """The states of a frame within digital silence, `(layers, dim)`."""
        states = self.embed(torch.zeros(SILENCE_S * SAMPLE_RATE))
        return states[len(states) // 2]

    @property
    def span(self) -> int:
        """Samples that one vector of the convolutions depends on: 400."""
        span = 1
        for kernel, stride in zip(reversed(self.config.conv_kernel), reversed(self.config.conv_stride), strict=True):
            span = (span - 1) * stride + kernel
        return span

    @property
    def hop(self) -> int:
        """Samples from one vector of the convolutions to the next: 320."""
        return prod(self.config.conv_stride)

    def layer_states(self, features: Tensor, start: int, states: Tensor) -> None:
        """Run the transformer on `(n, conv_dim)` features and fill `states` with rows of every layer's output.

        Args: start: first row to keep. states: `(rows, layers, dim)`, overwritten; may lie on another device.
        Raises: ValueError: if a value is not finite.
        """
        stop = start + len(states)

        def keep(layer: int) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                del module, args
                outputs = output[0] if isinstance(output, tuple) else output  # a tuple before transformers 5
                states[:, layer] = outputs[0, start:stop]

            return hook

        handles = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(self.model.encoder.layers)]
        try:
            self.model.encoder(self.model.feature_projection(features[None])[0])
        finally:
            for handle in handles:
                handle.remove()
        if not states.sum().isfinite():  # the sum, because a mask of all values would cost as much memory as they do
            raise ValueError("the audio encoder gave values that are not finite; is the sound damaged?")


class AudioStream:
    """The audio embeddings of one waveform, computed window by window when rows are gathered.

    The encoder may move between devices meanwhile; a window is computed where the encoder is at that moment, and its
    rows lie on the CPU.
    """

    def __init__(
        self, encoder: AudioEncoder, waveform: Waveform, *, window: int, context: int, frames_rule: FramesRule
    ) -> None:
        """`window`, `context`: frames per window, and frames added on both sides while computing it."""
        self.num_frames = num_audio_frames(len(waveform), frames_rule)
        self.num_layers = encoder.config.num_layers
        self.dim = encoder.config.dim
        self._encoder = encoder
        self._waveform = waveform
        self._num_vectors = max(0, len(waveform) - encoder.span) // encoder.hop + 1
        fits_in_one = self.num_frames <= window + 2 * context
        self._window = self.num_frames if fits_in_one else window
        self._context = context
        self._mean, self._divisor = sample_statistics(waveform) if encoder.do_normalize else (0.0, 1.0)
        self._norm_mean, self._norm_variance = self._first_norm_statistics()
        self._buffer = torch.empty(self._window, self.num_layers, self.dim)
        self._kept: dict[int, tuple[int, Tensor]] = {}  # window -> its first row that is kept, and the rows from there

    @torch.no_grad()
    def gather(self, indices: Tensor) -> Tensor:
        """Rows by frame index.

        Args: indices: `(n,)` integers in [0, num_frames), in any order.
        Returns: `(n, layers, dim)`, float32 on the CPU.
        Raises: IndexError: if an index is out of range. ValueError: if a result is not finite.
        """
        indices = indices.cpu()
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self.num_frames:
            raise IndexError(f"audio frames {int(indices.min())}..{int(indices.max())} of {self.num_frames}")
        rows = torch.empty(len(indices), self.num_layers, self.dim)
        windows = indices // self._window
        for number in windows.unique().tolist():
            mine = windows == number
            first, states = self._window_states(number, int(indices[mine].min()))
            rows[mine] = states[indices[mine] - first]
        return rows

    def _window_states(self, number: int, row: int) -> tuple[int, Tensor]:
        """States `(frames, layers, dim)` of a window from `row` or an earlier frame on, and which frame that is."""
        if number in self._kept and self._kept[number][0] <= row:
            return self._kept[number]
        # One buffer holds the window; what is worth keeping of its old content is copied first.
        self._kept = {other: tail(*kept) for other, kept in list(self._kept.items())[-1:] if other != number}
        start, stop = number * self._window, min((number + 1) * self._window, self.num_frames)
        first, last = max(0, start - self._context), min(self.num_frames, stop + self._context)
        states = self._buffer[: stop - start]
        self._encoder.layer_states(self._features(first, last), start - first, states)
        self._kept[number] = start, states
        return self._kept[number]

    def _features(self, start: int, stop: int) -> Tensor:
        """Interpolated features `(stop - start, conv_dim)` of frames `start` to `stop`."""
        positions = frame_positions(start, stop, self.num_frames, self._num_vectors)
        first = int(positions[0])
        last = min(int(positions[-1]) + 2, self._num_vectors)
        blocks = [
            self._vectors(block, min(block + VECTORS_PER_BLOCK, last))
            for block in range(first, last, VECTORS_PER_BLOCK)
        ]
        return interpolate(torch.cat(blocks), positions - first)

    def _vectors(self, start: int, stop: int) -> Tensor:
        """Convolution vectors `(stop - start, conv_dim)`, with the first norm's statistics of the whole utterance."""
        first, *others = self._encoder.model.feature_extractor.conv_layers
        weight, norm = first.conv.weight, first.layer_norm
        hop, span = self._encoder.hop, self._encoder.span
        samples = self._read(start * hop, (stop - 1) * hop + span).to(weight.device, weight.dtype)
        statistics = (self._norm_mean.to(samples), self._norm_variance.to(samples))
        hidden = first.conv(samples[None, None])
        hidden = functional.batch_norm(hidden, *statistics, norm.weight, norm.bias, eps=norm.eps)
        hidden = first.activation(hidden)
        for layer in others:
            hidden = layer(hidden)
        return hidden[0].T

    def _read(self, start: int, stop: int) -> Tensor:
        """Samples `start` to `stop` as they enter the network, float32; silence follows the end."""
        samples = torch.from_numpy(np.array(self._waveform[start:stop], dtype=np.float32))
        samples = (samples - self._mean) / self._divisor
        return functional.pad(samples, (0, stop - start - len(samples)))

    @torch.no_grad()
    def _first_norm_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance `(conv_dim,)` of the first convolution's channels over the utterance, float64.

        A channel is w . x for the samples x under the kernel, so its mean is w . E[x] and its variance w C w, with C
        the covariance of x.
        """
        conv = self._encoder.model.feature_extractor.conv_layers[0].conv
        mean, covariance = self._tap_statistics(conv.kernel_size[0], conv.stride[0])
        weight = conv.weight[:, 0].cpu().double()
        bias = conv.bias.cpu().double() if conv.bias is not None else 0.0
        return weight @ mean + bias, ((weight @ covariance) * weight).sum(dim=1).clamp_min(0)

    def _tap_statistics(self, kernel: int, stride: int) -> tuple[Tensor, Tensor]:
        """Mean `(kernel,)` and covariance `(kernel, kernel)` of the samples under a kernel that slides, float64."""
        num_samples = max(len(self._waveform), self._encoder.span)
        num_places = (num_samples - kernel) // stride + 1
        sums = torch.zeros(kernel, dtype=torch.float64)
        products = torch.zeros(kernel, kernel, dtype=torch.float64)
        for start in range(0, num_places, SAMPLES_PER_READ // stride):
            stop = min(start + SAMPLES_PER_READ // stride, num_places)
            taps = self._read(start * stride, (stop - 1) * stride + kernel).double().unfold(0, kernel, stride)
            sums += taps.sum(dim=0)
            products += taps.T @ taps
        mean = sums / num_places
        return mean, products / num_places - torch.outer(mean, mean)


def tail(first: int, states: Tensor) -> tuple[int, Tensor]:
    """The last rows of a window, copied, and the number of the first of them."""
    length = min(len(states), TAIL_FRAMES)
    return first + len(states) - length, states[-length:].clone()


def sample_statistics(waveform: Waveform) -> tuple[float, float]:
    """Mean of a waveform, and the divisor that gives it variance 1; read in blocks, added in float64."""
    mean = sum(float(block.sum()) for block in sample_blocks(waveform)) / len(waveform)
    variance = sum(float(((block - mean) ** 2).sum()) for block in sample_blocks(waveform)) / len(waveform)
    return mean, (variance + VARIANCE_FLOOR) ** 0.5


def sample_blocks(waveform: Waveform) -> Iterator[NDArray[np.float64]]:
    """A waveform piece by piece, in float64."""
    for start in range(0, len(waveform), SAMPLES_PER_READ):
        yield np.array(waveform[start : start + SAMPLES_PER_READ], dtype=np.float64)


def frame_positions(start: int, stop: int, num_frames: int, num_vectors: int) -> Tensor:
    """Where frames `start` to `stop` lie among the vectors, so that first and last of both agree; float64.

    float64 because float32 misplaces a frame by a hundredth of a vector after an hour.
    """
    return torch.arange(start, stop, dtype=torch.float64) * ((num_vectors - 1) / max(1, num_frames - 1))


def interpolate(vectors: Tensor, positions: Tensor) -> Tensor:
    """Rows of `(n, dim)` vectors at fractional positions `(frames,)` in [0, n - 1]."""
    low = positions.long().clamp(max=len(vectors) - 1)
    high = (low + 1).clamp(max=len(vectors) - 1)
    share = (positions - low).to(vectors.dtype)[:, None]
    low, high, share = (part.to(vectors.device) for part in (low, high, share))
    return torch.lerp(vectors[low], vectors[high], share)


def build_wav2vec2(config: AudioEncoderConfig) -> Any:
    """Build the library's network on the current default device (`meta` leaves it empty)."""
    from transformers.models.wav2vec2.configuration_wav2vec2 import Wav2Vec2Config
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Model

    return Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            conv_dim=config.conv_dim,
            conv_kernel=config.conv_kernel,
            conv_stride=config.conv_stride,
            conv_bias=config.conv_bias,
            num_conv_pos_embeddings=config.position_kernel,
            num_conv_pos_embedding_groups=config.position_groups,
            layer_norm_eps=config.eps,
            feat_extract_norm="group",
            do_stable_layer_norm=False,
            mask_time_prob=0.0,  # masking is for training; without it the network has no vector for masked steps
            mask_feature_prob=0.0,
        )
    )
