# SPDX-License-Identifier: Apache-2.0
"""Mini-batch k-means beside scikit-learn and a naive one, and the same bits however the work is cut."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.format import open_memmap
from sklearn.cluster import KMeans, MiniBatchKMeans, kmeans_plusplus

from helpers.processes import run_ranks, start
from speech_tokenizers.training.units import kmeans
from speech_tokenizers.training.units.kmeans import FrameStream, assign, fit_kmeans, mean_squared_distance


NUM_CLUSTERS = 7
PROGRAM = Path(__file__).with_name("kmeans_and_dump.py")


def make_blobs(num_frames: int, spread: float = 0.1, seed: int = 0, dim: int = 5) -> np.ndarray:
    """Frames `(num_frames, dim)` around 7 corners of a cube, unlike in number."""
    generator = np.random.default_rng(seed)
    corners = 4.0 * (np.arange(NUM_CLUSTERS)[:, None] >> np.arange(dim) & 1)
    chosen = generator.choice(NUM_CLUSTERS, num_frames, p=np.arange(1, 8) / 28)
    return (corners[chosen] + spread * generator.standard_normal((num_frames, dim))).astype(np.float32)


def sorted_rows(table: np.ndarray | torch.Tensor) -> np.ndarray:
    table = np.asarray(table)
    return table[np.lexsort(table.round(1).T)]


def naive_distances(frames: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return np.square(frames[:, None].astype(np.float64) - centroids).sum(-1)  # (N, K)


def naive_minibatch(batches: list[np.ndarray], centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each centroid becomes the mean of all the frames that it was ever given."""
    given = [[] for _ in centroids]
    centroids = centroids.astype(np.float64)
    for batch in batches:
        for frame, label in zip(batch, naive_distances(batch, centroids).argmin(1), strict=True):
            given[label].append(frame.astype(np.float64))
        centroids = np.stack(
            [np.mean(frames, axis=0) if frames else old for frames, old in zip(given, centroids, strict=True)]
        )
    return centroids, np.array([len(frames) for frames in given])


def test_whole_batches_find_the_optimum_of_scikit_learn():
    frames = make_blobs(900)
    expected = KMeans(NUM_CLUSTERS, n_init=5, random_state=0).fit(frames)
    stream = FrameStream(lambda epoch: [frames[:400], frames[400:]], len(frames))
    result = fit_kmeans(stream, NUM_CLUSTERS, batch_size=len(frames), max_epochs=5)
    np.testing.assert_allclose(sorted_rows(result.centroids), sorted_rows(expected.cluster_centers_), atol=1e-5)
    assert mean_squared_distance(frames, result.centroids) == pytest.approx(expected.inertia_ / 900, rel=1e-5)
    assert result.inertia == pytest.approx(expected.inertia_ / 900, rel=1e-5)
    assert sorted(result.counts.tolist()) == sorted(5 * np.bincount(expected.labels_))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_batches_come_near_the_optimum(seed):
    frames = make_blobs(4000, 0.2, seed)
    expected = KMeans(NUM_CLUSTERS, n_init=5, random_state=seed).fit(frames).inertia_ / len(frames)
    result = fit_kmeans(frames, NUM_CLUSTERS, seed=seed, batch_size=250, max_epochs=40)
    assert expected * (1 - 1e-5) <= mean_squared_distance(frames, result.centroids) <= 1.01 * expected
    assert result.inertia == pytest.approx(expected, rel=0.1)


def test_where_clusters_run_together_it_is_as_good_as_scikit_learn_s():
    frames = make_blobs(4000, 1.5)
    options = {"batch_size": 250, "max_no_improvement": 100, "n_init": 20, "reassignment_ratio": 0.0, "tol": 0.0}
    theirs, ours = [], []
    for seed in range(6):
        estimator = MiniBatchKMeans(NUM_CLUSTERS, random_state=seed, max_iter=40, **options).fit(frames)
        theirs.append(naive_distances(frames, estimator.cluster_centers_).min(1).mean())
        result = fit_kmeans(frames, NUM_CLUSTERS, seed=seed, batch_size=250, max_epochs=40)
        ours.append(mean_squared_distance(frames, result.centroids))
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.02)


