# SPDX-License-Identifier: Apache-2.0
"""
Metrics that are networks: DNSMOS and speaker similarity, whose weights travel in the packages `speechmos` and
`resemblyzer`.

Only the weights are read. The packages' own feature code imports librosa, numba and webrtcvad (which needs a
compiler); the two spectrograms below are the same and need numpy alone.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from speech_tokenizers.evaluation.clip_results import ClipMetric, MetricFailure
from speech_tokenizers.evaluation.reconstruction.signal_metrics import check_clips, check_rate
from speech_tokenizers.processing.optional_packages import require_package


def slaney_mel(frequencies: np.ndarray) -> np.ndarray:
    """The mel scale of Slaney's Auditory Toolbox: linear below 1000 Hz (15 mel), logarithmic above."""
    logarithmic = 15.0 + 27.0 * np.log(np.maximum(frequencies, 1e-9) / 1000.0) / np.log(6.4)
    return np.where(frequencies < 1000.0, 3.0 * frequencies / 200.0, logarithmic)


def slaney_hertz(mels: np.ndarray) -> np.ndarray:
    """Inverse of `slaney_mel`."""
    return np.where(mels < 15.0, 200.0 * mels / 3.0, 1000.0 * 6.4 ** ((mels - 15.0) / 27.0))


@functools.cache
def slaney_filters(sampling_rate: int, n_fft: int, num_mels: int) -> np.ndarray:
    """Triangular filters of unit area up to half the sampling rate, of shape `(num_mels, n_fft // 2 + 1)`."""
    frequencies = np.fft.rfftfreq(n_fft, 1 / sampling_rate)
    edges = slaney_hertz(np.linspace(0.0, slaney_mel(np.array(sampling_rate / 2)), num_mels + 2))
    widths = np.diff(edges)
    rising = (frequencies - edges[:-2, None]) / widths[:-1, None]
    falling = (edges[2:, None] - frequencies) / widths[1:, None]
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]


def mel_power_spectrogram(
    audio: np.ndarray, sampling_rate: int, n_fft: int, hop_length: int, num_mels: int
) -> np.ndarray:
    """
    Power mel spectrogram of frames centred on multiples of `hop_length`, zeros beyond both ends, as librosa computes
    it.

    Returns:
        `np.ndarray` of shape `(num_frames, num_mels)`, `num_frames = 1 + num_samples // hop_length` for even `n_fft`.
    """
    padded = np.pad(audio, n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop_length]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    return power @ slaney_filters(sampling_rate, n_fft, num_mels).T


