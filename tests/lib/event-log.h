/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The events of a test as words, in their order: "a.running" for a status change of job a,
 * "a.COMPLETED", "a.COMPLETED[Input/output error]", "a.CANCELLED", "a.READY", "a.PENDING",
 * "a.ERROR:write:stop", "a.prepare()" for what event_log_call() reports, and others by their name.
 */
#ifndef LIVEBLK_TESTS_EVENT_LOG_H
#define LIVEBLK_TESTS_EVENT_LOG_H

#include <stddef.h>

/* Listen while the main thread runs; stop listening. */
void event_log_open(void);
void event_log_close(void);

/* Start the main thread and listen; stop both. */
void event_log_start(void);
void event_log_stop(void);

/* Put "ID.CALL()" into the log, in order with the events. */
void event_log_call(const char *id, const char *call);

/*
 * Wait until there are as many words as expected since the last call, check that they are the
 * expected ones and that no others have come, and forget them.
 */
void event_log_expect(const char *const *words);
#define EXPECT(...)      event_log_expect((const char *const[]){__VA_ARGS__, NULL})
#define EXPECT_NOTHING() event_log_expect((const char *const[]){NULL})

/* Wait for these words in any order, and forget them. */
void event_log_expect_unordered(const char *const *words);
#define EXPECT_UNORDERED(...) event_log_expect_unordered((const char *const[]){__VA_ARGS__, NULL})

/* Forget everything emitted so far. */
void event_log_clear(void);

/*
 * The fields of the last event of a name, as "key=value" joined by spaces; the caller frees.
 * NULL if there was none.
 */
char *event_log_fields(const char *name);

#endif
