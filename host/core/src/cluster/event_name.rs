//! Names of Events.

use sha2::{Digest, Sha256};

use crate::hash::hex;

/// Bytes of a name (`DNS1123SubdomainMaxLength`).
const LONGEST: usize = 253;

/// A name for an Event about something of that name, at that time in nanoseconds. Where the two do not fit into one, or would
/// be none, it has the form of a UUID (`GenerateEventName` in client-go's tools/record/util).
pub fn event_name(of: &str, at: i128) -> String {
    let name = format!("{of}.{at:x}");
    if name.len() <= LONGEST && name.split('.').all(is_label) {
        return name;
    }
    let mut bytes: [u8; 32] = Sha256::digest(name.as_bytes()).into();
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex(&bytes[..16]);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = text.bytes().next().is_some_and(plain) && text.bytes().next_back().is_some_and(plain);
    ends && text.bytes().all(|byte| plain(byte) || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_none_is_replaced() {
        let at = 0x18a1_b2c3_d4e5_f607;
        assert_eq!(event_name("web-0.a", at), "web-0.a.18a1b2c3d4e5f607");
        let fits = "p".repeat(LONGEST - 17);
        assert_eq!(event_name(&fits, at), format!("{fits}.18a1b2c3d4e5f607"));
        for of in ["p".repeat(LONGEST - 16).as_str(), "A_node", "ends-", ""] {
            let name = event_name(of, at);
            let parts: Vec<usize> = name.split('-').map(str::len).collect();
            assert_eq!(parts, [8, 4, 4, 4, 12], "{name}");
            assert!(name.split('.').all(is_label) && name != event_name(of, at + 1), "{name}");
        }
    }
}
