# SPDX-License-Identifier: Apache-2.0
"""Metrics of `evaluate`, by name, for the evaluations of a training run."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from speech_tokenizers.evaluation.clip_results import MetricFailure
from speech_tokenizers.evaluation.reconstruction.comparison import METRICS
from speech_tokenizers.training.common.recipe_files import check_names


class ClipMetrics:
    """
    The `compute_metrics` of a [`CodecTrainer`] that measures what a recipe names.

    Args:
        names (sequence of `str`): Names in `evaluation.reconstruction.comparison.METRICS`, such as `stoi`, `pesq` and
            `si_sdr`.
        sampling_rate (`int`): Sampling rate of the codec, in Hz.

    Raises:
        ValueError: If a name is unknown, or a metric is not defined at this rate.
        MissingPackageError: If a metric needs a package that is not installed.
    """

    def __init__(self, names: Sequence[str], sampling_rate: int):
        check_names(names, METRICS, "The metric in `metrics`")
        self.metrics = {name: METRICS[name]() for name in names}
        silence = np.zeros(sampling_rate, dtype=np.float32)
        for metric in self.metrics.values():
            # A wrong rate shows here rather than at the first evaluation. Silence itself need not have a score.
            with suppress(MetricFailure):
                metric.score_clip(silence, silence, sampling_rate)

    def __call__(self, recorded: np.ndarray, decoded: np.ndarray, sampling_rate: int) -> dict[str, float | None]:
        """
        Args:
            recorded, decoded (`np.ndarray` of shape `(num_samples,)`): Waveforms in [-1, 1].
            sampling_rate (`int`): Sampling rate of both, in Hz.

        Returns:
            `dict`: Score of each metric, `None` where it has none for this recording.
        """
        scores: dict[str, float | None] = {}
        for name, metric in self.metrics.items():
            scores[name] = None
            with suppress(MetricFailure):
                scores[name] = metric.score_clip(decoded, recorded, sampling_rate)
        return scores
