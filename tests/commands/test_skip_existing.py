# SPDX-License-Identifier: Apache-2.0
"""A batch goes on from the outputs that are there, if they are those that it would make."""

import numpy as np
import pytest
import soundfile

from speech_tokenizers import save_codes


@pytest.fixture
def batch(run, speech, tmp_path, tiny_checkpoint):
    """Function: run `encode`, `decode` or `reconstruct` over three files; returns exit code and standard error."""

    def call(verb, *options, model=tiny_checkpoint, source=None):
        output = tmp_path / f"{verb}d"
        source = source or (tmp_path / "encoded" if verb == "decode" else tmp_path / "speech")
        model = ["--model", model] if model else []
        return run(verb, source, "-o", output, "--device", "cpu", *model, *options)

    speech()
    assert call("encode")[0] == 0
    return call


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("verb", ["encode", "decode", "reconstruct"])
def test_what_exists_is_skipped_and_counted(batch, tmp_path, verb):
    batch(verb)
    output = tmp_path / f"{verb}d"
    before = files_of(output)
    gone = next(path for path in before if path.stem == "b")
    gone.unlink()
    code, errors = batch(verb, "--skip-existing")
    assert code == 0
    assert errors[-1] == f"{verb}: 1 of 3 files written, 2 skipped, 0 failed: {output}"
    after = files_of(output)
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} == {gone}
    code, errors = batch(verb, "--skip-existing")
    assert (code, errors[-1]) == (0, f"{verb}: 0 of 3 files written, 3 skipped, 0 failed: {output}")
    code, errors = batch(verb)
    assert code == 2
    assert "3 of 3 outputs exist" in errors[-1]
    assert "--skip-existing" in errors[-1]


@pytest.mark.parametrize("verb", ["encode", "reconstruct"])
def test_outputs_of_another_model_other_options_or_recordings_are_not_kept(
    batch, speech, tmp_path, other_checkpoint, verb
):
    batch(verb)
    other = speech("other", seed=1)
    for changed, reason in (
        ({"model": other_checkpoint}, "was made by another model, and 2 more outputs differ"),
        ({"source": other}, "was made from another recording, and 2 more outputs differ"),
        ({"options": ["--num-quantizers", "2"]}, "was made with codebooks=4 instead of codebooks=2"),
        ({"options": ["--latents"]}, "was made with "),
    ):
        options = changed.pop("options", [])
        before = files_of(tmp_path / f"{verb}d")
        code, errors = batch(verb, "--skip-existing", *options, **changed)
        assert code == 2
        assert len(errors) == 1
        assert reason in errors[0]
        assert "--overwrite" in errors[0]
        assert files_of(tmp_path / f"{verb}d") == before


@pytest.mark.parametrize(
    ("verb", "part", "is_kept"),
    [
        ("encode", "encoder", False),
        ("encode", "decoder", True),
        ("decode", "decoder", False),
        ("decode", "encoder", True),
        ("reconstruct", "encoder", False),
        ("reconstruct", "decoder", False),
    ],
)
def test_outputs_of_a_part_that_was_trained_under_the_same_codebooks_are_not_kept(
    batch, tmp_path, tiny_checkpoint, with_other_part, verb, part, is_kept
):
    batch(verb)
    before = files_of(tmp_path / f"{verb}d")
    code, errors = batch(verb, "--skip-existing", model=with_other_part(tiny_checkpoint, part))
    assert code == (0 if is_kept else 2)
    assert is_kept or f"was made by a model with another {part}, and 2 more outputs differ" in errors[0]
    assert files_of(tmp_path / f"{verb}d") == before


def test_speech_that_was_decoded_from_codes_of_another_encoder_is_not_kept(batch, tiny_checkpoint, with_other_part):
    batch("decode")
    assert batch("encode", "--overwrite", model=with_other_part(tiny_checkpoint, "encoder"))[0] == 0
    code, errors = batch("decode", "--skip-existing")
    assert code == 2
    assert "was made by a model with another encoder" in errors[0]


@pytest.mark.parametrize("audio_format", ["wav", "flac", "ogg"])
def test_speech_that_was_decoded_from_other_codes_is_not_kept(batch, speech, tmp_path, audio_format):
    batch("decode", "--format", audio_format)
    assert batch("decode", "--format", audio_format, "--skip-existing")[0] == 0
    assert batch("encode", "--overwrite", source=speech("other", seed=1))[0] == 0
    code, errors = batch("decode", "--format", audio_format, "--skip-existing")
    assert code == 2
    assert "was made from another recording" in errors[0]


def test_codes_that_a_language_model_wrote_are_told_apart_by_themselves(batch, tmp_path, tiny_checkpoint):
    metadata = {"num_samples": 400, "sampling_rate": 16000, "codebook_size": 32, "hop_length": 40}
    metadata["model_name"] = str(tiny_checkpoint)
    source = tmp_path / "generated"
    save_codes(source / "a.safetensors", np.zeros((4, 10), dtype=int), metadata)
    assert batch("decode", source=source)[0] == 0
    assert batch("decode", "--skip-existing", source=source)[0] == 0
    save_codes(source / "a.safetensors", np.ones((4, 10), dtype=int), metadata)
    assert batch("decode", "--skip-existing", source=source)[0] == 2


def test_outputs_that_do_not_say_what_made_them_are_kept_with_a_word(batch, tmp_path):
    soundfile.write(tmp_path / "decoded.wav", np.zeros(400), 16000)
    (tmp_path / "decoded").mkdir()
    (tmp_path / "decoded.wav").rename(tmp_path / "decoded" / "a.wav")
    code, errors = batch("decode", "--skip-existing")
    assert code == 0
    assert errors[0].startswith("1 of the 1 outputs that exist do not say what made them")
    assert "2 of 3 files written, 1 skipped" in errors[-1]


def test_what_exists_and_is_no_such_output_is_named_and_left(batch, tmp_path):
    for verb, name in (("encode", "a.safetensors"), ("decode", "a.wav"), ("reconstruct", "a.wav")):
        path = tmp_path / f"{verb}d" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"notes")
        code, errors = batch(verb, "--skip-existing", source=tmp_path / "speech" if verb != "decode" else None)
        assert code in (1, 2)
        assert str(path) in errors[-1] or verb == "decode"
        assert path.read_bytes() == b"notes"


def test_an_input_that_cannot_be_read_any_more_fails_alone(batch, tmp_path):
    batch("decode")
    (tmp_path / "encoded" / "a.safetensors").write_bytes(b"")
    code, errors = batch("decode", "--skip-existing")
    assert code == 1
    assert "a.safetensors: is no valid safetensors file" in errors[0]
    assert "0 of 3 files written, 2 skipped, 1 failed" in errors[-1]
    assert (tmp_path / "decoded" / "a.wav").exists()


@pytest.mark.parametrize("verb", ["encode", "reconstruct"])
def test_a_link_that_leads_to_itself_fails_alone(batch, tmp_path, verb):
    (tmp_path / "speech" / "circle.wav").symlink_to("circle.wav")
    output = tmp_path / f"{verb}d"
    code, errors = batch(verb, "--overwrite")
    assert code == 1
    assert any("circle.wav: " in error for error in errors)
    assert errors[-1] == f"{verb}: 3 of 4 files written, 0 skipped, 1 failed: {output}"


def test_overwriting_and_skipping_exclude_each_other(batch, capsys):
    with pytest.raises(SystemExit) as stop:
        batch("encode", "--overwrite", "--skip-existing")
    assert stop.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err
