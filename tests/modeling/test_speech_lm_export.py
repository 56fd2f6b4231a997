# SPDX-License-Identifier: Apache-2.0
"""A speech language model travels with its processor, its lexicon and its code, and the auto classes know it."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForTextToWaveform,
    AutoProcessor,
    EncodecConfig,
    EncodecFeatureExtractor,
    EncodecModel,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    pipeline,
)

from helpers.fake_hub import FakeHub
from helpers.strangers import run_without_this_package
from helpers.tiny_speaking_lm import ARCHITECTURES, tiny_lm, tiny_speech_lm
from speech_tokenizers.modeling.audio_logits import AudioOnly, GuidedText
from speech_tokenizers.modeling.configuration_speech_lm import SpeechLMConfig
from speech_tokenizers.modeling.hub_export import save_pretrained_with_code
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
from speech_tokenizers.modeling.speech_lm_text import build_speech_vocabulary
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


TEXT = "hi tim"
ALIGNMENTS = ("none", "word", "phone")
# What the classes of a speech language model and those of its codec's feature extractor import.
FILES = {
    "atomic_files.py",
    "audio_logits.py",
    "checked_loading.py",
    "codec_interface.py",
    "codec_layers.py",
    "configuration_speech_lm.py",
    "continuous_heads.py",
    "feature_extraction_rvq_codec.py",
    "input_checks.py",
    "latent_bottleneck.py",
    "mixed_precision.py",
    "modeling_speech_lm.py",
    "processing_speech_lm.py",
    "pronunciations.py",
    "recording_stream.py",
    "resampling.py",
    "sampling_rates.py",
    "spectral_layers.py",
    "speech_lm_alarms.py",
    "speech_lm_answers.py",
    "speech_lm_checks.py",
    "speech_lm_clips.py",
    "speech_lm_frames.py",
    "speech_lm_generation.py",
    "speech_lm_grids.py",
    "speech_lm_ids.py",
    "speech_lm_layouts.py",
    "speech_lm_making.py",
    "speech_lm_pieces.py",
    "speech_lm_plans.py",
    "speech_lm_requests.py",
    "speech_lm_row_frames.py",
    "speech_lm_sequences.py",
    "speech_lm_streaming.py",
    "speech_lm_task_inputs.py",
    "speech_lm_tasks.py",
    "speech_lm_text.py",
    "speech_lm_unit_coding.py",
    "speech_lm_vocabulary.py",
    "speech_lm_voices.py",
    "speech_lm_writers.py",
    "transformers_codecs.py",
    "unit_runs.py",
    "vector_quantization.py",
    "waveform_rows.py",
}

# The exporter is loaded by its path, to save once more what was loaded with its code.
STRANGER = """
    import importlib.util

    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModel, AutoModelForTextToWaveform, AutoProcessor

    spec = importlib.util.spec_from_file_location("hub_export", sys.argv[1])
    hub_export = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hub_export)

    torch.set_num_threads(1)
    text = sys.argv[2]
    for folder in map(Path, sys.argv[3:]):
        for source in (folder / "repository", f"user/{folder.name}"):
            config = AutoConfig.from_pretrained(source, trust_remote_code=True)
            processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
            processor.attach_codec(AutoModel.from_pretrained(folder / "codec", trust_remote_code=True))
            for auto_class in (AutoModel, AutoModelForTextToWaveform):
                model = auto_class.from_pretrained(source, trust_remote_code=True)
                assert type(model).__module__.startswith("transformers_modules."), type(model)
                assert type(model.config) is type(config)
                model.attach_codec(processor.codec)
                generators = [torch.Generator().manual_seed(0)]
                said = model.generate_speech(text, processor, generators=generators, max_frames=9)
                outputs = {name: said[name] for name in ("audio_codes", "audio_values", "sequences")}
                name = f"{auto_class.__name__}-{Path(source).name}.safetensors"
                save_file({name: value.contiguous() for name, value in outputs.items()}, folder / name)
            if source == folder / "repository":
                hub_export.save_pretrained_with_code(model, processor, folder / "again")
                hub_export.push_to_hub_with_code(model, processor, f"user/{folder.name}")
    assert not any(name.split(".")[0] == "speech_tokenizers" for name in sys.modules)
