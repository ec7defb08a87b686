"""Topics: what is built parses back, and nothing else does."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from edge_runtime.contract.errors import ConfigError, Rejected, RejectionReason
from edge_runtime.contract.topics import ID_PATTERN, Down, Topics, Up, require_id, shard_of

ids = st.from_regex(ID_PATTERN, fullmatch=True)
TOPICS = Topics("er")


@given(vehicle=ids, kind=st.sampled_from(Up), namespace=ids)
def test_a_cars_topic_parses_back(vehicle: str, kind: Up, namespace: str) -> None:
    topics = Topics(namespace)
    assert topics.parse_up(topics.up(vehicle, kind)) == (vehicle, kind)


@given(vehicle=ids, other=ids, job=ids, up=st.sampled_from(Up), down=st.sampled_from(Down))
def test_every_topic_keeps_to_the_rules(
    vehicle: str, other: str, job: str, up: Up, down: Down
) -> None:
    for topic in (
        TOPICS.up(vehicle, up),
        TOPICS.down(vehicle, down),
        TOPICS.canary(vehicle),
        TOPICS.host(other),
        TOPICS.job_results(other, job),
        TOPICS.job_status(other, job),
        TOPICS.tenant_request(other),
        TOPICS.fleet(other),
    ):
        assert topic.startswith("er/1/")
        assert topic.count("/") <= 7
        assert re.fullmatch(r"[A-Za-z0-9_/-]+", topic)


@given(vehicle=ids, other=ids, up=st.sampled_from(Up), down=st.sampled_from(Down))
def test_filters_take_their_own_and_only_their_own(
    vehicle: str, other: str, up: Up, down: Down
) -> None:
    assert topic_matches_sub(TOPICS.up_all(), TOPICS.up(vehicle, up))
    assert topic_matches_sub(TOPICS.up_all(shard_of(vehicle)), TOPICS.up(vehicle, up))
    assert not topic_matches_sub(TOPICS.up_all(), TOPICS.down(vehicle, down))
    assert topic_matches_sub(TOPICS.down_all(vehicle), TOPICS.down(vehicle, down))
    assert not topic_matches_sub(TOPICS.down_all(vehicle), TOPICS.up(vehicle, up))
    seen = topic_matches_sub(TOPICS.down_all(vehicle), TOPICS.down(other, down))
    assert seen == (other == vehicle)
    assert topic_matches_sub(TOPICS.host_all(), TOPICS.host(other))
    assert topic_matches_sub(TOPICS.tenant_all(vehicle), TOPICS.job_results(vehicle, other))
    assert topic_matches_sub(TOPICS.tenant_all(vehicle), TOPICS.job_status(vehicle, other))
    assert topic_matches_sub(TOPICS.tenant_request(), TOPICS.tenant_request(vehicle))
    assert not topic_matches_sub(TOPICS.tenant_all(vehicle), TOPICS.tenant_request(vehicle))


@given(vehicle=ids, kind=st.sampled_from(Up), shard=st.from_regex(r"[0-9a-f]{2}", fullmatch=True))
def test_a_foreign_shard_is_a_counted_rejection(vehicle: str, kind: Up, shard: str) -> None:
    topic = f"er/1/{shard}/v/{vehicle}/up/{kind.value}"
    if shard == shard_of(vehicle):
        assert TOPICS.parse_up(topic) == (vehicle, kind)
        return
    with pytest.raises(Rejected) as caught:
        TOPICS.parse_up(topic)
    assert caught.value.reason is RejectionReason.WRONG_SHARD


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "er",
        "er/1/00/v/car/up",
        "er/1/00/v/car/up/state/more",
        "er/2/00/v/car/up/state",
        "xx/1/00/v/car/up/state",
        "er/1/00/w/car/up/state",
        "er/1/00/v/car/dn/state",
        "er/1/00/v/car/up/work",
        "er/1/00/v/car/up/",
        "er/1/00/v//up/state",
        "er/1/00/v/c r/up/state",
        "er/1/00/v/car\n/up/state",
        "er/1/00/v/+/up/state",
        "er/1/00/v/#/up/state",
        f"er/1/00/v/{'c' * 65}/up/state",
        TOPICS.canary("car"),
        TOPICS.down("car", Down.WORK),
        "er/1/00/v/" + "/" * 60_000,
    ],
)
def test_other_topics_are_counted_rejections(topic: str) -> None:
    with pytest.raises(Rejected) as caught:
        TOPICS.parse_up(topic)
    assert caught.value.reason is RejectionReason.UNKNOWN_TOPIC
    assert len(caught.value.detail) <= 200


@given(topic=st.text(max_size=80))
def test_any_text_is_parsed_or_rejected(topic: str) -> None:
    with pytest.raises(Rejected):
        TOPICS.parse_up(topic)


@given(vehicle=st.text(max_size=70))
def test_a_shard_is_two_hex_digits_of_any_text(vehicle: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{2}", shard_of(vehicle))


def test_shards_are_those_of_crc_32() -> None:
    # The check value of CRC-32: other languages must come to the same shard.
    assert shard_of("123456789") == "26"


@pytest.mark.parametrize("value", ["", "a b", "a/b", "a.b", "+", "#", "é", "a\n", "x" * 65])
def test_what_is_no_id_is_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError, match="namespace"):
        Topics(value)
    with pytest.raises(ConfigError, match="vehicle"):
        require_id("vehicle", value)


@given(value=ids)
def test_an_id_is_returned_unchanged(value: str) -> None:
    assert require_id("vehicle", value) == value
