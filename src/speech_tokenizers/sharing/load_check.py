# SPDX-License-Identifier: Apache-2.0
"""Whether a stranger can load a repository and use it. This runs its code, in a process of its own."""

import os
import subprocess
import sys
import tempfile
import textwrap
from typing import Any

from speech_tokenizers.sharing.code_checks import auto_map_of
from speech_tokenizers.sharing.findings import Finding, error
from speech_tokenizers.sharing.model_checks import PREPROCESSOR, PROCESSOR
from speech_tokenizers.sharing.repository_files import FolderFiles, RepositoryFiles


# Seconds that loading and a second of speech may take.
_PATIENCE = 600
_PROGRAM = """
    import sys

    source, revision, has_code, preprocessor, rate = sys.argv[1:]
    if has_code == "code":
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "speech_tokenizers":
                    raise ModuleNotFoundError(f"No module named {name!r}")

        sys.meta_path.insert(0, Refuse())
    else:
        import speech_tokenizers
    import torch
    from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor

    place = {"trust_remote_code": has_code == "code", **({"revision": revision} if revision else {})}
    model = AutoModel.from_pretrained(source, **place).eval()
    told = f"loaded as {type(model).__name__}"
    if preprocessor == "processor":
        AutoProcessor.from_pretrained(source, **place)
        told += ", with its processor"
    if preprocessor == "feature extractor":
        extractor = AutoFeatureExtractor.from_pretrained(source, **place)
        speech = 0.1 * torch.sin(torch.arange(int(rate)) * 0.05).numpy()
        inputs = extractor(speech, sampling_rate=int(rate), return_tensors="pt")
        with torch.no_grad():
            encoded = model.encode(**inputs)
            name = "audio_codes" if encoded.get("audio_codes") is not None else "latents"
            told += f"; a second gives {name} of shape {tuple(encoded[name].shape)}"
            if name.removeprefix("audio_") in getattr(model, "decodable_kinds", ()):
                decoded = model.decode(encoded[name], num_samples=len(speech)).audio_values
                assert decoded.shape[-1] == len(speech), "decoding gives another length"
                assert bool(decoded.isfinite().all()), "decoding gives what is not finite"
                told += ", and decodes to as many samples"
    print(told)
"""


def load_as_stranger(files: RepositoryFiles, config: dict[str, Any]) -> tuple[str, list[Finding]]:
    """
    Load a repository and turn a second of sound into tokens and back. Its code runs, if it has any: in a process of
    its own, without this package, with what that may do on this machine.

    Args:
        files ([`RepositoryFiles`]): The repository.
        config (`dict`): Fields of its configuration.

    Returns:
        `tuple`: A sentence on what went well, and what did not.
    """
    source = os.path.abspath(files.folder) if isinstance(files, FolderFiles) else str(files.repo_id)
    preprocessor = "none"
    if PREPROCESSOR in files.entries and isinstance(config.get("sampling_rate"), int):
        preprocessor = "feature extractor"
    elif PROCESSOR in files.entries:
        preprocessor = "processor"
    words = [source, files.revision or "", "code" if any(auto_map_of(config)) else "plain", preprocessor]
    words.append(str(config.get("sampling_rate", 0)))
    with tempfile.TemporaryDirectory() as folder:
        try:
            process = subprocess.run(
                [sys.executable, "-c", textwrap.dedent(_PROGRAM), *words],
                # The copies of its code that transformers runs are gone afterwards.
                env={**os.environ, "HF_MODULES_CACHE": folder, "TRANSFORMERS_VERBOSITY": "error"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
            )
        except subprocess.TimeoutExpired:
            what = f"does not load and code a second of sound in {_PATIENCE // 60} minutes"
            return "", [error(".", what, "look at what it does with `AutoModel.from_pretrained`")]
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return "", [error(".", f"cannot be loaded or used by a stranger ({reason})", "mend what this error tells")]
    return process.stdout.strip().splitlines()[-1], []


__all__ = ["load_as_stranger"]
