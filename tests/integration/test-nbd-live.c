/* SPDX-License-Identifier: BSD-3-Clause */
/* The nbd driver with real servers: nbdkit and qemu-nbd. */
#include <errno.h>
#include <glib/gstdio.h>
#include <libnbd.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/align.h"
#include "block/error.h"
#include "block/options.h"
#include "block/request.h"
#include "formats/formats.h"
#include "formats/nbd.h"
#include "tests/lib/nbd-node.h"

#define BLOCK   4096
#define THREADS 16

static char *folder;

static char *in_folder(const char *name)
{
    return g_build_filename(folder, name, NULL);
}

/* Servers. */

static GPid spawn(const char *format, ...) G_GNUC_PRINTF(1, 2);
static GPid spawn(const char *format, ...)
{
    g_autofree char *line = NULL;
    g_auto(GStrv) argv = NULL;
    GError *error = NULL;
    va_list args;
    GPid pid;

    va_start(args, format);
    line = g_strdup_vprintf(format, args);
    va_end(args);
    g_assert_true(g_shell_parse_argv(line, NULL, &argv, NULL));
    g_spawn_async(NULL, argv, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL,
                  &pid, &error);
    g_assert_no_error(error);
    return pid;
}

static void kill_server(GPid pid, int signal_number)
{
    kill(pid, signal_number);
    g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
}

static void run(const char *format, ...) G_GNUC_PRINTF(1, 2);
static void run(const char *format, ...)
{
    g_autofree char *line = NULL;
    g_autofree char *output = NULL;
    g_autofree char *errors = NULL;
    int status;
    va_list args;

    va_start(args, format);
    line = g_strdup_vprintf(format, args);
    va_end(args);
    g_assert_true(g_spawn_command_line_sync(line, &output, &errors, &status, NULL));
    if (status) {
        g_error("%s failed: %s", line, errors);
    }
}

static struct block_node *open_or_fail(struct nbd_options options)
{
    g_autoptr(GError) error = NULL;
    struct block_node *node = nbd_test_open(options, true, &error);

    g_assert_no_error(error);
    return node;
}

/* The server has just been started: wait for it. */
static struct nbd_options patient(const char *socket_path)
{
    struct nbd_options options = nbd_test_options(socket_path);

    options.open_timeout = 60;
    return options;
}

/* Threads that each write blocks of their own and read them back. */

struct writer {
    struct block_node *node;
    unsigned number;
    unsigned rounds; /* 0: until stop is set */
    _Atomic bool *stop;
    _Atomic uint64_t done; /* rounds */
    uint64_t sequence[8];  /* of each block, as last answered */
    pthread_t thread;
};

static void fill(uint64_t *block, uint64_t address, uint64_t sequence)
{
    for (unsigned i = 0; i < BLOCK / 8; i += 2) {
        block[i] = address;
        block[i + 1] = sequence;
    }
}

static uint64_t address_of(const struct writer *writer, unsigned index)
{
    return (writer->number * G_N_ELEMENTS(writer->sequence) + index) * BLOCK;
}

static void check_block(struct writer *writer, unsigned index)
{
    uint64_t found[BLOCK / 8], expected[BLOCK / 8];
    uint64_t address = address_of(writer, index);

    fill(expected, address, writer->sequence[index]);
    g_assert_cmpint(nbd_test_pread(writer->node, found, address, BLOCK), ==, 0);
    g_assert_cmpmem(found, BLOCK, expected, BLOCK);
}

static void *writer_main(void *data)
{
    struct writer *writer = data;
    uint64_t block[BLOCK / 8];

    for (uint64_t round = 1; writer->rounds ? round <= writer->rounds : !*writer->stop; round++) {
        unsigned index = round % G_N_ELEMENTS(writer->sequence);
        uint64_t address = address_of(writer, index);

        fill(block, address, round);
        g_assert_cmpint(nbd_test_pwrite(writer->node, block, address, BLOCK, 0), ==, 0);
        writer->sequence[index] = round;
        check_block(writer, index);
        atomic_fetch_add(&writer->done, 1);
    }
    return NULL;
}

