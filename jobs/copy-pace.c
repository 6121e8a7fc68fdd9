/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/copy-pace.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/clock.h"
#include "block/copy-map.h"
#include "formats/snapshot-access.h"

/* Fewer requests than this in a tick (200 a second) are a guest that is idle. */
#define BUSY_REQUESTS 4

/* While the guest is busy pieces are smaller: a drain of the source waits for them. */
#define BUSY_CHUNK (512 * KIB)

/* With low effort beside a busy guest, a worker rests this many times as long as it works. */
#define LOW_REST_FACTOR 24

/*
 * With normal effort it rests this part of the time that it ran on a processor, if the guest leaves
 * some idle. A guest's thread that wakes up where a worker runs waits for the kernel to take the
 * worker off, which takes milliseconds.
 */
#define REST_FACTOR 0.66

/* It rests when there is so much to rest: to sleep for less takes longer than one wants to. */
#define REST_MIN_NS (300 * NS_PER_MS / 1000)

static bool stands_on(struct block_device *device, struct block_node *wanted)
{
    AUTO(block_node) root = block_device_root(device);
    const struct block_node *node = root;
    SCOPE_LOCK(&block_graph_lock);

    while (node && node != wanted && node->driver->is_filter) {
        node = node->file;
    }
    return node && node == wanted;
}

/* It is a layer of the device's chain. */
static bool reaches(struct block_device *device, struct block_node *wanted)
{
    AUTO(block_node) root = block_device_root(device);

    return root && block_chain_contains(root, wanted);
}

/* An export of a node that nobody can write shows the disk to others than its guest. */
static bool may_be_guest(struct block_device *device)
{
    return block_device_is_listed(device) || !block_device_is_read_only(device);
}

static struct block_device *find_first(struct block_device **list, struct block_node *node,
                                       bool matches(struct block_device *, struct block_node *))
{
    for (struct block_device **device = list; *device; device++) {
        if (may_be_guest(*device) && matches(*device, node)) {
            return block_device_ref(*device);
        }
    }
    return NULL;
}

struct block_device *copy_pace_find_guest(struct block_node *source)
{
    struct block_node *past_of = snapshot_access_source(source);
    struct block_node *node = past_of ? past_of : source;
    struct block_device **list = block_device_list_with_shared();
    struct block_device *guest = find_first(list, node, stands_on);

    if (!guest) {
        guest = find_first(list, node, reaches);
    }
    block_device_list_free(list);
    return guest;
}

void copy_pace_init(struct copy_pace *pace, struct block_device *guest, unsigned max_workers)
{
    unsigned processors = (unsigned)MAX_OF(sysconf(_SC_NPROCESSORS_ONLN), 1L);

    *pace = (struct copy_pace){
        .guest = guest,
        .guest_is_busy = guest != NULL, /* until we know */
        .processors = processors,
        .max_workers = max_workers,
        .workers = guest ? 1 : MIN_OF(max_workers, MAX_OF(processors, 2u)),
    };
    guest_latency_init(&pace->latency, max_workers);
}

/*
 * How many workers keep everything busy: as many as there are processors if pieces are all
 * processor time, more if they mostly wait for storage or a network. Workers that wait for a
 * processor because there are too many of them must not count as waiting for storage.
 */
static unsigned useful_workers(const struct copy_pace *pace)
{
    double crowding = MAX_OF((double)pace->workers / pace->processors, 1.0);
    double waiting = pace->processor_ns > 0 ? pace->wall_ns / pace->processor_ns / crowding : 1;
    double useful = pace->processors * CLAMP(waiting, 1.0, (double)pace->max_workers);

    return (unsigned)MIN_OF(useful, (double)pace->max_workers);
}

/*
 * How many of others' threads want a processor at any time. A worker takes as many times as long
 * as it runs as there are threads for each processor; those that are workers do not count, or
 * workers that are in each other's way would be taken for a busy guest and become more and more.
 */
