# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    AutoModel,
    AutoModelForCTC,
    AutoProcessor,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WhisperConfig,
)

from speech_tokenizers.cli import main
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.processing.ctc_labels import CTCLabels, build_tokenizer
from speech_tokenizers.processing.recordings import decode_all, load_recordings
from speech_tokenizers.processing.word_alignment import load_word_aligner
from speech_tokenizers.training.recognition.ctc_finetuning import (
    CTCFinetuningArguments,
    LabelledRecordings,
    finetune_ctc,
    load_ctc_model,
    pad_recordings,
    tri_stage_factor,
)


FREQUENCIES = {"a": 400.0, "b": 1300.0, "c": 3100.0}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (32, 32),
    "conv_kernel": (40, 16),
    "conv_stride": (20, 16),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "group",  # whose padded rows transformers gets wrong
}


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """An untrained HuBERT of 50 frames a second, with the group norm of HuBERT-base."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    HubertModel(HubertConfig(**SIZES)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def speech_folder(tmp_path_factory):
    """Words of tones of 0.1 s a letter with pauses of 0.1 s, and recordings that cannot be learnt from."""
    folder = tmp_path_factory.mktemp("speech")
    draw = np.random.default_rng(0)
    rows = []
    for index, text in enumerate(["ab c", "cab", "b ac b", "a", "bc ca", "c b a"]):
        tones = [np.sin(2 * np.pi * FREQUENCIES.get(letter, 0) * np.arange(1600) / 16000) for letter in text]
        audio = 0.5 * np.concatenate(tones) + 0.001 * draw.standard_normal(1600 * len(text))
        soundfile.write(folder / f"{index}.wav", audio, 16000)
        phones = " | ".join(" ".join(f"{letter.upper()}1" for letter in word) for word in text.split())
        rows.append({"file_name": f"{index}.wav", "text": text.upper(), "phones": phones, "split": "usable"})
    soundfile.write(folder / "broken.wav", np.zeros(0), 16000)
    for name in ("digits.wav", "nothing.wav", "short.wav"):
        soundfile.write(folder / name, 0.001 * draw.standard_normal(1600), 16000)
    for name, text in (("digits.wav", "12"), ("nothing.wav", "?"), ("short.wav", "abcabc"), ("broken.wav", "a")):
        rows.append({"file_name": name, "text": text, "phones": "", "split": "unusable"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def make_args(tmp_path):
    """Function: settings for a tiny model, with the given changes."""

    def make(**changes):
        fields = {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 4,
            "batch_seconds": 2.0,
            "mask_time_prob": 0.3,
            "mask_time_length": 3,
            "mask_feature_length": 4,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return CTCFinetuningArguments(**{**fields, **changes})

    return make


@pytest.fixture
def make_dataset(speech_folder, tmp_path):
    """Function: the usable recordings for a model and settings, and their labels."""

    def make(config, args, **kwargs):
        recordings = load_recordings(str(speech_folder), {"split": "usable"})
        decoded = decode_all(recordings, 16000, tmp_path / "cache", show_progress=False)
        texts = recordings["text"][:]
        labels = CTCLabels(build_tokenizer(texts, "character"))
        extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
        return LabelledRecordings(decoded, texts, labels, extractor, config, args, **kwargs)

    return make


def usable(speech_folder):
    return load_recordings(str(speech_folder), {"split": "usable"})


@pytest.mark.parametrize("unit", ["character", "phone"])
def test_it_learns_what_is_said_and_when(unit, encoder_folder, speech_folder, make_args, tmp_path):
    args = make_args(
        max_steps=80, learning_rate=2e-2, mask_time_prob=0, mask_feature_prob=0, layerdrop=0, freeze_encoder_steps=0.1
    )
    recordings = usable(speech_folder)
    trainer = finetune_ctc(str(encoder_folder), recordings, recordings, unit, args)
    assert trainer.state.log_history[-1][f"eval_{unit}_error_rate"] == 0

    # What was saved is a recogniser, with everything to use it, ...
    folder = tmp_path / "out"
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForCTC.from_pretrained(folder)
    audio, _ = soundfile.read(recordings[4]["audio"]["path"], dtype="float32")
    logits = model(**processor(audio, sampling_rate=16000, return_tensors="pt")).logits
    spoken = processor.tokenizer.decode(logits[0].argmax(-1), skip_special_tokens=True)
    assert spoken == {"character": "bc ca", "phone": "B C C A"}[unit]
    # ... tells when words are spoken, ...
    text = recordings[4]["text" if unit == "character" else "phones"]
    first, second = load_word_aligner(str(folder)).align(audio, text)
    assert first.start == pytest.approx(0, abs=0.1)
    assert second.start == pytest.approx(0.3, abs=0.1)
    # ... and is an encoder again.
    encoder = AutoModel.from_pretrained(folder)
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, trainer.model.hubert.get_parameter(name)), name
    units = KMeansUnitsModel.from_encoder(str(folder), layers=[1], codebook_size=2)
    features, _ = units.features(torch.from_numpy(audio)[None])
    expected = encoder(torch.from_numpy(audio)[None], output_hidden_states=True).hidden_states[1]
    assert torch.allclose(features[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("config", [HubertConfig(**SIZES), Wav2Vec2Config(**SIZES), WavLMConfig(**SIZES)])
def test_a_padded_batch_has_the_loss_of_its_rows_alone(config, make_args, make_dataset, tmp_path):
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    model, _ = load_ctc_model(str(tmp_path / "encoder"), build_tokenizer(["abc"], "character"), make_args())
    # Masked, as in training, but without what is drawn in the forward.
    dataset = make_dataset(model.config, make_args())
    items = [dataset[index] for index in range(len(dataset))]
    assert len({len(item["input_values"]) for item in items}) > 3
    model.eval()
    with torch.no_grad():
        together = model(**pad_recordings(items)).loss
        alone = [model(**pad_recordings([item])).loss for item in items]
        unmasked = [{name: item[name] for name in ("input_values", "labels")} for item in items]
        assert model(**pad_recordings(unmasked)).loss != together
    assert together == pytest.approx(torch.stack(alone).mean().item(), rel=1e-5)


def test_masks_depend_on_the_epoch_and_stay_on_the_recording(make_args, make_dataset):
    dataset = make_dataset(HubertConfig(**SIZES), make_args(mask_time_prob=0.5))
    batch = pad_recordings([dataset[0], dataset[3]])  # 0.4 s and 0.1 s
    mask = batch["mask_time_indices"]
    assert mask.shape == (2, 19)
    assert mask[0].any()
    assert mask[1, :4].any()
    assert not mask[1, 4:].any()
    assert torch.equal(dataset[0]["mask_time_indices"], dataset[0]["mask_time_indices"])
    later = [dataset[0 + epoch * len(dataset)] for epoch in range(1, 9)]
    assert any(not torch.equal(item["mask_time_indices"], dataset[0]["mask_time_indices"]) for item in later)
    assert all(torch.equal(item["input_values"], dataset[0]["input_values"]) for item in later)
    assert "mask_time_indices" not in make_dataset(HubertConfig(**SIZES), make_args(), is_masked=False)[0]


@pytest.mark.parametrize(("frozen_steps", "moves"), [(4, False), (3, True)])
def test_the_front_end_never_moves_and_the_encoder_not_at_first(
    frozen_steps, moves, encoder_folder, speech_folder, make_args
):
    args = make_args(freeze_encoder_steps=frozen_steps, layerdrop=0, learning_rate=1e-2, weight_decay=0.1)
    trainer = finetune_ctc(str(encoder_folder), usable(speech_folder), None, "character", args)
    before, after = HubertModel.from_pretrained(encoder_folder), trainer.model.hubert
    for name, parameter in before.named_parameters():
        is_front_end = name.startswith("feature_extractor.")
        if is_front_end or not moves:
            assert torch.equal(parameter, after.get_parameter(name)), name
    moved = before.encoder.layers[0].attention.q_proj.weight != after.encoder.layers[0].attention.q_proj.weight
    assert moved.any() == moves


def test_a_resumed_training_equals_one_that_was_not_stopped(encoder_folder, speech_folder, make_args, tmp_path):
    # Every source of chance is on: dropout, dropped layers, masks of both kinds, the order.
    fields = {"max_steps": 6, "learning_rate": 1e-2, "freeze_encoder_steps": 2, "layerdrop": 0.3, "batch_seconds": 1}
    fields |= {"save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    args = make_args(**fields)
    whole = finetune_ctc(str(encoder_folder), usable(speech_folder), None, "character", args).model.state_dict()
    shutil.copytree(tmp_path / "out" / "checkpoint-3", tmp_path / "again" / "checkpoint-3")

    args = make_args(**fields, output_dir=str(tmp_path / "again"))
    with pytest.raises(ValueError, match="holds checkpoint-3; resume from it"):
        finetune_ctc(str(encoder_folder), usable(speech_folder), None, "character", args)
    trainer = finetune_ctc(str(encoder_folder), usable(speech_folder), None, "character", args, resume=True)
    assert trainer.state.global_step == 6
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_unusable_recordings_are_set_aside_with_the_reason(encoder_folder, speech_folder, make_args, tmp_path):
    finetune_ctc(str(encoder_folder), load_recordings(str(speech_folder)), None, "character", make_args(max_steps=1))
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    reasons = {entry["name"]: entry["reason"] for entry in map(json.loads, lines)}
    assert set(reasons) == {"digits.wav", "nothing.wav", "short.wav", "broken.wav"}
    assert "digits" in reasons["digits.wav"]
    assert "no label" in reasons["nothing.wav"]
    assert "4 frames are too few for 6 labels" in reasons["short.wav"]

    args = make_args(max_steps=1, batch_seconds=0.35, output_dir=str(tmp_path / "short"))
    finetune_ctc(str(encoder_folder), usable(speech_folder), None, "character", args)
    lines = (tmp_path / "short" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["0.wav", "2.wav", "4.wav", "5.wav"]
    with pytest.raises(ValueError, match="No recording is left"):
        finetune_ctc(
            str(encoder_folder),
            usable(speech_folder),
            None,
            "character",
            make_args(batch_seconds=0.01, output_dir=str(tmp_path / "none")),
        )


def test_a_recogniser_keeps_its_head_where_it_knows_the_labels(encoder_folder, make_args, tmp_path):
    tokenizer = build_tokenizer(["ABC"], "character")
    model, _ = load_ctc_model(str(encoder_folder), tokenizer, make_args())
    model.save_pretrained(tmp_path / "recogniser")
    tokenizer.save_pretrained(tmp_path / "recogniser")

    again, known = load_ctc_model(
        str(tmp_path / "recogniser"), build_tokenizer(["cb"], "character"), make_args(seed=9)
    )
    assert known.get_vocab() == tokenizer.get_vocab()
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    # As many labels, but others.
    other = build_tokenizer(["xyz"], "character")
    new, unknown = load_ctc_model(str(tmp_path / "recogniser"), other, make_args(seed=9))
    assert unknown is other
    assert new.lm_head.weight.shape == model.lm_head.weight.shape
    assert not torch.equal(new.lm_head.weight, model.lm_head.weight)
    assert torch.equal(
        new.hubert.encoder.layers[0].feed_forward.output_dense.weight,
        model.hubert.encoder.layers[0].feed_forward.output_dense.weight,
    )


def test_phones_are_made_of_texts(encoder_folder, speech_folder, make_args, tmp_path):
    def spelt(texts):
        return [" | ".join(" ".join(f"{letter}ː" for letter in word) for word in text.split()) for text in texts]

    recordings = usable(speech_folder)
    finetune_ctc(str(encoder_folder), recordings, recordings, "phone", make_args(max_steps=1), phonemizer=spelt)
    vocabulary = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.get_vocab()
    assert set(vocabulary) == {"<pad>", "<unk>", "|", "Aː", "Bː", "Cː"}
    with pytest.raises(ValueError, match="`phonemizer` makes phones"):
        finetune_ctc(str(encoder_folder), recordings, None, "character", make_args(), phonemizer=spelt)


def test_the_learning_rate_rises_stays_and_decays():
    factors = [tri_stage_factor(step, 4, 2, 10, 0.05) for step in range(11)]
    assert factors[:6] == pytest.approx([0.01, 0.2575, 0.505, 0.7525, 1, 1])
    assert factors[6:] == pytest.approx([1, 0.05**0.25, 0.05**0.5, 0.05**0.75, 0.05])
    assert tri_stage_factor(0, 0, 0, 10, 0.05) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 3, "hold_steps": 0.5}, "must fit into `max_steps`"),
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
        ({"batch_seconds": 0}, "`batch_seconds` must be positive"),
    ],
)
def test_impossible_settings_are_named(changes, message, make_args):
    with pytest.raises(ValueError, match=message):
        make_args(**changes)


def test_other_encoders_are_refused(make_args, tmp_path):
    WhisperConfig(d_model=16, encoder_layers=1, decoder_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`encoder` is a `whisper`"):
        load_ctc_model(str(tmp_path), build_tokenizer(["ab"], "character"), make_args())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--phonemize xx-none --unit phone", "install it with `apt-get install espeak-ng`"),
        ("--filter split=nothing", "has no recording left"),
        ("--filter split=unusable", "recording"),
        ("--max-steps 0", "`max_steps` must be at least 1"),
        ("--batch-seconds 0", "`batch_seconds` must be positive"),
    ],
)
def test_a_command_that_cannot_start_is_one_line(
    options, message, encoder_folder, speech_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", str(tmp_path))  # where no espeak-ng is
    command = [str(encoder_folder), str(speech_folder), "-o", str(tmp_path / "out"), "--mask-feature-length", "2"]
    assert main(["finetune-ctc", *command, *options.split()]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("speech-tokenizers finetune-ctc: error: ")
    assert message in line


def test_a_wrong_encoder_is_refused_before_speech_is_decoded(speech_folder, tmp_path, capsys):
    encoder = tmp_path / "whisper"
    WhisperConfig(d_model=16, encoder_layers=1, decoder_layers=1).save_pretrained(encoder)
    assert main(["finetune-ctc", str(encoder), str(speech_folder), "-o", str(tmp_path / "out")]) == 2
    assert "is a `whisper`" in capsys.readouterr().err
    assert not (tmp_path / "out" / "audio_cache").exists()


def test_the_command_says_how_often_it_errs(encoder_folder, speech_folder, tmp_path, capsys):
    command = [str(encoder_folder), str(speech_folder), "-o", str(tmp_path / "out")]
    options = "--unit phone --filter split=usable --eval-filter split=usable --max-steps 1 --mask-feature-prob 0"
    assert main(["finetune-ctc", *command, *options.split()]) == 0
    assert "phone error rate: " in capsys.readouterr().out
    command[3] = str(tmp_path / "other")
    assert main(["finetune-ctc", *command, "--column", "words"]) == 2
    assert "`column` is 'words'" in capsys.readouterr().err
