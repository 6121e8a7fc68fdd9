/* SPDX-License-Identifier: BSD-3-Clause */
/* The rules of an authorization as QMP and files have them. */
#include <stdint.h>
#include <string.h>

#include "server/authorization.h"

static const char *const policies[] = {"deny", "allow", NULL};
static const struct qmp_type policy_type = {
    .name = "QAuthZListPolicy",
    .kind = QMP_KIND_ENUM,
    .values = policies,
};
static const char *const formats[] = {"exact", "glob", NULL};
static const struct qmp_type format_type = {
    .name = "QAuthZListFormat",
    .kind = QMP_KIND_ENUM,
    .values = formats,
    .doc = "exact: it is the name; glob: a pattern of the shell's, with * and ?.",
};
static const struct qmp_member rule_members[] = {
    {"match", &qmp_type_string,
     .doc = "A certificate's distinguished name, or the user name of a shared key."},
    {"policy", &policy_type, .doc = "What becomes of whom it matches."},
    {"format", &format_type, .optional = true, .default_text = "exact",
     .doc = "How `match` is compared."},
    {NULL},
};
static const struct qmp_type rule_type = {
    .name = "QAuthZListRule",
    .kind = QMP_KIND_OBJECT,
    .members = rule_members,
};
static const struct qmp_type rule_list_type = {
    .name = "QAuthZListRuleList",
    .kind = QMP_KIND_ARRAY,
    .element = &rule_type,
};
static const struct qmp_member rules_members[] = {
    {"policy", &policy_type, .optional = true, .default_text = "deny",
     .doc = "What becomes of whom no rule matches."},
    {"rules", &rule_list_type, .optional = true, .doc = "The first that matches decides."},
    {NULL},
};
const struct qmp_type authorization_rules_type = {
    .name = "AuthZListProperties",
    .kind = QMP_KIND_OBJECT,
    .members = rules_members,
};

static bool is_text(json_t *object, const char *name, const char *text)
{
    return !g_strcmp0(json_string_value(json_object_get(object, name)), text);
}

struct authorization *authorization_from_json(json_t *value)
{
    g_autoptr(GArray) rules = g_array_new(FALSE, FALSE, sizeof(struct authorization_rule));
    json_t *item;
    size_t i;

    json_array_foreach (json_object_get(value, "rules"), i, item) {
        struct authorization_rule rule = {
            .match = (char *)(uintptr_t)json_string_value(json_object_get(item, "match")),
            .is_exact = !is_text(item, "format", "glob"),
            .allows = is_text(item, "policy", "allow"),
        };

        g_array_append_val(rules, rule);
    }
    return authorization_new((const struct authorization_rule *)(void *)rules->data, rules->len,
                             is_text(value, "policy", "allow"));
}
