# SPDX-License-Identifier: Apache-2.0
"""The pages and tables of `speech-tokenizers evaluate units`, from a report written by hand."""

import copy
import csv
import json

import pytest

from speech_tokenizers.evaluation.report_figures import INK
from speech_tokenizers.evaluation.units.comparison import MEASURES
from speech_tokenizers.evaluation.units.report import (
    build_report,
    codebook_rows,
    failure_lines,
    format_cell,
    notes,
    probe_rows,
    score_rows,
    summary_rows,
)
from speech_tokenizers.evaluation.units.report_plots import (
    plot_bars,
    plot_confusion,
    plot_phones,
    plot_probes,
    plot_usage,
)
from speech_tokenizers.evaluation.units.scores import SCORE_KINDS, SECTIONS, score_title, section_scores, split_name


def score(value, low=None, high=None, num_clips=8):
    return {"value": value, "low": low, "high": high, "num_clips": num_clips}


def system(name, layer, size, pnmi):
    return {
        "system": name,
        "system_key": f"{name}-0",
        "family": "hubert 16",
        "layers": [layer],
        "codebook_size": size,
        "num_quantizers": 1,
        "num_clips": 8,
        "frame_rate": 50.0,
        "sampling_rate": 16000,
        "scores": {
            "pnmi": score(pnmi, pnmi - 0.01, pnmi + 0.02),
            "pnmi[chance]": score(0.05),
            "abx_across[centroids]": score(21.34, 20.0, 22.0),
            "ued[noise_nast]": score(43.21, 40.0, 47.06, 3),
            "ued[gain]": score(0.0, 0.0, 0.0, 4),
            "ued[time_stretch]": None,
            "ued[chance]": score(91.0, num_clips=3),
            "bits_entropy": score(200.4),
            "perplexity": score(3.456, 3.0, 3.9),
        },
        "failures": {
            "ued[noise_nast]": {"no <frame>": ["c.wav"]},
            "ued[time_stretch]": {"too short": ["a.wav", "b.wav"]},
        },
        "details": {
            "pnmi_confusion": {"units": [0, 1], "labels": ["AA", "B"], "counts": [[3, 1], [0, 4]]},
            "pnmi_by_codebook": [pnmi],
            "rank_frequency": [6, 2, 0, 0],
            "usage_by_codebook": [{"share_used": 0.5, "perplexity": 1.75}],
            "perturbations": {"noise_nast": "noise at half of 5 to 30 dB", "gain": "-12 to +12 dB"},
        },
        "seconds": {"encoding": 1.0},
        "encoding_failures": {},
    }


@pytest.fixture
def report():
    """Two systems of one codebook, and one of two codebooks that failed on many clips."""
    several = system("R & D <codec>", 1, 32, 0.2)
    several |= {"layers": [], "num_quantizers": 2, "family": "Codec"}
    several["encoding_failures"] = {"out of order": [f"{number}.wav" for number in range(12)]}
    several["scores"] = {
        "pnmi": score(0.2, 0.19, 0.22),
        "ued[gain]": score(55.5, 50.0, 60.0, 4),
        "probe_speaker[units][linear]": score(12.0, 10.0, 14.0),
        "probe_speaker[units][linear][balanced_accuracy]": score(13.0, 10.0, 14.0),
        "probe_speaker[units][linear][shuffled]": score(2.0, 1.0, 3.0),
        "probe_phone[features][mlp]": None,
    }
    several["failures"] = {}
    several["details"] = {
        "pnmi_by_codebook": [0.2, 0.1],
        "usage_by_codebook": [{"share_used": 0.5, "perplexity": 7.0}, {"share_used": 1.0, "perplexity": 30.0}],
        "ued_by_codebook": {"gain": [12.34, 50.0]},
        "probes": {"speaker": {"num_items": 8, "num_classes": 4, "num_groups": 8, "num_folds": 5}},
    }
    return {
        "date": "2026-01-02",
        "data": {"num_clips": 8, "num_speakers": 4, "num_labelled": 7, "key": "abc"},
        "settings": {"seed": 0, "robustness_clips": 4, "abx_context": "any", "abx_tokens": 5},
        "measures": ["agreement", "abx", "robustness", "usage"],
        "skipped": {"characters": "it needs characters"},
        "versions": {"torch": "2.8"},
        "systems": [system("small", 1, 8, 0.5), system("large", 2, 64, 0.6), several],
    }


def test_names_are_kinds_and_views():
    assert split_name("pnmi") == ("pnmi", "")
    assert split_name("abx_within[features]") == ("abx_within", "features")
    assert split_name("pnmi[all codebooks][chance]") == ("pnmi", "all codebooks, chance")
    assert score_title("ued[noise_nast]") == "UED % (noise nast)"
    assert score_title("pnmi") == "PNMI"


