/* SPDK's own NVMe driver (v19.10, as pynvme ships it) against one controller: attaches, and does with it what a host does.
 *
 *     spdk-initiator PCI_ADDRESS             DESTROYS what is on namespace 1 and leaves the pattern of `left_behind` there
 *     spdk-initiator --left-behind FILE      reads that pattern back through another driver, by its block device
 *
 * Runs in a guest (build makes it, tests/spdk.sh calls it) where the function is bound to uio_pci_generic and hugetlbfs is mounted.
 * Prints a line for each thing that was shown, and leaves with 1 at the first that was not. All commands go through the driver's
 * own submission path, which makes the PRPs and SGLs; it polls, and takes no interrupts. It measures nothing, and knows no other
 * transport.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "io.h"

enum { DEEP = 200, KEEP_ALIVE_MS = 1000, KEPT_ALIVE_S = 4 };
enum { IDENTIFY = 0x06, LOG_ERROR = 1, LOG_HEALTH = 2, LOG_FIRMWARE = 3, FEATURE_TEMPERATURE = 0x04, FEATURE_KEEP_ALIVE = 0x0f };

static uint64_t blocks;

/* Writes on every queue at once, DEPTH on each; then each queue reads what its neighbour wrote. `offset` is into the first page. */
static void moves(uint32_t size, uint32_t offset)
{
    struct outcome outcomes[QUEUES * DEPTH] = {0};
    uint32_t count = size / block_size;
    generation++;
    for (int i = 0; i < QUEUES * DEPTH; i++) {
        fill(buffers[i] + offset, (uint64_t)i * size, size);
        submit(i % QUEUES, io_command(WRITE, (uint64_t)i * count, count), buffers[i] + offset, size, &outcomes[i]);
    }
    wait_for(outcomes, QUEUES * DEPTH, SUCCESS, "write");
    memset(outcomes, 0, sizeof(outcomes));
    for (int i = 0; i < QUEUES * DEPTH; i++) {
        memset(buffers[i] + offset, 0xaa, size);
        submit((i + 1) % QUEUES, io_command(READ, (uint64_t)i * count, count), buffers[i] + offset, size, &outcomes[i]);
    }
    wait_for(outcomes, QUEUES * DEPTH, SUCCESS, "read");
    for (int i = 0; i < QUEUES * DEPTH; i++)
        check(buffers[i] + offset, (uint64_t)i * size, size, "read");
}

static void moves_scattered(uint32_t pieces)
{
    struct scattered lists[QUEUES];
    struct outcome outcomes[QUEUES];
    uint32_t size = pieces * PIECE;
    generation++;
    for (int q = 0; q < QUEUES; q++) {
        lists[q] = (struct scattered){buffers[q], size, 0};
        for (uint32_t at = 0; at < size; at += PIECE)
            fill(piece_at(&lists[q], at), (uint64_t)q * size + at, PIECE);
        submit_scattered(q, WRITE, (uint64_t)q * size, &lists[q], &outcomes[q]);
    }
    wait_for(outcomes, QUEUES, SUCCESS, "scattered write");
    for (int q = 0; q < QUEUES; q++) {
        memset(buffers[q], 0xaa, BUFFER);
        execute(q, io_command(READ, (uint64_t)q * size / block_size, size / block_size), buffers[q], size, SUCCESS, "read");
        check(buffers[q], (uint64_t)q * size, size, "read of a scattered write");
        memset(buffers[q], 0xaa, BUFFER);
        submit_scattered(q, READ, (uint64_t)q * size, &lists[q], &outcomes[q]);
    }
    wait_for(outcomes, QUEUES, SUCCESS, "scattered read");
    for (int q = 0; q < QUEUES; q++)
        for (uint32_t at = 0; at < size; at += PIECE)
            check(piece_at(&lists[q], at), (uint64_t)q * size + at, PIECE, "scattered read");
}

static uint8_t *deep_buffer(int i)
{
    return buffers[i % QUEUES] + i / QUEUES * block_size;
}

