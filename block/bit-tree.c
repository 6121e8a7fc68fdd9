/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bits with summary levels.
 *
 * The promise to keep: once a set has returned, the bit is found from the top, however many other
 * threads set and however one clears meanwhile. A summary bit too many is allowed (a search drops
 * it), one too few is not.
 *
 * A setter goes up from level 0: on each level it sets its bit, or sees that it is set, and only
 * then looks at the next level. It stops nowhere early: the thread that has set a bit it sees may
 * not have come to the next level yet.
 *
 * A clearer, of which there is one at a time, also goes up: a word that became zero loses its
 * summary bit; then the clearer looks at the word again, and if it is no longer zero, puts the
 * summary bit back and stops. Searchers exclude the clearer, so they never see that window.
 *
 * The two meet as in Dekker's algorithm: the setter writes a word and then reads the summary bit,
 * the clearer writes the summary bit and then reads the word. Every one of these accesses is
 * sequentially consistent, so there is one order of them all. Say a setter was at level k (its
 * bit there set, or seen set) at time t(k), hence t(0) < t(1) < ..., and a clearer cleared the
 * summary bit at level k + 1, for good, at time c, having looked again at the word at level k
 * later than c and found zero.
 *   c < t(k + 1): the setter found the summary bit clear and set it, or found that somebody else
 *     had set it since. Nothing is lost.
 *   c > t(k + 1): the word was seen as zero after t(k), so the setter's bit at level k has been
 *     cleared for good after t(k) (a window of the same clearer at level k is shut before it goes
 *     to k + 1, and clearers exclude one another). By induction the bit at level 0 was cleared
 *     after t(0): by somebody who meant it.
 * The final read needs the total order: with acquire and release alone both sides could miss each
 * other's write.
 *
 * On level 0 the setter always does a read-modify-write, even if the bits are set. Whoever clears
 * the bit reads that write (or a later one of the same chain) and so sees all that the setter did
 * before, the data on the disk above all. A mere load that finds the bit set could run ahead of
 * the stores before it, and a mirror that clears the bit and reads the disk would copy old data.
 */
#include "block/bit-tree.h"

#include <assert.h>
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "block/align.h"

#define WORD_BITS 64

/* How much of level 0 a clear takes out at once; a multiple of any page size. */
#define CLEAR_CHUNK_BYTES (64 * KIB)

_Static_assert(sizeof(size_t) == sizeof(uint64_t), "the address space is 64 bits");
_Static_assert(sizeof(_Atomic uint64_t) == sizeof(uint64_t), "words have no hidden lock");

static uint64_t popcount(uint64_t word)
{
    return (uint64_t)__builtin_popcountll(word);
}

/* The bits of a word that lie in the range first to last, which has some in it. */
static uint64_t word_mask(uint64_t word, uint64_t first, uint64_t last)
{
    uint64_t mask = UINT64_MAX;

    if (word == first / WORD_BITS) {
        mask &= UINT64_MAX << first % WORD_BITS;
    }
    if (word == last / WORD_BITS) {
        mask &= UINT64_MAX >> (WORD_BITS - 1 - last % WORD_BITS);
    }
    return mask;
}

static void add_to_count(struct bit_tree *tree, uint64_t difference)
{
    if (difference) {
        atomic_fetch_add(&tree->count, (int64_t)difference);
    }
}

int bit_tree_init(struct bit_tree *tree, uint64_t bits)
{
    uint64_t words = MAX_OF(div_round_up(bits, WORD_BITS), UINT64_C(1));
    uint64_t offsets[BIT_TREE_LEVELS_MAX], bytes;

    *tree = (struct bit_tree){.bits = bits, .level_count = 1, .words = {words}};
    tree->level_0_bytes = align_up(words * sizeof(uint64_t), (uint64_t)sysconf(_SC_PAGESIZE));
    offsets[0] = 0;
    bytes = tree->level_0_bytes;
    while (words > 1) {
        words = div_round_up(words, WORD_BITS);
        offsets[tree->level_count] = bytes;
        tree->words[tree->level_count++] = words;
        bytes += align_up(words * sizeof(uint64_t), 64); /* levels share no cache line */
    }
    tree->mapping_bytes = bytes;
    tree->mapping = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (tree->mapping == MAP_FAILED) {
        return -ENOMEM;
    }
    /* A huge page for a single bit is 512 times the memory. Advice only: no matter if it fails. */
    madvise(tree->mapping, bytes, MADV_NOHUGEPAGE);
    for (unsigned i = 0; i < tree->level_count; i++) {
        tree->levels[i] = (_Atomic uint64_t *)((char *)tree->mapping + offsets[i]);
    }
    return 0;
}

