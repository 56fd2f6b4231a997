# SPDX-License-Identifier: Apache-2.0
"""`check-labels` finds each of the faults that public projects had, and none where there is none."""

import datasets
import pytest
import torch
from torch import nn

from helpers.tiny_speaking_lm import tiny_lm, tiny_row, tiny_speech_lm
from speech_tokenizers.cli import main
from speech_tokenizers.processing.feature_extraction_rvq_codec import RVQCodecFeatureExtractor
from speech_tokenizers.training.language_models.label_checks import check_labels


SMALL_HEAD = {"head": "mse"}


def rows_of(seed=0, lengths=(12, 9)):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.cat([torch.randint(8, 60, (length,), generator=generator), torch.tensor([5, 2])])
        labels = ids.clone()
        labels[:4] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def shifted(row):
    labels = torch.cat([row["labels"][1:], torch.tensor([-100])])
    return {"input_ids": row["input_ids"], "labels": labels}


class Leaking(nn.Module):
    """Reads its own target, as heads do that are conditioned on the state at the target's position."""

    def __init__(self, lm):
        super().__init__()
        self.lm = lm

    def get_input_embeddings(self):
        return self.lm.get_input_embeddings()

    def forward(self, input_ids=None, inputs_embeds=None, labels=None):
        outputs = self.lm(input_ids=input_ids, inputs_embeds=inputs_embeds)
        wanted = labels != -100
        outputs.loss = nn.functional.cross_entropy(outputs.logits[wanted], labels[wanted])
        return outputs


def test_sound_data_have_no_fault():
    report = check_labels(tiny_lm(), rows_of(), ends=[5, 2])
    assert report.faults == []
    assert (report.label_offset, report.last_read) == (0, -1)
    assert report.num_targets == 17


@pytest.mark.parametrize("layout", ["flat", "delay", "continuous"])
@pytest.mark.parametrize("alignment", ["none", "word", "phone"])
def test_our_own_rows_and_models_have_no_fault(alignment, layout):
    model, processor = tiny_speech_lm(
        text_alignment=alignment, layout=layout, fields=SMALL_HEAD if layout == "continuous" else {}
    )
    rows = [processor.row_inputs(tiny_row("hi tim")), processor.row_inputs(tiny_row("die", 1, 5))]
    report = check_labels(model, rows, ends=[processor.speech_ids.audio_end, 2], codes=processor.speech_ids)
    assert report.faults == []
    assert (report.label_offset, report.last_read) == (0, -1)


@pytest.mark.parametrize("layout", ["delay", "continuous"])
def test_faults_of_frames_are_found(layout):
    model, processor = tiny_speech_lm(layout=layout, fields=SMALL_HEAD if layout == "continuous" else {})
    ends, row = [processor.speech_ids.audio_end, 2], processor.row_inputs(tiny_row("hi tim"))
    masked = {**row, "labels": row["labels"].clone()}
    masked["labels"][1][masked["labels"][1] == (17 if layout == "delay" else 1)] = -100
    report = check_labels(model, [masked], ends)
    assert report.first_masked_end == 0
    assert "never learns to stop" in report.faults[0]
    if layout == "delay":
        masked["labels"][2] = -100
        report = check_labels(model, [masked], codes=processor.speech_ids)
        assert report.masked_codebooks == [1]

    class Leaking(type(model.frames)):
        # Each frame's states are those that have read it.
        def entropies(self, states, labels):
            return super().entropies(states.roll(-1, 1), labels)

        def losses(self, states, *others):
            return super().losses(states.roll(-1, 1), *others)

    model.frames.__class__ = Leaking
    report = check_labels(model, [row], ends, num_positions=30)
    assert report.last_read == 0
    assert any("leaks" in fault for fault in report.faults)


def test_labels_that_are_shifted_twice_are_found():
    report = check_labels(tiny_lm(), [shifted(row) for row in rows_of()])
    assert report.label_offset == 1
    assert "1 is skipped" in report.faults[0]


