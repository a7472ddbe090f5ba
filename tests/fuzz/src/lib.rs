//! Fuzz targets: what hostile bytes do to framing, VERSION, configuration space, windows, BARs, rings, virtio-blk and
//! virtio-scsi requests, to a whole endpoint, and to an NVMe controller; and to the JSON-RPC server.
//!
//! A target takes bytes as its choices ([`choices::Choices`]) and panics when something is wrong. Two drivers call them:
//! the program of this crate, for short runs and replays without any tool, and `tests/fuzz/libfuzzer`, for long runs guided
//! by coverage (`scripts/fuzz`). Neither needs nightly Rust.

mod blk;
pub mod choices;
mod config_space;
mod conversation;
mod desk;
mod framing;
mod front_door;
mod function;
mod nvme;
mod rings;
mod scsi;
pub mod seeds;
mod version;
mod windows;

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, also of its corpus' folder.
    pub name: &'static str,
    /// Takes an input.
    pub run: fn(&[u8]),
    /// Longest input that makes sense.
    pub len_max: usize,
}

/// All targets, cheapest first.
pub const TARGETS: &[Target] = &[
    Target { name: "config_space", run: config_space::run, len_max: 512 },
    Target { name: "version", run: version::run, len_max: 512 },
    Target { name: "windows", run: windows::run, len_max: 512 },
    Target { name: "function", run: function::run, len_max: 512 },
    Target { name: "front_door", run: front_door::run, len_max: 1024 },
    Target { name: "rings", run: rings::run, len_max: 1024 },
    Target { name: "blk", run: blk::run, len_max: 512 },
    Target { name: "scsi", run: scsi::run, len_max: 512 },
    Target { name: "framing", run: framing::run, len_max: 1024 },
    Target { name: "conversation", run: conversation::run, len_max: 1024 },
    Target { name: "nvme", run: nvme::run, len_max: 1024 },
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}

/// Windows over all of a guest's memory.
fn windows_over(memory: &vfu::mock::memory::Memory) -> vfu::dma::Windows {
    let windows = vfu::dma::Windows::default();
    let both = vfu::dma::Protection { read: true, write: true };
    for region in memory.regions() {
        let file = memory.file().try_clone_to_owned().expect("a descriptor");
        let mapped = windows.map(region.address, region.len, both, Some((file, region.offset)));
        mapped.expect("regions do not overlap");
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_passes_its_target_and_is_written_for_the_fuzzers() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz/corpus");
        for target in TARGETS {
            let seeds = seeds::of(target.name);
            assert!(!seeds.is_empty(), "{} has no seeds", target.name);
            let folder = root.join(target.name);
            std::fs::create_dir_all(&folder).unwrap();
            for (nth, seed) in seeds.iter().enumerate() {
                (target.run)(seed);
                std::fs::write(folder.join(format!("seed-{nth}")), seed).unwrap();
            }
        }
    }
}
