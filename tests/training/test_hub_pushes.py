# SPDX-License-Identifier: Apache-2.0
"""Trainings push while they run and in the end, as transformers' `Trainer` does; what fails stops no training."""

import json

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load
from transformers import HubertModel, TrainingArguments, Wav2Vec2FeatureExtractor

from helpers.fake_hub import FakeHub
from helpers.online import online, run_online, run_program_online
from helpers.strangers import run_without_this_package
from helpers.tiny_codecs import make_dc_spin
from helpers.tiny_models import tiny_hubert
from helpers.tiny_speaking_lm import LEXICON, tiny_codec, tiny_row, tiny_speech_lm
from speech_tokenizers import CSTConfig, CSTFeatureExtractor, CSTModel, DCSpinFeatureExtractor
from speech_tokenizers.cli import main
from speech_tokenizers.modeling.pronunciations import PronunciationLexicon
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor
from speech_tokenizers.processing.speech_row_format import RowsFacts
from speech_tokenizers.processing.speech_rows import SpeechRowsWriter
from speech_tokenizers.sharing.findings import errors_of
from speech_tokenizers.sharing.repository_check import check_repository
from speech_tokenizers.sharing.repository_files import FolderFiles
from speech_tokenizers.training.common.hub_pushes import HubSettings
from speech_tokenizers.training.common.hub_trainer import HubTrainer
from speech_tokenizers.training.common.recipe_files import build_section


CPU = {"ACCELERATE_USE_CPU": "true"}
TOKEN = "hf_test"


def titles_of(hub):
    """Titles of the commits, in their order."""
    return [json.loads(body.splitlines()[0])["value"]["summary"] for body in hub.bodies]


@pytest.fixture
def hub():
    """A Hub that keeps the first line of each commit."""
    with FakeHub(large_from=10_000) as hub:
        hub.bodies = []
        commit = hub.server.RequestHandlerClass.commit

        def kept(handler, repo_id, revision, body):
            hub.bodies.append(body)
            return commit(handler, repo_id, revision, body)

        hub.server.RequestHandlerClass.commit = kept
        yield hub


def test_a_codec_is_pushed_at_saves_and_in_the_end(recipe_file, hub, tmp_path):
    path = recipe_file(save_steps=2, eval_steps=3, data={"eval": str(tmp_path / "audio-of-nobody")})
    recipe = yaml.safe_load(path.read_text())
    recipe["data"]["eval"] = recipe["data"]["train"]
    path.write_text(yaml.safe_dump(recipe))
    settings = ["push_to_hub=true", "hub_model_id=user/trained", "hub_private_repo=true", f"hub_token={TOKEN}"]
    settings += ["hub_strategy=checkpoint", "hub_licence=mit", "hub_always_push=true"]
    (trained, info) = run_online(
        hub, tmp_path, [["train", path, *settings], ["info", "user/trained"]], **CPU, HF_TOKEN=TOKEN
    )
    assert trained.code == 0, trained
    assert f"pushed: {hub.endpoint}/user/trained" in trained.err
    assert "user/trained" in hub.private
    steps = [f"Training in progress, step {step}" for step in (2, 4, 6)]
    expected = [title for step in steps for title in (step, f"{step}, checkpoint")]
    assert titles_of(hub) == [*expected, "End of training"]
    files = hub.files("user/trained")
    assert {"config.json", "modeling_rvq_codec.py", "preprocessor_config.json", "README.md"} < files.keys()
    run = tmp_path / "run"
    # The finished model, with its averaged weights, and the last checkpoint alone.
    final, pushed = load((run / "final" / "model.safetensors").read_bytes()), load(files["model.safetensors"])
    assert final.keys() == pushed.keys()
    assert all((final[name] == pushed[name]).all() for name in final)
    last = {name.removeprefix("last-checkpoint/") for name in files if name.startswith("last-checkpoint/")}
    assert last == {path.relative_to(run / "checkpoint-00000006").as_posix() for path in walk(run, "*-00000006")}
    card = ModelCard(files["README.md"].decode())
    assert (card.data.license, card.data.language, card.data.eval_results) == ("mit", None, None)
    entries = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    measured = [entry["eval_mel"] for entry in entries if "eval_mel" in entry]
    assert f"| 6 | {measured[-1]:.4g} |" in card.text
    assert 'AutoModel.from_pretrained("user/trained", trust_remote_code=True)' in card.text
    # Neither the data nor the token nor a place of this machine is told.
    for name, content in files.items():
        if name.startswith("last-checkpoint/"):
            continue
        for secret in (TOKEN, str(tmp_path), recipe["data"]["train"]):
            assert secret.encode() not in content, (name, secret)
    for path in run.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert not list(run.glob(".push-*"))
    assert info.code == 0, info
    assert "2 of 16 entries" in info.out


