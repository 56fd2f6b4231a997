# SPDX-License-Identifier: Apache-2.0
"""Many recordings give the units that each gives alone, and `speech-tokenizers units` writes them."""

import json
import threading

import numpy as np
import pytest
import soundfile
import torch
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from helpers.tiny_models import tiny_hubert
from speech_tokenizers.cli import main
from speech_tokenizers.coding import file_coding
from speech_tokenizers.coding.encoding_threads import EncodingThreads
from speech_tokenizers.coding.file_coding import encode_file
from speech_tokenizers.coding.loading import load
from speech_tokenizers.coding.recording_coding import encode_recordings
from speech_tokenizers.modeling.configuration_kmeans_units import KMeansUnitsConfig
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.windowed_encoding import WindowedEncoder
from speech_tokenizers.processing import audio_files
from speech_tokenizers.processing.audio_files import AudioReader, load_audio
from speech_tokenizers.processing.audio_parts import audio_parts
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor
from speech_tokenizers.processing.recordings import load_recordings
from speech_tokenizers.processing.unit_bpe import train_unit_bpe
from speech_tokenizers.processing.unit_exports import (
    load_code_arrays,
    load_km,
    load_manifest,
    load_textless,
    load_unit_lines,
)
from speech_tokenizers.processing.unit_sequences import deduplicate, expand


SECONDS = [0.5, 1.7, 0.31, 1.1, 0.9, 2.2, 0.5]


