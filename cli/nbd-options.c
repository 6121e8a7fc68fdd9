/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/nbd-options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/error.h"
#include "block/gate.h"
#include "block/options.h"
#include "cli/process.h"
#include "server/objects.h"
#include "server/option-text.h"

/* Names on the wire are not longer. */
#define NAME_MAX_BYTES 4096

/* Those without a letter. */
enum {
    OPTION_AIO = 256,
    OPTION_CACHE,
    OPTION_DETECT_ZEROES,
    OPTION_DISCARD,
    OPTION_FORK,
    OPTION_HANDSHAKE_LIMIT,
    OPTION_IMAGE_OPTS,
    OPTION_OBJECT,
    OPTION_PID_FILE,
    OPTION_SELINUX_LABEL,
    OPTION_TLS_AUTHZ,
    OPTION_TLS_CREDS,
    OPTION_TLS_HOSTNAME,
};

static const char short_options[] = "hVp:b:k:e:tx:D:f:o:rsl:AB:ndc:LvT";
static const struct option long_options[] = {
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {"port", required_argument, NULL, 'p'},
    {"bind", required_argument, NULL, 'b'},
    {"socket", required_argument, NULL, 'k'},
    {"shared", required_argument, NULL, 'e'},
    {"persistent", no_argument, NULL, 't'},
    {"export-name", required_argument, NULL, 'x'},
    {"description", required_argument, NULL, 'D'},
    {"handshake-limit", required_argument, NULL, OPTION_HANDSHAKE_LIMIT},
    {"format", required_argument, NULL, 'f'},
    {"image-opts", no_argument, NULL, OPTION_IMAGE_OPTS},
    {"offset", required_argument, NULL, 'o'},
    {"read-only", no_argument, NULL, 'r'},
    {"snapshot", no_argument, NULL, 's'},
    {"load-snapshot", required_argument, NULL, 'l'},
    {"allocation-depth", no_argument, NULL, 'A'},
    {"bitmap", required_argument, NULL, 'B'},
    {"cache", required_argument, NULL, OPTION_CACHE},
    {"nocache", no_argument, NULL, 'n'},
    {"aio", required_argument, NULL, OPTION_AIO},
    {"discard", required_argument, NULL, OPTION_DISCARD},
    {"detect-zeroes", required_argument, NULL, OPTION_DETECT_ZEROES},
    {"fork", no_argument, NULL, OPTION_FORK},
    {"pid-file", required_argument, NULL, OPTION_PID_FILE},
    {"object", required_argument, NULL, OPTION_OBJECT},
    {"tls-creds", required_argument, NULL, OPTION_TLS_CREDS},
    {"tls-authz", required_argument, NULL, OPTION_TLS_AUTHZ},
    {"tls-hostname", required_argument, NULL, OPTION_TLS_HOSTNAME},
    {"selinux-label", required_argument, NULL, OPTION_SELINUX_LABEL},
    {"connect", required_argument, NULL, 'c'},
    {"disconnect", no_argument, NULL, 'd'},
    {"list", no_argument, NULL, 'L'},
    {"verbose", no_argument, NULL, 'v'},
    {"trace", optional_argument, NULL, 'T'},
    {NULL, 0, NULL, 0},
};