def walk(run, pattern):
    (folder,) = run.glob(pattern)
    return [path for path in folder.rglob("*") if path.is_file()]


def test_uploads_that_fail_stop_no_training_and_tell_what_to_do(recipe_file, hub, tmp_path):
    path = recipe_file(save_steps=2)

    def full(handler) -> bool:
        if handler.command == "POST" and "/preupload/" in handler.path:
            handler.refuse("QuotaExceeded", 403)
            return True
        return False

    hub.before = full
    settings = ["push_to_hub=true", "hub_model_id=user/trained"]
    (trained,) = run_online(hub, tmp_path, [["train", path, *settings]], **CPU)
    assert trained.code == 0, trained
    assert "warning: step 2 was not pushed: the Hub refuses (403)" in trained.err
    assert "The training goes on." in trained.err
    final = tmp_path / "run" / "final"
    assert f"`speech-tokenizers push {final} user/trained` pushes it." in trained.err
    assert (final / "model.safetensors").is_file()
    hub.before = lambda handler: False
    words = f"push {final} user/trained --licence mit --no-samples".split()
    (pushed,) = run_online(hub, tmp_path, [words], **CPU)
    assert pushed.code == 0, pushed
    assert "model.safetensors" in hub.files("user/trained")


def test_who_may_not_push_is_told_before_the_training(recipe_file, hub, tmp_path):
    settings = ["push_to_hub=true", "hub_model_id=user/trained", "hub_token=hf_reader"]
    (trained,) = run_online(hub, tmp_path, [["train", recipe_file(), *settings]], **CPU)
    assert trained.code == 2
    assert "your token may not write to user/trained" in trained.err
    assert not (tmp_path / "run" / "training_log.jsonl").exists()


