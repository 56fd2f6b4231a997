# SPDX-License-Identifier: Apache-2.0
"""
A corpus of synthetic speech with exact phone times, spoken by flite.

Flite (http://cmuflite.org) is a small synthesiser by Carnegie Mellon University. Its licence is BSD-like and permits
any use. Debian's package `flite` has the program and its voices. The voice `slt` was built from recordings of CMU
ARCTIC; it speaks about twenty sentences a second on one core, and prints when each phone ends.
"""

import concurrent.futures
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from speech_tokenizers.modeling.pronunciations import PronunciationLexicon, time_words
from speech_tokenizers.processing.recordings import append_rejected
from speech_tokenizers.processing.whole_files import LinesFile, WholeFile, beside, write_whole


SAMPLING_RATE = 16000
METADATA = "metadata.jsonl"
# What has been spoken so far, in the order in which it was done; `metadata.jsonl` is written from it at the end.
JOURNAL = ".spoken.jsonl"
# A sentence takes some 50 ms.
_TIMEOUT = 60.0


class Sentence(NamedTuple):
    """
    A sentence to speak.

    Args:
        text (`str`): What is said.
        split (`str`): Part of the corpus, such as `train`; also the folder of its recording.
    """

    text: str
    split: str

    @property
    def file_name(self) -> str:
        """Path of its recording in the corpus; the text decides it, so that no other text ever has the same one."""
        return f"{self.split}/{hashlib.sha256(self.text.encode()).hexdigest()[:16]}.flac"


class FliteVoice:
    """
    A voice of the program `flite`.

    Args:
        name (`str`, *optional*, defaults to `"slt"`): Name of the voice, as `flite -lv` lists it.
        program (`str`, *optional*, defaults to `"flite"`): Name or path of the program.

    Raises:
        FileNotFoundError: If the program is not installed.
        ValueError: If it has no such voice.
    """

    def __init__(self, name: str = "slt", program: str = "flite"):
        if shutil.which(program) is None:
            raise FileNotFoundError(
                f"the program `{program}` is not installed; on Debian, `apt-get install flite` installs it."
            )
        self.name, self.program = name, program
        listed = self._run("-lv").partition(":")[2].split()
        if name not in listed:
            raise ValueError(f"`voice` is {name!r}, but flite has the voices {' '.join(listed)}.")

    def speak(self, text: str, path: str | os.PathLike[str]) -> list[dict[str, Any]]:
        """
        Speak a text into a WAV file.

        Args:
            text (`str`): Text of one utterance.
            path (`str` or `Path`): WAV file to write.

        Returns:
            `list[dict]`: Phones in order, each with `label`, `start` and `end` in seconds. The first and the last one
            are pauses, `pau`.

        Raises:
            ValueError: If flite makes no utterance of it, or several ones.
            OSError: If flite fails.
        """
        lines = self._run("-voice", self.name, "-psdur", "-o", os.fspath(path), "-t", text).split("\n")
        lines = [line for line in lines if line.strip()]
        if len(lines) != 1:
            raise ValueError(f"flite makes {len(lines)} utterances of it, where one is needed.")
        return parse_times(lines[0])

    def pronounce(self, texts: Sequence[str]) -> list[list[str]]:
        """
        Phones of many texts at once, without their speech; some 2 ms a word.

        Args:
            texts (sequence of `str`): Texts of one utterance each.

        Returns:
            `list[list[str]]`: Phones of each text, with pauses.

        Raises:
            ValueError: If flite splits a text into several utterances, or says nothing.
        """
        if not texts:
            return []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "texts.txt")
            path.write_text("".join(f"{' '.join(text.split())}\n\n" for text in texts), encoding="utf-8")
            # The shortest durations leave the phones as they are, and flite has next to no speech to compute.
            options = ("-voice", self.name, "--setf", "duration_stretch=0.02", "-ps", "-f", str(path), "-o", "none")
            printed = self._run(*options, timeout=None)
        phones = [line.split() for line in printed.split("\n") if line.strip()]
        if len(phones) == len(texts):
            return phones
        if len(texts) == 1:
            raise ValueError(f"flite makes {len(phones)} utterances of {texts[0]!r}, where one is needed.")
        middle = len(texts) // 2  # finds the text that is to blame
        return self.pronounce(texts[:middle]) + self.pronounce(texts[middle:])

    def _run(self, *options: str, timeout: float | None = _TIMEOUT) -> str:
        try:
            done = subprocess.run(
                [self.program, *options], capture_output=True, text=True, errors="replace", timeout=timeout
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"flite did not end within {timeout:g} s.") from None
        if done.returncode:
            raise OSError(f"flite failed with exit code {done.returncode}: {done.stderr.strip()[-200:]}")
        return done.stdout


