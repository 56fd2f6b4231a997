# SPDX-License-Identifier: Apache-2.0
"""`check-labels` finds each of the faults that public projects had, and none where there is none."""

import pytest
import torch
from torch import nn

from helpers.tiny_speaking_lm import tiny_lm, tiny_row, tiny_speech_lm
from speech_tokenizers.training.language_models.label_checks import check_labels


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


@pytest.mark.parametrize("alignment", ["none", "word", "phone"])
def test_our_own_rows_and_models_have_no_fault(alignment):
    model, processor = tiny_speech_lm(text_alignment=alignment)
    rows = [processor.row_inputs(tiny_row("hi tim")), processor.row_inputs(tiny_row("die", 1, 5))]
    assert check_labels(model, rows, ends=[processor.speech_ids.audio_end, 2]).faults == []


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