static double competitors(const struct copy_pace *pace)
{
    double wanted_ns = pace->processor_ns + pace->queued_ns;

    if (pace->processor_ns <= 0 || pace->elapsed_ns <= 0) {
        return 0;
    }
    double workers = CLAMP(wanted_ns / pace->elapsed_ns, 1.0, (double)pace->workers);
    return MAX_OF(pace->processors * wanted_ns / pace->processor_ns - workers, 0.0);
}

/*
 * The guest takes all it can get: two threads for each processor with a worker among them. Who
 * mostly waits for storage wants little, and has to wait each time it wakes up: that is no crowd.
 */
static bool is_crowded(const struct copy_pace *pace)
{
    return pace->processor_ns + pace->queued_ns >= pace->elapsed_ns / 2 &&
           competitors(pace) >= 2 * pace->processors - 1;
}

/*
 * One worker, unless a guest that takes all it can get leaves it only a part of a processor: then
 * so many that together they have about one, as the guest must not starve the job, whose end
 * is what sets it free; half as many again, because they also wait for locks. A worker that waits
 * for storage, which the guest may need as well, does not count as starved.
 */
static unsigned modest_workers(const struct copy_pace *pace)
{
    double most = MIN_OF(pace->max_workers, 4 * pace->processors);
    double fair = competitors(pace) / MAX_OF(pace->processors - 1, 1u);

    return pace->effort == COPY_EFFORT_LOW || !is_crowded(pace)
               ? 1
               : (unsigned)CLAMP(fair * 3 / 2, 1.0, most);
}

static bool must_yield(const struct copy_pace *pace)
{
    return pace->guest_is_busy && pace->effort != COPY_EFFORT_HIGH;
}

void copy_pace_set_effort(struct copy_pace *pace, enum copy_effort effort)
{
    pace->effort = effort;
    pace->rest_until_ns = 0;
    pace->hold_until_ns = 0;
}

/*
 * Once per tick, not per piece: a single piece that had to wait, as happens on any machine, says
 * little, and more workers because of it would wait for each other and so confirm it.
 */
static void forget(struct copy_pace *pace)
{
    pace->elapsed_ns *= 0.75;
    pace->wall_ns *= 0.75;
    pace->processor_ns *= 0.75;
    pace->queued_ns *= 0.75;
}

void copy_pace_set_guest_latency(struct copy_pace *pace, uint64_t latency_ns)
{
    guest_latency_set_target(&pace->latency, latency_ns);
    if (!latency_ns) {
        pace->hold_until_ns = 0;
    }
}

static void look_at_latency(struct copy_pace *pace, int64_t now_ns)
{
    struct guest_figures figures;

    if (pace->guest && guest_latency_is_due(&pace->latency, now_ns)) {
        statistics_latencies(block_device_statistics(pace->guest), figures.latencies);
        figures.is_busy = block_device_is_busy(pace->guest);
        guest_latency_feed(&pace->latency, &figures, pace->workers, now_ns);
    }
}

/* What is too much for the guest ends at once; all else changes by one. */
static void set_workers(struct copy_pace *pace, unsigned useful)
{
    if (pace->workers < useful) {
        pace->workers++;
    } else if (pace->workers > MAX_OF(useful, 1u)) {
        pace->workers--;
    }
    if (pace->effort != COPY_EFFORT_HIGH) {
        pace->workers = MIN_OF(pace->workers, guest_latency_workers(&pace->latency));
    }
}

/*
 * An idle guest gives the job everything; the number of workers moves by one per tick. A busy
 * one leaves it little.
 */
void copy_pace_look(struct copy_pace *pace, int64_t now_ns)
{
    if (now_ns - pace->last_look_ns < COPY_TICK_NS) {
        return;
    }
    if (pace->guest) {
        uint64_t requests = statistics_count(block_device_statistics(pace->guest));

        pace->guest_is_busy =
            !pace->last_look_ns || requests - pace->guest_requests >= BUSY_REQUESTS;
        pace->guest_requests = requests;
    }
    pace->elapsed_ns += pace->last_look_ns ? (double)(now_ns - pace->last_look_ns) : 0;
    pace->last_look_ns = now_ns;
    if (!pace->guest_is_busy) {
        pace->rest_until_ns = 0;
    }
    unsigned useful = must_yield(pace) ? modest_workers(pace) : useful_workers(pace);
    look_at_latency(pace, now_ns);
    set_workers(pace, useful);
    forget(pace);
}

