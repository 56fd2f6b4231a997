# SPDX-License-Identifier: Apache-2.0
"""`push`: what arrives on the Hub, who may see it, and that others load it."""

import io
import json
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from helpers.fake_hub import FakeHub
from helpers.online import run_online
from helpers.strangers import run_without_this_package
from helpers.tiny_speaking_lm import tiny_speech_lm
from speech_tokenizers.coding.loading import load
from speech_tokenizers.modeling.configuration_unit_vocoder import UnitVocoderConfig
from speech_tokenizers.modeling.modeling_unit_vocoder import UnitVocoderModel
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor


STRANGER = """
    import os
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor

    torch.set_num_threads(1)
    speech = load_file("speech.safetensors")["speech"].numpy()
    found = {}

    def code(repository, name, **place):
        model = AutoModel.from_pretrained(repository, trust_remote_code=True, **place).eval()
        assert type(model).__module__.startswith("transformers_modules.user."), type(model)
        extractor = AutoFeatureExtractor.from_pretrained(repository, trust_remote_code=True, **place)
        with torch.no_grad():
            inputs = extractor(speech, sampling_rate=16000, return_tensors="pt")
            found[name] = model.encode(**inputs).audio_codes.contiguous()

    code("user/codec", "released")
    code("user/tiny", "main")
    code("user/tiny", "second", revision="second")
    vocoder = AutoModel.from_pretrained("user/vocoder", trust_remote_code=True).eval()
    with torch.no_grad():
        found["spoken"] = vocoder.decode(torch.arange(8)[None, None] % 4, num_samples=2560).audio_values.contiguous()
    voice = AutoModel.from_pretrained("user/voice", trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained("user/voice", trust_remote_code=True)
    assert voice.config.codec_name == processor.codec_name == "user/voice-codec"
    processor.attach_codec(AutoModel.from_pretrained(voice.config.codec_name, trust_remote_code=True).eval())
    voice.attach_codec(processor.codec)
    said = voice.generate_speech("hi", processor, temperature=0.0, max_frames=9)
    found["said"] = said.audio_codes.contiguous()
    save_file(found, sys.argv[1])
    if os.environ["HF_HUB_OFFLINE"] == "0":
        for token, revision in ((False, None), (None, "nowhere")):
            try:
                AutoModel.from_pretrained("user/codec", trust_remote_code=True, token=token, revision=revision,
                                          force_download=True)
            except (OSError, ValueError):
                continue
            raise AssertionError((token, revision))
"""


