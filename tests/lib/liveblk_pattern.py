# SPDX-License-Identifier: BSD-3-Clause
"""Sectors that describe themselves, and a model of a disk with one writer.

The format is that of tests/lib/pattern.h: little-endian; 0 magic, 8 address, 16 sequence,
24 writer (32 bits), 28 CRC-32 of the other bytes, 32 time, 40 one 64-bit word repeated.
"""

import array
import os
import struct
import time
import zlib

MAGIC = b"LIVEBLK1"
HEAD = struct.Struct("<8sQQII")
TIME = struct.Struct("<Q")
WORD_MASK = (1 << 64) - 1


def fill_word(address, sequence, writer):
    return (
        address * 0x9E3779B97F4A7C15 + sequence * 0xD1342543DE82EF95 + writer + 1
    ) & WORD_MASK


def fill(address, length, sequence, writer=1, time_ns=0, sector_size=512):
    """The bytes of one write of length bytes at address."""
    words = (sector_size - 40) // 8
    sectors = []
    for at in range(address, address + length, sector_size):
        head = HEAD.pack(MAGIC, at, sequence, writer, 0)[:28]
        tail = TIME.pack(time_ns) + TIME.pack(fill_word(at, sequence, writer)) * words
        crc = zlib.crc32(tail, zlib.crc32(head))
        sectors.append(head + struct.pack("<I", crc) + tail)
    return b"".join(sectors)


def identify(sector):
    """What a sector is by itself: (kind, address, sequence, writer, time_ns).

    kind is "whole", "torn", "zeroes" or "foreign"; the rest is None for the last two.
    """
    if sector[:8] != MAGIC:
        empty = sector.count(0) == len(sector)
        return ("zeroes" if empty else "foreign", None, None, None, None)
    _, address, sequence, writer, crc = HEAD.unpack_from(sector)
    (time_ns,) = TIME.unpack_from(sector, 32)
    intact = crc == zlib.crc32(sector[32:], zlib.crc32(sector[:28]))
    return ("whole" if intact else "torn", address, sequence, writer, time_ns)


def check(sector, address, sequence, zeroes, zero_name="zeroes"):
    """Judge one sector: None if right, else what it is instead.

    sequence is of the last write there (or of the zeroes, if zeroes is true).
    """
    kind, found_address, found_sequence, writer, _ = identify(sector)
    if kind == "zeroes":
        return None if zeroes else f"lost: zeroes instead of write {sequence}"
    expected = zero_name if zeroes else f"write {sequence}"
    if kind != "whole":
        return f"{kind}, expected {expected}"
    if found_address != address:
        return f"misplaced: belongs to {found_address:#x}, expected {expected}"
    if found_sequence == sequence and not zeroes:
        return None
    age = "too new" if found_sequence > sequence else "stale"
    return f"{age}: write {found_sequence} of writer {writer}, expected {expected}"


class DiskModel:
    """What a disk holds whose requests come from one thread, one at a time.

    Make the bytes of a write with write(), then write them. A snapshot is a copy that no longer
    changes: take it while no request is under way.
    """

    def __init__(self, length, sector_size=4096, writer=1):
        assert length % sector_size == 0
        self.length = length
        self.sector_size = sector_size
        self.writer = writer
        self.sequence = 0
        self.sequences = array.array("Q", bytes(8 * (length // sector_size)))
        self.zeroes = bytearray(b"\1" * (length // sector_size))

    def _sectors(self, offset, length, zeroes):
        assert offset % self.sector_size == 0 and length % self.sector_size == 0
        assert 0 <= offset and offset + length <= self.length
        self.sequence += 1
        first, count = offset // self.sector_size, length // self.sector_size
        self.sequences[first : first + count] = array.array("Q", [self.sequence]) * count
        self.zeroes[first : first + count] = bytes([zeroes]) * count

    def write(self, offset, length):
        """Note a write; returns the bytes to write."""
        self._sectors(offset, length, 0)
        now = time.monotonic_ns()
        return fill(offset, length, self.sequence, self.writer, now, self.sector_size)

    def zero(self, offset, length):
        """Note a write of zeroes, or a trim that is known to zero."""
        self._sectors(offset, length, 1)

    def snapshot(self):
        copy = DiskModel(0, self.sector_size, self.writer)
        copy.length, copy.sequence = self.length, self.sequence
        copy.sequences, copy.zeroes = self.sequences[:], self.zeroes[:]
        return copy

    def wrong_sectors(self, read, limit=20):
        """Compare the whole disk; read(offset, length) returns bytes. Sentences, up to limit."""
        wrong = []
        piece = max(1 << 20, self.sector_size)
        for start in range(0, self.length, piece):
            data = read(start, min(piece, self.length - start))
            assert len(data) == min(piece, self.length - start), f"short read at {start:#x}"
            for at in range(0, len(data), self.sector_size):
                number = (start + at) // self.sector_size
                sector = data[at : at + self.sector_size]
                verdict = check(
                    sector, start + at, self.sequences[number], self.zeroes[number]
                )
                if verdict:
                    wrong.append(f"sector at {start + at:#x} is {verdict}")
                    if len(wrong) == limit:
                        return wrong
        return wrong

    def assert_equals(self, read, what="the disk"):
        wrong = self.wrong_sectors(read)
        assert not wrong, f"{what} is not what it should be:\n" + "\n".join(wrong)

    def assert_equals_file(self, path):
        size = os.stat(path).st_size
        assert size == self.length, f"{path} is {size} bytes long, not {self.length}"
        with open(path, "rb", buffering=0) as file:
            self.assert_equals(lambda at, length: os.pread(file.fileno(), length, at), path)
