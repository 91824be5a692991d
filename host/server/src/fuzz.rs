//! Entry points for fuzz targets: queries as anybody may send them, no panic.

use crate::query::{Query, decode};
use crate::{logs, node_logs};

/// Reads a query as each of those who read one does.
pub fn query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for plus in [false, true] {
        // What is not encoded stays as it is, and what is gets shorter.
        assert!(decode(text, plus).chars().count() <= text.chars().count());
    }
    let Some(query) = Query::parse(text) else { return };
    logs::try_query(&query);
    node_logs::try_query(&query);
}
