"""Our tokens are those of the library that wrote the file, whatever the text."""

import json
import pydoc_data.topics
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers_probe
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from edge_runtime.contract.package import Package, PackageFault, PackageRefused
from edge_runtime.vehicle.inference.tokenizing import unicode_ranges
from edge_runtime.vehicle.inference.tokenizing.tokenizer import Tokenizer
from edge_runtime.vehicle.inference.tokenizing.wordpiece import BertNormalizer, CharacterTable

Model = Callable[[str], Package]

UNBOUNDED = 10**9
PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "park", "##ing", "##s", "a", "##a", "##b"),
    *("e", "##e", "c", "the", "car", ".", ",", "!", "'", "-", "中", "国", "я", "##я", "1", "##2"),
    *("x", "##x", "ᄒ", "##ᅡ", "##ᆫ", "😀", "##😀", "un", "##known", "i", "##i", "o", "##o"),
]


def file_of(**changes: Any) -> dict[str, Any]:
    """A `tokenizer.json` as the library writes it, small."""
    special = [
        {"id": PIECES.index(name), "content": name, "special": True, "normalized": False}
        for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    ]
    around = {name: {"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]")}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"single_word": False, "lstrip": False, "rstrip": False, **token} for token in special
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [around["[CLS]"], {"Sequence": {"id": "A", "type_id": 0}}, around["[SEP]"]],
            "pair": [
                *(around["[CLS]"], {"Sequence": {"id": "A", "type_id": 0}}, around["[SEP]"]),
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                name: {"id": name, "ids": [PIECES.index(name)], "tokens": [name]} for name in around
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {piece: number for number, piece in enumerate(PIECES)},
        },
        **changes,
    }


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Library]:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(file_of()))
    return Tokenizer.read(path), Library.from_file(str(path))


# --- equality ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(tokenizers_probe.TABLES))
def test_the_tables_are_the_librarys(name: str) -> None:
    wanted = tokenizers_probe.TABLES[name](tokenizers_probe.INHABITED)
    table = getattr(unicode_ranges, name)
    found = {code for code in tokenizers_probe.INHABITED if code in table}
    assert tokenizers_probe.as_ranges(found ^ wanted) == []


@pytest.mark.parametrize(
    "options",
    [
        {"clean_text": True, "handle_chinese_chars": True, "lowercase": True},
        {"clean_text": False, "handle_chinese_chars": False, "lowercase": True},
        {"clean_text": True, "handle_chinese_chars": True, "lowercase": False},
        {"clean_text": True, "strip_accents": False, "lowercase": True},
    ],
    ids=["uncased", "not cleaned", "cased", "accents"],
)
def test_every_character_is_normalised_as_the_library_does(options: dict[str, bool]) -> None:
    table = CharacterTable(BertNormalizer(**options))
    strips = options.get("strip_accents", options["lowercase"])
    wanted = tokenizers_probe.normalized(
        tokenizers_probe.INHABITED,
        clean_text=options["clean_text"],
        handle_chinese_chars=options.get("handle_chinese_chars", True),
        strip_accents=strips,
        lowercase=options["lowercase"],
    )
    # Spaces around punctuation are the next step's, done in the same table here.
    wrong = [
        hex(code) for code, text in wanted.items() if table[code].split() != _parted(text).split()
    ]
    assert wrong == []


def _parted(text: str) -> str:
    punctuation, spaces = unicode_ranges.PUNCTUATION, unicode_ranges.SPACES
    return "".join(
        " " if ord(each) in spaces else f" {each} " if ord(each) in punctuation else each
        for each in text
    )


def texts(seed: int, count: int) -> list[str]:
    """Prose, code, every script, marks, emoji, controls, very long words."""
    chance = random.Random(seed)
    everything = [chr(code) for code in tokenizers_probe.EVERY_CODE_POINT]
    marks = [each for each in everything if unicodedata.combining(each)]
    pools = [
        list("abcdefgxyzABC 123.,-'\t\n"),
        marks,
        [chr(code) for code in (*range(0x1F300, 0x1FAFF), 0x200D, 0xFE0F)],
        [chr(code) for code in (*range(0x3040, 0x30FF), *range(0x4E00, 0xD7A3))],
        [chr(code) for code in (*range(32), *range(0x7F, 0xA1), 0x200B, 0x2028, 0xFEFF, 0xFFFD)],
        [chr(code) for code in (*range(0xC0, 0x250), *range(0x370, 0x600), *range(0x1E00, 0x2000))],
        everything,
    ]
    found = [paragraph for topic in pydoc_data.topics.topics.values() for paragraph in
             topic.split("\n\n")]  # fmt: skip
    found += ["x" * 99, "x" * 100, "x" * 101, "中" * 200, "é" * 300, "e\u0301" * 300, "ΑΣ ΣΑΣ"]
    for _ in range(count):
        weights = [chance.random() ** 3 for _ in pools]
        chosen = chance.choices(pools, weights, k=chance.randrange(1, 60))
        found.append("".join(map(chance.choice, chosen)))
    return found