static void start_writers(struct writer *writers, struct block_node *node, unsigned rounds,
                          _Atomic bool *stop)
{
    for (unsigned i = 0; i < THREADS; i++) {
        writers[i] = (struct writer){.node = node, .number = i, .rounds = rounds, .stop = stop};
        pthread_create(&writers[i].thread, NULL, writer_main, &writers[i]);
    }
}

static void join_writers(struct writer *writers)
{
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(writers[i].thread, NULL);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        for (unsigned index = 0; index < G_N_ELEMENTS(writers[i].sequence); index++) {
            if (writers[i].sequence[index]) {
                check_block(&writers[i], index);
            }
        }
    }
}

static void exercise(struct block_node *node)
{
    struct writer writers[THREADS];

    start_writers(writers, node, 200, NULL);
    join_writers(writers);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
}

static void test_memory(void)
{
    g_autofree char *path = in_folder("memory");
    GPid server = spawn("nbdkit -f -U %s memory 8M", path);

    for (unsigned connections = 0; connections < 3; connections++) {
        struct nbd_options options = patient(path);
        struct block_node *node;

        options.connections = connections;
        node = open_or_fail(options);
        exercise(node);
        nbd_test_close(node);
    }
    kill_server(server, SIGTERM);
}

static void test_large(void)
{
    g_autofree char *path = in_folder("large");
    g_autofree uint8_t *out = g_malloc(32 * MIB);
    g_autofree uint8_t *in = g_malloc(32 * MIB);
    GPid server = spawn("nbdkit -f -U %s memory 64M", path);
    struct block_node *node = open_or_fail(patient(path));

    for (unsigned i = 0; i < 32 * MIB; i++) {
        out[i] = (uint8_t)(i * 2654435761u >> 13);
    }
    g_assert_cmpint(nbd_test_pwrite(node, out, 16 * MIB, 32 * MIB, 0), ==, 0);
    g_assert_cmpint(nbd_test_pread(node, in, 16 * MIB, 32 * MIB), ==, 0);
    g_assert_cmpint(memcmp(in, out, 32 * MIB), ==, 0);
    nbd_test_close(node);
    kill_server(server, SIGTERM);
}

static void test_extents(void)
{
    g_autofree char *path = in_folder("extents");
    GPid server = spawn("nbdkit -f -U %s memory 1M", path);
    struct block_node *node = open_or_fail(patient(path));
    struct block_extent extent;
    uint8_t block[BLOCK] = {1};

    g_assert_cmpint(nbd_driver.block_status(node, 0, MIB, &extent), ==, 0);
    g_assert_cmpuint(extent.bytes, ==, MIB);
    g_assert_cmpuint(extent.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO), ==, BLOCK_STATUS_ZERO);
    g_assert_cmpint(nbd_test_pwrite(node, block, 0, BLOCK, 0), ==, 0);
    g_assert_cmpint(nbd_driver.block_status(node, 0, MIB, &extent), ==, 0);
    g_assert_true(extent.flags & BLOCK_STATUS_DATA);
    nbd_test_close(node);
    kill_server(server, SIGTERM);
}

