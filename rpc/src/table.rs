//! The table of all methods: built once from the declarations, then the one place where the name, the state and the
//! params of a call are checked. Requests of clients (`exec`) and the loader of configuration files
//! ([`Dispatcher::call`]) both end here. The table itself is jsonrpsee's.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use jsonrpsee::{Extensions, MethodCallback, MethodResponse, Methods, RpcModule};
use jsonrpsee_types::Id;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::check::check;
use crate::error::{INVALID_STATE, RpcError};
use crate::limits::REPLY_BYTES_MAX;
use crate::method::{Cli, Handler, Kind, Method, MethodSpec, Outcome, Param, Prints, States};
use crate::params::Params;
use crate::reply;
use crate::stage::{Stage, State};

/// What is wrong with the declarations.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Two declarations have the same name.
    #[error("RPC method {0} is declared twice")]
    Duplicate(&'static str),
}

/// Collects the declarations of a target whose context is `C`.
#[derive(Debug)]
pub struct MethodTable<C> {
    context: Arc<C>,
    stage: Stage,
    methods: Vec<Method<C>>,
    allowed: Option<HashSet<String>>,
}

/// `rpc_get_methods`, the one method that knows the table.
const GET_METHODS: MethodSpec = MethodSpec {
    states: States::Both,
    accepts: crate::method::Accepts::Strict(&[
        Param::optional("current", Kind::Bool, "false", "Only methods callable in the current state")
            .cli(Cli::Flag("-c/--current")),
        Param::optional("include_aliases", Kind::Bool, "false", "Deprecated aliases too (there are none)")
            .cli(Cli::Flag("-i/--include-aliases")),
    ]),
    help: "Get the list of supported RPC methods",
    prints: Prints::Json,
    ..MethodSpec::with_defaults("rpc_get_methods", "app_framework")
};

impl<C: Send + Sync + 'static> MethodTable<C> {
    /// A table with `rpc_get_methods` only.
    pub fn new(context: Arc<C>, stage: Stage) -> MethodTable<C> {
        MethodTable { context, stage, methods: Vec::new(), allowed: None }
    }

    /// Adds methods. `rpc_get_methods` lists them in the reverse of the order in which they are added.
    ///
    /// # Errors
    /// A name that is in the table already.
    pub fn register(&mut self, methods: &[Method<C>]) -> Result<(), TableError> {
        for method in methods {
            let name = method.spec.name;
            if name == GET_METHODS.name || self.methods.iter().any(|other| other.spec.name == name) {
                return Err(TableError::Duplicate(name));
            }
            self.methods.push(Method { spec: method.spec, handler: method.handler });
        }
        Ok(())
    }

    /// Hides all methods but these (`--rpcs-allowed`), from clients and from configuration files.
    pub fn allow_only(&mut self, names: impl IntoIterator<Item = String>) {
        self.allowed = Some(names.into_iter().collect());
    }

    /// The finished table.
    pub fn finish(self) -> Dispatcher {
        let MethodTable { context, stage, methods, allowed } = self;
        let specs: Vec<MethodSpec> =
            [GET_METHODS].into_iter().chain(methods.iter().map(|method| method.spec)).collect();
        let catalogue = Arc::new(Catalogue { specs, allowed, stage, journal: OnceLock::new() });

        let mut module = RpcModule::new(context);
        let of_table = Arc::clone(&catalogue);
        let get_methods = move |params: jsonrpsee_types::Params<'_>, _: &Arc<C>, _: &Extensions| {
            of_table.get_methods(of_table.checked(&GET_METHODS, params.as_str())?)
        };
        module.register_method(GET_METHODS.name, get_methods).expect("it is the first one");
        for Method { spec, handler } in methods {
            let catalogue = Arc::clone(&catalogue);
            let registered = match handler {
                // Nothing to wait for: it is answered without a future.
                Handler::Sync(run) if !spec.may_change() => module
                    .register_method(spec.name, move |params, context, _| {
                        run(context, catalogue.checked(&spec, params.as_str())?)
                    }),
                handler => module.register_async_method(spec.name, move |params, context, _| {
                    let catalogue = Arc::clone(&catalogue);
                    async move {
                        let params = catalogue.checked(&spec, params.as_str())?;
                        let journal = catalogue.journal(&spec);
                        journal.map_or(Ok(()), |journal| journal.begins(&spec))?;
                        let result = match handler {
                            Handler::Sync(run) => run(&context, params)?,
                            Handler::Async(run) => run(Arc::clone(&context), params).await?,
                        };
                        if let Some(journal) = journal {
                            journal.has_done(&spec).await?;
                        }
                        Ok::<_, RpcError>(result)
                    }
                }),
            };
            registered.expect("duplicates were refused by register");
        }
        Dispatcher { methods: module.into(), catalogue }
    }
}