@pytest.fixture(scope="module")
def unit_checkpoint(tmp_path_factory):
    """Folder of a model with 8 random units a frame of 20 ms, one codebook."""
    folder = tmp_path_factory.mktemp("units") / "tiny-units"
    encoder_config = tiny_hubert(num_hidden_layers=1, intermediate_size=16, conv_dim=(8,) * 7)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = KMeansUnitsModel(KMeansUnitsConfig(encoder_config=encoder_config, layers=[1], codebook_size=8)).eval()
        frames = model.features(torch.randn(1, 1, 16000))[0][0, 0]
        model.set_centroids(frames[:: len(frames) // 8][:8][None])
    model.save_pretrained(folder)
    KMeansUnitsFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def units_model(unit_checkpoint):
    return load(unit_checkpoint)


@pytest.fixture
def waveforms():
    generator = np.random.default_rng(0)
    return [generator.normal(0, 0.1, int(16000 * seconds)).astype(np.float32) for seconds in SECONDS]


@pytest.fixture
def speech(tmp_path, waveforms):
    """A folder of recordings in two folders and two rates, and one that is broken."""
    for number, samples in enumerate(waveforms):
        path = tmp_path / "speech" / f"{'ab'[number % 2]}" / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, 8000 if number == 3 else 16000)
    (tmp_path / "speech" / "b" / "broken.wav").write_bytes(b"noise" * 100)
    return tmp_path / "speech"


def alone(model, samples):
    return model.encode(torch.from_numpy(samples)[None, None]).audio_codes[0].numpy()


@pytest.fixture
def command(unit_checkpoint):
    """Function: run the command on the CPU; returns its exit code."""

    def run(*arguments):
        words = [*map(str, arguments), "--model", str(unit_checkpoint), "--device", "cpu"]
        return main(["units", *words])

    return run


@pytest.mark.parametrize("batch_seconds", [2.3, 5.0, 60.0])
@pytest.mark.parametrize("in_order", [True, False])
def test_batches_give_each_recording_what_it_gives_alone(units_model, waveforms, batch_seconds, in_order):
    model, _ = units_model
    results = list(encode_recordings(*units_model, waveforms, batch_seconds, in_order=in_order))
    indices = [result.index for result in results]
    assert sorted(indices) == list(range(len(waveforms)))
    assert not in_order or indices == sorted(indices)
    for result in results:
        assert np.array_equal(result.audio_codes, alone(model, waveforms[result.index]))
        assert result.num_samples == len(waveforms[result.index])
        assert result.name == f"recording {result.index}"
    assert len({tuple(result.units) for result in results}) == len(results)


def test_a_codec_of_several_codebooks_is_a_model_too(tiny_checkpoint, waveforms):
    codec, feature_extractor = load(tiny_checkpoint)
    for result in encode_recordings(codec, feature_extractor, waveforms, batch_seconds=4, deduplicate=True):
        codes = alone(codec, waveforms[result.index])
        assert np.array_equal(expand(result.audio_codes, result.durations), codes)
        assert np.array_equal(result.audio_codes, deduplicate(codes)[0])


def test_latents_are_those_of_the_frames(units_model, waveforms):
    for result in encode_recordings(*units_model, waveforms, with_latents=True):
        latents = units_model[0].encode(torch.from_numpy(waveforms[result.index])[None]).latents[0]
        torch.testing.assert_close(result.latents, latents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("checkpoint", ["unit_checkpoint", "tiny_checkpoint"])
def test_what_is_longer_than_a_batch_goes_through_windows(checkpoint, request, speech, waveforms):
    model, feature_extractor = load(request.getfixturevalue(checkpoint))
    files = [speech / "b" / "5.wav", speech / "b" / "1.wav", speech / "a" / "0.wav"]
    results = list(encode_recordings(model, feature_extractor, [*files, waveforms[5]], batch_seconds=1.0))
    # Windows of 20 s hold them whole; a codec hears as far as it does always.
    for result, expected in zip(results, [load_audio(file, 16000) for file in files] + [waveforms[5]], strict=True):
        assert np.array_equal(result.audio_codes, alone(model, expected))
    result = next(encode_recordings(model, feature_extractor, files, batch_seconds=1.0, with_latents=True))
    if checkpoint == "tiny_checkpoint":
        assert "raise `batch_seconds`" in result.reason
    else:
        assert len(result.latents) == result.audio_codes.shape[1]


def test_a_long_recording_is_not_finished_once_nobody_wants_it(two_cores, tiny_checkpoint, tmp_path, monkeypatch):
    begun, ended, numbers = threading.Event(), threading.Event(), []
    stream, leave = file_coding.encode_blocks, EncodingThreads.__exit__

    def watched(model, blocks, **options):
        def counted():
            for number, block in enumerate(blocks):
                if number > 3:
                    begun.set()
                    assert ended.wait(timeout=60)
                numbers.append(number)
                yield block

        return stream(model, counted(), **options)

    def left(threads, *error):
        ended.set()
        return leave(threads, *error)

    monkeypatch.setattr(file_coding, "encode_blocks", watched)
    monkeypatch.setattr(EncodingThreads, "__exit__", left)
    files = [tmp_path / "20.wav", tmp_path / "500.wav"]
    for file in files:
        soundfile.write(file, np.zeros(int(file.stem) * 16000, np.int16), 16000)
    monkeypatch.setattr(AudioReader, "expected_num_samples", property(lambda reader: 32000 + (reader.seconds < 100)))
    results = encode_recordings(*load(tiny_checkpoint), files, batch_seconds=1.0, in_order=False)
    assert next(results).num_samples == 20 * 16000
    assert begun.wait(timeout=60)
    results.close()
    assert max(numbers) < 20


def test_a_long_recording_is_that_of_the_windowed_encoder(units_model):
    samples = np.random.default_rng(1).normal(0, 0.1, 70 * 16000).astype(np.float32)
    (result,) = encode_recordings(*units_model, [samples], batch_seconds=100)
    windowed = WindowedEncoder(units_model[0]).encode(torch.from_numpy(samples)).numpy()
    assert np.array_equal(result.audio_codes, windowed)
    assert not np.array_equal(windowed, alone(units_model[0], samples))  # else the comparison says nothing


def test_units_depend_on_no_batch_and_are_those_of_encode_file(units_model, tmp_path):
    # 40 s are heard whole and 61 s in windows, however long a batch is.
    files = [tmp_path / "40.wav", tmp_path / "61.wav"]
    for seed, (file, seconds) in enumerate(zip(files, (40, 61), strict=True)):
        soundfile.write(file, np.random.default_rng(seed).normal(0, 0.1, seconds * 16000), 16000)
    by_encode = [encode_file(units_model[0], file).audio_codes for file in files]
    assert np.array_equal(by_encode[0], alone(units_model[0], load_audio(files[0], 16000)))
    for batch_seconds in (3.0, 50.0, 200.0):
        for result, codes in zip(encode_recordings(*units_model, files, batch_seconds), by_encode, strict=True):
            assert np.array_equal(result.audio_codes, codes)
    _, failed = encode_recordings(*units_model, files, with_latents=True)
    assert "longer than 60 s" in failed.reason


def test_a_header_that_announces_less_changes_no_units(units_model, tmp_path, monkeypatch):
    file = tmp_path / "61.wav"
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.1, 61 * 16000), 16000)
    expected = encode_file(units_model[0], file)
    monkeypatch.setattr(AudioReader, "expected_num_samples", 16000)
    (result,) = encode_recordings(*units_model, [file])
    assert np.array_equal(result.audio_codes, expected.audio_codes)
    assert result.num_samples == expected.num_samples


