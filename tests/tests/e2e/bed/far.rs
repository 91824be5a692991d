//! A machine beyond the node, as a network of its own that is joined to the node's: another node of the cluster with a pod,
//! and whatever is outside of the cluster. Only in a world, whose network is a test's to change.

use std::{
    fs,
    net::IpAddr,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU8, Ordering},
};

use super::until;

static COUNT: AtomicU8 = AtomicU8::new(1);

/// See the module. It ends when this is dropped, and all that joins it with it.
pub(crate) struct Far {
    child: Child,
    number: u8,
}

impl Far {
    /// `None`, with a line that says so, where the network is not a test's own.
    pub(crate) fn new() -> Option<Far> {
        if std::env::var_os("LONGSHORE_TEST_DOCKER_PID").is_none() {
            crate::bed::skip("it changes the node's network: run in `cargo xtask world -- COMMAND`");
            return None;
        }
        let mut command = Command::new("unshare");
        let child = command.args(["--net", "sleep", "1000000"]).stdin(Stdio::null()).spawn().unwrap();
        let far = Far { child, number: COUNT.fetch_add(1, Ordering::Relaxed) };
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        until("it has a network of its own", || {
            network(&far.pid()).filter(|other| network("self") != Some(other.clone()))
        });
        far.join();
        Some(far)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// The networks for pods of the cluster's node of that number, as `--pod-cidr` has them.
    pub(crate) fn pod_cidrs(&self, node: u8) -> String {
        let n = self.number;
        format!("10.{}.{node}.0/24,fd00:200:{n}:{node}::/64", 200 + n)
    }

    /// Of the pod on the other node, which is number 9.
    pub(crate) fn pod(&self, ipv4: bool) -> IpAddr {
        let n = self.number;
        if ipv4 { IpAddr::from([10, 200 + n, 9, 9]) } else { format!("fd00:200:{n}:9::9").parse().unwrap() }
    }

    /// Of what is outside of the cluster.
    pub(crate) fn outside(&self, ipv4: bool) -> IpAddr {
        let n = self.number;
        if ipv4 { IpAddr::from([198, 18, n, 2]) } else { format!("2001:db8:{n}::2").parse().unwrap() }
    }

    /// Of the node itself, as seen from there.
    pub(crate) fn node(&self, ipv4: bool) -> IpAddr {
        let n = self.number;
        if ipv4 { IpAddr::from([198, 18, n, 1]) } else { format!("2001:db8:{n}::1").parse().unwrap() }
    }

    fn join(&self) {
        let (n, pid) = (self.number, self.pid());
        ip(None, &format!("link add far{n} type veth peer name out{n}"));
        ip(None, &format!("link set out{n} netns {pid}"));
        let inside = Some(pid.as_str());
        for (place, device, ipv4, ipv6) in [
            (None, format!("far{n}"), self.node(true), self.node(false)),
            (inside, format!("out{n}"), self.outside(true), self.outside(false)),
        ] {
            ip(place, &format!("address add {ipv4}/24 dev {device}"));
            ip(place, &format!("address add {ipv6}/64 dev {device} nodad"));
            ip(place, &format!("link set {device} up"));
        }
        ip(inside, "link set lo up");
        for ipv4 in [true, false] {
            let (bits, network) = if ipv4 { (32, 24) } else { (128, 64) };
            let (pod, node, outside) = (self.pod(ipv4), self.node(ipv4), self.outside(ipv4));
            ip(inside, &format!("address add {pod}/{bits} dev lo nodad"));
            ip(inside, &format!("route add default via {node} src {pod}"));
            // As a cluster with routes between its nodes has them.
            let others =
                if ipv4 { pod.to_string().replace(".9.9", ".9.0") } else { pod.to_string().replace("::9", "::") };
            ip(None, &format!("route add {others}/{network} via {outside}"));
        }
    }
}

/// The program `ip`, here or in the network of a process.
fn ip(inside: Option<&str>, arguments: &str) {
    let mut command = match inside {
        None => Command::new("ip"),
        Some(pid) => {
            let mut command = Command::new("nsenter");
            command.args([&format!("--net=/proc/{pid}/ns/net"), "ip"]);
            command
        }
    };
    let output = command.args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
