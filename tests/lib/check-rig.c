/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/check-rig.h"

#include <errno.h>
#include <string.h>

#include "tests/lib/disk.h"

/* ---- An image and what is said about it ----------------------------------------------------- */

static void forget_result(struct check_rig *rig)
{
    g_clear_pointer(&rig->result.findings, g_ptr_array_unref);
    rig->result = (struct block_check_result){0};
}

struct check_rig check_rig_new(struct qcow2_builder *image)
{
    struct check_rig rig = {.image = image, .directory = test_directory_new(true)};

    rig.path = test_path(rig.directory, "image");
    return rig;
}

void check_rig_free(struct check_rig *rig)
{
    forget_result(rig);
    g_free(rig->path);
    test_directory_free(rig->directory);
    qcow2_builder_free(rig->image);
}

struct block_node *check_rig_open(struct check_rig *rig, bool writable)
{
    return test_open("driver=qcow2,for-check=on,read-only=%s,file.driver=file,file.filename=%s",
                     writable ? "off" : "on", rig->path);
}

int check_rig_check_node(struct check_rig *rig, struct block_node *node, unsigned repair,
                         GError **error)
{
    forget_result(rig);
    rig->result.findings = g_ptr_array_new_with_free_func(g_free);
    return block_node_check(node, repair, &rig->result, NULL, NULL, error);
}

void check_rig_check(struct check_rig *rig, unsigned repair)
{
    AUTO(block_node) node = check_rig_open(rig, repair);
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(check_rig_check_node(rig, node, repair, &error), ==, 0);
    g_assert_no_error(error);
}

static char *all_findings(const struct check_rig *rig)
{
    GString *text = g_string_new(NULL);

    for (guint i = 0; i < rig->result.findings->len; i++) {
        g_string_append_printf(text, "%s\n",
                               (const char *)g_ptr_array_index(rig->result.findings, i));
    }
    return g_string_free(text, FALSE);
}

void expect_verdict(struct check_rig *rig, enum image_verdict verdict)
{
    g_autofree char *text = all_findings(rig);

    if (image_verdict_of(&rig->result) != verdict) {
        g_error("%s, but should be %s:\n%s", image_verdict_names[image_verdict_of(&rig->result)],
                image_verdict_names[verdict], text);
    }
}

void expect_finding(struct check_rig *rig, const char *finding)
{
    g_autofree char *text = all_findings(rig);

    if (!strstr(text, finding)) {
        g_error("There is no finding '%s' among these:\n%s", finding, text);
    }
}

void expect_peer(struct check_rig *rig, enum image_verdict verdict)
{
    g_autofree char *said = NULL;
    enum image_verdict peer = qemu_check(rig->path, NULL, &said);

    if (peer != verdict) {
        g_error("For qemu-img it is %s, but should be %s:\n%s", image_verdict_names[peer],
                image_verdict_names[verdict], said);
    }
}

/* Write the image as it is now; look at it; both have to say this. */
void expect_found(struct check_rig *rig, enum image_verdict verdict, const char *finding)
{
    qcow2_builder_write(rig->image, rig->path);
    check_rig_check(rig, 0);
    expect_verdict(rig, verdict);
    if (finding) {
        expect_finding(rig, finding);
    }
    expect_peer(rig, verdict);
}

/* The same where QEMU does not look, or cannot. */
void expect_found_by_us(struct check_rig *rig, enum image_verdict verdict, const char *finding)
{
    qcow2_builder_write(rig->image, rig->path);
    check_rig_check(rig, 0);
    expect_verdict(rig, verdict);
    expect_finding(rig, finding);
}

void expect_same_statistics(struct check_rig *rig)
{
    struct block_check_result peer;

    qcow2_builder_build(rig->image);
    qcow2_builder_write(rig->image, rig->path);
    check_rig_check(rig, 0);
    expect_verdict(rig, IMAGE_CLEAN);
    g_assert_cmpuint(rig->result.finding_count, ==, 0);
    g_assert_cmpint(qemu_check(rig->path, &peer, NULL), ==, IMAGE_CLEAN);
    g_assert_cmpuint(rig->result.total_clusters, ==, peer.total_clusters);
    g_assert_cmpuint(rig->result.allocated_clusters, ==, peer.allocated_clusters);
    g_assert_cmpuint(rig->result.fragmented_clusters, ==, peer.fragmented_clusters);
    g_assert_cmpuint(rig->result.compressed_clusters, ==, peer.compressed_clusters);
    g_assert_cmpuint(rig->result.image_end_offset, ==, peer.image_end_offset);
}

/* Repair everything; then there is nothing wrong for anybody. */
void expect_mended(struct check_rig *rig)
{
    check_rig_check(rig, REPAIR_ALL);
    expect_verdict(rig, IMAGE_CLEAN);
    check_rig_check(rig, 0);
    expect_verdict(rig, IMAGE_CLEAN);
    expect_peer(rig, IMAGE_CLEAN);
}

void expect_reads(struct check_rig *rig, uint64_t guest, uint8_t fill)
{
    const struct peer_read read = {guest, 4096, fill};

    qemu_assert_reads(rig->path, &read, 1);
}

/* ---- The usual image ------------------------------------------------------------------------ */

void check_rig_fill(struct qcow2_builder *image)
{
    qcow2_builder_data(image, GUEST_A, 0xa1);
    qcow2_builder_data(image, GUEST_B, 0xb1);
    qcow2_builder_zero(image, GUEST_ZERO, false);
    qcow2_builder_zero(image, GUEST_KEPT_ZERO, true);
    qcow2_builder_compressed(image, GUEST_PRESSED_A, 0xa2);
    qcow2_builder_compressed(image, GUEST_PRESSED_B, 0xb2);
    qcow2_builder_data(image, GUEST_C, 0xc1);
}

struct check_rig check_rig_usual(void)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB));

    check_rig_fill(rig.image);
    qcow2_builder_build(rig.image);
    return rig;
}

void expect_usual_contents(struct check_rig *rig)
{
    static const struct peer_read reads[] = {
        {GUEST_A, CLUSTER, 0xa1},         {GUEST_B, CLUSTER, 0xb1},
        {GUEST_ZERO, 2 * CLUSTER, 0},     {GUEST_PRESSED_A, CLUSTER, 0xa2},
        {GUEST_PRESSED_B, CLUSTER, 0xb2}, {GUEST_HOLE, 3 * CLUSTER, 0},
        {GUEST_C, CLUSTER, 0xc1},
    };

    qemu_assert_reads(rig->path, reads, G_N_ELEMENTS(reads));
}

uint64_t entry_at(struct check_rig *rig, uint64_t guest)
{
    return qcow2_builder_l2_at(rig->image, guest);
}

uint64_t entry_of(struct check_rig *rig, uint64_t guest)
{
    return qcow2_builder_get64(rig->image, entry_at(rig, guest));
}

void set_entry(struct check_rig *rig, uint64_t guest, uint64_t entry)
{
    qcow2_builder_put64(rig->image, entry_at(rig, guest), entry);
}

uint64_t host_of(struct check_rig *rig, uint64_t guest)
{
    return entry_of(rig, guest) & ~(QCOW2_BUILT_COPIED | QCOW2_BUILT_COMPRESSED | UINT64_C(511));
}
