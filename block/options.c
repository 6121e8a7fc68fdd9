/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/options.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/error.h"

struct block_options {
    GTree *values; /* key to value, both owned; sorted, so that messages do not depend on chance */
};

/* Sets of options. */

static int compare_keys(const void *a, const void *b, void *data)
{
    return strcmp(a, b);
}

struct block_options *block_options_new(void)
{
    struct block_options *options = g_new0(struct block_options, 1);

    options->values = g_tree_new_full(compare_keys, NULL, g_free, g_free);
    return options;
}

void block_options_free(struct block_options *options)
{
    if (options) {
        g_tree_destroy(options->values);
        g_free(options);
    }
}

struct block_options *block_options_copy(const struct block_options *options)
{
    struct block_options *copy = block_options_new();

    for (GTreeNode *node = g_tree_node_first(options->values); node;
         node = g_tree_node_next(node)) {
        block_options_set(copy, g_tree_node_key(node), g_tree_node_value(node));
    }
    return copy;
}

void block_options_set(struct block_options *options, const char *key, const char *value)
{
    g_tree_replace(options->values, g_strdup(key), g_strdup(value));
}

const char *block_options_get(const struct block_options *options, const char *key)
{
    return g_tree_lookup(options->values, key);
}

char *block_options_take(struct block_options *options, const char *key)
{
    char *value = g_strdup(g_tree_lookup(options->values, key));

    g_tree_remove(options->values, key);
    return value;
}

/* The first key below prefix ("prefix.x"), or NULL. */
static GTreeNode *first_nested(const struct block_options *options, const char *prefix)
{
    g_autofree char *start = g_strconcat(prefix, ".", NULL);
    GTreeNode *node = g_tree_lower_bound(options->values, start);

    return node && g_str_has_prefix(g_tree_node_key(node), start) ? node : NULL;
}

bool block_options_has(const struct block_options *options, const char *key)
{
    return block_options_get(options, key) || first_nested(options, key);
}

struct block_options *block_options_take_nested(struct block_options *options, const char *prefix)
{
    struct block_options *nested = block_options_new();
    size_t skip = strlen(prefix) + 1;
    GTreeNode *node;

    while ((node = first_nested(options, prefix))) {
        const char *key = g_tree_node_key(node);

        block_options_set(nested, key + skip, g_tree_node_value(node));
        g_tree_remove(options->values, key);
    }
    return nested;
}

char **block_options_keys(const struct block_options *options)
{
    char **keys = g_new0(char *, g_tree_nnodes(options->values) + 1);
    size_t count = 0;

    for (GTreeNode *node = g_tree_node_first(options->values); node;
         node = g_tree_node_next(node)) {
        keys[count++] = g_strdup(g_tree_node_key(node));
    }
    return keys;
}

/* Command lines. */

/* Words of letters, digits, - and _, joined by single dots. */
static bool is_valid_key(const char *key)
{
    bool word_is_empty = true;

    for (; *key; key++) {
        if (*key == '.' && word_is_empty) {
            return false;
        }
        if (!g_ascii_isalnum(*key) && !strchr("-_.", *key)) {
            return false;
        }
        word_is_empty = *key == '.';
    }
    return !word_is_empty;
}

/* Cut the next word off the text, up to a single comma; ",," becomes a comma of the word. */
static char *next_word(const char **text)
{
    GString *word = g_string_new(NULL);
    const char *end = *text;

    for (; *end; end++) {
        if (*end == ',') {
            if (end[1] != ',') {
                break;
            }
            end++;
        }
        g_string_append_c(word, *end);
    }
    *text = end;
    return g_string_free(word, FALSE);
}

