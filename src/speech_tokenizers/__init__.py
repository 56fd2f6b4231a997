# SPDX-License-Identifier: Apache-2.0
"""
Neural speech codecs for speech language models.

Names are imported when they are first used, so that `import speech_tokenizers` costs next to nothing; from then on
`transformers.AutoModel` and its relatives know this package's models.
"""

import importlib
from typing import TYPE_CHECKING

from speech_tokenizers.auto_registration import register_auto_classes_on_import


if TYPE_CHECKING:
    from speech_tokenizers.coding.file_coding import decode_file, encode_file, reconstruct_file
    from speech_tokenizers.coding.loading import (
        DEFAULT_CHECKPOINT,
        find_checkpoint,
        list_checkpoints,
        list_listeners,
        list_voices,
        load,
        store_in_half,
    )
    from speech_tokenizers.coding.served_speech import codes_from_ids, read_served_speech
    from speech_tokenizers.coding.speech_lm_loading import load_speech_lm
    from speech_tokenizers.conversion.causal_lm_checks import ExportDefect, check_export
    from speech_tokenizers.conversion.causal_lm_export import export_causal_lm
    from speech_tokenizers.conversion.foreign_files import CheckpointError
    from speech_tokenizers.conversion.speechtokenizer import convert_checkpoint
    from speech_tokenizers.conversion.spin import convert_spin
    from speech_tokenizers.modeling.codec_interface import SpeechCodec
    from speech_tokenizers.modeling.codec_streaming import CodecStream, LatentStream
    from speech_tokenizers.modeling.configuration_cst import CST_PRESETS, CSTConfig
    from speech_tokenizers.modeling.configuration_dc_spin import DCSpinConfig
    from speech_tokenizers.modeling.configuration_dm_codec import DM_CODEC_PRESETS, DMCodecConfig
    from speech_tokenizers.modeling.configuration_hubert_masked_prediction import HubertMaskedPredictionConfig
    from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
    from speech_tokenizers.modeling.configuration_latent_lm import LatentLMConfig
    from speech_tokenizers.modeling.configuration_rvq_codec import RVQ_CODEC_PRESETS, RVQCodecConfig
    from speech_tokenizers.modeling.configuration_speech_encoder_ctc import SpeechEncoderCTCConfig
    from speech_tokenizers.modeling.configuration_speech_lm import SpeechLMConfig
    from speech_tokenizers.modeling.configuration_unit_vocoder import UnitVocoderConfig
    from speech_tokenizers.modeling.hub_export import push_to_hub_with_code, save_pretrained_with_code
    from speech_tokenizers.modeling.modeling_cst import CSTDecoderOutput, CSTEncoderOutput, CSTModel, CSTOutput
    from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel, DCSpinOutput
    from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel, DMCodecOutput
    from speech_tokenizers.modeling.modeling_hubert_masked_prediction import HubertForMaskedPrediction
    from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel, KMeansUnitsOutput
    from speech_tokenizers.modeling.modeling_latent_lm import GeneratedLatents, LatentLanguageModel, LatentLMOutput
    from speech_tokenizers.modeling.modeling_rvq_codec import (
        RVQCodecDecoderOutput,
        RVQCodecEncoderOutput,
        RVQCodecModel,
        RVQCodecOutput,
        RVQCodecPreTrainedModel,
    )
    from speech_tokenizers.modeling.modeling_speech_encoder_ctc import SpeechEncoderForCTC
    from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration, SpeechLMOutput
    from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
    from speech_tokenizers.modeling.padding_invariance import make_padding_invariant
    from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
    from speech_tokenizers.modeling.pronunciations import PronunciationError, PronunciationLexicon
    from speech_tokenizers.modeling.speech_lm_generation import SpeechOutput
    from speech_tokenizers.modeling.speech_lm_ids import SpeechIds
    from speech_tokenizers.modeling.speech_lm_streamer import AudioStreamer
    from speech_tokenizers.modeling.speech_lm_streaming import SpeechChunk
    from speech_tokenizers.modeling.speech_lm_text import build_speech_vocabulary
    from speech_tokenizers.modeling.speech_lm_voices import Voice
    from speech_tokenizers.modeling.transformers_codecs import as_speech_codec
    from speech_tokenizers.modeling.unit_streaming import UnitStream
    from speech_tokenizers.modeling.windowed_encoding import WindowedEncoder
    from speech_tokenizers.processing.audio_files import (
        AudioFileError,
        AudioReader,
        AudioWriter,
        find_audio_files,
        load_audio,
    )
    from speech_tokenizers.processing.code_files import AudioCodes, CodeFileError, load_codes, save_codes
    from speech_tokenizers.processing.feature_extraction_cst import CSTFeatureExtractor
    from speech_tokenizers.processing.feature_extraction_dc_spin import DCSpinFeatureExtractor
    from speech_tokenizers.processing.feature_extraction_dm_codec import DMCodecFeatureExtractor
    from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor
    from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor
    from speech_tokenizers.processing.latent_files import AudioLatents, load_encoded, load_latents, save_latents
    from speech_tokenizers.processing.speech_rows import read_speech_rows
    from speech_tokenizers.processing.timed_labels import TimedWord
    from speech_tokenizers.processing.word_alignment import load_word_aligner, match_words

