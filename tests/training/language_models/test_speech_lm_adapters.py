# SPDX-License-Identifier: Apache-2.0
"""Adapters of speech language models: what learns, that merged equals adapter, and what they are not loaded on."""

import copy
import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

from helpers.speaking_frames import KINDS as FRAME_KINDS
from helpers.speaking_frames import layout_of, speaking
from helpers.tiny_speaking_lm import ARCHITECTURES, tiny_codec, tiny_lm, tiny_processor, tiny_row, tiny_speech_lm
from speech_tokenizers.coding.speech_lm_loading import load_speech_lm
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor
from speech_tokenizers.training.language_models.speech_lm_adapters import (
    add_adapter,
    load_adapter,
    lora_config,
    merge_adapter,
    save_adapter,
)
from speech_tokenizers.training.language_models.speech_lm_collator import SpeechLMCollator


KINDS = [(kind, tied) for kind in ARCHITECTURES for tied in (True, False)]
TEXTS = ("hi tim", "die", "lime hi")
# Linear layers of each block: four of attention (one in GPT-2, which has two), three of a gated MLP or two.
LINEAR = {"llama": 7, "qwen2": 7, "qwen3": 7, "gpt2": 4, "gemma3_text": 7, "opt": 6}


def make_batch(processor):
    return SpeechLMCollator(processor)([tiny_row(text, number) for number, text in enumerate(TEXTS)])


def train(model, processor, steps=4):
    batch = make_batch(processor)
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def adapted(kind="llama", tied=True, **kwargs):
    """A model whose adapter has learnt four steps, and its processor."""
    model, processor = tiny_speech_lm(kind, "phone", tied=tied)
    torch.manual_seed(0)
    return train(add_adapter(model, r=4, **kwargs), processor), processor


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of an adapter on a tiny Llama."""
    model, processor = adapted()
    return save_adapter(model, tmp_path_factory.mktemp("saved") / "adapter", processor)


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(saved, tmp_path / "adapter")


@torch.no_grad()
def logits_of(model, processor):
    return model(**make_batch(processor)).logits


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_both_tables_learn_and_all_else_of_them_stays(kind, tied):
    before, processor = tiny_speech_lm(kind, "phone", tied=tied)
    model = merge_adapter(adapted(kind, tied)[0])
    ids = model.config.speech_ids
    first = min(ids.audio_start, ids.piece_offset)
    new = torch.zeros(len(model.get_input_embeddings().weight), dtype=torch.bool)
    new[first : ids.audio_stop] = True  # the rows of this model are contiguous
    for table in ("get_input_embeddings", "get_output_embeddings"):
        old, now = getattr(before, table)().weight, getattr(model, table)().weight
        assert torch.equal(now[~new], old[~new])
        assert (now[new] != old[new]).any(dim=-1).float().mean() > 0.9
    is_same = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert is_same == tied


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", FRAME_KINDS)
def test_both_tables_learn_beside_frames(kind, tied):
    """The rows of marks and pieces; what reads and writes frames learns whole, in `test_modules_of_audio_...`."""
    model, processor = speaking(kind, "phone", tied=tied, num_quantizers=2)
    before = copy.deepcopy(model)
    torch.manual_seed(0)
    merged = merge_adapter(train(add_adapter(model, r=4), processor))
    ids = merged.config.speech_ids
    first = min(ids.audio_start, ids.piece_offset)
    said = make_batch(processor)["labels"][:, 0].unique()
    pieces = said[(said >= ids.piece_offset) & (said < ids.piece_offset + ids.num_pieces)]
    assert len(pieces) > 3
    for table in ("get_input_embeddings", "get_output_embeddings"):
        old, now = getattr(before, table)().weight, getattr(merged, table)().weight
        assert torch.equal(now[:first], old[:first])
        assert (now[pieces] != old[pieces]).any(dim=-1).all()
        assert (now[ids.audio_start] != old[ids.audio_start]).any()
    is_same = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert is_same == tied


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_attention_and_mlp_of_every_block_get_an_adapter_and_nothing_else(kind, tied):
    model, _ = tiny_speech_lm(kind, tied=tied)
    learner = add_adapter(model, r=2)
    names = [name for name, module in learner.named_modules() if isinstance(module, LoraLayer)]
    assert len(names) == 2 * LINEAR[kind]
    trained = [name for name, parameter in learner.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(names) + (1 if tied else 2)
    assert sum("trainable_tokens" in name for name in trained) == (1 if tied else 2)


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_merged_equals_adapter_and_is_an_ordinary_model(kind, tied, tmp_path):
    model, processor = adapted(kind, tied)
    base, _ = tiny_speech_lm(kind, "phone", tied=tied)
    expected = logits_of(model, processor)
    assert (expected - logits_of(base, processor)).abs().max() > 1e-2
    save_adapter(model, tmp_path / "adapter")
    merged = merge_adapter(model)
    torch.testing.assert_close(logits_of(merged, processor), expected, atol=1e-5, rtol=1e-5)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    merged.save_pretrained(tmp_path / "merged")
    loaded = SpeechLMForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits_of(loaded, processor), logits_of(merged, processor))
    torch.testing.assert_close(logits_of(load_adapter(base, tmp_path / "adapter"), processor), expected)


def test_an_adapter_learns_on(saved):
    model, processor = tiny_speech_lm("llama", "phone")
    learner = load_adapter(model, saved, is_trainable=True)
    before = float(learner(**make_batch(processor)).loss)
    assert float(train(learner, processor)(**make_batch(processor)).loss) < before
    still, _ = tiny_speech_lm("llama", "phone")
    assert not any(parameter.requires_grad for parameter in load_adapter(still, saved).parameters())


def test_a_published_model_speaks_by_an_adapter_and_its_processor(saved, tmp_path):
    """The language model, the codec and the adapter's folder are all that is needed."""
    tiny_lm(vocab_size=tiny_processor(tiny_codec(), "phone").audio_offset).save_pretrained(tmp_path / "lm")
    processor = SpeechLMProcessor.from_pretrained(saved)
    base = SpeechLMForConditionalGeneration.from_causal_lm(str(tmp_path / "lm"), tiny_codec(), processor)
    model = load_adapter(base, saved)
    torch.testing.assert_close(logits_of(model, processor), logits_of(*adapted()))
    processor.attach_codec(base.codec)
    assert model.generate_speech("hi tim", processor, max_frames=20).audio_values.shape[-1] > 0


