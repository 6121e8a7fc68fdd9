/* SPDX-License-Identifier: BSD-3-Clause */
/* The command line of liveblk-nbd, which is that of qemu-nbd. */
#ifndef LIVEBLK_CLI_NBD_OPTIONS_H
#define LIVEBLK_CLI_NBD_OPTIONS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "cli/nbd-image.h"

#define NBD_PORT "10809"

enum nbd_mode {
    NBD_MODE_SERVE,
    NBD_MODE_LIST,
    NBD_MODE_DISCONNECT, /* a kernel's device, the image's `file` */
    NBD_MODE_HELP,
    NBD_MODE_VERSION,
};

struct nbd_arguments {
    enum nbd_mode mode;
    struct nbd_image image;
    char *file; /* of the image, absolute if it is a path */

    const char *port, *bind, *socket; /* NULL: not given */
    const char *device;               /* of the kernel, to be connected; NULL: none */
    char *device_socket;              /* made for it, if `socket` was not given */
    bool is_activated;                /* a socket was passed to us as descriptor 3 */
    uint32_t clients;                 /* at a time; 0: any number */
    bool is_persistent;
    uint32_t handshake_s; /* 0: no limit */

    const char *name, *description;
    bool writethrough, allocation_depth;
    GPtrArray *bitmaps; /* of const char * */

    GPtrArray *objects; /* of const char *: --object */
    const char *tls_credentials, *tls_authorization, *tls_hostname;

    bool forks, is_verbose;
    const char *pid_file;

    char *help; /* NBD_MODE_HELP: on what --object takes; NULL: on all options */
};

/*
 * Read the command line; what is wrong with it is an error. It refers to argv from then on. Texts
 * are looked at for form only: nothing is opened. Returns a negative errno.
 */
int nbd_arguments_read(int argc, char **argv, struct nbd_arguments *arguments, GError **error);
void nbd_arguments_clear(struct nbd_arguments *arguments);

void nbd_arguments_print_help(void);

#endif
