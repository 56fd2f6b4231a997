# SPDX-License-Identifier: Apache-2.0
"""The command `make-tts-corpus`: a corpus of synthetic speech with exact phone times, and its lexicon."""

import argparse
from pathlib import Path
from typing import Any

from speech_tokenizers.commands.frame import UsageError, check_output_folder, say


LEXICON = "pronunciations.txt.gz"
SENTENCES = 6000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        required=True,
        type=Path,
        help="the corpus; what it holds is not made again",
    )
    parser.add_argument(
        "--wordnet",
        metavar="DIR",
        type=Path,
        default=Path("/usr/share/wordnet"),
        help="the data files of WordNet, whose examples are spoken (Debian: wordnet-base)",
    )
    parser.add_argument("--voice", metavar="NAME", default="slt", help="a voice of flite (Debian: flite) at 16 kHz")
    parser.add_argument("--sentences", metavar="N", type=int, default=SENTENCES, help="sentences of the split train")
    parser.add_argument("--held-out", metavar="N", type=int, default=200, help="sentences of the split test")
    parser.add_argument("--dev", metavar="N", type=int, default=100, help="sentences of the split dev")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="number of flite processes at a time")


def run(args: argparse.Namespace) -> int:
    from speech_tokenizers.training.language_models.flite_corpus import (
        METADATA,
        FliteVoice,
        Sentence,
        speak_sentences,
        write_metadata,
    )
    from speech_tokenizers.training.language_models.wordnet_sentences import choose_sentences, read_examples

    counts = {"test": args.held_out, "dev": args.dev, "train": args.sentences}
    if min(counts.values()) < 0 or args.sentences < 1 or args.jobs < 1:
        raise UsageError("--sentences and --jobs must be at least 1, --held-out and --dev at least 0.")
    voice = FliteVoice(args.voice)
    chosen = choose_sentences(read_examples(args.wordnet), counts)
    check_output_folder(args.output)
    sentences = [Sentence(text, split) for split, texts in chosen.items() for text in texts]
    quiet = args.quiet or None

    num_failed = speak_sentences(sentences, voice, args.output, args.jobs, quiet)
    lexicon = _make_lexicon(args, sentences, voice)
    rows, num_untimed = write_metadata(sentences, lexicon, args.output, voice.name)
    num_failed += num_untimed
    seconds = sum(row["phones"][-1]["end"] for row in rows)
    print(f"{args.output / METADATA}: {len(rows)} sentences, {seconds / 3600:.2f} h")
    if num_failed:
        say(f"{num_failed} sentences failed: see {args.output / METADATA}.rejected.jsonl")
    return int(num_failed > 0)


def _make_lexicon(args: argparse.Namespace, sentences: list[Any], voice: Any) -> Any:
    # Words as flite says them alone are kept beside, so that a later call asks only for new ones.
    from speech_tokenizers.modeling.pronunciations import PronunciationLexicon
    from speech_tokenizers.training.language_models.flite_corpus import spoken_phones
    from speech_tokenizers.training.language_models.flite_lexicon import (
        LICENCE,
        add_words,
        agreement,
        learn_in_sentences,
    )
    from speech_tokenizers.training.language_models.wordnet_sentences import read_words, sentence_words

    alone_path = args.output / ".words.txt.gz"
    lexicon = PronunciationLexicon.from_file(alone_path) if alone_path.exists() else PronunciationLexicon()
    words = set(read_words(args.wordnet)).union(*(sentence_words(sentence.text) for sentence in sentences))
    if add_words(lexicon, sorted(words), voice, args.jobs, args.quiet or None):
        lexicon.save(alone_path)
    spoken = spoken_phones(sentences, args.output, voice.name)
    learn_in_sentences(lexicon, [(sentence.text, phones) for sentence, phones in spoken if sentence.split == "train"])
    lexicon.save(args.output / LEXICON, LICENCE)
    print(f"{args.output / LEXICON}: {len(lexicon)} entries, {len(lexicon.labels)} labels")
    if held_out := [(sentence.text, phones) for sentence, phones in spoken if sentence.split != "train"]:
        result = agreement(lexicon, held_out)
        print(f"the lexicon gives flite's own phones for {result.same} of {result.sentences} held-out sentences")
    return lexicon