def test_headers_that_announce_too_little_make_no_larger_batch(tiny_checkpoint, tmp_path, monkeypatch):
    model, feature_extractor = load(tiny_checkpoint)
    files = [tmp_path / f"{number}.wav" for number in range(4)]
    for number, file in enumerate(files):
        soundfile.write(file, np.random.default_rng(number).normal(0, 0.1, 8000 * (number + 1)), 16000)
    expected = [alone(model, load_audio(file, 16000)) for file in files]
    monkeypatch.setattr(audio_files, "announced_num_samples", lambda *_: 4000)
    shapes, encode = [], type(model).encode
    monkeypatch.setattr(
        type(model), "encode", lambda *args, **kwargs: shapes.append(kwargs) or encode(*args, **kwargs)
    )
    results = list(encode_recordings(model, feature_extractor, files, batch_seconds=2.0))
    for result, codes in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.audio_codes, codes)
    assert sorted(tuple(shape["input_values"].shape) for shape in shapes) == [
        (1, 1, 24000),
        (1, 1, 32000),
        (2, 1, 16000),
    ]


def test_a_recording_that_the_model_cannot_run_costs_that_recording_alone(units_model, waveforms, monkeypatch):
    model, feature_extractor = units_model
    encode = model.encode

    def out_of_memory(input_values, **kwargs):
        if input_values.shape[-1] > 1.5 * 16000:
            raise MemoryError
        return encode(input_values, **kwargs)

    monkeypatch.setattr(model, "encode", out_of_memory)
    results = list(encode_recordings(model, feature_extractor, waveforms))
    too_long = [len(samples) > 1.5 * 16000 for samples in waveforms]
    assert [result.reason == "MemoryError" for result in results] == too_long
    assert 0 < sum(too_long) < len(too_long)


def test_a_batch_holds_no_more_seconds_than_allowed(units_model, waveforms, monkeypatch):
    model, feature_extractor = units_model
    shapes = []
    encode = model.encode

    def watched(input_values, **kwargs):
        shapes.append(tuple(input_values.shape))
        return encode(input_values, **kwargs)

    monkeypatch.setattr(model, "encode", watched)
    list(encode_recordings(model, feature_extractor, waveforms, batch_seconds=2.3))
    assert [rows for rows, _, _ in shapes] == [1, 1, 2, 3]
    assert all(rows * num_samples <= 2.3 * 16000 for rows, _, num_samples in shapes)
    assert [num_samples for _, _, num_samples in shapes] == sorted((shape[2] for shape in shapes), reverse=True)


def test_rows_of_a_dataset_are_recordings(units_model, speech, waveforms):
    rows = load_recordings(str(speech))
    results = list(encode_recordings(*units_model, rows))
    assert [result.name for result in results] == rows["file_name"][:]
    assert "not readable as audio" in results[-1].reason
    in_memory = [{"audio": {"path": None, "bytes": (speech / "a" / "0.wav").read_bytes()}}]
    (result,) = encode_recordings(*units_model, in_memory)
    assert np.array_equal(result.audio_codes, results[0].audio_codes)
    assert results[0].num_samples == len(waveforms[0])


def test_what_cannot_be_encoded_is_set_aside_and_nothing_else(units_model, waveforms, tmp_path):
    too_short, with_nan = waveforms[0][:100], waveforms[1].copy()
    with_nan[7] = np.nan
    recordings = [waveforms[2], too_short, tmp_path / "missing.wav", with_nan, waveforms[0][:0], waveforms[3]]
    results = list(encode_recordings(*units_model, recordings))
    reasons = [result.reason for result in results]
    assert [reason is None for reason in reasons] == [True, False, False, False, False, True]
    assert "100 samples" in reasons[1]
    assert "no such file" in reasons[2]
    assert "NaN" in reasons[3]
    assert reasons[4] == "contains no samples."
    assert np.array_equal(results[5].audio_codes, alone(units_model[0], waveforms[3]))


def test_audio_is_decoded_ahead_by_other_threads(units_model, speech, monkeypatch):
    model, feature_extractor = units_model
    decoded = []

    read = AudioReader.__iter__

    def watched_read(reader):
        decoded.append(threading.current_thread())
        return read(reader)

    monkeypatch.setattr(AudioReader, "__iter__", watched_read)
    files = 4 * sorted(speech.rglob("[0-9].wav"))
    results = encode_recordings(model, feature_extractor, files, batch_seconds=2.3, in_order=False)
    assert next(results).reason is None
    assert len(decoded) > 1
    assert threading.main_thread() not in decoded
    results.close()  # what is not wanted any more is not decoded
    assert len(decoded) < len(files)


