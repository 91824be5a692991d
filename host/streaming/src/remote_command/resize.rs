//! Sizes of a terminal: a sequence of JSON objects, in any pieces.

use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use crate::mux::Stream;

/// Most bytes that one object may take.
const OBJECT: usize = 4096;

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Size {
    /// Columns.
    #[serde(alias = "Width", default)]
    pub width: u16,
    /// Rows.
    #[serde(alias = "Height", default)]
    pub height: u16,
}

/// Reads sizes until the stream ends, says nonsense, or nobody listens.
pub(crate) fn sizes(mut stream: Stream) -> mpsc::Receiver<Size> {
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut text = Vec::new();
        let mut piece = [0; 512];
        loop {
            let n = tokio::select! {
                read = stream.read(&mut piece) => read.unwrap_or(0),
                () = sender.closed() => return,
            };
            if n == 0 {
                return;
            }
            text.extend_from_slice(&piece[..n]);
            let Some(sizes) = parse(&mut text) else { return };
            // A terminal without a size, as some pipes have it, is none that a process could be given.
            for size in sizes.into_iter().filter(|size| size.width > 0 && size.height > 0) {
                if sender.send(size).await.is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

/// Takes the whole objects out of a text; `None` if it is no sequence of sizes.
pub(crate) fn parse(text: &mut Vec<u8>) -> Option<Vec<Size>> {
    let mut objects = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let mut sizes = Vec::new();
    for size in objects.by_ref() {
        match size {
            Ok(size) => sizes.push(size),
            Err(error) if error.is_eof() => break,
            Err(_) => return None,
        }
    }
    let done = objects.byte_offset();
    text.drain(..done);
    (text.len() <= OBJECT).then_some(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pieces_in_both_spellings() {
        let mut text = br#"{"Width":80,"Height":24}
{"width":100,"height":30}{"Wid"#
            .to_vec();
        let sizes = [Size { width: 80, height: 24 }, Size { width: 100, height: 30 }];
        assert_eq!(parse(&mut text).as_deref(), Some(&sizes[..]));
        text.extend_from_slice(br#"th":1,"Height":2}"#);
        assert_eq!(parse(&mut text).as_deref(), Some(&[Size { width: 1, height: 2 }][..]));
        assert_eq!(parse(&mut b"nonsense".to_vec()), None);
        assert_eq!(parse(&mut [b'{'; 5000].to_vec()), None);
    }
}
