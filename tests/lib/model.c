/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Each sector has the list of the requests whose outcome it may show. A request joins the list
 * of its sectors when it begins. When it ends, it strikes out those that had ended before it
 * began: they are overwritten for certain. What overlapped it in time stays possible.
 *
 * A snapshot copies the lists. Requests are shared between a model and its snapshots; of a
 * shared request only the atomic fields change.
 */
#include "tests/lib/model.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/clock.h"

#define DETAIL_LINES  20
#define COMPARE_BYTES MIB
#define IN_FLIGHT     UINT64_MAX
#define END_PATIENCE  10000 /* milliseconds; a request that takes longer did not fail */

struct model_request {
    atomic_uint references; /* one per list it is in, one for its caller */
    enum model_operation operation;
    uint32_t writer;
    uint64_t sequence;
    uint64_t offset;
    uint64_t bytes;
    uint64_t time_ns;
    uint64_t began;         /* in ticks of the model */
    _Atomic uint64_t ended; /* IN_FLIGHT before */
    atomic_bool partial;    /* may have changed some sectors and others not */
};

/* The requests whose outcome a sector may show; never empty. Most have just one. */
struct sector {
    uint32_t count;
    uint32_t capacity; /* of many; 0: the one is in place */
    union {
        struct model_request *one;
        struct model_request **many;
    };
};

struct model_read {
    uint64_t offset;
    uint64_t bytes;
    struct sector *sectors; /* what each may show: all that was possible at any moment since */
    bool disturbed;         /* a request that overlaps was in flight, or came */
    struct model_read *next;
};

struct model {
    pthread_mutex_t lock; /* guards all below that changes; no other lock is taken under it */
    uint64_t length;
    size_t sector_size;
    struct sector *sectors;
    uint64_t ticks;
    uint64_t next_sequence;
    struct model_read *reads; /* under way */
    /*
     * In a snapshot: when it was taken, in ticks of the model it was taken of, and which of the
     * requests in flight then were seen to be in or out of it (request -> enum whereabouts).
     */
    bool frozen;
    uint64_t instant;
    GHashTable *whereabouts;
};

enum whereabouts {
    SEEN_IN = 1,
    SEEN_OUT = 2,
    SEEN_BOTH = SEEN_IN | SEEN_OUT,
};

static struct model_request *request_ref(struct model_request *request)
{
    atomic_fetch_add_explicit(&request->references, 1, memory_order_relaxed);
    return request;
}

static void request_unref(struct model_request *request)
{
    if (atomic_fetch_sub_explicit(&request->references, 1, memory_order_acq_rel) == 1) {
        g_free(request);
    }
}

static struct model_request **sector_list(struct sector *sector)
{
    return sector->capacity ? sector->many : &sector->one;
}

static void sector_add(struct sector *sector, struct model_request *request)
{
    if (sector->count == MAX_OF(sector->capacity, 1u)) {
        uint32_t capacity = sector->count * 2;
        struct model_request **many = g_new(struct model_request *, capacity);

        memcpy(many, sector_list(sector), sector->count * sizeof(*many));
        if (sector->capacity) {
            g_free(sector->many);
        }
        sector->many = many;
        sector->capacity = capacity;
    }
    sector_list(sector)[sector->count++] = request_ref(request);
}

static void sector_clear(struct sector *sector)
{
    for (uint32_t i = 0; i < sector->count; i++) {
        request_unref(sector_list(sector)[i]);
    }
    if (sector->capacity) {
        g_free(sector->many);
    }
    *sector = (struct sector){0};
}

/* Keep what the predicate wants; if nothing is left of a list in use, that is a bug here. */
static void sector_filter(struct sector *sector,
                          bool (*keep)(const struct model_request *request, const void *data),
                          const void *data)
{
    struct model_request **list = sector_list(sector);
    uint32_t kept = 0;

    for (uint32_t i = 0; i < sector->count; i++) {
        if (keep(list[i], data)) {
            list[kept++] = list[i];
        } else {
            request_unref(list[i]);
        }
    }
    g_assert_cmpuint(kept, >, 0);
    sector->count = kept;
}

