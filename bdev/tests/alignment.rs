//! Disks that refuse vectors as O_DIRECT does up to Linux 6.17, alone and below other bdevs: nothing they would refuse
//! reaches them.

use std::sync::Arc;

use bdev::conformance::{
    Subject, describes_itself_consistently, matches_a_model_through_random_interleavings,
    refuses_too_many_vectors_and_takes_misaligned_ones, takes_vectors_of_every_shape,
    touches_only_the_memory_of_the_vectors,
};
use bdev::types::{
    ErrorParams, Malloc, MallocParams, PassthruParams, RaidParams, SplitParams, error, passthru, raid, split,
};
use bdev::{
    Bdev, BdevInfo, Channel, Completion, IoVec, OpKind, OpenError, Registry, Rejected, Request, Status,
};

const BLOCK: u32 = 512;

/// A disk in memory whose vectors have to be aligned.
struct Strict {
    info: Arc<BdevInfo>,
    below: Malloc,
}

struct StrictChannel {
    info: Arc<BdevInfo>,
    below: Box<dyn Channel>,
}

impl Bdev for Strict {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.info
    }

    fn supports(&self, kind: OpKind) -> bool {
        self.below.supports(kind)
    }

    fn open_channel(&self, depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(StrictChannel { info: self.info.clone(), below: self.below.open_channel(depth)? }))
    }
}

impl Channel for StrictChannel {
    fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        let BdevInfo { buf_align, len_align, .. } = *self.info;
        let is_aligned = |v: &IoVec| {
            v.as_ptr().addr().is_multiple_of(buf_align as usize) && v.len().is_multiple_of(len_align as usize)
        };
        if !req.iov.iter().all(is_aligned) {
            // What EINVAL becomes.
            return Err(Rejected::Failed(Status::IoError));
        }
        self.below.submit(req)
    }

    fn kick(&mut self) {
        self.below.kick();
    }

    fn reap(&mut self, done: &mut [Completion]) -> usize {
        self.below.reap(done)
    }

    fn in_flight(&self) -> usize {
        self.below.in_flight()
    }
}

struct Limits {
    buf_align: u32,
    len_align: u32,
    max_io_blocks: u32,
}

/// As most NVMe disks are.
const NVME: Limits = Limits { buf_align: 4, len_align: BLOCK, max_io_blocks: 0 };
/// Whose requests are cut inside of vectors that are aligned as a whole.
const PAGES: Limits = Limits { buf_align: 4096, len_align: BLOCK, max_io_blocks: 5 };

fn strict(registry: &Arc<Registry>, name: &str, limits: &Limits) -> String {
    let below = Malloc::new("below".into(), &MallocParams::new(BLOCK, 2048)).expect("memory");
    let mut info = BdevInfo::new("malloc", "Malloc disk", name.into(), BLOCK, 2048);
    info.buf_align = limits.buf_align;
    info.len_align = limits.len_align;
    info.max_io_blocks = limits.max_io_blocks;
    registry.register(Arc::new(Strict { info: Arc::new(info), below })).expect("a new registry");
    name.to_owned()
}

fn array_of_two(registry: &Arc<Registry>) -> String {
    let base_bdevs = ["a", "b"].map(|name| strict(registry, name, &NVME)).to_vec();
    let params = RaidParams {
        name: "raid".into(),
        strip_size_kb: 4,
        raid_level: raid::Level::Raid0,
        base_bdevs,
        uuid: None,
        superblock: false,
    };
    raid::create(registry, params).expect("the bases are there");
    "raid".into()
}

/// error on passthru on a part of an array of two.
fn stack(registry: &Arc<Registry>) -> String {
    let base_bdev = array_of_two(registry);
    split::create(registry, SplitParams { base_bdev, split_count: 2, split_size_mb: 0 }).expect("it fits");
    let params = PassthruParams { name: "pass".into(), base_bdev_name: "raidp1".into(), uuid: None };
    passthru::create(registry, params).expect("the base is there");
    error::create(registry, ErrorParams { base_name: "pass".into(), uuid: None }).expect("the base is there");
    "EE_pass".into()
}

const fn subject(make: fn(&Arc<Registry>) -> String) -> Subject {
    Subject { make, keeps_data: true, grow: None }
}

#[test]
fn a_disk_gets_lengths_and_bases_as_it_wants_them() {
    const SUBJECT: Subject = subject(|registry| strict(registry, "strict", &NVME));

    describes_itself_consistently(&SUBJECT);
    refuses_too_many_vectors_and_takes_misaligned_ones(&SUBJECT);
    takes_vectors_of_every_shape(&SUBJECT);
    touches_only_the_memory_of_the_vectors(&SUBJECT);
    matches_a_model_through_random_interleavings(&SUBJECT);
}

#[test]
fn a_disk_below_others_gets_lengths_and_bases_as_it_wants_them() {
    const SUBJECT: Subject = subject(stack);

    refuses_too_many_vectors_and_takes_misaligned_ones(&SUBJECT);
    takes_vectors_of_every_shape(&SUBJECT);
    matches_a_model_through_random_interleavings(&SUBJECT);
}

#[test]
fn what_is_cut_where_a_base_is_not_aligned_goes_through_buffers() {
    const SUBJECT: Subject = subject(|registry| strict(registry, "strict", &PAGES));

    refuses_too_many_vectors_and_takes_misaligned_ones(&SUBJECT);
    matches_a_model_through_random_interleavings(&SUBJECT);
}
