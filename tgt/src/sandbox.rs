//! What the process gives up for good before it serves anybody: `--sandbox`.
//!
//! Landlock confines files to the folders that flags name; a seccomp filter takes away system calls that a storage target
//! never makes. Called once by [`crate::run`], before any thread of it starts. It makes no file reachable that was not,
//! and protects nothing from what the target itself is for.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    path_beneath_rules,
};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Read by the C library, by us about the machine, and nothing else.
const READABLE: [&str; 5] = ["/proc", "/sys", "/etc", "/usr", "/lib"];
/// Hugepages, and shared memory for the trace.
const WRITABLE: [&str; 3] = ["/dev/hugepages", "/dev/shm", "/dev/null"];

/// System calls that are refused with `EPERM`, whatever they are asked.
pub(crate) const REFUSED: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_settimeofday,
    libc::SYS_setuid,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Enters the sandbox; there is no way out.
///
/// # Errors
/// The kernel refuses. Where it knows no Landlock, that part is left out, with a warning.
pub(crate) fn enter(reachable: &[PathBuf]) -> anyhow::Result<()> {
    confine_files(reachable)?;
    filter_calls()?;
    tracing::info!(paths = ?reachable, "in the sandbox");
    Ok(())
}

fn confine_files(reachable: &[PathBuf]) -> anyhow::Result<()> {
    let abi = ABI::V5;
    let all = AccessFs::from_all(abi);
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let writable = WRITABLE.iter().map(Path::new).chain(reachable.iter().map(PathBuf::as_path));
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .create()?
        .add_rules(path_beneath_rules(READABLE, reading))?
        .add_rules(path_beneath_rules(writable, all & !AccessFs::Execute))?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::warn!("this kernel has no Landlock: files are not confined");
    }
    Ok(())
}

fn filter_calls() -> anyhow::Result<()> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    // Sockets of the machine itself, and no others.
    let not_unix = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Ne,
        u64::from(libc::AF_UNIX.unsigned_abs()),
    )?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![not_unix])?]);
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    seccompiler::apply_filter_all_threads(&program).context("seccomp")
}
