# SPDX-License-Identifier: Apache-2.0
"""Speed of codecs against each other, latency of a stream, memory of a long file, and parts of a training step."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tqdm import tqdm
from transformers import EncodecConfig, EncodecModel

from speech_tokenizers.coding.loading import find_checkpoint, load
from speech_tokenizers.evaluation.speed.processor import BF16_FLAGS, cpu_flags
from speech_tokenizers.evaluation.speed.report import build_report
from speech_tokenizers.evaluation.speed.timing import (
    compare_times,
    interleave,
    machine,
    memory_bytes,
    num_parameters,
    synthetic_sound,
)
from speech_tokenizers.modeling.codec_streaming import CodecStream
from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.modeling.transformers_codecs import as_speech_codec
from speech_tokenizers.processing.audio_files import AudioReader, load_audio
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


DEFAULT_RECIPE = "rvq_codec_16khz_4kbps"
ENCODEC_PRESET = "encodec-16khz"
FAST_PRESET = "fast-16khz"
STREAMING_PRESET = "streaming-16khz"
# Part of a long file that is also encoded as a whole, to see how windows change its units.
WINDOW_EFFECT_SECONDS = 120.0


def random_model(preset: str, **overrides: Any) -> RVQCodecModel:
    """A codec with seeded random weights; speed does not depend on them."""
    torch.manual_seed(0)
    return RVQCodecModel(RVQCodecConfig.from_preset(preset, **overrides)).eval()


def encodec_of_same_shape(config: RVQCodecConfig) -> EncodecModel:
    """transformers' EncodecModel with the layers, strides, widths and codebooks of a SEANet configuration."""
    stage_kbps = config.bits_per_second / 1000 / config.num_quantizers
    kbps = [stage_kbps * count for count in range(1, config.num_quantizers + 1)]
    torch.manual_seed(0)
    return EncodecModel(
        EncodecConfig(
            target_bandwidths=kbps,
            sampling_rate=config.sampling_rate,
            audio_channels=1,
            normalize=False,
            hidden_size=config.hidden_size,
            num_filters=config.num_filters,
            num_residual_layers=config.num_residual_layers,
            upsampling_ratios=list(reversed(config.downsampling_ratios)),
            norm_type="weight_norm",
            kernel_size=config.kernel_size,
            last_kernel_size=config.last_kernel_size,
            residual_kernel_size=config.residual_kernel_size,
            dilation_growth_rate=config.dilation_growth_rate,
            use_causal_conv=config.causal,
            pad_mode=config.pad_mode,
            compress=config.compress,
            num_lstm_layers=config.num_lstm_layers,
            trim_right_ratio=float(config.trim_right_ratio),
            codebook_size=config.codebook_size,
            codebook_dim=config.codebook_dim,
            use_conv_shortcut=config.use_conv_shortcut,
        )
    ).eval()


def in_bfloat16(model: RVQCodecModel) -> RVQCodecModel:
    """A copy of the model in bfloat16, loaded as a user would, so that the quantizer stays in float32."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return RVQCodecModel.from_pretrained(folder, dtype=torch.bfloat16).eval()


@torch.inference_mode()
def measure_encodec(args: argparse.Namespace) -> dict[str, Any]:
    """Ours against transformers' EncodecModel: same layers, 16 kHz, 50 Hz, encode and decode."""
    ours = random_model(ENCODEC_PRESET)
    theirs = encodec_of_same_shape(ours.config)
    folded = random_model(ENCODEC_PRESET)
    folded.remove_weight_norm()
    half = in_bfloat16(ours)
    audio = torch.from_numpy(synthetic_sound(round(args.seconds * ours.sampling_rate), ours.sampling_rate))[None, None]
    bandwidth = theirs.config.target_bandwidths[-1]
    codes = ours.encode(audio).audio_codes
    their_codes = theirs.encode(audio, bandwidth=bandwidth).audio_codes
    if their_codes.shape[1:] != codes.shape:
        raise RuntimeError(f"The two codecs differ: codes {tuple(their_codes.shape)} and {tuple(codes.shape)}.")
    variants = {"fp32": ours, "fp32, weight norm folded": folded, "bf16": half}
    encoders = {"transformers fp32": lambda: theirs.encode(audio, bandwidth=bandwidth)}
    decoders = {"transformers fp32": lambda: theirs.decode(their_codes, [None])}
    for name, model in variants.items():
        encoders[name] = lambda model=model: model.encode(audio)
        decoders[name] = lambda model=model: model.decode(codes)
    return {
        "audio_seconds": args.seconds,
        "parameters": {"ours": num_parameters(ours), "transformers": num_parameters(theirs)},
        "encode": compare_times(interleave(encoders, args.repeats), "transformers fp32", args.seconds),
        "decode": compare_times(interleave(decoders, args.repeats), "transformers fp32", args.seconds),
    }


