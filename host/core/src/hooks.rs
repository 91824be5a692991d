//! Lifecycle hooks: what a container's `postStart` and `preStop` ask for.
//!
//! As `pkg/kubelet/lifecycle/handlers.go`. Says what to do; running it, and its time limit, is the loop's.

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::ports::probes::KUBERNETES_VERSION;

/// How a probe's message ends where https met a server that speaks plain HTTP, in Go's words.
pub const PLAIN_ANSWER: &str = "server gave HTTP response to HTTPS client";

/// What a hook does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A command in the container; never a shell line. `$(VAR)` is not expanded.
    Exec {
        /// The command and its arguments.
        command: Vec<String>,
    },
    /// A GET request; any answer is success.
    Http {
        /// `http` or `https`. An https hook that meets a plain server is repeated as http, see [`without_tls`].
        scheme: String,
        /// Where to; the pod's address where absent.
        host: Option<String>,
        /// Port, resolved against the container's ports.
        port: u16,
        /// Path with its query, beginning with `/`.
        path: String,
        /// Headers in order, with `User-Agent: kube-lifecycle/…` where the author gave none.
        headers: Vec<(String, String)>,
    },
    /// Waits.
    Sleep {
        /// How long, in seconds.
        seconds: u64,
    },
    /// A handler without an action: nothing is done.
    None,
    /// A handler that cannot be carried out, the user's to mend: the hook fails.
    Invalid {
        /// What is wrong.
        message: String,
    },
}

/// What is to be done after the container has started.
pub fn post_start(container: &v1::Container) -> Option<Hook> {
    container.lifecycle.as_ref()?.post_start.as_ref().map(|handler| hook(container, handler))
}

/// What is to be done before the container is stopped.
pub fn pre_stop(container: &v1::Container) -> Option<Hook> {
    container.lifecycle.as_ref()?.pre_stop.as_ref().map(|handler| hook(container, handler))
}

fn hook(container: &v1::Container, handler: &v1::LifecycleHandler) -> Hook {
    if let Some(exec) = &handler.exec {
        Hook::Exec { command: exec.command.clone().unwrap_or_default() }
    } else if let Some(get) = &handler.http_get {
        http(container, get)
    } else if let Some(sleep) = &handler.sleep {
        Hook::Sleep { seconds: u64::try_from(sleep.seconds).unwrap_or(0) }
    } else if handler.tcp_socket.is_some() {
        Hook::Invalid {
            message: "tcpSocket is not supported as a lifecycle hook: use exec, httpGet or sleep".to_owned(),
        }
    } else {
        Hook::None
    }
}

fn http(container: &v1::Container, get: &v1::HTTPGetAction) -> Hook {
    let port = match port_number(container, &get.port) {
        Ok(port) => port,
        Err(message) => return Hook::Invalid { message },
    };
    let path = get.path.as_deref().unwrap_or_default();
    let headers = get.http_headers.iter().flatten();
    let mut headers: Vec<_> = headers.map(|header| (header.name.clone(), header.value.clone())).collect();
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("User-Agent")) {
        headers.push(("User-Agent".to_owned(), format!("kube-lifecycle/{KUBERNETES_VERSION}")));
    }
    Hook::Http {
        scheme: get.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase(),
        host: get.host.clone().filter(|host| !host.is_empty()),
        port,
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        headers,
    }
}

/// The hook once more without TLS, where its message says that it met a server that speaks none
/// (`isHTTPResponseError`); what the author has to say in secret is left out.
pub fn without_tls(hook: &Hook, message: &str) -> Option<Hook> {
    let Hook::Http { scheme, host, port, path, headers } = hook else { return None };
    if scheme != "https" || !message.contains(PLAIN_ANSWER) {
        return None;
    }
    let headers = headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("Authorization"));
    Some(Hook::Http {
        scheme: "http".to_owned(),
        host: host.clone(),
        port: *port,
        path: path.clone(),
        headers: headers.cloned().collect(),
    })
}

