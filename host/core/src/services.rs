//! The variables that tell a container of the services around it.
//!
//! As `getServiceEnvVarMap` in `pkg/kubelet/kubelet_pods.go` and `pkg/kubelet/envvars/envvars.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1;

/// Variables of the services that [`crate::ports::objects::ObjectStore::services`] gives for the pod's namespace:
/// without `links` (`enableServiceLinks: false`) only those of `kubernetes` in `default`, whose place one of that name in the
/// namespace takes otherwise, if it has an address.
pub fn variables(services: &[Arc<v1::Service>], links: bool) -> BTreeMap<String, String> {
    let mut seen: BTreeMap<&str, (&str, &[v1::ServicePort])> = BTreeMap::new();
    for service in services {
        let metadata = &service.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        let master = name == "kubernetes" && metadata.namespace.as_deref() == Some("default");
        let Some(spec) = service.spec.as_ref().filter(|_| links || master) else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !matches!(*ip, "" | "None")) else { continue };
        let told = (ip, spec.ports.as_deref().unwrap_or_default());
        if master {
            seen.entry(name).or_insert(told);
        } else {
            seen.insert(name, told);
        }
    }
    let mut variables = BTreeMap::new();
    for (name, (ip, ports)) in seen {
        add(&mut variables, name, ip, ports);
    }
    variables
}

fn add(variables: &mut BTreeMap<String, String>, name: &str, ip: &str, ports: &[v1::ServicePort]) {
    let prefix = upper(name);
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let mut set = |name: String, value: &str| variables.insert(name, value.to_owned());
    set(format!("{prefix}_SERVICE_HOST"), ip);
    for (index, port) in ports.iter().enumerate() {
        let number = port.port.to_string();
        if index == 0 {
            set(format!("{prefix}_SERVICE_PORT"), &number);
        }
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            set(format!("{prefix}_SERVICE_PORT_{}", upper(name)), &number);
        }
        // What Docker's links gave.
        let protocol = port.protocol.as_deref().filter(|protocol| !protocol.is_empty()).unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let url = format!("{lower}://{host}:{number}");
        if index == 0 {
            set(format!("{prefix}_PORT"), &url);
        }
        let link = format!("{prefix}_PORT_{number}_{}", protocol.to_uppercase());
        set(link.clone(), &url);
        set(format!("{link}_PROTO"), &lower);
        set(format!("{link}_PORT"), &number);
        set(format!("{link}_ADDR"), ip);
    }
}

fn upper(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str, name: &str, spec: &str) -> Arc<v1::Service> {
        let metadata = format!("metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n");
        Arc::new(serde_saphyr::from_str(&metadata).expect("a service"))
    }

    #[test]
    fn a_service_is_told_in_both_ways() {
        let ports = "{clusterIP: 10.0.0.7, ports: [{port: 80, name: web-1}, {port: 53, name: dns, protocol: UDP}]}";
        let services = [
            service("n", "my-db", ports),
            service("n", "headless", "{clusterIP: None, ports: [{port: 1}]}"),
            service("default", "kubernetes", "{clusterIP: \"fd00::1\", ports: [{port: 443, name: https}]}"),
        ];
        let all = variables(&services, true);
        let text = all.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("\n");
        insta::assert_snapshot!(text, @r"
        KUBERNETES_PORT=tcp://[fd00::1]:443
        KUBERNETES_PORT_443_TCP=tcp://[fd00::1]:443
        KUBERNETES_PORT_443_TCP_ADDR=fd00::1
        KUBERNETES_PORT_443_TCP_PORT=443
        KUBERNETES_PORT_443_TCP_PROTO=tcp
        KUBERNETES_SERVICE_HOST=fd00::1
        KUBERNETES_SERVICE_PORT=443
        KUBERNETES_SERVICE_PORT_HTTPS=443
        MY_DB_PORT=tcp://10.0.0.7:80
        MY_DB_PORT_53_UDP=udp://10.0.0.7:53
        MY_DB_PORT_53_UDP_ADDR=10.0.0.7
        MY_DB_PORT_53_UDP_PORT=53
        MY_DB_PORT_53_UDP_PROTO=udp
        MY_DB_PORT_80_TCP=tcp://10.0.0.7:80
        MY_DB_PORT_80_TCP_ADDR=10.0.0.7
        MY_DB_PORT_80_TCP_PORT=80
        MY_DB_PORT_80_TCP_PROTO=tcp
        MY_DB_SERVICE_HOST=10.0.0.7
        MY_DB_SERVICE_PORT=80
        MY_DB_SERVICE_PORT_DNS=53
        MY_DB_SERVICE_PORT_WEB_1=80
        ");
        assert!(variables(&services, false).keys().all(|name| name.starts_with("KUBERNETES_")));
    }

    #[test]
    fn a_namespaces_own_kubernetes_takes_the_place_of_the_other_where_it_can() {
        let master = service("default", "kubernetes", "{clusterIP: 10.0.0.1, ports: [{port: 443, name: https}]}");
        let host = |own: &str, links: bool| {
            let services = [service("n", "kubernetes", own), master.clone()];
            let all = variables(&services, links);
            (all["KUBERNETES_SERVICE_HOST"].clone(), all.contains_key("KUBERNETES_SERVICE_PORT_HTTPS"))
        };
        let own = "{clusterIP: 10.0.0.2, ports: [{port: 80}]}";
        assert_eq!(host(own, true), ("10.0.0.2".to_owned(), false), "as a whole");
        assert_eq!(host(own, false), ("10.0.0.1".to_owned(), true));
        assert_eq!(host("{clusterIP: None, ports: [{port: 80}]}", true), ("10.0.0.1".to_owned(), true));
    }
}
