# SPDX-License-Identifier: Apache-2.0
"""Whether units can still be understood when a vocoder speaks them: what a recogniser hears."""

from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from speech_tokenizers.evaluation.bootstrap import bootstrap_sums, ratio
from speech_tokenizers.evaluation.clips import SAMPLING_RATE, Clip
from speech_tokenizers.evaluation.codec_systems import EncodingSystem
from speech_tokenizers.evaluation.peers import resample
from speech_tokenizers.evaluation.recognition import match_texts, text_normalizer
from speech_tokenizers.evaluation.units.encoded_clips import EncodedClips, Measured, UnitSettings
from speech_tokenizers.evaluation.units.measures import grouped
from speech_tokenizers.modeling.model_names import find_model
from speech_tokenizers.processing.optional_packages import MissingPackageError, require_package
from speech_tokenizers.processing.speech_recognition import Recognizer, load_recognizer


@torch.inference_mode()
def resynthesize(system: EncodingSystem, audio_codes: np.ndarray, voice: str | None = None) -> np.ndarray:
    """
    Speak units.

    Args:
        system ([`EncodingSystem`]): System of a codec, or of a model with a vocoder.
        audio_codes (`np.ndarray` of shape `(num_quantizers, num_frames)`): Codes to speak.
        voice (`str`, *optional*): Voice that speaks, one of the vocoder's `speaker_names` if it has several. Defaults
            to its `default_speaker`, or to the first.

    Returns:
        `np.ndarray` of shape `(num_samples,)` at 16 kHz.

    Raises:
        ValueError: If the model has no vocoder, the vocoder has no such voice, or it wants vectors of speakers.
    """
    codes = torch.from_numpy(np.ascontiguousarray(audio_codes)).to(system.device)[None]
    decoded = system.model.decode(audio_codes=codes, **system.model.voice_arguments(voice))
    values = decoded.audio_values.reshape(-1).float().cpu().numpy()
    return resample(values, system.sampling_rate, SAMPLING_RATE)


def measure_resynthesis(encoded: EncodedClips, settings: UnitSettings) -> Measured:
    """
    Word error rate, in percent, of what `settings.recognizer` hears in the spoken units and in the recordings. It is
    taken over the first `settings.resynthesis_clips` of the clips that have a text, in an order drawn with the seed.

    Raises:
        ValueError: If the units cannot be spoken, or there is no text.
    """
    try:
        require_package("jiwer", "The error rate")
        recognizer = load_recognizer(find_model(str(settings.recognizer), argument="--recognizer"), settings.language)
    except MissingPackageError as error:
        raise ValueError(str(error)) from error
    measured = Measured()
    order = np.random.default_rng(settings.seed).permutation(len(encoded.data.clips)).tolist()
    with_text = [number for number in order if (encoded.data.clips[number].text or "").strip()]
    drawn = set(with_text[: settings.resynthesis_clips])
    if not drawn:
        raise ValueError("no clip has a text in the metadata")
    chosen = [(n, codes) for n, codes in zip(encoded.numbers, encoded.codes, strict=True) if n in drawn]
    views: dict[str, list[tuple[float, float]]] = {"": [], "[recordings]": []}
    with tqdm(total=len(chosen), desc="resynthesis", leave=False, disable=None) as progress:
        for number, codes in chosen:
            clip = encoded.data.clips[number]
            spoken = resynthesize(encoded.system, codes, settings.voice)
            views[""].append(
                _errors(encoded, clip, recognizer, f"spoken {settings.voice}", lambda x=spoken: x, settings.language)
            )
            views["[recordings]"].append(_errors(encoded, clip, recognizer, "recording", clip.load, settings.language))
            progress.update()
    groups = [encoded.data.groups[number] for number, _ in chosen]
    for view, counts in views.items():
        estimate = bootstrap_sums(grouped(np.array(counts), groups), ratio, seed=settings.seed)
        measured.add(f"resynthesis_wer{view}", estimate, len(counts))
    return measured


def _errors(
    encoded: EncodedClips, clip: Clip, recognizer: Recognizer, view: str, load: Callable[[], np.ndarray], language: str
) -> tuple[float, float]:
    # The clip's contribution to the sums of the rate: a hundred times the errors, and the true words. Texts are kept.
    results, key = encoded.results, (encoded.system.key, f"{clip.key} heard by {recognizer.key} {view}")
    if key not in results.records:
        record = {"version": results.version, "system_key": key[0], "clip_key": key[1], "clip": clip.name}
        results.append({**record, "text": recognizer.transcribe(load())})
    normalize = text_normalizer(language)
    words = match_texts(normalize(results.records[key]["text"]), normalize(clip.text or ""))
    return 100.0 * words.errors, float(words.reference_length)