/* Store a word: "key=value", a value of the implied key, or a switch. */
static int set_word(struct block_options *options, char *word, const char *implied_key,
                    GError **error)
{
    char *value = strchr(word, '=');

    if (!value && implied_key && *word) {
        block_options_set(options, implied_key, word);
        return 0;
    }
    if (value) {
        *value++ = '\0';
    }
    if (!is_valid_key(word)) {
        return block_error(error, EINVAL, "Invalid parameter name '%s'", word);
    }
    block_options_set(options, word, value ? value : "on");
    return 0;
}

struct block_options *block_options_parse(const char *text, const char *implied_key, GError **error)
{
    AUTO(block_options) options = block_options_new();

    while (*text) {
        g_autofree char *word = next_word(&text);

        if (set_word(options, word, implied_key, error) < 0) {
            return NULL;
        }
        implied_key = NULL;
        if (*text == ',' && !*++text) {
            block_error(error, EINVAL, "Parameter expected after the last ','");
            return NULL;
        }
    }
    return STEAL(options);
}

/* Values. */

/* The power of 1024 of a suffix, -1 if it is none. */
static int suffix_power(char suffix)
{
    static const char suffixes[] = "bkmgtpe";
    const char *found = suffix ? strchr(suffixes, g_ascii_tolower(suffix)) : suffixes;

    return found ? (int)(found - suffixes) : -1;
}

/*
 * Parse the digits after a decimal point into a fraction numerator/denominator. Returns what
 * follows them, NULL if there are none or more than nine.
 */
static const char *parse_fraction(const char *text, uint64_t *numerator, uint64_t *denominator)
{
    const char *start = text;

    for (; g_ascii_isdigit(*text); text++) {
        *numerator = *numerator * 10 + (uint64_t)(*text - '0');
        *denominator *= 10;
        if (text - start == 9) {
            return NULL;
        }
    }
    return text > start ? text : NULL;
}

static int parse_number(const char *text, const char **end, uint64_t *value)
{
    bool is_hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');

    /* strtoull would take white space and signs. */
    if (!g_ascii_isdigit(*text) || (is_hex && !g_ascii_isxdigit(text[2]))) {
        return -EINVAL;
    }
    errno = 0;
    *value = g_ascii_strtoull(text, (char **)end, is_hex ? 16 : 10);
    return -errno;
}

static int bad_size(const char *text, GError **error)
{
    return block_error(error, EINVAL,
                       "'%s' is not a size: expected a number of bytes, or one with a suffix "
                       "k, M, G, T, P or E",
                       text);
}

int block_parse_size(const char *text, uint64_t *bytes, GError **error)
{
    uint64_t whole, numerator = 0, denominator = 1;
    const char *end;
    int status = parse_number(text, &end, &whole);
    unsigned __int128 total;
    int power;

    if (status == -EINVAL) {
        return bad_size(text, error);
    }
    if (*end == '.') {
        end = parse_fraction(end + 1, &numerator, &denominator);
    }
    power = end ? suffix_power(*end) : -1;
    if (power < 0 || (*end && end[1]) || (power == 0 && denominator > 1)) {
        return bad_size(text, error);
    }
    total = ((unsigned __int128)whole << (10 * power)) +
            ((unsigned __int128)numerator << (10 * power)) / denominator;
    if (status < 0 || total > UINT64_MAX) {
        return block_error(error, ERANGE, "The size '%s' is too large", text);
    }
    *bytes = (uint64_t)total;
    return 0;
}

int block_parse_bool(const char *text, bool *value, GError **error)
{
    static const char *const words[][2] = {{"off", "on"}, {"no", "yes"}, {"false", "true"}};

    for (size_t i = 0; i < G_N_ELEMENTS(words); i++) {
        for (int meaning = 0; meaning < 2; meaning++) {
            if (strcmp(text, words[i][meaning]) == 0) {
                *value = meaning;
                return 0;
            }
        }
    }
    return block_error(error, EINVAL, "'%s' is neither 'on' nor 'off'", text);
}

void block_address_clear(struct block_address *address)
{
    g_free(address->path);
    g_free(address->host);
    g_free(address->port);
    g_free(address->fd);
    *address = (struct block_address){0};
}

