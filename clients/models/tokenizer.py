"""Sentences as numbers of tokens and back: by a model's own tokenizer, or word by word."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

MISSING = "text needs `transformers`, which an extra installs: pip install 'metaleak[text]'"
"""The error message where the extra is missing."""

_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
_PAD, _UNKNOWN, _BEGIN, _END = range(4)
_PADDING_NAMES = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Turns sentences into lists of token numbers, special tokens included, and tokens into text, without them.

    `size` is that of the vocabulary; `padding` makes sentences equally long. `begin` and `end` are the tokens around
    every sentence, `None` where there are none.
    """

    encode: Callable[[Sequence[str]], list[list[int]]]
    decode: Callable[[Sequence[int]], str]
    size: int
    padding: int
    begin: int | None
    end: int | None


@lru_cache(maxsize=2)
def tokenizer_in(directory: Path) -> Tokenizer:
    """Return the tokenizer that a model's `directory` holds as `tokenizer.json`.

    Raises `ValueError` in one line when the extra is missing, when there is no such file, when it cannot be read, and
    when it has no token for padding.
    """
    try:
        import tokenizers
    except ImportError:
        raise ValueError(MISSING) from None
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"tokenizer: {directory} has no tokenizer.json")
    try:
        found = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise ValueError(f"tokenizer: {path} cannot be read: {' '.join(str(error).split())}") from error
    found.no_truncation()
    found.no_padding()
    padding = next((number for name in _PADDING_NAMES if (number := found.token_to_id(name)) is not None), None)
    if padding is None:
        raise ValueError(f"tokenizer: {path} has no token for padding, such as {', '.join(_PADDING_NAMES[:2])}")
    # The tokens of an empty sentence are those around every sentence; a word shows on which side they are.
    around, word = found.encode("").ids, found.encode("a").ids
    begins = bool(around) and word[0] == around[0]
    ends = bool(around) and len(word) > 1 and word[-1] == around[-1]

    def encode(sentences: Sequence[str]) -> list[list[int]]:
        return [one.ids for one in found.encode_batch(list(sentences))]

    def decode(tokens: Sequence[int]) -> str:
        text: str = found.decode([token for token in tokens if token != padding], skip_special_tokens=True)
        return text

    return Tokenizer(
        encode,
        decode,
        found.get_vocab_size(),
        padding,
        around[0] if begins else None,
        around[-1] if ends else None,
    )


def word_tokenizer(sentences: Iterable[str]) -> Tokenizer:
    """Return the tokenizer whose tokens are the words and signs of `sentences`, in lower case and sorted.

    Its first four tokens are special: padding (0), an unknown word (1), the begin (2) and the end (3) of a sentence.
    """
    words = sorted({word for sentence in sentences for word in _words(sentence)})
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    numbers = {word: number for number, word in enumerate(names)}

    def encode(sentences: Sequence[str]) -> list[list[int]]:
        return [[_BEGIN, *(numbers.get(word, _UNKNOWN) for word in _words(sentence)), _END] for sentence in sentences]

    def decode(tokens: Sequence[int]) -> str:
        special = (_PAD, _BEGIN, _END)
        return " ".join(
            names[token] if token < len(names) else names[_UNKNOWN] for token in tokens if token not in special
        )

    return Tokenizer(encode, decode, len(names), _PAD, _BEGIN, _END)


def _words(sentence: str) -> list[str]:
    return _WORD.findall(sentence.lower())
