# SPDX-License-Identifier: Apache-2.0
"""A `push` that is killed and started again sends nothing twice that has arrived."""

import subprocess
import sys
import threading
from collections import Counter

import pytest

from helpers.fake_hub import FakeHub
from helpers.online import online, run_online


PATIENCE = 240.0


class Stop:
    """Lets requests of a kind through until so many were answered, and holds the others until it is released."""

    def __init__(self, method: str, words: str, let_through: int):
        self.method, self.words, self.left = method, words, let_through
        self.held, self.released, self.passed = threading.Event(), threading.Event(), threading.Semaphore(0)
        self.lock = threading.Lock()

    def __call__(self, handler) -> bool:
        if self.released.is_set() or handler.command != self.method or self.words not in handler.path:
            return False
        with self.lock:
            self.left -= 1
            if self.left >= 0:
                return False
        self.held.set()
        self.released.wait(PATIENCE)
        handler.close_connection = True
        return True  # and is never answered


@pytest.mark.parametrize(
    ("method", "words", "let_through"),
    [("PUT", "/store/", 2), ("POST", "/commit/", 0)],
    ids=["between files", "all sent"],
)
def test_what_has_arrived_is_not_sent_again(tiny_checkpoint, tmp_path, method, words, let_through):
    push = ["push", tiny_checkpoint, "user/tiny", "--licence", "mit"]
    with FakeHub(large_from=10_000) as hub:
        hub.before = stop = Stop(method, words, let_through)
        process = subprocess.Popen(
            [sys.executable, "-m", "speech_tokenizers", *map(str, push)],
            env=online(hub, tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert stop.held.wait(PATIENCE)
            wanted = let_through or None
            assert wait_until(lambda: wanted is None or len(hub.sent) >= wanted)
        finally:
            process.kill()
            process.wait()
            stop.released.set()
        first = Counter(hub.sent)
        assert hub.files("user/tiny") == {}  # one commit, or none
        if let_through:
            assert len(first) == let_through
        (again,) = run_online(hub, tmp_path, [push])
        assert again.code == 0, again
        sent = Counter(hub.sent)
        assert max(sent.values()) == 1
        files = hub.files("user/tiny")
        large = {name for name, content in files.items() if len(content) >= 10_000}
        assert {"model.safetensors", "samples/recorded.flac"} < large
        assert len(sent) == len({files[name] for name in large})
        if not let_through:
            assert sent == first
        # And a third time there is nothing to send at all.
        (third,) = run_online(hub, tmp_path, [push])
        assert third.code == 0, third
        assert Counter(hub.sent) == sent
        assert hub.files("user/tiny") == files


def wait_until(is_so, seconds: float = PATIENCE) -> bool:
    """Whether something becomes so in time; it is looked at again and again."""
    waiting = threading.Event()
    for _ in range(int(seconds * 50)):
        if is_so():
            return True
        waiting.wait(0.02)
    return False
