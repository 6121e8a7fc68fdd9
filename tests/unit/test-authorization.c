/* SPDX-License-Identifier: BSD-3-Clause */
/* Who is allowed: rules, and files of rules that change. */
#include "server/authorization.h"

#include <glib/gstdio.h>
#include <pthread.h>
#include <string.h>

#include "tests/lib/disk.h"

static void test_rules(void)
{
    char exact[] = "CN=a*", glob[] = "CN=?b,*";
    const struct authorization_rule rules[] = {
        {.match = exact, .is_exact = true, .allows = false},
        {.match = glob, .is_exact = false, .allows = true},
    };

    for (int others = 0; others < 2; others++) {
        AUTO(authorization) authorization = authorization_new(rules, G_N_ELEMENTS(rules), others);

        g_assert_false(authorization_allows(authorization, "CN=a*"));
        g_assert_cmpint(authorization_allows(authorization, "CN=ab"), ==, others);
        g_assert_true(authorization_allows(authorization, "CN=ab,O=/x"));
        g_assert_cmpint(authorization_allows(authorization, ""), ==, others);
        g_assert_cmpint(authorization_allows(authorization, "cn=ab,"), ==, others);
        g_assert_false(authorization_allows(authorization, NULL)); /* nobody vouches for him */
    }
}

static void test_first_rule_decides(void)
{
    json_t *value =
        json_pack("{s:s, s:[{s:s, s:s, s:s}, {s:s, s:s}, {s:s, s:s, s:s}]}", "policy", "deny",
                  "rules", "match", "*x", "policy", "deny", "format", "glob", "match", "ax",
                  "policy", "allow", "match", "a*", "policy", "allow", "format", "glob");
    g_autoptr(GError) error = NULL;

    qmp_check(&authorization_rules_type, value, NULL, &error);
    g_assert_no_error(error);
    AUTO(authorization) authorization = authorization_from_json(value);
    json_decref(value);
    g_assert_false(authorization_allows(authorization, "ax"));
    g_assert_true(authorization_allows(authorization, "ab"));
    g_assert_false(authorization_allows(authorization, "b"));
    /* Nothing said is nothing allowed. */
    value = json_object();
    AUTO(authorization) empty = authorization_from_json(value);
    json_decref(value);
    g_assert_false(authorization_allows(empty, "a"));
}

/* ---- Files ----------------------------------------------------------------------------------- */

static void set_file(const struct test_image *image, const char *text)
{
    g_autoptr(GError) error = NULL;

    g_file_set_contents(image->path, text, -1, &error);
    g_assert_no_error(error);
}

static void set_up(struct test_image *image, const void *unused)
{
    test_image_make(image, 0);
    set_file(image, "{\"rules\": [{\"match\": \"a\", \"policy\": \"allow\"}]}");
}

static void test_file(struct test_image *image, const void *unused)
{
    AUTO(authorization) live = authorization_from_file(image->path, true, NULL);
    AUTO(authorization) fixed = authorization_from_file(image->path, false, NULL);

    g_assert_true(authorization_allows(live, "a") && !authorization_allows(live, "b"));
    g_assert_true(authorization_allows(fixed, "a") && !authorization_allows(fixed, "b"));
    set_file(image, "{\"rules\": [{\"match\": \"b\", \"policy\": \"allow\"}]}"); /* as long */
    g_assert_true(!authorization_allows(live, "a") && authorization_allows(live, "b"));
    g_assert_true(authorization_allows(fixed, "a") && !authorization_allows(fixed, "b"));
    /* What cannot be read allows nobody, until it can. */
    for (int how = 0; how < 2; how++) {
        g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*nobody is allowed*");
        if (how) {
            g_remove(image->path);
        } else {
            set_file(image, "{\"rules\":");
        }
        g_assert_false(authorization_allows(live, "b"));
        g_assert_false(authorization_allows(live, "b")); /* said once */
        g_test_assert_expected_messages();
        set_file(image, "{\"policy\": \"allow\"}");
        g_assert_true(authorization_allows(live, "c"));
    }
}

static void test_wrong_files(struct test_image *image, const void *unused)
{
    static const struct {
        const char *text, *why;
    } wrong[] = {
        {"", "no JSON"},
        {"[]", "no JSON object"},
        {"{\"policy\": \"allow\"} x", "no JSON"},
        {"{\"policy\": \"allow\", \"policy\": \"deny\"}", "no JSON"},
        {"{\"policy\": \"x\"}", "Parameter 'policy' does not accept value 'x'"},
        {"{\"rules\": [{\"match\": \"a\"}]}", "Parameter 'rules[0].policy' is missing"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autoptr(GError) error = NULL;

        set_file(image, wrong[i].text);
        g_assert_null(authorization_from_file(image->path, true, &error));
        g_assert_nonnull(strstr(error->message, wrong[i].why));
    }
    g_assert_null(authorization_from_file(image->directory, true, NULL));
    g_assert_null(authorization_from_file("/nonexistent", true, NULL));
}

static void *ask_often(void *authorization)
{
    for (int i = 0; i < 300; i++) {
        g_assert_true(authorization_allows(authorization, "a"));
    }
    return NULL;
}

static void test_threads(struct test_image *image, const void *unused)
{
    AUTO(authorization) live = authorization_from_file(image->path, true, NULL);
    pthread_t threads[4];

    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
        g_assert_cmpint(pthread_create(&threads[i], NULL, ask_often, live), ==, 0);
    }
    for (int i = 0; i < 20; i++) { /* replaced whole, as editors do: never half a file */
        set_file(image, i % 2 ? "{\"rules\": [{\"match\": \"a\", \"policy\": \"allow\"}]}"
                              : "{\"policy\": \"allow\"}");
    }
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
        pthread_join(threads[i], NULL);
    }
}

#define TEST(name, function)                                                                       \
    g_test_add("/authorization/" name, struct test_image, NULL, set_up, function, test_image_remove)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/authorization/names-and-patterns", test_rules);
    g_test_add_func("/authorization/the-first-rule-decides", test_first_rule_decides);
    TEST("a-file-is-read-again-when-it-has-changed", test_file);
    TEST("what-is-wrong-with-a-file-is-said", test_wrong_files);
    TEST("many-threads-ask-while-a-file-changes", test_threads);
    return g_test_run();
}