/// The number of a port that is given as such, as text, or by the name of one of the container's ports.
pub fn port_number(container: &v1::Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(text) => match text.parse::<i64>() {
            Ok(number) => number,
            Err(_) => {
                let mut ports = container.ports.iter().flatten();
                let found = ports.find(|port| port.name.as_deref() == Some(text));
                let found = found.ok_or_else(|| format!("container {:?} has no port {text:?}", container.name))?;
                i64::from(found.container_port)
            }
        },
    };
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| format!("port {number} is not in 1 … 65535"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(lifecycle: serde_json::Value) -> v1::Container {
        serde_json::from_value(json!({
            "name": "web",
            "ports": [{"name": "http", "containerPort": 8080}],
            "lifecycle": lifecycle,
        }))
        .unwrap()
    }

    #[test]
    fn absent_hooks_are_none() {
        assert_eq!(post_start(&container(json!({}))), None);
        assert_eq!(pre_stop(&v1::Container::default()), None);
        assert_eq!(pre_stop(&container(json!({"preStop": {}}))), Some(Hook::None));
    }

    #[test]
    fn each_action() {
        let both = container(json!({
            "postStart": {"exec": {"command": ["sh", "-c", "true"]}},
            "preStop": {"sleep": {"seconds": 5}},
        }));
        let command = ["sh", "-c", "true"].map(str::to_owned).to_vec();
        assert_eq!(post_start(&both), Some(Hook::Exec { command }));
        assert_eq!(pre_stop(&both), Some(Hook::Sleep { seconds: 5 }));
        let get = container(json!({"preStop": {"httpGet": {
            "port": "http", "path": "bye?now=1", "scheme": "HTTPS", "httpHeaders": [{"name": "A", "value": "b"}],
        }}}));
        assert_eq!(
            pre_stop(&get),
            Some(Hook::Http {
                scheme: "https".to_owned(),
                host: None,
                port: 8080,
                path: "/bye?now=1".to_owned(),
                headers: vec![
                    ("A".to_owned(), "b".to_owned()),
                    ("User-Agent".to_owned(), "kube-lifecycle/1.37".to_owned()),
                ],
            })
        );
    }

    #[test]
    fn https_that_meets_a_plain_server_is_http_and_tells_it_no_secrets() {
        let hook = |scheme: &str| {
            let headers = json!([{"name": "authorization", "value": "secret"}, {"name": "user-agent", "value": "me"}]);
            let get = json!({"port": 80, "scheme": scheme, "httpHeaders": headers});
            pre_stop(&container(json!({"preStop": {"httpGet": get}}))).unwrap()
        };
        let plain = "Get \"https://10.0.0.1:80/\": http: server gave HTTP response to HTTPS client";
        let Some(Hook::Http { scheme, headers, .. }) = without_tls(&hook("HTTPS"), plain) else {
            panic!("no fallback")
        };
        assert_eq!((scheme.as_str(), headers), ("http", vec![("user-agent".to_owned(), "me".to_owned())]));
        assert_eq!(without_tls(&hook("HTTPS"), "connection refused"), None);
        assert_eq!(without_tls(&hook("HTTP"), plain), None);
        assert_eq!(without_tls(&Hook::None, plain), None);
    }

    #[test]
    fn ports_that_cannot_be_resolved_are_said() {
        let hook = |port: serde_json::Value| {
            let get = container(json!({"preStop": {"httpGet": {"port": port}}}));
            match pre_stop(&get) {
                Some(Hook::Http { port, .. }) => Ok(port),
                Some(Hook::Invalid { message }) => Err(message),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(hook(json!(80)), Ok(80));
        assert_eq!(hook(json!("81")), Ok(81));
        assert_eq!(hook(json!("http")), Ok(8080));
        assert_eq!(hook(json!("admin")), Err("container \"web\" has no port \"admin\"".to_owned()));
        assert!(hook(json!(70000)).is_err());
        assert!(hook(json!(0)).is_err());
    }

    #[test]
    fn tcp_is_refused() {
        let tcp = container(json!({"preStop": {"tcpSocket": {"port": 1}}}));
        assert!(matches!(pre_stop(&tcp), Some(Hook::Invalid { .. })));
    }
}
