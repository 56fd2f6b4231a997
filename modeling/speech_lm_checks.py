# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""What a speech language model refuses: labels that do not fit, frames in the wrong place, and other codecs."""

from typing import Any

import torch

from .codec_interface import codebook_sizes
from .speech_lm_ids import IGNORED
from .speech_lm_layouts import next_targets


def check_labels(
    config: Any,
    input_ids: torch.Tensor | None,
    audio_codes: torch.Tensor | None,
    audio_mask: torch.Tensor | None,
    labels: torch.Tensor,
) -> None:
    """
    Check that labels have the shape of the layout, stand where the model reads them, and fit its context.

    Args:
        config ([`SpeechLMConfig`]): The model's configuration.
        input_ids, audio_codes, audio_mask, labels: See [`SpeechLMForConditionalGeneration`].

    Raises:
        ValueError: If they do not.
    """
    writes_latents = config.layout == "continuous" and config.audio_in == "tokens"
    rows: tuple[int, ...] = (2,) if writes_latents else ()
    if config.layout == "delay":
        rows = (1 + config.num_codebooks,)
    if labels.dim() < 2 or labels.shape[1:-1] != rows:
        shape = ", ".join(["batch", *map(str, rows), "num_positions"])
        raise ValueError(
            f"`labels` of the layout {config.layout!r} must have shape ({shape}), but have {tuple(labels.shape)}."
        )
    is_latent = None
    if writes_latents:
        is_latent = audio_mask if input_ids is None else input_ids == config.audio_token_id
    check_labels_stand_at_their_positions(input_ids, labels, audio_codes, is_latent)
    context = getattr(config.text_config, "max_position_embeddings", None)
    if context is not None and labels.shape[-1] > context:
        raise ValueError(
            f"A batch has {labels.shape[-1]} positions, but the language model has {context}. Pass `max_length` to"
            " the collator, which names the row."
        )


def check_kept(config: Any, labels: torch.Tensor, kept: torch.Tensor) -> None:
    """
    Check the positions whose scores are enough for labels.

    Args:
        config ([`SpeechLMConfig`]): The model's configuration.
        labels (`torch.Tensor` of shape `(batch, num_positions)`): Labels at their own positions.
        kept (`torch.Tensor` of shape `(num_kept,)`): The positions.

    Raises:
        ValueError: If a target has none before it, they are not in order, or frames need those of all.
    """
    if labels.dim() > 2:
        raise ValueError("`logits_to_keep` chooses among positions of text, but frames need the states of all.")
    if torch.compiler.is_compiling():
        return
    is_target = next_targets(labels) != IGNORED
    is_target[:, kept] = False
    if bool(is_target.any()):
        position = int(is_target.nonzero()[0, 1])
        raise ValueError(f"`logits_to_keep` lacks position {position}, behind which `labels` has a target.")
    if not bool((kept[1:] > kept[:-1]).all()):
        raise ValueError("`logits_to_keep` must name positions in order, none twice.")


def check_labels_stand_at_their_positions(
    input_ids: torch.Tensor | None,
    labels: torch.Tensor,
    audio_codes: torch.Tensor | None = None,
    is_latent: torch.Tensor | None = None,
) -> None:
    """
    Refuse labels that are not the ids, the codes, or the marks of latents, at their own positions.

    Labels that were shifted by hand are shifted again by the loss, and the model learns to skip a token. (Five public
    projects have that fault.)

    Args:
        input_ids (`torch.Tensor` of shape `(batch, num_positions)`, *optional*): The ids.
        labels (`torch.Tensor` of shape `(batch, num_positions)` or `(batch, 1 + num_codebooks, num_positions)`):
            Labels of ids and, in the delay layout, of the columns. In the continuous layout `(batch, 2,
            num_positions)`, with the marks: 0 for a frame, 1 for an end.
        audio_codes (`torch.Tensor` of shape `(batch, num_codebooks, num_positions)`, *optional*): The columns.
        is_latent (`torch.Tensor` of shape `(batch, num_positions)`, *optional*): Where the continuous layout has
            frames.

    Raises:
        ValueError: If a shape differs, or a label is another than what stands at its position.
    """
    if labels.dim() == 3:
        if audio_codes is not None:
            _check_equal(audio_codes, labels[:, 1:], "audio_codes", "code")
        if is_latent is not None:
            _check_equal((~is_latent.bool()).long(), labels[:, 1], "audio_mask", "mark")
        labels = labels[:, 0]
    if input_ids is not None:
        _check_equal(input_ids, labels, "input_ids", "id")


def _check_equal(there: torch.Tensor, labels: torch.Tensor, name: str, kind: str) -> None:
    if labels.shape != there.shape:
        raise ValueError(
            f"`labels` must have the shape of `{name}`, {tuple(there.shape)}, but has {tuple(labels.shape)}."
        )
    if torch.compiler.is_compiling():
        return
    differs = (labels != IGNORED) & (labels != there)
    if not bool(differs.any()):
        return
    place = tuple(int(value) for value in differs.nonzero()[0])
    shifted = labels[..., :-1] == there[..., 1:]
    hint = ""
    if bool((shifted | (labels[..., :-1] == IGNORED)).all()):
        hint = " They look shifted by hand by one: the model shifts them itself."
    where = f"row {place[0]} has label" + (f" of codebook {place[1]}" if len(place) == 3 else "")
    raise ValueError(
        f"`labels` must be the {kind}s at their own positions, or -100, but {where} {int(labels[place])} at position"
        f" {place[-1]}, where the {kind} is {int(there[place])}.{hint}"
    )


