# SPDX-License-Identifier: Apache-2.0
import shutil

import numpy as np
import pytest
import soundfile

from speech_tokenizers.evaluation import peers
from speech_tokenizers.evaluation.peers import ProgramError, estimate_delay, fit_length, load_peer, ogg_payload_bytes


def make_speech(seconds: float = 2.0, rate: int = 16000) -> np.ndarray:
    """Syllables of a gliding buzz between pauses."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(130 + 30 * np.sin(2 * np.pi * time)) / rate
    loudness = np.clip(np.sin(2 * np.pi * 3 * time), 0, 1) ** 2
    return (0.15 * loudness * sum(np.sin(order * phase) / order for order in range(1, 12))).astype(np.float32)


@pytest.mark.parametrize("delay", [-37, 0, 1, 160])
def test_the_delay_of_a_shifted_signal_is_its_shift(delay):
    audio = np.random.default_rng(0).standard_normal(4000)
    assert estimate_delay(np.roll(audio, delay), audio, 400) == delay


def test_fit_length_cuts_or_extends_at_the_end():
    assert fit_length(np.array([1, 2, 3]), 2).tolist() == [1, 2]
    assert fit_length(np.array([1, 2, 3]), 5).tolist() == [1, 2, 3, 0, 0]


def ogg_page(lengths: list[int]) -> bytes:
    return b"OggS" + bytes(22) + bytes([len(lengths), *lengths]) + bytes(sum(lengths))


def test_ogg_payload_leaves_out_headers_and_joins_long_packets():
    # Two header packets, then packets of 10, 255 + 45 = 300 (over two pages) and 255 + 0 = 255 bytes.
    stream = ogg_page([19]) + ogg_page([60]) + ogg_page([10, 255]) + ogg_page([45, 255, 0])
    assert ogg_payload_bytes(stream) == 10 + 300 + 255
    with pytest.raises(ProgramError, match="broken at byte 0"):
        ogg_payload_bytes(b"junk")


@pytest.mark.parametrize("description", ["opus", "opus:5", "opus:x", "speex:6", "lyra:3.2", "codec2:"])
def test_a_wrong_description_is_refused(description):
    with pytest.raises(ValueError, match="A peer is"):
        load_peer(description)


def test_a_rate_that_a_codec_lacks_is_refused():
    with pytest.raises(ValueError, match="Codec2 has 3.2, 2.4 kbps, but got 5"):
        load_peer("codec2:5")
    with pytest.raises(ValueError, match="Lyra v2 has"):
        load_peer("lyra:5=folder")


@pytest.mark.parametrize("description", ["files:", "files:Other", "files:=folder", "files:Other=folder:Original="])
def test_a_wrong_description_of_decoded_files_is_refused(description):
    with pytest.raises(ValueError, match="Decoded files are"):
        load_peer(description)


def test_decoded_files_are_found_by_the_recordings_names(tmp_path):
    (tmp_path / "part").mkdir()
    soundfile.write(tmp_path / "part" / "Other_1.flac", np.full(320, 0.5), 16000)
    soundfile.write(tmp_path / "Other_2.wav", np.full(400, 0.25), 8000)
    peer = load_peer(f"files:Other={tmp_path}:Original=Other")
    assert peer.name == "Other"
    # Codecs fill up their last frame: the end is cut off, or silence added.
    coded = peer.read("part/Original_1.wav", 300)
    assert coded.audio_values == pytest.approx(np.full(300, 0.5), abs=1e-3)
    assert coded.num_bits is coded.encode_seconds is None
    assert len(peer.read("Original_2.wav", 900).audio_values) == 900
    with pytest.raises(ProgramError, match="there is no decoded file .*Other_3.wav"):
        peer.read("Original_3.wav", 10)
    assert load_peer(f"files:Other={tmp_path / 'part'}").find("Other_1.opus").name == "Other_1.flac"
    with pytest.raises(ValueError, match="which is no folder"):
        load_peer("files:Other=no/such/folder")


def test_other_decoded_files_have_another_key(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(320), 16000)
    before = load_peer(f"files:Other={tmp_path}").key
    soundfile.write(tmp_path / "a.wav", np.ones(320) / 2, 16000)
    assert load_peer(f"files:Other={tmp_path}").key != before


def test_a_missing_program_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(ProgramError, match="`opusenc` is missing; install it, e.g. with `apt-get install opus-tools`"):
        load_peer("opus:6")


def test_a_program_that_fails_gives_its_last_line():
    with pytest.raises(ProgramError, match="ended with code 3: no such luck"):
        peers.run_program("sh", "-c", "echo trouble; echo no such luck >&2; exit 3")


def test_resampling_keeps_a_tone():
    time = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 500 * time)
    halved = peers.resample(tone, 16000, 8000)
    assert halved[500:-500] == pytest.approx(tone[::2][500:-500], abs=1e-3)
    assert peers.resample(tone, 16000, 16000) is tone


@pytest.mark.skipif(shutil.which("opusenc") is None, reason="opus-tools is a system package")
def test_opus_comes_back_aligned_near_its_rate():
    system = load_peer("opus:24")
    audio = make_speech()
    coded = system.code(audio)
    assert coded.audio_values.shape == audio.shape
    assert estimate_delay(coded.audio_values, audio, 800) == pytest.approx(0, abs=1)
    assert 10_000 < coded.num_bits / 2.0 < 30_000


@pytest.mark.skipif(shutil.which("c2enc") is None, reason="codec2 is a system package")
def test_codec2_comes_back_aligned_at_its_rate():
    system = load_peer("codec2:3.2")
    audio = make_speech(rate=8000)
    coded = system.code(audio)
    assert coded.audio_values.shape == audio.shape
    assert coded.num_bits / 2.0 == pytest.approx(3200, rel=0.02)
    # Phases are lost; the envelope of syllables is not.
    envelopes = [np.convolve(np.abs(part), np.hanning(160), "same") for part in (coded.audio_values, audio)]
    assert estimate_delay(*(envelope - envelope.mean() for envelope in envelopes), 400) == pytest.approx(0, abs=60)
