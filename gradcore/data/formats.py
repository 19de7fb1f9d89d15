"""Files that hold arrays or typed columns: Parquet, xlsx, JSON lines, npy and npz, known by how they begin."""

from __future__ import annotations

import datetime
import glob
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradcore._base.check import Array
from gradcore.data.cells import Numbers
from gradcore.data.delimited import Reader, Table
from gradcore.data.dialect import SAMPLE, Row
from gradcore.data.errors import SourceError
from gradcore.data.files import MOST
from gradcore.data.header import find_head

__all__: list[str] = []  # for the package only

JSON_LINES = (".jsonl", ".ndjson", ".json")
OTHERS = {
    b"\xd0\xcf\x11\xe0": "an old Excel file; save it as .xlsx or CSV",
    b"\x89HDF": "HDF5; save the columns as CSV, Parquet or npz",
    b"%PDF": "a PDF",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"BZh": "compressed with bzip2; unpack it, or use gzip",
    b"\xfd7zXZ": "compressed with xz; unpack it, or use gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it, or use gzip",
    b"Obj\x01": "Avro; save it as CSV or Parquet",
    b"SQLite format 3": "a database; save the table as CSV",
}


@dataclass
class ArrayTable:
    """A table whose columns are arrays of numbers or times, or lists of words.

    Parameters
    ----------
    where : str
        The file, for messages.
    names : tuple of str
        One for each column.
    columns : list
        An array or a list of str for each column.
    lines : ndarray
        What messages call each row.
    groups : ndarray, optional
        Number of the sequence that each row belongs to.
    note : str
        What was chosen among several.
    """

    where: str
    names: tuple[str, ...]
    columns: list[Array | list[str]]
    lines: Array
    groups: Array | None = None
    note: str = ""

    def __post_init__(self) -> None:
        self.named = any(self.names)
        self.numbers = Numbers(".", False, True)

    def sample(self) -> list[list[str]]:
        """Return the first cells of each column."""
        return [[_text(cell) for cell in column[:SAMPLE]] for column in self.columns]

    def read(self, readers: dict[int, list[Reader]]) -> Array:
        """Feed each column's cells to its readers; return the number of each row."""
        numbers = self.lines.tolist()
        for column, several in readers.items():
            for reader in several:
                reader.feed(self.columns[column], numbers)
        return self.lines


def _text(cell: Any) -> str:
    """A cell as a text table would have it."""
    if cell is None:
        return ""
    if isinstance(cell, (bool, np.bool_)):
        return str(int(cell))
    if isinstance(cell, (float, np.floating)):
        return "" if math.isnan(cell) else repr(float(cell))
    if isinstance(cell, (datetime.datetime, datetime.date)):
        return cell.isoformat(" ") if isinstance(cell, datetime.datetime) else cell.isoformat()
    if isinstance(cell, np.datetime64):
        return "" if np.isnat(cell) else str(cell.astype("M8[s]")).replace("T", " ")
    return str(cell)


def read_known(path: str, raw: bytes, target: str | int | None) -> Table | None:
    """Open what is no text, by its first bytes; None if it may be a text."""
    for start, what in OTHERS.items():
        if raw.startswith(start):
            raise SourceError(f"{path}: is {what}")
    if raw.startswith(b"\x93NUMPY"):
        return _array_table(path, _read_npy(path, raw))
    if raw.startswith(b"PAR1"):
        return _read_parquet(path)
    if raw.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _read_zip(path, raw, target)
    return None


# ---- NumPy -----------------------------------------------------------------------------------------------------------


def _read_npy(path: str, raw: bytes) -> Array:
    """Read an array whose header may lie about its size."""
    file = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        if dtype.hasobject:
            raise SourceError(f"{path}: expected numbers, got an array of Python objects")
        if math.prod(shape) * dtype.itemsize > len(raw) - file.tell():
            raise SourceError(f"{path}: the file is cut short: shape {shape} of {dtype} does not fit into it")
        file.seek(0)
        array: Array = np.load(file, allow_pickle=False)
    except SourceError:
        raise
    except Exception as error:  # the header is Python, which may be wrong in any way
        raise SourceError(f"{path}: is damaged ({error})") from None
    return array


