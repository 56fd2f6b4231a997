# SPDX-License-Identifier: Apache-2.0
"""
Make the common tests of the installed transformers importable as `transformers_common_tests`.

The wheel of transformers leaves its tests out; the source distribution carries them. It is fetched once with pip, for
the version that is installed, into `.cache/` at the root of the repository. Modules that the common tests import are
missing from the source distribution too; `MISSING_MODULES` says what stands in their place, and what is not tested
therefore.

Without a network (and without the cache) the tests of this folder are skipped and say why; with the environment
variable `CI` set they are an error instead, so that no pipeline passes by leaving them out.

`NEVER_APPLY` names the common tests that can never apply to a model. They are deselected, so that a test that skips
itself is seen. All run on the CPU, also where there is a GPU, for which tests/test_gpu.py is.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import types
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import transformers
from filelock import FileLock


# Read when transformers' test tools are imported, so set before any test module is.
os.environ["TRANSFORMERS_TEST_DEVICE"] = "cpu"

# Marks of the common tests, none of which has a meaning here.
FOREIGN_MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
)

CACHE_FOLDER = Path(__file__).parents[2] / ".cache"
PACKAGE_NAME = "transformers_common_tests"

COMMON_TESTS = (
    "test_modeling_common.py",
    "test_configuration_common.py",
    "test_feature_extraction_common.py",
    "test_sequence_feature_extraction_common.py",
)

MISSING_MODULES = {
    "__init__.py": "unavailable = None\n",
    "exporters/__init__.py": "",
    # Without tests. transformers' own export models to ONNX and ExecuTorch, which is not tested here; `torch.export`
    # is, in tests/modeling/test_compile_export.py.
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    # Without tests. transformers' own run `generate` (greedy search, sampling, beams, caches, assistants). In their
    # place stands test_speech_lm_generate.py, for the one model that has `generate`.
    # (`LatentLanguageModel` draws vectors by `stream`, which tests/modeling/test_continuous_heads.py tests.)
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    # Fields every `PreTrainedConfig` has, each with a value other than its default.
    "utils/test_configuration_utils.py": """\
