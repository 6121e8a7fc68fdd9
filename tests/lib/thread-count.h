/* SPDX-License-Identifier: BSD-3-Clause */
/* How many threads there are, for those who must leave none behind. */
#ifndef LIVEBLK_TESTS_LIB_THREAD_COUNT_H
#define LIVEBLK_TESTS_LIB_THREAD_COUNT_H

/* Threads of this process. */
unsigned test_count_threads(void);

/* There are no more than so many; those that were joined may be seen for a moment longer. */
void test_assert_threads(unsigned most);

#endif
