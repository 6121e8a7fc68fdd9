/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands of the fault layers: blkdebug and lose-writes nodes. */
#include "server/commands-fault.h"

#include <errno.h>
#include <string.h>

#include "block/error.h"
#include "block/options-json.h"
#include "formats/blkdebug.h"
#include "formats/lose-writes.h"
#include "server/commands.h"
#include "server/lookup.h"
#include "server/types.h"

static struct block_node *find_node(json_t *arguments, GError **error)
{
    return block_node_find_or_error(json_string_value(json_object_get(arguments, "node-name")),
                                    error);
}

static uint64_t number(json_t *arguments, const char *name, uint64_t default_value)
{
    json_t *value = json_object_get(arguments, name);

    return value ? (uint64_t)json_integer_value(value) : default_value;
}

static int index_of(json_t *arguments, const char *name, const char *const *names)
{
    json_t *value = json_object_get(arguments, name);

    return value ? lookup_enum(value, names) : 0;
}

static const struct qmp_member node_members[] = {
    {"node-name", &qmp_type_string, .doc = "The node."},
    {NULL},
};
static const struct qmp_type node_type = {
    .name = "FaultNode",
    .kind = QMP_KIND_OBJECT,
    .members = node_members,
};

/* ---- blkdebug ------------------------------------------------------------------------------- */

/* Its members are made from the driver's own options. */
static struct qmp_type blkdebug_set_type = {
    .name = "BlkdebugSet",
    .kind = QMP_KIND_OBJECT,
    .base = &node_type,
};

static json_t *blkdebug_set(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(block_node) node = find_node(arguments, error);
    AUTO(block_options) options = block_options_from_json(arguments);

    return node && blkdebug_set_rules(node, options, error) == 0 ? json_object() : NULL;
}

static const struct qmp_type event_type = {
    .name = "BlkdebugEvent",
    .kind = QMP_KIND_ENUM,
    .values = blkdebug_event_names,
};
static const struct qmp_type iotype_type = {
    .name = "BlkdebugIOType",
    .kind = QMP_KIND_ENUM,
    .values = blkdebug_type_names,
};
static const struct qmp_member break_members[] = {
    {"tag", &qmp_type_string, .doc = "The break point's name."},
    {"event", &event_type, .optional = true, .default_text = "none",
     .doc = "Where a driver above announces this, and requests of this event's kind, or"},
    {"iotype", &iotype_type, .optional = true, .default_text = "any",
     .doc = "requests of this kind"},
    {"offset", &qmp_type_uint64, .optional = true, .default_text = "0",
     .doc = "that touch a range: its start, and"},
    {"bytes", &qmp_type_uint64, .optional = true, .default_text = "0",
     .doc = "its length; 0: to the end of the disk."},
    {NULL},
};
static const struct qmp_type break_type = {
    .name = "BlkdebugBreak",
    .kind = QMP_KIND_OBJECT,
    .base = &node_type,
    .members = break_members,
};

static json_t *blkdebug_break(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(block_node) node = find_node(arguments, error);
    const struct blkdebug_break point = {
        .tag = (char *)(uintptr_t)json_string_value(json_object_get(arguments, "tag")),
        .event = (enum block_debug_event)index_of(arguments, "event", blkdebug_event_names),
        .type = (enum blkdebug_type)index_of(arguments, "iotype", blkdebug_type_names),
        .offset = number(arguments, "offset", 0),
        .bytes = number(arguments, "bytes", 0),
    };

    if (!node) {
        return NULL;
    }
    if (point.event != BLOCK_DEBUG_NONE &&
        (json_object_get(arguments, "iotype") || point.offset || point.bytes)) {
        block_error(error, EINVAL, "Give either 'event', or 'iotype', 'offset' and 'bytes'");
        return NULL;
    }
    return blkdebug_set_break(node, &point, error) < 0 ? NULL : json_object();
}

static const struct qmp_member resume_members[] = {
    {"tag", &qmp_type_string, .doc = "The break point's name."},
    {NULL},
};
static const struct qmp_type resume_type = {
    .name = "BlkdebugResume",
    .kind = QMP_KIND_OBJECT,
    .base = &node_type,
    .members = resume_members,
};
static const struct qmp_member resumed_members[] = {
    {"resumed", &qmp_type_uint64, .doc = "How many requests stood there."},
    {NULL},
};
static const struct qmp_type resumed_type = {
    .name = "BlkdebugResumed",
    .kind = QMP_KIND_OBJECT,
    .members = resumed_members,
};

