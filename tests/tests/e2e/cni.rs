//! Pods on networks that CNI plugins make: the real bridge, host-local and portmap, on folders of the test's own.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
};

use serde_json::{Value, json};

use crate::{
    bed::{
        Bed,
        pods::{container, id, is_ready, pod, restarts, sleeper, with},
        ports::free_port,
        until,
    },
    network::{WEB, fetch, web},
};

/// Where a world's node is reached.
const NODE_ADDRESS: &str = "192.0.2.10";

static COUNT: AtomicU8 = AtomicU8::new(1);

/// A bed whose agent uses plugins, and their folders.
pub(crate) struct Cni {
    pub(crate) bed: Bed,
    /// The third number of the pods' addresses.
    pub(crate) third: u8,
}

impl std::ops::Deref for Cni {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        &self.bed
    }
}

impl Cni {
    /// `None`, and a line that says so, where there are no plugins, or no network that they may change.
    pub(crate) fn new() -> Option<Cni> {
        Self::of("LONGSHORE_TEST_CNI")
    }

    /// The same with the plugins of the folder that this variable names.
    pub(crate) fn of(variable: &str) -> Option<Cni> {
        let Some(plugins) = std::env::var_os(variable).map(PathBuf::from) else {
            crate::bed::skip(&format!("{variable} is not set: run in `cargo xtask world -- COMMAND`"));
            return None;
        };
        let mut bed = Bed::new()?;
        for folder in ["net.d", "bin"] {
            fs::create_dir_all(bed.folder.join(folder)).unwrap();
        }
        let (conf, own, cache) = (bed.folder.join("net.d"), bed.folder.join("bin"), bed.folder.join("cache"));
        bed.flags = vec![
            "--network-plugin=cni".to_owned(),
            format!("--cni-conf-dir={}", conf.display()),
            format!("--cni-bin-dir={},{}", own.display(), plugins.display()),
            format!("--cni-cache-dir={}", cache.display()),
        ];
        Some(Cni { bed, third: COUNT.fetch_add(1, Ordering::Relaxed) })
    }

    /// One with a network, and its agent.
    pub(crate) fn start() -> Option<Cni> {
        let mut cni = Cni::new()?;
        cni.configure(&[]);
        cni.bed.begin();
        Some(cni)
    }

    pub(crate) fn conf(&self) -> PathBuf {
        self.folder.join("net.d/10-pods.conflist")
    }

    pub(crate) fn addresses(&self) -> PathBuf {
        self.folder.join("ipam")
    }

    /// Writes a network of the bridge and portmap, with `more` plugins after them.
    pub(crate) fn configure(&self, more: &[Value]) {
        self.configure_as("0.4.0", "host-local", more);
    }

    /// The same, of a version, with a plugin for addresses that takes what host-local takes.
    pub(crate) fn configure_as(&self, version: &str, addresses: &str, more: &[Value]) {
        let third = self.third;
        let mut plugins = vec![
            json!({"type": "bridge", "bridge": format!("lscni{third}"), "isGateway": true, "ipMasq": false,
                   "ipam": {"type": addresses, "dataDir": self.addresses(),
                            "ranges": [[{"subnet": format!("10.88.{third}.0/24")}]],
                            "routes": [{"dst": "0.0.0.0/0"}]}}),
            json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}),
            // Docker's packet filter forwards nothing that it does not know.
            json!({"type": "firewall"}),
        ];
        plugins.extend(more.iter().cloned());
        let list = json!({"cniVersion": version, "name": format!("pods{third}"), "plugins": plugins});
        let partial = self.conf().with_extension("partial");
        fs::write(&partial, list.to_string()).unwrap();
        fs::rename(partial, self.conf()).unwrap();
    }

    /// The addresses that are given out, as host-local keeps them.
    pub(crate) fn given_out(&self) -> BTreeSet<String> {
        let folder = self.addresses().join(format!("pods{}", self.third));
        let names = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("10.")).collect()
    }

    /// What is kept to be taken back.
    fn kept(&self) -> usize {
        fs::read_dir(self.folder.join("cache/results")).into_iter().flatten().count()
    }

    pub(crate) fn wait_nothing_left(&self) {
        until("no address is given out, and nothing is kept", || {
            (self.given_out().is_empty() && self.kept() == 0).then_some(())
        });
    }

    pub(crate) fn ip(&self, pod: &Value) -> String {
        let ip = pod["status"]["podIP"].as_str().unwrap().to_owned();
        assert!(ip.starts_with(&format!("10.88.{}.", self.third)), "{ip}");
        ip
    }

    /// A plugin of the test's own: a shell script.
    pub(crate) fn script(&self, name: &str, text: &str) {
        let path = self.folder.join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn node_event(&self, reason: &str, part: &str) {
        until(&format!("a node event {reason} with {part:?}"), || {
            let all = self.events_of_node(reason);
            all.iter().any(|event| event["message"].to_string().contains(part)).then_some(())
        });
    }
}

