# SPDX-License-Identifier: BSD-3-Clause
"""A real Linux guest on a served disk, and what must be on a copy of that disk.

The guest is Debian's cloud kernel in an emulated machine (no KVM: it runs anywhere), with busybox
and mke2fs in its initial RAM file system. It makes an ext4 file system on the disk and then goes
round and round: it writes a new file, rewrites an old one in place, replaces a third, syncs, and
says so. What the files hold follows from a seed, so any copy of the disk can be checked against
the last round that the guest had synced before the instant of the copy.
"""

import lzma
import pathlib
import re
import shutil
import socket
import threading

from liveblk_test import PATIENCE, wait_until

# Where a cloud kernel is: installed, or unpacked by scripts/install-dependencies.
PLACES = [pathlib.Path("/"), pathlib.Path("/var/cache/liveblk/linux-image-cloud-amd64")]

# Each needs those before it. What a kernel has built in need not be loaded.
VIRTIO_MODULES = [
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
    "virtio_blk",
]  # fmt: skip
# Not every kernel has all of these.
EXT4_MODULES = ["crc16", "crc32c_generic", "libcrc32c", "mbcache", "jbd2", "ext4"]

# Blocks this small make many block groups, over which ext4 spreads folders: the whole disk is used.
BLOCK = 1024
FOLDERS = 8
LINE = 64  # bytes: seed, file, round, number of the line
PLACE_BLOCKS = 64  # of the file that is rewritten in place

INIT = r"""#!/bin/busybox sh
# The first process of the guest. It talks with the test by the second serial port.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
exec 3<>/dev/ttyS1
stty raw -echo <&3

fail() {
    echo "FAILED $1" >&3
    reboot -f
}

lines() { # FILE ROUND COUNT
    awk -v file="$1" -v round="$2" -v count="$3" 'BEGIN {
        for (i = 0; i < count; i++)
            printf "@SEED@ %-10s %010d %010d %-21s\n", file, round, i, "liveblk"
    }'
}

for module in $(cat /modules/order); do
    insmod "/modules/$module.ko" || fail "insmod $module"
done
waited=0
while ! [ -b /dev/vda ]; do
    [ $((waited += 1)) -le 100 ] || fail "finding the disk"
    sleep 0.1
done
/sbin/mke2fs -q -F -t ext4 -b @BLOCK@ /dev/vda || fail mke2fs
# Each error that the guest sees is its last: it panics, and the machine ends. A file's data is to
# be on the disk before its length is, so that any copy can be judged to the byte.
mount -t ext4 -o errors=panic,discard,nodelalloc /dev/vda /disk || fail mount
cd /disk || fail cd
for folder in $(seq 0 $((@FOLDERS@ - 1))); do
    mkdir $folder || fail mkdir
done

(read -r stop <&3 && touch /stop) &
round=0
while ! [ -e /stop ]; do
    round=$((round + 1))
    lines new $round $((round * 797 % 1200 + 20)) >$((round % @FOLDERS@))/$round || fail new
    lines place $round @PLACE_LINES@ | dd of=place bs=4k iflag=fullblock conv=notrunc 2>/dev/null ||
        fail place
    rm -f replaced
    lines replaced $round 500 >replaced || fail replaced
    sync
    echo "SYNCED $round" >&3
done
cd / && umount /disk || fail umount
echo ENDED >&3
reboot -f
"""


