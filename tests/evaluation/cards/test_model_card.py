# SPDX-License-Identifier: Apache-2.0
import json
import re

import pytest
from huggingface_hub import ModelCard

from speech_tokenizers import CSTConfig, CSTModel, DCSpinConfig, DMCodecConfig, KMeansUnitsConfig
from speech_tokenizers.cli import main
from speech_tokenizers.evaluation.cards.model_card import build_card, loss_table, short_table


@pytest.fixture
def folder(tmp_path, make_rvq_codec):
    path = tmp_path / "tiny-codec"
    make_rvq_codec()[0].save_pretrained(path)
    return path


@pytest.fixture
def report():
    def system(name, scores, **more):
        return {"system": name, "scores": scores, "failures": {}, **more}

    score = {"value": 2.3456, "low": 2.2, "high": 2.5, "num_clips": 7}
    stage = {"num_used": 30, "codebook_size": 32, "entropy": 4.5, "share_used": 0.9375, "perplexity": 22.6}
    systems = [
        system("recording", {}),
        system(
            "tiny-codec",
            {"pesq": score, "stoi": None, "wer_transcript[ear]": {**score, "value": 30.0}},
            stages=[stage] * 4,
            kbps_nominal=1.0,
        ),
    ]
    systems[1]["failures"] = {"stoi": {"too short": 8}}
    for entry in systems:
        entry["groups"] = {"north": entry | {}}
    return {
        "date": "2026-01-01",
        "data": {"num_clips": 8, "seconds": 60.0, "groups": {"north": 8}, "key": "0123"},
        "settings": {"threads": 1, "device": "cpu", "dnsmos_windows": 2},
        "recognizers": ["ear"],
        "titles": {"pesq": "PESQ-wb", "stoi": "STOI"},
        "higher_is_better": {"pesq": True, "stoi": True},
        "skipped": {"dnsmos": "no package"},
        "systems": systems,
    }


@pytest.fixture
def run_folder(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    losses = ({"step": 10 * n, "loss": 5.0 - n, "eval_mel": 3.0 - n / 2} for n in range(5))
    entries = [{**entry, "training_seconds": 180.0 * entry["step"]} for entry in losses]
    lines = [json.dumps(entry) for entry in entries] + ['{"step": 50, "lo']  # a kill cut the last line
    (path / "training_log.jsonl").write_text("\n".join(lines))
    (path / "recipe.yaml").write_text(
        "seed: 0\ndata:\n  train: /home/me/my speech\n  eval: '/data/eval.txt'\n  rate: 1/2\n"
    )
    (path / "loss_curves.png").write_bytes(b"png")
    return path


def test_a_full_card_holds_what_was_measured(folder, report, run_folder):
    card = build_card(
        folder,
        "tiny-codec",
        report=report,
        run_folder=run_folder,
        training_command="speech-tokenizers train x",
        data="Recordings of **nobody**.",
        limits="It knows no music.",
        uses="Good for speech.",
    )
    text = str(card)
    for wanted in (
        "1 kbps",
        "4 codes of 5 bits",
        "speech-tokenizers train x",
        "Recordings of **nobody**.",
        "seed: 0",
        "40 steps, 2.0 hours of computation.",
        "| 40 | 1 | 1 |",
        "2.35 [2.20, 2.50]",
        "failed (8)",
        "tiny-codec, stoi: 8 × too short",
        "Skipped dnsmos: no package",
        "| 1 | 30 of 32 | 93.8% | 4.50 | 23 |",
        "It knows no music.",
        "![Loss over the steps](loss_curves.png)",
    ):
        assert wanted in text, wanted
    order = ("to codes and back", "| system |", "## When to use it\n\nGood for speech.", "## Use\n", "<details>")
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    recipe = "seed: 0\ndata:\n  train: my speech\n  eval: 'eval.txt'\n  rate: 1/2\n"
    assert (folder / "recipe.yaml").read_text() == recipe
    assert recipe in text
    assert (folder / "loss_curves.png").read_bytes() == b"png"
    assert (folder / "training_log.jsonl").exists()


def test_a_card_tells_of_the_latents_what_the_last_evaluation_did(folder, run_folder):
    assert "### Latents" not in str(build_card(folder, "tiny-codec", run_folder=run_folder))
    log = run_folder / "training_log.jsonl"
    measured = {"eval_latent_live_directions": 5.0, "eval_latent_participation_ratio": 2.346, "eval_mel": 1.0}
    measured |= {f"eval_variance_left_{stage}": 0.5**stage for stage in (1, 2, 3)} | {"eval_mel_at_1": 1.5}
    entries = [{"step": 20, **measured, "eval_latent_live_directions": 7.0}, {"step": 40, **measured}]
    log.write_text("\n".join(map(json.dumps, [*entries, {"step": 40, "warning": "collapsed"}])))
    text = str(build_card(folder, "tiny-codec", run_folder=run_folder))
    assert "At step 40, over all evaluation recordings, 5 of 16 latent directions were live" in text
    assert "participation ratio was 2.35 (" in text
    assert "| 1 | 50 % | 1.5 |\n| 2 | 25 % |  |\n| 3 | 12.5 % | 1 |\n" in text
    del measured["eval_mel_at_1"]
    without_codebooks = {key: value for key, value in measured.items() if "variance" not in key}
    log.write_text(json.dumps({"step": 40, **without_codebooks}))
    text = str(build_card(folder, "tiny-codec", run_folder=run_folder))
    assert "latent directions were live" in text
    assert "| codebooks | variance left |" not in text


def test_a_folder_without_a_run_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="which is no folder of a training run"):
        build_card(folder, "tiny-codec", run_folder=tmp_path / "nothing")


