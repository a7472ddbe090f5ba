//! The JSON-RPC server: bytes of a client in, replies out, for methods whose params are of every type.
//!
//! What must hold: how the bytes are cut into reads makes no difference; each reply is one line of ASCII, is JSON, and
//! opens as JSON-RPC wants; params that reach a method are of the types that it declares; and a text that another parser
//! takes for JSON is never called a syntax error.

use std::{
    cell::OnceCell,
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use rpc::{Dispatcher, Kind, Method, MethodTable, Outcome, Param, Params, Pending, Stage, State};
use serde_json::{Value, value::RawValue};

/// What the methods belong to.
struct Door;

const INNER: &[Param] =
    &[Param::required("tag", Kind::I32, ""), Param::optional("deep", Kind::Array(&Kind::Any, 3), "", "")];
const PARAMS: &[Param] = &[
    Param::required("text", Kind::String, ""),
    Param::optional("byte", Kind::U8, "", ""),
    Param::optional("word", Kind::U16, "", ""),
    Param::optional("long", Kind::U32, "", ""),
    Param::optional("huge", Kind::U64, "", ""),
    Param::optional("size", Kind::U64, "", ""),
    Param::optional("signed", Kind::I32, "", ""),
    Param::optional("flag", Kind::Bool, "", ""),
    Param::optional("uuid", Kind::Uuid, "", ""),
    Param::optional("choice", Kind::Enum(&["wb", "wt"]), "", ""),
    Param::optional("inner", Kind::Object(INNER), "", ""),
    Param::optional("list", Kind::Array(&Kind::String, 2), "", ""),
    Param::optional("any", Kind::Any, "", ""),
];

const METHODS: &[Method<Door>] = &[
    Method::sync("echo", "fuzz", echo).params(PARAMS),
    Method::sync("relaxed", "fuzz", echo).relaxed_params(PARAMS),
    Method::later("later", "fuzz", later).params(PARAMS),
    Method::sync("none", "fuzz", |_, _| Ok(true.into())),
    Method::sync("ignores", "fuzz", |_, _| Ok(true.into())).ignores_params(),
];

fn echo(_: &Arc<Door>, params: Params) -> Outcome {
    Ok(checked(&params))
}

/// Answers at the second look.
fn later(_: Arc<Door>, params: Params) -> Pending {
    let mut looked = false;
    Box::pin(async move {
        std::future::poll_fn(move |context| {
            if std::mem::replace(&mut looked, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        Ok(checked(&params))
    })
}

/// The params, if they are what the declaration promises.
fn checked(params: &Params) -> Value {
    let members = params.members();
    assert!(members.contains_key("text"), "a required param is missing");
    for (name, value) in members {
        let param = PARAMS.iter().find(|param| param.name == name).expect("no other key passes");
        assert!(fits(param.kind, value), "{name}: {value}");
    }
    Value::Object(members.clone())
}

fn fits(kind: Kind, value: &Value) -> bool {
    let at_most = |most: u64| value.as_u64().is_some_and(|number| number <= most);
    let text = |good: fn(&str) -> bool| value.as_str().is_some_and(good);
    match kind {
        Kind::String => text(|text| !text.contains('\0')),
        Kind::Bool => value.is_boolean(),
        Kind::U8 => at_most(u8::MAX.into()),
        Kind::U16 => at_most(u16::MAX.into()),
        Kind::U32 => at_most(u32::MAX.into()),
        Kind::U64 => value.is_u64(),
        Kind::I32 => value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
        Kind::Uuid => text(|text| text.len() == 36 && text.matches('-').count() == 4),
        Kind::Enum(words) => value.as_str().is_some_and(|word| words.contains(&word)),
        Kind::Object(members) => value.as_object().is_some_and(|object| {
            object.iter().all(|(name, value)| {
                members.iter().any(|member| member.name == name && fits(member.kind, value))
            })
        }),
        Kind::Array(of, most) => value
            .as_array()
            .is_some_and(|list| list.len() <= most && list.iter().all(|value| fits(*of, value))),
        Kind::Any => !value.is_null(),
    }
}

thread_local! {
    static DOOR: OnceCell<Dispatcher> = const { OnceCell::new() };
}

/// The replies to these reads. Nothing of it waits for anything but another look.
fn answer<'a>(door: &Dispatcher, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut answering = pin!(door.answer(pieces));
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1_000_000 {
        if let Poll::Ready(replies) = answering.as_mut().poll(&mut context) {
            return replies;
        }
    }
    panic!("a request is never answered");
}

pub(super) fn run(input: &[u8]) {
    let Some((&piece, bytes)) = input.split_first() else { return };
    DOOR.with(|door| {
        let door = door.get_or_init(|| {
            let mut table = MethodTable::new(Arc::new(Door), Stage::new(State::Runtime));
            table.register(METHODS).expect("no name is declared twice");
            table.finish()
        });
        let replies = answer(door, [bytes]);
        let in_pieces = answer(door, bytes.chunks(usize::from(piece).max(1)));
        assert_eq!(replies, in_pieces, "reads of {piece} bytes make a difference");
        check(bytes, &replies);
    });
}

fn check(bytes: &[u8], replies: &[u8]) {
    assert!(replies.is_ascii() && replies.last().is_none_or(|last| *last == b'\n'));
    let lines = || replies.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for line in lines() {
        assert!(serde_json::from_slice::<&RawValue>(line).is_ok(), "a reply is not JSON");
        let one = line.strip_prefix(b"[").unwrap_or(line);
        assert!(one.starts_with(br#"{"jsonrpc":"2.0","id":"#));
    }
    let is_container = bytes.first().is_some_and(|first| b"{[".contains(first));
    // Read to the last value: what the other parser skips it does not look at.
    if is_container && serde_json::from_slice::<Value>(bytes).is_ok() {
        let refused: &[u8] = br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700"#;
        assert!(lines().all(|line| !line.starts_with(refused)), "JSON is called a syntax error");
        assert!(lines().count() <= 1, "one value has more than one reply");
    }
}
