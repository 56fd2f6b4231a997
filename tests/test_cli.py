# SPDX-License-Identifier: Apache-2.0
import argparse
import importlib
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState

from speech_tokenizers import cli, load, load_audio, load_codes, save_codes
from speech_tokenizers.cli import main


# Words with which a help text would say of what, for what or where something is, but not what.
NO_HEADS = {"of", "for", "its", "their", "such", "where", "what", "how", "as", "by", "in", "to", "with", "from", "at"}


@pytest.fixture
def folder(tmp_path, write_audio):
    """Three recordings at three rates in a tree, one of them stereo."""
    write_audio(tmp_path / "in" / "a.wav", 0.5)
    write_audio(tmp_path / "in" / "deep" / "b.flac", 0.333, 44100, channels=2)
    write_audio(tmp_path / "in" / "deep" / "c.ogg", 0.2, 8000)
    return tmp_path


def test_a_tree_is_encoded_and_decoded_to_its_own_lengths(folder, tiny_checkpoint, capsys):
    model = ["--model", str(tiny_checkpoint), "--device", "cpu"]
    assert main(["encode", str(folder / "in"), "-o", str(folder / "codes"), *model]) == 0
    assert main(["decode", str(folder / "codes"), "-o", str(folder / "out"), "--format", "flac"]) == 0
    for name in ("a.wav", "deep/b.flac", "deep/c.ogg"):
        stem = name.rsplit(".", 1)[0]
        recorded = load_audio(folder / "in" / name, 16000)
        codes = load_codes(folder / "codes" / f"{stem}.safetensors")
        decoded = soundfile.info(folder / "out" / f"{stem}.flac")
        assert codes.num_samples == len(recorded) == decoded.frames
        assert (decoded.samplerate, decoded.channels) == (16000, 1)
        assert codes.model_name == str(tiny_checkpoint)
        assert codes.audio_codes.shape == (4, -(-len(recorded) // 40))


def test_the_codes_are_those_of_the_model(folder, tiny_checkpoint):
    model, extractor = load(tiny_checkpoint)
    recorded = load_audio(folder / "in" / "a.wav", 16000)
    inputs = extractor(recorded, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = model.encode(**inputs, num_quantizers=3).audio_codes
        waveform = model.decode(expected, num_samples=len(recorded)).audio_values[0, 0].numpy()
    arguments = ["--model", str(tiny_checkpoint), "--device", "cpu"]
    path = folder / "a.safetensors"
    assert main(["encode", str(folder / "in/a.wav"), "-o", str(path), "--num-quantizers", "3", *arguments]) == 0
    assert np.array_equal(load_codes(path).audio_codes, expected[0].numpy())
    assert main(["decode", str(path), "-o", str(folder / "a.wav")]) == 0
    assert np.abs(load_audio(folder / "a.wav", 16000) - waveform.clip(-1, 1)).max() < 1e-4


def test_reconstruct_is_encode_and_decode(folder, tiny_checkpoint):
    model = ["--model", str(tiny_checkpoint), "--device", "cpu"]
    source = str(folder / "in/deep/b.flac")
    assert main(["reconstruct", source, "-o", str(folder / "r.wav"), *model]) == 0
    assert main(["encode", source, "-o", str(folder / "b.safetensors"), *model]) == 0
    assert main(["decode", str(folder / "b.safetensors"), "-o", str(folder / "d.wav"), *model]) == 0
    assert (folder / "r.wav").read_bytes() == (folder / "d.wav").read_bytes()


def test_broken_files_are_set_aside_with_a_reason(folder, tiny_checkpoint, capsys):
    (folder / "in" / "empty.wav").touch()
    (folder / "in" / "noise.wav").write_bytes(b"noise" * 100)
    code = main(["encode", str(folder / "in"), "-o", str(folder / "codes"), "--model", str(tiny_checkpoint)])
    errors = capsys.readouterr().err
    assert code == 1
    assert "3 of 5 files" in errors
    assert "empty.wav: is empty" in errors
    assert "noise.wav: is not readable as audio" in errors
    assert "Traceback" not in errors
    assert len(list((folder / "codes").rglob("*.safetensors"))) == 3
    assert not list((folder / "codes").rglob("*.tmp"))


def test_codes_that_do_not_fit_are_set_aside_with_a_reason(folder, tiny_checkpoint, capsys):
    metadata = {"num_samples": 400, "sampling_rate": 16000, "codebook_size": 32, "hop_length": 40}
    metadata["model_name"] = str(tiny_checkpoint)
    codes = np.zeros((4, 10), dtype=int)
    bad = folder / "bad"
    save_codes(bad / "good.safetensors", codes, metadata)
    save_codes(bad / "rate.safetensors", codes, metadata | {"sampling_rate": 24000})
    save_codes(bad / "size.safetensors", codes, metadata | {"codebook_size": 64})
    save_codes(bad / "many.safetensors", np.zeros((5, 10), dtype=int), metadata)
    save_codes(bad / "other.safetensors", codes, metadata | {"model_fingerprint": "0" * 16})
    save_codes(bad / "lost.safetensors", codes, metadata | {"model_name": "no-such-codec"})
    (bad / "damaged.safetensors").write_bytes((bad / "good.safetensors").read_bytes()[:-5])
    assert main(["decode", str(bad), "-o", str(folder / "out")]) == 1
    errors = capsys.readouterr().err
    assert "1 of 7 files" in errors
    for reason in (
        "rate.safetensors: has `sampling_rate` 24000, but this codec has 16000",
        "size.safetensors: has `codebook_size` 64, but this codec has 32",
        "many.safetensors: has 5 codebooks, but this codec has 4",
        "other.safetensors: was made by a codec with other codebooks",
        "lost.safetensors: its codec cannot be loaded",
        "damaged.safetensors: is no valid safetensors file",
    ):
        assert reason in errors
    assert os.listdir(folder / "out") == ["good.wav"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["encode", "nothing.wav", "-o", "codes"], "no such file"),
        (["encode", "*.mp3", "-o", "codes"], "no file matches"),
        (["encode", "in", "-o", "one.safetensors"], "names the file one.safetensors, but there are 3 inputs"),
        (["encode", "in", "-o", "in/a.wav/codes"], "cannot be written"),
        (
            ["encode", "in/a.wav", "in/deep/../a.wav", "in/deep/a.wav", "-o", "codes"],
            "would both be written to codes/a",
        ),
        (
            ["encode", "in", "-o", "codes", "--model", "no-such-codec"],
            "no such file or folder, nor a repository of that name",
        ),
        (["encode", "in", "-o", "codes", "--model", "in"], "has no config.json"),
        (["encode", "in", "-o", "codes", "--num-quantizers", "5"], "must lie between 1 and 4, but got 5"),
        (["encode", "in", "-o", "codes", "--device", "warp"], "--device warp"),
        (["reconstruct", "in/a.wav", "-o", "in"], "is an input as well as an output"),
        (["decode", "in", "-o", "out"], "holds no file"),
        (["info", "in/deep/c.txt"], "no such file or folder"),
        (["train", "no-such-recipe"], "no-such-recipe"),
    ],
)
def test_wrong_usage_stops_before_any_work(folder, tiny_checkpoint, capsys, monkeypatch, arguments, reason):
    monkeypatch.chdir(folder)
    (folder / "in/deep/a.wav").write_bytes(
        (folder / "in/a.wav").read_bytes()
    ) if "in/deep/a.wav" in arguments else None
    if arguments[0] in ("encode", "reconstruct") and "--model" not in arguments:
        arguments = [*arguments, "--model", str(tiny_checkpoint)]
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert reason in errors
    assert len(errors.strip().splitlines()) == 1
    assert not [path for path in folder.rglob("*") if path.suffix == ".safetensors" or path.name.startswith("one")]


def test_existing_outputs_are_kept_unless_told(folder, tiny_checkpoint, capsys):
    arguments = ["encode", str(folder / "in/a.wav"), "-o", str(folder / "codes"), "--model", str(tiny_checkpoint)]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def test_info_describes_checkpoints_codes_and_audio(folder, tiny_checkpoint, capsys):
    assert (
        main(
            ["encode", str(folder / "in/a.wav"), "-o", str(folder / "a.safetensors"), "--model", str(tiny_checkpoint)]
        )
        == 0
    )
    for subject, fact in (
        ([], "speech-tokenizers "),
        ([str(tiny_checkpoint)], "4 of 32 entries"),
        ([str(folder / "a.safetensors")], "0.500 s (8000 samples at 16000 Hz)"),
        ([str(folder / "in/deep/b.flac")], "44100 Hz"),
    ):
        capsys.readouterr()
        assert main(["info", *subject]) == 0
        assert fact in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["dance"], ["encode"], ["encode", "a.wav"], ["--model", "x"]])
