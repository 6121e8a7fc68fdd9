/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/guest-figures.h"

#include "server/qmp/json-value.h"

static const struct qmp_member waits_members[] = {
    {"requests", &qmp_type_int,
     .doc = "Waits there were: for old data to be kept, at a mirror's gate, for a range that is "
            "being copied, for a target that is written at the same time, or while the job changed "
            "the disk's nodes."},
    {"longest-ns", &qmp_type_int, .doc = "The longest, in nanoseconds."},
    {"p99-ns", &qmp_type_int,
     .doc = "99 of 100 were no longer than this; up to a quarter too high."},
    {NULL},
};
const struct qmp_type guest_waits_type = {
    .name = "JobGuestWaits",
    .kind = QMP_KIND_OBJECT,
    .members = waits_members,
};

const struct qmp_type guest_pace_type = {
    .name = "JobGuestPace",
    .kind = QMP_KIND_ENUM,
    .values = guest_pace_names,
    .doc = "free: the job copies as fast as it would without guest-latency. held-back: it copies "
           "less, because the guest's latency was above it. floor: the same, and it copies as "
           "little as it ever does, so that it comes to its end. recovering: the latency is below "
           "it, and the job copies more, step by step.",
};

json_t *guest_waits_object(const struct guest_waits_report *waits)
{
    return json_pack("{s:o, s:o, s:o}", "requests", json_value_from_u64(waits->count), "longest-ns",
                     json_value_from_u64(waits->longest_ns), "p99-ns",
                     json_value_from_u64(waits->p99_ns));
}

void guest_figures_add(json_t *object, const struct job_info *info)
{
    json_object_set_new(object, "guest-waits", guest_waits_object(&info->guest_waits));
    if (info->guest_latency_ns) {
        json_object_set_new(object, "guest-latency",
                            json_integer((json_int_t)info->guest_latency_ns));
        json_object_set_new(object, "guest-p99", json_value_from_u64(info->guest_p99_ns));
        json_object_set_new(object, "guest-pace", json_string(guest_pace_names[info->guest_pace]));
    }
}
