# SPDX-License-Identifier: Apache-2.0
"""
`speech-tokenizers card`: write the card of a model from its configuration, its training log and its measured results.
"""

import argparse
import hashlib
import importlib.resources
import json
import math
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

from speech_tokenizers.processing.whole_files import write_whole


TEMPLATE = "card_template.md"
# The table that stands first on a card.
MAX_SHORT_ROWS = 5
SHORT_SCORES = ("pesq", "stoi", "speaker_similarity")  # and error rates against the transcript
TAGS = {
    "codec": ["neural-codec", "residual-vector-quantization"],
    "units": ["discrete-units", "k-means"],
    "swapped units": ["discrete-units", "speaker-invariant"],
    "latents": ["continuous-tokens", "variational-autoencoder"],
}
# Scores that the card's metadata may show, with the Hub's name of each metric.
METADATA_METRICS = {
    "pesq": "PESQ-wb",
    "stoi": "STOI",
    "estoi": "ESTOI",
    "mel_distance": "Mel distance",
    "si_sdr": "SI-SDR",
    "dnsmos": "DNSMOS overall",
    "speaker_similarity": "Speaker similarity",
}


def describe_model(folder: Path) -> dict[str, Any]:
    """Facts that the configuration and the weights in a model folder give, for the template."""
    from safetensors import safe_open

    from speech_tokenizers.coding.loading import find_checkpoint, load_config

    config = load_config(find_checkpoint(folder))
    facts = {
        "sampling rate": f"{config.sampling_rate} Hz",
        "frames": f"{config.frame_rate:g} a second, {config.hop_length} samples each",
    }
    described: dict[str, Any] = {"family": "codec", "frame_rate": config.frame_rate, "facts": facts}
    described["hidden_size"] = getattr(config, "hidden_size", None)
    described |= {"sampling_rate": config.sampling_rate, "kbps": config.bits_per_second / 1000}
    if not hasattr(config, "codebook_size"):
        described["family"] = "latents"
        facts |= _latent_facts(config)
    else:
        described |= {"num_quantizers": config.num_quantizers, "codebook_size": config.codebook_size}
        described["bits_per_code"] = math.log2(config.codebook_size)
    if hasattr(config, "encoder_config"):
        described["family"] = "units"
        facts |= _unit_facts(config)
        # Codes that were learnt by swapped prediction, rather than the centroids of clusters.
        described["is_swapped"] = hasattr(config, "primary_codebook_size")
        described["has_vocoder"] = config.vocoder_config is not None
        described["num_units"] = len(config.unit_codebook_sizes)
        described["unit_sizes"] = list(dict.fromkeys(config.unit_codebook_sizes))
        described |= {"f0_bins": config.f0_bins, "f0_stride": config.f0_stride}
    elif described["family"] == "codec":
        facts |= _codec_facts(config)
    described["tags"] = "swapped units" if described.get("is_swapped") else described["family"]
    weights = folder / "model.safetensors"
    if weights.is_file():
        with safe_open(weights, "pt") as tensors:
            slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118 - not a mapping
            count = sum(math.prod(part.get_shape()) for part in slices)
            kinds = sorted({part.get_dtype() for part in slices if part.get_dtype().startswith(("F", "BF"))})
        facts["weights"] = f"{count / 1e6:.2f} M numbers ({', '.join(kinds)}), {weights.stat().st_size / 1e6:.1f} MB"
    return described


def _network_facts(config: Any) -> dict[str, str]:
    return {
        "encoder": config.encoder_type,
        "decoder": config.decoder_type,
        "look-ahead": "none" if config.causal else "yes (not causal)",
    }


def _latent_facts(config: Any) -> dict[str, str]:
    noise = {
        "sigma": f"sigma-VAE: noise of a standard deviation that is drawn from N(0, {config.noise_std:g}²)",
        "kl": "the encoder predicts the standard deviation of its noise",
    }
    facts = {
        "latents": f"{config.hidden_size} numbers a frame, of zero mean and unit variance over the training speech",
        "bottleneck": f"{noise[config.bottleneck_type]}; in training only",
        "bit rate": f"{config.bits_per_second:g} bit/s in half precision; continuous, so that it is no measure of "
        "information",
        **_network_facts(config),
    }
    if config.ctc_labels is not None:
        facts["CTC head"] = f"{len(config.ctc_labels)} labels, on the latents (training only)"
    return facts


