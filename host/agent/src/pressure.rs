//! From the configuration to what the loops of eviction and collection go by, and to what all pods may have together.

use anyhow::bail;
use longshore_core::cgroup::PodsLimits;
use longshore_core::collect;
use longshore_core::node::NodeFacts;
use longshore_core::resources::milli_cpu_to_shares;
use longshore_reconcile::{collection, eviction};

use crate::config::{Config, Reserved};
use crate::facts;

/// When pods are evicted.
pub(crate) fn eviction(config: &Config, facts: &NodeFacts) -> eviction::Options {
    let pods_memory = facts.memory_capacity.saturating_sub(config.reserved.memory);
    eviction::Options {
        policy: config.eviction.clone(),
        pods_memory: config.resources.enforce_allocatable.then_some(pods_memory),
        ..eviction::Options::default()
    }
}

/// What all pods may have together. A machine of no cluster is somebody's own: there nothing is kept from pods unless
/// something is reserved.
pub(crate) fn pods_limits(config: &Config, facts: &NodeFacts) -> anyhow::Result<PodsLimits> {
    let reserved = config.reserved;
    let asked = config.joining.in_cluster() || reserved != Reserved::default();
    if !config.resources.enforce_allocatable || !asked {
        let capacity = facts.allocatable_milli_cpu.saturating_add(reserved.milli_cpu);
        return Ok(PodsLimits { cpu_shares: milli_cpu_to_shares(capacity), memory: None, pids: None });
    }
    let most = facts::most_pids();
    if let Some(most) = most.filter(|most| reserved.pids >= *most) {
        bail!("the reserved process IDs ({}) leave none of the machine's ({most}) to pods", reserved.pids);
    }
    Ok(PodsLimits {
        cpu_shares: milli_cpu_to_shares(facts.allocatable_milli_cpu),
        memory: Some(facts.memory_capacity.saturating_sub(reserved.memory)),
        pids: most.map(|most| most - reserved.pids),
    })
}

/// When images are removed. A machine of no cluster is somebody's own, with images that may be nowhere else: there they
/// are removed only where it was asked for.
pub(crate) fn images(config: &Config) -> collection::Options {
    let limits = &config.resources;
    collection::Options {
        policy: collect::Policy {
            high_percent: limits.image_gc_high_percent,
            low_percent: limits.image_gc_low_percent,
            minimum_age: limits.image_minimum_age,
            maximum_age: limits.image_maximum_age,
        },
        enabled: config.joining.in_cluster() || limits.image_gc_asked,
        ..collection::Options::default()
    }
}