#[test]
fn cni_pods_talk_and_ports_lead_to_them() {
    let Some(cni) = Cni::start() else { return };
    let port = free_port();
    cni.apply(&web("a", json!({"containerPort": 8080, "hostPort": port})));
    let a = cni.wait_ready("a");
    let ip = cni.ip(&a);
    assert_eq!(a["status"]["podIPs"], json!([{"ip": ip}]));
    let ask = format!(
        "ip addr show lo | grep -q 127.0.0.1 && ip link show lo | grep -q UP && wget -q -O - http://{ip}:8080/ > /tmp/got; cat /tmp/got; sleep 1000"
    );
    cni.apply(&pod("b", json!([container("app", &ask)]), json!({})));
    let b = cni.wait_ready("b");
    let app = id(&b, "app");
    until("one pod reaches another, and its own loopback", || {
        let (code, text) = cni.docker.exec(&app, &["cat", "/tmp/got"]);
        (code == 0 && text.contains("hello")).then_some(())
    });
    let (_, hosts) = cni.docker.exec(&app, &["cat", "/etc/hosts"]);
    assert!(hosts.contains(&cni.ip(&b)), "{hosts}");
    let answer = until("by the node's port", || fetch((NODE_ADDRESS, port)).filter(|text| !text.is_empty()));
    assert!(answer.contains("hello"), "{answer}");
    assert_eq!(cni.given_out(), BTreeSet::from([ip, cni.ip(&b)]));
    cni.delete("a");
    cni.wait_gone("a");
    until("the port leads nowhere", || fetch((NODE_ADDRESS, port)).is_none_or(|text| text.is_empty()).then_some(()));
    cni.delete("b");
    cni.wait_gone("b");
    cni.wait_nothing_left();
}

#[test]
fn cni_nothing_is_left_by_what_was_killed() {
    let Some(mut cni) = Cni::start() else { return };
    for name in ["a", "b", "c"] {
        cni.apply(&sleeper(name));
    }
    let [a, b, _] = ["a", "b", "c"].map(|name| cni.wait_ready(name));
    assert_eq!(cni.given_out().len(), 3);
    // As a reboot, or somebody with `docker rm -f`, does it.
    cni.bed.kill();
    for name in ["a", "c"] {
        for found in cni.containers(name) {
            cni.docker.remove(found["Id"].as_str().unwrap());
        }
    }
    cni.delete("c");
    cni.bed.begin();
    let again = cni.wait("a", "runs anew", |pod| is_ready(pod) && id(pod, "app") != id(&a, "app"));
    cni.wait_gone("c");
    let kept = cni.wait_ready("b");
    assert_eq!((cni.ip(&kept), id(&kept, "app")), (cni.ip(&b), id(&b, "app")), "what runs is left alone");
    let expected = BTreeSet::from([cni.ip(&again), cni.ip(&b)]);
    until("only what runs has addresses", || (cni.given_out() == expected).then_some(()));
    for name in ["a", "b"] {
        cni.delete(name);
        cni.wait_gone(name);
    }
    cni.wait_nothing_left();
}

