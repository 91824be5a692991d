//! `longshore:clock`: time and waiting. It must not let a guest wait beyond its budget.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::bindings::longshore::clock::clock::Host;
use crate::call::Call;

impl Host for Call {
    fn monotonic_ns(&mut self) -> wasmtime::Result<u64> {
        Ok(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn remaining_ms(&mut self) -> wasmtime::Result<u32> {
        Ok(u32::try_from(self.remaining().as_millis()).unwrap_or(u32::MAX))
    }

    fn wall_ms(&mut self) -> wasmtime::Result<u64> {
        // A clock before 1970 is wrong; 0 says that as well as anything.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Ok(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    async fn sleep(&mut self, ms: u32) -> wasmtime::Result<()> {
        let end = self.deadline.min(Instant::now() + Duration::from_millis(ms.into()));
        tokio::time::sleep_until(end.into()).await;
        Ok(())
    }
}