static json_t *resume(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(block_node) node = find_node(arguments, error);
    const char *tag = json_string_value(json_object_get(arguments, "tag"));
    uint64_t count;

    if (!node || blkdebug_resume(node, tag, &count, error) < 0) {
        return NULL;
    }
    return json_pack("{s:I}", "resumed", (json_int_t)count);
}

static const struct qmp_member rule_members[] = {
    {"event", &event_type, .doc = "The rule's event."},
    {"iotype", &iotype_type, .doc = "The requests it is for."},
    {"errno", &qmp_type_uint64, .doc = "The error it makes; 0: none."},
    {"seen", &qmp_type_uint64, .doc = "Requests that met it, skipped ones among them."},
    {"hits", &qmp_type_uint64, .doc = "Requests that it was applied to."},
    {NULL},
};
static const struct qmp_type rule_type = {
    .name = "BlkdebugRuleInfo",
    .kind = QMP_KIND_OBJECT,
    .members = rule_members,
};
static const struct qmp_type rules_type = {
    .name = "BlkdebugRuleInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &rule_type,
};
static const struct qmp_member break_info_members[] = {
    {"tag", &qmp_type_string, .doc = "The break point's name."},
    {"suspended", &qmp_type_uint64, .doc = "Requests that stand there."},
    {"reached", &qmp_type_uint64, .doc = "Requests that ever stood there."},
    {NULL},
};
static const struct qmp_type break_info_type = {
    .name = "BlkdebugBreakInfo",
    .kind = QMP_KIND_OBJECT,
    .members = break_info_members,
};
static const struct qmp_type breaks_type = {
    .name = "BlkdebugBreakInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &break_info_type,
};
static const struct qmp_member blkdebug_info_members[] = {
    {"state", &qmp_type_uint64, .doc = "The state machine's state."},
    {"inject-error", &rules_type, .doc = "The rules, in their order."},
    {"breaks", &breaks_type, .doc = "The break points."},
    {NULL},
};
static const struct qmp_type blkdebug_info_type = {
    .name = "BlkdebugInfo",
    .kind = QMP_KIND_OBJECT,
    .members = blkdebug_info_members,
};

static json_t *query_blkdebug(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(block_node) node = find_node(arguments, error);
    json_t *rules, *breaks;
    struct blkdebug_status status;

    if (!node || blkdebug_get_status(node, &status, error) < 0) {
        return NULL;
    }
    rules = json_array();
    for (size_t i = 0; i < status.rule_count; i++) {
        const struct blkdebug_inject *rule = &status.rules[i];

        json_array_append_new(rules,
                              json_pack("{s:s, s:s, s:I, s:I, s:I}", "event",
                                        blkdebug_event_names[rule->event], "iotype",
                                        blkdebug_type_names[rule->type], "errno",
                                        (json_int_t)rule->error_number, "seen",
                                        (json_int_t)rule->seen, "hits", (json_int_t)rule->hits));
    }
    breaks = json_array();
    for (size_t i = 0; i < status.break_count; i++) {
        json_array_append_new(breaks, json_pack("{s:s, s:I, s:I}", "tag", status.breaks[i].tag,
                                                "suspended", (json_int_t)status.suspended[i],
                                                "reached", (json_int_t)status.reached[i]));
    }
    json_t *answer = json_pack("{s:I, s:o, s:o}", "state", (json_int_t)status.state, "inject-error",
                               rules, "breaks", breaks);
    blkdebug_status_clear(&status);
    return answer;
}

/* ---- lose-writes ---------------------------------------------------------------------------- */

