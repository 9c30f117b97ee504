/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shared memory of a client and the servers of a cache, and what they say to each other on the
 * socket, version 1. FORMAT.md beside this file explains it; attrs/FORMAT.md has the bytes of sets
 * and results. C11 or C++11, little-endian machines. Words that both sides change are accessed with
 * the compiler's atomics: __atomic_store_n(&slot->seq, seq, __ATOMIC_RELEASE).
 */
#ifndef UBCACHE_SHM_H
#define UBCACHE_SHM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define UBC_ASSERT(c) static_assert(c, #c)
#else
#define UBC_ASSERT(c) _Static_assert(c, #c)
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the shared memory of ubcache needs a little-endian machine"
#endif

#define UBC_VERSION 1
#define UBC_MAGIC "UBSM"

#define UBC_PAGE_BYTES 4096
#define UBC_SLOT_BYTES 512
#define UBC_BODY_BYTES 480
#define UBC_ANSWERS 3
#define UBC_PAGE_SLOTS_BYTES 2048
#define UBC_MAX_PAGES 1048576
#define UBC_MAX_ENTRIES 4096
#define UBC_RING_HEAD_BYTES 4096

/* At the start of the memory; the rest of the page is 0. */
struct ubc_header {
	char magic[4];
	uint32_t version;
	uint64_t size;
	uint32_t page_bytes;
	uint32_t slot_bytes;
	uint32_t answers;
	uint32_t pages;
	uint32_t entries;
	uint32_t flags;
	uint64_t ring;
	uint64_t slots;
	uint64_t data;
};
UBC_ASSERT(sizeof(struct ubc_header) == 64);

/* What the client writes for each page of a request; seq last. */
struct ubc_slot {
	uint32_t seq;
	uint32_t first;
	uint64_t start;
	uint32_t length;
	uint32_t number;
	uint32_t set_bytes;
	uint32_t overflow;
	uint8_t body[UBC_BODY_BYTES];
};
UBC_ASSERT(sizeof(struct ubc_slot) == UBC_SLOT_BYTES);

/* What a server answers. The client writes UBC_CLAIM(seq, 0) to claim before the request. */
struct ubc_answer {
	uint64_t claim;
	uint32_t done;
	uint32_t bytes;
	uint64_t start;
	uint32_t length;
	uint32_t chunk;
	uint8_t body[UBC_BODY_BYTES];
};
UBC_ASSERT(sizeof(struct ubc_answer) == UBC_SLOT_BYTES);

#define UBC_CLAIM(seq, device) ((uint64_t)(seq) << 32 | (uint32_t)(device))

/* The slots of page i are number i of these, from ubc_header.slots on. */
struct ubc_page_slots {
	struct ubc_slot set;
	struct ubc_answer answer[UBC_ANSWERS];
};
UBC_ASSERT(sizeof(struct ubc_page_slots) == UBC_PAGE_SLOTS_BYTES);

enum ubc_op {
	UBC_OP_READ = 0,
	UBC_OP_WRITE = 1,
	UBC_OP_FLUSH = 2,
	UBC_OP_DISCARD = 3,
	UBC_OP_WRITE_ZEROES = 4,
	UBC_OP_QUERY = 5,
};

#define UBC_FUA 1
#define UBC_NO_UNMAP 2
#define UBC_WITH_ATTRIBUTES 4

struct ubc_entry {
	uint8_t op;
	uint8_t flags;
	uint16_t device;
	uint32_t bytes;
	uint64_t off;
	uint64_t data;
	uint64_t user_data;
	uint8_t zero[32];
};
UBC_ASSERT(sizeof(struct ubc_entry) == 64);

struct ubc_completion {
	uint64_t user_data;
	int64_t result;
	uint8_t reserved[16];
};
UBC_ASSERT(sizeof(struct ubc_completion) == 32);

/* The head of the ring, at ubc_header.ring. After it come the entries, then the completions. */
struct ubc_ring {
	uint32_t submit_head;
	uint8_t pad0[60];
	uint32_t submit_tail;
	uint8_t pad1[60];
	uint32_t complete_head;
	uint8_t pad2[60];
	uint32_t complete_tail;
	uint8_t pad3[60];
	uint32_t server_sleeps;
	uint8_t pad4[60];
	uint32_t client_sleeps;
	uint8_t pad5[UBC_RING_HEAD_BYTES - 324];
};
UBC_ASSERT(sizeof(struct ubc_ring) == UBC_RING_HEAD_BYTES);
UBC_ASSERT(offsetof(struct ubc_ring, client_sleeps) == 320);

/* Messages on the socket (SOCK_SEQPACKET): this head, then text_bytes of text. */
#define UBC_MESSAGE_MAGIC "UBSP"
#define UBC_MESSAGE_BYTES 1024

enum ubc_kind {
	UBC_HELLO = 1,
	UBC_LIST = 2,
	UBC_OPEN_DEVICE = 3,
	UBC_QUERY = 4,
};

#define UBC_FLAG_RING 1
#define UBC_FLAG_REGISTER 2
#define UBC_FLAG_READ_ONLY 4
#define UBC_FLAG_WRITE_ONLY 8

struct ubc_message {
	char magic[4];
	uint16_t version;
	uint16_t kind;
	uint32_t error; /* errno */
	uint32_t flags;
	uint32_t index;
	uint32_t number;
	uint32_t block;
	uint32_t max;
	uint64_t size;
	uint64_t dev;
	uint32_t text_bytes;
	uint8_t zero[12];
};
UBC_ASSERT(sizeof(struct ubc_message) == 64);

static inline uint64_t ubc_round_up(uint64_t n)
{
	return (n + UBC_PAGE_BYTES - 1) & ~(uint64_t)(UBC_PAGE_BYTES - 1);
}

/* Fills a zeroed header for so many pages of data and entries of the ring (0 for none). */
static inline void ubc_layout(struct ubc_header *h, uint32_t pages, uint32_t entries)
{
	const char *magic = UBC_MAGIC;
	uint64_t at = UBC_PAGE_BYTES;
	int i;

	for (i = 0; i < 4; i++)
		h->magic[i] = magic[i];
	h->version = UBC_VERSION;
	h->page_bytes = UBC_PAGE_BYTES;
	h->slot_bytes = UBC_SLOT_BYTES;
	h->answers = UBC_ANSWERS;
	h->pages = pages;
	h->entries = entries;
	if (entries) {
		h->ring = at;
		at += UBC_RING_HEAD_BYTES +
		      ubc_round_up((uint64_t)entries *
				   (sizeof(struct ubc_entry) + sizeof(struct ubc_completion)));
	}
	h->slots = at;
	h->data = at + ubc_round_up((uint64_t)pages * UBC_PAGE_SLOTS_BYTES);
	h->size = h->data + (uint64_t)pages * UBC_PAGE_BYTES;
}

#endif
