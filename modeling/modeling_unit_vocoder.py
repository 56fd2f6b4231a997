# placeholder by the lead, H-VOCODER overwrites it
from transformers import PreTrainedModel
from transformers.utils import ModelOutput


class UnitVocoderModel(PreTrainedModel):
    pass


class UnitVocoderOutput(ModelOutput):
    pass
