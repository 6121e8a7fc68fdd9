#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""liveblk-nbd --connect: the kernel's own NBD client, in a guest that has one."""

from liveblk_guest import find_kernel, make_initramfs
from liveblk_test import BUILD, main, promise

PROGRAM = str(BUILD / "cli" / "liveblk-nbd")

# The first process of the guest, where there is nothing but RAM. What it says is checked below.
SCRIPT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mkdir -p /sys /tmp /var/lock
mount -t sysfs sys /sys
exec >/dev/ttyS1 2>&1
nbd() { @PROGRAM@ "$@"; echo "status $?"; }

truncate -s 8M /tmp/disk
echo "before the module:"
nbd -f raw -c /dev/nbd0 /tmp/disk
for module in $(cat /modules/order); do
    insmod "/modules/$module.ko" || echo "insmod $module failed"
done
[ -b /dev/nbd0 ] || echo "no device"

echo "connect:"
nbd -f raw -c /dev/nbd0 /tmp/disk
blockdev --getsize64 /dev/nbd0
echo "twice:"
nbd -f raw -r -c /dev/nbd0 -k /tmp/other /modules/order
[ -e /tmp/other ] && echo "a socket is left"
tr '\0' 'A' </dev/zero | dd of=/dev/nbd0 bs=64k count=16 iflag=fullblock 2>/dev/null
tr '\0' 'B' </dev/zero | dd of=/dev/nbd0 bs=64k count=1 seek=127 iflag=fullblock 2>/dev/null
echo "disconnect:"
nbd -d /dev/nbd0
while pidof liveblk-nbd >/dev/null; do sleep 0.1; done
[ -e /var/lock/liveblk-nbd-nbd0 ] && echo "the socket is left"
[ "$(tr -d 'A' </tmp/disk | tr -d '\0')" = "$(printf '%65536s' '' | tr ' ' 'B')" ] && echo "written"
[ "$(dd if=/tmp/disk bs=64k count=16 2>/dev/null | tr -d 'A' | wc -c)" = 0 ] && echo "in its place"
nbd -d /dev/nbd0

echo "read-only, with partitions:"
dd if=/dev/zero of=/tmp/disk bs=512 count=1 conv=notrunc 2>/dev/null
printf '\0\0\0\0\203\0\0\0\0\10\0\0\0\20\0\0' |
    dd of=/tmp/disk bs=1 seek=446 conv=notrunc 2>/dev/null
printf '\125\252' | dd of=/tmp/disk bs=1 seek=510 conv=notrunc 2>/dev/null
nbd -f raw -r -c /dev/nbd0 /tmp/disk
blockdev --getro /dev/nbd0
blockdev --getsize64 /dev/nbd0p1
echo "ended by a signal, with something to write out:"
nbd -d /dev/nbd0
while pidof liveblk-nbd >/dev/null; do sleep 0.1; done
nbd -f raw -c /dev/nbd1 --pid-file=/tmp/pid /tmp/disk
dd if=/dev/zero bs=64k count=16 2>/dev/null | tr '\0' 'C' | dd of=/dev/nbd1 bs=64k 2>/dev/null
kill $(cat /tmp/pid)
while pidof liveblk-nbd >/dev/null; do sleep 0.1; done
[ "$(dd if=/tmp/disk bs=64k count=16 2>/dev/null | tr -d 'C' | wc -c)" = 0 ] && echo "written"
echo "end"
reboot -f
"""

EXPECTED = """\
before the module:
liveblk-nbd: This machine's kernel has no NBD client: load its module (modprobe nbd), or use \
--socket without --connect
status 1
connect:
status 0
8388608
twice:
liveblk-nbd: Could not connect '/dev/nbd0'; is it an NBD device that nobody uses?: \
Device or resource busy
status 1
disconnect:
/dev/nbd0 disconnected
status 0
written
in its place
/dev/nbd0 disconnected
status 0
read-only, with partitions:
status 0
1
2097152
ended by a signal, with something to write out:
/dev/nbd0 disconnected
status 0
status 0
written
end
"""


@promise("--connect shows a disk as the kernel's device, --disconnect and signals write out what was "
         "written to it", timeout=240)  # fmt: skip
def kernel_device(test):
    image, modules = find_kernel()
    archive = make_initramfs(
        test, modules, SCRIPT.replace("@PROGRAM@", PROGRAM), programs=(PROGRAM,),
        needs=("nbd",), wants=(),
    )  # fmt: skip
    said = test.path("said")
    machine = test.start(
        "qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-no-reboot", "-nodefaults",
        "-display", "none", "-kernel", image, "-initrd", archive,
        "-append", "console=ttyS0 loglevel=4 panic=-1 mitigations=off",
        "-serial", f"file:{test.path('guest.log')}", "-serial", f"file:{said}", log="qemu.log",
    )  # fmt: skip
    assert machine.wait(200) == 0
    text = said.read_bytes().decode().replace("\r\n", "\n")
    assert text == EXPECTED, f"{text}\n{test.path('guest.log').read_text()}"


main()
