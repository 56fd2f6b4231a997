# SPDX-License-Identifier: Apache-2.0
"""A report as Markdown, as a page, as CSV and as files."""

import json

import pytest

from speech_tokenizers.evaluation.report_figures import INK, dress, new_figure, plot_panels
from speech_tokenizers.evaluation.report_pages import Figure, Player, Report, Section, interval, score_cell


ESTIMATE = {"value": 0.0123, "low": 0.001, "high": 0.02, "num_clips": 3}


@pytest.fixture
def figure():
    """Bars of two systems, of which one failed."""
    panels = [("STOI <wide>", [{"value": 0.9, "low": 0.8, "high": 1.0}, None])]
    return Figure(plot_panels(["ours", "theirs"], panels), 'STOI [0, 1] of "all" & <ours>.', "bars 1.png")


@pytest.fixture
def report(figure):
    table = [["system", "STOI | PESQ"], ["ours <2>", Player("audio/a #1.wav")]]
    sections = [
        Section("", tables=[table]),
        Section("Bars", "What `a < b` means & why a < b.", figures=[figure], lines=["one", "two"]),
        Section("Empty", tables=[[["only a header"]]]),
    ]
    results = {"clips": ["ä"]}
    return Report(
        "Scores & more", ["a note"], sections, ["ours: <late>"], results, [["name", "value"], ["a, b", None]]
    )


def test_a_value_has_its_interval():
    assert interval(ESTIMATE, 3) == "0.012 [0.001, 0.020]"
    assert interval({"value": 21.34, "low": None, "high": None}, 1) == "21.3"
    assert interval(4, 2) == "4.00"
    assert interval(None, 3) == "–"


def test_a_difference_has_signs_and_an_asterisk_where_its_interval_excludes_zero():
    assert interval(ESTIMATE, 3, signed=True) == "+0.012 [+0.001, +0.020] *"
    assert interval({"value": -1.0, "low": -2.0, "high": -0.5}, 1, signed=True) == "-1.0 [-2.0, -0.5] *"
    assert interval({"value": -1.0, "low": -2.0, "high": 0.5}, 1, signed=True) == "-1.0 [-2.0, +0.5]"
    assert interval(None, 3, signed=True) == "–"


def test_a_score_tells_how_many_clips_failed():
    assert score_cell(ESTIMATE, 3, 0) == "0.012 [0.001, 0.020]"
    assert score_cell(ESTIMATE, 3, 2) == "0.012 [0.001, 0.020], n=3, 2 failed"


def test_the_markdown_stands_under_a_heading_of_ones_own(report):
    assert report.markdown() == "\n".join(
        [
            "- a note",
            "",
            "| system | STOI \\| PESQ |",
            "| --- | --- |",
            "| ours \\<2> | [listen](audio/a%20%231.wav) |",
            "",
            "### Bars",
            "",
            "What `a < b` means & why a \\< b.",
            "",
            '![STOI \\[0, 1\\] of "all" & <ours>.](bars%201.png)',
            "",
            "- one",
            "- two",
            "",
            "### Failures",
            "",
            "- ours: \\<late>",
            "",
        ]
    )


def test_the_page_has_what_the_markdown_has(report, read_page):
    page = report.html()
    reader = read_page(page)
    assert [reader.tags.count(tag) for tag in ("h1", "h2", "table", "figure", "audio")] == [1, 2, 1, 1, 1]
    assert reader.references == ["audio/a%20%231.wav"]
    assert reader.alts == ['STOI [0, 1] of "all" & <ours>.']
    assert "What <code>a &lt; b</code> means &amp; why a &lt; b." in page
    assert "<li>ours: &lt;late&gt;</li>" in page
    assert "Empty" not in page


def test_nothing_is_said_of_failures_where_there_are_none(read_page):
    report = Report("Scores", [], [Section("Bars", lines=["one"])])
    assert report.markdown() == "### Bars\n\n- one\n"
    assert read_page(report.html()).tags.count("h2") == 1


def test_figures_follow_the_colours_of_the_page(figure):
    drawn = figure.html()
    assert INK not in drawn
    # Labels, ticks, the frame and the interval; but not the bar.
    assert drawn.count("currentColor") > 10
    assert "fill: #1f77b4" in drawn
    assert drawn == figure.html()


def test_text_of_logarithmic_axes_and_legends_follows_the_page_too(read_page):
    figure = new_figure(4, 3)
    axes = figure.add_subplot()
    axes.plot([1, 2, 3], [2, 3, 4], label="ours")
    axes.set_yscale("log")
    axes.legend()
    dress(axes, "title", "x", "y")
    page = Report("Lines", [], [Section("", figures=[Figure(figure, "Lines.")])]).html()
    assert "#000000" not in page
    assert {"text", "svg"} <= set(read_page(page).tags)


def test_differences_are_points_about_zero():
    (panel,) = plot_panels(["a", "b"], [("d", [{"value": 0.5, "low": 0.4, "high": 0.7}, None])], about_zero=True).axes
    assert list(panel.lines[0].get_xdata()) == [0, 0]
    assert list(panel.containers[0].lines[0].get_xdata()) == [0.5]
    assert len(panel.patches) == 0


def test_files_are_written_side_by_side(report, tmp_path):
    folder = tmp_path / "new" / "folder"
    written = report.write(folder, "scores")
    assert [path.name for path in written] == ["scores.json", "scores.csv", "scores.md", "scores.html", "bars 1.png"]
    assert sorted(folder.iterdir()) == sorted(written)
    assert json.loads(written[0].read_text()) == report.results
    assert written[1].read_text() == 'name,value\n"a, b",\n'
    assert written[2].read_text(encoding="utf-8") == report.markdown()
    assert written[3].read_text(encoding="utf-8") == report.html()
    assert written[4].read_bytes().startswith(b"\x89PNG")


def test_results_and_records_are_written_only_where_there_are_some(tmp_path):
    written = Report("Scores", ["a note"], []).write(tmp_path, "scores")
    assert [path.name for path in written] == ["scores.md", "scores.html"]
