/* SPDX-License-Identifier: BSD-3-Clause */
/* The handshake: doc/proto.md, "Fixed newstyle negotiation" and "Option types". */
#include <string.h>

#include "block/error.h"
#include "server/nbd/connection-internal.h"

/* More data than this an option of ours has no use for. */
#define OPTION_BYTES_MAX (256u << 10)
/* And more than this is not even skipped. */
#define SKIPPED_MAX (32u << 20)
#define QUERIES_MAX 1024

/* What becomes of the negotiation after an option. */
enum outcome { GO_ON, TRANSMIT, END };

/* It is answered when it has been dealt with: meanwhile exports are held, and a client that does
 * not listen must not hold them up. */
struct option {
    uint32_t number, length;
    const uint8_t *data; /* valid until the next one */
    GByteArray *answer;
};

/* ---- Sending --------------------------------------------------------------------------------- */

static bool send_bytes(struct nbd_connection *connection, const void *data, size_t bytes)
{
    struct iovec part = {.iov_base = (void *)data, .iov_len = bytes};

    return nbd_channel_send(&connection->channel, &part, 1) == 0;
}

static void add_reply(const struct option *option, uint32_t type, const void *data, size_t bytes)
{
    const struct nbd_option_reply header = {
        .magic = GUINT64_TO_BE(NBD_REPLY_MAGIC),
        .option = GUINT32_TO_BE(option->number),
        .type = GUINT32_TO_BE(type),
        .length = GUINT32_TO_BE((uint32_t)bytes),
    };

    g_byte_array_append(option->answer, (const guint8 *)&header, sizeof(header));
    g_byte_array_append(option->answer, data, (guint)bytes);
}

static bool send_answer(struct nbd_connection *connection, const struct option *option)
{
    bool is_sent =
        !option->answer->len || send_bytes(connection, option->answer->data, option->answer->len);

    g_byte_array_set_size(option->answer, 0);
    return is_sent;
}

static enum outcome acknowledge(const struct option *option)
{
    add_reply(option, NBD_REP_ACK, NULL, 0);
    return GO_ON;
}

static enum outcome refuse(const struct option *option, uint32_t type, const char *message)
{
    add_reply(option, type, message, MIN(strlen(message), NBD_STRING_MAX));
    return GO_ON;
}

/* ---- Receiving ------------------------------------------------------------------------------- */

static bool receive(struct nbd_connection *connection, void *buffer, size_t bytes)
{
    return !bytes ||
           nbd_channel_receive(&connection->channel, buffer, bytes, bytes) == (ssize_t)bytes;
}

static bool skip(struct nbd_connection *connection, uint32_t bytes)
{
    uint8_t waste[4096];

    while (bytes) {
        uint32_t part = MIN(bytes, sizeof(waste));

        if (!receive(connection, waste, part)) {
            return false;
        }
        bytes -= part;
    }
    return true;
}

/* A length and so many bytes of text, at *data with *left bytes; NULL: it is none. Caller frees. */
static char *take_string(const uint8_t **data, uint32_t *left)
{
    uint32_t length = *left >= 4 ? nbd_get32(*data) : UINT32_MAX;

    if (length > NBD_STRING_MAX || length > *left - 4) {
        return NULL;
    }
    char *text = g_strndup((const char *)*data + 4, length);
    if (strlen(text) != length || !g_utf8_validate(text, -1, NULL)) {
        g_free(text);
        return NULL;
    }
    *data += 4 + length;
    *left -= 4 + length;
    return text;
}

static const char *peer_of(const struct nbd_connection *connection)
{
    return connection->channel.tls ? tls_peer(connection->channel.tls) : NULL;
}

/* ---- TLS ------------------------------------------------------------------------------------- */

/* All that was agreed on in the clear counts no more: somebody else may have said it. */
static void forget_agreements(struct nbd_connection *connection)
{
    connection->mode = NBD_SIMPLE;
    g_array_set_size(connection->contexts, 0);
    connection->contexts_export = 0;
}

