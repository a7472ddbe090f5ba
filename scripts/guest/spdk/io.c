/* See io.h. Called by initiator.c. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "io.h"

struct spdk_nvme_ctrlr *ctrlr;
struct spdk_nvme_qpair *queues[QUEUES];
uint32_t block_size, generation;
uint8_t *buffers[QUEUES * DEPTH];

void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("FAIL ", stdout);
    vprintf(format, arguments);
    putchar('\n');
    fflush(stdout);
    _exit(1);
}

void shown(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("ok   ", stdout);
    vprintf(format, arguments);
    putchar('\n');
    fflush(stdout);
    va_end(arguments);
}

/* Eight bytes of the disk: no two are the same, nor are those of two generations. */
static uint64_t word_at(uint64_t position)
{
    return (position + 1) * 0x9e3779b97f4a7c15 ^ (uint64_t)generation << 56;
}

/* `position` is where `data` is on the disk, in bytes. */
void fill(uint8_t *data, uint64_t position, size_t size)
{
    for (size_t i = 0; i < size; i += 8)
        memcpy(data + i, &(uint64_t){word_at(position + i)}, 8);
}

void check(const uint8_t *data, uint64_t position, size_t size, const char *what)
{
    for (size_t i = 0; i < size; i += 8) {
        uint64_t found, expected = word_at(position + i);
        memcpy(&found, data + i, 8);
        must(found == expected, "%s: at byte %llu is %016llx, not %016llx", what, (unsigned long long)(position + i),
             (unsigned long long)found, (unsigned long long)expected);
    }
}

void completed(void *argument, const struct completion *completion)
{
    struct outcome *outcome = argument;
    outcome->times++;
    outcome->status = completion->status >> 1 & 0x7ff;
    outcome->dword0 = completion->dword0;
}

void poll_all(void)
{
    must(spdk_nvme_ctrlr_process_admin_completions(ctrlr) >= 0, "polling the admin queue");
    for (int q = 0; q < QUEUES; q++)
        if (queues[q])
            must(spdk_nvme_qpair_process_completions(queues[q], 0) >= 0, "polling queue %d", q);
}

void wait_for(struct outcome *outcomes, int count, uint16_t status, const char *what)
{
    time_t limit = time(NULL) + PATIENCE_S;
    for (int i = 0; i < count; i++) {
        while (!outcomes[i].times) {
            poll_all();
            must(time(NULL) <= limit, "%s: %d of %d not completed in %d s", what, count - i, count, PATIENCE_S);
        }
        must(status == ANY || outcomes[i].status == status, "%s: status %03x, not %03x", what, outcomes[i].status, status);
    }
    poll_all();
    for (int i = 0; i < count; i++)
        must(outcomes[i].times == 1, "%s: completed %u times", what, outcomes[i].times);
}

struct command io_command(uint8_t opcode, uint64_t lba, uint32_t count)
{
    return (struct command){
        .opcode = opcode, .nsid = 1, .dword10 = (uint32_t)lba, .dword11 = (uint32_t)(lba >> 32), .dword12 = count - 1
    };
}

void submit(int queue, struct command command, void *data, uint32_t size, struct outcome *outcome)
{
    int error = spdk_nvme_ctrlr_cmd_io_raw(ctrlr, queues[queue], &command, data, size, completed, outcome);
    must(!error, "opcode %02x on queue %d: the driver refused it with %d", command.opcode, queue, error);
}

void execute(int queue, struct command command, void *data, uint32_t size, uint16_t status, const char *what)
{
    struct outcome outcome = {0};
    submit(queue, command, data, size, &outcome);
    wait_for(&outcome, 1, status, what);
}

uint8_t *piece_at(const struct scattered *list, uint32_t at)
{
    return list->base + 2 * (list->size - PIECE - at);
}

static void reset_sgl(void *argument, uint32_t offset)
{
    ((struct scattered *)argument)->at = offset;
}

static int next_sge(void *argument, void **address, uint32_t *length)
{
    struct scattered *list = argument;
    *address = piece_at(list, list->at);
    *length = PIECE;
    list->at += PIECE;
    return 0;
}

void submit_scattered(int queue, uint8_t opcode, uint64_t position, struct scattered *list, struct outcome *outcome)
{
    struct nvme_request *request = nvme_allocate_request_user_copy(queues[queue], NULL, 0, completed, outcome, false);
    must(request != NULL, "no request for a scattered buffer");
    uint8_t *fields = (uint8_t *)request;
    struct command *command = (struct command *)fields;
    *command = io_command(opcode, position / block_size, list->size / block_size);
    *(uint32_t *)(fields + REQUEST_SIZE) = list->size;
    *(void (**)(void *, uint32_t))(fields + REQUEST_RESET_SGL) = reset_sgl;
    *(int (**)(void *, void **, uint32_t *))(fields + REQUEST_NEXT_SGE) = next_sge;
    *(void **)(fields + REQUEST_SGL_ARGUMENT) = list;
    *(spdk_nvme_cmd_cb *)(fields + REQUEST_CALLBACK) = completed;
    *(void **)(fields + REQUEST_CALLBACK_ARGUMENT) = outcome;
    *outcome = (struct outcome){0};
    must(!nvme_qpair_submit_request(queues[queue], request), "the driver refused a scattered buffer");
    /* It is not completed before the next poll. Bits 6 and 7: 01 for SGLs (Base 2.0c, 3.3.3.1). */
    must(command->flags >> 6 == 1, "the driver made no SGL of a scattered buffer");
}