void bit_tree_destroy(struct bit_tree *tree)
{
    munmap(tree->mapping, tree->mapping_bytes);
}

/* Make sure that the summary bits above these words of level 0 are set. */
static void set_summaries(struct bit_tree *tree, uint64_t first, uint64_t last)
{
    for (unsigned level = 1; level < tree->level_count; level++) {
        for (uint64_t word = first / WORD_BITS; word <= last / WORD_BITS; word++) {
            uint64_t mask = word_mask(word, first, last);

            if (~atomic_load(&tree->levels[level][word]) & mask) {
                atomic_fetch_or(&tree->levels[level][word], mask);
            }
        }
        first /= WORD_BITS;
        last /= WORD_BITS;
    }
}

static void set_word(struct bit_tree *tree, uint64_t word, uint64_t mask)
{
    add_to_count(tree, popcount(mask & ~atomic_fetch_or(&tree->levels[0][word], mask)));
    set_summaries(tree, word, word);
}

void bit_tree_set(struct bit_tree *tree, uint64_t first, uint64_t last)
{
    uint64_t first_word = first / WORD_BITS, last_word = last / WORD_BITS, added = 0;

    assert(first <= last && last < tree->bits);
    if (first_word == last_word) {
        set_word(tree, first_word, word_mask(first_word, first, last));
        return;
    }
    for (uint64_t word = first_word; word <= last_word; word++) {
        uint64_t mask = word_mask(word, first, last);

        added += popcount(mask & ~atomic_fetch_or(&tree->levels[0][word], mask));
    }
    add_to_count(tree, added);
    set_summaries(tree, first_word, last_word);
}

bool bit_tree_get(const struct bit_tree *tree, uint64_t bit)
{
    assert(bit < tree->bits);
    return atomic_load(&tree->levels[0][bit / WORD_BITS]) >> bit % WORD_BITS & 1;
}

uint64_t bit_tree_get_word(const struct bit_tree *tree, uint64_t bit)
{
    assert(bit < tree->bits && bit % WORD_BITS == 0);
    return atomic_load(&tree->levels[0][bit / WORD_BITS]);
}

uint64_t bit_tree_count(const struct bit_tree *tree)
{
    int64_t count = atomic_load(&tree->count);

    return count < 0 ? 0 : MIN_OF((uint64_t)count, tree->bits);
}

/* A word was seen as zero: drop its summary bit, unless it is no longer zero, and so on upwards. */
static void drop_summaries(struct bit_tree *tree, unsigned level, uint64_t word)
{
    for (; level + 1 < tree->level_count; level++) {
        _Atomic uint64_t *summary = &tree->levels[level + 1][word / WORD_BITS];
        uint64_t bit = UINT64_C(1) << word % WORD_BITS;
        uint64_t before = atomic_load(summary);

        if (!(before & bit)) {
            return;
        }
        before = atomic_fetch_and(summary, ~bit);
        if (atomic_load(&tree->levels[level][word]) != 0) {
            atomic_fetch_or(summary, bit);
            return;
        }
        if (before & ~bit) {
            return;
        }
        word /= WORD_BITS;
    }
}

uint64_t bit_tree_next_set(struct bit_tree *tree, uint64_t from)
{
    unsigned level = 0;
    uint64_t position = from; /* a bit of this level */

    for (;;) {
        uint64_t word = position / WORD_BITS;
        uint64_t rest;

        if (word >= tree->words[level]) {
            return BIT_TREE_NONE;
        }
        rest = atomic_load(&tree->levels[level][word]) >> position % WORD_BITS;
        if (rest) {
            position += (uint64_t)__builtin_ctzll(rest);
            if (level == 0) {
                return position;
            }
            level--;
            position *= WORD_BITS;
            continue;
        }
        if (position % WORD_BITS == 0) {
            drop_summaries(tree, level, word);
        }
        if (level + 1 == tree->level_count) {
            return BIT_TREE_NONE;
        }
        level++;
        position = word + 1;
    }
}

