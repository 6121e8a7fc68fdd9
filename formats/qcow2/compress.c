/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: reading and writing compressed clusters ("Compressed Clusters Descriptor").
 *
 * Guests read in small pieces, so that the last few clusters are kept decompressed, by their
 * descriptors. What is kept can get old only when its host clusters are used for something else,
 * which is not before all have ended that may have found the descriptor: by forgetting it then,
 * nobody sees it any more.
 */
#include <errno.h>
#include <string.h>

#include "block/checked.h"
#include "block/cleanup.h"
#include "formats/qcow2/internal.h"

#define KEPT_MAX   16
#define KEPT_BYTES (4 * MIB)

/* A decompressed cluster. Its data changes no more once it is ready. */
struct content {
    uint64_t descriptor;
    uint64_t host; /* what of the file it was made of */
    uint64_t host_bytes;
    uint64_t last_use;
    unsigned references; /* its users', and one while it is kept */
    bool is_ready;       /* else its first user is still decompressing, and others wait */
    int status;          /* ready: 0, or why there is no data */
    char *data;
};

struct qcow2_decompressed {
    pthread_mutex_t lock; /* guards what follows; innermost, not held while decompressing */
    pthread_cond_t ready;
    unsigned max;
    uint64_t clock;
    struct content *kept[KEPT_MAX]; /* NULL: a free place */
};

/* ---- What is kept --------------------------------------------------------------------------- */

int qcow2_compress_init(struct qcow2 *q)
{
    struct qcow2_decompressed *cache = g_new0(struct qcow2_decompressed, 1);

    pthread_mutex_init(&cache->lock, NULL);
    pthread_cond_init(&cache->ready, NULL);
    cache->max = (unsigned)CLAMP(KEPT_BYTES >> q->cluster_bits, 1, KEPT_MAX);
    q->decompressed = cache;
    return 0;
}

/* The lock held. */
static void drop_reference(struct content *content)
{
    if (--content->references == 0) {
        free(content->data);
        g_free(content);
    }
}

/* Let nobody find the content of a place any more. The lock held. */
static void forget_place(struct qcow2_decompressed *cache, unsigned place)
{
    struct content *content = STEAL(cache->kept[place]);

    if (content) {
        drop_reference(content);
    }
}

void qcow2_compress_destroy(struct qcow2 *q)
{
    struct qcow2_decompressed *cache = STEAL(q->decompressed);

    if (!cache) {
        return;
    }
    for (unsigned i = 0; i < cache->max; i++) {
        forget_place(cache, i);
    }
    pthread_cond_destroy(&cache->ready);
    pthread_mutex_destroy(&cache->lock);
    g_free(cache);
}

void qcow2_decompressed_forget(struct qcow2 *q, uint64_t host_offset, uint64_t bytes)
{
    struct qcow2_decompressed *cache = q->decompressed;
    SCOPE_LOCK(&cache->lock);

    for (unsigned i = 0; i < cache->max; i++) {
        const struct content *content = cache->kept[i];

        if (content && ranges_overlap(content->host, content->host_bytes, host_offset, bytes)) {
            forget_place(cache, i);
        }
    }
}

/* Put a content in place of the one that was not used for longest. The lock held. */
static void keep(struct qcow2_decompressed *cache, struct content *content)
{
    unsigned place = 0;

    for (unsigned i = 0; i < cache->max && cache->kept[place]; i++) {
        if (!cache->kept[i] || cache->kept[i]->last_use < cache->kept[place]->last_use) {
            place = i;
        }
    }
    forget_place(cache, place);
    cache->kept[place] = content;
    content->references++;
}

/*
 * A reference to the content of a descriptor. *is_mine: it is new, and the caller makes it ready;
 * else it is ready.
 */
static struct content *get_content(struct qcow2 *q, uint64_t descriptor, bool *is_mine)
{
    struct qcow2_decompressed *cache = q->decompressed;
    struct content *content = NULL;
    SCOPE_LOCK(&cache->lock);

    for (unsigned i = 0; i < cache->max && !content; i++) {
        if (cache->kept[i] && cache->kept[i]->descriptor == descriptor) {
            content = cache->kept[i];
        }
    }
    *is_mine = !content;
    if (!content) {
        content = g_new0(struct content, 1);
        content->descriptor = descriptor;
        qcow2_compressed_range(q, descriptor, &content->host, &content->host_bytes);
        keep(cache, content);
    }
    content->references++;
    content->last_use = ++cache->clock;
    while (!*is_mine && !content->is_ready) {
        pthread_cond_wait(&cache->ready, &cache->lock);
    }
    return content;
}

/* It is ready, with its data (taken over) or an error; errors are not kept. */
static void set_ready(struct qcow2_decompressed *cache, struct content *content, char *data,
                      int status)
{
    SCOPE_LOCK(&cache->lock);

    content->is_ready = true;
    content->status = status;
    content->data = data;
    for (unsigned i = 0; status < 0 && i < cache->max; i++) {
        if (cache->kept[i] == content) {
            forget_place(cache, i);
        }
    }
    pthread_cond_broadcast(&cache->ready);
}

static void put_content(struct qcow2_decompressed *cache, struct content *content)
{
    SCOPE_LOCK(&cache->lock);

    drop_reference(content);
}

/* ---- Reading -------------------------------------------------------------------------------- */

/* All of a cluster. */
static int read_cluster(struct qcow2 *q, uint64_t descriptor, void *cluster)
{
    uint64_t host, host_bytes;

    qcow2_compressed_range(q, descriptor, &host, &host_bytes);
    AUTO_FREE void *compressed = block_node_alloc_buffer(q->file, host_bytes);
    int status = compressed ? qcow2_read_padded(q->file, compressed, host, host_bytes) : -ENOMEM;

    return status == 0 ? qcow2_decompress(q->header.compression, q->cluster_size, compressed,
                                          host_bytes, cluster)
                       : status;
}

static void make_ready(struct qcow2 *q, struct content *content)
{
    AUTO_FREE char *cluster = malloc(q->cluster_size);
    int status = cluster ? read_cluster(q, content->descriptor, cluster) : -ENOMEM;

    set_ready(q->decompressed, content, status == 0 ? STEAL(cluster) : NULL, status);
}

int qcow2_read_compressed(struct qcow2 *q, uint64_t descriptor, uint64_t in_cluster, void *buffer,
                          uint64_t bytes)
{
    bool is_mine;

    if (bytes == q->cluster_size) { /* who reads all of it will not come back for another piece */
        return read_cluster(q, descriptor, buffer);
    }
    struct content *content = get_content(q, descriptor, &is_mine);
    if (is_mine) {
        make_ready(q, content);
    }
    int status = content->status;
    if (status == 0) {
        memcpy(buffer, content->data + in_cluster, bytes);
    }
    put_content(q->decompressed, content);
    return status;
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
