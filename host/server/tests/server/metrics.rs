//! Pages of metrics: that they can be read, and what is counted.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use longshore_tests::prometheus;

use crate::answers::{accepting, master};
use crate::played::other;
use crate::world::{Caller, World, plain};

/// The page, without its head.
async fn page(world: &World, path: &str) -> String {
    let answer = world.get("t", path).await;
    assert_eq!(answer.code, 200, "{path}: {answer:?}");
    answer.text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Whatever a scraper would rather have, as every one reads it; also of names with all that has to be escaped, and of a pod
/// that ends beside its successor.
#[tokio::test]
async fn pages_are_in_prometheus_text_format() {
    let world = master(|_| {}).await;
    let image = "quotation\" mark, back\\slash and\nline";
    let mut odd = (*other("odd", "id-odd")).clone();
    odd.object.status.as_mut().unwrap().container_statuses.as_mut().unwrap()[0].image = image.to_owned();
    let mut ending = (*other("twin", "id-ending")).clone();
    ending.id.uid = "ending".to_owned();
    ending.object.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
    world.pods.others.lock().unwrap().extend([Arc::new(odd), Arc::new(ending), other("twin", "id-twin")]);
    assert_eq!(plain(world.healthz, "/healthz").await.code, 200);
    for (path, family) in [
        ("/metrics/cadvisor", "container_memory_working_set_bytes"),
        ("/metrics/probes", "prober_probe_duration_seconds"),
        ("/metrics/resource", "container_cpu_usage_seconds_total"),
        ("/metrics/slis", "kubernetes_healthchecks_total"),
    ] {
        for accept in [
            "*/*",
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
        ] {
            let answer = accepting(&world, path, accept).await;
            let (head, body) = answer.text.split_once("\r\n\r\n").unwrap();
            let kind = "\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8";
            assert!(answer.code == 200 && head.contains(kind), "{path} {accept}: {head}");
            let page = prometheus::read(body).unwrap_or_else(|why| panic!("{path}: {why}"));
            assert!(page.contains_key(family), "{path}: no {family} in {body}");
            if path == "/metrics/cadvisor" {
                let images = page[family].samples.iter().map(|sample| sample.labels["image"].as_str());
                assert_eq!(images.filter(|told| *told == image).count(), 1);
            }
        }
    }
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
