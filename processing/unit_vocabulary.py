# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of unit strings, for language models that are trained with transformers."""

from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from .unit_sequences import unit_name


def build_unit_vocabulary(
    codebook_size: int, num_quantizers: int = 1, layout: str = "slamkit", prefix: str = "Un"
) -> PreTrainedTokenizerFast:
    """
    A fast tokenizer of unit strings such as `<Un12><Un7>`; see [`units_to_string`].

    Every unit is one id. Text that holds anything else is an error, and decoding gives the string back exactly. The
    ids of beginning and end are added around a sequence unless `add_special_tokens=False` is passed.

    Args:
        codebook_size (`int`): Number of units of a codebook.
        num_quantizers (`int`, *optional*, defaults to 1): Number of codebooks. With more than one, names carry the
            codebook, `<Q1_Un12>`, and the units of codebook `q` follow those of `q - 1`.
        layout (`str`, *optional*, defaults to `"slamkit"`): Order of the ids. `"slamkit"`: `<PAD>` is 0, `<S>` is 1 at
            either end, unit `u` is `u + 2`. `"textlesslib"`: unit `u` is `u`, and behind the last one come `<BOS>`,
            `<EOS>` and `<PAD>`.
        prefix (`str`, *optional*, defaults to `"Un"`): Letters in front of the number.

    Raises:
        ValueError: If a size is below 1, or `layout` or `prefix` is another.
    """
    for name, value in (("codebook_size", codebook_size), ("num_quantizers", num_quantizers)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, but got {value}.")
    codebooks = [None] if num_quantizers == 1 else range(1, num_quantizers + 1)
    names = [unit_name(unit, prefix, codebook) for codebook in codebooks for unit in range(codebook_size)]
    if layout == "slamkit":
        names, bos, eos = ["<PAD>", "<S>", *names], "<S>", "<S>"
    elif layout == "textlesslib":
        names, bos, eos = [*names, "<BOS>", "<EOS>", "<PAD>"], "<BOS>", "<EOS>"
    else:
        raise ValueError(f"`layout` must be 'slamkit' or 'textlesslib', but got {layout!r}.")

    # No name for what is unknown: the library then refuses it instead of losing it.
    tokenizer = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="<UNK>"))
    tokenizer.pre_tokenizer = Split(">", "merged_with_previous")
    return wrap_tokenizer(tokenizer, bos, eos)


def wrap_tokenizer(tokenizer: Tokenizer, bos: str, eos: str) -> PreTrainedTokenizerFast:
    """
    A tokenizer of units for transformers: joined without spaces, padded on the right with `<PAD>`, and with the names
    of beginning and end around a sequence.
    """
    tokenizer.decoder = Fuse()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $0 {eos}", special_tokens=[(name, tokenizer.token_to_id(name)) for name in {bos, eos}]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token="<PAD>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
