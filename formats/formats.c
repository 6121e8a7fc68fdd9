/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/formats.h"

#include "block/driver.h"
#include "formats/blkdebug.h"
#include "formats/blklogwrites.h"
#include "formats/compress.h"
#include "formats/copy-before-write.h"
#include "formats/copy-on-read.h"
#include "formats/file.h"
#include "formats/lose-writes.h"
#include "formats/nbd.h"
#include "formats/null.h"
#include "formats/preallocate.h"
#include "formats/qcow2/qcow2.h"
#include "formats/quorum.h"
#include "formats/raw.h"
#include "formats/snapshot-access.h"
#include "formats/throttle.h"

void formats_register(void)
{
    block_driver_register(&file_driver);
    block_driver_register(&host_device_driver);
    block_driver_register(&raw_driver);
    block_driver_register(&qcow2_driver);
    block_driver_register(&null_co_driver);
    block_driver_register(&null_aio_driver);
    block_driver_register(&nbd_driver);
    block_driver_register(&blkdebug_driver);
    block_driver_register(&lose_writes_driver);
    block_driver_register(&blklogwrites_driver);
    block_driver_register(&copy_before_write_driver);
    block_driver_register(&snapshot_access_driver);
    block_driver_register(&compress_driver);
    block_driver_register(&preallocate_driver);
    block_driver_register(&copy_on_read_driver);
    block_driver_register(&throttle_driver);
    block_driver_register(&quorum_driver);
}
