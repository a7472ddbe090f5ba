/* As much of the C interface of SPDK v19.10's NVMe driver as initiator.c calls, by its names, plus NVMe's own structures.
 *
 * The library is that of the Python package pynvme 2.3.2 (scripts/lib/tools.sh), which exports it. What the driver lays out is left
 * opaque: where a field of it is needed, its offset in that build is here, so the version cannot move without this file.
 */
#ifndef RINGSIDE_GUEST_SPDK_H
#define RINGSIDE_GUEST_SPDK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* NVMe Base 2.0c, 3.3.3.1: a submission queue entry. */
struct command {
    uint8_t opcode, flags;
    uint16_t cid;
    uint32_t nsid, dword2, dword3;
    uint64_t metadata, data[2];
    uint32_t dword10, dword11, dword12, dword13, dword14, dword15;
};
_Static_assert(sizeof(struct command) == 64, "a submission queue entry");

/* 3.3.3.2: a completion queue entry. `status` holds the phase in bit 0. */
struct completion {
    uint32_t dword0, dword1;
    uint16_t sq_head, sq_id, cid, status;
};
_Static_assert(sizeof(struct completion) == 16, "a completion queue entry");

/* NVM 3.2.3: a range of Dataset Management. */
struct range {
    uint32_t attributes, blocks;
    uint64_t lba;
};
_Static_assert(sizeof(struct range) == 16, "a range");

struct spdk_env_opts; /* 0x50 bytes */
struct spdk_nvme_ctrlr;
struct spdk_nvme_ns;
struct spdk_nvme_qpair;
struct nvme_request;

/* Offsets in this build: struct spdk_env_opts, spdk_nvme_transport_id, nvme_request. */
enum {
    ENV_NAME = 0x00,
    ENV_CORE_MASK = 0x08,
    ENV_SIZE_MAX = 0x100,
    TRANSPORT_ADDRESS = 0x08,
    REQUEST_SIZE = 0x4c,
    REQUEST_RESET_SGL = 0x58,
    REQUEST_NEXT_SGE = 0x60,
    REQUEST_SGL_ARGUMENT = 0x68,
    REQUEST_CALLBACK = 0x78,
    REQUEST_CALLBACK_ARGUMENT = 0x80,
};

#define SPDK_NVME_CTRLR_SGL_SUPPORTED 1

typedef void (*spdk_nvme_cmd_cb)(void *argument, const struct completion *completion);
typedef bool (*spdk_nvme_probe_cb)(void *argument, const void *transport_id, void *ctrlr_opts);
typedef void (*spdk_nvme_attach_cb)(void *argument, const void *transport_id, struct spdk_nvme_ctrlr *ctrlr,
                                    const void *ctrlr_opts);

void spdk_env_opts_init(struct spdk_env_opts *opts);
int spdk_env_init(const struct spdk_env_opts *opts);
void *spdk_dma_zmalloc(size_t size, size_t align, uint64_t *address);

int spdk_nvme_probe(const void *transport_id, void *argument, spdk_nvme_probe_cb probe, spdk_nvme_attach_cb attach, void *remove);
int spdk_nvme_detach(struct spdk_nvme_ctrlr *ctrlr);
int spdk_nvme_ctrlr_reset(struct spdk_nvme_ctrlr *ctrlr);
const uint8_t *spdk_nvme_ctrlr_get_data(struct spdk_nvme_ctrlr *ctrlr);
uint32_t spdk_nvme_ctrlr_get_regs_vs(struct spdk_nvme_ctrlr *ctrlr);
uint64_t spdk_nvme_ctrlr_get_regs_cap(struct spdk_nvme_ctrlr *ctrlr);
uint64_t spdk_nvme_ctrlr_get_flags(struct spdk_nvme_ctrlr *ctrlr);
uint32_t spdk_nvme_ctrlr_get_max_xfer_size(const struct spdk_nvme_ctrlr *ctrlr);
uint32_t spdk_nvme_ctrlr_get_num_ns(struct spdk_nvme_ctrlr *ctrlr);
struct spdk_nvme_ns *spdk_nvme_ctrlr_get_ns(struct spdk_nvme_ctrlr *ctrlr, uint32_t nsid);
bool spdk_nvme_ns_is_active(struct spdk_nvme_ns *ns);
uint32_t spdk_nvme_ns_get_sector_size(struct spdk_nvme_ns *ns);
uint64_t spdk_nvme_ns_get_num_sectors(struct spdk_nvme_ns *ns);
const uint8_t *spdk_nvme_ns_get_data(struct spdk_nvme_ns *ns);

void spdk_nvme_ctrlr_register_aer_callback(struct spdk_nvme_ctrlr *ctrlr, spdk_nvme_cmd_cb callback, void *argument);
int32_t spdk_nvme_ctrlr_process_admin_completions(struct spdk_nvme_ctrlr *ctrlr);
int spdk_nvme_ctrlr_cmd_admin_raw(struct spdk_nvme_ctrlr *ctrlr, struct command *command, void *data, uint32_t size,
                                  spdk_nvme_cmd_cb callback, void *argument);
int spdk_nvme_ctrlr_cmd_get_log_page(struct spdk_nvme_ctrlr *ctrlr, uint8_t page, uint32_t nsid, void *data, uint32_t size,
                                     uint64_t offset, spdk_nvme_cmd_cb callback, void *argument);
int spdk_nvme_ctrlr_cmd_set_feature(struct spdk_nvme_ctrlr *ctrlr, uint8_t feature, uint32_t dword11, uint32_t dword12, void *data,
                                    uint32_t size, spdk_nvme_cmd_cb callback, void *argument);

struct spdk_nvme_qpair *spdk_nvme_ctrlr_alloc_io_qpair(struct spdk_nvme_ctrlr *ctrlr, const void *opts, size_t opts_size);
int spdk_nvme_ctrlr_free_io_qpair(struct spdk_nvme_qpair *qpair);
int32_t spdk_nvme_qpair_process_completions(struct spdk_nvme_qpair *qpair, uint32_t most);
int spdk_nvme_ctrlr_cmd_io_raw(struct spdk_nvme_ctrlr *ctrlr, struct spdk_nvme_qpair *qpair, struct command *command, void *data,
                               uint32_t size, spdk_nvme_cmd_cb callback, void *argument);

/* The driver's inside: what its spdk_nvme_ns_cmd_readv, which pynvme leaves out, would call. */
struct nvme_request *nvme_allocate_request_user_copy(struct spdk_nvme_qpair *qpair, void *data, uint32_t size,
                                                     spdk_nvme_cmd_cb callback, void *argument, bool to_controller);
int nvme_qpair_submit_request(struct spdk_nvme_qpair *qpair, struct nvme_request *request);

#endif
