# SPDX-License-Identifier: Apache-2.0
"""What the layouts of speech write, they read back; and what they read, they count."""

import random

import pytest
import torch

from speech_tokenizers.modeling.speech_lm_layouts import (
    SpeechIds,
    align_pieces,
    codes_to_flat,
    delay_labels,
    delay_legal_mask,
    flat_legal_mask,
    flat_to_codes,
    from_continuous,
    from_delay_grid,
    next_targets,
    piece_ends,
    sequence_length,
    split_pieces,
    to_continuous,
    to_delay_grid,
    units_mask,
)


# Text ids 0 to 9, phones 10 to 19, start 20, end 21, then the units.
IDS = SpeechIds(
    audio_start=20, audio_end=21, audio_offset=22, num_codebooks=2, codebook_size=5, piece_offset=10, num_pieces=10
)


def ids_with(num_codebooks: int, codebook_size: int = 5) -> SpeechIds:
    return SpeechIds(20, 21, 22, num_codebooks, codebook_size, piece_offset=10, num_pieces=10)


def random_codes(num_codebooks: int, num_frames: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 5, (num_codebooks, num_frames), generator=generator)


def random_ends(num_pieces: int, num_frames: int, random_state: random.Random) -> list[int]:
    inner = random_state.sample(range(1, num_frames), num_pieces - 1)
    return [*sorted(inner), num_frames]


# --- Flat ---


def test_an_id_is_offset_plus_codebook_plus_code():
    codes = torch.tensor([[1, 2, 3], [4, 0, 1]])
    assert codes_to_flat(codes, IDS).tolist() == [23, 31, 24, 27, 25, 28]


@pytest.mark.parametrize("num_codebooks", [1, 2, 3, 4])
@pytest.mark.parametrize("num_frames", [0, 1, 2, 17])
def test_flat_is_a_bijection(num_codebooks, num_frames):
    codes = random_codes(num_codebooks, num_frames, torch.Generator().manual_seed(num_frames))
    ids = ids_with(num_codebooks)
    flat = codes_to_flat(codes, ids)
    restored = flat_to_codes(flat, ids)
    assert torch.equal(restored.audio_codes, codes)
    assert restored.num_dropped == 0
    assert torch.equal(codes_to_flat(restored.audio_codes, ids), flat)
    assert bool(ids.is_unit(flat).all())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_codes_of_any_integer_type_are_written_alike(dtype):
    codes = random_codes(2, 9, torch.Generator().manual_seed(0))
    assert torch.equal(codes_to_flat(codes.to(dtype), IDS), codes_to_flat(codes, IDS))


@pytest.mark.parametrize("num_codebooks", [1, 2, 3, 4])
def test_any_ids_give_whole_frames_and_every_unit_is_kept_or_counted(num_codebooks):
    ids = ids_with(num_codebooks)
    generator = torch.Generator().manual_seed(num_codebooks)
    for _ in range(100):
        length = int(torch.randint(0, 30, (), generator=generator))
        input_ids = torch.randint(0, ids.audio_stop, (length,), generator=generator)
        codes = flat_to_codes(input_ids, ids)
        assert codes.audio_codes.shape[0] == num_codebooks
        assert codes.audio_codes.numel() + codes.num_dropped == int(ids.is_unit(input_ids).sum())


def test_units_out_of_turn_and_an_incomplete_last_frame_are_dropped():
    ids = ids_with(3)
    a, b, c = 22, 27, 32  # code 0 of each codebook
    # The frame a b is given up for the next a; the second c is out of turn; the last frame lacks c.
    input_ids = torch.tensor([b, a, b, a + 1, b + 1, 5, c + 1, c + 2, a + 3, b + 3])
    codes = flat_to_codes(input_ids, ids)
    assert codes.audio_codes.tolist() == [[1], [1], [1]]
    assert codes.num_dropped == 6
    # A unit of a later codebook is dropped, and the frame goes on.
    codes = flat_to_codes(torch.tensor([a + 1, c + 4, b + 2, c + 3]), ids)
    assert codes.audio_codes.tolist() == [[1], [2], [3]]
    assert codes.num_dropped == 1


def test_the_legal_ids_are_the_codebook_of_the_turn_and_the_end_behind_a_whole_frame():
    mask = flat_legal_mask(torch.tensor([0, 1, 2, 7]), 40, IDS)
    first, second = set(range(22, 27)), set(range(27, 32))
    legal = [set(row.nonzero()[:, 0].tolist()) for row in mask]
    assert legal == [first | {21}, second, first | {21}, second]


