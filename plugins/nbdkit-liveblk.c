/* SPDX-License-Identifier: BSD-3-Clause */
/* The nbdkit plugin: nbdkit's callbacks on one side, exports on the other, nothing between. */
#define NBDKIT_API_VERSION 2

#include <nbdkit-plugin.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "block/error.h"
#include "block/main-loop.h"
#include "block/thread.h"
#include "server/export.h"
#include "server/server.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static struct server *server;
static bool has_disk; /* one was named */

/*
 * nbdkit tells a plugin that it ends only when all clients have gone, and waits for them for ever.
 * A guest that stays connected must not keep jobs running and its own data unflushed meanwhile, nor
 * may a request that an error policy holds keep nbdkit from ending. So its signals pass through us:
 * the handler tells a thread, and calls nbdkit's own.
 */
static const int end_signals[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT};
static struct sigaction nbdkit_actions[G_N_ELEMENTS(end_signals)];
static int end_fd = -1; /* an eventfd: a signal arrived, or the plugin ends by itself */
static pthread_t end_thread;
static bool is_watching; /* there is such a thread */
static _Atomic bool ended;

static int fail(GError *error)
{
    nbdkit_error("%s", error->message);
    g_error_free(error);
    return -1;
}

/* nbdkit knows few errors beyond those NBD has; anything else would reach clients as EINVAL. */
static int fail_request(int status, const char *what, uint32_t count, uint64_t offset)
{
    static const int known[] = {EPERM,  EIO,   ENOMEM,  EINVAL,    ENOSPC,
                                EDQUOT, EFBIG, ENOTSUP, EOVERFLOW, ESHUTDOWN};
    int error_number = EIO;

    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        if (-status == known[i]) {
            error_number = -status;
        }
    }
    /* A client that probes for fast zeroes is told no by this error: nothing to log. */
    if (error_number != ENOTSUP) {
        nbdkit_error("%s of %" PRIu32 " bytes at offset %" PRIu64 " failed: %s", what, count,
                     offset, block_strerror(-status));
    }
    nbdkit_set_error(error_number);
    errno = error_number;
    return -1;
}

/* ---- Configuration and life ----------------------------------------------------------------- */

static void liveblk_load(void)
{
    server = server_new();
}

static void liveblk_unload(void)
{
    if (server) {
        server_free(server);
        server = NULL;
    }
}

static int liveblk_config(const char *key, const char *value)
{
    GError *error = NULL;
    int status = 0;

    if (!strcmp(key, "disk")) {
        status = server_add_disk(server, value, &error);
        has_disk = true;
    } else if (!strcmp(key, "admin")) {
        status = server_set_admin(server, value, &error);
    } else if (!strcmp(key, "name") && strchr(value, ',')) {
        /* nbdkit takes "name=vda,file=..." for this parameter if disk= was forgotten. */
        nbdkit_error("the server's name must not hold a comma; did you mean disk=name=%s?", value);
        return -1;
    } else if (!strcmp(key, "name")) {
        server_set_name(server, value);
    } else if (!strcmp(key, "read-only")) {
        int read_only = nbdkit_parse_bool(value);

        if (read_only < 0) {
            return -1;
        }
        server_set_read_only(server, read_only);
    } else if (!strcmp(key, "image-references")) {
        status = server_set_image_references(server, value, &error);
    } else {
        nbdkit_error("unknown parameter '%s': this plugin knows disk, admin, name, read-only and "
                     "image-references",
                     key);
        return -1;
    }
    return status < 0 ? fail(error) : 0;
}

#define liveblk_config_help                                                                        \
    "[disk=]<FILE>            A disk to serve, or name=NAME,file=FILE,...; may repeat\n"           \
    "admin=<SOCKET>           Listen for admin clients (QMP) on this socket\n"                     \
    "name=<NAME>              What query-name answers\n"                                           \
    "read-only=true|false     Open all disks read-only\n"                                          \
    "image-references=...     What images may refer to: all, none, or DIRECTORY:..."

static void liveblk_dump_plugin(void)
{
    g_autofree char *drivers = server_driver_names();
    g_autofree char *jobs = server_job_types();

    printf("liveblk_version=%s\n", server_version());
    printf("liveblk_formats=%s\n", drivers);
    printf("liveblk_jobs=%s\n", jobs);
}

static int liveblk_get_ready(void)
{
    GError *error = NULL;

    if (!has_disk) {
        nbdkit_error("No disk was given: use disk=PATH");
        return -1;
    }
    return server_prepare(server, &error) < 0 ? fail(error) : 0;
}

