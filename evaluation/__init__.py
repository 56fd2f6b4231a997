# SPDX-License-Identifier: Apache-2.0
"""Measuring codecs: signal, perceptual and recognition metrics, code statistics, peers, speed and memory."""
