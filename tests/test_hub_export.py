# SPDX-License-Identifier: Apache-2.0
"""What is saved with its code loads where this package is not installed, and computes the same."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, LlamaConfig

from helpers.fake_hub import FakeHub
from helpers.strangers import run_without_this_package
from helpers.tiny_models import tiny_hubert
from helpers.voices import voice
from speech_tokenizers.modeling.configuration_cst import CSTConfig
from speech_tokenizers.modeling.configuration_dc_spin import DCSpinConfig
from speech_tokenizers.modeling.configuration_dm_codec import DMCodecConfig
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.configuration_latent_lm import LatentLMConfig
from speech_tokenizers.modeling.configuration_rvq_codec import RVQCodecConfig
from speech_tokenizers.modeling.configuration_unit_vocoder import UnitVocoderConfig
from speech_tokenizers.modeling.hub_export import find_code_files, find_siblings, save_pretrained_with_code
from speech_tokenizers.modeling.modeling_cst import CSTModel
from speech_tokenizers.modeling.modeling_dc_spin import DCSpinModel
from speech_tokenizers.modeling.modeling_dm_codec import DMCodecModel
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.modeling_latent_lm import LatentLanguageModel
from speech_tokenizers.modeling.modeling_rvq_codec import RVQCodecModel
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.processing.feature_extraction_cst import CSTFeatureExtractor
from speech_tokenizers.processing.feature_extraction_dc_spin import DCSpinFeatureExtractor
from speech_tokenizers.processing.feature_extraction_dm_codec import DMCodecFeatureExtractor
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


CODECS = {
    "seanet": {"encoder_lstm": "bidirectional", "activation": "snake"},
    "spectral": {"encoder_type": "stft", "decoder_type": "istft", "codebook_dim": 4, "decoder_spectra": 2},
    "dm-codec": {"encoder_lstm": "bidirectional", "semantic_dimension": 6, "contextual_dimension": 4},
    "kmeans-units": {"layers": [1, 2], "num_stages": 2},
    "cst": {"encoder_type": "stft", "latent_stride": 2, "bottleneck_type": "kl", "ctc_labels": ["<pad>", "a", "b"]},
    "dc-spin": {"encoder_layer": 1, "trainable_layers": 1, "projection_dim": 8, "auxiliary_codebook_size": 32},
    "kmeans-units-kept": {"layers": [2], "num_stages": 1, "kept_dims": 3, "kept_codebook_size": 8},
    "kmeans-units-kept-f0": {
        "layers": [1, 2],
        "num_stages": 2,
        "kept_dims": 3,
        "kept_codebook_size": 8,
        "f0_bins": 6,
        "f0_stride": 2,
    },
    "dc-spin-f0": {"encoder_layer": 1, "trainable_layers": 1, "projection_dim": 8, "f0_bins": 16},
}
# Hz in which each voice begins and ends that units with F0 are given.
F0_ENDS = [(110, 190), (260, 170)]
RVQ_MODEL_FILES = {
    "checked_loading.py",
    "codec_interface.py",
    "codec_layers.py",
    "codec_model.py",
    "codec_streaming.py",
    "configuration_codec.py",
    "configuration_rvq_codec.py",
    "input_checks.py",
    "mixed_precision.py",
    "modeling_rvq_codec.py",
    "recording_stream.py",
    "spectral_layers.py",
    "spectral_losses.py",
    "vector_quantization.py",
}
EXTRACTOR_FILES = {"feature_extraction_rvq_codec.py", "resampling.py", "sampling_rates.py", "waveform_rows.py"}
RVQ_FILES = RVQ_MODEL_FILES | EXTRACTOR_FILES
DM_FILES = RVQ_FILES | {"configuration_dm_codec.py", "modeling_dm_codec.py", "feature_extraction_dm_codec.py"}
CST_FILES = RVQ_FILES - {"configuration_rvq_codec.py", "modeling_rvq_codec.py"}
CST_FILES |= {"configuration_cst.py", "latent_bottleneck.py", "modeling_cst.py", "feature_extraction_cst.py"}
VOCODER_FILES = {
    "checked_loading.py",
    "codec_interface.py",
    "codec_layers.py",
    "configuration_codec.py",
    "configuration_unit_vocoder.py",
    "input_checks.py",
    "mixed_precision.py",
    "modeling_unit_vocoder.py",
    "spectral_layers.py",
    "unit_runs.py",
}
UNITS_FILES = VOCODER_FILES | EXTRACTOR_FILES
UNITS_FILES |= {
    "f0_codebook.py",
    "pitch_frames.py",
    "configuration_kmeans_units.py",
    "configuration_units.py",
    "encoder_geometry.py",
    "feature_extraction_kmeans_units.py",
    "model_names.py",
    "modeling_kmeans_units.py",
    "padding_invariance.py",
    "recording_stream.py",
    "speech_encoders.py",
    "unit_model.py",
    "unit_streaming.py",
}
SPIN_FILES = UNITS_FILES - {f"{kind}_kmeans_units.py" for kind in ("configuration", "feature_extraction", "modeling")}
SPIN_FILES |= {f"{kind}_dc_spin.py" for kind in ("configuration", "feature_extraction", "modeling")}
SPIN_FILES |= {"swapped_prediction.py"}
LATENT_LM_FILES = {
    "checked_loading.py",
    "codec_layers.py",
    "configuration_latent_lm.py",
    "continuous_heads.py",
    "input_checks.py",
    "latent_bottleneck.py",
    "mixed_precision.py",
    "modeling_latent_lm.py",
    "spectral_layers.py",
    "vector_quantization.py",
}
FILES = {
    "seanet": RVQ_FILES,
    "spectral": RVQ_FILES,
    "dm-codec": DM_FILES,
    "kmeans-units": UNITS_FILES,
    "cst": CST_FILES,
    "dc-spin": SPIN_FILES,
    "kmeans-units-kept": UNITS_FILES,
    "kmeans-units-kept-f0": UNITS_FILES,
    "dc-spin-f0": SPIN_FILES,
}

# The exporter is loaded by its path, to save once more what was loaded with its code.
STRANGER = """
    import importlib.util

    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization

    spec = importlib.util.spec_from_file_location("hub_export", sys.argv[1])
    hub_export = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hub_export)

    def flatten(outputs):
        stacked = {name: torch.stack(value) for name, value in outputs.items() if isinstance(value, tuple)}
        return {name: value.contiguous() for name, value in {**outputs, **stacked}.items()}

    torch.set_num_threads(1)
    for folder in map(Path, sys.argv[2:]):
        source = folder / "repository"
        config = AutoConfig.from_pretrained(source, trust_remote_code=True)
        feature_extractor = AutoFeatureExtractor.from_pretrained(source, trust_remote_code=True)
        waveform = load_file(folder / "input.safetensors")["waveform"]
        inputs = feature_extractor(list(waveform.numpy()), sampling_rate=16000, return_tensors="pt")
        for auto_class in (AutoModel, AutoModelForAudioTokenization):
            model = auto_class.from_pretrained(source, trust_remote_code=True)
            assert type(model).__module__.startswith("transformers_modules."), type(model)
            with torch.no_grad():
                outputs = flatten(model(**inputs))
            save_file(outputs, folder / f"{auto_class.__name__}.safetensors")
        hub_export.save_pretrained_with_code(model, feature_extractor, folder / "again")

        repo_id = f"user/{folder.name}"
        for _ in range(2):  # the second time the repository exists
            hub_export.push_to_hub_with_code(model, feature_extractor, repo_id)
        hub_export.push_to_hub_with_code(model, feature_extractor, repo_id, revision="second", commit_message="Again")
        for revision in ("main", "second"):
            downloaded = AutoModel.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
            AutoFeatureExtractor.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
            assert type(downloaded).__module__.startswith("transformers_modules.user."), type(downloaded)
            with torch.no_grad():
                for name, value in flatten(downloaded(**inputs)).items():
                    assert torch.equal(value, outputs[name]), name
    assert not any(name.split(".")[0] == "speech_tokenizers" for name in sys.modules)
