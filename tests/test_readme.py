# SPDX-License-Identifier: Apache-2.0
"""README.md and docs/: their Python runs in a folder with recordings, their commands parse, their links lead on."""

import importlib.util
import json
import re
import shlex
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech_tokenizers import (
    DEFAULT_CHECKPOINT,
    list_checkpoints,
    list_listeners,
    list_voices,
    load_audio,
    load_speech_lm,
)
from speech_tokenizers.cli import _build_parser, _join_command, main
from speech_tokenizers.training.common.recipe_files import recipe_names


ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
README = PAGES["README.md"]
CARDS = {
    path.parent.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "model_cards").glob("*/README.md"))
}
TABLES = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))


# Fewest commands of a page; of the others 2.
NUM_COMMANDS = {"README.md": 8, "docs/layout.md": 0, "docs/interface.md": 0, "docs/releasing.md": 0}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with `recordings/` of different lengths."""
    speech = load_audio(resources.files("speech_tokenizers") / "recordings" / "sense_and_sensibility.flac", 16000)
    (tmp_path / "recordings").mkdir()
    for name, start, end in (("a", 0, 40000), ("b", 40000, 75000), ("c", 80000, 145001)):
        soundfile.write(tmp_path / "recordings" / f"{name}.wav", speech[start:end], 16000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_readme(names, folder):
    assert names["decoded"].audio_values.shape[-1] == 65280  # the longest recording, in whole frames
    assert (folder / "my-codec-with-code" / "modeling_rvq_codec.py").is_file()
    assert names["trainer"].state.global_step == 4
    assert 0 < names["said"].audio_values.shape[-1] <= 50 * 320


def check_codecs(names, folder):
    assert names["decoded"].audio_values.shape[-1] == 65280
    assert names["audio"].shape == names["waveform"].shape
    assert (folder / "my-codec-with-code" / "modeling_rvq_codec.py").is_file()


def check_units(names, folder):
    assert names["spoken"].audio_values.shape[:2] == (3, 1)
    assert names["live_units"].shape == (1, names["units"].get_encoded_length(sum(map(len, names["arriving"]))))


def check_continuous_tokens(names, folder):
    assert names["encoded"].latents.shape[::2] == (3, 32)
    assert names["decoded"].audio_values.shape[:2] == (3, 1)


def check_training(names, folder):
    assert names["trainer"].state.global_step == 4
    assert (folder / "my-codec" / "preprocessor_config.json").is_file()
    # The codebooks learn without gradients, so nothing is left for the optimizer to change.
    assert {group["lr"] for group in names["quantizer_trainer"].optimizer.param_groups} == {0.0}


def check_interface(names, folder):
    num_frames = -(-len(names["samples"]) // 320)
    assert names["codes"].shape == (1, 8, num_frames)
    assert names["audio"].shape == (1, 1, len(names["samples"]))
    assert names["vectors"].shape == (8, 1024, 64)
    assert names["codec"].family == "EncodecModel"


def check_speech_language_models(names, folder):
    assert names["trainer"].state.global_step == 4
    assert 0 < names["said"].audio_values.shape[-1] <= 50 * 320
    assert (folder / "my-voice" / "model.safetensors").is_file()


def check_speech_lm_layouts(names, folder):
    assert names["model"].config.layout == "continuous"
    assert names["said"].audio_latents.shape[::2] == (1, 32)
    assert names["said"].audio_values.shape[-1] == 640 * names["said"].audio_latents.shape[1]


def check_serving(names, folder):
    assert names["num_dropped"] == 0
    assert names["answer"][-1] == names["model"].config.audio_end_token_id  # it ended by itself
    assert names["audio"].shape[-1] == 320 * names["codes"].shape[1] > 16000 // 2
    assert (folder / "voice-served" / "speech.json").is_file()


def check_adapters(names, folder):
    assert names["trainer"].state.global_step == 4
    assert (folder / "my-adapter" / "adapter_model.safetensors").is_file()
    assert (folder / "my-voice" / "model.safetensors").is_file()
    table = names["merged"].get_input_embeddings().weight
    assert names["base"].get_input_embeddings().weight.shape == table.shape


def check_speaking(names, folder):
    assert sum(part.shape[-1] for part in names["audio"]) > 16000
    assert names["heard"].shape[-1] > 0
    assert (folder / "hi.safetensors").is_file()
    assert names["several"].ended.all()
    assert names["again"].tries.shape == (1,)


def check_understanding(names, folder):
    assert set(names["chosen"].texts) <= {"calm", "glad"}
    assert names["chosen"].probabilities.shape == (3, 2)
    assert len(names["written"].texts) == 3
    assert names["model"].config.find_task("mood").instruction == "Name the mood"


def check_corpora(names, folder):
    assert len(names["rows"]) == 3
    by_hand = names["read_speech_rows"]("by-hand")
    assert by_hand["audio_codes"][:] == names["rows"]["audio_codes"][:]


CHECKS = {
    "README.md": check_readme,
    "docs/interface.md": check_interface,
    "docs/codecs.md": check_codecs,
    "docs/units.md": check_units,
    "docs/continuous_tokens.md": check_continuous_tokens,
    "docs/training.md": check_training,
    "docs/speech_language_models.md": check_speech_language_models,
    "docs/speech_lm_layouts.md": check_speech_lm_layouts,
    "docs/serving.md": check_serving,
    "docs/adapters.md": check_adapters,
    "docs/speaking.md": check_speaking,
    "docs/understanding.md": check_understanding,
    "docs/corpora.md": check_corpora,
}


def make_rows(folder, page="docs/speech_language_models.md", place=0):
    """The rows that the page's command makes."""
    texts = (("a", "one", "calm"), ("b", "two", "glad"), ("c", "three", "calm"))
    lines = [{"file_name": f"{name}.wav", "text": text, "mood": mood} for name, text, mood in texts]
    metadata = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "recordings" / "metadata.jsonl").write_text(metadata, encoding="utf-8")
    (command,) = [line for line in blocks(PAGES[page], "bash")[place].splitlines() if line]
    assert main(shlex.split(command)[1:]) == 0


