"""The reference page of the policy is what the structs say, and says everything."""

from pathlib import Path

from edge_runtime.vehicle.policy_reference import policy_reference

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "policy.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == policy_reference(), (
        "run: edge-runtime owner policy --reference > docs/reference/policy.md"
    )


def test_every_key_has_a_meaning() -> None:
    rows = [line for line in policy_reference().splitlines() if line.startswith("| `")]
    keys = [row for row in rows if row.count("|") == 5]
    assert len(keys) > 40
    assert all(row.rstrip(" |").rpartition("|")[2].strip() for row in keys)