@pytest.mark.parametrize(
    ("layout", "head", "parts"),
    [
        ("delay", "mse", ["embedding", "head"]),
        ("continuous", "mse", ["statistics", "input", "head", "stop_head"]),
        ("continuous", "gaussian", ["statistics", "input", "head", "stop_head"]),
        ("continuous", "flow", ["statistics", "input", "head", "stop_head"]),
        ("continuous", "energy", ["statistics", "input", "head", "stop_head"]),
    ],
)
def test_modules_of_audio_are_trained_whole(tmp_path, layout, head, parts):
    """And saved with what was measured; an adapter that is loaded or merged gives the same losses."""
    fields = {"head": head, "head_options": {"num_layers": 1, "hidden_size": 16}} if layout == "continuous" else {}
    model, processor = tiny_speech_lm(tied=False, layout=layout, fields=fields)
    base = copy.deepcopy(model)
    model.config.frames_per_character = [1.5, 3.0]
    if layout == "continuous":
        model.config.condition_dropout = 0.25
        model.frames.set_statistics(torch.ones(8), torch.full((8,), 4.0))
    learner = add_adapter(model, r=4)
    assert sorted(lora_config(base).modules_to_save) == sorted(f"frames.{part}" for part in parts)
    train(learner, processor)
    for part in parts:
        assert not [module for module in model.frames.get_submodule(part).modules() if isinstance(module, LoraLayer)]
    for name, weight in base.frames.named_parameters():
        part, _, rest = name.partition(".")
        learnt = model.frames.get_submodule(part).modules_to_save["default"].get_parameter(rest)
        assert not torch.equal(learnt, weight)
    batch = make_batch(processor)
    expected = learner(**batch).loss
    save_adapter(learner, tmp_path / "adapter", processor)
    loaded = load_adapter(base, tmp_path / "adapter").eval()
    assert torch.equal(loaded(**batch).loss, expected)
    merged = merge_adapter(learner)
    torch.testing.assert_close(merged(**batch).loss, expected, atol=1e-5, rtol=1e-5)
    if layout == "continuous":
        assert (merged.frames.statistics.mean == 1.0).all()
        assert base.config.condition_dropout == 0.25
    assert base.config.frames_per_character == [1.5, 3.0]
    assert merged.generate_speech("hi", processor, max_frames=4).audio_values.shape[-1] <= 4 * 16