SETUPS = dict.fromkeys(("README.md", "docs/speech_language_models.md", "docs/adapters.md"), make_rows)
SETUPS["docs/understanding.md"] = lambda folder: make_rows(folder, "docs/understanding.md", 3)


def encode_and_verify(folder):
    for command in blocks(PAGES["docs/corpora.md"], "bash")[0].splitlines():
        assert main(shlex.split(command)[1:]) == 0


SETUPS["docs/corpora.md"] = encode_and_verify


def test_every_page_with_python_is_checked():
    assert {page for page, text in PAGES.items() if blocks(text, "python")} == CHECKS.keys()


@pytest.mark.parametrize("page", CHECKS)
def test_python_blocks_run(folder, page):
    SETUPS.get(page, lambda folder: None)(folder)
    names = {}
    for block in blocks(PAGES[page], "python"):
        exec(compile(block, page, "exec"), names)
    CHECKS[page](names, folder)


@pytest.mark.parametrize("checkpoint", list_checkpoints())
def test_one_snippet_works_for_every_family(folder, checkpoint):
    (snippet, *_) = blocks(README, "python")
    assert DEFAULT_CHECKPOINT in snippet
    names = {}
    if checkpoint == "kmeans-units-small-16khz":
        with pytest.raises(ValueError, match="vocoder"):
            exec(snippet.replace(DEFAULT_CHECKPOINT, checkpoint), names)
    else:
        exec(snippet.replace(DEFAULT_CHECKPOINT, checkpoint), names)
        assert names["decoded"].audio_values.shape[:2] == (3, 1)
    assert names["tokens"].shape[0] == 3


def test_every_family_has_its_row():
    families, results = (README.split(f"<!-- results readme-{name} -->")[1] for name in ("families", "results"))
    for checkpoint in list_checkpoints():
        assert f"`{checkpoint}`" in families.split("<!-- end -->")[0]
        assert f"`{checkpoint}`" in results.split("<!-- end -->")[0]


@pytest.mark.parametrize("page", [*PAGES, *CARDS])
def test_command_lines_parse(page):
    commands = [
        shlex.split(line, comments=True)
        for block in blocks(PAGES.get(page) or CARDS[page], "bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith(("speech-tokenizers ", "accelerate launch "))
    ]
    assert len(commands) >= NUM_COMMANDS.get(page, 2)
    for words in commands:
        words = words[4:] if words[0] == "accelerate" else words[1:]
        arguments = _join_command(words)
        args = _build_parser(arguments[0]).parse_args(arguments)
        if arguments[0] == "train":
            assert args.recipe in recipe_names()


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?s)```.*?```", "", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for label, target in re.findall(r"\[([^\]\[]+)\]\(([^)\s]+)\)", re.sub(r"(?s)```.*?```", "", text)):
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        path = (ROOT / page).parent / place if place else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target
        if label.startswith("`test_"):
            assert f"def {label.strip('`')}(" in path.read_text(encoding="utf-8"), label


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_lines_are_no_longer_than_100_characters(page):
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    # Markdown has no way to wrap a row of a table, and no line can be shorter than its longest word.
    assert not [line for line in lines if len(line) > 100 and " " in line.strip() and not line.startswith("|")]