/* It has less than one worker's time. */
static bool is_held_back(const struct copy_pace *pace)
{
    return pace->latency.allowance < 1 && pace->effort != COPY_EFFORT_HIGH;
}

uint64_t copy_pace_chunk(const struct copy_pace *pace, uint64_t max_chunk, uint64_t speed)
{
    uint64_t chunk = must_yield(pace) ? MIN_OF(max_chunk, BUSY_CHUNK) : max_chunk;

    if (is_held_back(pace)) {
        chunk = MIN_OF(chunk, GUEST_LATENCY_CHUNK);
    }
    if (speed) {
        uint64_t slice = align_down(speed / (NS_PER_SECOND / COPY_SLICE_NS), COPY_CLUSTER);

        chunk = MIN_OF(chunk, MAX_OF(slice, COPY_CLUSTER));
    }
    return chunk;
}

int64_t copy_pace_next_start_ns(const struct copy_pace *pace)
{
    return MAX_OF(pace->rest_until_ns, pace->hold_until_ns);
}

bool copy_pace_may_start(struct copy_pace *pace, uint64_t speed, int64_t now_ns)
{
    /* In floating point: neither tiny nor huge speeds may overflow or round to nothing. */
    double quota = (double)speed * COPY_SLICE_NS / NS_PER_SECOND;

    if (now_ns < copy_pace_next_start_ns(pace)) {
        return false;
    }
    if (!speed) {
        pace->slice_bytes = 0;
        return true;
    }
    /* What was let go too much at the end of a slice is paid for in the following ones. */
    while (now_ns - pace->slice_start_ns >= COPY_SLICE_NS) {
        if (pace->slice_bytes <= quota) {
            pace->slice_bytes = 0;
            pace->slice_start_ns = now_ns;
            break;
        }
        pace->slice_bytes -= quota;
        pace->slice_start_ns += COPY_SLICE_NS;
    }
    return pace->slice_bytes < quota;
}

void copy_pace_account(struct copy_pace *pace, uint64_t bytes)
{
    pace->slice_bytes += (double)bytes;
}

/* Time on a processor, and time in the queue for one. */
int copy_pace_open_account(void)
{
    return open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
}

/* The account knows the time on a processor only up to the last tick or switch, the clock to now.
 */
struct copy_use copy_pace_use(int account)
{
    struct copy_use use = {0};
    struct timespec used;
    char text[64];
    ssize_t length = account >= 0 ? pread(account, text, sizeof(text) - 1, 0) : -1;

    if (length > 0) {
        text[length] = '\0';
        sscanf(text, "%*d %" SCNd64, &use.queued_ns);
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    use.processor_ns = used.tv_sec * NS_PER_SECOND + used.tv_nsec;
    return use;
}

void copy_pace_measure(struct copy_pace *pace, int64_t start_ns, int64_t end_ns,
                       struct copy_use use)
{
    pace->wall_ns += (double)(end_ns - start_ns);
    pace->processor_ns += (double)use.processor_ns;
    pace->queued_ns += (double)use.queued_ns;
    if (is_held_back(pace)) {
        pace->hold_until_ns = end_ns + guest_latency_rest_ns(&pace->latency, end_ns - start_ns);
    }
    if (!must_yield(pace)) {
        return;
    }
    if (pace->effort == COPY_EFFORT_LOW) {
        pace->rest_until_ns = end_ns + (end_ns - start_ns) * LOW_REST_FACTOR;
    } else if (pace->effort == COPY_EFFORT_NORMAL && !is_crowded(pace)) {
        pace->rest_ns += (double)use.processor_ns * REST_FACTOR;
        if (pace->rest_ns >= REST_MIN_NS) {
            pace->rest_until_ns = end_ns + (int64_t)pace->rest_ns;
            pace->rest_ns = 0;
        }
    }
}
