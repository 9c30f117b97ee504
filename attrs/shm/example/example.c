/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client in C: writes a page to a device of a cache with the hint "bypass", reads it back, and
 * prints what became of the hint each time.
 *
 *	cc -o example example.c && ./example /run/ubcache/CACHE.direct DEVICE
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../ubcache_shm.h"

enum { pages = 16, entries = 8 };

static struct ubc_header *mem;
static int memfd, sock, event_fd, wake_fd;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void *at(uint64_t off)
{
	return (char *)mem + off;
}

static void make_region(void)
{
	struct ubc_header h;

	memset(&h, 0, sizeof(h));
	ubc_layout(&h, pages, entries);
	memfd = memfd_create("example", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (memfd < 0 || ftruncate(memfd, (off_t)h.size) ||
	    fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		fail("memfd");
	mem = mmap(NULL, h.size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (mem == MAP_FAILED)
		fail("mmap");
	*mem = h;
}

/* Sends a message, with a descriptor if fd is not -1, and takes the reply with up to two of them. */
static struct ubc_message ask(struct ubc_message m, const char *text, int fd, int got[2])
{
	union {
		char b[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr align;
	} ctl;
	char buf[UBC_MESSAGE_BYTES];
	struct iovec iov = { buf, sizeof(m) + strlen(text) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *c;

	memcpy(m.magic, UBC_MESSAGE_MAGIC, 4);
	m.version = UBC_VERSION;
	m.text_bytes = (uint32_t)strlen(text);
	memcpy(buf, &m, sizeof(m));
	memcpy(buf + sizeof(m), text, strlen(text));
	memset(&ctl, 0, sizeof(ctl));
	if (fd >= 0) {
		msg.msg_control = ctl.b;
		msg.msg_controllen = CMSG_SPACE(sizeof(int));
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(int));
	}
	if (sendmsg(sock, &msg, 0) < 0)
		fail("send");
	iov.iov_len = sizeof(buf);
	msg.msg_control = ctl.b;
	msg.msg_controllen = sizeof(ctl.b);
	if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) < (ssize_t)sizeof(m))
		fail("receive");
	memcpy(&m, buf, sizeof(m));
	if (m.error) {
		fprintf(stderr, "%.*s: %s\n", (int)m.text_bytes, buf + sizeof(m),
			strerror((int)m.error));
		exit(1);
	}
	c = CMSG_FIRSTHDR(&msg);
	if (got && c && c->cmsg_len == CMSG_LEN(2 * sizeof(int)))
		memcpy(got, CMSG_DATA(c), 2 * sizeof(int));
	return m;
}

/* Writes a set with one attribute: the hint (id 1), not required. */
static uint32_t put_hint(uint8_t *b, uint8_t hint)
{
	static const uint8_t set[32] = {
		'U', 'B', 'A', 'S', 1, 0, 1, 0, 32, 0, 0, 0, 0, 0, 0, 0, /* one entry, 32 bytes */
		1, 0, 0, 0, 1, 0, 0, 0,					 /* hint, one byte */
	};

	memcpy(b, set, sizeof(set));
	b[24] = hint;
	return sizeof(set);
}

/* Issues the request for page 0 and waits for it. */
static int64_t request(uint8_t op, uint16_t device, uint32_t seq, uint8_t hint)
{
	struct ubc_ring *ring = at(mem->ring);
	struct ubc_entry *sq = at(mem->ring + UBC_RING_HEAD_BYTES);
	struct ubc_completion *cq = (struct ubc_completion *)(sq + entries);
	struct ubc_page_slots *slots = at(mem->slots);
	uint32_t tail = ring->submit_tail, head = ring->complete_head;
	uint64_t one = 1;
	int64_t result;
	char c;
	int k;

	slots->set.first = 0;
	slots->set.start = 0;
	slots->set.length = UBC_PAGE_BYTES;
	slots->set.number = 0;
	slots->set.overflow = 0;
	slots->set.set_bytes = put_hint(slots->set.body, hint);
	for (k = 0; k < UBC_ANSWERS; k++)
		__atomic_store_n(&slots->answer[k].claim, UBC_CLAIM(seq, 0), __ATOMIC_RELAXED);
	__atomic_store_n(&slots->set.seq, seq, __ATOMIC_RELEASE);

	sq[tail % entries] = (struct ubc_entry){
		.op = op, .flags = UBC_WITH_ATTRIBUTES, .device = device, .bytes = UBC_PAGE_BYTES,
		.off = 1 << 20, .data = 0, .user_data = seq,
	};
	__atomic_store_n(&ring->submit_tail, tail + 1, __ATOMIC_SEQ_CST);
	if (__atomic_exchange_n(&ring->server_sleeps, 0, __ATOMIC_SEQ_CST) &&
	    write(event_fd, &one, sizeof(one)) < 0)
		fail("wake the daemon");

	while (__atomic_load_n(&ring->complete_tail, __ATOMIC_ACQUIRE) == head) {
		__atomic_store_n(&ring->client_sleeps, 1, __ATOMIC_SEQ_CST);
		if (__atomic_load_n(&ring->complete_tail, __ATOMIC_SEQ_CST) != head)
			break;
		if (read(wake_fd, &c, 1) <= 0)
			fail("wait for the daemon");
	}
	result = cq[head % entries].result;
	if (cq[head % entries].user_data != seq)
		result = -EPROTO;
	__atomic_store_n(&ring->complete_head, head + 1, __ATOMIC_RELEASE);
	return result;
}

/* Prints what became of the hint, and makes the slots empty again. */
static void collect(const char *what, uint32_t seq)
{
	static const char *const names[] = { "not handled", "handled", "ignored", "unsupported",
					     "invalid" };
	struct ubc_page_slots *slots = at(mem->slots);
	const char *status = names[0];
	uint32_t device = 0, off;
	int k;

	for (k = 0; k < UBC_ANSWERS; k++) {
		struct ubc_answer *a = &slots->answer[k];
		uint64_t claim = __atomic_load_n(&a->claim, __ATOMIC_ACQUIRE);

		if (claim >> 32 == seq && (uint32_t)claim &&
		    __atomic_load_n(&a->done, __ATOMIC_ACQUIRE) == seq &&
		    !memcmp(a->body, "UBAR", 4)) {
			device = (uint32_t)claim;
			/* 24 bytes of header, then entries: id (2), status, reason, size (2), … */
			for (off = 24; off + 8 <= a->bytes && off + 8 <= UBC_BODY_BYTES;
			     off += 8 + ((a->body[off + 4] + 256u * a->body[off + 5] + 7) & ~7u))
				if (a->body[off] == 1 && !a->body[off + 1] && a->body[off + 2] < 5)
					status = names[a->body[off + 2]];
		}
		__atomic_store_n(&a->claim, 0, __ATOMIC_RELAXED);
	}
	__atomic_store_n(&slots->set.seq, 0, __ATOMIC_RELEASE);
	printf("%s: hint %s by device %s\n", what, status, device ? "known" : "none");
}

int main(int argc, char **argv)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct ubc_message m;
	uint16_t device;
	int fds[2] = { -1, -1 };
	uint8_t *data;
	int i;

	if (argc != 3) {
		fprintf(stderr, "usage: example SOCKET DEVICE\n");
		return 2;
	}
	make_region();
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	strncpy(addr.sun_path, argv[1], sizeof(addr.sun_path) - 1);
	if (sock < 0 || connect(sock, (struct sockaddr *)&addr, sizeof(addr)))
		fail(argv[1]);
	ask((struct ubc_message){ .kind = UBC_HELLO, .flags = UBC_FLAG_RING }, "", memfd, fds);
	event_fd = fds[0];
	wake_fd = fds[1];
	m = ask((struct ubc_message){ .kind = UBC_OPEN_DEVICE }, argv[2], -1, NULL);
	device = (uint16_t)m.index;
	printf("%s: %llu bytes\n", argv[2], (unsigned long long)m.size);

	data = at(mem->data);
	for (i = 0; i < UBC_PAGE_BYTES; i++)
		data[i] = (uint8_t)(i * 7);
	if (request(UBC_OP_WRITE, device, 1, 2) != UBC_PAGE_BYTES)
		fail("write");
	collect("write", 1);
	memset(data, 0, UBC_PAGE_BYTES);
	if (request(UBC_OP_READ, device, 2, 2) != UBC_PAGE_BYTES)
		fail("read");
	collect("read", 2);
	for (i = 0; i < UBC_PAGE_BYTES; i++)
		if (data[i] != (uint8_t)(i * 7)) {
			fprintf(stderr, "byte %d reads as %d\n", i, data[i]);
			return 1;
		}
	printf("the data is the same\n");
	return 0;
}
