"""Reading a zip's central directory as a stream, and single members within limits.

The standard `zipfile` keeps an object per member, about a kilobyte: a feature archive of a million videos would cost a
gigabyte. Here members stream. Their data is checked (declared size, CRC) and never written to disk.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

END, END_SIZE = b"PK\x05\x06", 22
END64, LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
LOCATOR64_SIZE, END64_SIZE = 20, 56
ENTRY, ENTRY_SIZE = b"PK\x01\x02", 46
LOCAL, LOCAL_SIZE = b"PK\x03\x04", 30
MAX_COMMENT = 65535
STORED, DEFLATED = 0, 8
ENCRYPTED = 0x1
UTF8_NAME = 0x800
TAIL = 4096  # holds the whole directory of most frame zips, so that one read is enough
CHUNK = 1 << 20
unpack_end = struct.Struct("<4s4H2LH").unpack_from
unpack_end64 = struct.Struct("<4sQ2H2L4Q").unpack_from
unpack_entry = struct.Struct("<4s6H3L5H2L").unpack_from
unpack_local = struct.Struct("<4s5H3L2H").unpack_from


class ZipError(Exception):
    """This zip, or one member of it, cannot be read; the message says why in a few words."""


class Member(NamedTuple):
    """One entry of the central directory."""

    name: bytes  # as stored; `decode_name` makes text of it
    flags: int
    method: int
    crc: int
    compressed: int  # bytes in the archive
    size: int  # bytes when unpacked, as declared
    offset: int  # of its local header


class Directory(NamedTuple):
    start: int
    size: int
    entries: int
    shift: int  # bytes in front of the archive proper (self-extracting zips)


def decode_name(member: Member) -> str:
    """The name as text: UTF-8 where the member says so, else cp437, as the format demands."""
    return member.name.decode("utf-8" if member.flags & UTF8_NAME else "cp437", errors="replace")


def read_members(file: BinaryIO, max_members: int | None) -> Iterator[Member]:
    """Yield the members in directory order. Raises ZipError for anything but a whole, single-file zip."""
    total = file.seek(0, os.SEEK_END)
    tail = read_at(file, max(0, total - TAIL), min(total, TAIL))
    directory = find_directory(file, total, tail)
    if max_members is not None and directory.entries > max_members:
        raise ZipError(f"{directory.entries} members, more than {max_members}")
    tail_start = total - len(tail)
    if directory.start >= tail_start:
        offset = directory.start - tail_start
        buffers = iter([tail[offset : offset + directory.size]])
    else:
        buffers = chunks(file, directory.start, directory.size)
    yield from parse_entries(buffers, directory)


def find_directory(file: BinaryIO, total: int, tail: bytes) -> Directory:
    """Locate the central directory from the record at the end of the file (zip64 included)."""
    position = tail.rfind(END)
    if position < 0 and total > len(tail):
        tail = read_at(file, max(0, total - END_SIZE - MAX_COMMENT), min(total, END_SIZE + MAX_COMMENT))
        position = tail.rfind(END)
    if position < 0 or position + END_SIZE > len(tail):
        raise ZipError("0 bytes" if total == 0 else "no zip directory at its end: truncated, or not a zip")
    _, _, _, _, entries, size, start, _ = unpack_end(tail, position)
    end = total - len(tail) + position
    needs64 = entries == 0xFFFF or size == 0xFFFFFFFF or start == 0xFFFFFFFF
    if needs64 or tail[max(0, position - LOCATOR64_SIZE) : position].startswith(LOCATOR64):  # some writers always do
        end, entries, size, start = find_directory64(file, end, (entries, size, start))
    shift = end - size - start
    if shift < 0 or entries * ENTRY_SIZE > size:
        raise ZipError("its directory lies outside the file: truncated")
    return Directory(start + shift, size, entries, shift)


def find_directory64(file: BinaryIO, end: int, plain: tuple[int, int, int]) -> tuple[int, int, int, int]:
    if end < LOCATOR64_SIZE or not (locator := read_at(file, end - LOCATOR64_SIZE, LOCATOR64_SIZE)).startswith(
        LOCATOR64
    ):
        return end, *plain
    del locator  # the record stands right before its locator; the stored offset ignores data in front of the archive
    end64 = end - LOCATOR64_SIZE - END64_SIZE
    record = read_at(file, end64, END64_SIZE) if end64 >= 0 else b""
    if not record.startswith(END64) or len(record) < END64_SIZE:
        raise ZipError("broken zip64 directory")
    _, _, _, _, _, _, _, entries, size, start = unpack_end64(record)
    return end64, entries, size, start


def parse_entries(buffers: Iterator[bytes], directory: Directory) -> Iterator[Member]:
    """Parse the directory from consecutive pieces of it."""
    buffer, position = b"", 0
    for _ in range(directory.entries):
        while len(buffer) - position < ENTRY_SIZE or len(buffer) - position < entry_length(buffer, position):
            piece = next(buffers, b"")
            if not piece:
                raise ZipError("its directory ends early")
            buffer, position = buffer[position:] + piece, 0
        signature, _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, _, _, _, _, offset = unpack_entry(
            buffer, position
        )
        if signature != ENTRY:
            raise ZipError("broken directory entry")
        name = buffer[position + ENTRY_SIZE : position + ENTRY_SIZE + n_name]
        if 0xFFFFFFFF in (packed, size, offset):
            extra = buffer[position + ENTRY_SIZE + n_name : position + ENTRY_SIZE + n_name + n_extra]
            size, packed, offset = widen(extra, size, packed, offset)
        yield Member(name, flags, method, crc, packed, size, offset + directory.shift)
        position += entry_length(buffer, position)


def entry_length(buffer: bytes, position: int) -> int:
    n_name, n_extra, n_comment = struct.unpack_from("<3H", buffer, position + 28)
    return int(ENTRY_SIZE + n_name + n_extra + n_comment)


def widen(extra: bytes, *values: int) -> list[int]:
    """Replace each 0xFFFFFFFF by its 64-bit value from the zip64 extra field, which lists them in this order."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{min(length, len(extra) - 4) // 8}Q", extra, 4))
            result = [next(wide, None) if value == 0xFFFFFFFF else value for value in values]
            if None not in result:
                return [value for value in result if value is not None]
            break
        extra = extra[4 + length :]
    raise ZipError("broken zip64 entry")


def read_member(file: BinaryIO, member: Member) -> bytes:
    """Unpack one member; never more bytes than it declares, and only when its CRC holds. Raises ZipError."""
    if member.flags & ENCRYPTED:
        raise ZipError("encrypted")
    if member.method not in (STORED, DEFLATED):
        raise ZipError(f"compression method {member.method} (only stored and deflated are read)")
    header = read_at(file, member.offset, LOCAL_SIZE)
    if len(header) < LOCAL_SIZE or not header.startswith(LOCAL):
        raise ZipError("no data where the directory says")
    *_, n_name, n_extra = unpack_local(header)
    data = read_at(file, member.offset + LOCAL_SIZE + n_name + n_extra, member.compressed)
    if len(data) < member.compressed:
        raise ZipError("data ends early")
    if member.method == DEFLATED:
        data = inflate(data, member.size)
    if len(data) != member.size:
        raise ZipError("not of its declared size")
    if zlib.crc32(data) != member.crc:
        raise ZipError("CRC does not match")
    return data


def inflate(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise ZipError(f"broken compressed data ({error})") from None


def read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def chunks(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    while length > 0:
        piece = read_at(file, offset, min(CHUNK, length))
        if not piece:
            return
        yield piece
        offset, length = offset + len(piece), length - len(piece)