@torch.inference_mode()
def measure_decoders(args: argparse.Namespace) -> dict[str, Any]:
    """
    The fast preset's inverse-STFT decoder against two SEANet decoders for the same latents: EnCodec's, with 32 filters
    and LSTM, and one without LSTM whose widest layer is as wide as the fast decoder's.
    """
    fast = random_model(FAST_PRESET)
    width = fast.config.decoder_hidden_size
    strides = len(fast.config.downsampling_ratios)
    if width % 2**strides:
        raise RuntimeError(f"The fast preset's width {width} is no multiple of {2**strides}.")
    seanet = random_model(
        FAST_PRESET, decoder_type="seanet", num_filters=width // 2**strides, use_weight_norm=False, activation="elu"
    )
    num_frames = round(args.seconds * fast.frame_rate)
    codes = torch.randint(fast.config.codebook_size, (1, fast.config.num_quantizers, num_frames))
    encodec = random_model(ENCODEC_PRESET, hidden_size=fast.config.hidden_size)
    for model in (seanet, encodec):
        model.remove_weight_norm()
    names = {
        f"SEANet, width {width}, no LSTM": seanet,
        f"SEANet of {ENCODEC_PRESET}, width {encodec.config.num_filters * 2**strides}, LSTM": encodec,
        f"inverse STFT of {FAST_PRESET}, width {width}": fast,
    }
    times = interleave({name: lambda model=model: model.decode(codes) for name, model in names.items()}, args.repeats)
    return {
        "audio_seconds": args.seconds,
        "decoder_parameters": {name: num_parameters(model.decoder) for name, model in names.items()},
        "decode": compare_times(times, next(iter(names)), args.seconds),
    }


@torch.inference_mode()
def measure_bfloat16(args: argparse.Namespace) -> dict[str, Any]:
    """bfloat16 against float32 on one model, with the share of codes that are equal, stage by stage."""
    full = load_model(args.model) if args.model else random_model(FAST_PRESET)
    half = in_bfloat16(full)
    rate = full.sampling_rate
    sound = load_audio(args.audio, rate) if args.audio else synthetic_sound(round(args.seconds * rate), rate)
    audio = torch.from_numpy(sound)[None, None]
    seconds = len(sound) / rate
    codes, half_codes = full.encode(audio).audio_codes, half.encode(audio).audio_codes
    models = {"fp32": full, "bf16": half}
    encoders = {name: lambda model=model: model.encode(audio) for name, model in models.items()}
    decoders = {name: lambda model=model: model.decode(codes) for name, model in models.items()}
    return {
        "model": args.model or f"{FAST_PRESET} (random weights)",
        "audio_seconds": seconds,
        "encode": compare_times(interleave(encoders, args.repeats), "fp32", seconds),
        "decode": compare_times(interleave(decoders, args.repeats), "fp32", seconds),
        "code_agreement": float((codes == half_codes).float().mean()),
        "code_agreement_by_stage": (codes == half_codes).float().mean((0, 2)).tolist(),
        "bf16_units": [flag for flag in BF16_FLAGS if flag in cpu_flags()],
    }


@torch.inference_mode()
def measure_streaming(args: argparse.Namespace) -> dict[str, Any]:
    """Wall-clock and processor time from a frame of samples to the decoded frame, in milliseconds."""
    model = random_model(STREAMING_PRESET)
    model.remove_weight_norm()
    hop = model.hop_length
    sound = torch.from_numpy(synthetic_sound(300 * hop, model.sampling_rate))[None, None]
    encoder, decoder = CodecStream(model), CodecStream(model)
    wall, cpu = [], []
    for start in range(0, sound.shape[-1], hop):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        decoder.decode(encoder.encode(sound[..., start : start + hop]))
        wall.append(1000 * (time.perf_counter() - wall_start))
        cpu.append(1000 * (time.process_time() - cpu_start))
    rows = {}
    for clock, values in (("wall", wall[50:]), ("processor", cpu[50:])):
        rows[clock] = {
            "mean_ms": float(np.mean(values)),
            "median_ms": float(np.median(values)),
            "p95_ms": float(np.percentile(values, 95)),
        }
    return {"preset": STREAMING_PRESET, "frame_ms": 1000 / model.frame_rate, "num_frames": len(wall[50:]), **rows}