def _codec_facts(config: Any) -> dict[str, str]:
    per_codebook = config.frame_rate * math.log2(config.codebook_size)
    facts = {
        "codebooks": f"{config.num_quantizers} of {config.codebook_size} entries",
        "bit rate": f"{config.bits_per_second:g} bit/s, or {per_codebook:g} bit/s for each codebook used",
        **_network_facts(config),
    }
    learnt_from = {"semantic": "a speech model", "contextual": "a language model"}
    for kind, teacher in learnt_from.items():
        dimension = getattr(config, f"{kind}_dimension", None)
        if dimension is not None:
            stage = getattr(config, f"{kind}_stage")
            codebooks = f"codebook {stage}" if isinstance(stage, int) else f"the {stage} of all codebooks"
            facts[f"distilled from {teacher}"] = f"{codebooks}, projected to {dimension} features (training only)"
    return facts


def _unit_facts(config: Any) -> dict[str, str]:
    encoder = config.encoder_config
    learnt = {}
    if hasattr(config, "primary_codebook_size"):
        auxiliary = config.auxiliary_codebook_size
        learnt["learnt by"] = (
            f"swapped prediction in {config.projection_dim} dimensions with the top {config.trainable_layers} layers"
            + (f", beside an auxiliary codebook of {auxiliary} (DC-Spin)" if auxiliary else " (Spin)")
        )
    sizes = config.unit_codebook_sizes
    listed = ", ".join(map(str, sizes if len({*sizes}) > 1 else sizes[:1]))
    f0 = {}
    if config.f0_bins is not None:
        frames = f"{config.f0_stride} frames" if config.f0_stride > 1 else "a frame"
        f0["F0"] = f"one of {config.f0_bins} codes for {frames}, {config.f0_floor:g} to {config.f0_ceiling:g} Hz"
    return {
        "units": f"{len(sizes)} of {listed} a frame",
        **f0,
        "bit rate": f"{config.bits_per_second:.0f} bit/s before runs of equal units are merged",
        "encoder": f"{encoder.model_type}, {encoder.hidden_size} dimensions, read at layer "
        + ", ".join(map(str, config.layers)),
        "batches": "units of a padded batch equal those alone" if config.padding_invariant else "as in transformers",
        **learnt,
        "vocoder": "none" if config.vocoder_config is None else "attached, see `decode`",
    }


def loss_table(entries: list[dict[str, Any]], num_rows: int = 8) -> dict[str, Any] | None:
    """
    A few rows of a training log, evenly spread, the last one included.

    Args:
        entries (`list` of `dict`): Lines of the log, each with `step`. Lines with evaluation losses are preferred.
        num_rows (`int`, *optional*, defaults to 8): Number of rows of the table.
    """
    evaluated = [entry for entry in entries if any(name.startswith("eval_") for name in entry)]
    entries = evaluated or entries
    if not entries:
        return None
    wanted = ("eval_loss", "eval_mel", "eval_waveform", "eval_stoi", "eval_pesq")
    wanted += ("loss", "mel", "waveform", "commitment", "discriminator")
    wanted += ("semantic_distillation", "contextual_distillation", "kl", "latent_ctc", "reconstruction_ctc")
    wanted += ("latent_rank", "active_dimensions")
    wanted += ("primary_swapped_prediction_loss", "primary_accuracy", "auxiliary_swapped_prediction_loss")
    names = [name for name in wanted if isinstance(entries[-1].get(name), float)]
    places = sorted({round(i * (len(entries) - 1) / max(1, num_rows - 1)) for i in range(min(num_rows, len(entries)))})
    places = sorted({*places, len(entries) - 1})
    rows = []
    for place in places:
        values = [f"{entries[place][name]:.4g}" if name in entries[place] else "" for name in names]
        rows.append({"step": entries[place]["step"], "values": values})
    return {"names": names, "rows": rows}


