//! What `--sandbox` forbids is refused, and what a target lives on goes on: tried on this very process, which is why there is
//! one test here and no other. That a whole target works in it is shown by `tests/protocol/posture.rs`.
#![expect(unsafe_code, reason = "system calls with arguments that mean nothing, to see them refused")]

#[path = "../src/sandbox.rs"]
mod sandbox;

use std::{
    fs::{self, File},
    io::ErrorKind,
    net::TcpListener,
    os::unix::net::UnixListener,
    process::Command,
};

/// How the kernel answers a call whose every argument is -1; zero where it succeeds. None of these does anything then.
fn errno_of(call: i64) -> i32 {
    // SAFETY: each of the calls reads its arguments as an address that is not mapped, a descriptor that is not open, a
    // flag that does not exist, or as an id that is to stay as it is; none touches memory of ours.
    let outcome = unsafe { libc::syscall(call, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64) };
    if outcome == -1 { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
}

/// Whether the kernel confines files (landlock(7): the version of its interface).
fn has_landlock() -> bool {
    // SAFETY: without a ruleset and with this flag the call only says a number.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0_i64, 0_i64, 1_i64) > 0 }
}

#[test]
fn what_the_sandbox_forbids_is_refused_and_the_rest_works() {
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let free: Vec<i32> = sandbox::REFUSED.iter().map(|&call| errno_of(call)).collect();
    Command::new("/bin/true").status().unwrap();
    TcpListener::bind("127.0.0.1:0").unwrap();

    sandbox::enter(&[inside.path().to_owned()]).unwrap();

    let now: Vec<i32> = sandbox::REFUSED.iter().map(|&call| errno_of(call)).collect();
    assert_eq!(now, vec![libc::EPERM; sandbox::REFUSED.len()]);
    assert_ne!(free, now, "they were refused before");
    let program = Command::new("/bin/true").status().unwrap_err();
    assert_eq!(program.raw_os_error(), Some(libc::EPERM));
    let network = TcpListener::bind("127.0.0.1:0").unwrap_err();
    assert_eq!(network.raw_os_error(), Some(libc::EPERM));

    UnixListener::bind(inside.path().join("socket")).unwrap();
    fs::write(inside.path().join("disk"), "data").unwrap();
    assert_eq!(fs::read(inside.path().join("disk")).unwrap(), b"data");
    fs::read("/proc/self/status").unwrap();
    std::thread::spawn(|| ()).join().unwrap();

    let denied = |outcome: std::io::Result<()>| {
        outcome.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    };
    let attempts = [
        denied(fs::read(&secret).map(drop)),
        denied(fs::write(&secret, "mine")),
        denied(fs::remove_file(&secret)),
        denied(fs::read_dir(outside.path()).map(drop)),
        denied(UnixListener::bind(outside.path().join("socket")).map(drop)),
        denied(File::create("/etc/ringside-was-here").map(drop)),
    ];
    assert_eq!(attempts, [has_landlock(); 6], "files of other folders");
}
