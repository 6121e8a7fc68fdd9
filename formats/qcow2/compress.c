/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: compressed clusters ("Compressed Clusters Descriptor", "compression_type"). */
#include <errno.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "block/cleanup.h"
#include "formats/qcow2/internal.h"

/* QEMU's deflate window: 4 KiB, without zlib's header. */
#define WINDOW_BITS (-12)

/* Decompressed clusters that are kept: guests read them in small pieces. */
#define KEPT_MAX   16
#define KEPT_BYTES (4 * MIB)

struct kept {
    uint64_t descriptor; /* 0: none */
    uint64_t host;       /* what of the file it was made of */
    uint64_t host_bytes;
    uint64_t last_use;
    char *data;
};

struct qcow2_decompressed {
    pthread_mutex_t lock; /* guards what follows; innermost, not held while decompressing */
    unsigned count;
    uint64_t clock;
    uint64_t forgets; /* how often something was forgotten */
    struct kept kept[KEPT_MAX];
};

/* ---- The methods ---------------------------------------------------------------------------- */

static int deflate_cluster(const void *from, uint64_t from_bytes, void *to, uint64_t *to_bytes)
{
    z_stream stream = {
        .next_in = (Bytef *)from,
        .avail_in = (uInt)from_bytes,
        .next_out = to,
        .avail_out = (uInt)*to_bytes,
    };

    if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, WINDOW_BITS, 9,
                     Z_DEFAULT_STRATEGY) != Z_OK) {
        return -ENOMEM;
    }
    int status = deflate(&stream, Z_FINISH);
    *to_bytes -= stream.avail_out;
    deflateEnd(&stream);
    return status == Z_STREAM_END ? 0 : -ENOSPC;
}

/* The data ends when a cluster is full; what follows it in its last sector is another's. */
static int inflate_cluster(const void *from, uint64_t from_bytes, void *to, uint64_t to_bytes)
{
    z_stream stream = {
        .next_in = (Bytef *)from,
        .avail_in = (uInt)from_bytes,
        .next_out = to,
        .avail_out = (uInt)to_bytes,
    };

    if (inflateInit2(&stream, WINDOW_BITS) != Z_OK) {
        return -ENOMEM;
    }
    int status = inflate(&stream, Z_FINISH);
    bool is_whole = (status == Z_STREAM_END || status == Z_BUF_ERROR) && stream.avail_out == 0;
    inflateEnd(&stream);
    return is_whole ? 0 : -EIO;
}

static int zstd_cluster(const void *from, uint64_t from_bytes, void *to, uint64_t *to_bytes)
{
    size_t bytes = ZSTD_compress(to, *to_bytes, from, from_bytes, ZSTD_CLEVEL_DEFAULT);

    if (ZSTD_isError(bytes)) {
        return -ENOSPC;
    }
    *to_bytes = bytes;
    return 0;
}

static int unzstd_cluster(const void *from, uint64_t from_bytes, void *to, uint64_t to_bytes)
{
    ZSTD_DCtx *context = ZSTD_createDCtx();
    ZSTD_inBuffer in = {from, from_bytes, 0};
    ZSTD_outBuffer out = {to, to_bytes, 0};
    size_t more = 1;

    if (!context) {
        return -ENOMEM;
    }
    /* A frame may ask for no more memory than a few clusters. */
    ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, QCOW2_CLUSTER_BITS_MAX + 1);
    while (more && !ZSTD_isError(more) && out.pos < out.size) {
        size_t in_before = in.pos, out_before = out.pos;

        more = ZSTD_decompressStream(context, &out, &in);
        if (in.pos == in_before && out.pos == out_before) {
            break;
        }
    }
    ZSTD_freeDCtx(context);
    return !ZSTD_isError(more) && out.pos == out.size ? 0 : -EIO;
}

int qcow2_compress(enum qcow2_compression compression, uint64_t cluster_size, const void *from,
                   void *to, uint64_t *bytes)
{
    *bytes = cluster_size - 1; /* else it is not worth it */
    return compression == QCOW2_COMPRESSION_ZSTD ? zstd_cluster(from, cluster_size, to, bytes)
                                                 : deflate_cluster(from, cluster_size, to, bytes);
}

int qcow2_decompress(enum qcow2_compression compression, uint64_t cluster_size, const void *from,
                     uint64_t from_bytes, void *to)
{
    return compression == QCOW2_COMPRESSION_ZSTD
               ? unzstd_cluster(from, from_bytes, to, cluster_size)
               : inflate_cluster(from, from_bytes, to, cluster_size);
}

/* ---- What is kept --------------------------------------------------------------------------- */

int qcow2_compress_init(struct qcow2 *q)
{
    struct qcow2_decompressed *kept = g_new0(struct qcow2_decompressed, 1);

    pthread_mutex_init(&kept->lock, NULL);
    kept->count = (unsigned)CLAMP(KEPT_BYTES >> q->cluster_bits, 1, KEPT_MAX);
    q->decompressed = kept;
    return 0;
}

void qcow2_compress_destroy(struct qcow2 *q)
{
    struct qcow2_decompressed *kept = STEAL(q->decompressed);

    if (!kept) {
        return;
    }
    for (unsigned i = 0; i < kept->count; i++) {
        free(kept->kept[i].data);
    }
    pthread_mutex_destroy(&kept->lock);
    g_free(kept);
}

/* Copy a piece of a cluster that is kept; false if it is not. *forgets is how often so far
 * something was forgotten. */
static bool read_kept(struct qcow2 *q, uint64_t descriptor, uint64_t in_cluster, void *buffer,
                      uint64_t bytes, uint64_t *forgets)
{
    struct qcow2_decompressed *kept = q->decompressed;
    SCOPE_LOCK(&kept->lock);

    *forgets = kept->forgets;
    for (unsigned i = 0; i < kept->count; i++) {
        if (kept->kept[i].descriptor == descriptor) {
            kept->kept[i].last_use = ++kept->clock;
            memcpy(buffer, kept->kept[i].data + in_cluster, bytes);
            return true;
        }
    }
    return false;
}

/* Keep a cluster, which is taken over, unless something was forgotten since it was read. */
static void keep(struct qcow2 *q, uint64_t descriptor, char *data, uint64_t forgets)
{
    struct qcow2_decompressed *kept = q->decompressed;
    uint64_t host, host_bytes;
    SCOPE_LOCK(&kept->lock);
    struct kept *oldest = &kept->kept[0];

    for (unsigned i = 1; i < kept->count; i++) {
        if (kept->kept[i].last_use < oldest->last_use) {
            oldest = &kept->kept[i];
        }
    }
    if (kept->forgets != forgets) {
        free(data);
        return;
    }
    free(oldest->data);
    qcow2_compressed_range(q, descriptor, &host, &host_bytes);
    *oldest = (struct kept){descriptor, host, host_bytes, ++kept->clock, data};
}

void qcow2_decompressed_forget(struct qcow2 *q, uint64_t host_offset, uint64_t bytes)
{
    struct qcow2_decompressed *kept = q->decompressed;
    SCOPE_LOCK(&kept->lock);

    kept->forgets++;
    for (unsigned i = 0; i < kept->count; i++) {
        struct kept *one = &kept->kept[i];

        if (one->descriptor && one->host < host_offset + bytes &&
            host_offset < one->host + one->host_bytes) {
            free(one->data);
            *one = (struct kept){0};
        }
    }
}

/* ---- Reading -------------------------------------------------------------------------------- */

int qcow2_read_compressed(struct qcow2 *q, uint64_t descriptor, uint64_t in_cluster, void *buffer,
                          uint64_t bytes)
{
    uint64_t host, host_bytes, forgets;

    if (read_kept(q, descriptor, in_cluster, buffer, bytes, &forgets)) {
        return 0;
    }
    qcow2_compressed_range(q, descriptor, &host, &host_bytes);
    AUTO_FREE void *compressed = block_node_alloc_buffer(q->file, host_bytes);
    AUTO_FREE char *cluster = malloc(q->cluster_size);
    if (!compressed || !cluster) {
        return -ENOMEM;
    }
    int status = qcow2_read_padded(q->file, compressed, host, host_bytes);
    if (status == 0) {
        status = qcow2_decompress(q->header.compression, q->cluster_size, compressed, host_bytes,
                                  cluster);
    }
    if (status < 0) {
        return status;
    }
    memcpy(buffer, cluster + in_cluster, bytes);
    keep(q, descriptor, STEAL(cluster), forgets);
    return 0;
}

/* ---- Writing -------------------------------------------------------------------------------- */

/* The cluster is ours; let its entry refer to what was written. */
static int publish(struct qcow2 *q, uint64_t offset, uint64_t host, uint64_t bytes)
{
    struct qcow2_entry old, entry = {.descriptor = qcow2_compressed_descriptor(q, host, bytes)};
    int status = qcow2_entry_find(q, offset, &old);

    if (status == 0) {
        status = qcow2_entries_set(q, offset, &entry, 1, true);
    }
    if (status == 0) {
        qcow2_give_up_entry(q, old.descriptor, q->options.discard_other);
    }
    return status;
}

static int put_compressed(struct qcow2 *q, const void *data, uint64_t bytes, uint64_t offset)
{
    struct tracked_request tracked;
    uint64_t host;

    tracked_request_begin(&q->allocations, &tracked, offset, q->cluster_size, true);
    int status = qcow2_allocate_bytes(q, bytes, &host);
    if (status == 0) {
        qcow2_decompressed_forget(q, host, bytes);
        status = host + bytes > qcow2_compressed_max(q)
                     ? -ENOSPC
                     : block_node_pwrite(q->file, data, host, bytes, 0);
        if (status == 0) {
            status = publish(q, offset, host, bytes);
        }
        if (status < 0) {
            qcow2_refcount_add(q, host, bytes, -1);
        }
    }
    tracked_request_end(&q->allocations, &tracked);
    return status;
}

/* Whole clusters, but the disk may end in its last one. */
static int write_cluster(struct qcow2 *q, const char *buffer, uint64_t offset, uint64_t bytes)
{
    AUTO_FREE char *padded = bytes < q->cluster_size ? calloc(1, q->cluster_size) : NULL;
    AUTO_FREE void *compressed = block_node_alloc_buffer(q->file, q->cluster_size);
    uint64_t compressed_bytes;

    if (!compressed || (bytes < q->cluster_size && !padded)) {
        return -ENOMEM;
    }
    if (padded) {
        memcpy(padded, buffer, bytes);
    }
    int status = qcow2_compress(q->header.compression, q->cluster_size, padded ? padded : buffer,
                                compressed, &compressed_bytes);
    if (status == -ENOSPC) {
        return qcow2_write(q, buffer, offset, bytes); /* it does not get smaller */
    }
    return status == 0 ? put_compressed(q, compressed, compressed_bytes, offset) : status;
}

int qcow2_write_compressed(struct qcow2 *q, const void *buffer, uint64_t offset, uint64_t bytes)
{
    const char *from = buffer;
    int status = 0;

    if (q->has_data_file) {
        return -ENOTSUP;
    }
    if (qcow2_in_cluster(q, offset) ||
        (qcow2_in_cluster(q, bytes) && offset + bytes != q->header.size)) {
        return -EINVAL;
    }
    while (status == 0 && bytes) {
        uint64_t step = MIN_OF(bytes, q->cluster_size);

        status = write_cluster(q, from, offset, step);
        from += step;
        offset += step;
        bytes -= step;
    }
    return status;
}