def test_a_malformed_command_line_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: speech-tokenizers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["encode", "", "-o", "out"], ["encode", "a.wav", "-o", ""], ["encode", " ", "-o", "out"], ["info", ""]],
)
def test_a_variable_that_was_not_set_is_no_name_of_the_current_folder(arguments, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "an argument is empty; was a variable not set?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (["evaluate"], "reconstruction"),
        (["evaluate", "reconstruction"], "reconstruction"),
        (["evaluate", "units"], "units"),
        (["evaluate", "./units"], "reconstruction"),  # a codec in a folder of that name
    ],
)
def test_evaluate_measures_reconstruction_or_what_its_second_word_says(words, module, monkeypatch):
    seen = []
    for name in ("reconstruction", "units"):
        evaluation = importlib.import_module(f"speech_tokenizers.evaluation.{name}.command")
        monkeypatch.setattr(evaluation, "run", lambda args, name=name: seen.append((name, args.models)) or 0)
    assert main([*words, "codec", "--data", "in", "--output", "out"]) == 0
    assert seen == [(module, ["./units", "codec"] if "./units" in words else ["codec"])]


def test_evaluate_units_measures_a_codec(tmp_path, write_audio, tiny_checkpoint, capsys):
    write_audio(tmp_path / "in" / "a.wav", 0.5)
    write_audio(tmp_path / "in" / "b.wav", 0.7)
    arguments = ["--data", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--measures", "rate", "robustness"]
    assert main(["evaluate", "units", str(tiny_checkpoint), *arguments, "--perturbations", "gain"]) == 0
    (system,) = json.loads((tmp_path / "out" / "units.json").read_text())["systems"]
    assert system["num_clips"] == 2
    assert {"bits_nominal", "ued[gain]", "ued[chance]"} <= set(system["scores"])
    assert "| system |" in capsys.readouterr().out


def test_the_module_runs_as_the_command():
    result = subprocess.run([sys.executable, "-m", "speech_tokenizers", "--version"], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.startswith("speech-tokenizers ")


def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path, tiny_checkpoint):
    program = """
import resource, sys
import numpy as np, soundfile
from speech_tokenizers import load, reconstruct_file

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # MiB

def write(name, seconds):
    with soundfile.SoundFile(name, "w", samplerate=16000, channels=1) as file:
        for second in range(seconds):
            file.write(np.random.default_rng(second).uniform(-0.1, 0.1, 16000))

model, _ = load(sys.argv[1])
write(sys.argv[2] + "/short.wav", 40)
write(sys.argv[2] + "/long.wav", 300)
reconstruct_file(model, sys.argv[2] + "/short.wav", sys.argv[2] + "/out.wav")
before = peak()
codes = reconstruct_file(model, sys.argv[2] + "/long.wav", sys.argv[2] + "/out.wav")
assert codes.num_samples == 300 * 16000 == soundfile.info(sys.argv[2] + "/out.wav").frames
print(peak() - before)
"""
    # The waveform alone would take 18 MiB, and each layer of the codec as a whole several times that.
    result = subprocess.run(
        [sys.executable, "-c", program, str(tiny_checkpoint), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(result.stdout) < 40


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "`data.train` must name the training recordings"),
        (["data.train=/nowhere"], "/nowhere"),
        (["model.overrides.nonsense=3"], "nonsense"),
        (["model.overrides.n_fft=700"], "must be a multiple of `hop_length`"),
        (["optimizer.lr=3"], "`optimizer.lr` is unknown"),
    ],
)
def test_a_training_that_cannot_start_is_one_line_and_exit_code_two(tmp_path, capsys, overrides, message):
    # A process trains in one precision; what trained in it before this test does not matter.
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["train", "rvq_codec_16khz_4kbps", f"output_dir={tmp_path}", *overrides]) == 2
    AcceleratorState._reset_state(reset_partial_state=True)
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("speech-tokenizers train: error: ")
    assert message in error[-1]


