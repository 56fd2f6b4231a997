# SPDX-License-Identifier: Apache-2.0
"""What a speech language model will cost: by hand, and against real models that are counted and run."""

import json
import types

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    Qwen3Config,
)

from speech_tokenizers.cli import main
from speech_tokenizers.evaluation.speech_lm.budget import (
    LanguageModelSizes,
    SpeechSizes,
    cache_bytes,
    clip_positions,
    longest_seconds,
    positions_a_second,
    training_hours,
    training_operations,
    vocabulary_size,
)
from speech_tokenizers.evaluation.speech_lm.estimate import training_totals
from speech_tokenizers.evaluation.speech_lm.language_model_sizes import (
    count_language_model,
    empty_language_model,
    layer_windows,
)


CODEC = SpeechSizes(frame_rate=50.0, num_codebooks=2, codebook_size=1024)
SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64)
TIED = LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=48, tie_word_embeddings=True)
GPT2 = GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)
OPT = OPTConfig(**SIZES, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32)
QWEN3 = Qwen3Config(**SIZES, num_key_value_heads=2, intermediate_size=48, head_dim=16)
GEMMA3 = Gemma3TextConfig(
    **{**SIZES, "num_hidden_layers": 3},
    num_key_value_heads=1,
    head_dim=16,
    intermediate_size=48,
    sliding_window=5,
    layer_types=["sliding_attention", "sliding_attention", "full_attention"],
)
ALL = {"llama": LLAMA, "tied": TIED, "gpt2": GPT2, "opt": OPT, "qwen3": QWEN3, "gemma3": GEMMA3}


def real(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("layout", "alignment", "prompt", "audio"),
    [
        ("flat", "none", 40, 1000),  # 10 s x 4 ids; 500 frames x 2 codebooks
        ("flat", "word", 40, 1040),
        ("flat", "phone", 120, 1120),
        ("delay", "none", 40, 502),  # the second codebook is a frame late, and each has an end
        ("delay", "phone", 120, 622),  # the pieces stand before their columns
        ("continuous", "none", 40, 500),
    ],
)
def test_positions_of_ten_seconds_are_those_counted_by_hand(layout, alignment, prompt, audio):
    clip = clip_positions(10.0, CODEC, layout, alignment)
    assert (clip.prompt, clip.audio, clip.marks, clip.total) == (prompt, audio, 3, prompt + audio + 3)


def test_a_second_adds_what_the_layout_says():
    assert positions_a_second(CODEC, "flat") == 100
    assert positions_a_second(CODEC, "flat", "phone") == 112
    assert positions_a_second(CODEC, "flat", "phone", 9.5) == 109.5
    assert positions_a_second(CODEC, "delay", "phone") == 62
    assert positions_a_second(CODEC, "continuous") == 50


def test_part_of_a_frame_is_a_frame_and_a_whole_number_stays_one():
    assert CODEC.num_frames(0.021) == 2
    assert SpeechSizes(12.5, 1, 8).num_frames(0.56) == 7
    assert SpeechSizes(50.0, 1, 8).num_frames(0.14) == 7  # 0.14 * 50 is 7.000000000000001


def test_the_vocabulary_has_a_row_a_code_in_the_flat_layout_only():
    assert vocabulary_size(128, CODEC, "flat", 41) == 2240  # 128 + 3 + 41 + 2048 = 2220, padded to 64
    assert vocabulary_size(128, CODEC, "delay", 41) == 192


@pytest.mark.parametrize("name", ALL)
def test_counted_parameters_are_those_of_a_real_model(name):
    sizes = count_language_model(empty_language_model(ALL[name]))
    model = real(ALL[name])
    assert sizes.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sizes == count_language_model(model)


def test_counted_parameters_of_a_llama_are_those_counted_by_hand():
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32  # queries, keys and values of two heads of 8, output
    matrices = 2 * (attention + 3 * 32 * 48)
    norms = 32 * (2 * 2 + 1)
    sizes = count_language_model(empty_language_model(LLAMA))
    assert sizes.num_multiplied == matrices + 96 * 32
    assert sizes.num_parameters == matrices + norms + 2 * 96 * 32
    assert count_language_model(empty_language_model(TIED)).num_parameters == matrices + norms + 96 * 32
    assert count_language_model(empty_language_model(TIED)).num_multiplied == matrices + 96 * 32