/* Extraction by a table. */

static int bad_type(GError **error, const char *name, const char *expected)
{
    return block_error(error, EINVAL, "Invalid parameter type for '%s', expected: %s", name,
                       expected);
}

static int missing(GError **error, const char *name)
{
    return block_error(error, EINVAL, "Parameter '%s' is missing", name);
}

static int out_of_range(GError **error, const char *name, const char *text)
{
    return block_error(error, ERANGE, "Value '%s' is out of range for parameter '%s'", text, name);
}

static int convert_uint(const char *text, const char *name, uint64_t *value, GError **error)
{
    bool is_negative = text[0] == '-';
    const char *end;
    int status = parse_number(text + is_negative, &end, value);

    if (status == -EINVAL || *end) {
        return bad_type(error, name, "integer");
    }
    return status < 0 || (is_negative && *value) ? out_of_range(error, name, text) : 0;
}

static int convert_int(const char *text, const char *name, int64_t *value, GError **error)
{
    bool is_negative = text[0] == '-';
    const char *end;
    uint64_t magnitude;
    int status = parse_number(text + is_negative, &end, &magnitude);

    if (status == -EINVAL || *end) {
        return bad_type(error, name, "integer");
    }
    if (status < 0 || magnitude > (uint64_t)INT64_MAX + is_negative) {
        return out_of_range(error, name, text);
    }
    *value = (int64_t)(is_negative ? -magnitude : magnitude);
    return 0;
}

static int convert_size(const char *text, const char *name, uint64_t *value, GError **error)
{
    g_autoptr(GError) cause = NULL;
    int status;

    if (text[0] == '-') {
        return convert_uint(text, name, value, error);
    }
    if (!g_ascii_isdigit(*text)) {
        return bad_type(error, name, "integer");
    }
    status = block_parse_size(text, value, &cause);
    return status < 0 ? block_error(error, -status, "Parameter '%s': %s", name, cause->message) : 0;
}

static int convert_enum(const char *text, const char *name, const char *const *values, int *value,
                        GError **error)
{
    for (int i = 0; values[i]; i++) {
        if (strcmp(values[i], text) == 0) {
            *value = i;
            return 0;
        }
    }
    return block_error(error, EINVAL, "Parameter '%s' does not accept value '%s'", name, text);
}

/* Convert the text of an option that has just one key. */
static int convert_scalar(const struct block_option *option, const char *text, const char *name,
                          void *member, GError **error)
{
    switch (option->type) {
    case BLOCK_OPTION_STRING:
        *(char **)member = g_strdup(text);
        return 0;
    case BLOCK_OPTION_BOOL:
        return block_parse_bool(text, member, NULL) < 0 ? bad_type(error, name, "boolean") : 0;
    case BLOCK_OPTION_INT:
        return convert_int(text, name, member, error);
    case BLOCK_OPTION_UINT:
        return convert_uint(text, name, member, error);
    case BLOCK_OPTION_SIZE:
        return convert_size(text, name, member, error);
    case BLOCK_OPTION_ENUM:
        return convert_enum(text, name, option->enum_values, member, error);
    case BLOCK_OPTION_NODE:
    case BLOCK_OPTION_NODES:
    case BLOCK_OPTION_ADDRESS:
    case BLOCK_OPTION_STRINGS:
    case BLOCK_OPTION_LIST:
        break;
    }
    g_assert_not_reached();
}

static const char *scalar_type_name(enum block_option_type type)
{
    switch (type) {
    case BLOCK_OPTION_BOOL:
        return "boolean";
    case BLOCK_OPTION_INT:
    case BLOCK_OPTION_UINT:
    case BLOCK_OPTION_SIZE:
        return "integer";
    default:
        return "string";
    }
}