def test_the_number_of_cores_changes_no_bit_and_is_the_same_afterwards(units_model, tiny_checkpoint, waveforms):
    # Encoders of transformers keep notes in their modules while they run, which two threads would mix up.
    before = torch.get_num_threads()
    for model, feature_extractor in (units_model, load(tiny_checkpoint)):
        found = {}
        for num_cores in (1, 4):
            torch.set_num_threads(num_cores)
            try:
                results = list(encode_recordings(model, feature_extractor, 8 * waveforms, 2.3, with_latents=True))
                assert torch.get_num_threads() == num_cores
            finally:
                torch.set_num_threads(before)
            assert {result.reason for result in results} == {None}
            found[num_cores] = results
        for one, other in zip(found[1], found[4], strict=True):
            np.testing.assert_array_equal(one.audio_codes, other.audio_codes)
            assert torch.equal(one.latents, other.latents)


def test_a_file_is_looked_through_once(units_model, speech, monkeypatch):
    looked = []

    def watched(source):
        looked.append(source.size)
        return audio_parts(source)

    monkeypatch.setattr(audio_files, "audio_parts", watched)
    files = sorted(speech.rglob("[0-9].wav"))
    results = list(encode_recordings(*units_model, files, batch_seconds=1.0))
    assert {result.reason for result in results} == {None}
    assert len(looked) == len(files)


def test_no_recordings_give_no_results_and_seconds_must_be_positive(units_model):
    assert list(encode_recordings(*units_model, [])) == []
    with pytest.raises(ValueError, match="`batch_seconds` must be positive"):
        encode_recordings(*units_model, [], batch_seconds=0)


@pytest.mark.parametrize("is_deduplicated", [False, True])
def test_lines(command, speech, tmp_path, units_model, is_deduplicated):
    output = tmp_path / "out" / "units.jsonl"
    assert command(speech, "-o", output, "--batch-seconds", 4, *["--deduplicate"] * is_deduplicated) == 1
    lines = {line.file_name: line for line in load_unit_lines(output)}
    assert sorted(lines) == sorted(str(path.relative_to(speech)) for path in speech.rglob("[0-9].wav"))
    for name, line in lines.items():
        units = line.units if line.durations is None else expand(line.units, line.durations)
        assert (line.durations is not None) == is_deduplicated
        assert units.tolist() == alone(units_model[0], load_audio(speech / name, 16000))[0].tolist()
    (rejected,) = map(json.loads, (tmp_path / "out" / "units.jsonl.rejected.jsonl").read_text().splitlines())
    assert rejected["name"] == "b/broken.wav"
    assert "not readable as audio" in rejected["reason"]


def test_a_second_run_adds_what_is_missing_and_heals_the_end(command, speech, tmp_path, capsys):
    (speech / "b" / "broken.wav").unlink()
    output, whole = tmp_path / "units.jsonl", tmp_path / "whole.jsonl"
    assert command(speech, "-o", whole) == 0
    lines = whole.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:3]) + lines[3][:25])
    before = output.stat().st_ino
    assert command(speech, "-o", output) == 0
    assert output.read_text().splitlines(keepends=True)[:3] == lines[:3]
    assert sorted(output.read_text().splitlines(keepends=True)) == sorted(lines)
    assert output.stat().st_ino == before
    assert command(speech, "-o", output, "--deduplicate") == 2
    assert "units that are not de-duplicated" in capsys.readouterr().err
    assert command(speech, "-o", output, "--deduplicate", "--overwrite") == 0
    assert all(line.durations is not None for line in load_unit_lines(output))


def test_merged_ids(command, speech, tmp_path, units_model):
    frames = [result.units for result in encode_recordings(*units_model, sorted(speech.rglob("[0-9].wav")))]
    bpe = train_unit_bpe(frames, 8, 20)
    bpe.save_pretrained(tmp_path / "bpe")
    assert command(speech, "-o", tmp_path / "units.jsonl", "--bpe", tmp_path / "bpe") == 1
    for text, line in zip(
        (tmp_path / "units.jsonl").read_text().splitlines(), load_unit_lines(tmp_path / "units.jsonl"), strict=True
    ):
        assert bpe.decode(json.loads(text)["bpe_ids"]).tolist() == line.units.tolist()