static enum outcome start_tls(struct nbd_connection *connection, const struct option *option)
{
    g_autoptr(GError) problem = NULL;

    if (option->length) {
        return refuse(option, NBD_REP_ERR_INVALID, "STARTTLS takes no data");
    }
    if (connection->channel.tls) {
        return refuse(option, NBD_REP_ERR_INVALID, "TLS is used already");
    }
    if (!connection->policy->credentials) {
        return refuse(option, NBD_REP_ERR_POLICY, "TLS is not configured here");
    }
    acknowledge(option);
    if (!send_answer(connection, option)) {
        return END;
    }
    connection->channel.tls =
        tls_serve(connection->policy->credentials, connection->channel.fd, &problem);
    if (!connection->channel.tls) {
        g_debug("NBD client: %s", problem->message);
        return END;
    }
    if (connection->policy->authorization &&
        !authorization_allows(connection->policy->authorization, peer_of(connection))) {
        g_debug("NBD client '%s' is not allowed here", peer_of(connection));
        return END;
    }
    forget_agreements(connection);
    return GO_ON;
}

/* ---- Listing --------------------------------------------------------------------------------- */

static void append_text(GByteArray *message, const char *text)
{
    g_byte_array_append(message, (const guint8 *)text, (guint)strlen(text));
}

static void add_export(const struct option *option, const struct nbd_export *export)
{
    g_autoptr(GByteArray) message = g_byte_array_new();
    const char *name = nbd_export_name(export);
    const char *description = nbd_export_description(export);

    nbd_append32(message, (uint32_t)strlen(name));
    append_text(message, name);
    if (description) {
        append_text(message, description);
    }
    add_reply(option, NBD_REP_SERVER, message->data, message->len);
}

static enum outcome list_exports(const struct nbd_connection *connection,
                                 const struct option *option)
{
    if (option->length) {
        return refuse(option, NBD_REP_ERR_INVALID, "LIST takes no data");
    }
    g_autoptr(GPtrArray) list = nbd_export_list(peer_of(connection));
    for (guint i = list->len; i > 0; i--) {
        add_export(option, g_ptr_array_index(list, i - 1));
    }
    return acknowledge(option);
}

/* ---- Choosing an export ---------------------------------------------------------------------- */

static uint16_t transmission_flags(const struct nbd_connection *connection,
                                   struct export_handle *handle, bool may_choose_contexts)
{
    unsigned flags =
        NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

    flags |= export_is_read_only(handle)
                 ? NBD_FLAG_READ_ONLY
                 : NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    flags |= connection->mode != NBD_SIMPLE ? NBD_FLAG_SEND_DF : 0;
    flags |= connection->policy->multi_conn ? NBD_FLAG_CAN_MULTI_CONN : 0;
    flags |= connection->mode == NBD_EXTENDED && (connection->contexts->len || may_choose_contexts)
                 ? NBD_FLAG_BLOCK_STATUS_PAYLOAD
                 : 0;
    return (uint16_t)flags;
}

/* Block status is for the export for which contexts were chosen last. */
static void keep_contexts_of(struct nbd_connection *connection, const struct nbd_export *export)
{
    if (connection->contexts_export != nbd_export_serial(export)) {
        g_array_set_size(connection->contexts, 0);
    }
}

/* The export, entered, is the connection's. */
static bool enter(struct nbd_connection *connection, struct nbd_export *export,
                  struct export_handle *handle)
{
    if (!nbd_export_enter(export, connection)) {
        return false;
    }
    connection->export = export;
    connection->handle = handle;
    return true;
}

static void add_info(const struct option *option, const GByteArray *info)
{
    add_reply(option, NBD_REP_INFO, info->data, info->len);
}

static void add_text_info(const struct option *option, uint16_t type, const char *text)
{
    g_autoptr(GByteArray) info = g_byte_array_new();

    nbd_append16(info, type);
    append_text(info, text);
    add_info(option, info);
}