/* Reads of one block, DEEP outstanding on each queue: every queue's entries are used several times over. */
static void many(void)
{
    static struct outcome outcomes[QUEUES * DEEP];
    moves(block_size, 0);
    for (int round = 0; round < 5; round++) {
        memset(outcomes, 0, sizeof(outcomes));
        for (int i = 0; i < QUEUES * DEEP; i++)
            submit(i % QUEUES, io_command(READ, i % DEPTH, 1), deep_buffer(i), block_size, &outcomes[i]);
        wait_for(outcomes, QUEUES * DEEP, SUCCESS, "many reads");
        for (int i = 0; i < QUEUES * DEEP; i++)
            check(deep_buffer(i), i % DEPTH * block_size, block_size, "many reads");
    }
}

static void other_commands(void)
{
    moves(PAGE, 0);
    uint32_t count = PAGE / block_size;
    execute(0, (struct command){.opcode = FLUSH, .nsid = 1}, NULL, 0, SUCCESS, "flush");
    shown("flush");
    execute(1, io_command(COMPARE, 0, count), buffers[0], PAGE, SUCCESS, "compare");
    buffers[0][PAGE - 1] ^= 1;
    execute(1, io_command(COMPARE, 0, count), buffers[0], PAGE, COMPARE_FAILURE, "compare with something else");
    shown("compare, and its failure");
    struct range *ranges = (struct range *)buffers[0];
    ranges[0] = (struct range){0, count, 0};
    ranges[1] = (struct range){0, count, 2 * count};
    struct command dataset = {.opcode = DATASET_MANAGEMENT, .nsid = 1, .dword10 = 2 - 1, .dword11 = 1 << 2};
    execute(2, dataset, ranges, 2 * sizeof(struct range), SUCCESS, "dataset management");
    execute(2, io_command(WRITE_ZEROES, 4 * count, count), NULL, 0, SUCCESS, "write zeroes");
    for (int i = 0; i < 5; i++) {
        execute(3, io_command(READ, (uint64_t)i * count, count), buffers[0], PAGE, SUCCESS, "read after dataset management");
        if (i % 2)
            check(buffers[0], i * PAGE, PAGE, "read beside deallocated blocks");
        else
            for (int byte = 0; byte < PAGE; byte++)
                must(!buffers[0][byte], "read of deallocated or zeroed blocks: byte %d is %02x", byte, buffers[0][byte]);
    }
    shown("dataset management with two ranges, write zeroes");
    execute(0, io_command(READ, blocks, 1), buffers[0], block_size, LBA_OUT_OF_RANGE, "read beyond the end");
    shown("read beyond the end is refused");
}

static unsigned events;
static uint32_t event;

static void asynchronous_event(void *argument, const struct completion *completion)
{
    (void)argument;
    if (!(completion->status >> 1 & 0x7ff)) {
        events++;
        event = completion->dword0;
    }
}

static void identify(uint32_t nsid, uint32_t structure, const void *known, const char *what)
{
    struct outcome outcome = {0};
    struct command command = {.opcode = IDENTIFY, .nsid = nsid, .dword10 = structure};
    must(!spdk_nvme_ctrlr_cmd_admin_raw(ctrlr, &command, buffers[0], PAGE, completed, &outcome), "%s", what);
    wait_for(&outcome, 1, SUCCESS, what);
    must(!memcmp(buffers[0], known, PAGE), "%s differs from what the driver read", what);
}

static void log_page(uint8_t page, uint32_t size)
{
    struct outcome outcome = {0};
    must(!spdk_nvme_ctrlr_cmd_get_log_page(ctrlr, page, UINT32_MAX, buffers[0], size, 0, completed, &outcome), "log page %u", page);
    wait_for(&outcome, 1, SUCCESS, "get log page");
}

static void set_feature(uint8_t feature, uint32_t value)
{
    struct outcome outcome = {0};
    must(!spdk_nvme_ctrlr_cmd_set_feature(ctrlr, feature, value, 0, NULL, 0, completed, &outcome), "set feature %02x", feature);
    wait_for(&outcome, 1, SUCCESS, "set features");
}

