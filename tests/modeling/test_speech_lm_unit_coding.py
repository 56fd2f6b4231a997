# SPDX-License-Identifier: Apache-2.0
"""Units as runs with durations, and merged to tokens: what is exact, and what a speech language model does with it."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from helpers.tiny_speaking_lm import PHONES, tiny_codec, tiny_lm, tiny_row
from speech_tokenizers.evaluation.speech_lm.synthesis import SynthesisItem, Voice
from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.modeling.processing_speech_lm import SpeechLMProcessor
from speech_tokenizers.modeling.pronunciations import PronunciationLexicon
from speech_tokenizers.modeling.speech_lm_text import build_speech_vocabulary
from speech_tokenizers.modeling.speech_lm_unit_coding import UnitCoding
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor
from speech_tokenizers.processing.unit_bpe import train_unit_bpe
from speech_tokenizers.training.language_models.speech_lm_items import (
    frames_per_character,
    piece_frames,
    unit_durations,
)


NUM_UNITS, MAX_DURATION = 16, 5
DURATIONS = [1.0, 1.4, 1.5, 2.6, *[2.0] * 12]


def random_units(seed: int, num_units: int = NUM_UNITS) -> np.ndarray:
    """Units of a clip of 1 to 60 frames, in runs of 1 to 12 frames, some of which follow one another often."""
    random = np.random.default_rng(seed)
    pairs = random.integers(0, 4, 30) * 2
    units = np.where(random.random(30) < 0.5, pairs, random.integers(0, num_units, 30))
    return np.repeat(units, random.geometric(0.4, 30).clip(1, 12))[: random.integers(1, 61)]


def random_ends(seed: int, num_frames: int) -> torch.Tensor:
    random = np.random.default_rng(seed)
    inner = random.choice(num_frames - 1, size=random.integers(0, num_frames), replace=False) + 1
    return torch.tensor(sorted({*inner.tolist(), num_frames}))


@pytest.fixture(scope="module")
def bpe():
    return train_unit_bpe([random_units(seed) for seed in range(100)], NUM_UNITS, 60)


@pytest.fixture(scope="module")
def codings(bpe):
    return {
        "runs": UnitCoding("runs", NUM_UNITS, MAX_DURATION),
        "bpe": UnitCoding("bpe", NUM_UNITS, MAX_DURATION, bpe.merges),
        "units": UnitCoding("units", NUM_UNITS, unit_durations=DURATIONS),
    }


# --- The coding alone ---

EDGES = [[3], [3] * 4, [3] * 5, [3] * 6, [3] * 23, list(range(16)), [2, 2, 0, 2, 2]]
CLIPS = [*EDGES, *(random_units(1000 + seed).tolist() for seed in range(60))]


@pytest.mark.parametrize("aligned", [False, True])
def test_runs_are_lossless(codings, aligned):
    for seed, units in enumerate(CLIPS):
        codes = torch.tensor([units])
        ends = random_ends(seed, len(units)) if aligned else None
        runs, run_ends = codings["runs"].encode(codes, ends)
        assert torch.equal(codings["runs"].decode(runs), codes)
        assert 0 <= int(runs[1].min()) <= int(runs[1].max()) < MAX_DURATION
        if ends is None:
            # As few as can be: neighbours are different units, or the first of them is full.
            assert run_ends is None
            assert bool(((runs[0].diff() != 0) | (runs[1, :-1] == MAX_DURATION - 1)).all())
        else:
            assert bool((run_ends.diff(prepend=torch.tensor([0])) >= 1).all())
            assert torch.equal(codings["runs"].frames_of_runs(runs, run_ends), ends)


@pytest.mark.parametrize("aligned", [False, True])
def test_tokens_keep_units_lengths_and_pieces(codings, aligned):
    coding, merged = codings["bpe"], 0
    for seed, units in enumerate(CLIPS):
        codes = torch.tensor([units])
        ends = random_ends(seed, len(units)) if aligned else None
        tokens, token_ends = coding.encode(codes, ends)
        merged += int((tokens[0] >= NUM_UNITS).sum())
        decoded = coding.decode(tokens)
        assert decoded.shape == codes.shape
        # The frames of each token are the frames that it was made of, and their units follow in the same order.
        bounds = coding.frames_of_runs(tokens, torch.arange(tokens.shape[1] + 1)).tolist()
        for start, stop in zip(bounds, bounds[1:], strict=False):
            before, after = codes[0, start:stop], decoded[0, start:stop]
            assert torch.equal(torch.unique_consecutive(before), torch.unique_consecutive(after))
            counts = torch.unique_consecutive(after, return_counts=True)[1]
            assert counts.max() - counts.min() <= 1  # as even as can be
        if ends is not None:
            assert torch.equal(coding.frames_of_runs(tokens, token_ends), ends)
    assert merged > 50


def test_tokens_are_those_of_the_bpe(bpe):
    coding = UnitCoding("bpe", NUM_UNITS, 1000, bpe.merges)
    assert len(coding.tokens) == len(bpe) - 2
    for units in CLIPS:
        ids, durations = bpe.encode(np.array(units))
        tokens = coding.encode(torch.tensor([units]))[0]
        assert tokens[0].tolist() == (ids - 2).tolist()
        assert (tokens[1] + 1).tolist() == [int(part.sum()) for part in durations]


def test_a_token_that_lasts_too_long_is_written_as_its_units(bpe):
    coding = UnitCoding("bpe", NUM_UNITS, MAX_DURATION, bpe.merges)
    token = next(token for token in coding.tokens if len(token) == 2)
    short = torch.from_numpy(np.repeat(token, [2, 3]))[None]
    long = torch.from_numpy(np.repeat(token, [2, 9]))[None]
    assert coding.encode(short)[0].tolist() == [[coding.tokens.index(token)], [4]]
    assert coding.encode(long)[0].tolist() == [[token[0], token[1], token[1]], [1, 4, 3]]
    assert torch.equal(coding.decode(coding.encode(long)[0]), long)


def test_each_unit_of_a_token_lasts_a_frame(codings):
    number = next(number for number, token in enumerate(codings["bpe"].tokens) if len(token) == 3)
    runs = torch.tensor([[number, 4], [0, 1]])  # one frame for three units
    assert codings["bpe"].decode(runs)[0].tolist() == [*codings["bpe"].tokens[number], 4, 4]
    assert codings["bpe"].frames_of_runs(runs, torch.tensor([0, 1, 2])).tolist() == [0, 3, 5]


def test_units_of_a_token_share_its_frames_by_their_usual_durations(bpe):
    number, (first, second) = next(
        (number, token)
        for number, token in enumerate(UnitCoding("bpe", NUM_UNITS, 50, bpe.merges).tokens)
        if len(token) == 2
    )
    durations = [1.0] * NUM_UNITS
    durations[second] = 3.0
    coding = UnitCoding("bpe", NUM_UNITS, 50, bpe.merges, durations)
    for total, counts in ((2, [1, 1]), (4, [1, 3]), (8, [2, 6]), (1, [1, 1])):
        decoded = coding.decode(torch.tensor([[number], [total - 1]]))[0].tolist()
        assert decoded == [first] * counts[0] + [second] * counts[1]


def test_units_without_durations_keep_their_order(codings):
    coding = codings["units"]
    runs, ends = coding.encode(torch.tensor([[1, 1, 1, 2, 3, 3, 0]]), torch.tensor([2, 7]))
    assert runs.tolist() == [[1, 1, 2, 3, 0]]
    assert ends.tolist() == [1, 5]
    assert coding.decode(runs).tolist() == [[1, 1, 2, 2, 3, 3, 3, 0]]
    assert coding.frames_of_runs(runs, ends).tolist() == [1, 8]
    for units in CLIPS:
        assert coding.encode(torch.tensor([units]))[0].tolist() == [torch.tensor(units).unique_consecutive().tolist()]


@pytest.mark.parametrize("kind", ["units", "runs", "bpe"])
def test_runs_decode_one_by_one(codings, kind):
    coding = codings[kind]
    runs = coding.encode(torch.tensor([CLIPS[-1]]))[0]
    parts = [coding.decode(runs[:, place : place + 1]) for place in range(runs.shape[1])]
    assert torch.equal(torch.cat(parts, dim=1), coding.decode(runs))
    assert coding.decode(runs[:, :0]).shape == (1, 0)


def test_frames_are_left_as_they_are():
    coding, codes, ends = UnitCoding(), torch.randint(9, (4, 7)), torch.tensor([3, 7])
    assert coding.encode(codes, ends) == (codes, ends)
    assert coding.decode(codes) is codes
    assert coding.frames_of_runs(codes, ends) is ends
    assert coding.model_sizes(4, 9) == coding.codec_sizes(4, 9) == (4, 9)
    assert coding.sizes == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("words", 4, 4), "must be one of frames, units, runs, bpe"),
        (("frames", 4), "`num_units` must be 0"),
        (("runs", 0, 4), "`num_units` must be 0"),
        (("runs", 4, 0), "`max_duration` must be at least 1"),
        (("units", 4, 3), "`max_duration` must be at least 1"),
        (("units", 4), "`unit_durations` must hold a mean duration"),
        (("units", 4, 0, [], [1.0, 2.0, 0.9, 1.0]), "`unit_durations` .* from 0.9 on"),
        (("runs", 4, 4, [], [1.0] * 4), "`unit_durations` .* empty with others"),
        (("runs", 4, 4, ["0 1"]), "be empty with others"),
        (("bpe", 4, 4), "must hold the merges"),
        (("bpe", 4, 4, ["0 4"]), "Merge 0 .* there before it"),
        (("bpe", 4, 4, ["0 1", "2"]), "Merge 1 .* two numbers"),
        (("bpe", 4, 2, ["0 1", "4 2"]), "longest token .* has 3 units"),
    ],
)
def test_codings_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        UnitCoding(*fields)


def test_bad_clips_are_refused(codings):
    coding = codings["runs"]
    for codes, ends, message in (
        (torch.zeros(2, 3, dtype=torch.long), None, "shape"),
        (torch.tensor([[NUM_UNITS]]), None, "between 0 and 15"),
        (torch.tensor([[1, 1]]), torch.tensor([1]), "end with the 2 frames"),
        (torch.tensor([[1, 1]]), torch.tensor([2, 2]), "at least a frame"),
        (torch.tensor([[1, 1]]), torch.tensor([], dtype=torch.long), "end with the 2 frames"),
    ):
        with pytest.raises(ValueError, match=message):
            coding.encode(codes, ends)
    with pytest.raises(TypeError, match="integers"):
        coding.encode(torch.zeros(1, 3))
    for runs, message in (
        ([[NUM_UNITS], [0]], "token between 16 and 16"),
        ([[0], [MAX_DURATION]], "duration between 5 and 5"),
        ([[0, 1]], "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            coding.decode(torch.tensor(runs))


# --- In a speech language model ---


def make(kind, bpe, text_alignment="none", layout="flat", **changes):
    codec = tiny_codec(1, NUM_UNITS)
    fields = {"max_duration": MAX_DURATION, **changes} if kind in ("runs", "bpe") else changes
    if kind in ("units", "bpe"):
        fields["unit_durations"] = DURATIONS
    processor = SpeechLMProcessor.from_tokenizer(
        build_speech_vocabulary(),
        codec,
        RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate),
        text_alignment=text_alignment,
        piece_labels=PHONES if text_alignment == "phone" else (),
        codec_name="tiny-codec",
        layout=layout,
        unit_coding=kind,
        unit_bpe=bpe if kind == "bpe" else None,
        **fields,
    )
    if text_alignment == "phone":
        lexicon = PronunciationLexicon()
        lexicon.add("hi", ["hh", "ay"])
        lexicon.add("tim", ["t", "ay", "m"])
        processor.attach_pronouncer(lexicon)
    lm = tiny_lm(vocab_size=processor.audio_offset)
    return SpeechLMForConditionalGeneration.from_causal_lm(lm, codec, processor), processor


def row_of_units(units, **fields):
    row = tiny_row(num_frames=len(units), codec=tiny_codec(1, NUM_UNITS), **fields)
    return {**row, "audio_codes": list(units)}


UNITS = [1] * 9 + [2, 2, 3] + [5] * 6 + [0, 4, 0, 4, 4, 4]  # 24 frames of 4 phones


@pytest.mark.parametrize("kind", ["frames", "units", "runs", "bpe"])
@pytest.mark.parametrize("text_alignment", ["none", "word", "phone"])
def test_rows_are_written_and_read_back(bpe, kind, text_alignment):
    _, processor = make(kind, bpe, text_alignment)
    inputs = processor.row_inputs(row_of_units(UNITS))
    ids = processor.speech_ids
    is_unit = ids.is_unit(inputs["input_ids"])
    assert bool((inputs["labels"][is_unit] == inputs["input_ids"][is_unit]).all())
    runs = (inputs["input_ids"][is_unit] - ids.audio_offset).view(-1, ids.num_codebooks).T
    runs = runs - ids.codebook_size * torch.arange(ids.num_codebooks)[:, None]
    decoded = processor.coding.decode(runs)[0].tolist()
    assert decoded == UNITS if kind in ("frames", "runs") else kind == "units" or len(decoded) == len(UNITS)
    if text_alignment == "phone":
        # Each phone stands before the runs of its own frames, 6 of them.
        piece = (inputs["input_ids"] * ids.is_piece(inputs["input_ids"])).tolist()
        start = inputs["input_ids"].tolist().index(ids.audio_start)
        labels = [processor.piece_labels[number - ids.piece_offset] for number in piece[start:] if number]
        assert labels == ["pau", "hh", "ay", "pau"]
        row = row_of_units(UNITS)
        counts = processor.frame_counts(row, row["phones"])
        assert sum(counts) == runs.shape[1]
        ends = processor.coding.frames_of_runs(runs, torch.tensor(counts).cumsum(0))
        assert kind == "units" or ends.tolist() == [6, 12, 18, 24]


def test_limits_are_counted_in_what_stands_in_the_sequence(bpe):
    rows = Dataset.from_list([row_of_units(UNITS)])
    _, frames = make("frames", bpe, "phone")
    _, runs = make("runs", bpe, "phone")
    # Six frames: 1 five times and once more; 1 three times, 2, 3; 5; 0, 4, 0, 4.
    assert runs.frame_counts(row_of_units(UNITS), row_of_units(UNITS)["phones"]) == [2, 3, 2, 4]
    assert runs.frame_counts(row_of_units(UNITS)) == [10]
    limits = [dict(zip(PHONES, piece_frames(rows, processor), strict=True)) for processor in (frames, runs)]
    assert limits[0]["hh"] == limits[0]["pau"] == [6, 6]
    assert limits[1]["hh"] == [3, 3]
    assert limits[1]["pau"] == [2, 4]
    assert unit_durations(rows, 6) == [1.0, 9.0, 2.0, 1.0, 2.0, 6.0]
    assert frames_per_character(rows, frames) == [8, 8]
    assert frames_per_character(rows, runs) == pytest.approx([10 / 3, 10 / 3])


@pytest.mark.parametrize("layout", ["flat", "delay"])
@pytest.mark.parametrize("kind", ["units", "runs", "bpe"])
@pytest.mark.parametrize("text_alignment", ["none", "phone"])
def test_speech_is_decoded_to_frames(bpe, kind, text_alignment, layout):
    model, processor = make(kind, bpe, text_alignment, layout)
    texts = ["hi", "tim hi", "hi tim"]
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    output = model.generate_speech(texts, processor, max_frames=12, generators=generators)
    hop = round(processor.sampling_rate / processor.frame_rate)
    lengths = output.audio_codes_mask.sum(-1)
    assert output.audio_codes.shape[1] == 1
    assert int(output.audio_codes.max()) < NUM_UNITS
    assert output.audio_mask.sum(-1).tolist() == (lengths * hop).tolist()
    for place, text in enumerate(texts):
        alone = model.generate_speech(
            text, processor, max_frames=12, generators=[torch.Generator().manual_seed(place)]
        )
        assert torch.equal(alone.audio_codes[0], output.audio_codes[place, :, : int(lengths[place])])
        assert torch.allclose(
            alone.audio_values[0], output.audio_values[place, :, : int(lengths[place]) * hop], atol=1e-5
        )
        if text_alignment == "phone" and output.ended[place]:
            assert float(output.piece_times[place][-1, 1]) == pytest.approx(int(lengths[place]) / processor.frame_rate)
        if layout == "flat":
            heard = processor.decode(output.sequences[place])
            assert torch.allclose(heard, output.audio_values[place, 0, : len(heard)], atol=1e-5)
            assert len(heard) == int(lengths[place]) * hop


def test_what_no_clip_has_is_never_written(bpe):
    # 16 units, but only 5 durations: the scores of the others are the highest.
    model, processor = make("runs", bpe)
    ids = processor.speech_ids
    assert ids.sizes == model.config.code_sizes == (16, 5)
    unused = list(range(ids.audio_offset + 16 + 5, ids.audio_offset + 32))
    table = model.get_output_embeddings().weight
    with torch.no_grad():
        table[unused] = 1000 * table[unused]
    output = model.generate_speech("hi", processor, max_frames=30, generators=[torch.Generator().manual_seed(0)])
    assert not set(unused) & set(output.sequences[0].tolist())
    assert int(output.audio_codes_mask.sum()) > 0


def test_durations_may_repeat_where_units_may_not(bpe):
    model, processor = make("runs", bpe, max_duration=1)
    output = model.generate_speech(
        "hi", processor, temperature=0, min_frames=8, max_frames=8, repetition_window=8, repetition_limit=1
    )
    assert len(set(output.audio_codes[0, 0].tolist())) == 8


def test_rows_of_tokens_begin_at_the_mean_of_their_units(codings):
    vectors = torch.randn(1, NUM_UNITS, 3)
    (found,) = codings["bpe"].token_vectors(vectors)
    assert torch.equal(found[:NUM_UNITS], vectors[0])
    for token, vector in zip(codings["bpe"].tokens, found, strict=True):
        assert torch.allclose(vector, vectors[0, list(token)].mean(0), atol=1e-6)


@pytest.mark.parametrize("kind", ["units", "runs", "bpe"])
def test_the_coding_travels_with_model_and_processor(bpe, tmp_path, kind):
    model, processor = make(kind, bpe, "phone")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = SpeechLMProcessor.from_pretrained(tmp_path)
    again = SpeechLMForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.model_fields() == processor.model_fields()
    assert again.config.coding.tokens == loaded.coding.tokens == processor.coding.tokens
    loaded.attach_codec(processor.codec)
    row = row_of_units(UNITS)
    assert torch.equal(loaded.row_inputs(row)["input_ids"], processor.row_inputs(row)["input_ids"])
    assert json.loads((tmp_path / "config.json").read_text())["unit_coding"] == kind


def test_pairs_that_do_not_belong_together_are_refused(bpe):
    model, _ = make("runs", bpe)
    for _, other in (make("frames", bpe), make("bpe", bpe), make("runs", bpe, max_duration=4)):
        with pytest.raises(ValueError, match="do not belong together"):
            model.generate_speech("hi", other)
    tokens, _ = make("bpe", bpe)
    merges = bpe.merges
    _, others = make("bpe", bpe)
    others.unit_merges = [merges[1], merges[0], *merges[2:]]
    with pytest.raises(ValueError, match="`unit_merges` others"):
        others.check_model(tokens)


def test_a_coding_needs_one_codebook_of_its_units(bpe):
    codec, tokenizer = tiny_codec(2, NUM_UNITS), build_speech_vocabulary()
    extractor = RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate)

    def processor(**options):
        return SpeechLMProcessor.from_tokenizer(tokenizer, codec, extractor, **options)

    with pytest.raises(ValueError, match="needs one codebook .*num_codebooks=1"):
        processor(unit_coding="runs")
    assert processor(unit_coding="runs", num_codebooks=1).num_codebooks == 2
    with pytest.raises(ValueError, match="merges 8 units, but the codec has 16"):
        processor(unit_coding="bpe", num_codebooks=1, unit_bpe=train_unit_bpe([np.array([0, 1, 0, 1, 0, 1])], 8, 11))
    with pytest.raises(ValueError, match="`max_duration` must"):
        processor(max_duration=4)
    with pytest.raises(ValueError, match="needs codes"):
        processor(unit_coding="runs", layout="continuous")


def test_durations_cannot_be_given_in_frames(bpe):
    model, processor = make("runs", bpe, "phone")
    with pytest.raises(ValueError, match="writes runs"):
        model.generate_speech("hi", processor, durations=[[3] * 4])


@pytest.mark.parametrize("kind", ["frames", "units", "runs", "bpe"])
def test_a_voice_of_runs_is_measured(bpe, kind):
    model, processor = make(kind, bpe, "phone")
    voice = Voice(model, processor, "runs", {"max_frames": 30})
    (result,) = voice.synthesize([SynthesisItem("hi tim", "a")])
    assert voice.num_codebooks == 1
    assert voice.codebook_size == NUM_UNITS
    assert result.said == result.asked[: len(result.said)]
    assert result.first_audio_seconds > 0
    assert voice.decode(result.frames) == pytest.approx(result.audio_values, abs=1e-5)
