# SPDX-License-Identifier: Apache-2.0
"""
Make `AutoConfig`, `AutoModel`, `AutoModelForAudioTokenization`, `AutoModelForCTC`, `AutoModelForPreTraining`,
`AutoModelForTextToWaveform`, `AutoFeatureExtractor` and `AutoProcessor` know this package's classes.

transformers finds external classes only if they are registered, and registering imports it: seconds that `import
speech_tokenizers` must not take. So each registration waits until transformers imports the module that holds its
mapping.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


# model_type -> (config class, model class, feature extractor class), all public names of this package.
AUTO_CLASSES = {
    "speech_tokenizers_rvq_codec": ("RVQCodecConfig", "RVQCodecModel", "RVQCodecFeatureExtractor"),
    "speech_tokenizers_dm_codec": ("DMCodecConfig", "DMCodecModel", "DMCodecFeatureExtractor"),
    "speech_tokenizers_cst": ("CSTConfig", "CSTModel", "CSTFeatureExtractor"),
    "speech_tokenizers_kmeans_units": ("KMeansUnitsConfig", "KMeansUnitsModel", "KMeansUnitsFeatureExtractor"),
    "speech_tokenizers_dc_spin": ("DCSpinConfig", "DCSpinModel", "DCSpinFeatureExtractor"),
}
# model_type -> (config class, model class) of models that come without a feature extractor of ours, by the auto class.
CTC_CLASSES = {"speech_tokenizers_speech_encoder_ctc": ("SpeechEncoderCTCConfig", "SpeechEncoderForCTC")}
PRE_TRAINING_CLASSES = {
    "speech_tokenizers_hubert_masked_prediction": ("HubertMaskedPredictionConfig", "HubertForMaskedPrediction")
}
# model_type -> (config class, model class, processor class).
SPEECH_LM_CLASSES = {
    "speech_tokenizers_speech_lm": ("SpeechLMConfig", "SpeechLMForConditionalGeneration", "SpeechLMProcessor")
}
BASE_CLASSES = {
    "speech_tokenizers_unit_vocoder": ("UnitVocoderConfig", "UnitVocoderModel"),
    "speech_tokenizers_latent_lm": ("LatentLMConfig", "LatentLanguageModel"),
}


def register_auto_classes_on_import() -> None:
    """
    Register with the auto modules that transformers has imported already, and with the others as soon as it does.
    """
    if any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _RegisterAfterImport())
    for name, register in _REGISTRATIONS.items():
        if name in sys.modules:
            register(sys.modules[name])


class _RegisterAfterImport(MetaPathFinder):
    # Finds what `PathFinder` finds, and runs the registration once the module has executed.

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _REGISTRATIONS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _REGISTRATIONS[fullname](module)

            setattr(spec.loader, "exec_module", exec_module)  # noqa: B010
        return spec


def _facade() -> ModuleType:
    return importlib.import_module("speech_tokenizers")


def _register_configs(configuration_auto: ModuleType) -> None:
    # `AutoConfig.register` wants the class itself, whose import may need transformers modules that are in the middle
    # of importing this one. transformers' mappings load their own classes by name on first use; ours are added to
    # them in that form, here and for models.
    mapping = configuration_auto.CONFIG_MAPPING
    classes = {**AUTO_CLASSES, **CTC_CLASSES, **PRE_TRAINING_CLASSES, **SPEECH_LM_CLASSES, **BASE_CLASSES}
    for model_type, (config_name, *_) in classes.items():
        mapping._mapping[model_type] = config_name
        mapping._modules[model_type] = _facade()


def _register_feature_extractors(feature_extraction_auto: ModuleType) -> None:
    for config_name, _, extractor_name in AUTO_CLASSES.values():
        feature_extraction_auto.AutoFeatureExtractor.register(
            getattr(_facade(), config_name), getattr(_facade(), extractor_name), exist_ok=True
        )


def _register_processors(processing_auto: ModuleType) -> None:
    for config_name, _, processor_name in SPEECH_LM_CLASSES.values():
        processing_auto.AutoProcessor.register(
            getattr(_facade(), config_name), getattr(_facade(), processor_name), exist_ok=True
        )


def _register_models(modeling_auto: ModuleType) -> None:
    base = modeling_auto.MODEL_MAPPING
    for classes, mappings in (
        (AUTO_CLASSES, (base, modeling_auto.MODEL_FOR_AUDIO_TOKENIZATION_MAPPING)),
        (CTC_CLASSES, (modeling_auto.MODEL_FOR_CTC_MAPPING,)),
        (PRE_TRAINING_CLASSES, (modeling_auto.MODEL_FOR_PRETRAINING_MAPPING,)),
        (SPEECH_LM_CLASSES, (base, modeling_auto.MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING)),
        (BASE_CLASSES, (base,)),
    ):
        for model_type, (config_name, model_name, *_) in classes.items():
            for mapping in mappings:
                mapping._config_mapping[model_type] = config_name
                mapping._reverse_config_mapping[config_name] = model_type
                mapping._model_mapping[model_type] = model_name
                mapping._modules[model_type] = _facade()


_REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.feature_extraction_auto": _register_feature_extractors,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.processing_auto": _register_processors,
}