config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["SomeModel"],
    "id2label": {0: "first", 1: "second", 2: "third"},
    "label2id": {"first": 0, "second": 1, "third": 2},
    "problem_type": "regression",
}
""",
}


class NeverApplies(NamedTuple):
    """
    Common tests that can never apply to some models.

    A class of tests says by `has_attentions = False`, `is_training = False` and `keeps_float32 = False` that its model
    has no attention, no loss with gradients, and no part that has to stay in float32.

    Attributes:
        reason: Property of the models that the tests cannot do without.
        tests: Patterns of the tests' names.
        concerns: Function of a model's class and of its class of tests; whether the model lacks the property.
    """

    reason: str
    tests: tuple[str, ...]
    concerns: Callable[[type, Any], bool] = lambda model, tests: True


def _reads_ids(model: type) -> bool:
    # Whether it is a language model, which reads ids and tells the states of its layers.
    return model.main_input_name == "input_ids"


NEVER_APPLY = (
    NeverApplies(
        "A convolutional network has no attention, and none of transformers' layers that record their outputs.",
        (
            "test_attn_implementation_*",
            "test_can_set_attention_*",
            "test_capture_outputs_decorator",
            "test_sdpa_*",
        ),
        lambda model, tests: not tests.has_attentions,
    ),
    NeverApplies(
        "The model consists of one part, with one configuration.",
        (
            "test_attn_implementation_composite_models",
            "test_can_set_attention_dynamically_composite_model",
            "test_internal_model_config_and_subconfig_are_same",
        ),
        lambda model, tests: not model.config_class.sub_configs,
    ),
    NeverApplies(
        "The model consists of parts, and each has attention of its own.",
        ("test_sdpa_can_dispatch_non_composite_models",),
        lambda model, tests: bool(model.config_class.sub_configs),
    ),
    NeverApplies(
        "It loads a file without weights, which is refused here; tests/modeling/test_checked_loading.py tests that.",
        ("test_model_weights_reload_no_missing_tied_weights",),
    ),
    NeverApplies(
        "It loads the files of a base model into one with a head; files of another model are refused here.",
        ("test_correct_missing_keys",),
        lambda model, tests: model.__name__ == "HubertForMaskedPrediction",
    ),
    NeverApplies(
        "No model has a tower of images or sounds beside a language model.",
        ("test_sdpa_can_dispatch_composite_models",),
    ),
    NeverApplies(
        "The output holds neither states nor attentions of layers. `test_sdpa_computes_what_eager_attention_computes`"
        " compares what it does hold.",
        (
            "test_attention_outputs",
            "test_can_capture_specific_layers_hidden_states",
            "test_eager_matches_sdpa_inference_*",
            "test_hidden_states_output",
            "test_retain_grad_hidden_states_attentions",
        ),
        lambda model, tests: not _reads_ids(model),
    ),
    NeverApplies(
        "Without this claim transformers refuses Flash Attention.",
        ("test_flash_attn_*", "test_sdpa_can_dispatch_on_flash"),
        lambda model, tests: not model._supports_flash_attn,
    ),
    NeverApplies(
        "Waveforms, codes and latents are no words: they have no ids, and no table of embeddings.",
        (
            "test_enable_input_require_grads_with_gradient_checkpointing",
            "test_inputs_embeds*",
            "test_resize_*",
        ),
        lambda model, tests: not _reads_ids(model),
    ),
    NeverApplies(
        "No output is named `last_hidden_state`, as in a model of transformers without a head.",
        ("test_model_rope_scaling_from_config_*",),
    ),
    NeverApplies(
        "`forward` of a language model has no argument `output_attentions` of its own; `test_attention_outputs` asks"
        " by the configuration. Positions are no table of the model's own. DeepSpeed is not installed.",
        (
            "test_eager_matches_sdpa_inference_*_output_attentions",
            "test_resize_*_with_deepspeed*",
            "test_resize_position_vector_embeddings",
        ),
    ),
    NeverApplies(
        "GPT-2 and OPT have no rotated positions, and no plan for several devices.",
        ("test_model_rope_*", "test_tied_head_has_a_tp_plan_entry", "test_tp_plan_matches_params"),
        lambda model, tests: getattr(tests, "kind", None) in ("gpt2", "opt"),
    ),
    NeverApplies(
        "Gemma 3 has two kinds of rotated positions; transformers tests them among the tests of that model.",
        ("test_model_rope_scaling_frequencies",),
        lambda model, tests: getattr(tests, "kind", None) == "gemma3_text",
    ),
    NeverApplies(
        "GPT-2 draws some weights a second time. For classes outside of it, transformers leaves that out where it"
        " draws weights that a file lacks; such a file is refused here.",
        ("test_can_init_all_missing_weights",),
        lambda model, tests: getattr(tests, "kind", None) == "gpt2",
    ),
    NeverApplies(
        "The source distribution has no tests of `generate`; test_speech_lm_generate.py stands in their place.",
        ("test_generation_tester_mixin_inheritance",),
        lambda model, tests: _reads_ids(model),
    ),
    NeverApplies(
        "No part of the model is a language model of transformers.",
        (
            "test_model_get_set_embeddings",
            "test_model_rope_*",
            "test_tied_head_has_a_tp_plan_entry",
            "test_tp_plan_matches_params",
        ),
        lambda model, tests: "text_config" not in model.config_class.sub_configs,
    ),
    NeverApplies(
        "No model is among the causal language models or the encoders with decoders of transformers.",
        ("test_causal_lm_loss_honors_shift_labels", "test_encoder_decoder_loss_no_double_shift"),
    ),
    NeverApplies(
        "No model has experts.",
        (
            "test_eager_matches_batched_and_grouped_inference_*",
            "test_moe_models_record_router_logits",
            "test_output_router_logits_from_config",
        ),
    ),
    NeverApplies(
        "No model has partly rotated positions, positions on two axes, or a sliding window.",
        ("test_model_rope_with_partial_rotation", "test_sliding_window_mask", "test_vision_axial_rope"),
    ),
    NeverApplies(
        "No model loads weights that have other names in its files.",
        ("test_can_load_from_already_mapped_keys", "test_reverse_loading_mapping"),
    ),
    NeverApplies(
        "The tests run on the CPU.",
        (
            "test_can_load_with_device_context_manager",
            "test_can_load_with_global_device_set",
            "test_cpu_offload",
            "test_disk_offload_*",
            "test_flash_attention_*",
            "test_flash_attn_*",
            "test_flex_attention_*",
            "test_kernels_can_load_without_crashing",
            "test_model_parallelism",
            "test_sdpa_can_compile_dynamic",
            "test_sdpa_can_dispatch_on_flash",
            "test_torch_compile_for_training",
        ),
    ),
    NeverApplies(
        "What is learnt is fitted without gradients.",
        ("test_training*",),
        lambda model, tests: not getattr(tests, "is_training", True),
    ),
    NeverApplies(
        "All of the model may be in half precision.",
        ("test_keep_in_fp32_modules*",),
        lambda model, tests: not getattr(tests, "keeps_float32", True),
    ),
    NeverApplies(
        "`torch.save` is tried with models that `AutoModel` knows.",
        ("test_torch_save_load",),
        lambda model, tests: model.config_class not in transformers.MODEL_MAPPING,
    ),
)


def pytest_configure(config: pytest.Config) -> None:
    for name in FOREIGN_MARKERS:
        config.addinivalue_line("markers", f"{name}: used by the common tests of transformers")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of `NEVER_APPLY`."""
    kept, deselected = [], []
    for item in items:
        model_classes = getattr(getattr(item, "cls", None), "all_model_classes", None)
        if model_classes and any(_applies_never(item.name, model_classes[0], item.cls, row) for row in NEVER_APPLY):
            deselected.append(item)
        else:
            kept.append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=deselected)


def _applies_never(name: str, model_class: type, tests: type, row: NeverApplies) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in row.tests) and row.concerns(model_class, tests)


def fetch_common_tests(folder: Path) -> None:
    """
    Write the common tests of the installed transformers to `folder`, a package of the name `PACKAGE_NAME`.

    Raises:
        RuntimeError: If pip cannot fetch the source distribution, or it lacks one of the tests.
    """
    with tempfile.TemporaryDirectory(dir=CACHE_FOLDER) as download_folder:
        requirement = f"transformers=={transformers.__version__}"
        # fmt: off
        command = [
            sys.executable, "-m", "pip", "download", requirement, "--no-deps", "--no-binary", "transformers",
            # setuptools, which the project's own build needs, is all that transformers' metadata needs
            "--no-build-isolation", "--quiet", "--disable-pip-version-check", "--dest", download_folder,
        ]
        # fmt: on
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode != 0:
            reason = [line for line in process.stderr.splitlines() if "ERROR" in line] or ["pip failed"]
            raise RuntimeError(reason[0].strip())

        package = Path(download_folder) / PACKAGE_NAME
        (source,) = Path(download_folder).glob("transformers-*.tar.gz")
        with tarfile.open(source) as archive:
            root = archive.getnames()[0].split("/")[0]
            for name, text in MISSING_MODULES.items():
                path = package / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            for name in COMMON_TESTS:
                try:
                    member = archive.extractfile(f"{root}/tests/{name}")
                except KeyError:
                    raise RuntimeError(f"the source distribution of {requirement} has no tests/{name}") from None
                (package / name).write_bytes(member.read())
        os.replace(package, folder)


def provide_common_tests() -> None:
    root = CACHE_FOLDER / f"transformers-{transformers.__version__}"
    root.mkdir(parents=True, exist_ok=True)
    (CACHE_FOLDER / ".gitignore").write_text("*\n")
    # Of several processes that run the tests, one fetches and the others wait.
    with FileLock(root / "fetching.lock"):
        try:
            if not (root / PACKAGE_NAME).exists():
                fetch_common_tests(root / PACKAGE_NAME)
        except RuntimeError as error:
            reason = f"pip could not fetch the common tests of transformers {transformers.__version__}: {error}"
            if os.environ.get("CI"):
                raise pytest.UsageError(reason) from error
            placeholder = types.ModuleType(PACKAGE_NAME)
            placeholder.unavailable = reason
            sys.modules[PACKAGE_NAME] = placeholder
            return
    sys.path.append(str(root))


provide_common_tests()
