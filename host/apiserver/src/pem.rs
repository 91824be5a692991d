//! PEM as Go writes it (`encoding/pem`): blocks without headers, lines of 64 characters. Must not judge what is in a block.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";

/// One block.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let mut pem = format!("{BEGIN}{label}{DASHES}\n");
    for line in STANDARD.encode(der).as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str(END);
    pem.push_str(label);
    pem.push_str(DASHES);
    pem.push('\n');
    pem
}

/// What is in the blocks of that label, or of any; headers, words between, and what is no base64 are left out.
pub(crate) fn decode(text: &str, label: Option<&str>) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for part in text.split(BEGIN).skip(1) {
        let Some((of, rest)) = part.split_once(DASHES) else { continue };
        if label.is_some_and(|label| label != of) {
            continue;
        }
        let Some((body, _)) = rest.split_once(&format!("{END}{of}{DASHES}")) else { continue };
        // Headers of a block hold a colon, base64 never does.
        let base64: String = body.lines().filter(|line| !line.contains(':')).map(str::trim).collect();
        found.extend(STANDARD.decode(base64));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_without_what_is_around_them() {
        let bytes: Vec<u8> = (0..100).collect();
        let pem = encode("CERTIFICATE", &bytes);
        assert!(pem.lines().all(|line| line.len() <= 64) && pem.ends_with("-----END CERTIFICATE-----\n"), "{pem}");
        let text = format!("words\n{pem}more{}", encode("OTHER", b"x"));
        assert_eq!(decode(&text, Some("CERTIFICATE")).concat(), bytes);
        assert_eq!(decode(&text, None), [bytes, b"x".to_vec()]);
    }
}