static void add_block_size(const struct option *option, struct export_handle *handle)
{
    g_autoptr(GByteArray) info = g_byte_array_new();
    uint32_t minimum, preferred, maximum;

    export_block_size(handle, &minimum, &preferred, &maximum);
    nbd_append16(info, NBD_INFO_BLOCK_SIZE);
    nbd_append32(info, minimum);
    nbd_append32(info, preferred);
    nbd_append32(info, maximum);
    add_info(option, info);
}

static void add_export_info(const struct nbd_connection *connection, const struct option *option,
                            struct export_handle *handle)
{
    g_autoptr(GByteArray) info = g_byte_array_new();

    nbd_append16(info, NBD_INFO_EXPORT);
    nbd_append64(info, export_length(handle));
    nbd_append16(info, transmission_flags(connection, handle, option->number == NBD_OPT_INFO));
    add_info(option, info);
}

static bool is_requested(const uint8_t *requests, uint16_t count, uint16_t type)
{
    for (uint16_t i = 0; i < count; i++) {
        if (nbd_get16(requests + i * sizeof(uint16_t)) == type) {
            return true;
        }
    }
    return false;
}

static void add_all_info(const struct nbd_connection *connection, const struct option *option,
                         const struct nbd_export *export, struct export_handle *handle,
                         const uint8_t *requests, uint16_t count)
{
    if (is_requested(requests, count, NBD_INFO_NAME)) {
        add_text_info(option, NBD_INFO_NAME, nbd_export_name(export));
    }
    if (nbd_export_description(export) && is_requested(requests, count, NBD_INFO_DESCRIPTION)) {
        add_text_info(option, NBD_INFO_DESCRIPTION, nbd_export_description(export));
    }
    add_block_size(option, handle);
    add_export_info(connection, option, handle);
}

/* Of INFO and GO: a name, and which kinds of information are wanted. */
static enum outcome tell_export(struct nbd_connection *connection, const struct option *option)
{
    const uint8_t *data = option->data;
    uint32_t left = option->length;
    g_autofree char *name = take_string(&data, &left);
    g_autoptr(GError) problem = NULL;

    if (!name || left < 2 || left != 2 + nbd_get16(data) * sizeof(uint16_t)) {
        return refuse(option, NBD_REP_ERR_INVALID, "the option makes no sense");
    }
    struct nbd_export *export = nbd_export_find(name, peer_of(connection));
    struct export_handle *handle = export ? nbd_export_open(export, &problem) : NULL;
    if (!handle) {
        nbd_export_unref(export);
        g_autofree char *message = g_strdup_printf("export '%s' not present", name);
        return refuse(option, NBD_REP_ERR_UNKNOWN, message);
    }
    bool is_go = option->number == NBD_OPT_GO;
    if (is_go) {
        keep_contexts_of(connection, export);
    }
    add_all_info(connection, option, export, handle, data + 2, nbd_get16(data));
    if (is_go && enter(connection, export, handle)) {
        acknowledge(option);
        return TRANSMIT;
    }
    export_close(handle);
    nbd_export_unref(export);
    return is_go ? refuse(option, NBD_REP_ERR_SHUTDOWN, "the export is going")
                 : acknowledge(option);
}

/* There is no way to say no here but to hang up. */
static enum outcome enter_by_name(struct nbd_connection *connection, const struct option *option)
{
    g_autofree char *name = g_strndup((const char *)option->data, option->length);
    bool is_name = option->length <= NBD_STRING_MAX && strlen(name) == option->length;
    struct nbd_export *export = is_name ? nbd_export_find(name, peer_of(connection)) : NULL;
    struct export_handle *handle = export ? nbd_export_open(export, NULL) : NULL;

    if (handle) {
        keep_contexts_of(connection, export);
    }
    if (!handle || !enter(connection, export, handle)) {
        if (handle) {
            export_close(handle);
        }
        nbd_export_unref(export);
        return END;
    }
    nbd_append64(option->answer, export_length(handle));
    nbd_append16(option->answer, transmission_flags(connection, handle, false));
    if (!connection->no_zeroes) {
        static const uint8_t zeroes[124];
        g_byte_array_append(option->answer, zeroes, sizeof(zeroes));
    }
    return TRANSMIT;
}

