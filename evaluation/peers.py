# SPDX-License-Identifier: Apache-2.0
"""
Codecs of other kinds to compare with: Opus, Codec2, Lyra v2, and any codec of which decoded files are at hand.

Metrics that compare samples need the decoded clip aligned with the recording, so each codec's delay is removed:
Opus states it in its header and `opusdec` skips it; Lyra v2 has none; Codec2's is a constant that was measured
(below).
"""

import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr

from speech_tokenizers.evaluation.codec_systems import CodecSystem, CodedClip
from speech_tokenizers.evaluation.stopwatch import Stopwatch
from speech_tokenizers.processing.audio_files import AUDIO_SUFFIXES, load_audio
from speech_tokenizers.processing.optional_packages import require_package
from speech_tokenizers.processing.speech_recognition import folder_fingerprint


def estimate_delay(decoded: np.ndarray, recorded: np.ndarray, max_delay: int) -> int:
    """
    Samples by which `decoded` lags behind `recorded`, by the maximum of their cross-correlation.

    Args:
        decoded, recorded (`np.ndarray` of shape `(num_samples,)`): Waveforms at one rate.
        max_delay (`int`): Largest delay or advance that is looked for, in samples; no more than the recording has.
    """
    max_delay = min(max_delay, max(0, len(recorded) - 1))
    size = 1 << (len(decoded) + len(recorded)).bit_length()
    spectrum = np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(recorded, size))
    correlation = np.fft.irfft(spectrum, size)
    lags = np.concatenate([np.arange(0, max_delay + 1), np.arange(-max_delay, 0)])
    return int(lags[np.argmax(correlation[lags])])


def fit_length(audio: np.ndarray, num_samples: int) -> np.ndarray:
    """Cut `audio` at the end, or extend it with zeros, to `num_samples`."""
    return np.pad(audio[:num_samples], (0, max(0, num_samples - len(audio))))


class ProgramError(RuntimeError):
    """A codec's program is missing, or it ended with an error. The message is one line."""


def find_program(program: str, package: str) -> str:
    """Path of a program. Raises a `ProgramError` that names its Debian package if it is not installed."""
    path = shutil.which(program)
    if path is None:
        raise ProgramError(f"The program `{program}` is missing; install it, e.g. with `apt-get install {package}`.")
    return path


class ProgramStopwatch(Stopwatch):
    """A `Stopwatch` whose `cpu_seconds` are those of the programs that ran meanwhile."""

    def __enter__(self) -> "ProgramStopwatch":
        self._wall, self._cpu = time.perf_counter(), self._children()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.cpu_seconds = time.perf_counter() - self._wall, self._children() - self._cpu

    @staticmethod
    def _children() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime


def run_program(*command: str | Path) -> None:
    """Run a program to its end. Raises a `ProgramError` with its last line of output if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise ProgramError(f"`{Path(str(command[0])).name}` ended with code {done.returncode}: {lines[-1]}")


def program_version(path: str, *arguments: str) -> str:
    """First line of what a program prints about itself."""
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    return ((done.stdout or done.stderr).splitlines() or [""])[0].strip()


def ogg_payload_bytes(data: bytes) -> int:
    """Bytes of audio in an Ogg Opus stream: all packets but the two headers, without page headers."""
    position, packets, open_packet = 0, [], 0
    while position < len(data):
        if data[position : position + 4] != b"OggS":
            raise ProgramError(f"The Ogg stream is broken at byte {position}.")
        num_segments = data[position + 26]
        lengths = data[position + 27 : position + 27 + num_segments]
        for length in lengths:
            open_packet += length
            if length < 255:
                packets.append(open_packet)
                open_packet = 0
        position += 27 + num_segments + sum(lengths)
    return sum(packets[2:])


class OpusSystem:
    """
    Opus by `opusenc` and `opusdec` (opus-tools), variable bit rate; the measured rate counts packets, not the Ogg
    container.

    `opusenc` writes the encoder's delay into the header (pre-skip) and `opusdec` drops that many samples, so the
    output is aligned.

    Args:
        kbps (`float`): Target bit rate in kbit/s, at least 6.
    """

    codebook_size = None
    frame_rate = None
    sampling_rate = 16000

    def __init__(self, kbps: float):
        self.encoder, self.decoder = find_program("opusenc", "opus-tools"), find_program("opusdec", "opus-tools")
        self.kbps = kbps
        self.name = f"Opus {kbps:g} kbps"
        self.key = f"opus-{kbps:g}-{program_version(self.encoder, '--version')}"

    def code(self, audio: np.ndarray) -> CodedClip:
        with tempfile.TemporaryDirectory() as folder:
            recorded, packed, decoded = (Path(folder) / name for name in ("recorded.wav", "coded.opus", "decoded.wav"))
            soundfile.write(recorded, audio, self.sampling_rate, subtype="PCM_16")
            with ProgramStopwatch() as encoding:
                run_program(self.encoder, "--quiet", "--bitrate", f"{self.kbps:g}", recorded, packed)
            with ProgramStopwatch() as decoding:
                run_program(self.decoder, "--quiet", "--rate", str(self.sampling_rate), packed, decoded)
            values = soundfile.read(decoded, dtype="float32")[0]
            num_bits = 8 * ogg_payload_bytes(packed.read_bytes())
        return CodedClip(
            fit_length(values, len(audio)),
            num_bits,
            encoding.seconds,
            decoding.seconds,
            encoding.cpu_seconds,
            decoding.cpu_seconds,
        )


class Codec2System:
    """
    Codec2 by `c2enc` and `c2dec`; it works at 8 kHz, so the clip is resampled before and after.

    Args:
        kbps (`float`): Bit rate in kbit/s: 3.2 or 2.4, the modes with frames of 20 ms.
    """

    codebook_size = None
    frame_rate = None
    sampling_rate = 8000
    modes = {3.2: "3200", 2.4: "2400"}
    # Samples at 8 kHz by which the output lags. Codec2 invents the phases, so waveforms correlate at any multiple of
    # the pitch period. The envelopes' cross-correlation peaks at 155 +- 30 samples over twelve clips, and STOI is
    # highest at 160: one frame.
    delay = 160

    def __init__(self, kbps: float):
        if kbps not in self.modes:
            raise ValueError(f"Codec2 has {', '.join(f'{rate:g}' for rate in self.modes)} kbps, but got {kbps:g}.")
        self.encoder, self.decoder = find_program("c2enc", "codec2"), find_program("c2dec", "codec2")
        self.mode = self.modes[kbps]
        self.name = f"Codec2 {kbps:g} kbps"
        self.key = f"codec2-{self.mode}-{Path(self.encoder).stat().st_size}-delay{self.delay}"

    def code(self, audio: np.ndarray) -> CodedClip:
        with tempfile.TemporaryDirectory() as folder:
            recorded, packed, decoded = (Path(folder) / name for name in ("recorded.raw", "coded.c2", "decoded.raw"))
            # Silence brings out what the delay would cut off, and fills the last frame, which the encoder drops if
            # incomplete.
            samples = np.concatenate([np.clip(audio, -1, 1), np.zeros(self.delay + 160)])
            (samples * 32767).astype("<i2").tofile(recorded)
            with ProgramStopwatch() as encoding:
                run_program(self.encoder, self.mode, recorded, packed)
            with ProgramStopwatch() as decoding:
                run_program(self.decoder, self.mode, packed, decoded)
            values = np.fromfile(decoded, "<i2").astype(np.float32) / 32768
            num_bits = 8 * packed.stat().st_size * len(audio) / len(samples)
        return CodedClip(
            fit_length(values[self.delay :], len(audio)),
            num_bits,
            encoding.seconds,
            decoding.seconds,
            encoding.cpu_seconds,
            decoding.cpu_seconds,
        )


class LyraSystem:
    """
    Lyra v2 (SoundStream's published successor) from its three TensorFlow Lite networks, run by `ai-edge-litert`.

    Frames of 20 ms; a residual quantizer whose stages hold 4 bits each. It has no look-ahead.

    Args:
        kbps (`float`): Bit rate in kbit/s: 3.2, 6 or 9.2.
        folder (`str`): Folder of `soundstream_encoder.tflite`, `quantizer.tflite` and `lyragan.tflite`.
    """

    codebook_size = 16
    frame_rate = 50.0
    sampling_rate = 16000
    hop_length = 320
    num_stages = {3.2: 16, 6.0: 30, 9.2: 46}

    def __init__(self, kbps: float, folder: str):
        if kbps not in self.num_stages:
            raise ValueError(
                f"Lyra v2 has {', '.join(f'{rate:g}' for rate in self.num_stages)} kbps, but got {kbps:g}."
            )
        purpose = "Lyra v2"
        require_package("ai_edge_litert", purpose, command="pip install 'speech-tokenizers[lyra]'")
        self.folder, self.stages = Path(folder), self.num_stages[kbps]
        missing = [name for name in self._networks if not (self.folder / f"{name}.tflite").is_file()]
        if missing:
            raise ValueError(f"The Lyra folder {folder} lacks {', '.join(f'{name}.tflite' for name in missing)}.")
        self.name = f"Lyra v2 {kbps:g} kbps"
        self.key = f"lyra-{kbps:g}-{folder_fingerprint(self.folder)}"
        quantizer = self._load("quantizer")
        self.quantize, self.dequantize = (quantizer.get_signature_runner(name) for name in ("encode", "decode"))

    _networks = ("soundstream_encoder", "quantizer", "lyragan")

    def _load(self, network: str):
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter(str(self.folder / f"{network}.tflite"), num_threads=1)

    def _run_frames(self, network: str, frames: list[np.ndarray]) -> list[np.ndarray]:
        """Feed frames one by one to a network that keeps its state between them and starts from zero."""
        interpreter = self._load(network)
        interpreter.allocate_tensors()
        source = interpreter.get_input_details()[0]["index"]
        target = interpreter.get_output_details()[0]["index"]
        outputs = []
        for frame in frames:
            interpreter.set_tensor(source, frame)
            interpreter.invoke()
            outputs.append(interpreter.get_tensor(target).copy())
        return outputs

    def code(self, audio: np.ndarray) -> CodedClip:
        num_frames = -(-len(audio) // self.hop_length)
        blocks = (
            fit_length(audio, num_frames * self.hop_length).astype(np.float32).reshape(num_frames, 1, self.hop_length)
        )
        with Stopwatch() as encoding:
            codes = []
            for features in self._run_frames("soundstream_encoder", list(blocks)):
                coded = self.quantize(input_frames=features, num_quantizers=np.array(self.stages, np.int32))
                codes.append(coded["output_0"].reshape(-1)[: self.stages])
        with Stopwatch() as decoding:
            latents = []
            for frame in codes:
                indices = np.full((46, 1, 1), -1, np.int32)  # -1 leaves a stage out
                indices[: self.stages, 0, 0] = frame
                latents.append(self.dequantize(encoding_indices=indices)["output_0"])
            decoded = np.concatenate([block.reshape(-1) for block in self._run_frames("lyragan", latents)])
        return CodedClip(
            fit_length(np.clip(decoded, -1, 1), len(audio)),
            num_frames * self.stages * 4.0,
            encoding.seconds,
            decoding.seconds,
            encoding.cpu_seconds,
            decoding.cpu_seconds,
            np.stack(codes, axis=1).astype(np.int64),
        )


class DecodedFiles:
    """
    A codec that cannot be run here, but has decoded the same clips into files.

    Args:
        name (`str`): Name that tables show.
        folder (`str`): Folder of the decoded files, which are laid out and named as the recordings. Suffixes may
            differ.
        replace (`tuple` of two `str`, *optional*): Text in the recordings' names, and the text that takes its place in
            those of the decoded files, such as `("Original", "EnCodec")`.

    Raises:
        ValueError: If there is no such folder.
    """

    codebook_size = None
    frame_rate = None
    sampling_rate = 16000

    def __init__(self, name: str, folder: str, replace: tuple[str, str] | None = None):
        self.name, self.folder, self.replace = name, Path(folder), replace
        if not self.folder.is_dir():
            raise ValueError(f"The decoded files of {name} are looked for in {folder}, which is no folder.")
        self.key = f"files-{name}-{replace}-{folder_fingerprint(self.folder)}"

    def find(self, clip_name: str) -> Path:
        """
        The decoded version of a clip.

        Raises:
            ProgramError: If there is none.
        """
        path = self.folder / (clip_name if self.replace is None else clip_name.replace(*self.replace))
        for candidate in (path, *(path.with_suffix(suffix) for suffix in AUDIO_SUFFIXES)):
            if candidate.is_file():
                return candidate
        raise ProgramError(f"there is no decoded file {path}")

    def read(self, clip_name: str, num_samples: int) -> CodedClip:
        """The decoded version of a clip, cut or extended to `num_samples`; its size and speed are not known."""
        return CodedClip(fit_length(load_audio(self.find(clip_name), self.sampling_rate), num_samples))


def load_decoded_files(description: str) -> DecodedFiles:
    """The [`DecodedFiles`] of `NAME=FOLDER` or `NAME=FOLDER:OLD=NEW`."""
    name, _, rest = description.partition("=")
    folder, replacement = rest, ""
    # A folder's name may have a colon in it.
    if not Path(rest).is_dir() and ":" in rest:
        folder, _, replacement = rest.rpartition(":")
    old, _, new = replacement.partition("=")
    if not name or not folder or bool(replacement) != bool(old and new):
        raise ValueError(f"Decoded files are `files:NAME=FOLDER` or `files:NAME=FOLDER:OLD=NEW`, not {description!r}.")
    return DecodedFiles(name, folder, (old, new) if replacement else None)


def load_peer(description: str) -> CodecSystem | DecodedFiles:
    """
    Args:
        description (`str`): Description of the codec: `opus:KBPS`, `codec2:KBPS`, `lyra:KBPS=FOLDER` or
            `files:NAME=FOLDER[:OLD=NEW]`.

    Raises:
        ValueError: If the description is not one of these.
        ProgramError: If the codec's program is not installed.
    """
    kind, _, rest = description.partition(":")
    if kind == "files":
        return load_decoded_files(rest)
    rate, _, folder = rest.partition("=")
    try:
        kbps = float(rate)
    except ValueError:
        kbps = 0.0
    if kind == "opus" and kbps >= 6:
        return OpusSystem(kbps)
    if kind == "codec2" and kbps:
        return Codec2System(kbps)
    if kind == "lyra" and kbps and folder:
        return LyraSystem(kbps, folder)
    raise ValueError(
        "A peer is `opus:KBPS` (from 6), `codec2:KBPS`, `lyra:KBPS=FOLDER` or `files:NAME=FOLDER[:OLD=NEW]`, "
        f"e.g. `opus:6`, but got {description!r}."
    )


def resample(audio: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """A waveform of shape `(num_samples,)` at another rate; unchanged where the rates are equal."""
    return audio if source_rate == target_rate else soxr.resample(audio, source_rate, target_rate)
