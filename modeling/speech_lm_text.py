# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The speech-tokenizers authors.
"""Text around speech in a language model: its marks, prompts, control tokens in what users write, and characters."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFKC, Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


AUDIO_START = "<|audio_start|>"
AUDIO_END = "<|audio_end|>"
# Stands for one clip, with its start and end, in texts that are given to the processor.
AUDIO = "<|audio|>"
# Versions of the prompts below; a model that was trained with one has to be asked by it.
TEMPLATE_VERSION = 1
DEFAULT_CHARACTERS = "abcdefghijklmnopqrstuvwxyz '.,;:!?-\"()"

_CHATML = ("<|im_start|>", "<|im_end|>")
# Private-use characters around control tokens of users; transformers' `sanitize_control_tokens` writes the same.
_MARK_START, _MARK_END = "\U000f0000", "\U000f0001"
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_MARKED = re.compile(f"{_MARK_START}(.*?){_MARK_END}|[{_MARK_START}{_MARK_END}]", re.DOTALL)

_CONTENT = (
    "{%- if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{%- for part in message['content'] %}"
    f"{{%- if part['type'] == 'audio' %}}{{{{ '{AUDIO}' }}}}"
    "{%- elif part['type'] == 'text' %}{{ part['text'] }}"
    "{%- else %}{{ raise_exception('This model reads parts of the types text and audio alone.') }}{% endif %}"
    "{%- endfor %}{% endif %}"
)
# An answer ends with the base's own end of sequence, where every server stops. No newline follows the last message, so
# that a training sequence is what the template gives for the whole conversation.
_CHATML_TEMPLATE = (
    "{%- for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    f"{_CONTENT}"
    "{%- if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '<|im_end|>' }}{% endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
_BARE_TEMPLATE = (
    "{%- for message in messages %}"
    f"{_CONTENT}"
    "{%- if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}"
    "{%- endfor %}"
)


def phone_token(label: str) -> str:
    """The token that stands for a phone."""
    return f"<|phone:{label}|>"


def has_chat_tokens(tokenizer: Any) -> bool:
    """Whether a tokenizer knows `<|im_start|>` and `<|im_end|>` as tokens."""
    return all(token in tokenizer.added_tokens_encoder for token in _CHATML)


def prompt_template(tokenizer: Any) -> str:
    """
    The chat template of a speech language model.

    With ChatML tokens it is `<|im_start|>user\\n...<|im_end|>\\n<|im_start|>assistant\\n`, else the bare `...\\n`. The
    answer follows at once, and the base's end of sequence ends it. A beginning of sequence stands first where the
    tokenizer itself puts it there.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the language model.
    """
    template = _CHATML_TEMPLATE if has_chat_tokens(tokenizer) else _BARE_TEMPLATE
    begins = tokenizer("a")["input_ids"][:1]
    return "{{ bos_token }}" + template if begins == [tokenizer.bos_token_id] else template


def instruction_text(instruction: str, template: str, before_text: bool) -> str:
    """
    What stands before the content of a request: the instruction with a newline in ChatML, else with a colon.

    Before speech or phones there is no space: it would be a token of its own, which other ways to write the prompt
    lack.

    Args:
        instruction (`str`): The instruction.
        template (`str`): The chat template.
        before_text (`bool`): Whether text follows, rather than speech or phones.
    """
    if _CHATML[0] in template:
        return f"{instruction}\n"
    return f"{instruction}: " if before_text else f"{instruction}:"


def spoken_words(text: str) -> list[str]:
    """The words of a text in lower case, without the punctuation around them; without letters and digits, none."""
    words = [re.sub(r"^\W+|\W+$", "", word.lower()) for word in text.split()]
    return [word for word in words if word]


class ControlTokens:
    """
    Encodes texts, and makes the control tokens in what users write harmless.

    Control tokens are the special ones, the phones, and those that the chat template writes. [`~ControlTokens.mark`]
    wraps each in private-use characters; [`~ControlTokens.encode`] reads what is wrapped as ordinary text. No
    special token is added to what is written.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the language model.
        template (`str`, *optional*): The chat template.
    """

    def __init__(self, tokenizer: Any, template: str | None = None):
        self.tokenizer = tokenizer
        others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        # What is unknown may stand for any text; but some tokenizers have one token for this and the end.
        unknown = None if tokenizer.unk_token_id in others else tokenizer.unk_token_id
        tokens = {
            token.content: number
            for number, token in tokenizer.added_tokens_decoder.items()
            if number != unknown
            and (
                token.special
                or token.content.startswith("<|phone:")
                or (template is not None and token.content in template and not token.content.isspace())
            )
        }
        self.ids = frozenset(tokens.values())
        # A token that contains another goes first.
        names = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) or "(?!)")

    def mark(self, text: str) -> str:
        """
        Mark the control tokens in a user's text, to be read as ordinary text.

        Args:
            text (`str`): Text of a user.

        Returns:
            `str`: The text, the same unless there are control tokens in it, or marks already, which are removed.

        Raises:
            ValueError: If the tokenizer has no other way to write a control token.
        """
        text = text.replace(_MARK_START, "").replace(_MARK_END, "")
        marked = self._pattern.sub(f"{_MARK_START}\\g<0>{_MARK_END}", text)
        if self.ids.intersection(self.encode(marked)):
            # A tokenizer that changes texts first, such as to lower case, finds them where we do not.
            marked = f"{_MARK_START}{text}{_MARK_END}"
            self.encode(marked)
        return marked

    def encode(self, text: str) -> list[int]:
        """
        The ids of a text as it is written; what is marked gives no control token.

        Raises:
            ValueError: If the tokenizer has no other way to write a control token.
        """
        if _MARK_START not in text and _MARK_END not in text:
            return self._encode(text)
        # Text and marked text take turns; a mark without its other half is dropped.
        pieces = _MARKED.split(text)
        ids = []
        for place, piece in enumerate(pieces):
            if piece:
                ids += self._encode_as_text(piece) if place % 2 else self._encode(piece)
        return ids

    def word_ids(self, word: str) -> list[int]:
        """The ids of a word as it stands within a sentence, with the space before it."""
        before, within = self._encode("a"), self._encode(f"a {word}")
        ids = within[len(before) :] if within[: len(before)] == before else self._encode(f" {word}")
        return self._encode_as_text(f" {word}") if self.ids.intersection(ids) else ids

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def _encode_as_text(self, text: str) -> list[int]:
        # A control token that is cut in two is none.
        ids = self._encode(text)
        if not self.ids.intersection(ids):
            return ids
        if len(text) == 1:
            raise ValueError(f"The tokenizer writes {text!r} by a control token alone; leave it out of the text.")
        middle = len(text) // 2
        return self._encode_as_text(text[:middle]) + self._encode_as_text(text[middle:])


def checked_text(text: Any, name: str) -> str:
    """
    A text without white space around it, where it would be a token of its own.

    Raises:
        ValueError: If it is no text, or empty, or holds half of a surrogate pair.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} must be a text that is not empty, but is {text!r}.")
    half = _SURROGATES.search(text)
    if half is not None:
        raise ValueError(
            f"{name} has half of a surrogate pair at character {half.start()} of {len(text)}, so that it was cut"
            " within a character or decoded wrongly; give whole characters."
        )
    return text.strip()


