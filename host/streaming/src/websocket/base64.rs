//! Base64 that arrives in pieces.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Decodes a text piece by piece; what does not fill a group of four waits.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    carry: Vec<u8>,
    /// Padding was seen: only the end may follow.
    ended: bool,
}

impl Decoder {
    /// The bytes of the whole groups so far; `None` if this is not base64.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Option<Vec<u8>> {
        // Go's decoder skips line breaks.
        self.carry.extend(piece.iter().filter(|byte| !matches!(byte, b'\r' | b'\n')));
        let whole = self.carry.len() / 4 * 4;
        if whole > 0 && self.ended {
            return None;
        }
        let decoded = STANDARD.decode(&self.carry[..whole]).ok()?;
        self.ended = whole > 0 && self.carry[whole - 1] == b'=';
        self.carry.drain(..whole);
        Some(decoded)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_make_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 1usize..20) {
            let text = STANDARD.encode(&bytes);
            let mut decoder = Decoder::default();
            let decoded: Vec<u8> = text.as_bytes().chunks(size).flat_map(|piece| decoder.push(piece).unwrap()).collect();
            prop_assert_eq!(decoded, bytes);
        }
    }

    #[test]
    fn nothing_follows_padding() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(b"Zg=="), Some(b"f".to_vec()));
        assert_eq!(decoder.push(b"Zg=="), None);
        assert_eq!(Decoder::default().push(b"!!!!"), None);
    }
}