/// Says that a change is kept, or why it is not.
pub type Kept = Pin<Box<dyn Future<Output = Result<(), RpcError>> + Send>>;

/// Who keeps what calls change. Told on the RPC thread, which waits for neither disk nor client: what takes long is for
/// the future.
pub trait Journal: Send + Sync {
    /// A call begins that may change something.
    ///
    /// # Errors
    /// What its client gets instead: there is no room to keep the change. Nothing is done then.
    fn begins(&self, method: &MethodSpec) -> Result<(), RpcError>;

    /// The call has done what it does; its client is answered when the future is done. An error is what the client gets
    /// instead: the change was made, but is not kept.
    fn has_done(&self, method: &MethodSpec) -> Kept;
}

struct Catalogue {
    specs: Vec<MethodSpec>,
    allowed: Option<HashSet<String>>,
    stage: Stage,
    journal: OnceLock<Arc<dyn Journal>>,
}

impl fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalogue").field("methods", &self.specs.len()).finish_non_exhaustive()
    }
}

impl Catalogue {
    fn is_allowed(&self, name: &str) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.contains(name))
    }

    /// Who is to keep what a call of this method changes.
    fn journal(&self, spec: &MethodSpec) -> Option<&dyn Journal> {
        self.journal.get().filter(|_| spec.may_change()).map(|journal| &**journal)
    }

    /// SPDK looks at the state before it looks at the params.
    fn checked(&self, spec: &MethodSpec, params: Option<&str>) -> Result<Params, RpcError> {
        let state = self.stage.state();
        if !spec.states.contains(state) {
            return Err(RpcError::new(INVALID_STATE, wrong_state(state)));
        }
        check(spec, params).ok_or_else(|| spec.bad_params_error())
    }

    fn get_methods(&self, params: Params) -> Outcome {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Filter {
            current: bool,
        }
        // `include_aliases` changes nothing: no method has one.
        let Filter { current } = params.parse()?;
        let state = self.stage.state();
        let listed =
            |spec: &&MethodSpec| self.is_allowed(spec.name) && (!current || spec.states.contains(state));
        Ok(self.specs.iter().rev().filter(listed).map(|spec| Value::from(spec.name)).collect())
    }
}

fn wrong_state(state: State) -> &'static str {
    match state {
        State::Startup => {
            "Method may only be called after framework is initialized using framework_start_init RPC."
        }
        State::Runtime => {
            "Method may only be called before framework is initialized. Use --wait-for-rpc command line \
             parameter and then issue this RPC before the framework_start_init RPC."
        }
    }
}

/// A finished table; clones share it.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    methods: Methods,
    catalogue: Arc<Catalogue>,
}

/// Bound on what jsonrpsee writes for one call. `reply` holds each reply to [`REPLY_BYTES_MAX`] once its id is known;
/// this keeps a result that is far too large from being written at all.
const RESPONSE_BYTES_MAX: usize = REPLY_BYTES_MAX + 64;

/// A call under way.
pub(crate) enum Answer {
    Ready(MethodResponse),
    Later(Running),
}

impl Dispatcher {
    /// The state that the calls are checked against.
    pub fn stage(&self) -> &Stage {
        &self.catalogue.stage
    }

