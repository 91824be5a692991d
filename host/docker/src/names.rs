//! Names and IDs in the daemon's paths, and names that are taken. Pure.

use std::hash::{BuildHasher, RandomState};

/// Whether a text can stand in a path of the API as a container's ID or name, and mean nothing else there.
pub(crate) fn is_container(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 1024
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Whether a text is an image's ID.
pub(crate) fn is_image_id(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether the daemon's 409 says that a name is taken.
pub(crate) fn says_name_is_taken(message: &str) -> bool {
    message.contains("is already in use by container") || message.contains("name is already in use")
}

/// A name that nobody has: dockershim's suffix (`dockershim/helpers.go`, `randomizeName`).
pub(crate) fn randomized(name: &str) -> String {
    // The keys of a fresh RandomState are random, and that is all that is needed here.
    let random = RandomState::new().hash_one(name);
    format!("{name}_{:08x}", random as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_stand_in_a_path() {
        for good in ["a", "k8s_POD_a.b-c_ns_uid_0", &"f".repeat(64)] {
            assert!(is_container(good), "{good}");
        }
        for bad in ["", "..", ".", "a/b", "a?b", "a#b", "a b", "-a", "é"] {
            assert!(!is_container(bad), "{bad}");
        }
        assert!(is_image_id(&format!("sha256:{}", "a".repeat(64))));
        assert!(!is_image_id("sha256:../x"));
    }

    #[test]
    fn the_suffix_is_eight_digits() {
        let name = randomized("x");
        assert!(name.starts_with("x_") && name.len() == 10, "{name}");
    }
}
