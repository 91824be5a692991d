//! Huge pages: the sizes that kernels have, under the names that Kubernetes, cgroups and volumes give them.
//!
//! As `pkg/apis/core/v1/helper` (`HugePageSizeFromResourceName`, `HugePageUnitSizeFromByteSize`).

/// A size of huge pages.
#[derive(Debug, PartialEq, Eq)]
pub struct Size {
    /// Name of the resource: `hugepages-2Mi`.
    pub resource: &'static str,
    /// One page, in bytes.
    pub bytes: u64,
    /// In names of a cgroup's files: `2MB`.
    pub kernel: &'static str,
}

macro_rules! sizes {
    ($($size:literal $kernel:literal $bytes:expr;)*) => {
        &[$(Size {
            resource: concat!("hugepages-", $size),
            bytes: $bytes,
            kernel: $kernel,
        }),*]
    };
}

/// Every size that an architecture of Kubernetes has.
pub const SIZES: &[Size] = sizes! {
    "64Ki" "64KB" 64 << 10;
    "1Mi" "1MB" 1 << 20;
    "2Mi" "2MB" 2 << 20;
    "16Mi" "16MB" 16 << 20;
    "32Mi" "32MB" 32 << 20;
    "512Mi" "512MB" 512 << 20;
    "1Gi" "1GB" 1 << 30;
    "2Gi" "2GB" 2 << 30;
    "16Gi" "16GB" 16 << 30;
};

/// The size that a resource is about.
pub fn of_resource(name: &str) -> Option<&'static Size> {
    SIZES.iter().find(|size| size.resource == name)
}

/// The size of pages of so many bytes.
pub fn of_bytes(bytes: u64) -> Option<&'static Size> {
    SIZES.iter().find(|size| size.bytes == bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_the_bytes_are() {
        for size in SIZES {
            let quantity = size.resource.strip_prefix("hugepages-").unwrap_or_default();
            assert_eq!(crate::quantity::parse(quantity, 0), i64::try_from(size.bytes).ok(), "{}", size.resource);
            assert_eq!(size.kernel, quantity.replace('i', "B"));
            assert_eq!(of_resource(size.resource), of_bytes(size.bytes));
        }
    }
}
