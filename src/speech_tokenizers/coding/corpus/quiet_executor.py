# SPDX-License-Identifier: Apache-2.0
"""datatrove's executor of one machine. It needs the extra `corpus`: import it where that is known to be there."""

from typing import Any

from datatrove.executor.local import LocalPipelineExecutor


class QuietExecutor(LocalPipelineExecutor):
    """An executor whose first worker does not write all that it does to standard error; its log file has it."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        return super()._run_for_rank(rank, local_rank + 1, node_rank)


__all__ = ["QuietExecutor"]