/* The server is killed again and again; each write answered must be there at the end. */
static void test_killed(void)
{
    g_autofree char *path = in_folder("killed");
    g_autofree char *disk = in_folder("killed-disk");
    struct writer writers[THREADS];
    _Atomic bool stop = false;
    struct nbd_options options = patient(path);
    struct block_node *node;
    GPid server;

    run("truncate -s 8M %s", disk);
    server = spawn("nbdkit -f -U %s file %s", path, disk);
    options.reconnect_delay = 60;
    node = open_or_fail(options);
    start_writers(writers, node, 0, &stop);
    for (unsigned kills = 0; kills < 5; kills++) {
        uint64_t before = atomic_load(&writers[kills].done);

        while (atomic_load(&writers[kills].done) < before + 20) {
            g_usleep(1000);
        }
        kill_server(server, SIGKILL);
        g_unlink(path);
        server = spawn("nbdkit -f -U %s file %s", path, disk);
    }
    stop = true;
    join_writers(writers);
    /* A file outlives its server, but from here nobody can know. */
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    nbd_test_close(node);
    kill_server(server, SIGTERM);
}

static struct block_node *open_in_core(const char *text, GError **error)
{
    struct block_options *options = block_options_parse(text, NULL, error);

    struct block_node *node;

    g_assert_nonnull(options);
    node = block_node_open(options, true, error);
    block_options_free(options);
    return node;
}

/* Options as a user gives them, and unaligned requests, which the core takes apart. */
static void test_core(void)
{
    g_autofree char *path = in_folder("core");
    GPid server = spawn("nbdkit -f -U %s --filter=blocksize-policy memory 8M "
                        "blocksize-minimum=4096 blocksize-preferred=65536 "
                        "blocksize-maximum=1M blocksize-error-policy=error",
                        path);
    g_autofree char *text = g_strdup_printf(
        "driver=nbd,server.type=unix,server.path=%s,open-timeout=60,reconnect-delay=5", path);
    g_autofree uint8_t *out = g_malloc(3 * MIB);
    g_autofree uint8_t *in = g_malloc(3 * MIB);
    g_autoptr(GError) error = NULL;
    struct block_node *node = open_in_core(text, &error);

    g_assert_no_error(error);
    g_assert_cmpuint(block_node_length(node), ==, 8 * MIB);
    for (unsigned i = 0; i < 3 * MIB; i++) {
        out[i] = (uint8_t)(i * 2654435761u >> 11);
    }
    g_assert_cmpint(block_node_pwrite(node, out, 1234567, 3 * MIB, 0), ==, 0);
    g_assert_cmpint(block_node_pread(node, in, 1234567, 3 * MIB, 0), ==, 0);
    g_assert_cmpint(memcmp(in, out, 3 * MIB), ==, 0);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    block_node_unref(node);
    g_assert_null(open_in_core("driver=nbd,uri=http://x", &error));
    g_assert_error(error, BLOCK_ERROR, EINVAL);
    kill_server(server, SIGTERM);
}

/* TLS. */

static void make_certificates(const char *to)
{
    static const char authority[] = "cn = \"test\"\nca\ncert_signing_key\n";
    static const char server[] =
        "cn = \"localhost\"\ndns_name = \"localhost\"\ntls_www_server\nsigning_key\n";
    g_autofree char *authority_template = in_folder("ca.info");
    g_autofree char *server_template = in_folder("server.info");

    g_assert_cmpint(g_mkdir(to, 0700), ==, 0);
    g_assert_true(g_file_set_contents(authority_template, authority, -1, NULL));
    g_assert_true(g_file_set_contents(server_template, server, -1, NULL));
    run("certtool --generate-privkey --key-type=ecdsa --outfile %s/ca-key.pem", to);
    run("certtool --generate-self-signed --load-privkey %s/ca-key.pem --template %s "
        "--outfile %s/ca-cert.pem",
        to, authority_template, to);
    run("certtool --generate-privkey --key-type=ecdsa --outfile %s/server-key.pem", to);
    run("certtool --generate-certificate --load-ca-certificate %s/ca-cert.pem --load-ca-privkey "
        "%s/ca-key.pem --load-privkey %s/server-key.pem --template %s --outfile "
        "%s/server-cert.pem",
        to, to, to, server_template, to);
}

