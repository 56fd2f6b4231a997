# SPDX-License-Identifier: Apache-2.0
"""What a page answers: each function makes the HTML of a result, or a sentence of help."""

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np

from speech_tokenizers.app import cards, pictures
from speech_tokenizers.app.models import ModelShelf, OfferedModel
from speech_tokenizers.app.page_files import PageFiles
from speech_tokenizers.app.recordings import PageError, read_recording
from speech_tokenizers.app.speech import Heard, decode_all, decode_levels, find_units, measured_stoi, say_text
from speech_tokenizers.commands.frame import one_line
from speech_tokenizers.processing.optional_packages import MissingPackageError


_log = logging.getLogger(__name__)


def _answered(answer: Callable[..., str]) -> Callable[..., str]:
    # What goes wrong becomes a sentence; no traceback reaches the page.
    @wraps(answer)
    def answered(*arguments: Any) -> str:
        try:
            return answer(*arguments)
        except (ValueError, OSError, MissingPackageError) as error:
            return cards.note(one_line(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the page goes on
            _log.exception("a request failed")
            return cards.note(
                f"This did not work, by a fault of the program ({type(error).__name__}). Its terminal says more; try"
                " another recording or checkpoint."
            )

    return answered


class Results:
    """
    The answers of a page.

    Args:
        shelf ([`ModelShelf`]): The models that it offers.
        files ([`PageFiles`]): Where sounds and pictures are put.
    """

    def __init__(self, shelf: ModelShelf, files: PageFiles):
        self._shelf = shelf
        self._files = files

    @_answered
    def codec(self, path: str | None, name: str | None) -> str:
        """A recording at each number of codebooks, with spectrograms and codes."""
        offered = self._offered(name, self._shelf.codecs, "checkpoint")
        waveform = read_recording(path, offered.model.sampling_rate)
        levels = decode_levels(offered, waveform)
        model, all_tokens = offered.model, levels[-1].tokens
        is_latent = model.kind == "latents"
        tokens_name = "Vectors" if is_latent else "Codes"
        parts = [self._recorded(waveform, model.sampling_rate)]
        for level, heard in enumerate(levels, 1):
            parts.append(self._decoded(_level_name(level, is_latent), heard))
        seconds = len(waveform) / model.sampling_rate
        drawn = pictures.draw_tokens(all_tokens, seconds, None if is_latent else model.codebook_size)
        if is_latent:
            shape = f"{model.frame_rate:g} vectors a second, each of {all_tokens.shape[1]} numbers."
        else:
            shape = (
                f"{model.frame_rate:g} frames a second. A frame has one code from each of {len(all_tokens)} codebooks:"
                " the first says most, each further one corrects."
            )
        return cards.group(
            cards.heading("Listen", shape),
            cards.cards(parts),
            cards.heading(tokens_name, "Time goes from left to right. A colour is a value."),
            cards.picture(
                self._files.add(drawn, ".png"), f"{'Vectors' if is_latent else 'Codes'} of {name} over time"
            ),
        )

    @_answered
    def units(self, path: str | None, name: str | None) -> str:
        """Units of a recording with their durations, drawn, and spoken where there is a vocoder."""
        offered = self._offered(name, self._shelf.units, "checkpoint")
        rate = offered.model.sampling_rate
        waveform = read_recording(path, rate)
        runs = find_units(offered, waveform)
        players = [self._recorded(waveform, rate)]
        if runs.spoken is not None:
            facts = [_bit_rate(runs.bits_per_second), _stoi(measured_stoi(waveform, runs.spoken, rate))]
            players.append(self._player("Said by the vocoder", facts, runs.spoken, rate))
        chips = cards.unit_chips(
            runs.units.tolist(), runs.durations.tolist(), runs.times.tolist(), pictures.unit_colours(runs.num_units)
        )
        drawn = pictures.draw_runs(waveform, rate, runs.hop_length, runs.units, runs.durations, runs.f0)
        count = f"{len(runs.units)} runs of {runs.num_units} different units stand for {runs.durations.sum()} frames."
        silent = "" if runs.spoken is not None else " This checkpoint has no vocoder, so its units are not spoken."
        pitch = ""
        if runs.f0 is not None:
            voiced = 100 * np.mean(~np.isnan(runs.f0))
            pitch = f" Its F0 codes find pitch in {voiced:.0f} % of the frames." if voiced else " No pitch was found."
        return cards.group(
            cards.heading("Listen", f"{count}{silent}{pitch}"),
            cards.cards(players),
            cards.heading("Units", "×4 means that the unit lasts 4 frames. Click one to hear it."),
            chips,
            cards.heading("Picture", "Each field is a unit, as wide as it lasts, under the sound that it stands for."),
            cards.picture(self._files.add(drawn, ".png"), f"Units of {name} under the spectrogram"),
        )

    @_answered
    def compare(self, path: str | None, names: Sequence[str] | None) -> str:
        """A recording as several checkpoints give it back, side by side."""
        names = list(dict.fromkeys(names or []))
        if len(names) < 2:
            raise PageError(f"To compare, choose two checkpoints or more; {len(names) or 'none'} is chosen.")
        parts: list[str] = []
        for name in names:
            offered = self._offered(name, self._shelf.speaking, "checkpoint")
            waveform = read_recording(path, offered.model.sampling_rate)
            if not parts:
                parts.append(self._recorded(waveform, offered.model.sampling_rate))
            parts.append(self._decoded(name, decode_all(offered, waveform)))
        return cards.group(
            cards.heading(
                "Listen",
                "STOI estimates how much of the speech is understood; the recording has 1. Units keep what is said"
                " more than how the speaker sounds.",
            ),
            cards.cards(parts),
        )

    @_answered
    def say(self, text: str | None, name: str | None) -> str:
        """A sentence as a voice says it, with words that light up."""
        offered = self._offered(name, self._shelf.voices, "voice")
        said = say_text(offered, text or "")
        seconds = len(said.waveform) / said.sampling_rate
        player = self._player(f"Said by {name}", [f"{seconds:.2f} s"], said.waveform, said.sampling_rate)
        cut = "" if said.ended else cards.note("The voice did not end by itself and was cut. Say the text in parts.")
        if not said.words:
            return cards.group(cut, cards.heading("Listen", "This voice does not know when words are said."), player)
        return cards.group(
            cut,
            cards.heading("Listen", "Words light up while they are said. Click one to hear it."),
            cards.words(said.words),
            player,
        )

    def _offered(self, name: str | None, names: Sequence[str], kind: str) -> OfferedModel:
        if name is None or name not in names:
            known = ", ".join(names) or "none"
            raise PageError(f"Choose a {kind} of the list; {name or 'nothing'} is none that fits here ({known}).")
        return self._shelf[name]

    def _recorded(self, waveform: np.ndarray, sampling_rate: int) -> str:
        return self._player("Recording", [_bit_rate(16 * sampling_rate)], waveform, sampling_rate)

    def _decoded(self, title: str, heard: Heard) -> str:
        facts = [_bit_rate(heard.bits_per_second), _stoi(heard.stoi)]
        return self._player(title, facts, heard.waveform, heard.sampling_rate)

    def _player(self, title: str, facts: Sequence[str], waveform: np.ndarray, sampling_rate: int) -> str:
        strip = self._files.add(pictures.spectrogram_strip(waveform), ".jpg")
        return cards.card(title, facts, strip, self._files.add_audio(waveform, sampling_rate))


def _level_name(level: int, is_latent: bool) -> str:
    if is_latent:
        return "Decoded from the vectors"
    return f"{level} codebook{'s' if level > 1 else ''}"


def _bit_rate(bits_per_second: float) -> str:
    return f"{bits_per_second / 1000:.3g} kbit/s"


def _stoi(score: float | None) -> str:
    return "STOI not measured: too little speech" if score is None else f"STOI {score:.2f}"