@pytest.fixture(scope="module")
def fill_results():
    spec = importlib.util.spec_from_file_location("fill_results", ROOT / "docs" / "fill_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_of_the_results_file(fill_results, page):
    assert fill_results.fill(PAGES[page], TABLES) == PAGES[page], "run `make results`"


def test_every_table_of_the_results_file_is_shown():
    shown = re.findall(r"<!-- results (\S+) -->", "".join(PAGES.values()))
    assert sorted(shown) == sorted(TABLES)


def test_a_changed_number_changes_the_tables_that_show_it(fill_results):
    changed = json.loads(json.dumps(TABLES).replace("2.83 [2.74, 2.92]", "2.99 [2.98, 3.00]"))
    assert "2.99 [2.98, 3.00]" in fill_results.fill(PAGES["docs/results.md"], changed)
    filled = fill_results.fill(README, changed)
    assert "2.99 [2.98, 3.00]" in filled
    assert "PESQ-wb 2.99 |" in filled


def test_a_table_that_is_not_there_is_refused(fill_results):
    with pytest.raises(KeyError, match="nothing"):
        fill_results.fill("<!-- results nothing -->\n<!-- end -->", TABLES)


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if table["cards"]])
def test_numbers_are_those_of_the_model_cards(name):
    table = TABLES[name]
    for row in table["rows"]:
        for cell in row[1:]:
            number = re.match(r"[-+]?\d[\d.,]*( \[.*\]| million| hours| minutes| MB)?", cell)
            if number:
                exact = rf"(?<![\d.]){re.escape(number[0])}(?!\d)"
                assert any(re.search(exact, CARDS[card]) for card in table["cards"]), cell


def test_the_checkpoint_it_names_is_here():
    assert f"speech-tokenizers evaluate {DEFAULT_CHECKPOINT}" in README
    assert DEFAULT_CHECKPOINT in list_checkpoints()


def test_nothing_is_left_to_fill_in():
    assert CARDS.keys() == {*list_checkpoints(), *list_voices(), *list_listeners()}
    for text in [*PAGES.values(), *CARDS.values()]:
        assert "@@" not in text
        assert "More information needed" not in text


@pytest.mark.parametrize("name", CARDS)
def test_a_card_begins_with_what_a_reader_needs_and_folds_the_rest(name):
    _, front, text = CARDS[name].split("---\n", 2)
    purpose = "Says English text" if name in list_voices() else "Converts 16 kHz"
    purpose = "Answers what" if name in list_listeners() else purpose
    order = [f"# {name}\n", purpose, "Licence:", "| --- |", "## When to use it", "## Use\n", "<details>"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert len(re.findall(r"(?m)^\|", text.split("## When to use it")[0])) <= 2 + 5  # header, rule, rows
    beginning, _, rest = text.partition("<details>")
    assert len(beginning.splitlines()) < 50
    depth = 1
    for line in rest.splitlines():
        assert depth or line.startswith("<details>") or not line, line
        depth += line.count("<details>") - line.count("</details>")
    assert depth == 0


@pytest.mark.parametrize("name", CARDS)
def test_lines_of_a_card_are_no_longer_than_100_characters(name):
    text = re.sub(r"(?s)```.*?```", "", CARDS[name].split("---\n", 2)[2])
    assert not [line for line in text.splitlines() if len(line) > 100 and not line.startswith("|")]


@pytest.mark.parametrize("name", list_checkpoints())
def test_a_checkpoint_is_a_complete_repository(name):
    folder = ROOT / "model_cards" / name
    for file in ("README.md", "config.json", "preprocessor_config.json", "model.safetensors"):
        assert (folder / file).is_file()
    assert (folder / "model.safetensors").stat().st_size <= 15e6


@pytest.mark.parametrize("name", list_listeners())
def test_a_listener_is_a_complete_repository_and_answers(name):
    folder = ROOT / "model_cards" / name
    for file in ("README.md", "config.json", "processor_config.json", "recipe.yaml"):
        assert (folder / file).is_file()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 15e6
    model, processor = load_speech_lm(name)
    assert set(model.config.task_labels) <= set(model.config.tasks)
    noise = np.random.default_rng(0).normal(scale=0.1, size=16_000).astype(np.float32)
    prompts = processor.task_inputs("keyword", audio=[noise])
    chosen = model.choose(prompts, model.config.task_labels["keyword"], processor)
    assert chosen.texts[0] in model.config.task_labels["keyword"]
    assert sum(chosen.probabilities[0]) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", list_voices())
def test_a_voice_is_a_complete_repository_and_says_a_sentence(name):
    folder = ROOT / "model_cards" / name
    for file in ("README.md", "config.json", "processor_config.json", "pronunciations.txt.gz", "recipe.yaml"):
        assert (folder / file).is_file()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 15e6
    model, processor = load_speech_lm(name)
    said = model.generate_speech("he was here this morning", processor, temperature=0.0)
    assert said.ended.all()
    assert [word for word, _, _ in said.word_times[0]] == ["he", "was", "here", "this", "morning"]
    # Twelve letters a second, give or take a half.
    assert 1.0 < said.audio_values.shape[-1] / model.config.sampling_rate < 3.0