static const struct qmp_type end_type = {
    .name = "LoseWritesEnd",
    .kind = QMP_KIND_ENUM,
    .values = lose_writes_end_names,
    .doc = "node: its later requests fail with EIO, and nothing reaches its child; process: the "
           "server is killed at once.",
};
static const struct qmp_type numbers_type = {
    .name = "intList",
    .kind = QMP_KIND_ARRAY,
    .element = &qmp_type_uint64,
};
static const struct qmp_member plan_members[] = {
    {"writes", &numbers_type, .optional = true,
     .doc = "Choose among the writes of these numbers; among all by default."},
    {"probability", &qmp_type_uint64, .optional = true, .default_text = "100",
     .doc = "In how many of 100 cases a write, or a piece of it, is lost."},
    {"tear", &qmp_type_size, .optional = true, .default_text = "0",
     .doc = "Lose pieces of this many bytes, a power of 2 from 512; 0: whole writes."},
    {"seed", &qmp_type_uint64, .optional = true, .default_text = "1",
     .doc = "Seed of what is drawn. The same seed gives the same draws."},
    {"end", &end_type, .optional = true, .default_text = "node", .doc = "What ends then."},
    {NULL},
};
static const struct qmp_type plan_type = {
    .name = "LoseWritesPlan",
    .kind = QMP_KIND_OBJECT,
    .base = &node_type,
    .members = plan_members,
};

static void read_plan(json_t *arguments, struct lose_writes_plan *plan)
{
    json_t *writes = json_object_get(arguments, "writes");

    *plan = (struct lose_writes_plan){
        .has_numbers = writes != NULL,
        .number_count = json_array_size(writes),
        .probability = number(arguments, "probability", 100),
        .tear = number(arguments, "tear", 0),
        .seed = number(arguments, "seed", 1),
        .end = (enum lose_writes_end)index_of(arguments, "end", lose_writes_end_names),
    };
    plan->numbers = g_new(uint64_t, plan->number_count);
    for (size_t i = 0; i < plan->number_count; i++) {
        plan->numbers[i] = (uint64_t)json_integer_value(json_array_get(writes, i));
    }
}

static const struct qmp_member lost_members[] = {
    {"lost", &qmp_type_uint64, .doc = "Writes lost, or a piece of them."},
    {"kept", &qmp_type_uint64, .doc = "Writes kept of those that no flush had made durable."},
    {NULL},
};
static const struct qmp_type lost_type = {
    .name = "LoseWritesResult",
    .kind = QMP_KIND_OBJECT,
    .members = lost_members,
};

static json_t *lose_now(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(block_node) node = find_node(arguments, error);
    struct lose_writes_plan plan;
    struct lose_writes_result result;
    json_t *answer = NULL;

    if (!node) {
        return NULL;
    }
    read_plan(arguments, &plan);
    if (lose_writes_now(node, &plan, &result, error) == 0) {
        answer = json_pack("{s:I, s:I}", "lost", (json_int_t)result.lost, "kept",
                           (json_int_t)result.kept);
    }
    lose_writes_plan_clear(&plan);
    return answer;
}

static const struct qmp_member arm_members[] = {
    {"at-write", &qmp_type_uint64,
     .doc = "The number of the write, counted from 1 since the node was opened; 0: disarm."},
    {NULL},
};
static const struct qmp_type arm_type = {
    .name = "LoseWritesArm",
    .kind = QMP_KIND_OBJECT,
    .base = &plan_type,
    .members = arm_members,
};

static json_t *arm(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(block_node) node = find_node(arguments, error);
    struct lose_writes_plan plan;
    int status;

    if (!node) {
        return NULL;
    }
    read_plan(arguments, &plan);
    status = lose_writes_arm(node, number(arguments, "at-write", 0), &plan, error);
    lose_writes_plan_clear(&plan);
    return status < 0 ? NULL : json_object();
}

static const struct qmp_member record_members[] = {
    {"write", &qmp_type_uint64, .doc = "Its number."},
    {"type", &qmp_type_string, .doc = "write, write-zeroes or discard."},
    {"offset", &qmp_type_uint64, .doc = "Where."},
    {"bytes", &qmp_type_uint64, .doc = "How much."},
    {"in-flight", &qmp_type_bool, .doc = "It has not ended yet."},
    {NULL},
};
static const struct qmp_type record_type = {
    .name = "LoseWritesRecord",
    .kind = QMP_KIND_OBJECT,
    .members = record_members,
};
static const struct qmp_type records_type = {
    .name = "LoseWritesRecordList",
    .kind = QMP_KIND_ARRAY,
    .element = &record_type,
};
static const struct qmp_member lose_info_members[] = {
    {"writes", &qmp_type_uint64, .doc = "Writes since the node was opened."},
    {"unflushed-count", &qmp_type_uint64, .doc = "How many no flush has made durable."},
    {"unflushed", &records_type, .doc = "Those; only the oldest 1000."},
    {"log-bytes", &qmp_type_uint64, .doc = "Memory the log takes."},
    {"at-write", &qmp_type_uint64, .doc = "The write it is armed at; 0: not armed."},
    {"ended", &qmp_type_bool, .doc = "Writes are lost, and all requests fail."},
    {NULL},
};
static const struct qmp_type lose_info_type = {
    .name = "LoseWritesInfo",
    .kind = QMP_KIND_OBJECT,
    .members = lose_info_members,
};