def measure_tokens(args: argparse.Namespace) -> dict[str, Any]:
    """
    Continuous tokens and speech again, streamed a latent at a time: the median of the repeats, of the presets without
    look-ahead or of a checkpoint.
    """
    from speech_tokenizers.evaluation.speed.tokens import STREAMING_TOKENS, random_tokens, stream_speed

    if args.model is None:
        models: dict[str, Any] = {
            " ".join([preset, *overrides, "(random weights)"]): random_tokens(preset, **overrides)
            for preset, overrides in STREAMING_TOKENS.items()
        }
    else:
        model = load_model(args.model)
        if model.kind == "codes":
            return {"skipped": f"{args.model} has codebooks; `streaming` is of codecs"}
        models = {args.model: model}
    rows = []
    for name, model in models.items():
        rate = model.sampling_rate
        audio = torch.from_numpy(synthetic_sound(round(args.seconds * rate), rate))[None, None]
        runs = [stream_speed(model, audio) for _ in range(args.repeats)]
        medians = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
        rows.append({"name": name, "parameters": num_parameters(model), **medians})
    return {"audio_seconds": args.seconds, "models": rows}


def load_model(name: str) -> RVQCodecModel:
    """A checkpoint by name, folder or Hub id."""

    return load(name)[0]


def print_file_memory(model_name: str, audio_path: str, threads: str) -> None:
    """
    Encode and decode a file with the functions of the command line, and print memory as JSON. It runs in a process of
    its own.
    """
    from speech_tokenizers.coding.file_coding import decode_file, encode_file

    torch.set_num_threads(int(threads))
    model, feature_extractor = load(model_name)
    codec = as_speech_codec(model, feature_extractor)
    with_model = memory_bytes("VmRSS")
    # 5 resets the high-water mark, which loading may have raised.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    folder = Path(audio_path).parent
    start = time.perf_counter()
    codes = encode_file(model, audio_path, folder / "codes.safetensors")
    middle = time.perf_counter()
    encode_peak = memory_bytes("VmHWM")
    result = {
        "with_model_bytes": with_model,
        "encode_extra_bytes": encode_peak - with_model,
        "encode_seconds": middle - start,
        "num_frames": codes.num_frames,
    }
    if codec.kind in codec.decodable_kinds:
        result["num_samples"] = decode_file(model, folder / "codes.safetensors", folder / "decoded.wav")
        result["decode_seconds"] = time.perf_counter() - middle
    result["extra_bytes"] = memory_bytes("VmHWM") - with_model
    if codec.longest_exact_stream is not None:
        from speech_tokenizers.evaluation.speed.units import window_effect

        with AudioReader(audio_path, model.sampling_rate, WINDOW_EFFECT_SECONDS) as reader:
            result["window_effect"] = window_effect(model, torch.from_numpy(next(iter(reader))))
    print(json.dumps(result))


