# SPDX-License-Identifier: BSD-3-Clause
"""An NBD client that says on the wire just what a test tells it, right or wrong.

libnbd says only what is right. Names are those of doc/proto.md of the NBD project, without NBD_.
Whatever makes no sense in an answer is an AssertionError; Gone: the server has hung up.
"""

import socket
import struct

MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
REPLY_MAGIC = 0x0003E889045565A9
FIXED_NEWSTYLE, NO_ZEROES = 1, 2

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS = 1, 2, 3, 5
OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY = 6, 7, 8
OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_EXTENDED_HEADERS = 9, 10, 11

REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
ERR = 1 << 31
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_TLS_REQD = ERR + 1, ERR + 2, ERR + 3, ERR + 5
ERR_UNKNOWN, ERR_SHUTDOWN, ERR_TOO_BIG, ERR_EXT_HEADER_REQD = ERR + 6, ERR + 7, ERR + 9, ERR + 10

INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = range(4)

HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF, CAN_MULTI_CONN = 1 << 5, 1 << 6, 1 << 7, 1 << 8
SEND_CACHE, SEND_FAST_ZERO, BLOCK_STATUS_PAYLOAD = 1 << 10, 1 << 11, 1 << 12

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << i for i in range(6))

CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_STATUS_EXT = 0, 1, 2, 5, 6
CHUNK_ERROR = (1 << 15) + 1

SIMPLE, STRUCTURED, EXTENDED = range(3)


class Gone(Exception):
    pass


class Refused(Exception):
    """An error reply to an option; number is its type."""

    def __init__(self, number, text):
        super().__init__(f"0x{number:x}: {text}")
        self.number = number
        self.text = text


class Failed(Exception):
    """An error reply to a request; number is as on the wire."""

    def __init__(self, number, text=""):
        super().__init__(f"{number}: {text}")
        self.number = number


def text(word):
    word = word.encode() if isinstance(word, str) else word
    return struct.pack(">I", len(word)) + word


def queries(export, *words):
    return text(export) + struct.pack(">I", len(words)) + b"".join(map(text, words))


def wants(export, *kinds):
    """The data of INFO and GO."""
    return text(export) + struct.pack(f">H{len(kinds)}H", len(kinds), *kinds)


