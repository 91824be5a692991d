//! Probes and lifecycle hooks.

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Errors, names};

/// A container's three probes.
pub(super) fn check(container: &v1::Container, path: &str, errors: &mut Errors) {
    if let Some(probe) = &container.liveness_probe {
        check_probe(probe, &format!("{path}.livenessProbe"), errors);
        only_one_success(probe, &format!("{path}.livenessProbe"), errors);
    }
    if let Some(probe) = &container.readiness_probe {
        let path = format!("{path}.readinessProbe");
        check_probe(probe, &path, errors);
        if let Some(grace) = probe.termination_grace_period_seconds {
            let path = format!("{path}.terminationGracePeriodSeconds");
            errors.invalid(path, grace, "must not be set for readinessProbes");
        }
    }
    if let Some(probe) = &container.startup_probe {
        check_probe(probe, &format!("{path}.startupProbe"), errors);
        only_one_success(probe, &format!("{path}.startupProbe"), errors);
    }
}

fn only_one_success(probe: &v1::Probe, path: &str, errors: &mut Errors) {
    if let Some(threshold) = probe.success_threshold.filter(|threshold| *threshold != 1) {
        errors.invalid(format!("{path}.successThreshold"), threshold, "must be 1");
    }
}

fn check_probe(probe: &v1::Probe, path: &str, errors: &mut Errors) {
    let handlers = [
        ("exec", probe.exec.is_some()),
        ("httpGet", probe.http_get.is_some()),
        ("tcpSocket", probe.tcp_socket.is_some()),
        ("grpc", probe.grpc.is_some()),
    ];
    exactly_one(&handlers, path, errors);
    check_handler(probe.exec.as_ref(), probe.http_get.as_ref(), probe.tcp_socket.as_ref(), path, errors);
    if let Some(grpc) = &probe.grpc
        && let Some(detail) = names::port_number(grpc.port)
    {
        errors.invalid(format!("{path}.grpc.port"), grpc.port, detail);
    }
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        errors.non_negative(format!("{path}.{field}"), value.map(i64::from));
    }
    if let Some(grace) = probe.termination_grace_period_seconds.filter(|grace| *grace <= 0) {
        errors.invalid(format!("{path}.terminationGracePeriodSeconds"), grace, "must be greater than 0");
    }
}

fn exactly_one(handlers: &[(&str, bool)], path: &str, errors: &mut Errors) {
    let given: Vec<&str> = handlers.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    if given.is_empty() {
        let names: Vec<&str> = handlers.iter().map(|(name, _)| *name).collect();
        errors.required(path, &format!("must specify a handler type: one of {}", names.join(", ")));
    }
    for name in given.iter().skip(1) {
        errors.forbidden(format!("{path}.{name}"), "may not specify more than 1 handler type");
    }
}

fn check_handler(
    exec: Option<&v1::ExecAction>,
    http: Option<&v1::HTTPGetAction>,
    tcp: Option<&v1::TCPSocketAction>,
    path: &str,
    errors: &mut Errors,
) {
    if exec.is_some_and(|exec| exec.command.as_ref().is_none_or(Vec::is_empty)) {
        errors.required(format!("{path}.exec.command"), "");
    }
    if let Some(http) = http {
        let path = format!("{path}.httpGet");
        if http.path.as_deref().unwrap_or_default().is_empty() {
            errors.required(format!("{path}.path"), "");
        }
        check_port(&http.port, &format!("{path}.port"), errors);
        errors.one_of(format!("{path}.scheme"), http.scheme.as_deref().unwrap_or("HTTP"), &["HTTP", "HTTPS"]);
        for (index, header) in http.http_headers.iter().flatten().enumerate() {
            let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if header.name.is_empty() || !header.name.bytes().all(token) {
                let path = format!("{path}.httpHeaders[{index}].name");
                errors.invalid(
                    path,
                    &header.name,
                    "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name')",
                );
            }
            if header.value.contains(['\r', '\n', '\0']) {
                errors.invalid(format!("{path}.httpHeaders[{index}].value"), &header.value, "must be one line");
            }
        }
    }
    if let Some(tcp) = tcp {
        check_port(&tcp.port, &format!("{path}.tcpSocket.port"), errors);
    }
}

fn check_port(port: &IntOrString, path: &str, errors: &mut Errors) {
    match port {
        IntOrString::Int(number) => {
            if let Some(detail) = names::port_number(*number) {
                errors.invalid(path, number, detail);
            }
        }
        IntOrString::String(name) => errors.required_form(path, name, names::port_name),
    }
}

/// The hooks of a container; a sleep must end before the pod's grace does.
pub(super) fn check_lifecycle(lifecycle: &v1::Lifecycle, path: &str, grace: i64, errors: &mut Errors) {
    for (field, handler) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        let Some(handler) = handler else { continue };
        let path = format!("{path}.{field}");
        let handlers = [
            ("exec", handler.exec.is_some()),
            ("httpGet", handler.http_get.is_some()),
            ("tcpSocket", handler.tcp_socket.is_some()),
            ("sleep", handler.sleep.is_some()),
        ];
        exactly_one(&handlers, &path, errors);
        check_handler(handler.exec.as_ref(), handler.http_get.as_ref(), handler.tcp_socket.as_ref(), &path, errors);
        if let Some(sleep) = &handler.sleep
            && (sleep.seconds < 0 || sleep.seconds > grace)
        {
            let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            errors.invalid(format!("{path}.sleep.seconds"), sleep.seconds, detail);
        }
    }
}