def test_what_positions_are_told_of_their_text_is_learnt_whole(tmp_path):
    model, processor = tiny_speech_lm(text_alignment="phone", fields={"piece_context": 2})
    base = copy.deepcopy(model)
    learner = add_adapter(model, r=4)
    train(learner, processor)
    for name, weight in base.pieces.named_parameters():
        part, _, rest = name.partition(".")
        learnt = model.pieces.get_submodule(part).modules_to_save["default"].get_parameter(rest)
        assert not torch.equal(learnt, weight)
    expected = logits_of(learner, processor)
    save_adapter(learner, tmp_path / "adapter", processor)
    with pytest.raises(ValueError, match=r"`piece_context` was 2 and is 0.*`from_causal_lm\(..., piece_context=2\)`"):
        load_adapter(tiny_speech_lm(text_alignment="phone")[0], tmp_path / "adapter")
    assert torch.equal(logits_of(load_adapter(base, tmp_path / "adapter").eval(), processor), expected)
    torch.testing.assert_close(logits_of(merge_adapter(learner), processor), expected, atol=1e-5, rtol=1e-5)


def test_a_module_that_peft_cannot_tell_from_another_is_refused():
    """`peft` looks at ends of names, and would train another module of such a name whole, too."""
    model, _ = tiny_speech_lm(layout="delay")
    model.language_model.frames = nn.ModuleDict({"embedding": nn.Embedding(4, 2)})
    with pytest.raises(ValueError, match="cannot tell frames.embedding.*rename"):
        lora_config(model)


def test_a_bias_of_the_output_table_is_refused():
    """`peft` leaves it out where single rows learn."""
    model, _ = tiny_speech_lm(tied=False)
    model.get_output_embeddings().bias = nn.Parameter(torch.ones(len(model.get_output_embeddings().weight)))
    with pytest.raises(ValueError, match="output table has a bias"):
        lora_config(model)


def test_a_cache_of_a_voice_belongs_to_no_adapter():
    model, processor = tiny_speech_lm()
    add_adapter(model, r=4)
    codes = torch.tensor(tiny_row("hi")["audio_codes"]).reshape(2, -1)
    model.make_voice("hi", processor, audio_codes=codes)
    with pytest.raises(ValueError, match="merge it"):
        model.make_voice("hi", processor, audio_codes=codes, cache=True)


def test_an_adapter_of_another_coding_is_refused(tmp_path):
    model, _ = tiny_speech_lm()
    save_adapter(add_adapter(model, r=4), tmp_path / "adapter")
    other, _ = tiny_speech_lm()
    for name, value in {
        "unit_coding": "units",
        "num_codebooks": 1,
        "num_units": 4,
        "unit_durations": [1.0] * 4,
    }.items():
        setattr(other.config, name, value)
    with pytest.raises(ValueError, match="`unit_coding` was 'frames' and is 'units'"):
        load_adapter(other, tmp_path / "adapter")


def test_weights_of_experts_are_refused():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    processor = tiny_processor(tiny_codec())
    config = AutoConfig.for_model(
        "mixtral", vocab_size=processor.audio_offset, num_key_value_heads=1, num_local_experts=2, **sizes
    )
    lm = AutoModelForCausalLM.from_config(config)
    model = SpeechLMForConditionalGeneration.from_causal_lm(lm, tiny_codec(), processor)
    with pytest.raises(ValueError, match="weights of experts"):
        lora_config(model)


@pytest.mark.parametrize("kind", ["flat", *FRAME_KINDS])
def test_an_adapter_on_a_base_that_was_not_enlarged_is_refused(kind, tmp_path):
    saved = save_adapter(add_adapter(speaking(kind, "phone")[0], r=2), tmp_path / "adapter")
    lm = tiny_lm()
    with pytest.raises(TypeError, match="LlamaForCausalLM has no rows for the codes. Enlarge .*from_causal_lm"):
        load_adapter(lm, saved)
    with pytest.raises(TypeError, match="LlamaForCausalLM has no rows"):
        lora_config(lm)
    lm.save_pretrained(tmp_path / "lm")
    with pytest.raises(TypeError, match="of type 'llama', has no rows for the codes. Enlarge"):
        load_adapter(tmp_path / "lm", saved)
    with pytest.raises(ValueError, match="[Tt]arget modules"):
        PeftModel.from_pretrained(lm, saved)


