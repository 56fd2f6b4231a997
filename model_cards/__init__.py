# SPDX-License-Identifier: Apache-2.0
"""Released checkpoints, one folder each: a complete Hub repository (card, config, weights, preprocessor)."""