uint64_t bit_tree_next_clear(const struct bit_tree *tree, uint64_t from, uint64_t end)
{
    uint64_t position = from;

    while (position < end) {
        uint64_t word = position / WORD_BITS;
        uint64_t rest = ~atomic_load(&tree->levels[0][word]) >> position % WORD_BITS;

        if (rest) {
            position += (uint64_t)__builtin_ctzll(rest);
            return position < end ? position : BIT_TREE_NONE;
        }
        position = (word + 1) * WORD_BITS;
    }
    return BIT_TREE_NONE;
}

void bit_tree_reset(struct bit_tree *tree, uint64_t first, uint64_t last)
{
    uint64_t removed = 0;
    uint64_t position = bit_tree_next_set(tree, first);

    while (position <= last) { /* BIT_TREE_NONE is beyond */
        uint64_t word = position / WORD_BITS;
        uint64_t mask = word_mask(word, first, last);
        uint64_t before = atomic_fetch_and(&tree->levels[0][word], ~mask);

        removed += popcount(before & mask);
        if (!(before & ~mask)) {
            drop_summaries(tree, 0, word);
        }
        position = bit_tree_next_set(tree, (word + 1) * WORD_BITS);
    }
    add_to_count(tree, -removed);
}

/*
 * Clear a chunk of level 0. Discarding its pages in place could lose a bit set just then that its
 * setter still counts. So the pages are moved away, which leaves zero pages behind: from then on
 * nobody can write to the old ones, all bits in them are cleared bits, each of which was or will
 * be counted once by its setter, and the summaries go the usual way. The system call orders the
 * move before the second look at a word as the read-modify-write in a reset does. (The address
 * to move to is passed, as the kernel takes what it finds there for a wish.)
 */
static void clear_chunk(struct bit_tree *tree, uint64_t first_word)
{
    _Atomic uint64_t *words = &tree->levels[0][first_word];
    size_t bytes = MIN_OF(CLEAR_CHUNK_BYTES, tree->level_0_bytes - first_word * sizeof(uint64_t));
    void *moved = mremap((void *)words, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    uint64_t removed = 0;

    if (moved != MAP_FAILED) {
        words = moved;
    } /* else (an old kernel, no memory) clear in place and keep the pages */
    for (size_t i = 0; i < bytes / sizeof(uint64_t); i++) {
        if (atomic_load(&words[i]) != 0) { /* no page is allocated for zeroes */
            removed += popcount(atomic_exchange(&words[i], 0));
            drop_summaries(tree, 0, first_word + i);
        }
    }
    add_to_count(tree, -removed);
    if (moved != MAP_FAILED) {
        munmap(moved, bytes);
    }
}

void bit_tree_clear(struct bit_tree *tree)
{
    const uint64_t chunk_words = CLEAR_CHUNK_BYTES / sizeof(uint64_t);
    uint64_t position = bit_tree_next_set(tree, 0);

    while (position != BIT_TREE_NONE) {
        uint64_t first_word = align_down(position / WORD_BITS, chunk_words);

        clear_chunk(tree, first_word);
        position = bit_tree_next_set(tree, (first_word + chunk_words) * WORD_BITS);
    }
}

void bit_tree_merge(struct bit_tree *target, struct bit_tree *source)
{
    uint64_t position = bit_tree_next_set(source, 0);

    while (position != BIT_TREE_NONE) {
        uint64_t word = position / WORD_BITS;

        set_word(target, word, atomic_load(&source->levels[0][word]));
        position = bit_tree_next_set(source, (word + 1) * WORD_BITS);
    }
}

int bit_tree_resize(struct bit_tree *tree, uint64_t bits)
{
    struct bit_tree larger;

    if (bits < tree->bits) {
        bit_tree_reset(tree, bits, tree->bits - 1);
    }
    if (bits <= tree->words[0] * WORD_BITS) {
        tree->bits = bits;
        return 0;
    }
    if (bit_tree_init(&larger, bits) < 0) {
        return -ENOMEM;
    }
    bit_tree_merge(&larger, tree);
    bit_tree_destroy(tree);
    *tree = larger;
    return 0;
}