class Content:
    """What the guest's files hold in each round."""

    def __init__(self, seed):
        self.seed = f"{seed % 10**8:08d}"

    def lines(self, file, number, numbers):
        return "".join(
            f"{self.seed} {file:<10} {number:010d} {i:010d} {'liveblk':<21}\n" for i in numbers
        ).encode()

    def new(self, number):
        return self.lines("new", number, range(number * 797 % 1200 + 20))

    def place(self, number, block):
        """One block of the file that is rewritten in place."""
        lines = BLOCK // LINE
        return self.lines("place", number, range(block * lines, (block + 1) * lines))

    def replaced(self, number):
        return self.lines("replaced", number, range(500))

    def init(self):
        """The first program of the guest, which writes all that."""
        words = {"SEED": self.seed, "BLOCK": BLOCK, "FOLDERS": FOLDERS,
                 "PLACE_LINES": PLACE_BLOCKS * BLOCK // LINE}  # fmt: skip
        return re.sub("@([A-Z_]+)@", lambda match: str(words[match[1]]), INIT)


def find_kernel():
    """A kernel image and the folder of its modules."""
    for place in PLACES:
        for image in sorted(place.glob("boot/vmlinuz-*-cloud-amd64")):
            modules = place / "lib/modules" / image.name.removeprefix("vmlinuz-")
            if modules.is_dir():
                return image, modules
    raise FileNotFoundError("no cloud kernel: scripts/install-dependencies guest")


def copy_modules(modules, into, needs=tuple(VIRTIO_MODULES), wants=tuple(EXT4_MODULES)):
    """The modules that must be loaded, uncompressed, and a list of them in order."""
    built_in = set(re.findall(r"([^/]+)\.ko", (modules / "modules.builtin").read_text()))
    found = {path.name.partition(".")[0]: path for path in modules.glob("kernel/**/*.ko*")}
    needed = [name for name in needs if name not in built_in]
    needed += [name for name in wants if name not in built_in and name in found]
    into.mkdir()
    for name in needed:
        uncompress = lzma.open if found[name].suffix == ".xz" else open
        with uncompress(found[name], "rb") as module:
            (into / f"{name}.ko").write_bytes(module.read())
    (into / "order").write_text("\n".join(needed) + "\n")


def copy_program(test, program, root):
    """A program and the libraries it needs."""
    libraries = re.findall(r"(/\S+) \(0x", test.run("ldd", program).stdout)
    for path in (program, *libraries):
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path[1:])


def make_initramfs(test, modules, script, programs=("/sbin/mke2fs",), **which_modules):
    """Returns the archive."""
    root, archive = test.path("initramfs"), test.path("initramfs.cpio")
    for folder in ("bin", "dev", "proc", "disk"):
        (root / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin")
    for program in programs:
        copy_program(test, program, root)
    copy_modules(modules, root / "modules", **which_modules)
    (root / "init").write_text(script)
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    cpio = ("cpio", "--quiet", "-o", "-H", "newc", "-F", archive)
    test.run(*cpio, cwd=root, stdin=None, input=names)
    return archive


class Guest:
    """A running guest. Its kernel's words are in guest.log."""

    def __init__(self, test, socket_path, export):
        self.test = test
        self.content = Content(test.random.getrandbits(30))
        self.synced = 0  # the last round that the guest has synced
        self.words = []  # all else it said
        image, modules = find_kernel()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(test.path("guest.serial")))
        listener.listen(1)
        listener.settimeout(PATIENCE)
        disk = ("driver=nbd,node-name=disk,discard=unmap,server.type=unix,"
                f"server.path={socket_path},export={export}")  # fmt: skip
        self.process = test.start(
            "qemu-system-x86_64", "-accel", "tcg", "-m", "192", "-no-reboot", "-nodefaults",
            "-display", "none", "-kernel", image,
            "-initrd", make_initramfs(test, modules, self.content.init()),
            "-append", "console=ttyS0 loglevel=4 panic=-1 mitigations=off",
            "-blockdev", disk, "-device", "virtio-blk-pci,drive=disk",
            "-serial", f"file:{test.path('guest.log')}",
            "-chardev", f"socket,id=talk,path={test.path('guest.serial')}",
            "-serial", "chardev:talk",
            log="qemu.log",
        )  # fmt: skip
        self.serial, _ = listener.accept()
        listener.close()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.serial.makefile("r", errors="replace"):
            word, _, rest = line.strip().partition(" ")
            if word == "SYNCED":
                self.synced = int(rest)
            else:
                self.words.append(line.strip())

    def has_synced(self, number):
        assert not self.words, f"the guest said {self.words}"
        assert self.process.poll() is None, "the guest's machine has ended"
        return self.synced >= number

    def wait_rounds(self, more):
        """Wait until the guest has synced this many more rounds; returns the last of them."""
        goal = self.synced + more
        wait_until(lambda: self.has_synced(goal), f"the guest has synced round {goal}")
        return self.synced

    def end(self):
        """Unmount and end the machine; returns the number of the last round."""
        self.serial.sendall(b"stop\n")
        assert self.process.wait(PATIENCE) == 0
        wait_until(lambda: self.words, "the guest has said its last word")
        assert self.words == ["ENDED"], f"the guest said {self.words}"
        return self.synced


