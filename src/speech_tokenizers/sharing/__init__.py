# SPDX-License-Identifier: Apache-2.0
"""Models for others: what is uploaded, and what a stranger would miss in it."""
