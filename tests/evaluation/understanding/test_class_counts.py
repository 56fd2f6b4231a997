# SPDX-License-Identifier: Apache-2.0
"""What answers count for, class by class."""

import numpy as np

from speech_tokenizers.evaluation.reconstruction.frame_probe import macro_f1
from speech_tokenizers.evaluation.understanding.metrics import class_counts


def test_labels_that_differ_in_case_are_different_ones():
    targets = ["E", "e", "E", "e"]
    assert float(macro_f1(class_counts(targets, targets).sum(0))) == 100
    assert float(macro_f1(class_counts(["e", "E", "e", "E"], targets).sum(0))) == 0


def test_an_answer_that_is_no_label_of_the_test_is_a_miss():
    counts = class_counts(["1", "3"], ["1", "2"])
    assert np.array_equal(counts, [[1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]])
