"""Recorded days: what a car's signals were, row by row, from CSV or Parquet.

One column is `utc_s`, seconds UTC; every other one is a signal's name. A row holds from its time
until that of the next; an empty cell says that there was no reading.

Invariants
- Times only grow, and there are at least two rows.
- A wrong file is refused whole, with its name, line and column. A value that no signal can have (a
  pack at 900 Celsius) is no fault of the file: it is what was recorded, and the car judges it.

Nothing here reads a clock: a policy can be tried on a day as fast as it can be computed. In real
time, `replay` tells a trace to a car.
"""

import csv
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.signals import SIGNALS, Value, Values

TIME_COLUMN: Final = "utc_s"
_BY_NAME: Final = {signal.name: signal for signal in SIGNALS}
_FLAGS: Final = {"true": True, "false": False, "1": True, "0": False}
_NS_PER_S: Final = 1_000_000_000
_LINE_OF_FIRST_ROW: Final = 2


@dataclass(frozen=True, slots=True)
class Trace:
    """`rows[i]` are the values of `names` from `times_ns[i]` on, counted from `start_utc_s`."""

    names: tuple[str, ...]
    start_utc_s: float
    times_ns: tuple[int, ...]
    rows: tuple[tuple[Value, ...], ...]

    @property
    def duration_ns(self) -> int:
        """From the first row to the end of the last, which lasts as long as the one before."""
        return 2 * self.times_ns[-1] - self.times_ns[-2]

    def moments(self, period_ns: int | None = None) -> Iterator[tuple[int, Values]]:
        """Time since the start and every value: of each row, and with `period_ns` in between.

        With a period every moment is at most that long after the one before, as readings of a
        living source are.
        """
        ends_ns = (*self.times_ns[1:], self.duration_ns)
        for starts_ns, end_ns, row in zip(self.times_ns, ends_ns, self.rows, strict=True):
            step_ns = period_ns or end_ns - starts_ns
            for time_ns in range(starts_ns, end_ns, step_ns):
                yield time_ns, dict(zip(self.names, row, strict=True))

    def at(self, time_ns: int) -> Values:
        """The values `time_ns` after the start; those of the first row before it."""
        place = max(0, bisect_right(self.times_ns, time_ns) - 1)
        return dict(zip(self.names, self.rows[place], strict=True))

    def next_ns(self, time_ns: int) -> int:
        """When the row after `time_ns` begins; the end of the trace after the last."""
        place = bisect_right(self.times_ns, time_ns)
        return self.times_ns[place] if place < len(self.times_ns) else self.duration_ns


def read_trace(path: Path) -> Trace:
    """Read `path`, a `.csv` or (with the extra `parquet`) a `.parquet` file.

    Raises `ConfigError` that names file, line and column.
    """
    try:
        size = path.stat().st_size
        if size > limits.TRACE_MAX_BYTES:
            raise ConfigError(f"{path}: {size} bytes, at most {limits.TRACE_MAX_BYTES}")
        match path.suffix.lower():
            case ".csv":
                with path.open(encoding="utf-8-sig", newline="") as file:
                    return _trace(path, *_csv(path, _lines(path, file)))
            case ".parquet":
                return _trace(path, *_parquet(path))
            case _:
                raise ConfigError(f"{path}: a trace is a .csv or a .parquet file")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None


