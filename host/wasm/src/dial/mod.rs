//! `longshore:dial`: connections to the target. It must not let a guest choose the host, or use more than its share.

mod connection;

// `bindgen!` re-exports it, so it may not be less than public, though nobody outside can name it.
#[allow(unreachable_pub)]
pub use connection::Connection;

use wasmtime::component::Resource;

use crate::bindings::longshore::dial::tcp::{DialError, Host, HostConnection, TlsOptions};
use crate::call::{Call, Late, until};
use crate::grants::Capability;
use crate::limits::{MAX_CONNECTIONS, MAX_READ, MAX_TRAFFIC};
use crate::net::{ConnectError, Socket};

impl From<Late> for DialError {
    fn from(_: Late) -> Self {
        Self::Timeout
    }
}

impl From<ConnectError> for DialError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Lookup(text) => Self::Lookup(text),
            ConnectError::Connect(text) => Self::Connect(text),
        }
    }
}

impl Host for Call {}

/// Names and protocols of TLS are short.
const MAX_TLS_OPTIONS: usize = 1024;

fn check_tls(tls: &TlsOptions) -> Result<(), DialError> {
    let name = tls.server_name.as_ref().map_or(0, String::len);
    let bytes = name + tls.alpn.iter().map(|protocol| protocol.len() + 1).sum::<usize>();
    let wrong = bytes > MAX_TLS_OPTIONS || tls.alpn.iter().any(|protocol| protocol.is_empty() || protocol.len() > 255);
    if wrong { Err(DialError::Tls("the options are too long, or a protocol is empty".to_owned())) } else { Ok(()) }
}

fn alpn(tls: &TlsOptions) -> Vec<Vec<u8>> {
    tls.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect()
}

impl Call {
    async fn open(
        &mut self,
        port: u16,
        tls: Option<TlsOptions>,
        timeout_ms: Option<u32>,
    ) -> Result<Connection, DialError> {
        self.ask(Capability::Dial).map_err(|_| DialError::Denied)?;
        let address = self.aim.address.clone().ok_or(DialError::NoAddress)?;
        self.used.connections += 1;
        if self.used.connections > MAX_CONNECTIONS {
            return Err(DialError::Limit(format!("a call may open {MAX_CONNECTIONS} connections")));
        }
        let end = self.end(timeout_ms);
        let socket = until(end, Socket::connect(&address, port, self.deadline)).await??;
        let mut connection = Connection::new(socket, address);
        if let Some(tls) = tls {
            check_tls(&tls)?;
            until(end, connection.start_tls(tls.server_name.as_deref(), alpn(&tls))).await??;
        }
        Ok(connection)
    }

    async fn receive(
        &mut self,
        connection: &Resource<Connection>,
        max: u32,
        timeout_ms: Option<u32>,
    ) -> wasmtime::Result<Result<Vec<u8>, DialError>> {
        let left = MAX_TRAFFIC - self.used.read;
        if left == 0 {
            return Ok(Err(DialError::Limit(format!("a call may read {MAX_TRAFFIC} bytes"))));
        }
        let end = self.end(timeout_ms);
        let max = (max as usize).clamp(1, MAX_READ).min(left);
        let connection = self.table.get_mut(connection)?;
        let read = until(end, connection.read(max)).await.map_err(DialError::from);
        let read = match read {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) | Err(error) => return Ok(Err(error)),
        };
        self.used.read += read.len();
        Ok(Ok(read))
    }

    async fn send(
        &mut self,
        connection: &Resource<Connection>,
        bytes: &[u8],
        timeout_ms: Option<u32>,
    ) -> wasmtime::Result<Result<(), DialError>> {
        if bytes.len() > MAX_TRAFFIC - self.used.written {
            return Ok(Err(DialError::Limit(format!("a call may write {MAX_TRAFFIC} bytes"))));
        }
        self.used.written += bytes.len();
        let end = self.end(timeout_ms);
        let connection = self.table.get_mut(connection)?;
        Ok(until(end, connection.write(bytes)).await.map_err(DialError::from).flatten())
    }
}

impl HostConnection for Call {
    async fn connect(
        &mut self,
        port: u16,
        tls: Option<TlsOptions>,
        timeout_ms: Option<u32>,
    ) -> wasmtime::Result<Result<Resource<Connection>, DialError>> {
        match self.open(port, tls, timeout_ms).await {
            Ok(connection) => Ok(Ok(self.table.push(connection)?)),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn read(
        &mut self,
        connection: Resource<Connection>,
        max: u32,
        timeout_ms: Option<u32>,
    ) -> wasmtime::Result<Result<Vec<u8>, DialError>> {
        self.receive(&connection, max, timeout_ms).await
    }

    async fn write(
        &mut self,
        connection: Resource<Connection>,
        bytes: Vec<u8>,
        timeout_ms: Option<u32>,
    ) -> wasmtime::Result<Result<(), DialError>> {
        self.send(&connection, &bytes, timeout_ms).await
    }

    async fn start_tls(
        &mut self,
        connection: Resource<Connection>,
        tls: TlsOptions,
        timeout_ms: Option<u32>,
    ) -> wasmtime::Result<Result<(), DialError>> {
        if let Err(error) = check_tls(&tls) {
            return Ok(Err(error));
        }
        let end = self.end(timeout_ms);
        let connection = self.table.get_mut(&connection)?;
        let started = until(end, connection.start_tls(tls.server_name.as_deref(), alpn(&tls))).await;
        Ok(started.map_err(DialError::from).flatten())
    }

    fn alpn(&mut self, connection: Resource<Connection>) -> wasmtime::Result<Option<String>> {
        Ok(self.table.get(&connection)?.alpn())
    }

    async fn shutdown(&mut self, connection: Resource<Connection>) -> wasmtime::Result<Result<(), DialError>> {
        let end = self.deadline;
        let connection = self.table.get_mut(&connection)?;
        Ok(until(end, connection.shutdown()).await.map_err(DialError::from).flatten())
    }

    async fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
        self.table.delete(connection)?;
        Ok(())
    }
}