static void administration(void)
{
    identify(0, 1, spdk_nvme_ctrlr_get_data(ctrlr), "identify controller");
    identify(1, 0, spdk_nvme_ns_get_data(spdk_nvme_ctrlr_get_ns(ctrlr, 1)), "identify namespace");
    shown("identify, as the driver has it");
    log_page(LOG_ERROR, 64);
    log_page(LOG_FIRMWARE, 512);
    log_page(LOG_HEALTH, 512);
    uint32_t kelvin = buffers[0][1] | buffers[0][2] << 8;
    shown("log pages 01, 02, 03; %u K", kelvin);
    spdk_nvme_ctrlr_register_aer_callback(ctrlr, asynchronous_event, NULL);
    set_feature(FEATURE_TEMPERATURE, kelvin - 1);
    for (time_t limit = time(NULL) + PATIENCE_S; !events; poll_all())
        must(time(NULL) <= limit, "no asynchronous event for a threshold that was crossed");
    set_feature(FEATURE_TEMPERATURE, 0xffff);
    must((event & 7) == 1, "an asynchronous event of another type: %08x", event);
    log_page(LOG_HEALTH, 512);
    shown("asynchronous event %08x of a temperature threshold", event);
    /* This driver sets no timer of a PCIe controller. It asks for it, and sends Keep Alive from its polls. */
    set_feature(FEATURE_KEEP_ALIVE, KEEP_ALIVE_MS);
    for (time_t limit = time(NULL) + KEPT_ALIVE_S; time(NULL) < limit; usleep(10000))
        poll_all();
    moves(PAGE, 0);
    set_feature(FEATURE_KEEP_ALIVE, 0);
    shown("%d s with a keep alive timer of %d ms, by the driver's own commands", KEPT_ALIVE_S, KEEP_ALIVE_MS);
}

static void make_queues(void)
{
    for (int q = 0; q < QUEUES; q++)
        if (!queues[q])
            must((queues[q] = spdk_nvme_ctrlr_alloc_io_qpair(ctrlr, NULL, 0)) != NULL, "queue pair %d was not created", q);
}

/* Before a reset: after one, this driver gives a new queue pair the id of another that is there. */
static void queue_pair_again(void)
{
    must(!spdk_nvme_ctrlr_free_io_qpair(queues[1]), "queue pair 1 was not deleted");
    queues[1] = NULL;
    execute(2, io_command(READ, 0, 1), buffers[0], block_size, SUCCESS, "read beside a queue that was deleted");
    make_queues();
    moves(PAGE, 0);
    shown("a queue pair deleted and created again");
}

static void resets(void)
{
    for (int round = 0; round < 3; round++) {
        struct outcome outcomes[QUEUES * DEPTH] = {0};
        for (int i = 0; i < QUEUES * DEPTH; i++)
            submit(i % QUEUES, io_command(READ, 0, 64), buffers[i], 64 * block_size, &outcomes[i]);
        must(!spdk_nvme_ctrlr_reset(ctrlr), "controller reset %d", round);
        wait_for(outcomes, QUEUES * DEPTH, ANY, "reads under a reset");
        moves(64 * KIB, 0);
    }
    shown("three controller resets with %d reads outstanding, data after each", QUEUES * DEPTH);
}

static bool wanted(void *argument, const void *transport_id, void *ctrlr_opts)
{
    (void)ctrlr_opts;
    return !strcmp((const char *)transport_id + TRANSPORT_ADDRESS, argument);
}

static void attached(void *argument, const void *transport_id, struct spdk_nvme_ctrlr *found, const void *ctrlr_opts)
{
    (void)argument, (void)transport_id, (void)ctrlr_opts;
    ctrlr = found;
}