@pytest.mark.parametrize("num_codebooks", [1, 2, 3, 4])
def test_ids_drawn_from_the_legal_mask_lose_no_unit(num_codebooks):
    ids = ids_with(num_codebooks)
    generator = torch.Generator().manual_seed(num_codebooks)
    for _ in range(30):
        said: list[int] = []
        while ids.audio_end not in said:
            legal = flat_legal_mask(torch.tensor([len(said)]), ids.audio_stop, ids)[0]
            said.append(int(torch.multinomial(legal.float(), 1, generator=generator)))
        codes = flat_to_codes(torch.tensor(said), ids)
        assert codes.num_dropped == 0
        assert codes.audio_codes.numel() == len(said) - 1


# --- Targets and lengths ---


def test_each_position_predicts_the_label_of_the_next():
    labels = torch.tensor([[-100, 5, 6, 7], [-100, -100, 8, 9]])
    assert next_targets(labels).tolist() == [[5, 6, 7, -100], [-100, 8, 9, -100]]
    assert labels.tolist() == [[-100, 5, 6, 7], [-100, -100, 8, 9]]
    assert next_targets(labels[:, None])[:, 0].tolist() == next_targets(labels).tolist()


@pytest.mark.parametrize("length", [0, 1])
def test_the_last_position_predicts_nothing(length):
    assert next_targets(torch.full((2, length), 3)).tolist() == [[-100] * length] * 2


@pytest.mark.parametrize("num_frames", [0, 1, 12])
def test_the_flat_length_is_the_length_of_the_ids(num_frames):
    codes = random_codes(2, num_frames, torch.Generator().manual_seed(0))
    assert sequence_length(num_frames, 2) == 2 + len(codes_to_flat(codes, IDS))
    if num_frames >= 3:
        pieces = [[10], [11, 12], [13]]
        aligned = align_pieces(pieces, [1, 2, num_frames], codes, IDS)
        assert sequence_length(num_frames, 2, num_piece_ids=4) == 2 + len(aligned)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_frames": -1, "num_codebooks": 2}, "not be negative"),
        ({"num_frames": 1, "num_codebooks": 0}, "at least 1"),
        ({"num_frames": 1, "num_codebooks": 2, "layout": "round"}, "'round'"),
        ({"num_frames": 1, "num_codebooks": 2, "layout": "delay", "delays": [0]}, "each of 2 codebooks"),
    ],
)
def test_a_length_of_what_cannot_be_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        sequence_length(**arguments)


# --- Aligned ---


def test_each_piece_stands_before_its_frames():
    codes = torch.tensor([[0, 1, 2], [0, 1, 2]])
    aligned = align_pieces([[10], [11, 12]], [1, 3], codes, IDS)
    assert aligned.tolist() == [10, 22, 27, 11, 12, 23, 28, 24, 29]


@pytest.mark.parametrize("num_codebooks", [1, 2, 3])
@pytest.mark.parametrize("kind", ["phone", "word"])
def test_aligned_pieces_are_split_into_what_they_were(num_codebooks, kind):
    ids, random_state = ids_with(num_codebooks), random.Random(num_codebooks)
    generator = torch.Generator().manual_seed(num_codebooks)
    for _ in range(50):
        num_frames = random_state.randint(0, 30)
        num_pieces = random_state.randint(1, num_frames) if num_frames else 0
        sizes = [1 if kind == "phone" else random_state.randint(1, 3) for _ in range(num_pieces)]
        pieces = [[random_state.randint(10, 19) for _ in range(size)] for size in sizes]
        ends = random_ends(num_pieces, num_frames, random_state) if num_pieces else []
        codes = random_codes(num_codebooks, num_frames, generator)
        aligned = align_pieces(pieces, ends, codes, ids)
        marked = torch.cat([torch.tensor([20]), aligned, torch.tensor([21])])
        split = split_pieces(marked, ids, pieces if kind == "word" else None)
        assert torch.equal(split.audio_codes, codes)
        assert split.ends.tolist() == ends
        assert split.starts.tolist() == [0, *ends[:-1]][:num_pieces]
        assert split.num_dropped == 0
        assert split.pieces == pieces
        assert torch.equal(flat_to_codes(marked, ids).audio_codes, codes)