# Public name -> module that defines it. The block above repeats it for type checkers; tests/test_import_time.py
# compares the two.
_MODULES = {
    "CheckpointError": "conversion.foreign_files",
    "convert_checkpoint": "conversion.speechtokenizer",
    "DEFAULT_CHECKPOINT": "coding.loading",
    "find_checkpoint": "coding.loading",
    "list_checkpoints": "coding.loading",
    "list_listeners": "coding.loading",
    "list_voices": "coding.loading",
    "load": "coding.loading",
    "store_in_half": "coding.loading",
    "load_speech_lm": "coding.speech_lm_loading",
    "codes_from_ids": "coding.served_speech",
    "read_served_speech": "coding.served_speech",
    "ExportDefect": "conversion.causal_lm_checks",
    "check_export": "conversion.causal_lm_checks",
    "export_causal_lm": "conversion.causal_lm_export",
    "decode_file": "coding.file_coding",
    "encode_file": "coding.file_coding",
    "reconstruct_file": "coding.file_coding",
    "SpeechCodec": "modeling.codec_interface",
    "CodecStream": "modeling.codec_streaming",
    "LatentStream": "modeling.codec_streaming",
    "CSTConfig": "modeling.configuration_cst",
    "CST_PRESETS": "modeling.configuration_cst",
    "DCSpinConfig": "modeling.configuration_dc_spin",
    "DMCodecConfig": "modeling.configuration_dm_codec",
    "DM_CODEC_PRESETS": "modeling.configuration_dm_codec",
    "HubertMaskedPredictionConfig": "modeling.configuration_hubert_masked_prediction",
    "KMeansUnitsConfig": "modeling.configuration_kmeans_units",
    "LatentLMConfig": "modeling.configuration_latent_lm",
    "RVQCodecConfig": "modeling.configuration_rvq_codec",
    "RVQ_CODEC_PRESETS": "modeling.configuration_rvq_codec",
    "SpeechEncoderCTCConfig": "modeling.configuration_speech_encoder_ctc",
    "SpeechLMConfig": "modeling.configuration_speech_lm",
    "UnitVocoderConfig": "modeling.configuration_unit_vocoder",
    "push_to_hub_with_code": "modeling.hub_export",
    "save_pretrained_with_code": "modeling.hub_export",
    "CSTDecoderOutput": "modeling.modeling_cst",
    "CSTEncoderOutput": "modeling.modeling_cst",
    "CSTModel": "modeling.modeling_cst",
    "CSTOutput": "modeling.modeling_cst",
    "DCSpinModel": "modeling.modeling_dc_spin",
    "DCSpinOutput": "modeling.modeling_dc_spin",
    "DMCodecModel": "modeling.modeling_dm_codec",
    "DMCodecOutput": "modeling.modeling_dm_codec",
    "HubertForMaskedPrediction": "modeling.modeling_hubert_masked_prediction",
    "KMeansUnitsModel": "modeling.modeling_kmeans_units",
    "KMeansUnitsOutput": "modeling.modeling_kmeans_units",
    "GeneratedLatents": "modeling.modeling_latent_lm",
    "LatentLMOutput": "modeling.modeling_latent_lm",
    "LatentLanguageModel": "modeling.modeling_latent_lm",
    "RVQCodecDecoderOutput": "modeling.modeling_rvq_codec",
    "RVQCodecEncoderOutput": "modeling.modeling_rvq_codec",
    "RVQCodecModel": "modeling.modeling_rvq_codec",
    "RVQCodecOutput": "modeling.modeling_rvq_codec",
    "RVQCodecPreTrainedModel": "modeling.modeling_rvq_codec",
    "SpeechEncoderForCTC": "modeling.modeling_speech_encoder_ctc",
    "SpeechLMForConditionalGeneration": "modeling.modeling_speech_lm",
    "SpeechLMOutput": "modeling.modeling_speech_lm",
    "UnitVocoderModel": "modeling.modeling_unit_vocoder",
    "make_padding_invariant": "modeling.padding_invariance",
    "SpeechLMProcessor": "modeling.processing_speech_lm",
    "build_speech_vocabulary": "modeling.speech_lm_text",
    "Voice": "modeling.speech_lm_voices",
    "PronunciationError": "modeling.pronunciations",
    "PronunciationLexicon": "modeling.pronunciations",
    "SpeechOutput": "modeling.speech_lm_generation",
    "SpeechIds": "modeling.speech_lm_ids",
    "AudioStreamer": "modeling.speech_lm_streamer",
    "SpeechChunk": "modeling.speech_lm_streaming",
    "as_speech_codec": "modeling.transformers_codecs",
    "UnitStream": "modeling.unit_streaming",
    "WindowedEncoder": "modeling.windowed_encoding",
    "AudioFileError": "processing.audio_files",
    "AudioReader": "processing.audio_files",
    "AudioWriter": "processing.audio_files",
    "find_audio_files": "processing.audio_files",
    "load_audio": "processing.audio_files",
    "AudioCodes": "processing.code_files",
    "CodeFileError": "processing.code_files",
    "load_codes": "processing.code_files",
    "save_codes": "processing.code_files",
    "CSTFeatureExtractor": "processing.feature_extraction_cst",
    "DCSpinFeatureExtractor": "processing.feature_extraction_dc_spin",
    "DMCodecFeatureExtractor": "processing.feature_extraction_dm_codec",
    "KMeansUnitsFeatureExtractor": "processing.feature_extraction_kmeans_units",
    "RVQCodecFeatureExtractor": "processing.feature_extraction_rvq_codec",
    "AudioLatents": "processing.latent_files",
    "load_encoded": "processing.latent_files",
    "load_latents": "processing.latent_files",
    "save_latents": "processing.latent_files",
    "read_speech_rows": "processing.speech_rows",
    "TimedWord": "processing.timed_labels",
    "load_word_aligner": "processing.word_alignment",
    "match_words": "processing.word_alignment",
    "convert_spin": "conversion.spin",
}

__version__ = "0.1.0"
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


register_auto_classes_on_import()
