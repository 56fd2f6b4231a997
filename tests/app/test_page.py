# SPDX-License-Identifier: Apache-2.0
"""The page over HTTP: what its endpoints answer, what they refuse, and what is left when it ends."""

import io
import re
import socket
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file

from speech_tokenizers.app import page, results
from speech_tokenizers.app.models import ModelShelf
from speech_tokenizers.app.page import served


@pytest.fixture(scope="module")
def address(shelf, tmp_path_factory):
    """A page of tiny models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        with served(shelf, port=0) as there:
            yield there


@pytest.fixture(scope="module")
def client(address, tmp_path_factory):
    return Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("client")))


@pytest.fixture
def recording(tmp_path, write_audio):
    return handle_file(write_audio(tmp_path / "talk.wav", 1.0))


def fetched(address: str, html: str, suffix: str) -> list[bytes]:
    found = re.findall(rf'src="([^"]+\{suffix})"', html)
    return [urllib.request.urlopen(address + place, timeout=60).read() for place in found]


def test_a_codec_is_heard_at_each_number_of_codebooks(address, client, recording):
    html = client.predict(recording, "codec", api_name="/codec")
    assert re.findall(r"<figcaption><b>(.*?)</b>", html) == [
        *("Recording", "1 codebook", "2 codebooks", "3 codebooks", "4 codebooks")
    ]
    assert re.findall(r"<span>([\d.]+ kbit/s)", html) == [
        *("256 kbit/s", "2 kbit/s", "4 kbit/s", "6 kbit/s", "8 kbit/s")
    ]
    sounds = [soundfile.read(io.BytesIO(content)) for content in fetched(address, html, ".wav")]
    assert [(len(waveform), rate) for waveform, rate in sounds] == [(16000, 16000)] * 5
    assert all(content.startswith(b"\xff\xd8") for content in fetched(address, html, ".jpg"))
    (picture,) = fetched(address, html, ".png")
    assert picture.startswith(b"\x89PNG")


def test_units_are_told_with_their_durations(address, client, recording, units):
    html = client.predict(recording, "units", api_name="/units")
    durations = [int(count) for count in re.findall(r"<sub>×(\d+)</sub>", html)]
    assert sum(durations) == units.model.get_encoded_length(16000)
    assert "This checkpoint has no vocoder" in html
    assert len(fetched(address, html, ".png")) == 1


def test_checkpoints_stand_side_by_side(client, recording):
    html = client.predict(recording, ["codec", "codec two"], api_name="/compare")
    assert re.findall(r"<figcaption><b>(.*?)</b>", html) == ["Recording", "codec", "codec two"]
    assert html.count("<span>STOI ") == 2
    assert "choose two checkpoints or more" in client.predict(recording, ["codec"], api_name="/compare")


def test_a_voice_says_a_sentence_with_word_times(address, client):
    html = client.predict("hi tim", "voice", api_name="/say")
    assert re.findall(r"<button [^>]*>(\w+)</button>", html) == ["hi", "tim"]
    assert len(fetched(address, html, ".wav")) == 1


@pytest.mark.parametrize(
    ("endpoint", "model"), [("/codec", "codec"), ("/units", "units"), ("/compare", ["codec", "codec two"])]
)
def test_what_cannot_be_coded_gets_a_sentence_of_help(client, tmp_path, endpoint, model):
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(tmp_path / "long.flac", 0.2 * np.sin(np.arange(1800 * 8000) * 0.1), 8000)
    (tmp_path / "notes.txt").write_text("These are notes, not audio. " * 40)
    for name, told in (("silent.wav", "is silent"), ("long.flac", "lasts 30 min 0 s"), ("notes.txt", "notes.txt")):
        html = client.predict(handle_file(tmp_path / name), model, api_name=endpoint)
        assert html.startswith('<div class="st-note"')
        assert told in html
        assert "Traceback" not in html
        assert str(tmp_path) not in html
    assert "There is no recording yet" in client.predict(None, model, api_name=endpoint)


def test_a_text_that_the_voice_cannot_read_is_shown_and_not_run(client):
    html = client.predict("<script>alert(1)</script>", "voice", api_name="/say")
    assert html.startswith('<div class="st-note"')
    assert "<script>" not in html


def test_a_fault_of_the_program_is_one_sentence_and_its_trace_goes_to_the_log(client, recording, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("a secret of the program")

    monkeypatch.setattr(results, "decode_levels", fail)
    html = client.predict(recording, "codec", api_name="/codec")
    assert "fault of the program (RuntimeError)" in html
    assert "secret" not in html
    assert "a secret of the program" in caplog.text


def test_requests_at_one_time_get_their_own_answers(client, tmp_path, write_audio):
    paths = [write_audio(tmp_path / f"{number}.wav", 0.5 + 0.25 * number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(lambda path: client.predict(handle_file(path), "units", api_name="/units"), paths)
        totals = [sum(map(int, re.findall(r"<sub>×(\d+)</sub>", html))) for html in answers]
    assert totals == sorted(set(totals))
    assert len(totals) == 6


def test_no_file_of_the_machine_is_served(address, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}gradio_api/file={tmp_path / 'secret.txt'}", timeout=60)
    assert refused.value.code in (403, 404)


def test_the_page_names_no_other_host(address):
    text = urllib.request.urlopen(address, timeout=60).read().decode()
    loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(https?://[^"]+)"', text)
    assert [place for place in loaded if not place.startswith(address.rstrip("/"))] == []


def test_it_listens_at_the_loopback_alone_and_leaves_no_file(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with served(ModelShelf([]), port=0) as address:
        host, port = re.fullmatch(r"http://(.*):(\d+)/", address).groups()
        assert host == "127.0.0.1"
        assert list(tmp_path.iterdir())
        # Linux answers for all of 127.0.0.0/8 where a server listens at every address.
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", int(port)), timeout=60):
            pass
        with (
            pytest.raises(ValueError, match=f"`port` {port} cannot be used at 127.0.0.1"),
            served(shelf, port=int(port)),
        ):
            pass
        assert "has no model of that kind" in urllib.request.urlopen(f"{address}config", timeout=60).read().decode()
    assert not list(tmp_path.iterdir())


def test_files_go_after_an_hour(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    now = page.PageFiles.__init__.__globals__["time"].time()
    with page.PageFiles() as files:
        first = files.add(b"first", ".png")
        second = files.add(b"second", ".png")
        assert first.exists()
        monkeypatch.setattr("speech_tokenizers.app.page_files.time.time", lambda: now + 3700)
        third = files.add(b"third", ".png")
        assert [first.exists(), second.exists(), third.exists()] == [False, False, True]
    assert not list(tmp_path.iterdir())


def test_without_gradio_the_extra_is_named(monkeypatch, shelf):
    found = page.require_package.__globals__["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gradio" else found(name))
    with pytest.raises(ImportError, match=r"pip install 'speech-tokenizers\[app\]'"), served(shelf):
        pass


def test_the_example_is_a_recording_of_the_package():
    with page.PageFiles() as files:
        path = Path(page._example(files))
        assert soundfile.info(path).duration == pytest.approx(24.73)
        assert path.is_relative_to(files.uploads)