/* ---- Metadata contexts ----------------------------------------------------------------------- */

/*
 * Whether a query means a context. Its own name does; and to list them, too, its beginning up to a
 * colon: "base:", "qemu:", "qemu:dirty-bitmap:".
 */
static bool query_matches(const char *query, const char *context, bool is_list)
{
    return !strcmp(query, context) ||
           (is_list && g_str_has_suffix(query, ":") && g_str_has_prefix(context, query));
}

static void add_context(const struct option *option, uint32_t id, const char *name)
{
    g_autoptr(GByteArray) message = g_byte_array_new();

    nbd_append32(message, id);
    append_text(message, name);
    add_reply(option, NBD_REP_META_CONTEXT, message->data, message->len);
}

static bool any_query_matches(GPtrArray *queries, const char *context, bool is_list)
{
    for (guint i = 0; i < queries->len; i++) {
        if (query_matches(g_ptr_array_index(queries, i), context, is_list)) {
            return true;
        }
    }
    return is_list && !queries->len;
}

static enum outcome answer_queries(struct nbd_connection *connection, const struct option *option,
                                   const struct nbd_export *export, GPtrArray *queries)
{
    bool is_list = option->number == NBD_OPT_LIST_META_CONTEXT;

    for (uint32_t i = 0; i < nbd_export_context_count(export); i++) {
        const char *name = nbd_export_context_name(export, i);

        if (any_query_matches(queries, name, is_list)) {
            add_context(option, is_list ? 0 : i, name);
            if (!is_list) {
                g_array_append_val(connection->contexts, i);
            }
        }
    }
    return acknowledge(option);
}

/* NULL: they are cut off, or no text. */
static GPtrArray *take_queries(const uint8_t *data, uint32_t left)
{
    g_autoptr(GPtrArray) queries = g_ptr_array_new_with_free_func(g_free);
    uint32_t count = left >= 4 ? nbd_get32(data) : UINT32_MAX;

    if (count > QUERIES_MAX) {
        return NULL;
    }
    data += 4;
    left -= 4;
    for (uint32_t i = 0; i < count; i++) {
        char *query = take_string(&data, &left);

        if (!query) {
            return NULL;
        }
        g_ptr_array_add(queries, query);
    }
    return left ? NULL : STEAL(queries);
}

static enum outcome handle_contexts(struct nbd_connection *connection, const struct option *option)
{
    const uint8_t *data = option->data;
    uint32_t left = option->length;
    bool is_list = option->number == NBD_OPT_LIST_META_CONTEXT;

    if (!is_list) {
        g_array_set_size(connection->contexts, 0);
        connection->contexts_export = 0;
    }
    if (connection->mode == NBD_SIMPLE) {
        return refuse(option, NBD_REP_ERR_INVALID,
                      "request option when structured reply is not negotiated");
    }
    g_autofree char *name = take_string(&data, &left);
    g_autoptr(GPtrArray) queries = name ? take_queries(data, left) : NULL;
    if (!queries) {
        return refuse(option, NBD_REP_ERR_INVALID, "the option makes no sense");
    }
    AUTO(nbd_export) export = nbd_export_find(name, peer_of(connection));
    if (!export) {
        g_autofree char *message = g_strdup_printf("export '%s' not present", name);
        return refuse(option, NBD_REP_ERR_UNKNOWN, message);
    }
    if (!is_list) {
        connection->contexts_export = nbd_export_serial(export);
    }
    return answer_queries(connection, option, export, queries);
}

/* ---- How we talk ----------------------------------------------------------------------------- */

static enum outcome agree_on(struct nbd_connection *connection, const struct option *option,
                             enum nbd_mode mode)
{
    if (option->length) {
        return refuse(option, NBD_REP_ERR_INVALID, "the option takes no data");
    }
    if (connection->mode == NBD_EXTENDED && mode == NBD_STRUCTURED) {
        return refuse(option, NBD_REP_ERR_EXT_HEADER_REQD, "extended headers already negotiated");
    }
    if (connection->mode == mode) {
        return refuse(option, NBD_REP_ERR_INVALID, "it is negotiated already");
    }
    connection->mode = mode;
    return acknowledge(option);
}