def test_units_are_pushed_at_saves_and_in_the_end(hub, audio_folder, tmp_path):
    encoder = tiny_hubert(num_hidden_layers=2, conv_dim=(8,) * 7)
    HubertModel(encoder).save_pretrained(tmp_path / "encoder")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path / "encoder")
    sizes = {"projection_dim": 8, "primary_codebook_size": 6, "auxiliary_codebook_size": 10}
    recipe = {
        "trainer": "dc_spin",
        "output_dir": str(tmp_path / "run"),
        "model": {"encoder": str(tmp_path / "encoder"), "encoder_layer": 1, "trainable_layers": 1, **sizes},
        "data": {"train": str(audio_folder), "min_seconds": 0.2, "max_seconds": 0.4},
        **{"batch_seconds": 1.2, "max_steps": 4, "learning_rate": 1e-2, "warmup_steps": 2, "logging_steps": 1},
        "save_steps": 2,
        **{"push_to_hub": True, "hub_model_id": "user/units", "hub_strategy": "every_save", "hub_always_push": True},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    check = ["check-repo", "user/units", "--load"]
    (trained, checked) = run_online(hub, tmp_path, [["train", tmp_path / "recipe.yaml"], check], **CPU)
    assert trained.code == 0, trained
    assert "warning" not in trained.err
    assert titles_of(hub) == [*(f"Training in progress, step {step}" for step in (2, 4)), "End of training"]
    assert checked.code == 0, checked
    # What each save pushed is the model of its checkpoint; in the end, it is the finished one.
    commits = hub.repositories["user/units"]["main"][1:]
    weights = [load(files["model.safetensors"]) for files in commits]
    places = ["checkpoints/checkpoint-2", "checkpoints/checkpoint-4", "final"]
    for pushed, place in zip(weights, places, strict=True):
        saved = load((tmp_path / "run" / place / "model.safetensors").read_bytes())
        assert saved.keys() == pushed.keys()
        assert all((saved[name] == pushed[name]).all() for name in saved), place
    for files in commits:
        assert {"config.json", "modeling_dc_spin.py", "preprocessor_config.json", "README.md"} < files.keys()
        for name, content in files.items():
            assert str(tmp_path).encode() not in content, name
    card = commits[-1]["README.md"].decode()
    assert "| 4 |" in card
    assert 'AutoModel.from_pretrained("user/units", trust_remote_code=True)' in card
    assert not list((tmp_path / "run").glob(".push-*"))


PUSH_BY_HAND = """
    import sys
    from speech_tokenizers.training.codec.codec_recipe import train_from_recipe

    trainer = train_from_recipe(sys.argv[1])
    trainer.push_to_hub("user/codec", private=True, commit_message="By hand")
    trainer.push_to_hub("user/codec", revision="second")
    try:
        trainer.push_to_hub("user/codec", token="hf_reader")
    except ValueError as error:
        print(error)
"""


def test_a_codec_is_pushed_by_hand_with_its_code_and_card(recipe_file, hub, tmp_path):
    ran = run_program_online(hub, tmp_path, PUSH_BY_HAND, recipe_file(save_steps=2), **CPU)
    assert ran.code == 0, ran
    assert "your token may not write to user/codec" in ran.out
    assert titles_of(hub) == ["By hand", "Upload codec"]
    assert "user/codec" in hub.private
    files = hub.files("user/codec")
    assert hub.files("user/codec", "second") == files
    assert {"config.json", "modeling_rvq_codec.py", "preprocessor_config.json", "README.md"} < files.keys()
    # The averaged weights, as `save_model` has saved them.
    final = load((tmp_path / "run" / "final" / "model.safetensors").read_bytes())
    pushed = load(files["model.safetensors"])
    assert all((final[name] == pushed[name]).all() for name in final)
    assert "| 6 |" in files["README.md"].decode()
    assert not list((tmp_path / "run").glob(".push-*"))


FINETUNE = """
    import torch
    from speech_tokenizers import load
    from speech_tokenizers.training.common.hub_trainer import HubTrainer
    from transformers import TrainingArguments

    model, feature_extractor = load("units")
    rows = []
    for length in (1600, 1200, 2000, 1300):
        waveform = 0.1 * torch.randn(1, length)
        rows.append({"input_values": waveform, "perturbed_values": 0.9 * waveform})
    trainer = HubTrainer(
        model=model,
        args=TrainingArguments(
            "finetuned",
            max_steps=4,
            save_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            logging_steps=1,
            use_cpu=True,
            report_to="none",
            push_to_hub=True,
            hub_model_id="user/finetuned",
            hub_strategy="checkpoint",
            hub_always_push=True,
            hub_private_repo=True,
        ),
        processing_class=feature_extractor,
        train_dataset=rows,
        eval_dataset=rows[:2],
        hub_licence="mit",
    )
    trainer.train()
    trainer.save_model("kept")  # pushes, too, as with transformers' Trainer
    trainer.push_to_hub(commit_message="By hand", license="apache-2.0")
    future = trainer.push_to_hub(revision="second", blocking=False)
    print(future.result().oid)
"""

LOAD = """
    import sys
    from transformers import AutoFeatureExtractor, AutoModel

    for revision in ("main", "second"):
        options = {"revision": revision, "trust_remote_code": True}
        model = AutoModel.from_pretrained("user/finetuned", **options)
        assert type(model).__module__.startswith("transformers_modules.user."), type(model)
        AutoFeatureExtractor.from_pretrained("user/finetuned", **options)
"""


def test_a_trainer_of_transformers_pushes_code_and_card(hub, tmp_path):
    make_dc_spin().save_pretrained(tmp_path / "units")
    DCSpinFeatureExtractor().save_pretrained(tmp_path / "units")
    ran = run_program_online(hub, tmp_path, FINETUNE)
    assert ran.code == 0, ran
    steps = [f"Training in progress, step {step}" for step in (2, 4)]
    by_hand = ["Model save", "By hand", "End of training"]
    assert titles_of(hub) == [*(title for step in steps for title in (step, f"{step}, checkpoint")), *by_hand]
    assert "user/finetuned" in hub.private
    commits = hub.repositories["user/finetuned"]["main"][1:]
    saved = load((tmp_path / "finetuned" / "checkpoint-2" / "model.safetensors").read_bytes())
    pushed = load(commits[0]["model.safetensors"])
    assert saved.keys() == pushed.keys()
    assert all((saved[name] == pushed[name]).all() for name in saved)
    assert "last-checkpoint/optimizer.pt" in commits[1]
    files = hub.files("user/finetuned")
    own = {name: content for name, content in files.items() if not name.startswith("last-checkpoint/")}
    assert {"config.json", "modeling_dc_spin.py", "preprocessor_config.json", "README.md"} < own.keys()
    for name, content in own.items():
        assert not name.endswith(".bin")
        assert str(tmp_path).encode() not in content, name
    licences = [ModelCard(commit["README.md"].decode()).data.license for commit in (commits[0], files)]
    assert licences == ["mit", "apache-2.0"]
    card = files["README.md"].decode()
    assert "| step | eval_loss | loss |" in card
    assert "| 4 | " in card
    assert "learning_rate: 5.0e-05" in card
    (tmp_path / "own").mkdir()
    for name, content in own.items():
        (tmp_path / "own" / name).write_bytes(content)
    assert not errors_of(check_repository(FolderFiles(tmp_path / "own", "user/finetuned")))
    run_without_this_package(LOAD, tmp_path, **online(hub, tmp_path))


def test_a_speech_language_model_without_its_processor_is_refused(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, push_to_hub=True, hub_model_id="user/voice")
    with pytest.raises(ValueError, match="`processing_class` is None, but a speech language model is pushed with"):
        HubTrainer(tiny_speech_lm()[0], args)


def test_each_head_of_a_latent_language_model_has_a_repository(hub, audio_folder, tmp_path):
    sizes = {"network_hidden_size": 8, "encoder_hidden_size": 8, "decoder_hidden_size": 8}
    layers = {"encoder_num_layers": 1, "decoder_num_layers": 1, "latent_stride": 1}
    CSTModel(CSTConfig.from_preset("cst-fast-16khz", hidden_size=4, **sizes, **layers)).save_pretrained(
        tmp_path / "cst"
    )
    CSTFeatureExtractor(hop_length=320).save_pretrained(tmp_path / "cst")
    transformer = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    data = {"train": str(audio_folder), "eval": str(audio_folder), "min_seconds": 0.1, "max_seconds": 0.3}
    recipe = {
        "trainer": "latent_lm",
        "output_dir": str(tmp_path / "run"),
        "model": str(tmp_path / "cst"),
        "data": {**data, "max_eval_recordings": 2},
        "heads": {"mse": {}, "gaussian": {}},
        "language_model": {
            "model_type": "llama",
            "vocab_size": 1,
            "bos_token_id": 0,
            "eos_token_id": 0,
            **transformer,
        },
        "continuations": {"count": 1, "prompt_seconds": 0.1, "seconds": 0.1},
        **{"num_draws": 2, "batch_seconds": 0.9, "max_steps": 4, "save_steps": 2, "logging_steps": 1},
        **{"push_to_hub": True, "hub_model_id": "user/lm", "hub_always_push": True},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    check = ["check-repo", "user/lm-gaussian", "--load"]
    (trained, checked) = run_online(hub, tmp_path, [["train", tmp_path / "recipe.yaml"], check], **CPU)
    assert trained.code == 0, trained
    assert "warning" not in trained.err
    assert hub.repositories.keys() == {"user/lm-mse", "user/lm-gaussian"}
    titles = [*(f"Training in progress, step {step}" for step in (2, 4)), "End of training"]
    assert titles_of(hub) == titles + titles
    assert checked.code == 0, checked
    for head in ("mse", "gaussian"):
        files = hub.files(f"user/lm-{head}")
        assert files["model.safetensors"] == (tmp_path / "run" / head / "final" / "model.safetensors").read_bytes()
        assert "| 4 |" in files["README.md"].decode()
        for name, content in files.items():
            assert str(tmp_path).encode() not in content, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["hubert_small_16khz", "push_to_hub=true"], "`push_to_hub`: trainings of `hubert` push nothing"),
        (["hubert_small_16khz", "hub_model_id=me/x"], "`hub_model_id`: trainings of `hubert` push nothing"),
        (["spin_ctc_16khz", "push_to_hub=true"], "`push_to_hub`: trainings of `ctc` push nothing"),
        (["spin_ctc_16khz", "finetuning.push_to_hub=true"], "a fine-tuning by CTC pushes nothing"),
    ],
)
def test_trainings_that_push_nothing_say_so(settings, message, tmp_path, capsys):
    needed = [f"output_dir={tmp_path}", "data.train=recordings", "encoder=encoder"]
    needed = needed[: 3 if settings[0] == "spin_ctc_16khz" else 2]
    assert main(["train", *settings, *needed]) == 2
    assert message in capsys.readouterr().err