def test_what_was_not_said_is_not_split():
    pieces = [[1, 2], [3], [4]]
    # The ids stop within the second frame of the first piece, or within the ids of a piece.
    split = split_pieces(torch.tensor([1, 2, 22, 27, 23]), IDS, pieces)
    assert (split.starts.tolist(), split.ends.tolist(), split.num_dropped) == ([0], [1], 1)
    assert split_pieces(torch.tensor([1]), IDS, pieces).pieces == [[1]]
    with pytest.raises(ValueError, match="5 ids that are neither"):
        split_pieces(torch.tensor([1, 2, 3, 4, 5]), IDS, pieces)


def test_a_piece_within_a_frame_begins_with_that_frame():
    split = split_pieces(torch.tensor([10, 22, 27, 23, 11, 28, 24, 29]), IDS)
    assert split.audio_codes.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert (split.starts.tolist(), split.ends.tolist()) == ([0, 1], [1, 3])


def test_ends_are_nearest_frames_where_each_piece_has_one():
    assert piece_ends([0.31, 0.55, 1.0], 10.0, 10).tolist() == [3, 6, 10]
    # The last piece ends with the clip, whatever its time.
    assert piece_ends([0.3, 0.6], 10.0, 12).tolist() == [3, 12]
    # Pieces without time take a frame from their neighbours.
    assert piece_ends([0.0, 0.0, 0.9, 1.0, 1.0, 1.0], 10.0, 10).tolist() == [1, 2, 7, 8, 9, 10]
    assert piece_ends([], 10.0, 0).tolist() == []


def test_ends_strictly_increase_up_to_the_last_frame():
    random_state = random.Random(0)
    for _ in range(200):
        num_pieces = random_state.randint(1, 12)
        num_frames = random_state.randint(num_pieces, 30)
        times = sorted(random_state.uniform(-0.1, 3.0) for _ in range(num_pieces))
        ends = piece_ends(times, 10.0, num_frames)
        assert ends[0] >= 1
        assert bool((ends[1:] > ends[:-1]).all())
        assert ends[-1] == num_frames


def test_ends_that_are_possible_as_they_are_move_by_half_a_frame_at_most():
    random_state = random.Random(0)
    for _ in range(50):
        whole = random_ends(5, 40, random_state)
        times = [(end + random_state.uniform(-0.49, 0.49)) / 12.5 for end in whole]
        assert piece_ends(torch.tensor(times), 12.5, 40).tolist() == whole


# --- Delay grid ---

BOS, EOS = 5, 6
SOME_DELAYS = [[0], [0, 1], [0, 1, 2, 3], [0, 0, 0], [0, 2, 5], [1, 0, 3]]