def other_codec():
    codec = tiny_codec()
    with torch.no_grad():
        for name, buffer in codec.named_buffers():
            if "codebook" in name and buffer.is_floating_point():
                buffer.add_(1.0)
    return codec


def with_codec(codec):
    processor = tiny_processor(codec, "phone")
    lm = tiny_lm(vocab_size=processor.audio_offset)
    return SpeechLMForConditionalGeneration.from_causal_lm(lm, codec, processor)


def with_other_weights():
    model, _ = tiny_speech_lm("llama", "phone")
    with torch.no_grad():
        for parameter in model.language_model.model.layers[1].mlp.parameters():
            parameter.add_(0.1)
    return model


@pytest.mark.parametrize("kind", ["flat", *FRAME_KINDS])
def test_an_adapter_of_another_layout_is_refused(kind, tmp_path):
    saved = save_adapter(add_adapter(speaking(kind, "phone", num_quantizers=2)[0], r=2), tmp_path / "adapter")
    for other in ("flat", "delay", "mse"):
        base, _ = speaking(other, "phone", num_quantizers=2)
        if layout_of(other) != layout_of(kind):
            with pytest.raises(ValueError, match=f"`layout` was '{layout_of(kind)}' and is '{layout_of(other)}'"):
                load_adapter(base, saved)
        assert not getattr(base, "peft_config", None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_speech_lm("llama", "none")[0], "`text_alignment` was 'phone' and is 'none'.*Enlarge"),
        (lambda: tiny_speech_lm("llama", "phone", num_codebooks=1)[0], "`num_codebooks` was 2 and is 1.*Enlarge"),
        (lambda: with_codec(other_codec()), "`codec_fingerprint` was .*the codes of tiny-codec"),
        (with_other_weights, r"\(`weights` was .*trained on llama, whose weights are others"),
        (lambda: adapted()[0], "has an adapter already"),
        (lambda: adapted()[0].get_base_model(), "has an adapter already"),
    ],
    ids=["layout", "rows", "codec", "weights", "adapter", "adapter inside"],
)
def test_an_adapter_of_another_model_is_refused(saved, make, message):
    with pytest.raises(ValueError, match=message):
        load_adapter(make(), saved)


def test_a_model_in_bfloat16_is_known(saved):
    model, processor = tiny_speech_lm("llama", "phone")
    model.bfloat16()
    loaded = load_adapter(model, saved)
    expected = logits_of(*adapted())
    torch.testing.assert_close(logits_of(loaded, processor).float(), expected, atol=0.1, rtol=0.1)


def spoil_tensors(change):
    def spoil(folder):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return spoil


def replace(tensors, make):
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = make(tensors[name])


def spoil_config(**changes):
    def spoil(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def only_pickled(folder):
    (folder / "adapter_model.safetensors").unlink()
    torch.save({}, folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (only_pickled, "is missing. Other files of weights could run code"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"cut off"), "no complete safetensors"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json: is missing"),
        (spoil_config(speech_lm={}), "does not say which speech language model"),
        (spoil_config(peft_type="IA3"), "does not say which speech language model"),
        (spoil_config(colour="red"), "does not know .colour.*update"),
        (spoil_tensors(lambda tensors: tensors.popitem()), "lacks .* save the adapter again"),
        (spoil_tensors(lambda tensors: tensors.update(more=torch.ones(1))), "has besides more"),
        (spoil_tensors(lambda tensors: replace(tensors, lambda old: old[:, 1:].clone())), "has shape"),
        (spoil_tensors(lambda tensors: replace(tensors, lambda old: old / 0)), "not finite"),
    ],
    ids=["pickled", "cut", "config", "facts", "kind", "field", "lacks", "besides", "shape", "finite"],
)
def test_a_damaged_adapter_is_refused_and_the_base_stays(folder, spoil, message):
    spoil(folder)
    base, processor = tiny_speech_lm("llama", "phone")
    before = logits_of(base, processor)
    names = list(base.state_dict())
    with pytest.raises(ValueError, match=message):
        load_adapter(base, folder)
    assert list(base.state_dict()) == names
    assert torch.equal(logits_of(base, processor), before)
    lora_config(base)


