# SPDX-License-Identifier: Apache-2.0
"""
Encode and decode a recording, say how well and how fast, and draw what happened; then draw its units; then let a voice
say a sentence: `speech-tokenizers demo`.
"""

import argparse
import importlib.util
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from speech_tokenizers.commands.frame import check_output_folder
from speech_tokenizers.demo.spectrograms import draw_spectrogram, spectrogram
from speech_tokenizers.demo.units import show_units, speed
from speech_tokenizers.processing.audio_files import load_audio
from speech_tokenizers.processing.code_files import AudioCodes
from speech_tokenizers.processing.latent_files import AudioLatents


MIN_SECONDS = 0.5
SENTENCE = "The train left the station at the break of day."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo"), help="folder for the results (default: demo)"
    )
    parser.add_argument("--audio", metavar="FILE", default=None, help="another recording than the package's")
    parser.add_argument(
        "--model", metavar="NAME", default=None, help="checkpoint name, folder or Hub id; default: a codec, then units"
    )


def run(args: argparse.Namespace) -> int:
    """
    Show a codec or units, by default one of each: write what they give and pictures, and print what was measured.
    Returns the exit code.
    """
    from transformers.utils import logging

    from speech_tokenizers.coding.loading import DEFAULT_CHECKPOINT, DEFAULT_UNITS, load
    from speech_tokenizers.modeling.transformers_codecs import as_speech_codec
    from speech_tokenizers.modeling.unit_model import UnitPreTrainedModel

    logging.disable_progress_bar()
    check_output_folder(args.output)
    recording = resources.files("speech_tokenizers").joinpath("recordings", "sense_and_sensibility.flac")
    names = [args.model] if args.model else [DEFAULT_CHECKPOINT, DEFAULT_UNITS]
    with resources.as_file(recording) as packaged_path:
        audio_path = packaged_path if args.audio is None else Path(args.audio)
        for number, name in enumerate(names):
            model = as_speech_codec(*load(name))
            are_units = isinstance(model, UnitPreTrainedModel) and len(model.config.unit_codebook_sizes) == 1
            show = show_units if are_units else show_codec
            facts = show(model, name, audio_path, args.output)
            print_facts(facts, is_first=number == 0)
    if args.model is None and args.audio is None:
        print_facts(show_voice(args.output))
    return 0


def print_facts(facts: dict[str, str], is_first: bool = False) -> None:
    """Print facts by name, below those before."""
    print("\n" * (not is_first) + "\n".join(f"{fact:<10}  {value}" for fact, value in facts.items()))


def show_voice(output: Path) -> dict[str, str]:
    """
    Write `voice.wav`, a sentence that the released voice says.

    Args:
        output (`Path`): Folder for the result.

    Returns:
        `dict[str, str]`: Facts by name; where the voice is not installed, what brings it.
    """
    from speech_tokenizers.coding.loading import list_voices
    from speech_tokenizers.coding.speech_lm_loading import DEFAULT_VOICE, load_speech_lm
    from speech_tokenizers.processing.audio_files import AudioWriter

    if DEFAULT_VOICE not in list_voices():
        return {"voice": f"{DEFAULT_VOICE} is not installed; `pip install speech-tokenizers-checkpoints` brings it"}
    model, processor = load_speech_lm(DEFAULT_VOICE)
    said = model.generate_speech(SENTENCE, processor, temperature=0.0)
    path = output / "voice.wav"
    with AudioWriter(path, model.config.sampling_rate) as writer:
        writer.write(said.audio_values[0, 0].numpy())
    seconds = said.audio_values.shape[-1] / model.config.sampling_rate
    return {
        "voice": f"{DEFAULT_VOICE}: {SENTENCE}",
        "speaking": speed(said.seconds, seconds),
        "words": ", ".join(f"{word} {start:.2f}" for word, start, _ in said.word_times[0]) + " s",
        "written": str(path),
    }