static unsigned free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    g_assert_cmpint(bind(fd, (struct sockaddr *)&address, bytes), ==, 0);
    g_assert_cmpint(getsockname(fd, (struct sockaddr *)&address, &bytes), ==, 0);
    close(fd);
    return ntohs(address.sin_port);
}

static struct nbd_options certificate_options(unsigned port, const char *host,
                                              const char *certificates)
{
    struct nbd_options options = patient(NULL);

    options.server.type = BLOCK_ADDRESS_INET;
    options.server.host = g_strdup(host);
    options.server.port = g_strdup_printf("%u", port);
    if (certificates) {
        options.tls = LIBNBD_TLS_REQUIRE;
        options.tls_certificates = g_strdup(certificates);
    }
    return options;
}

static void expect_refusal(struct nbd_options options, const char *part)
{
    g_autoptr(GError) error = NULL;

    options.open_timeout = 0;
    g_assert_null(nbd_test_open(options, true, &error));
    g_test_message("%s", error->message);
    g_assert_nonnull(strstr(error->message, part));
}

/* Of the sockets of this process that are connected to the port: how many, and how many of them the
 * kernel watches. */
static void count_connections(unsigned port, unsigned *all, unsigned *watched)
{
    *all = *watched = 0;
    for (int fd = 3; fd < 1024; fd++) {
        struct sockaddr_in peer = {0};
        socklen_t bytes = sizeof(peer);
        int keeps = 0;

        if (getpeername(fd, (struct sockaddr *)&peer, &bytes) == 0 && peer.sin_family == AF_INET &&
            ntohs(peer.sin_port) == port) {
            getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &keeps, &(socklen_t){sizeof(keeps)});
            *all += 1;
            *watched += keeps != 0;
        }
    }
}

static void test_families(void)
{
    unsigned port = free_port(), all, watched;
    GPid server = spawn("nbdkit -f -i 127.0.0.1 -p %u memory 8M", port);
    struct nbd_options options = certificate_options(port, "localhost", NULL);

    options.server.no_ipv6 = true;
    struct block_node *node = open_or_fail(options);
    exercise(node);
    count_connections(port, &all, &watched);
    g_assert_cmpuint(all, >, 0);
    g_assert_cmpuint(watched, ==, all);
    nbd_test_close(node);
    options = certificate_options(port, "127.0.0.1", NULL);
    node = open_or_fail(options);
    count_connections(port, &all, &watched);
    g_assert_cmpuint(all, >, 0);
    g_assert_cmpuint(watched, ==, all);
    nbd_test_close(node);
    options = certificate_options(port, "127.0.0.1", NULL);
    options.server.no_ipv4 = true;
    expect_refusal(options, "by IPv6");
    kill_server(server, SIGTERM);
    options = certificate_options(port, "127.0.0.1", NULL);
    options.server.no_ipv6 = true;
    expect_refusal(options, "by IPv4: Connection refused");
}

static void test_certificates(void)
{
    g_autofree char *certificates = in_folder("pki");
    g_autofree char *others = in_folder("other-pki");
    unsigned port = free_port();
    struct block_node *node;
    uint8_t block[BLOCK] = {0};
    GPid server;

    make_certificates(certificates);
    make_certificates(others);
    server = spawn("nbdkit -f -i 127.0.0.1 -p %u --tls=require --tls-certificates=%s memory 8M",
                   port, certificates);
    node = open_or_fail(certificate_options(port, "localhost", certificates));
    exercise(node);
    /* No TLS, a name that is not the server's, an authority that did not sign. */
    expect_refusal(certificate_options(port, "localhost", NULL), "nbd://localhost");
    expect_refusal(certificate_options(port, "127.0.0.1", certificates), "nbds://127.0.0.1");
    expect_refusal(certificate_options(port, "localhost", others), "nbds://localhost");
    /* A TLS server that is killed must not kill us. */
    kill_server(server, SIGKILL);
    for (unsigned i = 0; i < 3; i++) {
        g_assert_cmpint(nbd_test_pwrite(node, block, 0, BLOCK, 0), <, 0);
    }
    nbd_test_close(node);
}

