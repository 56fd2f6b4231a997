# SPDX-License-Identifier: Apache-2.0
"""
Changes of a recording that leave what is said as it is: noise, reverberation, gain, pitch, tempo and lossy coding.

They are those of the unit edit distance (Gat et al. 2023, https://huggingface.co/papers/2209.15483; NAST, Messica and
Adi 2024, https://huggingface.co/papers/2406.11037) with gain and transcoding added. Where those use recordings of
noise, a simulation of mirrored sound sources and a phase vocoder, here the noise is generated unless a folder of
recordings is given, rooms are decaying noise (Polack), and tempo is changed by WSOLA, so distances compare between
systems that are measured here and only loosely with published ones.

What is drawn comes from a generator that the caller seeds, see [`perturb`].
"""

import abc
import dataclasses
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr
from scipy import signal

from speech_tokenizers.evaluation.peers import fit_length
from speech_tokenizers.processing.audio_files import find_audio_files, load_audio
from speech_tokenizers.processing.speech_recognition import folder_fingerprint


NAST_LEVEL = -25.0  # dBFS, of the speech before noise is added


class Perturbation(abc.ABC):
    """
    A change of a recording, with its settings; a frozen dataclass, whose `repr` is its `key`.
    """

    def __call__(self, audio: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        """
        Args:
            audio (`np.ndarray` of shape `(num_samples,)`): Waveform in [-1, 1], which is not changed.
            sampling_rate (`int`): Sampling rate of `audio`, in Hz.
            generator (`np.random.Generator`): Generator for everything that is drawn.

        Returns:
            `np.ndarray`: The changed waveform, float32, as long as `audio` unless the tempo changes.

        Raises:
            ValueError: If `audio` has another shape, is empty or not finite.
        """
        audio = np.asarray(audio, np.float64)
        if audio.ndim != 1 or not len(audio):
            raise ValueError(f"`audio` must be of shape (num_samples,) and not empty, but has shape {audio.shape}.")
        if not np.isfinite(audio).all():
            raise ValueError("`audio` must be finite, but has NaN or infinite samples.")
        return self.apply(audio, sampling_rate, generator).astype(np.float32)

    @abc.abstractmethod
    def apply(self, audio: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        """As `__call__`, in float64, after the input was checked."""

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """Description of the change, in words for a table's notes."""

    @property
    def key(self) -> str:
        """Equal where the same generator gives the same waveforms."""
        return repr(self)


@dataclasses.dataclass(frozen=True)
class NoiseFolder:
    """
    Recordings of noise.

    Args:
        folder (`Path`): Folder of audio files, which may lie in subfolders.

    Raises:
        ValueError: If it holds none.
    """

    folder: Path = dataclasses.field(repr=False)
    fingerprint: str = dataclasses.field(init=False)
    files: tuple[Path, ...] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(find_audio_files([self.folder])))
        object.__setattr__(self, "fingerprint", folder_fingerprint(self.folder))

    def draw(self, num_samples: int, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        """
        A stretch of one of them, of shape `(num_samples,)`; a recording that is shorter is repeated.

        Raises:
            ValueError: If the stretch is silent.
        """
        path = self.files[int(generator.integers(len(self.files)))]
        recorded = load_audio(path, sampling_rate)
        start = int(generator.integers(max(1, len(recorded) - num_samples + 1)))
        noise = np.take(recorded, np.arange(start, start + num_samples), mode="wrap")
        if not noise.any():
            raise ValueError(f"The noise {path} is silent from sample {start}; leave it out of the folder.")
        return noise


NoiseColour = Literal["speech_shaped", "pink", "white"]


@dataclasses.dataclass(frozen=True)
class Noise(Perturbation):
    """
    Add noise at a signal-to-noise ratio that is drawn evenly between two values.

    The ratio is that of the powers over the whole clip, pauses among it. With `"exact"` it is the one that was drawn,
    and the speech keeps its level. With `"nast"` the speech is first scaled to -25 dBFS (its root mean square is
    10^(-25/20)), and as in NAST's mixer the noise is scaled by the root of the factor of amplitudes: the ratio in
    decibels is half of the one that was drawn, so that U(5, 30) dB are in truth 2.5 to 15 dB. Nothing is clipped.
    Silence stays silent, for no ratio is defined for it.

    Args:
        low, high (`float`): Ends of the range that is drawn from, in dB.
        convention (`"exact"` or `"nast"`): Meaning of the drawn ratio.
        source (`"speech_shaped"`, `"pink"`, `"white"` or [`NoiseFolder`]): Source of the noise. Speech-shaped noise
            has the clip's own long-term spectrum with random phases, so that each band has the same ratio. Pink noise
            has a power of 1 / frequency from 20 Hz. Neither resembles a voice, as babble would.

    Raises:
        ValueError: If a setting is none of these.
    """

    low: float = 5.0
    high: float = 30.0
    convention: Literal["exact", "nast"] = "exact"
    source: NoiseColour | NoiseFolder = "speech_shaped"

    def __post_init__(self) -> None:
        if self.convention not in ("exact", "nast"):
            raise ValueError(f"`convention` must be 'exact' or 'nast', but got {self.convention!r}.")
        if not isinstance(self.source, NoiseFolder) and self.source not in ("speech_shaped", "pink", "white"):
            raise ValueError(
                f"`source` must be 'speech_shaped', 'pink', 'white' or a `NoiseFolder`, but got {self.source!r}."
            )
        _check_range("low", self.low, "high", self.high)

    def apply(self, audio: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        drawn = generator.uniform(self.low, self.high)
        if not audio.any():
            return audio.copy()
        if isinstance(self.source, NoiseFolder):
            noise = self.source.draw(len(audio), sampling_rate, generator).astype(np.float64)
        else:
            noise = generate_noise(audio, sampling_rate, self.source, generator)
        if self.convention == "nast":
            audio = audio * (10 ** (NAST_LEVEL / 20) / _root_mean_square(audio))
            drawn = drawn / 2
        return audio + noise * (_root_mean_square(audio) / _root_mean_square(noise) * 10 ** (-drawn / 20))

    @property
    def description(self) -> str:
        if isinstance(self.source, NoiseFolder):
            noise = f"recorded noise ({len(self.source.files)} files)"
        else:
            noise = f"{self.source.replace('_', '-')} noise"
        if self.convention == "exact":
            return f"{noise} at {self.low:g} to {self.high:g} dB"
        return (
            f"{noise} in NAST's convention: at half of {self.low:g} to {self.high:g} dB, which are in truth "
            f"{self.low / 2:g} to {self.high / 2:g} dB, with the speech at {NAST_LEVEL:g} dBFS"
        )


def generate_noise(
    audio: np.ndarray, sampling_rate: int, colour: NoiseColour, generator: np.random.Generator
) -> np.ndarray:
    """
    Stationary noise as long as a clip, of no particular level.

    Args:
        audio (`np.ndarray` of shape `(num_samples,)`): Clip that the noise is for, not silent.
        sampling_rate (`int`): Sampling rate of `audio`, in Hz.
        colour (`"speech_shaped"`, `"pink"` or `"white"`): Kind of noise; see [`Noise`].
        generator (`np.random.Generator`): Generator for the phases and, where noise is not speech-shaped, for the
            amplitudes.
    """
    num_samples = len(audio)
    if colour == "speech_shaped":
        amplitudes = np.abs(np.fft.rfft(audio))
        phases = generator.uniform(0, 2 * np.pi, len(amplitudes))
        return np.fft.irfft(amplitudes * np.exp(1j * phases), num_samples)
    white = generator.standard_normal(num_samples)
    if colour == "white":
        return white
    frequencies = np.fft.rfftfreq(num_samples, 1 / sampling_rate)
    return np.fft.irfft(np.fft.rfft(white) / np.sqrt(np.maximum(frequencies, 20.0)), num_samples)


@dataclasses.dataclass(frozen=True)
class Reverberation(Perturbation):
    """
    Reverberation of a synthetic room: the direct sound, and after it Gaussian noise that decays by 60 dB within a time
    that is drawn (Polack 1988).

    The direct sound is not delayed, so that the recording stays where it is in time; its level and length are kept
    too. Mirrored sources, as the published measure has them, would give early reflections besides.

    Args:
        rooms (`tuple` of `(probability, low, high)`): Ranges of decay times in seconds, with the probability of each.
            Within a range all times are equally likely. Defaults to NAST's ranges low, medium and high.
        direct_to_reverberant (`float`): Energy of the direct sound relative to that of the rest, in dB. Defaults to 0,
            that of a microphone at the critical distance.

    Raises:
        ValueError: If the probabilities do not add up to 1, or a decay time is not positive.
    """

    rooms: tuple[tuple[float, float, float], ...] = ((0.5, 0.1, 0.3), (0.3, 0.2, 0.6), (0.2, 0.4, 1.0))
    direct_to_reverberant: float = 0.0

    def __post_init__(self) -> None:
        total = sum(probability for probability, _, _ in self.rooms)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"The probabilities of `rooms` must add up to 1, but add up to {total:g}.")
        for _, low, high in self.rooms:
            _check_range("low", low, "high", high)
            if low <= 0:
                raise ValueError(f"The decay times of `rooms` must be above 0 s, but got {low:g}.")

    def draw_decay_time(self, generator: np.random.Generator) -> float:
        """Seconds in which the reverberation falls by 60 dB."""
        room = generator.choice(len(self.rooms), p=[probability for probability, _, _ in self.rooms])
        return float(generator.uniform(*self.rooms[room][1:]))

    def apply(self, audio: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        response = room_response(self.draw_decay_time(generator), sampling_rate, self.direct_to_reverberant, generator)
        if not audio.any():
            return audio.copy()
        reverberant = signal.fftconvolve(audio, response)[: len(audio)]
        return reverberant * (_root_mean_square(audio) / _root_mean_square(reverberant))

    @property
    def description(self) -> str:
        ranges = ", ".join(f"{low:g} to {high:g} s ({100 * part:g} %)" for part, low, high in self.rooms)
        return (
            f"synthetic rooms with decay times of {ranges}, the direct sound {self.direct_to_reverberant:g} dB above "
            "the rest"
        )


def room_response(
    decay_time: float, sampling_rate: int, direct_to_reverberant: float, generator: np.random.Generator
) -> np.ndarray:
    """
    Impulse response of a room whose sound decays evenly, of shape `(num_samples,)`; the first sample is the direct
    sound, of amplitude 1.

    Args:
        decay_time (`float`): Seconds in which the sound falls by 60 dB. The response has the same length.
        sampling_rate (`int`): Sampling rate of the response, in Hz.
        direct_to_reverberant (`float`): Energy of the first sample relative to that of all others, in dB.
        generator (`np.random.Generator`): Generator for the reflections.
    """
    times = np.arange(1, 1 + max(1, round(decay_time * sampling_rate))) / sampling_rate
    reflections = generator.standard_normal(len(times)) * 10 ** (-3 * times / decay_time)
    reflections *= 10 ** (-direct_to_reverberant / 20) / np.linalg.norm(reflections)
    return np.concatenate([[1.0], reflections])


@dataclasses.dataclass(frozen=True)
class FarMicrophone(Perturbation):
    """
    A microphone far from the speaker: most of what it hears is reverberation, and the room is not quiet.

    Args:
        low, high (`float`): Ends of the range of decay times, in seconds, that is drawn from evenly.
        direct_to_reverberant (`float`): Energy of the direct sound relative to that of the rest, in dB.
        signal_to_noise (`float`): Power of the reverberant speech relative to that of the noise, in dB.
        source (`"speech_shaped"`, `"pink"`, `"white"` or [`NoiseFolder`]): Source of the noise; see [`Noise`].

    Raises:
        ValueError: If a setting is none of these.
    """

    low: float = 0.4
    high: float = 0.8
    direct_to_reverberant: float = -6.0
    signal_to_noise: float = 15.0
    source: NoiseColour | NoiseFolder = "pink"

    def __post_init__(self) -> None:
        self._parts()

    def _parts(self) -> tuple[Reverberation, Noise]:
        return (
            Reverberation(((1.0, self.low, self.high),), self.direct_to_reverberant),
            Noise(self.signal_to_noise, self.signal_to_noise, source=self.source),
        )

    def apply(self, audio: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        for part in self._parts():
            audio = part.apply(audio, sampling_rate, generator)
        return audio

    @property
    def description(self) -> str:
        return "; ".join(part.description for part in self._parts())


@dataclasses.dataclass(frozen=True)
class Gain(Perturbation):
    """
    Make a recording louder or softer, but no louder than that its peak is 1.

    Args:
        low, high (`float`): Ends of the range that is drawn from evenly, in dB.
    """

    low: float = -12.0
    high: float = 12.0

    def __post_init__(self) -> None:
        _check_range("low", self.low, "high", self.high)

    def apply(self, audio: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        factor = 10 ** (generator.uniform(self.low, self.high) / 20)
        peak = np.abs(audio).max()
        return audio * (min(factor, max(1.0, 1 / peak)) if peak else 1.0)

    @property
    def description(self) -> str:
        return f"{self.low:+g} to {self.high:+g} dB, without clipping"


@dataclasses.dataclass(frozen=True)
class PitchShift(Perturbation):
    """
    Raise or lower the voice, formants with it; the length is kept, and the peak scaled to 1 as NAST has it.

    Args:
        semitones (`float`): Semitones by which the pitch rises; below 0 it falls.
    """

    semitones: float = 4.0

    def apply(self, audio: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        shifted = shift_pitch(audio, self.semitones, sampling_rate)
        peak = np.abs(shifted).max()
        return shifted / peak if peak else shifted

    @property
    def description(self) -> str:
        return f"{self.semitones:+g} semitones, scaled to a peak of 1"


@dataclasses.dataclass(frozen=True)
class TimeStretch(Perturbation):
    """
    Speak faster or slower at the same pitch.

    Args:
        low, high (`float`): Ends of the range of tempos that is drawn from evenly; above 1 is faster and shorter.

    Raises:
        ValueError: If a tempo is not positive.
    """

    low: float = 0.8
    high: float = 1.2

    def __post_init__(self) -> None:
        _check_range("low", self.low, "high", self.high)
        if self.low <= 0:
            raise ValueError(f"`low` must be above 0, but got {self.low:g}.")

    def apply(self, audio: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        return stretch_time(audio, generator.uniform(self.low, self.high), sampling_rate)

    @property
    def description(self) -> str:
        return f"{self.low:g} to {self.high:g} times as fast"


def stretch_time(audio: np.ndarray, tempo: float, sampling_rate: int) -> np.ndarray:
    """
    Change the tempo and keep the pitch, by overlap and add of stretches that fit each other (WSOLA; Verhelst and
    Roelands 1993).

    Windows of 32 ms are laid down every 16 ms. Each is taken from where the tempo has it, within 10 ms, at the place
    that is most like what followed the window before in the recording (normalised cross-correlation).

    Args:
        audio (`np.ndarray` of shape `(num_samples,)`): Waveform.
        tempo (`float`): Factor of the speed; above 1 is faster.
        sampling_rate (`int`): Sampling rate of `audio`, in Hz.

    Returns:
        `np.ndarray` of shape `(round(num_samples / tempo),)`, at least one sample. What was at t seconds is at
        t / tempo.
    """
    if tempo == 1:
        return audio.copy()
    hop, reach = round(0.016 * sampling_rate), round(0.01 * sampling_rate)
    num_samples = max(1, round(len(audio) / tempo))
    num_windows = -(-num_samples // hop) + 1
    window = signal.get_window("hann", 2 * hop)  # windows at half their length from each other add up to 1
    # The middle of window k is sample `k * hop` there and `k * hop * tempo` in the recording.
    middles = np.round(np.arange(num_windows) * hop * tempo).astype(int)
    before = hop + reach
    padded = np.pad(audio, (before, max(0, middles[-1] - len(audio)) + 3 * hop + reach))
    stretched = np.zeros((num_windows + 1) * hop)
    start = reach
    for number, middle in enumerate(middles):
        if number:
            natural = padded[start + hop : start + 3 * hop]
            start = int(middle) + _best_match(padded[middle : middle + 2 * (hop + reach)], natural)
        stretched[number * hop : (number + 2) * hop] += window * padded[start : start + 2 * hop]
    return stretched[hop : hop + num_samples]


def _best_match(region: np.ndarray, wanted: np.ndarray) -> int:
    # Where in the region the stretch most like the wanted one begins; in its middle where none is.
    places = len(region) - len(wanted) + 1
    products = signal.correlate(region, wanted, "valid", "direct")
    energies = np.cumsum(np.concatenate([[0.0], region**2]))
    energies = np.maximum(energies[len(wanted) :] - energies[:places], 0.0)
    floor = 1e-6 * energies.max()
    if not floor or not wanted.any():
        return places // 2
    return int(np.argmax(products / np.sqrt(energies + floor)))


def shift_pitch(audio: np.ndarray, semitones: float, sampling_rate: int) -> np.ndarray:
    """
    Change the pitch and keep the length: slow the recording down and play it faster.

    Args:
        audio (`np.ndarray` of shape `(num_samples,)`): Waveform.
        semitones (`float`): Semitones by which the pitch rises; 12 double each frequency.
        sampling_rate (`int`): Sampling rate of `audio`, in Hz.
    """
    factor = 2 ** (semitones / 12)
    slowed = stretch_time(audio, 1 / factor, sampling_rate)
    return fit_length(soxr.resample(slowed, factor * sampling_rate, sampling_rate), len(audio))


@dataclasses.dataclass(frozen=True)
class Transcoding(Perturbation):
    """
    Encode by a lossy codec and decode, with libsndfile. The codec's delay is removed and the length kept.

    Args:
        codec (`"opus"` or `"mp3"`): Name of the codec: Opus at a variable bit rate, or MP3 at a constant one.
        kbps (`float`): Bit rate that the encoder is asked for, in kbit/s: 6 to 256 for Opus, 8 to 160 for MP3. MP3
            takes the nearest rate of its format (at 16 kHz 8, 16, 24, 32, 40, 48, 56, 64, 80, ...). Below 32 kbit/s
            MP3 also leaves out what is above about 6 kHz.

    Raises:
        ValueError: If a setting is none of these, or `audio` has a rate that the codec does not code as it is.
    """

    codec: Literal["opus", "mp3"]
    kbps: float

    # Rates of Opus, and of MP3 at the rates below 32 kHz.
    _rates = {"opus": (8000, 12000, 16000, 24000, 48000), "mp3": (16000, 22050, 24000)}
    _ranges = {"opus": (6.0, 256.0), "mp3": (8.0, 160.0)}

    def __post_init__(self) -> None:
        if self.codec not in self._ranges:
            raise ValueError(f"`codec` must be 'opus' or 'mp3', but got {self.codec!r}.")
        low, high = self._ranges[self.codec]
        if not low <= self.kbps <= high:
            raise ValueError(f"`kbps` must lie between {low:g} and {high:g} for {self.codec}, but got {self.kbps:g}.")

    def encode(self, audio: np.ndarray, sampling_rate: int) -> bytes:
        """The coded file of a waveform of shape `(num_samples,)`."""
        if sampling_rate not in self._rates[self.codec]:
            rates = ", ".join(map(str, self._rates[self.codec]))
            raise ValueError(f"`sampling_rate` must be one of {rates} for {self.codec}, but is {sampling_rate}.")
        container, subtype = {"opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III")}[self.codec]
        low, high = self._ranges[self.codec]
        buffer = io.BytesIO()
        soundfile.write(
            buffer,
            audio,
            sampling_rate,
            format=container,
            subtype=subtype,
            compression_level=(high - self.kbps) / (high - low),
            bitrate_mode="CONSTANT" if self.codec == "mp3" else None,
        )
        return buffer.getvalue()

    def apply(self, audio: np.ndarray, sampling_rate: int, generator: np.random.Generator) -> np.ndarray:
        decoded, _ = soundfile.read(io.BytesIO(self.encode(audio, sampling_rate)))
        # Small frames of MP3 have no room for the tag that tells a decoder of the delay. Then all of it is there.
        delay = MP3_DELAY if self.codec == "mp3" and len(decoded) != len(audio) else 0
        return fit_length(decoded[delay:], len(audio))

    @property
    def description(self) -> str:
        return f"{'Opus' if self.codec == 'opus' else 'MP3'} at {self.kbps:g} kbit/s"


MP3_DELAY = 576 + 529  # samples: of LAME's encoder, and of every decoder


def default_perturbations(noise_folder: Path | None = None) -> dict[str, Perturbation]:
    """
    Perturbations that unit edit distance is measured under, by the names that tables show.

    Args:
        noise_folder (`Path`, *optional*): Folder with recordings of noise. Defaults to generated noise.

    Raises:
        ValueError: If the folder has no recordings.
    """
    source: NoiseColour | NoiseFolder = "speech_shaped" if noise_folder is None else NoiseFolder(noise_folder)
    return {
        "noise": Noise(source=source),
        "noise_nast": Noise(convention="nast", source=source),
        "reverberation": Reverberation(),
        "gain": Gain(),
        "pitch_shift": PitchShift(),
        "time_stretch": TimeStretch(),
        "opus": Transcoding("opus", 16),
        "mp3": Transcoding("mp3", 32),
    }


def listening_conditions(
    signal_to_noise: Sequence[float] = (20.0, 10.0, 5.0, 0.0), room: bool = True, far: bool = True
) -> dict[str, Perturbation]:
    """
    Conditions under which understanding is tested, from easy to hard, by the names that tables show.

    Args:
        signal_to_noise (sequence of `float`): Ratios of speech to speech-shaped noise, in dB. All have the same noise.
        room (`bool`, *optional*, defaults to `True`): Whether [`Reverberation`] is among them, as `room`.
        far (`bool`, *optional*, defaults to `True`): Whether [`FarMicrophone`] is among them, as `far`.
    """
    conditions: dict[str, Perturbation] = {f"noise_{ratio:g}db": Noise(ratio, ratio) for ratio in signal_to_noise}
    if room:
        conditions["room"] = Reverberation()
    if far:
        conditions["far"] = FarMicrophone()
    return conditions


def perturb(
    audio: np.ndarray, perturbation: Perturbation, seed: int, name: str = "", sampling_rate: int = 16000
) -> np.ndarray:
    """
    Change a clip. What is drawn follows from the seed, the clip's name and the kind of change alone. It does not
    depend on the other clips, and is the same for both conventions of noise.

    Args:
        audio (`np.ndarray` of shape `(num_samples,)`): Waveform in [-1, 1].
        perturbation ([`Perturbation`]): Change to apply.
        seed (`int`): Seed for the draw.
        name (`str`, *optional*): Name of the clip, or its hash.
        sampling_rate (`int`, *optional*, defaults to 16000): Sampling rate of `audio`, in Hz.

    Raises:
        ValueError: See [`Perturbation`].
    """
    digest = hashlib.sha256(f"{seed} {type(perturbation).__name__} {name}".encode()).digest()
    return perturbation(audio, sampling_rate, np.random.default_rng(list(digest)))


def _check_range(low_name: str, low: float, high_name: str, high: float) -> None:
    if not low <= high:
        raise ValueError(f"`{low_name}` must not exceed `{high_name}`, but got {low:g} and {high:g}.")


def _root_mean_square(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(audio**2)))
