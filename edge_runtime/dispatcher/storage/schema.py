"""The SQLite schema and the way from each version to the next.

Keys: an item's row is `job.no << 20 | index` (a job has fewer than 2**20 items), so that a job's
items lie together and in order. A result's row is its position in the feed of all results.
"""

import sqlite3

from edge_runtime.dispatcher.storage.port import StoreDamaged

APPLICATION_ID = 0x65647265  # "edre"
ITEM_BITS = 20

_VERSION_1 = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE job(
  no INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  tenant TEXT NOT NULL,
  key TEXT,
  body_hash BLOB NOT NULL,
  spec BLOB NOT NULL,
  state TEXT NOT NULL,
  items INTEGER NOT NULL,
  done INTEGER NOT NULL DEFAULT 0,
  failed INTEGER NOT NULL DEFAULT 0,
  cursor INTEGER NOT NULL DEFAULT 0,
  published INTEGER NOT NULL DEFAULT 0,
  deadline_ms INTEGER NOT NULL,
  retention_ms INTEGER NOT NULL,
  finished_ms INTEGER
);
CREATE UNIQUE INDEX job_by_key ON job(tenant, key) WHERE key IS NOT NULL;
CREATE INDEX job_open ON job(tenant, no) WHERE finished_ms IS NULL;
CREATE INDEX job_unpublished ON job(no) WHERE published < cursor;
CREATE TABLE item(
  key INTEGER PRIMARY KEY,
  media_type TEXT NOT NULL,
  data BLOB NOT NULL
);
CREATE TABLE result(
  position INTEGER PRIMARY KEY,
  item INTEGER NOT NULL UNIQUE,
  job_no INTEGER NOT NULL,
  tenant TEXT NOT NULL,
  cursor INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  vehicle TEXT NOT NULL,
  output BLOB,
  error BLOB,
  CHECK ((output IS NULL) <> (error IS NULL))
);
CREATE UNIQUE INDEX result_by_cursor ON result(job_no, cursor);
CREATE INDEX result_by_tenant ON result(tenant);
CREATE INDEX result_failed ON result(job_no) WHERE error IS NOT NULL;
CREATE TABLE attempt(
  no INTEGER PRIMARY KEY,
  unit INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  counter INTEGER NOT NULL,
  job_no INTEGER NOT NULL,
  vehicle TEXT NOT NULL,
  issued BLOB NOT NULL,
  alone INTEGER NOT NULL,
  offered_ms INTEGER NOT NULL,
  taken_ms INTEGER,
  ended_ms INTEGER,
  ending TEXT,
  items_done INTEGER NOT NULL DEFAULT 0,
  busy_ms REAL NOT NULL DEFAULT 0,
  energy_j REAL NOT NULL DEFAULT 0,
  outcome TEXT,
  release_reason TEXT,
  hold TEXT,
  stop_tier TEXT,
  stop_latency_ms REAL
);
CREATE UNIQUE INDEX attempt_by_fence ON attempt(unit, epoch, counter);
CREATE INDEX attempt_open ON attempt(job_no) WHERE ended_ms IS NULL;
CREATE INDEX attempt_by_job ON attempt(job_no);
CREATE TABLE strike(job_no INTEGER NOT NULL, item_index INTEGER NOT NULL, vehicle TEXT NOT NULL);
CREATE INDEX strike_by_job ON strike(job_no);
CREATE TABLE vehicle(id TEXT PRIMARY KEY, birth BLOB NOT NULL) WITHOUT ROWID;
"""

_VERSION_2 = """
CREATE TABLE quarantine(vehicle TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE INDEX job_finished ON job(finished_ms) WHERE finished_ms IS NOT NULL;
"""

_VERSION_3 = """
CREATE TABLE forgotten(job TEXT PRIMARY KEY, tenant TEXT NOT NULL) WITHOUT ROWID;
"""

# What each tenant has open is kept by triggers: it holds after any crash, and asking costs nothing.
_VERSION_4 = """
CREATE TABLE record(
  kind TEXT NOT NULL,
  id TEXT NOT NULL,
  tenant TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  is_open INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY(kind, id)
);
CREATE INDEX record_by_tenant ON record(kind, tenant, at_ms, id);
CREATE INDEX record_open ON record(kind, id) WHERE is_open;
ALTER TABLE job ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
CREATE TABLE usage(
  tenant TEXT PRIMARY KEY,
  jobs INTEGER NOT NULL,
  items INTEGER NOT NULL,
  bytes INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO usage SELECT tenant, count(*), sum(items - done - failed), 0
  FROM job WHERE finished_ms IS NULL GROUP BY tenant;
CREATE TRIGGER usage_of_new_job AFTER INSERT ON job WHEN new.finished_ms IS NULL BEGIN
  INSERT INTO usage VALUES (new.tenant, 1, new.items - new.done - new.failed, new.bytes)
    ON CONFLICT(tenant) DO UPDATE SET jobs = jobs + 1,
      items = items + excluded.items, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER usage_of_job AFTER UPDATE OF done, failed, finished_ms ON job BEGIN
  UPDATE usage SET
    jobs = jobs + (new.finished_ms IS NULL) - (old.finished_ms IS NULL),
    items = items + (new.finished_ms IS NULL) * (new.items - new.done - new.failed)
      - (old.finished_ms IS NULL) * (old.items - old.done - old.failed),
    bytes = bytes + ((new.finished_ms IS NULL) - (old.finished_ms IS NULL)) * new.bytes
  WHERE tenant = new.tenant;
END;
"""

_VERSION_5 = """
ALTER TABLE item ADD COLUMN reference BLOB;
"""

_VERSION_6 = """
CREATE TABLE total(
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  is_interactive INTEGER NOT NULL,
  energy_method TEXT NOT NULL,
  wear_method TEXT NOT NULL,
  items INTEGER NOT NULL,
  credits REAL NOT NULL,
  energy_j REAL NOT NULL,
  wear_percent REAL NOT NULL,
  since_ms INTEGER NOT NULL,
  PRIMARY KEY(kind, name, is_interactive, energy_method, wear_method)
) WITHOUT ROWID;
"""

_VERSION_7 = """
ALTER TABLE result ADD COLUMN reference BLOB;
"""

MIGRATIONS: tuple[str, ...] = (
    _VERSION_1,
    _VERSION_2,
    _VERSION_3,
    _VERSION_4,
    _VERSION_5,
    _VERSION_6,
    _VERSION_7,
)
VERSION = len(MIGRATIONS)


def require_ours(connection: sqlite3.Connection) -> int:
    """The version of a store that this release can read; an empty file is one of version 0.

    Raises `StoreDamaged` for a file of another application or a newer version. Changes nothing.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and application != APPLICATION_ID:
        raise StoreDamaged("the file is a database of another application")
    if version > VERSION:
        raise StoreDamaged(f"the store has version {version}; this release knows {VERSION}")
    return int(version)


def migrate(connection: sqlite3.Connection, through: int = VERSION) -> tuple[int, int]:
    """Bring a store to version `through` in one transaction; (version before, after).

    Raises `StoreDamaged` for a file of another application or a newer version.
    """
    version = require_ours(connection)
    if version < through:
        steps = "".join(MIGRATIONS[version:through])
        connection.executescript(
            f"BEGIN IMMEDIATE; {steps}"
            f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={through}; COMMIT;"
        )
    return version, max(version, through)
