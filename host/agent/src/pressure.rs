//! From the configuration to what the loops of eviction and collection go by.

use longshore_core::collect;
use longshore_core::node::NodeFacts;
use longshore_reconcile::{collection, eviction};

use crate::config::Config;

/// When pods are evicted.
pub(crate) fn eviction(config: &Config, facts: &NodeFacts) -> eviction::Options {
    let pods_memory = facts.memory_capacity.saturating_sub(config.reserved.memory);
    eviction::Options {
        policy: config.eviction.clone(),
        pods_memory: config.resources.enforce_allocatable.then_some(pods_memory),
        ..eviction::Options::default()
    }
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
