//! Versions of CNI's specification.

use std::fmt;

/// A version. A configuration without one is of 0.1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl Version {
    /// The newest one that is spoken here.
    pub(crate) const CURRENT: Version = Version(1, 1, 0);
    /// CHECK, and what ADD gave for DEL.
    pub(crate) const WITH_CHECK: Version = Version(0, 4, 0);
    /// GC and STATUS.
    pub(crate) const WITH_GC: Version = Version(1, 1, 0);

    /// `None` for what is no version.
    pub(crate) fn parse(text: &str) -> Option<Version> {
        if text.is_empty() {
            return Some(Version(0, 1, 0));
        }
        let mut parts = text.split('.').map(|part| part.parse::<u32>().ok());
        let version = Version(parts.next()??, parts.next().unwrap_or(Some(0))?, parts.next().unwrap_or(Some(0))?);
        parts.next().is_none().then_some(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(Version::parse(""), Some(Version(0, 1, 0)));
        assert_eq!(Version::parse("1.1.0"), Some(Version::CURRENT));
        assert_eq!(Version::parse("1.0"), Some(Version(1, 0, 0)));
        assert!(Version::parse("0.4.0") > Version::parse("0.3.1"));
        for bad in ["x", "1.x", "1.0.0.0", "1..0", "-1.0.0"] {
            assert_eq!(Version::parse(bad), None, "{bad}");
        }
    }
}