def test_more_rows_are_counted_and_the_configuration_stays_as_it_was():
    sizes = count_language_model(empty_language_model(LLAMA, 192))
    assert sizes.num_parameters == count_language_model(empty_language_model(LLAMA)).num_parameters + 2 * 96 * 32
    assert LLAMA.vocab_size == 96


@pytest.mark.parametrize("num_positions", [3, 4, 5, 17])
@pytest.mark.parametrize("name", ALL)
def test_the_cache_has_as_many_bytes_as_that_of_a_real_model(name, num_positions):
    config = ALL[name]
    model = real(config)
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(torch.arange(num_positions)[None], past_key_values=cache, use_cache=True)
    held = sum(
        tensor.numel() * tensor.element_size() for layer in cache.layers for tensor in (layer.keys, layer.values)
    )
    assert cache_bytes(count_language_model(model), num_positions, 4) == held


@pytest.mark.parametrize("name", ["llama", "tied", "gpt2", "opt", "qwen3"])
def test_operations_are_those_that_torch_counts_in_a_step(name):
    model = real(ALL[name])
    model.set_attn_implementation("sdpa")
    length = 16
    inputs = torch.arange(length)[None]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model(inputs, labels=inputs, use_cache=False).loss.backward()
    expected = training_operations(count_language_model(model), length, length)
    assert counted.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_operations_and_hours_are_those_counted_by_hand():
    model = LanguageModelSizes(1000, 800, 4, 2, 8, (None, 6))
    # 100 positions in sequences of 10: 6 x 800, and 12 x 32 numbers x (10 + 6) positions that are looked at
    assert training_operations(model, 100, 10) == 100 * (4800 + 12 * 32 * 16)
    assert training_hours(7.2e15, 2.0) == 1.0


def test_a_training_takes_every_hour_once_an_epoch():
    model = LanguageModelSizes(1000, 800, 4, 2, 8, (None,))
    clip = clip_positions(5.0, CODEC, "flat", "phone")
    assert clip.total == 60 + 500 + 60 + 3
    epoch, total, operations = training_totals(model, clip, 5.0, 2.0, 3.0)
    assert epoch == 1440 * 623  # 7200 s in clips of 5 s
    assert total == 3 * epoch
    assert operations == training_operations(model, total, 623)


@pytest.mark.parametrize("alignment", ["none", "phone"])
@pytest.mark.parametrize("layout", ["flat", "delay", "continuous"])
def test_the_longest_clip_fits_and_a_frame_more_does_not(layout, alignment):
    longest = longest_seconds(300, CODEC, layout, alignment)
    assert clip_positions(longest, CODEC, layout, alignment).total <= 300
    assert clip_positions(longest + 0.02, CODEC, layout, alignment).total > 300


def test_no_clip_fits_into_a_context_of_marks():
    assert longest_seconds(3, CODEC) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "grid"}, "`layout` must be one of flat, delay, continuous"),
        ({"text_alignment": "letter"}, "`text_alignment` must be one of none, word, phone"),
        ({"seconds": 0.0}, "`seconds` must be positive"),
        ({"seconds": float("nan")}, "`seconds` must be positive"),
        ({"ids_a_second": -1.0}, "`ids_a_second` must not be negative"),
        ({"speech": SpeechSizes(50.0)}, "`num_codebooks` must be at least 1"),
    ],
)
def test_positions_of_what_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        clip_positions(**{"seconds": 1.0, "speech": CODEC, **arguments})


def test_a_frame_rate_of_nothing_is_refused():
    with pytest.raises(ValueError, match="`frame_rate` must be positive"):
        SpeechSizes(0.0, 2, 1024)


def test_models_of_another_memory_are_refused():
    with pytest.raises(ValueError, match="mamba has no attention"):
        count_language_model(empty_language_model(MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2)))
    layers = types.SimpleNamespace(model_type="hybrid", num_attention_heads=2, layer_types=["linear_attention"])
    with pytest.raises(ValueError, match="hybrid has layers of linear_attention"):
        layer_windows(layers)


@pytest.fixture
def estimate(tmp_path, capsys):
    """Function: run the command on a configuration; its exit code, the lines by name, and what it warns of."""

    def run(config, *arguments: str):
        path = tmp_path / "lm" / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(config.to_dict()))
        code = main(["estimate", "--lm", str(path.parent), *arguments])
        out, err = capsys.readouterr()
        return code, {line[:28].rstrip(): line[28:] for line in out.splitlines()}, err

    return run


SIZES_GIVEN = ["--frame-rate", "50", "--codebooks", "2", "--codebook-size", "16"]


