"""The dispatcher's decisions, pure: no clock, random source, file, socket or asyncio.

`DispatcherCore.handle(event, now)` is the only mutator; it returns commands that the shell
carries out in this order: commit every store command of a tick in one transaction, then
publish. Nothing leaves before its commit.
"""
