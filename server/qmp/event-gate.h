/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From events to lines on the wire, and the rate limit: of BLOCK_IO_ERROR events of one device,
 * QUORUM_REPORT_BAD of one child and QUORUM_FAILURE of one node at most one a second gets through,
 * the first at once, of those that follow the last. (Not BLOCK_IO_ERROR with action "stop": then
 * the guest stands still and somebody must come.) Main thread only.
 */
#ifndef LIVEBLK_SERVER_QMP_EVENT_GATE_H
#define LIVEBLK_SERVER_QMP_EVENT_GATE_H

#include <glib.h>

#include "block/event.h"

struct qmp_event_gate;

/* send is called for each line that gets through; it does not keep the line. */
struct qmp_event_gate *qmp_event_gate_new(void (*send)(GBytes *line, void *data), void *data);
void qmp_event_gate_free(struct qmp_event_gate *gate);

void qmp_event_gate_put(struct qmp_event_gate *gate, const struct event *event);

#endif