void nbd_arguments_print_help(void)
{
    puts("Usage: liveblk-nbd [OPTION...] FILE\n"
         "       liveblk-nbd -L [OPTION...]\n"
         "       liveblk-nbd -d DEVICE\n"
         "Serve a disk image over NBD, with the command line of qemu-nbd.\n"
         "\n"
         "  -h, --help                  print this help and exit\n"
         "  -V, --version               print the version and exit\n"
         "\n"
         "Where to listen, or with -L to connect to:\n"
         "  -p, --port=PORT             TCP port (10809)\n"
         "  -b, --bind=ADDRESS          address (0.0.0.0; with -L localhost)\n"
         "  -k, --socket=PATH           UNIX socket, an absolute path, instead\n"
         "  -e, --shared=NUM            so many clients at a time (1); 0: any number\n"
         "  -t, --persistent            stay when the last client has left\n"
         "      --handshake-limit=N     seconds that a handshake may take (10); 0: any time\n"
         "\n"
         "The image:\n"
         "  -f, --format=FORMAT         its format; what others than raw and qcow2 hold is\n"
         "                              served through a qemu-nbd, if that is installed\n"
         "      --image-opts            FILE is driver=...,file.filename=...\n"
         "  -o, --offset=BYTES          where the disk starts in it (0)\n"
         "  -r, --read-only             let nobody write\n"
         "  -s, --snapshot              let what is written vanish at the end\n"
         "  -l, --load-snapshot=NAME    show an internal snapshot: an ID or name, or\n"
         "                              snapshot.id=ID,snapshot.name=NAME\n"
         "      --cache=MODE            writeback (default), none, writethrough, directsync,\n"
         "                              unsafe\n"
         "  -n, --nocache               --cache=none\n"
         "      --aio=MODE              threads (default), native, io_uring\n"
         "      --discard=MODE          ignore (default), unmap\n"
         "      --detect-zeroes=MODE    off (default), on, unmap\n"
         "\n"
         "The export:\n"
         "  -x, --export-name=NAME      its name (\"\")\n"
         "  -D, --description=TEXT      its description\n"
         "  -A, --allocation-depth      offer qemu:allocation-depth\n"
         "  -B, --bitmap=NAME           offer qemu:dirty-bitmap:NAME; may repeat\n"
         "\n"
         "TLS:\n"
         "      --object TYPE,id=ID,... make an object: secret, tls-creds-x509, ...\n"
         "      --tls-creds=ID          use TLS, and only TLS, with these credentials\n"
         "      --tls-authz=ID          let in whom this object authorizes\n"
         "      --tls-hostname=NAME     with -L: the name in the server's certificate\n"
         "\n"
         "The process:\n"
         "      --fork                  go to the background when clients can connect\n"
         "      --pid-file=PATH         write the process ID to a file\n"
         "  -v, --verbose               with --fork: go on writing messages\n"
         "\n"
         "The kernel's NBD client:\n"
         "  -c, --connect=DEVICE        show the disk as DEVICE, /dev/nbdN, and go to the\n"
         "                              background (but with --verbose)\n"
         "  -d, --disconnect DEVICE     end that\n"
         "\n"
         "  -L, --list                  list the exports of a server\n"
         "\n"
         "See liveblk-nbd(1).");
}

/* ---- Single options -------------------------------------------------------------------------- */

static int read_number(const char *option, const char *text, uint32_t *number, GError **error)
{
    guint64 value;

    if (!g_ascii_string_to_unsigned(text, 10, 0, INT32_MAX, &value, NULL)) {
        return block_error(error, EINVAL, "%s expects a number, not '%s'", option, text);
    }
    *number = (uint32_t)value;
    return 0;
}

static int read_words(const char *option, const char *text, const char *const *words,
                      GError **error)
{
    g_autofree char *all = g_strjoinv(", ", (char **)words);

    return g_strv_contains(words, text)
               ? 0
               : block_error(error, EINVAL, "%s expects one of %s, not '%s'", option, all, text);
}

static int read_cache(struct nbd_arguments *arguments, const char *mode, GError **error)
{
    static const char *const modes[] = {"none",       "off",    "writeback", "writethrough",
                                        "directsync", "unsafe", NULL};
    struct nbd_image *image = &arguments->image;

    if (image->cache) {
        return block_error(error, EINVAL, "--nocache and --cache can be given only once");
    }
    if (read_words("--cache", mode, modes, error) < 0) {
        return -EINVAL;
    }
    image->cache = strcmp(mode, "off") != 0 ? mode : "none";
    image->direct = !strcmp(image->cache, "none") || !strcmp(mode, "directsync");
    image->no_flush = !strcmp(mode, "unsafe");
    arguments->writethrough = !strcmp(mode, "writethrough") || !strcmp(mode, "directsync");
    return 0;
}