static int extract_scalar(struct block_options *options, const struct block_option *option,
                          void *member, const char *name, GError **error)
{
    g_autofree char *given = block_options_take(options, option->name);
    const char *text = given ? given : option->default_text;

    if (!given && block_options_has(options, option->name)) {
        return bad_type(error, name, scalar_type_name(option->type));
    }
    if (!given && option->required) {
        return missing(error, name);
    }
    return text ? convert_scalar(option, text, name, member, error) : 0;
}

static int extract_strings(struct block_options *options, const struct block_option *option,
                           char ***member, const char *name, GError **error)
{
    g_autoptr(GPtrArray) strings = g_ptr_array_new_with_free_func(g_free);

    if (block_options_get(options, option->name)) {
        return bad_type(error, name, "array");
    }
    for (;;) {
        g_autofree char *key = g_strdup_printf("%s.%u", option->name, strings->len);
        char *text = block_options_take(options, key);

        if (!text) {
            break;
        }
        g_ptr_array_add(strings, text);
    }
    if (!strings->len) {
        return option->required ? missing(error, name) : 0;
    }
    g_ptr_array_add(strings, NULL);
    *member = (char **)g_ptr_array_free(g_steal_pointer(&strings), FALSE);
    return 0;
}

/* Take the nested key of an address that its type requires. */
static int take_address_part(struct block_options *nested, const char *key, const char *name,
                             char **part, GError **error)
{
    g_autofree char *full_name = g_strdup_printf("%s.%s", name, key);

    *part = block_options_take(nested, key);
    if (!*part) {
        return block_options_has(nested, key) ? bad_type(error, full_name, "string")
                                              : missing(error, full_name);
    }
    return 0;
}

/* As take_address_part, for a number from 0 to limit that is kept as text. */
static int take_address_number(struct block_options *nested, const char *key, const char *name,
                               uint64_t limit, char **part, GError **error)
{
    g_autofree char *full_name = g_strdup_printf("%s.%s", name, key);
    int status = take_address_part(nested, key, name, part, error);
    uint64_t value;

    if (status == 0) {
        status = convert_uint(*part, full_name, &value, error);
    }
    return status == 0 && value > limit ? out_of_range(error, full_name, *part) : status;
}

static int take_address_type(struct block_options *nested, const char *name,
                             enum block_address_type *type, GError **error)
{
    static const char *const types[] = {"inet", "unix", "vsock", "fd", NULL};
    g_autofree char *full_name = g_strdup_printf("%s.type", name);
    g_autofree char *text = NULL;
    int status = take_address_part(nested, "type", name, &text, error);
    int index = 0;

    if (status == 0) {
        status = convert_enum(text, full_name, types, &index, error);
    }
    *type = BLOCK_ADDRESS_INET + index;
    return status;
}

/* A flag that may be missing; *is_given: it is not. */
static int take_address_flag(struct block_options *nested, const char *key, const char *name,
                             bool *flag, bool *is_given, GError **error)
{
    g_autofree char *full_name = g_strdup_printf("%s.%s", name, key);
    g_autofree char *text = block_options_take(nested, key);

    *is_given = text;
    return (text && block_parse_bool(text, flag, NULL) < 0) || block_options_has(nested, key)
               ? bad_type(error, full_name, "boolean")
               : 0;
}

/* A family that is asked for rules out the other one, unless that is asked for, too. */
static int take_families(struct block_options *nested, struct block_address *address,
                         const char *name, GError **error)
{
    bool ipv4 = false, ipv6 = false, says_ipv4, says_ipv6;
    int status = take_address_flag(nested, "ipv4", name, &ipv4, &says_ipv4, error);

    if (status == 0) {
        status = take_address_flag(nested, "ipv6", name, &ipv6, &says_ipv6, error);
    }
    if (status < 0) {
        return status;
    }
    address->no_ipv4 = says_ipv4 ? !ipv4 : ipv6;
    address->no_ipv6 = says_ipv6 ? !ipv6 : ipv4;
    return address->no_ipv4 && address->no_ipv6
               ? block_error(error, EINVAL, "Cannot disable IPv4 and IPv6 at same time")
               : 0;
}

