/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk-storage-daemon: nodes, exports and monitors, with the command line of QEMU's daemon. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "block/error.h"
#include "cli/process.h"
#include "cli/stdio-bridge.h"
#include "cli/storage-daemon-chardev.h"
#include "server/commands-export.h"
#include "server/nbd/server.h"
#include "server/objects.h"
#include "server/option-text.h"
#include "server/server.h"

#define PROGRAM "liveblk-storage-daemon"

enum {
    OPTION_BLOCKDEV = 256,
    OPTION_CHARDEV,
    OPTION_DAEMONIZE,
    OPTION_EXPORT,
    OPTION_MONITOR,
    OPTION_NBD_SERVER,
    OPTION_OBJECT,
    OPTION_PIDFILE,
};

static const char short_options[] = "hVT:";
static const struct option long_options[] = {
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {"blockdev", required_argument, NULL, OPTION_BLOCKDEV},
    {"chardev", required_argument, NULL, OPTION_CHARDEV},
    {"daemonize", no_argument, NULL, OPTION_DAEMONIZE},
    {"export", required_argument, NULL, OPTION_EXPORT},
    {"monitor", required_argument, NULL, OPTION_MONITOR},
    {"nbd-server", required_argument, NULL, OPTION_NBD_SERVER},
    {"object", required_argument, NULL, OPTION_OBJECT},
    {"pidfile", required_argument, NULL, OPTION_PIDFILE},
    {"trace", required_argument, NULL, 'T'},
    {NULL, 0, NULL, 0},
};

static void print_help(void)
{
    puts(
        "Usage: liveblk-storage-daemon [OPTION...]\n"
        "Open disks and serve them over NBD, with the command line of qemu-storage-daemon.\n"
        "\n"
        "  -h, --help         print this help and exit\n"
        "  -V, --version      print the version and exit\n"
        "\n"
        "  --blockdev [driver=]DRIVER,node-name=NAME[,...]\n"
        "                     open a node, as blockdev-add does\n"
        "  --object [qom-type=]TYPE,id=ID[,...]\n"
        "                     make an object, as object-add does\n"
        "  --nbd-server addr.type=unix,addr.path=PATH[,...]\n"
        "  --nbd-server addr.type=inet,addr.host=HOST,addr.port=PORT[,...]\n"
        "                     listen for NBD clients\n"
        "  --export [type=]nbd,id=ID,node-name=NODE[,name=NAME][,writable=on][,...]\n"
        "                     offer a node to them, as block-export-add does\n"
        "  --chardev socket,id=ID,path=PATH,server=on,wait=off\n"
        "  --chardev stdio,id=ID\n"
        "                     what a monitor talks over\n"
        "  --monitor [chardev=]ID\n"
        "                     an admin channel (QMP)\n"
        "  --pidfile PATH     write the process ID to a file when all is ready\n"
        "  --daemonize        go to the background then\n"
        "\n"
        "Options are carried out in the order they are given. Each of those with parameters takes\n"
        "a JSON object, too. See liveblk-storage-daemon(1).");
}

struct choices {
    bool daemonizes;
    bool prints_help, prints_version;
    char *help; /* on what an option takes; NULL: nobody asks */
    const char *pid_file;
};

/* What concerns the process, in advance. */
static int read_choices(int argc, char **argv, struct choices *choices, GError **error)
{
    int option;

    while (!choices->help && (option = process_next_option(argc, argv, short_options, long_options,
                                                           NULL, error)) >= 0) {
        switch (option) {
        case '?':
            return -EINVAL;
        case 'h':
            choices->prints_help = true;
            return 0;
        case 'V':
            choices->prints_version = true;
            return 0;
        case 'T':
            return block_error(error, ENOTSUP,
                               "--trace is not supported: there are no trace "
                               "points");
        case OPTION_OBJECT:
            choices->help =
                option_text_help(optarg, "List of user creatable objects:", &object_options_type);
            break;
        case OPTION_CHARDEV:
            choices->help = chardev_help(optarg);
            break;
        case OPTION_DAEMONIZE:
            choices->daemonizes = true;
            break;
        case OPTION_PIDFILE:
            choices->pid_file = optarg;
            break;
        }
    }
    return optind == argc || choices->help
               ? 0
               : block_error(error, EINVAL, "Unexpected argument: '%s'", argv[optind]);
}

static int carry_out(struct server *server, int option, bool is_daemon, GError **error)
{
    switch (option) {
    case OPTION_BLOCKDEV:
        return server_run(server, "blockdev-add", optarg, "driver", error);
    case OPTION_OBJECT:
        return server_run(server, "object-add", optarg, "qom-type", error);
    case OPTION_EXPORT:
        return server_run(server, "block-export-add", optarg, "type", error);
    case OPTION_NBD_SERVER:
        return export_start_server(optarg, error);
    case OPTION_CHARDEV:
        return chardev_add(optarg, is_daemon, error);
    case OPTION_MONITOR:
        return chardev_add_monitor(optarg, error);
    default:
        return 0;
    }
}

static int carry_out_all(struct server *server, int argc, char **argv, bool is_daemon,
                         GError **error)
{
    int option, index, status = 0;

    optind = 0; /* once more from the beginning */
    while (status == 0 &&
           (option = getopt_long(argc, argv, short_options, long_options, &index)) >= 0) {
        status = carry_out(server, option, is_daemon, error);
        if (status < 0) {
            g_prefix_error(error, "--%s %s: ", long_options[index].name, optarg);
        }
    }
    return status;
}

static void finish(void *data)
{
    process_finish();
}

static int start(struct server *server, int argc, char **argv, const struct choices *choices,
                 GError **error)
{
    int status = server_prepare(server, error);

    /* Whoever comes early is to find all that the options say, wherever they say it. */
    nbd_server_hold_clients();
    if (status == 0) {
        status = server_start(server, finish, NULL, error);
    }
    if (status == 0) {
        status = carry_out_all(server, argc, argv, choices->daemonizes, error);
    }
    if (status == 0 && choices->pid_file) {
        status = process_write_pid_file(choices->pid_file, error);
    }
    if (status == 0) {
        nbd_server_admit_clients();
        chardev_start_monitors(server);
    }
    return status;
}

static int serve(int argc, char **argv, const struct choices *choices, GError **error)
{
    if (choices->daemonizes) {
        process_fork();
    }
    struct server *server = server_new();
    int status = start(server, argc, argv, choices, error);
    if (status == 0) {
        process_ready(false);
        while (process_wait(NULL, 0)) {
        }
    }
    chardev_close_all();
    server_free(server);
    stdio_bridge_end();
    process_end();
    return *error ? status : 0; /* without: it was to end before it had begun */
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    struct choices choices = {0};

    process_begin(PROGRAM);
    int status = read_choices(argc, argv, &choices, &error);
    if (status == 0 && choices.help) {
        fputs(choices.help, stdout);
    } else if (status == 0 && choices.prints_help) {
        print_help();
    } else if (status == 0 && choices.prints_version) {
        printf("%s %s (with the command line of qemu-storage-daemon 10.0)\n", PROGRAM,
               server_version());
    } else if (status == 0) {
        status = serve(argc, argv, &choices, &error);
    }
    if (status < 0) {
        process_complain("%s", error->message);
    }
    g_free(choices.help);
    return status < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
