/* SPDX-License-Identifier: BSD-3-Clause */
/* Listening on a path: permissions, what is in the way, and who wins. */
#include "server/unix-socket.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/error.h"

struct fixture {
    char *directory;
    char *path;
};

static void set_up(struct fixture *fixture, gconstpointer data)
{
    fixture->directory = g_dir_make_tmp("liveblk-test-XXXXXX", NULL);
    fixture->path = g_build_filename(fixture->directory, "admin.sock", NULL);
}

static void tear_down(struct fixture *fixture, gconstpointer data)
{
    g_unlink(fixture->path);
    g_assert_cmpint(g_rmdir(fixture->directory), ==, 0); /* nothing, no lock file, was left */
    g_free(fixture->path);
    g_free(fixture->directory);
}

static void listen_well(const char *path, struct unix_listener *listener)
{
    g_autoptr(GError) error = NULL;

    unix_socket_listen(path, listener, &error);
    g_assert_no_error(error);
}

static void refuse(const char *path, const char *message)
{
    g_autoptr(GError) error = NULL;
    struct unix_listener listener;

    g_assert_cmpint(unix_socket_listen(path, &listener, &error), ==, -EADDRINUSE);
    g_assert_true(g_str_has_suffix(error->message, message));
}

/* Somebody listened there and died. */
static void make_stale(const char *path)
{
    struct unix_listener listener;

    listen_well(path, &listener);
    close(listener.fd);
    close(listener.directory_fd);
    g_free(listener.name);
}

static bool can_connect(const char *path)
{
    int fd = unix_socket_connect(path, NULL);

    if (fd < 0) {
        return false;
    }
    close(fd);
    return true;
}

static void test_mode(struct fixture *fixture, gconstpointer data)
{
    struct unix_listener listener;
    mode_t umask_before = umask(0);
    struct stat status;

    listen_well(fixture->path, &listener);
    umask(umask_before);
    g_assert_cmpint(stat(fixture->path, &status), ==, 0);
    g_assert_cmpint(status.st_mode & 07777, ==, 0600);
    g_assert_true(can_connect(fixture->path));
    unix_socket_unlisten(&listener);
    g_assert_false(g_file_test(fixture->path, G_FILE_TEST_EXISTS));
}

static void test_stale(struct fixture *fixture, gconstpointer data)
{
    struct unix_listener listener;

    make_stale(fixture->path);
    g_assert_false(can_connect(fixture->path));
    listen_well(fixture->path, &listener);
    g_assert_true(can_connect(fixture->path));
    unix_socket_unlisten(&listener);
}

static void test_live(struct fixture *fixture, gconstpointer data)
{
    struct unix_listener listener;

    listen_well(fixture->path, &listener);
    refuse(fixture->path, "Address already in use");
    g_assert_true(can_connect(fixture->path));
    unix_socket_unlisten(&listener);
}

static void test_adopted(struct fixture *fixture, gconstpointer data)
{
    struct unix_listener bound, adopted;
    g_autoptr(GError) error = NULL;

    listen_well(fixture->path, &bound);
    g_assert_cmpint(unix_socket_adopt(dup(bound.fd), &adopted, &error), ==, 0);
    unix_socket_unlisten(&adopted);
    g_assert_true(can_connect(fixture->path));
    unix_socket_unlisten(&bound);
    g_assert_cmpint(unix_socket_adopt(STDIN_FILENO, &adopted, &error), ==, -EINVAL);
    g_assert_cmpstr(error->message, ==, "Descriptor 0 is no socket that listens");
}

static void test_no_socket(struct fixture *fixture, gconstpointer data)
{
    g_autofree char *contents = NULL;

    g_assert_true(g_file_set_contents(fixture->path, "precious", -1, NULL));
    refuse(fixture->path, "it exists and is not a socket");
    g_assert_true(g_file_get_contents(fixture->path, &contents, NULL, NULL));
    g_assert_cmpstr(contents, ==, "precious");
    g_unlink(fixture->path);
    g_assert_cmpint(symlink("elsewhere", fixture->path), ==, 0);
    refuse(fixture->path, "it exists and is not a socket");
}

