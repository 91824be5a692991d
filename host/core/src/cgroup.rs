//! Cgroups of pods: their names under both drivers, and their limits.
//!
//! As `pkg/kubelet/cm/{pod_container_manager_linux,cgroup_manager_linux,helpers_linux}.go`.

use k8s_openapi::api::core::v1;

use crate::node::{CgroupDriver, NodeFacts};
use crate::pod::Pod;
use crate::{huge_pages, resources};

/// Quality of service of a pod (`pkg/apis/core/v1/helper/qos`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Every container has limits for CPU and memory, and requests equal to them.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Qos {
    /// All of them.
    pub const ALL: [Qos; 3] = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort];

    /// The one that is called so.
    pub fn of(name: &str) -> Option<Qos> {
        Qos::ALL.into_iter().find(|qos| qos.as_str() == name)
    }

    /// `status.qosClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// The cgroup of a pod, with its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// The pod's UID.
    pub uid: String,
    /// The pod's class; decides the parent.
    pub qos: Qos,
    /// Relative CPU weight (v1 shares).
    pub cpu_shares: i64,
    /// CFS quota in µs per period; `None` for no limit.
    pub cpu_quota: Option<i64>,
    /// CFS period in µs.
    pub cpu_period: i64,
    /// Memory limit in bytes; `None` for no limit.
    pub memory: Option<i64>,
    /// Process limit; `None` for none.
    pub pids: Option<i64>,
    /// How many bytes of huge pages of each size that the node knows, by the kernel's name.
    pub huge_pages: Vec<(&'static str, i64)>,
}

impl PodCgroup {
    /// Path of cgroup names from the root: `["kubepods", "burstable", "pod<uid>"]`.
    pub fn names(&self) -> Vec<String> {
        let mut names = vec!["kubepods".to_owned()];
        match self.qos {
            Qos::Guaranteed => {}
            Qos::Burstable => names.push("burstable".to_owned()),
            Qos::BestEffort => names.push("besteffort".to_owned()),
        }
        names.push(format!("pod{}", self.uid));
        names
    }

    /// Slice under the systemd driver: `kubepods-burstable-pod<uid with _>.slice`.
    pub fn systemd_slice(&self) -> String {
        let names: Vec<String> = self.names().iter().map(|name| name.replace('-', "_")).collect();
        format!("{}.slice", names.join("-"))
    }

    /// Its path below the hierarchy's root: `/kubepods/burstable/pod<uid>` under the cgroupfs driver,
    /// `/kubepods.slice/kubepods-burstable.slice/….slice` under systemd's.
    pub fn path(&self, driver: CgroupDriver) -> String {
        match driver {
            CgroupDriver::Cgroupfs => format!("/{}", self.names().join("/")),
            CgroupDriver::Systemd => {
                let names: Vec<String> = self.names().iter().map(|name| name.replace('-', "_")).collect();
                (1..=names.len()).map(|n| format!("/{}.slice", names[..n].join("-"))).collect()
            }
        }
    }

    /// Path of one of its containers' cgroups below the hierarchy's root, as Docker names it.
    pub fn path_of_container(&self, driver: CgroupDriver, id: &str) -> String {
        let pod = self.path(driver);
        match driver {
            CgroupDriver::Cgroupfs => format!("{pod}/{id}"),
            CgroupDriver::Systemd => format!("{pod}/docker-{id}.scope"),
        }
    }
}

/// What all pods of the node have together: the limits of `kubepods` (`getCgroupConfigInternal` of
/// `pkg/kubelet/cm/node_container_manager_linux.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodsLimits {
    /// Relative CPU weight (v1 shares).
    pub cpu_shares: i64,
    /// Memory limit in bytes; `None` for no limit.
    pub memory: Option<i64>,
    /// Process limit; `None` for none.
    pub pids: Option<i64>,
}

impl PodsLimits {
    /// Whether anything is kept from pods.
    pub fn are_enforced(&self) -> bool {
        self.memory.is_some() || self.pids.is_some()
    }
}

/// A pod's cgroup with its limits (ResourceConfigForPod). Limits are set only where every container has one, or
/// `spec.resources` does.
pub fn pod_cgroup(pod: &Pod, node: &NodeFacts) -> PodCgroup {
    let spec = pod.spec();
    let qos = qos(spec);
    let limit = |name| if qos == Qos::BestEffort { None } else { resources::pod_limit(spec, name) };
    let request = if qos == Qos::BestEffort { 0 } else { resources::pod_request(spec, "cpu") };
    let quota = |period| limit("cpu").map(|milli| resources::milli_cpu_to_quota(milli, period));
    PodCgroup {
        uid: pod.id.uid.clone(),
        qos,
        cpu_shares: resources::milli_cpu_to_shares(request),
        cpu_quota: node.cpu_quota_period.and_then(quota),
        cpu_period: node.cpu_quota_period.unwrap_or(resources::QUOTA_PERIOD),
        memory: limit("memory"),
        pids: node.pod_pids_limit,
        huge_pages: of_huge_pages(spec, node),
    }
}

/// The cgroup that a pod's containers are put in, as the runtime is told it: a path below the root, or a slice's name.
pub fn parent(pod: &Pod, node: &NodeFacts) -> String {
    let cgroup = pod_cgroup(pod, node);
    match node.cgroup_driver {
        CgroupDriver::Cgroupfs => cgroup.path(CgroupDriver::Cgroupfs),
        CgroupDriver::Systemd => cgroup.systemd_slice(),
    }
}

/// The path of a pod's cgroup below the root of a hierarchy.
pub fn path(uid: &str, spec: &v1::PodSpec, driver: CgroupDriver) -> String {
    PodCgroup {
        uid: uid.to_owned(),
        qos: qos(spec),
        cpu_shares: 0,
        cpu_quota: None,
        cpu_period: resources::QUOTA_PERIOD,
        memory: None,
        pids: None,
        huge_pages: Vec::new(),
    }
    .path(driver)
}

/// None but what is requested, which is also the limit (`maybeSetHugetlb`).
fn of_huge_pages(spec: &v1::PodSpec, node: &NodeFacts) -> Vec<(&'static str, i64)> {
    let sizes = node.huge_pages.keys().filter_map(|name| huge_pages::of_resource(name));
    sizes.map(|size| (size.kernel, resources::pod_request(spec, size.resource))).collect()
}

/// The class of a pod: of `spec.resources` where that is set, else of its containers. As `ComputePodQOS` of
/// `pkg/apis/core/v1/helper/qos`: an amount of zero is none, but what is not asked for is the limit by default.
pub fn qos(spec: &v1::PodSpec) -> Qos {
    let pod_level = spec.resources.as_ref().filter(|resources| {
        let lists = [resources.requests.as_ref(), resources.limits.as_ref()];
        lists.into_iter().flatten().any(|list| list.contains_key("cpu") || list.contains_key("memory"))
    });
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let lists: Vec<_> = match pod_level {
        Some(_) => vec![pod_level],
        None => containers.map(|container| container.resources.as_ref()).collect(),
    };
    let mut any = false;
    let mut all = true;
    for resources in lists {
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        for name in ["cpu", "memory"] {
            let (limit, request) = (resources::amount(limits, name), resources::amount(requests, name));
            any |= limit.is_some() || request.is_some();
            let is_asked_for = requests.is_some_and(|requests| requests.contains_key(name));
            all &= limit.is_some() && (request == limit || !is_asked_for);
        }
    }
    match (any, all) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
