# SPDX-License-Identifier: Apache-2.0
"""Feature extractor of DM-Codec."""

from .feature_extraction_rvq_codec import RVQCodecFeatureExtractor


class DMCodecFeatureExtractor(RVQCodecFeatureExtractor):
    """Waveforms to padded batches, as [`RVQCodecFeatureExtractor`] does it."""


__all__ = ["DMCodecFeatureExtractor"]
