# SPDX-License-Identifier: Apache-2.0
"""Sound examples of a model: recordings as they were and as it gives them back, or a sentence that it says."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


FOLDER = "samples"
SENTENCE = "The valley was deep."
# Seconds of a recording that are taken: examples are there to be listened to in a browser.
LONGEST = 12.0
_CREDIT = (
    "The recording is from [LibriVox](https://librivox.org), in the public domain: *Sense and Sensibility* by Jane"
    " Austen, chapter 1."
)


class SoundExamples(NamedTuple):
    """
    What was made.

    Attributes:
        files (`list` of `tuple`): Path in the repository and what is heard, for each file.
        note (`str`): What is to be said of them all; empty if nothing.
    """

    files: list[tuple[str, str]]
    note: str


def reconstruct_examples(
    model: Any, feature_extractor: Any, folder: Path, recordings: Sequence[Path] = ()
) -> SoundExamples:
    """
    Write recordings, and what a codec or units with a vocoder make of them at some bit rates.

    Args:
        model ([`SpeechCodec`]): The model, in evaluation mode.
        feature_extractor (`SequenceFeatureExtractor`): Its feature extractor.
        folder (`Path`): Folder of the repository.
        recordings (sequence of `Path`, *optional*): Audio files. Defaults to the recording of the package.

    Returns:
        [`SoundExamples`]: The files; none if the model gives out no speech.

    Raises:
        AudioFileError: If a recording cannot be read.
    """
    import torch

    from speech_tokenizers.processing.audio_files import load_audio

    if model.kind not in model.decodable_kinds:
        return SoundExamples([], "")
    note = "" if recordings else _CREDIT
    package = resources.files("speech_tokenizers").joinpath("recordings", "sense_and_sensibility.flac")
    made: list[tuple[str, str]] = []
    for number, path in enumerate(recordings or [Path(str(package))], 1):
        rate = model.sampling_rate
        speech = load_audio(path, rate)[: int(LONGEST * rate)]
        start = f"{FOLDER}/{number}" if len(recordings) > 1 else FOLDER
        made.append((f"{start}/recorded.flac", "recorded"))
        _write(folder / made[-1][0], speech, rate)
        inputs = feature_extractor(speech, sampling_rate=rate, return_tensors="pt")
        with torch.inference_mode():
            tokens = model.encode(**inputs)[_TOKENS[model.kind]]
            for count, name, title in _variants(model):
                part = tokens if count is None else tokens[:, :count]
                decoded = model.decode(part, num_samples=len(speech)).audio_values[0, 0]
                made.append((f"{start}/{name}.flac", title))
                _write(folder / made[-1][0], decoded.float().numpy(), rate)
    return SoundExamples(made, note)


_TOKENS = {"codes": "audio_codes", "latents": "latents"}


def _variants(model: Any) -> list[tuple[int | None, str, str]]:
    # How many codebooks are decoded, the file's name, and what is heard. Of units all are needed.
    whole = model.bits_per_second / 1000
    if model.kind == "latents":
        return [(None, "decoded", f"decoded from {model.frame_rate:g} vectors a second")]
    if hasattr(model.config, "encoder_config"):
        return [(None, "decoded", f"decoded from units, {whole:.3g} kbit/s")]
    total = model.num_quantizers
    counts = dict.fromkeys(count for count in (total, total // 2, total // 4) if count)
    found = []
    for count in counts:
        rate = f"{whole * count / total:g}"
        codebooks = "codebook" if count == 1 else "codebooks"
        found.append((count, f"decoded-{rate}kbps", f"decoded from {count} {codebooks}, {rate} kbit/s"))
    return found


def said_example(model: Any, processor: Any, folder: Path, text: str = SENTENCE) -> SoundExamples:
    """
    Write a sentence that a speech language model says.

    Args:
        model ([`SpeechLMForConditionalGeneration`]): The model with its codec, in evaluation mode.
        processor ([`SpeechLMProcessor`]): Its processor.
        folder (`Path`): Folder of the repository.
        text (`str`, *optional*): The sentence.

    Raises:
        ValueError: If the model cannot say this text.
    """
    import torch

    model.check_text(text, processor, None)
    temperature = 0.8 if model.config.text_alignment == "none" else 0.0
    generators = [torch.Generator(model.device).manual_seed(0)]
    said = model.generate_speech(text, processor, temperature=temperature, generators=generators)
    speech = said.audio_values[0, 0].float().cpu().numpy()
    path = f"{FOLDER}/said.flac"
    _write(folder / path, speech, model.config.sampling_rate)
    return SoundExamples([(path, f"“{text}”")], "")


def _write(path: Path, samples: np.ndarray, sampling_rate: int) -> None:
    from speech_tokenizers.processing.audio_files import AudioWriter

    with AudioWriter(path, sampling_rate) as writer:
        writer.write(samples)


def sound_section(examples: SoundExamples, repo_id: str, revision: str | None = None) -> str:
    """
    The part of a card that plays the examples; empty if there are none.

    Args:
        examples ([`SoundExamples`]): The examples.
        repo_id (`str`): Hub id of the repository. A player of HTML needs the whole address; the link beside it leads
            to the file wherever the repository is.
        revision (`str`, *optional*): Branch that the files are on. Defaults to the main branch.
    """
    from huggingface_hub import hf_hub_url

    if not examples.files:
        return ""
    lines = ["## Sound examples", ""]
    for path, title in examples.files:
        address = hf_hub_url(repo_id, path, revision=revision)
        player = f'<audio controls preload="none" src="{address}"></audio>'
        lines += [f"- [{path.removeprefix(FOLDER + '/')}]({path}): {title}<br>{player}"]
    lines += ["", examples.note] if examples.note else []
    return "\n".join(lines) + "\n\n"


__all__ = ["SENTENCE", "SoundExamples", "reconstruct_examples", "said_example", "sound_section"]
