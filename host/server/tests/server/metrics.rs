//! Pages of metrics: what is counted.

use crate::answers::master;
use crate::world::{Caller, World, plain};

/// The page, without its head.
async fn page(world: &World, path: &str) -> String {
    let answer = world.get("t", path).await;
    assert_eq!(answer.code, 200, "{path}: {answer:?}");
    answer.text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// As component-base has it: what `/healthz` looks at counts, on whichever port; a look at a single check does not.
#[tokio::test]
async fn checks_of_health_are_counted() {
    let world = master(|_| {}).await;
    assert_eq!(page(&world, "/metrics/slis").await, "", "nobody asked yet");
    assert_eq!(plain(world.healthz, "/healthz").await.code, 200);
    *world.pods.sick.lock().unwrap() = Some("a worker stands still".to_owned());
    assert_eq!(plain(world.read_only, "/healthz?exclude=log").await.code, 500);
    for (path, code) in [("/healthz", 500), ("/healthz/ping", 200), ("/healthz/syncloop", 500)] {
        assert_eq!(world.get("t", path).await.code, code, "{path}");
    }
    let wanted = "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n\
                  # TYPE kubernetes_healthcheck gauge\n\
                  kubernetes_healthcheck{name=\"log\",type=\"healthz\"} 1\n\
                  kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n\
                  kubernetes_healthcheck{name=\"syncloop\",type=\"healthz\"} 0\n\
                  # HELP kubernetes_healthchecks_total [STABLE] This metric records the results of all healthcheck.\n\
                  # TYPE kubernetes_healthchecks_total counter\n\
                  kubernetes_healthchecks_total{name=\"log\",status=\"success\",type=\"healthz\"} 2\n\
                  kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 3\n\
                  kubernetes_healthchecks_total{name=\"syncloop\",status=\"error\",type=\"healthz\"} 2\n\
                  kubernetes_healthchecks_total{name=\"syncloop\",status=\"success\",type=\"healthz\"} 1\n";
    assert_eq!(page(&world, "/metrics/slis").await, wanted);
    assert_eq!(world.ask(&Caller::token("t"), "DELETE", "/metrics/slis").await.code, 200);
    assert_eq!(page(&world, "/metrics/slis").await, "");
}