static int read_discard(struct nbd_image *image, const char *mode, GError **error)
{
    static const char *const modes[] = {"ignore", "off", "unmap", "on", NULL};

    if (image->has_discard) {
        return block_error(error, EINVAL, "--discard can be given only once");
    }
    image->has_discard = true;
    image->discard = !strcmp(mode, "unmap") || !strcmp(mode, "on");
    return read_words("--discard", mode, modes, error);
}

static int read_detect_zeroes(struct nbd_image *image, const char *mode, GError **error)
{
    static const char *const modes[] = {"off", "on", "unmap", NULL};

    if (!strcmp(mode, "unmap") && !image->discard) {
        return block_error(error, EINVAL, "--detect-zeroes=unmap needs --discard=unmap before it");
    }
    image->detect_zeroes = mode;
    return read_words("--detect-zeroes", mode, modes, error);
}

static int read_name(const char *option, const char *text, const char **name, GError **error)
{
    *name = text;
    return strlen(text) <= NAME_MAX_BYTES
               ? 0
               : block_error(error, EINVAL, "%s expects at most %d bytes", option, NAME_MAX_BYTES);
}

static int read_aio(struct nbd_image *image, const char *mode, GError **error)
{
    static const char *const modes[] = {"threads", "native", "io_uring", NULL};

    if (image->aio) {
        return block_error(error, EINVAL, "--aio can be given only once");
    }
    image->aio = mode;
    return read_words("--aio", mode, modes, error);
}

static int read_socket(struct nbd_arguments *arguments, const char *path, GError **error)
{
    arguments->socket = path;
    return g_path_is_absolute(path)
               ? 0
               : block_error(error, EINVAL, "socket path must be absolute, not '%s'", path);
}

static int read_offset(struct nbd_image *image, const char *text, GError **error)
{
    int status = block_parse_size(text, &image->offset, error);

    if (status < 0) {
        g_prefix_error(error, "--offset: ");
    }
    return status;
}

/* ---- All of them ----------------------------------------------------------------------------- */

static int read_image_option(struct nbd_arguments *arguments, int option, GError **error)
{
    struct nbd_image *image = &arguments->image;

    switch (option) {
    case 'f':
        image->format = optarg;
        return 0;
    case OPTION_IMAGE_OPTS:
        image->is_options = true;
        return 0;
    case 'o':
        return read_offset(image, optarg, error);
    case 'r':
        image->read_only = true;
        return 0;
    case 's':
        image->is_temporary = true;
        return 0;
    case 'l':
        image->snapshot = optarg;
        image->read_only = true;
        return 0;
    case OPTION_CACHE:
        return read_cache(arguments, optarg, error);
    case 'n':
        return read_cache(arguments, "none", error);
    case OPTION_AIO:
        return read_aio(image, optarg, error);
    case OPTION_DISCARD:
        return read_discard(image, optarg, error);
    case OPTION_DETECT_ZEROES:
        return read_detect_zeroes(image, optarg, error);
    default:
        return 1;
    }
}

static int read_export_option(struct nbd_arguments *arguments, int option, GError **error)
{
    switch (option) {
    case 'x':
        return read_name("--export-name", optarg, &arguments->name, error);
    case 'D':
        return read_name("--description", optarg, &arguments->description, error);
    case 'A':
        arguments->allocation_depth = true;
        return 0;
    case 'B':
        g_ptr_array_insert(arguments->bitmaps, 0, optarg); /* in the order that qemu-nbd has */
        return 0;
    case 'e':
        return read_number("--shared", optarg, &arguments->clients, error);
    case 't':
        arguments->is_persistent = true;
        return 0;
    case OPTION_HANDSHAKE_LIMIT:
        return read_number("--handshake-limit", optarg, &arguments->handshake_s, error);
    case OPTION_TLS_AUTHZ:
        arguments->tls_authorization = optarg;
        return 0;
    default:
        return 1;
    }
}