def _lines(path: Path, file: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if len(line) > limits.TRACE_LINE_MAX_BYTES:
            raise ConfigError(
                f"{path}: line {number}: over {limits.TRACE_LINE_MAX_BYTES} characters"
            )
        yield line


def _csv(path: Path, lines: Iterator[str]) -> tuple[list[str], Iterator[tuple[int, Sequence[Any]]]]:
    """The header, and each row with its line's number."""
    reader = csv.reader(lines, strict=True)

    def rows() -> Iterator[tuple[int, Sequence[Any]]]:
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise ConfigError(f"{path}: line {reader.line_num}: {error}") from None
            if row is None:
                return
            if row:
                yield reader.line_num, row

    numbered = rows()
    _, header = next(numbered, (1, ()))
    return [str(name).strip() for name in header], numbered


def _parquet(path: Path) -> tuple[list[str], Iterator[tuple[int, Sequence[Any]]]]:
    """The columns, and each row with the number of the line that it would be in a CSV file."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra that a car with CSV traces does not have
        from pyarrow import parquet  # noqa: PLC0415 - as above
    except ImportError:
        raise ConfigError(
            f"{path}: Parquet needs the extra: pip install 'edge-runtime[parquet]'"
        ) from None
    try:
        file = parquet.ParquetFile(path)
        names = list(file.schema_arrow.names)
        rows = (
            tuple(record.values())
            for batch in file.iter_batches(limits.SENSOR_LINE_MAX_BYTES)
            for record in batch.to_pylist()
        )
        return names, enumerate(_guarded(path, rows, pa.ArrowException), _LINE_OF_FIRST_ROW)
    except pa.ArrowException as error:
        raise ConfigError(f"{path}: {error}") from None


def _guarded(
    path: Path, rows: Iterator[Sequence[Any]], fault: type[Exception]
) -> Iterator[Sequence[Any]]:
    try:
        yield from rows
    except fault as error:
        raise ConfigError(f"{path}: {error}") from None


def _trace(path: Path, header: list[str], numbered: Iterator[tuple[int, Sequence[Any]]]) -> Trace:
    for name in header:
        if name != TIME_COLUMN and name not in _BY_NAME:
            raise ConfigError(f"{path}: line 1: {name[:64]!r} is no signal, and not {TIME_COLUMN}")
    if header.count(TIME_COLUMN) != 1 or len(set(header)) != len(header):
        raise ConfigError(f"{path}: line 1: {TIME_COLUMN} and each signal must be there once")
    time_place = header.index(TIME_COLUMN)
    names = tuple(name for name in header if name != TIME_COLUMN)
    times_s: list[float] = []
    rows: list[tuple[Value, ...]] = []
    for line, cells in numbered:
        if len(rows) >= limits.TRACE_ROWS_MAX:
            raise ConfigError(f"{path}: over {limits.TRACE_ROWS_MAX} rows")
        if len(cells) != len(header):
            raise ConfigError(f"{path}: line {line}: {len(cells)} cells, not {len(header)}")
        place = f"{path}: line {line}"
        time_s = _time(cells[time_place], place)
        if times_s and time_s <= times_s[-1]:
            raise ConfigError(f"{place}, {TIME_COLUMN}: {time_s:g} is not after {times_s[-1]:g}")
        times_s.append(time_s)
        rows.append(
            tuple(
                _value(name, cell, place)
                for name, cell in zip(header, cells, strict=True)
                if name != TIME_COLUMN
            )
        )
    return _checked(path, names, times_s, rows)


def _checked(
    path: Path, names: tuple[str, ...], times_s: list[float], rows: list[tuple[Value, ...]]
) -> Trace:
    if len(rows) < 2:  # noqa: PLR2004 - a row and the time of the next
        raise ConfigError(f"{path}: {len(rows)} rows, at least 2")
    times_ns = tuple(round((time_s - times_s[0]) * _NS_PER_S) for time_s in times_s)
    if any(later <= earlier for earlier, later in pairwise(times_ns)):
        raise ConfigError(f"{path}: {TIME_COLUMN}: two rows are less than a nanosecond apart")
    return Trace(names, times_s[0], times_ns, tuple(rows))


def _time(cell: Any, place: str) -> float:
    if isinstance(cell, datetime):
        return (cell if cell.tzinfo else cell.replace(tzinfo=UTC)).timestamp()
    number = _number(cell)
    if number is None or not 0 <= number < 2**40:
        raise ConfigError(f"{place}, {TIME_COLUMN}: {_shown(cell)} is no time in seconds UTC")
    return float(number)


def _value(name: str, cell: Any, place: str) -> Value:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    if _BY_NAME[name].datatype == "boolean":
        flag = cell if isinstance(cell, bool) else _FLAGS.get(str(cell).strip().lower())
        if flag is None:
            raise ConfigError(f"{place}, {name}: {_shown(cell)} is not true or false")
        return flag
    number = _number(cell)
    if number is None:
        raise ConfigError(f"{place}, {name}: {_shown(cell)} is no number")
    return number


def _number(cell: Any) -> float | int | None:
    """A whole number as int, so that a level is one; None for what is no number."""
    if isinstance(cell, bool):
        return None
    if isinstance(cell, int | float):
        return cell
    text = str(cell).strip()
    if text.isascii() and text.lstrip("+-").isdecimal():
        return int(text)
    try:
        return float(text)
    except ValueError:
        return None


def _shown(cell: Any) -> str:
    return repr(cell)[:64]