def test_every_kind_of_score_is_in_one_section():
    listed = [kind for section in SECTIONS for kind in section.kinds]
    assert sorted(listed) == sorted(SCORE_KINDS)
    assert len(MEASURES) <= len(SECTIONS) + 1  # usage and n-grams share one


def test_a_cell_tells_value_interval_and_failures(report):
    first = report["systems"][0]
    assert format_cell(first, "pnmi") == "0.500 [0.490, 0.520]"
    assert format_cell(first, "pnmi[chance]") == "0.050"
    assert format_cell(first, "ued[noise_nast]") == "43.2 [40.0, 47.1], n=3, 1 failed"
    assert format_cell(first, "ued[time_stretch]") == "failed"
    assert format_cell(first, "cnmi") == "–"


def test_the_robustness_table_has_a_column_a_perturbation(report):
    (section,) = (section for section in SECTIONS if section.title == "Robustness")
    names = section_scores(report, section)
    assert names == ["ued[noise_nast]", "ued[gain]", "ued[time_stretch]", "ued[chance]"]
    rows = score_rows(report, names)
    assert rows[0] == ["system", *(f"UED % ({view})" for view in ("noise nast", "gain", "time stretch", "chance"))]
    assert rows[3] == ["R & D <codec>", "–", "55.5 [50.0, 60.0]", "–", "–"]


def test_the_summary_tells_what_the_systems_are(report):
    rows = summary_rows(report)
    assert rows[0][:4] == ["system", "layer", "codes", "frames/s"]
    assert rows[1][:5] == ["small", "1", "8", "50", "0.500 [0.490, 0.520]"]
    assert rows[3][:4] == ["R & D <codec>", "–", "2 × 32", "50"]


def test_codebooks_of_systems_that_have_several(report):
    assert codebook_rows(report) == [
        ["system", "codebook", "PNMI", "share of codes used", "perplexity", "UED % (gain)"],
        ["R & D <codec>", "1", "0.200", "0.500", "7.0", "12.3"],
        ["R & D <codec>", "2", "0.100", "1.000", "30.0", "50.0"],
    ]
    del report["systems"][2]["details"]["usage_by_codebook"]
    assert codebook_rows(report)[1][3:] == ["–", "–", "12.3"]
    del report["systems"][2]
    assert len(codebook_rows(report)) == 1


def test_notes_say_how_numbers_came_about(report):
    lines = "\n".join(notes(report))
    for words in (
        "8 clips of 4 named speakers, 7 of them with phones",
        "when speakers are redrawn",
        "at most 4 clips, drawn by seed 0",
        "Robustness, noise nast: noise at half of 5 to 30 dB.",
        "Robustness, gain: -12 to +12 dB.",
        "any neighbours, at most 5 tokens",
        "several codebooks",
        "Skipped characters: it needs characters.",
    ):
        assert words in lines
    report["measures"] = ["usage"]
    report["data"]["num_speakers"] = 0
    lines = "\n".join(notes(report))
    assert "Robustness" not in lines
    assert "when clips are redrawn" in lines


def test_failures_are_named_with_their_clips(report):
    lines = failure_lines(report)
    assert "small, ued[time_stretch]: too short (a.wav, b.wav)" in lines
    (line,) = (line for line in lines if "out of order" in line)
    assert line.startswith("R & D <codec> cannot encode 0.wav, 1.wav")
    assert "9.wav and 2 more: out of order" in line


def test_the_table_of_probes_has_a_row_an_input_and_system(report):
    (section,) = (section for section in SECTIONS if section.title == "Probes")
    rows = probe_rows(report, section_scores(report, section))
    assert rows[0][:5] == ["told", "from", "system", "macro F1, linear", "macro F1, MLP"]
    assert rows[3] == [
        "speaker",
        "units",
        "R & D <codec>",
        "12.0 [10.0, 14.0]",
        "–",
        "2.0 [1.0, 3.0]",
        "–",
        "13.0 [10.0, 14.0]",
        "–",
    ]
    assert rows[6][:5] == ["phone", "features", "R & D <codec>", "–", "failed"]
    assert len(rows) == 7
    assert "Probes of the speaker: 4 classes, 8 clips, 5 folds of 8 clips." in notes(report)


def test_probes_are_plotted_with_their_controls(report):
    names = ["probe_speaker[units][linear]", "probe_speaker[units][linear][shuffled]"]
    (panel,) = plot_probes(report, names).axes
    assert panel.get_title() == "speaker from units (lower is better)"
    (bar,) = panel.patches
    assert (bar.get_width(), bar.get_y() + bar.get_height() / 2) == (12.0, pytest.approx(1.8))
    assert [2.0] in [list(line.get_xdata()) for line in panel.lines]


