# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""How a processor of speech language models is made, from a text tokenizer and a codec."""

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from transformers import AddedToken

from .codec_interface import codebook_sizes
from .speech_lm_requests import vocabulary_size
from .speech_lm_tasks import find_task
from .speech_lm_text import AUDIO, AUDIO_END, AUDIO_START, phone_token, prompt_template
from .speech_lm_unit_coding import check_has_codes, coding_fields
from .transformers_codecs import as_speech_codec


class ProcessorMaking:
    """The part of a [`SpeechLMProcessor`] that makes one."""

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        codec: Any,
        feature_extractor: Any,
        text_alignment: str = "none",
        piece_labels: Sequence[str] = (),
        num_codebooks: int | None = None,
        codec_name: str | None = None,
        max_length: int | None = None,
        layout: str | None = None,
        delays: Sequence[int] | None = None,
        unit_coding: str = "frames",
        unit_bpe: Any = None,
        max_duration: int | None = None,
        unit_durations: Sequence[float] = (),
        audio_in: str = "tokens",
        projector_stack: int = 2,
        latent_source: str = "features",
        new_tasks: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Self:
        """
        The processor of a language model that is to read and write a codec's codes.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the language model; a copy gets the tokens of audio.
            codec (`PreTrainedModel`): Codec of this package or of transformers, in evaluation mode.
            feature_extractor (`SequenceFeatureExtractor`): The codec's feature extractor.
            text_alignment (`str`, *optional*, defaults to `"none"`): See [`SpeechLMProcessor`].
            piece_labels (sequence of `str`, *optional*): Labels of the phones, for `text_alignment="phone"`.
            num_codebooks (`int`, *optional*): Number of first codebooks that are used. Defaults to all.
            codec_name (`str`, *optional*): Name by which the codec is found again. Defaults to the name of its folder,
                or its Hub id.
            max_length (`int`, *optional*): Most positions of a sequence.
            layout (`str`, *optional*): See [`SpeechLMProcessor`]. Defaults to `"flat"`, or to `"continuous"` for a
                codec without codebooks and with `audio_in="embeds"`.
            delays (sequence of `int`, *optional*): See [`SpeechLMProcessor`].
            unit_coding (`str`, *optional*, defaults to `"frames"`): See [`SpeechLMProcessor`].
            unit_bpe ([`UnitBPE`], *optional*): For `unit_coding="bpe"`, what was learnt from the codec's units.
            max_duration (`int`, *optional*): Most frames of a run. Defaults to 32 where durations are written.
            unit_durations (sequence of `float`, *optional*): Mean duration of each unit in frames; see
                [`UnitCoding`], and [`unit_durations`] which measures them.
            audio_in, projector_stack, latent_source, new_tasks: See [`SpeechLMProcessor`].

        Raises:
            ValueError: If the layout needs codebooks that the codec has not, the coding does not fit the codec, the
                tokenizer has no end of sequence, or another task of the name of a new one is known.
        """
        for name in new_tasks or {}:
            find_task(name, new_tasks)
        codec = as_speech_codec(codec, feature_extractor)
        layout = layout or ("flat" if codec.kind == "codes" and audio_in == "tokens" else "continuous")
        check_has_codes(unit_coding, layout)
        if layout == "continuous":
            # Of a codec with codebooks, latents may be those that its first codes stand for.
            if codec.kind == "codes":
                used = codec.num_quantizers if num_codebooks is None else codec.check_num_quantizers(num_codebooks)
            elif num_codebooks is not None:
                raise ValueError("`num_codebooks` chooses among codebooks, of which latents have none; leave it out.")
            else:
                used = 1
            latent_dim = codec.latent_dim * (2 if latent_source == "both" else 1)
            sizes = {"num_codebooks": used, "codebook_size": 1, "latent_dim": latent_dim}
            if latent_source != "features" and codec.kind != "codes":
                raise ValueError(f"A {codec.family} has no codes, which `latent_source={latent_source!r}` needs.")
        elif codec.kind != "codes":
            raise ValueError(f"A {codec.family} gives latents; they need `layout='continuous'`, not {layout!r}.")
        else:
            used = codec.num_quantizers if num_codebooks is None else codec.check_num_quantizers(num_codebooks)
            sizes = {"num_codebooks": used, "codebook_size": codec.codebook_size}
            own = codebook_sizes(codec)[:used]
            if unit_coding == "frames" and len({*own, codec.codebook_size}) > 1:
                sizes["codebook_sizes"] = list(own)
        sizes |= coding_fields(unit_coding, sizes, unit_bpe, max_duration, unit_durations)
        if not codec.fingerprint():
            raise ValueError(
                f"The {codec.family} is not trained yet, so that its tokens mean nothing; train it first."
            )
        if tokenizer.eos_token_id is None:
            raise ValueError("The tokenizer has no `eos_token`, with which answers end; set one.")
        tokenizer = copy.deepcopy(tokenizer)
        names = [AUDIO_START, AUDIO_END, AUDIO]
        tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
        phones = [phone_token(label) for label in piece_labels]
        tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in phones])
        tokenizer.chat_template = prompt_template(tokenizer)
        if codec_name is None:
            origin = str(codec.name_or_path or "")
            codec_name = Path(origin).name if os.path.isdir(origin) else origin
        processor: Any = cls(  # type: ignore[call-arg]
            feature_extractor,
            tokenizer,
            text_alignment=text_alignment,
            layout=layout,
            delays=delays,
            audio_in=audio_in,
            projector_stack=projector_stack,
            latent_source=latent_source,
            new_tasks=new_tasks,
            **sizes,
            frame_rate=codec.frame_rate,
            sampling_rate=codec.sampling_rate,
            codec_name=codec_name,
            codec_fingerprint=codec.fingerprint(),
            piece_labels=piece_labels,
            audio_offset=vocabulary_size(tokenizer),
            max_length=max_length,
        )
        processor.attach_codec(codec)
        return processor


__all__ = ["ProcessorMaking"]