/* ---- The whole ------------------------------------------------------------------------------- */

static bool greet(struct nbd_connection *connection)
{
    const struct nbd_greeting greeting = {
        .magic = GUINT64_TO_BE(NBD_MAGIC),
        .option_magic = GUINT64_TO_BE(NBD_OPTION_MAGIC),
        .flags = GUINT16_TO_BE(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES),
    };
    uint32_t flags;

    if (!send_bytes(connection, &greeting, sizeof(greeting)) ||
        !receive(connection, &flags, sizeof(flags))) {
        return false;
    }
    flags = GUINT32_FROM_BE(flags);
    connection->no_zeroes = flags & NBD_FLAG_C_NO_ZEROES;
    return flags & NBD_FLAG_C_FIXED_NEWSTYLE &&
           !(flags & ~(uint32_t)(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES));
}

static enum outcome handle_in_the_clear(struct nbd_connection *connection,
                                        const struct option *option)
{
    switch (option->number) {
    case NBD_OPT_STARTTLS:
        return start_tls(connection, option);
    case NBD_OPT_ABORT:
        acknowledge(option);
        return END;
    case NBD_OPT_EXPORT_NAME:
        return END;
    default:
        return refuse(option, NBD_REP_ERR_TLS_REQD, "TLS is required here");
    }
}

static enum outcome handle(struct nbd_connection *connection, const struct option *option)
{
    if (connection->policy->credentials && !connection->channel.tls) {
        return handle_in_the_clear(connection, option);
    }
    switch (option->number) {
    case NBD_OPT_EXPORT_NAME:
        return enter_by_name(connection, option);
    case NBD_OPT_ABORT:
        acknowledge(option);
        return END;
    case NBD_OPT_LIST:
        return list_exports(connection, option);
    case NBD_OPT_STARTTLS:
        return start_tls(connection, option);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return tell_export(connection, option);
    case NBD_OPT_STRUCTURED_REPLY:
        return agree_on(connection, option, NBD_STRUCTURED);
    case NBD_OPT_EXTENDED_HEADERS:
        return agree_on(connection, option, NBD_EXTENDED);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return handle_contexts(connection, option);
    default:
        return refuse(option, NBD_REP_ERR_UNSUP, "the option is not known here");
    }
}

static enum outcome receive_and_handle(struct nbd_connection *connection, struct option *option)
{
    g_autofree uint8_t *data = g_malloc(option->length + 1);

    option->data = data;
    return receive(connection, data, option->length) ? handle(connection, option) : END;
}

static enum outcome next_option(struct nbd_connection *connection)
{
    g_autoptr(GByteArray) answer = g_byte_array_new();
    struct nbd_option header;
    struct option option;

    if (!receive(connection, &header, sizeof(header)) ||
        GUINT64_FROM_BE(header.magic) != NBD_OPTION_MAGIC) {
        return END;
    }
    option.number = GUINT32_FROM_BE(header.option);
    option.length = GUINT32_FROM_BE(header.length);
    if (option.length > OPTION_BYTES_MAX &&
        (option.length > SKIPPED_MAX || option.number == NBD_OPT_EXPORT_NAME ||
         !skip(connection, option.length))) {
        return END;
    }
    option.answer = answer;
    enum outcome outcome = option.length > OPTION_BYTES_MAX
                               ? refuse(&option, NBD_REP_ERR_TOO_BIG, "the option is too large")
                               : receive_and_handle(connection, &option);
    return send_answer(connection, &option) ? outcome : END;
}

bool nbd_negotiate(struct nbd_connection *connection)
{
    enum outcome outcome = greet(connection) ? GO_ON : END;

    while (outcome == GO_ON) {
        outcome = next_option(connection);
    }
    return outcome == TRANSMIT;
}
