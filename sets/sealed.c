/* SPDX-License-Identifier: BSD-3-Clause */
/* JSON files with a digest of themselves: of the text of the object without that, keys sorted. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "sets/durable.h"
#include "sets/manifest.h"

/* What a set of some thousand disks would not reach. */
#define SEALED_BYTES_MAX ((size_t)4 << 20)

#define DIGEST_KEY       "digest"

static struct digest digest_of_object(const json_t *object)
{
    AUTO_FREE char *text = json_dumps(object, JSON_COMPACT | JSON_SORT_KEYS);

    return digest_of(text ? text : "", text ? strlen(text) : 0);
}

static json_t *parse(const uint8_t *text, uint64_t bytes)
{
    json_t *object = json_loadb((const char *)text, bytes, JSON_REJECT_DUPLICATES, NULL);
    struct digest said, is;

    if (!json_is_object(object) ||
        !digest_from_text(json_string_value(json_object_get(object, DIGEST_KEY)), &said)) {
        json_decref(object);
        return NULL;
    }
    json_object_del(object, DIGEST_KEY);
    is = digest_of_object(object);
    if (!digest_equal(&said, &is)) {
        json_decref(object);
        return NULL;
    }
    return object;
}

json_t *sealed_read(const char *path, GError **error)
{
    struct stat st;

    if (stat(path, &st) < 0) {
        block_error_errno(error, errno, "Could not read '%s'", path);
        return NULL;
    }
    if ((uint64_t)st.st_size > SEALED_BYTES_MAX) {
        block_error(error, EBADMSG, "'%s' is damaged: it is far too large", path);
        return NULL;
    }
    g_autofree uint8_t *text = durable_read(path, (uint64_t)st.st_size, error);
    if (!text) {
        return NULL;
    }
    json_t *object = parse(text, (uint64_t)st.st_size);
    if (!object) {
        block_error(error, EBADMSG, "'%s' is damaged: it is not what was written", path);
    }
    return object;
}

int sealed_write(json_t *object, const char *path, GError **error)
{
    struct digest digest = digest_of_object(object);
    char text[DIGEST_TEXT_BYTES];

    digest_to_text(&digest, text);
    json_object_set_new(object, DIGEST_KEY, json_string(text));
    AUTO_FREE char *dump = json_dumps(object, JSON_INDENT(2) | JSON_SORT_KEYS);
    if (!dump) {
        return block_error(error, EINVAL, "Could not write '%s': it holds text that is no UTF-8",
                           path);
    }
    g_autofree char *line = g_strconcat(dump, "\n", NULL);
    if (strlen(line) > SEALED_BYTES_MAX) {
        return block_error(error, EFBIG, "Could not write '%s': it would be too large to be read",
                           path);
    }
    return durable_replace(path, line, strlen(line), error);
}