def test_the_command_prints_what_the_arithmetic_gives(estimate):
    arguments = ["--seconds", "0.2", "--hours", "1", "--device-tflops", "0.001", "--dtype", "float32"]
    code, lines, warned = estimate(LLAMA, *SIZES_GIVEN, *arguments)
    assert (code, warned) == (0, "")
    rows = vocabulary_size(96, SpeechSizes(50.0, 2, 16), "flat")
    sizes = count_language_model(empty_language_model(LLAMA, rows))
    assert lines["positions of 0.2 s"] == "24 (1 prompt, 20 speech, 3 marks)"
    assert lines["context"] == "64 positions, 0.58 s of speech"
    assert lines["rows of the vocabulary"] == f"{rows}"
    assert lines["parameters"] == f"{sizes.num_parameters:,}"
    assert lines["cache of a clip"] == "0.01 MB in float32"  # 2 layers x 2 heads x 8 x 24 x 2 x 4 bytes
    assert lines["positions of an epoch"] == f"{18000 * 24:,}"
    operations = training_operations(sizes, 18000 * 24, 24)
    assert lines["time of the training"] == f"{operations / 3.6e12:,.2f} h at 0.001 TFLOP/s"


def test_the_command_takes_the_sizes_of_a_codec(estimate, tiny_checkpoint):
    code, lines, _ = estimate(TIED, "--seconds", "1", "--model", str(tiny_checkpoint), "--codebooks", "3")
    assert code == 0
    assert lines["speech"] == "400 frames/s, 3 codebooks of 32, layout flat"
    assert lines["positions a second"] == "1200"


def test_a_released_voice_knows_its_own_sizes(capsys):
    assert main(["estimate", "--lm", "tts-slt-16khz", "--seconds", "1"]) == 0
    lines = capsys.readouterr().out
    assert "50 frames/s, 2 codebooks of 1,024, layout flat" in lines
    assert "positions a second          112\n" in lines  # 2 codes a frame and 12 phones a second
    assert "4,494,720" in lines
    for option, value in (("--codebooks", "4"), ("--text-alignment", "none"), ("--model", "rvq-codec-16khz-4kbps")):
        assert main(["estimate", "--lm", "tts-slt-16khz", "--seconds", "1", option, value]) == 2
        assert f"leave out {option}" in capsys.readouterr().err


def test_a_clip_beyond_the_context_is_warned_of_where_positions_are_computed(estimate):
    code, lines, warned = estimate(LLAMA, *SIZES_GIVEN, "--seconds", "2")
    assert code == 0
    assert "takes 211 positions" in warned
    assert "was made for 64, which is 0.58 s" in warned
    assert lines["positions of 2 s"].startswith("211 ")


@pytest.mark.parametrize("config", [GPT2, OPT], ids=["gpt2", "opt"])
def test_a_clip_beyond_the_context_is_refused_where_positions_are_learnt(estimate, config):
    code, lines, told = estimate(config, *SIZES_GIVEN, "--seconds", "2")
    assert (code, lines) == (2, {})
    assert "has no vectors for further positions" in told
    assert estimate(config, *SIZES_GIVEN, "--seconds", "0.4")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name a codec by --model, or give --frame-rate"),
        (["--frame-rate", "50"], "--layout flat needs --codebooks"),
        (["--model", "CODEC", "--frame-rate", "50"], "leave --frame-rate and --codebook-size out"),
        (["--model", "CODEC", "--codebooks", "9"], "--codebooks is 9, but"),
        ([*SIZES_GIVEN, "--hours", "0"], "--hours must be positive"),
        ([*SIZES_GIVEN, "--hours", "1", "--device-tflops", "-1"], "--device-tflops must be positive"),
    ],
)
def test_options_that_say_too_little_or_too_much_are_refused(estimate, tiny_checkpoint, arguments, message):
    arguments = [str(tiny_checkpoint) if argument == "CODEC" else argument for argument in arguments]
    code, lines, told = estimate(LLAMA, "--seconds", "0.2", *arguments)
    assert (code, lines) == (2, {})
    assert message in told.splitlines()[-1]


def test_a_file_that_describes_no_model_is_named(tmp_path, capsys):
    path = tmp_path / "lm.json"
    path.write_text('{"model_type": "nothing"}')
    assert main(["estimate", "--lm", str(path), "--seconds", "1", *SIZES_GIVEN]) == 2
    assert "lm.json" in capsys.readouterr().err
