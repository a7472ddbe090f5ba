//! What a method is: its name, when it may be called, which params it takes, how bad ones are answered, how the
//! command line shows it, and the function that runs it.
//!
//! One declaration feeds everything that must agree: dispatch and param checking ([`crate::table`]), the listing of
//! methods, the documentation and the table that `scripts/rpc.py` reads (`describe`).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::Value;

use crate::error::{INVALID_PARAMS, RpcError};
use crate::params::Params;
use crate::stage::State;

/// What a call gives: the `result` of the reply, or the error object. The members of an object leave in the order
/// in which they were inserted.
pub type Outcome = Result<Value, RpcError>;

/// A call that answers later.
pub type Pending = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// When a method may be called. SPDK: `SPDK_RPC_STARTUP`, `SPDK_RPC_RUNTIME`, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum States {
    /// Before the framework is initialised only.
    Startup,
    /// After it only.
    Runtime,
    /// At any time.
    Both,
}

impl States {
    /// Whether the method may be called in `state`.
    pub fn contains(self, state: State) -> bool {
        match self {
            States::Both => true,
            States::Startup => state == State::Startup,
            States::Runtime => state == State::Runtime,
        }
    }
}

/// Type of one param. Numbers may be written as integral floats or with an exponent (`8192.0`, `1e3`) and must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string without NUL.
    String,
    /// `true` or `false`.
    Bool,
    /// 0 to 255.
    U8,
    /// 0 to 65535.
    U16,
    /// 0 to 2^32 - 1.
    U32,
    /// 0 to 2^64 - 1.
    U64,
    /// -2^31 to 2^31 - 1.
    I32,
    /// A UUID in its 36 character form.
    Uuid,
    /// One of these words, case-sensitive.
    Enum(&'static [&'static str]),
    /// An object with these members, strict.
    Object(&'static [Param]),
    /// An array of at most so many elements.
    Array(&'static Kind, usize),
    /// Any JSON value but null; the handler checks it.
    Any,
}

/// How `scripts/rpc.py` takes a param on its command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cli {
    /// A positional argument named like the param; may be left out if the param is optional.
    Positional,
    /// The same, for a mask in hexadecimal.
    Mask,
    /// An option with a value, spelled as in `"-b/--name"`.
    Option(&'static str),
    /// An option without a value: given sends true, not given sends false.
    Flag(&'static str),
    /// `--word` sends true, `--no-word` false, neither sends nothing.
    Switch(&'static str),
    /// `--word` sends true, `--no-word` or neither sends false.
    SwitchOff(&'static str),
    /// An option without a value: given sends false, not given sends true.
    FlagOff(&'static str),
    /// An option whose value is a comma-separated list.
    List(&'static str),
    /// An option whose value is a list separated by white space.
    Words(&'static str),
    /// A positional argument with the NQN of an NVMe subsystem; `discovery` stands for that of the discovery subsystem.
    Nqn,
    /// An option whose value is a comma-separated list of members of the object, which are sent as true; `all` is all.
    Set(&'static str),
    /// An object whose members are arguments of their own.
    Members,
    /// A positional argument `total_size` in MiB; what is sent is that many bytes in blocks of the `block_size`
    /// argument.
    BlocksFromMib {
        /// Fractions of a MiB are accepted.
        fractions: bool,
    },
    /// Not on the command line.
    Hidden,
}

/// One param of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Key in the params object.
    pub name: &'static str,
    /// Type of the value.
    pub kind: Kind,
    /// Whether the key must be there.
    pub required: bool,
    /// What happens when it is not, in words, for the documentation.
    pub default: &'static str,
    /// What it is for.
    pub help: &'static str,
    /// How the command line takes it.
    pub cli: Cli,
    /// The integers that the command line accepts; empty if any. (The server has its own, later check.)
    pub choices: &'static [i64],
    /// The param that the command line wants to be set, not to zero, when this one is; empty if none.
    pub needs: &'static str,
}

impl Param {
    /// A param that must be given.
    pub const fn required(name: &'static str, kind: Kind, help: &'static str) -> Param {
        Param { name, kind, required: true, default: "", help, cli: Cli::Hidden, choices: &[], needs: "" }
    }

    /// A param that may be left out, and what then happens in words.
    pub const fn optional(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        help: &'static str,
    ) -> Param {
        Param { name, kind, required: false, default, help, cli: Cli::Hidden, choices: &[], needs: "" }
    }

    /// How the command line takes it.
    pub const fn cli(mut self, cli: Cli) -> Param {
        self.cli = cli;
        self
    }

    /// The integers that the command line accepts.
    pub const fn choices(mut self, choices: &'static [i64]) -> Param {
        self.choices = choices;
        self
    }

    /// The command line refuses this param without that one.
    pub const fn needs(mut self, name: &'static str) -> Param {
        self.needs = name;
        self
    }
}

/// What a method does with `params`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// No params: anything but null is refused, an empty object too.
    Nothing,
    /// Whatever comes is ignored (SPDK's exceptions to the rule above).
    Ignored,
    /// These, and no other key.
    Strict(&'static [Param]),
    /// These; other keys are ignored.
    Relaxed(&'static [Param]),
}

impl Accepts {
    /// The declared params.
    pub fn params(&self) -> &'static [Param] {
        match self {
            Accepts::Nothing | Accepts::Ignored => &[],
            Accepts::Strict(params) | Accepts::Relaxed(params) => params,
        }
    }
}

/// How `scripts/rpc.py` prints the result of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prints {
    /// Not at all (the result is `true`).
    Nothing,
    /// As JSON, indented by two.
    Json,
    /// As JSON, without the quotes of a bare string.
    Bare,
    /// The strings of an array, quoted for a shell, on one line.
    Words,
    /// As Python's `print` would.
    Text,
}

/// The function that runs a method. It runs on the RPC thread and must not block it: what takes long waits in the
/// future of an asynchronous handler.
pub enum Handler<C> {
    /// Answers at once.
    Sync(fn(&Arc<C>, Params) -> Outcome),
    /// Answers when its future completes. The future runs to its end even if the client has gone. It is polled once
    /// before the next request of the connection is looked at.
    Async(fn(Arc<C>, Params) -> Pending),
}

impl<C> Clone for Handler<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Handler<C> {}

impl<C> fmt::Debug for Handler<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Handler::Sync(_) => "Sync",
            Handler::Async(_) => "Async",
        })
    }
}

/// Everything about a method but its handler.
#[derive(Clone, Copy, Debug)]
pub struct MethodSpec {
    /// Name on the wire.
    pub name: &'static str,
    /// The group it is documented in, by SPDK's words (`app_framework`, `bdev_malloc`).
    pub group: &'static str,
    /// When it may be called.
    pub states: States,
    /// Its params.
    pub accepts: Accepts,
    /// Code and text of the answer to params that do not pass the check; in a method without params, to any params.
    pub bad_params: (i32, &'static str),
    /// One line for the documentation and the command line.
    pub help: &'static str,
    /// How the command line prints its result.
    pub prints: Prints,
    /// Params of a call that succeeds, as JSON text, for the documentation; empty if there are none.
    pub example: &'static str,
}

impl MethodSpec {
    /// Whether a call may change something that a configuration would hold. By its name: what gets, lists or waits
    /// does not. To say it of a method that does would cost its changes; the other way round it costs a look.
    pub fn may_change(&self) -> bool {
        !(self.name.contains("_get_") || self.name.contains("_wait_") || self.name == "spdk_kill_instance")
    }

    /// The answer to params that do not pass the check.
    pub fn bad_params_error(&self) -> RpcError {
        let (code, message) = self.bad_params;
        RpcError::new(code, message)
    }
}

/// A method of a target whose context is `C`.
#[derive(Debug)]
pub struct Method<C> {
    /// Everything but the handler.
    pub spec: MethodSpec,
    /// The handler.
    pub handler: Handler<C>,
}

impl<C> Method<C> {
    /// A method that answers at once. Until said otherwise it may be called in RUNTIME, takes no params, answers bad
    /// ones with -32602 `Invalid parameters`, and its result is not printed.
    pub const fn sync(
        name: &'static str,
        group: &'static str,
        run: fn(&Arc<C>, Params) -> Outcome,
    ) -> Method<C> {
        Method { spec: MethodSpec::with_defaults(name, group), handler: Handler::Sync(run) }
    }

    /// A method that answers later; defaults as in [`Method::sync`].
    pub const fn later(
        name: &'static str,
        group: &'static str,
        run: fn(Arc<C>, Params) -> Pending,
    ) -> Method<C> {
        Method { spec: MethodSpec::with_defaults(name, group), handler: Handler::Async(run) }
    }

    /// When it may be called.
    pub const fn states(mut self, states: States) -> Method<C> {
        self.spec.states = states;
        self
    }

    /// Takes these params and refuses other keys.
    pub const fn params(mut self, params: &'static [Param]) -> Method<C> {
        self.spec.accepts = Accepts::Strict(params);
        self
    }

    /// Takes these params and ignores other keys.
    pub const fn relaxed_params(mut self, params: &'static [Param]) -> Method<C> {
        self.spec.accepts = Accepts::Relaxed(params);
        self
    }

    /// Ignores whatever params come.
    pub const fn ignores_params(mut self) -> Method<C> {
        self.spec.accepts = Accepts::Ignored;
        self
    }

    /// Code and text of the answer to bad params.
    pub const fn bad_params(mut self, code: i32, message: &'static str) -> Method<C> {
        self.spec.bad_params = (code, message);
        self
    }

    /// One line that says what it does.
    pub const fn help(mut self, help: &'static str) -> Method<C> {
        self.spec.help = help;
        self
    }

    /// Params of a call that succeeds, as JSON text.
    pub const fn example(mut self, params: &'static str) -> Method<C> {
        self.spec.example = params;
        self
    }

    /// How the command line prints its result.
    pub const fn prints(mut self, prints: Prints) -> Method<C> {
        self.spec.prints = prints;
        self
    }
}

impl MethodSpec {
    pub(crate) const fn with_defaults(name: &'static str, group: &'static str) -> MethodSpec {
        MethodSpec {
            name,
            group,
            states: States::Runtime,
            accepts: Accepts::Nothing,
            bad_params: (INVALID_PARAMS, "Invalid parameters"),
            help: "",
            prints: Prints::Nothing,
            example: "",
        }
    }
}
