/* SPDX-License-Identifier: BSD-3-Clause */
/* What the subcommands print: complaints, sizes, times, JSON, tables. */
#ifndef LIVEBLK_CLI_OUTPUT_H
#define LIVEBLK_CLI_OUTPUT_H

#include <glib.h>
#include <jansson.h>
#include <libsmartcols.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* A sentence on stderr after "liveblk: ". */
void complain(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* "4.0 GiB"; the caller frees. Plain ASCII. */
char *format_size(uint64_t bytes);

/* "0:07", "12:40", "3:05:59"; the caller frees. */
char *format_duration(uint64_t seconds);

/* "850 ns", "12.3 us", "4.56 ms", "1.20 s"; the caller frees. */
char *format_latency(double ns);

/*
 * Parse a number of bytes: "1048576", "512K", "50M", "1.5G", "2T", with binary units and an
 * optional "iB" or "B". Refuses signs, rubbish and what does not fit in an int64_t.
 */
bool parse_size(const char *text, int64_t *bytes);

/* Parse milliseconds, such as "20" or "0.5", as nanoseconds; up to a day. */
bool parse_milliseconds(const char *text, int64_t *ns);

/*
 * A length relative to another one: as parse_size, after "+" more and after "-" less. Refuses what
 * is below 0 or does not fit in an int64_t.
 */
bool parse_length(const char *text, uint64_t now, uint64_t *length);

/* "2026-11-21 07:15:42" in local time, or "?"; the caller frees. */
char *format_time(time_t seconds);

/*
 * Any bytes as text that does no harm on a terminal: what is no UTF-8, and control characters, are
 * replaced. The caller frees.
 */
char *printable(const char *text);

/* One JSON value and a newline on stdout, at once. Takes the reference. */
void print_json_line(json_t *value);
/* The same over several lines, for people who look at it. */
void print_json(json_t *value);

/* Members of replies, whose type is never to be trusted: a default when absent or of another type.
 */
const char *member_text(const json_t *object, const char *name, const char *absent);
int64_t member_integer(const json_t *object, const char *name, int64_t absent);
bool member_flag(const json_t *object, const char *name);

/* "4.10 ms/12.3 ms": 99 of 100 waits in the "guest-waits" of a reply's object were no longer than
 * the one, and none than the other; "-" if there were none. The caller frees. */
char *guest_waits_text(const json_t *object);

/* A table with these headings (NULL-terminated); those that start with '>' are right-aligned. */
struct libscols_table *table_new(const char *const *headings);
/* Append a line: as many strings as there are columns. They are copied. */
void table_add(struct libscols_table *table, const char *const *cells);
/* Print on stdout and free. */
void table_print(struct libscols_table *table);

#endif
