# placeholder by the lead, H-VOCODER overwrites it
from transformers import PreTrainedConfig


class UnitVocoderConfig(PreTrainedConfig):
    model_type = "speech_tokenizers_unit_vocoder"
