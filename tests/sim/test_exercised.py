"""Every message on the wire, and every command of both cores, is exercised by the simulation.

Whoever adds one and cannot make it happen in a world says so here, with the reason.
"""

import typing
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from edge_runtime.contract import limits, messages
from edge_runtime.dispatcher.core import commands as dispatcher_commands
from edge_runtime.dispatcher.service import DispatcherService
from edge_runtime.sim.campaign import Scenario, silence
from edge_runtime.sim.ledger import Ledger
from edge_runtime.sim.runner import make_ground
from edge_runtime.vehicle.agent import VehicleAgent
from edge_runtime.vehicle.core import commands as vehicle_commands

SEEDS = 60
SEEDS_OF_PEOPLE = 20

SEEDS_OF_CROWDS = 5

NOT_YET: dict[str, str] = {}
"""Tags of messages, and names of commands, that no world has; and why."""


def tags_of_the_wire() -> set[str]:
    found = set()
    for value in vars(messages).values():
        if isinstance(value, type) and issubclass(value, msgspec.Struct):
            tag = value.__struct_config__.tag
            if isinstance(tag, str):
                found.add(tag)
    found.discard("_Public")  # a base, which nobody sends
    return found


def names_in(union: Any) -> set[str]:
    return {kind.__name__ for kind in typing.get_args(union)}


def strings_in(value: object) -> set[str]:
    match value:
        case str():
            return {value}
        case list() | tuple():
            return set().union(*map(strings_in, value)) if value else set()
        case dict():
            return strings_in([*value.keys(), *value.values()])
        case bytes() if value:
            try:
                return strings_in(msgspec.msgpack.decode(value))
            except (msgspec.DecodeError, UnicodeDecodeError):
                return set()
        case _:
            return set()


@pytest.fixture(scope="module")
def exercised() -> dict[str, set[str]]:
    seen: dict[str, set[str]] = {"tags": set(), "commands": set()}
    patch = pytest.MonkeyPatch()
    obey: Callable[..., Any] = VehicleAgent._obey
    carry_out: Callable[..., Any] = DispatcherService._carry_out
    publish: Callable[..., Any] = Ledger.published_message

    def obeyed(self: VehicleAgent, command: Any) -> None:
        seen["commands"].add(type(command).__name__)
        if isinstance(command, vehicle_commands.Persist):
            seen["commands"].update(type(write).__name__ for write in command.writes)
        obey(self, command)

    async def carried_out(self: DispatcherService, commands: Sequence[Any]) -> None:
        seen["commands"].update(type(command).__name__ for command in commands)
        await carry_out(self, commands)

    def published(self: Ledger, sender: str, message: Any) -> None:
        seen["tags"] |= strings_in(message.payload)
        publish(self, sender, message)

    patch.setattr(VehicleAgent, "_obey", obeyed)
    patch.setattr(DispatcherService, "_carry_out", carried_out)
    patch.setattr(Ledger, "published_message", published)
    silence()
    with make_ground() as ground:
        for seed in range(SEEDS):
            Scenario().run(seed, ground)
        for seed in range(SEEDS_OF_PEOPLE):
            Scenario(nemeses=("engines", "operators"), faults_s=180).run(seed, ground)
            Scenario(nemeses=("bulky", "full_disks")).run(seed, ground)
        # Ten thousand open jobs would fill a window of its true size.
        patch.setattr(limits, "WINDOW_JOBS_MAX", 2)
        patch.setattr(limits, "TENANT_WINDOW_JOBS_MIN", 2)
        for seed in range(SEEDS_OF_CROWDS):
            crowd = Scenario(nemeses=("dispatcher_kills", "neighbours"), jobs=20).run(seed, ground)
            assert crowd.violations == ()
    patch.undo()
    return seen


@pytest.mark.timeout(300)
def test_every_message_is_exercised(exercised: dict[str, set[str]]) -> None:
    missing = tags_of_the_wire() - exercised["tags"]
    assert missing == NOT_YET.keys() & tags_of_the_wire(), missing


def test_every_command_is_exercised(exercised: dict[str, set[str]]) -> None:
    known = names_in(vehicle_commands.Command) | names_in(vehicle_commands.Write)
    known |= names_in(dispatcher_commands.Command)
    missing = known - exercised["commands"]
    assert missing == NOT_YET.keys() & known, missing
