//! Volumes that are mounted below others. Containers cannot make a place for them in a volume that they may only read.
//!
//! As `pkg/volume/util/nested_volumes.go`.

use std::collections::BTreeSet;

use crate::container_config::clean;
use crate::pod::Pod;

/// The folders of a volume that containers of the pod mount something else on, relative to the volume. What is mounted
/// further below has its place in the one above it.
pub(super) fn mount_points(pod: &Pod, volume: &str) -> Vec<String> {
    let mut found = BTreeSet::new();
    for container in pod.containers() {
        let mounts = || container.spec.volume_mounts.iter().flatten();
        let mut all: Vec<String> = mounts().map(|mount| clean(&mount.mount_path)).collect();
        all.sort();
        for own in mounts().filter(|mount| mount.name == volume) {
            let own = format!("{}/", clean(&own.mount_path).trim_end_matches('/'));
            let mut above: Vec<String> = Vec::new();
            for below in all.iter().filter(|path| path.starts_with(&own)) {
                if !above.iter().any(|above| below.starts_with(above)) {
                    above.push(format!("{below}/"));
                    found.insert(below[own.len()..].to_owned());
                }
            }
        }
    }
    found.into_iter().filter(|path| !path.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod_from;

    fn points(mounts: &str) -> Vec<String> {
        mount_points(&pod_from(&format!("{{containers: [{{name: a, volumeMounts: [{mounts}]}}]}}")), "v")
    }

    #[test]
    fn places_below_a_volume_are_found_once() {
        let cases: [(&str, &[&str]); 6] = [
            ("{name: v, mountPath: /etc/conf}, {name: w, mountPath: /etc/conf/sub}", &["sub"]),
            ("{name: w, mountPath: /c/sub/}, {name: v, mountPath: /c/}, {name: x, mountPath: /c/sub/deeper}", &["sub"]),
            ("{name: v, mountPath: /c}, {name: w, mountPath: /c/a/b}, {name: x, mountPath: /c/a-b}", &["a-b", "a/b"]),
            ("{name: v, mountPath: /c}, {name: w, mountPath: /cc/x}, {name: x, mountPath: /}", &[]),
            ("{name: v, mountPath: /c}, {name: w, mountPath: /c/x/../../etc}", &[]),
            (
                "{name: v, mountPath: /c}, {name: v, mountPath: /c/again}, {name: w, mountPath: /c/again/x}",
                &["again", "x"],
            ),
        ];
        for (mounts, expected) in cases {
            assert_eq!(points(mounts), expected, "{mounts}");
        }
    }
}
