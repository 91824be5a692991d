//! What CNI's own plugins do for pods: bandwidths, checks, readiness, collection, and nothing left over. Old ones (Debian's)
//! and new ones, which speak CNI 1.1.

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{
    bed::{
        far::Far,
        inside::{run, seen},
        limit,
        pods::{id, is_ready, restarts, sleeper, with},
        ports::free_port,
        until,
    },
    cni::{Cni, lines},
    network::{fetch, web},
};

fn print(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Cni {
    fn bridge(&self) -> String {
        format!("lscni{}", self.third)
    }

    /// The node's ends of the devices that pods have.
    fn devices(&self) -> BTreeSet<String> {
        let all: Vec<Value> = serde_json::from_str(&print("ip -j link show")).unwrap();
        let ours = all.iter().filter(|device| device["master"] == self.bridge().as_str());
        ours.map(|device| device["ifname"].as_str().unwrap().to_owned()).collect()
    }

    fn wait_no_device(&self) {
        until("no pod's device is left", || self.devices().is_empty().then_some(()));
    }
}

/// Rates that devices hold to.
fn rates() -> Vec<String> {
    let list = print("tc qdisc show");
    let rates = list.lines().filter(|line| line.contains(" tbf ")).filter_map(|line| line.split(" rate ").nth(1));
    rates.map(|rest| rest.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn cni_plugins_bandwidths_hold_are_checked_and_go() {
    let Some(mut cni) = Cni::new() else { return };
    let tried = Command::new("ip").args(["link", "add", "lsifb", "type", "ifb"]).output().unwrap();
    if !tried.status.success() {
        crate::bed::skip(&format!("the kernel has no ifb: {}", String::from_utf8_lossy(&tried.stderr)));
        return;
    }
    print("ip link delete lsifb");
    cni.configure(&[json!({"type": "bandwidth", "capabilities": {"bandwidth": true}})]);
    cni.bed.begin();
    let limits = json!({"kubernetes.io/ingress-bandwidth": "17M", "kubernetes.io/egress-bandwidth": "23M"});
    for name in ["a", "b"] {
        cni.apply(&with(sleeper(name), json!({"metadata": {"annotations": limits}})));
    }
    cni.apply(&sleeper("free"));
    let a = cni.wait_ready("a");
    for name in ["b", "free"] {
        cni.wait_ready(name);
    }
    let held = |wanted: &str| rates().iter().filter(|rate| *rate == wanted).count();
    assert_eq!((held("17Mbit"), held("23Mbit")), (2, 2), "{:?}", rates());

    // One pod's address is taken away under it.
    cni.bed.stop();
    let pid = cni.docker.inspect(&id(&a, "app")).unwrap()["State"]["Pid"].to_string();
    print(&format!("nsenter --net=/proc/{pid}/ns/net ip address flush dev eth0"));
    cni.bed.begin();
    cni.wait_event("a", "NetworkCheckFailed", "bridge failed (CHECK)");
    // Not of the one without limits: there the plugin itself crashes in CHECK, up to 1.1.1.
    assert!(cni.events("b").iter().all(|event| event["reason"] != "NetworkCheckFailed"), "{:?}", cni.events("b"));
    assert_eq!(restarts(&cni.wait_ready("a"), "app"), 0);
    for name in ["a", "b", "free"] {
        cni.delete(name);
        cni.wait_gone(name);
    }
    until("nothing is held any more", || (held("17Mbit") + held("23Mbit") == 0).then_some(()));
    assert!(!print("ip -br link show type ifb").contains("bwp"));
    cni.wait_nothing_left();
    cni.wait_no_device();
}

/// host-local, which says to STATUS what a file has.
const GATE: &str = r#"[ $CNI_COMMAND != STATUS ] || [ ! -e "${0%/*}/full" ] ||
    { echo '{"cniVersion": "1.1.0", "code": 50, "msg": "no addresses left"}'; exit 1; }
for folder in $(echo "$CNI_PATH" | tr ':' ' '); do
    [ ! -x "$folder/host-local" ] || exec "$folder/host-local"
done"#;

/// A plugin that writes down whom GC leaves alone.
const KEEP: &str = r#"conf=$(cat)
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}' ;;
GC) echo "$conf" | sed 's/.*"cni.dev\/valid-attachments":\[\([^]]*\)\].*/\1/' >> "${0%/*}/collected" ;;
ADD) echo "$conf" | sed 's/.*"prevResult":\(.*\)}/\1/' ;;
esac"#;

#[test]
fn cni_plugins_of_version_1_1_are_asked_for_readiness_and_collect() {
    let Some(mut cni) = Cni::of("LONGSHORE_TEST_NEW_CNI") else { return };
    cni.script("gate", GATE);
    cni.script("keep", KEEP);
    let (full, collected) = (cni.folder.join("bin/full"), cni.folder.join("bin/collected"));
    cni.configure_as("1.1.0", "gate", &[json!({"type": "keep"})]);
    cni.bed.begin();
    cni.apply(&sleeper("a"));
    let a = cni.wait_ready("a");
    cni.ip(&a);
    fs::write(&full, "").unwrap();
    cni.node_event("NetworkNotReady", "network plugin is not ready: plugin bridge failed (STATUS): no addresses left");
    cni.apply(&sleeper("b"));
    cni.wait_event("b", "NetworkNotReady", "no addresses left");
    assert_eq!(restarts(&cni.wait_ready("a"), "app"), 0);
    fs::remove_file(&full).unwrap();
    cni.node_event("NetworkReady", "");
    let b = cni.wait_ready("b");

    // What nobody holds is dropped, and what runs is named as held.
    cni.bed.stop();
    let _ = fs::remove_file(&collected);
    cni.bed.begin();
    let told = until("they are told to collect", || lines(&collected).pop());
    let told: Vec<Value> = serde_json::from_str(&format!("[{told}]")).unwrap();
    let named: BTreeSet<(&str, &str)> =
        told.iter().map(|one| (one["containerID"].as_str().unwrap(), one["ifname"].as_str().unwrap())).collect();
    let sandboxes = ["a", "b"].map(|name| cni.sandbox(name)["Id"].as_str().unwrap().to_owned());
    assert_eq!(named, sandboxes.iter().map(|id| (id.as_str(), "eth0")).collect());
    assert_eq!(cni.given_out(), BTreeSet::from([cni.ip(&a), cni.ip(&b)]));
    for name in ["a", "b"] {
        cni.delete(name);
        cni.wait_gone(name);
    }
    cni.wait_nothing_left();
    cni.wait_no_device();
}