static void test_replaced(struct fixture *fixture, gconstpointer data)
{
    struct unix_listener first, second;

    listen_well(fixture->path, &first);
    g_unlink(fixture->path);
    listen_well(fixture->path, &second);
    unix_socket_unlisten(&first);
    g_assert_true(can_connect(fixture->path));
    unix_socket_unlisten(&second);
}

static void test_long_path(struct fixture *fixture, gconstpointer data)
{
    g_autofree char *name = g_strnfill(150, 'd');
    g_autofree char *directory = g_build_filename(fixture->directory, name, NULL);
    g_autofree char *path = g_build_filename(directory, "admin.sock", NULL);
    g_autofree char *too_long = g_build_filename(directory, name, NULL);
    g_autoptr(GError) error = NULL;
    struct unix_listener listener;

    g_assert_cmpint(g_mkdir(directory, 0700), ==, 0);
    listen_well(path, &listener);
    g_assert_true(can_connect(path));
    unix_socket_unlisten(&listener);
    g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
    g_assert_cmpint(unix_socket_listen(too_long, &listener, &error), ==, -ENAMETOOLONG);
    g_assert_true(g_str_has_suffix(error->message, "is too long"));
    g_assert_cmpint(g_rmdir(directory), ==, 0);
}

static void test_bad_paths(struct fixture *fixture, gconstpointer data)
{
    g_autofree char *nowhere = g_build_filename(fixture->directory, "no", "socket", NULL);
    g_autofree char *directory = g_strconcat(fixture->directory, "/", NULL);
    struct unix_listener listener;

    g_assert_cmpint(unix_socket_listen(nowhere, &listener, NULL), ==, -ENOENT);
    g_assert_cmpint(unix_socket_listen(directory, &listener, NULL), ==, -EINVAL);
    g_assert_cmpint(unix_socket_listen("", &listener, NULL), ==, -EINVAL);
}

#define STARTERS 8

struct starter {
    pthread_t thread;
    const char *path;
    struct unix_listener listener;
    bool won;
};

static void *start(void *data)
{
    struct starter *starter = data;

    starter->won = unix_socket_listen(starter->path, &starter->listener, NULL) == 0;
    return NULL;
}

/* Threads for processes: the lock is one of open files, so they exclude each other just so. */
static void test_race(struct fixture *fixture, gconstpointer data)
{
    for (int round = 0; round < 50; round++) {
        struct starter starters[STARTERS] = {0};
        struct starter *winner = NULL;

        make_stale(fixture->path);
        for (int n = 0; n < STARTERS; n++) {
            starters[n].path = fixture->path;
            g_assert_cmpint(pthread_create(&starters[n].thread, NULL, start, &starters[n]), ==, 0);
        }
        for (int n = 0; n < STARTERS; n++) {
            pthread_join(starters[n].thread, NULL);
            if (starters[n].won) {
                g_assert_null(winner);
                winner = &starters[n];
            }
        }
        g_assert_nonnull(winner);
        g_assert_true(can_connect(fixture->path));
        unix_socket_unlisten(&winner->listener);
    }
}

#define ADD(name, function)                                                                        \
    g_test_add("/unix-socket/" name, struct fixture, NULL, set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    ADD("only-the-owner-may-connect-whatever-the-umask", test_mode);
    ADD("a-stale-socket-is-replaced", test_stale);
    ADD("a-live-socket-is-refused-and-keeps-working", test_live);
    ADD("a-socket-taken-over-leaves-its-path-alone", test_adopted);
    ADD("what-is-no-socket-is-refused-and-kept", test_no_socket);
    ADD("a-socket-that-is-not-ours-any-more-is-kept", test_replaced);
    ADD("paths-may-be-long", test_long_path);
    ADD("bad-paths-are-refused", test_bad_paths);
    ADD("of-many-starters-one-wins", test_race);
    return g_test_run();
}
