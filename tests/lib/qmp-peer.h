/* SPDX-License-Identifier: BSD-3-Clause */
/* The other end of the admin channel, for tests: sends bytes, takes lines, never hangs for ever. */
#ifndef LIVEBLK_TESTS_LIB_QMP_PEER_H
#define LIVEBLK_TESTS_LIB_QMP_PEER_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

struct qmp_peer {
    int fd;
    GString *received; /* not handed out yet */
};

/* Connect; the greeting is not read. */
struct qmp_peer *qmp_peer_connect(const char *path);
/* Connect, check the greeting and negotiate, with the capability oob or without. */
struct qmp_peer *qmp_peer_negotiate(const char *path, bool out_of_band);
void qmp_peer_close(struct qmp_peer *peer);

void qmp_peer_send(struct qmp_peer *peer, const char *bytes, size_t length);
void qmp_peer_send_text(struct qmp_peer *peer, const char *text);

/* The next line, without its CR LF; NULL at the end of file. The caller frees. */
char *qmp_peer_line(struct qmp_peer *peer);
/* The next line must be this. */
void qmp_peer_expect(struct qmp_peer *peer, const char *line);
void qmp_peer_expect_end(struct qmp_peer *peer);
/* The next line as JSON. */
json_t *qmp_peer_json(struct qmp_peer *peer);

/* Send a request and expect the answer. */
void qmp_peer_ask(struct qmp_peer *peer, const char *request, const char *answer);

#endif