"""


def exported(folder: Path, alignment: str) -> tuple[SpeechLMForConditionalGeneration, SpeechLMProcessor]:
    """A speech language model that was saved to `repository` in a folder with its codec in `codec`."""
    model, processor = tiny_speech_lm(text_alignment=alignment)
    written = save_pretrained_with_code(model, processor, folder / "repository")
    assert {path.name for path in written} == FILES
    save_pretrained_with_code(model.codec, RVQCodecFeatureExtractor(sampling_rate=800), folder / "codec")
    return model, processor


# Each model scores the same ids.
SCORER = """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel

    torch.set_num_threads(1)
    for folder in map(Path, sys.argv[1:]):
        model = AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        is_tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert is_tied == ("untied" not in folder.name)
        ids = torch.arange(1, 25).reshape(2, 12)
        save_file({"logits": model(input_ids=ids).logits.contiguous()}, folder / "logits.safetensors")
    assert not any(name.split(".")[0] == "speech_tokenizers" for name in sys.modules)
"""


def test_every_architecture_scores_the_same_without_this_package(tmp_path):
    expected = {}
    for kind in ARCHITECTURES:
        for tied in (True, False):
            folder = tmp_path / f"{kind}-{'tied' if tied else 'untied'}"
            model, processor = tiny_speech_lm(kind, tied=tied)
            save_pretrained_with_code(model, processor, folder)
            with torch.no_grad():
                expected[folder] = model(input_ids=torch.arange(1, 25).reshape(2, 12)).logits
    run_without_this_package(SCORER, tmp_path, *map(str, expected))
    for folder, logits in expected.items():
        assert torch.equal(load_file(folder / "logits.safetensors")["logits"], logits), folder.name


@pytest.fixture(scope="module")
def visited(tmp_path_factory):
    """Folders, by alignment, in which a process without this package has left what it made of a repository."""
    root = tmp_path_factory.mktemp("speech_lm")
    folders = {alignment: root / alignment for alignment in ALIGNMENTS}
    for alignment, folder in folders.items():
        exported(folder, alignment)
    exporter = importlib.util.find_spec("speech_tokenizers.modeling.hub_export").origin
    with FakeHub() as hub:
        online = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
        run_without_this_package(STRANGER, root, exporter, TEXT, *map(str, folders.values()), **online)
        for alignment, folder in folders.items():
            (folder / "pushed").mkdir()
            for name, content in hub.files(f"user/{alignment}").items():
                (folder / "pushed" / name).write_bytes(content)
    return folders


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_text_gives_the_same_codes_without_this_package(visited, alignment):
    model, processor = tiny_speech_lm(text_alignment=alignment)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process: the order of a sum depends on it
    said = model.generate_speech(TEXT, processor, generators=[torch.Generator().manual_seed(0)], max_frames=9)
    torch.set_num_threads(num_threads)
    assert said.audio_codes.shape[-1] > 0
    for auto_class in ("AutoModel", "AutoModelForTextToWaveform"):
        for source in ("repository", alignment):  # the folder, and the repository of the Hub
            outputs = load_file(visited[alignment] / f"{auto_class}-{source}.safetensors")
            assert sorted(outputs) == ["audio_codes", "audio_values", "sequences"]
            for name, value in outputs.items():
                assert torch.equal(value, said[name]), name


def read_json(path: Path) -> dict:
    contents = json.loads(path.read_text())
    for name in ("is_local", "local_files_only"):  # what transformers notes of a tokenizer that it loads
        contents.pop(name, None)
    for value in contents.values():
        if isinstance(value, dict):
            value.pop("dtype", None)  # of a part's configuration, which transformers fills in when it loads
    return contents


@pytest.mark.parametrize("again", ["again", "pushed"])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_what_was_loaded_with_its_code_is_saved_and_pushed_as_it_was(visited, alignment, again):
    first, second = visited[alignment] / "repository", visited[alignment] / again
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()}
    assert ("pronunciations.txt.gz" in names) == (alignment == "phone")
    for path in first.iterdir():
        if path.name == "README.md":
            text = path.read_text().replace("USER/repository", "NAME").replace("USER/tiny-codec", "CODEC")
            other = (second / path.name).read_text().replace("USER/again", "NAME").replace(f"user/{alignment}", "NAME")
            assert other.replace("USER/tiny-codec", "CODEC").replace("user/tiny-codec", "CODEC") == text
        elif path.suffix == ".json":
            assert read_json(path) == read_json(second / path.name), path.name
        else:
            assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_auto_maps_are_written_but_the_live_objects_stay_as_they_are(tmp_path):
    model, processor = exported(tmp_path, "phone")
    config = json.loads((tmp_path / "repository/config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_speech_lm.SpeechLMConfig",
        "AutoModel": "modeling_speech_lm.SpeechLMForConditionalGeneration",
        "AutoModelForTextToWaveform": "modeling_speech_lm.SpeechLMForConditionalGeneration",
    }
    fields = json.loads((tmp_path / "repository/processor_config.json").read_text())
    assert fields["auto_map"] == {"AutoProcessor": "processing_speech_lm.SpeechLMProcessor"}
    assert fields["feature_extractor"]["auto_map"] == {
        "AutoFeatureExtractor": "feature_extraction_rvq_codec.RVQCodecFeatureExtractor"
    }
    model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    for path in (tmp_path / "plain").glob("*.json"):
        assert "auto_map" not in path.read_text(), path.name


def test_the_code_of_the_card_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, processor = tiny_speech_lm(text_alignment="phone")
    save_pretrained_with_code(model, processor, "USER/tiny-voice")
    save_pretrained_with_code(model.codec, RVQCodecFeatureExtractor(sampling_rate=800), "USER/tiny-codec")
    card = ModelCard.load("USER/tiny-voice/README.md")
    assert card.data.pipeline_tag == "text-to-speech"
    assert "`tiny-codec`" in card.text
    assert "Nothing has been measured of these weights." in card.text
    names = {"text": TEXT}
    exec(re.search(r"(?s)```python\n(.*?)```", card.text)[1], names)
    assert names["speech"].shape[:2] == (1, 1)


def test_a_codec_of_transformers_needs_no_code(tmp_path):
    torch.manual_seed(0)
    sizes = {"num_filters": 4, "num_residual_layers": 1, "upsampling_ratios": [4, 2], "codebook_size": 16}
    config = EncodecConfig(sampling_rate=800, hidden_size=8, codebook_dim=8, target_bandwidths=[0.8], **sizes)
    codec, feature_extractor = EncodecModel(config).eval(), EncodecFeatureExtractor(sampling_rate=800)
    processor = SpeechLMProcessor.from_tokenizer(build_speech_vocabulary(), codec, feature_extractor)
    lm = tiny_lm(vocab_size=processor.audio_offset)
    model = SpeechLMForConditionalGeneration.from_causal_lm(lm, processor.codec, processor)
    written = save_pretrained_with_code(model, processor, tmp_path)
    assert not any("feature_extraction" in path.name for path in written)
    assert "auto_map" not in json.loads((tmp_path / "processor_config.json").read_text())["feature_extractor"]
    assert isinstance(AutoFeatureExtractor.from_pretrained(tmp_path), EncodecFeatureExtractor)


def test_a_tokenizer_with_code_of_its_own_is_refused(tmp_path):
    class OwnNames(PreTrainedTokenizerFast):
        pass

    model, processor = tiny_speech_lm()
    processor.tokenizer.__class__ = OwnNames
    with pytest.raises(ValueError, match="`OwnNames`, whose code cannot travel"):
        save_pretrained_with_code(model, processor, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as `save_pretrained` writes it, without code."""
    folder = tmp_path_factory.mktemp("plain")
    for part in tiny_speech_lm(text_alignment="phone"):
        part.save_pretrained(folder)
    return folder


