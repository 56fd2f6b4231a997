# SPDX-License-Identifier: Apache-2.0
"""What cannot be meant is refused before a file is written, and not taken for something else."""

import numpy as np
import pytest

from speech_tokenizers import save_codes


@pytest.mark.parametrize(
    ("verb", "output", "writes"),
    [
        ("encode", "x.wav", ".safetensors"),
        ("encode", "x.npz", ".safetensors"),
        ("reconstruct", "x.mp3", ".wav, .flac, .ogg, .opus"),
        ("reconstruct", "new/x.SAFETENSORS", ".wav, .flac, .ogg, .opus"),
        ("decode", "y.aiff", ".wav, .flac, .ogg, .opus"),
    ],
)
def test_an_output_of_a_kind_that_is_not_written_is_no_folder(run, speech, tmp_path, verb, output, writes):
    metadata = {"model_name": "demo", "sampling_rate": 16000, "hop_length": 320, "codebook_size": 8}
    source = speech() / "a.wav" if verb != "decode" else tmp_path / "a.safetensors"
    if verb == "decode":
        save_codes(source, np.zeros((4, 10), dtype=int), metadata | {"num_samples": 3200})
    before = sorted(tmp_path.iterdir())
    code, errors = run(verb, source, "-o", tmp_path / output)
    assert code == 2
    assert f"{verb} cannot write; it writes {writes}. Name such a file, or a folder." in errors[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_exists_or_is_named_with_a_dot_is_a_folder(run, speech, tmp_path, tiny_checkpoint):
    (tmp_path / "x.wav").mkdir()
    for folder in ("x.wav", "v1.2"):
        code, _ = run("encode", speech() / "a.wav", "-o", tmp_path / folder, "--model", tiny_checkpoint)
        assert code == 0
        assert (tmp_path / folder / "a.safetensors").is_file()


def test_a_type_of_latents_is_refused_where_codes_are_written(run, speech, tmp_path, tiny_checkpoint):
    words = ("encode", speech(), "-o", tmp_path / "out", "--model", tiny_checkpoint, "--dtype", "float16")
    code, errors = run(*words)
    assert code == 2
    assert "--dtype float16 is for latents" in errors[-1]
    assert not (tmp_path / "out").exists()
    assert run(*words, "--latents")[0] == 0


@pytest.mark.parametrize("name", ["in/typo.wav", "x/typo.safetensors", "typo.FLAC", "far/away/typo.mp3"])
def test_the_name_of_a_file_is_not_looked_for_on_the_hub(run, monkeypatch, name):
    def fail(*_, **__):
        raise AssertionError("this is the name of a file")

    monkeypatch.setattr("speech_tokenizers.coding.loading.load", fail)
    code, errors = run("info", name)
    assert code == 2
    assert errors[-1].endswith(f"{name}: there is no such file; check the spelling.")
