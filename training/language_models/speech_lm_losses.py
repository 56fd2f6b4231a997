# SPDX-License-Identifier: Apache-2.0
"""Losses of a speech language model on rows that it does not learn from."""

import math
from collections import Counter, defaultdict
from typing import Any

import torch

from speech_tokenizers.modeling.modeling_speech_lm import SpeechLMForConditionalGeneration
from speech_tokenizers.training.language_models.speech_lm_items import SpeechLMItems, pad_items


@torch.no_grad()
def held_out_losses(model: SpeechLMForConditionalGeneration, items: SpeechLMItems, args: Any) -> dict[str, Any]:
    """
    Mean losses over the targets of held-out rows, in nats: of text and pieces, of codes, of each codebook; and in the
    continuous layout of the head and of ends. What is a likelihood is told in bits a second of speech, too.
    """
    collate, config = pad_items(items.processor), model.config
    sums: defaultdict[Any, float] = defaultdict(float)  # by the name of a kind, or the number of a codebook
    counts: Counter[Any] = Counter()
    chosen = sorted(range(min(len(items), args.data.max_eval_rows)), key=lambda index: items.lengths[index])
    size_of_batch = max(1, args.batch_positions // max(1, int(items.lengths.max())))
    for first in range(0, len(chosen), size_of_batch):
        batch = collate([items[index] for index in chosen[first : first + size_of_batch]])
        batch = {name: value.to(model.device) for name, value in batch.items() if name != "tasks"}
        outputs, labels = model(**batch), batch["labels"][..., 1:].cpu()
        losses = outputs.target_losses[..., 1:].double().cpu()
        kinds = _kinds_of_targets(labels, config)
        for name, is_kind in kinds.items():
            counts[name] += int(is_kind.sum())
            if name in ("audio", "stop"):
                sums[name] += float(outputs[f"{name}_loss"]) * int(is_kind.sum())
            else:
                sums[name] += float(losses[is_kind if losses.dim() == is_kind.dim() else is_kind[:, 0]].sum())
    means = {name: sums[name] / max(1, count) for name, count in counts.items()}
    codebooks = [name for name in means if isinstance(name, int)]
    found: dict[str, Any] = {"held_out_rows": len(chosen)}
    seconds = math.log(2) * sum(items.rows["seconds"][index] for index in chosen)
    found["held_out_text_bits_per_second"] = sums["text"] / seconds
    found |= {f"held_out_{name}_loss": mean for name, mean in means.items() if name not in codebooks}
    if codebooks:
        total = sum(counts[name] for name in codebooks)
        found["held_out_audio_loss"] = sum(sums[name] for name in codebooks) / max(1, total)
        found["held_out_audio_bits_per_second"] = sum(sums[name] for name in codebooks) / seconds
        found["held_out_codebook_losses"] = [means[name] for name in codebooks]
    return found


def _kinds_of_targets(labels: torch.Tensor, config: Any) -> dict[Any, torch.Tensor]:
    # Masks of the shape of the labels, by the names of kinds, or the numbers of codebooks.
    is_target = labels != -100
    if config.layout == "flat":
        is_code = config.speech_ids.is_unit(labels) & is_target
        codebook = (labels - config.audio_offset) // config.codebook_size
        masks = {number: is_code & (codebook == number) for number in range(config.num_codebooks)}
        return {"text": is_target & ~is_code, **masks}
    if labels.dim() == 2:
        return {"text": is_target}
    rows = torch.arange(labels.shape[1])[:, None]
    if config.layout == "delay":
        masks = {number: is_target & (rows == number + 1) for number in range(config.num_codebooks)}
        return {"text": is_target & (rows == 0), **masks}
    return {
        "text": is_target & (rows == 0),
        "audio": is_target & (rows == 1) & (labels == 0),
        "stop": is_target & (rows == 1),
    }