def latent_table(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """
    What the last evaluation in a training log says about the latents; `None` where no evaluation measured them.

    Args:
        entries (`list` of `dict`): Lines of the log, each with `step`.

    Returns:
        `dict`: `step`, `live_directions`, `participation_ratio`, and `rows`. A row gives the share of the latents'
        variance that so many codebooks leave, and the mel loss with them. Latents without codebooks have no rows.
    """
    measured = [entry for entry in entries if "eval_latent_live_directions" in entry]
    if not measured:
        return None
    last = measured[-1]
    left = {
        int(name.removeprefix("eval_variance_left_")): value
        for name, value in last.items()
        if name.startswith("eval_variance_left_")
    }
    rows = []
    for used, share in sorted(left.items()):
        mel = last.get("eval_mel" if used == len(left) else f"eval_mel_at_{used}")
        rows.append((used, f"{100 * share:.3g} %", "" if mel is None else f"{mel:.4g}"))
    return {
        "step": last["step"],
        "live_directions": f"{last['eval_latent_live_directions']:g}",
        "participation_ratio": f"{last['eval_latent_participation_ratio']:.3g}",
        "rows": rows,
    }


def without_folders(recipe: str) -> str:
    """The text of a recipe with absolute paths cut to their last part, since they hold on one machine only."""
    return re.sub(r"""(?m)((?::|-)\s+['"]?)/(?:[^/\n'"]+/)*(?=[^/\n'"]*['"]?$)""", r"\1", recipe)


def describe_training(run_folder: Path, card_folder: Path, command: str | None) -> dict[str, Any]:
    """
    What a training run left, for the template; its log, recipe and loss curve are copied into the card's folder.

    Args:
        run_folder (`Path`): `output_dir` of the run, with `training_log.jsonl`, `recipe.yaml` and perhaps
            `loss_curves.png`.
        card_folder (`Path`): The model's folder.
        command (`str`, *optional*): The exact command that trained it.

    Raises:
        ValueError: If the folder has none of these files.
    """
    described: dict[str, Any] = {"command": command}
    copied = []
    for name in ("training_log.jsonl", "recipe.yaml", "loss_curves.png"):
        if (run_folder / name).is_file():
            if (run_folder / name).resolve() != (card_folder / name).resolve():
                shutil.copyfile(run_folder / name, card_folder / name)
            if name == "recipe.yaml":
                recipe = without_folders((card_folder / name).read_text(encoding="utf-8"))
                write_whole(card_folder / name, recipe)
                described["recipe"] = recipe.rstrip()
            copied.append(name)
    if not copied:
        raise ValueError(
            f"`--run` is {run_folder}, which is no folder of a training run: it has no training_log.jsonl."
        )
    if "loss_curves.png" in copied:
        described["curve"] = "loss_curves.png"
    if "training_log.jsonl" in copied:
        lines = (card_folder / "training_log.jsonl").read_text(encoding="utf-8").split("\n")
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        steps = max(entry["step"] for entry in entries)
        described["summary"] = f"{steps:,} steps."
        hours = max((entry.get("training_seconds", 0.0) for entry in entries), default=0.0) / 3600
        if hours:
            unit = "hour" if f"{hours:.1f}" == "1.0" else "hours"
            described["summary"] = f"{steps:,} steps, {hours:.1f} {unit} of computation."
        described["losses"] = loss_table(entries)
        described["latents"] = latent_table(entries)
    else:
        described["summary"] = ""
    described["files"] = ", ".join(f"`{name}`" for name in copied if name != "loss_curves.png")
    return described


def describe_results(report: dict[str, Any], system: str, command: str | None) -> dict[str, Any]:
    """Tables of a `results.json` for the template; the stages are those of `system`."""
    from speech_tokenizers.evaluation.reconstruction.report import failure_lines, notes, stage_rows, table_rows
    from speech_tokenizers.evaluation.report_pages import markdown_table

    own = find_system(report, system)
    groups = report["data"]["groups"]
    return {
        "notes": [
            textwrap.fill(f"- {note}", 100, subsequent_indent="  ", break_long_words=False) for note in notes(report)
        ],
        "table": markdown_table(table_rows(report)),
        "failures": failure_lines(report),
        "groups": {name: markdown_table(table_rows(report, name)) for name in groups} if len(groups) > 1 else {},
        "stages": markdown_table(stage_rows(own)) if "stages" in own else "",
        "command": command,
    }


def short_table(report: dict[str, Any], system: str, beside: list[str] | None = None) -> str:
    """
    The table that stands first on a card: few scores of the model and of at most four other systems.

    Args:
        report (`dict`): Contents of the evaluation's `results.json`.
        system (`str`): The model's name in the report.
        beside (`list` of `str`, *optional*): Names of the other systems. Defaults to the first of the report.

    Raises:
        ValueError: If the report lacks a system, or if there are more than four others.
    """
    from speech_tokenizers.evaluation.reconstruction.report import format_score, score_titles
    from speech_tokenizers.evaluation.report_pages import markdown_table

    if beside is None:
        others = [entry["system"] for entry in report["systems"] if entry["system"] != system]
        beside = others[: MAX_SHORT_ROWS - 1]
    if len(beside) >= MAX_SHORT_ROWS:
        raise ValueError(f"`beside` must name at most {MAX_SHORT_ROWS - 1} systems, but got {len(beside)}.")
    titles = {
        name: title
        for name, title in score_titles(report).items()
        if name in SHORT_SCORES or name.startswith("wer_transcript")
    }
    rows = [["system", *titles.values()]]
    for name in [system, *beside]:
        entry = find_system(report, name)
        rows.append([name, *(format_score(entry, score) for score in titles)])
    return markdown_table(rows).strip()


def check_short_result(text: str) -> str:
    """The text, stripped; raises `ValueError` if its tables have more than five rows together."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    rows = [row for row in rows if not re.fullmatch(r"[|\s:-]+", row)][1:]
    if len(rows) > MAX_SHORT_ROWS:
        raise ValueError(f"`result` must be a table of at most {MAX_SHORT_ROWS} rows, but has {len(rows)}.")
    return text.strip()


def find_system(report: dict[str, Any], system: str) -> dict[str, Any]:
    """The entry of a system in a report; raises `ValueError` where there is none."""
    for entry in report["systems"]:
        if entry["system"] == system:
            return entry
    names = ", ".join(entry["system"] for entry in report["systems"])
    raise ValueError(f"`system` must be one of {names}, but got {system!r}.")


def metadata_results(report: dict[str, Any], system: str, dataset_name: str, dataset_id: str) -> list[Any]:
    """The measured means of one system as `EvalResult`s; what failed or was not measured is left out."""
    from huggingface_hub import EvalResult

    scores = find_system(report, system)["scores"]
    names = dict(METADATA_METRICS)
    names |= {key: f"WER % ({key})" for key in scores if key.startswith("wer_")}
    shared = {
        "task_type": "audio-to-audio",
        "task_name": "Speech reconstruction",
        "dataset_type": dataset_id,
        "dataset_name": dataset_name,
    }
    return [
        EvalResult(
            **shared,
            metric_type=key.partition("[")[0],
            metric_name=title,
            metric_value=round(scores[key]["value"], 4),
        )
        for key, title in names.items()
        if scores.get(key) is not None
    ]


def build_card(
    folder: Path,
    name: str,
    report: dict[str, Any] | None = None,
    system: str | None = None,
    run_folder: Path | None = None,
    training_command: str | None = None,
    evaluation_command: str | None = None,
    data: str = "",
    datasets: list[str] | None = None,
    dataset_name: str = "held-out speech",
    benchmark: str = "",
    limits: str = "",
    uses: str = "",
    result: str = "",
    beside: list[str] | None = None,
    sections: dict[str, str] | None = None,
    licence: str | None = "apache-2.0",
    licence_text: str = "Apache License 2.0.",
    language: str | None = "en",
) -> Any:
    """
    Args:
        folder (`Path`): The model's folder, with `config.json`.
        name (`str`): Name of the checkpoint.
        report (`dict`, *optional*): Contents of the evaluation's `results.json`.
        system (`str`, *optional*): The model's name in the report. Defaults to `name`.
        run_folder (`Path`, *optional*): `output_dir` of the training run.
        training_command, evaluation_command (`str`, *optional*): The exact commands that trained and measured it.
        data (`str`, *optional*): Markdown that describes the training data with its licences.
        datasets (`list` of `str`, *optional*): Hub ids of the training data.
        dataset_name (`str`, *optional*): Name of the data that was measured on.
        benchmark (`str`, *optional*): Markdown of `speech-tokenizers benchmark`.
        limits (`str`, *optional*): Markdown on what the model cannot do.
        uses (`str`, *optional*): Markdown on when to use the model and when not.
        result (`str`, *optional*): Markdown of the table that stands first, of at most five rows. Defaults to few
            scores of the report; see [`short_table`].
        beside (`list` of `str`, *optional*): Systems beside the model in that default, at most four.
        sections (`dict` of `str` to `str`, *optional*): More sections in Markdown, by title.
        licence (`str`, *optional*): Hub's name of the model's licence; `None` leaves it unstated.
        licence_text (`str`, *optional*): Sentence that names the licence.
        language (`str`, *optional*): Code of the language of the model's speech; `None` leaves it unstated.

    Returns:
        `huggingface_hub.ModelCard`: What the model is, the short result, its uses and three lines of code; below
        that, folded, everything else. Sections that nothing is known about are left out.

    Raises:
        ValueError: If the report lacks a system, if `run_folder` holds no run, or if `result` has too many rows.
    """
    from huggingface_hub import ModelCard, ModelCardData

    from speech_tokenizers import model_cards

    system = system or name
    short_result = check_short_result(result)
    if report and not short_result:
        short_result = short_table(report, system, beside)
    results = metadata_results(report, system, dataset_name, (datasets or ["speech"])[0]) if report else []
    described = describe_model(folder)
    card_data = ModelCardData(
        language=language,
        license=licence,
        library_name="transformers",
        # No pipeline of transformers takes these models; this is the Hub's name for speech in and speech out.
        pipeline_tag="audio-to-audio" if described.get("has_vocoder", True) else None,
        tags=["audio-tokenizer", "speech", *TAGS[described["tags"]]],
        datasets=datasets,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    template = importlib.resources.files(model_cards).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return ModelCard.from_template(
        card_data,
        template_str=template,
        **described,
        model_name=name,
        model_id=name,
        data=data.strip(),
        training=describe_training(run_folder, folder, training_command) if run_folder else None,
        results=describe_results(report, system, evaluation_command) if report else None,
        benchmark=benchmark.strip(),
        limits=limits.strip(),
        uses=uses.strip(),
        short_result=short_result,
        sections={title: text.strip() for title, text in (sections or {}).items()},
        licence_text=licence_text,
    )


_MARK = re.compile(r"<!-- written by `speech-tokenizers card`; sha256 of the text above: ([0-9a-f]{64}) -->\n*\Z")


def marked(text: str) -> str:
    """The text of a card with a last line by which [`is_own`] knows it."""
    text = text.rstrip("\n") + "\n\n"
    return f"{text}<!-- written by `speech-tokenizers card`; sha256 of the text above: {_digest(text)} -->\n"


def is_own(path: Path) -> bool:
    """Whether `speech-tokenizers card` wrote a file, and nobody has changed it since."""
    text = path.read_text(encoding="utf-8", errors="replace")
    mark = _MARK.search(text)
    return mark is not None and mark[1] == _digest(text[: mark.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `speech-tokenizers card`."""
    parser.add_argument("folder", type=Path, help="the model's folder; README.md is written into it")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a README.md that this command did not write, or that was changed since",
    )
    parser.add_argument("--name", help="name of the checkpoint; default: the folder's name")
    parser.add_argument("--results", type=Path, help="results.json of `speech-tokenizers evaluate`")
    parser.add_argument("--system", help="the model's name in the results; default: --name")
    parser.add_argument("--run", dest="run_folder", type=Path, help="output folder of the training run")
    parser.add_argument("--training-command", help="the exact command that trained the model")
    parser.add_argument("--evaluation-command", help="the exact command that measured it")
    parser.add_argument("--data", type=Path, help="Markdown file that describes the training data and its licences")
    parser.add_argument("--datasets", nargs="*", help="Hub ids of the training data")
    parser.add_argument("--dataset-name", default="held-out speech", help="name of the data that was measured on")
    parser.add_argument("--benchmark", type=Path, help="benchmark.md of `speech-tokenizers benchmark`")
    parser.add_argument("--limits", type=Path, help="Markdown file on the model's limits")
    parser.add_argument("--uses", type=Path, help="Markdown file on when to use the model and when not")
    parser.add_argument(
        "--result", type=Path, help="Markdown file with the table that stands first, of at most five rows"
    )
    parser.add_argument(
        "--beside",
        nargs="+",
        metavar="SYSTEM",
        help="systems of the results that stand beside the model in the first table, at most four, without --result; "
        "default: the first four",
    )
    parser.add_argument(
        "--section",
        nargs=2,
        action="append",
        default=[],
        metavar=("TITLE", "FILE"),
        help="a further section, a Markdown file; may be given several times",
    )


def run(args: argparse.Namespace) -> int:
    """Run `speech-tokenizers card`; returns the exit code."""
    path = args.folder / "README.md"
    if path.is_file() and not args.overwrite and not is_own(path):
        raise ValueError(
            f"{path} exists, and `card` did not write it as it is; pass --overwrite to replace it, or move it away."
        )
    files = {name: getattr(args, name) for name in ("data", "benchmark", "limits", "uses", "result")}
    texts = {name: path.read_text(encoding="utf-8") if path else "" for name, path in files.items()}
    sections = {title: Path(path).read_text(encoding="utf-8") for title, path in args.section}
    card = build_card(
        args.folder,
        args.name or args.folder.resolve().name,
        report=json.loads(args.results.read_text(encoding="utf-8")) if args.results else None,
        system=args.system,
        run_folder=args.run_folder,
        training_command=args.training_command,
        evaluation_command=args.evaluation_command,
        datasets=args.datasets,
        dataset_name=args.dataset_name,
        beside=args.beside,
        sections=sections,
        **texts,
    )
    write_whole(path, marked(str(card)))
    print(f"written: {path}")
    return 0