def replay_journal(test, image):
    """What a machine does that starts from a crash-consistent copy."""
    result = test.run("/sbin/e2fsck", "-p", image, status=None)
    assert result.returncode in (0, 1), f"e2fsck -p: {result.stdout}{result.stderr}"


def check_file_system(test, image):
    test.run("/sbin/e2fsck", "-f", "-n", image)


def read_files(test, image):
    """A folder with all that is in the image's file system."""
    folder = test.path(f"{image.name}.files")
    folder.mkdir()
    test.run("/sbin/debugfs", "-R", f"rdump / {folder}", image)
    return folder


def blocks_of(data):
    return [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]


def new_files(folder):
    """number: contents of the files that the guest wrote anew in each round"""
    return {int(path.name): path.read_bytes() for path in folder.glob("[0-9]/*")}


def round_of(data):
    number = data[20:30]
    assert number.isdigit(), f"not of the guest: {data[:LINE]}"
    return int(number)


def check_place(folder, content):
    """The rounds that the blocks of the file rewritten in place are of: one, or two that meet."""
    data = (folder / "place").read_bytes()
    assert len(data) == PLACE_BLOCKS * BLOCK, f"the file written in place has {len(data)} bytes"
    rounds = set()
    for i in range(PLACE_BLOCKS):
        block = data[i * BLOCK : (i + 1) * BLOCK]
        number = round_of(block)
        assert block == content.place(number, i), f"block {i} written in place is torn"
        rounds.add(number)
    assert max(rounds) - min(rounds) <= 1, f"blocks written in place are of the rounds {rounds}"
    return rounds


def check_instant(folder, content, synced):
    """The files are those of one instant, not before the round was synced.

    As the guest syncs after each round, this is in or after a round, and all before are whole.
    """
    rounds = check_place(folder, content)
    latest = max(rounds)  # has begun, and the next has not come as far
    assert latest >= synced, f"what was written in place is of round {latest}, not {synced}"
    files = new_files(folder)
    for number in range(1, max(latest - 1, synced) + 1):
        assert number in files, f"the file of round {number} is lost (synced: {synced})"
        assert files[number] == content.new(number), f"the file of round {number} is wrong"
    for number in sorted(files):
        whole = content.new(number)
        assert whole.startswith(files[number]), f"the file of round {number} is wrong"
    if latest + 1 in files:
        assert rounds == {latest}, f"round {latest + 1} has begun, but {latest} is not all there"
        assert files[latest] == content.new(latest), f"the file of round {latest} is cut"
    assert max(files) <= latest + 1, f"there is round {max(files)}, in place it is {latest}"
    check_replaced(folder / "replaced", content, latest)


def check_replaced(path, content, latest):
    """The file that is removed and written again each round, when round latest has begun."""
    data = path.read_bytes() if path.exists() else b""
    if data:
        number = round_of(data)
        whole = content.replaced(number)
        assert latest - 1 <= number <= latest + 1, f"the replaced file is of round {number}"
        assert whole.startswith(data), f"the replaced file of round {number} is wrong"
        assert number >= latest or data == whole, f"the replaced file of round {number} is cut"


def check_crash_copy(test, image, content, synced):
    """The image is the guest's disk at an instant after the round was synced."""
    replay_journal(test, image)
    check_file_system(test, image)
    check_instant(read_files(test, image), content, synced)


def check_final_disk(test, image, content, last):
    """The image is the guest's disk after the guest has ended well."""
    check_file_system(test, image)
    folder = read_files(test, image)
    check_instant(folder, content, last)
    assert check_place(folder, content) == {last}
    assert set(new_files(folder)) == set(range(1, last + 1))
    assert (folder / "replaced").read_bytes() == content.replaced(last)