def random_batch(num_codebooks: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of ragged rows, one without a frame and one of one, with what is no code behind them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.cat([torch.tensor([0, 1]), torch.randint(0, 12, (3,), generator=generator)])
    codes = torch.randint(0, 5, (5, num_codebooks, int(lengths.max()) + seed % 2), generator=generator)
    is_real = torch.arange(codes.shape[2]) < lengths[:, None]
    return codes.masked_fill(~is_real[:, None], -1), lengths


def test_a_grid_by_hand():
    codes = torch.tensor([[[0, 1, 2], [3, 4, 0], [1, 2, 3]]])
    grid = to_delay_grid(codes, torch.tensor([3]), [0, 1, 2], 5)
    assert grid.tolist() == [[[0, 1, 2, EOS, EOS, EOS], [BOS, 3, 4, 0, EOS, EOS], [BOS, BOS, 1, 2, 3, EOS]]]


def test_a_shorter_row_is_filled_on_the_side_asked_for():
    codes = torch.tensor([[[0, 1], [2, 3]], [[4, -1], [1, -1]]])
    right = to_delay_grid(codes, torch.tensor([2, 1]), [0, 1], 5)
    left = to_delay_grid(codes, torch.tensor([2, 1]), [0, 1], 5, padding_side="left")
    assert right[1].tolist() == [[4, EOS, EOS, EOS], [BOS, 1, EOS, EOS]]
    assert left[1].tolist() == [[BOS, 4, EOS, EOS], [BOS, BOS, 1, EOS]]
    assert torch.equal(left[0], right[0])


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("delays", SOME_DELAYS)
def test_the_delay_grid_round_trips_for_any_length_and_delays(delays, padding_side):
    for seed in range(30):
        codes, lengths = random_batch(len(delays), seed)
        grid = to_delay_grid(codes, lengths, delays, 5, padding_side)
        assert grid.shape[2] + 2 == sequence_length(int(lengths.max()), len(delays), "delay", delays=delays)
        restored, restored_lengths = from_delay_grid(grid, delays, 5)
        assert torch.equal(restored_lengths, lengths)
        longest = int(lengths.max())
        assert torch.equal(restored, codes.clamp(min=0)[..., :longest])
        # So does each row alone.
        for row in range(5):
            own = to_delay_grid(codes[row : row + 1], lengths[row : row + 1], delays, 5)
            width = own.shape[2]
            part = grid[row, :, :width] if padding_side == "right" else grid[row, :, grid.shape[2] - width :]
            assert torch.equal(part, own[0])


@pytest.mark.parametrize("delays", SOME_DELAYS)
def test_an_unfinished_grid_gives_its_whole_frames(delays):
    codes, lengths = random_batch(len(delays), 3)
    grid = to_delay_grid(codes, lengths, delays, 5)
    for width in range(grid.shape[2]):
        restored, restored_lengths = from_delay_grid(grid[..., :width], delays, 5)
        assert torch.equal(restored_lengths, lengths.clamp(max=max(width - max(delays), 0)))
        for row, length in enumerate(restored_lengths.tolist()):
            assert torch.equal(restored[row, :, :length], codes[row, :, :length])


def test_a_row_ends_at_the_first_column_that_is_no_code():
    grid = torch.tensor([[[0, 1, EOS, 2], [0, BOS, 1, 2]], [[0, 1, 2, 3], [4, 3, 7, 0]]])
    codes, lengths = from_delay_grid(grid, [0, 0], 5)
    assert lengths.tolist() == [1, 2]
    assert codes.tolist() == [[[0, 0], [0, 0]], [[0, 1], [4, 3]]]


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("delays", SOME_DELAYS)
def test_the_codes_and_the_first_eos_of_every_codebook_are_targets_and_nothing_else_is(delays, padding_side):
    codes, lengths = random_batch(len(delays), 4)
    grid = to_delay_grid(codes, lengths, delays, 5, padding_side)
    kept = grid.clone()
    labels = delay_labels(grid, 5)
    assert torch.equal(grid, kept)
    for row in range(len(codes)):
        for codebook in range(len(delays)):
            targets = labels[row, codebook][labels[row, codebook] != -100]
            assert targets.tolist() == [*codes[row, codebook, : lengths[row]].tolist(), EOS]
            first_eos = grid[row, codebook].tolist().index(EOS)
            assert labels[row, codebook, first_eos] == EOS


@pytest.mark.parametrize("delays", [delays for delays in SOME_DELAYS if delays.count(0) == 1])
def test_columns_drawn_from_the_legal_mask_are_a_grid(delays):
    generator = torch.Generator().manual_seed(0)
    num_rows, num_codebooks = 6, len(delays)
    # Rows begin at different columns, as prompts that are padded on the left make them.
    grid = torch.full((num_rows, num_codebooks, 0), BOS)
    padding = torch.tensor([0, 0, 0, 2, 2, 2])
    while not bool((grid == EOS).any(-1).all()) or grid.shape[2] < 3:
        legal = delay_legal_mask(grid, delays, 5)
        drawn = torch.multinomial(legal.flatten(0, 1).float(), 1, generator=generator).view(num_rows, num_codebooks)
        is_padding = grid.shape[2] < padding[:, None]
        grid = torch.cat([grid, torch.where(is_padding, BOS, drawn)[..., None]], dim=2)
    codes, lengths = from_delay_grid(grid, delays, 5)
    assert int(lengths.max()) > 1
    for row in range(num_rows):
        # What stands behind the padding, up to where the slowest codebook ends, is the grid of these frames.
        own = grid[row : row + 1, :, padding[row] :]
        again = to_delay_grid(codes[row : row + 1], lengths[row : row + 1], delays, 5)
        assert torch.equal(own[..., : again.shape[2]], again)
        assert bool((own[..., again.shape[2] :] == EOS).all())


def test_codes_that_a_smaller_codebook_lacks_are_not_legal():
    ids = SpeechIds(20, 21, 22, 3, 5, piece_offset=10, num_pieces=10, codebook_sizes=(5, 2, 3))
    legal = flat_legal_mask(torch.tensor([0, 1, 2, 3]), ids.audio_stop + 4, ids)
    expected = [[21, 22, 23, 24, 25, 26], [27, 28], [32, 33, 34], [21, 22, 23, 24, 25, 26]]
    assert [row.nonzero()[:, 0].tolist() for row in legal] == expected
    assert not units_mask(torch.tensor([ids.audio_stop + 4]), ids.audio_stop + 4, ids).any()  # no codebook
    assert codes_to_flat(torch.tensor([[4], [1], [2]]), ids).tolist() == [26, 28, 34]
    with pytest.raises(ValueError, match="hold 2 in codebook 1, which has 2 codes"):
        codes_to_flat(torch.tensor([[4], [2], [2]]), ids)
    grid = torch.tensor([[[0, 1], [BOS, 1]]])
    for width, column in enumerate([[[0, 1, 2, 3, 4, EOS], [BOS]], [[0, 1, 2, 3, 4, EOS], [0, 1]]]):
        mask = delay_legal_mask(grid[..., :width], [0, 1], 5, [5, 2])[0]
        assert [row.nonzero()[:, 0].tolist() for row in mask] == column
    for sizes in ([5], [5, 6], [5, 0]):
        with pytest.raises(ValueError, match="`codebook_sizes` must hold"):
            delay_legal_mask(grid, [0, 1], 5, sizes)
        with pytest.raises(ValueError, match="`codebook_sizes` must hold"):
            SpeechIds(20, 21, 22, 2, 5, codebook_sizes=tuple(sizes))


def test_the_legal_columns_of_a_grid_by_hand():
    codes, bos, eos = [0, 1, 2, 3, 4], [BOS], [EOS]
    grid = torch.tensor([[[0, 1, EOS, EOS], [BOS, 2, 3, EOS]]])
    expected = [[codes + eos, bos], [codes + eos, codes], [codes + eos, codes], [eos, eos]]
    for width, column in enumerate(expected):
        legal = delay_legal_mask(grid[..., :width], [0, 1], 5)[0]
        assert [row.nonzero()[:, 0].tolist() for row in legal] == column


def test_codebooks_without_delay_that_end_at_different_columns_are_read_up_to_the_first_end():
    generator = torch.Generator().manual_seed(0)
    grid = torch.full((8, 3, 0), BOS)
    for _ in range(60):
        legal = delay_legal_mask(grid, [0, 0, 0], 5)
        drawn = torch.multinomial(legal.flatten(0, 1).float(), 1, generator=generator).view(8, 3)
        grid = torch.cat([grid, drawn[..., None]], dim=2)
    _, lengths = from_delay_grid(grid, [0, 0, 0], 5)
    assert torch.equal(lengths, (grid[:, 0] != EOS).sum(1))


# --- Continuous ---


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_latents_come_back_for_any_length(padding_side):
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        lengths = [0, 1, *torch.randint(0, 9, (3,), generator=generator).tolist()]
        clips = [torch.randn(length, 4, generator=generator) for length in lengths]
        latents, mask, stops = to_continuous(clips, padding_side)
        assert latents.shape[1] == sequence_length(max(lengths), 1, "continuous")
        for clip, restored in zip(clips, from_continuous(latents, mask), strict=True):
            assert torch.equal(clip, restored)
        assert not bool(latents[mask == 0].any())
        for length, row in zip(lengths, stops.tolist(), strict=True):
            padding = [-100] * (max(lengths) - length)
            own = [-100, *[0] * length, 1]
            assert row == (padding + own if padding_side == "left" else own + padding)


def test_the_state_at_the_last_frame_predicts_the_stop():
    _, mask, stops = to_continuous([torch.randn(3, 4)])
    targets = next_targets(stops)
    assert targets.tolist() == [[0, 0, 0, 1, -100]]
    assert mask.tolist() == [[0, 1, 1, 1, 0]]


# --- Bad input ---


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"delays": [0]}, ValueError, "each of 2 codebooks"),
        ({"delays": [1, 2]}, ValueError, "at least one 0"),
        ({"delays": [0, -1]}, ValueError, "none negative"),
        ({"lengths": torch.tensor([5])}, ValueError, "between 0 and 4"),
        ({"lengths": torch.tensor([-1])}, ValueError, "between 0 and 4"),
        ({"lengths": torch.tensor([1, 1])}, ValueError, r"`lengths` \(batch,\)"),
        ({"lengths": torch.tensor([1.0])}, TypeError, "`lengths` must be integers"),
        ({"audio_codes": torch.zeros(2, 4, dtype=torch.long)}, ValueError, "not empty"),
        ({"audio_codes": torch.zeros(1, 2, 4)}, TypeError, "`audio_codes` must be integers"),
        ({"codebook_size": 1}, ValueError, "between 0 and 0"),
        ({"padding_side": "top"}, ValueError, "'top'"),
    ],
)
def test_codes_that_make_no_grid_are_refused(arguments, error, match):
    good = {
        "audio_codes": torch.ones(1, 2, 4, dtype=torch.long),
        "lengths": torch.tensor([4]),
        "delays": [0, 1],
        "codebook_size": 5,
    }
    with pytest.raises(error, match=match):
        to_delay_grid(**{**good, **arguments})


