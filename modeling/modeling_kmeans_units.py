# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""K-means units: the frames of a speech encoder by the number of their nearest centroid."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoFeatureExtractor, AutoModel, WhisperFeatureExtractor
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_kmeans_units import KMeansUnitsConfig
from .encoder_geometry import first_frame_centre, frame_geometry, has_fixed_window, num_encoder_layers
from .input_checks import check_codes, check_waveforms
from .modeling_unit_vocoder import UnitVocoderModel, UnitVocoderOutput
from .padding_invariance import frame_mask, make_padding_invariant
from .speech_encoders import encoder_of, spectrogram_states, transformer_layers, waveform_states
from .unit_runs import deduplicate_codes


# Frames whose distances to all centroids are held at once.
_FRAMES_AT_ONCE = 16384


@dataclass
class KMeansUnitsOutput(ModelOutput):
    r"""
    Args:
        audio_codes (`torch.LongTensor` of shape `(batch, num_quantizers, num_frames)`): Numbers of the nearest
            centroids; 0 where the mask is 0.
        latents (`torch.FloatTensor` of shape `(batch, num_frames, num_streams * hidden_size)`): The frames that were
            clustered; 0 where the mask is 0. `None` when de-duplicated.
        audio_codes_mask (`torch.LongTensor` of shape `(batch, num_frames)`): 1 for frames of real audio.
        durations (`torch.LongTensor` of shape `(batch, num_frames)`): When de-duplicated: frames that each unit lasts,
            0 where the mask is 0.
    """

    audio_codes: torch.LongTensor | None = None
    latents: torch.FloatTensor | None = None
    audio_codes_mask: torch.LongTensor | None = None
    durations: torch.LongTensor | None = None