def test_the_auto_classes_know_a_speech_language_model(folder):
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is SpeechLMConfig
    for auto_class in (AutoModel, AutoModelForTextToWaveform):
        assert type(auto_class.from_pretrained(folder)) is SpeechLMForConditionalGeneration
        assert type(auto_class.from_config(config)) is SpeechLMForConditionalGeneration
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor) is SpeechLMProcessor
    assert processor.speech_pieces("hi")[0] == ["pau", "hh", "ay", "pau"]
    assert type(AutoFeatureExtractor.from_pretrained(folder)) is RVQCodecFeatureExtractor


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "whole frames only"])
def test_the_pipeline_of_transformers_says_a_prompt(folder, guided):
    """It calls `generate` alone: the prompt, and what makes its answer speech, are given to it."""
    model, _ = tiny_speech_lm(text_alignment="phone")
    model.set_piece_frames([[1, 2]] * len(model.config.piece_labels))
    processor = AutoProcessor.from_pretrained(folder)
    processor.attach_codec(model.codec)
    speak = pipeline("text-to-audio", model=str(folder), processor=processor, device="cpu")
    assert type(speak.model) is SpeechLMForConditionalGeneration
    ids = processor.speech_ids
    limits = GuidedText(ids, [processor.speech_pieces("hi")[1]], 1, 2) if guided else AudioOnly(ids)
    options = {"logits_processor": LogitsProcessorList([limits]), "max_new_tokens": 40}
    said = speak(processor.speech_prompt("hi"), generate_kwargs=options)
    assert said["sampling_rate"] == 800
    if guided:
        expected = model.generate_speech("hi", processor, temperature=0).audio_values
        torch.testing.assert_close(torch.from_numpy(said["audio"]), expected[0, 0])
    else:
        assert len(said["audio"]) == 40 // 2 * 16