static void sector_copy(struct sector *to, struct sector *from)
{
    *to = (struct sector){0};
    for (uint32_t i = 0; i < from->count; i++) {
        sector_add(to, sector_list(from)[i]);
    }
}

static struct sector *sector_at(struct model *model, uint64_t offset)
{
    return &model->sectors[offset / model->sector_size];
}

static uint64_t sector_count(const struct model *model)
{
    return model->length / model->sector_size;
}

static void check_range(const struct model *model, uint64_t offset, uint64_t bytes)
{
    g_assert_true(range_within(offset, bytes, model->length));
    g_assert_cmpuint(offset % model->sector_size, ==, 0);
    g_assert_cmpuint(bytes % model->sector_size, ==, 0);
}

static struct model *model_alloc(uint64_t length, size_t sector_size)
{
    struct model *model = g_new0(struct model, 1);

    g_assert_cmpuint(sector_size, >=, PATTERN_SECTOR_MIN);
    g_assert_cmpuint(sector_size % PATTERN_SECTOR_MIN, ==, 0);
    g_assert_cmpuint(length % sector_size, ==, 0);
    pthread_mutex_init(&model->lock, NULL);
    model->length = length;
    model->sector_size = sector_size;
    model->sectors = g_new0(struct sector, sector_count(model));
    return model;
}

struct model *model_new(uint64_t length, size_t sector_size)
{
    struct model *model = model_alloc(length, sector_size);
    struct model_request *made = model_begin(model, MODEL_ZEROES, 0, 0, length);

    model_end(model, made, 0);
    return model;
}

void model_free(struct model *model)
{
    if (!model) {
        return;
    }
    g_assert_null(model->reads);
    for (uint64_t i = 0; i < sector_count(model); i++) {
        sector_clear(&model->sectors[i]);
    }
    g_free(model->sectors);
    g_clear_pointer(&model->whereabouts, g_hash_table_unref);
    pthread_mutex_destroy(&model->lock);
    g_free(model);
}

uint64_t model_length(const struct model *model)
{
    return model->length;
}

size_t model_sector_size(const struct model *model)
{
    return model->sector_size;
}

/* A read under way may show the request as well, even if something overwrites it at once. */
static void add_to_reads(struct model *model, struct model_request *request)
{
    const size_t size = model->sector_size;

    for (struct model_read *read = model->reads; read; read = read->next) {
        uint64_t start = MAX_OF(read->offset, request->offset);
        uint64_t end = MIN_OF(read->offset + read->bytes, request->offset + request->bytes);

        for (uint64_t at = start; at < end; at += size) {
            sector_add(&read->sectors[(at - read->offset) / size], request);
            read->disturbed = true;
        }
    }
}

struct model_request *model_begin(struct model *model, enum model_operation operation,
                                  uint32_t writer, uint64_t offset, uint64_t bytes)
{
    struct model_request *request = g_new0(struct model_request, 1);

    check_range(model, offset, bytes);
    g_assert_false(model->frozen);
    atomic_init(&request->references, 1);
    atomic_init(&request->ended, IN_FLIGHT);
    atomic_init(&request->partial, operation == MODEL_TRIM);
    request->operation = operation;
    request->writer = writer;
    request->offset = offset;
    request->bytes = bytes;
    request->time_ns = clock_now_ns();

    SCOPE_LOCK(&model->lock);
    request->sequence = model->next_sequence++;
    request->began = ++model->ticks;
    for (uint64_t at = offset; at < offset + bytes; at += model->sector_size) {
        sector_add(sector_at(model, at), request);
    }
    add_to_reads(model, request);
    return request;
}

void model_fill(const struct model *model, const struct model_request *request, void *buffer)
{
    struct pattern first = {
        .address = request->offset,
        .sequence = request->sequence,
        .time_ns = request->time_ns,
        .writer = request->writer,
    };

    g_assert_cmpint(request->operation, ==, MODEL_WRITE);
    pattern_fill(buffer, request->bytes, model->sector_size, &first);
}

