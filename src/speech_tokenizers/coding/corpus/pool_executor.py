# SPDX-License-Identifier: Apache-2.0
"""datatrove's executor of one machine, on a pool that notices when a process is killed. Needs the extra `corpus`."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed

from datatrove.executor.local import LocalPipelineExecutor


class PoolExecutor(LocalPipelineExecutor):
    """
    datatrove's own pool waits forever for a process that was killed, as for lack of memory.

    Its first process would also write all that it does to standard error; here it stands in the log files alone.
    """

    def run(self) -> None:
        """
        Do the tasks that are not complete.

        Raises:
            BrokenProcessPool: If a process was killed.
        """
        self.save_executor_as_json()
        ranks = self.get_incomplete_ranks(range(self.tasks))
        others = set(multiprocessing.active_children())
        with ProcessPoolExecutor(self.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            promised = [pool.submit(self._run_for_rank, rank, 1) for rank in ranks]
            try:
                for task in as_completed(promised):
                    task.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in set(multiprocessing.active_children()) - others:  # their tasks are begun anew later
                    worker.terminate()
                raise


__all__ = ["PoolExecutor"]
