# SPDX-License-Identifier: Apache-2.0
"""The study of discrete against continuous speech tokens as input of language models."""
