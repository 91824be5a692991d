//! Header blocks: inflation under a bound, and what they say. Blocks that we write are stored, not compressed:
//! a deflater would cost each session 256 KiB for the four bytes of an empty reply.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary;
use crate::options::Limits;

/// What Kubernetes' services say of a stream.
const KNOWN: [&str; 3] = ["streamtype", "port", "requestid"];
/// Longest value of these, in bytes. Theirs are words and numbers.
const LONGEST: usize = 256;

/// The headers of a stream, names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header, its name in any case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Those that a service looks at: streams wait, and nothing is to be held for them that nobody reads.
    pub(crate) fn known(mut self) -> Result<Self, HeaderError> {
        self.0.retain(|(name, _)| KNOWN.contains(&name.as_str()));
        match self.0.iter().find(|(_, value)| value.len() > LONGEST) {
            Some(_) => Err(HeaderError::Malformed("value too long")),
            None => Ok(self),
        }
    }

    /// All headers, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// Why a header block was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The compressed state is broken or the block too large: nothing that follows can be read.
    #[error("header block cannot be inflated within {0} bytes")]
    Broken(usize),
    /// The block was read, and says nonsense; only its stream is concerned.
    #[error("malformed header block: {0}")]
    Malformed(&'static str),
}

/// The inflater of a session: one zlib stream over all its header blocks.
#[derive(Default)]
pub(crate) struct Inflater(Option<Decompress>);

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inflater")
    }
}

impl Inflater {
    /// Inflates one block and reads it.
    pub(crate) fn read(&mut self, block: &[u8], limits: &Limits) -> Result<Headers, HeaderError> {
        parse(&self.inflate(block, limits.header_block)?, limits.headers)
    }

    fn inflate(&mut self, mut block: &[u8], most: usize) -> Result<Vec<u8>, HeaderError> {
        let zlib = self.0.get_or_insert_with(|| Decompress::new(true));
        let broken = HeaderError::Broken(most);
        let mut text = Vec::new();
        let mut piece = [0u8; 4096];
        loop {
            let (before_in, before_out) = (zlib.total_in(), zlib.total_out());
            let status = match zlib.decompress(block, &mut piece, FlushDecompress::Sync) {
                Ok(status) => status,
                Err(error) if error.needs_dictionary() == Some(dictionary::ADLER) => {
                    block = &block[(zlib.total_in() - before_in) as usize..];
                    zlib.set_dictionary(dictionary::dictionary()).map_err(|_| broken)?;
                    continue;
                }
                Err(_) => return Err(broken),
            };
            let consumed = (zlib.total_in() - before_in) as usize;
            let made = (zlib.total_out() - before_out) as usize;
            block = &block[consumed..];
            if text.len() + made > most {
                return Err(broken);
            }
            text.extend_from_slice(&piece[..made]);
            match status {
                // The stream goes on for as long as the session.
                Status::StreamEnd => return Err(broken),
                _ if block.is_empty() && made < piece.len() => return Ok(text),
                _ if consumed == 0 && made == 0 => return Err(broken),
                _ => {}
            }
        }
    }
}

/// Reads an inflated block.
fn parse(text: &[u8], most: usize) -> Result<Headers, HeaderError> {
    let mut rest = text;
    let count = number(&mut rest)? as usize;
    if count > most {
        return Err(HeaderError::Malformed("too many headers"));
    }
    // Grows with what is there, not with what was announced.
    let mut headers: Vec<(String, String)> = Vec::new();
    for _ in 0..count {
        let name = string(&mut rest)?.to_ascii_lowercase();
        let value = string(&mut rest)?;
        if name.is_empty() {
            return Err(HeaderError::Malformed("empty name"));
        }
        if headers.iter().any(|(known, _)| *known == name) {
            return Err(HeaderError::Malformed("header given twice"));
        }
        // Several values are joined by NUL; the kubelet's headers have one, and Go's `Get` takes the first.
        headers.push((name, value.split('\0').next().unwrap_or_default().to_owned()));
    }
    if rest.is_empty() { Ok(Headers(headers)) } else { Err(HeaderError::Malformed("bytes after the last header")) }
}

fn number(rest: &mut &[u8]) -> Result<u32, HeaderError> {
    let (bytes, after) = rest.split_first_chunk::<4>().ok_or(HeaderError::Malformed("cut short"))?;
    *rest = after;
    Ok(u32::from_be_bytes(*bytes))
}