def measure_file_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Memory that coding a long file takes beyond the loaded model, in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        return {"skipped": "needs Linux, which reports a process's peak memory"}
    with tempfile.TemporaryDirectory() as folder:
        name = args.model
        if name is None:
            model = random_model(FAST_PRESET)
            name = str(Path(folder) / "model")
            model.save_pretrained(name)
            rates = {"sampling_rate": model.sampling_rate, "hop_length": model.hop_length}
            RVQCodecFeatureExtractor(**rates).save_pretrained(name)
        path = Path(folder) / "long.wav"
        part = synthetic_sound(60 * 16000, 16000) if args.audio is None else load_audio(args.audio, 16000)
        left = round(60 * 16000 * args.memory_minutes)
        with soundfile.SoundFile(path, "w", 16000, 1, "PCM_16") as file:
            while left > 0:
                file.write(part[:left])
                left -= len(part[:left])
        code = f"from {__name__} import print_file_memory as report; import sys; report(*sys.argv[1:])"
        command = [sys.executable, "-c", code, name, str(path), str(args.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The memory measurement failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    return {"model": args.model or f"{FAST_PRESET} (random weights)", "minutes": args.memory_minutes, **measured}


def measure_units(args: argparse.Namespace) -> dict[str, Any]:
    """Units of recordings in batches sorted by length, against the plain forward pass of their encoder."""
    from speech_tokenizers.evaluation.speed.units import (
        CODEBOOK_SIZE,
        NUM_LAYERS,
        plain_forward,
        random_units,
        tokenization,
    )

    encoder, units = random_units()
    generator = np.random.default_rng(0)
    seconds = args.seconds * generator.uniform(0.25, 1.0, size=8)
    waveforms = [synthetic_sound(round(16000 * length), 16000, number) for number, length in enumerate(seconds)]
    batch_seconds = 2.5 * args.seconds
    functions = {
        "HubertModel": plain_forward(encoder, waveforms, round(16000 * batch_seconds), 16000),
        "units": tokenization(units, waveforms, batch_seconds),
    }
    times = interleave(functions, args.repeats)
    total = float(sum(map(len, waveforms))) / 16000
    described = f"HuBERT-base, {NUM_LAYERS} layers, {CODEBOOK_SIZE} centroids (random weights)"
    return {"model": described, "audio_seconds": total, "encode": compare_times(times, "HubertModel", total)}


def measure_training(args: argparse.Namespace) -> dict[str, Any]:
    """
    The parts of a training step by `--recipe`, of a new model or of `--model`, in a process of its own: what a process
    trains with, precision among it, holds for all of it.
    """
    recipe, *overrides = args.recipe or [DEFAULT_RECIPE]
    if args.model is not None and args.recipe is None and not isinstance(load_model(args.model), RVQCodecModel):
        return {"skipped": f"{recipe} does not train a model like {args.model}; name its recipe by `--recipe`"}
    with tempfile.TemporaryDirectory() as folder:
        recordings = Path(folder) / "recordings"
        recordings.mkdir()
        if args.audio is not None:
            soundfile.write(recordings / "0.wav", load_audio(args.audio, 16000), 16000)
        else:
            for number in range(10):
                soundfile.write(recordings / f"{number}.wav", synthetic_sound(4 * 16000, 16000, number), 16000)
        settings: dict[str, Any] = {
            "output_dir": str(Path(folder) / "run"),
            "data.train": str(recordings),
            "data.train_filter": {},
            "data.train_files": None,
            "data.eval": None,
            "data.cache_dir": None,
            "data.streaming": False,
        }
        if args.model is not None:
            settings |= {"model.pretrained": args.model, "model.preset": None}
        # JSON is YAML, and keeps a path's colons and blanks.
        settings_as_text = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        command = [sys.executable, "-m", "speech_tokenizers", "profile", recipe, *overrides]
        command += [*settings_as_text, "--steps", str(args.repeats), "--threads", str(args.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1].removeprefix("error: ")
        raise ChildProcessError(f"The training step could not be profiled: {reason}")
    profile = json.loads(done.stdout.strip().splitlines()[-1])
    return {"recipe": " ".join(args.recipe), "model": args.model or "random weights", **profile}


MEASURES = {
    "encodec": measure_encodec,
    "decoders": measure_decoders,
    "bf16": measure_bfloat16,
    "streaming": measure_streaming,
    "tokens": measure_tokens,
    "memory": measure_file_memory,
    "training": measure_training,
    "units": measure_units,
}


def benchmark(args: argparse.Namespace) -> int:
    """Measure speed and memory, as `speech-tokenizers benchmark` does; returns the exit code."""
    torch.set_num_threads(args.threads)
    if args.model is not None:
        find_checkpoint(args.model)  # a missing one is told of before any work
    results: dict[str, Any] = {
        "machine": machine(),
        "threads": args.threads,
        "repeats": args.repeats,
        "clock": "processor" if args.threads == 1 else "wall-clock",
        "sections": {},
    }
    progress = tqdm(args.sections, unit="section", disable=None)
    for section in progress:
        progress.set_description(section)
        results["sections"][section] = MEASURES[section](args)
    report = build_report(results)
    print(report.markdown())
    if args.output is not None:
        written = report.write(args.output, "benchmark")
        print("written: " + ", ".join(str(path) for path in written))
    return 0
