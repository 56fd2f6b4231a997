# SPDX-License-Identifier: Apache-2.0
"""The page in a browser, Debian's chromium, with the embedded checkpoints: upload, wait, look, play."""

import importlib.util
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech_tokenizers.app.models import load_models
from speech_tokenizers.app.page import served
from speech_tokenizers.coding.loading import DEFAULT_CHECKPOINT, DEFAULT_UNITS, list_voices
from speech_tokenizers.coding.speech_lm_loading import DEFAULT_VOICE


CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium; `apt-get install chromium` brings it"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="no playwright; `pip install playwright` brings it"
    ),
]
needs_a_voice = pytest.mark.skipif(DEFAULT_VOICE not in list_voices(), reason=f"{DEFAULT_VOICE} is not installed")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--autoplay-policy=no-user-gesture-required"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]
PATIENCE = 180_000  # milliseconds
SENTENCE = "The valley was deep."


@pytest.fixture(scope="module")
def address():
    voices = [name for name in (DEFAULT_VOICE,) if name in list_voices()]
    with served(load_models([DEFAULT_CHECKPOINT, DEFAULT_UNITS, *voices], "cpu"), port=0) as there:
        yield there


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, address):
    """Function: open the page; at the end, nothing may have failed in it, nor have been asked of another host."""
    contexts, faults, asked = [], [], []

    def opened(width=1280, height=900, scheme="light"):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, permissions=["microphone"]
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))
        page.goto(address)
        page.locator("#st-codec-run").wait_for()
        return page

    yield opened
    texts = [page.content() for context in contexts for page in context.pages]
    for context in contexts:
        context.close()
    assert faults == []
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:", f"blob:{address}"))] == []
    assert all("Traceback" not in text for text in texts)


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """Five seconds of the recording of the package."""
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    with resources.as_file(resources.files("speech_tokenizers") / "recordings/sense_and_sensibility.flac") as whole:
        samples, rate = soundfile.read(whole, stop=80000)
    soundfile.write(path, samples, rate)
    return path


def upload(page, path):
    page.locator("#st-recording input[type=file]").set_input_files(str(path))
    page.locator("#st-recording [data-testid^=waveform], #st-recording .waveform-container").first.wait_for()


def run(page, tab):
    page.locator(f"#st-tab-{tab}-button, button[role=tab]:has-text('{tab.capitalize()}')").first.click()
    page.locator(f"#st-{tab}-run").click()
    return page.locator(f"#st-{tab}-out")


def play(page, player, seconds):
    """Play until so many seconds have been heard, then stop."""
    player.evaluate("async (player) => { player.muted = true; window.heard = player; await player.play(); }")
    page.wait_for_function(f"window.heard.currentTime > {seconds}")
    player.evaluate("(player) => player.pause()")


def test_upload_wait_see_and_play(open_page, talk):
    page = open_page()
    upload(page, talk)
    out = run(page, "codec")
    out.locator(".st-card").first.wait_for()
    assert out.locator(".st-card").count() == 9
    page.wait_for_function("[...document.querySelectorAll('#st-codec-out img')].every((image) => image.complete)")
    widths = out.locator("img").evaluate_all("(images) => images.map((image) => image.naturalWidth)")
    assert len(widths) == 10
    assert min(widths) >= 900
    players = out.locator("audio")
    play(page, players.nth(1), 0.3)
    assert players.nth(1).evaluate("(player) => player.duration") == pytest.approx(5, abs=0.01)
    assert float(out.locator(".st-strip").nth(1).evaluate("(strip) => strip.style.getPropertyValue('--at')")) > 0.05
    # Who starts another player hears that one alone.
    players.nth(1).evaluate("(player) => player.play()")
    players.nth(8).evaluate("(player) => player.play()")
    page.wait_for_function("document.querySelectorAll('#st-codec-out audio')[1].paused")


def test_units_light_up_while_they_are_heard(open_page, talk):
    page = open_page()
    upload(page, talk)
    out = run(page, "units")
    chips = out.locator(".st-units span")
    chips.first.wait_for()
    assert out.locator(".st-card").count() == 2  # the vocoder speaks
    play(page, out.locator("audio").nth(1), 1.0)
    lit = out.locator(".st-units .st-lit")
    assert lit.count() == 1
    heard = page.evaluate("window.heard.currentTime")
    assert float(lit.get_attribute("data-start")) <= heard < float(lit.get_attribute("data-end"))
    chips.first.click()
    page.wait_for_function("[...document.querySelectorAll('#st-units-out audio')].some((player) => !player.paused)")