@pytest.mark.models
@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_real_models_see_the_librarys_tokens(model: Model, name: str) -> None:
    package = model(name)
    path = package.spec.path_of("tokenizer", package.folder)
    library = Library.from_file(str(path))
    library.no_padding()
    library.enable_truncation(256)
    ours = Tokenizer.read(path)
    for text in texts(1, 8_000):
        wanted, found = library.encode(text), ours.encode(text, 256)
        assert (found.ids, found.type_ids) == (wanted.ids, wanted.type_ids), repr(text)


@settings(max_examples=1_000, deadline=None)
@given(
    st.text() | st.lists(st.sampled_from([*PIECES, " ", "##", "x" * 40, "É", "\x00"])).map("".join)
)
@example("")
@example("[CLS] [SEP][MASK] park[UNK]ings [cls]")
@example("parkings, the car! un\u00adknown unknowns")
def test_any_text_has_the_librarys_tokens(both: tuple[Tokenizer, Library], text: str) -> None:
    ours, library = both
    wanted, found = library.encode(text), ours.encode(text, UNBOUNDED)
    assert (found.ids, found.type_ids) == (wanted.ids, wanted.type_ids)


def test_what_is_too_long_loses_its_end_only(both: tuple[Tokenizer, Library]) -> None:
    ours, _ = both
    start, *own, end = ours.encode("the car the car the car", UNBOUNDED).ids
    assert ours.encode("the car the car the car", 5).ids == [start, *own[:3], end]
    assert ours.encode("the car", 2).ids == [start, end]


def test_a_table_of_characters_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.contract.limits.TOKENIZER_CHARACTERS_MAX", 100)
    table = CharacterTable(BertNormalizer())
    text = "".join(map(chr, range(0x3000, 0x4000)))
    assert text.translate(table) == text.translate(CharacterTable(BertNormalizer()))
    assert len(table) <= 100


# --- byte-level byte pairs ---------------------------------------------------------------------


def trained(vocabulary: int, *before: pre_tokenizers.PreTokenizer) -> Library:
    """A tokenizer as language models have it, made by the library from prose and code."""
    library = Library(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    library.train_from_iterator(sorted(pydoc_data.topics.topics.values()), trainer)
    library.add_tokens([AddedToken("<plain>", special=False, normalized=False)])
    return library


@pytest.fixture(scope="session", params=["words", "digits one by one", "digits together"])
def byte_pairs(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Tokenizer, Library]:
    before = {
        "words": [],
        "digits one by one": [pre_tokenizers.Digits(individual_digits=True)],
        "digits together": [pre_tokenizers.Digits(individual_digits=False)],
    }[request.param]
    library = trained(3_000, *before)
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    library.save(str(path))
    return Tokenizer.read(path), library


def test_byte_pairs_are_joined_as_the_library_does(byte_pairs: tuple[Tokenizer, Library]) -> None:
    ours, library = byte_pairs
    for text in [*texts(0, 3_000), "ab" * 5_000, "\n" * 500, " " * 500 + "x", "12" * 400]:
        assert list(ours.tokens(text)) == library.encode(text).ids, repr(text)


@settings(max_examples=500, deadline=None)
@given(text=st.text() | st.lists(st.sampled_from(["'s", " ", "  ", "\n", "don't", "<|im_end|>",
    "<plain>", "def ", "12", "é", "\u3000", "'LL", "\x85", "\x1c"])).map("".join))  # fmt: skip
@example(text="")
def test_any_text_has_the_librarys_byte_pairs(
    byte_pairs: tuple[Tokenizer, Library], text: str
) -> None:
    ours, library = byte_pairs
    library.encode_special_tokens = False
    assert list(ours.tokens(text)) == library.encode(text).ids
    library.encode_special_tokens = True
    assert list(ours.tokens(text, names_special=False)) == library.encode(text).ids
    library.encode_special_tokens = False


def test_whole_words_may_come_before_pairs(tmp_path: Path) -> None:
    library = trained(1_000)
    file = json.loads(library.to_str())
    # A word that no merges lead to is a token by itself only where the file says so.
    file["model"]["vocab"]["zebra"] = 5_000
    for ignores in (False, True):
        file["model"]["ignore_merges"] = ignores
        path = tmp_path / f"{ignores}.json"
        path.write_text(json.dumps(file))
        ours, library = Tokenizer.read(path), Library.from_file(str(path))
        for text in ("zebra", "zebras", "a zebra"):
            assert list(ours.tokens(text)) == library.encode(text).ids
        assert (list(ours.tokens("zebra")) == [5_000]) is ignores


def test_a_byte_without_a_token_is_left_out(tmp_path: Path) -> None:
    file = json.loads(trained(1_000).to_str())
    del file["model"]["vocab"]["þ"]  # stands for 0xFE; in no merge, since no text has it
    del file["model"]["vocab"]["ð"]  # stands for 0xF0, with which emoji begin
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file))
    ours, library = Tokenizer.read(path), Library.from_file(str(path))
    assert list(ours.tokens("a 😀 b")) == library.encode("a 😀 b").ids