static void tell_end_thread(void)
{
    uint64_t one = 1;

    (void)!write(end_fd, &one, sizeof(one)); /* fails only if it was told very often */
}

static void handle_end_signal(int signal_number)
{
    int saved_errno = errno;

    tell_end_thread();
    errno = saved_errno;
    for (size_t i = 0; i < G_N_ELEMENTS(end_signals); i++) {
        if (end_signals[i] == signal_number) {
            nbdkit_actions[i].sa_handler(signal_number);
        }
    }
}

static void *wait_for_end(void *data)
{
    uint64_t count;

    while (read(end_fd, &count, sizeof(count)) < 0 && errno == EINTR) {
    }
    if (!atomic_load(&ended)) {
        server_begin_stop(server);
    }
    return NULL;
}

/* Only where nbdkit has a plain handler of its own: what is ignored stays ignored. */
static void take_over_signals(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(end_signals); i++) {
        struct sigaction action;

        if (sigaction(end_signals[i], NULL, &action) < 0 || action.sa_flags & SA_SIGINFO ||
            action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN) {
            continue;
        }
        nbdkit_actions[i] = action;
        action.sa_handler = handle_end_signal;
        sigaction(end_signals[i], &action, NULL);
    }
}

static void give_signals_back(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(end_signals); i++) {
        if (nbdkit_actions[i].sa_handler) {
            sigaction(end_signals[i], &nbdkit_actions[i], NULL);
        }
    }
}

static int watch_for_end(void)
{
    int error_number = thread_create(&end_thread, wait_for_end, NULL);

    if (error_number) {
        nbdkit_error("could not start the thread that watches for the end: %s",
                     strerror(error_number));
        return -1;
    }
    is_watching = true;
    take_over_signals();
    return 0;
}

static void stop_watching(void)
{
    if (is_watching) {
        give_signals_back();
        atomic_store(&ended, true);
        tell_end_thread();
        pthread_join(end_thread, NULL);
        is_watching = false;
    }
}

static void quit(void *data)
{
    tell_end_thread();
    nbdkit_shutdown();
}

static int liveblk_after_fork(void)
{
    GError *error = NULL;

    /* A client of the admin socket may say quit before anybody watches. */
    end_fd = eventfd(0, EFD_CLOEXEC);
    if (end_fd < 0) {
        nbdkit_error("could not make an eventfd: %m");
        return -1;
    }
    if (server_start(server, quit, NULL, &error) < 0) {
        return fail(error);
    }
    return watch_for_end();
}

/* The connections are closed. */
static void liveblk_cleanup(void)
{
    stop_watching();
    server_stop(server);
    if (end_fd >= 0) {
        close(end_fd); /* until now somebody might have said quit */
        end_fd = -1;
    }
}

/* ---- Exports -------------------------------------------------------------------------------- */

static int liveblk_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports)
{
    struct export_entry *list = export_list();
    int status = 0;

    for (struct export_entry *entry = list; entry->name && status == 0; entry++) {
        status = nbdkit_add_export(exports, entry->name, entry->description);
    }
    export_list_free(list);
    return status;
}

static const char *liveblk_default_export(int readonly, int is_tls)
{
    g_autofree char *name = export_default_name();

    return name ? nbdkit_strdup_intern(name) : "";
}

static void *liveblk_open(int readonly)
{
    GError *error = NULL;
    struct export_handle *handle = export_open(nbdkit_export_name(), readonly, &error);

    if (!handle) {
        fail(error);
        nbdkit_set_error(ENOENT);
    }
    return handle;
}

static void liveblk_close(void *handle)
{
    export_close(handle);
}

static const char *liveblk_export_description(void *handle)
{
    return nbdkit_strdup_intern(export_description(handle));
}

static int64_t liveblk_get_size(void *handle)
{
    return (int64_t)export_length(handle);
}

static int liveblk_block_size(void *handle, uint32_t *minimum, uint32_t *preferred,
                              uint32_t *maximum)
{
    export_block_size(handle, minimum, preferred, maximum);
    return 0;
}

static int liveblk_can_write(void *handle)
{
    return !export_is_read_only(handle);
}

static int liveblk_yes(void *handle)
{
    return 1;
}

static int liveblk_no(void *handle)
{
    return 0;
}

static int liveblk_can_fua(void *handle)
{
    return NBDKIT_FUA_NATIVE;
}

static int liveblk_can_cache(void *handle)
{
    return NBDKIT_CACHE_NATIVE;
}

/* ---- Requests ------------------------------------------------------------------------------- */