def test_the_metadata_survives_and_leaves_out_what_failed(folder, report, tmp_path):
    build_card(folder, "tiny-codec", report=report).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        "pesq": 2.3456,
        "wer_transcript": 30.0,
    }
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "audio-to-audio", "apache-2.0")


def test_what_is_not_known_is_left_out(folder):
    text = str(build_card(folder, "tiny-codec"))
    for heading in ("Training", "Measured", "Speed", "Limits", "When to use", "None", "More information"):
        assert heading not in text
    assert "## Use" in text
    assert "\n\n\n" not in text


def test_a_card_of_units_tells_how_to_get_them(tmp_path):
    fields = {"encoder_config": {"model_type": "hubert", "hidden_size": 96}, "layers": [3, 5], "codebook_size": 200}
    KMeansUnitsConfig(**fields).save_pretrained(tmp_path)
    text = str(build_card(tmp_path, "tiny-units", sections={"Measured": "PNMI 0.5"}))
    for wanted in (
        "50 frames per second of 2 units each",
        "one of 200 k-means clusters",
        "hubert, 96 dimensions, read at layer 3, 5",
        "deduplicate=True",
    ):
        assert wanted in text
    for absent in ("model.decode(", "reconstruct", "neural-codec"):
        assert absent not in text
    assert "No vocoder is attached" in text
    KMeansUnitsConfig(
        **fields,
        vocoder_config={"num_quantizers": 2, "codebook_size": 200, "hop_length": 320, "sampling_rate": 16000},
    ).save_pretrained(tmp_path)
    text = str(build_card(tmp_path, "tiny-units"))
    assert "model.decode(" in text
    assert "No vocoder" not in text


def test_a_card_of_units_with_f0_tells_of_its_codes(tmp_path):
    fields = {"encoder_config": {"model_type": "hubert", "hidden_size": 96}, "layers": [1], "codebook_size": 16}
    KMeansUnitsConfig(**fields, f0_bins=8, f0_stride=4).save_pretrained(tmp_path)
    text = str(build_card(tmp_path, "tiny-units"))
    assert "to 50 units per second." in text
    assert "The last row of codes tells the fundamental frequency (F0): one of 8 codes each 80 ms." in text
    assert "| units | 1 of 16 a frame |" in text
    assert "| F0 | one of 8 codes for 4 frames, 55 to 550 Hz |" in text
    assert "one of 16 k-means clusters of a speech encoder's features (log2 16 = 4 bits)." in text
    KMeansUnitsConfig(**fields, kept_dims=2, kept_codebook_size=4).save_pretrained(tmp_path)
    text = str(build_card(tmp_path, "tiny-units"))
    assert "50 frames per second of 2 units each" in text
    assert "one of 16 or 4 k-means clusters of a speech encoder's features." in text


