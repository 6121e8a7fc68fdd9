/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/object-types.h"

#include <string.h>

#include "server/authorization.h"
#include "server/objects.h"

/* ---- Authorization --------------------------------------------------------------------------- */

static const struct qmp_member simple_members[] = {
    {"identity", &qmp_type_string,
     .doc = "Who is allowed: a certificate's distinguished name, or the user name of a key."},
    {NULL},
};
const struct qmp_type object_authz_simple_type = {
    .name = "AuthZSimpleProperties",
    .kind = QMP_KIND_OBJECT,
    .members = simple_members,
};
static const struct qmp_member file_members[] = {
    {"filename", &qmp_type_string,
     .doc = "A file with JSON text: an object with the properties of an authz-list."},
    {"refresh", &qmp_type_bool, .optional = true, .default_text = "true",
     .doc = "When the file has changed, go by what it says then; while it cannot be read, allow "
            "nobody."},
    {NULL},
};
const struct qmp_type object_authz_file_type = {
    .name = "AuthZListFileProperties",
    .kind = QMP_KIND_OBJECT,
    .members = file_members,
};

/* ---- TLS ------------------------------------------------------------------------------------- */

static const char *const endpoints[] = {"client", "server", NULL};
static const struct qmp_type endpoint_type = {
    .name = "QCryptoTLSCredsEndpoint",
    .kind = QMP_KIND_ENUM,
    .values = endpoints,
};
static const struct qmp_member tls_members[] = {
    {"verify-peer", &qmp_type_bool, .optional = true, .default_text = "true",
     .doc = "The other side must have a certificate that is valid."},
    {"dir", &qmp_type_string, .optional = true,
     .doc = "The directory with the files, which are read at once. Only anonymous credentials have "
            "none."},
    {"endpoint", &endpoint_type, .optional = true, .default_text = "client",
     .doc = "Which side of a connection they are for."},
    {"priority", &qmp_type_string, .optional = true,
     .doc = "A priority string of GnuTLS; the default is the system's. Not for nodes of the "
            "driver nbd."},
    {NULL},
};
static const struct qmp_type tls_type = {
    .name = "TlsCredsProperties",
    .kind = QMP_KIND_OBJECT,
    .members = tls_members,
};
const struct qmp_type object_tls_anon_type = {
    .name = "TlsCredsAnonProperties",
    .kind = QMP_KIND_OBJECT,
    .base = &tls_type,
};
static const struct qmp_member psk_members[] = {
    {"username", &qmp_type_string, .optional = true, .default_text = "qemu",
     .doc = "Of a client: whose key of keys.psk it uses."},
    {NULL},
};
const struct qmp_type object_tls_psk_type = {
    .name = "TlsCredsPskProperties",
    .kind = QMP_KIND_OBJECT,
    .base = &tls_type,
    .members = psk_members,
};
static const struct qmp_member x509_members[] = {
    {"sanity-check", &qmp_type_bool, .optional = true, .default_text = "true",
     .doc = "Refuse a certificate of our own that is not valid now, or not of the authority, or "
            "for another purpose."},
    {"passwordid", &qmp_type_string, .optional = true,
     .doc = "The ID of a secret: the password of the private key. Not for nodes of the driver "
            "nbd."},
    {NULL},
};
const struct qmp_type object_tls_x509_type = {
    .name = "TlsCredsX509Properties",
    .kind = QMP_KIND_OBJECT,
    .base = &tls_type,
    .members = x509_members,
};

/* ---- Secrets, threads, limits ---------------------------------------------------------------- */

static const char *const secret_formats[] = {"raw", "base64", NULL};
static const struct qmp_type secret_format_type = {
    .name = "QCryptoSecretFormat",
    .kind = QMP_KIND_ENUM,
    .values = secret_formats,
};
static const struct qmp_member secret_members[] = {
    {"data", &qmp_type_string, .optional = true,
     .doc = "The secret itself, which other processes may see. Either this or"},
    {"file", &qmp_type_string, .optional = true,
     .doc = "the file that holds it, up to its last byte, a newline too."},
    {"format", &secret_format_type, .optional = true, .default_text = "raw",
     .doc = "How it is written there."},
    {"keyid", &qmp_type_string, .optional = true,
     .doc = "Refused: secrets that another one encrypts are not supported."},
    {"iv", &qmp_type_string, .optional = true, .doc = "Refused, as keyid."},
    {NULL},
};
const struct qmp_type object_secret_type = {
    .name = "SecretProperties",
    .kind = QMP_KIND_OBJECT,
    .members = secret_members,
};