def show_codec(model: Any, name: str, audio_path: Path, output: Path) -> dict[str, str]:
    """
    Write `codes.safetensors`, `decoded.wav` and `demo.png`.

    Args:
        model (`PreTrainedModel`): A codec, or a model of continuous tokens, in evaluation mode.
        name (`str`): Name of the model.
        audio_path (`Path`): The recording.
        output (`Path`): Folder for the results.

    Returns:
        `dict[str, str]`: Facts by name.
    """
    import torch

    from speech_tokenizers.coding.file_coding import decode_file, encode_file

    codes_path, decoded_path, picture_path = (
        output / file_name for file_name in ("codes.safetensors", "decoded.wav", "demo.png")
    )
    recorded = load_audio(audio_path, model.sampling_rate)
    if len(recorded) < MIN_SECONDS * model.sampling_rate:
        raise ValueError(f"{audio_path} is shorter than {MIN_SECONDS:g} s, too short to be measured.")
    # The first call of each layer sets it up, which is not what a longer recording would feel.
    model.decode_encoded(model.encode_features({"input_values": torch.zeros(1, 1, model.sampling_rate)}))
    start = time.perf_counter()
    codes = encode_file(model, audio_path, codes_path, model_name=name)
    encoded = time.perf_counter()
    decode_file(model, codes, decoded_path)
    done = time.perf_counter()
    decoded = load_audio(decoded_path, model.sampling_rate)
    draw(recorded, decoded, codes, picture_path)
    return {
        "recording": f"{audio_path.name}, {codes.seconds:.1f} s at {codes.sampling_rate} Hz",
        "codec": f"{name}: {model.frame_rate:g} frames/s, {size_of(codes)}",
        "bit rate": f"{codes.bits_per_second / 1000:g} kbit/s; {codes.bits_per_second * codes.seconds / 8000:.1f} kB "
        f"instead of {len(recorded) * 2 / 1000:.0f} kB as 16-bit audio",
        "encoding": speed(encoded - start, codes.seconds),
        "decoding": speed(done - encoded, codes.seconds),
        **measure(recorded, decoded, codes.sampling_rate),
        "written": f"{decoded_path}, {codes_path}, {picture_path}",
    }


def size_of(codes: AudioCodes | AudioLatents) -> str:
    """What a frame consists of."""
    if isinstance(codes, AudioLatents):
        return f"{codes.hidden_size} numbers in {codes.dtype}"
    return f"{codes.num_quantizers} codebooks of {codes.codebook_size}"


def measure(recorded: np.ndarray, decoded: np.ndarray, sampling_rate: int) -> dict[str, str]:
    """
    Compare decoded with recorded speech.

    Args:
        recorded, decoded (`np.ndarray` of shape `(num_samples,)`): Waveforms of equal length.
        sampling_rate (`int`): Sampling rate of both waveforms, in Hz.

    Returns:
        `dict[str, str]`: Scores by name, each with its range, or the reason why there is none.
    """
    from pystoi import stoi

    scores = {
        "STOI": f"{stoi(recorded, decoded, sampling_rate):.3f} (intelligibility; 1 is the original)",
        "ESTOI": f"{stoi(recorded, decoded, sampling_rate, extended=True):.3f} (its stricter variant)",
    }
    if importlib.util.find_spec("pesq") is None:
        scores["PESQ"] = "not measured; `pip install pesq` needs a C compiler"
    elif sampling_rate != 16000:
        scores["PESQ"] = f"not measured; it is defined at 16000 Hz, and this codec works at {sampling_rate} Hz"
    else:
        from pesq import pesq

        scores["PESQ"] = f"{pesq(sampling_rate, recorded, decoded, 'wb'):.2f} (quality, wide band; 1 to 4.64)"
    return scores


def draw(recorded: np.ndarray, decoded: np.ndarray, codes: AudioCodes | AudioLatents, path: Path) -> None:
    """
    Draw both spectrograms and the codes or latents, one above the other on the same time axis.

    Args:
        recorded, decoded (`np.ndarray` of shape `(num_samples,)`): Waveforms at the codec's rate.
        codes ([`AudioCodes`] or [`AudioLatents`]): Codes or latents that `decoded` was decoded from.
        path (`Path`): PNG to write.
    """
    # Not pyplot: it would choose a window system for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(4, 4, 3))
    top = spectrogram(recorded).max()
    for axis, waveform, title in ((axes[0], recorded, "Recorded"), (axes[1], decoded, "Decoded")):
        image = draw_spectrogram(axis, spectrogram(waveform) - top, len(waveform), codes.sampling_rate, "magma")
        axis.set_title(title, loc="left", fontweight="bold")
        axis.set_ylabel("Frequency (kHz)")
    figure.colorbar(image, ax=axes[:2], label="Level (dB below the loudest)", pad=0.01, aspect=40)

    seconds = codes.num_frames * codes.hop_length / codes.sampling_rate
    if isinstance(codes, AudioLatents):
        rows, title, label = codes.latents.T, "Latents", "Dimension"
        colours = {"cmap": "coolwarm", "vmin": -3, "vmax": 3}
    else:
        rows, title, label = codes.audio_codes, "Codes", "Codebook (coarse to fine)"
        colours = {"cmap": "viridis", "vmin": 0, "vmax": codes.codebook_size - 1}
        axes[2].set_yticks(range(1, codes.num_quantizers + 1))
    image = axes[2].imshow(
        rows, aspect="auto", interpolation="nearest", extent=(0, seconds, len(rows) + 0.5, 0.5), **colours
    )
    axes[2].set_title(f"{title}, {codes.bits_per_second / 1000:g} kbit/s", loc="left", fontweight="bold")
    axes[2].set_ylabel(label)
    axes[2].set_xlabel("Time (s)")
    axes[2].set_xlim(0, codes.seconds)
    figure.colorbar(
        image, ax=axes[2], label="Value" if isinstance(codes, AudioLatents) else "Entry", pad=0.01, aspect=17
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