static int read_other_option(struct nbd_arguments *arguments, int option, GError **error)
{
    switch (option) {
    case 'p':
        arguments->port = optarg;
        return 0;
    case 'b':
        arguments->bind = optarg;
        return 0;
    case 'k':
        return read_socket(arguments, optarg, error);
    case OPTION_OBJECT:
        g_ptr_array_add(arguments->objects, optarg);
        arguments->help =
            option_text_help(optarg, "List of user creatable objects:", &object_options_type);
        arguments->mode = arguments->help ? NBD_MODE_HELP : arguments->mode;
        return 0;
    case OPTION_TLS_CREDS:
        arguments->tls_credentials = optarg;
        return 0;
    case OPTION_TLS_HOSTNAME:
        arguments->tls_hostname = optarg;
        return 0;
    case OPTION_FORK:
        arguments->forks = true;
        return 0;
    case OPTION_PID_FILE:
        arguments->pid_file = optarg;
        return 0;
    case 'v':
        arguments->is_verbose = true;
        return 0;
    case 'L':
        arguments->mode = NBD_MODE_LIST;
        return 0;
    case 'c':
        arguments->device = optarg;
        return 0;
    case 'd':
        arguments->mode = NBD_MODE_DISCONNECT;
        return 0;
    case OPTION_SELINUX_LABEL:
        return block_error(error, ENOTSUP,
                           "--selinux-label is not supported: set the label of the "
                           "socket's directory instead");
    case 'T':
        return block_error(error, ENOTSUP, "--trace is not supported: there are no trace points");
    default:
        return 1;
    }
}

/* ---- Together -------------------------------------------------------------------------------- */

/* What is about an image or the server's process has no meaning for who lists another's exports. */
static int check_list(const struct nbd_arguments *arguments, int file_count, bool has_export_option,
                      GError **error)
{
    if (file_count) {
        return block_error(error, EINVAL, "--list takes no file");
    }
    if (has_export_option || arguments->forks) {
        return block_error(error, EINVAL,
                           "--list is about another server: options of an image, an "
                           "export or a process make no sense with it");
    }
    return 0;
}

static int check_activation(struct nbd_arguments *arguments, GError **error)
{
    const char *pid = g_getenv("LISTEN_PID"), *count = g_getenv("LISTEN_FDS");

    arguments->is_activated = pid && count && atoi(pid) == getpid() && strcmp(count, "0") != 0;
    if (!arguments->is_activated) {
        return 0;
    }
    if (strcmp(count, "1") != 0) {
        return block_error(error, EINVAL, "Socket activation passed %s sockets; one is expected",
                           count);
    }
    if (arguments->mode != NBD_MODE_SERVE || arguments->port || arguments->bind ||
        arguments->socket || arguments->device) {
        return block_error(error, EINVAL,
                           "--list, --port, --bind, --socket, --connect and --disconnect make no "
                           "sense with a socket that was passed by socket activation");
    }
    return 0;
}

/* The kernel connects to us over a UNIX socket, without TLS. */
static int check_device(struct nbd_arguments *arguments, GError **error)
{
    if (arguments->device && (arguments->mode != NBD_MODE_SERVE || arguments->port ||
                              arguments->bind || arguments->tls_credentials)) {
        return block_error(error, EINVAL,
                           "--list, --disconnect, --port, --bind and --tls-creds make no sense "
                           "with --connect");
    }
    if (check_activation(arguments, error) < 0) {
        return -EINVAL;
    }
    if (arguments->device && !arguments->socket) {
        g_autofree char *name = g_path_get_basename(arguments->device);

        arguments->device_socket = g_strdup_printf("/var/lock/liveblk-nbd-%s", name);
        arguments->socket = arguments->device_socket;
    }
    arguments->forks |= arguments->device && !arguments->is_verbose;
    return 0;
}

