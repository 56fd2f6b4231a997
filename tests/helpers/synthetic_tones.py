# SPDX-License-Identifier: Apache-2.0
"""Syllables with tones, made by a source and a filter: what belongs to the tone is known, and so is what does not."""

import json
from pathlib import Path

import numpy as np
import soundfile


RATE = 16000
# Formants of vowels, in Hz.
VOWELS = {
    "a": (750, 1200, 2500),
    "i": (300, 2250, 3000),
    "u": (320, 800, 2250),
    "e": (500, 1750, 2450),
    "o": (450, 900, 2400),
}
# Bands of noise before the vowel, in Hz; none for "-".
INITIALS = {"-": None, "s": (4500, 7500), "x": (2000, 3500)}
# Contours in octaves about the speaker's middle.
TONES = {"1": (0.35, 0.35, 0.35), "2": (-0.25, -0.1, 0.35), "3": (-0.15, -0.5, -0.1), "4": (0.45, 0.1, -0.5)}
# Middle of F0 in Hz, and factor of the formants.
SPEAKERS = {"low": (105.0, 0.92), "middle": (165.0, 1.0), "high": (225.0, 1.12)}


def syllable(initial: str, vowel: str, tone: str, speaker: str, seconds: float = 0.3, seed: int = 0) -> np.ndarray:
    """A waveform of about `seconds` in [-1, 1], 16 kHz."""
    generator = np.random.default_rng(seed)
    middle, factor = SPEAKERS[speaker]
    length = round(seconds * RATE * generator.uniform(0.9, 1.1))
    contour = np.interp(np.linspace(0, 2, length), [0, 1, 2], TONES[tone]) + generator.normal(0, 0.03)
    phase = np.cumsum(middle * 2.0**contour / RATE)
    source = np.diff(np.floor(phase), prepend=0.0) + 0.003 * generator.standard_normal(length)
    spectrum = np.fft.rfft(source, 2 * length)
    frequencies = np.fft.rfftfreq(2 * length, 1 / RATE)
    response = 1 / (1 + 1j * frequencies / 200)
    for formant in VOWELS[vowel]:
        response *= formant**2 / (formant**2 * factor**2 - frequencies**2 + 1j * frequencies * 100)
    voiced = np.fft.irfft(spectrum * response)[:length] * np.hanning(length + 2)[1:-1] ** 0.3
    voiced /= np.abs(voiced).max()
    band = INITIALS[initial]
    if band is None:
        return (0.5 * voiced).astype(np.float32)
    noise = np.fft.rfft(generator.standard_normal(round(0.08 * RATE)))
    bins = np.fft.rfftfreq(round(0.08 * RATE), 1 / RATE)
    noise[(bins < band[0]) | (bins > band[1])] = 0
    burst = np.fft.irfft(noise)
    return (0.5 * np.concatenate([0.4 * burst / np.abs(burst).max(), voiced])).astype(np.float32)


def write_syllables(folder: Path, speakers: tuple[str, ...] = tuple(SPEAKERS), takes: int = 1) -> Path:
    """Write all syllables of some speakers as FLAC, and return the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for speaker in speakers:
        for initial in INITIALS:
            for vowel in VOWELS:
                for tone in TONES:
                    for take in range(takes):
                        name = f"{speaker}-{initial}{vowel}{tone}-{take}.flac"
                        soundfile.write(folder / name, syllable(initial, vowel, tone, speaker, seed=len(rows)), RATE)
                        spoken = f"{initial}{vowel}".removeprefix("-")
                        row = {"file_name": name, "speaker": speaker, "syllable": spoken, "tone": tone}
                        rows.append({**row, "vowel": vowel, "final": vowel, "initial": initial})
    manifest = folder / "syllables.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest
