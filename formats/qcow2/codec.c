/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: the methods of compression ("compression_type").
 *
 * A method's context costs more memory and time to make than a small cluster to compress, so that
 * some are kept. Each is used by one thread at a time; any number of threads work side by side.
 */
#include <errno.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "block/cleanup.h"
#include "formats/qcow2/internal.h"

/* Deflate without zlib's header; the window is 4 KiB, as QEMU reads no larger one. */
#define WINDOW_BITS  (-12)
#define MEMORY_LEVEL 9

/* Contexts of a kind that are kept for the next user: some MiB at most. */
#define KEPT_MAX 8

struct pool {
    pthread_mutex_t lock; /* guards what follows; innermost */
    unsigned count;
    void *kept[KEPT_MAX];
};

/* The process's, since how many are in use at once depends on its processors, not on images. */
static struct pool deflaters = {.lock = PTHREAD_MUTEX_INITIALIZER};
static struct pool inflaters = {.lock = PTHREAD_MUTEX_INITIALIZER};
static struct pool compressors = {.lock = PTHREAD_MUTEX_INITIALIZER};
static struct pool decompressors = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* A context that is kept, or NULL. */
static void *take_kept(struct pool *pool)
{
    SCOPE_LOCK(&pool->lock);

    return pool->count ? pool->kept[--pool->count] : NULL;
}

/* Keep a context; false if there are enough, so that the caller frees it. */
static bool keep(struct pool *pool, void *context)
{
    SCOPE_LOCK(&pool->lock);

    if (pool->count == KEPT_MAX) {
        return false;
    }
    pool->kept[pool->count++] = context;
    return true;
}

/* ---- zlib ----------------------------------------------------------------------------------- */

static z_stream *take_deflater(void)
{
    z_stream *stream = take_kept(&deflaters);

    if (stream) {
        deflateReset(stream);
        return stream;
    }
    stream = g_new0(z_stream, 1);
    if (deflateInit2(stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, WINDOW_BITS, MEMORY_LEVEL,
                     Z_DEFAULT_STRATEGY) != Z_OK) {
        g_free(stream);
        return NULL;
    }
    return stream;
}

static z_stream *take_inflater(void)
{
    z_stream *stream = take_kept(&inflaters);

    if (stream) {
        inflateReset(stream);
        return stream;
    }
    stream = g_new0(z_stream, 1);
    if (inflateInit2(stream, WINDOW_BITS) != Z_OK) {
        g_free(stream);
        return NULL;
    }
    return stream;
}

static void set_buffers(z_stream *stream, const void *from, uint64_t from_bytes, void *to,
                        uint64_t to_bytes)
{
    stream->next_in = (Bytef *)(uintptr_t)from; /* zlib does not write there */
    stream->avail_in = (uInt)from_bytes;
    stream->next_out = to;
    stream->avail_out = (uInt)to_bytes;
}

static int deflate_cluster(const void *from, uint64_t from_bytes, void *to, uint64_t *to_bytes)
{
    z_stream *stream = take_deflater();

    if (!stream) {
        return -ENOMEM;
    }
    set_buffers(stream, from, from_bytes, to, *to_bytes);
    bool is_whole = deflate(stream, Z_FINISH) == Z_STREAM_END;
    *to_bytes -= stream->avail_out;
    if (!keep(&deflaters, stream)) {
        deflateEnd(stream);
        g_free(stream);
    }
    return is_whole ? 0 : -ENOSPC;
}

/* The data ends when a cluster is full; what follows it in its last sector is another's. */
static int inflate_cluster(const void *from, uint64_t from_bytes, void *to, uint64_t to_bytes)
{
    z_stream *stream = take_inflater();

    if (!stream) {
        return -ENOMEM;
    }
    set_buffers(stream, from, from_bytes, to, to_bytes);
    int status = inflate(stream, Z_FINISH);
    bool is_whole = (status == Z_STREAM_END || status == Z_BUF_ERROR) && stream->avail_out == 0;
    if (!keep(&inflaters, stream)) {
        inflateEnd(stream);
        g_free(stream);
    }
    return is_whole ? 0 : -EIO;
}

/* ---- zstd ----------------------------------------------------------------------------------- */

static int zstd_cluster(const void *from, uint64_t from_bytes, void *to, uint64_t *to_bytes)
{
    ZSTD_CCtx *context = take_kept(&compressors);

    if (!context) {
        context = ZSTD_createCCtx();
    }
    if (!context) {
        return -ENOMEM;
    }
    size_t bytes = ZSTD_compressCCtx(context, to, *to_bytes, from, from_bytes, ZSTD_CLEVEL_DEFAULT);
    if (!keep(&compressors, context)) {
        ZSTD_freeCCtx(context);
    }
    if (ZSTD_isError(bytes)) {
        return -ENOSPC;
    }
    *to_bytes = bytes;
    return 0;
}

/*
 * A frame, and behind it in its last sector what is another's. Decompressed at once, as a frame's
 * header may ask for a window of 128 MiB, which only streaming needs.
 */
static int unzstd_cluster(const void *from, uint64_t from_bytes, void *to, uint64_t to_bytes)
{
    size_t frame_bytes = ZSTD_findFrameCompressedSize(from, from_bytes);

    if (ZSTD_isError(frame_bytes)) {
        return -EIO;
    }
    ZSTD_DCtx *context = take_kept(&decompressors);
    if (!context) {
        context = ZSTD_createDCtx();
    }
    if (!context) {
        return -ENOMEM;
    }
    size_t bytes = ZSTD_decompressDCtx(context, to, to_bytes, from, frame_bytes);
    if (!keep(&decompressors, context)) {
        ZSTD_freeDCtx(context);
    }
    return !ZSTD_isError(bytes) && bytes == to_bytes ? 0 : -EIO;
}

/* ---- Clusters ------------------------------------------------------------------------------- */

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