def test_a_grid_of_another_shape_or_type_is_refused():
    for read in (from_delay_grid, delay_legal_mask):
        with pytest.raises(ValueError, match="`grid` must have shape"):
            read(torch.zeros(2, 4, dtype=torch.long), [0, 1], 5)
        with pytest.raises(TypeError, match="`grid` must be integers"):
            read(torch.zeros(1, 2, 4), [0, 1], 5)


@pytest.mark.parametrize(
    ("clips", "error", "match"),
    [
        ([], ValueError, "`latents` is empty"),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], ValueError, "row 1 has"),
        ([torch.zeros(1, 2, 3)], ValueError, "row 0 has"),
        ([torch.zeros(2, 3), torch.zeros(2, 3).double()], TypeError, "row 1 is torch.float64"),
        ([torch.zeros(2, 3, dtype=torch.long)], TypeError, "floating-point"),
    ],
)
def test_latents_that_do_not_fit_are_refused(clips, error, match):
    with pytest.raises(error, match=match):
        to_continuous(clips)


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`audio_mask` the first two"):
        from_continuous(torch.zeros(1, 2, 3), torch.ones(1, 3))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_codebooks": 0}, "`num_codebooks` must be at least 1"),
        ({"codebook_size": 0}, "`codebook_size` must be at least 1"),
        ({"audio_start": -1}, "`audio_start` must be at least 0"),
        ({"audio_end": 20}, "`audio_start` overlap"),
        ({"audio_end": 31}, "overlap the ids 22 to 31 of the units"),
        ({"piece_offset": 15}, "the pieces"),
    ],
)
def test_ids_that_overlap_or_are_none_are_refused(arguments, match):
    good = {
        "audio_start": 20,
        "audio_end": 21,
        "audio_offset": 22,
        "num_codebooks": 2,
        "codebook_size": 5,
        "piece_offset": 10,
        "num_pieces": 10,
    }
    with pytest.raises(ValueError, match=match):
        SpeechIds(**{**good, **arguments})