static int check_together(struct nbd_arguments *arguments, GError **error)
{
    if (arguments->image.is_options && arguments->image.format) {
        return block_error(error, EINVAL, "--image-opts excludes --format: write driver=...");
    }
    if ((arguments->tls_authorization || arguments->tls_hostname) && !arguments->tls_credentials) {
        return block_error(error, EINVAL, "--tls-authz and --tls-hostname need --tls-creds");
    }
    if (arguments->tls_hostname && arguments->mode != NBD_MODE_LIST) {
        return block_error(error, EINVAL,
                           "--tls-hostname is for --list: the name that a server's "
                           "certificate has");
    }
    return check_device(arguments, error);
}

static int take_file(struct nbd_arguments *arguments, int count, char **files, GError **error)
{
    if (count != 1) {
        return block_error(error, EINVAL, "One file is expected, not %d", count);
    }
    const char *file = files[0];
    bool is_path = !arguments->image.is_options && !g_str_has_prefix(file, "json:") &&
                   !block_reference_is_uri(file);
    if (!*file) {
        return block_error(error, EINVAL, "The file's name is empty");
    }
    if (is_path && g_str_has_prefix(file, "file:")) {
        file += strlen("file:");
    }
    arguments->file = is_path ? g_canonicalize_filename(file, NULL) : g_strdup(file);
    arguments->image.file = arguments->file;
    return 0;
}

/* What qemu-nbd lets stand beside --list, although it has nothing to do there. */
static const char list_ignores[] = "rste";

/* *is_of_export: it is about an image or an export, and not about where to listen or connect. */
static int read_option(struct nbd_arguments *arguments, int option, bool *is_of_export,
                       GError **error)
{
    int status = read_other_option(arguments, option, error);

    if (status > 0) {
        *is_of_export |= !strchr(list_ignores, option);
        status = read_image_option(arguments, option, error);
    }
    return status > 0 ? read_export_option(arguments, option, error) : status;
}

/* Stops at --help and --version. */
static int read_options(int argc, char **argv, struct nbd_arguments *arguments, bool *has_of_export,
                        GError **error)
{
    int option, status = 0;

    while (status == 0 && !arguments->help &&
           (option = process_next_option(argc, argv, short_options, long_options, NULL, error)) >=
               0) {
        if (option == 'h' || option == 'V') {
            arguments->mode = option == 'h' ? NBD_MODE_HELP : NBD_MODE_VERSION;
            return 0;
        }
        status = option == '?' ? -EINVAL : read_option(arguments, option, has_of_export, error);
    }
    return status;
}

int nbd_arguments_read(int argc, char **argv, struct nbd_arguments *arguments, GError **error)
{
    bool has_of_export = false;

    *arguments = (struct nbd_arguments){
        .clients = 1,
        .handshake_s = 10,
        .name = "",
        .image.detect_zeroes = "off",
        .bitmaps = g_ptr_array_new(),
        .objects = g_ptr_array_new(),
    };
    int status = read_options(argc, argv, arguments, &has_of_export, error);
    bool lists = arguments->mode == NBD_MODE_LIST;
    int file_count = argc - optind;
    if (status < 0 || arguments->mode == NBD_MODE_HELP || arguments->mode == NBD_MODE_VERSION) {
        return status;
    }
    if ((lists && check_list(arguments, file_count, has_of_export, error) < 0) ||
        check_together(arguments, error) < 0) {
        return -EINVAL;
    }
    return lists ? 0 : take_file(arguments, file_count, argv + optind, error);
}

void nbd_arguments_clear(struct nbd_arguments *arguments)
{
    g_clear_pointer(&arguments->bitmaps, g_ptr_array_unref);
    g_clear_pointer(&arguments->objects, g_ptr_array_unref);
    g_clear_pointer(&arguments->file, g_free);
    g_clear_pointer(&arguments->device_socket, g_free);
    g_clear_pointer(&arguments->help, g_free);
}