def joined_surrogates(text: str) -> str:
    """A text in which both halves of a surrogate pair are one character; a half alone stays."""
    if _SURROGATES.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def marked_conversation(
    messages: Sequence[Mapping[str, Any]], mark: Callable[[str], str], clips: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """
    A conversation whose texts are marked, and whose clips stand beside.

    Args:
        messages (sequence of `Mapping`): Messages with `role` and `content`; they stay as they are.
        mark (callable): Function that marks control tokens in a text.
        clips (`list[dict]`): List that gets `audio`, `audio_codes` and `audio_pieces` of each clip.

    Returns:
        `list[dict]`: The messages.
    """
    marked = []
    for message in messages:
        if isinstance(message.get("role"), str):
            message = {**message, "role": mark(message["role"])}
        content = message.get("content") or ""
        if isinstance(content, str):
            marked.append({**message, "content": mark(content)})
            continue
        parts: list[dict[str, Any]] = []
        for part in content:
            kind = part.get("type")
            if kind == "audio":
                found = {name: part[name] for name in ("audio_codes", "audio_pieces") if name in part}
                sources = [part[name] for name in ("audio", "path", "url") if name in part]
                clips += [{**found, "audio": sources[0]} if sources else found] if sources or found else []
                parts.append({"type": "audio"})
            elif kind == "text" and parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += part["text"]  # two texts may make a control token together
            else:
                parts.append(dict(part))
        marked.append(
            {
                **message,
                "content": [
                    {**part, "text": mark(part["text"])} if part.get("type") == "text" else part for part in parts
                ],
            }
        )
    return marked


def build_speech_vocabulary(characters: str = DEFAULT_CHARACTERS) -> PreTrainedTokenizerFast:
    """
    A small vocabulary of characters, for a language model that is trained from scratch.

    Every character is one id, and texts are lower-cased. The newline and the colon, which prompts need, are always
    there. Characters that are not in it become `<|unk|>`.

    Args:
        characters (`str`, *optional*): The characters. Defaults to English letters, space, apostrophe and punctuation.

    Returns:
        `PreTrainedTokenizerFast`: A tokenizer with `<|pad|>` 0, `<|bos|>` 1 (which it puts at the beginning),
        `<|eos|>` 2, `<|unk|>` 3, and the characters in their order from 4 on.

    Raises:
        ValueError: If there are no characters.
    """
    if not characters:
        raise ValueError("`characters` must hold at least one character, but is empty.")
    distinct = list(dict.fromkeys(characters.lower() + ":\n"))
    pad, bos, eos, unknown = names = ["<|pad|>", "<|bos|>", "<|eos|>", "<|unk|>"]
    vocabulary = {name: index for index, name in enumerate([*names, *distinct])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = Normalizers([NFKC(), Lowercase()])
    tokenizer.pre_tokenizer = Split(Regex(r"(?m)."), "isolated")
    tokenizer.decoder = Fuse()
    tokenizer.post_processor = TemplateProcessing(single=f"{bos} $0", special_tokens=[(bos, vocabulary[bos])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


__all__ = [
    "AUDIO",
    "AUDIO_END",
    "AUDIO_START",
    "ControlTokens",
    "build_speech_vocabulary",
    "checked_text",
    "has_chat_tokens",
    "instruction_text",
    "joined_surrogates",
    "marked_conversation",
    "phone_token",
    "prompt_template",
    "spoken_words",
]