class Wire:
    """A connection, greeted unless flags is None."""

    def __init__(self, path, flags=FIXED_NEWSTYLE | NO_ZEROES, timeout=60):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(str(path))
        self.mode = SIMPLE
        self.size = self.flags = None
        self.cookie = 0
        if flags is not None:
            magic, option_magic, self.server_flags = struct.unpack(">QQH", self.receive(18))
            assert (magic, option_magic) == (MAGIC, OPTION_MAGIC)
            self.send(struct.pack(">I", flags))

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Gone from error

    def receive(self, count):
        parts = []
        while count:
            try:
                part = self.socket.recv(min(count, 1 << 20))
            except ConnectionResetError as error:
                raise Gone from error
            if not part:
                raise Gone
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def is_gone(self):
        try:
            return not self.socket.recv(1)
        except ConnectionResetError:
            return True

    # ---- Handshake ---------------------------------------------------------------------------

    def send_option(self, number, data=b"", length=None):
        length = len(data) if length is None else length
        self.send(struct.pack(">QII", OPTION_MAGIC, number, length) + data)

    def option_reply(self, number):
        """(type, data)"""
        magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == REPLY_MAGIC and option == number, (hex(magic), option, number)
        return kind, self.receive(length)

    def option_replies(self, number):
        """What is said before it is acknowledged: [(type, data)]."""
        replies = []
        while True:
            kind, data = self.option_reply(number)
            if kind & ERR:
                raise Refused(kind, data.decode())
            if kind == REP_ACK:
                assert data == b""
                return replies
            replies.append((kind, data))

    def option(self, number, data=b""):
        self.send_option(number, data)
        return self.option_replies(number)

    def list(self):
        """Name -> description."""
        exports = {}
        for kind, data in self.option(OPT_LIST):
            assert kind == REP_SERVER
            (length,) = struct.unpack_from(">I", data)
            exports[data[4 : 4 + length].decode()] = data[4 + length :].decode()
        return exports

    def contexts(self, number, export, *words):
        """Name -> ID, of LIST_META_CONTEXT or SET_META_CONTEXT."""
        found = {}
        for kind, data in self.option(number, queries(export, *words)):
            assert kind == REP_META_CONTEXT
            found[data[4:].decode()] = struct.unpack_from(">I", data)[0]
        return found

    def info(self, number, export, *kinds):
        """Type of information -> its data, of INFO or GO."""
        found = {}
        for kind, data in self.option(number, wants(export, *kinds)):
            assert kind == REP_INFO
            found[struct.unpack_from(">H", data)[0]] = data[2:]
        return found

    def go(self, export):
        self.size, self.flags = struct.unpack(">QH", self.info(OPT_GO, export)[INFO_EXPORT])
        return self

    def agree(self, mode):
        if mode != SIMPLE:
            self.option(OPT_STRUCTURED_REPLY if mode == STRUCTURED else OPT_EXTENDED_HEADERS)
        self.mode = mode
        return self

    # ---- Requests ----------------------------------------------------------------------------

    def send_request(self, kind, offset=0, length=0, flags=0, payload=b"", cookie=None):
        """Returns its cookie."""
        if cookie is None:
            self.cookie = cookie = self.cookie + 1
        extended = self.mode == EXTENDED
        header = struct.pack(
            ">IHHQQQ" if extended else ">IHHQQI",
            0x21E41C71 if extended else 0x25609513, flags, kind, cookie, offset, length,
        )  # fmt: skip
        if len(payload) < 1 << 20:
            self.send(header + payload)
        else:
            self.send(header)
            self.send(payload)
        return cookie

    def chunk(self, data_length=0):
        """One reply: (cookie, flags, type, payload); a simple one has type None, and so many bytes
        of data if it is no error."""
        (magic,) = struct.unpack(">I", self.receive(4))
        if magic == 0x67446698:
            assert self.mode != EXTENDED, "a simple reply with extended headers"
            error, cookie = struct.unpack(">IQ", self.receive(12))
            if error:
                raise Failed(error)
            return cookie, 1, None, self.receive(data_length)
        if self.mode == EXTENDED:
            assert magic == 0x6E8A278C, hex(magic)
            flags, kind, cookie, _, length = struct.unpack(">HHQQQ", self.receive(28))
        else:
            assert self.mode == STRUCTURED and magic == 0x668E33EF, hex(magic)
            flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
        return cookie, flags, kind, self.receive(length)

    def chunks(self, cookie, data_length=0):
        """All of the reply to a request, nothing else being under way: [(type, payload)]."""
        found = []
        done = 0
        while not done:
            its, done, kind, payload = self.chunk(data_length)
            assert its == cookie, (its, cookie)
            if kind == CHUNK_ERROR:
                error, length = struct.unpack_from(">IH", payload)
                assert len(payload) == 6 + length and done
                raise Failed(error, payload[6:].decode())
            found.append((kind, payload))
        return found

    def command(self, kind, offset=0, length=0, flags=0, payload=b""):
        """One that is answered with success alone."""
        cookie = self.send_request(kind, offset, length, flags, payload)
        found = self.chunks(cookie)
        assert found in ([(None, b"")], [(CHUNK_NONE, b"")]), found

    def write(self, data, offset, flags=0):
        flags |= PAYLOAD_LEN if self.mode == EXTENDED else 0
        self.command(WRITE, offset, len(data), flags, data)

    def read_parts(self, length, offset, flags=0):
        """[(offset, bytes, or a length if it is a hole)], in order; they are the range exactly."""
        found = self.chunks(self.send_request(READ, offset, length, flags), length)
        if self.mode == SIMPLE:
            ((kind, payload),) = found
            assert kind is None
            return [(offset, payload)]
        parts = []
        for kind, payload in found:
            assert kind in (CHUNK_DATA, CHUNK_HOLE, CHUNK_NONE), kind
            if kind == CHUNK_NONE:
                assert length == 0
            elif kind == CHUNK_DATA:
                parts.append((struct.unpack_from(">Q", payload)[0], payload[8:]))
            else:
                parts.append(struct.unpack(">QI", payload))
        parts.sort(key=lambda part: part[0])
        at = offset
        for begin, content in parts:
            size = content if isinstance(content, int) else len(content)
            assert begin == at and size > 0, (begin, at, size)
            at += size
        assert at == offset + length, (at, offset, length)
        return parts

    def read(self, length, offset, flags=0):
        return b"".join(
            bytes(content) if isinstance(content, int) else content
            for _, content in self.read_parts(length, offset, flags)
        )

    def status(self, length, offset, flags=0, payload=b""):
        """Context's ID -> [(length, flags)]."""
        cookie = self.send_request(BLOCK_STATUS, offset, length, flags, payload)
        found = {}
        for kind, data in self.chunks(cookie):
            if self.mode == EXTENDED:
                assert kind == CHUNK_STATUS_EXT
                context, count = struct.unpack_from(">II", data)
                extents = list(struct.iter_unpack(">QQ", data[8:]))
                assert len(extents) == count
            else:
                assert kind == CHUNK_STATUS
                (context,) = struct.unpack_from(">I", data)
                extents = list(struct.iter_unpack(">II", data[4:]))
            assert context not in found and extents and all(size for size, _ in extents)
            found[context] = extents
        return found

    def all_status(self, context, size=None):
        """[(offset, length, flags)] of the whole export, by as many requests as it takes."""
        size = self.size if size is None else size
        found, at = [], 0
        while at < size:
            for length, flags in self.status(min(size - at, 1 << 30), at)[context]:
                found.append((at, min(length, size - at), flags))
                at += length
        return found


def enter(path, export, mode=STRUCTURED, contexts=()):
    """A client that has entered an export; `.ids` are its contexts' IDs, in order."""
    wire = Wire(path).agree(mode)
    if contexts:
        found = wire.contexts(OPT_SET_META_CONTEXT, export, *contexts)
        assert list(found) == list(contexts), found
        wire.ids = list(found.values())
    return wire.go(export)
