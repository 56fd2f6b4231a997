# SPDX-License-Identifier: Apache-2.0
"""
A probe of whole clips that reads units in their order: embeddings, an LSTM, and a linear layer on its last state.

It is that of the study of tone in discrete units (arXiv 2410.19935), with a padding of its own: there, clips were
padded with unit 0, whose embedding therefore never learnt.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from speech_tokenizers.evaluation.understanding.probes import ProbeAnswers, checked_splits


_EMBEDDING_DIM, _HIDDEN_DIM = 50, 128


def lstm_probe(
    codes: Sequence[np.ndarray],
    codebook_sizes: Sequence[int],
    targets: Sequence[str],
    splits: Sequence[str],
    seed: int = 0,
    epochs: int = 20,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
) -> ProbeAnswers:
    """
    Label the test clips by an LSTM over their codes. It learns from training and development clips for a fixed number
    of epochs, by Adam and cross-entropy; nothing is chosen.

    Args:
        codes (sequence of `np.ndarray` of shape `(num_quantizers, num_frames)`): Codes of each clip.
        codebook_sizes (sequence of `int`): Size of each codebook. Embeddings of several are summed.
        targets, splits (sequence of `str`): Label and split of each clip.
        seed (`int`, *optional*, defaults to 0): Of the weights and of the order.
        epochs, batch_size, learning_rate: Of the training. Defaults to the paper's.

    Returns:
        [`ProbeAnswers`]; its setting is the number of epochs, and its `dev_value` the accuracy on development clips,
        which were learnt from.

    Raises:
        ValueError: If there is not something of everything for each clip, a clip has no frame, or a code lies outside
            its codebook.
    """
    numbers = checked_splits(splits, targets, codes)
    sizes = torch.tensor(list(codebook_sizes))
    for number, clip in enumerate(codes):
        if clip.ndim != 2 or clip.shape[0] != len(sizes) or not clip.shape[1]:
            raise ValueError(
                f"Clip {number} must have codes of shape ({len(sizes)}, num_frames), with a frame at least."
            )
        if clip.min() < 0 or (clip.max(1) >= sizes.numpy()).any():
            raise ValueError(f"A code of clip {number} lies outside its codebook.")
    learnt = np.concatenate([numbers["train"], numbers["dev"]])
    labels = sorted({targets[number] for number in learnt})
    place = {label: index for index, label in enumerate(labels)}
    wanted = torch.tensor([place[targets[number]] for number in learnt])
    clips = [torch.from_numpy(np.ascontiguousarray(clip)).T for clip in codes]  # (num_frames, num_quantizers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Probe(sizes, len(labels))
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        losses = []
        for _ in range(epochs):
            order = torch.randperm(len(learnt))
            total = 0.0
            for batch in order.split(batch_size):
                scores = model([clips[number] for number in learnt[batch.numpy()]])
                loss = nn.functional.cross_entropy(scores, wanted[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch)
            losses.append(total / len(learnt))
    dev, test = (_answers(model, [clips[number] for number in numbers[split]], labels) for split in ("dev", "test"))
    hits = [said == targets[number] for said, number in zip(dev, numbers["dev"], strict=True)]
    return ProbeAnswers(test, float(epochs), 100 * float(np.mean(hits)), losses)


class _Probe(nn.Module):
    def __init__(self, sizes: torch.Tensor, num_labels: int):
        super().__init__()
        self.sizes = sizes
        # The last row of each is the padding's.
        self.embeddings = nn.ModuleList(
            nn.Embedding(int(size) + 1, _EMBEDDING_DIM, padding_idx=int(size)) for size in sizes
        )
        self.lstm = nn.LSTM(_EMBEDDING_DIM, _HIDDEN_DIM, batch_first=True)
        self.head = nn.Linear(_HIDDEN_DIM, num_labels)

    def forward(self, clips: Sequence[torch.Tensor]) -> torch.Tensor:
        """Scores of the labels, `(num_clips, num_labels)`, of clips `(num_frames, num_quantizers)`."""
        lengths = torch.tensor([len(clip) for clip in clips])
        padded = pad_sequence(list(clips), batch_first=True, padding_value=-1)
        embedded = sum(
            table(torch.where(codes < 0, size, codes))
            for table, codes, size in zip(self.embeddings, padded.unbind(-1), self.sizes, strict=True)
        )
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return self.head(last[0])


@torch.no_grad()
def _answers(model: _Probe, clips: Sequence[torch.Tensor], labels: Sequence[str]) -> list[str]:
    scores = [model(clips[first : first + 256]) for first in range(0, len(clips), 256)]
    return [labels[index] for index in torch.cat(scores).argmax(1).tolist()]


__all__ = ["lstm_probe"]
