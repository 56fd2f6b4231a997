# SPDX-License-Identifier: Apache-2.0
"""
Public corpora as they unpack: what each recording says, by whom, and in which split, as rows of metadata.

A row has `file_name`, relative to the corpus's folder, and `split` where the corpus states one.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .metadata_files import MetadataRow, TableError, read_json_lines, read_text_lines


@dataclass(frozen=True)
class CorpusLayout:
    """
    How a corpus is read.

    Args:
        read (callable): Function that gives the rows of a folder.
        target (`str`): Column that is usually the answer.
        expected (`str`): What the folder has to hold, for messages.
    """

    read: Callable[[Path], Iterator[MetadataRow]]
    target: str
    expected: str


def read_layout(name: str, folder: Path) -> list[MetadataRow]:
    """
    The rows of a public corpus.

    Args:
        name (`str`): Name of a layout, a key of `LAYOUTS`.
        folder (`Path`): Folder that the corpus was unpacked into.

    Raises:
        ValueError: If there is no such layout, or the folder does not hold what the layout expects.
        OSError: If a file cannot be read.
    """
    if name not in LAYOUTS:
        raise ValueError(f"there is no layout {name!r}; choose one of {', '.join(LAYOUTS)}.")
    rows = list(LAYOUTS[name].read(folder))
    if not rows:
        raise ValueError(f"{folder}: holds no recording of the layout {name!r}: {LAYOUTS[name].expected}.")
    return rows


def _row(place: Path | str, folder: Path, path: Path, **fields: Any) -> MetadataRow:
    return MetadataRow(str(place), {"file_name": path.relative_to(folder).as_posix(), **fields})


def _librispeech(folder: Path) -> Iterator[MetadataRow]:
    for transcripts in sorted(folder.rglob("*.trans.txt")):
        subset = transcripts.relative_to(folder).parts[0]
        split = subset.split("-")[0]
        if split not in ("train", "dev", "test"):
            raise ValueError(
                f"{transcripts}: lies in the part {subset!r}, but train-..., dev-... and test-... were expected; name"
                " the folder that holds these."
            )
        for number, line in read_text_lines(transcripts):
            if line.strip():
                name, _, text = line.partition(" ")
                path = transcripts.with_name(f"{name}.flac")
                place = f"{transcripts}, line {number}"
                yield _row(place, folder, path, text=text.strip(), split=split, speaker=name.split("-")[0])


def _speech_commands(folder: Path) -> Iterator[MetadataRow]:
    listed: dict[str, str] = {}
    for name, split in (("validation_list.txt", "dev"), ("testing_list.txt", "test")):
        listed |= {line.strip(): split for _, line in read_text_lines(folder / name) if line.strip()}
    for path in sorted(folder.glob("*/*_nohash_*.wav")):
        name = path.relative_to(folder).as_posix()
        speaker = path.name.split("_nohash_")[0]
        yield _row(path, folder, path, keyword=path.parent.name, split=listed.get(name, "train"), speaker=speaker)


_RAVDESS_EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")


def _ravdess(folder: Path) -> Iterator[MetadataRow]:
    # Modality, channel, emotion, intensity, statement, repetition, actor; 03-01 is speech without a picture.
    for path in sorted(folder.rglob("03-01-*.*")):
        if match := re.fullmatch(r"03-01-0([1-8])-0([12])-0[12]-0[12]-(\d\d)", path.stem):
            emotion = _RAVDESS_EMOTIONS[int(match[1]) - 1]
            intensity = "normal" if match[2] == "1" else "strong"
            yield _row(path, folder, path, emotion=emotion, intensity=intensity, speaker=f"ravdess-{match[3]}")


def _slurp(folder: Path) -> Iterator[MetadataRow]:
    audio = {path.name: path for path in folder.rglob("*.flac")}
    speakers = _slurp_speakers(folder)
    for name, split in (("train", "train"), ("devel", "dev"), ("test", "test")):
        for table in sorted(folder.rglob(f"{name}.jsonl")):
            for number, entry in read_json_lines(table):
                place = f"{table}, line {number}"
                try:
                    fields = {
                        "text": entry["sentence"],
                        "scenario": entry["scenario"],
                        "action": entry["action"],
                        "intent": f"{entry['scenario']}_{entry['action']}",
                        "slots": {
                            entity["type"]: " ".join(entry["tokens"][index]["surface"] for index in entity["span"])
                            for entity in entry["entities"]
                        },
                    }
                    files = [recording["file"] for recording in entry["recordings"]]
                except (KeyError, TypeError, IndexError) as error:
                    raise TableError(place, f"is no entry of SLURP (no {error}); copy the file anew.") from error
                for file in files:
                    # Those without audio are refused by their names, if the manifest is to have them.
                    path = audio.get(file, folder / "slurp_real" / file)
                    near = "headset" if "-headset" in file else "far"
                    yield _row(place, folder, path, split=split, speaker=speakers.get(file), microphone=near, **fields)


def _slurp_speakers(folder: Path) -> dict[str, str]:
    # `metadata.json`, where the speakers stand by themselves: {id: {"recordings": {file: {"usrid": speaker}}}}.
    found: dict[str, str] = {}
    for table in sorted(folder.rglob("metadata.json")):
        try:
            for entry in json.loads(table.read_text(encoding="utf-8")).values():
                found |= {file: facts["usrid"] for file, facts in entry["recordings"].items() if "usrid" in facts}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{table}: is not the metadata of SLURP ({error}); copy the file anew.") from error
    return found


def _covost(folder: Path) -> Iterator[MetadataRow]:
    for table in sorted(folder.rglob("covost_v2.*.tsv")):
        split = table.name.split(".")[-2]
        if split not in ("train", "dev", "test"):
            continue
        for place, fields in _tab_separated(table, ("path", "sentence", "translation")):
            name = fields["path"] if Path(fields["path"]).suffix else fields["path"] + ".mp3"
            path = next(
                (path for path in _clip_places(table, folder, name) if path.is_file()), folder / "clips" / name
            )
            yield _row(
                place,
                folder,
                path,
                text=fields["sentence"],
                translation=fields["translation"],
                split=split,
                speaker=fields.get("client_id"),
            )


def _clip_places(table: Path, folder: Path, name: str) -> Iterable[Path]:
    return (table.parent / "clips" / name, folder / "clips" / name, table.parent / name)


def _tab_separated(table: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    # Cells are not quoted there: a quote is a character of the text.
    names: list[str] = []
    for number, line in read_text_lines(table):
        cells, place = line.split("\t"), f"{table}, line {number}"
        if not names:
            names = cells
            if missing := [name for name in needed if name not in names]:
                raise TableError(place, f"has no column `{missing[0]}`; it has {names}; name CoVoST's own tables.")
        elif line.strip():
            if len(cells) != len(names):
                raise TableError(place, f"has {len(cells)} cells, but there are {len(names)} columns; copy it anew.")
            yield place, dict(zip(names, cells, strict=True))


_IEMOCAP_EMOTIONS = {
    "ang": "angry",
    "hap": "happy",
    "exc": "excited",
    "sad": "sad",
    "neu": "neutral",
    "fru": "frustrated",
    "fea": "fearful",
    "sur": "surprised",
    "dis": "disgust",
}
# The four that papers measure; the excited are taken for happy.
_FOUR_EMOTIONS = {"angry": "angry", "happy": "happy", "excited": "happy", "sad": "sad", "neutral": "neutral"}


def _iemocap(folder: Path) -> Iterator[MetadataRow]:
    for table in sorted(folder.glob("Session*/dialog/EmoEvaluation/Ses*.txt")):
        for number, line in read_text_lines(table):
            match = re.match(r"\[[\d.]+ - [\d.]+\]\s+(Ses(\d\d)\w+_([FM])\d+)\s+(\w+)\s", line + " ")
            if match is None or match[4] not in _IEMOCAP_EMOTIONS:
                continue  # the raters' own votes; `xxx`, on which they do not agree; and `oth`
            emotion = _IEMOCAP_EMOTIONS[match[4]]
            session = table.parents[2]
            path = session / "sentences" / "wav" / match[1].rpartition("_")[0] / f"{match[1]}.wav"
            four = _FOUR_EMOTIONS.get(emotion)
            yield _row(
                f"{table}, line {number}",
                folder,
                path,
                emotion=emotion,
                emotion4=four,
                # The two of a session hear each other, and turn up on both sides of no split together.
                speaker=f"Ses{match[2]}{match[3]}",
                scene=f"Ses{match[2]}",
            )


LAYOUTS = {
    "librispeech": CorpusLayout(
        _librispeech, "text", "train-*/, dev-*/ and test-*/ with *.trans.txt beside the recordings were expected"
    ),
    "speech-commands": CorpusLayout(
        _speech_commands, "keyword", "folders of words with *_nohash_*.wav, and the lists were expected"
    ),
    "ravdess": CorpusLayout(_ravdess, "emotion", "files named like 03-01-05-01-02-01-12.wav were expected"),
    "slurp": CorpusLayout(_slurp, "slots", "train.jsonl, devel.jsonl and test.jsonl were expected"),
    "covost": CorpusLayout(_covost, "translation", "tables like covost_v2.fr_en.train.tsv and clips/ were expected"),
    "iemocap": CorpusLayout(_iemocap, "emotion4", "Session1/dialog/EmoEvaluation/Ses01*.txt was expected"),
}


__all__ = ["LAYOUTS", "CorpusLayout", "read_layout"]
