# SPDX-License-Identifier: Apache-2.0
"""What answers of a study of tone count for."""

import numpy as np

from speech_tokenizers.evaluation.reconstruction.frame_probe import macro_f1
from speech_tokenizers.training.studies.tone_study.comparison import _class_counts


def test_labels_that_differ_in_case_are_different_ones():
    targets = ["E", "e", "E", "e"]
    assert float(macro_f1(_class_counts(targets, targets).sum(0))) == 100
    assert float(macro_f1(_class_counts(["e", "E", "e", "E"], targets).sum(0))) == 0


def test_an_answer_that_is_no_label_of_the_test_is_a_miss():
    counts = _class_counts(["1", "3"], ["1", "2"])
    assert np.array_equal(counts, [[1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]])