@pytest.mark.parametrize("num_frames", [1, 511, 512, 513, 1700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_assignment_is_that_of_the_nearest_and_of_scikit_learn(num_frames, dtype):
    frames = torch.from_numpy(make_blobs(num_frames, 1.0)).to(dtype)
    centroids = torch.from_numpy(make_blobs(20, 1.0, seed=1))
    labels = assign(frames, centroids)
    expected = naive_distances(frames.float().numpy(), centroids.numpy()).argmin(1)
    assert labels.tolist() == expected.tolist()
    estimator = KMeans(20, init=centroids.numpy(), n_init=1).fit(centroids.numpy())
    estimator.cluster_centers_ = centroids.numpy()  # fitting has rounded them
    assert labels.tolist() == estimator.predict(frames.float().numpy()).tolist()
    assert mean_squared_distance(frames, centroids) == pytest.approx(
        naive_distances(frames.float().numpy(), centroids.numpy()).min(1).mean(), rel=1e-5
    )


def test_a_frame_has_one_label_wherever_it_stands():
    generator = torch.Generator().manual_seed(0)
    frames, centroids = torch.randn(1500, 64, generator=generator), torch.randn(300, 64, generator=generator)
    labels = assign(frames, centroids)
    for first in (1, 511, 700, 1499):
        assert torch.equal(assign(frames[first:], centroids), labels[first:])


@pytest.mark.parametrize("seed", [0, 1])
def test_batches_are_those_of_a_naive_minibatch(seed):
    frames = make_blobs(700, 1.5, seed)
    start = frames[np.random.default_rng(seed).choice(700, 9, replace=False)]
    orders = [np.random.default_rng([seed, epoch]).permutation(700) for epoch in range(3)]
    stream = FrameStream(lambda epoch: np.array_split(frames[orders[epoch]], 5), 700)
    result = fit_kmeans(
        stream, 9, batch_size=100, max_epochs=3, max_no_improvement=None, initial_centroids=torch.from_numpy(start)
    )
    batches = [frames[order].reshape(7, 100, 5) for order in orders]
    centroids, counts = naive_minibatch(list(np.concatenate(batches)), start)
    assert result.num_steps == 21
    assert result.counts.tolist() == counts.tolist()
    np.testing.assert_allclose(result.centroids, centroids, atol=1e-5)


def test_blocks_of_a_stream_may_have_any_size():
    frames = torch.from_numpy(make_blobs(600, 1.0))
    results = [
        fit_kmeans(FrameStream(lambda epoch, size=size: frames.split(size), 600), 5, batch_size=130, max_epochs=3)
        for size in (1, 77, 600)
    ]
    assert all(torch.equal(result.centroids, results[0].centroids) for result in results)


@pytest.mark.parametrize("seed", range(5))
def test_the_start_takes_a_frame_of_every_blob(seed):
    frames = torch.from_numpy(make_blobs(500, 0.05))
    rows, inertia = kmeans._k_means_plus_plus(frames, NUM_CLUSTERS, [seed])
    assert len(torch.unique(frames[rows].round(), dim=0)) == NUM_CLUSTERS
    assert float(inertia) == pytest.approx(
        naive_distances(frames.numpy(), frames[rows].numpy()).min(1).sum(), rel=1e-3
    )


def test_the_start_is_as_good_as_scikit_learn_s():
    frames = make_blobs(1000, 2.0)
    ours = [float(kmeans._k_means_plus_plus(torch.from_numpy(frames), 15, [seed])[1]) for seed in range(20)]
    theirs = []
    for seed in range(20):
        centres, _ = kmeans_plusplus(frames, 15, random_state=seed)
        theirs.append(naive_distances(frames, centres).min(1).sum())
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.05)
    drawn = [
        naive_distances(frames, frames[np.random.default_rng(s).choice(1000, 15)]).min(1).sum() for s in range(20)
    ]
    assert np.mean(ours) < 0.9 * np.mean(drawn)


def test_the_seed_alone_decides():
    frames = make_blobs(2000, 1.5)
    first, second, other = (
        fit_kmeans(frames, 9, seed=seed, batch_size=200, max_epochs=3, num_init=2) for seed in (3, 3, 4)
    )
    torch.manual_seed(1)
    np.random.seed(1)
    third = fit_kmeans(torch.from_numpy(frames), 9, seed=3, batch_size=200, max_epochs=3, num_init=2)
    assert torch.equal(first.centroids, second.centroids)
    assert torch.equal(first.centroids, third.centroids)
    assert not torch.equal(first.centroids, other.centroids)


def test_it_stops_when_nothing_improves():
    frames = make_blobs(2000)
    options = {"batch_size": 200, "max_epochs": 50}
    stopped = fit_kmeans(frames, NUM_CLUSTERS, max_no_improvement=5, **options)
    assert 5 < stopped.num_steps < 500
    assert fit_kmeans(frames, NUM_CLUSTERS, max_no_improvement=None, **options).num_steps == 500


def test_a_centroid_without_frames_is_moved_if_so_wished():
    frames = make_blobs(600)
    start = torch.from_numpy(frames[:NUM_CLUSTERS]).clone()
    start[3] = 1e4
    options = {"batch_size": 200, "max_epochs": 20, "max_no_improvement": None, "initial_centroids": start}
    kept = fit_kmeans(frames, NUM_CLUSTERS, **options)
    assert kept.counts[3] == 0
    assert kept.centroids[3].tolist() == [1e4] * 5
    moved = fit_kmeans(frames, NUM_CLUSTERS, reassignment_ratio=0.01, **options)
    assert moved.counts[3] > 0
    assert moved.centroids.abs().max() < 10


@pytest.mark.parametrize("after", [1, 4, 5, 29])
@pytest.mark.parametrize("is_stream", [False, True])
def test_an_interrupted_fit_goes_on_to_the_same_bits(after, is_stream, tmp_path, monkeypatch):
    frames = make_blobs(1000, 1.5)
    source = FrameStream(lambda epoch: [np.roll(frames, epoch, axis=0)], 1000) if is_stream else frames
    options = {"batch_size": 100, "max_epochs": 3, "max_no_improvement": None, "num_init": 2}
    options |= {"reassignment_ratio": 0.2, "checkpoint_steps": 2}
    whole = fit_kmeans(source, 9, **options)
    step, steps = kmeans._step, []

    def stops(*args):
        steps.append(args)
        if len(steps) == after:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(kmeans, "_step", stops)
    path = tmp_path / "deep" / "state"
    with pytest.raises(KeyboardInterrupt):
        fit_kmeans(source, 9, checkpoint=path, **options)
    resumed = fit_kmeans(source, 9, checkpoint=path, **options)
    assert len(steps) - after == 30 - (after - 1) // 2 * 2  # what was saved is not done again
    assert torch.equal(resumed.centroids, whole.centroids)
    assert torch.equal(resumed.counts, whole.counts)
    assert (resumed.inertia, resumed.num_steps) == (whole.inertia, 30)
    assert [file.name for file in path.parent.iterdir()] == ["state"]


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    frames = make_blobs(300)
    fit_kmeans(frames, 3, batch_size=50, max_epochs=1, num_init=2, checkpoint=tmp_path / "state")
    for changes, name in (({"seed": 1}, "seed"), ({"batch_size": 60}, "batch_size"), ({"num_init": 3}, "num_init")):
        options = {"batch_size": 50, "max_epochs": 1, "num_init": 2, **changes}
        with pytest.raises(ValueError, match=f"another fit .*{name}: "):
            fit_kmeans(frames, 3, checkpoint=tmp_path / "state", **options)
    with pytest.raises(ValueError, match="another fit .*frames: "):
        fit_kmeans(frames + 1, 3, batch_size=50, max_epochs=1, num_init=2, checkpoint=tmp_path / "state")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clusters": 0}, "`num_clusters` must be positive"),
        ({"num_clusters": 101}, "there are only 100 frames"),
        ({"batch_size": 0}, "`batch_size` must be positive"),
        ({"max_epochs": 0}, "`max_epochs` must be positive"),
        ({"max_no_improvement": 0}, "`max_no_improvement` must be positive"),
        ({"num_init": 0}, "`num_init` must be positive"),
        ({"init_size": 0}, "`init_size` must be positive"),
        ({"checkpoint_steps": 0}, "`checkpoint_steps` must be positive"),
        ({"reassignment_ratio": 1.0}, "`reassignment_ratio` must lie between"),
        ({"frames": np.zeros((100, 5), dtype=np.float32)}, "fewer distinct ones"),
        ({"frames": np.zeros(100, dtype=np.float32)}, "must have the shape"),
        ({"frames": np.full((100, 5), np.nan, dtype=np.float32)}, "NaN or infinity"),
        ({"initial_centroids": torch.zeros(3, 4)}, r"must have the shape \(3, 5\)"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fit_kmeans(**{"frames": make_blobs(100), "num_clusters": 3, **changes})


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_found_wherever_it_stands(number):
    frames = make_blobs(5000)
    frames[4321, 2] = number
    with pytest.raises(ValueError, match="NaN or infinity"):
        fit_kmeans(frames, 3, batch_size=100, max_epochs=20, init_size=10, num_init=1, max_no_improvement=None)


def test_a_stream_that_ends_too_early_is_an_error():
    frames = make_blobs(300)
    with pytest.raises(ValueError, match="`frames.num_frames` is 600, but epoch 0 has fewer than 350"):
        fit_kmeans(FrameStream(lambda epoch: [frames], 600), 3, batch_size=50, init_size=100)
    with pytest.raises(ValueError, match="should have 400 frames in an epoch, but have 300"):
        fit_kmeans(FrameStream(lambda epoch: [frames], 600), 3, batch_size=50, init_size=400)
    with pytest.raises(ValueError, match="must have the shape"):
        assign(torch.zeros(3, 4), torch.zeros(2, 5))


@pytest.fixture
def frames_file(tmp_path):
    """File of frames of half precision."""
    path = tmp_path / "frames.npy"
    np.save(path, make_blobs(6000, 1.5, dim=24).astype(np.float16))
    return path


def test_two_processes_find_what_one_finds(frames_file, tmp_path):
    alone = start(PROGRAM, frames_file, tmp_path / "one", 5, "")
    run_ranks(PROGRAM, frames_file, tmp_path / "two", 5, tmp_path / "checkpoint")
    output, _ = alone.communicate(timeout=250)
    assert alone.returncode == 0, output
    one, first, second = (torch.load(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    assert [part["world_size"] for part in (one, first, second)] == [1, 2, 2]
    for other in (first, second):
        assert torch.equal(other["centroids"], one["centroids"])
        assert torch.equal(other["counts"], one["counts"])
        assert (other["inertia"], other["num_steps"]) == (one["inertia"], one["num_steps"])
        assert other["distance"] == pytest.approx(one["distance"], rel=1e-12)


def test_a_killed_fit_goes_on_to_the_same_bits(frames_file, tmp_path):
    whole = start(PROGRAM, frames_file, tmp_path / "whole", 300, "")
    checkpoint = tmp_path / "checkpoint"
    killed = start(PROGRAM, frames_file, tmp_path / "killed", 300, checkpoint)
    deadline = time.monotonic() + 200
    while not checkpoint.exists():
        assert killed.poll() is None, killed.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(random.uniform(0.0, 0.2))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed.0").exists()
    resumed = start(PROGRAM, frames_file, tmp_path / "killed", 300, checkpoint)
    outputs = [process.communicate(timeout=250)[0] for process in (whole, resumed)]
    assert [process.returncode for process in (whole, resumed)] == [0, 0], "\n".join(outputs)
    expected, found = torch.load(tmp_path / "whole.0"), torch.load(tmp_path / "killed.0")
    assert torch.equal(found["centroids"], expected["centroids"])
    assert torch.equal(found["counts"], expected["counts"])
    assert found["num_steps"] == expected["num_steps"] == 300 * 6000 // 1300


def test_frames_may_be_more_than_memory_holds(tmp_path):
    path = tmp_path / "frames.npy"
    target = open_memmap(path, mode="w+", dtype=np.float16, shape=(2**19, 128))  # 128 MiB
    generator = np.random.default_rng(0)
    for first in range(0, len(target), 2**14):
        target[first : first + 2**14] = generator.standard_normal((2**14, 128), dtype=np.float32)
    target.flush()
    del target
    # What may be written to, which the file is not, can grow by 80 MiB: blocks of 8 MiB pass, the frames do not.
    program = """
import resource, sys
import numpy as np
from speech_tokenizers.training.units.kmeans import fit_kmeans, mean_squared_distance

fit_kmeans(np.random.default_rng(0).standard_normal((2000, 128)), 10, batch_size=1000, max_epochs=2, num_init=1)
with open("/proc/self/status") as status:
    (used,) = [int(line.split()[1]) * 1024 for line in status if line.startswith("VmData")]
resource.setrlimit(resource.RLIMIT_DATA, (used + 5 * 2**24, used + 5 * 2**24))
frames = np.load(sys.argv[1], mmap_mode="r")
result = fit_kmeans(frames, 10, batch_size=4000, max_epochs=1, num_init=1)
print(result.counts.sum().item(), mean_squared_distance(frames, result.centroids) < 128)
try:
    np.asarray(frames).astype(np.float32)
except MemoryError:
    print("too large")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    counted, *rest = result.stdout.split(maxsplit=1)
    assert int(counted) % 4000 == 0
    assert rest == ["True\ntoo large\n"]