def test_checkpoints_are_compared(open_page, talk):
    page = open_page()
    upload(page, talk)
    out = run(page, "compare")
    out.locator(".st-card").first.wait_for()
    titles = out.locator("figcaption b").all_inner_texts()
    assert titles == ["Recording", DEFAULT_CHECKPOINT, DEFAULT_UNITS]
    assert out.locator("figcaption span:has-text('STOI')").count() == 2


@needs_a_voice
def test_words_light_up_one_after_the_other(open_page):
    page = open_page()
    page.locator("button[role=tab]:has-text('Say')").first.click()
    page.locator("#st-sentence textarea").fill(SENTENCE)
    out = run(page, "say")
    out.locator(".st-words button").first.wait_for()
    assert out.locator(".st-words button").all_inner_texts() == SENTENCE.split()
    page.evaluate(
        "() => { window.lit = []; new MutationObserver((changes) => { for (const { target } of changes)"
        " if (target.classList.contains('st-lit')) window.lit.push(target.textContent); })"
        ".observe(document.querySelector('#st-say-out .st-words'), { subtree: true, attributeFilter: ['class'] }); }"
    )
    out.locator("audio").evaluate("async (player) => { window.heard = player; await player.play(); }")
    page.wait_for_function("window.heard.ended")
    assert page.evaluate("window.lit") == SENTENCE.split()
    page.locator("#st-sentence textarea").fill("I paid 5 dollars.")
    page.locator("#st-say-run").click()
    out.locator(".st-note").wait_for()
    assert "Write numbers as words" in out.inner_text()


def test_what_cannot_be_heard_gets_a_sentence_of_help(open_page, tmp_path, talk):
    soundfile.write(tmp_path / "silent.wav", np.zeros(32000), 16000)
    soundfile.write(tmp_path / "long.wav", 0.2 * np.sin(np.arange(1800 * 8000) * 0.1), 8000)
    (tmp_path / "notes.wav").write_text("These are notes, not audio. " * 40)
    (tmp_path / "notes.txt").write_text("These are notes, not audio. " * 40)
    helps = {
        "silent.wav": "is silent: there is no speech in it",
        "long.wav": "lasts 30 min 0 s, but this page takes at most 60 s",
        "notes.wav": "notes.wav: is not readable as audio",
    }
    for name, told in helps.items():
        page = open_page()
        with page.expect_response(lambda response: "/upload" in response.url):
            page.locator("#st-recording input[type=file]").set_input_files(str(tmp_path / name))
        page.locator("#st-recording input[type=file]").wait_for(state="detached")
        out = run(page, "codec")
        out.locator(".st-note").wait_for()
        assert told in out.inner_text(), name
    page = open_page()
    page.locator("#st-recording input[type=file]").set_input_files(str(tmp_path / "notes.txt"))
    page.get_by_text("notes.txt is no audio file. Upload one, such as WAV, FLAC, MP3 or Ogg.").first.wait_for()
    # The page goes on.
    upload(page, talk)
    run(page, "codec").locator(".st-card").first.wait_for()


def test_speech_is_recorded_by_the_microphone(open_page):
    page = open_page()
    page.locator("#st-recording [aria-label='Record audio']").click()
    page.locator("#st-recording .record-button").click()
    # A device that chromium makes up beeps once a second.
    page.wait_for_function("/0:0[2-9]/.test(document.querySelector('#st-recording').innerText)")
    page.locator("#st-recording .stop-button").first.click()
    page.locator("#st-recording .record-button").wait_for(state="detached")
    out = run(page, "codec")
    out.locator(".st-card").first.wait_for()
    page.wait_for_function("document.querySelector('#st-codec-out audio').duration > 1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_everything_and_letters_stand_out(open_page, talk, scheme):
    page = open_page(390, 844, scheme)
    upload(page, talk)
    out = run(page, "units")
    out.locator(".st-card").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for place in (".st-card figcaption b", ".st-card figcaption span", "h3", "p", ".st-units span", ".st-units sub"):
        # WCAG's contrast, over the first background above that is not transparent.
        contrast = out.locator(place).first.evaluate("""(node) => {
          const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
          const light = (colour) => {
            const [r, g, b] = parts(colour).map((v) => v / 255)
              .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          let under = node;
          while (under && parts(getComputedStyle(under).backgroundColor)[3] === 0) under = under.parentElement;
          const back = getComputedStyle(under ?? document.body).backgroundColor;
          const pair = [light(getComputedStyle(node).color), light(back)];
          return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        }""")
        assert contrast > 4.5, place