"""

SPEAK = """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    codes = load_file(folder / "codes.safetensors")["codes"]
    spoken = {}
    for source in sys.argv[2:]:
        model = AutoModel.from_pretrained(source, trust_remote_code=True)
        with torch.no_grad():
            spoken[type(model).__name__] = model.decode(codes, num_samples=170).audio_values.contiguous()
    save_file(spoken, folder / "spoken.safetensors")
"""

CONTINUE = """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModel

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    inputs = load_file(folder / "inputs.safetensors")
    source = folder / "repository"
    model = AutoModel.from_pretrained(source, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert type(model.config) is type(AutoConfig.from_pretrained(source, trust_remote_code=True))
    with torch.no_grad():
        outputs = model(**inputs)
    generator = torch.Generator().manual_seed(0)
    latents, mask = model.generate_latents(inputs["latents"], max_frames=3, stop_threshold=None, generator=generator)
    save_file({**outputs, "generated": latents, "generated_mask": mask}, folder / "outputs.safetensors")
"""


def make_units(**fields) -> KMeansUnitsModel:
    torch.manual_seed(0)
    config = KMeansUnitsConfig(encoder_config=tiny_hubert(), codebook_size=16, **fields)
    model = KMeansUnitsModel(config).eval()
    model.set_centroids(torch.randn(model.centroids.shape))
    if model.config.kept_dims:
        quantizer = model.quantizer
        model.set_weighting(torch.randn(quantizer.kept_matrix.shape), torch.randn(quantizer.kept_offset.shape))
        model.set_kept_centroids(torch.randn(quantizer.kept_centroids.shape))
    if model.f0_codebook is not None:
        set_bins(model)
    vocoder_sizes = {"hidden_size": 8, "decoder_hidden_size": 16, "decoder_num_layers": 1, "hop_length": 20}
    config = UnitVocoderConfig(num_quantizers=model.config.num_quantizers, codebook_size=16, **vocoder_sizes)
    model.attach_vocoder(UnitVocoderModel(config).eval())
    return model


def set_bins(model: KMeansUnitsModel | DCSpinModel) -> None:
    # Others than those that a new model has.
    num_bins = model.config.f0_bins - 1
    model.f0_codebook.set_bins(torch.linspace(-1, 2, num_bins - 1), torch.linspace(-1.5, 2.5, num_bins))


def make_codec(**overrides) -> RVQCodecModel | CSTModel | KMeansUnitsModel | DCSpinModel:
    if "num_stages" in overrides:
        return make_units(**overrides)
    torch.manual_seed(0)
    if "encoder_layer" in overrides:
        model = DCSpinModel(DCSpinConfig(encoder_config=tiny_hubert(), **overrides)).eval()
        if model.f0_codebook is not None:
            set_bins(model)
        return model
    sizes = {"num_filters": 4, "hidden_size": 8, "encoder_hidden_size": 8, "decoder_hidden_size": 8}
    layers = {"encoder_num_layers": 1, "decoder_num_layers": 1}
    if "bottleneck_type" in overrides:
        return CSTModel(CSTConfig(**sizes, **layers, downsampling_ratios=(2, 4), **overrides)).eval()
    layers |= {"num_quantizers": 2, "codebook_size": 16}
    is_dm_codec = "semantic_dimension" in overrides
    config = (DMCodecConfig if is_dm_codec else RVQCodecConfig)(
        **sizes, **layers, downsampling_ratios=(2, 4), **overrides
    )
    return (DMCodecModel if is_dm_codec else RVQCodecModel)(config).eval()


def make_feature_extractor(name: str) -> RVQCodecFeatureExtractor:
    if name.startswith("kmeans-units"):
        return KMeansUnitsFeatureExtractor(hop_length=20)
    if name.startswith("dc-spin"):
        return DCSpinFeatureExtractor(hop_length=20)
    classes = {"dm-codec": DMCodecFeatureExtractor, "cst": CSTFeatureExtractor}
    return classes.get(name, RVQCodecFeatureExtractor)(padding_side="left")


def make_waveform(name: str) -> torch.Tensor:
    if not name.endswith("f0"):
        return torch.rand(2, 777) - 0.5
    voices = [torch.cat([torch.zeros(1, 800), voice(np.geomspace(*ends, 5000))], dim=1) for ends in F0_ENDS]
    return torch.cat(voices)


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def visited(hub, tmp_path_factory):
    """Folder of each codec, with its `repository` and what a process without this package made of it."""
    root = tmp_path_factory.mktemp("hub")
    folders = {name: root / name for name in CODECS}
    for name, folder in folders.items():
        feature_extractor = make_feature_extractor(name)
        written = save_pretrained_with_code(make_codec(**CODECS[name]), feature_extractor, folder / "repository")
        assert {path.name for path in written} == FILES[name]
        save_file({"waveform": make_waveform(name)}, folder / "input.safetensors")

    exporter = importlib.util.find_spec("speech_tokenizers.modeling.hub_export").origin
    online = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
    run_without_this_package(STRANGER, root, exporter, *map(str, folders.values()), **online)
    return folders


@pytest.mark.parametrize("name", CODECS)
def test_a_saved_codec_computes_the_same_without_this_package(visited, name):
    model, feature_extractor = make_codec(**CODECS[name]), make_feature_extractor(name)
    waveform = load_file(visited[name] / "input.safetensors")["waveform"]
    inputs = feature_extractor(list(waveform.numpy()), sampling_rate=16000, return_tensors="pt")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process: the order of a sum depends on it
    with torch.no_grad():
        expected = model(**inputs)
        stacked = {key: torch.stack(value) for key, value in expected.items() if isinstance(value, tuple)}
        expected = {**expected, **stacked}
    torch.set_num_threads(num_threads)
    for auto_class in ("AutoModel", "AutoModelForAudioTokenization"):
        outputs = load_file(visited[name] / f"{auto_class}.safetensors")
        assert outputs.keys() == expected.keys()
        for key in outputs:
            assert torch.equal(outputs[key], expected[key]), key
    if isinstance(model, (KMeansUnitsModel, DCSpinModel)):
        # Each row has codes of its own codebook, and more than one of them.
        assert len(model.config.codebook_sizes) == expected["audio_codes"].shape[1]
        for size, row in zip(model.config.codebook_sizes, expected["audio_codes"].unbind(1), strict=True):
            assert row.max() < size
            assert row.unique().numel() > 1


def read_json(path) -> dict:
    contents = json.loads(path.read_text())
    for value in contents.values():
        if isinstance(value, dict):
            value.pop("dtype", None)  # of a part's configuration, which transformers fills in when it loads
    return contents


@pytest.mark.parametrize("name", CODECS)
def test_what_was_loaded_with_its_code_can_be_saved_with_its_code(visited, name):
    first, second = visited[name] / "repository", visited[name] / "again"
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    for path in first.iterdir():
        if path.name == "README.md":
            text = path.read_text()
            assert "USER/repository" in text
            assert text.replace("USER/repository", "USER/again") == (second / path.name).read_text()
        elif path.suffix in (".py", ".safetensors"):
            assert path.read_bytes() == (second / path.name).read_bytes(), path.name
        else:
            assert read_json(path) == read_json(second / path.name), path.name


@pytest.mark.parametrize("name", CODECS)
def test_a_push_writes_what_a_save_writes(visited, hub, name):
    saved = {path.name: path.read_bytes() for path in (visited[name] / "again").iterdir()}
    saved["README.md"] = saved["README.md"].replace(b"USER/again", f"user/{name}".encode())
    for revision in ("main", "second"):
        pushed = hub.files(f"user/{name}", revision)
        assert pushed.pop(".gitattributes", None) is None
        assert pushed == saved


def test_auto_maps_are_written_but_the_live_objects_stay_as_they_are(tmp_path):
    model, feature_extractor = make_codec(), RVQCodecFeatureExtractor()
    save_pretrained_with_code(model, feature_extractor, tmp_path / "with_code")
    assert json.loads((tmp_path / "with_code/config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_rvq_codec.RVQCodecConfig",
        "AutoModel": "modeling_rvq_codec.RVQCodecModel",
        "AutoModelForAudioTokenization": "modeling_rvq_codec.RVQCodecModel",
    }
    assert json.loads((tmp_path / "with_code/preprocessor_config.json").read_text())["auto_map"] == {
        "AutoFeatureExtractor": "feature_extraction_rvq_codec.RVQCodecFeatureExtractor"
    }
    model.save_pretrained(tmp_path / "plain")
    feature_extractor.save_pretrained(tmp_path / "plain")
    assert "auto_map" not in (tmp_path / "plain/config.json").read_text()
    assert "auto_map" not in (tmp_path / "plain/preprocessor_config.json").read_text()


def test_a_vocoder_and_units_speak_the_same_without_this_package(visited, tmp_path):
    units = make_codec(**CODECS["kmeans-units"])
    written = save_pretrained_with_code(units.vocoder, None, tmp_path / "vocoder")
    assert {path.name for path in written} == VOCODER_FILES
    codes = torch.randint(16, (2, 4, 9), generator=torch.Generator().manual_seed(0))
    save_file({"codes": codes}, tmp_path / "codes.safetensors")
    folders = [tmp_path / "vocoder", visited["kmeans-units"] / "repository"]
    run_without_this_package(SPEAK, tmp_path, str(tmp_path), *map(str, folders))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        expected = units.decode(codes, num_samples=170).audio_values
    torch.set_num_threads(num_threads)
    assert expected.abs().max() > 1e-3
    spoken = load_file(tmp_path / "spoken.safetensors")
    assert sorted(spoken) == ["KMeansUnitsModel", "UnitVocoderModel"]
    for name, audio in spoken.items():
        assert torch.equal(audio, expected), name


def test_a_latent_language_model_continues_the_same_without_this_package(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    text_config = LlamaConfig(vocab_size=1, bos_token_id=0, eos_token_id=0, **sizes)
    head_options = {"num_layers": 1, "hidden_size": 16}
    model = LatentLanguageModel(LatentLMConfig(text_config=text_config, latent_dim=4, head_options=head_options))
    for parameter in model.eval().parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))  # a new head draws zeros
    model.set_statistics(torch.randn(4), torch.rand(4) + 0.5)
    written = save_pretrained_with_code(model, None, tmp_path / "repository")
    assert {path.name for path in written} == LATENT_LM_FILES
    inputs = {"latents": torch.randn(2, 5, 4), "ended": torch.tensor([1, 0])}
    save_file(inputs, tmp_path / "inputs.safetensors")
    run_without_this_package(CONTINUE, tmp_path, str(tmp_path))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        expected = dict(model(**inputs))
        generated = model.generate_latents(inputs["latents"], max_frames=3, stop_threshold=None, generator=generator)
    torch.set_num_threads(num_threads)
    expected |= {"generated": generated.latents, "generated_mask": generated.mask}
    outputs = load_file(tmp_path / "outputs.safetensors")
    assert outputs.keys() == expected.keys() >= {"loss", "prediction_loss", "stop_loss", "hidden_states"}
    for name, value in outputs.items():
        assert torch.equal(value, expected[name]), name
    assert outputs["generated"].shape == (2, 3, 4)


def test_the_auto_classes_know_the_latent_language_model(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = LatentLMConfig(text_config={"model_type": "llama", "vocab_size": 1, **sizes}, latent_dim=4, head="mse")
    model = AutoModel.from_config(config)
    assert type(model) is LatentLanguageModel
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is LatentLMConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is LatentLanguageModel


def test_a_model_alone_can_be_saved_with_its_code(tmp_path):
    written = save_pretrained_with_code(make_codec(), None, tmp_path)
    assert {path.name for path in written} == RVQ_MODEL_FILES
    assert not (tmp_path / "preprocessor_config.json").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from ..parent import Name", "imports from a parent folder"),
        ("from .layers.block import Name", "imports from a subfolder"),
        ("from . import sibling", "from . import name"),
        ("from speech_tokenizers.modeling.sibling import Name", "by its absolute name"),
        ("import speech_tokenizers.modeling.sibling", "by its absolute name"),
        ("def f():\n    from speech_tokenizers import Name", "by its absolute name"),
        ('"""\nfrom .nowhere import Name\n"""', "begin like an import"),
    ],
)
def test_imports_that_cannot_travel_are_refused(line, message, tmp_path):
    path = tmp_path / "modeling_x.py"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=message):
        find_siblings(path)


def load_class(path, name: str) -> type:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def test_names_with_tokenizer_in_them_are_refused(tmp_path):
    path = tmp_path / "exported_module.py"
    path.write_text("class FineTokenizerModel:\n    pass\n")
    with pytest.raises(ValueError, match="rename the class or its file"):
        find_code_files([load_class(path, "FineTokenizerModel")])


def test_two_files_of_one_name_are_refused_unless_they_are_equal(tmp_path):
    classes = []
    for folder in ("modeling", "processing"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"exported_{folder}.py").write_text(
            "def f():\n    from .shared_name import A\n\nclass A:\n    pass\n"
        )
        (tmp_path / folder / "shared_name.py").write_text("A = 1\n")
        classes.append(load_class(tmp_path / folder / f"exported_{folder}.py", "A"))
    assert find_code_files(classes).keys() == {"exported_modeling.py", "exported_processing.py", "shared_name.py"}

    (tmp_path / "processing/shared_name.py").write_text("A = 2\n")
    with pytest.raises(ValueError, match="Two different files are named `shared_name.py`"):
        find_code_files(classes)


def test_a_class_of_a_script_is_refused():
    with pytest.raises(ValueError, match="has no file to export"):
        find_code_files([type("Local", (), {"__module__": "__main__"})])
