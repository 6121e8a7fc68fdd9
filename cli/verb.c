/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/verb.h"

#include "block/cleanup.h"
#include "cli/follow.h"
#include "cli/output.h"
#include "cli/runtime.h"

enum exit_status verb_run(const struct verb *verb, const struct invocation *invocation,
                          GError **error)
{
    g_autofree char *admin = runtime_find_admin(invocation, error);
    AUTO_CLIENT client = admin ? client_connect(admin, error) : NULL;
    enum exit_status status =
        client ? verb->function(invocation, admin, client, error) : EXIT_UNREACHABLE;

    if (invocation->json && *error) {
        print_json_error(*error);
    }
    return status;
}

enum exit_status verb_call(const struct invocation *invocation, struct client *client,
                           const char *command, json_t *arguments, const char *member,
                           GError **error)
{
    char *const *typed = invocation->arguments;
    json_t *done = client_call(client, command, arguments, CLIENT_WORK_TIMEOUT_MS, error);

    json_decref(done);
    if (done && invocation->json) {
        print_json_line(json_pack("{s:s, s:s, s:s}", "message_type", "done", "verb", typed[0],
                                  member, typed[1]));
    }
    return done ? EXIT_OK : EXIT_FAILED;
}

enum exit_status verb_show(const struct invocation *invocation, json_t *answer,
                           void (*print)(const json_t *answer))
{
    if (!answer) {
        return EXIT_FAILED;
    }
    if (invocation->json) {
        print_json(answer);
        return EXIT_OK;
    }
    print(answer);
    json_decref(answer);
    return EXIT_OK;
}
