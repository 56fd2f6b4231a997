# SPDX-License-Identifier: Apache-2.0
"""Training of speech language models: what is learnt, mixed, measured and said, and that a kill changes nothing."""

import importlib.util
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from helpers.processes import run_ranks
from helpers.speaking_frames import EVERY_KIND, HEADS, fields_of, layout_of, speaking, steady_noise, wake
from helpers.tiny_speaking_lm import LEXICON, tiny_codec, tiny_lm, tiny_processor, tiny_row, tiny_speech_lm
from speech_tokenizers.cli import main
from speech_tokenizers.coding.loading import load
from speech_tokenizers.coding.speech_lm_loading import load_speech_lm
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.pronunciations import PronunciationLexicon
from speech_tokenizers.modeling.speech_lm_text import build_speech_vocabulary
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor
from speech_tokenizers.processing.speech_row_format import RowsFacts
from speech_tokenizers.processing.speech_rows import SpeechRowsWriter, read_speech_rows
from speech_tokenizers.processing.unit_bpe import train_unit_bpe
from speech_tokenizers.training.common.recipe_files import load_recipe
from speech_tokenizers.training.common.reporting import read_log
from speech_tokenizers.training.language_models import speech_lm
from speech_tokenizers.training.language_models.speech_lm import SpeechLMArguments, train_speech_lm
from speech_tokenizers.training.language_models.speech_lm_adapters import load_adapter
from speech_tokenizers.training.language_models.speech_lm_collator import SpeechLMCollator
from speech_tokenizers.training.language_models.speech_lm_items import (
    SpeechLMItems,
    frames_per_character,
    pad_items,
    piece_frames,
)


