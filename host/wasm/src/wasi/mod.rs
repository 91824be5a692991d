//! WASI 0.2, for guests whose toolchain imports it whether they use it or not: all of it is there, and all of it is closed. There are
//! no files, environment, arguments or input; sockets, names and HTTP answer denial; what is printed becomes lines of our log.
//! Clocks and randomness are real, and a wait that outlasts the call's budget is a fault (`meter.rs`). It must not open anything: what a plugin may do is in `grants.rs`, and goes by our own interfaces.

mod output;

use std::future::Future;
use std::sync::Arc;

use wasmtime::component::{Linker, ResourceTable};
use wasmtime_wasi::p2::bindings::LinkOptions;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{
    Error as HttpError, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use crate::call::Call;
use crate::limits::{MAX_HEADERS, MAX_RANDOM, MAX_READ};
use crate::log::{Level, Voice};
use output::Output;

/// Links all of WASI 0.2, the parts that are not stable yet among it. The linker takes any 0.2.x for another.
pub(crate) fn link(linker: &mut Linker<Call>) -> wasmtime::Result<()> {
    let mut options = LinkOptions::default();
    options.network_error_code(true);
    wasmtime_wasi::p2::add_to_linker_with_options_async(linker, &options)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)
}

/// What a store has of WASI.
pub(crate) struct Wasi {
    context: WasiCtx,
    http: WasiHttpCtx,
    hooks: Closed,
}

impl Wasi {
    fn closed(voice: &Arc<Voice>) -> Self {
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(MAX_HEADERS);
        let context = WasiCtx::builder()
            .stdout(Output::new(voice, Level::Info))
            .stderr(Output::new(voice, Level::Warn))
            .max_random_size(MAX_RANDOM)
            // The library's defaults, too; but the sandbox hangs on them.
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .build();
        Self { context, http, hooks: Closed }
    }
}

impl Call {
    /// What the store has of WASI, and the table that its resources are in.
    fn closed_wasi(&mut self) -> (&mut Wasi, &mut ResourceTable) {
        self.meter.enters_wasi(true);
        let voice = Arc::clone(self.voice());
        let wasi = self.wasi.get_or_insert_with(|| Box::new(Wasi::closed(&voice)));
        (wasi, &mut self.table)
    }
}

impl WasiView for Call {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let (wasi, table) = self.closed_wasi();
        WasiCtxView { ctx: &mut wasi.context, table }
    }
}

impl WasiHttpView for Call {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let (wasi, table) = self.closed_wasi();
        WasiHttpCtxView { hooks: &mut wasi.hooks, table, ctx: &mut wasi.http }
    }
}

/// HTTP that is denied, whatever is asked.
struct Closed;

type Ended = Box<dyn Future<Output = Result<(), HttpError>> + Send>;
type Answer = Result<(http::Response<WasiBody>, Ended), HttpError>;

impl WasiHttpHooks for Closed {
    fn send_request(
        &mut self,
        _request: http::Request<WasiBody>,
        _options: Option<RequestOptions>,
        _ended: Ended,
    ) -> Box<dyn Future<Output = Answer> + Send> {
        Box::new(std::future::ready(Err(HttpError::HttpRequestDenied)))
    }

    /// A body that goes nowhere is held by the host, for each of a guest's requests.
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        MAX_READ
    }
}
