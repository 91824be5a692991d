//! What `bindgen!` makes of `wit/`. It must not hold anything by hand.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

wasmtime::component::bindgen!({
    path: ["../../wit/types", "../../wit/log", "../../wit/clock", "../../wit/exec", "../../wit/dial", "../../wit/http",
        "../../wit/probe"],
    world: "longshore:probe/probe",
    imports: {
        "longshore:log/logger.log": trappable,
        "longshore:clock/clock.monotonic-ns": trappable,
        "longshore:clock/clock.remaining-ms": trappable,
        "longshore:clock/clock.wall-ms": trappable,
        "longshore:dial/tcp.[method]connection.alpn": trappable,
        default: async | trappable,
    },
    exports: { default: async },
    with: { "longshore:dial/tcp.connection": crate::dial::Connection },
});

/// The world of sources; what it shares with probes is theirs.
pub(crate) mod source {
    wasmtime::component::bindgen!({
        path: ["../../wit/types", "../../wit/log", "../../wit/clock", "../../wit/http", "../../wit/source"],
        world: "longshore:source/source",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "longshore:types/core": crate::bindings::longshore::types::core,
            "longshore:log/logger": crate::bindings::longshore::log::logger,
            "longshore:clock/clock": crate::bindings::longshore::clock::clock,
            "longshore:http/client": crate::bindings::longshore::http::client,
        },
    });
}