fn string(rest: &mut &[u8]) -> Result<String, HeaderError> {
    let length = number(rest)? as usize;
    let (bytes, after) = rest.split_at_checked(length).ok_or(HeaderError::Malformed("cut short"))?;
    *rest = after;
    String::from_utf8(bytes.to_vec()).map_err(|_| HeaderError::Malformed("not UTF-8"))
}

/// Writes an empty block, in a stored block of deflate; `first`: with the zlib header that names the dictionary.
pub(crate) fn empty_block(out: &mut Vec<u8>, first: bool) {
    if first {
        out.extend_from_slice(&[0x78, 0x20]);
        out.extend_from_slice(&dictionary::ADLER.to_be_bytes());
    }
    // The empty block behind it is what a sync flush leaves; Go's inflater hands out what it has only there, and
    // is broken for good if the input ends elsewhere (compress/flate/inflate.go `dataBlock`).
    out.extend_from_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    fn block(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut text = (headers.len() as u32).to_be_bytes().to_vec();
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend_from_slice(&(part.len() as u32).to_be_bytes());
            text.extend_from_slice(part.as_bytes());
        }
        text
    }

    fn deflate(zlib: &mut Compress, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len() + 256);
        zlib.compress_vec(text, &mut out, FlushCompress::Sync).unwrap();
        out
    }

    fn deflater() -> Compress {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(dictionary::dictionary()).unwrap();
        zlib
    }

    #[test]
    fn reads_blocks_of_one_stream_in_turn() {
        let (mut zlib, mut inflater, limits) = (deflater(), Inflater::default(), Limits::default());
        for kind in ["error", "stdin", "stdout"] {
            let headers = inflater.read(&deflate(&mut zlib, &block(&[("Streamtype", kind)])), &limits).unwrap();
            assert_eq!(headers.get("streamType"), Some(kind));
        }
    }

    #[test]
    fn keeps_what_a_service_reads() {
        let long = "7".repeat(LONGEST + 1);
        let known = |headers: &[(&str, &str)]| parse(&block(headers), 100).and_then(Headers::known);
        let headers = known(&[("Port", "80"), ("x", &long), ("requestID", &long[1..])]).unwrap();
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("port", "80"), ("requestid", &long[1..])]);
        assert_eq!(known(&[("requestID", &long)]), Err(HeaderError::Malformed("value too long")));
    }

    #[test]
    fn reads_its_own_empty_blocks() {
        let (mut inflater, limits) = (Inflater::default(), Limits::default());
        for first in [true, false, false] {
            let mut bytes = Vec::new();
            empty_block(&mut bytes, first);
            assert!(bytes.ends_with(&[0, 0, 0, 0xff, 0xff]), "Go's inflater needs the flush");
            assert_eq!(inflater.read(&bytes, &limits), Ok(Headers::default()));
        }
    }

    #[test]
    fn a_bomb_stops_at_the_bound() {
        let bytes = deflate(&mut deflater(), &vec![0; 64 << 20]);
        assert!(bytes.len() < 80 << 10);
        assert_eq!(Inflater::default().read(&bytes, &Limits::default()), Err(HeaderError::Broken(64 << 10)));
    }

    #[test]
    fn announced_counts_allocate_nothing() {
        let limits = Limits::default();
        let bytes = deflate(&mut deflater(), &[0xff; 4]);
        assert!(matches!(Inflater::default().read(&bytes, &limits), Err(HeaderError::Malformed(_))));
        let bytes = deflate(&mut deflater(), &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(Inflater::default().read(&bytes, &limits), Err(HeaderError::Malformed("cut short"))));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..512), text in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Inflater::default().read(&bytes, &Limits::default());
            let _ = Inflater::default().read(&deflate(&mut deflater(), &text), &Limits::default());
        }

        #[test]
        fn reads_what_was_written(pairs in proptest::collection::btree_map("[a-z]{1,20}", "[ -~]{0,60}", 0..20)) {
            let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let headers = Inflater::default().read(&deflate(&mut deflater(), &block(&pairs)), &Limits::default()).unwrap();
            prop_assert_eq!(headers.iter().collect::<Vec<_>>(), pairs);
        }
    }
}