/* What else is said of who listens, or is so anyway: checked, and of no effect. */
static int check_unused(struct block_options *nested, const char *name, GError **error)
{
    g_autofree char *to = NULL;
    bool keep_alive, is_given;
    int status = block_options_has(nested, "to")
                     ? take_address_number(nested, "to", name, UINT16_MAX, &to, error)
                     : 0;

    return status == 0
               ? take_address_flag(nested, "keep-alive", name, &keep_alive, &is_given, error)
               : status;
}

static int take_inet_address(struct block_options *nested, struct block_address *address,
                             const char *name, GError **error)
{
    int status = take_address_part(nested, "host", name, &address->host, error);

    if (status == 0) {
        status = take_address_part(nested, "port", name, &address->port, error);
    }
    if (status == 0) {
        status = take_families(nested, address, name, error);
    }
    return status == 0 ? check_unused(nested, name, error) : status;
}

static int take_address(struct block_options *nested, struct block_address *address,
                        const char *name, GError **error)
{
    enum block_address_type type;
    int status = take_address_type(nested, name, &type, error);

    if (status < 0) {
        return status;
    }
    switch (type) {
    case BLOCK_ADDRESS_INET:
        status = take_inet_address(nested, address, name, error);
        break;
    case BLOCK_ADDRESS_UNIX:
        status = take_address_part(nested, "path", name, &address->path, error);
        break;
    case BLOCK_ADDRESS_VSOCK:
        status = take_address_number(nested, "cid", name, UINT32_MAX, &address->host, error);
        if (status == 0) {
            status = take_address_number(nested, "port", name, UINT32_MAX, &address->port, error);
        }
        break;
    case BLOCK_ADDRESS_FD:
        status = take_address_number(nested, "str", name, INT_MAX, &address->fd, error);
        break;
    case BLOCK_ADDRESS_NONE:
        g_assert_not_reached();
    }
    address->type = type;
    return status;
}

static int extract_address(struct block_options *options, const struct block_option *option,
                           struct block_address *address, const char *name, GError **error)
{
    AUTO(block_options) nested = NULL;
    int status;

    if (block_options_get(options, option->name)) {
        return bad_type(error, name, "object");
    }
    if (!block_options_has(options, option->name)) {
        return option->required ? missing(error, name) : 0;
    }
    nested = block_options_take_nested(options, option->name);
    status = take_address(nested, address, name, error);
    return status < 0 ? status : block_options_expect_empty(nested, name, error);
}

static char *full_name_of(const char *prefix, const char *name)
{
    return prefix ? g_strdup_printf("%s.%s", prefix, name) : g_strdup(name);
}

/* Take the element at `key`; *element is stored only if all of it is right. */
static int extract_element(struct block_options *options, const struct block_option *option,
                           const char *key, const char *name, void *element, GError **error)
{
    AUTO(block_options) nested = NULL;
    int status;

    if (block_options_get(options, key)) {
        return bad_type(error, name, "object");
    }
    nested = block_options_take_nested(options, key);
    status = block_options_extract(nested, option->element_options, element, name, error);
    if (status < 0) {
        return status;
    }
    status = block_options_expect_empty(nested, name, error);
    if (status < 0) {
        block_options_clear_target(option->element_options, element);
    }
    return status;
}

