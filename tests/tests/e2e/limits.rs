//! Limits of local storage: pods that take more of the node's disk than they may are evicted, and told why.

use serde_json::{Value, json};

use crate::bed::{
    Bed,
    pods::{SLEEP, condition, container, phase, pod, with},
};

/// A container that runs a script and then sleeps, and may take so much.
fn limited(name: &str, limit: &str, script: &str) -> Value {
    let limits = json!({"resources": {"limits": {"ephemeral-storage": limit}}});
    with(container(name, &format!("{script}; {SLEEP}")), limits)
}

#[test]
fn limits_of_storage_evict_the_pod() {
    let Some(bed) = Bed::start() else { return };
    let write = |place: &str| format!("dd if=/dev/zero of={place} bs=1M count=5 2>/dev/null");
    let spare = limited("spare", "1Gi", "true");
    bed.apply(&pod("layer", json!([limited("app", "3Mi", &write("/big")), spare]), json!({})));
    let line = "x".repeat(1000);
    let talk = format!("i=0; while [ $i -lt 5000 ]; do echo {line}; i=$((i+1)); done");
    bed.apply(&pod("logs", json!([limited("app", "3Mi", &talk), spare]), json!({})));
    let mounts = json!({"volumeMounts": [{"name": "e", "mountPath": "/e"}]});
    let app = with(limited("app", "3Mi", &write("/e/big")), mounts);
    bed.apply(&pod("volume", json!([app]), json!({"volumes": [{"name": "e", "emptyDir": {}}]})));
    bed.apply(&pod("modest", json!([limited("app", "64Mi", &write("/big"))]), json!({})));
    let container = "Container app exceeded its local ephemeral storage limit \"3Mi\". ";
    let whole = "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. ";
    for (name, message) in [("layer", container), ("logs", container), ("volume", whole)] {
        let limit = std::time::Duration::from_secs(60);
        let ended = bed.wait_for(name, "evicted", limit, |pod| phase(pod) == "Failed");
        assert_eq!((&ended["status"]["reason"], &ended["status"]["message"]), (&json!("Evicted"), &json!(message)));
        bed.wait_event(name, "Evicted", message.split('"').next().unwrap_or_default());
        assert!(!condition(&ended, "DisruptionTarget"), "its own doing");
    }
    let modest = bed.wait_ready("modest");
    assert_eq!(phase(&modest), "Running");
}
