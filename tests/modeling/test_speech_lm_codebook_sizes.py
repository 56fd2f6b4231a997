# SPDX-License-Identifier: Apache-2.0
"""A speech language model never writes a code that a smaller codebook of its codec lacks."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from helpers.tiny_models import tiny_hubert
from helpers.tiny_speaking_lm import LEXICON, PHONES, tiny_codec, tiny_lm, tiny_processor
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.configuration_speech_lm import SpeechLMConfig
from speech_tokenizers.modeling.configuration_unit_vocoder import UnitVocoderConfig
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
from speech_tokenizers.modeling.pronunciations import PronunciationLexicon
from speech_tokenizers.modeling.speech_lm_text import build_speech_vocabulary
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor


SIZES = (16, 5, 3)


@pytest.fixture(scope="module")
def units():
    """Units of 16 centroids, 5 of what is kept, and 3 codes of F0, with a vocoder."""
    torch.manual_seed(0)
    fields = {"layers": [1], "kept_dims": 2, "kept_codebook_size": 5, "f0_bins": 3}
    model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=tiny_hubert(), codebook_size=16, **fields)).eval()
    model.set_centroids(torch.randn(model.centroids.shape))
    quantizer = model.quantizer
    model.set_weighting(torch.randn(quantizer.kept_matrix.shape), torch.randn(quantizer.kept_offset.shape))
    model.set_kept_centroids(torch.randn(quantizer.kept_centroids.shape))
    sizes = {"hidden_size": 8, "decoder_hidden_size": 8, "decoder_num_layers": 1, "hop_length": 20}
    model.attach_vocoder(UnitVocoderModel(UnitVocoderConfig(num_quantizers=3, codebook_size=16, **sizes)).eval())
    return model


def make(units, layout, text_alignment="none", num_codebooks=None):
    processor = SpeechLMProcessor.from_tokenizer(
        build_speech_vocabulary(),
        units,
        KMeansUnitsFeatureExtractor(hop_length=20),
        text_alignment=text_alignment,
        piece_labels=PHONES if text_alignment == "phone" else (),
        num_codebooks=num_codebooks,
        codec_name="tiny-units",
        layout=layout,
    )
    if text_alignment == "phone":
        lexicon = PronunciationLexicon()
        for word, phones in LEXICON.items():
            lexicon.add(word, phones)
        processor.attach_pronouncer(lexicon)
    lm = tiny_lm(vocab_size=processor.audio_offset)
    return SpeechLMForConditionalGeneration.from_causal_lm(lm, units, processor), processor


def prefer(model, is_wanted):
    """Let the model give the highest scores to codes `(num_codebooks, codebook_size)` of each codebook."""
    config, give = model.config, model.forward

    def forward(*args, **kwargs):
        outputs = give(*args, **kwargs)
        if config.layout == "flat":
            codes = outputs.logits[..., config.audio_offset : config.speech_ids.audio_stop]
            codes += 1000.0 * is_wanted.flatten()
        else:
            outputs.audio_logits[..., : config.codebook_size] += 1000.0 * is_wanted
        return outputs

    model.forward = forward


@pytest.mark.parametrize("text_alignment", ["none", "phone"])
@pytest.mark.parametrize("layout", ["flat", "delay"])
def test_what_a_codebook_lacks_is_never_written(units, layout, text_alignment):
    model, processor = make(units, layout, text_alignment)
    assert model.config.codebook_sizes == processor.codebook_sizes == list(SIZES)
    assert model.config.code_sizes == SIZES
    prefer(model, torch.arange(16) >= torch.tensor(SIZES)[:, None])
    for temperature in (0, 1.0):
        output = model.generate_speech(
            "hi",
            processor,
            min_frames=6 if text_alignment == "none" else 1,
            max_frames=40,
            temperature=temperature,
            generators=[torch.Generator().manual_seed(0)],
        )
        codes = output.audio_codes[0][:, output.audio_codes_mask[0].bool()]
        assert codes.shape[1] > 3
        assert (codes.amax(1) < torch.tensor(SIZES)).all()
        assert output.audio_values.isfinite().all()


def test_codes_of_small_codebooks_may_repeat_where_units_may_not(units):
    model, processor = make(units, "flat")
    wanted = torch.zeros(3, 16, dtype=torch.bool)
    wanted[:, 1] = True
    prefer(model, wanted)
    output = model.generate_speech(
        "hi",
        processor,
        min_frames=12,
        max_frames=12,
        temperature=0,
        generators=[torch.Generator().manual_seed(0)],
        repetition_window=6,
        repetition_limit=1,
    )
    codes = output.audio_codes[0][:, output.audio_codes_mask[0].bool()]
    assert codes.shape[1] >= 11
    assert (codes[1:] == 1).all()
    assert all(len(set(codes[0, start : start + 6].tolist())) == 6 for start in range(codes.shape[1] - 5))


def test_codes_of_small_codebooks_begin_as_large_as_others(units):
    model = make(units, "flat")[0]
    rows = model._mapped_codebooks(64, torch.Generator().manual_seed(0))
    for row, size in zip(rows, SIZES, strict=True):
        assert 0.7 < row[:size].std() < 1.3


def test_the_sizes_travel_with_model_and_processor(units, tmp_path):
    model, processor = make(units, "delay", num_codebooks=2)
    assert model.config.codebook_sizes == [16, 5]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert SpeechLMConfig.from_pretrained(tmp_path).codebook_sizes == [16, 5]
    loaded = SpeechLMProcessor.from_pretrained(tmp_path)
    assert loaded.codebook_sizes == [16, 5]
    loaded.check_model(model)
    flat, processor = make(units, "flat")
    assert processor.speech_ids == flat.config.speech_ids
    assert processor.speech_ids.sizes == SIZES
    with pytest.raises(ValueError, match="in codebook 2"):
        flat.codec.decode(torch.full((1, 3, 4), 4))  # as it would be


def test_codebooks_of_one_size_say_nothing():
    processor = tiny_processor(tiny_codec())
    assert processor.codebook_sizes is None
    assert processor.model_fields()["codebook_sizes"] is None
    assert SpeechLMConfig(num_codebooks=2, codebook_size=8).code_sizes == (8, 8)


def test_a_codec_of_other_sizes_is_refused(units):
    model, _ = make(units, "flat")
    model.config.codebook_sizes = [16, 5, 4]
    with pytest.raises(ValueError, match=r"\[16, 5, 3\] codes, but \[16, 5, 4\]"):
        model.attach_codec(units)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codebook_sizes": [8]}, "for each of 2 codebooks"),
        ({"codebook_sizes": [8, 9]}, "between 1 and"),
        ({"codebook_sizes": [8, 0]}, "between 1 and"),
        ({"codebook_sizes": [8, 4], "layout": "continuous", "latent_dim": 3}, "leave it out"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        SpeechLMConfig(num_codebooks=2, codebook_size=8, **fields)
