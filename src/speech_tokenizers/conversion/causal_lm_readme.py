# SPDX-License-Identifier: Apache-2.0
"""The README of an exported language model: its exact prompt, how to sample, where to stop, and how to hear it."""

from typing import Any

from speech_tokenizers.coding.served_speech import SPEECH_FILE, ServedSpeech, unit_name
from speech_tokenizers.conversion.speech_grammar import GRAMMAR_FILE, REGEX_FILE
from speech_tokenizers.modeling.processing_speech_lm import PRONUNCIATIONS_FILE
from speech_tokenizers.modeling.speech_lm_text import AUDIO_END


_README = """\
# {name}

An ordinary causal language model that says text as the codes of the codec `{codec}`
(fingerprint `{fingerprint}`). No code beside transformers, vLLM, SGLang or llama.cpp is needed to load it.
`speech-tokenizers export-lm` wrote it.

## Prompt

Give exactly this, as a text to which no special tokens are added{bos_note}:

```
{prompt}
```

{what_to_say}
It is the JSON string `prompt` in `{speech_file}`. Remove names of tokens, such as `{unit}`, from
texts of users: they would be read as tokens.

## Answer

| | |
|---|---|
| Code `c` of codebook `q` | `<a{{q}}_{{c}}>`, id {offset} + {size} q + c, for q < {num_codebooks} and c < {size} |
| Order | frame by frame, {frame_rate:g} a second; {num_codebooks} codes a frame |
| Stop at the ids | {stops} |
| Sampling | {sampling} |
| Length | {ids_per_second:g} ids a second of speech |

`{grammar}` (llama.cpp) and `{regex}` (structured output of vLLM and SGLang) allow whole frames
alone, and the end behind one. {unconstrained}
{aligned}
## Servers

```bash
vllm serve {name}
curl localhost:8000/v1/completions -H "Content-Type: application/json" -d '{{
  "model": "{name}", "prompt": "PROMPT", "add_special_tokens": false, "max_tokens": {max_tokens},
  "temperature": {temperature}, "stop_token_ids": {stops_json}, "return_token_ids": true}}'
```

```bash
python convert_hf_to_gguf.py {name} --outfile {name}.gguf
llama-server -m {name}.gguf --grammar-file {name}/{grammar}
```

The converter knows the vocabularies of published models only.

## Audio

Write the ids of the answer into `answer.json`, as a list, or its text into `answer.txt`.

```bash
speech-tokenizers decode answer.json --speech {name}/{speech_file} -o answer.wav
```
"""

_ALIGNED = """
Phones stand before their frames, each once and in the order of the prompt. For one text, a grammar
with its phones makes sure of that; replace the first line of `{grammar}`:

```
root ::= {root}
```
"""


def export_readme(speech: ServedSpeech, tokenizer: Any, name: str) -> str:
    """
    The text of the README.

    Args:
        speech ([`ServedSpeech`]): What the model's `speech.json` says.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the language model.
        name (`str`): Name of the folder.
    """
    bos, is_aligned = tokenizer.bos_token, speech.text_alignment != "none"
    bos_note = ""
    if bos and speech.prompt.startswith(bos):
        bos_note = f"\n(where the server itself puts `{bos}` first, as llama.cpp does, leave that out)"
    what = "`{text}` is what is to be said."
    phones, aligned = speech.phone_names(), ""
    if speech.text_alignment == "phone":
        what = f"`{{phones}}` are the names of the phones in order, such as `{''.join(phones[:3])}`."
        what += f"\nWhere there is a `{PRONUNCIATIONS_FILE}`, it has the phones of words."
        root = " ".join(f'"{phone}" frame+' for phone in phones[:2]) + f' "{AUDIO_END}"?'
        aligned = _ALIGNED.format(grammar=GRAMMAR_FILE, root=root)
    elif speech.text_alignment == "word":
        what += " Words stand before their frames in the answer."
    ids = speech.speech_ids
    unconstrained = "A list of allowed ids does the same: all codes and the end."
    if speech.num_codebooks > 1:
        unconstrained = "Without them, `decode` leaves out codes that make no whole frame, and tells their number."
    per_second = speech.frame_rate * speech.num_codebooks
    return _README.format(
        name=name,
        codec=speech.codec_name or "unknown",
        fingerprint=speech.codec_fingerprint,
        bos_note=bos_note,
        prompt=speech.prompt,
        what_to_say=what,
        speech_file=SPEECH_FILE,
        unit=unit_name(0, 0),
        offset=ids.audio_offset,
        size=ids.codebook_size,
        num_codebooks=ids.num_codebooks,
        frame_rate=speech.frame_rate,
        stops=", ".join(map(str, speech.stop_token_ids)),
        stops_json=speech.stop_token_ids,
        sampling="temperature 0, or a low one" if is_aligned else "temperature 0.8; at 0 it may repeat itself",
        temperature=0.0 if is_aligned else 0.8,
        ids_per_second=per_second,
        grammar=GRAMMAR_FILE,
        regex=REGEX_FILE,
        unconstrained=unconstrained,
        aligned=aligned,
        max_tokens=round(20 * per_second),
    )


__all__ = ["export_readme"]