#[test]
fn cni_attachments_of_which_nothing_is_kept_are_found() {
    let Some(mut cni) = Cni::new() else { return };
    let told = cni.folder.join("told");
    cni.script("tell", TELL);
    cni.configure(&[json!({"type": "tell", "file": told})]);
    cni.bed.begin();
    cni.apply(&sleeper("a"));
    let a = cni.wait_ready("a");
    cni.bed.kill();
    fs::remove_dir_all(cni.folder.join("cache")).unwrap();
    cni.bed.begin();
    until("it is kept again", || (cni.kept() == 1).then_some(()));
    let again = cni.wait_ready("a");
    assert_eq!((cni.ip(&again), restarts(&again, "app")), (cni.ip(&a), 0));
    assert_eq!(lines(&told), ["ADD a-n1"], "nothing was done to it");
    cni.delete("a");
    cni.wait_gone("a");
    assert_eq!(lines(&told), ["ADD a-n1", "DEL a-n1"]);
    cni.wait_nothing_left();
}

#[test]
fn cni_a_sandbox_that_dies_gives_its_address_and_ports_back() {
    let Some(cni) = Cni::start() else { return };
    let port = free_port();
    cni.apply(&web("a", json!({"containerPort": 8080, "hostPort": port})));
    let first = cni.wait_ready("a");
    cni.docker.kill(cni.sandbox("a")["Id"].as_str().unwrap(), "KILL");
    let second = cni.wait("a", "runs anew", |pod| is_ready(pod) && id(pod, "app") != id(&first, "app"));
    assert_ne!(cni.ip(&first), cni.ip(&second));
    until("the port leads to the new one", || fetch((NODE_ADDRESS, port)).filter(|text| text.contains("hello")));
    until("one address is given out", || (cni.given_out() == BTreeSet::from([cni.ip(&second)])).then_some(()));
    cni.delete("a");
    cni.wait_gone("a");
    cni.wait_nothing_left();
}

#[test]
fn cni_configurations_come_change_and_go() {
    let Some(mut cni) = Cni::new() else { return };
    cni.bed.begin();
    let on_node = json!({"hostNetwork": true});
    cni.apply(&pod("host", json!([container("app", "sleep 1000")]), on_node));
    cni.apply(&sleeper("a"));
    cni.wait_ready("host");
    let not_ready = "network plugin is not ready: cni config uninitialized";
    cni.wait_event("a", "NetworkNotReady", not_ready);
    cni.node_event("NetworkNotReady", not_ready);
    // One that names a plugin that is not there cannot be used; the next one can.
    let broken = json!({"cniVersion": "0.4.0", "name": "broken", "plugins": [{"type": "nonexistent"}]});
    fs::write(cni.folder.join("net.d/05-broken.conflist"), broken.to_string()).unwrap();
    cni.configure(&[]);
    let a = cni.wait_ready("a");
    cni.node_event("NetworkReady", "");
    // Another plugin is called for new pods, and for these alone.
    cni.script("tell", TELL);
    let told = cni.folder.join("told");
    cni.configure(&[json!({"type": "tell", "file": told})]);
    cni.apply(&sleeper("b"));
    cni.wait_ready("b");
    cni.delete("a");
    cni.wait_gone("a");
    assert_eq!(lines(&told), ["ADD b-n1"]);
    // Without any, what runs runs on, and goes as it came.
    let unready =
        || cni.events_of_node("NetworkNotReady").iter().map(|event| event["count"].as_u64().unwrap_or(1)).sum::<u64>();
    let before = unready();
    fs::remove_file(cni.conf()).unwrap();
    until("it is not only for a moment", || (unready() > before).then_some(()));
    cni.apply(&sleeper("c"));
    cni.wait_event("c", "NetworkNotReady", "");
    assert_eq!(restarts(&cni.wait_ready("b"), "app"), 0);
    cni.delete("b");
    cni.wait_gone("b");
    assert_eq!(lines(&told), ["ADD b-n1", "DEL b-n1"]);
    assert!(!cni.given_out().contains(&cni.ip(&a)));
    cni.delete("c");
    cni.wait_gone("c");
    cni.wait_nothing_left();
}

