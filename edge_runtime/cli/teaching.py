"""What `--help` of the signing commands teaches.

It is kept apart from them: a list of commands shows the first line of each, and must not load what
they need.
"""

from typing import Final

INIT_REPOSITORY: Final = """\
Make a repository of signed packages, and its keys.

Four roles sign (The Update Framework): root says whose keys count, targets who may publish, \
snapshot and timestamp what is current. Keep the keys of root and targets offline; give those of \
snapshot and timestamp to the dispatcher (edge-runtime dispatcher --repository-keys).

Every car needs the file that is printed, by a way that you trust: vehicle --models-root FILE."""

ADD_PUBLISHER: Final = """\
Let somebody publish. Needs the targets key.

With --public-key the publisher keeps the private half, and publishes with it as NAME.ABCDEF12.pem \
in a folder of keys, where ABCDEF12 begins the key's id."""

PUBLISH: Final = """\
Sign a package for cars to trust. Needs the publisher's key.

Cars find it when snapshot and timestamp lead to it: at once where their keys are in --keys, else \
as soon as the dispatcher that has them looks (within a minute). An interrupted publish changes \
nothing that cars see; run it again."""

REVOKE: Final = """\
Take packages or a publisher back.

One package needs the publisher's key, a whole publisher the targets key alone."""

ROTATE_KEY: Final = """\
Give a role a new key. Needs the key above the role.

That is root for root, targets, snapshot and timestamp, and targets for a publisher. The old key \
signs a last time where it is at hand, so that no car sees a state that does not verify; it may be \
lost or stolen. Cars follow by themselves. Delete the old file afterwards, and bring new snapshot \
and timestamp keys to the dispatcher."""

RENEW: Final = """\
Sign a role again before it expires.

Root, targets and publishers are good for a year; the dispatcher renews the others itself."""

SIGN: Final = """\
Sign with the online keys what waits.

A dispatcher with --repository-keys does this every minute; this is for a repository that another \
server serves."""

PUBLISHED: Final = """\
List the packages that cars find in a repository."""