/* A server without TLS is not talked to in the clear where TLS is required. */
static void test_tls_required(const char *keys)
{
    g_autofree char *path = in_folder("clear-socket");
    GPid server = spawn("nbdkit -f -U %s memory 8M", path);

    nbd_test_close(open_or_fail(patient(path)));
    for (unsigned i = 0; i < 2; i++) {
        struct nbd_options options = patient(i ? path : NULL);

        options.uri = i ? NULL : g_strdup_printf("nbd+unix:///?socket=%s", path);
        options.tls = LIBNBD_TLS_REQUIRE;
        options.tls_psk_file = g_strdup(keys);
        expect_refusal(options, "TLS");
    }
    kill_server(server, SIGTERM);
}

static void test_psk(void)
{
    g_autofree char *path = in_folder("psk-socket");
    g_autofree char *keys = in_folder("keys.psk");
    struct nbd_options options = patient(NULL);
    struct block_node *node;
    GPid server;

    run("psktool -u liveblk -p %s", keys);
    server = spawn("nbdkit -f -U %s --tls=require --tls-psk=%s memory 8M", path, keys);
    options.uri = g_strdup_printf("nbds+unix://liveblk@/?socket=%s", path);
    options.tls_psk_file = g_strdup(keys);
    node = open_or_fail(options);
    exercise(node);
    nbd_test_close(node);
    /* With "on" and "require", by address and by a URI that does not ask for TLS itself. */
    for (unsigned i = 0; i < 4; i++) {
        options = patient(i & 1 ? path : NULL);
        options.uri = i & 1 ? NULL : g_strdup_printf("nbd+unix:///?socket=%s", path);
        options.tls = i & 2 ? LIBNBD_TLS_REQUIRE : LIBNBD_TLS_ALLOW;
        options.tls_psk_file = g_strdup(keys);
        options.tls_username = g_strdup("liveblk");
        node = open_or_fail(options);
        exercise(node);
        nbd_test_close(node);
    }
    kill_server(server, SIGTERM);
    test_tls_required(keys);
}

static void test_uri(void)
{
    g_autofree char *path = in_folder("uri-socket");
    GPid server = spawn("nbdkit -f -U %s memory 8M", path);
    struct nbd_options options = patient(NULL);
    struct block_node *node;
    g_autofree char *name = NULL;

    options.uri = g_strdup_printf("nbd+unix:///?socket=%s", path);
    node = open_or_fail(options);
    exercise(node);
    name = nbd_driver.get_filename(node);
    g_assert_true(g_str_has_suffix(name, path));
    nbd_test_close(node);
    kill_server(server, SIGTERM);
}

/* Commands. */

static struct nbd_options command_options(const char *format, ...) G_GNUC_PRINTF(1, 2);
static struct nbd_options command_options(const char *format, ...)
{
    struct nbd_options options = nbd_test_options(NULL);
    g_autofree char *line = NULL;
    va_list args;

    va_start(args, format);
    line = g_strdup_vprintf(format, args);
    va_end(args);
    g_assert_true(g_shell_parse_argv(line, NULL, &options.command, NULL));
    return options;
}

static pid_t read_pid(const char *path)
{
    g_autofree char *text = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    return (pid_t)g_ascii_strtoll(text, NULL, 10);
}

static void test_command_nbdkit(void)
{
    g_autofree char *pid_file = in_folder("command-pid");
    struct block_node *node = open_or_fail(command_options("nbdkit -P %s memory 8M", pid_file));
    pid_t pid = read_pid(pid_file);

    exercise(node);
    g_assert_cmpint(kill(pid, 0), ==, 0);
    nbd_test_close(node);
    g_assert_cmpint(kill(pid, 0), ==, -1);
}

