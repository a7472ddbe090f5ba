//! Calls whose changes are kept somewhere: answered when they are, and nobody waits meanwhile but their own client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rpc::{Journal, Kept, MethodSpec, RpcError};
use tokio::sync::watch;

use crate::model::Rig;

const CREATE: &str =
    r#"{"id":1,"method":"bdev_null_create","params":{"name":"N","num_blocks":8,"block_size":512}}"#;
const CREATED: &str = r#"{"jsonrpc":"2.0","id":1,"result":"N"}"#;
const LIST: &str = r#"{"id":2,"method":"bdev_get_bdevs","params":{"name":"N"}}"#;

/// A journal on a disk that answers when it is told to.
struct Slow {
    is_full: AtomicBool,
    disk: watch::Sender<Option<Result<(), RpcError>>>,
}

impl Journal for Slow {
    fn begins(&self, _: &MethodSpec) -> Result<(), RpcError> {
        if self.is_full.load(Ordering::SeqCst) { Err(RpcError::errno(28)) } else { Ok(()) }
    }

    fn has_done(&self, _: &MethodSpec) -> Kept {
        let mut disk = self.disk.subscribe();
        Box::pin(async move {
            let answer = disk.wait_for(Option::is_some).await.expect("the disk is still there");
            answer.clone().expect("it was waited for")
        })
    }
}

fn rig() -> (Rig, Arc<Slow>) {
    let rig = Rig::start();
    let journal = Arc::new(Slow { is_full: false.into(), disk: watch::Sender::new(None) });
    rig.dispatcher.set_journal(Arc::clone(&journal) as Arc<dyn Journal>);
    (rig, journal)
}

#[test]
fn call_that_waits_for_the_disk_holds_up_nobody() {
    let (rig, journal) = rig();
    let mut client = rig.connect();
    client.send(CREATE);
    // The same client and another one are answered meanwhile, and see what was made.
    assert!(client.call(LIST).contains(r#""id":2,"result":"#));
    assert!(rig.connect().call(LIST).contains(r#""id":2,"result":"#));

    journal.disk.send_replace(Some(Ok(())));

    assert_eq!(client.reply(), CREATED);
}

#[test]
fn change_that_could_not_be_kept_is_told() {
    let (rig, journal) = rig();
    journal.disk.send_replace(Some(Err(RpcError::errno(5))));
    let expected = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-5,"message":"Input/output error"}}"#;
    assert_eq!(rig.connect().call(CREATE), expected);
}

#[test]
fn call_that_would_not_be_kept_is_not_made() {
    let (rig, journal) = rig();
    journal.is_full.store(true, Ordering::SeqCst);
    let mut client = rig.connect();
    let expected = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-28,"message":"No space left on device"}}"#;
    assert_eq!(client.call(CREATE), expected);
    assert!(client.call(LIST).contains(r#""code":-19"#));
}
