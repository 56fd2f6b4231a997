# SPDX-License-Identifier: Apache-2.0
"""Two codecs and two unit models of a kind, and recordings that share their names."""

import numpy as np
import pytest
import soundfile

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.cli import main


@pytest.fixture(scope="session")
def unit_checkpoints(tmp_path_factory):
    """Folders of two models of 8 units a frame of 20 ms, with other centroids."""
    import torch

    from speech_tokenizers import KMeansUnitsConfig, KMeansUnitsFeatureExtractor, KMeansUnitsModel

    encoder_config = tiny_hubert(num_hidden_layers=1, intermediate_size=16, conv_dim=(8,) * 7)
    folders = []
    for seed in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = KMeansUnitsConfig(encoder_config=encoder_config, layers=[1], codebook_size=8)
            model = KMeansUnitsModel(config).eval()
            frames = model.features(torch.randn(1, 1, 16000))[0][0, 0]
            model.set_centroids(frames[:: len(frames) // 8][:8][None])
        folders.append(tmp_path_factory.mktemp("units") / f"units-{seed}")
        model.save_pretrained(folders[-1])
        KMeansUnitsFeatureExtractor().save_pretrained(folders[-1])
    return folders


@pytest.fixture
def with_other_part(tmp_path):
    """Function: copy a checkpoint's folder with a part trained further, such as `"encoder"`; returns the copy."""

    def copy(checkpoint, part):
        from speech_tokenizers import load

        model, feature_extractor = load(checkpoint)
        for name, parameter in model.named_parameters():
            if name.startswith(f"{part}."):
                parameter.data.mul_(1.5)
        folder = tmp_path / f"other-{part}"
        model.save_pretrained(folder)
        feature_extractor.save_pretrained(folder)
        return folder

    return copy


@pytest.fixture
def speech(tmp_path):
    """Function: write a folder of three recordings, `a.wav`, `deep/b.wav` and `deep/c.wav`, drawn by a seed."""

    def write(name="speech", seed=0):
        folder = tmp_path / name
        for number, path in enumerate((folder / "a.wav", folder / "deep" / "b.wav", folder / "deep" / "c.wav")):
            path.parent.mkdir(parents=True, exist_ok=True)
            generator = np.random.default_rng([seed, number])
            soundfile.write(path, generator.normal(0, 0.1, 4000 + 800 * number), 16000)
        return folder

    return write


@pytest.fixture
def run(capsys):
    """Function: run the command line; returns its exit code and the lines of standard error."""

    def call(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, capsys.readouterr().err.splitlines()

    return call