def parse_times(line: str) -> list[dict[str, Any]]:
    """
    Phones of a line that `flite -psdur` prints, `pau:0.184 dh:0.246`, where each number is an end in seconds.

    Raises:
        ValueError: If the line is something else, or a phone ends before it starts.
    """
    phones, start = [], 0.0
    for item in line.split():
        label, colon, written = item.rpartition(":")
        try:
            end = float(written)
        except ValueError:
            end = -1.0
        if not colon or not label or end < start:
            raise ValueError(f"flite printed {item!r}, where a phone and its end were expected.")
        phones.append({"label": label, "start": start, "end": end})
        start = end
    return phones


def speak_sentences(
    sentences: Sequence[Sentence],
    voice: FliteVoice,
    folder: str | os.PathLike[str],
    jobs: int = 1,
    quiet: bool | None = None,
) -> int:
    """
    Speak sentences into FLAC files of a folder; those that it holds already are skipped.

    Each file appears whole. What fails is named with its reason in `metadata.jsonl.rejected.jsonl` and is tried again
    by the next call. [`write_metadata`] makes the corpus out of what was spoken.

    Args:
        sentences (sequence of [`Sentence`]): Distinct sentences.
        voice ([`FliteVoice`]): Voice that speaks.
        folder (`str` or `Path`): Folder of the corpus.
        jobs (`int`, *optional*, defaults to 1): Number of flite processes at a time.
        quiet (`bool`, *optional*): Whether to show no progress bar. Defaults to showing one on a terminal.

    Returns:
        `int`: Number of sentences that failed.

    Raises:
        ValueError: If the folder was spoken by another voice.
        OSError: If it cannot be written, or another process writes it.
    """
    from tqdm import tqdm

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rejected = beside(folder / METADATA, ".rejected.jsonl")
    num_failed = 0
    with LinesFile(folder / JOURNAL) as journal, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        known = _read_journal(folder, voice.name)
        rejected.unlink(missing_ok=True)
        missing = [sentence for sentence in sentences if sentence.file_name not in known]
        tasks = {pool.submit(_speak_one, sentence, voice, folder): sentence for sentence in missing}
        try:
            done = concurrent.futures.as_completed(tasks)
            for task in tqdm(done, desc="speak", total=len(tasks), unit="sentence", disable=quiet):
                try:
                    journal.append(json.dumps(task.result()))
                except (ValueError, OSError) as error:
                    num_failed += 1
                    append_rejected(rejected, [{"name": tasks[task].text, "reason": str(error)}])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return num_failed


def _speak_one(sentence: Sentence, voice: FliteVoice, folder: Path) -> dict[str, Any]:
    import soundfile

    with tempfile.TemporaryDirectory() as temporary:
        wav = Path(temporary, "spoken.wav")
        phones = voice.speak(sentence.text, wav)
        audio, sampling_rate = soundfile.read(wav, dtype="int16")
    if sampling_rate != SAMPLING_RATE:
        raise ValueError(
            f"the voice {voice.name!r} speaks at {sampling_rate} Hz, where {SAMPLING_RATE} Hz are needed; take slt,"
            " awb or rms."
        )
    seconds = len(audio) / sampling_rate
    if not phones[-1]["end"] - 0.1 < seconds < phones[-1]["end"] + 0.1:
        raise ValueError(f"flite says that it ends after {phones[-1]['end']:g} s, but its audio has {seconds:g} s.")
    with WholeFile(folder / sentence.file_name) as path:
        soundfile.write(path, audio, sampling_rate, format="FLAC", subtype="PCM_16")
    return {"file_name": sentence.file_name, "text": sentence.text, "speaker": voice.name, "phones": phones}


