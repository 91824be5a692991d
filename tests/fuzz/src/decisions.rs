//! Texts that people, registries and plugins write, and what is made of them.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use longshore_core::credentials::{parse_image, providers};
use longshore_core::manifest::{Origin, parse};
use longshore_core::pod::Source;
use longshore_core::{duration, quantity};

/// A manifest, of a file or a URL: what is wrong with it is told within bounds, and it is read the same every time.
pub(crate) fn manifest(bytes: &[u8]) {
    let origin = Origin { source: Source::File, node_name: "node".to_owned(), place: "/manifest.yaml".to_owned() };
    let parsed = parse(bytes, &origin);
    assert!(parsed.problems.len() <= 51, "{} problems", parsed.problems.len());
    for pod in &parsed.pods {
        assert!(!pod.id.uid.is_empty() && pod.id.name.ends_with("-node"), "{}", pod.id);
    }
    assert!(parsed == parse(bytes, &origin));
}

/// An image's name: what was read from it is read the same from its full form.
pub(crate) fn image(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(name) = parse_image(text) {
        assert!(!name.place().is_empty());
    }
}

/// Quantities and times. A canonical quantity stays as it is.
pub(crate) fn quantity(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let read = Quantity(text.to_owned());
    let canonical = quantity::canonical(&read);
    assert_eq!(quantity::canonical(&canonical).0, canonical.0);
    let _ = (quantity::value(&read), quantity::milli(&read));
    if let Ok(time) = duration::parse(text) {
        assert_eq!(duration::parse(&duration::format(time)), Ok(time), "{text}");
    }
}

/// A CredentialProviderConfig.
pub(crate) fn providers(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = providers::parse(text);
    }
}
