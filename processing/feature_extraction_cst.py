# SPDX-License-Identifier: Apache-2.0
"""Feature extractor of the continuous speech tokens."""

from .feature_extraction_rvq_codec import RVQCodecFeatureExtractor


class CSTFeatureExtractor(RVQCodecFeatureExtractor):
    """Waveforms to padded batches, as [`RVQCodecFeatureExtractor`] does it."""


__all__ = ["CSTFeatureExtractor"]