static void test_command_qemu(void)
{
    g_autofree char *image = in_folder("image.qcow2");
    uint8_t block[BLOCK], found[BLOCK];
    struct block_node *node;

    memset(block, 0x5a, sizeof(block));
    run("qemu-img create -q -f qcow2 %s 8M", image);
    node = open_or_fail(command_options("qemu-nbd -f qcow2 %s", image));
    exercise(node);
    g_assert_cmpint(nbd_test_pwrite(node, block, 6 * MIB, BLOCK, 0), ==, 0);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    nbd_test_close(node);
    run("qemu-img check -q %s", image);
    node = open_or_fail(command_options("qemu-nbd -f qcow2 %s", image));
    g_assert_cmpint(nbd_test_pread(node, found, 6 * MIB, BLOCK), ==, 0);
    g_assert_cmpmem(found, BLOCK, block, BLOCK);
    nbd_test_close(node);
}

static void test_command_fails(void)
{
    expect_refusal(command_options("false"), "Could not connect to 'false'");
    expect_refusal(command_options("nbdkit no-such-plugin"), "no-such-plugin");
}

/* A command that is killed cannot be had again; one that does not end is killed at close. */
static void test_command_dies(void)
{
    g_autofree char *pid_file = in_folder("dying-pid");
    struct block_node *node = open_or_fail(command_options("nbdkit -P %s memory 8M", pid_file));
    uint8_t block[BLOCK] = {0};

    kill(read_pid(pid_file), SIGKILL);
    while (nbd_test_pwrite(node, block, 0, BLOCK, 0) == 0) {
        g_usleep(1000);
    }
    g_assert_cmpint(nbd_test_pwrite(node, block, 0, BLOCK, 0), ==, -ENOTCONN);
    nbd_test_close(node);
}

static void test_command_stuck(void)
{
    g_autofree char *pid_file = in_folder("stuck-pid");
    struct block_node *node = open_or_fail(command_options("nbdkit -P %s memory 8M", pid_file));
    pid_t pid = read_pid(pid_file);

    kill(pid, SIGSTOP);
    nbd_test_close(node);
    g_assert_cmpint(kill(pid, 0), ==, -1);
}

int main(int argc, char **argv)
{
    g_autofree char *clean = NULL;
    int ret;

    g_test_init(&argc, &argv, NULL);
    formats_register();
    folder = g_dir_make_tmp("liveblk-nbd-live-XXXXXX", NULL);
    g_test_add_func("/nbd-live/many-threads-read-what-they-wrote", test_memory);
    g_test_add_func("/nbd-live/the-largest-request-arrives-whole", test_large);
    g_test_add_func("/nbd-live/extents-follow-the-data", test_extents);
    g_test_add_func("/nbd-live/a-server-killed-in-the-middle-loses-no-request", test_killed);
    g_test_add_func("/nbd-live/the-core-opens-it-by-its-options", test_core);
    g_test_add_func("/nbd-live/families-of-addresses", test_families);
    g_test_add_func("/nbd-live/tls-with-certificates", test_certificates);
    g_test_add_func("/nbd-live/tls-with-a-shared-key", test_psk);
    g_test_add_func("/nbd-live/a-uri-names-the-export", test_uri);
    g_test_add_func("/nbd-live/nbdkit-as-a-command", test_command_nbdkit);
    g_test_add_func("/nbd-live/qemu-nbd-as-a-command", test_command_qemu);
    g_test_add_func("/nbd-live/a-command-that-fails-is-an-error", test_command_fails);
    g_test_add_func("/nbd-live/a-command-that-dies-is-an-error", test_command_dies);
    g_test_add_func("/nbd-live/a-command-that-hangs-is-killed", test_command_stuck);
    ret = g_test_run();
    clean = g_strdup_printf("rm -rf %s", folder);
    g_spawn_command_line_sync(clean, NULL, NULL, NULL, NULL);
    g_free(folder);
    return ret;
}