static bool had_ended_before(const struct model_request *request, uint64_t tick)
{
    return atomic_load(&request->ended) < tick;
}

static bool survives(const struct model_request *request, const void *overwriting)
{
    return !had_ended_before(request, ((const struct model_request *)overwriting)->began);
}

void model_end(struct model *model, struct model_request *request, int error)
{
    {
        SCOPE_LOCK(&model->lock);
        if (error) {
            atomic_store(&request->partial, true);
        }
        atomic_store(&request->ended, ++model->ticks);
        for (uint64_t at = request->offset;
             at < request->offset + request->bytes && !atomic_load(&request->partial);
             at += model->sector_size) {
            sector_filter(sector_at(model, at), survives, request);
        }
    }
    request_unref(request);
}

static bool any_in_flight(struct sector *sector)
{
    for (uint32_t i = 0; i < sector->count; i++) {
        if (atomic_load(&sector_list(sector)[i]->ended) == IN_FLIGHT) {
            return true;
        }
    }
    return false;
}

struct model_read *model_read_begin(struct model *model, uint64_t offset, uint64_t bytes)
{
    const uint64_t count = bytes / model->sector_size;
    struct model_read *read = g_new0(struct model_read, 1);

    check_range(model, offset, bytes);
    read->offset = offset;
    read->bytes = bytes;
    read->sectors = g_new0(struct sector, count);

    SCOPE_LOCK(&model->lock);
    for (uint64_t i = 0; i < count; i++) {
        struct sector *sector = sector_at(model, offset + i * model->sector_size);

        sector_copy(&read->sectors[i], sector);
        read->disturbed |= !model->frozen && any_in_flight(sector);
    }
    read->next = model->reads;
    model->reads = read;
    return read;
}

/* What was found in a sector, and which of the possible requests put it there. */
struct finding {
    enum pattern_verdict verdict;
    bool zeroes;
    uint64_t sequence; /* of the data found */
};

static bool explains(const struct model_request *request, const void *data)
{
    const struct finding *finding = data;

    if (finding->zeroes) {
        return request->operation != MODEL_WRITE;
    }
    return request->operation == MODEL_WRITE && request->sequence == finding->sequence;
}

static void describe_possible(GString *details, struct sector *sector)
{
    static const char *const names[] = {
        [MODEL_WRITE] = "write",
        [MODEL_ZEROES] = "zeroes",
        [MODEL_TRIM] = "trim",
    };

    for (uint32_t i = 0; i < sector->count; i++) {
        struct model_request *request = sector_list(sector)[i];

        g_string_append_printf(details, "%s %s %" PRIu64 " of writer %" PRIu32, i ? " or" : "",
                               names[request->operation], request->sequence, request->writer);
    }
}

static GString *report_details(struct model_report *report)
{
    if (!report->details) {
        report->details = g_string_new(NULL);
    }
    return report->details;
}

static void report_wrong(struct model_report *report, uint64_t address, struct sector *sector,
                         enum pattern_verdict verdict, const struct pattern *found)
{
    GString *details = report_details(report);

    report->verdicts[verdict]++;
    if (++report->wrong > DETAIL_LINES) {
        return;
    }
    g_string_append_printf(details, "sector at 0x%" PRIx64 " is %s", address,
                           pattern_verdict_name(verdict));
    if (verdict != PATTERN_IS_LOST && verdict != PATTERN_IS_FOREIGN) {
        g_string_append_printf(details,
                               ": holds write %" PRIu64 " of writer %" PRIu32 " to 0x%" PRIx64,
                               found->sequence, found->writer, found->address);
    }
    g_string_append(details, "; expected");
    describe_possible(details, sector);
    g_string_append_c(details, '\n');
}