/* What was stored before an error is freed with the target. */
static int extract_list(struct block_options *options, const struct block_option *option,
                        struct block_option_list *list, const char *name, GError **error)
{
    if (block_options_get(options, option->name)) {
        return bad_type(error, name, "array");
    }
    for (;;) {
        g_autofree char *key = g_strdup_printf("%s.%zu", option->name, list->count);
        g_autofree char *full_name = g_strdup_printf("%s.%zu", name, list->count);
        g_autofree void *element = NULL;
        int status;

        if (!block_options_has(options, key)) {
            break;
        }
        element = g_malloc0(option->element_size);
        status = extract_element(options, option, key, full_name, element, error);
        if (status < 0) {
            return status;
        }
        list->elements = g_realloc_n(list->elements, list->count + 1, option->element_size);
        memcpy((char *)list->elements + list->count * option->element_size, element,
               option->element_size);
        list->count++;
    }
    return option->required && !list->count ? missing(error, name) : 0;
}

static void clear_list(const struct block_option *option, struct block_option_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        block_options_clear_target(option->element_options,
                                   (char *)list->elements + i * option->element_size);
    }
    g_free(list->elements);
    *list = (struct block_option_list){0};
}

static int extract_option(struct block_options *options, const struct block_option *option,
                          void *member, const char *prefix, GError **error)
{
    g_autofree char *name = full_name_of(prefix, option->name);

    switch (option->type) {
    case BLOCK_OPTION_NODE:
    case BLOCK_OPTION_NODES:
        return 0;
    case BLOCK_OPTION_ADDRESS:
        return extract_address(options, option, member, name, error);
    case BLOCK_OPTION_STRINGS:
        return extract_strings(options, option, member, name, error);
    case BLOCK_OPTION_LIST:
        return extract_list(options, option, member, name, error);
    default:
        return extract_scalar(options, option, member, name, error);
    }
}

static size_t member_size(enum block_option_type type)
{
    switch (type) {
    case BLOCK_OPTION_STRING:
        return sizeof(char *);
    case BLOCK_OPTION_BOOL:
        return sizeof(bool);
    case BLOCK_OPTION_INT:
        return sizeof(int64_t);
    case BLOCK_OPTION_UINT:
    case BLOCK_OPTION_SIZE:
        return sizeof(uint64_t);
    case BLOCK_OPTION_ENUM:
        return sizeof(int);
    case BLOCK_OPTION_NODE:
    case BLOCK_OPTION_NODES:
        return 0;
    case BLOCK_OPTION_ADDRESS:
        return sizeof(struct block_address);
    case BLOCK_OPTION_STRINGS:
        return sizeof(char **);
    case BLOCK_OPTION_LIST:
        return sizeof(struct block_option_list);
    }
    g_assert_not_reached();
}

int block_options_extract(struct block_options *options, const struct block_option *table,
                          void *target, const char *prefix, GError **error)
{
    for (const struct block_option *option = table; option->name; option++) {
        memset((char *)target + option->offset, 0, member_size(option->type));
    }
    for (const struct block_option *option = table; option->name; option++) {
        int status =
            extract_option(options, option, (char *)target + option->offset, prefix, error);

        if (status < 0) {
            block_options_clear_target(table, target);
            return status;
        }
    }
    return 0;
}

void block_options_clear_target(const struct block_option *table, void *target)
{
    for (const struct block_option *option = table; option->name; option++) {
        void *member = (char *)target + option->offset;

        if (option->type == BLOCK_OPTION_STRING) {
            g_clear_pointer((char **)member, g_free);
        } else if (option->type == BLOCK_OPTION_STRINGS) {
            g_clear_pointer((char ***)member, g_strfreev);
        } else if (option->type == BLOCK_OPTION_ADDRESS) {
            block_address_clear(member);
        } else if (option->type == BLOCK_OPTION_LIST) {
            clear_list(option, member);
        }
    }
}

int block_options_expect_empty(const struct block_options *options, const char *prefix,
                               GError **error)
{
    GTreeNode *node = g_tree_node_first(options->values);
    g_autofree char *name = node ? full_name_of(prefix, g_tree_node_key(node)) : NULL;

    return node ? block_error(error, EINVAL, "Parameter '%s' is unexpected", name) : 0;
}