static void attach(char *address)
{
    ctrlr = NULL;
    must(!spdk_nvme_probe(NULL, address, wanted, attached, NULL) && ctrlr, "SPDK's driver attached no controller at %s", address);
    const uint8_t *data = spdk_nvme_ctrlr_get_data(ctrlr);
    struct spdk_nvme_ns *namespace = spdk_nvme_ctrlr_get_ns(ctrlr, 1);
    must(namespace && spdk_nvme_ns_is_active(namespace), "namespace 1 is not active");
    block_size = spdk_nvme_ns_get_sector_size(namespace);
    blocks = spdk_nvme_ns_get_num_sectors(namespace);
    uint32_t version = spdk_nvme_ctrlr_get_regs_vs(ctrlr);
    shown("attached %s: NVMe %u.%u, CAP %016llx, model %.40s serial %.20s, %u namespaces, transfers to %u KiB, SGLs %s", address,
          version >> 16, version >> 8 & 0xff, (unsigned long long)spdk_nvme_ctrlr_get_regs_cap(ctrlr), data + 24, data + 4,
          spdk_nvme_ctrlr_get_num_ns(ctrlr), spdk_nvme_ctrlr_get_max_xfer_size(ctrlr) / KIB,
          spdk_nvme_ctrlr_get_flags(ctrlr) & SPDK_NVME_CTRLR_SGL_SUPPORTED ? "made" : "not made");
    shown("namespace 1: %llu blocks of %u bytes", (unsigned long long)blocks, block_size);
    make_queues();
    shown("%d I/O queue pairs", QUEUES);
}

static void detach(void)
{
    for (int q = 0; q < QUEUES; q++)
        must(!spdk_nvme_ctrlr_free_io_qpair(queues[q]), "queue pair %d was not deleted", q), queues[q] = NULL;
    must(!spdk_nvme_detach(ctrlr), "detach");
    shown("detached");
}

/* The last that `moves` wrote, in generation 0. */
static void left_behind(const char *path)
{
    static uint8_t data[BUFFER];
    int file = open(path, O_RDONLY);
    must(file >= 0, "no %s", path);
    for (uint64_t at = 0; at < QUEUES * DEPTH * 128 * KIB; at += BUFFER) {
        must(read(file, data, BUFFER) == BUFFER, "%s is short", path);
        check(data, at, BUFFER, path);
    }
    shown("%s has what SPDK's driver wrote", path);
}

/* Where everything of Python that the library asks for leads to: see build. */
void no_python(void)
{
    fail("pynvme's library has called Python");
}

int main(int count, char **arguments)
{
    if (count == 3 && !strcmp(arguments[1], "--left-behind")) {
        left_behind(arguments[2]);
        return 0;
    }
    must(count == 2, "usage: spdk-initiator PCI_ADDRESS | --left-behind FILE");
    static uint8_t environment[ENV_SIZE_MAX];
    spdk_env_opts_init((struct spdk_env_opts *)environment);
    *(const char **)(environment + ENV_NAME) = "initiator";
    *(const char **)(environment + ENV_CORE_MASK) = "0x1";
    must(spdk_env_init((struct spdk_env_opts *)environment) >= 0, "spdk_env_init");
    for (int i = 0; i < QUEUES * DEPTH; i++)
        must((buffers[i] = spdk_dma_zmalloc(BUFFER + PAGE, PAGE, NULL)) != NULL, "no memory for buffers");
    attach(arguments[1]);
    administration();
    static const uint32_t sizes[] = {512, 4 * KIB, 8 * KIB, 12 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, 1024 * KIB};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes) && sizes[i] <= spdk_nvme_ctrlr_get_max_xfer_size(ctrlr); i++) {
        if (sizes[i] < block_size)
            continue;
        moves(sizes[i], 0);
        moves(sizes[i], 0x204);
        shown("write and read of %u bytes, %d on each queue, also from the middle of a page", sizes[i], DEPTH);
    }
    many();
    shown("reads of one block, %d on each queue, five times", DEEP);
    for (uint32_t pieces = 8; pieces <= 128; pieces *= 4) {
        moves_scattered(pieces);
        shown("scattered buffers of %u pieces", pieces);
    }
    other_commands();
    queue_pair_again();
    resets();
    detach();
    attach(arguments[1]);
    generation = UINT32_MAX; /* the next is 0 */
    moves(128 * KIB, 0);
    shown("write and read by the controller that was attached again");
    detach();
    puts("ok   all of it");
    return 0;
}