def test_a_condition_that_reads_its_target_is_found():
    report = check_labels(Leaking(tiny_lm()), rows_of())
    assert report.last_read == 0
    assert "leaks" in report.faults[0]


def test_labels_shifted_for_a_model_that_does_not_shift_are_sound():
    assert check_labels(Leaking(tiny_lm()), [shifted(row) for row in rows_of()]).faults == []


def test_a_model_that_looks_ahead_is_found():
    lm = tiny_lm()
    for layer in lm.model.layers:
        layer.self_attn.is_causal = False
    lm.config.is_causal = False

    def both_ways(module, args, kwargs):
        read = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        length = read.shape[1]
        kwargs["attention_mask"] = torch.zeros(1, 1, length, length)
        return args, kwargs

    lm.model.register_forward_pre_hook(both_ways, with_kwargs=True)
    report = check_labels(lm, rows_of())
    assert report.future_moves_scores
    assert any("reads what it is to predict" in fault for fault in report.faults)


@pytest.mark.parametrize("masked", [5, 2], ids=["end of audio", "end of sequence"])
def test_an_end_that_is_masked_is_found(masked):
    rows = rows_of()
    rows[1]["labels"][rows[1]["labels"] == masked] = -100
    report = check_labels(tiny_lm(), rows, ends=[5, 2])
    assert report.first_masked_end == 1
    assert "never learns" in report.faults[0]


def test_a_row_without_an_end_is_found():
    rows = [{name: values[:-2] for name, values in row.items()} for row in rows_of()]
    report = check_labels(tiny_lm(), rows, ends=[5, 2])
    assert report.first_masked_end == 0


def test_a_codebook_of_which_nothing_is_learnt_is_found():
    model, processor = tiny_speech_lm()
    row = processor.row_inputs(tiny_row("hi tim"))
    ids = processor.speech_ids
    assert check_labels(model, [row], codes=ids).faults == []
    row["labels"][ids.is_unit(row["labels"]) & (row["labels"] >= ids.audio_offset + ids.codebook_size)] = -100
    report = check_labels(model, [row], codes=ids)
    assert report.masked_codebooks == [1]
    assert "codebooks [1]" in report.faults[0]


@pytest.mark.parametrize("is_ours", [True, False], ids=["speech language model", "any language model"])
def test_the_command_finds_masked_ends_in_a_dataset(tmp_path, capsys, is_ours):
    if is_ours:
        model, processor = tiny_speech_lm()
        processor.save_pretrained(tmp_path / "lm")
        codec = model.codec
        codec.save_pretrained(tmp_path / "lm" / "codec")
        RVQCodecFeatureExtractor(sampling_rate=codec.sampling_rate).save_pretrained(tmp_path / "lm" / "codec")
        rows = [processor.row_inputs(tiny_row("hi tim"))]
        ends = [processor.speech_ids.audio_end, processor.tokenizer.eos_token_id]
    else:
        model, rows, ends = tiny_lm(), rows_of(), [2]
    model.save_pretrained(tmp_path / "lm")
    for is_masked in (False, True):
        if is_masked:
            for row in rows:
                row["labels"][torch.isin(row["labels"], torch.tensor(ends))] = -100
        data = [{name: row[name].tolist() for name in ("input_ids", "labels")} for row in rows]
        datasets.Dataset.from_list(data).save_to_disk(tmp_path / f"data-{is_masked}")
        assert main(["check-labels", str(tmp_path / "lm"), str(tmp_path / f"data-{is_masked}")]) == int(is_masked)
        assert ("never learns to stop" in capsys.readouterr().out) == is_masked


def test_targets_of_another_sequence_are_found():
    rows = rows_of()
    rows[0]["labels"] = rows[0]["labels"].flip(0)
    report = check_labels(tiny_lm(), rows)
    assert report.label_offset is None
    assert any("different sequences" in fault for fault in report.faults)


def test_labels_without_a_target_are_refused():
    rows = [{"input_ids": torch.arange(4), "labels": torch.full((4,), -100)}]
    with pytest.raises(ValueError, match="Not one row has a target"):
        check_labels(tiny_lm(), rows)
