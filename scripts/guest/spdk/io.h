/* What initiator.c says to the driver, and how it sees to the answers. One controller, one namespace, one thread.
 *
 * Whatever is not as it must be ends the program with a line that begins with FAIL, and status 1.
 */
#ifndef RINGSIDE_GUEST_IO_H
#define RINGSIDE_GUEST_IO_H

#include "spdk.h"

enum { QUEUES = 4, DEPTH = 8, KIB = 1024, BUFFER = 1024 * KIB, PIECE = 512, PAGE = 4096 };
enum { FLUSH = 0x00, WRITE = 0x01, READ = 0x02, COMPARE = 0x05, WRITE_ZEROES = 0x08, DATASET_MANAGEMENT = 0x09 };
/* Status without phase and retry bits: type in bits 8 to 10, code below. */
enum { SUCCESS = 0x000, LBA_OUT_OF_RANGE = 0x080, COMPARE_FAILURE = 0x285, ANY = 0xffff };
enum { PATIENCE_S = 60 };

extern struct spdk_nvme_ctrlr *ctrlr;
extern struct spdk_nvme_qpair *queues[QUEUES];
extern uint32_t block_size;
/* Which of the patterns is on the disk. */
extern uint32_t generation;
/* BUFFER bytes and a page each. */
extern uint8_t *buffers[QUEUES * DEPTH];

void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void shown(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define must(condition, ...) ((condition) ? (void)0 : fail(__VA_ARGS__))

/* The pattern of `size` bytes from `position` of the disk, in bytes: made, and looked for. */
void fill(uint8_t *data, uint64_t position, size_t size);
void check(const uint8_t *data, uint64_t position, size_t size, const char *what);

/* What became of a command; `times` is more than one if it was completed twice. */
struct outcome {
    unsigned times;
    uint16_t status;
    uint32_t dword0;
};
void completed(void *outcome, const struct completion *completion);
void poll_all(void);
void wait_for(struct outcome *outcomes, int count, uint16_t status, const char *what);

struct command io_command(uint8_t opcode, uint64_t lba, uint32_t count);
void submit(int queue, struct command command, void *data, uint32_t size, struct outcome *outcome);
void execute(int queue, struct command command, void *data, uint32_t size, uint16_t status, const char *what);

/* A buffer in pieces, as spdk_nvme_ns_cmd_readv takes one: the first piece at the far end, a gap of a piece between two. */
struct scattered {
    uint8_t *base;
    uint32_t size, at;
};
uint8_t *piece_at(const struct scattered *list, uint32_t at);
/* Moves it from or to `position` of the disk, in bytes. */
void submit_scattered(int queue, uint8_t opcode, uint64_t position, struct scattered *list, struct outcome *outcome);

#endif