static json_t *query_lose_writes(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(block_node) node = find_node(arguments, error);
    struct lose_writes_status status;
    json_t *records, *answer;

    if (!node || lose_writes_get_status(node, &status, error) < 0) {
        return NULL;
    }
    records = json_array();
    for (size_t i = 0; i < status.record_count; i++) {
        const struct lose_writes_record *record = &status.records[i];

        json_array_append_new(
            records, json_pack("{s:I, s:s, s:I, s:I, s:b}", "write", (json_int_t)record->number,
                               "type", record->type, "offset", (json_int_t)record->offset, "bytes",
                               (json_int_t)record->bytes, "in-flight", record->in_flight));
    }
    answer = json_pack("{s:I, s:I, s:o, s:I, s:I, s:b}", "writes", (json_int_t)status.writes,
                       "unflushed-count", (json_int_t)status.unflushed, "unflushed", records,
                       "log-bytes", (json_int_t)status.log_bytes, "at-write",
                       (json_int_t)status.at_write, "ended", status.has_ended);
    lose_writes_status_clear(&status);
    return answer;
}

void fault_commands_init(void)
{
    GArray *members = g_array_new(TRUE, TRUE, sizeof(struct qmp_member));

    types_append_options(members, blkdebug_rules_options);
    blkdebug_set_type.members = (const struct qmp_member *)(void *)g_array_free(members, FALSE);
}

const struct qmp_command fault_commands[] = {
    {"blkdebug-set", &blkdebug_set_type, NULL, blkdebug_set, 0,
     "Replace the rules of a blkdebug node; none clears them. Delays in progress end."},
    {"blkdebug-break", &break_type, NULL, blkdebug_break, 0,
     "Set a break point: requests that reach it stand still until blkdebug-resume."},
    {"blkdebug-resume", &resume_type, &resumed_type, resume, 0,
     "Remove a break point and let go on who stands there."},
    {"query-blkdebug", &node_type, &blkdebug_info_type, query_blkdebug, 0,
     "The rules and break points of a blkdebug node, and what they did."},
    {"lose-writes-now", &plan_type, &lost_type, lose_now, 0,
     "Take back writes that no flush has made durable, and end the node or the process."},
    {"lose-writes-arm", &arm_type, NULL, arm, 0,
     "As lose-writes-now, when a write of a given number has been made, before it is answered."},
    {"query-lose-writes", &node_type, &lose_info_type, query_lose_writes, 0,
     "What a lose-writes node could lose."},
    {NULL},
};

/* ---- Events --------------------------------------------------------------------------------- */

static const struct qmp_member suspended_members[] = {
    {"node-name", &qmp_type_string, .doc = "The node."},
    {"tag", &qmp_type_string, .doc = "The break point."},
    {NULL},
};
static const struct qmp_type suspended_type = {
    .name = "BlkdebugSuspendedEvent",
    .kind = QMP_KIND_OBJECT,
    .members = suspended_members,
};
static const struct qmp_member lose_event_members[] = {
    {"node-name", &qmp_type_string, .doc = "The node."},
    {"lost", &qmp_type_uint64, .doc = "Writes lost, or a piece of them."},
    {"kept", &qmp_type_uint64, .doc = "Writes kept of those that no flush had made durable."},
    {"error", &qmp_type_string, .optional = true, .doc = "Why not all could be taken back."},
    {NULL},
};
static const struct qmp_type lose_event_type = {
    .name = "LoseWritesEndEvent",
    .kind = QMP_KIND_OBJECT,
    .members = lose_event_members,
};

const struct qmp_event_type fault_events[] = {
    {"BLKDEBUG_SUSPENDED", &suspended_type, "A request has reached a break point."},
    {"LOSE_WRITES_END", &lose_event_type, "A lose-writes node has lost writes and ended."},
    {NULL},
};