@pytest.mark.parametrize(("auxiliary", "learnt"), [(64, "an auxiliary codebook of 64 (DC-Spin)"), (None, "(Spin)")])
def test_a_card_of_dc_spin_tells_how_its_units_were_learnt(tmp_path, auxiliary, learnt):
    encoder = {"model_type": "hubert", "hidden_size": 96}
    sizes = {"primary_codebook_size": 50, "auxiliary_codebook_size": auxiliary, "projection_dim": 32}
    DCSpinConfig(encoder_config=encoder, encoder_layer=4, **sizes).save_pretrained(tmp_path)
    text = str(build_card(tmp_path, "tiny-dc-spin"))
    for wanted in (
        "Converts 16 kHz mono speech to 50 units per second.",
        "A unit is one of 50 codes of a speech encoder's features (log2 50 = 5.64 bits).",
        "The codes were learned to stay the same in another voice.",
        "hubert, 96 dimensions, read at layer 4",
        "swapped prediction in 32 dimensions with the top 2 layers",
        learnt,
        "- speaker-invariant",
        "No vocoder is attached",
    ):
        assert wanted in text, wanted
    assert "k-means" not in text


@pytest.mark.parametrize(
    ("fields", "bottleneck"),
    [
        ({}, "sigma-VAE: noise of a standard deviation that is drawn from N(0, 0.5²); in training only"),
        ({"bottleneck_type": "kl", "ctc_labels": ["<pad>", "a"]}, "the encoder predicts the standard deviation"),
    ],
)
def test_a_card_of_continuous_tokens_tells_of_vectors(tmp_path, make_cst, fields, bottleneck):
    config = make_cst()[0].config
    CSTModel(CSTConfig(**config.to_dict() | fields)).save_pretrained(tmp_path)
    text = str(build_card(tmp_path, "tiny-cst"))
    for wanted in (
        "Converts 16 kHz mono speech to 25 vectors per second of 6 numbers each, and back.",
        "| frames | 25 a second, 640 samples each |",
        f"| bottleneck | {bottleneck}",
        "| bit rate | 2400 bit/s in half precision;",
        "latents = model.encode(**inputs).latents  # (1, num_frames, 6)",
        "decoded = model.decode(latents, num_samples=len(recording)).audio_values",
        "reconstruct talk.wav --model tiny-cst",
        "continuous-tokens",
        "pipeline_tag: audio-to-audio",
        "| weights |",
    ):
        assert wanted in text, wanted
    for absent in ("codebook", "audio_codes", "kbps", "None", "\n\n\n"):
        assert absent not in text.replace("There are no codebooks.", ""), absent
    assert ("| CTC head | 2 labels" in text) == ("ctc_labels" in fields)


def test_the_snippet_of_continuous_tokens_runs(tmp_path, make_cst, write_audio, monkeypatch):
    for part in make_cst():
        part.save_pretrained(tmp_path / "cst")
    write_audio(tmp_path / "talk.wav")
    monkeypatch.chdir(tmp_path)
    text = str(build_card(tmp_path / "cst", str(tmp_path / "cst")))
    short, long = (block.split("```")[0] for block in text.split("```python\n")[1:])
    names = {}
    exec(short, names)
    assert names["latents"].shape == (1, 13, 6)
    names = {}
    exec(long, names)
    assert names["latents"].shape == (1, 13, 6)
    assert names["decoded"].shape == (1, 1, 8000)


def test_a_system_that_was_not_measured_is_refused(folder, report):
    with pytest.raises(ValueError, match="one of recording, tiny-codec, but got 'other'"):
        build_card(folder, "other", report=report)


def test_loss_table_ends_with_the_last_entry():
    table = loss_table([{"step": n, "loss": float(n)} for n in range(100)], num_rows=4)
    assert [row["step"] for row in table["rows"]] == [0, 33, 66, 99]
    assert table["names"] == ["loss"]
    assert loss_table([]) is None


def test_the_command_writes_the_card(folder, report, tmp_path, capsys):
    results = tmp_path / "results.json"
    results.write_text(json.dumps(report))
    assert main(["card", str(folder), "--results", str(results)]) == 0
    assert "# tiny-codec" in (folder / "README.md").read_text()
    assert main(["card", str(tmp_path), "--results", str(results)]) == 2
    assert capsys.readouterr().err.startswith("speech-tokenizers card: error: ")


