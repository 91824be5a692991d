//! What pods are told of themselves: fields and resources.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ResourceFieldSelector;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::*;
use crate::testing::{node, pod_from};

fn labelled() -> Pod {
    let mut pod = pod_from("{containers: [{name: app}], serviceAccountName: robot}");
    let object = Arc::make_mut(&mut pod.object);
    let map = |entries: &[(&str, &str)]| entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    object.metadata.labels = Some(map(&[("tier", "web"), ("app.kubernetes.io/name", "x")]));
    object.metadata.annotations = Some(map(&[("note", "a \"quoted\"\nline\twith \u{1} and é")]));
    pod
}

#[test]
fn every_field() {
    let pod = labelled();
    let ips: Vec<IpAddr> = ["10.0.0.5", "fd00::5"].map(|ip| ip.parse().unwrap()).to_vec();
    let hosts: Vec<IpAddr> = ["192.168.1.10", "fd01::1"].map(|ip| ip.parse().unwrap()).to_vec();
    let cases = [
        ("metadata.name", "pod"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "uid"),
        ("metadata.labels", "app.kubernetes.io/name=\"x\"\ntier=\"web\""),
        ("metadata.annotations", "note=\"a \\\"quoted\\\"\\nline\\twith \\x01 and é\""),
        ("metadata.labels['tier']", "web"),
        ("metadata.labels['app.kubernetes.io/name']", "x"),
        ("metadata.labels['absent']", ""),
        ("metadata.annotations['note']", "a \"quoted\"\nline\twith \u{1} and é"),
        ("spec.nodeName", "node-1"),
        ("spec.serviceAccountName", "robot"),
        ("status.hostIP", "192.168.1.10"),
        ("status.hostIPs", "192.168.1.10,fd01::1"),
        ("status.podIP", "10.0.0.5"),
        ("status.podIPs", "10.0.0.5,fd00::5"),
    ];
    for (path, expected) in cases {
        assert_eq!(field(&pod, &node(), &ips, &hosts, path).as_deref(), Ok(expected), "{path}");
    }
    for path in ["spec.restartPolicy", "metadata.name['x']", "", "['x']", "metadata"] {
        assert!(field(&pod, &node(), &ips, &hosts, path).is_err(), "{path}");
    }
}

#[test]
fn addresses_follow_the_node_family_and_network() {
    let pod = labelled();
    let given: Vec<IpAddr> = ["fd00::5", "fd00::6", "10.0.0.5"].map(|ip| ip.parse().unwrap()).to_vec();
    let shown = |node: &NodeFacts| pod_addresses(&pod, node, &given).iter().map(IpAddr::to_string).collect::<Vec<_>>();
    assert_eq!(shown(&node()), ["10.0.0.5", "fd00::5"]);
    let mut v6 = node();
    v6.ips = vec!["fd01::1".parse().unwrap()];
    assert_eq!(shown(&v6), ["fd00::5", "10.0.0.5"]);
    let host = pod_from("{hostNetwork: true, containers: [{name: app}]}");
    assert_eq!(field(&host, &node(), &[], &[], "status.podIP").as_deref(), Ok("192.168.1.10"));
    assert_eq!(field(&pod, &node(), &[], &[], "status.podIP").as_deref(), Ok(""));
}

#[test]
fn resources_are_divided_and_rounded_up() {
    let pod = pod_from(
        "{containers: [
          {name: app, resources:
            {limits: {cpu: 1500m, memory: 100Mi}, requests: {cpu: 250m, ephemeral-storage: 1Gi}}},
          {name: bare}],
         initContainers: [{name: first, resources: {limits: {cpu: '2'}}}]}",
    );
    let own = &pod.spec().containers[0];
    let value = |resource: &str, container: &str, divisor: &str| {
        let selector = ResourceFieldSelector {
            resource: resource.to_owned(),
            container_name: Some(container.to_owned()).filter(|name| !name.is_empty()),
            divisor: Some(Quantity(divisor.to_owned())).filter(|divisor| !divisor.0.is_empty()),
        };
        super::resource(&pod, &node(), Some(own), &selector)
    };
    let cases = [
        ("limits.cpu", "", "", "2"),
        ("limits.cpu", "", "1m", "1500"),
        ("limits.cpu", "", "0", "2"),
        ("requests.cpu", "", "", "1"),
        ("requests.cpu", "", "1m", "250"),
        ("limits.memory", "", "1Mi", "100"),
        ("limits.memory", "", "1Gi", "1"),
        ("limits.memory", "", "", "104857600"),
        ("requests.memory", "", "1Mi", "100"),
        ("requests.ephemeral-storage", "", "1Mi", "1024"),
        ("limits.cpu", "bare", "", "4"),
        ("limits.memory", "bare", "1Gi", "8"),
        ("limits.ephemeral-storage", "bare", "1Gi", "100"),
        ("requests.cpu", "bare", "", "0"),
        ("limits.cpu", "first", "", "2"),
        ("requests.cpu", "first", "", "2"),
        ("limits.hugepages-2Mi", "", "", "0"),
    ];
    for (resource, container, divisor, expected) in cases {
        assert_eq!(value(resource, container, divisor).as_deref(), Ok(expected), "{resource} {container} {divisor}");
    }
    assert_eq!(value("limits.cpu", "nobody", ""), Err("container nobody not found".to_owned()));
    assert!(value("limits.pods", "", "").is_err());
    assert!(value("cpu", "", "").is_err());
    assert!(value("limits.cpu", "", "many").is_err());
}

#[test]
fn the_pods_own_limit_goes_before_the_nodes() {
    let pod = pod_from("{resources: {limits: {cpu: '1'}}, containers: [{name: app}]}");
    let selector = ResourceFieldSelector { resource: "limits.cpu".to_owned(), ..Default::default() };
    let own = &pod.spec().containers[0];
    assert_eq!(super::resource(&pod, &node(), Some(own), &selector).as_deref(), Ok("1"));
    assert!(super::resource(&pod, &node(), None, &selector).is_err());
}