static int liveblk_pread(void *handle, void *buffer, uint32_t count, uint64_t offset,
                         uint32_t flags)
{
    int status = export_pread(handle, buffer, offset, count);

    return status < 0 ? fail_request(status, "read", count, offset) : 0;
}

static int liveblk_pwrite(void *handle, const void *buffer, uint32_t count, uint64_t offset,
                          uint32_t flags)
{
    int status = export_pwrite(handle, buffer, offset, count, flags & NBDKIT_FLAG_FUA);

    return status < 0 ? fail_request(status, "write", count, offset) : 0;
}

static int liveblk_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    unsigned request_flags = 0;

    request_flags |= flags & NBDKIT_FLAG_FUA ? BLOCK_REQUEST_FUA : 0;
    request_flags |= flags & NBDKIT_FLAG_MAY_TRIM ? BLOCK_REQUEST_MAY_UNMAP : 0;
    request_flags |= flags & NBDKIT_FLAG_FAST_ZERO ? BLOCK_REQUEST_NO_FALLBACK : 0;
    int status = export_write_zeroes(handle, offset, count, request_flags);

    return status < 0 ? fail_request(status, "write-zeroes", count, offset) : 0;
}

static int liveblk_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    int status = export_discard(handle, offset, count, flags & NBDKIT_FLAG_FUA);

    return status < 0 ? fail_request(status, "trim", count, offset) : 0;
}

static int liveblk_flush(void *handle, uint32_t flags)
{
    int status = export_flush(handle);

    return status < 0 ? fail_request(status, "flush", 0, 0) : 0;
}

static int liveblk_cache(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    int status = export_prefetch(handle, offset, count);

    return status < 0 ? fail_request(status, "cache", count, offset) : 0;
}

static uint32_t extent_type(const struct block_extent *extent)
{
    if (!(extent->flags & BLOCK_STATUS_ZERO)) {
        return extent->flags & EXPORT_STATUS_UNCHANGED ? NBDKIT_EXTENT_HOLE : 0;
    }
    /* A hole takes no space: an explicit zero does not either. */
    return extent->flags & BLOCK_STATUS_DATA ? NBDKIT_EXTENT_ZERO
                                             : NBDKIT_EXTENT_ZERO | NBDKIT_EXTENT_HOLE;
}

static int liveblk_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                           struct nbdkit_extents *extents)
{
    uint64_t end = offset + count;

    while (offset < end) {
        struct block_extent extent;
        int status = export_block_status(handle, offset, end - offset, &extent);

        if (status < 0) {
            return fail_request(status, "block status", count, offset);
        }
        if (nbdkit_add_extent(extents, offset, extent.bytes, extent_type(&extent)) < 0) {
            return -1;
        }
        offset += extent.bytes;
        if (flags & NBDKIT_FLAG_REQ_ONE) {
            break;
        }
    }
    return 0;
}

static struct nbdkit_plugin plugin = {
    .name = "liveblk",
    .longname = "live block jobs plugin",
    .version = LIVEBLK_VERSION,
    .description = "serves a guest's disks and backs them up while they are written",
    .magic_config_key = "disk",
    .errno_is_preserved = 1,
    .load = liveblk_load,
    .unload = liveblk_unload,
    .config = liveblk_config,
    .config_help = liveblk_config_help,
    .dump_plugin = liveblk_dump_plugin,
    .get_ready = liveblk_get_ready,
    .after_fork = liveblk_after_fork,
    .cleanup = liveblk_cleanup,
    .list_exports = liveblk_list_exports,
    .default_export = liveblk_default_export,
    .open = liveblk_open,
    .close = liveblk_close,
    .export_description = liveblk_export_description,
    .get_size = liveblk_get_size,
    .block_size = liveblk_block_size,
    .can_write = liveblk_can_write,
    .can_flush = liveblk_yes,
    .is_rotational = liveblk_no,
    .can_trim = liveblk_yes,
    .can_zero = liveblk_yes,
    .can_fast_zero = liveblk_yes,
    .can_extents = liveblk_yes,
    .can_fua = liveblk_can_fua,
    .can_multi_conn = liveblk_yes,
    .can_cache = liveblk_can_cache,
    .pread = liveblk_pread,
    .pwrite = liveblk_pwrite,
    .zero = liveblk_zero,
    .trim = liveblk_trim,
    .flush = liveblk_flush,
    .cache = liveblk_cache,
    .extents = liveblk_extents,
};

/* nbdkit's macro defines this function without declaring it. */
struct nbdkit_plugin *plugin_init(void);

NBDKIT_REGISTER_PLUGIN(plugin)