def _read_journal(folder: Path, speaker: str) -> dict[str, dict[str, Any]]:
    # What was spoken, by the name of its recording; recordings that have been removed since are not told of.
    spoken = {}
    for line in (folder / JOURNAL).read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # a machine that lost its power left half a line; the sentence is spoken again
        if row["speaker"] != speaker:
            raise ValueError(
                f"{folder} holds sentences of the voice {row['speaker']!r}, not of {speaker!r}; choose another folder."
            )
        if (folder / row["file_name"]).exists():
            spoken[row["file_name"]] = row
    return spoken


def spoken_phones(
    sentences: Iterable[Sentence], folder: str | os.PathLike[str], speaker: str = "slt"
) -> list[tuple[Sentence, list[str]]]:
    """
    Labels of the phones of each sentence that [`speak_sentences`] has spoken, pauses included.

    Args:
        sentences (iterable of [`Sentence`]): Sentences to look for. Those that failed are left out.
        folder (`str` or `Path`): Folder of the corpus.
        speaker (`str`, *optional*, defaults to `"slt"`): Voice that spoke.

    Raises:
        ValueError: If the folder was spoken by another voice.
        OSError: If nothing was spoken into it.
    """
    spoken = _read_journal(Path(folder), speaker)
    return [
        (sentence, [phone["label"] for phone in spoken[sentence.file_name]["phones"]])
        for sentence in sentences
        if sentence.file_name in spoken
    ]


def write_metadata(
    sentences: Iterable[Sentence],
    lexicon: PronunciationLexicon,
    folder: str | os.PathLike[str],
    speaker: str = "slt",
    language: str = "en",
) -> tuple[list[dict[str, Any]], int]:
    """
    Write `metadata.jsonl` of a corpus that [`speak_sentences`] has spoken.

    A line has `file_name`, `text`, `speaker`, `language`, `split`, `words` (`word`, `start`, `end`) and `phones`
    (`label`, `start`, `end`), with times in seconds. Phones are flite's own. The words' times come from them by the
    lexicon, see [`time_words`]. Where the two are too unlike, the sentence has no line, but one with the reason in
    `metadata.jsonl.rejected.jsonl`.

    Args:
        sentences (iterable of [`Sentence`]): Sentences in the order of the lines. Those that failed have no line.
        lexicon ([`PronunciationLexicon`]): Pronunciation of every word.
        folder (`str` or `Path`): Folder of the corpus.
        speaker (`str`, *optional*, defaults to `"slt"`): Voice that spoke.
        language (`str`, *optional*, defaults to `"en"`): Language code of the texts.

    Returns:
        `tuple[list[dict], int]`: The lines, and the number of sentences that got none for their words' times.

    Raises:
        PronunciationError: If a word has no pronunciation.
        OSError: If the file cannot be written.
    """
    folder = Path(folder)
    spoken = _read_journal(folder, speaker)
    rows, rejected = [], []
    for sentence in sentences:
        if (row := spoken.get(sentence.file_name)) is None:
            continue
        pronounced = lexicon.pronounce_words(sentence.text)
        try:
            words = time_words(pronounced, row["phones"])
        except ValueError as error:
            rejected.append({"name": sentence.text, "reason": str(error)})
            continue
        rows.append(
            {
                "file_name": sentence.file_name,
                "text": sentence.text,
                "speaker": speaker,
                "language": language,
                "split": sentence.split,
                "words": words,
                "phones": row["phones"],
            }
        )
    if rejected:
        append_rejected(beside(folder / METADATA, ".rejected.jsonl"), rejected)
    write_whole(folder / METADATA, "".join(json.dumps(row) + "\n" for row in rows))
    return rows, len(rejected)
