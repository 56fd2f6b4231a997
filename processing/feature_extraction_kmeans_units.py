# SPDX-License-Identifier: Apache-2.0
"""Feature extractor of k-means units."""

from .feature_extraction_rvq_codec import RVQCodecFeatureExtractor


class KMeansUnitsFeatureExtractor(RVQCodecFeatureExtractor):
    """Waveforms to padded batches, as [`RVQCodecFeatureExtractor`] does it; padding is on the right."""

    padding_sides = ("right",)


__all__ = ["KMeansUnitsFeatureExtractor"]