def _array_table(path: str, array: Array, name: str = "") -> ArrayTable:
    """A table of an array (T,), (T, F) or (N, T, F), or of one with named fields."""
    if array.dtype.names:
        columns = [array[field] for field in array.dtype.names]
        return _numeric_table(path, array.dtype.names, columns)
    if array.ndim not in (1, 2, 3) or array.dtype.kind not in "fiubM":
        raise SourceError(
            f"{path}: expected numbers of shape (T,), (T, F) or (N, T, F), got shape {array.shape} of {array.dtype}"
        )
    groups = None
    if array.ndim == 3:
        groups = np.repeat(np.arange(len(array)), array.shape[1])
        array = array.reshape(-1, array.shape[2])
    if array.ndim == 1:
        return _numeric_table(path, (name,), [array])
    return _numeric_table(path, ("",) * array.shape[1], list(array.T), groups)


def _numeric_table(
    path: str, names: tuple[str, ...], columns: Sequence[Array], groups: Array | None = None
) -> ArrayTable:
    ready: list[Array | list[str]] = []
    for name, column in zip(names, columns, strict=True):
        if column.ndim != 1:
            raise SourceError(f"{path}: expected one axis for {name}, got shape {column.shape}")
        if column.dtype.kind in "fiub":
            ready.append(column.astype(np.float64))
        else:
            ready.append(column if column.dtype.kind == "M" else [_text(cell) for cell in column.tolist()])
    n = len(ready[0]) if ready else 0
    return ArrayTable(path, names, ready, np.arange(n), groups)


def _read_zip(path: str, raw: bytes, target: str | int | None) -> ArrayTable:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > MOST:
                raise SourceError(f"{path}: expected at most {MOST / 1e9:g} GB, got {size / 1e9:.3g} GB when unpacked")
            if any(member.filename == "xl/workbook.xml" for member in members):
                return _read_xlsx(path, raw)
            if not members or not all(member.filename.endswith(".npy") for member in members):
                raise SourceError(f"{path}: is a zip archive; unpack it and give the table in it")
            arrays = {m.filename.removesuffix(".npy"): _read_npy(path, archive.read(m)) for m in members}
    except SourceError:
        raise
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
        raise SourceError(f"{path}: is damaged ({error})") from None
    if isinstance(target, str) and target in arrays and arrays[target].ndim != 1:
        return _array_table(path, arrays[target])
    if len(arrays) == 1:
        ((name, array),) = arrays.items()
        return _array_table(path, array, name)
    if len({array.shape for array in arrays.values()}) == 1 and all(array.ndim == 1 for array in arrays.values()):
        return _numeric_table(path, tuple(arrays), list(arrays.values()))
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    raise SourceError(f"{path}: expected arrays (T,) of one length, got {shapes}; save the wanted one as .npy")


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def _read_parquet(path: str) -> ArrayTable:
    try:
        import duckdb
    except ImportError:
        raise SourceError(f'{path}: Parquet needs DuckDB: pip install "gradcore[data]"') from None
    name = glob.escape(str(Path(path).absolute()))
    try:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        with duckdb.connect(config=settings) as connection:
            connection.execute("SET enable_progress_bar = false")
            (rows,) = connection.execute("SELECT sum(num_rows) FROM parquet_file_metadata(?)", [name]).fetchall()[0]
            described = connection.execute("DESCRIBE SELECT * FROM read_parquet(?)", [name]).fetchall()
            if (rows or 0) * len(described) * 8 > MOST:
                raise SourceError(f"{path}: {rows} rows of {len(described)} columns are more than {MOST / 1e9:g} GB")
            found = connection.execute(
                f"SELECT {', '.join(map(_as_read, described))} FROM read_parquet(?)", [name]
            ).fetchnumpy()
    except duckdb.Error as error:
        raise SourceError(f"{path}: is damaged ({str(error).splitlines()[0]})") from None
    columns = [_filled(found[name]) for name, *_ in described]
    n = len(columns[0]) if columns else 0
    return ArrayTable(path, tuple(name for name, *_ in described), columns, np.arange(n))


NUMBER_TYPES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN", "U")


def _as_read(described: tuple[Any, ...]) -> str:
    """Each column as a double, a timestamp or text."""
    name, kind = '"' + described[0].replace('"', '""') + '"', described[1]
    if kind == "BOOLEAN":
        return f"CAST({name} AS INTEGER)::DOUBLE AS {name}"
    if kind.startswith(NUMBER_TYPES) and kind != "UUID":
        return f"CAST({name} AS DOUBLE) AS {name}"
    if kind.startswith(("TIMESTAMP", "DATE")):
        return f"CAST({name} AS TIMESTAMP) AS {name}"
    return f"CAST({name} AS VARCHAR) AS {name}"


