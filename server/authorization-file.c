/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/authorization-file.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/error.h"
#include "server/authorization.h"

/* Beyond any list that somebody keeps by hand. */
#define FILE_BYTES_MAX (16 << 20)

struct authorization_file {
    char *filename;
    bool refresh;
    /* Guards what follows; held while the file is read. A leaf. */
    pthread_mutex_t lock;
    struct authorization *rules; /* NULL: the file could not be read */
    struct stat seen;            /* of the file as it was before it was read */
};

static bool is_same(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
           a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

static json_t *parse(const char *text, size_t bytes, const char *filename, GError **error)
{
    g_autoptr(GError) own_error = NULL;
    json_error_t json_error;
    json_t *value = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &json_error);

    if (!value) {
        block_error(error, EINVAL, "The rules in '%s' are no JSON: %s (line %d)", filename,
                    json_error.text, json_error.line);
    } else if (!json_is_object(value)) {
        block_error(error, EINVAL, "The rules in '%s' are no JSON object", filename);
    } else if (qmp_check(&authorization_rules_type, value, NULL, &own_error) < 0) {
        block_error(error, EINVAL, "The rules in '%s' are wrong: %s", filename, own_error->message);
    } else {
        return value;
    }
    json_decref(value);
    return NULL;
}

/* Up to a limit; the rest is not looked at. */
static int read_all(int fd, GString *text)
{
    char buffer[4096];
    ssize_t got;

    do {
        got = read(fd, buffer, sizeof(buffer));
        if (got > 0) {
            g_string_append_len(text, buffer, got);
        }
    } while ((got > 0 && text->len <= FILE_BYTES_MAX) || (got < 0 && errno == EINTR));
    return got < 0 ? -errno : 0;
}

/* What changes while it is read is found changed the next time. */
static struct authorization *load(const char *filename, struct stat *seen, GError **error)
{
    AUTO_CLOSE int fd = open(filename, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    g_autoptr(GString) text = g_string_new(NULL);

    if (fd < 0 || fstat(fd, seen) < 0) {
        block_error_errno(error, errno, "Could not open the rules in '%s'", filename);
        return NULL;
    }
    if (!S_ISREG(seen->st_mode)) {
        block_error(error, EINVAL, "The rules in '%s' are no regular file", filename);
        return NULL;
    }
    int status = read_all(fd, text);
    if (status < 0) {
        block_error_errno(error, -status, "Could not read the rules in '%s'", filename);
        return NULL;
    }
    if (text->len > FILE_BYTES_MAX) {
        block_error(error, EFBIG, "The rules in '%s' are longer than %d bytes", filename,
                    FILE_BYTES_MAX);
        return NULL;
    }
    json_t *value = parse(text->str, text->len, filename, error);
    struct authorization *rules = value ? authorization_from_json(value) : NULL;
    json_decref(value);
    return rules;
}

/* Lock held. */
static void read_again(struct authorization_file *file)
{
    g_autoptr(GError) error = NULL;
    struct stat now;

    if (stat(file->filename, &now) == 0 && is_same(&now, &file->seen)) {
        return;
    }
    bool was_readable = file->rules != NULL;
    authorization_unref(file->rules);
    file->seen = (struct stat){0};
    file->rules = load(file->filename, &file->seen, &error);
    if (!file->rules && was_readable) {
        g_warning("%s: nobody is allowed until it can be read", error->message);
    }
}

struct authorization_file *authorization_file_open(const char *filename, bool refresh,
                                                   GError **error)
{
    struct stat seen;
    struct authorization *rules = load(filename, &seen, error);

    if (!rules) {
        return NULL;
    }
    struct authorization_file *file = g_new0(struct authorization_file, 1);
    file->filename = g_canonicalize_filename(filename, NULL);
    file->refresh = refresh;
    file->rules = rules;
    file->seen = seen;
    pthread_mutex_init(&file->lock, NULL);
    return file;
}

bool authorization_file_allows(struct authorization_file *file, const char *peer)
{
    SCOPE_LOCK(&file->lock);

    if (file->refresh) {
        read_again(file);
    }
    return file->rules && authorization_allows(file->rules, peer);
}

void authorization_file_close(struct authorization_file *file)
{
    if (file) {
        authorization_unref(file->rules);
        pthread_mutex_destroy(&file->lock);
        g_free(file->filename);
        g_free(file);
    }
}
