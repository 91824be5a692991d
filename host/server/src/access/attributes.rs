//! What a request asks for in the words of RBAC (`pkg/kubelet/server/auth.go` of 1.36). It must not ask anybody.

/// The verb of a method; `""` for one that RBAC has no word for, as HEAD.
pub(crate) fn verb(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// The subresources of `nodes` of which one has to be allowed, in the order in which they are tried.
pub(crate) fn subresources(path: &str) -> &'static [&'static str] {
    // A path that is not in its plain form is nothing that we serve: it gets the broadest right.
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return &["proxy"];
    }
    match path.strip_prefix('/').and_then(|path| path.split('/').next()) {
        Some("stats") => &["stats"],
        Some("metrics") => &["metrics"],
        Some("logs") => &["log"],
        Some("checkpoint") => &["checkpoint"],
        Some("statusz") => &["statusz"],
        Some("flagz") => &["configz"],
        Some("pods" | "runningpods") => &["pods", "proxy"],
        Some("healthz") => &["healthz", "proxy"],
        Some("configz") => &["configz", "proxy"],
        _ => &["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_segments_count() {
        assert_eq!(subresources("/stats/summary"), ["stats"]);
        assert_eq!(subresources("/statsx"), ["proxy"]);
        assert_eq!(subresources("/pods/"), ["pods", "proxy"]);
        assert_eq!(subresources("/podsx"), ["proxy"]);
        assert_eq!(subresources("/logs"), ["log"]);
        assert_eq!(subresources("//stats"), ["proxy"]);
        assert_eq!(subresources("/stats/../exec/a/b/c"), ["proxy"]);
        assert_eq!(subresources("/containerLogs/a/b/c"), ["proxy"]);
        assert_eq!(verb(&http::Method::DELETE), "delete");
        assert_eq!(verb(&http::Method::HEAD), "");
    }
}