#[test]
fn cni_plugins_ports_of_both_families_lead_to_pods() {
    let Some(mut cni) = Cni::new() else { return };
    let Some(far) = Far::new() else { return };
    let third = cni.third;
    let list = json!({"cniVersion": "1.0.0", "name": format!("pods{third}"), "plugins": [
        {"type": "bridge", "bridge": cni.bridge(), "isGateway": true, "ipMasq": true,
         "ipam": {"type": "host-local", "dataDir": cni.addresses(),
                  "ranges": [[{"subnet": format!("10.88.{third}.0/24")}], [{"subnet": format!("fd00:88:{third}::/64")}]],
                  "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        {"type": "firewall"}]});
    fs::write(cni.conf(), list.to_string()).unwrap();
    // As kube-proxy has it: Docker drops what is forwarded and not its own.
    for (program, pods) in [("iptables", format!("10.88.{third}.0/24")), ("ip6tables", format!("fd00:88:{third}::/64"))]
    {
        print(&format!("{program} -w 10 -I FORWARD -d {pods} -j ACCEPT"));
    }
    cni.bed.begin();
    let port = free_port();
    cni.apply(&web("a", json!({"containerPort": 8080, "hostPort": port})));
    let a = cni.wait_ready("a");
    let pid = cni.docker.inspect(&id(&a, "app")).unwrap()["State"]["Pid"].to_string();
    let ips = a["status"]["podIPs"].as_array().unwrap();
    assert!(ips.len() == 2 && ips[0]["ip"] == a["status"]["podIP"], "{ips:?}");
    for ipv4 in [true, false] {
        assert_eq!(ips[usize::from(!ipv4)]["ip"].as_str().unwrap().contains(':'), !ipv4, "{ips:?}");
        let answer = until("the node's port is reached from outside", || {
            run(&far.pid(), || fetch((&far.node(ipv4).to_string(), port))).filter(|text| !text.is_empty())
        });
        assert!(answer.contains("hello"), "{answer}");
        assert_eq!(seen(&pid, &far.pid(), far.outside(ipv4)), far.node(ipv4), "what leaves is masqueraded");
    }
    cni.delete("a");
    cni.wait_gone("a");
    cni.wait_nothing_left();
    cni.wait_no_device();
}

#[test]
fn cni_plugins_leave_nothing_of_fifty_pods_and_a_killed_agent() {
    let Some(mut cni) = Cni::start() else { return };
    let names: Vec<String> = (0..50).map(|index| format!("p{index}")).collect();
    for name in &names {
        cni.apply(&sleeper(name));
    }
    until("some have addresses", || (cni.given_out().len() >= 10).then_some(()));
    cni.bed.kill();
    cni.bed.begin();
    // All begin at once, and so they all take as long as the slowest.
    let long = Duration::from_secs(180);
    let ready = |name: &String| cni.wait_for(name, "ready", long, is_ready);
    let ips: BTreeSet<String> = names.iter().map(|name| cni.ip(&ready(name))).collect();
    assert_eq!(ips.len(), 50);
    until("each has one address", || (cni.given_out() == ips).then_some(()));
    assert_eq!(cni.devices().len(), 50);
    for name in &names {
        cni.delete(name);
    }
    until("some have gone", || (cni.given_out().len() <= 40).then_some(()));
    cni.bed.kill();
    cni.bed.begin();
    let gone = cni.watch.wait(limit(long), |told| told.pods.is_empty().then_some(()));
    assert!(gone.is_some(), "not within {long:?}:\n{}", cni.log());
    for name in &names {
        cni.wait_gone(name);
    }
    cni.wait_nothing_left();
    cni.wait_no_device();
}

#[test]
fn cni_plugins_get_back_what_pods_had_before_a_reboot() {
    let Some(mut cni) = Cni::start() else { return };
    for name in ["a", "b", "c"] {
        cni.apply(&sleeper(name));
    }
    let before = ["a", "b", "c"].map(|name| cni.wait_ready(name));
    // No process, so no network namespace, and no device: the containers, the addresses on disk and the cache stay.
    cni.bed.kill();
    for name in ["a", "b", "c"] {
        for found in cni.containers(name) {
            cni.docker.kill(found["Id"].as_str().unwrap(), "KILL");
        }
    }
    print(&format!("ip link delete {}", cni.bridge()));
    cni.delete("c");
    cni.bed.begin();
    let ips = [("a", 0), ("b", 1)].map(|(name, index)| {
        let again = cni.wait(name, "runs anew", |pod| is_ready(pod) && id(pod, "app") != id(&before[index], "app"));
        cni.ip(&again)
    });
    cni.wait_gone("c");
    until("only what runs has addresses", || (cni.given_out() == BTreeSet::from(ips.clone())).then_some(()));
    assert_eq!(cni.devices().len(), 2);
    for name in ["a", "b"] {
        cni.delete(name);
        cni.wait_gone(name);
    }
    cni.wait_nothing_left();
    cni.wait_no_device();
}
