# SPDX-License-Identifier: Apache-2.0
"""The card of a model that is pushed by its training: what the configuration and the training log say, and no more."""

import re
import tempfile
from pathlib import Path
from typing import Any

from speech_tokenizers.modeling.hub_export import short_card


_UNSTATED = "not stated; state it as `license` above."
_NOTHING = "Nothing has been measured of these weights."
_BELOW = "What its training measured stands below. Nothing else has been measured of these weights."
# Settings that name where things are, who pushes, or what was learnt from: the user tells of that, or does not.
_PRIVATE = re.compile(
    r"hub_\w+|push_to_hub|\w+_dir|resume_from_checkpoint|allow_changes|report_to|pronunciations|codec"
)


def training_card(model: Any, folder: Path, repo_id: str, run_folder: Path, licence: str | None = None) -> str:
    """
    Args:
        model (`PreTrainedModel`): The model.
        folder (`Path`): Folder that it was saved to; gets the log, the picture of losses and the recipe.
        repo_id (`str`): Hub id.
        run_folder (`Path`): `output_dir` of the training.
        licence (`str`, *optional*): The Hub's name of the weights' licence; stated only if it is given.

    Returns:
        `str`: The card, with numbers that are in the log alone. It does not name the training data.
    """
    from speech_tokenizers.auto_registration import AUTO_CLASSES
    from speech_tokenizers.evaluation.cards.model_card import build_card, describe_training

    name = repo_id.split("/")[-1]
    with tempfile.TemporaryDirectory() as parent:
        run = _public_run(run_folder, Path(parent))
        if model.config.model_type in AUTO_CLASSES:
            told: dict[str, Any] = {
                "licence": licence,
                "licence_text": f"`{licence}`." if licence else _UNSTATED,
                "language": None,
            }
            return str(build_card(folder, name, run_folder=run, **told))
        text = short_card(model, name, licence)
        if run is None:
            return text
        described = describe_training(run, folder, None)
    return text.replace(_NOTHING, _BELOW) + _section(described)


def _section(described: dict[str, Any]) -> str:
    parts = ["## Training"]
    parts += [described["summary"]] if described["summary"] else []
    if losses := described.get("losses"):
        rows = [["step", *losses["names"]], ["---"] * (len(losses["names"]) + 1)]
        rows += [[str(row["step"]), *row["values"]] for row in losses["rows"]]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    if "curve" in described:
        parts.append(f"![Loss over the steps]({described['curve']})")
    if "recipe" in described:
        parts.append(f"<details><summary>Recipe</summary>\n\n```yaml\n{described['recipe']}\n```\n\n</details>")
    return "\n\n".join(parts) + "\n\n"


def _public_run(run_folder: Path, folder: Path) -> Path | None:
    # What of a training's folder everybody may see.
    import shutil

    import yaml

    for name in ("training_log.jsonl", "loss_curves.png"):
        if (run_folder / name).is_file():
            shutil.copyfile(run_folder / name, folder / name)
    recipe = run_folder / "recipe.yaml"
    if recipe.is_file():
        kept = _public(yaml.safe_load(recipe.read_text(encoding="utf-8")))
        (folder / "recipe.yaml").write_text(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
    return folder if any(folder.iterdir()) else None


def _public(settings: dict[str, Any], is_data: bool = False) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        if _PRIVATE.fullmatch(name) or value is None:
            continue
        if isinstance(value, dict):
            if inner := _public(value, is_data or name == "data"):
                kept[name] = inner
        elif isinstance(value, str) and (is_data or "/" in value or Path(value).exists()):
            continue
        elif not (is_data and isinstance(value, list)):
            kept[name] = value
    return kept


__all__ = ["training_card"]