TEXTS = ["hi tim", "die", "lime hi", "tim", "hi lime die", "lime"]
LATENTS = {"head": "mse", "condition_dropout": 0.2, "input_noise_std": 0.05}
PROGRAM = Path(__file__).with_name("train_speech_lm_recipe.py")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder with a codec, six rows of its codes, and a lexicon."""
    folder = tmp_path_factory.mktemp("corpus")
    codec = tiny_codec()
    codec.save_pretrained(folder / "codec")
    RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate).save_pretrained(folder / "codec")
    rows = [
        tiny_row(text, number, num_frames=3 * len(text.split()) + 6 + number, codec=codec)
        for number, text in enumerate(TEXTS)
    ]
    facts = RowsFacts.of_codec(codec, str(folder / "codec"))
    own = ("codec", "codec_fingerprint", "encoder_fingerprint", "num_quantizers", "num_frames")
    plain = [
        {**{name: value for name, value in row.items() if name not in own}, "audio_codes": codes_of(row)}
        for row in rows
    ]
    with SpeechRowsWriter(folder / "rows", facts) as writer:
        writer.write(0, plain, [row["id"] for row in rows])
        writer.finish(1)
    PronunciationLexicon(LEXICON).save(folder / "lexicon.txt.gz")
    return folder


def codes_of(row):
    return np.array(row["audio_codes"]).reshape(row["num_quantizers"], -1)


@pytest.fixture
def recipe(tmp_path, corpus):
    """A recipe of a tiny model as a YAML file, with changes."""

    def write(name="run", **changes) -> Path:
        contents = {
            "trainer": "speech_lm",
            "output_dir": str(tmp_path / name),
            "codec": str(corpus / "codec"),
            "data": {"train": str(corpus / "rows"), "pronunciations": str(corpus / "lexicon.txt.gz")},
            "text_alignment": "phone",
            "language_model": {
                "model_type": "llama",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 48,
                "attention_dropout": 0.1,
                "max_position_embeddings": 256,
            },
            "batch_positions": 160,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "logging_steps": 1,
            "save_steps": 2,
            **changes,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(contents))
        return path

    return write


@pytest.mark.parametrize("unit_coding", ["units", "runs", "bpe"])
def test_a_recipe_learns_units_as_runs(recipe, corpus, tmp_path, unit_coding):
    rows = read_speech_rows(str(corpus / "rows"))
    merges = train_unit_bpe([codes_of(row)[0] for row in rows], 16, 22)
    merges.save_pretrained(tmp_path / "merges")
    changes = {"unit_bpe": str(tmp_path / "merges")} if unit_coding == "bpe" else {}
    path = recipe(unit_coding=unit_coding, num_codebooks=1, max_steps=2, **changes)
    results = train_speech_lm(arguments(path))
    model, processor = load_speech_lm(str(tmp_path / "run/final"))
    assert model.config.unit_coding == unit_coding
    assert bool(model.config.unit_merges) == (unit_coding == "bpe")
    assert bool(model.config.unit_durations) == (unit_coding != "runs")
    assert model.config.piece_frames == piece_frames(rows, processor)
    lengths = [len(processor.row_inputs(row)["input_ids"]) for row in rows]
    assert results["positions_of_training_rows"] == sum(lengths)
    said = model.generate_speech("hi tim", processor, generators=[torch.Generator().manual_seed(0)])
    assert said.ended.tolist() == [True]
    assert float(said.piece_times[0][-1, 1]) * 50 == pytest.approx(said.audio_codes.shape[2])
    if unit_coding == "bpe":
        train_unit_bpe([codes_of(rows[0])[0]], 16, 19).save_pretrained(tmp_path / "merges")
        with pytest.raises(ValueError, match="unit_bpe"):
            train_speech_lm(arguments(path))


def arguments(path, *overrides) -> SpeechLMArguments:
    return load_recipe(str(path), list(overrides), SpeechLMArguments)


def train_until_killed(monkeypatch, args):
    """Train, and die as step 3 begins."""

    class Killed(Exception):
        pass

    compute_loss = speech_lm.SpeechLMTrainer.compute_loss

    def dies(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise Killed
        return compute_loss(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(speech_lm.SpeechLMTrainer, "compute_loss", dies)
        with pytest.raises(Killed):
            train_speech_lm(args)


def same_rows(corpus):
    """Folder of the rows again, to see what was learnt by heart; held-out rows are not those of `data.train`."""
    return shutil.copytree(corpus / "rows", corpus / "same-rows", dirs_exist_ok=True)


def losses_of(folder):
    timed = ("positions_per_second", "train_runtime")
    return [
        {name: value for name, value in entry.items() if name not in timed}
        for entry in read_log(folder / "training_log.jsonl")
    ]


@pytest.mark.parametrize("layout", ["flat", "delay", "continuous"])
def test_a_trained_voice_is_loaded_by_its_folder_and_speaks(recipe, corpus, tmp_path, capsys, layout):
    latents = LATENTS if layout == "continuous" else {}
    path = recipe(max_steps=60, learning_rate=2e-2, layout=layout, latents=latents)
    results = train_speech_lm(arguments(path, f"data.eval={same_rows(corpus)}"))
    assert results["held_out_rows"] == len(TEXTS)
    if layout == "continuous":
        assert results["held_out_audio_loss"] < 0.95  # of a variance of 1
        assert results["held_out_stop_loss"] < 0.3
        assert 1 < results["effective_rank_of_latents"] < 8
    else:
        assert results["held_out_audio_loss"] < 0.5 * np.log(16)
        mean = np.mean(results["held_out_codebook_losses"])
        assert results["held_out_audio_loss"] == pytest.approx(mean, rel=1e-5)
    log = read_log(tmp_path / "run" / "training_log.jsonl")
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    model, processor = load_speech_lm(tmp_path / "run" / "final")
    assert model.config.piece_frames == piece_frames(read_speech_rows(corpus / "rows"), processor)
    assert model.config.frames_per_character[1] >= model.config.frames_per_character[0] > 1
    capsys.readouterr()
    output = tmp_path / "said.wav"
    command = ["say", "Hi, Tim.", "-o", str(output), "--model", str(tmp_path / "run" / "final"), "--times"]
    assert main(command) == 0
    assert output.is_file()
    words = json.loads(capsys.readouterr().out)["words"]
    assert [word["word"].strip(",.").lower() for word in words] == ["hi", "tim"]
    assert main(["check-labels", str(tmp_path / "run" / "final"), str(corpus / "rows")]) == 0
    assert "FAULT" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_resuming_equals_going_through(recipe, corpus, tmp_path, monkeypatch, kind):
    # With dropout, whose random numbers are part of what goes on, and with measurements at step 3 alone.
    changes = [f"data.eval={same_rows(corpus)}", "eval_steps=3"]
    latents = LATENTS | fields_of(kind) if kind in HEADS else {}
    frames = {"layout": layout_of(kind), "latents": latents}
    train_speech_lm(arguments(recipe("whole", **frames), *changes))

    train_until_killed(monkeypatch, arguments(recipe("parts", **frames), *changes))
    torch.rand(7)
    train_speech_lm(arguments(recipe("parts", **frames), *changes))
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")
    assert ["held_out_audio_loss" in entry for entry in losses_of(tmp_path / "whole")] == [False, False, True, False]
    whole, parts = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


@pytest.mark.parametrize("kind", [*EVERY_KIND, "melle"])
def test_accumulation_equals_one_batch(corpus, kind, monkeypatch):
    # Batches of different lengths, so of different numbers of targets. The noise of a frame is the same in both.
    model, processor = speaking(kind, "phone", num_quantizers=2)
    wake(model)
    rows = read_speech_rows(corpus / "rows", codec=model.codec)
    items = SpeechLMItems(rows, processor)
    collate = pad_items(processor)
    whole = {name: value for name, value in collate([items[n] for n in range(6)]).items() if name != "tasks"}
    number = int((whole["labels"][..., 1:] != -100).sum())
    steady_noise(monkeypatch)
    model.train()
    expected_loss = model(**whole).loss
    expected_loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    loss = 0.0
    for part in ([0], [1, 2], [3, 4, 5]):
        batch = {name: value for name, value in collate([items[n] for n in part]).items() if name != "tasks"}
        part_loss = model(**batch, num_items_in_batch=number).loss
        part_loss.backward()
        loss += float(part_loss.detach())
    assert loss == pytest.approx(float(expected_loss.detach()), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "delay", "mse", "gaussian"])  # other heads draw noise in each process
def test_two_processes_equal_one(recipe, tmp_path, kind):
    changes = ["language_model.attention_dropout=0.0", "batch_positions=100", "max_steps=3"]
    changes += [f"layout={layout_of(kind)}", *([f"latents={{head: {kind}}}"] if kind in HEADS else [])]
    train_speech_lm(arguments(recipe("alone"), *changes, "gradient_accumulation_steps=2"))
    run_ranks(PROGRAM, recipe("two"), *changes)
    alone, two = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("alone", "two"))
    for name, value in alone.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)


def test_hidden_text_is_neither_seen_nor_learnt(corpus):
    codec = tiny_codec()
    rows = read_speech_rows(corpus / "rows", codec=codec)
    processor = tiny_processor(codec, "phone", layout="continuous")
    items = SpeechLMItems(rows, processor, condition_dropout=0.5)
    drawn = [items[index] for index in range(6 * 40)]
    hidden = [item for item in drawn if "attention_mask" in item]
    assert 0.4 < len(hidden) / len(drawn) < 0.6
    assert [("attention_mask" in items[index]) for index in range(240)] == ["attention_mask" in item for item in drawn]
    ids = processor.speech_ids
    for item in hidden[:6]:
        is_seen = item["attention_mask"].bool()
        assert set(item["input_ids"][is_seen].tolist()) == {ids.audio_start, ids.audio_end, processor.audio_token_id}
        assert set(item["input_ids"][~is_seen].tolist()) == {ids.audio_start}
        assert (item["labels"][0] == -100).all()
        assert (item["labels"][1] == 0).sum() == ids.is_unit(item["input_ids"]).sum()


@pytest.mark.parametrize("layout", ["flat", "delay", "continuous"])
def test_tasks_are_mixed_as_asked_and_told_apart(recipe, corpus, tmp_path, layout):
    latents = LATENTS if layout == "continuous" else {}
    path = recipe(max_steps=6, tasks={"tts": 1.0, "asr": 1.0}, text_alignment="none", layout=layout, latents=latents)
    train_speech_lm(arguments(path))
    log = read_log(tmp_path / "run" / "training_log.jsonl")
    for name in ("tts_loss", "asr_loss"):
        assert any(entry[name] > 0 for entry in log)
    codec = tiny_codec()
    rows, tasks = read_speech_rows(corpus / "rows", codec=codec), {"tts": 3.0, "asr": 1.0}
    processor = tiny_processor(codec, layout=layout)
    items = SpeechLMItems(rows, processor, tasks)
    drawn = np.array([items.task_of(index) for index in range(6 * 200)])
    assert 0.70 < (drawn == 0).mean() < 0.80
    assert (drawn.reshape(200, 6) != drawn[:6]).any()
    again = SpeechLMItems(rows, processor, tasks)
    assert drawn.tolist() == [again.task_of(index) for index in range(6 * 200)]
    for index in range(12):  # an item is that of its task
        expected = processor.row_inputs(rows[index % 6], list(tasks)[drawn[index]])
        assert all(torch.equal(items[index][name], part) for name, part in expected.items())


def test_plain_trainer_learns_with_the_collator(corpus, tmp_path):
    model, processor = tiny_speech_lm(text_alignment="phone")
    rows = read_speech_rows(corpus / "rows", codec=model.codec)
    args = TrainingArguments(
        str(tmp_path), max_steps=80, learning_rate=1e-2, per_device_train_batch_size=6, logging_steps=1,
        remove_unused_columns=False, report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=rows, data_collator=SpeechLMCollator(processor))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize("kind", [*EVERY_KIND, "melle"])
def test_plain_trainer_counts_the_targets_of_accumulated_batches(corpus, tmp_path, kind, monkeypatch):
    losses, norms = [], []
    for size, steps in ((6, 1), (1, 6)):
        model, processor = speaking(kind, "phone", num_quantizers=2)
        wake(model)
        rows = read_speech_rows(corpus / "rows", codec=model.codec)
        args = TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=steps,
            logging_steps=1, remove_unused_columns=False, report_to="none", use_cpu=True, disable_tqdm=True,
            logging_nan_inf_filter=False,
        )  # fmt: skip
        trainer = Trainer(model, args, train_dataset=rows, data_collator=SpeechLMCollator(processor))
        with monkeypatch.context() as patched:
            steady_noise(patched)
            trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {}}, "`tasks` must name at least one"),
        ({"tasks": {"sing": 1.0}}, "sing"),
        ({"batch_positions": 20}, "A micro-batch of 20 positions must hold the longest row"),
        ({"batch_seconds": 0.2}, "must hold the longest row"),
        ({"data": {"train": "ROWS", "max_length": 20}, "text_alignment": "none"}, "'row-0' takes"),
        ({"data": {"train": "ROWS"}}, "needs `data.pronunciations`"),
        ({"num_codebooks": 3}, "num_quantizers"),
        ({"latents": {"head": "energy"}}, "`latents` belongs to `layout: continuous`, but the layout is 'flat'"),
        ({"delays": [0, 1]}, "`delays` belong to `layout='delay'`"),
    ],
    ids=["no task", "unknown task", "batch", "seconds", "long row", "no lexicon", "codebooks", "latents", "delays"],
)
def test_wrong_recipes_are_refused(recipe, corpus, capsys, changes, message):
    if changes.get("data", {}).get("train") == "ROWS":
        changes = {**changes, "data": {**changes["data"], "train": str(corpus / "rows")}}
    assert main(["train", str(recipe(**changes))]) == 2
    assert message in capsys.readouterr().err


def test_a_voice_learns_on_with_its_own_processor(recipe, corpus, tmp_path):
    """It begins in float32 where it ended, keeps its lexicon, and still allows what the new rows lack."""
    train_speech_lm(load_recipe(str(recipe("first")), [], SpeechLMArguments))
    first, _ = load_speech_lm(tmp_path / "first" / "final")
    first.config.piece_frames[0] = [1, 60]
    first.half().save_pretrained(tmp_path / "voice")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "pronunciations.txt.gz"):
        shutil.copy(tmp_path / "first" / "final" / name, tmp_path / "voice" / name)
    path = recipe("second", language_model=str(tmp_path / "voice"), data={"train": str(corpus / "rows")}, max_steps=1)
    args = load_recipe(str(path), [], SpeechLMArguments)
    codec, extractor = load(args.codec)
    rows = read_speech_rows(args.data.train, codec=codec)
    model, processor = speech_lm.build_speech_lm(args, codec, extractor, rows)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32 or not value.is_floating_point(), name
        assert torch.equal(value, first.state_dict()[name].to(value.dtype)), name
    assert processor.speech_ids == first.config.speech_ids
    train_speech_lm(args)
    second, processor = load_speech_lm(tmp_path / "second" / "final")
    assert second.config.piece_frames[0] == [1, 60]
    assert second.generate_speech("hi tim", processor, temperature=0.0).word_times


@pytest.mark.parametrize(("changes", "context"), [({}, 0), ({"layout": "delay"}, 2), ({"piece_context": 1}, 1)])
def test_a_recipe_says_how_much_of_the_text_is_told(recipe, corpus, changes, context):
    args = load_recipe(str(recipe(**changes)), [], SpeechLMArguments)
    codec, extractor = load(args.codec)
    rows = read_speech_rows(args.data.train, codec=codec)
    assert speech_lm.build_speech_lm(args, codec, extractor, rows)[0].config.piece_context == context


@pytest.mark.parametrize("changes", [{"text_alignment": "none"}, {"num_codebooks": 1}, {"piece_context": 2}])
def test_a_voice_that_learns_on_keeps_its_form(recipe, tmp_path, capsys, changes):
    train_speech_lm(load_recipe(str(recipe("first", max_steps=1)), [], SpeechLMArguments))
    capsys.readouterr()
    name = next(iter(changes))
    assert main(["train", str(recipe("second", language_model=str(tmp_path / "first" / "final"), **changes))]) == 2
    assert f"asks for `{name}: " in capsys.readouterr().err


def test_published_weights_of_half_precision_learn_in_float32(recipe, tmp_path):
    """Steps of an optimiser vanish in float16, and its moments overflow."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = AutoConfig.for_model("llama", vocab_size=len(build_speech_vocabulary()), **sizes)
    AutoModelForCausalLM.from_config(config).half().save_pretrained(tmp_path / "half")
    build_speech_vocabulary().save_pretrained(tmp_path / "half")
    args = load_recipe(str(recipe(language_model=str(tmp_path / "half"))), [], SpeechLMArguments)
    codec, extractor = load(args.codec)
    rows = read_speech_rows(args.data.train, codec=codec)
    model, _ = speech_lm.build_speech_lm(args, codec, extractor, rows)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    processor = tiny_processor(codec)
    by_name = SpeechLMForConditionalGeneration.from_causal_lm(str(tmp_path / "half"), codec, processor)
    assert {parameter.dtype for parameter in by_name.parameters()} == {torch.float32}