def check_frames_stand_at_their_places(
    input_ids: torch.Tensor | None, is_frame: torch.Tensor, audio_token_id: int
) -> None:
    """
    Refuse frames where the ids say that there is none, and the reverse.

    Args:
        input_ids (`torch.Tensor` of shape `(batch, num_positions)`, *optional*): The ids.
        is_frame (`torch.Tensor` of shape `(batch, num_positions)`): Where frames are given.
        audio_token_id (`int`): Id of `<|audio|>`.

    Raises:
        ValueError: If a shape differs, or a position has one without the other.
    """
    if input_ids is None:
        return
    if is_frame.shape != input_ids.shape:
        raise ValueError(
            f"Frames must have the positions of `input_ids`, {tuple(input_ids.shape)}, but have"
            f" {tuple(is_frame.shape)}."
        )
    if torch.compiler.is_compiling():
        return
    differs = (input_ids == audio_token_id) != is_frame
    if bool(differs.any()):
        row, position = (int(value) for value in differs.nonzero()[0])
        lacks = "no frame is given" if not bool(is_frame[row, position]) else "the id is another"
        raise ValueError(
            f"A frame must be given where `input_ids` hold `<|audio|>` ({audio_token_id}) and nowhere else, but at"
            f" position {position} of row {row} {lacks}."
        )


def given_frames(
    config: Any,
    input_ids: torch.Tensor | None,
    audio_codes: torch.Tensor | None,
    audio_latents: torch.Tensor | None,
    audio_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """
    The frames that a model is given, and where they stand, `(batch, num_positions)`; `None` without any.

    Args:
        config ([`SpeechLMConfig`]): The model's configuration.
        input_ids, audio_codes, audio_latents, audio_mask: See [`SpeechLMForConditionalGeneration`].

    Raises:
        ValueError: If the layout has no such frames, they stand elsewhere than the ids say, are missing, or are no
            numbers.
    """
    layout = config.layout
    for name, given, fits in (
        ("audio_codes", audio_codes, "delay"),
        ("audio_latents", audio_latents, "continuous"),
    ):
        if given is not None and layout != fits:
            raise ValueError(f"`{name}` belongs to the layout {fits!r}, but the model's is {layout!r}.")
    marker = config.audio_token_id
    if audio_codes is not None:
        is_frame = audio_codes[:, 0] >= 0
    elif audio_latents is not None:
        if audio_mask is None:
            if input_ids is None:
                raise ValueError("`audio_mask` is needed, since there are no `input_ids` that tell frames.")
            is_frame = input_ids == marker
        else:
            is_frame = audio_mask.bool()
    elif layout != "flat" and input_ids is not None and not torch.compiler.is_compiling():
        if bool((input_ids == marker).any()):
            name = "audio_codes" if layout == "delay" else "audio_latents"
            raise ValueError(f"`input_ids` hold `<|audio|>` ({marker}), but `{name}` with the frames is missing.")
        return None
    else:
        return None
    check_frames_stand_at_their_places(input_ids, is_frame, marker)
    if audio_latents is not None and not torch.compiler.is_compiling():
        if audio_latents.shape != (*is_frame.shape, config.frame_size):
            raise ValueError(
                f"`audio_latents` must have shape {(*is_frame.shape, config.frame_size)}, but have"
                f" {tuple(audio_latents.shape)}."
            )
        if not bool(audio_latents[is_frame].isfinite().all()):
            raise ValueError("`audio_latents` must be finite where there is a frame, but hold numbers that are not.")
    given = audio_codes if audio_codes is not None else audio_latents
    return given, is_frame


def check_codec(codec: Any, config: Any) -> None:
    """
    Check that a codec is the one that a model or a processor was made for.

    Args:
        codec ([`SpeechCodec`]): The codec.
        config ([`SpeechLMConfig`]): What the model reads and writes.

    Raises:
        ValueError: If it is another one.
    """
    if config.layout == "continuous":
        found = codec.latent_dim * (2 if config.latent_source == "both" else 1)
        if found != config.latent_dim:
            raise ValueError(f"The codec has frames of {found} numbers, but {config.latent_dim} are needed.")
    elif codec.kind != "codes":
        raise ValueError(
            f"A {codec.family} gives continuous tokens, but the layout {config.layout!r} needs codes; make the model"
            " with `layout='continuous'`."
        )
    else:
        num_codebooks, codebook_size = config.coding.codec_sizes(config.num_codebooks, config.codebook_size)
        if codec.num_quantizers < num_codebooks or codec.codebook_size != codebook_size:
            raise ValueError(
                f"The codec has {codec.num_quantizers} codebooks of {codec.codebook_size} codes, but"
                f" {num_codebooks} of {codebook_size} are needed."
            )
        own = list(codebook_sizes(codec)[:num_codebooks])
        if config.codebook_sizes is not None and own != config.codebook_sizes:
            raise ValueError(f"The codec has codebooks of {own} codes, but {config.codebook_sizes} are needed.")
    fingerprint = codec.fingerprint()
    if config.codec_fingerprint and fingerprint != config.codec_fingerprint:
        raise ValueError(
            f"The codec's fingerprint is {fingerprint}, but {config.codec_fingerprint}"
            f"{f' ({config.codec_name})' if config.codec_name else ''} is needed: its codes would mean other sounds."
        )


__all__ = [
    "check_codec",
    "check_frames_stand_at_their_places",
    "check_kept",
    "check_labels",
    "check_labels_stand_at_their_positions",
    "given_frames",
]