def _filled(column: Any) -> Array | list[str]:
    """The column with NaN, NaT or an empty word for what is missing."""
    gone = np.ma.getmaskarray(column)
    plain = np.ma.getdata(column)
    if plain.dtype.kind in "fM":
        plain = plain.copy()
        plain[gone] = "NaT" if plain.dtype.kind == "M" else np.nan
        return np.asarray(plain)
    return ["" if empty else str(cell) for cell, empty in zip(plain, gone, strict=True)]


# ---- rows of cells ---------------------------------------------------------------------------------------------------


def _read_xlsx(path: str, raw: bytes) -> ArrayTable:
    try:
        import openpyxl
    except ImportError:
        raise SourceError(f'{path}: xlsx needs openpyxl: pip install "gradcore[data]"') from None
    try:
        book = openpyxl.load_workbook(io.BytesIO(raw), read_only=True, data_only=True)
        sheets = {sheet.title: list(_sheet_rows(sheet)) for sheet in book.worksheets}
    except SourceError:
        raise
    except Exception as error:  # it raises errors of any kind for files that are not what they should be
        raise SourceError(f"{path}: is not a readable xlsx file ({type(error).__name__}: {error})") from None
    filled = [name for name, rows in sheets.items() if rows]
    if not filled:
        raise SourceError(f"{path}: the file is empty")
    table = _table_of_rows(path, sheets[filled[0]])
    if len(filled) > 1:
        table.note = f'sheet "{filled[0]}", the first of {len(filled)}'
    return table


def _sheet_rows(sheet: Any) -> Iterator[Row]:
    """The rows of a sheet that are not empty, without empty cells beyond the last filled column."""
    for i, row in enumerate(sheet.iter_rows(values_only=True)):
        cells = [_text(cell).strip() for cell in row]
        if any(cells):
            yield i + 1, cells


def _table_of_rows(path: str, rows: list[Row]) -> ArrayTable:
    width = max(max((i + 1 for i, cell in enumerate(row) if cell), default=0) for _, row in rows)
    rows = [(line, (row + [""] * width)[:width]) for line, row in rows]
    while len(rows) > 1 and sum(map(bool, rows[0][1])) == 1 and width > 1:
        rows = rows[1:]  # a title
    head = find_head(path, rows[:SAMPLE], width, Numbers(".", False, True), None)
    rows = [(line, row) for line, row in rows if line > head.line]
    columns: list[Array | list[str]] = [list(column) for column in zip(*(row for _, row in rows), strict=True)]
    if not columns:
        raise SourceError(f"{path}: has a header but no values")
    return ArrayTable(path, head.names, columns, np.array([line for line, _ in rows]))


def read_json(path: str, text: str) -> ArrayTable | None:
    """Open JSON lines, or a JSON array of objects; None if the text is neither."""
    begins = text.lstrip()[:1]
    if begins not in ("{", "["):
        return None
    lines = text.split("\n")
    named = path.lower().endswith((*JSON_LINES, *(end + ".gz" for end in JSON_LINES)))
    try:
        if begins == "[":
            records = list(enumerate(json.loads(text)))
        else:
            records = [(i + 1, json.loads(line)) for i, line in enumerate(lines) if line.strip()]
    except (ValueError, RecursionError) as error:
        if not named:
            return None
        raise SourceError(f"{path}: expected one JSON object in each line ({error})") from None
    wrong = next(((line, record) for line, record in records if not isinstance(record, dict)), None)
    if wrong or not records:
        if not named:
            return None
        line, record = wrong or (1, None)
        raise SourceError(f"{path}, line {line}: expected a JSON object, got {type(record).__name__}")
    names = tuple(dict.fromkeys(name for _, record in records for name in record))
    columns = [_json_column(record.get(name) for _, record in records) for name in names]
    return ArrayTable(path, names, columns, np.array([line for line, _ in records]))


def _json_column(cells: Iterable[Any]) -> Array | list[str]:
    found = list(cells)
    if all(cell is None or isinstance(cell, (int, float)) for cell in found):
        try:
            return np.array([math.nan if cell is None else float(cell) for cell in found])
        except OverflowError:
            pass
    return [_text(cell) for cell in found]