@pytest.mark.parametrize("name", sorted(cli._COMMANDS))
def test_help_says_what_an_argument_is_and_its_default(name):
    parser = cli._build_parser(name)
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    command = commands.choices[name]
    formatter = command._get_formatter()
    for action in command._actions:
        text = formatter._get_help_string(action)
        assert text, action.dest
        # A noun or a verb, which its head word is; not "of the frames" or "for error rates".
        assert text.split()[0].lower().strip(",:") not in NO_HEADS, f"{action.dest}: {text}"
        if action.default not in (None, False, argparse.SUPPRESS) and action.default != []:
            assert "default" in text, f"{action.dest}: {text}"


def test_help_groups_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    groups = [line.removesuffix(":") for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert groups[:-1] == list(cli._GROUPS)
    for name, (summary, _) in cli._COMMANDS.items():
        assert f"  {name} " in shown
        assert summary in shown


def test_the_shell_is_offered_the_options_of_the_command_on_its_line(monkeypatch):
    offered = []
    monkeypatch.setitem(sys.modules, "argcomplete", types.SimpleNamespace(autocomplete=offered.append))
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setenv("COMP_LINE", "speech-tokenizers encode --sk")
    assert main(["info"]) == 0
    (parser,) = offered
    assert parser.parse_args(["encode", "a.wav", "-o", "out", "--skip-existing", "-q"]).skip_existing


@pytest.mark.parametrize("name", sorted(cli._COMMANDS))
def test_an_option_has_one_name_and_one_meaning_in_every_command(name):
    parser = cli._build_parser(name)
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    options = {option: action for action in commands.choices[name]._actions for option in action.option_strings}
    assert "-q" in options
    assert "-v" in options
    if "--output" in options:
        assert options["-o"] is options["--output"]
    # A batch of a training is another thing, which its results depend on.
    shared = [("--device", "encode"), ("--skip-existing", "encode")]
    for option, reference in shared + [("--batch-seconds", "units")] * (name != "finetune-ctc"):
        if option in options:
            others = cli._build_parser(reference)._actions[-1].choices[reference]._option_string_actions[option]
            assert options[option].help.split()[:2] == others.help.split()[:2]
            assert options[option].default == others.default