def test_a_base_by_its_folder_gets_its_codec(tmp_path):
    codec = tiny_codec()
    codec.save_pretrained(tmp_path / "codec")
    RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate).save_pretrained(tmp_path / "codec")
    model, processor = tiny_speech_lm("llama", "phone")
    model.config.codec_name = str(tmp_path / "codec")
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    learner = train(add_adapter(model, r=4), processor)
    save_adapter(learner, tmp_path / "adapter")
    loaded = load_adapter(str(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(logits_of(loaded, processor), logits_of(learner, processor))
    assert loaded.codec.fingerprint() == codec.fingerprint()
    merge_adapter(loaded).save_pretrained(tmp_path / "base")
    torch.testing.assert_close(
        logits_of(load_speech_lm(tmp_path / "base")[0], processor), logits_of(learner, processor)
    )


def test_only_an_adapter_of_lora_config_is_saved_and_merged(tmp_path):
    model, _ = tiny_speech_lm()
    with pytest.raises(TypeError, match="must have an adapter"):
        merge_adapter(model)
    with pytest.raises(TypeError, match="`lora_config`"):
        save_adapter(model, tmp_path / "adapter")
    foreign = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match="`lora_config`"):
        save_adapter(foreign, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def trainer_of(cls, args, tmp_path, learner, processor, **kwargs):
    import datasets

    rows = datasets.Dataset.from_list([tiny_row(text, number) for number, text in enumerate(TEXTS)])
    args = args(
        str(tmp_path), max_steps=2, learning_rate=1e-2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        logging_steps=1, remove_unused_columns=False, report_to="none", use_cpu=True, disable_tqdm=True, bf16=False,
        gradient_checkpointing=False, **kwargs.pop("settings", {}),
    )  # fmt: skip
    return cls(learner, args, train_dataset=rows, data_collator=SpeechLMCollator(processor), **kwargs)


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_what_a_plain_trainer_saves_is_loaded(tmp_path):
    """The facts stand in the configuration, whoever saves it."""
    model, processor = tiny_speech_lm("llama", "phone")
    learner = get_peft_model(model, lora_config(model, r=4))
    trainer = trainer_of(Trainer, TrainingArguments, tmp_path, learner, processor)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    base, _ = tiny_speech_lm("llama", "phone")
    loaded = load_adapter(base, tmp_path / "adapter")
    torch.testing.assert_close(logits_of(loaded, processor), logits_of(learner.eval(), processor))


@pytest.mark.parametrize(("kind", "changes"), [("llama", {}), ("opt", {"dropout": 0.0})], ids=["llama", "opt"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("with_lora", [True, False], ids=["lora", "whole"])
def test_trl_learns_the_same_from_flat_rows(tmp_path, monkeypatch, kind, changes, tied, with_lora):
    """The targets, the losses and the weights after two steps are those of a plain `Trainer`."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    trl = pytest.importorskip("trl")
    model, processor = tiny_speech_lm(kind, "phone", tied=tied, **changes)
    learners = []
    for learner in (model, copy.deepcopy(model)):
        torch.manual_seed(0)
        learners.append(add_adapter(learner, r=4) if with_lora else learner)
    plain = trainer_of(Trainer, TrainingArguments, tmp_path, learners[0], processor)
    skipped = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    options = {"settings": skipped, "processing_class": processor.tokenizer}
    by_trl = trainer_of(trl.SFTTrainer, trl.SFTConfig, tmp_path, learners[1], processor, **options)
    counts = []
    for trainer in (plain, by_trl):
        batches = list(trainer.get_train_dataloader())
        counts.append(int(trainer._get_num_items_in_batch(batches, torch.device("cpu"))))
        trainer.train()
    assert counts[0] == counts[1] > 0
    assert losses_of(by_trl) == pytest.approx(losses_of(plain), rel=1e-5)
    assert losses_of(plain)[1] < losses_of(plain)[0]
    others = dict(learners[1].named_parameters())
    for name, parameter in learners[0].named_parameters():
        torch.testing.assert_close(others[name], parameter, atol=2e-4, rtol=1e-3, msg=name)
