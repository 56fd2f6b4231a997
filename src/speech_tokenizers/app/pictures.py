# SPDX-License-Identifier: Apache-2.0
"""Pictures of a page. What has letters has no background, and letters that can be read on white and on black."""

import io
from typing import Any

import numpy as np

from speech_tokenizers.demo.spectrograms import spectrogram


# As far from white as from black.
_INK = "#7d7d7d"
_STRIP_WIDTH, _STRIP_HEIGHT, _DEEP = 900, 160, 80.0


def spectrogram_strip(waveform: np.ndarray) -> bytes:
    """
    A spectrogram without axes, as JPEG: time from left to right, from 0 Hz at the bottom to half the sampling rate at
    the top, 80 dB deep.

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`): The speech.
    """
    from matplotlib import colormaps
    from PIL import Image

    power = spectrogram(waveform, step=max(64, len(waveform) // _STRIP_WIDTH))
    level = np.clip((power - power.max()) / _DEEP + 1, 0, 1)
    pixels = (colormaps["magma"](level[::-1])[..., :3] * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((_STRIP_WIDTH, _STRIP_HEIGHT)).save(file, "JPEG", quality=85)
    return file.getvalue()


def draw_tokens(tokens: np.ndarray, seconds: float, codebook_size: int | None) -> bytes:
    """
    Codes or latents over time, as PNG.

    Args:
        tokens (`np.ndarray`): Codes `(num_quantizers, num_frames)`, or latents `(num_frames, latent_dim)`.
        seconds (`float`): Length of the recording.
        codebook_size (`int`, *optional*): Entries of a codebook; `None` of latents.
    """
    rows = tokens.T if codebook_size is None else tokens
    colours: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": (codebook_size or 1) - 1}
    if codebook_size is None:
        colours = {"cmap": "coolwarm", "vmin": -3, "vmax": 3}
    figure = _figure(10, 1.1 + 0.22 * min(len(rows), 16))
    axis = figure.subplots()
    extent = (0, seconds, len(rows) + 0.5, 0.5)
    image = axis.imshow(rows, aspect="auto", interpolation="nearest", extent=extent, **colours)
    axis.set_ylabel("Dimension" if codebook_size is None else "Codebook")
    axis.set_xlabel("Time (s)")
    if len(rows) <= 16:
        axis.set_yticks(range(1, len(rows) + 1))
    figure.colorbar(image, ax=axis, label="Value" if codebook_size is None else "Entry", pad=0.01, aspect=12)
    return _as_png(figure)


def draw_runs(
    waveform: np.ndarray,
    sampling_rate: int,
    hop_length: int,
    units: np.ndarray,
    durations: np.ndarray,
    f0: np.ndarray | None,
) -> bytes:
    """Units under the spectrogram, as PNG; see [`units_figure`]."""
    from speech_tokenizers.demo.units import units_figure

    return _as_png(units_figure(waveform, sampling_rate, hop_length, units, durations, f0, has_title=False))


def unit_colours(num_units: int) -> list[str]:
    """The colour of each unit as in the picture, as `#rrggbb`."""
    from matplotlib.colors import to_hex

    from speech_tokenizers.demo.units import unit_colours

    return [to_hex(colour) for colour in unit_colours(num_units)]


def _figure(width: float, height: float) -> Any:
    # Not pyplot: it is not made for several requests at a time.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _as_png(figure: Any) -> bytes:
    figure.patch.set_alpha(0)
    for axis in figure.axes:
        axis.patch.set_alpha(0)
        axis.tick_params(colors=_INK, which="both")
        for label in (axis.xaxis.label, axis.yaxis.label, axis.title):
            label.set_color(_INK)
        for spine in axis.spines.values():
            spine.set_edgecolor(_INK)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
