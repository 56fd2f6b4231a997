# SPDX-License-Identifier: Apache-2.0
"""The part of the demo that is about units: what a recording becomes, and a picture of it."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from speech_tokenizers.demo.spectrograms import draw_spectrogram, spectrogram
from speech_tokenizers.processing.audio_files import load_audio
from speech_tokenizers.processing.unit_sequences import deduplicate


SECONDS_PER_ROW = 4.0
# F0 is drawn so far from its mean, in deviations.
_MOST_DEVIATIONS = 3


def show_units(model: Any, name: str, audio_path: Path, output: Path) -> dict[str, str]:
    """
    Write the units of a recording, de-duplicated, as `units.jsonl`, draw them, and F0 if the model has codes of it, as
    `units.png` and, if the model has a vocoder with a voice to speak in, let it say them in `units.wav`.

    Args:
        model ([`UnitPreTrainedModel`]): Units of one codebook, with F0 or without, in evaluation mode.
        name (`str`): Name of the model.
        audio_path (`Path`): The recording.
        output (`Path`): Folder for the results.

    Returns:
        `dict[str, str]`: Facts by name.

    Raises:
        ValueError: If the model has several codebooks, or the recording cannot be read.
    """
    from speech_tokenizers.coding.file_coding import decode_file, encode_file
    from speech_tokenizers.processing.unit_exports import UnitLine, save_unit_lines

    if (count := len(model.config.unit_codebook_sizes)) != 1:
        raise ValueError(f"{name} has {count} codebooks of units; the demo draws units of one.")
    waveform = load_audio(audio_path, model.sampling_rate)
    start = time.perf_counter()
    codes_path, lines_path, picture_path, spoken_path = (
        output / f"units.{suffix}" for suffix in ("safetensors", "jsonl", "png", "wav")
    )
    codes = encode_file(model, audio_path, codes_path, model_name=name)
    elapsed = time.perf_counter() - start
    written = [picture_path, lines_path, codes_path]
    if model.vocoder is not None and model.vocoder.config.has_default_voice:
        decode_file(model, codes, spoken_path)
        written.append(spoken_path)
    units, durations = deduplicate(codes.audio_codes[0])
    save_unit_lines(lines_path, [UnitLine(audio_path.name, units, durations)])
    contour = decoded_f0(model, codes.audio_codes)
    draw_units(waveform, model.sampling_rate, model.hop_length, units, durations, picture_path, contour)
    beginning = " ".join(f"{unit}x{duration}" for unit, duration in zip(units[:12], durations[:12], strict=True))
    beginning += " ..." if len(units) > 12 else ""
    return {
        "recording": f"{audio_path.name}, {codes.seconds:.1f} s at {codes.sampling_rate} Hz",
        "units": f"{name}: {model.frame_rate:g} frames/s, {model.config.unit_codebook_sizes[0]} units",
        "in runs": f"{len(units)} of {codes.num_frames} frames, {len(units) / codes.seconds:.1f} a second",
        "beginning": f"{beginning} (each unit x its frames)",
        **({} if contour is None else {"F0": _f0_words(model, contour)}),
        "bit rate": f"{model.bits_per_second:.0f} bit/s, before runs are merged",
        "encoding": speed(elapsed, codes.seconds),
        "written": ", ".join(map(str, written)),
    }


def decoded_f0(model: Any, audio_codes: np.ndarray) -> np.ndarray | None:
    """
    The F0 that codes stand for, `(num_frames,)`: log2 F0 in deviations from the speaker's mean, NaN where it is
    unvoiced. `None` of units without F0.

    Args:
        model ([`UnitPreTrainedModel`]): The units.
        audio_codes (`np.ndarray` of shape `(num_quantizers, num_frames)`): Their codes.
    """
    import torch

    if model.f0_codebook is None:
        return None
    is_voiced, deviation = model.f0_codebook.decode(torch.from_numpy(audio_codes[-1].astype(np.int64))).T.numpy()
    return np.where(is_voiced > 0, deviation, np.nan)


def _f0_words(model: Any, contour: np.ndarray) -> str:
    config = model.config
    milliseconds = 1000 * config.f0_stride / model.frame_rate
    return f"{config.f0_bins} codes, one each {milliseconds:g} ms; {100 * np.mean(~np.isnan(contour)):.0f} % voiced"


def speed(elapsed: float, seconds: float) -> str:
    """How long something took for so many seconds of audio."""
    import torch

    threads = torch.get_num_threads()
    return (
        f"real-time factor {elapsed / seconds:.4f} ({seconds / elapsed:.0f} times faster than real time), "
        f"{threads} thread{'s' if threads > 1 else ''}"
    )


def draw_units(
    waveform: np.ndarray,
    sampling_rate: int,
    hop_length: int,
    units: np.ndarray,
    durations: np.ndarray,
    path: Path,
    contour: np.ndarray | None = None,
) -> None:
    """
    Write the picture of [`units_figure`].

    Args:
        waveform, sampling_rate, hop_length, units, durations, contour: See [`units_figure`].
        path (`Path`): PNG to write.
    """
    figure = units_figure(waveform, sampling_rate, hop_length, units, durations, contour)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def unit_colours(num_units: int) -> np.ndarray:
    """A colour for each unit, `(num_units, 3)`, in [0, 1]."""
    from matplotlib.colors import hsv_to_rgb

    # Steps of the golden ratio: neighbouring numbers, which mean nothing, get unlike colours.
    hues = (np.arange(num_units) * 0.618034) % 1.0
    return hsv_to_rgb(np.stack([hues, np.full(len(hues), 0.45), np.full(len(hues), 0.95)], axis=-1))


def units_figure(
    waveform: np.ndarray,
    sampling_rate: int,
    hop_length: int,
    units: np.ndarray,
    durations: np.ndarray,
    contour: np.ndarray | None = None,
    has_title: bool = True,
) -> Any:
    """
    Draw runs of units over the spectrogram, in rows of some seconds: a field for each run, as wide as it lasts, with
    its unit and its duration in frames. A unit has the same colour everywhere.

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`): The recording.
        sampling_rate (`int`), hop_length (`int`): Sampling rate in Hz, and samples per frame.
        units, durations (`np.ndarray` of shape `(num_units,)`): Units and their durations in frames; see
            [`deduplicate`].
        contour (`np.ndarray` of shape `(num_frames,)`, *optional*): F0 to draw over the spectrogram, as [`decoded_f0`]
            gives it.
        has_title (`bool`, *optional*, defaults to `True`): Whether a title says what is seen.

    Returns:
        `matplotlib.figure.Figure`: The picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seconds = len(waveform) / sampling_rate
    num_rows = max(1, int(np.ceil(seconds / SECONDS_PER_ROW)))
    figure = Figure(figsize=(16, 1.9 * num_rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(num_rows, 1, squeeze=False)[:, 0]
    power = spectrogram(waveform)
    power -= power.max()
    ends = np.cumsum(durations) * hop_length / sampling_rate
    starts = ends - durations * hop_length / sampling_rate
    colours = unit_colours(int(units.max(initial=0)) + 1)
    top_khz, strip = sampling_rate / 2000, 0.28 * sampling_rate / 2000
    for row, axis in enumerate(axes):
        first, last = row * SECONDS_PER_ROW, (row + 1) * SECONDS_PER_ROW
        draw_spectrogram(axis, power, len(waveform), sampling_rate, "gray_r")
        visible = np.flatnonzero((ends > first) & (starts < last))
        axis.bar(
            starts[visible],
            strip,
            ends[visible] - starts[visible],
            bottom=-strip,
            align="edge",
            color=colours[units[visible]],
            edgecolor="black",
            linewidth=0.4,
        )
        axis.bar(
            starts[visible],
            top_khz,
            ends[visible] - starts[visible],
            align="edge",
            color=colours[units[visible]],
            alpha=0.25,
            linewidth=0,
        )
        for index in visible:
            middle = (starts[index] + ends[index]) / 2
            if first <= middle < last:
                label = f"{units[index]}" if durations[index] == 1 else f"{units[index]} ×{durations[index]}"
                axis.text(middle, -strip / 2, label, rotation=90, fontsize=5.5, ha="center", va="center")
        axis.set_xlim(first, last)
        axis.set_ylim(-strip, top_khz)
        axis.set_yticks([0, top_khz / 2, top_khz])
        axis.set_ylabel("kHz")
        if contour is not None:
            right = axis.twinx()
            right.plot((np.arange(len(contour)) + 0.5) * hop_length / sampling_rate, contour, color="#0b4fb3")
            right.set_ylim(-_MOST_DEVIATIONS * (1 + 2 * strip / top_khz), _MOST_DEVIATIONS)
            right.set_yticks([-_MOST_DEVIATIONS, 0, _MOST_DEVIATIONS])
            right.set_ylabel("F0", color="#0b4fb3")
    title = "Units and how many frames each lasts, under the spectrogram that they stand for"
    if contour is not None:
        title += "; F0 as its codes tell it, in deviations from the speaker's mean"
    if has_title:
        axes[0].set_title(title, loc="left", fontsize=10)
    axes[-1].set_xlabel("Time (s)")
    return figure