def test_older_files_write_pairs_with_a_space(tmp_path: Path) -> None:
    file = json.loads(trained(1_000).to_str())
    file["model"]["merges"] = [" ".join(pair) for pair in file["model"]["merges"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file))
    ours, library = Tokenizer.read(path), Library.from_file(str(path))
    text = "The yield statement of a generator"
    assert list(ours.tokens(text)) == library.encode(text).ids


def bpe(**changes: Any) -> dict[str, Any]:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    pre = {"type": "ByteLevel", "add_prefix_space": False}
    return {"model": {**model, **changes}, "pre_tokenizer": pre}


# --- files that are refused --------------------------------------------------------------------


def _token(**changes: Any) -> dict[str, Any]:
    return {**file_of()["added_tokens"][4], **changes}


def _model(**changes: Any) -> dict[str, Any]:
    return {**file_of()["model"], **changes}


def _template(single: list[Any]) -> dict[str, Any]:
    return {**file_of()["post_processor"], "single": single}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"\xff\xfe", "files.tokenizer"),
        (b"[" * 100_000, "files.tokenizer"),
        (file_of(model=_model(type="Unigram")), "$.model"),
        (file_of(model=_model(vocab={"a": "b"})), "$.model.vocab"),
        (file_of(model=_model() | {"unk_token": "none"}), "model.unk_token"),
        (file_of(model=_model(dropout=0.1)), "dropout"),
        (file_of(model=_model(vocab={"a": -1})), "$.model.vocab"),
        (file_of(model=_model(vocab={"a": 1 << 63})), "$.model.vocab"),
        (file_of(pre_tokenizer={"type": "Metaspace"}), "$.pre_tokenizer"),
        (file_of(normalizer={"type": "Lowercase"}), "$.normalizer"),
        (file_of(added_tokens=[_token(lstrip=True)]), "'[MASK]' is lstrip"),
        (file_of(added_tokens=[_token(normalized=True)]), "'[MASK]' is normalized"),
        (file_of(post_processor=_template([])), "0 times"),
        (
            file_of(
                post_processor=_template(
                    [{"SpecialToken": {"id": "[X]"}}, {"Sequence": {"id": "A"}}]
                )
            ),
            "['[X]'] are missing",
        ),
        (bpe(merges=[["a", "c"]]), "model.merges[0]: 'ac'"),
        (bpe(merges=[["b", "a"]]), "model.merges[0]: 'ba'"),
        (bpe(byte_fallback=True), "byte_fallback"),
        (bpe(dropout=0.5), "$.model.dropout"),
        (bpe() | {"normalizer": {"type": "BertNormalizer"}}, "normalizer"),
        (bpe() | {"pre_tokenizer": {"type": "ByteLevel"}}, "prefix space"),
        (bpe() | {"pre_tokenizer": {"type": "BertPreTokenizer"}}, "not done for a BPE"),
        (bpe() | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}}, "[] is not done"),
    ],
)
def test_a_file_that_asks_for_more_is_refused(
    tmp_path: Path, content: bytes | dict[str, Any], says: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(PackageRefused) as refused:
        Tokenizer.read(path)
    assert refused.value.reason is PackageFault.BAD_SPEC
    assert says in refused.value.detail


def test_a_file_without_a_normalizer_keeps_capitals(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file_of(normalizer=None, post_processor=None)))
    ours, library = Tokenizer.read(path), Library.from_file(str(path))
    for text in ("The car.", "the\u3000car\x00", "a中国", "é"):
        assert ours.encode(text, UNBOUNDED).ids == library.encode(text).ids
