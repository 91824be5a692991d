//! What a person is told of the cluster that runs. Must not start anything.

use std::{net::IpAddr, path::PathBuf};

use crate::say;

/// Where things are.
#[derive(Clone, Debug)]
pub(crate) struct Guide {
    /// kubectl of the cluster's version.
    pub kubectl: PathBuf,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// What another node joins with, and the CA of who may use its server; none when it would have to run in a world of
    /// its own.
    pub bootstrap: Option<(PathBuf, PathBuf)>,
    /// Where the API server can reach nodes.
    pub address: IpAddr,
    /// Docker's address.
    pub docker: String,
    /// The folder of all logs.
    pub logs: PathBuf,
    /// The cluster's folder.
    pub folder: PathBuf,
    /// Whether there is a node.
    pub node: bool,
}

/// Prints it.
pub(crate) fn print(guide: &Guide) {
    let folder = guide.kubectl.parent().map(|folder| folder.display().to_string()).unwrap_or_default();
    say!("");
    say!("export KUBECONFIG={}", guide.kubeconfig.display());
    say!("export PATH={folder}:$PATH   # kubectl of this version");
    say!("export DOCKER_HOST={}", guide.docker);
    say!("");
    if guide.node {
        say!("Try, for instance:");
        for line in [
            "kubectl get nodes -o wide",
            "kubectl create deployment web --image=longshore.dev/example:1 --replicas=3 -- httpd -f -p 8080 -h /www",
            "kubectl get pods -o wide --watch",
            "kubectl scale deployment web --replicas=10",
            "kubectl set image deployment web example=longshore.dev/busybox:1",
            "kubectl rollout undo deployment web",
            "kubectl logs -f deployment/web",
            "kubectl exec -it deployment/web -- sh",
            "kubectl port-forward deployment/web 8080",
            "kubectl get events --sort-by=.lastTimestamp",
            "kubectl describe node node-1",
        ] {
            say!("  {line}");
        }
        say!("");
        say!("  static pods      {}", guide.folder.join("manifests").display());
        say!("  the node's state {}", guide.folder.join("node").display());
    }
    if let Some((bootstrap, client_ca)) = &guide.bootstrap {
        say!("Let another node join:");
        say!("  longshore run --bootstrap-kubeconfig {} --kubeconfig FILE --root-dir FOLDER \\", bootstrap.display());
        say!("    --rotate-server-certificates --client-ca-file {} \\", client_ca.display());
        say!("    --node-ip {} --port 10260 --hostname-override NAME", guide.address);
        say!("");
    }
    say!("  logs             {}", guide.logs.display());
    say!("  requests of nodes, one a line: {}", guide.folder.join("audit.log").display());
    say!("");
    say!("Ctrl-C ends it and removes all of it.");
}