/// A plugin that writes what it is asked, for which pod, and gives what the one before it gave.
const TELL: &str = r#"conf=$(cat)
file=$(echo "$conf" | sed -n 's/.*"file":"\([^"]*\)".*/\1/p')
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}'; exit 0 ;;
CHECK) exit 0 ;;
esac
pod=$(echo "$CNI_ARGS" | tr ';' '\n' | sed -n 's/^K8S_POD_NAME=//p')
echo "$CNI_COMMAND $pod" >> "$file"
[ ! -e "$file.fails" ] || { echo '{"code": 11, "msg": "not now"}'; exit 1; }
[ $CNI_COMMAND != ADD ] || echo "$conf" | sed 's/.*"prevResult":\(.*\)}/\1/'"#;

pub(crate) fn lines(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn cni_a_plugin_that_fails_leaves_nothing_and_is_tried_again() {
    let Some(cni) = Cni::new() else { return };
    let mut cni = cni;
    let told = cni.folder.join("told");
    let fails = cni.folder.join("told.fails");
    cni.script("tell", TELL);
    // It comes last: the others have done their part by then.
    cni.configure(&[json!({"type": "tell", "file": told})]);
    fs::write(&fails, "").unwrap();
    cni.bed.begin();
    cni.apply(&sleeper("a"));
    cni.wait_event("a", "FailedCreatePodSandBox", "not now");
    fs::remove_file(&fails).unwrap();
    let a = cni.wait_ready("a");
    until("one address is given out", || (cni.given_out() == BTreeSet::from([cni.ip(&a)])).then_some(()));
    // A pod is not kept by a plugin that does not let it go; it is asked again until it does.
    fs::write(&fails, "").unwrap();
    cni.delete("a");
    cni.wait_gone("a");
    assert!(cni.kept() == 1 && !cni.given_out().is_empty());
    fs::remove_file(&fails).unwrap();
    cni.bed.stop();
    cni.bed.begin();
    cni.wait_nothing_left();
}

#[test]
fn cni_pods_keep_their_network_when_the_agent_does_without() {
    let Some(mut cni) = Cni::start() else { return };
    cni.apply(&sleeper("a"));
    let a = cni.wait_ready("a");
    cni.bed.stop();
    cni.bed.flags.retain(|flag| !flag.starts_with("--network-plugin"));
    cni.bed.begin();
    cni.apply(&sleeper("b"));
    let b = cni.wait_ready("b");
    assert!(
        b["status"]["podIP"].as_str().unwrap().starts_with("172."),
        "on Docker's network: {}",
        b["status"]["podIP"]
    );
    let again = cni.wait_ready("a");
    assert_eq!((cni.ip(&again), restarts(&again, "app")), (cni.ip(&a), 0));
    cni.delete("a");
    cni.wait_gone("a");
    cni.wait_nothing_left();
}

#[test]
fn cni_two_families_and_the_nodes_own_ranges() {
    let Some(mut cni) = Cni::new() else { return };
    if !Path::new("/proc/net/if_inet6").exists() {
        return;
    }
    let third = cni.third;
    let list = json!({"cniVersion": "1.0.0", "name": format!("pods{third}"), "plugins": [
        {"type": "bridge", "bridge": format!("lscni{third}"), "isGateway": true,
         "capabilities": {"ipRanges": true},
         "ipam": {"type": "host-local", "dataDir": cni.addresses()}}]});
    fs::write(cni.conf(), list.to_string()).unwrap();
    cni.bed.flags.push(format!("--pod-cidr=10.88.{third}.0/26,fd00:88:{third}::/64"));
    cni.bed.begin();
    let command = json!({"command": ["sh", "-c", WEB]});
    cni.apply(&pod("a", json!([with(container("app", ""), command)]), json!({})));
    let a = cni.wait_ready("a");
    let ips = a["status"]["podIPs"].as_array().unwrap();
    assert_eq!(ips.len(), 2, "{ips:?}");
    assert!(ips[0]["ip"].as_str().unwrap().starts_with(&format!("10.88.{third}.")));
    assert!(ips[1]["ip"].as_str().unwrap().starts_with(&format!("fd00:88:{third}::")), "{ips:?}");
    cni.delete("a");
    cni.wait_gone("a");
    until("nothing is kept", || (cni.kept() == 0).then_some(()));
}
