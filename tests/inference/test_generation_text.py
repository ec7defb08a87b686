"""The pure halves of text generation: choosing tokens, and making text of them."""

import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.vehicle.inference.generation.detokenizer import TextStream, read_token_bytes
from edge_runtime.vehicle.inference.generation.sampler import Sampling, choose
from edge_runtime.vehicle.inference.tasks.base import ItemFailure
from edge_runtime.vehicle.inference.tokenizing.byte_pairs import byte_characters

# --- text --------------------------------------------------------------------------------------

EMOJI = "🚗"
PIECES = st.lists(st.binary(max_size=4), max_size=40)


def stream(pieces: list[bytes], stops: tuple[str, ...] = ()) -> TextStream:
    return TextStream(pieces, stops)


def told(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[str], str]:
    text = stream(pieces, stops)
    return [text.push(number) for number in range(len(pieces))], text.finish()


def test_a_character_comes_when_its_last_byte_does() -> None:
    first, second, third, fourth = (bytes([byte]) for byte in EMOJI.encode())
    assert told([b"a", first, second, third, fourth, b"b"]) == (["a", "", "", "", EMOJI, "b"], "")


def test_a_character_that_is_never_finished_is_replaced() -> None:
    assert told([b"a", EMOJI.encode()[:3]]) == (["a", ""], "�")
    assert told([EMOJI.encode()[:2], b"x"]) == (["", "�x"], "")


def test_what_may_become_a_stop_string_waits() -> None:
    pieces = [b"one", b" EN", b"D", b" more"]
    assert told(pieces, ("END",)) == (["one", " ", "", ""], "")
    assert told(pieces, ("ENDS",)) == (["one", " ", "", "END more"], "")
    assert told([b"one E", b"N"], ("END",)) == (["one ", ""], "EN")


def test_the_first_of_several_stop_strings_counts() -> None:
    text = stream([b"abcdef"], ("de", "bc"))
    assert text.push(0) == "a"
    assert text.is_stopped
    assert text.finish() == ""


def test_a_stop_string_cut_through_its_characters_is_met() -> None:
    stop = f"{EMOJI}!"
    data = f"go {stop} on".encode()
    pieces = [data[place : place + 1] for place in range(len(data))]
    sure, rest = told(pieces, (stop,))
    assert "".join(sure) + rest == "go "


@given(pieces=PIECES, stops=st.lists(st.text("ab€", min_size=1, max_size=3), max_size=3))
def test_pieces_make_the_text_up_to_the_stop(pieces: list[bytes], stops: list[str]) -> None:
    sure, rest = told(pieces, tuple(stops))
    whole = b"".join(pieces).decode(errors="replace")
    text = "".join(sure) + rest
    met = [place for stop in stops if (place := whole.find(stop)) >= 0]
    if not met:
        assert text == whole
    else:
        assert whole.startswith(text)
        assert not any(stop in text for stop in stops)


@given(
    pieces=PIECES,
    stops=st.lists(st.text("ab€", min_size=1, max_size=3), max_size=2),
    cut=st.integers(0, 40),
)
def test_another_car_goes_on_with_the_same_text(
    pieces: list[bytes], stops: list[str], cut: int
) -> None:
    whole, rest = told(pieces, tuple(stops))
    cut = min(cut, len(pieces))
    elsewhere = stream(pieces, tuple(stops))
    for number in range(cut):
        elsewhere.push(number)
    assert [elsewhere.push(number) for number in range(cut, len(pieces))] == whole[cut:]
    assert elsewhere.finish() == rest


def test_bytes_of_tokens_are_read_from_a_tokenizer() -> None:
    alphabet = byte_characters()
    vocabulary = {alphabet[0xF0] + alphabet[0x9F]: 0, alphabet[32] + "a": 1, "b": 2}
    added = [
        {"id": 3, "content": "<end>", "special": True},
        {"id": 4, "content": "ü", "special": False},
    ]
    file = json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}).encode()
    assert read_token_bytes(file) == [b"\xf0\x9f", b" a", b"b", b"", "ü".encode()]


@pytest.mark.parametrize("data", [b"", b"[]", b'{"model": {"vocab": {"a": -1}}}', b"\xff"])
def test_what_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        read_token_bytes(data)


# --- choosing ----------------------------------------------------------------------------------

VOCABULARY = 2_000


def logits(seed: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    return (np.random.default_rng(seed).standard_normal(VOCABULARY) * 3).astype(np.float32)


def test_greedy_takes_the_best_and_says_by_how_much() -> None:
    assert choose(np.array([0.0, 2.5, 1.0], np.float32), Sampling(), 0) == (1, 1.5)
    assert choose(np.array([1.0, 1.0], np.float32), Sampling(), 0) == (0, 0.0)
    assert choose(np.array([1.0], np.float32), Sampling(), 0) == (0, math.inf)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_gives_no_numbers_is_told_of(bad: float, temperature: float) -> None:
    broken = np.array([0.0, bad, 1.0], np.float32)
    with pytest.raises(ItemFailure, match="best logit is"):
        choose(broken, Sampling(temperature=temperature, top_p=0.5), 0)


def test_a_token_at_minus_infinity_is_never_chosen() -> None:
    row = np.array([-np.inf, 0.0, -np.inf, 0.0], np.float32)
    for place in range(50):
        assert choose(row, Sampling(temperature=2.0, top_p=0.99), place).token in {1, 3}
        assert choose(row, Sampling(temperature=2.0), place).token in {1, 3}
    assert choose(np.array([-np.inf, 0.0], np.float32), Sampling(), 0) == (1, math.inf)


@given(st.integers(0, 2**62), st.integers(0, 4_000), st.integers(0, 5))
def test_a_draw_depends_on_seed_and_position_only(seed: int, position: int, row: int) -> None:
    sampling = Sampling(temperature=1.3, top_p=0.9, seed=seed)
    assert choose(logits(row), sampling, position) == choose(logits(row), sampling, position)


def test_draws_follow_the_probabilities() -> None:
    row = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    drawn = [choose(row, Sampling(temperature=1.0, seed=3), place).token for place in range(4_000)]
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


def test_top_k_and_top_p_leave_the_likeliest() -> None:
    row = np.log(np.array([0.1, 0.5, 0.25, 0.15], np.float32))

    def drawn(**how: float) -> set[int]:
        sampling = msgspec.structs.replace(Sampling(temperature=1.0, seed=9), **how)
        return {choose(row, sampling, place).token for place in range(400)}

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {1, 2}
    assert drawn(top_p=0.5) == {1}
    assert drawn(top_p=0.7) == {1, 2}
    assert drawn(top_p=1e-9) == {1}
    assert drawn(top_k=3, top_p=0.8) == {1, 2}


@given(st.integers(0, 50), st.floats(0.05, 0.999))
def test_top_p_over_the_whole_vocabulary_is_that_of_a_sorted_sum(seed: int, top_p: float) -> None:
    flat = logits(seed) / 30  # so that hundreds of tokens are needed
    order = np.argsort(-flat, kind="stable")
    sums = np.cumsum(np.exp(flat[order].astype(np.float64) - flat.max()))
    allowed = set(order[: int((sums >= top_p * sums[-1]).argmax()) + 1].tolist())
    sampling = Sampling(temperature=1.0, top_p=top_p, seed=seed)
    assert all(choose(flat, sampling, place).token in allowed for place in range(5))
