import gzip
import os
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from metaleak.clients.datasets import SST2, CoLA, LabeledExamples, MadeUpSentences, OwnText, RottenTomatoes
from metaleak.clients.models.tokenizer import tokenizer_in, word_tokenizer

PUBLISHED = os.environ.get("METALEAK_DATA")


def test_sentences_become_rows_of_tokens_between_a_begin_and_an_end_and_back():
    data = MadeUpSentences(length=13).load()
    assert data.modality == "tokens"
    assert data.examples.shape == (3360, 13)
    assert data.labels.bincount().tolist() == [1680, 1680]
    first = data.examples[0]
    assert first[0] == 2
    assert first[first != data.padding][-1] == 3
    assert data.text_of is not None
    assert data.text_of(first.tolist()) == "the film was dull ."


def test_a_sentence_that_is_too_long_is_left_out_or_cut_before_its_end():
    whole = MadeUpSentences(length=13).load().examples
    kept = MadeUpSentences(length=7).load().examples
    cut = MadeUpSentences(length=7, longer="cut").load().examples
    assert len(kept) < len(cut) == len(whole)
    assert (kept == 3).sum(dim=1).eq(1).all()
    assert (cut == 3).sum(dim=1).eq(1).all()
    with pytest.raises(ValueError, match="no sentence of class 'negative' has at most 3 tokens"):
        MadeUpSentences(length=3).load()


def test_a_word_that_the_vocabulary_lacks_is_unknown():
    tokenizer = word_tokenizer(["the cat's hat."])
    assert tokenizer.encode(["The DOG ."]) == [[2, 7, 1, 4, 3]]
    assert tokenizer.decode([2, 7, 1, 4, 3, 0]) == "the [UNK] ."


def test_the_users_own_sentences_are_read_from_a_table_or_from_folders(tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text('sentence,label\n"so, it goes",good\nnever again,bad\n')
    folder = tmp_path / "mine"
    for label, name, text in (("good", "1", "so, it goes"), ("bad", "1", "never again")):
        (folder / label).mkdir(parents=True)
        (folder / label / f"{name}.txt").write_text(text)
    read, walked = OwnText(path=table).text(), OwnText(path=folder).text()
    assert read.classes == walked.classes == ("bad", "good")
    assert dict(zip(read.sentences, read.labels, strict=True)) == {"so, it goes": 1, "never again": 0}
    assert set(walked.sentences) == set(read.sentences)


def test_a_table_may_begin_with_a_mark_of_its_encoding_and_quotes_of_tsv_are_text(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text('sentence\tlabel\n"so it goes\tgood\nnever" again\tbad\n', encoding="utf-8-sig")
    read = OwnText(path=path).text()
    assert read.sentences == ('"so it goes', 'never" again')


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,label\na,1\n", "no column is called 'sentence'; there are text, label"),
        ("sentence,label\na,1\n", "has 1 classes, at least 2 are needed"),
        ("sentence,label\na,1\nb\n", "the row that ends in line 3 has no label"),
    ],
)
def test_a_table_that_does_not_fit_is_named_in_one_line(tmp_path, content, said):
    path = tmp_path / "mine.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        OwnText(path=path).load()


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cola lacks cola_public\.zip"):
        CoLA(data_dir=tmp_path).load()
    (tmp_path / "train.tsv.gz").write_bytes(gzip.compress(b"0\tall")[:-4])
    with pytest.raises(ValueError, match=r"train\.tsv\.gz is damaged"):
        SST2(data_dir=tmp_path).load()
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        tokenizer_in(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        tokenizer_in(tmp_path)


def test_a_tokenizer_without_a_token_for_padding_is_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="has no token for padding"):
        tokenizer_in(tmp_path)


@pytest.mark.parametrize(
    ("template", "begin", "end"), [("$A [E]", None, 3), ("[B] $A", 2, None), ("[B] $A [E]", 2, 3), ("$A", None, None)]
)
def test_the_tokens_around_a_sentence_are_told_by_their_side(tmp_path, template, begin, end):
    tokenizers = pytest.importorskip("tokenizers")
    names = {"[PAD]": 0, "[UNK]": 1, "[B]": 2, "[E]": 3, "a": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=[(name, names[name]) for name in ("[B]", "[E]") if name in template]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    read = tokenizer_in(tmp_path)
    assert (read.begin, read.end) == (begin, end)


def test_padding_is_for_tokens_alone():
    with pytest.raises(ValueError, match="for the modality tokens"):
        LabeledExamples(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), padding=0)


def test_an_unknown_way_with_long_sentences_is_refused():
    with pytest.raises(ValidationError, match="longer"):
        MadeUpSentences.model_validate({"longer": "wrap"})


@pytest.mark.skipif(not PUBLISHED, reason="METALEAK_DATA is not set")
def test_the_published_sentences_are_read():
    folder = Path(str(PUBLISHED))
    cola, sst2, reviews = (kind(data_dir=folder).text() for kind in (CoLA, SST2, RottenTomatoes))
    assert [len(one.sentences) for one in (cola, sst2, reviews)] == [8551, 67349, 10662]
    assert cola.sentences[1] == "One more pseudo generalization and I'm giving up."
    assert cola.labels[1] == 1
    assert sst2.sentences[1] == "contains no wit , only labored gags"
    assert sst2.labels[1] == 0
    assert sum(reviews.labels) == 5331
