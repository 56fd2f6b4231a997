# SPDX-License-Identifier: Apache-2.0
"""Corpora of any size to speech rows, by any number of processes and machines."""