#define NO_EFFECT(name_)                                                                           \
    {                                                                                              \
        name_, &qmp_type_int, .optional = true, .default_text = "0", .doc = "No effect."           \
    }
static const struct qmp_member iothread_members[] = {
    NO_EFFECT("poll-max-ns"),
    NO_EFFECT("poll-grow"),
    NO_EFFECT("poll-shrink"),
    NO_EFFECT("aio-max-batch"),
    NO_EFFECT("thread-pool-min"),
    NO_EFFECT("thread-pool-max"),
    {NULL},
};
const struct qmp_type object_iothread_type = {
    .name = "IothreadProperties",
    .kind = QMP_KIND_OBJECT,
    .members = iothread_members,
};

#define LIMIT(name_, unit)                                                                         \
    {name_, &qmp_type_int, .optional = true, .default_text = "0",                                  \
     .doc = unit " per second; 0: no limit."},                                                     \
        {name_ "-max", &qmp_type_int, .optional = true, .default_text = "0",                       \
         .doc = "The same in bursts."},                                                            \
    {                                                                                              \
        name_ "-max-length", &qmp_type_int, .optional = true, .default_text = "1",                 \
                                            .doc = "How long a burst may be, in seconds."          \
    }
static const struct qmp_member limits_members[] = {
    LIMIT("iops-total", "Requests"),
    LIMIT("iops-read", "Reads"),
    LIMIT("iops-write", "Writes"),
    LIMIT("bps-total", "Bytes"),
    LIMIT("bps-read", "Bytes that are read"),
    LIMIT("bps-write", "Bytes that are written"),
    {"iops-size", &qmp_type_int, .optional = true, .default_text = "0",
     .doc = "A request counts as one per so many bytes; 0: always as one."},
    {NULL},
};
static const struct qmp_type limits_type = {
    .name = "ThrottleLimits",
    .kind = QMP_KIND_OBJECT,
    .members = limits_members,
};
static const struct qmp_member group_members[] = {
    {"limits", &limits_type, .optional = true,
     .doc = "What all nodes of the group together keep to. qom-set changes those that it names, at "
            "once, for waiting requests too."},
    {NULL},
};
const struct qmp_type object_throttle_group_type = {
    .name = "ThrottleGroupProperties",
    .kind = QMP_KIND_OBJECT,
    .members = group_members,
};

/* ---- All of them ----------------------------------------------------------------------------- */

static const char *const kinds[] = {
    "authz-list",     "authz-list-file", "authz-simple",  "iothread",       "secret",
    "throttle-group", "tls-creds-anon",  "tls-creds-psk", "tls-creds-x509", NULL,
};
static const struct qmp_type kind_type = {
    .name = "ObjectType",
    .kind = QMP_KIND_ENUM,
    .values = kinds,
};
static const struct qmp_member options_members[] = {
    {"qom-type", &kind_type, .doc = "What it is."},
    {"id", &qmp_type_string, .doc = "Its name, by which others refer to it."},
    {NULL},
};
static const struct qmp_variant variants[] = {
    {"authz-list", &authorization_rules_type},
    {"authz-list-file", &object_authz_file_type},
    {"authz-simple", &object_authz_simple_type},
    {"iothread", &object_iothread_type},
    {"secret", &object_secret_type},
    {"throttle-group", &object_throttle_group_type},
    {"tls-creds-anon", &object_tls_anon_type},
    {"tls-creds-psk", &object_tls_psk_type},
    {"tls-creds-x509", &object_tls_x509_type},
    {NULL},
};
const struct qmp_type object_options_type = {
    .name = "ObjectOptions",
    .kind = QMP_KIND_OBJECT,
    .members = options_members,
    .discriminator = "qom-type",
    .variants = variants,
};

const struct qmp_member *object_type_member(const struct qmp_type *type, const char *name)
{
    for (; type; type = type->base) {
        for (const struct qmp_member *member = type->members; member && member->name; member++) {
            if (!strcmp(member->name, name)) {
                return member;
            }
        }
    }
    return NULL;
}
