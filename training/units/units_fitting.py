# SPDX-License-Identifier: Apache-2.0
"""
Fit k-means units: the frames of a speech encoder, computed once into a file, and their centroids.

The file of frames may be larger than memory, and serves several sizes of codebook. Processes share both parts of the
work, to the same centroids as one process finds. What is finished is not done again: the same command goes on after a
kill.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.lib.format import open_memmap
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from speech_tokenizers.coding.command_options import add_batch_seconds_argument, check_batch_seconds
from speech_tokenizers.coding.recording_coding import default_batch_seconds
from speech_tokenizers.modeling.model_names import find_model
from speech_tokenizers.modeling.modeling_kmeans_units import KMeansUnitsModel
from speech_tokenizers.modeling.padding_invariance import frame_mask
from speech_tokenizers.processing.feature_extraction_kmeans_units import KMeansUnitsFeatureExtractor
from speech_tokenizers.processing.packing import pack_by_length
from speech_tokenizers.processing.recording_fingerprint import recordings_fingerprint
from speech_tokenizers.processing.recordings import (
    DecodedRecordings,
    decode_all,
    load_recordings,
    parse_filter,
)
from speech_tokenizers.processing.whole_files import WholeFile, beside, whole_folder
from speech_tokenizers.training.common.checkpoint_faults import file_fault, remove_damaged
from speech_tokenizers.training.common.processes import leave_together
from speech_tokenizers.training.common.run_record import fingerprint_of, is_older_fingerprint
from speech_tokenizers.training.common.set_aside import shorter_than, write_set_aside
from speech_tokenizers.training.units.excerpts import Excerpt, draw_excerpts, frame_places
from speech_tokenizers.training.units.f0_fitting import add_f0_arguments, check_f0_arguments, f0_facts
from speech_tokenizers.training.units.frame_files import changed_frames, frame_moments, is_readable, remove_frames
from speech_tokenizers.training.units.kept_choice import KeptPlan, add_keep_arguments, keep_facts, keep_plan
from speech_tokenizers.training.units.kept_frames import KeptFrames
from speech_tokenizers.training.units.kmeans import assign, fit_kmeans, mean_squared_distance
from speech_tokenizers.training.units.pseudo_labels import as_float
from speech_tokenizers.training.units.units_fit import UnitsFit


def write_features(
    model: KMeansUnitsModel,
    recordings: DecodedRecordings,
    excerpts: Sequence[Excerpt],
    path: Path,
    batch_seconds: float = 60.0,
    accelerator: Accelerator | None = None,
    dtype: str = "float16",
) -> np.ndarray:
    """
    Compute the frames of excerpts into one file; those that the file has already are not computed again.

    Args:
        model ([`KMeansUnitsModel`]): Its [`~KMeansUnitsModel.features`] are written.
        recordings ([`DecodedRecordings`]): At the model's rate.
        excerpts (sequence of [`Excerpt`]): What the model hears.
        path (`Path`): The `.npy` file. It must not hold the frames of another model or of other excerpts.
        batch_seconds (`float`): Audio that the model hears at once, with padding.
        accelerator (`Accelerator`, *optional*): Of the processes that share the work, and the file system.
        dtype (`str`): Of the file, `"float16"` or `"float32"`.

    Returns:
        A memory map `(num_streams, num_frames, hidden_size)`.

    Raises:
        ValueError: If frames are too large for half precision.
    """
    lengths = np.array([excerpt.num_samples for excerpt in excerpts])
    order = np.argsort(-lengths, kind="stable")
    batches = pack_by_length(lengths, order, round(batch_seconds * recordings.sampling_rate))
    places = frame_places(model, excerpts)
    shape = (model.config.num_streams, max(place.stop for place in places), model.config.hidden_size)
    done_path = path.with_suffix(".done")
    is_main = accelerator is None or accelerator.is_main_process
    if is_main and not (is_readable(path) and done_path.is_file()):
        if path.is_file():
            tqdm.write(f"{path} is damaged, or its list {done_path.name} is missing; all frames are computed anew.")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.zeros(len(batches), dtype=np.uint8).tofile(done_path)
        with WholeFile(path) as temporary:
            open_memmap(temporary, mode="w+", dtype=dtype, shape=shape).flush()
    if accelerator is not None:
        accelerator.wait_for_everyone()
        model = model.to(accelerator.device)
    features, done = open_memmap(path, mode="r+"), np.memmap(done_path, dtype=np.uint8, mode="r+")
    if features.shape != shape or len(done) != len(batches):
        raise ValueError(f"`{path}` holds other frames; remove it.")
    share = slice(None) if accelerator is None else slice(accelerator.process_index, None, accelerator.num_processes)
    mine = range(len(batches))[share]
    with tqdm(total=len(mine), desc="frames", unit="batch", disable=None if is_main else True) as progress:
        for number in mine:
            if not done[number]:
                rows = _features_of(model, recordings, [excerpts[i] for i in batches[number]])
                for i, row in zip(batches[number], rows, strict=True):
                    features[:, places[i]] = row
                    if not np.isfinite(features[:, places[i]]).all():
                        raise ValueError(
                            f"`{recordings.names[excerpts[i].recording]}` has frames that are not finite in {dtype};"
                            " use float32."
                        )
                features.flush()
                done[number] = 1  # after the frames themselves
                done.flush()
            progress.update()
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return open_memmap(path, mode="c")


def _features_of(
    model: KMeansUnitsModel, recordings: DecodedRecordings, excerpts: Sequence[Excerpt]
) -> list[np.ndarray]:
    # Of each excerpt, (num_streams, num_frames, hidden_size).
    waveforms = [
        torch.from_numpy(as_float(recordings[part.recording][part.start : part.start + part.num_samples]))
        for part in excerpts
    ]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = pad_sequence(waveforms, batch_first=True).to(model.device)
    padding_mask = frame_mask(lengths, padded.shape[1]).long().to(model.device)
    features, mask = model.features(padded[:, None], padding_mask)
    return [row[:, : int(frames)].cpu().numpy() for row, frames in zip(features, mask.sum(-1), strict=True)]


def fit_units(
    model: KMeansUnitsModel,
    features: np.ndarray,
    folder: Path,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    kept: KeptFrames | None = None,
    **kmeans_options: Any,
) -> UnitsFit:
    """
    Give a model the centroids, and the statistics if its frames are standardized, of its frames.

    Args:
        model ([`KMeansUnitsModel`]): Changed in place.
        features (`np.ndarray` of shape `(num_streams, num_frames, hidden_size)`): Of [`write_features`] with a model
            of the same encoder and layers that has no statistics yet.
        folder (`Path`): Keeps what is unfinished, and centroids that are finished. It belongs to this fit.
        seed (`int`): Of k-means.
        accelerator (`Accelerator`, *optional*): Of the processes that share the work.
        kept ([`KeptFrames`], *optional*): What is appended to the frames. The model has its fields.
        kmeans_options: Of [`fit_kmeans`].

    Raises:
        ValueError: If the features are not those of the model, or there are fewer distinct frames than centroids.
    """
    config = model.config
    if features.shape[0] != config.num_streams or features.shape[2] != config.hidden_size:
        raise ValueError(
            f"`features` must be ({config.num_streams}, num_frames, {config.hidden_size}), but are {features.shape}."
        )
    if features.shape[1] < config.codebook_size:
        raise ValueError(
            f"`codebook_size` (--codebook-size) is {config.codebook_size}, but there are only {features.shape[1]}"
            " frames; give more speech or fewer centroids."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if config.normalization == "standardize":
        moments = [frame_moments(stream) for stream in features]
        mean, std = (torch.stack(part) for part in zip(*moments, strict=True))
        model.set_statistics(mean, std.clamp(min=1e-6))
    centroids, distortion, explained = [], [], []
    for stream in range(config.num_streams):
        frames = features[stream]
        if config.normalization == "standardize":
            mean, std = model.quantizer.features_mean[stream].cpu(), model.quantizer.features_std[stream].cpu()

            def standardize(block: torch.Tensor, mean: torch.Tensor = mean, std: torch.Tensor = std) -> torch.Tensor:
                return (block - mean) / std

            frames = changed_frames(frames, folder / f"standardized-{stream}.npy", standardize, accelerator)
        if kept is not None:
            frames = kept.weigh(model, stream, frames, folder, accelerator)
        variance = float(frame_moments(frames)[1].square().sum())
        for stage in range(config.num_stages):
            name = f"codebook-{stream * config.num_stages + stage}"
            table = _fit_codebook(frames, config.codebook_size, folder / name, seed, accelerator, kmeans_options)
            centroids.append(table)
            distortion.append(mean_squared_distance(frames, table, accelerator))
            explained.append(1 - distortion[-1] / variance)
            if stage + 1 < config.num_stages:
                path = folder / f"residual-{stream}-{stage}.npy"
                frames = changed_frames(frames, path, lambda x, table=table: x - table[assign(x, table)], accelerator)
    model.set_centroids(torch.stack(centroids))
    if kept is not None and config.kept_codebook_size:
        frames = kept.beside()
        table = _fit_codebook(
            frames, config.kept_codebook_size, folder / "codebook-kept", seed, accelerator, kmeans_options
        )
        model.set_kept_centroids(table)
        distortion.append(mean_squared_distance(frames, table, accelerator))
        explained.append(1 - distortion[-1] / float(frame_moments(frames)[1].square().sum()))
    return UnitsFit(features.shape[1], features.shape[1] / model.frame_rate, distortion, explained)


def _fit_codebook(
    frames: np.ndarray,
    codebook_size: int,
    path: Path,
    seed: int,
    accelerator: Accelerator | None,
    options: dict[str, Any],
) -> torch.Tensor:
    finished, checkpoint = path.with_suffix(".safetensors"), path.with_suffix(".checkpoint")
    if accelerator is None or accelerator.is_main_process:
        remove_damaged(finished, "this codebook is fitted anew, to the same result")
    if accelerator is not None:
        accelerator.wait_for_everyone()
    if not finished.is_file():
        batch_size = options.get("batch_size", 10000)
        result = fit_kmeans(
            frames,
            codebook_size,
            seed=seed,
            accelerator=accelerator,
            checkpoint=checkpoint,
            description=path.stem,
            **{**options, "batch_size": min(batch_size, len(frames))},
        )
        if accelerator is None or accelerator.is_main_process:
            with WholeFile(finished) as temporary:
                save_file({"centroids": result.centroids}, temporary)
            checkpoint.unlink(missing_ok=True)
        if accelerator is not None:
            accelerator.wait_for_everyone()
    return load_file(finished)["centroids"]


def fit_on_recordings(
    model: KMeansUnitsModel,
    recordings: DecodedRecordings,
    folder: Path,
    codebook_sizes: Sequence[int] | None = None,
    fit_seconds: float | None = None,
    max_seconds: float = 20.0,
    batch_seconds: float = 60.0,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    keep: KeptPlan | None = None,
    **kmeans_options: Any,
) -> list[tuple[KMeansUnitsModel, UnitsFit]]:
    """
    Fit units on recordings.

    Args:
        model ([`KMeansUnitsModel`]): Without centroids; see [`KMeansUnitsModel.from_encoder`].
        recordings ([`DecodedRecordings`]): At the model's rate.
        folder (`Path`): Keeps the frames, and what is unfinished; see the size in the docstring of
            [`write_features`]. It can be removed afterwards.
        codebook_sizes (sequence of `int`, *optional*): A model is fitted for each. Defaults to that of the model.
        fit_seconds (`float`, *optional*): Audio to use, drawn at random. Defaults to all.
        max_seconds (`float`): Longer recordings are cut into parts.
        batch_seconds (`float`): Audio that the encoder hears at once, with padding.
        seed (`int`): Of the drawing and of k-means.
        accelerator (`Accelerator`, *optional*): Of the processes that share the work.
        keep ([`KeptPlan`], *optional*): Labels that the units are to keep.
        kmeans_options: Of [`fit_kmeans`].

    Returns:
        A list of fitted models, which share their encoder, with what was found.

    Raises:
        ValueError: If rates differ, nothing is long enough, or there are fewer distinct frames than centroids.
    """
    if recordings.sampling_rate != model.sampling_rate:
        raise ValueError(f"`recordings` must be at {model.sampling_rate} Hz, but are at {recordings.sampling_rate}.")
    longest = model.longest_input or sys.maxsize
    excerpts = draw_excerpts(
        recordings,
        min(longest, round(max_seconds * model.sampling_rate)),
        model.frame_span,
        fit_seconds,
        seed,
    )
    drawn = [recordings.path.stem, [vars(excerpt) for excerpt in excerpts], batch_seconds]
    key = _key(_encoder_description(model), drawn)
    features = write_features(model, recordings, excerpts, folder / f"{key}.npy", batch_seconds, accelerator)
    fitted = []
    for codebook_size in codebook_sizes or [model.config.codebook_size]:

        def fit(
            kept: KeptFrames | None, part: np.ndarray, *named: Any, size: int = codebook_size, **options: Any
        ) -> tuple[KMeansUnitsModel, UnitsFit]:
            # `part` is all features; or some of them for a while, which `named` tells apart, with `options` at most.
            sized = _sized(model, size, {} if kept is None else kept.fields(model.config.hidden_size))
            most = {name: min(value, kmeans_options.get(name, value)) for name, value in options.items()}
            options = {**kmeans_options, **most}
            parts = [key, sized.config.normalization, sized.config.num_stages, size, seed, options, *named]
            subfolder = folder / _key(*parts, *([] if kept is None else [kept.key]))
            found = fit_units(sized, part, subfolder, seed, accelerator, kept, **options)
            if named:
                remove_frames(subfolder, accelerator)
            return sized, found

        if keep is None:
            fitted.append(fit(None, features))
        else:
            fitted.append(keep.fit(fit, model, recordings, excerpts, features, seed, accelerator))
    return fitted


def _sized(model: KMeansUnitsModel, codebook_size: int, fields: dict[str, int]) -> KMeansUnitsModel:
    config = type(model.config)(**{**model.config.to_diff_dict(), "codebook_size": codebook_size, **fields})
    with torch.device("meta"):
        sized = KMeansUnitsModel(config)
    sized.encoder = model.encoder
    sized.quantizer = type(model.quantizer)(
        config.num_streams,
        config.num_stages,
        codebook_size,
        config.hidden_size,
        config.kept_dims,
        config.kept_codebook_size,
    )
    sized.quantizer.to(model.device)
    return sized.eval()


def _encoder_description(model: KMeansUnitsModel) -> list[Any]:
    # All that frames depend on besides the recordings.
    digest = hashlib.sha256()
    for name, weight in sorted(model.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    config = model.config
    names = ("layers", "layer_weights", "do_normalize", "frame_rule", "padding_invariant", "window")
    layer_norm = config.normalization == "layer_norm"
    return [digest.hexdigest(), layer_norm, *(getattr(config, name) for name in names)]


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def save_units(model: KMeansUnitsModel, fit: UnitsFit, folder: Path, **facts: Any) -> None:
    """
    Save a model with its feature extractor and `fit.json`, whole or not at all.

    Args:
        model ([`KMeansUnitsModel`]): Fitted.
        fit ([`UnitsFit`]): What was found.
        folder (`Path`): New, or an empty one.
        facts: Further entries of `fit.json`.
    """
    feature_extractor = KMeansUnitsFeatureExtractor(sampling_rate=model.sampling_rate, hop_length=model.hop_length)
    found = {name: value for name, value in vars(fit).items() if name != "kept" or value is not None}
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary)
        feature_extractor.save_pretrained(temporary)
        (temporary / "fit.json").write_text(json.dumps({**found, **facts}, indent=2) + "\n", encoding="utf-8")


# Options that decide the centroids, besides the layers and the size, which name the folders of several models.
_DECIDING = (
    *("num_stages", "normalization", "window", "frame_rule", "fit_seconds", "max_seconds", "batch_seconds"),
    *("max_epochs", "seed", "f0_bins", "f0_stride"),
)


def check_finished(folder: Path, begun_with: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: If a finished model, beside which others are to be fitted, was begun with other options, recordings
            or another encoder, by its `fit.json`.
    """
    path = folder / "fit.json"
    if not path.is_file():
        return
    if (fault := file_fault(path)) is not None:
        raise ValueError(f"{path} {fault}; put a copy back, or delete {folder} to fit it anew.")
    known = json.loads(path.read_text(encoding="utf-8")).get("begun_with", {})
    differing = [key for key, value in begun_with.items() if key in known and known[key] != value]
    if differing := [key for key in differing if not is_older_fingerprint(known[key], begun_with[key])]:
        key = differing[0]
        was = f"was {known[key]!r} and is {begun_with[key]!r}" if key.islower() else "has other contents than before"
        name = f"--{key}" if key.islower() else key
        raise ValueError(f"{folder} is finished and {name} {was}; name another folder with -o, or delete that one.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("encoder", metavar="ENCODER", help="folder or Hub id of a speech encoder of transformers")
    parser.add_argument(
        "data", metavar="RECORDINGS", help="a folder, a file of metadata, Parquet, or a dataset's Hub id"
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", required=True, type=Path, help="the model; with several, a folder of them"
    )
    parser.add_argument(
        "--layers",
        type=int,
        nargs="+",
        default=[6],
        help="layers to read, counted from 1; several give a codebook each",
    )
    parser.add_argument("--separately", action="store_true", help="a model for each of the layers")
    parser.add_argument("--codebook-size", metavar="K", type=int, nargs="+", default=[100], help="centroids")
    parser.add_argument("--num-stages", type=int, default=1, help="residual codebooks of a layer (default: 1)")
    parser.add_argument(
        "--normalization",
        choices=("layer_norm", "standardize"),
        default=None,
        help="normalization of frames; default: none",
    )
    parser.add_argument(
        "--window", choices=("padded", "tight"), default="padded", help="window of Whisper's encoder (default: padded)"
    )
    parser.add_argument(
        "--frame-rule", choices=("conv", "fairseq"), default="conv", help="frames of a padded row (default: conv)"
    )
    add_keep_arguments(parser)
    add_f0_arguments(parser)
    kept: dict[str, Any] = {"metavar": "COLUMN=VALUE[,VALUE]", "nargs": "*", "action": "extend", "default": []}
    parser.add_argument("--filter", **kept, help="rows of RECORDINGS to use")
    parser.add_argument("--fit-seconds", type=float, default=None, help="audio to use, drawn at random; default: all")
    parser.add_argument("--max-seconds", type=float, default=20.0, help="longer recordings are cut (default: 20)")
    add_batch_seconds_argument(parser)
    parser.add_argument("--max-epochs", type=float, default=100, help="most epochs of k-means (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn (default: 0)")
    parser.add_argument("--cache-dir", type=Path, default=None, help="keeps audio and frames; default: in FOLDER")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    check_batch_seconds(args.batch_seconds)
    _fit_all(args)
    leave_together()
    return 0


def _fit_all(args: argparse.Namespace) -> None:
    from huggingface_hub.errors import StrictDataclassError  # what a contradictory configuration raises
    from transformers.utils import logging

    logging.disable_progress_bar()
    for name in ("fit_seconds", "max_seconds", "batch_seconds", "max_epochs"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, but is {value:g}.")
    check_f0_arguments(args)
    accelerator = Accelerator()
    groups = [[layer] for layer in args.layers] if args.separately else [args.layers]
    targets = {}
    for group in groups:
        for size in args.codebook_size:
            parts = [f"layer{group[0]}"] * (len(groups) > 1) + [f"k{size}"] * (len(args.codebook_size) > 1)
            targets[tuple(group), size] = args.output.joinpath("-".join(parts))
    if all((target / "config.json").is_file() for target in targets.values()):
        raise ValueError(f"{args.output} is finished; name another folder, or remove it.")
    find_model(args.encoder, argument="ENCODER")
    cache = args.cache_dir or beside(args.output.with_name(f".{args.output.name}"), ".cache")

    with accelerator.main_process_first():
        rows = load_recordings(args.data, parse_filter(args.filter))
    begun_with = {name.replace("_", "-"): getattr(args, name) for name in _DECIDING}
    begun_with |= {"RECORDINGS": recordings_fingerprint(rows), "ENCODER": fingerprint_of(args.encoder)}
    plan = keep_plan(args, rows)
    begun_with |= keep_facts(plan)
    for (group, _), target in targets.items():
        check_finished(target, {**begun_with, "layers": list(group)})
    with accelerator.main_process_first():
        recordings = decode_all(rows, 16000, cache, accelerator.is_main_process)
    summary = f"{len(recordings)} recordings, {recordings.seconds / 3600:.2f} h"
    if recordings.rejected:
        summary += f"; {len(recordings.rejected)} cannot be read"
    accelerator.print(summary, file=sys.stderr)
    rejected_path = beside(args.output, ".rejected.jsonl")
    write_set_aside(rejected_path, recordings.rejected)
    for group in groups:
        try:
            model = KMeansUnitsModel.from_encoder(
                args.encoder,
                layers=group,
                num_stages=args.num_stages,
                codebook_size=max(args.codebook_size),
                normalization=args.normalization,
                window=args.window,
                frame_rule=args.frame_rule,
            )
        except StrictDataclassError as error:
            raise ValueError(str(error)) from error
        except (ValueError, OSError) as error:
            raise ValueError(f"ENCODER {args.encoder} cannot be used: {error}") from error
        too_short = shorter_than(recordings, model.frame_span, "a frame of the encoder")
        if too_short and group == groups[0]:
            write_set_aside(rejected_path, [*recordings.rejected, *too_short])
        for size, (fitted, fit) in zip(
            args.codebook_size,
            fit_on_recordings(
                model,
                recordings,
                cache,
                args.codebook_size,
                args.fit_seconds,
                args.max_seconds,
                args.batch_seconds or default_batch_seconds(accelerator.device),
                args.seed,
                accelerator,
                plan,
                max_epochs=args.max_epochs,
            ),
            strict=True,
        ):
            target = targets[tuple(group), size]
            if accelerator.is_main_process and not (target / "config.json").is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                facts = {"seed": args.seed, "encoder": Path(args.encoder).name, "layers": group}
                facts |= f0_facts(fitted, recordings, args)
                save_units(fitted, fit, target, **facts, begun_with={**begun_with, "layers": group})
            sizes = " and ".join(map(str, dict.fromkeys(fitted.config.codebook_sizes)))
            accelerator.print(
                f"{target}: {sizes} centroids of {fit.num_frames} frames ({fit.seconds / 60:.1f} min) account for "
                + ", ".join(f"{share:.1%}" for share in fit.explained)
                + " of their variance"
            )
    if args.cache_dir is None and accelerator.is_main_process:
        shutil.rmtree(cache)