@pytest.mark.parametrize("is_deduplicated", [False, True])
def test_km_with_its_manifest(command, speech, tmp_path, units_model, is_deduplicated):
    assert command(speech, "-o", tmp_path / "train.km", "--format", "km", *["--deduplicate"] * is_deduplicated) == 1
    root, files = load_manifest(tmp_path / "train.tsv")
    assert root == str(speech)
    sequences = load_km(tmp_path / "train.km")
    if is_deduplicated:
        durations = load_km(tmp_path / "train.durations")
        sequences = [expand(*pair) for pair in zip(sequences, durations, strict=True)]
    else:
        assert not (tmp_path / "train.durations").exists()
    assert [name for name, _ in files] == sorted(name for name, _ in files)
    for (name, num_samples), units in zip(files, sequences, strict=True):
        samples = load_audio(speech / name, 16000)
        assert num_samples == len(samples)
        assert units.tolist() == alone(units_model[0], samples)[0].tolist()


def test_textless_items_and_only_those_that_are_missing(command, speech, tmp_path, units_model):
    arguments = [speech, "-o", tmp_path / "items", "--format", "textless", "--deduplicate", "--dense"]
    assert command(*arguments) == 1
    path = tmp_path / "items" / "a" / "0.wav.safetensors"
    item = load_textless(path)
    codes = alone(units_model[0], load_audio(speech / "a" / "0.wav", 16000))[0]
    assert np.array_equal(expand(item["units"], item["durations"]), codes)
    assert item["dense"].shape == (len(codes), 16)
    path.unlink()
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "items").rglob("*.safetensors")}
    command(*arguments)
    assert path.exists()
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())


def test_arrays(command, speech, tmp_path, units_model):
    output = tmp_path / "codes.safetensors"
    assert command(speech, "-o", output, "--format", "array") == 1
    for name, codes in zip(*load_code_arrays(output), strict=True):
        assert np.array_equal(codes, alone(units_model[0], load_audio(speech / name, 16000)))


def test_wrong_usage_is_one_line_and_does_nothing(command, speech, tmp_path, capsys):
    def error(*arguments, inputs=(speech,)):
        assert command(*inputs, "-o", tmp_path / "out.x", *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("speech-tokenizers units: error: ")
        assert not (tmp_path / "out.x").exists()
        return line

    assert "--format jsonl" in error("--format", "km", "--bpe", "bpe")
    assert "--format textless" in error("--dense")
    assert "leave out --deduplicate" in error("--format", "array", "--deduplicate")
    assert "--batch-seconds must be positive" in error("--batch-seconds", "0")
    assert "no such file or folder" in error(inputs=[tmp_path / "nothing"])
    train_unit_bpe([[1, 2]], 9, 11).save_pretrained(tmp_path / "bpe")
    assert "merges 9 units" in error("--bpe", tmp_path / "bpe")
    copy = tmp_path / "copy" / "a" / "0.wav"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"")
    assert "treat them in two runs" in error(inputs=[speech, copy.parents[1]])
    (tmp_path / "train.km").write_text("1\n")
    assert command(speech, "-o", tmp_path / "train.km", "--format", "km") == 2
    assert "pass --overwrite" in capsys.readouterr().err


def test_several_codebooks_need_another_format(speech, tmp_path, tiny_checkpoint, capsys):
    arguments = [str(speech / "a"), "-o", str(tmp_path / "out"), "--model", str(tiny_checkpoint), "--device", "cpu"]
    assert main(["units", *arguments, "--format", "km"]) == 2
    assert "has 4; use jsonl or array" in capsys.readouterr().err
    assert main(["units", *arguments]) == 0
    assert all(line.units.shape[0] == 4 for line in load_unit_lines(tmp_path / "out"))


def test_a_model_without_units_is_refused(speech, tmp_path, capsys):
    folder = tmp_path / "encoder"
    HubertModel(tiny_hubert()).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    arguments = [str(speech), "-o", str(tmp_path / "units.jsonl"), "--model", str(folder), "--device", "cpu"]
    assert main(["units", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "is a HubertModel, which has no units; `speech-tokenizers fit-units`" in line
    assert not (tmp_path / "units.jsonl").exists()


def test_a_file_of_another_kind_is_left_as_it_is(command, speech, tmp_path, capsys):
    for content in ('["other"]\n', "notes without a line break"):
        (tmp_path / "units.jsonl").write_text(content)
        assert command(speech, "-o", tmp_path / "units.jsonl") == 2
        assert "units.jsonl" in capsys.readouterr().err
        assert (tmp_path / "units.jsonl").read_text() == content