/* Judge the sector against the possible requests. */
static struct finding judge(const struct model *model, uint64_t address, const void *bytes,
                            struct sector *sector, struct model_report *report)
{
    g_autofree uint64_t *sequences = g_new(uint64_t, sector->count);
    struct pattern_allowed allowed = {.sequences = sequences};
    struct pattern found;

    for (uint32_t i = 0; i < sector->count; i++) {
        const struct model_request *request = sector_list(sector)[i];

        if (request->operation == MODEL_WRITE) {
            sequences[allowed.count++] = request->sequence;
        } else {
            allowed.zeroes = true;
            allowed.zero_sequence = MAX_OF(allowed.zero_sequence, request->sequence);
        }
    }

    struct finding finding = {
        .verdict = pattern_check(bytes, model->sector_size, address, &allowed, &found),
        .zeroes = pattern_identify(bytes, model->sector_size, NULL) == PATTERN_ZEROES,
        .sequence = found.sequence,
    };
    report->sectors++;
    if (finding.verdict != PATTERN_GOOD) {
        report_wrong(report, address, sector, finding.verdict, &found);
    }
    return finding;
}

/*
 * Whether the request may have been done in part, which is known when it has ended: one that failed
 * may be so, and was perhaps looked at before its writer got round to saying that it failed.
 */
static bool may_be_partial(const struct model_request *request)
{
    for (unsigned i = 0; i < END_PATIENCE && atomic_load(&request->ended) == IN_FLIGHT; i++) {
        g_usleep(1000);
    }
    return atomic_load(&request->partial);
}

static void note_whereabouts(struct model *model, struct model_request *request,
                             enum whereabouts seen, struct model_report *report)
{
    unsigned before = GPOINTER_TO_UINT(g_hash_table_lookup(model->whereabouts, request));
    unsigned after = before | seen;

    if (before == after) {
        return;
    }
    g_hash_table_insert(model->whereabouts, request_ref(request), GUINT_TO_POINTER(after));
    if (after == SEEN_BOTH && !may_be_partial(request)) {
        report->split++;
        report->wrong++;
        g_string_append_printf(report_details(report),
                               "write %" PRIu64 " of writer %" PRIu32 " to 0x%" PRIx64 "+0x%" PRIx64
                               " is partly in the snapshot and partly not\n",
                               request->sequence, request->writer, request->offset, request->bytes);
    }
}

/*
 * A snapshot's sector holds what the request shown put there. That request is in; one that was
 * in flight and began after the one shown had ended is out, for it would have overwritten it.
 */
static void learn_whereabouts(struct model *model, struct sector *sector,
                              const struct finding *finding, struct model_report *report)
{
    struct model_request *shown = NULL;

    for (uint32_t i = 0; i < sector->count; i++) {
        if (explains(sector_list(sector)[i], finding)) {
            if (shown) {
                return; /* zeroes of one request look like those of another */
            }
            shown = sector_list(sector)[i];
        }
    }
    for (uint32_t i = 0; i < sector->count; i++) {
        struct model_request *request = sector_list(sector)[i];
        bool in_flight = !had_ended_before(request, model->instant);

        if (!in_flight || atomic_load(&request->partial)) {
            continue;
        }
        if (request == shown) {
            note_whereabouts(model, request, SEEN_IN, report);
        } else if (had_ended_before(shown, request->began)) {
            note_whereabouts(model, request, SEEN_OUT, report);
        }
    }
}

/* What was seen once holds at every later look, if nothing was writing. */
static void rule_out_others(struct model *model, uint64_t address, const struct finding *finding,
                            struct model_report *report)
{
    struct sector *sector = sector_at(model, address);

    if (sector->count == 1) {
        return;
    }
    if (model->frozen) {
        learn_whereabouts(model, sector, finding, report);
    }
    sector_filter(sector, explains, finding);
}

static void leave_reads(struct model *model, struct model_read *read)
{
    struct model_read **link = &model->reads;

    while (*link != read) {
        link = &(*link)->next;
    }
    *link = read->next;
}

/*
 * A read that nothing disturbed is judged by what the sector may show now, not when the read
 * began: another read may have ruled something out meanwhile, and the two must agree.
 */