    /// The declarations, in the order of registration, hidden ones included.
    pub fn specs(&self) -> &[MethodSpec] {
        &self.catalogue.specs
    }

    /// The declaration of a method that may be called at all.
    pub fn spec(&self, method: &str) -> Option<&MethodSpec> {
        self.specs().iter().find(|spec| spec.name == method && self.catalogue.is_allowed(method))
    }

    /// From now on, tells `journal` of every call that may change something. Once only.
    pub fn set_journal(&self, journal: Arc<dyn Journal>) {
        if self.catalogue.journal.set(journal).is_err() {
            tracing::error!("there is a journal already");
        }
    }

    /// Calls a method from inside the program, with the checks that a client's call meets. A pause of the servers
    /// does not hold it back. Handlers may need the timers of the RPC thread: run it there
    /// ([`crate::RpcThread::run`]).
    ///
    /// # Errors
    /// What a client would get.
    pub async fn call(&self, method: &str, params: Option<&RawValue>) -> Outcome {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Payload {
            Result(Value),
            Error { code: i32, message: String },
        }
        #[derive(Deserialize)]
        struct Reply {
            #[serde(flatten)]
            payload: Payload,
        }
        let response = match self.start_call(method, params.map(RawValue::get)) {
            Answer::Ready(response) => response,
            Answer::Later(running) => running.await,
        };
        match serde_json::from_str::<Reply>(response.as_ref()).map(|reply| reply.payload) {
            Ok(Payload::Result(result)) => Ok(result),
            Ok(Payload::Error { code, message }) => Err(RpcError::new(code, message)),
            Err(error) => Err(RpcError::internal(format!("Reply cannot be read: {error}"))),
        }
    }

    /// Begins a call. It has run up to its first wait when this returns, so that calls take effect in their order.
    pub(crate) fn start_call(&self, method: &str, params: Option<&str>) -> Answer {
        let callback = self.methods.method(method).filter(|_| self.catalogue.is_allowed(method));
        let params = jsonrpsee_types::Params::new(params);
        match callback {
            Some(MethodCallback::Sync(run)) => {
                let run = || run(Id::Null, params, RESPONSE_BYTES_MAX, Extensions::new());
                let response = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| panicked());
                Answer::Ready(bounded(response))
            }
            Some(MethodCallback::Async(run)) => {
                let (params, connection) = (params.into_owned(), jsonrpsee::ConnectionId(0));
                let future = run(Id::Null, params, connection, RESPONSE_BYTES_MAX, Extensions::new());
                let mut running = Running { future };
                // No waker is lost: whoever awaits the future polls it again with its own.
                match Pin::new(&mut running).poll(&mut Context::from_waker(std::task::Waker::noop())) {
                    Poll::Ready(response) => Answer::Ready(response),
                    Poll::Pending => Answer::Later(running),
                }
            }
            Some(MethodCallback::Subscription(_) | MethodCallback::Unsubscription(_)) | None => {
                Answer::Ready(reply::error(RpcError::method_not_found()))
            }
        }
    }
}

/// The future of an asynchronous handler. Should it panic, its client gets an error and nobody else notices.
pub(crate) struct Running {
    future: Pin<Box<dyn Future<Output = MethodResponse> + Send>>,
}

impl Future for Running {
    type Output = MethodResponse;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<MethodResponse> {
        let poll = || self.future.as_mut().poll(context);
        match catch_unwind(AssertUnwindSafe(poll)) {
            Ok(poll) => poll.map(bounded),
            Err(_panic) => Poll::Ready(panicked()),
        }
    }
}

/// jsonrpsee has a code of its own for a result that is too large, with `data`, which SPDK's replies never have.
fn bounded(response: MethodResponse) -> MethodResponse {
    match response.as_error_code() {
        Some(jsonrpsee_types::error::OVERSIZED_RESPONSE_CODE) => reply::error(reply::too_large()),
        _ => response,
    }
}

fn panicked() -> MethodResponse {
    tracing::error!("an RPC handler panicked; see the message above");
    reply::error(RpcError::internal("Internal error"))
}