def test_a_speech_language_model_is_pushed_with_its_processor(hub, tmp_path):
    codec = tiny_codec()
    codec.save_pretrained(tmp_path / "codec")
    RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate).save_pretrained(tmp_path / "codec")
    own = ("codec", "codec_fingerprint", "encoder_fingerprint", "num_quantizers", "num_frames")
    rows = [tiny_row(text, at, num_frames=12 + at, codec=codec) for at, text in enumerate(["hi tim", "die", "lime"])]
    plain = [
        {name: value for name, value in row.items() if name not in own}
        | {"audio_codes": np.array(row["audio_codes"]).reshape(row["num_quantizers"], -1)}
        for row in rows
    ]
    with SpeechRowsWriter(tmp_path / "rows", RowsFacts.of_codec(codec, str(tmp_path / "codec"))) as writer:
        writer.write(0, plain, [row["id"] for row in rows])
        writer.finish(1)
    PronunciationLexicon(LEXICON).save(tmp_path / "lexicon.txt.gz")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    recipe = {
        "trainer": "speech_lm",
        "output_dir": str(tmp_path / "run"),
        "codec": str(tmp_path / "codec"),
        "data": {"train": str(tmp_path / "rows"), "pronunciations": str(tmp_path / "lexicon.txt.gz")},
        "text_alignment": "phone",
        "language_model": {"model_type": "llama", "max_position_embeddings": 256, **sizes},
        **{"batch_positions": 160, "max_steps": 4, "learning_rate": 1e-2, "warmup_steps": 1, "logging_steps": 1},
        "save_steps": 2,
        **{"push_to_hub": True, "hub_model_id": "user/voice", "hub_strategy": "every_save", "hub_always_push": True},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    say = ["say", "hi", "--model", "user/voice", "--codec", "codec", "-o", "said.wav"]
    (trained, checked, said) = run_online(
        hub, tmp_path, [["train", tmp_path / "recipe.yaml"], ["check-repo", "user/voice"], say], **CPU
    )
    assert trained.code == 0, trained
    steps = [f"Training in progress, step {step}" for step in (2, 4)]
    assert titles_of(hub) == [*steps, "End of training"]
    files = hub.files("user/voice")
    assert {"processor_config.json", "tokenizer.json", "pronunciations.txt.gz", "modeling_speech_lm.py"} < files.keys()
    assert checked.code == 0, checked
    assert said.code in (0, 1), said  # 1: what was said had no end
    assert (tmp_path / "said.wav").stat().st_size > 44
    for name in ("config.json", "processor_config.json", "README.md"):
        assert str(tmp_path).encode() not in files[name]
    assert "## Training" in files["README.md"].decode()
    assert "What its training measured stands below" in files["README.md"].decode()


def test_a_wrong_strategy_is_refused():
    with pytest.raises(ValueError, match="`hub_strategy` must be one of end, every_save, checkpoint, all_checkpoints"):
        build_section(HubSettings, {"hub_strategy": "always"}, "")