static void judge_sector(struct model *model, struct model_read *read, uint64_t i,
                         const void *bytes, struct model_report *report)
{
    const uint64_t address = read->offset + i * model->sector_size;
    struct sector *possible = read->disturbed ? &read->sectors[i] : sector_at(model, address);
    struct finding finding = judge(model, address, bytes, possible, report);

    if (finding.verdict == PATTERN_GOOD && !read->disturbed) {
        rule_out_others(model, address, &finding, report);
    }
}

void model_read_end(struct model *model, struct model_read *read, const void *buffer,
                    struct model_report *report)
{
    const uint64_t count = read->bytes / model->sector_size;

    {
        SCOPE_LOCK(&model->lock);
        leave_reads(model, read);
        for (uint64_t i = 0; buffer && i < count; i++) {
            judge_sector(model, read, i, (const char *)buffer + i * model->sector_size, report);
        }
    }
    for (uint64_t i = 0; i < count; i++) {
        sector_clear(&read->sectors[i]);
    }
    g_free(read->sectors);
    g_free(read);
}

struct model *model_snapshot(struct model *model)
{
    struct model *snapshot = model_alloc(model->length, model->sector_size);

    snapshot->frozen = true;
    snapshot->whereabouts = g_hash_table_new_full(NULL, NULL, (GDestroyNotify)request_unref, NULL);

    SCOPE_LOCK(&model->lock);
    snapshot->instant = ++model->ticks;
    for (uint64_t i = 0; i < sector_count(model); i++) {
        sector_copy(&snapshot->sectors[i], &model->sectors[i]);
    }
    return snapshot;
}

/* Read and judge one piece. */
static int compare_piece(struct model *model, model_reader reader, void *data, void *buffer,
                         uint64_t offset, uint64_t bytes, struct model_report *report)
{
    struct model_read *read = model_read_begin(model, offset, bytes);
    int result = reader(data, buffer, offset, bytes);

    model_read_end(model, read, result ? NULL : buffer, report);
    if (result) {
        g_string_append_printf(report_details(report),
                               "reading 0x%" PRIx64 "+0x%" PRIx64 " failed: %s\n", offset, bytes,
                               g_strerror(-result));
    }
    return result;
}

bool model_compare(struct model *model, model_reader reader, void *data,
                   struct model_report *report)
{
    const uint64_t piece = align_up(COMPARE_BYTES, model->sector_size);
    g_autofree void *buffer = g_malloc(piece);
    bool readable = true;

    *report = (struct model_report){0};
    report_details(report);
    for (uint64_t offset = 0; offset < model->length; offset += piece) {
        uint64_t bytes = MIN_OF(piece, model->length - offset);

        readable &= !compare_piece(model, reader, data, buffer, offset, bytes, report);
    }
    return readable && report->wrong == 0;
}

static int read_file(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    const int *fd = data;

    while (bytes) {
        ssize_t got = TEMP_FAILURE_RETRY(pread(*fd, buffer, bytes, (off_t)offset));

        if (got <= 0) {
            return got ? -errno : -ENODATA;
        }
        buffer = (char *)buffer + got;
        offset += got;
        bytes -= got;
    }
    return 0;
}

bool model_compare_file(struct model *model, const char *path, struct model_report *report)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;

    *report = (struct model_report){0};
    if (fd < 0 || fstat(fd, &status)) {
        g_string_append_printf(report_details(report), "cannot open %s: %s\n", path,
                               g_strerror(errno));
        return false;
    }
    if ((uint64_t)status.st_size != model->length) {
        g_string_append_printf(report_details(report), "%s is %jd bytes long, not %" PRIu64 "\n",
                               path, (intmax_t)status.st_size, model->length);
        return false;
    }
    return model_compare(model, read_file, &fd, report);
}

void model_report_clear(struct model_report *report)
{
    if (report->details) {
        g_string_free(report->details, TRUE);
    }
    *report = (struct model_report){0};
}