class DNSMOS(ClipMetric):
    """
    Non-intrusive opinion scores from 1 to 5 (Reddy et al. 2022, DNSMOS P.835, arXiv 2110.01763), at 16 kHz.

    The mean of windows of 9.01 s, one second apart; a shorter clip is repeated, as in the published code (which loses
    single windows to rounding). `score_clip` gives the overall score; `score_all` gives `overall`, `signal`,
    `background` and `p808`.

    Args:
        max_windows (`int`, *optional*): Largest number of a clip's windows that are scored, evenly spread. Each takes
            half a second of one core. Defaults to all windows, as published.
    """

    score_name = "dnsmos"
    title = "DNSMOS overall"
    uses_recording = False
    # Polynomials that map the networks' outputs to opinion scores (Microsoft's DNS challenge repository).
    calibration = {
        "signal": (-0.08397278, 1.22083953, 0.0052439),
        "background": (-0.13166888, 1.60915514, -0.39604546),
        "overall": (-0.06766283, 1.11546468, 0.04602535),
    }

    def __init__(self, max_windows: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.max_windows = max_windows
        weights = Path(require_package("speechmos", self.title)) / "dnsmos_models"
        require_package("onnxruntime", self.title)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.p835, self.p808 = (
            onnxruntime.InferenceSession(weights / name, options, providers=["CPUExecutionProvider"])
            for name in ("sig_bak_ovr.onnx", "model_v8.onnx")
        )

    def score_clip(self, decoded: np.ndarray, recorded: np.ndarray, sampling_rate: int) -> float:
        return self.score_all(decoded, sampling_rate)["overall"]

    def score_all(self, audio: np.ndarray, sampling_rate: int) -> dict[str, float]:
        """All four scores of one clip of shape `(num_samples,)`."""
        check_rate(sampling_rate, 16000, self.title)
        check_clips(audio, audio)
        if not audio.any():
            raise MetricFailure("the decoded clip is silent")
        length = int(9.01 * sampling_rate)
        audio = np.clip(audio, -1.0, 1.0).astype(np.float32)
        while len(audio) < length:
            audio = np.tile(audio, 2)
        num_windows = max(1, len(audio) // sampling_rate - 9)
        num_taken = min(num_windows, self.max_windows or num_windows)
        scores = []
        for second in np.linspace(0, num_windows - 1, num_taken).round().astype(int):
            window = audio[second * sampling_rate :][:length]
            outputs = self.p835.run(None, {"input_1": window[None]})[0][0]
            mels = mel_power_spectrogram(window[:-160].astype(np.float64), sampling_rate, 321, 160, 120)
            decibels = 10 * np.log10(np.maximum(mels, 1e-10) / max(mels.max(), 1e-10))
            features = (np.maximum(decibels, decibels.max() - 80) + 40) / 40
            p808 = self.p808.run(None, {"input_1": features[None].astype(np.float32)})[0][0][0]
            raw = zip(self.calibration.items(), outputs, strict=True)
            scores.append({**{name: np.polyval(poly, value) for (name, poly), value in raw}, "p808": p808})
        return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


class SpeakerEncoder(nn.Module):
    """The GE2E speaker encoder (Wan et al. 2018, arXiv 1710.10467) in the shape of Resemblyzer's weights."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        """Mel spectrograms of shape `(batch, num_frames, 40)` to embeddings of unit length, `(batch, 256)`."""
        hidden = self.lstm(mels)[1][0][-1]
        return nn.functional.normalize(torch.relu(self.linear(hidden)), dim=-1)


class SpeakerSimilarity(ClipMetric):
    """
    Cosine of the speaker embeddings of the decoded clip and of the recording, with Resemblyzer's weights, at 16 kHz.

    Each clip is raised to -30 dBFS where it is softer, cut into windows of 1.6 s, 1.3 a second, and their embeddings
    are averaged, as Resemblyzer does; its voice activity detector is left out, so both clips keep the same windows.
    """

    score_name = "speaker_similarity"
    title = "Speaker similarity"
    window_frames = 160

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        folder = require_package("resemblyzer", self.title, command="pip install --no-deps resemblyzer")
        weights = torch.load(Path(folder) / "pretrained.pt", map_location="cpu", weights_only=True)["model_state"]
        self.encoder = SpeakerEncoder().eval()
        # Two further scalars belong to the training loss.
        self.encoder.load_state_dict({name: weights[name] for name in self.encoder.state_dict()})

    def score_clip(self, decoded: np.ndarray, recorded: np.ndarray, sampling_rate: int) -> float:
        check_rate(sampling_rate, 16000, self.title)
        check_clips(decoded, recorded)
        return float(self.embed(decoded) @ self.embed(recorded))

    @torch.no_grad()
    def embed(self, audio: np.ndarray) -> np.ndarray:
        """Embedding of unit length, shape `(256,)`, of a clip of shape `(num_samples,)` at 16 kHz."""
        audio = audio.astype(np.float64)
        level = np.sqrt(np.mean(audio**2))
        if level == 0:
            raise MetricFailure("the recorded or the decoded clip is silent")
        audio = audio * max(1.0, 10 ** (-30 / 20) / level)
        hop, step = 160, round(16000 / 1.3 / 160)  # samples a frame; frames from one window to the next
        num_frames = -(-(len(audio) + 1) // hop)
        starts = list(range(0, max(1, num_frames - self.window_frames + step + 1), step))
        if len(starts) > 1 and (len(audio) - starts[-1] * hop) / (self.window_frames * hop) < 0.75:
            starts.pop()
        audio = np.pad(audio, (0, max(0, (starts[-1] + self.window_frames) * hop - len(audio))))
        mels = mel_power_spectrogram(audio, 16000, 400, hop, 40).astype(np.float32)
        windows = np.stack([mels[start : start + self.window_frames] for start in starts])
        embedding = self.encoder(torch.from_numpy(windows)).mean(0).numpy().astype(np.float64)
        if not np.linalg.norm(embedding) > 0:
            raise MetricFailure("the speaker embedding is zero")
        return embedding / np.linalg.norm(embedding)
