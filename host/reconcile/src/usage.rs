//! What the node has left and what a pod uses, put together from who knows it: cgroups, its folders, the runtime. It must
//! not judge it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore_core::evict::{ContainerUse, PodUse};
use longshore_core::ports::files::{DiskUsage, FileStore, Measured};
use longshore_core::ports::stats::{NodeUsage, PodQuery};
use longshore_core::{cgroup, volume};

use crate::node::Shared;
use crate::roster::Member;

/// How long numbers may take to be read.
const STATS: Duration = Duration::from_secs(10);
/// How long it may be counted what a pod has on the disk, while others wait for that.
const DISK: Duration = Duration::from_secs(20);
/// Older files of a container's log that are looked for beside the newest.
const OLDER_LOGS: usize = 100;

/// Sizes of writable layers by container ID; `None` where the runtime does not say.
pub(crate) type Layers = Option<BTreeMap<String, u64>>;

/// What the node has left. Empty where nothing could be read in time.
pub(crate) async fn of_node(shared: &Shared) -> NodeUsage {
    tokio::time::timeout(STATS, shared.ports.stats.node()).await.unwrap_or_default()
}

/// What a pod uses; `None` of one that has nothing that could use any. With `layers` what it takes on the disk as well:
/// that looks at every file, and is not to be asked often.
pub(crate) async fn of_pod(shared: &Shared, member: &Member, layers: Option<&Layers>) -> Option<PodUse> {
    let mut used = of_cgroup(shared, member).await?;
    if let Some(layers) = layers {
        let counting = add_disk(shared.ports.files.as_ref(), member, layers.as_ref(), &mut used);
        let is_late = tokio::time::timeout(DISK, counting).await.is_err();
        used.partial |= is_late;
    }
    Some(used)
}

/// Memory and processes of a pod.
async fn of_cgroup(shared: &Shared, member: &Member) -> Option<PodUse> {
    let running = member.containers.iter().filter(|container| container.running);
    let query = PodQuery {
        pod: member.pod.id.clone(),
        cgroup: cgroup::path(&member.pod.id.uid, member.pod.spec(), shared.facts().cgroup_driver),
        sandbox_process: member.sandbox_process,
        containers: running.map(|container| (container.name.clone(), container.id.clone())).collect(),
    };
    let seen = tokio::time::timeout(STATS, shared.ports.stats.pod(&query)).await.unwrap_or_default();
    let memory = seen.usage.memory_working_set;
    if memory.is_none() && member.containers.is_empty() {
        return None;
    }
    let containers = seen
        .containers
        .into_iter()
        .map(|(name, usage)| (name, ContainerUse { memory: usage.memory_working_set, ..ContainerUse::default() }));
    Some(PodUse { memory, processes: seen.usage.processes, containers: containers.collect(), ..PodUse::default() })
}

/// Adds what the pod takes on the disk: its writable layers as `layers` has them by container ID, its logs, its volumes and
/// other files. What was added stays when this is given up, and what takes longest is added last.
pub(crate) async fn add_disk(
    files: &dyn FileStore,
    member: &Member,
    layers: Option<&BTreeMap<String, u64>>,
    usage: &mut PodUse,
) {
    for container in &member.containers {
        let known = usage.containers.entry(container.name.clone()).or_default();
        if let Some(layers) = layers {
            // Docker counts bytes alone.
            let layer = DiskUsage { bytes: layers.get(&container.id).copied().unwrap_or(0), inodes: 0 };
            known.rootfs = Some(known.rootfs.unwrap_or_default().plus(layer));
        }
    }
    for container in &member.containers {
        let mut logs = DiskUsage::default();
        if let Some(log) = &container.log {
            let found = of_log(files, log).await;
            logs = found.usage;
            usage.partial |= !found.whole;
        }
        let known = usage.containers.entry(container.name.clone()).or_default();
        known.logs = Some(known.logs.unwrap_or_default().plus(logs));
    }
    for name in volume::on_disk(&member.pod) {
        let Some(path) = member.volumes.get(&name) else { continue };
        if let Some(found) = files.usage(path).await {
            usage.volumes.insert(name, found.usage);
            usage.partial |= !found.whole;
        }
    }
    for path in &member.files {
        if let Some(found) = files.usage(path).await {
            usage.files = usage.files.plus(found.usage);
            usage.partial |= !found.whole;
        }
    }
}

/// A log and its older files: `….log`, `….log.1`, `….log.2.gz`, up to the first that is not there.
async fn of_log(files: &dyn FileStore, log: &Path) -> Measured {
    let mut sum = files.usage(log).await.unwrap_or(Measured { whole: true, ..Measured::default() });
    for n in 1..OLDER_LOGS {
        let mut found = None;
        for end in ["", ".gz"] {
            let mut path = log.as_os_str().to_owned();
            path.push(format!(".{n}{end}"));
            found = found.or(files.usage(&PathBuf::from(path)).await);
        }
        let Some(found) = found else { break };
        sum = sum.plus(found);
        if !sum.whole {
            break;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use longshore_core::observed::ObservedPod;
    use longshore_core::record::PodRecord;
    use longshore_tests::files::FakeFiles;

    use super::*;
    use crate::roster::MemberContainer;

    #[test]
    fn volumes_that_take_too_long_to_count_hide_no_layers_nor_logs() {
        let pod = longshore_tests::pod("p", "{containers: [{name: app}], volumes: [{name: v, emptyDir: {}}]}");
        let mut member = Member::new(&pod, &ObservedPod::default(), &PodRecord::default(), None);
        member.volumes.insert("v".to_owned(), "/pods/p/volume".into());
        let (name, id) = ("app".to_owned(), "1".to_owned());
        member.containers.push(MemberContainer { name, id, running: true, log: None });
        let (files, layers) = (FakeFiles::default(), BTreeMap::from([("1".to_owned(), 500)]));
        // More than there are: it never ends.
        files.measures_together(2);
        let mut used = PodUse::default();
        assert!(add_disk(&files, &member, Some(&layers), &mut used).now_or_never().is_none());
        let (rootfs, logs) = (Some(DiskUsage { bytes: 500, inodes: 0 }), Some(DiskUsage::default()));
        assert_eq!(used.containers["app"], ContainerUse { memory: None, rootfs, logs });
    }
}