def test_a_voice_finds_its_codec_from_any_folder(recipe, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(corpus)
    train_speech_lm(load_recipe(str(recipe(codec="codec", max_steps=1)), [], SpeechLMArguments))
    monkeypatch.chdir(tmp_path)
    model, _ = load_speech_lm(tmp_path / "run" / "final")
    assert model.codec.fingerprint() == tiny_codec().fingerprint()


def test_a_word_may_last_as_long_as_one_did():
    """The row as a whole has 2.5 frames a character; the word `a` alone has 20."""
    words = [{"word": "a", "start": 0.0, "end": 0.8}, {"word": "hi", "start": 0.8, "end": 1.2}]
    row = {"text": "a hi and more than these", "num_frames": 60, "words": words}
    rows = datasets.Dataset.from_list([row] * 20)
    by_text, by_word = (tiny_processor(tiny_codec(), text_alignment=name) for name in ("none", "word"))
    assert frames_per_character(rows, by_text)[1] == pytest.approx(60 / 25)
    assert frames_per_character(rows, by_word) == pytest.approx([60 / 25, 20.0])


def test_rows_without_times_are_told_where_times_come_from():
    rows = [{**tiny_row("hi", 0), "phones": None, "words": None}]
    _, processor = tiny_speech_lm(text_alignment="phone")
    with pytest.raises(ValueError, match="tts needs `phones`.*--times"):
        SpeechLMItems(rows, processor)


def test_rows_of_another_codec_are_refused(recipe, corpus, tmp_path, capsys):
    other = tiny_codec()
    with torch.no_grad():
        for name, buffer in other.named_buffers():
            if "codebook" in name and buffer.is_floating_point():
                buffer.add_(torch.randn_like(buffer))
    other.save_pretrained(tmp_path / "other")
    RVQCodecFeatureExtractor(sampling_rate=other.sampling_rate).save_pretrained(tmp_path / "other")
    assert main(["train", str(recipe(codec=str(tmp_path / "other")))]) == 2
    assert "encode-rows" in capsys.readouterr().err


def test_the_recipe_of_the_package_is_a_small_model():
    args = load_recipe("speech_lm_tts_16khz", ["data.train=x", "data.pronunciations=x.txt.gz"], SpeechLMArguments)
    assert args.text_alignment == "phone"
    assert args.language_model["num_hidden_layers"] == 3


def published_lm(folder, attention_dropout=0.1):
    """Folder of a language model with its own tokenizer, as a hub has it."""
    lm = tiny_lm(vocab_size=len(build_speech_vocabulary()), attention_dropout=attention_dropout)
    lm.save_pretrained(folder)
    build_speech_vocabulary().save_pretrained(folder)
    return lm


LORA = {"lora": {"r": 4, "alpha": 8, "dropout": 0.1}, "text_alignment": "none"}


def test_a_published_model_learns_by_lora_alone(recipe, corpus, tmp_path, capsys):
    """What is no adapter and no new row stays as it was; `final` is an ordinary voice and equals the adapter."""
    before = published_lm(tmp_path / "lm")
    path = recipe(language_model=str(tmp_path / "lm"), data={"train": str(corpus / "rows")}, max_steps=30, **LORA)
    results = train_speech_lm(arguments(path, f"data.eval={same_rows(corpus)}"))
    log = read_log(tmp_path / "run" / "training_log.jsonl")
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    assert 0 < results["trained_parameters"] < 0.3 * results["parameters"]
    final, processor = load_speech_lm(tmp_path / "run" / "final")
    codec, _ = load(str(corpus / "codec"))
    base = SpeechLMForConditionalGeneration.from_causal_lm(str(tmp_path / "lm"), codec, processor)
    adapted = load_adapter(base, tmp_path / "run" / "adapter")
    batch = SpeechLMCollator(processor)(list(read_speech_rows(corpus / "rows", codec=codec)))
    with torch.no_grad():
        torch.testing.assert_close(final(**batch).logits, adapted(**batch).logits, atol=1e-5, rtol=1e-5)
    held_out = float(adapted(**batch).audio_loss.detach())
    assert results["held_out_audio_loss"] == pytest.approx(held_out, rel=1e-3)
    num_words = len(build_speech_vocabulary())
    table = final.get_input_embeddings().weight
    assert torch.equal(table[:num_words], before.get_input_embeddings().weight)
    norms = {name: value for name, value in final.language_model.named_parameters() if "norm" in name}
    assert norms
    assert all(torch.equal(value, before.get_parameter(name)) for name, value in norms.items())
    capsys.readouterr()
    command = ["say", "Hi, Tim.", "-o", str(tmp_path / "said.wav"), "--model", str(tmp_path / "run" / "final")]
    assert main(command) == 0
    assert (tmp_path / "said.wav").is_file()
    files = {file.name for file in (tmp_path / "run" / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json"} <= files


def test_resuming_an_adapter_equals_going_through(recipe, corpus, tmp_path, monkeypatch):
    published_lm(tmp_path / "lm")
    changes = {"language_model": str(tmp_path / "lm"), "data": {"train": str(corpus / "rows")}, **LORA}
    train_speech_lm(arguments(recipe("whole", **changes)))

    train_until_killed(monkeypatch, arguments(recipe("parts", **changes)))
    torch.rand(7)
    (checkpoint,) = (tmp_path / "parts" / "checkpoints").glob("checkpoint-*")
    assert not (checkpoint / "model.safetensors").exists()
    train_speech_lm(arguments(recipe("parts", **changes)))
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")
    for name in ("final/model.safetensors", "adapter/adapter_model.safetensors"):
        whole, parts = (load_file(tmp_path / folder / name) for folder in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(value, parts[key]) for key, value in whole.items())


@pytest.mark.slow
def test_two_processes_train_an_adapter_as_one_does(recipe, corpus, tmp_path):
    published_lm(tmp_path / "lm", attention_dropout=0.0)
    lora = {**LORA, "lora": {"r": 4}}
    data = {"train": str(corpus / "rows")}
    settings = {"language_model": str(tmp_path / "lm"), "data": data, "batch_positions": 100, "max_steps": 3, **lora}
    train_speech_lm(arguments(recipe("alone", **settings), "gradient_accumulation_steps=2"))
    run_ranks(PROGRAM, recipe("two", **settings))
    alone, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("alone", "two"))
    for name, value in alone.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)


def test_a_voice_learns_on_by_lora(recipe, corpus, tmp_path):
    train_speech_lm(arguments(recipe("first", max_steps=1)))
    changes = {**LORA, "text_alignment": "phone", "data": {"train": str(corpus / "rows")}}
    train_speech_lm(arguments(recipe("second", language_model=str(tmp_path / "first" / "final"), **changes)))
    second, processor = load_speech_lm(tmp_path / "second" / "final")
    assert second.generate_speech("hi tim", processor, temperature=0.0).word_times
    base, _ = load_speech_lm(tmp_path / "first" / "final")
    load_adapter(base, tmp_path / "second" / "adapter")


def test_without_peft_a_recipe_with_lora_says_what_to_install(recipe, tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find_spec(name))
    assert main(["train", str(recipe(**LORA))]) == 2
    assert "pip install 'speech-tokenizers[speech-lm]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lora", "message"),
    [({"r": 0}, "`lora.r` must be positive"), ({"dropout": 1.0}, "`lora.dropout`"), ({"rank": 4}, "`lora.rank`")],
    ids=["r", "dropout", "name"],
)
def test_wrong_settings_of_lora_are_refused(recipe, capsys, lora, message):
    assert main(["train", str(recipe(lora=lora))]) == 2
    assert message in capsys.readouterr().err


def test_the_recipe_with_lora_names_a_published_model():
    args = load_recipe("speech_lm_lora", ["data.train=x"], SpeechLMArguments)
    assert args.language_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert args.lora is not None
    assert args.lora.r == 16