def test_a_readme_of_somebody_is_replaced_only_if_that_is_asked_for(folder, capsys):
    path = folder / "README.md"
    path.write_text("Mine.")
    assert main(["card", str(folder)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"speech-tokenizers card: error: {path} exists, and `card` did not write it as it is; pass --overwrite to"
        " replace it, or move it away."
    )
    assert path.read_text() == "Mine."
    assert main(["card", str(folder), "--overwrite"]) == 0
    assert "# tiny-codec" in path.read_text()


@pytest.mark.parametrize("change", [lambda text: text + "Mine.\n", lambda text: text.replace("mono", "stereo")])
def test_a_card_of_ours_is_replaced_until_somebody_changes_it(folder, change):
    path = folder / "README.md"
    assert main(["card", str(folder), "--name", "first"]) == 0
    assert main(["card", str(folder), "--name", "second"]) == 0
    text = path.read_text()
    assert "# second" in text
    assert ModelCard.load(path).data.library_name == "transformers"
    path.write_text(change(text))
    assert path.read_text() != text
    assert main(["card", str(folder)]) == 2


def test_further_sections_and_teachers_are_told(tmp_path):
    DMCodecConfig(contextual_dimension=12, contextual_stage="mean", semantic_dimension=8).save_pretrained(tmp_path)
    text = str(build_card(tmp_path, "distilled", sections={"Ablation": "It did *not* help.\n"}))
    assert "| distilled from a speech model | codebook 1, projected to 8 features (training only) |" in text
    assert "| distilled from a language model | the mean of all codebooks, projected to 12 features" in text
    assert "\n<details><summary>Ablation</summary>\n\nIt did *not* help.\n\n</details>\n" in text


def test_everything_below_the_code_is_folded(folder, report, run_folder):
    card = build_card(
        folder,
        "tiny-codec",
        report=report,
        run_folder=run_folder,
        data="Recordings.",
        benchmark="Fast.",
        limits="No music.",
        sections={"Ablation": "It did not help."},
    )
    rest = str(card).split("```\n", 1)[1]  # after the first block of code
    depth = 0
    for line in rest.splitlines():
        depth += line.count("<details>") - line.count("</details>")
        assert depth or line in ("", "</details>"), line
    assert depth == 0
    summaries = ["More code", "Facts", "Training data", "Training", "Recipe", "Measured", "Ablation"]
    summaries += ["Speed and memory", "Limits"]
    assert re.findall(r"<details><summary>(.*)</summary>\n\n", rest) == summaries


def test_the_first_table_has_few_systems_and_few_scores(folder, report):
    report["systems"] += [{**report["systems"][0], "system": f"peer{number}"} for number in range(5)]
    table = short_table(report, "tiny-codec").splitlines()
    assert table[0] == "| system | PESQ-wb | STOI | WER % (ear, to transcript) |"
    assert table[2] == "| tiny-codec | 2.35 [2.20, 2.50] | failed (8) | 30.0 [2.2, 2.5] |"
    assert [row.split(" | ")[0] for row in table[3:]] == ["| recording", "| peer0", "| peer1", "| peer2"]
    chosen = short_table(report, "tiny-codec", ["peer4", "recording"]).splitlines()
    assert [row.split(" | ")[0] for row in chosen[2:]] == ["| tiny-codec", "| peer4", "| recording"]
    assert "\n".join(chosen) in str(build_card(folder, "tiny-codec", report=report, beside=["peer4", "recording"]))
    with pytest.raises(ValueError, match="`beside` must name at most 4 systems, but got 5"):
        short_table(report, "tiny-codec", [f"peer{number}" for number in range(5)])


def test_a_first_table_of_ones_own_has_at_most_five_rows(folder, report):
    def table(num_rows):
        return "\n".join(["| a | b |", "| --- | --- |", *(f"| {row} | - |" for row in range(num_rows))])

    text = str(build_card(folder, "tiny-codec", report=report, result=table(5)))
    assert table(5) in text.split("## Use")[0]
    assert "2.35 [2.20, 2.50]" not in text.split("## Use")[0]
    with pytest.raises(ValueError, match="`result` must be a table of at most 5 rows, but has 6"):
        build_card(folder, "tiny-codec", result=table(6))