@pytest.mark.parametrize(
    ("codes", "error", "match"),
    [
        (torch.zeros(3, 4, dtype=torch.long), ValueError, r"shape \(2, num_frames\)"),
        (torch.zeros(1, 2, 4, dtype=torch.long), ValueError, "one clip"),
        (torch.full((2, 4), 5), ValueError, "between 0 and 4"),
        (torch.full((2, 4), -1), ValueError, "between 0 and 4"),
        (torch.zeros(2, 4), TypeError, "must be integers"),
    ],
)
def test_codes_that_the_ids_have_no_place_for_are_refused(codes, error, match):
    with pytest.raises(error, match=match):
        codes_to_flat(codes, IDS)


def test_a_small_vocabulary_is_refused():
    with pytest.raises(ValueError, match="has 31 rows, but speech needs 32"):
        flat_legal_mask(torch.tensor([0]), 31, IDS)


@pytest.mark.parametrize(
    ("pieces", "ends", "match"),
    [
        ([[10], []], [1, 4], "Piece 1 has no ids"),
        ([[10], [22]], [1, 4], "holds the id 22"),
        ([[10], [21]], [1, 4], "holds the id 21"),
        ([[-1], [10]], [1, 4], "holds the id -1"),
        ([[10], [11]], [4], "an end for each of 2 pieces"),
        ([[10], [11]], [1, 3], "the last must be 4"),
        ([[10], [11]], [4, 4], "at least a frame"),
        ([], [], "the last must be 4"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(pieces, ends, match):
    with pytest.raises(ValueError, match=match):
        align_pieces(pieces, ends, torch.zeros(2, 4, dtype=torch.long), IDS)


@pytest.mark.parametrize(
    ("times", "num_frames", "match"),
    [
        ([0.1, 0.2, 0.3], 2, "3 pieces need at least a frame each"),
        ([], 2, "frames need a piece"),
        ([0.2, 0.1], 5, "go backwards"),
        ([0.2, float("nan")], 5, "finite"),
    ],
)
def test_times_that_leave_a_piece_without_a_frame_are_refused(times, num_frames, match):
    with pytest.raises(ValueError, match=match):
        piece_ends(times, 10.0, num_frames)