class KMeansQuantizer(nn.Module):
    r"""
    Centroids, a product of streams with residual stages each.

    Args:
        num_streams (`int`): Sequences of frames.
        num_stages (`int`): Codebooks of each; a stage codes what those before it leave over.
        codebook_size (`int`): Centroids per codebook.
        hidden_size (`int`): Dimension of a frame.
    """

    def __init__(self, num_streams: int, num_stages: int, codebook_size: int, hidden_size: int):
        super().__init__()
        self.num_streams, self.num_stages = num_streams, num_stages
        self.register_buffer("centroids", torch.zeros(num_streams * num_stages, codebook_size, hidden_size))
        self.register_buffer("features_mean", torch.zeros(num_streams, hidden_size))
        self.register_buffer("features_std", torch.ones(num_streams, hidden_size))

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Codes `(batch, num_quantizers, num_frames)` of features `(batch, num_streams, num_frames, hidden_size)`."""
        batch_size, _, num_frames, _ = features.shape
        codes = []
        for stream, centroids in enumerate(self.centroids.unflatten(0, (self.num_streams, self.num_stages))):
            residual = features[:, stream].flatten(0, 1)  # (B * F, D)
            for stage_centroids in centroids:
                nearest = nearest_centroids(residual, stage_centroids)
                codes.append(nearest.view(batch_size, num_frames))
                residual = residual - stage_centroids[nearest]
        return torch.stack(codes, dim=1)

    def decode(self, audio_codes: torch.Tensor) -> torch.Tensor:
        """Sums of centroids, `(batch, num_frames, num_streams * hidden_size)`, of codes of all codebooks."""
        entries = torch.stack(
            [table[codes] for table, codes in zip(self.centroids, audio_codes.unbind(1), strict=True)]
        )
        streams = entries.unflatten(0, (self.num_streams, self.num_stages)).sum(1)  # (S, B, F, D)
        return streams.permute(1, 2, 0, 3).flatten(2)


def nearest_centroids(frames: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    r"""
    Args:
        frames (`torch.Tensor` of shape `(num_frames, dim)`): What is coded.
        centroids (`torch.Tensor` of shape `(num_centroids, dim)`): By Euclidean distance; of equally near ones the
            first is taken.

    Returns:
        `torch.LongTensor` of shape `(num_frames,)`.
    """
    half_norms = centroids.square().sum(-1) / 2
    parts = [(part @ centroids.T - half_norms).argmax(-1) for part in frames.split(_FRAMES_AT_ONCE)]
    return torch.cat(parts) if parts else frames.new_zeros(0, dtype=torch.long)


class KMeansUnitsPreTrainedModel(PreTrainedAudioTokenizerBase):
    """Weight initialisation and loading."""

    config_class = KMeansUnitsConfig
    base_model_prefix = "kmeans_units"
    main_input_name = "input_values"
    input_modalities = "audio"
    _keep_in_fp32_modules_strict = ["quantizer"]
    _supports_sdpa = True
    _supports_flash_attn = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, KMeansQuantizer):
            init.zeros_(module.centroids)
            init.zeros_(module.features_mean)
            init.ones_(module.features_std)
        else:
            super()._init_weights(module)


class KMeansUnitsModel(KMeansUnitsPreTrainedModel):
    r"""
    Discrete units: layers of a frozen speech encoder, clustered by k-means (GSLM, arXiv 2102.01192; HuBERT, arXiv
    2106.07447).

    A padded batch gives each item the units that it gets alone. `training.units_fitting` finds the centroids.

    Args:
        config ([`KMeansUnitsConfig`]): The encoder, and what is clustered.
    """

    def __init__(self, config: KMeansUnitsConfig):
        super().__init__(config)
        self.encoder = encoder_of(AutoModel.from_config(config.encoder_config))
        self.quantizer = KMeansQuantizer(
            config.num_streams, config.num_stages, config.codebook_size, config.hidden_size
        )
        self.vocoder = None if config.vocoder_config is None else UnitVocoderModel(config.vocoder_config)
        self._prepare_encoder()
        self.post_init()

    @classmethod
    def from_encoder(
        cls, name_or_path: str, from_pretrained_kwargs: dict[str, Any] | None = None, **fields: Any
    ) -> "KMeansUnitsModel":
        r"""
        A model without centroids on a pretrained encoder, whose layers above the highest one read are dropped.

        Args:
            name_or_path (`str`): Folder or Hub id of any speech model that `AutoModel` knows.
            from_pretrained_kwargs (`dict`, *optional*): Such as `{"revision": ...}`.
            fields: Of the [`KMeansUnitsConfig`].

        Raises:
            ValueError: If the encoder is of another kind, or a field is wrong.
        """
        kwargs = from_pretrained_kwargs or {}
        pretrained = encoder_of(AutoModel.from_pretrained(name_or_path, dtype=torch.float32, **kwargs))
        processor = AutoFeatureExtractor.from_pretrained(name_or_path, **kwargs)
        fields.setdefault("do_normalize", not has_fixed_window(pretrained.config) and processor.do_normalize)
        fields.setdefault("sampling_rate", processor.sampling_rate)
        config = KMeansUnitsConfig(encoder_config=pretrained.config, **fields)
        highest = max(1, *config.layers)
        if highest < num_encoder_layers(config.encoder_config):
            _keep_layers(pretrained, highest)
            config = KMeansUnitsConfig(encoder_config=pretrained.config, **fields)
        model = cls(config)
        model.encoder = pretrained
        model._prepare_encoder()
        return model.eval()

    def _prepare_encoder(self) -> None:
        config = self.config
        self.encoder.requires_grad_(False).eval()
        if config.padding_invariant:
            make_padding_invariant(self.encoder)
        self._log_mel = None
        if has_fixed_window(config.encoder_config):
            self._log_mel = WhisperFeatureExtractor(feature_size=config.encoder_config.num_mel_bins)

    def train(self, mode: bool = True) -> "KMeansUnitsModel":
        """The encoder stays in evaluation mode: it is frozen."""
        super().train(mode)
        self.encoder.eval().requires_grad_(False)
        return self

    @property
    def sampling_rate(self) -> int:
        """Samples per second, in Hz."""
        return self.config.sampling_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.config.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self.config.frame_rate

    @property
    def bits_per_second(self) -> float:
        """Nominal bit rate, in bit/s."""
        return self.config.bits_per_second

    @property
    def centroids(self) -> torch.Tensor:
        """Centroids, `(num_quantizers, codebook_size, hidden_size)`."""
        return self.quantizer.centroids

    def get_encoded_length(self, num_samples):
        """Frames for a number of samples (integer or integer tensor)."""
        return self.config.get_encoded_length(num_samples)

    def frame_centres(self, num_frames: int) -> torch.Tensor:
        """Times of the middles of the first frames, `(num_frames,)`, in seconds."""
        first = first_frame_centre(self.config.encoder_config)
        return (first + self.hop_length * torch.arange(num_frames, dtype=torch.float64)) / self.sampling_rate

    @property
    def frame_span(self) -> int:
        """Samples that the front end hears for a frame, from the frame's first sample on."""
        return frame_geometry(self.config.encoder_config)[1]

    @property
    def longest_input(self) -> int | None:
        """Samples that the encoder can hear at once, if that is limited; see [`WindowedEncoder`] for longer ones."""
        return None if self._log_mel is None else self._log_mel.n_samples

    @torch.no_grad()
    def features(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        The frames that are clustered.

        Args:
            input_values (`torch.Tensor` of shape `(batch, 1, num_samples)` or `(batch, num_samples)`): Waveforms in
                [-1, 1].
            padding_mask (`torch.Tensor` of shape `(batch, num_samples)`, *optional*): 1 for real samples, padded on
                the right.

        Returns:
            The features `(batch, num_streams, num_frames, hidden_size)`, 0 beyond the end of a row, and the boolean
            mask of their frames `(batch, num_frames)`.

        Raises:
            ValueError: If a shape is wrong, a row is padded on the left, shorter than a frame, or longer than the
            window of Whisper's encoder.
        """
        waveforms = check_waveforms(input_values, padding_mask)[:, 0]
        if padding_mask is None:
            num_samples = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
        else:
            num_samples = padding_mask.long().sum(-1)
            if not torch.equal(padding_mask.bool(), frame_mask(num_samples, waveforms.shape[1])):
                raise ValueError("`padding_mask` must be 1 and then 0 in each row: pad on the right.")
        shortest = int(num_samples.min())
        if self.get_encoded_length(shortest) < 1:
            raise ValueError(
                f"`input_values` has {shortest} samples in a row, but a frame needs {self.frame_span}; leave such "
                "recordings out."
            )
        waveforms = self._normalized(waveforms, num_samples).to(self.encoder.dtype)
        layers = self.config.layers
        if self._log_mel is not None:
            states, num_frames = spectrogram_states(
                self.encoder, self._log_mel, waveforms, num_samples, layers, self.config.window
            )
        else:
            states, num_frames = waveform_states(self.encoder, waveforms, num_samples, layers, self.config.frame_rule)
        mask = frame_mask(num_frames, states.shape[2])
        return self._streams(states.float()) * mask[:, None, :, None], mask

    def set_centroids(self, centroids: torch.Tensor) -> None:
        r"""
        Args:
            centroids (`torch.Tensor` of shape `(num_quantizers, codebook_size, hidden_size)`): The new ones.

        Raises:
            ValueError: If the shape is wrong or a number is not finite.
        """
        expected = tuple(self.quantizer.centroids.shape)
        if tuple(centroids.shape) != expected or not torch.isfinite(centroids).all():
            raise ValueError(f"`centroids` must be finite, of shape {expected}, but has {tuple(centroids.shape)}.")
        self.quantizer.centroids.copy_(centroids)

    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        r"""
        What `normalization="standardize"` subtracts and divides by.

        Args:
            mean, std (`torch.Tensor` of shape `(num_streams, hidden_size)`): Of the data.
        """
        self.quantizer.features_mean.copy_(mean)
        self.quantizer.features_std.copy_(std)

    def attach_vocoder(self, vocoder: UnitVocoderModel) -> None:
        r"""
        Let `decode` use a vocoder, which is then saved with the model.

        Raises:
            ValueError: If it is for other units.
        """
        self.config.vocoder_config = vocoder.config
        try:
            self.config.validate_architecture()
        except ValueError:
            self.config.vocoder_config = None if self.vocoder is None else self.vocoder.config
            raise
        self.vocoder = vocoder

    @can_return_tuple
    def encode(
        self, input_values: torch.Tensor, padding_mask: torch.Tensor | None = None, deduplicate: bool = False
    ) -> KMeansUnitsOutput:
        r"""
        Args:
            input_values, padding_mask: See [`~KMeansUnitsModel.features`].
            deduplicate (`bool`, *optional*, defaults to `False`): Return runs of equal units as one, with `durations`.
                With several codebooks a run lasts as long as all of them stay.

        Raises:
            ValueError: If there are no centroids yet; and see [`~KMeansUnitsModel.features`].
        """
        if not self.quantizer.centroids.any():
            raise ValueError("The model has no centroids yet; fit it first, e.g. with `speech-tokenizers fit-units`.")
        features, mask = self.features(input_values, padding_mask)
        audio_codes = self.quantizer.encode(features) * mask[:, None]
        if deduplicate:
            audio_codes, unit_mask, durations = deduplicate_codes(audio_codes, mask)
            return KMeansUnitsOutput(audio_codes, None, unit_mask.long(), durations)
        latents = features.transpose(1, 2).flatten(2)
        return KMeansUnitsOutput(audio_codes=audio_codes, latents=latents, audio_codes_mask=mask.long())

    def dequantize(self, audio_codes: torch.Tensor) -> torch.Tensor:
        r"""
        The frames that codes stand for.

        Args:
            audio_codes (`torch.Tensor` of shape `(batch, num_quantizers, num_frames)`): Of all codebooks.

        Returns:
            `torch.Tensor` of shape `(batch, num_frames, num_streams * hidden_size)`: Centroids, those of the stages of
            a stream summed up.

        Raises:
            ValueError: If the shape is wrong, or a code lies outside the codebook.
        """
        audio_codes = check_codes(audio_codes, self.config.num_quantizers)
        if audio_codes.shape[1] != self.config.num_quantizers:
            raise ValueError(
                f"`audio_codes` must have all {self.config.num_quantizers} codebooks, but has {audio_codes.shape[1]}."
            )
        if audio_codes.min() < 0 or audio_codes.max() >= self.config.codebook_size:
            raise ValueError(f"`audio_codes` must lie between 0 and {self.config.codebook_size - 1}, but some do not.")
        return self.quantizer.decode(audio_codes)

    def decode(self, audio_codes: torch.Tensor, *args: Any, **kwargs: Any) -> UnitVocoderOutput:
        r"""
        Speech from units, by the attached vocoder; see [`UnitVocoderModel.decode`] for the arguments.

        Raises:
            ValueError: If no vocoder is attached.
        """
        if self.vocoder is None:
            raise ValueError(
                "These units have no vocoder, so they cannot be heard; train one with `speech-tokenizers train "
                "unit_vocoder_16khz` and attach it with `attach_vocoder`."
            )
        return self.vocoder.decode(audio_codes, *args, **kwargs)

    def forward(self, input_values: torch.Tensor, padding_mask: torch.Tensor | None = None, **kwargs: Any):
        """As [`~KMeansUnitsModel.encode`]."""
        return self.encode(input_values, padding_mask, **kwargs)

    def _normalized(self, waveforms: torch.Tensor, num_samples: torch.Tensor) -> torch.Tensor:
        if not self.config.do_normalize:
            return waveforms
        mask = frame_mask(num_samples, waveforms.shape[1])
        count = num_samples[:, None]
        centred = (waveforms - (waveforms * mask).sum(-1, keepdim=True) / count) * mask
        return centred / (centred.square().sum(-1, keepdim=True) / count + 1e-7).sqrt()

    def _streams(self, states: torch.Tensor) -> torch.Tensor:
        if self.config.layer_weights is not None:
            weights = torch.tensor(self.config.layer_weights, device=states.device)
            states = torch.einsum("l,blfd->bfd", weights, states)[:, None]
        if self.config.normalization == "layer_norm":
            return F.layer_norm(states, states.shape[-1:])
        if self.config.normalization == "standardize":
            return (states - self.quantizer.features_mean[:, None]) / self.quantizer.features_std[:, None]
        return states


def _keep_layers(encoder: Any, num_layers: int) -> None:
    # Drop the transformer layers above.
    del transformer_layers(encoder)[num_layers:]
    name = "encoder_layers" if has_fixed_window(encoder.config) else "num_hidden_layers"
    setattr(encoder.config, name, num_layers)


__all__ = ["KMeansUnitsModel"]