@pytest.fixture(scope="module")
def hub():
    with FakeHub(large_from=10_000) as hub:
        yield hub


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_checkpoint):
    """Folder with models: `tiny`, a codec; `vocoder`; `voice`, a speech language model, and its codec."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_checkpoint, root / "tiny")
    sizes = {"hidden_size": 16, "decoder_hidden_size": 16, "decoder_num_layers": 1, "codebook_size": 4}
    UnitVocoderModel(UnitVocoderConfig(**sizes)).save_pretrained(root / "vocoder")
    voice, processor = tiny_speech_lm(text_alignment="none")
    voice.save_pretrained(root / "voice")
    processor.save_pretrained(root / "voice")
    voice.codec.save_pretrained(root / "voice-codec")
    RVQCodecFeatureExtractor(sampling_rate=800, hop_length=16).save_pretrained(root / "voice-codec")
    return root


@pytest.fixture(scope="module")
def pushed(hub, models, tmp_path_factory):
    """What `push` and `check-repo` said, by the name of each call."""
    folder = tmp_path_factory.mktemp("pushing")
    soundfile.write(folder / "mine.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
    calls = {
        "codec": ["push", "rvq-codec-16khz-4kbps", "user/codec", "--private"],
        "tiny": ["push", models / "tiny", "user/tiny", "--licence", "mit", "--samples", "mine.wav"],
        "second": ["push", models / "tiny", "user/tiny", "--revision", "second", "--no-samples"],
        "plain": ["push", models / "tiny", "user/plain", "--without-code", "--licence", "mit"],
        "vocoder": ["push", models / "vocoder", "user/vocoder", "--licence", "mit"],
        "early voice": ["push", models / "voice", "user/voice", "--codec", "user/voice-codec", "--no-samples"],
        "voice codec": ["push", models / "voice-codec", "user/voice-codec", "--no-samples"],
        "voice": ["push", models / "voice", "user/voice", "--codec", "user/voice-codec", "--no-samples"],
        "unnamed": ["push", models / "voice", "user/unnamed", "--no-samples"],
        "request": ["push", models / "tiny", "user/codec", "--create-pr", "--no-samples"],
        "public": ["push", models / "tiny", "user/tiny", "--private", "--no-samples"],
        "reader": ["push", models / "tiny", "user/theirs", "--no-samples", "--token", "hf_reader"],
        "nobody": ["push", models / "tiny", "user/theirs", "--no-samples", "--token", "hf_unknown"],
        "check": ["check-repo", "user/codec", "--json"],
        "check voice": ["check-repo", "user/unnamed"],
        "check hidden": ["check-repo", "user/codec", "--token", "hf_unknown"],
        "check revision": ["check-repo", "user/tiny", "--revision", "second"],
        "check nowhere": ["check-repo", "user/tiny", "--revision", "nowhere"],
        "load": ["info", "user/plain"],
    }
    return dict(zip(calls, run_online(hub, folder, list(calls.values())), strict=True))


def test_each_push_tells_where_it_is_and_how_it_is_loaded(pushed, hub):
    for name in ("codec", "tiny", "second", "plain", "vocoder", "voice codec", "voice", "unnamed", "request"):
        assert pushed[name].code == 0, pushed[name]
    assert pushed["codec"].out.startswith(f"{hub.endpoint}/user/codec/commit/")
    assert 'AutoModel.from_pretrained("user/codec", trust_remote_code=True)' in pushed["codec"].out
    assert "revision='second'" in pushed["second"].out
    assert "trust_remote_code" not in pushed["plain"].out
    assert "/user/codec/discussions/1" in pushed["request"].out


def test_files_card_and_sounds_arrive(pushed, hub):
    files = hub.files("user/codec")
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_rvq_codec.py"} <= files.keys()
    original = Path(load("rvq-codec-16khz-4kbps")[0].name_or_path)
    # The weights as they are stored, in half the bytes of what was loaded.
    assert files["model.safetensors"] == (original / "model.safetensors").read_bytes()
    text = files["README.md"].decode()
    assert ModelCard(text).data.eval_results == ModelCard.load(original / "README.md").data.eval_results
    sounds = sorted(name for name in files if name.startswith("samples/"))
    assert sounds == [
        f"samples/{name}.flac" for name in ("decoded-1kbps", "decoded-2kbps", "decoded-4kbps", "recorded")
    ]
    for name in sounds:
        samples, rate = soundfile.read(io.BytesIO(files[name]))
        assert (rate, len(samples)) == (16000, 12 * 16000)
        assert f"]({name})" in text
        assert f'src="{hub.endpoint}/user/codec/resolve/main/{name}"' in text
    for picture in re.findall(r"!\[[^\]]*\]\(([\w.-]+)\)", text):
        assert files[picture] == (original / picture).read_bytes()


def test_a_short_card_claims_nothing_and_states_the_licence(pushed, hub):
    card = ModelCard(hub.files("user/tiny")["README.md"].decode())
    assert (card.data.license, card.data.library_name, card.data.eval_results) == ("mit", "transformers", None)
    assert "Nothing has been measured of these weights." in card.text
    assert "LibriVox" not in card.text  # the sounds are the user's
    assert "samples/recorded.flac" in card.text
    recorded, _ = soundfile.read(io.BytesIO(hub.files("user/tiny")["samples/recorded.flac"]))
    assert len(recorded) == 8000


def test_a_card_on_the_hub_is_not_replaced_by_a_short_one(pushed, hub):
    assert "README.md is kept" in pushed["second"].err
    assert hub.files("user/tiny", "second")["README.md"] == hub.files("user/tiny")["README.md"]


def test_without_code_nothing_names_code(pushed, hub):
    files = hub.files("user/plain")
    assert not [name for name in files if name.endswith(".py")]
    assert b"auto_map" not in files["config.json"] + files["preprocessor_config.json"]
    assert 'load("user/plain")' in files["README.md"].decode()
    assert "trust_remote_code" not in files["README.md"].decode()
    assert pushed["load"].code == 0, pushed["load"]
    assert "16000 Hz" in pushed["load"].out


def test_a_request_leaves_the_main_branch_alone(pushed, hub):
    assert len(hub.repositories["user/codec"]["main"]) == 2  # none, and the first push
    assert hub.files("user/codec", "refs/pr/1")["model.safetensors"] != hub.files("user/codec")["model.safetensors"]


def test_a_speech_language_model_names_its_codec_s_repository(pushed, hub):
    files = hub.files("user/voice")
    for name in ("config.json", "processor_config.json"):
        assert json.loads(files[name])["codec_name"] == "user/voice-codec"
    assert "user/voice-codec is not on the Hub yet" in pushed["early voice"].err
    assert "not on the Hub yet" not in pushed["voice"].err
    assert "a repository of its own" in pushed["unnamed"].out
    assert "--codec user/CODEC" in pushed["unnamed"].out
    assert "so that a stranger does not find it" in pushed["check voice"].out + pushed["unnamed"].err


def test_who_may_not_is_told_so_and_nothing_is_created(pushed, hub):
    assert "user/theirs" not in hub.repositories
    assert (pushed["reader"].code, pushed["nobody"].code) == (2, 2)
    assert "your token may not write to user/theirs" in pushed["reader"].err
    assert "hf auth login" in pushed["nobody"].err
    assert pushed["public"].code == 2
    assert "user/tiny exists and is public" in pushed["public"].err


def test_a_pushed_repository_is_without_fault(pushed, hub):
    report = json.loads(pushed["check"].out)
    assert report["findings"] == []
    files = hub.files("user/codec")
    assert (report["repository"], report["num_files"]) == ("user/codec", len(files))
    assert report["num_bytes"] == sum(map(len, files.values()))
    assert pushed["check hidden"].code == 2
    assert "none that you may read" in pushed["check hidden"].err
    assert pushed["check revision"].code == 0
    assert pushed["check nowhere"].code == 2


def test_others_load_what_was_pushed_online_and_from_the_cache(pushed, hub, models, tmp_path):
    speech = torch.randn(5000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) * 0.1
    save_file({"speech": speech}, tmp_path / "speech.safetensors")
    online = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_test"}
    run_without_this_package(STRANGER, tmp_path, "first.safetensors", **online, HF_HUB_OFFLINE="0")
    before = len(hub.requests)
    run_without_this_package(STRANGER, tmp_path, "offline.safetensors", **online, HF_HUB_OFFLINE="1")
    assert len(hub.requests) == before
    found, again = load_file(tmp_path / "first.safetensors"), load_file(tmp_path / "offline.safetensors")
    assert found.keys() == again.keys()
    assert all(torch.equal(found[name], again[name]) for name in found)
    for name, model in (("released", "rvq-codec-16khz-4kbps"), ("main", models / "tiny"), ("second", models / "tiny")):
        codec, extractor = load(model)
        with torch.no_grad():
            inputs = extractor(speech.numpy(), sampling_rate=16000, return_tensors="pt")
            expected = codec.encode(**inputs).audio_codes
        assert expected.shape == found[name].shape
        assert (expected == found[name]).float().mean() > 0.99, name  # threads change the order of sums
    vocoder = UnitVocoderModel.from_pretrained(models / "vocoder").eval()
    with torch.no_grad():
        spoken = vocoder.decode(torch.arange(8)[None, None] % 4, num_samples=2560).audio_values
    assert torch.allclose(spoken, found["spoken"], atol=1e-5)
    assert found["said"].shape[-1] > 0


def test_a_hub_that_cannot_be_reached_is_told_in_a_sentence(tiny_checkpoint, tmp_path):
    with socket.socket() as closed, FakeHub() as hub:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        words = ["push", tiny_checkpoint, "user/codec", "--no-samples", "--licence", "mit"]
        (ran,) = run_online(hub, tmp_path, [words], HF_ENDPOINT=nowhere)
    assert ran.code == 2
    assert "the Hub cannot be reached" in ran.err
    assert "Traceback" not in ran.err