def test_the_csv_has_a_line_a_score(report):
    rows = list(csv.DictReader(build_report(report).csv().splitlines()))
    assert len(rows) == sum(len(system["scores"]) for system in report["systems"])
    by_name = {(row["system"], row["score"]): row for row in rows}
    row = by_name["small", "ued[noise_nast]"]
    assert (float(row["value"]), float(row["low"]), int(row["num_clips"]), int(row["num_failed"])) == (43.21, 40, 3, 1)
    row = by_name["large", "ued[time_stretch]"]
    assert (row["value"], row["low"], row["num_failed"]) == ("", "", "2")
    assert by_name["R & D <codec>", "ued[gain]"]["value"] == "55.5"


def test_the_markdown_has_every_section_that_was_measured(report):
    page = build_report(report).markdown()
    for title in (
        "Phones in the units",
        "ABX",
        "Robustness",
        "Bit rates",
        "Use of the codes",
        "Codebooks",
        "Failures",
    ):
        assert f"### {title}\n" in page
    assert "### Characters in the units" not in page
    assert "| small | 43.2 [40.0, 47.1], n=3, 1 failed | 0.0 [0.0, 0.0] | failed | 91.0 |" in page
    # Every table has as many cells in each row as in its header.
    widths = [
        {line.count("|") for line in block.splitlines()} for block in page.split("\n\n") if block.startswith("|")
    ]
    assert len(widths) >= 6
    assert all(len(width) == 1 for width in widths)


def test_the_page_is_whole_and_needs_no_other_file(report, read_page):
    page = build_report(report).html()
    reader = read_page(page)
    assert reader.references == []
    assert "script" not in reader.tags
    # Bars of phones, ABX, robustness and probes; PNMI by size, layer and bits; use; a confusion each.
    assert reader.tags.count("figure") == len(reader.alts) == 1 + 2 + 1 + 1 + 1 + 1
    assert "R &amp; D &lt;codec&gt;" in page
    assert "<codec>" not in page
    assert "no &lt;frame&gt;" in page
    assert INK not in page
    assert "Versions: torch 2.8." in page


def test_bars_have_a_panel_a_score_and_a_bar_a_system(report):
    names = ["ued[noise_nast]", "ued[gain]", "ued[chance]"]
    panels = plot_bars(report, names).axes
    assert [panel.get_title() for panel in panels] == [
        "UED % (noise nast) (lower is better)",
        "UED % (gain) (lower is better)",
        "UED % (chance)",
    ]
    assert [bar.get_width() for bar in panels[0].patches] == [43.21, 43.21]
    assert [bar.get_width() for bar in panels[1].patches] == [0, 0, 55.5]
    assert [label.get_text() for label in panels[1].get_yticklabels()] == ["small", "large", "R & D <codec>"]


def test_pnmi_is_plotted_against_size_layer_and_bits(report):
    panels = plot_phones(report).axes
    assert [panel.get_title() for panel in panels] == ["PNMI by number of units", "PNMI by layer", "PNMI by bit rate"]
    points = [
        [tuple(zip(*container.lines[0].get_data(), strict=True)) for container in panel.containers]
        for panel in panels[:2]
    ]
    assert points == [[((8, 0.5),), ((64, 0.6),), ((32, 0.2),)], [((1, 0.5),), ((2, 0.6),)]]
    for member in report["systems"]:
        del member["scores"]["pnmi"]
    assert plot_phones(report) is None


def test_usage_is_relative_to_even_use(report):
    lines = plot_usage(report).axes[0].lines
    # 6 and 2 of 8 frames over 4 codes: 3 times and once as often as even use.
    assert list(lines[0].get_xdata()) == [0.25, 0.5]
    assert list(lines[0].get_ydata()) == [3.0, 1.0]


def test_the_confusion_is_the_share_of_phones_in_each_unit(report):
    panel = plot_confusion(report["systems"][0]).axes[0]
    # Phones by frequency, B (5 frames) before AA (3); units by their commonest phone.
    assert [label.get_text() for label in panel.get_yticklabels()] == ["B", "AA"]
    assert panel.images[0].get_array().tolist() == [[1.0, 0.25], [0.0, 0.75]]


def test_a_report_in_which_all_failed_is_still_written(report, read_page):
    for member in report["systems"]:
        member["scores"] = dict.fromkeys(member["scores"])
        member["details"] = {}
        member["num_quantizers"] = 0
    written = build_report(report)
    assert read_page(written.html()).alts == []
    assert "failed" in written.markdown()


def test_four_files_are_written(report, tmp_path):
    del report["systems"][1:]
    paths = build_report(report).write(tmp_path, "units")
    assert [path.name for path in paths] == ["units.json", "units.csv", "units.md", "units.html"]
    assert json.loads(paths[0].read_text()) == report
    again = build_report(copy.deepcopy(report))
    assert [path.read_text() for path in paths[1:]] == [again.csv(), again.markdown(), again.html()]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
